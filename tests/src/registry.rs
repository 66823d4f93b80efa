//! A real registry on the loopback interface: Debian's docker-registry, with or without TLS and users.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::layout::tool;

/// A server, ended with the value.
pub struct Registry {
    child: Child,
    /// Where it listens.
    pub port: u16,
    log: PathBuf,
    storage: PathBuf,
    is_tls: bool,
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

/// An authority, and a certificate of its for `localhost` and `registry.test`: ca.crt, server.crt, server.key.
pub fn certificates(directory: &Path) {
    let at = |name: &str| directory.join(name).display().to_string();
    let (ca, ca_key, key, request, certificate) =
        (at("ca.crt"), at("ca.key"), at("server.key"), at("server.csr"), at("server.crt"));
    let new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj"];
    tool(
        "openssl",
        &[&new[..], &["/CN=authority of a test", "-x509", "-days", "2", "-keyout", &ca_key, "-out", &ca]]
            .concat(),
    );
    tool("openssl", &[&new[..], &["/CN=localhost", "-keyout", &key, "-out", &request]].concat());
    fs::write(at("names"), "subjectAltName=DNS:localhost,DNS:registry.test,IP:127.0.0.1\n").expect("written");
    let sign =
        ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", "2"];
    tool("openssl", &[&sign[..], &["-extfile", &at("names"), "-out", &certificate]].concat());
}

impl Registry {
    /// Starts one below `directory`; with `certificates` by TLS; with `user` for that user and password only.
    pub fn start(directory: &Path, certificates: Option<&Path>, user: Option<(&str, &str)>) -> Registry {
        fs::create_dir_all(directory).expect("a directory");
        let port = free_port();
        let at = |name: &str| directory.join(name).display().to_string();
        let mut text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            at("storage")
        );
        if let Some(dir) = certificates {
            let (certificate, key) = (dir.join("server.crt"), dir.join("server.key"));
            text += &format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
        }
        if let Some((user, password)) = user {
            fs::write(at("users"), tool("htpasswd", &["-Bbn", user, password]).stdout).expect("written");
            text += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", at("users"));
        }
        fs::write(at("config.yml"), text).expect("written");
        let log = directory.join("log");
        let out = File::create(&log).expect("a log");
        let child = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a log"))
            .stderr(out)
            .spawn()
            .expect("docker-registry: `cargo xtask test` installs it");
        let registry =
            Registry { child, port, log, storage: directory.join("storage"), is_tls: certificates.is_some() };
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(since.elapsed() < Duration::from_secs(20), "no registry: {}", registry.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Its host and port.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Puts an image of an OCI layout there, with all its platforms.
    pub fn push(&self, layout: &Path, reference: &str, name: &str, user: Option<(&str, &str)>) {
        let from = format!("oci:{}:{reference}", layout.display());
        let to = format!("docker://{}/{name}", self.host());
        let mut arguments = vec!["copy", "-q", "--all", "--dest-tls-verify=false"];
        let credentials = user.map(|(user, password)| format!("{user}:{password}"));
        if let Some(credentials) = &credentials {
            arguments.extend(["--dest-creds", credentials]);
        }
        arguments.extend([from.as_str(), to.as_str()]);
        tool("skopeo", &arguments);
    }

    /// What it has written.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Requests for blobs that it has answered, with their statuses, by digest.
    pub fn blobs(&self) -> Vec<(String, u16)> {
        let log = self.log();
        // Apache's format, one line each.
        let request = |line: &str| {
            let (_, rest) = line.split_once("\"GET ")?;
            let (path, rest) = rest.split_once(" HTTP/")?;
            let (_, digest) = path.split_once("/blobs/")?;
            let status = rest.split_once("\" ")?.1.split(' ').next()?.parse().ok()?;
            Some((digest.to_owned(), status))
        };
        log.lines().filter_map(request).collect()
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Whether it speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program in Python that listens on a port, ended with the value: proxies that cut, servers that lie.
pub struct Listener {
    child: Child,
    /// Where it listens.
    pub port: u16,
}

impl Listener {
    /// Starts it: `port` is set, and the arguments are `sys.argv[1:]`.
    pub fn start(script: &str, arguments: &[&str]) -> Listener {
        let port = free_port();
        let script = format!("port = {port}\n{script}");
        let child =
            Command::new("python3").args(["-c", &script]).args(arguments).stdin(Stdio::null()).spawn();
        let listener = Listener { child: child.expect("python3"), port };
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(since.elapsed() < Duration::from_secs(20), "nothing listens on {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
        listener
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

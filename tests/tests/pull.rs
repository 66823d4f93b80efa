//! Images from a real registry: with and without TLS and users, of several machines, cut, by many at once.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpc_launch_tests::host::{Who, everyone};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::layout::{self, oci, only_image, owned, text};
use hpc_launch_tests::registry::{Listener, Registry, certificates, free_port};
use hpc_launch_tests::run::{Outcome, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A layout of one image, of two layers, that says hello; in the second random bytes.
fn hello(beside: &Path, megabytes: usize) -> PathBuf {
    let throwaway = Throwaway::new();
    throwaway.program("bin/hello", "#!/bin/sh\necho \"hello of $IMAGE\"\n");
    let tar = beside.join("root.tar");
    layout::tar(&throwaway.root(), &tar);
    let layers = format!(
        "import tarfile, random
CONFIG = {{'Env': ['IMAGE=registry', 'PATH=/bin'], 'Cmd': ['hello']}}
t = tarfile.open({:?})
kinds = {{tarfile.DIRTYPE: 'dir', tarfile.SYMTYPE: 'symlink', tarfile.REGTYPE: 'file'}}
layers = [[{{'name': m.name, 'type': kinds[m.type], 'mode': m.mode, 'linkname': m.linkname, 'data': t.extractfile(m).read() if m.isreg() else b''}} for m in t],
  [{{'name': 'random', 'data': random.Random(1).randbytes({megabytes} << 20)}}]]",
        text(&tar)
    );
    let layout = beside.join("layout");
    oci(&layers, &layout);
    layout
}

/// The digests of the layers, the largest last.
fn layers_of(layout: &Path) -> Vec<String> {
    let json =
        |path: PathBuf| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let index = json(layout.join("index.json"));
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest = json(layout.join("blobs/sha256").join(&digest[7..]));
    let mut layers = manifest["layers"].as_array().unwrap().clone();
    layers.sort_by_key(|l| l["size"].as_u64());
    layers.iter().map(|l| l["digest"].as_str().unwrap().to_owned()).collect()
}

fn pull(who: Who, store: &Path, arguments: &[&str]) -> Run {
    Run::launch(who, [&["image", "pull", "--store", text(store)], arguments].concat())
}

/// By HTTP on the loopback interface: pulled, found again, by tag and digest, and run.
#[test]
fn from_a_registry_without_tls() {
    let dir = directory("/var/tmp");
    let registry = Registry::start(&dir.path().join("registry"), None, None);
    let layout = hello(dir.path(), 1);
    registry.push(&layout, "test", "group/hello:1", None);
    let address = format!("docker://{}/group/hello:1", registry.host());
    for who in everyone() {
        let store = owned(dir.path(), &format!("store-{who:?}"), *who);
        let outcome = pull(*who, &store, &[&address]).run().good();
        assert!(outcome.out().starts_with("group/hello:1: "), "{outcome}");
        let run = |image: &str| Run::launch(*who, ["--store", text(&store), image]).run().good();
        assert_eq!(run("group/hello:1").out(), "hello of registry\n");
        // Its address alone is enough, and then no registry is asked.
        let asked = registry.log().len();
        assert_eq!(run(&address).out(), "hello of registry\n");
        assert_eq!(registry.log().len(), asked);
        assert_eq!(fs::read_dir(store.join("blobs")).unwrap().count(), 0, "blobs go when the image is made");
        let again = pull(*who, &store, &[&address, "other"]).run().good();
        assert!(again.out().contains("which was there"), "{again}");
        // The digest that the registry knows it by.
        let inspect = Run::launch(*who, ["image", "inspect", "other", "--store", text(&store)]).run().good();
        let what: serde_json::Value = serde_json::from_str(&inspect.out()).unwrap();
        let digest = what["origin"]["manifest"].as_str().unwrap();
        assert_eq!(what["origin"]["from"], address);
        let pinned = format!("docker://{}/group/hello@{digest}", registry.host());
        assert!(pull(*who, &store, &[&pinned]).run().good().out().contains("which was there"));
        let wrong = format!("{}@sha256:{}", address, "0".repeat(64));
        pull(*who, &store, &[&wrong]).run().refused("image-missing", &["404"]);
        // By its address in a new store, under a launcher: pulled once.
        let fresh = owned(dir.path(), &format!("fresh-{who:?}"), *who);
        let before = registry.blobs().len();
        let line = ["-n", "8", "--oversubscribe", "--store", text(&fresh), &address];
        let outcome = Run::launch(*who, line).run().good();
        assert_eq!(outcome.out(), "hello of registry\n".repeat(8));
        assert_eq!(outcome.err().matches("pulling docker://").count(), 1, "{outcome}");
        assert_eq!(registry.blobs().len() - before, 3, "two layers and a configuration");
    }
}

/// TLS by a site's own authority, and users: refused without, with the cure; pulled with.
#[test]
fn tls_and_users() {
    let dir = directory("/var/tmp");
    certificates(dir.path());
    let user = Some(("solver", "secret word"));
    let registry = Registry::start(&dir.path().join("registry"), Some(dir.path()), user);
    let layout = hello(dir.path(), 1);
    registry.push(&layout, "test", "hello:1", user);
    let address = format!("docker://{}/hello:1", registry.host());
    let who = everyone()[everyone().len() - 1];
    let store = owned(dir.path(), "store", who);
    // Its certificate is not trusted: that a registry on this machine may do without TLS does not hide it.
    pull(who, &store, &[&address])
        .run()
        .refused("registry-unreachable", &["localhost:", "certs.d/HOST/ca.crt"]);
    let config = owned(dir.path(), "config", who);
    let trusted = config.join("containers/certs.d").join(registry.host());
    fs::create_dir_all(&trusted).unwrap();
    fs::copy(dir.path().join("ca.crt"), trusted.join("ca.crt")).unwrap();
    layout::open(&config);
    let with = |run: Run| run.env("XDG_CONFIG_HOME", &config);
    with(pull(who, &store, &[&address])).run().refused(
        "registry-denied",
        &["answers 401", "no credentials for it were found", "podman login localhost:"],
    );
    let auth = |user: &str, password: &str| {
        let pair = format!("{user}:{password}");
        let mut base64 = std::process::Command::new("base64");
        let output = base64
            .arg("-w0")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut output.stdin.as_ref().unwrap(), pair.as_bytes()).unwrap();
        let encoded = String::from_utf8(output.wait_with_output().unwrap().stdout).unwrap();
        format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{encoded}\"}}}}}}", registry.host())
    };
    // podman's file, with a wrong password; then docker's, with the right one.
    fs::write(config.join("containers/auth.json"), auth("solver", "wrong")).unwrap();
    layout::open(&config);
    with(pull(who, &store, &[&address])).run().refused(
        "registry-denied",
        &["answers 401", "tried as \"solver\", from", "containers/auth.json", "log in again"],
    );
    fs::remove_file(config.join("containers/auth.json")).unwrap();
    let docker = owned(dir.path(), "docker", who);
    fs::write(docker.join("config.json"), auth("solver", "secret word")).unwrap();
    layout::open(&docker);
    with(pull(who, &store, &[&address])).env("DOCKER_CONFIG", &docker).run().good();
    only_image(&store);
    fs::write(docker.join("config.json"), "{\"auths\":7}").unwrap();
    with(pull(who, &store, &[&address]))
        .env("DOCKER_CONFIG", &docker)
        .run()
        .refused("registry-denied", &["config.json cannot be understood"]);
}

/// One reference for several machines: this one's is taken, another on request, and what is not there is said.
#[test]
fn several_machines() {
    let dir = directory("/var/tmp");
    let registry = Registry::start(&dir.path().join("registry"), None, None);
    let layout = hello(dir.path(), 1);
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    layout::python(
        "
import sys, json, hashlib, os
root, here = sys.argv[1:3]
blobs = os.path.join(root, 'blobs/sha256')
def put(data):
    digest = hashlib.sha256(data).hexdigest()
    open(os.path.join(blobs, digest), 'wb').write(data)
    return {'digest': 'sha256:' + digest, 'size': len(data)}
index = json.load(open(os.path.join(root, 'index.json')))
one = index['manifests'][0]
manifest = json.load(open(os.path.join(blobs, one['digest'][7:])))
config = json.load(open(os.path.join(blobs, manifest['config']['digest'][7:])))
config['architecture'] = 's390x'
config['config']['Env'] = ['IMAGE=s390x']
manifest['config'].update(put(json.dumps(config).encode()))
other = put(json.dumps(manifest).encode())
kind = 'application/vnd.oci.image.manifest.v1+json'
both = {'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.index.v1+json', 'manifests': [
    dict(other, mediaType=kind, platform={'architecture': 's390x', 'os': 'linux'}),
    {'mediaType': kind, 'digest': one['digest'], 'size': one['size'], 'platform': {'architecture': here, 'os': 'linux'}}]}
ref = {'org.opencontainers.image.ref.name': 'both'}
index['manifests'].append(dict(put(json.dumps(both).encode()), mediaType=both['mediaType'], annotations=ref))
json.dump(index, open(os.path.join(root, 'index.json'), 'w'))
",
        &[text(&layout), here],
    );
    registry.push(&layout, "both", "hello:all", None);
    let address = format!("docker://{}/hello:all", registry.host());
    let who = everyone()[0];
    let store = owned(dir.path(), "store", who);
    pull(who, &store, &[&address]).run().good();
    assert_eq!(
        Run::launch(who, ["--store", text(&store), "hello:all"]).run().good().out(),
        "hello of registry\n"
    );
    pull(who, &store, &["--platform", "s390x", &address, "other"]).run().good();
    Run::launch(who, ["--store", text(&store), "other"])
        .run()
        .refused("image-architecture", &["is for linux/s390x", &format!("linux/{here} is wanted")]);
    pull(who, &store, &["--platform", "linux/riscv64", &address]).run().refused(
        "image-architecture",
        &[&format!("is for linux/s390x, linux/{here}, and linux/riscv64 is wanted")],
    );
    // The same layout, as a file.
    let local = format!("oci:{}:both", text(&layout));
    assert!(pull(who, &store, &[&local, "local"]).run().good().out().contains("local:latest"));
}

/// What is cut is resumed: within one pull, and by the next one after a kill.
#[test]
fn resumed_after_a_cut() {
    let dir = directory("/var/tmp");
    let registry = Registry::start(&dir.path().join("registry"), None, None);
    let layout = hello(dir.path(), 12);
    registry.push(&layout, "test", "hello:1", None);
    // Forwards, and breaks each connection after so many bytes of an answer; slowly, if asked.
    const CUTTER: &str = "
import socket, sys, threading, time
upstream, most, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
server = socket.create_server(('127.0.0.1', port))
def up(a, b):
    try:
        while True:
            d = a.recv(65536)
            if not d: break
            b.sendall(d)
    except OSError: pass
def serve(client):
    b = socket.create_connection(('127.0.0.1', upstream))
    threading.Thread(target=up, args=(client, b), daemon=True).start()
    sent = 0
    try:
        while True:
            d = b.recv(65536)
            if not d: break
            client.sendall(d)
            sent += len(d)
            time.sleep(pause)
            if sent > most: break
    except OSError: pass
    for s in (client, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
";
    let who = everyone()[everyone().len() - 1];
    let large = layers_of(&layout).pop().unwrap();
    let upstream = registry.port.to_string();
    let cutter = Listener::start(CUTTER, &[&upstream, "4000000", "0"]);
    let store = owned(dir.path(), "store", who);
    let address = format!("docker://localhost:{}/hello:1", cutter.port);
    pull(who, &store, &[&address]).run().good();
    let statuses: Vec<u16> =
        registry.blobs().into_iter().filter(|(d, _)| *d == large).map(|(_, s)| s).collect();
    assert_eq!(statuses.first(), Some(&200), "{statuses:?}");
    assert!(statuses.len() >= 3 && statuses[1..].iter().all(|s| *s == 206), "{statuses:?}");
    assert_eq!(
        Run::launch(who, ["--store", text(&store), "hello:1"]).run().good().out(),
        "hello of registry\n"
    );

    // Killed in the middle, and again: what was fetched is not fetched again.
    let slow = Listener::start(CUTTER, &[&upstream, "1000000000", "0.01"]);
    let store = owned(dir.path(), "killed", who);
    let address = format!("docker://localhost:{}/hello:1", slow.port);
    let before = registry.blobs().len();
    let running = pull(who, &store, &[&address]).start();
    let part = store.join("blobs").join(format!("{}.part", &large[7..]));
    let since = Instant::now();
    while fs::metadata(&part).map_or(0, |m| m.len()) < 3 << 20 {
        assert!(since.elapsed() < Duration::from_secs(30), "nothing comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(running.pid()), Signal::SIGKILL).unwrap();
    running.finish();
    pull(who, &store, &[&format!("docker://{}/hello:1", registry.host())]).run().good();
    // A request that was cut is written down when the server notices.
    let statuses = || {
        let mut all: Vec<u16> =
            registry.blobs()[before..].iter().filter(|(d, _)| *d == large).map(|(_, s)| *s).collect();
        all.sort_unstable();
        all
    };
    let since = Instant::now();
    while statuses().len() < 2 && since.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(statuses(), [200, 206]);
    Run::launch(who, ["image", "verify", "--store", text(&store)]).run().good();
}

/// Sixteen at once: one download, sixteen successes.
#[test]
fn many_at_once_fetch_it_once() {
    let dir = directory("/var/tmp");
    let registry = Registry::start(&dir.path().join("registry"), None, None);
    let layout = hello(dir.path(), 4);
    registry.push(&layout, "test", "hello:1", None);
    let address = format!("docker://{}/hello:1", registry.host());
    for who in everyone() {
        let store = owned(dir.path(), &format!("store-{who:?}"), *who);
        let before = registry.blobs().len();
        let all: Vec<_> = (0..16).map(|_| pull(*who, &store, &[&address]).start()).collect();
        let outs: Vec<Outcome> = all.into_iter().map(|r| r.finish().good()).collect();
        let made = outs.iter().filter(|o| !o.out().contains("which was there")).count();
        assert_eq!(made, 1);
        let blobs = registry.blobs()[before..].to_vec();
        for layer in layers_of(&layout) {
            assert_eq!(blobs.iter().filter(|(digest, _)| *digest == layer).count(), 1, "{blobs:?}");
        }
        only_image(&store);
    }
}

/// Killed at any instant of a pull: the store is whole, and the next pull succeeds.
#[test]
fn killed_at_any_instant() {
    let dir = directory("/var/tmp");
    let registry = Registry::start(&dir.path().join("registry"), None, None);
    let layout = hello(dir.path(), 2);
    registry.push(&layout, "test", "hello:1", None);
    let address = format!("docker://{}/hello:1", registry.host());
    let who = everyone()[everyone().len() - 1];
    let store = owned(dir.path(), "store", who);
    let image = |arguments: &[&str]| {
        Run::launch(who, [&["image"], arguments, &["--store", text(&store)]].concat()).run()
    };
    let began = Instant::now();
    pull(who, &store, &[&address]).run().good();
    let whole = began.elapsed();
    let kills = if std::env::var_os("HPC_LAUNCH_FULL").is_some() { 300 } else { 60 };
    let mut fetching = 0;
    for n in 0..kills {
        let _ = image(&["rm", "hello:1"]);
        image(&["gc", "--all"]).good();
        let running = pull(who, &store, &[&address]).start();
        std::thread::sleep(whole.mul_f64((f64::from(n) * 0.618_034).fract() * 1.1));
        let _ = kill(Pid::from_raw(running.pid()), Signal::SIGKILL);
        running.finish();
        fetching += usize::from(fs::read_dir(store.join("blobs")).unwrap().count() > 0);
        assert!(image(&["verify"]).good().out().contains(" 0 faults"));
        pull(who, &store, &[&address]).run().good();
        assert!(image(&["verify"]).good().out().contains(": 1 images, 0 faults"));
    }
    eprintln!("{kills} kills, {fetching} with blobs on their way");
    assert!(fetching > 0, "no kill came while something was being fetched");
}

/// Mirrors are asked first, and passed over where they fail; a proxy is used where it is set.
#[test]
fn mirrors_and_proxies() {
    let dir = directory("/var/tmp");
    certificates(dir.path());
    let registry = Registry::start(&dir.path().join("registry"), None, None);
    let layout = hello(dir.path(), 1);
    registry.push(&layout, "test", "library/hello:1", None);
    let who = everyone()[everyone().len() - 1];
    let store = owned(dir.path(), "store", who);
    let config = owned(dir.path(), "config", who);
    fs::create_dir(config.join("hpc-launch")).unwrap();
    let dead = free_port();
    let mirrors =
        format!("[mirrors]\n\"docker.io\" = [\"http://localhost:{dead}\", \"http://{}\"]\n", registry.host());
    fs::write(config.join("hpc-launch/config.toml"), mirrors).unwrap();
    layout::open(&config);
    let run = pull(who, &store, &["docker://hello:1"]).env("XDG_CONFIG_HOME", &config);
    assert!(run.run().good().out().starts_with("hello:1: "));
    // Through a proxy, which knows a name that nobody else does.
    const PROXY: &str = "
import socket, sys, threading
upstream, log = int(sys.argv[1]), sys.argv[2]
server = socket.create_server(('127.0.0.1', port))
def pipe(a, b):
    try:
        while True:
            d = a.recv(65536)
            if not d: break
            b.sendall(d)
    except OSError: pass
    for s in (a, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def serve(client):
    head = b''
    while b'\\r\\n\\r\\n' not in head:
        d = client.recv(4096)
        if not d: return
        head += d
    open(log, 'ab').write(head.split(b'\\r\\n')[0] + b'\\n')
    b = socket.create_connection(('127.0.0.1', upstream))
    client.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n')
    threading.Thread(target=pipe, args=(client, b), daemon=True).start()
    pipe(b, client)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
";
    let secure = Registry::start(&dir.path().join("secure"), Some(dir.path()), None);
    secure.push(&layout, "test", "hello:1", None);
    let log = dir.path().join("proxy.log");
    let proxy = Listener::start(PROXY, &[&secure.port.to_string(), text(&log)]);
    let trusted = config.join("containers/certs.d/registry.test");
    fs::create_dir_all(&trusted).unwrap();
    fs::copy(dir.path().join("ca.crt"), trusted.join("ca.crt")).unwrap();
    layout::open(&config);
    let by_proxy = |none: &str| {
        pull(who, &store, &["docker://registry.test/hello:1", "by-proxy"])
            .env("XDG_CONFIG_HOME", &config)
            .env("HTTPS_PROXY", format!("http://127.0.0.1:{}", proxy.port))
            .env("NO_PROXY", none)
            .run()
    };
    by_proxy("").good();
    assert!(fs::read_to_string(&log).unwrap().contains("CONNECT registry.test:443"));
    by_proxy("other.test,.test").refused("registry-unreachable", &["cannot reach registry.test"]);
}

/// What users are told where it does not work.
#[test]
fn what_is_said() {
    let dir = directory("/var/tmp");
    let registry = Registry::start(&dir.path().join("registry"), None, None);
    let layout = hello(dir.path(), 1);
    registry.push(&layout, "test", "hello:1.0", None);
    let who = everyone()[everyone().len() - 1];
    let store = owned(dir.path(), "store", who);
    let of = |address: &str| pull(who, &store, &[address]).run();
    let host = registry.host();
    of(&format!("docker://{host}/hello:1.1"))
        .refused("image-missing", &["answers 404", "MANIFEST_UNKNOWN", "it has 1 tags, the nearest: 1.0"]);
    of(&format!("docker://{host}/other:1")).refused("image-missing", &["answers 404", "check the name"]);
    of(&format!("docker://localhost:{}/x:1", free_port()))
        .refused("registry-unreachable", &["cannot reach localhost:", "check host and port"]);
    of("docker://no-such-host.invalid/x:1")
        .refused("registry-unreachable", &["cannot reach no-such-host.invalid", "login node"]);
    of("docker://Hello").refused("image-name", &["is no image of a registry"]);
    of("hello:1").refused("image-name", &["does not begin with docker://"]);
    // More than the limit is not even fetched.
    let large = layers_of(&layout).pop().unwrap();
    let limited = pull(who, &store, &[&format!("docker://{host}/hello:1.0"), "--max-size", "100K"]).run();
    limited.refused("image-too-large", &["the image holds more than 100 KiB", "--max-size"]);
    assert!(registry.blobs().iter().all(|(digest, _)| *digest != large), "{:?}", registry.blobs());
    // A registry that has a blob damaged.
    let blob = registry.blob(&large);
    let good = fs::read(&blob).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&blob, &bad).unwrap();
    of(&format!("docker://{host}/hello:1.0")).refused("image-digest", &["sent sha256:", &large]);
    assert!(fs::read_dir(store.join("images")).unwrap().next().is_none());
    fs::write(&blob, &good).unwrap();
    of(&format!("docker://{host}/hello:1.0")).good();
}

/// Servers that are none, or lie.
#[test]
fn servers_that_lie() {
    const SERVER: &str = "
import http.server, json, hashlib, sys
config = b'{}'
digest = lambda b: 'sha256:' + hashlib.sha256(b).hexdigest()
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def answer(self, status, body=b'', **headers):
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), v)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        p = self.path
        if p == '/v2/': return self.answer(200)
        if p.startswith('/v2/limit/'): return self.answer(429, b'{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"slow \\u001b[31mdown\"}]}', Retry_After='3600')
        if p.startswith('/v2/large/'): return self.answer(200, b' ' * (5 << 20))
        if p.startswith('/v2/text/'): return self.answer(200, b'<html>')
        if p.startswith('/v2/old/'): return self.answer(200, b'{\"schemaVersion\": 1}')
        if p.startswith('/v2/realm/'): return self.answer(401, b'', WWW_Authenticate='Bearer realm=\"ftp://x/token\",service=\"x\"')
        layer = {'mediaType': 'application/vnd.oci.image.layer.v1.tar', 'digest': digest(b'x' * 10), 'size': 10}
        manifest = json.dumps({'schemaVersion': 2, 'config': {'mediaType': 'c', 'digest': digest(config), 'size': len(config)}, 'layers': [layer]}).encode()
        if '/manifests/' in p: return self.answer(200, manifest)
        if p.endswith(digest(config)): return self.answer(200, config)
        if p.startswith('/v2/more/'): return self.answer(200, b'x' * 1000)
        if p.startswith('/v2/error/'): return self.answer(500, b'')
        self.answer(404)
http.server.ThreadingHTTPServer(('127.0.0.1', port), H).serve_forever()
";
    let dir = directory("/var/tmp");
    let server = Listener::start(SERVER, &[]);
    let who = everyone()[0];
    let store = owned(dir.path(), "store", who);
    let of = |name: &str| {
        pull(who, &store, &["--plain-http", &format!("docker://localhost:{}/{name}:1", server.port)]).run()
    };
    let limit = of("limit");
    assert!(!limit.err().contains('\u{1b}'), "{limit}");
    limit.refused(
        "registry-limit",
        &["answers 429", "TOOMANYREQUESTS slow [31mdown", "wait 3600 s", "mirror"],
    );
    of("large").refused("image-hostile", &["sends a manifest of more than 4 MiB"]);
    of("text").refused("image-damaged", &["the manifest of docker://localhost:"]);
    of("old").refused("image-unsupported", &["schema 1"]);
    of("realm").refused("registry-unreachable", &["says an address that is not safe: \"ftp://x/token\""]);
    // Its configuration says no layers.
    of("other").refused("image-damaged", &["the manifest has 1 layers, the configuration 0"]);
    for directory in ["images", "names", "work"] {
        assert_eq!(fs::read_dir(store.join(directory)).unwrap().count(), 0, "{directory}");
    }
}

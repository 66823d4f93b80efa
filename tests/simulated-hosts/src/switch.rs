//! The first process of a bed: a bridge that leads nowhere, and a wire to each of the hosts, which it starts.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::{NAMESPACES, RSH, SWITCH, address, init, name, view};

/// A host that starts: the process whose namespaces it has, and how to talk to it.
struct Host {
    process: Child,
    input: ChildStdin,
    said: Box<dyn BufRead>,
}

/// Makes the bed, says "ready", and is there until its standard input ends.
pub fn run(bed: &Path, count: usize, shown: &[OsString]) -> io::Result<i32> {
    view::own(SWITCH)?;
    let names: Vec<String> = (0..=count).map(name).collect();
    let mut table = "127.0.0.1 localhost\n".to_owned();
    for (n, name) in names.iter().enumerate() {
        let _ = writeln!(table, "{} {name}", address(n));
    }
    fs::write(bed.join("hosts"), table)?;
    let mut hosts = Vec::new();
    for (n, name) in names.iter().enumerate() {
        hosts.push(start(bed, name, &address(n), shown)?);
    }

    let mut wires = "link add br0 type bridge\nlink set br0 up\n".to_owned();
    for (host, name) in hosts.iter_mut().zip(&names) {
        host.says("up", name)?;
        let pid = host.process.id();
        let _ = writeln!(wires, "link add {name} type veth peer name eth0 netns {pid}");
        let _ = writeln!(wires, "link set {name} master br0 up");
    }
    view::ip(&wires)?;
    for host in &mut hosts {
        host.input.write_all(b"\n")?;
    }
    for (host, name) in hosts.iter_mut().zip(&names) {
        host.says("ready", name)?;
    }
    init::serve(bed, SWITCH)
}

fn start(bed: &Path, name: &str, address: &str, shown: &[OsString]) -> io::Result<Host> {
    let mut process = Command::new("unshare")
        .args(NAMESPACES)
        .arg(bed.join(RSH))
        .args(["--host", name, address])
        .args(shown)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let input = process.stdin.take().ok_or_else(gone)?;
    let said = Box::new(BufReader::new(process.stdout.take().ok_or_else(gone)?));
    Ok(Host { process, input, said })
}

impl Host {
    fn says(&mut self, word: &str, name: &str) -> io::Result<()> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        if line.trim_end() == word {
            return Ok(());
        }
        Err(io::Error::other(format!("host {name} is not {word}, but {line:?}")))
    }
}

//! Several hosts on one machine, for tests and benchmarks of launchers: a bed of them ([`Bed`]), and the program
//! that each of them runs ([`main`]): its first process, and the remote shell by which others start programs on it.
//!
//! A host is a set of network, mount, UTS, IPC and PID namespaces: its own address on a bridge that leads nowhere,
//! its own name, processes, /tmp, /dev/shm, /proc, /sys and /etc/hosts. All else is the machine's, as if it lay on
//! a file system that the hosts share. The ranks' hosts are h1, h2, …; one more, `head`, has none of its own.
//!
//! A bed is a directory with a copy of that program in it, called as
//!
//! ```text
//! rsh --switch COUNT [SHOWN...]          first process of the bed: the wires between the hosts
//! rsh --host NAME ADDRESS [SHOWN...]     first process of a host
//! rsh --here HOST PROGRAM [ARGUMENT...]  runs a program there with this one's directory and environment
//! rsh [-OPTION...] HOST COMMAND...       hands a line to a shell there, as rsh and ssh do
//! ```
//!
//! Each host listens on the socket HOST.sock in that directory; every SHOWN is a path below /tmp which is to be
//! seen in all the hosts' own.

mod bed;
mod init;
mod remote;
mod request;
mod switch;
mod view;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, io, process};

pub use bed::{Bed, PATIENCE};

/// The host on which launchers start that are not started on one of the ranks'.
pub const HEAD: &str = "head";
/// What has the other ends of all wires.
pub const SWITCH: &str = "switch";
/// The name of the program in a bed's directory.
pub const RSH: &str = "rsh";
/// The variable that, besides what a remote shell gives a program anyway, goes from host to host: a caller's mark of
/// what belongs to it.
pub const MARKER: &str = "HPCL_TEST_RUN";
/// The length of the network's part of an address.
const PREFIX: u8 = 16;
/// unshare(1), for a set of namespaces that ends with its caller.
const NAMESPACES: [&str; 7] = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"];
/// What rsh and ssh answer when it is they that fail.
const FAILED: i32 = 255;

/// The name of a host; the first is the head.
pub fn name(n: usize) -> String {
    if n == 0 { HEAD.to_owned() } else { format!("h{n}") }
}

/// The address of a host. Every bed has the same, in a network of its own.
pub fn address(n: usize) -> String {
    if n == 0 { "10.9.255.254".to_owned() } else { format!("10.9.{}.{}", n / 256, n % 256) }
}

/// Whether this process was started as the program of a bed: then [`main`] is to be called before anything else.
pub fn is_called() -> bool {
    env::current_exe().is_ok_and(|path| path.file_name().is_some_and(|name| name == RSH))
}

/// The program of the hosts, with its arguments: it lies in the bed's directory.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let error = match run(&arguments) {
        Ok(status) => process::exit(status),
        Err(e) => e,
    };
    let line: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    eprintln!("simulated-host {}: {error}", line.join(" "));
    process::exit(FAILED)
}

fn run(arguments: &[OsString]) -> io::Result<i32> {
    let program = env::current_exe()?;
    let bed = program.parent().unwrap_or(Path::new("/"));
    let [mode, rest @ ..] = arguments else { return Err(usage()) };
    match (mode.to_str(), rest) {
        (Some("--switch"), [count, shown @ ..]) => {
            let count = count.to_str().and_then(|c| c.parse().ok()).ok_or_else(usage)?;
            switch::run(bed, count, shown)
        }
        (Some("--host"), [name, address, shown @ ..]) => {
            let (Some(name), Some(address)) = (name.to_str(), address.to_str()) else { return Err(usage()) };
            let shown: Vec<PathBuf> = shown.iter().map(PathBuf::from).collect();
            init::host(bed, name, address, &shown)
        }
        (Some("--here"), [host, command @ ..]) if !command.is_empty() => remote::here(bed, host, command),
        _ => {
            let first = arguments.iter().position(|a| !a.as_encoded_bytes().starts_with(b"-"));
            let rest = first.map_or(&[][..], |at| &arguments[at..]);
            let [host, line @ ..] = rest else { return Err(usage()) };
            if line.is_empty() {
                return Err(usage());
            }
            remote::shell(bed, host, line)
        }
    }
}

fn usage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no such use")
}

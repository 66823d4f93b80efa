//! A simulated host: its first process, and the remote shell by which others start programs on it.
//!
//! A bed of hosts (`hpc_launch_tests::hosts`) is a directory with a copy of this program in it, called as
//!
//!     rsh --switch COUNT [SHOWN...]          first process of the bed: the wires between the hosts
//!     rsh --host NAME ADDRESS [SHOWN...]     first process of a host
//!     rsh --here HOST PROGRAM [ARGUMENT...]  runs a program there with this one's directory and environment
//!     rsh [-OPTION...] HOST COMMAND...       hands a line to a shell there, as rsh and ssh do
//!
//! Each host listens on the socket HOST.sock in that directory; every SHOWN is a path below /tmp which is to be
//! seen in all the hosts' own.

mod init;
mod remote;
mod request;
mod switch;
mod view;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, io, process};

/// What rsh and ssh answer when it is they that fail.
const FAILED: i32 = 255;

fn main() {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let error = match run(&arguments) {
        Ok(status) => process::exit(status),
        Err(e) => e,
    };
    let line: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    eprintln!("simulated-host {}: {error}", line.join(" "));
    process::exit(FAILED);
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

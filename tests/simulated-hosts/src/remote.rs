//! The near end of the remote shell: asks a host for a program, passes signals on, and ends as the program ends.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::thread;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};

use crate::MARKER;
use crate::request::{Request, Status};

/// What a remote shell's program finds in its environment, and the mark of the run to which it belongs.
const KEPT: [&str; 6] = ["HOME", "LOGNAME", "PATH", "SHELL", "USER", MARKER];

/// All that somebody may send to a program, but for those that nobody can catch.
const SIGNALS: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// A program with all that this process has.
pub fn here(bed: &Path, host: &OsStr, command: &[OsString]) -> io::Result<i32> {
    let directory = env::current_dir()?.into();
    ask(bed, host, &Request { directory, environment: environment(|_| true), command: command.to_vec() })
}

/// A line for a shell, which starts at home with little in its environment.
pub fn shell(bed: &Path, host: &OsStr, words: &[OsString]) -> io::Result<i32> {
    let directory = env::var_os("HOME").unwrap_or_else(|| "/".into());
    let command = ["sh".into(), "-c".into(), words.join(OsStr::new(" "))];
    let environment = environment(|name| KEPT.iter().any(|kept| name == *kept));
    ask(bed, host, &Request { directory, environment, command: command.to_vec() })
}

fn environment(wanted: impl Fn(&OsStr) -> bool) -> Vec<OsString> {
    let join = |(mut entry, value): (OsString, OsString)| {
        entry.push("=");
        entry.push(value);
        entry
    };
    env::vars_os().filter(|(name, _)| wanted(name)).map(join).collect()
}

fn ask(bed: &Path, host: &OsStr, request: &Request) -> io::Result<i32> {
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block()?;
    let socket = bed.join(Path::new(host).with_extension("sock"));
    let stream = UnixStream::connect(&socket)?;
    request.send(&stream)?;
    let mut other = stream.try_clone()?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if other.write_all(&[signal as u8]).is_err() {
                break;
            }
        }
    });
    let Status(status) = Status::receive(&stream)?;
    let status = ExitStatus::from_raw(status);
    let Some(signal) = status.signal() else { return Ok(status.code().unwrap_or(crate::FAILED)) };
    // The program may have left a core file; ours would tell nothing.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let the_same = Signal::try_from(signal)?;
    SigSet::from(the_same).thread_unblock()?;
    raise(the_same)?;
    // Rust ignores SIGPIPE.
    Ok(128 + signal)
}

//! The first process of a host: starts what others ask for, as whoever asks, and collects all that ends.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::PREFIX;
use crate::request::{Request, Status};
use crate::view;

/// A shell's answer when there is no such program.
const NOT_FOUND: i32 = 127;

/// Makes the host and is its first process: "up" when the wire can be plugged in, "ready" when it has been.
pub fn host(bed: &Path, name: &str, address: &str, shown: &[PathBuf]) -> io::Result<i32> {
    view::own(name)?;
    view::files(bed, shown)?;
    println!("up");
    io::stdin().read_exact(&mut [0])?;
    // IPv6 has addresses that cannot be used for the first second, which no job on a real host sees.
    view::ip(&format!(
        "link set lo up\nlink set eth0 addrgenmode none\naddr add {address}/{PREFIX} dev eth0\nlink set eth0 up\n"
    ))?;
    serve(bed, name)
}

/// Who waits for which program.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<HashMap<Pid, UnixStream>>>);

impl Running {
    fn table(&self) -> MutexGuard<'_, HashMap<Pid, UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until whoever started this process is gone; every process of the host ends with it.
pub fn serve(bed: &Path, name: &str) -> io::Result<i32> {
    // Before there is another thread, so that none of them is asked to take it.
    let ended = SigSet::from(Signal::SIGCHLD);
    ended.thread_block()?;
    let socket = bed.join(name).with_extension("sock");
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
    let running = Running::default();
    let theirs = running.clone();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let running = theirs.clone();
            thread::spawn(move || {
                // The asker sees the connection end.
                let _ = answer(&stream, &running);
            });
        }
    });
    thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        process::exit(0)
    });
    println!("ready");
    loop {
        collect(&running)?;
        ended.wait()?;
    }
}

/// Takes note of all that has ended, orphans too.
fn collect(running: &Running) -> io::Result<()> {
    // Nobody starts anything meanwhile: a program that ends at once is known by then.
    let mut table = running.table();
    loop {
        let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code << 8),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal as i32),
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(()),
            Ok(_) => continue,
            Err(e) => return Err(e.into()),
        };
        if let Some(stream) = table.remove(&pid) {
            Status(status).send(&stream);
        }
    }
}

/// Starts one program and passes signals on to it.
fn answer(stream: &UnixStream, running: &Running) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    let Some((request, [input, output, error])) = Request::receive(stream)? else { return Ok(()) };
    let mut complaints = File::from(error.as_fd().try_clone_to_owned()?);
    // As sshd does it, but for the session; setpriv execs.
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={}", peer.uid())).arg(format!("--regid={}", peer.gid()));
    command.args(["--init-groups", "--"]).args(&request.command);
    command.env_clear().envs(request.environment.iter().filter_map(|entry| {
        let bytes = entry.as_bytes();
        let at = bytes.iter().position(|b| *b == b'=')?;
        Some((OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..])))
    }));
    command.current_dir(&request.directory).process_group(0).stdin(input).stdout(output).stderr(error);
    let started = {
        let mut table = running.table();
        let started = command.spawn().and_then(|child| {
            let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
            table.insert(pid, stream.try_clone()?);
            Ok(pid)
        });
        // It holds the program's descriptors.
        drop(command);
        started
    };
    let pid = match started {
        Ok(pid) => pid,
        Err(e) => {
            let what = request.command[0].display();
            let _ = writeln!(complaints, "cannot start {what} in {}: {e}", request.directory.display());
            Status(NOT_FOUND << 8).send(stream);
            return Ok(());
        }
    };
    drop(complaints);
    let mut signals = stream;
    let mut signal = [0];
    while signals.read(&mut signal)? == 1 {
        // While it is in the table the number is the program's.
        if running.table().contains_key(&pid) {
            let _ = kill(pid, Signal::try_from(i32::from(signal[0]))?);
        }
    }
    Ok(())
}

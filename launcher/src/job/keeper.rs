//! Keeps a sandbox in being between ranks that end faster than the launcher starts them.
//!
//! A sandbox lives in its ranks. Where each of them has ended before the next one looks, every rank would
//! build one (and start a squashfuse). So a rank that finds nobody although others were before it leaves a
//! keeper behind: a process that does nothing but live in the sandbox, until no rank has asked for a
//! moment or the launcher's daemon is gone. Jobs whose ranks live for longer never have one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket,
    sockopt,
};

use super::siblings::{self, Namespaces};
use super::{JobStep, Mark};
use crate::detached;

/// How long a keeper waits for the next rank, in milliseconds. Launchers start a rank in a few.
const PATIENCE: u16 = 250;

fn address(mark: &Mark) -> Option<UnixAddr> {
    UnixAddr::new_abstract(format!("hpc-launch.keep.{}", mark.text()).as_bytes()).ok()
}

fn stream() -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).ok()
}

/// The sandbox of a living keeper. Asking is what makes it stay.
pub fn find(mark: &Mark) -> Option<Namespaces> {
    let socket = stream()?;
    connect(socket.as_raw_fd(), &address(mark)?).ok()?;
    // Whoever called listen last (af_unix.c, init_peercred): the keeper, or its maker. What is found there
    // is believed by its mark alone.
    let peer = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
    siblings::in_sandbox(peer.pid(), mark)
}

/// Leaves a keeper in this process's sandbox. That there is none costs time, nothing else.
pub fn leave(step: &JobStep, mark: &Mark) {
    let started = || {
        let (socket, daemon) = (stream()?, pidfd(step.daemon)?);
        bind(socket.as_raw_fd(), &address(mark)?).ok()?;
        // Here already, so that nobody finds a name that does not answer.
        listen(&socket, backlog()).ok()?;
        detached::spawn([socket.as_fd(), daemon.as_fd()], keep).ok()
    };
    let _ = started();
}

fn backlog() -> Backlog {
    Backlog::new(4096).unwrap_or(Backlog::MAXCONN)
}

fn keep([socket, daemon]: [BorrowedFd; 2]) {
    if listen(&socket, backlog()).is_err() {
        return;
    }
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::POLLIN), PollFd::new(daemon, PollFlags::POLLIN)];
        let asked = matches!(poll(&mut fds, PATIENCE), Ok(n) if n > 0);
        if !asked || fds[1].any() != Some(false) {
            return;
        }
        if let Ok(peer) = accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            let _ = nix::unistd::close(peer);
        }
    }
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2), Linux 5.3).
#[allow(unsafe_code)]
fn pidfd(pid: i32) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: two integers go in, a descriptor that nothing else knows comes out.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as RawFd))
    }
}

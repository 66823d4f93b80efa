//! An error that all ranks of a node share is printed by one of them.
//!
//! The first rank to fail claims an abstract name made of the step and the message, prints, and stays
//! until its siblings have come by with the same message or a moment has passed; they leave in silence.
//! A launcher that ends the job at the first failure may kill it then: it has printed already.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket,
    sockopt,
};

use super::{JobStep, digest};

/// Longer than launchers take to start a node's ranks one after the other.
const LINGER: Duration = Duration::from_millis(700);

/// How often somebody is asked who holds the name and does not answer, and the time between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);

/// The claim to speak for the node.
pub struct Speaker {
    listener: Option<OwnedFd>,
    expected: u32,
}

/// Asks to print `message` for all ranks of the step; `None`: somebody else does.
pub fn speak(step: Option<&JobStep>, message: &str) -> Option<Speaker> {
    let alone = Some(Speaker { listener: None, expected: 0 });
    let Some(step) = step else { return alone };
    let expected = step.rank.local_size.unwrap_or(u32::MAX).saturating_sub(1);
    if expected == 0 {
        return alone;
    }
    let name = format!("hpc-launch.error.{}", digest(&(step.daemon, &step.rank.step, message)));
    let flags = SockFlag::SOCK_CLOEXEC;
    for _ in 0..TRIES {
        let (Ok(address), Ok(fd)) = (
            UnixAddr::new_abstract(name.as_bytes()),
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None),
        ) else {
            return alone;
        };
        if bind(fd.as_raw_fd(), &address).is_ok() {
            if listen(&fd, Backlog::MAXCONN).is_err() {
                return alone;
            }
            return Some(Speaker { listener: Some(fd), expected });
        }
        // Whoever holds the name has printed, or is about to.
        match connect(fd.as_raw_fd(), &address).and_then(|()| getsockopt(&fd, sockopt::PeerCredentials)) {
            Ok(peer) if peer.uid() == nix::unistd::getuid().as_raw() => return None,
            // It does not listen yet, or no more: then the job is being ended, and we with it.
            Err(Errno::ECONNREFUSED) => std::thread::sleep(PAUSE),
            _ => return alone,
        }
    }
    alone
}

impl Speaker {
    /// Waits for the siblings that would print the same.
    pub fn linger(self) {
        let Some(listener) = self.listener else { return };
        let end = Instant::now() + LINGER;
        for _ in 0..self.expected {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let timeout = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            if left.is_zero() || !matches!(poll(&mut fds, timeout), Ok(n) if n > 0) {
                return;
            }
            if let Ok(peer) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                let _ = nix::unistd::close(peer);
            }
        }
    }
}

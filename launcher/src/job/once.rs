//! An error that all ranks of a node share is printed by one of them.
//!
//! The first rank to fail claims an abstract name made of the step and the message, prints, and stays
//! until its siblings have come by with the same message or a moment has passed; they say nothing, and leave with it. On a
//! node that is overloaded the moment is longer, while there are siblings that have not come so far.
//! A launcher ends the job at the first rank that fails, which is none of them as long as one may still come: it would
//! kill the one that has printed, and the late one would print again.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket,
    sockopt,
};

use super::{JobStep, digest, siblings};

/// Longer than launchers take to start a node's ranks one after the other.
const LINGER: Duration = Duration::from_millis(700);

/// The same for those that are seen to be on their way.
const LINGER_FOR_SEEN: Duration = Duration::from_secs(5);

/// How often somebody is asked who holds the name and does not answer, and the time between.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);
/// Between looks for those that are on their way.
const A_MOMENT: Duration = Duration::from_millis(50);

/// The claim to speak for the node.
pub struct Speaker {
    listener: Option<OwnedFd>,
    daemon: i32,
    expected: u32,
}

/// Asks to print `message` for all ranks of the step; `None`: somebody else does.
pub fn speak(step: Option<&JobStep>, message: &str) -> Option<Speaker> {
    let alone = Some(Speaker { listener: None, daemon: 0, expected: 0 });
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
            return Some(Speaker { listener: Some(fd), daemon: step.daemon, expected });
        }
        // Whoever holds the name has printed, or is about to.
        match connect(fd.as_raw_fd(), &address).and_then(|()| getsockopt(&fd, sockopt::PeerCredentials)) {
            Ok(peer) if peer.uid() == nix::unistd::getuid().as_raw() => {
                leave_with(&fd);
                return None;
            }
            // It does not listen yet, or no more: then the job is being ended, and we with it.
            Err(Errno::ECONNREFUSED) => std::thread::sleep(PAUSE),
            _ => return alone,
        }
    }
    alone
}

/// Those who say something else do not wait for us.
fn come() {
    let _ = nix::sys::prctl::set_name(siblings::SAID);
}

/// Waits for the end of whoever speaks.
fn leave_with(speaker: &OwnedFd) {
    come();
    let began = Instant::now();
    loop {
        let left = LINGER_FOR_SEEN.saturating_sub(began.elapsed());
        let mut fds = [PollFd::new(speaker.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, u16::try_from(left.as_millis()).unwrap_or(u16::MAX)) {
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

impl Speaker {
    /// Waits for the siblings that would print the same. This process must end then: they wait for that.
    pub fn linger(self) {
        let Some(listener) = self.listener else { return };
        come();
        let began = Instant::now();
        let mut came = 0;
        while came < self.expected {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let left = LINGER.saturating_sub(began.elapsed()).max(A_MOMENT);
            if !matches!(poll(&mut fds, u16::try_from(left.as_millis()).unwrap_or(u16::MAX)), Ok(n) if n > 0)
            {
                let waited = began.elapsed();
                if waited < LINGER || waited < LINGER_FOR_SEEN && siblings::is_one_starting(self.daemon) {
                    continue;
                }
                return;
            }
            // Nobody closes it: they leave when this process ends.
            match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(_) => came += 1,
                // No descriptor is free: those wait in the queue, which ends with us, too.
                Err(_) if began.elapsed() < LINGER => std::thread::sleep(PAUSE),
                Err(_) => return,
            }
        }
    }
}

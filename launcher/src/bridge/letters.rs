//! What a rank and the helper say to each other before the rank's program starts, with descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a letter.
const MAX_LETTER: usize = 16 << 10;

/// Where a rank's connection to its launcher is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Host {
    /// Nowhere: there is no PMI.
    None,
    /// In the letter's last descriptor.
    Descriptor,
    /// To be made.
    At(String),
}

/// What a launcher speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speaks {
    /// Nothing: all ranks are on this node.
    Nothing,
    /// PMI-1 or PMI-2.
    Simple,
    /// PMIx.
    Pmix {
        /// The job's namespace.
        nspace: String,
        /// The packing that goes with the address.
        bfrops: String,
    },
}

/// To the helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A rank. Descriptors: its lifeline, its standard error, its PMI connection if it has one, that to the launcher
    /// if it has one.
    Join {
        /// In the job.
        rank: u32,
        /// Ranks of the job.
        size: Option<u32>,
        /// Ranks of this node.
        local_size: Option<u32>,
        /// Whether a PMI connection comes along.
        pmi: bool,
        /// Whether it must know what only the launcher can tell.
        must_know: bool,
        /// What the launcher speaks.
        speaks: Speaks,
        /// Where.
        host: Host,
    },
    /// Another sandbox of the same step. Descriptor: its socket, which listens.
    Listen,
}

/// From the helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Come in.
    Welcome {
        /// The PMIx namespace, if it is known by now.
        nspace: Option<String>,
        /// "127.0.0.1:port".
        address: String,
        /// Ranks of the job, if that is known.
        size: Option<u32>,
        /// Rank on the node and ranks of the node, if that is known.
        local: Option<(u32, u32)>,
    },
    /// The socket listens.
    Listening,
    /// Not so, and why.
    Refused(String),
}

/// How long a letter is tried whose descriptors are too many for now.
const IN_FLIGHT: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Sends a letter with descriptors. All that a user has under way, in any socket of the machine, may not be more than
/// RLIMIT_NOFILE of who sends one more (unix(7), ETOOMANYREFS; net/core/scm.c): when many ranks come at once it is,
/// until the helper has received some.
pub fn send(socket: &OwnedFd, letter: &impl Serialize, descriptors: &[RawFd]) -> nix::Result<()> {
    let text = serde_json::to_vec(letter).map_err(|_| Errno::EINVAL)?;
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL;
    let end = Instant::now() + IN_FLIGHT;
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&text)], rights, flags, None) {
            Err(Errno::EINTR) => {}
            Err(Errno::ETOOMANYREFS) if Instant::now() < end => thread::sleep(PAUSE),
            other => return other.map(drop),
        }
    }
}

/// Receives a letter; `None`: the other side is gone.
#[allow(unsafe_code)]
pub fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> nix::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = [0u8; MAX_LETTER];
    let mut buffers = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made these descriptors for us; nothing else knows them.
            descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Ok(None);
    }
    let letter = serde_json::from_slice(&text[..length]).map_err(|_| Errno::EBADMSG)?;
    Ok(Some((letter, descriptors)))
}

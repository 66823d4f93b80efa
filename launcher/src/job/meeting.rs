//! How the ranks of a node agree on who builds the sandbox: an abstract socket, which exists exactly as
//! long as its owner does.
//!
//! Binding the name is the lock. The others connect and wait: a message carries the namespaces, and an
//! end without one (the builder was killed, or refused) sends them back to look again. unix(7): abstract
//! names leave nothing in any file system and vanish with the last descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::siblings::Namespaces;
use crate::error::{Code, Error, Result};

/// How long a rank waits for a living builder. Mounting an image from a slow file system takes seconds.
const PATIENCE_SECONDS: i64 = 60;

/// What asking for the lock led to.
pub enum Meeting {
    /// This rank builds.
    Build(Lock),
    /// Another rank has built the sandbox with this mark; here it is.
    Built(String, Namespaces),
    /// The builder is gone: look for siblings again.
    Again,
}

/// The right to build; given back when dropped, or when the process ends.
pub struct Lock {
    listener: OwnedFd,
}

fn address(name: &str) -> Result<UnixAddr> {
    UnixAddr::new_abstract(format!("hpc-launch.{name}").as_bytes())
        .map_err(|e| Error::step(format_args!("naming the abstract socket hpc-launch.{name}"), e))
}

fn stream(flags: SockFlag) -> Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | flags, None)
        .map_err(|e| Error::step("making a socket to meet the other ranks", e))
}

/// Asks for the lock of this step, and waits for its holder if there is one.
pub fn meet(step: &str, uid: u32) -> Result<Meeting> {
    let address = address(step)?;
    // Non-blocking, so that the builder sees at once that no (more) rank waits.
    let socket = stream(SockFlag::SOCK_NONBLOCK)?;
    match bind(socket.as_raw_fd(), &address) {
        Ok(()) => {
            let backlog = Backlog::new(4096).unwrap_or(Backlog::MAXCONN);
            listen(&socket, backlog).map_err(|e| Error::step("listening for the other ranks", e))?;
            Ok(Meeting::Build(Lock { listener: socket }))
        }
        Err(Errno::EADDRINUSE) => wait(stream(SockFlag::empty())?, &address, uid),
        Err(e) => Err(Error::step("binding the abstract socket where the ranks meet", e)),
    }
}

fn wait(socket: OwnedFd, address: &UnixAddr, uid: u32) -> Result<Meeting> {
    match connect(socket.as_raw_fd(), address) {
        Ok(()) => {}
        // Bound and not yet listening, or gone again.
        Err(Errno::ECONNREFUSED) => return Ok(Meeting::Again),
        Err(e) => return Err(Error::step("connecting to the rank that builds the sandbox", e)),
    }
    let peer: UnixCredentials = getsockopt(&socket, sockopt::PeerCredentials)
        .map_err(|e| Error::step("asking who builds the sandbox", e))?;
    if peer.uid() != uid {
        return Err(Error::new(
            Code::LockForeign,
            format!(
                "process {} of user {} holds the name under which this job's ranks meet on this node",
                peer.pid(),
                peer.uid()
            ),
            "that user's process does not belong there: tell the administrator",
        ));
    }
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))
        .map_err(|e| Error::step("limiting the wait for the builder", e))?;
    match receive(&socket) {
        Ok(Some((mark, namespaces))) => Ok(Meeting::Built(mark, namespaces)),
        Ok(None) | Err(Errno::ECONNRESET) => Ok(Meeting::Again),
        Err(Errno::EAGAIN) => Err(Error::new(
            Code::SandboxBusy,
            format!("process {} has been building the sandbox for {PATIENCE_SECONDS} s", peer.pid()),
            format!("see what it waits for: cat /proc/{}/stack /proc/{}/wchan", peer.pid(), peer.pid()),
        )),
        Err(e) => Err(Error::step("waiting for the rank that builds the sandbox", e)),
    }
}

#[allow(unsafe_code)]
fn receive(socket: &OwnedFd) -> nix::Result<Option<(String, Namespaces)>> {
    let mut text = [0u8; 128];
    let mut buffers = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
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
    let mark = String::from_utf8_lossy(&text[..length]).into_owned();
    Ok(match (descriptors.pop(), descriptors.pop()) {
        (Some(mount), Some(user)) => Some((mark, Namespaces { user, mount })),
        _ => None,
    })
}

impl Lock {
    /// Hands the finished sandbox to every rank that waits. Those that come later find it by themselves.
    pub fn hand_over(&self, mark: &str, namespaces: impl Fn() -> nix::Result<Namespaces>) -> Result<()> {
        let mut first = self.accept_now();
        if first.is_none() {
            return Ok(());
        }
        let ours = namespaces().map_err(|e| Error::step("opening our own namespaces", e))?;
        while let Some(peer) = first.take().or_else(|| self.accept_now()) {
            let fds = [ours.user.as_raw_fd(), ours.mount.as_raw_fd()];
            // A peer that died meanwhile is no error of ours.
            let _ = sendmsg::<()>(
                peer.as_raw_fd(),
                &[IoSlice::new(mark.as_bytes())],
                &[ControlMessage::ScmRights(&fds)],
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
        }
        Ok(())
    }

    /// Sends those who wait back to look again: their patience begins anew.
    pub fn send_away(&self) {
        while self.accept_now().is_some() {}
    }

    #[allow(unsafe_code)]
    fn accept_now(&self) -> Option<OwnedFd> {
        let fd = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).ok()?;
        // SAFETY: accept4 has just made this descriptor; nothing else knows it.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

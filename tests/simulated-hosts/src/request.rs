//! What goes over a host's socket: a program to be started, with the descriptors that it gets, one way; its
//! status the other; and, while it runs, one byte per signal that is to reach it.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// A program to be started.
pub struct Request {
    /// Where.
    pub directory: OsString,
    /// NAME=VALUE each; nothing else goes along.
    pub environment: Vec<OsString>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// Standard input, output and error.
pub type Standard = [OwnedFd; 3];

impl Request {
    /// Directory, environment, nothing, command: each with a NUL behind it, as the kernel has them.
    fn bytes(&self) -> Vec<u8> {
        let nothing = [OsString::new()];
        let parts =
            [&self.directory].into_iter().chain(&self.environment).chain(&nothing).chain(&self.command);
        parts.flat_map(|part| part.as_encoded_bytes().iter().chain(b"\0")).copied().collect()
    }

    fn from_bytes(mut bytes: Vec<u8>) -> Option<Request> {
        bytes.pop();
        let mut parts = bytes.split(|b| *b == 0).map(|part| OsString::from_vec(part.to_vec()));
        let directory = parts.next()?;
        let environment = parts.by_ref().take_while(|part| !part.is_empty()).collect();
        let command: Vec<OsString> = parts.collect();
        (!command.is_empty()).then_some(Request { directory, environment, command })
    }

    /// Sends it, with this process's own standard descriptors.
    pub fn send(&self, mut to: &UnixStream) -> io::Result<()> {
        let bytes = self.bytes();
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?.to_ne_bytes();
        let own: [RawFd; 3] = [0, 1, 2];
        let control = [ControlMessage::ScmRights(&own)];
        sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&length)], &control, MsgFlags::MSG_NOSIGNAL, None)?;
        to.write_all(&bytes)
    }

    /// Receives one; none from somebody who only connects.
    #[allow(unsafe_code)]
    pub fn receive(mut from: &UnixStream) -> io::Result<Option<(Request, Standard)>> {
        let mut length = [0u8; 4];
        let mut buffers = [IoSliceMut::new(&mut length)];
        let mut space = nix::cmsg_space!([RawFd; 3]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL;
        let message = recvmsg::<()>(from.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made these descriptors for us; nothing else knows them.
                descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if message.bytes == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; u32::from_ne_bytes(length) as usize];
        from.read_exact(&mut bytes)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no request");
        let standard = Standard::try_from(descriptors).map_err(|_| wrong())?;
        Ok(Some((Request::from_bytes(bytes).ok_or_else(wrong)?, standard)))
    }
}

/// How a program ended, as wait(2) has it.
pub struct Status(pub i32);

impl Status {
    /// Tells the other side; it may have gone.
    pub fn send(&self, mut to: &UnixStream) {
        let _ = to.write_all(&self.0.to_ne_bytes());
    }

    /// Waits for it; an error means that the host is gone.
    pub fn receive(mut from: &UnixStream) -> io::Result<Status> {
        let mut bytes = [0; 4];
        from.read_exact(&mut bytes)?;
        Ok(Status(i32::from_ne_bytes(bytes)))
    }
}

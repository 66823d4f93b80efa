//! What rank 0 reads where we have a terminal: a process group in the background must not read that itself.

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Read at once.
const CHUNK: usize = 4096;

/// From the terminal to rank 0.
pub struct Input {
    pipe: OwnedFd,
    /// Read, and not yet taken.
    held: Vec<u8>,
}

/// What is to be waited for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// That something is typed.
    Typed,
    /// That the rank takes what was typed.
    Room,
    /// Nothing: the terminal or the rank reads no more.
    Over,
}

impl Input {
    /// Whether standard input is a terminal.
    pub fn is_needed() -> bool {
        std::io::stdin().is_terminal()
    }

    /// Its end for us, and the rank's. The former only where the terminal is ours to read from.
    pub fn new() -> nix::Result<(Option<Input>, OwnedFd)> {
        let (read, pipe) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        if nix::unistd::tcgetpgrp(std::io::stdin()) != Ok(nix::unistd::getpgrp()) {
            return Ok((None, read));
        }
        // Of this end alone: a rank that does not read must not stop us.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_WRONLY | OFlag::O_NONBLOCK))?;
        Ok((Some(Input { pipe, held: Vec::new() }), read))
    }

    /// Where it goes, to be waited for.
    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Reads what was typed, and passes it on.
    pub fn read(&mut self) -> Next {
        let mut bytes = [0; CHUNK];
        match nix::unistd::read(std::io::stdin(), &mut bytes) {
            Ok(count @ 1..) => self.held.extend_from_slice(&bytes[..count]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Ok(_) | Err(_) => return Next::Over,
        }
        self.pass_on()
    }

    /// Passes on what is held.
    pub fn pass_on(&mut self) -> Next {
        while !self.held.is_empty() {
            match nix::unistd::write(&self.pipe, &self.held) {
                Ok(count) => drop(self.held.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Next::Room,
                Err(_) => return Next::Over,
            }
        }
        Next::Typed
    }
}

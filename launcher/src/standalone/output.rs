//! What ranks write: passed on line by line with a tag, or into files of their own.
//!
//! A reader of ours that takes its time gets all of it, and stops nothing else that we have to do: what it does not
//! take is held, up to a limit beyond which ranks are not read from.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Code, Error, Result};

/// A line is passed on in pieces when it is longer.
const MAX_LINE: usize = 64 << 10;
/// Held for a reader, beyond which ranks are not read from.
const MAX_HELD: usize = 1 << 20;
/// What can be written at once where poll(2) tells of room: to a pipe without waiting (pipe(7), PIPE_BUF).
const PIECE: usize = 4096;

/// One of a rank's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Kind {
    /// As mpirun's tags and files call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Out => "stdout",
            Kind::Err => "stderr",
        }
    }
}

/// A stream of a rank's that is passed on with a tag.
pub struct Tagged {
    pipe: OwnedFd,
    kind: Kind,
    tag: Vec<u8>,
    line: Vec<u8>,
}

/// What reading has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// There was something.
    Some,
    /// There is nothing now.
    Nothing,
    /// There will be nothing more.
    End,
}

impl Tagged {
    /// Reads from this pipe. The tag is Open MPI 4's.
    pub fn new(pipe: OwnedFd, rank: u32, kind: Kind) -> Tagged {
        let tag = format!("[1,{rank}]<{}>:", kind.name()).into_bytes();
        Tagged { pipe, kind, tag, line: Vec::new() }
    }

    /// To be waited for.
    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Which stream.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Reads once, where there is something, and passes whole lines on.
    pub fn pump(&mut self, sink: &mut Sink) -> Read {
        if !is_ready(self.pipe(), PollFlags::POLLIN) {
            return Read::Nothing;
        }
        let mut bytes = [0; 32768];
        let count = match nix::unistd::read(&self.pipe, &mut bytes) {
            Ok(count) => count,
            Err(Errno::EINTR | Errno::EAGAIN) => return Read::Nothing,
            Err(_) => 0,
        };
        self.take(&bytes[..count], &mut sink.held);
        if count > 0 {
            return Read::Some;
        }
        self.end(&mut sink.held);
        Read::End
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") || self.line.len() >= MAX_LINE {
                self.end(out);
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.line.is_empty() {
            return;
        }
        out.extend_from_slice(&self.tag);
        out.append(&mut self.line);
        if !out.ends_with(b"\n") {
            out.push(b'\n');
        }
    }
}

/// Where tagged lines go: one of our own two streams.
pub struct Sink {
    kind: Kind,
    held: Vec<u8>,
}

impl Sink {
    /// Our own stream of this kind.
    pub fn new(kind: Kind) -> Sink {
        Sink { kind, held: Vec::new() }
    }

    /// Whether something waits for the reader.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether so much waits that no more should be read.
    pub fn is_full(&self) -> bool {
        self.held.len() > MAX_HELD
    }

    /// Writes what the reader takes now. Where nobody reads it any more it is lost, as a rank's own would be.
    pub fn flush(&mut self) {
        match self.kind {
            Kind::Out => self.flush_to(std::io::stdout().as_fd()),
            Kind::Err => self.flush_to(std::io::stderr().as_fd()),
        }
    }

    fn flush_to(&mut self, fd: BorrowedFd) {
        let mut written = 0;
        // The descriptor is shared with others, whom O_NONBLOCK on it would surprise: asked before each piece.
        while written < self.held.len() && is_ready(fd, PollFlags::POLLOUT) {
            let piece = &self.held[written..self.held.len().min(written + PIECE)];
            match nix::unistd::write(fd, piece) {
                Ok(count) => written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => written = self.held.len(),
            }
        }
        self.held.drain(..written);
    }

    /// To be waited for.
    pub fn with_fd<T>(&self, f: impl FnOnce(BorrowedFd) -> T) -> T {
        match self.kind {
            Kind::Out => f(std::io::stdout().as_fd()),
            Kind::Err => f(std::io::stderr().as_fd()),
        }
    }
}

/// Whether it can be read from, or written to, without waiting; an error is no reason to wait either.
fn is_ready(fd: BorrowedFd, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, what)];
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0) | Err(Errno::EINTR))
}

/// `DIR/rank.N/stdout`, made anew.
pub fn file(directory: &Path, rank: u32, kind: Kind) -> Result<File> {
    let path: PathBuf = directory.join(format!("rank.{rank}")).join(kind.name());
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| File::create(&path));
    made.map_err(|e| {
        Error::new(
            Code::Usage,
            format!("--output-dir: cannot write {}: {e}", path.display()),
            "name a directory in which files can be made",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_each_with_its_tag() {
        let (pipe, _held) = nix::unistd::pipe().unwrap();
        let mut tagged = Tagged::new(pipe, 3, Kind::Err);
        let mut out = Vec::new();
        tagged.take(b"a\nb", &mut out);
        assert_eq!(out, b"[1,3]<stderr>:a\n");
        tagged.take(b"c\n\n", &mut out);
        assert_eq!(out, b"[1,3]<stderr>:a\n[1,3]<stderr>:bc\n[1,3]<stderr>:\n");
        out.clear();
        tagged.take(b"end", &mut out);
        tagged.end(&mut out);
        tagged.end(&mut out);
        assert_eq!(out, b"[1,3]<stderr>:end\n");
    }

    #[test]
    fn a_reader_that_does_not_read_is_not_waited_for() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let mut sink = Sink::new(Kind::Out);
        let all: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        sink.held.extend(&all);
        let mut taken = Vec::new();
        while sink.is_holding() {
            sink.flush_to(write.as_fd());
            let mut bytes = [0; 50_000];
            let count = nix::unistd::read(&read, &mut bytes).unwrap();
            taken.extend(&bytes[..count]);
        }
        drop(write);
        std::io::Read::read_to_end(&mut File::from(read), &mut taken).unwrap();
        assert!(taken == all, "{} of {}", taken.len(), all.len());
        let (read, write) = nix::unistd::pipe().unwrap();
        drop(read);
        sink.held.push(1);
        sink.flush_to(write.as_fd());
        assert!(!sink.is_holding(), "nobody is there to read it");
    }

    #[test]
    fn a_stream_ends_with_what_was_not_a_line() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (mut tagged, mut sink) = (Tagged::new(read, 0, Kind::Out), Sink::new(Kind::Out));
        assert_eq!(tagged.pump(&mut sink), Read::Nothing);
        nix::unistd::write(&write, b"a\nb").unwrap();
        assert_eq!((tagged.pump(&mut sink), sink.held.as_slice()), (Read::Some, &b"[1,0]<stdout>:a\n"[..]));
        drop(write);
        assert_eq!(tagged.pump(&mut sink), Read::End);
        assert_eq!(sink.held, b"[1,0]<stdout>:a\n[1,0]<stdout>:b\n");
    }
}

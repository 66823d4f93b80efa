//! What ranks write: passed on line by line with a tag, or into files of their own.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result};

/// A line is passed on in pieces when it is longer.
const MAX_LINE: usize = 64 << 10;

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

/// A stream that is passed on with a tag.
pub struct Tagged {
    pipe: OwnedFd,
    kind: Kind,
    tag: Vec<u8>,
    line: Vec<u8>,
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

    /// Reads once and passes whole lines on; answers whether there may be more.
    pub fn pump(&mut self) -> bool {
        let mut bytes = [0; 32768];
        let count = match nix::unistd::read(&self.pipe, &mut bytes) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => return true,
            Err(_) => 0,
        };
        let mut out = Vec::with_capacity(count + 64);
        self.take(&bytes[..count], &mut out);
        if count == 0 {
            self.end(&mut out);
        }
        // Where nobody reads it any more it is lost, as a rank's own would be.
        let _ = match self.kind {
            Kind::Out => std::io::stdout().lock().write_all(&out).and_then(|()| std::io::stdout().flush()),
            Kind::Err => std::io::stderr().lock().write_all(&out),
        };
        count > 0
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
}

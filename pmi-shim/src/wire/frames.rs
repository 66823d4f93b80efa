//! Cuts a stream of bytes into frames, however it was split on the way.

use super::{Malformed, shown};

/// Values are at most 1024 bytes here; Intel MPI and MPICH 5 send lines of 60 KB where they are let.
const MAX_LINE: usize = 128 << 10;
/// A spawn request holds whole command lines.
const MAX_BLOCK: usize = 1 << 20;
/// PMI-2's length has six digits.
const MAX_TWO: usize = 256 << 10;
const LENGTH_DIGITS: usize = 6;
const END_OF_BLOCK: &[u8] = b"endcmd\n";

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A line of PMI-1, without its end.
    Line(Vec<u8>),
    /// PMI-1's form of several lines, from `mcmd=` up to `endcmd`.
    Block(Vec<u8>),
    /// A message of PMI-2, without its length.
    Two(Vec<u8>),
}

/// What has come in and is not yet taken out.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// Before this everything is taken.
    start: usize,
    /// Before this there is no end of line or block.
    searched: usize,
}

impl Frames {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.searched = self.searched.saturating_sub(self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// How much is here and makes no frame yet.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The next frame, if all of it is here.
    pub fn frame(&mut self) -> Result<Option<Frame>, Malformed> {
        let here = &self.bytes[self.start..];
        let known = here.len().min(4);
        if known == 0 {
            return Ok(None);
        }
        if here[..known] == b"cmd="[..known] {
            return self.line();
        }
        if here[..known] == b"mcmd"[..known] {
            return self.block();
        }
        self.two()
    }

    fn line(&mut self) -> Result<Option<Frame>, Malformed> {
        let from = self.searched.max(self.start);
        match self.bytes[from..].iter().position(|b| *b == b'\n') {
            Some(at) => {
                let line = self.bytes[self.start..from + at].to_vec();
                self.take(from + at + 1);
                Ok(Some(Frame::Line(line)))
            }
            None => self.more(MAX_LINE, "a line"),
        }
    }

    fn block(&mut self) -> Result<Option<Frame>, Malformed> {
        // The end may have come in part.
        let from = self.searched.saturating_sub(END_OF_BLOCK.len()).max(self.start);
        match self.bytes[from..].windows(END_OF_BLOCK.len()).position(|w| w == END_OF_BLOCK) {
            Some(at) => {
                let block = self.bytes[self.start..from + at].to_vec();
                self.take(from + at + END_OF_BLOCK.len());
                Ok(Some(Frame::Block(block)))
            }
            None => self.more(MAX_BLOCK, "a block of lines"),
        }
    }

    fn two(&mut self) -> Result<Option<Frame>, Malformed> {
        let here = &self.bytes[self.start..];
        let digits = &here[..here.len().min(LENGTH_DIGITS)];
        if !digits.iter().all(|b| b.is_ascii_digit() || *b == b' ') {
            let seen = shown(here);
            return Err(Malformed(format!("neither PMI-1 nor PMI-2: it begins with {seen}")));
        }
        if digits.len() < LENGTH_DIGITS {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(digits);
        let length = text.trim().parse::<usize>().ok().filter(|n| *n <= MAX_TWO);
        let Some(length) = length else {
            return Err(Malformed(format!("PMI-2: the length {text:?} is none, or more than {MAX_TWO}")));
        };
        let end = LENGTH_DIGITS + length;
        if here.len() < end {
            return Ok(None);
        }
        let body = here[LENGTH_DIGITS..end].to_vec();
        self.take(self.start + end);
        Ok(Some(Frame::Two(body)))
    }

    fn take(&mut self, upto: usize) {
        self.start = upto;
        self.searched = upto;
    }

    fn more(&mut self, most: usize, what: &str) -> Result<Option<Frame>, Malformed> {
        self.searched = self.bytes.len();
        if self.pending() > most {
            let seen = shown(&self.bytes[self.start..]);
            return Err(Malformed(format!("PMI-1: {what} of more than {most} bytes: {seen}")));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(frames: &mut Frames) -> Vec<Frame> {
        std::iter::from_fn(|| frames.frame().unwrap()).collect()
    }

    #[test]
    fn protocols_follow_each_other_on_one_connection() {
        let mut frames = Frames::default();
        frames.push(b"cmd=init pmi_version=2\n    12cmd=finalizemcmd=spawn\nnprocs=2\nendcmd\ncmd=x\ncm");
        let expected = [
            Frame::Line(b"cmd=init pmi_version=2".to_vec()),
            Frame::Two(b"cmd=finalize".to_vec()),
            Frame::Block(b"mcmd=spawn\nnprocs=2\n".to_vec()),
            Frame::Line(b"cmd=x".to_vec()),
        ];
        assert_eq!(all(&mut frames), expected);
        assert_eq!(frames.pending(), 2);
    }

    #[test]
    fn what_never_ends_is_refused() {
        let mut frames = Frames::default();
        frames.push(b"cmd=put key=a value=");
        let long = vec![b'x'; MAX_LINE];
        frames.push(&long);
        let e = frames.frame().unwrap_err();
        assert!(e.0.starts_with("PMI-1: a line of more than 131072 bytes: \"cmd=put key=a"), "{e}");
        for bad in [&b"GET / HTTP/1.1"[..], b"999999cmd", b"      cmd", b"\0\0"] {
            let mut frames = Frames::default();
            frames.push(bad);
            assert!(frames.frame().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn however_it_is_split(cuts in prop::collection::vec(1usize..9, 1..40), n in 1usize..6) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for i in 0..n {
                stream.extend(format!("cmd=put key={i} value=v\nmcmd=spawn\nend={i}\nendcmd\n").bytes());
                expected.push(Frame::Line(format!("cmd=put key={i} value=v").into_bytes()));
                expected.push(Frame::Block(format!("mcmd=spawn\nend={i}\n").into_bytes()));
                let body = format!("cmd=kvs-get;key={};", "k".repeat(i));
                stream.extend(format!("{:6}{body}", body.len()).bytes());
                expected.push(Frame::Two(body.into_bytes()));
            }
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                frames.push(now);
                seen.extend(all(&mut frames));
                rest = later;
                if rest.is_empty() { break }
            }
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(frames.pending(), 0);
        }
    }
}

//! What a layer does to those below it: read from an archive once, kept tightly, applied later.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::error::{Error, Kind, Result, size};
use crate::tree::{Meta, Node};

/// Of one layer: a million files take some 40 MiB.
const MAX: usize = 512 << 20;

/// What an entry does to the layers below. Paths are clean: no dots, no empty parts, no slash at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Removes a path.
    Whiteout(&'a [u8]),
    /// Empties a directory.
    Opaque(&'a [u8]),
    /// Puts something at a path; a file whose data were not kept has the number MAX.
    Put(&'a [u8], Meta, Node<'a>),
    /// Another name of what is at the second path.
    Link(&'a [u8], &'a [u8]),
}

/// Changes in their order, each path without what it shares with the one before it.
#[derive(Debug, Default)]
pub struct Log {
    bytes: Vec<u8>,
    last: Vec<u8>,
}

/// What follows in a log.
const WHITEOUT: u8 = 0;
const OPAQUE: u8 = 1;
const LINK: u8 = 2;
const DIRECTORY: u8 = 3;
const FILE: u8 = 4;
const SYMLINK: u8 = 5;
const FIFO: u8 = 6;
const SOCKET: u8 = 7;

impl Log {
    /// Adds one.
    pub fn push(&mut self, change: &Change<'_>) -> Result<()> {
        if self.bytes.len() > MAX {
            let what = format!("a layer's names, links and attributes have more than {}", size(MAX as u64));
            return Err(Error::new(Kind::TooLarge, what, "split it"));
        }
        let (kind, path) = match change {
            Change::Whiteout(path) => (WHITEOUT, path),
            Change::Opaque(path) => (OPAQUE, path),
            Change::Link(path, _) => (LINK, path),
            Change::Put(path, _, node) => {
                let kind = match node {
                    Node::Directory => DIRECTORY,
                    Node::File(_) => FILE,
                    Node::Symlink(_) => SYMLINK,
                    Node::Fifo => FIFO,
                    Node::Socket => SOCKET,
                };
                (kind, path)
            }
        };
        self.bytes.push(kind);
        let shared = self.last.iter().zip(path.iter()).take_while(|(a, b)| a == b).count();
        self.number(shared as u64);
        self.text(&path[shared..]);
        self.last.truncate(shared);
        self.last.extend_from_slice(&path[shared..]);
        match change {
            Change::Link(_, target) => self.text(target),
            Change::Put(_, meta, node) => {
                for number in [u32::from(meta.mode), meta.uid, meta.gid, meta.mtime] {
                    self.number(u64::from(number));
                }
                let xattrs = meta.xattrs.as_deref().map_or(&[][..], Vec::as_slice);
                self.number(xattrs.len() as u64);
                for (name, value) in xattrs {
                    self.text(name);
                    self.text(value);
                }
                match node {
                    Node::File(data) => self.number(u64::from(*data)),
                    Node::Symlink(to) => self.text(to),
                    Node::Directory | Node::Fifo | Node::Socket => {}
                }
            }
            Change::Whiteout(_) | Change::Opaque(_) => {}
        }
        Ok(())
    }

    /// Seven bits a byte, the lowest first.
    fn number(&mut self, mut number: u64) {
        while number > 0x7f {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text);
    }

    /// Tells them again, in their order.
    pub fn replay(&self) -> Replay<'_> {
        Replay { rest: &self.bytes, path: Vec::new() }
    }
}

/// A log being told again.
pub struct Replay<'a> {
    rest: &'a [u8],
    path: Vec<u8>,
}

impl<'a> Replay<'a> {
    /// The next change.
    pub fn next_change(&mut self) -> Option<Change<'_>> {
        let (kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        let shared = self.number() as usize;
        self.path.truncate(shared);
        let suffix = self.text();
        self.path.extend_from_slice(suffix);
        match *kind {
            WHITEOUT => Some(Change::Whiteout(&self.path)),
            OPAQUE => Some(Change::Opaque(&self.path)),
            LINK => {
                let target = self.text();
                Some(Change::Link(&self.path, target))
            }
            kind => {
                let (mode, uid, gid, mtime) =
                    (self.number() as u16, self.number() as u32, self.number() as u32, self.number() as u32);
                let xattrs: Vec<_> =
                    (0..self.number()).map(|_| (self.text().to_vec(), self.text().to_vec())).collect();
                let xattrs = (!xattrs.is_empty()).then(|| Box::new(xattrs));
                let node = match kind {
                    FILE => Node::File(self.number() as u32),
                    SYMLINK => Node::Symlink(self.text()),
                    DIRECTORY => Node::Directory,
                    FIFO => Node::Fifo,
                    _ => Node::Socket,
                };
                Some(Change::Put(&self.path, Meta { mode, uid, gid, mtime, xattrs }, node))
            }
        }
    }

    fn number(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.rest.split_first() else { break };
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }

    fn text(&mut self) -> &'a [u8] {
        let length = (self.number() as usize).min(self.rest.len());
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        text
    }
}

/// Paths of upper layers, by their hashes: two paths that share one make a file look hidden that is not, and such files
/// are read in a second pass.
#[derive(Default)]
pub struct Above {
    paths: HashMap<u64, u8>,
    hasher: RandomState,
    root_is_opaque: bool,
}

/// It has been put or removed.
const CHANGED: u8 = 1;
/// It hides all below it: a file, or a whiteout.
const CLOSED: u8 = 2;
/// A directory whose earlier contents are hidden.
const EMPTIED: u8 = 4;
/// It has another name.
const LINKED: u8 = 8;

impl Above {
    fn of(&self, path: &[u8]) -> u8 {
        self.paths.get(&self.hasher.hash_one(path)).copied().unwrap_or(0)
    }

    fn set(&mut self, path: &[u8], flags: u8) {
        *self.paths.entry(self.hasher.hash_one(path)).or_insert(0) |= flags;
    }

    /// Whether nothing of what a lower layer has at this path will be seen.
    pub fn hides(&self, path: &[u8]) -> bool {
        let flags = self.of(path);
        if flags & LINKED != 0 {
            return false;
        }
        flags & CHANGED != 0
            || self.root_is_opaque
            || path
                .iter()
                .enumerate()
                .any(|(i, b)| *b == b'/' && self.of(&path[..i]) & (CLOSED | EMPTIED) != 0)
    }

    /// Takes in what a layer changes.
    pub fn add(&mut self, changes: &Log) {
        let mut changes = changes.replay();
        while let Some(change) = changes.next_change() {
            match change {
                Change::Whiteout(path) => self.set(path, CHANGED | CLOSED),
                Change::Opaque(b"") => self.root_is_opaque = true,
                Change::Opaque(path) => self.set(path, EMPTIED),
                Change::Put(path, _, Node::Directory) => self.set(path, CHANGED),
                Change::Put(path, _, _) => self.set(path, CHANGED | CLOSED),
                Change::Link(path, target) => {
                    self.set(path, CHANGED | CLOSED);
                    self.set(target, LINKED);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(mode: u16, xattrs: Option<Box<crate::tree::Xattrs>>) -> Meta {
        Meta { mode, uid: 1000, gid: u32::MAX, mtime: 1 << 31, xattrs }
    }

    #[test]
    fn what_is_pushed_is_told_again() {
        let long = [b'x'; 300];
        let xattrs = Some(Box::new(vec![(b"user.a".to_vec(), long.to_vec()), (b"user.b".to_vec(), vec![])]));
        let changes = [
            Change::Put(b"usr", meta(0o755, None), Node::Directory),
            Change::Put(b"usr/lib/a", meta(0o1644, xattrs), Node::File(u32::MAX)),
            Change::Put(b"usr/lib/b", meta(0, None), Node::Symlink(&long)),
            Change::Link(b"usr/lib/c", b"usr/lib/a"),
            Change::Whiteout(b"etc/x"),
            Change::Opaque(b""),
            Change::Put(b"etc", meta(0o600, None), Node::Fifo),
            Change::Put(b"etcetera", meta(0o600, None), Node::Socket),
        ];
        let mut log = Log::default();
        changes.iter().for_each(|change| log.push(change).unwrap());
        let mut replay = log.replay();
        for change in &changes {
            assert_eq!(replay.next_change().as_ref(), Some(change));
        }
        assert_eq!(replay.next_change(), None);
    }

    #[test]
    fn what_upper_layers_hide() {
        let mut log = Log::default();
        log.push(&Change::Put(b"a", meta(0o755, None), Node::Directory)).unwrap();
        log.push(&Change::Put(b"a/file", meta(0o644, None), Node::File(1))).unwrap();
        log.push(&Change::Whiteout(b"gone")).unwrap();
        log.push(&Change::Opaque(b"empty")).unwrap();
        log.push(&Change::Link(b"other", b"kept/file")).unwrap();
        log.push(&Change::Put(b"kept/file", meta(0o644, None), Node::File(1))).unwrap();
        let mut above = Above::default();
        above.add(&log);
        for path in ["a", "a/file", "a/file/x", "gone", "gone/x/y", "empty/x", "other"] {
            assert!(above.hides(path.as_bytes()), "{path}");
        }
        for path in ["a/x", "empty", "kept/file", "kept", "gon", "b"] {
            assert!(!above.hides(path.as_bytes()), "{path}");
        }
        let mut log = Log::default();
        log.push(&Change::Opaque(b"")).unwrap();
        above.add(&log);
        assert!(above.hides(b"b"));
    }
}

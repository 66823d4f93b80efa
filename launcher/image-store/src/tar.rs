//! A tar stream as entries: ustar, GNU and pax, sparse files of every dialect, extended attributes.
//!
//! The `tar` crate reads headers; what follows a header is read here, because it must be bounded (a header may ask
//! for any amount of memory) and because pax's sparse files and attributes are not known there.

use std::io::{self, Read};

use crate::blob::BlobReader;
use crate::error::{Error, Kind, Result};

const BLOCK: usize = 512;
/// A pax header or a long name. What real images have is a few KiB, with attributes.
const MAX_HEADER: u64 = 1 << 20;
/// PATH_MAX.
const MAX_PATH: usize = 4096;
/// Pieces of one sparse file.
const MAX_PIECES: usize = 1 << 16;
/// XATTR_LIST_MAX, and as much for each value (XATTR_SIZE_MAX).
const MAX_ATTRIBUTES: usize = 64 << 10;

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A file; what it holds follows.
    File,
    /// Another name of the file at this path.
    Link(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device, with its number as Linux encodes it (major, minor).
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A FIFO.
    Fifo,
}

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As written, not yet resolved.
    pub path: Vec<u8>,
    /// What it makes.
    pub what: What,
    /// Permission bits, with set-id and sticky.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Seconds since 1970, as SquashFS can have it.
    pub mtime: u32,
    /// How long the file is, holes included.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a file holds, piece by piece.
pub enum Piece<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// So many zeros that are not stored.
    Hole(u64),
}

/// What stands before an entry and belongs to it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// GNU.sparse.*: of which version, the file's real size, its pieces.
    sparse: Option<(u32, u32)>,
    real_size: Option<u64>,
    pieces: Vec<(u64, u64)>,
    offset: Option<u64>,
}

/// Reads a tar stream.
pub struct Reader<R> {
    inner: R,
    /// Bytes of the present entry, stored, that have not been read.
    left: u64,
    /// What fills its last block.
    padding: u64,
    /// Pieces of a sparse file: offset and length. `None`: it is all there.
    pieces: Option<Vec<(u64, u64)>>,
    size: u64,
    ended: bool,
    buffer: Vec<u8>,
}

impl Reader<BlobReader> {
    /// Passes over what the present entry holds without reading it. Answers where that began.
    pub fn pass(&mut self) -> Result<u64> {
        let at = self.inner.at();
        if !self.inner.pass(std::mem::take(&mut self.left)) {
            return Err(cut());
        }
        self.skip()?;
        Ok(at)
    }
}

impl<R: Read> Reader<R> {
    /// A stream that is not compressed any more.
    pub fn new(inner: R) -> Reader<R> {
        Reader { inner, left: 0, padding: 0, pieces: None, size: 0, ended: false, buffer: vec![0; 64 << 10] }
    }

    /// The stream, with what may follow the archive's end.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; what the one before holds is passed over if it was not read.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.skip()?;
        let mut extension = Extension::default();
        loop {
            let Some(block) = self.header()? else { return Ok(None) };
            let header = ::tar::Header::from_byte_slice(&block);
            let number = |what: &str, n: io::Result<u64>| {
                n.map_err(|_| damaged(format!("a {what} that is no number")))
            };
            let stored = number("size", header.entry_size())?;
            let kind = header.as_old().linkflag[0];
            match kind {
                b'x' | b'X' => {
                    let text = self.text(stored)?;
                    extension.read(&text)?;
                    continue;
                }
                // Global: comments of git, and nothing that images use.
                b'g' => {
                    self.text(stored)?;
                    continue;
                }
                b'L' => {
                    extension.path = Some(until_nul(self.text(stored)?));
                    continue;
                }
                b'K' => {
                    extension.link = Some(until_nul(self.text(stored)?));
                    continue;
                }
                b'V' => {
                    self.start(stored);
                    self.skip()?;
                    continue;
                }
                _ => {}
            }
            return self.entry(header, kind, stored, extension).map(Some);
        }
    }

    /// What follows the extensions.
    fn entry(
        &mut self,
        header: &::tar::Header,
        kind: u8,
        stored: u64,
        mut extension: Extension,
    ) -> Result<Entry> {
        let number =
            |what: &str, n: io::Result<u64>| n.map_err(|_| damaged(format!("a {what} that is no number")));
        let id = |what: &str, n: u64| {
            u32::try_from(n).map_err(|_| damaged(format!("the {what} {n}, which no system has")))
        };
        let path = extension.path.take().unwrap_or_else(|| header.path_bytes().into_owned());
        if path.len() > MAX_PATH {
            return Err(Error::hostile(format!("a path of {} bytes (Linux takes {MAX_PATH})", path.len())));
        }
        if path.contains(&0) {
            return Err(Error::hostile("a path with a NUL"));
        }
        let shown = String::from_utf8_lossy(&path).into_owned();
        let link = extension
            .link
            .take()
            .or_else(|| header.link_name_bytes().map(|l| l.into_owned()))
            .unwrap_or_default();
        if link.len() > MAX_PATH || link.contains(&0) {
            return Err(Error::hostile(format!(
                "{shown}: a link to a path of {} bytes, or with a NUL",
                link.len()
            )));
        }
        let device = || -> Result<(u32, u32)> {
            let part = |n: io::Result<Option<u32>>| {
                n.map_err(|_| damaged(format!("{shown}: a device number that is no number")))
                    .map(Option::unwrap_or_default)
            };
            Ok((part(header.device_major())?, part(header.device_minor())?))
        };
        let what = match kind {
            // Before POSIX a directory was a file whose name ends in a slash.
            b'0' | 0 if path.ends_with(b"/") => What::Directory,
            b'0' | 0 | b'7' | b'S' => What::File,
            b'1' => What::Link(link),
            b'2' => What::Symlink(link),
            b'3' => device().map(|(major, minor)| What::Character(major, minor))?,
            b'4' => device().map(|(major, minor)| What::Block(major, minor))?,
            b'5' => What::Directory,
            b'6' => What::Fifo,
            other => {
                let shown_kind = char::from(other).escape_default();
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("{shown} is of the type '{shown_kind}', which no image has"),
                    "make the archive anew: tar --format=pax, without --listed-incremental and --multi-volume",
                ));
            }
        };
        let is_file = what == What::File;
        // Only files have contents (POSIX; old archives give sizes to directories).
        let stored = if is_file { extension.size.unwrap_or(stored) } else { 0 };
        self.start(stored);
        self.size = stored;
        if is_file {
            if kind == b'S' {
                self.gnu_sparse(header, &shown)?;
            } else if extension.sparse.is_some()
                || !extension.pieces.is_empty()
                || extension.real_size.is_some()
            {
                self.pax_sparse(&mut extension, &shown)?;
            }
        }
        let mode = number("mode", header.mode().map(u64::from))?;
        let mtime = match extension.mtime {
            Some(time) => time,
            // Before 1970: base 256, with a sign, which the crate does not read.
            None => header.mtime().map_or(0, |t| i64::try_from(t).unwrap_or(0)),
        };
        let uid = id("owner", extension.uid.map_or_else(|| number("owner", header.uid()), Ok)?)?;
        let gid = id("group", extension.gid.map_or_else(|| number("group", header.gid()), Ok)?)?;
        Ok(Entry {
            path,
            what,
            mode: (mode & 0o7777) as u16,
            uid,
            gid,
            mtime: u32::try_from(mtime.max(0)).unwrap_or(u32::MAX),
            size: if is_file { self.size } else { 0 },
            xattrs: extension.xattrs,
        })
    }

    /// What the present file holds. `sink` is called for each piece, in order.
    pub fn content(&mut self, mut sink: impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        let Some(pieces) = self.pieces.take() else {
            while self.left > 0 {
                let n = self.read_some(self.left)?;
                sink(Piece::Data(&self.buffer[..n]))?;
            }
            return self.skip();
        };
        let mut at = 0;
        for (offset, length) in pieces {
            if offset > at {
                sink(Piece::Hole(offset - at))?;
            }
            let mut rest = length;
            while rest > 0 {
                let n = self.read_some(rest)?;
                sink(Piece::Data(&self.buffer[..n]))?;
                rest -= n as u64;
            }
            at = offset + length;
        }
        if at < self.size {
            sink(Piece::Hole(self.size - at))?;
        }
        self.skip()
    }

    /// Bytes that are stored of the present file.
    pub fn stored(&self) -> u64 {
        self.left
    }

    fn start(&mut self, stored: u64) {
        self.left = stored;
        self.padding = (BLOCK as u64 - stored % BLOCK as u64) % BLOCK as u64;
        self.pieces = None;
    }

    /// Into the buffer, at most `most` bytes of the present entry.
    fn read_some(&mut self, most: u64) -> Result<usize> {
        let want = most.min(self.left).min(self.buffer.len() as u64) as usize;
        let n = read(&mut self.inner, &mut self.buffer[..want])?;
        if n == 0 {
            return Err(cut());
        }
        self.left -= n as u64;
        Ok(n)
    }

    fn skip(&mut self) -> Result<()> {
        while self.left > 0 {
            self.read_some(self.left)?;
        }
        // umoci leaves the last padding away, and Go's reader does not miss it.
        while self.padding > 0 && !self.ended {
            let want = self.padding as usize;
            let n = read(&mut self.inner, &mut self.buffer[..want])?;
            self.padding -= n as u64;
            self.ended = n == 0;
        }
        Ok(())
    }

    /// The next header; `None` at the archive's end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut zeros = 0;
        while !self.ended {
            let mut block = [0u8; BLOCK];
            let mut have = 0;
            while have < BLOCK {
                match read(&mut self.inner, &mut block[have..])? {
                    0 if have == 0 => {
                        self.ended = true;
                        return Ok(None);
                    }
                    0 => return Err(cut()),
                    n => have += n,
                }
            }
            if block.iter().all(|b| *b == 0) {
                zeros += 1;
                self.ended = zeros == 2;
                continue;
            }
            let sum: u32 = block
                .iter()
                .enumerate()
                .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
                .sum();
            let said = ::tar::Header::from_byte_slice(&block).cksum();
            if said.ok() != Some(sum) {
                return Err(damaged("a header whose checksum is wrong".to_owned()));
            }
            return Ok(Some(block));
        }
        Ok(None)
    }

    /// The contents of a header's extension.
    fn text(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_HEADER {
            return Err(Error::hostile(format!("a header of {}", crate::error::size(size))));
        }
        self.start(size);
        let mut text = Vec::new();
        while self.left > 0 {
            let n = self.read_some(self.left)?;
            text.extend_from_slice(&self.buffer[..n]);
        }
        self.skip()?;
        Ok(text)
    }

    /// The old GNU format: four pieces in the header, more in blocks behind it.
    fn gnu_sparse(&mut self, header: &::tar::Header, shown: &str) -> Result<()> {
        let gnu =
            header.as_gnu().ok_or_else(|| damaged(format!("{shown}: a sparse file without GNU's header")))?;
        let wrong = |_| damaged(format!("{shown}: a sparse file's map is no numbers"));
        let real = gnu.real_size().map_err(wrong)?;
        let mut pieces = Vec::new();
        let add = |piece: &::tar::GnuSparseHeader, pieces: &mut Vec<(u64, u64)>| -> Result<()> {
            if !piece.is_empty() {
                pieces.push((piece.offset().map_err(wrong)?, piece.length().map_err(wrong)?));
            }
            Ok(())
        };
        for piece in &gnu.sparse {
            add(piece, &mut pieces)?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut block = ::tar::GnuExtSparseHeader::new();
            let bytes = block.as_mut_bytes();
            let mut have = 0;
            while have < BLOCK {
                match read(&mut self.inner, &mut bytes[have..])? {
                    0 => return Err(cut()),
                    n => have += n,
                }
            }
            for piece in block.sparse() {
                add(piece, &mut pieces)?;
            }
            if pieces.len() > MAX_PIECES {
                return Err(Error::hostile(format!(
                    "{shown}: a sparse file of more than {MAX_PIECES} pieces"
                )));
            }
            more = block.is_extended();
        }
        self.sparse(pieces, real, shown)
    }

    /// pax: a map in the header (0.0 and 0.1), or before the contents (1.0).
    fn pax_sparse(&mut self, extension: &mut Extension, shown: &str) -> Result<()> {
        let mut pieces = std::mem::take(&mut extension.pieces);
        let real =
            extension.real_size.ok_or_else(|| damaged(format!("{shown}: a sparse file without its size")))?;
        if extension.sparse.is_some_and(|(major, _)| major == 1) {
            let mut numbers = Numbers { reader: self, block: Vec::new(), at: 0 };
            let count = numbers.next(shown)?;
            if count > MAX_PIECES as u64 {
                return Err(Error::hostile(format!("{shown}: a sparse file of {count} pieces")));
            }
            for _ in 0..count {
                let offset = numbers.next(shown)?;
                pieces.push((offset, numbers.next(shown)?));
            }
        }
        self.sparse(pieces, real, shown)
    }

    /// Takes the map if it is one: in order, inside of the file, as long as what is stored.
    fn sparse(&mut self, pieces: Vec<(u64, u64)>, real: u64, shown: &str) -> Result<()> {
        let mut at = 0u64;
        let mut sum = 0u64;
        for (offset, length) in &pieces {
            let end = offset.checked_add(*length).filter(|end| *offset >= at && *end <= real);
            at = end.ok_or_else(|| {
                damaged(format!("{shown}: pieces of a sparse file overlap, or lie behind its end"))
            })?;
            sum += length;
        }
        if sum != self.left {
            let left = self.left;
            return Err(damaged(format!(
                "{shown}: pieces of a sparse file have {sum} bytes, {left} are stored"
            )));
        }
        self.pieces = Some(pieces);
        self.size = real;
        Ok(())
    }
}

/// Decimal numbers, a line each, in blocks of their own.
struct Numbers<'a, R> {
    reader: &'a mut Reader<R>,
    block: Vec<u8>,
    at: usize,
}

impl<R: Read> Numbers<'_, R> {
    fn next(&mut self, shown: &str) -> Result<u64> {
        let mut number = 0u64;
        for digits in 0..21 {
            if self.at == self.block.len() {
                self.block.clear();
                self.at = 0;
                while self.block.len() < BLOCK {
                    let n = self.reader.read_some((BLOCK - self.block.len()) as u64)?;
                    self.block.extend_from_slice(&self.reader.buffer[..n]);
                }
            }
            let c = self.block[self.at];
            self.at += 1;
            match c {
                b'0'..=b'9' => number = number.saturating_mul(10).saturating_add(u64::from(c - b'0')),
                b'\n' if digits > 0 => return Ok(number),
                _ => break,
            }
        }
        Err(damaged(format!("{shown}: the map of a sparse file is no numbers")))
    }
}

impl Extension {
    /// `LENGTH KEY=VALUE\n`, again and again (pax, "pax Extended Header").
    fn read(&mut self, mut text: &[u8]) -> Result<()> {
        let wrong = || damaged("a pax header that is none".to_owned());
        let mut attributes = 0;
        while !text.is_empty() {
            let space = text.iter().take(20).position(|b| *b == b' ').ok_or_else(wrong)?;
            let length: usize = ascii(&text[..space]).ok_or_else(wrong)?;
            if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
                return Err(wrong());
            }
            let record = &text[space + 1..length - 1];
            text = &text[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let number = || ascii::<u64>(value).ok_or_else(wrong);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => {
                    let whole = value.split(|b| *b == b'.').next().unwrap_or(value);
                    self.mtime = Some(ascii(whole).ok_or_else(wrong)?);
                }
                b"GNU.sparse.major" => {
                    self.sparse = Some((number()?.min(99) as u32, self.sparse.map_or(0, |s| s.1)))
                }
                b"GNU.sparse.minor" => {
                    self.sparse = Some((self.sparse.map_or(0, |s| s.0), number()?.min(99) as u32))
                }
                b"GNU.sparse.name" => self.path = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.real_size = Some(number()?),
                b"GNU.sparse.offset" => self.offset = Some(number()?),
                b"GNU.sparse.numbytes" => {
                    self.pieces.push((self.offset.take().ok_or_else(wrong)?, number()?));
                }
                b"GNU.sparse.map" => {
                    let all: Option<Vec<u64>> = value.split(|b| *b == b',').map(ascii).collect();
                    let all = all.filter(|a| a.len() % 2 == 0).ok_or_else(wrong)?;
                    self.pieces = all.chunks(2).map(|p| (p[0], p[1])).collect();
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        attributes += name.len() + value.len();
                        if attributes > MAX_ATTRIBUTES {
                            return Err(Error::hostile(format!(
                                "more than {MAX_ATTRIBUTES} bytes of extended attributes"
                            )));
                        }
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
            if self.pieces.len() > MAX_PIECES {
                return Err(Error::hostile(format!("a sparse file of more than {MAX_PIECES} pieces")));
            }
        }
        Ok(())
    }
}

fn ascii<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|b| *b == 0) {
        text.truncate(end);
    }
    text
}

fn damaged(what: String) -> Error {
    Error::damaged(format!("the tar archive has {what}"))
}

fn cut() -> Error {
    Error::damaged("the tar archive is cut short")
}

/// Reads, through interruptions; an error of ours that came through `Read` is ours again.
fn read(inner: &mut impl Read, into: &mut [u8]) -> Result<usize> {
    loop {
        match inner.read(into) {
            Ok(n) => return Ok(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(crate::codec::error(e)),
        }
    }
}

#[cfg(test)]
mod tests;

//! Reads EROFS (fs/erofs/erofs_fs.h of the kernel): no ordinary user can mount it, and few hosts have a program that
//! does. What is read becomes a tree and data, as an archive does.

mod data;
mod extents;
mod unpack;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use self::data::Packed;
use crate::blob::Blob;
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::error::{Error, Kind, Result};
use crate::layers::{LeftOut, MAX_ENTRIES, Merge, too_many};
use crate::tree::{Id, MAX_DEPTH, Meta, Node, Tree, Xattrs};

/// Where the superblock is (EROFS_SUPER_OFFSET).
const SUPER_AT: u64 = 1024;
/// The first four bytes of it.
pub const MAGIC: &[u8] = b"\xe2\xe1\xf5\xe0";
/// Where they are.
pub const MAGIC_AT: usize = 1024;

/// Features that are understood, and those that change how things are read.
const KNOWN: u32 = 0x7f;
const ZERO_PADDING: u32 = 0x01;
const COMPRESSORS: u32 = 0x02;
const FRAGMENTS: u32 = 0x20;

/// Layouts of what files hold (EROFS_INODE_*).
const PLAIN: u16 = 0;
const COMPRESSED_FULL: u16 = 1;
const INLINE: u16 = 2;
const COMPRESSED_COMPACT: u16 = 3;
const CHUNKS: u16 = 4;

/// One directory entry without its name.
const DIRENT: usize = 12;
/// EROFS_XATTR_INDEX_USER.
const USER: u8 = 1;
/// Of one file; the kernel takes no more (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_ATTRIBUTES: usize = 256 << 10;
/// A target of a link is a path.
const MAX_TARGET: u64 = 4096;

/// A file system, and where its parts are.
struct Erofs<'a> {
    blob: &'a Blob,
    block_bits: u32,
    features: u32,
    /// Where inodes are counted from.
    inodes_at: u64,
    /// Where shared attributes are counted from.
    xattrs_at: u64,
    root: u64,
    /// The inode that holds ends of files, and small files.
    packed: Option<u64>,
    /// Of LZMA.
    dictionary: u32,
    /// When it was made: the time of inodes that have none.
    made: u64,
}

/// An inode.
#[derive(Clone, Copy, Debug)]
struct Inode {
    number: u64,
    /// Behind the inode and its attributes: the end of a file, or the map of one.
    tail_at: u64,
    layout: u16,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: u64,
    names: u32,
    size: u64,
    /// An address of blocks, or the format of chunks.
    place: u32,
    xattrs_at: u64,
    xattrs_length: u64,
}

/// Reads all of it.
pub fn read(blob: &Blob, with: &mut Merge<'_>) -> Result<(Tree, LeftOut)> {
    let erofs = Erofs::open(blob)?;
    let packed = erofs.packed.map(|number| erofs.inode(number)).transpose()?;
    let packed = packed.map(|inode| Packed::open(&erofs, inode)).transpose()?;
    let mut walk = Walk {
        erofs: &erofs,
        packed,
        with,
        tree: Tree::default(),
        left_out: LeftOut::default(),
        entries: MAX_ENTRIES,
        directories: HashSet::new(),
        known: HashMap::new(),
    };
    let root = erofs.inode(erofs.root)?;
    if root.mode & 0o170_000 != 0o040_000 {
        return Err(erofs.damaged("its root is no directory"));
    }
    let meta = walk.meta(&root)?;
    walk.tree.set_root(meta)?;
    walk.directory(&root, walk.tree.root(), 0)?;
    Ok((walk.tree, walk.left_out))
}

/// Whether the superblock makes sense: a copy that was cut short is found here.
pub fn check(blob: &Blob) -> Result<()> {
    Erofs::open(blob).map(drop)
}

fn unsupported(path: &Path, what: &str) -> Error {
    let what = format!("the EROFS image {} {what}", path.display());
    Error::new(Kind::Unsupported, what, "make it anew with mkfs.erofs without that, or as SquashFS")
}

impl<'a> Erofs<'a> {
    fn open(blob: &'a Blob) -> Result<Erofs<'a>> {
        let mut erofs = Erofs {
            blob,
            block_bits: 12,
            features: 0,
            inodes_at: 0,
            xattrs_at: 0,
            root: 0,
            packed: None,
            dictionary: 0,
            made: 0,
        };
        let superblock = erofs.bytes(SUPER_AT, 128, "superblock")?;
        if !superblock.starts_with(MAGIC) {
            return Err(erofs.damaged("it does not begin as one"));
        }
        erofs.block_bits = u32::from(superblock[12]);
        if !(9..=16).contains(&erofs.block_bits) {
            return Err(erofs.damaged(format!("its blocks have 2^{} bytes", erofs.block_bits)));
        }
        erofs.features = u32_at(&superblock, 80);
        let blocks = u64::from(u32_at(&superblock, 36));
        let (says, has) = (blocks << erofs.block_bits, blob.length);
        if says > has {
            return Err(erofs.damaged(format!("its superblock says {says} bytes, the file has {has}")));
        }
        let unknown = erofs.features & !KNOWN;
        if unknown != 0 {
            return Err(unsupported(
                &blob.path,
                &format!("has features that are not known here ({unknown:#x})"),
            ));
        }
        if u16_at(&superblock, 86) > 0 {
            return Err(unsupported(&blob.path, "has its data in other files (--blobdev)"));
        }
        if superblock[90] != 0 {
            return Err(unsupported(&blob.path, "has directories with blocks of another size"));
        }
        erofs.root = u64::from(u16_at(&superblock, 14));
        erofs.made = u64_at(&superblock, 24);
        erofs.inodes_at = u64::from(u32_at(&superblock, 40)) << erofs.block_bits;
        erofs.xattrs_at = u64::from(u32_at(&superblock, 44)) << erofs.block_bits;
        if erofs.features & FRAGMENTS != 0 {
            erofs.packed = Some(u64_at(&superblock, 96)).filter(|number| *number > 0);
        }
        if erofs.features & COMPRESSORS != 0 {
            let extra = u64::from(superblock[13]) * 16;
            erofs.dictionary = erofs.lzma_dictionary(u16_at(&superblock, 84), SUPER_AT + 128 + extra)?;
        }
        Ok(erofs)
    }

    /// Each compressor's settings follow the superblock, behind their length, the lowest first.
    fn lzma_dictionary(&self, compressors: u16, mut at: u64) -> Result<u32> {
        for compressor in (0..16).filter(|n| compressors & 1 << n != 0) {
            at = at.next_multiple_of(4);
            let length = u64::from(u16_at(&self.bytes(at, 2, "compressors")?, 0));
            if compressor == unpack::LZMA {
                return Ok(u32_at(&self.bytes(at + 2, 4, "compressors")?, 0));
            }
            at += 2 + if length == 0 { 1 << 16 } else { length };
        }
        Ok(0)
    }

    fn damaged(&self, why: impl std::fmt::Display) -> Error {
        Error::damaged(format!("the EROFS image {} is damaged: {why}", self.blob.path.display()))
    }

    /// So many bytes at this place; `what` they are.
    fn bytes(&self, at: u64, length: usize, what: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.fill(at, &mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&self, at: u64, bytes: &mut [u8], what: &str) -> Result<()> {
        let (length, size) = (bytes.len() as u64, self.blob.length);
        if at.checked_add(length).is_none_or(|end| end > size) {
            return Err(
                self.damaged(format!("{what}, {length} bytes at {at}, lies behind the file's end at {size}"))
            );
        }
        self.blob
            .file
            .read_exact_at(bytes, self.blob.offset + at)
            .map_err(|e| Error::reading(&self.blob.path, &e))
    }

    /// The inode of this number (a nid: its place in units of 32 bytes).
    fn inode(&self, number: u64) -> Result<Inode> {
        let at = number.checked_mul(32).and_then(|at| at.checked_add(self.inodes_at));
        let at = at.ok_or_else(|| self.damaged(format!("it has no inode {number}")))?;
        let what = format!("inode {number}");
        let mut bytes = self.bytes(at, 32, &what)?;
        let format = u16_at(&bytes, 0);
        if format > 0xf {
            return Err(unsupported(
                &self.blob.path,
                &format!("has inodes of a format that is not known here ({format:#x})"),
            ));
        }
        let is_long = format & 1 != 0;
        let length = if is_long { 64 } else { 32 };
        if is_long {
            bytes = self.bytes(at, length, &what)?;
        }
        let count = u64::from(u16_at(&bytes, 2));
        let xattrs_length = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let xattrs_at = at + length as u64;
        let mut inode = Inode {
            number,
            tail_at: xattrs_at + xattrs_length,
            layout: format >> 1,
            mode: u16_at(&bytes, 4),
            uid: u32::from(u16_at(&bytes, 24)),
            gid: u32::from(u16_at(&bytes, 26)),
            mtime: self.made,
            names: u32::from(u16_at(&bytes, 6)),
            size: u64::from(u32_at(&bytes, 8)),
            place: u32_at(&bytes, 16),
            xattrs_at,
            xattrs_length,
        };
        if is_long {
            (inode.uid, inode.gid) = (u32_at(&bytes, 24), u32_at(&bytes, 28));
            (inode.mtime, inode.names) = (u64_at(&bytes, 32), u32_at(&bytes, 44));
            inode.size = u64_at(&bytes, 8);
        }
        Ok(inode)
    }

    /// Its attributes: those beside it, and those that it shares with others.
    fn xattrs(&self, inode: &Inode) -> Result<Xattrs> {
        let mut all = Xattrs::new();
        if inode.xattrs_length == 0 {
            return Ok(all);
        }
        let bytes = self.bytes(inode.xattrs_at, inode.xattrs_length as usize, "attributes")?;
        let shared = usize::from(bytes[4]);
        let inline_at = 12 + 4 * shared;
        let mut bytes_read = bytes.len();
        let outside = || self.damaged("its attributes lie outside of their place");
        for number in 0..shared {
            let place = u32_at(bytes.get(12 + 4 * number..).ok_or_else(outside)?, 0);
            let at = self.xattrs_at + 4 * u64::from(place);
            let head = self.bytes(at, 4, "attribute")?;
            let length = usize::from(head[0]) + usize::from(u16_at(&head, 2));
            let text = self.bytes(at + 4, length, "attribute")?;
            all.push(self.attribute(&head, &text)?);
            bytes_read += length;
            if bytes_read > MAX_ATTRIBUTES {
                return Err(Error::hostile(format!(
                    "more than {MAX_ATTRIBUTES} bytes of extended attributes"
                )));
            }
        }
        let mut rest = bytes.get(inline_at..).ok_or_else(outside)?;
        while rest.len() >= 4 && rest[..4] != [0; 4] {
            let length = usize::from(rest[0]) + usize::from(u16_at(rest, 2));
            let text = rest.get(4..4 + length).ok_or_else(outside)?;
            all.push(self.attribute(rest, text)?);
            rest = rest.get((4 + length).next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(all)
    }

    fn attribute(&self, head: &[u8], text: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        let (name, value) = text.split_at(usize::from(head[0]).min(text.len()));
        // Others than the user's are left out, whatever their names are.
        let prefix: &[u8] = match head[1] {
            USER => b"user.",
            prefix if prefix & 0x80 != 0 => {
                return Err(unsupported(
                    &self.blob.path,
                    "has attributes with long prefixes (--xattr-prefix)",
                ));
            }
            _ => b"system.",
        };
        Ok(([prefix, name].concat(), value.to_vec()))
    }
}

/// The file system being read.
struct Walk<'a, 'b, 'c> {
    erofs: &'a Erofs<'a>,
    packed: Option<Packed>,
    with: &'b mut Merge<'c>,
    tree: Tree,
    left_out: LeftOut,
    entries: u64,
    /// Those that have been seen: each has one name.
    directories: HashSet<u64>,
    /// Files that have several names, by number.
    known: HashMap<u64, Id>,
}

impl Walk<'_, '_, '_> {
    fn meta(&mut self, inode: &Inode) -> Result<Meta> {
        let xattrs = self.erofs.xattrs(inode)?;
        Ok(Meta {
            mode: self.left_out.mode(inode.mode & 0o7777, inode.mode & 0o170_000 == 0o040_000),
            uid: inode.uid,
            gid: inode.gid,
            mtime: u32::try_from((inode.mtime as i64).max(0)).unwrap_or(u32::MAX),
            xattrs: self.left_out.xattrs(xattrs),
        })
    }

    /// What a directory holds: blocks of entries, each followed by its entries' names.
    fn directory(&mut self, inode: &Inode, id: Id, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::hostile(format!("directories in more than {MAX_DEPTH} directories")));
        }
        if !self.directories.insert(inode.number) {
            return Err(Error::hostile(format!("the directory {} in itself or in two others", inode.number)));
        }
        let erofs = self.erofs;
        let block = 1 << erofs.block_bits;
        let mut found = Vec::new();
        let mut bytes = Vec::with_capacity(block);
        let allowance = &self.with.allowance;
        erofs.content(inode, self.packed.as_mut(), &mut |piece| {
            allowance.take(piece.length())?;
            let mut rest = piece.bytes().ok_or_else(|| erofs.damaged("a directory with holes"))?;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(block - bytes.len()));
                bytes.extend_from_slice(now);
                rest = later;
                if bytes.len() == block {
                    erofs.names(&bytes, &mut self.entries, &mut found)?;
                    bytes.clear();
                }
            }
            Ok(())
        })?;
        if !bytes.is_empty() {
            erofs.names(&bytes, &mut self.entries, &mut found)?;
        }
        for (name, number) in found {
            if self.tree.child(id, &name).is_some() {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(erofs.damaged(format!("a directory has {name:?} twice")));
            }
            self.entry(&name, number, id, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &[u8], number: u64, parent: Id, depth: usize) -> Result<()> {
        if let Some(first) = self.known.get(&number) {
            return self.tree.link_to(parent, name, *first);
        }
        let inode = self.erofs.inode(number)?;
        let target;
        let node = match inode.mode & 0o170_000 {
            0o040_000 => Node::Directory,
            0o100_000 => Node::File(self.file(&inode)?),
            0o120_000 => {
                target = self.target(&inode)?;
                Node::Symlink(&target)
            }
            0o010_000 => Node::Fifo,
            0o140_000 => Node::Socket,
            0o020_000 | 0o060_000 => {
                self.left_out.devices += 1;
                return Ok(());
            }
            other => {
                return Err(self.erofs.damaged(format!("inode {number} is of the unknown type {other:o}")));
            }
        };
        let meta = self.meta(&inode)?;
        let id = self.tree.add_to(parent, name, meta, node)?;
        if node == Node::Directory {
            self.directory(&inode, id, depth + 1)?;
        } else if inode.names > 1 {
            self.known.insert(number, id);
        }
        Ok(())
    }

    fn target(&mut self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.size > MAX_TARGET {
            return Err(Error::hostile(format!("a link of {} bytes (Linux takes {MAX_TARGET})", inode.size)));
        }
        let mut target = Vec::new();
        self.erofs.content(inode, self.packed.as_mut(), &mut |piece| {
            target.extend_from_slice(piece.bytes().ok_or_else(|| self.erofs.damaged("a link with holes"))?);
            Ok(())
        })?;
        if target.is_empty() || target.contains(&0) {
            return Err(self.erofs.damaged(format!("the target of link {} is no path", inode.number)));
        }
        Ok(target)
    }

    fn file(&mut self, inode: &Inode) -> Result<u32> {
        let Merge { data, allowance, read } = &mut *self.with;
        self.erofs.content(inode, self.packed.as_mut(), &mut |piece| {
            allowance.take(piece.length())?;
            read.fetch_add(piece.stored(), Ordering::Relaxed);
            match piece.bytes() {
                Some(bytes) => data.write(bytes),
                None => data.hole(piece.length()),
            }
        })?;
        data.end()
    }
}

impl Erofs<'_> {
    /// The entries of one block of a directory, but for itself and the one above.
    fn names(&self, block: &[u8], entries: &mut u64, found: &mut Vec<(Vec<u8>, u64)>) -> Result<()> {
        let first = usize::from(u16_at(block, 8));
        if first < DIRENT || first % DIRENT != 0 || first > block.len() {
            return Err(self.damaged(format!("the names of a directory's entries begin at {first}")));
        }
        for at in (0..first).step_by(DIRENT) {
            let begin = usize::from(u16_at(block, at + 8));
            let end =
                if at + DIRENT < first { usize::from(u16_at(block, at + DIRENT + 8)) } else { block.len() };
            let name = block.get(begin..end).ok_or_else(|| {
                self.damaged(format!("a name of a directory lies from {begin} to {end} of {}", block.len()))
            })?;
            // The last one ends with its block, or with zeros.
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            *entries = entries.checked_sub(1).ok_or_else(too_many)?;
            if name == b"." || name == b".." {
                continue;
            }
            if name.is_empty() || name.len() > 255 || name.contains(&b'/') {
                let shown = String::from_utf8_lossy(name).into_owned();
                return Err(Error::hostile(format!("the name {shown:?} in a directory")));
            }
            found.push((name.to_vec(), u64_at(block, at)));
        }
        Ok(())
    }
}

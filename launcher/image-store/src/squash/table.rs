//! Inodes, directories, owners, attributes: everything behind the data, and the superblock before them.
//!
//! The order of the tables and that each ends where the next begins is what the kernel checks
//! (fs/squashfs/super.c, squashfs_fill_super).

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use super::data::Finished;
use super::meta::{self, Meta, indexed};
use super::{BLOCK, BLOCK_LOG, Compressor};
use crate::error::{Error, Kind, Result};
use crate::tree::{Id, Node, Tree, View};

const NONE: u32 = u32::MAX;
const NOWHERE: u64 = u64::MAX;
/// SQUASHFS_DIR_COUNT.
const MAX_HEADER: usize = 256;
/// Flags of the superblock.
const OPTIONS: u16 = 0x0400;
const NO_XATTRS: u16 = 0x0200;

/// Types of inodes; with attributes, or more than the short forms hold, the long ones, seven further.
const DIRECTORY: u16 = 1;
const FILE: u16 = 2;
const SYMLINK: u16 = 3;
const FIFO: u16 = 6;
const SOCKET: u16 = 7;
const LONG: u16 = 7;

/// Where an inode is: its block, and the place in it.
type Reference = (u32, u16);

struct Writer<'a> {
    tree: &'a Tree,
    names: Vec<u32>,
    numbers: Vec<u32>,
    /// Block `NONE`: not written yet.
    places: Vec<Reference>,
    data: Finished,
    /// Where the inode table begins.
    start: u64,
    inodes: Meta,
    directories: Meta,
    owners: Owners,
    attributes: Attributes,
}

/// Writes it all.
pub fn write(tree: &Tree, data: Finished, modified: u32) -> Result<(File, u64)> {
    let names = tree.names();
    let mut numbers = vec![0; names.len()];
    let mut count = 0u32;
    for (id, _) in names.iter().enumerate().filter(|(_, n)| **n > 0) {
        count += 1;
        numbers[id] = count;
    }
    let path = data.written.path.clone();
    let failed = |e: std::io::Error| Error::writing(&path, &e);
    let compressor = data.compressor;
    let table = || Meta::new(compressor).map_err(failed);
    let mut writer = Writer {
        places: vec![(NONE, 0); names.len()],
        names,
        numbers,
        start: data.written.end,
        data,
        tree,
        inodes: table()?,
        directories: table()?,
        owners: Owners::default(),
        attributes: Attributes { table: table()?, sets: Vec::new(), known: HashMap::new() },
    };
    let root = writer.directory(tree.root(), count + 1)?;
    let Writer { data, inodes, directories, owners, attributes, start, .. } = writer;
    let mut out = Out { at: data.written.end, file: data.written.file };
    let inodes_end = inodes.finish().map_err(failed)?;
    // What was done before has been written as it was done.
    let mut put = |bytes: &[u8]| out.put(bytes).map_err(failed);
    put(&inodes_end)?;
    let directory_table = put(&directories.finish().map_err(failed)?)?;
    let fragments: Vec<u8> = data
        .fragments
        .iter()
        .flat_map(|number| {
            let (at, size) = data.written.blocks[*number as usize];
            [&at.to_le_bytes()[..], &size.to_le_bytes(), &[0; 4]].concat()
        })
        .collect();
    let mut table = |bytes: &[u8]| -> Result<u64> {
        let (blocks, index) = indexed(compressor, bytes).map_err(failed)?;
        let at = put(&blocks)?;
        let index: Vec<u8> = index.iter().flat_map(|b| (at + b).to_le_bytes()).collect();
        put(&index)
    };
    let fragment_table = table(&fragments)?;
    let id_table = table(&owners.bytes())?;
    let has_attributes = !attributes.sets.is_empty();
    let xattr_table = if has_attributes {
        let (pairs, sets) = attributes.finish().map_err(failed)?;
        let at = put(&pairs)?;
        let (blocks, index) = indexed(compressor, &sets).map_err(failed)?;
        let blocks_at = put(&blocks)?;
        let count = (sets.len() / 16) as u32;
        let mut header = [&at.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
        header.extend(index.iter().flat_map(|b| (blocks_at + b).to_le_bytes()));
        put(&header)?
    } else {
        NOWHERE
    };
    let used = out.at;
    // Loop devices have whole blocks only.
    let padding = (4096 - used % 4096) % 4096;
    out.put(&vec![0; padding as usize]).map_err(failed)?;

    let mut superblock = Vec::with_capacity(96);
    let u16s = |n: u16, to: &mut Vec<u8>| to.extend_from_slice(&n.to_le_bytes());
    let u32s = |n: u32, to: &mut Vec<u8>| to.extend_from_slice(&n.to_le_bytes());
    let u64s = |n: u64, to: &mut Vec<u8>| to.extend_from_slice(&n.to_le_bytes());
    superblock.extend_from_slice(b"hsqs");
    for n in [count, modified, BLOCK as u32, data.fragments.len() as u32] {
        u32s(n, &mut superblock);
    }
    let options = if compressor == Compressor::Lz4 { OPTIONS } else { 0 };
    let flags = options | if has_attributes { 0 } else { NO_XATTRS };
    for n in [compressor.id(), BLOCK_LOG, flags, owners.list.len() as u16, 4, 0] {
        u16s(n, &mut superblock);
    }
    let root = u64::from(root.0) << 16 | u64::from(root.1);
    for n in [root, used, id_table, xattr_table, start, directory_table, fragment_table, NOWHERE] {
        u64s(n, &mut superblock);
    }
    let mut file = out.file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&superblock)).map_err(failed)?;
    Ok((file, used + padding))
}

struct Out {
    file: std::io::BufWriter<File>,
    at: u64,
}

impl Out {
    /// Appends; where it is.
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<u64> {
        self.file.write_all(bytes)?;
        let at = self.at;
        self.at += bytes.len() as u64;
        Ok(at)
    }
}

impl Writer<'_> {
    fn failed(&self, e: std::io::Error) -> Error {
        Error::writing(&self.data.written.path, &e)
    }

    /// What a directory holds, then its listing, then itself.
    fn directory(&mut self, id: Id, parent: u32) -> Result<Reference> {
        let tree = self.tree;
        let mut links = 2;
        let entries = tree.entries(id);
        for (_, child) in &entries {
            let child = *child;
            if tree.node(child) == Node::Directory {
                links += 1;
                self.places[child as usize] = self.directory(child, self.numbers[id as usize])?;
            } else if self.places[child as usize].0 == NONE {
                self.places[child as usize] = self.leaf(child)?;
            }
        }
        let listing = self.listing(&entries)?;
        drop(entries);
        let attributes = self.attributes(&tree.get(id))?;
        let is_short =
            attributes == NONE && listing.size <= usize::from(u16::MAX) && listing.index.is_empty();
        let block = u32::try_from(listing.at.0).map_err(|_| too_large())?;
        let size = u32::try_from(listing.size).map_err(|_| too_large())?;
        let mut inode = self.header(id, DIRECTORY, is_short)?;
        let u32s = |n: u32, inode: &mut Vec<u8>| inode.extend_from_slice(&n.to_le_bytes());
        if is_short {
            u32s(block, &mut inode);
            u32s(links, &mut inode);
            inode.extend_from_slice(&(size as u16).to_le_bytes());
            inode.extend_from_slice(&listing.at.1.to_le_bytes());
            u32s(parent, &mut inode);
        } else {
            for n in [links, size, block, parent] {
                u32s(n, &mut inode);
            }
            inode.extend_from_slice(&(listing.count as u16).to_le_bytes());
            inode.extend_from_slice(&listing.at.1.to_le_bytes());
            u32s(attributes, &mut inode);
            inode.extend_from_slice(&listing.index);
        }
        self.put(&inode)
    }

    /// Anything else.
    fn leaf(&mut self, id: Id) -> Result<Reference> {
        let view = self.tree.get(id);
        let attributes = self.attributes(&view)?;
        let links = self.names[id as usize];
        let short = attributes == NONE;
        let mut inode;
        match view.node {
            Node::File(data) => {
                let held = self.data.held.get(data as usize).copied().ok_or_else(|| {
                    Error::new(
                        Kind::Io,
                        "a file whose data were never read",
                        "report this: it is a defect of hpc-launch",
                    )
                })?;
                let blocks = held.blocks();
                let at = self.data.written.blocks.get(blocks.start).filter(|_| !blocks.is_empty());
                let at = at.map_or(0, |(at, _)| *at);
                let sparse = self.data.sparse.get(&data).copied().unwrap_or(0);
                let short = short
                    && links == 1
                    && sparse == 0
                    && u32::try_from(held.size).is_ok()
                    && u32::try_from(at).is_ok();
                inode = self.header(id, FILE, short)?;
                let (fragment, offset) = held.fragment().unwrap_or((NONE, 0));
                if short {
                    for n in [at as u32, fragment, offset, held.size as u32] {
                        inode.extend_from_slice(&n.to_le_bytes());
                    }
                } else {
                    for n in [at, held.size, sparse] {
                        inode.extend_from_slice(&n.to_le_bytes());
                    }
                    for n in [links, fragment, offset, attributes] {
                        inode.extend_from_slice(&n.to_le_bytes());
                    }
                }
                inode
                    .extend(self.data.written.blocks[blocks].iter().flat_map(|(_, size)| size.to_le_bytes()));
            }
            Node::Symlink(to) => {
                inode = self.header(id, SYMLINK, short)?;
                inode.extend_from_slice(&links.to_le_bytes());
                inode.extend_from_slice(&(to.len() as u32).to_le_bytes());
                inode.extend_from_slice(to);
                if !short {
                    inode.extend_from_slice(&attributes.to_le_bytes());
                }
            }
            Node::Fifo | Node::Socket | Node::Directory => {
                let kind = if view.node == Node::Fifo { FIFO } else { SOCKET };
                inode = self.header(id, kind, short)?;
                inode.extend_from_slice(&links.to_le_bytes());
                if !short {
                    inode.extend_from_slice(&attributes.to_le_bytes());
                }
            }
        }
        self.put(&inode)
    }

    fn attributes(&mut self, view: &View<'_>) -> Result<u32> {
        let path = &self.data.written.path;
        self.attributes.number(view.xattrs).map_err(|e| Error::writing(path, &e))
    }

    fn header(&mut self, id: Id, kind: u16, short: bool) -> Result<Vec<u8>> {
        let meta = self.tree.get(id);
        let kind = if short { kind } else { kind + LONG };
        let mut inode = Vec::with_capacity(64);
        for n in [kind, meta.mode & 0o7777, self.owners.number(meta.uid)?, self.owners.number(meta.gid)?] {
            inode.extend_from_slice(&n.to_le_bytes());
        }
        for n in [meta.mtime, self.numbers[id as usize]] {
            inode.extend_from_slice(&n.to_le_bytes());
        }
        Ok(inode)
    }

    fn put(&mut self, inode: &[u8]) -> Result<Reference> {
        let placed = self.inodes.place().and_then(|place| self.inodes.put(inode).map(|()| place));
        let (block, offset) = placed.map_err(|e| self.failed(e))?;
        // Whole blocks go to the file at once: memory does not grow with the image.
        if self.inodes.out.len() > 1 << 20 {
            let out = self.inodes.take();
            self.data.written.file.write_all(&out).map_err(|e| self.failed(e))?;
            self.data.written.end += out.len() as u64;
        }
        Ok((u32::try_from(block).map_err(|_| too_large())?, offset))
    }

    /// A directory's listing: headers of up to 256 entries whose inodes lie in one block.
    fn listing(&mut self, entries: &[(&[u8], Id)]) -> Result<Listing> {
        let tree = self.tree;
        let path = self.data.written.path.clone();
        let failed = |e: std::io::Error| Error::writing(&path, &e);
        let at = self.directories.place().map_err(failed)?;
        let mut listing = Listing { at, size: 3, index: Vec::new(), count: 0 };
        let mut run: Vec<(&[u8], Id)> = Vec::new();
        let mut entries = entries.iter().copied().peekable();
        let mut indexed_block = at.0;
        while let Some((name, child)) = entries.next() {
            run.push((name, child));
            let (block, _) = self.places[child as usize];
            let first = self.numbers[run[0].1 as usize];
            let goes_on = entries.peek().is_some_and(|(_, next)| {
                let (next_block, _) = self.places[*next as usize];
                let distance = i64::from(self.numbers[*next as usize]) - i64::from(first);
                // As long as one metadata block, so that an index leads near.
                let bytes: usize = run.iter().map(|(n, _)| n.len() + 8).sum();
                next_block == block
                    && i16::try_from(distance).is_ok()
                    && run.len() < MAX_HEADER
                    && bytes < meta::SIZE / 2
            });
            if goes_on {
                continue;
            }
            let here = self.directories.place().map_err(failed)?;
            if here.0 != indexed_block {
                // An entry for each block of the listing, so that a look-up reads one.
                indexed_block = here.0;
                let name = run[0].0;
                let start = u32::try_from(here.0).map_err(|_| too_large())?;
                for n in [(listing.size - 3) as u32, start, name.len() as u32 - 1] {
                    listing.index.extend_from_slice(&n.to_le_bytes());
                }
                listing.index.extend_from_slice(name);
                listing.count += 1;
                if listing.count > usize::from(u16::MAX) {
                    return Err(too_large());
                }
            }
            let mut bytes = Vec::new();
            for n in [run.len() as u32 - 1, block, first] {
                bytes.extend_from_slice(&n.to_le_bytes());
            }
            for (name, child) in run.drain(..) {
                let (_, offset) = self.places[child as usize];
                let delta = (i64::from(self.numbers[child as usize]) - i64::from(first)) as i16;
                let kind = match tree.node(child) {
                    Node::Directory => DIRECTORY,
                    Node::File(_) => FILE,
                    Node::Symlink(_) => SYMLINK,
                    Node::Fifo => FIFO,
                    Node::Socket => SOCKET,
                };
                bytes.extend_from_slice(&offset.to_le_bytes());
                bytes.extend_from_slice(&delta.to_le_bytes());
                bytes.extend_from_slice(&kind.to_le_bytes());
                bytes.extend_from_slice(&(name.len() as u16 - 1).to_le_bytes());
                bytes.extend_from_slice(name);
            }
            self.directories.put(&bytes).map_err(failed)?;
            listing.size += bytes.len();
        }
        Ok(listing)
    }
}

struct Listing {
    at: (u64, u16),
    /// Bytes, and three for `.` and `..` (the kernel's dir_emit_dots).
    size: usize,
    index: Vec<u8>,
    count: usize,
}

fn too_large() -> Error {
    Error::new(Kind::TooLarge, "the image has more files than SquashFS takes", "split it")
}

/// Owners and groups: inodes have their numbers in this list.
#[derive(Default)]
struct Owners {
    list: Vec<u32>,
    known: HashMap<u32, u16>,
}

impl Owners {
    fn number(&mut self, id: u32) -> Result<u16> {
        if let Some(number) = self.known.get(&id) {
            return Ok(*number);
        }
        let number = u16::try_from(self.list.len()).ok().filter(|n| *n < u16::MAX).ok_or_else(|| {
            Error::new(
                Kind::TooLarge,
                "the image has more than 65534 owners and groups",
                "give its files fewer owners",
            )
        })?;
        self.list.push(id);
        self.known.insert(id, number);
        Ok(number)
    }

    fn bytes(&self) -> Vec<u8> {
        self.list.iter().flat_map(|id| id.to_le_bytes()).collect()
    }
}

/// Extended attributes: sets of pairs; equal sets are written once.
struct Attributes {
    table: Meta,
    /// Where a set's pairs are, how many, how long.
    sets: Vec<(u64, u32, u32)>,
    known: HashMap<Vec<u8>, u32>,
}

impl Attributes {
    fn number(&mut self, pairs: &[(Vec<u8>, Vec<u8>)]) -> std::io::Result<u32> {
        // Types of names: user 0, trusted 1, security 2. Only the user's are kept.
        let mut bytes = Vec::new();
        let mut count = 0;
        for (name, value) in pairs {
            let Some(name) = name.strip_prefix(b"user.") else { continue };
            bytes.extend_from_slice(&0u16.to_le_bytes());
            bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
            bytes.extend_from_slice(value);
            count += 1;
        }
        if count == 0 {
            return Ok(NONE);
        }
        if let Some(number) = self.known.get(&bytes) {
            return Ok(*number);
        }
        let (block, offset) = self.table.place()?;
        self.table.put(&bytes)?;
        let number = self.sets.len() as u32;
        self.sets.push((block << 16 | u64::from(offset), count, bytes.len() as u32));
        self.known.insert(bytes, number);
        Ok(number)
    }

    /// The pairs' table, and the sets.
    fn finish(self) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
        let sets = self.sets.iter().flat_map(|(at, count, size)| {
            [&at.to_le_bytes()[..], &count.to_le_bytes(), &size.to_le_bytes()].concat()
        });
        let sets = sets.collect();
        Ok((self.table.finish()?, sets))
    }
}

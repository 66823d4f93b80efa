//! Writes SquashFS 4.0 (Documentation/filesystems/squashfs.rst; include/linux/squashfs_fs.h of the kernel).
//!
//! Written here because no library streams: what files hold comes in the order of an archive, once, and is compressed on
//! all processors while more is read; names, owners and directories follow when the tree is known. Hard links and
//! attributes are kept. The same tree makes the same bytes.

mod data;
mod meta;
mod table;

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

pub use self::data::{Data, Held};
use crate::blob::Blob;
use crate::error::{Error, Result};
use crate::tree::Tree;

/// Bytes of a block, as mksquashfs has it.
const BLOCK: usize = 128 << 10;
const BLOCK_LOG: u16 = 17;
/// The superblock's length: data begin behind it.
const SUPERBLOCK: usize = 96;

/// How files and tables are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compressor {
    /// Zstandard: small, and read at a gigabyte per second.
    Zstd,
    /// LZ4: larger, read several times as fast.
    Lz4,
}

impl Compressor {
    fn id(self) -> u16 {
        match self {
            Compressor::Lz4 => 5,
            Compressor::Zstd => 6,
        }
    }
}

/// Zstandard's level. Levels above gain a few per cent and cost several times the time.
const LEVEL: i32 = 3;

/// One thread's compressor.
enum Packer {
    Zstd(zstd::bulk::Compressor<'static>),
    Lz4,
}

impl Packer {
    fn new(compressor: Compressor) -> std::io::Result<Packer> {
        Ok(match compressor {
            Compressor::Zstd => Packer::Zstd(zstd::bulk::Compressor::new(LEVEL)?),
            Compressor::Lz4 => Packer::Lz4,
        })
    }

    /// Compressed, if that is shorter.
    fn pack(&mut self, bytes: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
        let packed = match self {
            Packer::Zstd(zstd) => zstd.compress(bytes)?,
            Packer::Lz4 => lz4_flex::block::compress(bytes),
        };
        Ok((packed.len() < bytes.len()).then_some(packed))
    }
}

/// Writes everything that follows the data, and the superblock. Answers how long the file is.
pub fn finish(tree: &Tree, data: Data, modified: u32) -> Result<(File, u64)> {
    table::write(tree, data.finish()?, modified)
}

/// Looks at the superblock (squashfs_fs.h, struct squashfs_super_block): a copy that was cut short is found here, not as
/// an I/O error in the middle of a run.
pub fn check(blob: &Blob) -> Result<()> {
    let damaged =
        |why: String| Error::damaged(format!("the SquashFS image {} is damaged: {why}", blob.path.display()));
    let size = blob.length;
    let mut head = [0u8; SUPERBLOCK];
    if size < SUPERBLOCK as u64 {
        return Err(damaged(format!("{size} bytes are less than a superblock")));
    }
    blob.file.read_exact_at(&mut head, blob.offset).map_err(|e| Error::reading(&blob.path, &e))?;
    let number = |at: usize, length: usize| {
        head[at..at + length].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    if &head[..4] != b"hsqs" {
        return Err(damaged("it does not begin as one".to_owned()));
    }
    let (major, minor) = (number(28, 2), number(30, 2));
    if (major, minor) != (4, 0) {
        return Err(damaged(format!("version {major}.{minor}, only 4.0 exists today")));
    }
    let used = number(40, 8);
    if used > size {
        return Err(damaged(format!("its superblock says {used} bytes, the file has {size}")));
    }
    for (name, at) in [("inode table", 64), ("directory table", 72)] {
        let start = number(at, 8);
        if start >= used {
            return Err(damaged(format!("its {name} starts at {start}, behind its end at {used}")));
        }
    }
    Ok(())
}

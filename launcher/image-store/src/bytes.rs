//! Bytes: copied, hashed, whether there is room for them, and numbers in them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};

use crate::blob::Blob;
use crate::error::{Error, Kind, Result, size};
use crate::import::Progress;

/// What is read at once.
const PIECE: usize = 1 << 20;

/// A number in little endian; 0 where there are no such bytes.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// The same of four bytes.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// The same of eight.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// A copy of a blob, as a new file at `to`; not flushed.
pub fn copied(blob: &Blob, to: &Path, progress: &Progress) -> Result<File> {
    let failed = |e: io::Error| Error::writing(to, &e);
    let mut file = File::options().write(true).create_new(true).open(to).map_err(failed)?;
    progress.all.store(blob.length, Ordering::Relaxed);
    let mut reader = blob.reader();
    let mut buffer = vec![0; PIECE];
    loop {
        let n = reader.read(&mut buffer).map_err(|e| Error::reading(&blob.path, &e))?;
        if n == 0 {
            return Ok(file);
        }
        file.write_all(&buffer[..n]).map_err(failed)?;
        progress.read.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Hashes all that is left of a stream; how much that was.
pub fn hash_rest(from: &mut impl Read, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut all = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(n) => {
                hash.update(&buffer[..n]);
                all += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Refuses at once what cannot fit where `out` will be.
pub fn room(out: &Path, needed: u64) -> Result<()> {
    let Some(Ok(stat)) = out.parent().map(nix::sys::statvfs::statvfs) else { return Ok(()) };
    let free = stat.blocks_available() * stat.fragment_size();
    // Some file systems say nothing.
    if free >= needed || stat.blocks() == 0 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Space,
        format!(
            "the image needs about {}, and {} are free in {}",
            size(needed),
            size(free),
            out.parent().unwrap_or(out).display()
        ),
        "make room (`hpc-launch image gc`, `hpc-launch image rm`), or name a store elsewhere: --store DIR",
    ))
}

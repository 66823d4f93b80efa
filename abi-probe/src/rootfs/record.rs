//! What an answer depends on: every file and directory that was looked at, and how it was then.
//!
//! A name that is missing depends on the directory that lacks it; a link on the directory that holds it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::FileStat;
use serde::{Deserialize, Serialize};

/// An object's identity and the times of its last changes: whoever writes to it, or puts another in its place,
/// changes one of them (the ctime cannot be set back).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(stat: &FileStat) -> Stamp {
        Stamp {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Of what a path of the host leads to, if that is there.
    pub fn of_host(path: &Path) -> Option<Stamp> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: i64::try_from(meta.size()).ok()?,
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Where a path lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// In the image, below its root.
    Image,
    /// On the host.
    Host,
}

/// Everything that was looked at, by link-free path.
#[derive(Debug, Default)]
pub struct Record {
    seen: BTreeMap<(Side, PathBuf), Stamp>,
}

impl Record {
    pub(super) fn add(&mut self, side: Side, path: PathBuf, stamp: Stamp) {
        // The first look counts: what changes under our hands makes the record stale at once.
        self.seen.entry((side, path)).or_insert(stamp);
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = (Side, &Path, Stamp)> {
        self.seen.iter().map(|((side, path), stamp)| (*side, path.as_path(), *stamp))
    }
}

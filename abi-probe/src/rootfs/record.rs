//! What an answer depends on: every file, directory and link that was looked at, and how it was then, or that
//! it was not there. Where many names were missing, the directory that lacks them stands for all.

use std::collections::{BTreeMap, BTreeSet};
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

    /// Of a path of the host, if that is there; a link's own.
    pub fn of_host(path: &Path) -> Option<Stamp> {
        let meta = std::fs::symlink_metadata(path).ok()?;
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

/// From so many missing names on, their directory is written down instead: it changes more often.
const MANY_MISSING: usize = 4;

/// Everything that was looked at, by link-free path.
#[derive(Debug, Default)]
pub struct Record {
    seen: BTreeMap<(Side, PathBuf), Stamp>,
    missing: BTreeMap<(Side, PathBuf), (Stamp, BTreeSet<PathBuf>)>,
}

impl Record {
    pub(super) fn add(&mut self, side: Side, path: PathBuf, stamp: Stamp) {
        // The first look counts: what changes under our hands makes the record stale at once.
        self.seen.entry((side, path)).or_insert(stamp);
    }

    pub(super) fn add_missing(&mut self, side: Side, directory: PathBuf, stamp: Stamp, rest: &Path) {
        let (_, names) = self.missing.entry((side, directory)).or_insert_with(|| (stamp, BTreeSet::new()));
        // What is below something missing is missing with it.
        names.insert(rest.iter().next().map(PathBuf::from).unwrap_or_default());
    }

    /// Paths, and how they were; `None`: missing.
    pub fn entries(&self) -> BTreeMap<(Side, PathBuf), Option<Stamp>> {
        let mut all: BTreeMap<_, _> = self.seen.iter().map(|(key, stamp)| (key.clone(), Some(*stamp))).collect();
        for ((side, directory), (stamp, names)) in &self.missing {
            if names.len() >= MANY_MISSING {
                all.insert((*side, directory.clone()), Some(*stamp));
            } else {
                all.extend(names.iter().map(|name| ((*side, directory.join(name)), None)));
            }
        }
        all
    }
}

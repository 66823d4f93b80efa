//! What an answer depends on: every file, directory and link that was looked at, and how it was then, or that
//! it was not there. Where many names were missing or were links, their directory stands for all: whoever makes
//! or replaces a name changes its times.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

/// An object's identity and the times of its last changes: whoever writes to it, or puts another in its place,
/// changes one of them (the ctime cannot be set back).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
}

/// Looks at objects again, by their link-free paths from a record: a link that was put on the way leads to the
/// same object, or to another, which the stamp tells. Paths of one directory should follow each other.
pub struct Again<'a> {
    root: &'a OwnedFd,
    directory: Option<(OsString, OwnedFd)>,
}

impl<'a> Again<'a> {
    /// Below this root.
    pub fn below(root: &'a OwnedFd) -> Again<'a> {
        Again { root, directory: None }
    }

    /// How it is now; `None`: missing.
    pub fn stamp(&mut self, path: &Path) -> Option<Stamp> {
        // As bytes: std takes a path apart, and a record has hundreds.
        let bytes = path.as_os_str().as_bytes();
        let last = bytes.iter().rposition(|byte| *byte == b'/')?;
        let (parent, name) = (OsStr::from_bytes(&bytes[..last]), OsStr::from_bytes(&bytes[last + 1..]));
        if name.is_empty() && last == 0 {
            return fstat(self.root).ok().map(|stat| Stamp::of(&stat));
        }
        if self.directory.as_ref().is_none_or(|(open, _)| open != parent) {
            let rest = OsStr::from_bytes(bytes.get(1..last).unwrap_or_default());
            let rest = if rest.is_empty() { OsStr::new(".") } else { rest };
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            self.directory = Some((parent.to_owned(), openat(self.root, rest, flags, Mode::empty()).ok()?));
        }
        let (_, directory) = self.directory.as_ref()?;
        fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|stat| Stamp::of(&stat))
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

/// From so many names on, their directory is written down instead: it changes more often.
const MANY_NAMES: usize = 4;

/// A directory as it was, and names in it: links, or missing.
type Names = (Stamp, BTreeMap<PathBuf, Option<Stamp>>);

/// Everything that was looked at, by link-free path.
#[derive(Debug, Default)]
pub struct Record {
    seen: BTreeMap<(Side, PathBuf), Stamp>,
    names: BTreeMap<(Side, PathBuf), Names>,
}

impl Record {
    pub(super) fn add(&mut self, side: Side, path: PathBuf, stamp: Stamp) {
        // The first look counts: what changes under our hands makes the record stale at once.
        self.seen.entry((side, path)).or_insert(stamp);
    }

    /// A name in a directory: a link as it was, or missing.
    pub(super) fn add_name(
        &mut self,
        (side, directory): (Side, PathBuf),
        stamp: Stamp,
        name: &Path,
        link: Option<Stamp>,
    ) {
        let (_, names) = self.names.entry((side, directory)).or_insert_with(|| (stamp, BTreeMap::new()));
        // What is below something missing is missing with it.
        names.entry(name.iter().next().map(PathBuf::from).unwrap_or_default()).or_insert(link);
    }

    /// Paths, and how they were; `None`: missing.
    pub fn entries(&self) -> BTreeMap<(Side, PathBuf), Option<Stamp>> {
        let mut all: BTreeMap<_, _> =
            self.seen.iter().map(|(key, stamp)| (key.clone(), Some(*stamp))).collect();
        for ((side, directory), (stamp, names)) in &self.names {
            if names.len() >= MANY_NAMES {
                all.insert((*side, directory.clone()), Some(*stamp));
            } else {
                all.extend(names.iter().map(|(name, stamp)| ((*side, directory.join(name)), *stamp)));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::View;
    use std::cell::RefCell;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::rc::Rc;

    /// A root, and what was recorded while these paths were looked at.
    fn recorded(paths: &[&str]) -> (tempfile::TempDir, Record) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("lib/sub")).unwrap();
        fs::write(dir.path().join("lib/a.so.1"), "one").unwrap();
        symlink("a.so.1", dir.path().join("lib/a.so")).unwrap();
        let mut view = View::open(dir.path()).unwrap();
        let record = Rc::new(RefCell::new(Record::default()));
        view.record(&record);
        for path in paths {
            let _ = view.find(Path::new(path));
        }
        drop(view);
        (dir, Rc::into_inner(record).unwrap().into_inner())
    }

    /// Which paths are another now.
    fn changed(dir: &tempfile::TempDir, record: &Record) -> Vec<String> {
        let root = View::open(dir.path()).unwrap().root().unwrap();
        let mut again = Again::below(&root);
        let differs = |((_, path), before): ((Side, PathBuf), Option<Stamp>)| {
            (again.stamp(&path) != before).then(|| path.display().to_string())
        };
        record.entries().into_iter().filter_map(differs).collect()
    }

    #[test]
    fn nothing_changes_by_itself() {
        let (dir, record) = recorded(&["/lib/a.so", "/lib/none", "/no/where", "/", "/lib/sub"]);
        let paths: Vec<String> = record.entries().keys().map(|(_, p)| p.display().to_string()).collect();
        assert_eq!(paths, ["/", "/lib/a.so", "/lib/a.so.1", "/lib/none", "/lib/sub", "/no"]);
        assert!(changed(&dir, &record).is_empty());
    }

    #[test]
    fn bytes_links_and_new_names_are_noticed() {
        let (dir, record) = recorded(&["/lib/a.so", "/lib/none", "/no/where"]);
        fs::write(dir.path().join("lib/a.so.1"), "two").unwrap();
        assert_eq!(changed(&dir, &record), ["/lib/a.so.1"]);
        fs::write(dir.path().join("lib/none"), "").unwrap();
        assert_eq!(changed(&dir, &record), ["/lib/a.so.1", "/lib/none"]);
        fs::create_dir(dir.path().join("no")).unwrap();
        fs::remove_file(dir.path().join("lib/a.so")).unwrap();
        symlink("none", dir.path().join("lib/a.so")).unwrap();
        assert_eq!(changed(&dir, &record), ["/lib/a.so", "/lib/a.so.1", "/lib/none", "/no"]);
    }

    #[test]
    fn many_missing_names_are_their_directory() {
        let (dir, record) = recorded(&["/lib/1", "/lib/2", "/lib/3", "/lib/4", "/lib/4/5"]);
        let paths: Vec<_> = record.entries().into_keys().map(|(_, p)| p).collect();
        assert_eq!(paths, [Path::new("/lib")]);
        fs::write(dir.path().join("lib/3"), "").unwrap();
        assert_eq!(changed(&dir, &record), ["/lib"]);
    }
}

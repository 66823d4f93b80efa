//! What must not change: trees of the host, and its mounts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::image;

/// What is known of one object of a tree: type and mode, owner, size, times, contents or link target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    contents: Vec<u8>,
}

/// A tree, every path with what is known of it.
pub type Tree = BTreeMap<PathBuf, Object>;

/// Records a tree, without following links or leaving its file system.
pub fn record(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let contents = if meta.is_symlink() {
            fs::read_link(&path).expect("a link").into_os_string().into_encoded_bytes()
        } else if meta.is_file() && meta.len() < 65536 {
            fs::read(&path).expect("a file")
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            for entry in fs::read_dir(&path).expect("a directory") {
                pending.push(entry.expect("an entry").path());
            }
        }
        let object = Object {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            contents,
        };
        tree.insert(path, object);
    }
    tree
}

/// Asserts that two records are of the same tree, unchanged.
#[track_caller]
pub fn assert_same(before: &Tree, after: &Tree, whose: &str) {
    let changed: Vec<&PathBuf> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "{whose}: changed on the host: {changed:?}");
}

/// A tree of the host that an image's links may name and nothing may touch. Everyone can write to it,
/// so that whoever tries succeeds.
pub struct Canary {
    dir: TempDir,
    before: Tree,
    mounts: String,
}

/// The text of every file of the canary: if a program in a sandbox can print it, it read the host's.
pub const SONG: &str = "canary-of-the-host";

impl Canary {
    /// Makes it, in a place that sandboxes do not show.
    pub fn new() -> Canary {
        let dir = image::directory("/var/tmp");
        let all = fs::Permissions::from_mode(0o777);
        for name in ["etc", "run", "dev/shm", "tmp", "proc", "sys", "home", "lib64", "bin", "run/munge"] {
            fs::create_dir_all(dir.path().join(name)).expect("a directory");
            fs::set_permissions(dir.path().join(name), all.clone()).expect("chmod");
        }
        for name in ["etc/passwd", "etc/group", "etc/hosts", "etc/resolv.conf", "file", "bin/sh", "tmp/x"] {
            fs::write(dir.path().join(name), SONG).expect("a file");
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o666)).expect("chmod");
        }
        let before = record(dir.path());
        Canary { dir, before, mounts: mounts() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Asserts that it is as it was, and that the host has the mounts that it had.
    #[track_caller]
    pub fn check(&self, whose: &str) {
        assert_same(&self.before, &record(self.dir.path()), whose);
        assert_eq!(self.mounts, mounts(), "{whose}: the host's mounts changed");
    }
}

impl Default for Canary {
    fn default() -> Canary {
        Canary::new()
    }
}

/// The mounts of this process.
pub fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo can be read")
}

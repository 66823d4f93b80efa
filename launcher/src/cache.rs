//! Decisions that were made before: kept per user and node, across jobs.
//!
//! An entry holds the decision, every file and directory that it rests on, and a digest of how these were:
//! device, inode, size, and the times of their last change. It is used only if all of them are the same still.
//! A file whose bytes are changed keeps none of its ctime, whatever is done to its mtime (utimensat(2) sets
//! the ctime itself); only who can set the clock, or write to the block device, can hide a change.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use abi_probe::inject::Injection;
use abi_probe::rootfs::{Again, Record, Side};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use pmi_shim::downlink::Wiring;
use serde::{Deserialize, Serialize};

use crate::image::{Image, Kind};
use crate::job::digest;
use crate::plan::MpiVerdict;

/// First line of an entry.
const MAGIC: &str = "hpc-launch decision 4";
/// A decision on 200 files is about 40 KiB.
const MAX_ENTRY: u64 = 4 << 20;
/// When there are more entries than these, the oldest half goes.
const MAX_ENTRIES: usize = 256;

/// What is kept of a decision.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// What the processor can do that it was made on (x86-64-v1 to v4). In here, and not in the entry's name: to ask a
    /// processor costs a trap for each question where it is virtual, and most first ranks find no entry.
    pub level: u32,
    /// Whose MPI.
    pub verdict: MpiVerdict,
    /// What must be done for that.
    pub injection: Option<Injection>,
    /// How a helper serves it.
    pub wiring: Option<Wiring>,
    /// A library of the program's that uses a GPU.
    pub cuda: Option<String>,
    /// What a person should know.
    pub remarks: Vec<String>,
}

/// A user's decisions on this node.
pub struct Cache {
    directory: OwnedFd,
}

/// Where things are, for looking at them again.
pub struct Roots<'a> {
    /// The image's own root.
    pub image: &'a OwnedFd,
    /// The host's.
    pub host: &'a OwnedFd,
    /// The host's /tmp, if something is mounted over it.
    pub tmp: Option<&'a OwnedFd>,
}

impl Cache {
    /// Opens the directory, or makes it. `None`: there can be none here, or it is not the user's alone.
    pub fn open(path: &Path, uid: u32) -> Option<Cache> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(AT_FDCWD, path, flags, Mode::empty());
        let directory = match open() {
            Err(Errno::ENOENT) => {
                let _ = mkdirat(AT_FDCWD, path, Mode::S_IRWXU);
                open()
            }
            other => other,
        }
        .ok()?;
        let stat = fstat(&directory).ok()?;
        (stat.st_uid == uid && stat.st_mode & 0o077 == 0).then_some(Cache { directory })
    }

    /// The decision of this name, if everything that it rests on is as it was.
    pub fn find(&self, name: &str, image: &Image, roots: &Roots) -> Option<Kept> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.directory, name, flags, Mode::empty()).ok()?);
        let size = file.metadata().ok()?.size().min(MAX_ENTRY);
        let mut text = String::with_capacity(size as usize + 1);
        file.take(MAX_ENTRY).read_to_string(&mut text).ok()?;
        let (magic, text) = text.split_once('\n')?;
        if magic != MAGIC {
            return None;
        }
        let (before, mut decision) = text.split_once('\n')?;
        let mut stamps = Vec::with_capacity(256);
        let (mut image_again, mut host_again) = (Again::below(roots.image), Again::below(roots.host));
        let mut tmp_again = roots.tmp.map(Again::below);
        // Up to the empty line.
        loop {
            let (line, rest) = decision.split_once('\n')?;
            decision = rest;
            if line.is_empty() {
                break;
            }
            let (side, path) = (line.get(..1)?, Path::new(line.get(1..)?));
            let in_tmp = tmp_again.as_mut().and_then(|tmp| Some((tmp, path.strip_prefix("/tmp").ok()?)));
            stamps.push(match (side, in_tmp) {
                ("H", Some((tmp, rest))) => tmp.stamp(&Path::new("/").join(rest)),
                ("H", None) => host_again.stamp(path),
                _ => image_again.stamp(path),
            });
        }
        if digest(&(of_image(image), stamps)) != before {
            return None;
        }
        serde_json::from_str(decision).ok()
    }

    /// Keeps a decision. That it cannot be kept is no error.
    pub fn keep(&self, name: &str, image: &Image, record: &Rc<RefCell<Record>>, kept: &Kept) {
        let _ = self.write(name, image, record, kept);
    }

    fn write(&self, name: &str, image: &Image, record: &Rc<RefCell<Record>>, kept: &Kept) -> Option<()> {
        let mut head = String::new();
        let mut stamps = Vec::new();
        for ((side, path), stamp) in record.borrow().entries() {
            let letter = match side {
                Side::Host => 'H',
                // A file system in a file changes with the file, and has another device number at each mount.
                Side::Image if image.kind == Kind::Squashfs => continue,
                Side::Image => 'I',
            };
            let path = path.to_str().filter(|p| !p.contains('\n'))?;
            head.push_str(&format!("{letter}{path}\n"));
            stamps.push(stamp);
        }
        let before = digest(&(of_image(image), stamps));
        let decision = serde_json::to_string(kept).ok()?;
        let text = format!("{MAGIC}\n{before}\n{head}\n{decision}");
        if text.len() as u64 > MAX_ENTRY {
            return None;
        }
        self.prune();
        let unfinished = format!("{name}.{}", std::process::id());
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut file = File::from(openat(&self.directory, unfinished.as_str(), flags, mode).ok()?);
        let written = file.write_all(text.as_bytes()).is_ok()
            && renameat(&self.directory, unfinished.as_str(), &self.directory, name).is_ok();
        if !written {
            let _ = unlinkat(&self.directory, unfinished.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        Some(())
    }

    /// Removes the oldest entries when there are many.
    fn prune(&self) {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(listing) = Dir::openat(&self.directory, ".", flags, Mode::empty()) else { return };
        let names = listing.into_iter().filter_map(|e| Some(e.ok()?.file_name().to_str().ok()?.to_owned()));
        let names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        if names.len() <= MAX_ENTRIES {
            return;
        }
        let age = |name: &String| {
            nix::sys::stat::fstatat(&self.directory, name.as_str(), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_or(0, |stat| stat.st_mtime)
        };
        let mut aged: Vec<(i64, String)> = names.into_iter().map(|name| (age(&name), name)).collect();
        aged.sort();
        for (_, name) in aged.iter().take(MAX_ENTRIES / 2) {
            let _ = unlinkat(&self.directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// The file of an image that is one: device, inode, time of last change.
fn of_image(image: &Image) -> Option<(u64, u64, i64, i64)> {
    (image.kind == Kind::Squashfs).then_some(image.id)
}

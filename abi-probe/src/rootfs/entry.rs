//! Objects of a view: what they are, and which.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use rustix::fs::RawDir;

use super::record::Stamp;
use crate::error::{Error, Result};

/// What kind of object a path names; links have been followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link (only when the last component was not to be followed).
    Symlink,
    /// A character or block device, a FIFO or a socket.
    Special,
}

impl Kind {
    pub(super) fn of(stat: &FileStat) -> Kind {
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFLNK => Kind::Symlink,
            _ => Kind::Special,
        }
    }

    /// For messages: "a directory", "a regular file", …
    pub fn article(self) -> &'static str {
        match self {
            Kind::Directory => "a directory",
            Kind::File => "a regular file",
            Kind::Symlink => "a symbolic link",
            Kind::Special => "a device, FIFO or socket",
        }
    }
}

/// An existing object of a view.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its path in the view, absolute, without links, `.` or `..`.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Permission bits (lower 12 bits of st_mode).
    pub mode: u32,
    /// Device and inode, the file's identity on this node.
    pub id: (u64, u64),
    /// Size in bytes.
    pub size: u64,
    /// Index of the layer it lies in; 0 is the image.
    pub layer: usize,
    /// As it was found; a directory that is yet to be made has none.
    pub(super) stamp: Option<Stamp>,
    pub(super) fd: Option<Rc<OwnedFd>>,
}

/// Where a descriptor's object can be named by path (proc(5), /proc/self/fd).
pub(super) fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The object behind a descriptor.
pub(super) fn entry(fd: Rc<OwnedFd>, path: PathBuf, layer: usize) -> Result<Entry> {
    let stat = fstat(&fd).map_err(|e| Error::io("look up", &path, e))?;
    Ok(Entry {
        kind: Kind::of(&stat),
        mode: stat.st_mode & 0o7777,
        id: (stat.st_dev, stat.st_ino),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        stamp: Some(Stamp::of(&stat)),
        path,
        layer,
        fd: Some(fd),
    })
}

/// What a link says.
pub(super) fn read_link(entry: &Entry) -> Result<PathBuf> {
    let fd = entry.fd.as_ref().expect("only a real file is a link");
    // An empty path reads the link that the descriptor itself names (readlinkat(2), since 2.6.39).
    let target = readlinkat(fd, "").map_err(|e| Error::io("read the link", &entry.path, e))?;
    Ok(PathBuf::from(OsString::from_vec(target.into_vec())))
}

impl Entry {
    /// The O_PATH descriptor, for callers that act on the very object that was judged; none for a
    /// directory that is yet to be made.
    pub fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_deref()
    }

    /// The descriptor itself, shared.
    pub fn into_fd(self) -> Option<Rc<OwnedFd>> {
        self.fd
    }

    /// Names in a directory, at most `limit` of them, unsorted; the flag says whether there are more.
    pub fn list(&self, limit: usize) -> Result<(Vec<OsString>, bool)> {
        let Some(fd) = &self.fd else { return Ok((Vec::new(), false)) };
        let failed = |e: Errno| Error::io("list", &self.path, e);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut names = Vec::new();
        let directory = openat(fd, ".", flags, Mode::empty()).map_err(failed)?;
        // Not opendir(3): libc's buffer comes from libc's heap, which a first rank needs for nothing else.
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let mut items = RawDir::new(directory, &mut buffer);
        while let Some(item) = items.next() {
            let item = item.map_err(|e| failed(Errno::from_raw(e.raw_os_error())))?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if names.len() == limit {
                return Ok((names, true));
            }
            names.push(OsStr::from_bytes(name).to_owned());
        }
        Ok((names, false))
    }

    /// Where a link points, as written; for entries of [`View::lookup_nofollow`].
    pub fn link_target(&self) -> Result<PathBuf> {
        read_link(self)
    }

    /// Whether any of the execute bits is set.
    pub fn is_executable(&self) -> bool {
        self.kind == Kind::File && self.mode & 0o111 != 0
    }
}

//! What lies at the image's path: decided by content, never by the file's name.

pub mod environment;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use serde::Serialize;

use crate::error::{Code, Error, Result};

/// An image that can be run.
#[derive(Clone, Debug, Serialize)]
pub struct Image {
    /// As given.
    pub given: PathBuf,
    /// Without links.
    pub path: PathBuf,
    /// Its kind.
    pub kind: Kind,
    /// Device, inode and time of last change, seconds and nanoseconds: the image's identity on this node.
    pub id: (u64, u64, i64, i64),
}

/// Kinds of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A root file system as a directory.
    Directory,
    /// A SquashFS 4.0 file.
    Squashfs,
}

/// Magic numbers of what people hand us that is no image yet: what it is, and what makes an image of it.
const OTHERS: &[(&[u8], usize, &str, &str)] = &[
    (b"SIF_MAGIC", 32, "a SIF file", "extract it: `apptainer build --sandbox DIR FILE`, and run DIR"),
    (
        b"\x1f\x8b",
        0,
        "a gzip file",
        "if it is a tarball of a root file system, unpack it and run the directory",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        0,
        "a zstd file",
        "if it is a tarball of a root file system, unpack it and run the directory",
    ),
    (
        b"\xfd7zXZ",
        0,
        "an xz file",
        "if it is a tarball of a root file system, unpack it and run the directory",
    ),
    (
        b"ustar",
        257,
        "a tar archive",
        "unpack it (for `docker save` archives: `docker export` instead) and run the directory",
    ),
    (b"\xe2\xe1\xf5\xe0", 1024, "an EROFS image", "mount it, and run the mount point"),
    (b"\x53\xef", 1080, "an ext2/3/4 image", "mount it, and run the mount point"),
    (b"\x7fELF", 0, "an ELF program", "the image comes first, then the program: hpc-launch IMAGE PROGRAM"),
    (b"#!", 0, "a script", "the image comes first, then the program: hpc-launch IMAGE PROGRAM"),
    (b"shsq", 0, "a SquashFS 3 or big-endian file", "make it anew with mksquashfs 4"),
];

const ACCEPTED: &str =
    "give a directory that holds a root file system, or a SquashFS file (mksquashfs DIR FILE)";

/// A handle on whatever is there, without opening it: a FIFO would wait. (Not by std's `custom_flags`, which
/// drop the bits of musl's O_ACCMODE, O_PATH among them.)
pub fn open_path(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

impl Image {
    /// Looks at the path.
    pub fn open(given: &Path) -> Result<Image> {
        let handle = open_path(given).map(File::from).map_err(|e| cannot_open(given, &e))?;
        let meta = handle.metadata().map_err(|e| cannot_open(given, &e))?;
        // The kernel's own path of it, without links, in one call.
        let path = std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()))
            .map_err(|e| cannot_open(given, &e))?;
        if path == Path::new("/") {
            return Err(Error::new(
                Code::ImageUnknown,
                format!("{} is the host's own root", given.display()),
                "an image is another root file system; without one, run the program by itself",
            ));
        }
        let kind = if meta.is_dir() {
            Kind::Directory
        } else if meta.is_file() {
            let file = File::open(&path).map_err(|e| cannot_open(given, &e))?;
            recognise(given, &file, meta.len())?;
            Kind::Squashfs
        } else {
            return Err(Error::new(
                Code::ImageUnknown,
                format!("{} is a device, FIFO or socket", given.display()),
                ACCEPTED,
            ));
        };
        let id = (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec());
        Ok(Image { given: given.to_owned(), path, kind, id })
    }
}

fn cannot_open(path: &Path, e: &std::io::Error) -> Error {
    let what = format!("cannot open the image {}: {e}", path.display());
    match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            let cwd = std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default();
            Error::new(
                Code::ImageMissing,
                what,
                format!("check the path; a relative one is taken from {cwd}"),
            )
        }
        _ => Error::new(
            Code::ImageUnreadable,
            what,
            "ask its owner for read permission on it and search permission on every directory above",
        ),
    }
}

fn recognise(given: &Path, file: &File, size: u64) -> Result<()> {
    let mut head = [0u8; 1100];
    let mut have = 0;
    while have < head.len() {
        match file.read_at(&mut head[have..], have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) => return Err(cannot_open(given, &e)),
        }
    }
    let head = &head[..have];
    if head.starts_with(b"hsqs") {
        return squashfs_superblock(given, head, size);
    }
    let shown = given.display();
    for (magic, at, what, cure) in OTHERS {
        if head.get(*at..).is_some_and(|tail| tail.starts_with(magic)) {
            return Err(Error::new(
                Code::ImageUnknown,
                format!("{shown} is {what}, no image that can be run"),
                *cure,
            ));
        }
    }
    let magic: String = head.iter().take(8).flat_map(|b| b.escape_ascii()).map(char::from).collect();
    let found =
        if magic.is_empty() { "it is empty".to_owned() } else { format!("it begins with \"{magic}\"") };
    Err(Error::new(Code::ImageUnknown, format!("{shown} is no image of a known kind: {found}"), ACCEPTED))
}

/// The superblock says how long the file is (squashfs_fs.h, struct squashfs_super_block): a copy that was
/// cut short is found here, not as an I/O error in the middle of a run.
fn squashfs_superblock(given: &Path, head: &[u8], size: u64) -> Result<()> {
    let damaged = |why: String| {
        Error::new(
            Code::ImageDamaged,
            format!("the SquashFS image {} is damaged: {why}", given.display()),
            "copy or build it again",
        )
    };
    let short = || damaged(format!("{size} bytes are less than a superblock"));
    let u16_at = |at: usize| head.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]])).ok_or_else(short);
    let u64_at = |at: usize| {
        head.get(at..at + 8)
            .map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .ok_or_else(short)
    };
    if size < 96 {
        return Err(short());
    }
    let (major, minor) = (u16_at(28)?, u16_at(30)?);
    if (major, minor) != (4, 0) {
        return Err(damaged(format!("version {major}.{minor}, only 4.0 exists today")));
    }
    let used = u64_at(40)?;
    if used > size {
        return Err(damaged(format!("its superblock says {used} bytes, the file has {size}")));
    }
    for (name, at) in [("inode table", 64), ("directory table", 72)] {
        let start = u64_at(at)?;
        if start >= used {
            return Err(damaged(format!("its {name} starts at {start}, behind its end at {used}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: &[u8]) -> Error {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Image::open(file.path()).unwrap_err()
    }

    #[test]
    fn what_is_no_image_is_named() {
        for (bytes, word) in [
            (&b"\x7fELF\x02"[..], "an ELF program"),
            (b"\x1f\x8b\x08", "a gzip file"),
            (b"hello world", "it begins with \"hello wo\""),
            (b"", "it is empty"),
        ] {
            let e = open(bytes);
            assert_eq!(e.code, Code::ImageUnknown);
            assert!(e.what.contains(word), "{}", e.what);
        }
        let e = Image::open(Path::new("/nonexistent/image")).unwrap_err();
        assert_eq!(e.code, Code::ImageMissing);
        assert_eq!(Image::open(Path::new("/dev/null")).unwrap_err().code, Code::ImageUnknown);
    }

    #[test]
    fn a_cut_squashfs_says_how_long_it_should_be() {
        let mut bytes = vec![0u8; 4096];
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[28] = 4;
        bytes[40..48].copy_from_slice(&9000u64.to_le_bytes());
        let e = open(&bytes);
        assert_eq!(e.code, Code::ImageDamaged);
        assert!(e.what.contains("says 9000 bytes, the file has 4096"), "{}", e.what);
        assert!(open(b"hsqs").what.contains("less than a superblock"));
    }
}

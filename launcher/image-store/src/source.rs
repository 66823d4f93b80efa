//! What is handed to us as an image: a directory, a file system as a file, an archive; told by its content.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::codec::Compression;
use crate::error::{Error, Kind, Result};
use crate::{erofs, sif};

/// Kinds of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// A root file system as a directory.
    Directory,
    /// An OCI image layout as a directory.
    OciDirectory,
    /// A SquashFS file.
    Squashfs,
    /// A SIF file.
    Sif,
    /// An EROFS file.
    Erofs,
    /// A tar archive, compressed or not: of a root file system, an OCI image layout or `docker save`.
    Tar,
}

impl Form {
    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Form::Directory => "a directory",
            Form::OciDirectory => "an OCI image layout",
            Form::Squashfs => "a SquashFS file",
            Form::Sif => "a SIF file",
            Form::Erofs => "an EROFS file",
            Form::Tar => "an archive",
        }
    }

    /// By the first 1100 bytes of a file.
    pub fn of_head(head: &[u8]) -> Option<Form> {
        if head.starts_with(b"hsqs") {
            return Some(Form::Squashfs);
        }
        if head.get(sif::MAGIC_AT..).is_some_and(|t| t.starts_with(sif::MAGIC)) {
            return Some(Form::Sif);
        }
        let is_tar = head.get(257..262) == Some(b"ustar") || is_old_tar(head);
        if !is_tar && head.get(erofs::MAGIC_AT..).is_some_and(|t| t.starts_with(erofs::MAGIC)) {
            return Some(Form::Erofs);
        }
        (is_tar || Compression::of(head) != Compression::None).then_some(Form::Tar)
    }
}

/// Before POSIX: no magic number, but a checksum.
fn is_old_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512).filter(|b| b[0] != 0) else { return false };
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    ::tar::Header::from_byte_slice(block).cksum().ok() == Some(sum)
}

/// What was given.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// Which image of several.
    pub reference: Option<String>,
    /// What it is.
    pub form: Form,
    /// Device, inode, length, changes of content and of anything: a file that has not changed has the same.
    pub stamp: Stamp,
}

/// A file's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stamp(pub u64, pub u64, pub u64, pub (i64, i64), pub (i64, i64));

impl Stamp {
    fn of(meta: &fs::Metadata) -> Stamp {
        let (changed, modified) = ((meta.ctime(), meta.ctime_nsec()), (meta.mtime(), meta.mtime_nsec()));
        Stamp(meta.dev(), meta.ino(), meta.len(), changed, modified)
    }
}

impl Source {
    /// Looks at `PATH`, or `PATH:NAME` where there is no such path.
    pub fn open(text: &Path) -> Result<Source> {
        let given = text.to_string_lossy();
        match (Source::at(text, None), given.rsplit_once(':')) {
            (Err(e), Some((path, name))) if e.kind == Kind::Missing && !path.is_empty() => {
                Source::at(Path::new(path), Some(name.to_owned()))
            }
            (result, _) => result,
        }
    }

    fn at(path: &Path, reference: Option<String>) -> Result<Source> {
        let meta = fs::metadata(path).map_err(|e| Error::reading(path, &e))?;
        let form = if meta.is_dir() {
            if path.join("oci-layout").is_file() && path.join("index.json").is_file() {
                Form::OciDirectory
            } else {
                Form::Directory
            }
        } else if meta.is_file() {
            let file = File::open(path).map_err(|e| Error::reading(path, &e))?;
            recognise(&file, path)?
        } else {
            return Err(Error::new(
                Kind::Unknown,
                format!("{} is a device, FIFO or socket", path.display()),
                KNOWN,
            ));
        };
        Ok(Source { path: path.to_owned(), reference, form, stamp: Stamp::of(&meta) })
    }
}

/// What can be given.
pub const KNOWN: &str = "give a directory with a root file system, a SquashFS, EROFS or SIF file, a tarball (also gzip, zstd, xz), \
                         an archive of `docker save`, or an OCI image layout";

/// Magic numbers of what people hand us that is no image: what it is, and what makes an image of it.
const OTHERS: &[(&[u8], usize, &str, &str)] = &[
    (b"\x53\xef", 1080, "an ext2/3/4 image", "mount it, and run the mount point"),
    (b"\x7fELF", 0, "an ELF program", "the image comes first, then the program: hpc-launch IMAGE PROGRAM"),
    (b"#!", 0, "a script", "the image comes first, then the program: hpc-launch IMAGE PROGRAM"),
    (b"shsq", 0, "a SquashFS 3 or big-endian file", "make it anew with mksquashfs 4"),
];

/// What a file is, by its first 1100 bytes.
pub fn recognise(file: &File, path: &Path) -> Result<Form> {
    let mut head = [0u8; 1100];
    let mut have = 0;
    while have < head.len() {
        match file.read_at(&mut head[have..], have as u64).map_err(|e| Error::reading(path, &e))? {
            0 => break,
            n => have += n,
        }
    }
    let head = &head[..have];
    if let Some(form) = Form::of_head(head) {
        return Ok(form);
    }
    let shown = path.display();
    for (magic, at, what, cure) in OTHERS {
        if head.get(*at..).is_some_and(|tail| tail.starts_with(magic)) {
            return Err(Error::new(
                Kind::Unknown,
                format!("{shown} is {what}, no image that can be run"),
                *cure,
            ));
        }
    }
    let magic: String = head.iter().take(8).flat_map(|b| b.escape_ascii()).map(char::from).collect();
    let found =
        if magic.is_empty() { "it is empty".to_owned() } else { format!("it begins with \"{magic}\"") };
    Err(Error::new(Kind::Unknown, format!("{shown} is no image of a known kind: {found}"), KNOWN))
}

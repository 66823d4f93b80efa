//! What is laid over the image (`--overlay`): what was asked for, what lies at the paths, and whether it fits together.
//!
//! Looks, and changes nothing. The kernel merges layers (overlayfs, Documentation/filesystems/overlayfs.rst); two
//! kernels, or two mounts, must never write to one upper directory, which is why it must be said whose one is.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use image_store::blob::Blob;
use image_store::squash;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use serde::Serialize;

use crate::config::{Config, Sourced};
use crate::error::{Code, Error, Result};
use crate::image::{Image, Kind, open_path};
use crate::job::JobStep;
use crate::sandbox::calls::{unescape, user_overlays};
use crate::sandbox::ext;
use crate::sandbox::squashfs;

/// More layers than anybody has; their descriptors must fit into the one page of mount(2)'s options.
const MAX_LAYERS: usize = 64;
/// What takes the writes, and what overlayfs needs beside it: as Apptainer names them.
pub const UPPER: &str = "upper";
/// The kernel's own, beside [`UPPER`].
pub const WORK: &str = "work";

/// Whose a layer that takes writes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// All ranks of a node have one.
    Node,
    /// Each rank has its own.
    Rank,
    /// There is one process.
    Alone,
}

/// One `--overlay`.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    path: &'a str,
    /// None: read-only.
    whose: Option<Whose>,
}

/// How what is in a file is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// It is a directory.
    Directory,
    /// SquashFS, by the kernel.
    KernelSquashfs,
    /// ext2, ext3 or ext4, by the kernel.
    KernelExt,
    /// SquashFS, by this program.
    Squashfuse(PathBuf),
    /// ext2, ext3 or ext4, by this program.
    Fuse2fs(PathBuf),
}

/// A layer that is only read.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// Without links. Of a directory that has one, its `upper`.
    pub path: PathBuf,
    /// How it is mounted.
    pub by: By,
}

/// What takes the writes.
#[derive(Clone, Debug, Serialize)]
pub struct Upper {
    /// Whose.
    pub whose: Whose,
    /// The directory that holds `upper` and `work`; both are made if need be. Or a file with an ext file system.
    pub path: PathBuf,
    /// The directory that was named, which is there.
    #[serde(skip)]
    pub given: PathBuf,
    /// How that is mounted.
    pub by: By,
    /// The kind of file system that it is on.
    #[serde(skip)]
    pub file_system: String,
}

/// All that is laid over the image.
#[derive(Clone, Debug, Default)]
pub struct Overlays {
    /// From the lowest to the topmost.
    pub layers: Vec<Layer>,
    /// Above them.
    pub upper: Option<Upper>,
}

fn parse(text: &str) -> std::result::Result<Asked<'_>, &'static str> {
    let (path, read_only) = match text.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    let (path, whose) = match (path.strip_prefix("node:"), path.strip_prefix("rank:")) {
        (Some(path), _) => (path, Some(Whose::Node)),
        (_, Some(path)) => (path, Some(Whose::Rank)),
        _ => (path, None),
    };
    if path.is_empty() {
        return Err("there is no path in it");
    }
    match (whose, read_only) {
        (Some(_), true) => Err("what is only read belongs to all: PATH:ro"),
        (whose, false) => Ok(Asked { path, whose: Some(whose.unwrap_or(Whose::Alone)) }),
        (None, true) => Ok(Asked { path, whose: None }),
    }
}

/// What of a rank distinguishes its sandbox from those of others, where each has an overlay of its own.
pub fn rank_that_distinguishes(config: &Config, job: Option<&JobStep>) -> Option<u32> {
    let is_ranks = |o: &Sourced<String>| parse(&o.value).is_ok_and(|asked| asked.whose == Some(Whose::Rank));
    job.filter(|_| config.overlays.iter().any(is_ranks)).and_then(|job| job.rank.rank)
}

impl Overlays {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.upper.is_none()
    }

    /// Finds all that was asked for. To be called in the sandbox's user namespace, and in the host's mount namespace.
    pub fn find(
        config: &Config,
        job: Option<&JobStep>,
        image: &Image,
        in_user_namespace: bool,
    ) -> Result<Overlays> {
        let mut found = Overlays::default();
        if config.overlays.is_empty() {
            return Ok(found);
        }
        if in_user_namespace && !user_overlays() {
            return Err(Error::new(
                Code::OverlayUnusable,
                format!(
                    "--overlay: this kernel, {}, lets ordinary users mount no overlays: Linux 5.11 and later do",
                    nix::sys::utsname::uname().map(|u| u.release().display().to_string()).unwrap_or_default()
                ),
                "show directories with --bind instead, or put what is in the layers into an image",
            ));
        }
        if config.overlays.len() > MAX_LAYERS {
            return Err(Error::new(
                Code::Usage,
                format!("--overlay: {} layers, of which {MAX_LAYERS} are supported", config.overlays.len()),
                "merge some of them into one image",
            ));
        }
        let mut writer: Option<&Sourced<String>> = None;
        for overlay in &config.overlays {
            let asked = parse(&overlay.value).map_err(|why| usage(overlay, why, GRAMMAR))?;
            let Some(whose) = asked.whose else {
                found.layers.push(layer(overlay, asked.path, config, in_user_namespace)?);
                continue;
            };
            if let Some(first) = writer.replace(overlay) {
                let why = format!("{:?} ({}) takes the writes already", first.value, first.origin);
                return Err(usage(overlay, &why, "one layer takes writes: give the others as PATH:ro"));
            }
            if config.writable_tmpfs.value {
                let why = format!("the writes go to memory already ({})", config.writable_tmpfs.origin);
                return Err(usage(overlay, &why, "choose one of them, or lay it beneath: PATH:ro"));
            }
            found.upper = Some(upper(overlay, asked.path, whose, job, in_user_namespace)?);
        }
        found.lie_apart(image)?;
        Ok(found)
    }

    /// The kernel leaves undefined what happens where one layer lies in another.
    fn lie_apart(&self, image: &Image) -> Result<()> {
        let image = (image.path.clone(), image.kind == Kind::Directory, "the image");
        let layers = self.layers.iter().map(|l| (l.path.clone(), l.by == By::Directory, "the layer"));
        let upper = self.upper.iter().flat_map(|u| match u.by {
            By::Directory => [UPPER, WORK]
                .map(|name| (u.path.join(name), true, "the directory that takes the writes"))
                .to_vec(),
            _ => vec![(u.path.clone(), false, "the file that takes the writes")],
        });
        let all: Vec<_> = std::iter::once(image).chain(layers).chain(upper).collect();
        for (i, (path, is_directory, what)) in all.iter().enumerate() {
            for (other, other_is_directory, other_what) in &all[..i] {
                // A file within a directory is no part of that: only its bytes are looked at.
                let within = *is_directory
                    && *other_is_directory
                    && (path.starts_with(other) || other.starts_with(path));
                let why = match (path == other, within) {
                    (true, _) => "are the same",
                    (false, true) => "lie one in the other",
                    (false, false) => continue,
                };
                return Err(Error::new(
                    Code::OverlayUnusable,
                    format!(
                        "--overlay: {other_what} {} and {what} {} {why}",
                        other.display(),
                        path.display()
                    ),
                    "layers must lie apart, or the kernel does not say what programs see: choose another directory",
                ));
            }
        }
        Ok(())
    }
}

const GRAMMAR: &str =
    "write PATH:ro for a layer that is only read; node:DIR or rank:DIR for one that takes writes";

fn usage(overlay: &Sourced<String>, why: &str, cure: &str) -> Error {
    Error::new(Code::Usage, format!("overlay {:?} ({}): {why}", overlay.value, overlay.origin), cure)
}

fn unusable(overlay: &Sourced<String>, why: &str, cure: &str) -> Error {
    Error::new(
        Code::OverlayUnusable,
        format!("overlay {:?} ({}): {why}", overlay.value, overlay.origin),
        cure,
    )
}

/// The path without links, and what is there.
fn look(overlay: &Sourced<String>, path: &str) -> Result<(PathBuf, std::fs::Metadata)> {
    let looked = open_path(Path::new(path)).map(File::from).and_then(|handle| {
        let meta = handle.metadata()?;
        Ok((std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()))?, meta))
    });
    looked.map_err(|e| {
        let cure = "correct the path, or make the directory; every node of the job needs it";
        unusable(overlay, &format!("cannot open {path}: {e}"), cure)
    })
}

fn layer(overlay: &Sourced<String>, path: &str, config: &Config, in_user_namespace: bool) -> Result<Layer> {
    let (path, meta) = look(overlay, path)?;
    if meta.is_dir() {
        let upper = path.join(UPPER);
        let has_upper = std::fs::symlink_metadata(&upper).is_ok_and(|m| m.is_dir());
        let path = if has_upper { upper } else { path };
        may(
            overlay,
            &path,
            AccessFlags::R_OK | AccessFlags::X_OK,
            "ask its owner for permission to read it",
        )?;
        return Ok(Layer { path, by: By::Directory });
    }
    let by = match in_file(overlay, &path, &meta)? {
        Content::Squashfs if !in_user_namespace && squashfs::kernel_can() => By::KernelSquashfs,
        Content::Squashfs => By::Squashfuse(squashfs::find_squashfuse(config.squashfuse.value.as_deref())?),
        Content::Ext if !in_user_namespace && ext::kernel_can() => By::KernelExt,
        Content::Ext => By::Fuse2fs(ext::find_fuse2fs(config.fuse2fs.value.as_deref())?),
    };
    Ok(Layer { path, by })
}

fn upper(
    overlay: &Sourced<String>,
    path: &str,
    whose: Whose,
    job: Option<&JobStep>,
    in_user_namespace: bool,
) -> Result<Upper> {
    let rank = job.map(|job| &job.rank);
    if whose == Whose::Alone && rank.is_some_and(|rank| rank.size != Some(1)) {
        let cure = format!(
            "say whose it is: node:{path} (all ranks of a node write to one), rank:{path} (each has its own), or {path}:ro"
        );
        return Err(usage(
            overlay,
            "the job has more ranks than this, which must not write to it at once",
            &cure,
        ));
    }
    let (given, meta) = look(overlay, path)?;
    if !meta.is_dir() {
        return upper_file(overlay, given, &meta, whose, in_user_namespace);
    }
    let path = match whose {
        Whose::Alone => given.clone(),
        Whose::Node => given.join(node_name(overlay)?),
        Whose::Rank => given.join(format!("rank-{}", rank_number(overlay, job)?)),
    };
    may_make(overlay, &path, in_user_namespace)?;
    let file_system = file_system(&given);
    Ok(Upper { whose, path, given, by: By::Directory, file_system })
}

/// The host's name: a directory is called so.
fn node_name(overlay: &Sourced<String>) -> Result<String> {
    let name = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        let why = format!("this node is called {name:?}, as no directory can be");
        return Err(unusable(overlay, &why, "use rank:DIR instead, or have the node's name set (hostname)"));
    }
    Ok(name)
}

fn rank_number(overlay: &Sourced<String>, job: Option<&JobStep>) -> Result<u32> {
    match job.map(|job| job.rank.rank) {
        None => Ok(0),
        Some(Some(rank)) => Ok(rank),
        Some(None) => {
            Err(unusable(overlay, "the launcher does not say which rank this is", "use node:DIR instead"))
        }
    }
}

fn may(overlay: &Sourced<String>, path: &Path, how: AccessFlags, cure: &str) -> Result<()> {
    faccessat(AT_FDCWD, path, how, AtFlags::empty()).map_err(|e| {
        let what = if how.contains(AccessFlags::W_OK) { "write to" } else { "read" };
        let cure =
            if e == Errno::EROFS { "choose a directory that can be written to, or PATH:ro" } else { cure };
        unusable(overlay, &format!("this user cannot {what} {}: {e}", path.display()), cure)
    })
}

/// Whether `upper` and `work` can be made, or used, in a directory that may have to be made too.
fn may_make(overlay: &Sourced<String>, path: &Path, in_user_namespace: bool) -> Result<()> {
    let cure = "choose a directory of your own, or PATH:ro";
    let writable = |path: &Path| may(overlay, path, AccessFlags::W_OK | AccessFlags::X_OK, cure);
    let mut missing = false;
    for part in [path.to_owned(), path.join(UPPER), path.join(WORK)] {
        match std::fs::symlink_metadata(&part) {
            Ok(meta) if meta.is_dir() => {
                if part != path {
                    writable(&part)?;
                }
            }
            Ok(_) => {
                let why = format!("{} is no directory", part.display());
                return Err(unusable(overlay, &why, "remove it, or choose another directory"));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => missing = true,
            Err(e) => return Err(unusable(overlay, &format!("{}: {e}", part.display()), cure)),
        }
    }
    if missing {
        let there = path.ancestors().find(|p| p.exists()).unwrap_or(path);
        writable(there)?;
    }
    // The kernel makes a directory in it for itself, and mounts read-only if it cannot remove the last one.
    let (uid, inner) = (nix::unistd::geteuid().as_raw(), path.join(WORK).join("work"));
    match std::fs::symlink_metadata(&inner) {
        Ok(meta) if in_user_namespace && meta.uid() != uid => {
            let why = format!("{} was left there by another user", inner.display());
            let cure = format!("have that user, or root, remove {}", path.join(WORK).display());
            Err(unusable(overlay, &why, &cure))
        }
        _ => Ok(()),
    }
}

fn upper_file(
    overlay: &Sourced<String>,
    path: PathBuf,
    meta: &std::fs::Metadata,
    whose: Whose,
    in_user_namespace: bool,
) -> Result<Upper> {
    let shown = path.display().to_string();
    match in_file(overlay, &path, meta)? {
        Content::Squashfs => {
            let why = format!("{shown} is SquashFS, which is read-only");
            Err(unusable(overlay, &why, &format!("{shown}:ro")))
        }
        Content::Ext if whose != Whose::Alone => {
            let why = format!("{shown} is a file, which only one process may write to");
            Err(unusable(overlay, &why, &format!("give a directory, or {shown}:ro")))
        }
        Content::Ext if in_user_namespace => {
            let why = format!(
                "{shown} is a file system of which only root's can take an overlay's writes: for users fuse2fs mounts it, \
                 which lacks what the kernel needs for that (RENAME_WHITEOUT)"
            );
            Err(unusable(overlay, &why, &format!("give a directory, or {shown}:ro")))
        }
        Content::Ext if !ext::kernel_can() => {
            let why = format!("this kernel has no ext4 driver, without which {shown} cannot take writes");
            Err(unusable(overlay, &why, &format!("modprobe ext4, give a directory, or {shown}:ro")))
        }
        Content::Ext => {
            may(overlay, &path, AccessFlags::R_OK | AccessFlags::W_OK, "ask its owner for permission")?;
            Ok(Upper { whose, given: path.clone(), path, by: By::KernelExt, file_system: "ext4".to_owned() })
        }
    }
}

/// What a file may hold.
enum Content {
    Squashfs,
    Ext,
}

fn in_file(overlay: &Sourced<String>, path: &Path, meta: &std::fs::Metadata) -> Result<Content> {
    let cure = "a layer is a directory, or a file with SquashFS, ext2, ext3 or ext4 in it";
    if !meta.is_file() {
        return Err(unusable(overlay, &format!("{} is a device, FIFO or socket", path.display()), cure));
    }
    let failed = |e: std::io::Error| {
        let why = format!("cannot read {}: {e}", path.display());
        unusable(overlay, &why, "ask its owner for permission to read it")
    };
    let file = File::open(path).map_err(failed)?;
    let mut head = Vec::with_capacity(ext::HEAD);
    (&file).take(ext::HEAD as u64).read_to_end(&mut head).map_err(failed)?;
    if head.starts_with(b"hsqs") {
        squash::check(&Blob::whole(file, path.to_owned())?)?;
        return Ok(Content::Squashfs);
    }
    match ext::check(&head, meta.len()) {
        ext::Checked::Good => Ok(Content::Ext),
        ext::Checked::Other => {
            let why = format!("{} is neither SquashFS nor ext2, ext3 or ext4", path.display());
            Err(unusable(overlay, &why, cure))
        }
        ext::Checked::Damaged(why) => {
            let why = format!("the ext file system in {} is damaged: {why}", path.display());
            Err(unusable(overlay, &why, "copy it again, or repair it: e2fsck -f FILE"))
        }
        ext::Checked::Unclean => {
            let why = format!(
                "the ext file system in {} was not closed: somebody writes to it now, or its node failed",
                path.display()
            );
            Err(unusable(overlay, &why, "if nobody writes to it: e2fsck -p FILE"))
        }
    }
}

/// The kind of file system that a path without links is on, as the kernel names it.
fn file_system(path: &Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        Some((unescape(left.split(' ').nth(4)?), right.split(' ').next()?.to_owned()))
    };
    let all = table.lines().filter_map(mount).filter(|(point, _)| path.starts_with(point));
    all.max_by_key(|(point, _)| point.as_os_str().len()).map_or_else(String::new, |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_said_in_front_and_behind() {
        for (text, path, whose) in [
            ("/a:ro", "/a", None),
            ("node:/a", "/a", Some(Whose::Node)),
            ("rank:a/b", "a/b", Some(Whose::Rank)),
            ("/a", "/a", Some(Whose::Alone)),
            ("./node:a", "./node:a", Some(Whose::Alone)),
            ("/a:b", "/a:b", Some(Whose::Alone)),
        ] {
            assert_eq!(parse(text), Ok(Asked { path, whose }), "{text}");
        }
        for text in ["", ":ro", "node:", "rank::ro", "node:/a:ro"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn file_systems_are_named() {
        assert_eq!(file_system(Path::new("/proc/self")), "proc");
    }
}

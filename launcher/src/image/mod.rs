//! The image that is meant: a path, or a name in a store; decided by content, never by the file's name.

pub mod command;
pub mod environment;
mod gpgv;
mod progress;
pub mod signature;

use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use image_store::blob::Blob;
use image_store::import::{self, Imported, Progress};
use image_store::layout::{Platform, wrong_architecture};
use image_store::registry::{Reference, SCHEME};
use image_store::sif::Sif;
use image_store::source::{Form, Source, recognise};
use image_store::squash::{self, Compressor};
use image_store::store::{ImageRecord, RECORD, ROOT_FILE, Store, Stored};
use image_store::{Kind as Fault, Name, nearby};
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use serde::Serialize;

use crate::cli::CacheMode;
use crate::config::Config;
use crate::environ::Environ;
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
    /// Where in the file its root file system begins (SIF).
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: u64,
    /// How long that is.
    #[serde(skip)]
    pub length: u64,
    /// The file that it is a copy of, made for this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<PathBuf>,
    /// What its store, or its header, says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<ImageRecord>,
    /// Fingerprints of the keys whose signatures of it were verified, now or when it was imported.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signed_by: Vec<String>,
    /// The file whose signatures were verified: that, and no other that is at its path by now, is mounted.
    #[serde(skip)]
    pub held: Option<Arc<File>>,
    /// Device, inode and time of last change, seconds and nanoseconds: the image's identity on this node.
    pub id: (u64, u64, i64, i64),
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Kinds of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A root file system as a directory.
    Directory,
    /// A SquashFS 4.0 file, or one in a SIF file.
    Squashfs,
}

/// A handle on whatever is there, without opening it: a FIFO would wait. (Not by std's `custom_flags`, which
/// drop the bits of musl's O_ACCMODE, O_PATH among them.)
pub fn open_path(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

impl Image {
    /// The image that is meant: at a path, or of that name in a store. Of an archive an image is made, once, in the user's
    /// store. `waited_for`: what to do now and then while that goes on.
    pub fn find(
        given: &Path,
        config: &Config,
        environ: &Environ,
        waited_for: &(dyn Fn() + Sync),
    ) -> Result<Image> {
        let mut image = Image::meant(given, config, environ, waited_for)?;
        if config.require_signature.value && image.signed_by.is_empty() {
            image = image.verified(config, environ, waited_for)?;
        }
        if config.image_cache.value == CacheMode::Node {
            image.nearby(config, environ, waited_for)
        } else {
            Ok(image)
        }
    }

    /// A copy of it on the node, made once.
    fn nearby(self, config: &Config, environ: &Environ, waited_for: &(dyn Fn() + Sync)) -> Result<Image> {
        if self.kind == Kind::Directory {
            eprintln!(
                "hpc-launch: --cache node: {} is a directory, and is used where it is",
                self.given.display()
            );
            return Ok(self);
        }
        let root = config.node_cache_directory(environ, nix::unistd::geteuid().as_raw());
        let store = own_directory(&root)?;
        let opened = match &self.held {
            Some(file) => file.try_clone(),
            None => File::open(&self.path),
        };
        let file = opened.map_err(|e| cannot_open(&self.path, &e))?;
        // Its copy is found by that.
        if identity(&file.metadata().map_err(|e| cannot_open(&self.path, &e))?) != self.id {
            return Err(Error::new(
                Code::ImageIo,
                format!("{} was replaced while it was being opened", self.given.display()),
                "run it again once nobody writes to it",
            ));
        }
        let whole = Blob::whole(file, self.path.clone())?;
        let part = whole.part(self.offset, self.length);
        let key = crate::job::digest(&(&self.path, self.id, self.offset));
        let what = format!("copying {} to {}", self.path.display(), root.display());
        let (progress, patience) = (Progress::default(), Duration::from_secs(config.lock_timeout.value));
        let (path, _) = progress::shown(
            &what,
            &progress,
            waited_for,
            |(_, was_there)| !was_there,
            |waiting| nearby::copy(&part, &key, &store, patience, &progress, waiting),
        )?;
        self.is_still_what_was_signed()?;
        let copy = look(&path)?.ok_or_else(|| {
            Error::new(Code::ImageDamaged, format!("the copy {} is no image", path.display()), "remove it")
        })?;
        let Image { given, record, signed_by, path, .. } = self;
        Ok(Image { given, record, signed_by, copy_of: Some(path), ..copy })
    }

    fn meant(
        given: &Path,
        config: &Config,
        environ: &Environ,
        waited_for: &(dyn Fn() + Sync),
    ) -> Result<Image> {
        if let Some(address) = given.to_str().filter(|text| text.starts_with(SCHEME)) {
            return Image::pulled(given, &address.parse()?, config, environ, waited_for);
        }
        match look(given) {
            Ok(Some(image)) => Ok(image),
            Ok(None) => Image::made(given, config, waited_for),
            Err(e) if e.code == Code::ImageMissing => {
                let text = given.to_string_lossy();
                // `archive.tar:NAME` names an image of several.
                if let Some((path, _)) = text.rsplit_once(':')
                    && matches!(look(Path::new(path)), Ok(None))
                {
                    return Image::made(given, config, waited_for);
                }
                match text.parse::<Name>() {
                    Ok(name) => Image::named(given, &name, config, e),
                    Err(_) => Err(e),
                }
            }
            Err(e) => Err(e),
        }
    }

    /// The image at a path, which can be run as it is.
    #[cfg(test)]
    pub fn open(given: &Path) -> Result<Image> {
        match look(given)? {
            Some(image) => Ok(image),
            None => Err(Error::new(Code::ImageUnknown, "an archive", "")),
        }
    }

    /// Of that name, in the first store that has it.
    fn named(given: &Path, name: &Name, config: &Config, no_path: Error) -> Result<Image> {
        let all = stores(config)?;
        for store in &all {
            if let Some(stored) = store.find(name)? {
                return Image::of_store(given, stored, config);
            }
        }
        let stores = match &tried(&all)[..] {
            "" => "there is no store of images yet".to_owned(),
            tried => format!("no store has {name}: {tried}"),
        };
        let cure = nearest(name, &all).unwrap_or(no_path.cure);
        Err(Error::new(Code::ImageMissing, format!("{}; {stores}", no_path.what), cure))
    }

    /// What a store has of a registry's image; pulled, if no store has it.
    fn pulled(
        given: &Path,
        reference: &Reference,
        config: &Config,
        environ: &Environ,
        waited_for: &(dyn Fn() + Sync),
    ) -> Result<Image> {
        let options = options(config, Compressor::Zstd);
        if let Some(stored) = stores(config)?.iter().find_map(|s| import::pulled(reference, s, &options)) {
            return Image::of_store(given, stored, config);
        }
        signature::refuse(given, "an image of a registry", config)?;
        let store = own_store(config)?;
        let what = format!("pulling {reference} into {}", store.root.display());
        let (progress, keep) = (Progress::default(), |_: &Stored| Ok(()));
        let pulled = progress::shown(
            &what,
            &progress,
            waited_for,
            |i: &Imported| !i.was_there,
            |waiting| {
                import::pull(
                    reference,
                    &config.registries(environ),
                    &store,
                    &options,
                    &progress,
                    waiting,
                    &keep,
                )
            },
        )?;
        Image::of_store(given, pulled.stored, config)
    }

    fn of_store(given: &Path, stored: Stored, config: &Config) -> Result<Image> {
        let path = stored.file();
        let signed_by = match config.require_signature.value {
            true => signature::of_stored(given, &stored, config)?,
            false => Vec::new(),
        };
        match look(&path)? {
            Some(image) => {
                check_platform(given, &stored.record.platform)?;
                Ok(Image { given: given.to_owned(), record: Some(stored.record), signed_by, ..image })
            }
            None => {
                let what = format!("{} of the store is no SquashFS file", path.display());
                Err(Error::new(Code::ImageDamaged, what, "hpc-launch image verify"))
            }
        }
    }

    /// Makes an image of an archive in the user's store, and says so; or finds the one that was made before.
    fn made(given: &Path, config: &Config, waited_for: &(dyn Fn() + Sync)) -> Result<Image> {
        let source = Source::open(given)?;
        signature::refuse(given, source.form.name(), config)?;
        let store = own_store(config)?;
        let what = format!(
            "{} is {}: making an image of it in {}",
            given.display(),
            source.form.name(),
            store.root.display()
        );
        let options = options(config, Compressor::Zstd);
        let (progress, keep) = (Progress::default(), |_: &Stored| Ok(()));
        let imported = progress::shown(
            &what,
            &progress,
            waited_for,
            |i: &Imported| !i.was_there,
            |waiting| import::import(&source, &store, &options, &progress, waiting, &keep),
        )?;
        Image::of_store(given, imported.stored, config)
    }
}

/// Which stores have been looked through.
fn tried(all: &[Store]) -> String {
    let tried: Vec<String> = all.iter().map(|s| s.root.display().to_string()).collect();
    tried.join(", ")
}

/// What to do where no store has a name, if there is one like it.
fn nearest(name: &Name, all: &[Store]) -> Option<String> {
    let near: Vec<String> = all.iter().flat_map(|s| s.near(name)).map(|n| n.to_string()).collect();
    (!near.is_empty())
        .then(|| format!("did you mean {}? (`hpc-launch image list` lists all)", near.join(" or ")))
}

/// The stores that are there.
fn stores(config: &Config) -> Result<Vec<Store>> {
    let mut all = Vec::new();
    for root in &config.store {
        match Store::open(&root.value) {
            Ok(store) => all.push(store),
            Err(e) if e.kind == Fault::Missing => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(all)
}

/// How images are made.
fn options(config: &Config, compressor: Compressor) -> import::Options {
    import::Options {
        compressor,
        max_size: config.max_size.value,
        platform: Platform::host(),
        patience: Duration::from_secs(config.lock_timeout.value),
        by: format!("hpc-launch {}", env!("CARGO_PKG_VERSION")),
    }
}

/// A directory of this user's own, in which others can put nothing: it may be below /tmp.
fn own_directory(root: &Path) -> Result<Store> {
    let failed = |e: std::io::Error| {
        let what = format!("the node's storage {} cannot be used: {e}", root.display());
        Error::new(
            Code::StoreUnusable,
            what,
            "set node_cache in the configuration to a directory of the node",
        )
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
    for directory in [
        Some(root),
        root.parent()
            .filter(|p| p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"hpc-launch-"))),
    ] {
        let Some(directory) = directory else { continue };
        let meta = std::fs::symlink_metadata(directory).map_err(failed)?;
        let uid = nix::unistd::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
            let why = format!("{} is not this user's alone", directory.display());
            return Err(failed(std::io::Error::other(why)));
        }
    }
    Store::create(root).map_err(Error::from)
}

/// The store that this user writes to.
fn own_store(config: &Config) -> Result<Store> {
    let Some(root) = config.store.last() else {
        return Err(Error::new(
            Code::StoreUnusable,
            "there is no store to write to: HOME is not set",
            "name one: --store DIR",
        ));
    };
    Store::create(&root.value).map_err(|e| {
        let mut e = Error::from(e);
        e.what = format!("the store of images {} ({}): {}", root.value.display(), root.origin, e.what);
        e
    })
}

fn check_platform(given: &Path, platform: &Platform) -> Result<()> {
    let host = Platform::host();
    if platform.architecture.is_empty() || platform.runs_on(&host) {
        return Ok(());
    }
    Err(wrong_architecture(&given.display().to_string(), std::slice::from_ref(platform), &host).into())
}

/// Looks at the path: an image that can be run as it is, or nothing, if one must be made of what is there.
fn look(given: &Path) -> Result<Option<Image>> {
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
    let id = identity(&meta);
    let mut image = Image {
        given: given.to_owned(),
        path,
        kind: Kind::Directory,
        offset: 0,
        length: 0,
        copy_of: None,
        record: None,
        signed_by: Vec::new(),
        held: None,
        id,
    };
    if meta.is_dir() {
        if image.path.join("oci-layout").exists() && image.path.join("index.json").exists() {
            return Ok(None);
        }
        return Ok(Some(image));
    }
    if !meta.is_file() {
        return Err(Error::new(
            Code::ImageUnknown,
            format!("{} is a device, FIFO or socket", given.display()),
            image_store::source::KNOWN,
        ));
    }
    let file = File::open(&image.path).map_err(|e| cannot_open(given, &e))?;
    let form = recognise(&file, given)?;
    let whole = Blob::whole(file, given.to_owned())?;
    image.kind = Kind::Squashfs;
    match form {
        Form::Sif => {
            let sif = Sif::read(&whole.file, given)?;
            check_platform(given, &sif.platform)?;
            squash::check(&whole.part(sif.offset, sif.length))?;
            (image.offset, image.length) = (sif.offset, sif.length);
        }
        Form::Squashfs => {
            squash::check(&whole)?;
            image.length = whole.length;
            image.record = beside(&image.path);
        }
        Form::Tar | Form::Erofs | Form::Directory | Form::OciDirectory => return Ok(None),
    }
    Ok(Some(image))
}

/// Device, inode and time of last change.
fn identity(meta: &Metadata) -> (u64, u64, i64, i64) {
    (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec())
}

/// What a store says of a file of its own that is named by its path.
fn beside(path: &Path) -> Option<ImageRecord> {
    if path.file_name()? != ROOT_FILE {
        return None;
    }
    let text = std::fs::read(path.with_file_name(RECORD)).ok()?;
    serde_json::from_slice(&text).ok()
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

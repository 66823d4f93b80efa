//! A store of images: a directory that may lie on a shared file system, and be read by all while some write.
//!
//! ```text
//! store.json                          the layout's version
//! images/<id>/image.sqfs              the root file system
//! images/<id>/image.json              what it is: <id> is the SHA-256 of this file, which has that of image.sqfs
//! images/<id>/origin.json             where it came from, and whose signature of that was verified
//! names/<name>:<tag>                  the id (slashes of names as %)
//! sources/<key>                       the id of what was made of an archive or of a manifest
//! work/<host>.<pid>.<n>/              what somebody is writing; beside it a lock that ends with its owner
//! locks/<key>                         who makes an image
//! blobs/<sha256>, <sha256>.part       what is being fetched from a registry; kept if that is cut
//! ```
//!
//! Nothing is ever changed in place: files are written below `work`, flushed, and renamed. So whoever is killed, whenever,
//! leaves a store that is whole, and locks only save work: two who make the same image make the same bytes.

mod check;
mod lock;
mod record;
mod work;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::check::{Collected, Finding, digest_of};
pub use self::lock::{Guard, Held, Turn};
pub use self::record::{ImageRecord, Named, Origin, RECORD, ROOT_FILE};
pub use self::work::Work;
use crate::error::{Error, Kind, Result};
use crate::name::{Digest, Name};
use crate::sif::signature::Verified;

const VERSION: u32 = 1;
const VERSION_FILE: &str = "store.json";
const IMAGES: &str = "images";
const NAMES: &str = "names";
const SOURCES: &str = "sources";
const WORK: &str = "work";
const LOCKS: &str = "locks";
/// Blobs of registries, whole and in part, until their image is made.
pub const BLOBS: &str = "blobs";
/// A record is JSON of some KiB.
const MAX_RECORD: u64 = 8 << 20;

#[derive(Serialize, Deserialize)]
struct Version {
    version: u32,
    what: String,
}

/// A store.
#[derive(Clone, Debug)]
pub struct Store {
    /// Its directory.
    pub root: PathBuf,
}

/// An image in a store.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What identifies it.
    pub id: Digest,
    /// Its directory.
    pub directory: PathBuf,
    /// What it is.
    pub record: ImageRecord,
}

impl Stored {
    /// The file with the root file system.
    pub fn file(&self) -> PathBuf {
        self.directory.join(ROOT_FILE)
    }

    /// Where it came from.
    pub fn origin(&self) -> Option<Origin> {
        let text = fs::read(self.directory.join(record::ORIGIN)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Store {
    /// One that is there.
    pub fn open(root: &Path) -> Result<Store> {
        let path = root.join(VERSION_FILE);
        let text = match read_small(&path) {
            Ok(text) => text,
            Err(e) if e.kind == Kind::Missing => {
                return Err(Error::new(
                    Kind::Missing,
                    format!("{} is no store of images: it has no {VERSION_FILE}", root.display()),
                    "`hpc-launch image import` and `image pull` make one; check store = [...] in the configuration",
                ));
            }
            Err(e) => return Err(e),
        };
        let wrong = |why: String| {
            Error::new(
                Kind::Store,
                format!("the store {}: {why}", root.display()),
                "use the hpc-launch that made it, or name another directory",
            )
        };
        let version: Version = serde_json::from_slice(&text)
            .map_err(|e| wrong(format!("{VERSION_FILE} cannot be understood: {e}")))?;
        if version.version != VERSION {
            return Err(wrong(format!("its version is {}, and this program's {VERSION}", version.version)));
        }
        Ok(Store { root: root.to_owned() })
    }

    /// One to write to: made where it is not there.
    pub fn create(root: &Path) -> Result<Store> {
        let made = (|| -> io::Result<()> {
            fs::create_dir_all(root)?;
            for directory in [IMAGES, NAMES, SOURCES, WORK, LOCKS, BLOBS] {
                match fs::create_dir(root.join(directory)) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                    _ => {}
                }
            }
            Ok(())
        })();
        made.map_err(|e| Error::writing(root, &e))?;
        let store = Store { root: root.to_owned() };
        if !root.join(VERSION_FILE).exists() {
            let version = Version { version: VERSION, what: "a store of images for hpc-launch".to_owned() };
            let text = serde_json::to_vec_pretty(&version)
                .map_err(|e| Error::writing(root, &io::Error::other(e)))?;
            store.put(Path::new(VERSION_FILE), &text)?;
        }
        Store::open(root)
    }

    /// The image of that name.
    pub fn find(&self, name: &Name) -> Result<Option<Stored>> {
        match self.named(&name.file_name())? {
            Some(named) => self.image(&named.image).map(Some),
            None => Ok(None),
        }
    }

    /// What is said of a name.
    fn named(&self, file: &str) -> Result<Option<Named>> {
        let path = self.root.join(NAMES).join(file);
        match read_small(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| Error::damaged(format!("{}: {e}", path.display()))),
            Err(e) if e.kind == Kind::Missing => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All names, in order.
    pub fn names(&self) -> Result<Vec<(Name, Named)>> {
        let mut all = Vec::new();
        for file in list(&self.root.join(NAMES))? {
            if let (Some(name), Some(named)) = (Name::of_file_name(&file), self.named(&file)?) {
                all.push((name, named));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// Names that look like this one, the nearest first.
    pub fn near(&self, name: &Name) -> Vec<Name> {
        let mut all: Vec<(usize, Name)> = self
            .names()
            .unwrap_or_default()
            .into_iter()
            .map(|(other, _)| {
                let of_names = distance(&other.name, &name.name);
                let last = other.name.rsplit('/').next().unwrap_or_default();
                (of_names.min(distance(last, &name.name) + 1), other)
            })
            .filter(|(distance, other)| {
                *distance <= 2.max(name.name.len() / 3) || other.name.contains(&name.name)
            })
            .collect();
        all.sort();
        all.into_iter().map(|(_, name)| name).take(3).collect()
    }

    /// The image of that id.
    pub fn image(&self, id: &Digest) -> Result<Stored> {
        let directory = self.root.join(IMAGES).join(id.hex());
        let path = directory.join(RECORD);
        let text = read_small(&path).map_err(|e| match e.kind {
            Kind::Missing => Error::new(
                Kind::Missing,
                format!("the store {} has no image {id}", self.root.display()),
                "`hpc-launch image verify` says what is wrong; pull or import it again",
            ),
            _ => e,
        })?;
        let record =
            serde_json::from_slice(&text).map_err(|e| Error::damaged(format!("{}: {e}", path.display())))?;
        Ok(Stored { id: id.clone(), directory, record })
    }

    /// All images.
    pub fn images(&self) -> Result<Vec<Digest>> {
        let all = list(&self.root.join(IMAGES))?;
        Ok(all.iter().filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect())
    }

    /// Gives an image a name, which another may have had.
    pub fn name(&self, name: &Name, image: &Digest) -> Result<()> {
        let named = Named { image: image.clone(), since: record::now() };
        let text =
            serde_json::to_vec(&named).map_err(|e| Error::writing(&self.root, &io::Error::other(e)))?;
        self.put(&Path::new(NAMES).join(name.file_name()), &text)
    }

    /// Takes a name away; whether it was there.
    pub fn unname(&self, name: &Name) -> Result<bool> {
        let path = self.root.join(NAMES).join(name.file_name());
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::writing(&path, &e)),
        }
    }

    /// The image that was made of this source, if it is still there.
    pub fn made_of(&self, key: &str) -> Option<Stored> {
        let text = read_small(&self.root.join(SOURCES).join(key)).ok()?;
        let named: Named = serde_json::from_slice(&text).ok()?;
        let stored = self.image(&named.image).ok()?;
        // One that was cut short is made again.
        fs::metadata(stored.file()).is_ok_and(|meta| meta.len() == stored.record.size).then_some(stored)
    }

    /// Remembers which image was made of a source.
    pub fn remember(&self, key: &str, image: &Digest) -> Result<()> {
        let named = Named { image: image.clone(), since: record::now() };
        let text =
            serde_json::to_vec(&named).map_err(|e| Error::writing(&self.root, &io::Error::other(e)))?;
        self.put(&Path::new(SOURCES).join(key), &text)
    }

    /// Publishes what lies in a work directory as an image.
    pub fn publish(&self, work: &Work, record: &ImageRecord, origin: &Origin) -> Result<Stored> {
        let failed = |e: io::Error| Error::writing(&self.root, &e);
        let text = serde_json::to_vec_pretty(record).map_err(|e| failed(io::Error::other(e)))?;
        let id = record::id(&text);
        let from = work.path("image");
        fs::create_dir(&from).map_err(failed)?;
        fs::rename(work.path(ROOT_FILE), from.join(ROOT_FILE)).map_err(failed)?;
        write_whole(&from.join(RECORD), &text)?;
        let origin = serde_json::to_vec_pretty(origin).map_err(|e| failed(io::Error::other(e)))?;
        write_whole(&from.join(record::ORIGIN), &origin)?;
        sync(&from).map_err(failed)?;
        let to = self.root.join(IMAGES).join(id.hex());
        match fs::rename(&from, &to) {
            Ok(()) => sync(&self.root.join(IMAGES)).map_err(failed)?,
            // The same bytes were there first; if they are the same still.
            Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
                let is_damaged = match self.wrong(&id, &to) {
                    Ok(wrong) => wrong.is_some(),
                    Err(e) => matches!(e.kind, Kind::Missing | Kind::Damaged),
                };
                if is_damaged {
                    // Another may repair it at the same time: by the same bytes.
                    match fs::rename(&to, work.path("damaged")) {
                        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::writing(&to, &e)),
                        _ => {}
                    }
                    match fs::rename(&from, &to) {
                        Err(e) if !to.exists() => return Err(Error::writing(&to, &e)),
                        _ => {}
                    }
                    sync(&self.root.join(IMAGES)).map_err(failed)?;
                }
            }
            Err(e) => return Err(Error::writing(&to, &e)),
        }
        self.image(&id)
    }

    /// Remembers who signed what an image was made of: that image, if this is its root file system.
    pub fn vouch(&self, stored: &Stored, verified: &Verified) -> Result<()> {
        if stored.record.squashfs != verified.root {
            return Err(Error::new(
                Kind::Signature,
                format!("the image {} is not what was signed: its source was changed meanwhile", stored.id),
                "import it again, once nobody writes to it",
            ));
        }
        let path = Path::new(IMAGES).join(stored.id.hex()).join(record::ORIGIN);
        let mut origin = stored.origin().ok_or_else(|| {
            Error::damaged(format!("{} is no origin of an image", self.root.join(&path).display()))
        })?;
        let known = origin.signed_by.len();
        for fingerprint in &verified.fingerprints {
            if !origin.signed_by.contains(fingerprint) {
                origin.signed_by.push(fingerprint.clone());
            }
        }
        if origin.signed_by.len() == known {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&origin)
            .map_err(|e| Error::writing(&self.root, &io::Error::other(e)))?;
        self.put(&path, &text)
    }

    /// Writes a small file whole: it appears with all its bytes, or not.
    fn put(&self, path: &Path, text: &[u8]) -> Result<()> {
        let work = self.directory()?;
        let (from, to) = (work.path("file"), self.root.join(path));
        write_whole(&from, text)?;
        fs::rename(&from, &to).map_err(|e| Error::writing(&to, &e))?;
        to.parent().map_or(Ok(()), |dir| sync(dir).map_err(|e| Error::writing(dir, &e)))
    }
}

/// Names of a directory; none where it is missing.
fn list(path: &Path) -> Result<Vec<String>> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::reading(path, &e)),
    }
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    let meta = fs::metadata(path).map_err(|e| Error::reading(path, &e))?;
    if !meta.is_file() || meta.len() > MAX_RECORD {
        return Err(Error::damaged(format!("{} is no small file", path.display())));
    }
    fs::read(path).map_err(|e| Error::reading(path, &e))
}

fn write_whole(path: &Path, text: &[u8]) -> Result<()> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()
    });
    written.map_err(|e| Error::writing(path, &e))
}

/// Flushes a directory: a name that was renamed into it stays.
fn sync(directory: &Path) -> io::Result<()> {
    match File::open(directory).and_then(|d| d.sync_all()) {
        // Some network file systems do not flush directories.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

/// Letters that must be changed to make one of the other (Levenshtein).
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let best = (row[j] + 1).min(row[j + 1] + 1).min(corner + usize::from(x != *y));
            corner = row[j + 1];
            row[j + 1] = best;
        }
    }
    row[b.len()]
}

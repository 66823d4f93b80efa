//! Whether a store is what it says, and removing what nobody needs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::{IMAGES, NAMES, Named, RECORD, ROOT_FILE, SOURCES, Store, record};
use crate::bytes::hash_rest;
use crate::error::{Error, Result};
use crate::name::{Digest, Name};

/// An image without a name may be about to get one.
const YOUNG: Duration = Duration::from_secs(3600);

/// What is left of a fetch may be wanted the next day.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// Something that is wrong in a store.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub what: String,
}

/// What has been removed.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Images that nothing named.
    pub images: Vec<Digest>,
    /// Bytes of them.
    pub bytes: u64,
    /// What dead writers had left.
    pub leftovers: usize,
}

/// SHA-256 of a file.
pub fn digest_of(path: &Path) -> Result<Digest> {
    let mut file = File::open(path).map_err(|e| Error::reading(path, &e))?;
    let mut hash = Sha256::new();
    hash_rest(&mut file, &mut hash).map_err(|e| Error::reading(path, &e))?;
    Ok(Digest::of_bytes(&hash.finalize()))
}

impl Store {
    /// Reads everything and says what is wrong. `tell` hears of each image before it is read.
    pub fn verify(&self, mut tell: impl FnMut(&Digest)) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut images = BTreeSet::new();
        for hex in super::list(&self.root.join(IMAGES))? {
            let path = self.root.join(IMAGES).join(&hex);
            let Ok(id) = format!("sha256:{hex}").parse::<Digest>() else {
                findings.push(Finding { path, what: "is no image: its name is no digest".to_owned() });
                continue;
            };
            tell(&id);
            match self.wrong(&id, &path) {
                Ok(None) => {
                    images.insert(id);
                }
                Ok(Some(what)) => findings.push(Finding { path, what }),
                // Removed meanwhile.
                Err(_) if !path.exists() => {}
                Err(e) => findings.push(Finding { path, what: e.what }),
            }
        }
        for (directory, must_be_name) in [(NAMES, true), (SOURCES, false)] {
            for file in super::list(&self.root.join(directory))? {
                let path = self.root.join(directory).join(&file);
                let mut wrong = |what: String| findings.push(Finding { path: path.clone(), what });
                if must_be_name && Name::of_file_name(&file).is_none() {
                    wrong("is no name of an image".to_owned());
                    continue;
                }
                let named = super::read_small(&path).and_then(|text| {
                    serde_json::from_slice::<Named>(&text).map_err(|e| Error::damaged(e.to_string()))
                });
                match named {
                    Err(_) if !path.exists() => {}
                    Err(e) => wrong(format!("cannot be understood: {}", e.what)),
                    // What an archive was made into may have been collected: it is made again.
                    Ok(named)
                        if must_be_name
                            && !images.contains(&named.image)
                            && self.image(&named.image).is_err() =>
                    {
                        wrong(format!("names the image {}, which is not there", named.image));
                    }
                    Ok(_) => {}
                }
            }
        }
        Ok(findings)
    }

    /// Removes what nobody has touched for a day and nobody holds; with `all`, also what is younger.
    fn stale(&self, directory: &str, all: bool) -> Result<usize> {
        let mut removed = 0;
        for name in super::list(&self.root.join(directory))? {
            let path = self.root.join(directory).join(&name);
            let modified = fs::metadata(&path).and_then(|m| m.modified()).ok();
            let age = modified.and_then(|m| SystemTime::now().duration_since(m).ok());
            if !all && age.is_none_or(|age| age < OLD) {
                continue;
            }
            let lock = match directory {
                super::LOCKS => name,
                _ => format!("blob-{}", name.trim_end_matches(".part")),
            };
            let lock = File::open(self.root.join(super::LOCKS).join(lock));
            if lock.is_ok_and(|lock| lock.try_lock().is_err()) {
                continue;
            }
            removed += usize::from(fs::remove_file(&path).is_ok() && directory != super::LOCKS);
        }
        Ok(removed)
    }

    /// What is wrong with an image.
    pub(super) fn wrong(&self, id: &Digest, path: &Path) -> Result<Option<String>> {
        let text = super::read_small(&path.join(RECORD))?;
        let is = record::id(&text);
        if is != *id {
            return Ok(Some(format!("{RECORD} has been changed: its digest is {is}")));
        }
        let record = self.image(id)?.record;
        let file = path.join(ROOT_FILE);
        let size = fs::metadata(&file).map_err(|e| Error::reading(&file, &e))?.len();
        if size != record.size {
            return Ok(Some(format!("{ROOT_FILE} has {size} bytes and should have {}", record.size)));
        }
        let is = digest_of(&file)?;
        if is != record.squashfs {
            return Ok(Some(format!(
                "{ROOT_FILE} has been changed: its digest is {is}, and should be {}",
                record.squashfs
            )));
        }
        Ok(None)
    }

    /// Removes images without a name, and what dead writers have left. With `sources`, also what was made of archives to
    /// run them: it is made again when they are next run.
    pub fn collect(&self, sources: bool) -> Result<Collected> {
        let _guard = self.collecting();
        let leftovers =
            self.clean()?.len() + self.stale(super::BLOBS, sources)? + self.stale(super::LOCKS, false)?;
        let mut collected = Collected { leftovers, ..Collected::default() };
        let mut used: BTreeSet<Digest> = self.names()?.into_iter().map(|(_, named)| named.image).collect();
        for file in super::list(&self.root.join(SOURCES))? {
            let path = self.root.join(SOURCES).join(&file);
            let named = super::read_small(&path).ok().and_then(|t| serde_json::from_slice::<Named>(&t).ok());
            match named {
                Some(named) if !sources => {
                    used.insert(named.image);
                }
                Some(named) if used.contains(&named.image) => {}
                _ => fs::remove_file(&path).map_err(|e| Error::writing(&path, &e))?,
            }
        }
        for id in self.images()? {
            let path = self.root.join(IMAGES).join(id.hex());
            let is_young = || {
                let modified = fs::metadata(&path).and_then(|m| m.modified()).ok();
                modified.and_then(|m| SystemTime::now().duration_since(m).ok()).is_none_or(|age| age < YOUNG)
            };
            if used.contains(&id) || (!sources && is_young()) {
                continue;
            }
            let bytes = fs::metadata(path.join(ROOT_FILE)).map_or(0, |m| m.len());
            // Out of sight first: nobody finds half an image.
            let work = self.work()?;
            let gone = work.path("gone");
            fs::rename(&path, &gone).map_err(|e| Error::writing(&path, &e))?;
            collected.images.push(id);
            collected.bytes += bytes;
        }
        Ok(collected)
    }
}

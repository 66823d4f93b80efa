//! Copies of images on storage of the node: made once, by one of those who want it; the oldest go when there is no room.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::blob::Blob;
use crate::bytes::copied;
use crate::error::{Error, Kind, Result, size};
use crate::import::{Progress, Waiting};
use crate::store::Store;

const DIRECTORY: &str = "copies";
/// A file system that is full to the last byte helps nobody.
const SPARE: u64 = 64 << 20;

/// The copy of a file, or of a part of it. `key` says which file in which state it is.
pub fn copy(
    blob: &Blob,
    key: &str,
    store: &Store,
    patience: Duration,
    progress: &Progress,
    waiting: Waiting<'_>,
) -> Result<(PathBuf, bool)> {
    let directory = store.root.join(DIRECTORY);
    fs::create_dir_all(&directory).map_err(|e| Error::writing(&directory, &e))?;
    let path = directory.join(format!("{key}.sqfs"));
    let is_there = || {
        let there = fs::metadata(&path).is_ok_and(|m| m.len() == blob.length);
        if there {
            // The one that was used last is the last to go.
            let _ = File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        }
        there
    };
    if is_there() {
        return Ok((path, true));
    }
    let _turn = store.turn(&format!("copy-{key}"), patience, waiting)?;
    if is_there() {
        return Ok((path, true));
    }
    make_room(&directory, blob.length)?;
    let work = store.work()?;
    let out = work.path("copy");
    copied(blob, &out, progress)?;
    fs::rename(&out, &path).map_err(|e| Error::writing(&path, &e))?;
    Ok((path, false))
}

/// Removes copies until there is room; who has one open keeps it.
fn make_room(directory: &Path, needed: u64) -> Result<()> {
    let free = || {
        let stat = nix::sys::statvfs::statvfs(directory).map_err(|e| Error::reading(directory, &e.into()))?;
        Ok::<u64, Error>(stat.blocks_available() * stat.fragment_size())
    };
    let mut copies: Vec<(SystemTime, PathBuf)> = fs::read_dir(directory)
        .map_err(|e| Error::reading(directory, &e))?
        .flatten()
        .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
        .collect();
    copies.sort();
    let mut copies = copies.into_iter();
    while free()? < needed.saturating_add(SPARE) {
        let Some((_, oldest)) = copies.next() else {
            return Err(Error::new(
                Kind::Space,
                format!(
                    "a copy of the image needs {}, and {} are free in {}",
                    size(needed),
                    size(free()?),
                    directory.display()
                ),
                "set node_cache in the configuration to a directory of the node with more room, or run without --cache node",
            ));
        };
        fs::remove_file(&oldest).map_err(|e| Error::writing(&oldest, &e))?;
    }
    Ok(())
}

//! One blob into the store: resumed where it was cut, by one of those who want it, and as its digest says.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::client::Client;
use super::reference::Reference;
use crate::blob::Blob;
use crate::bytes::hash_rest;
use crate::error::{Error, Kind, Result, size as bytes_of};
use crate::import::Progress;
use crate::name::Digest;
use crate::store::{BLOBS, Store, Turn};

/// A cut after which nothing more came is counted; so many of them in a row end it.
const CUTS: u32 = 5;
/// Between them.
const PAUSE: Duration = Duration::from_secs(1);
/// How long another who fetches the same may stand still.
const PATIENCE: Duration = Duration::from_secs(120);
/// A configuration, whose length nobody has said.
const MAX_UNSAID: u64 = 8 << 20;

fn path(store: &Store, digest: &Digest) -> PathBuf {
    store.root.join(BLOBS).join(digest.hex())
}

fn partial(store: &Store, digest: &Digest) -> PathBuf {
    store.root.join(BLOBS).join(format!("{}.part", digest.hex()))
}

/// How much of a blob is there already.
pub fn fetched(store: &Store, digest: &Digest) -> u64 {
    let length = |path: PathBuf| fs::metadata(path).map(|meta| meta.len());
    length(path(store, digest)).or_else(|_| length(partial(store, digest))).unwrap_or(0)
}

/// Removes a blob that is not needed any more.
pub fn forget(store: &Store, digest: &Digest) {
    let _ = fs::remove_file(path(store, digest));
}

/// Fetches a blob, if it is not there.
pub fn fetch(
    client: &Client,
    reference: &Reference,
    digest: &Digest,
    size: Option<u64>,
    store: &Store,
    progress: &Progress,
) -> Result<Blob> {
    let there = || -> Result<Option<Blob>> {
        let path = path(store, digest);
        match File::open(&path) {
            Ok(file) => Blob::whole(file, path).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::reading(&path, &e)),
        }
    };
    let seen = |blob: Blob| {
        progress.read.fetch_add(blob.length, Ordering::Relaxed);
        blob
    };
    if let Some(blob) = there()? {
        return Ok(seen(blob));
    }
    let mut turn = store.turn(&format!("blob-{}", digest.hex()), PATIENCE, |_| ())?;
    if let Some(blob) = there()? {
        return Ok(seen(blob));
    }
    let partial = partial(store, digest);
    let failed = |e: io::Error| Error::writing(&partial, &e);
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&partial).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut have = hash_rest(&mut file, &mut hash).map_err(failed)?;
    let most = size.unwrap_or(MAX_UNSAID);
    if have > most {
        (have, hash) = (restart(&mut file).map_err(failed)?, Sha256::new());
    }
    progress.read.fetch_add(have, Ordering::Relaxed);
    let mut cuts = 0;
    // What is there may be all of it, if its writer was killed just then.
    let is_whole = |hash: &Sha256| Digest::of_bytes(&hash.clone().finalize()) == *digest;
    while !(size.map_or_else(|| have > 0 && is_whole(&hash), |size| have >= size)) {
        let before = have;
        let url = format!("/v2/{}/blobs/{digest}", reference.repository);
        let range = if have > 0 { vec![("Range", format!("bytes={have}-"))] } else { Vec::new() };
        let mut response = client.get(&url, &range)?;
        if have > 0 && response.status().as_u16() != 206 {
            // It knows no ranges: from the begin.
            progress.read.fetch_sub(have, Ordering::Relaxed);
            (have, hash) = (restart(&mut file).map_err(failed)?, Sha256::new());
        }
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; 256 << 10];
        let cut = loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => break Some(e),
            };
            if have + n as u64 > most {
                return Err(Error::hostile(format!(
                    "{} sends more than the {} that {digest} has",
                    client.host(),
                    bytes_of(most)
                )));
            }
            file.write_all(&buffer[..n]).map_err(failed)?;
            hash.update(&buffer[..n]);
            have += n as u64;
            progress.read.fetch_add(n as u64, Ordering::Relaxed);
            if let Turn::Ours(held) = &mut turn {
                held.tell_now_and_then(&format!("{} of {}", bytes_of(have), bytes_of(most)));
            }
        };
        if cut.is_none() && size.is_none_or(|size| have >= size) {
            break;
        }
        cuts = if have > before { 0 } else { cuts + 1 };
        if cuts >= CUTS {
            let why = cut.map_or("it ends early".to_owned(), |e| e.to_string());
            return Err(Error::new(
                Kind::Registry,
                format!(
                    "{} does not send {digest} to its end: {} of {}, {why}",
                    client.host(),
                    bytes_of(have),
                    bytes_of(most)
                ),
                "try again: what has been fetched is kept",
            ));
        }
        std::thread::sleep(PAUSE.min(Duration::from_millis(200) * (cuts + 1)));
    }
    let is = Digest::of_bytes(&hash.finalize());
    if is != *digest {
        let _ = fs::remove_file(&partial);
        return Err(Error::new(
            Kind::Digest,
            format!("{} sent {is} for {digest} of {reference}", client.host()),
            "try again; if it stays so, something between here and there changes what is sent, or the registry is damaged",
        ));
    }
    file.sync_all().map_err(failed)?;
    let whole = path(store, digest);
    match fs::rename(&partial, &whole) {
        // Where there are no locks, another may have been faster.
        Err(e) if !whole.exists() => return Err(Error::writing(&whole, &e)),
        _ => {}
    }
    drop(turn);
    Blob::whole(file, whole)
}

fn restart(file: &mut File) -> io::Result<u64> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))
}

//! Images in registries (OCI distribution specification): authentication, manifests, blobs that are resumed.
//!
//! The client for HTTP is a library; the few requests are made here, because what comes from a registry must be bounded
//! (a manifest of any size would be read into memory), and because users must be told why it failed: which host, which
//! credentials, how long to wait.

mod agent;
mod client;
mod credentials;
mod download;
mod reference;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};

pub use self::client::Client;
pub use self::reference::{Reference, SCHEME};
use crate::blob::Blob;
use crate::bytes::room;
use crate::codec::Allowance;
use crate::error::{Error, Kind, Result};
use crate::import::Progress;
use crate::layout::MAX_MANIFEST;
use crate::members::Files;
use crate::name::Digest;
use crate::store::Store;

/// What this site and this user say of registries.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Files of credentials, the first that knows a registry wins.
    pub credentials: Vec<PathBuf>,
    /// Proxies for http and https.
    pub proxies: Proxies,
    /// Other hosts that have the same: of each registry, addresses that are tried first.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts that are spoken to without TLS.
    pub plain: Vec<String>,
    /// Directories with a directory of certificates for each host.
    pub certificates: Vec<PathBuf>,
    /// What we call ourselves.
    pub agent: String,
}

/// The usual variables.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// For addresses of http.
    pub http: Option<String>,
    /// For addresses of https.
    pub https: Option<String>,
    /// Hosts that are reached without.
    pub none: Vec<String>,
}

/// One image of a registry, as the files of a layout. Blobs are fetched when they are opened, into the store.
pub struct Remote<'a> {
    client: Client,
    reference: Reference,
    store: &'a Store,
    progress: &'a Progress,
    /// The manifest or index that was asked for.
    top: Blob,
    /// Its digest.
    pub digest: Digest,
    /// Blobs that are there, held open: nobody can take them away.
    fetched: Mutex<HashMap<Digest, Blob>>,
    work: crate::store::Work,
    max_size: u64,
}

impl<'a> Remote<'a> {
    /// Asks for the manifest, which tells what the reference stands for now.
    pub fn open(
        reference: &Reference,
        settings: &Settings,
        store: &'a Store,
        progress: &'a Progress,
        max_size: u64,
    ) -> Result<Remote<'a>> {
        let (client, manifest) = Client::connect(reference, settings)?;
        let digest = Digest::of_bytes(&Sha256::digest(&manifest));
        if let Some(must) = reference.digest.as_ref().filter(|must| **must != digest) {
            return Err(Error::new(
                Kind::Digest,
                format!("{} sent a manifest whose digest is {digest} for {reference}", client.host()),
                format!("ask that registry's administrator: the digest must be {must}"),
            ));
        }
        let work = store.work()?;
        let top = in_file(&work, &manifest, &reference.to_string())?;
        Ok(Remote {
            client,
            reference: reference.clone(),
            store,
            progress,
            top,
            digest,
            fetched: Mutex::default(),
            work,
            max_size,
        })
    }

    /// Removes the blobs that were fetched: the image is made.
    pub fn forget(&self) {
        if let Ok(fetched) = self.fetched.lock() {
            for digest in fetched.keys() {
                download::forget(self.store, digest);
            }
        }
    }

    fn fetch(&self, digest: &Digest, size: Option<u64>) -> Result<Blob> {
        if let Some(blob) = self.fetched.lock().ok().and_then(|fetched| fetched.get(digest).cloned()) {
            return Ok(blob);
        }
        let blob = download::fetch(&self.client, &self.reference, digest, size, self.store, self.progress)?;
        if let Ok(mut fetched) = self.fetched.lock() {
            fetched.insert(digest.clone(), blob.clone());
        }
        Ok(blob)
    }
}

/// Bytes in a file without a name.
fn in_file(work: &crate::store::Work, bytes: &[u8], name: &str) -> Result<Blob> {
    let path = work.path("manifest");
    let failed = |e: std::io::Error| Error::writing(&path, &e);
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).map_err(failed)?;
    let file = File::open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    Blob::whole(file, Path::new(name).to_owned())
}

impl Files for Remote<'_> {
    fn open(&self, path: &str) -> Result<Option<Blob>> {
        if path == "index.json" {
            // As a layout would have it: one entry, which is what was asked for.
            let index = format!(
                "{{\"manifests\":[{{\"mediaType\":{},\"digest\":\"{}\",\"size\":{}}}]}}",
                serde_json::Value::from(media_type(&self.top)?),
                self.digest,
                self.top.length
            );
            return in_file(&self.work, index.as_bytes(), "index.json").map(Some);
        }
        let hex = path.rsplit('/').next().unwrap_or_default();
        let digest: Digest = format!("sha256:{hex}").parse()?;
        self.fetch(&digest, None).map(Some)
    }

    fn manifest(&self, digest: &Digest) -> Result<Option<Blob>> {
        if *digest == self.digest {
            return Ok(Some(self.top.clone()));
        }
        let bytes = self.client.manifest(&self.reference.repository, &digest.to_string())?;
        in_file(&self.work, &bytes, &digest.to_string()).map(Some)
    }

    fn announce(&self, blobs: &[(Digest, u64)]) -> Result<()> {
        /// More at once gain nothing and anger registries.
        const AT_ONCE: usize = 4;
        let mut todo: Vec<&(Digest, u64)> = Vec::new();
        for blob in blobs {
            if !todo.iter().any(|other| other.0 == blob.0) {
                todo.push(blob);
            }
        }
        // What a manifest says of lengths is anybody's.
        let all = todo.iter().fold(0u64, |all, (_, size)| all.saturating_add(*size));
        // Compressed, they are at most as long as what comes out of them.
        Allowance::new(self.max_size).take(all)?;
        // They lie beside the image that is made of them.
        let there: u64 = todo.iter().map(|(digest, _)| download::fetched(self.store, digest)).sum();
        room(&self.work.path("image"), all.saturating_mul(2).saturating_sub(there))?;
        self.progress.all.store(all, std::sync::atomic::Ordering::Relaxed);
        self.progress.read.store(0, std::sync::atomic::Ordering::Relaxed);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(todo.len()) {
                let (todo, next, failure) = (&todo, &next, &failure);
                let work = move || {
                    while let Some((digest, size)) =
                        todo.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        if let Err(e) = self.fetch(digest, Some(*size)) {
                            next.store(todo.len(), std::sync::atomic::Ordering::Relaxed);
                            if let Ok(mut failure) = failure.lock() {
                                failure.get_or_insert(e);
                            }
                        }
                    }
                };
                // If no thread can be had, what is opened later is fetched then.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
        });
        match failure.into_inner() {
            Ok(Some(e)) => Err(e),
            _ => Ok(()),
        }
    }

    fn name(&self) -> String {
        self.reference.to_string()
    }
}

/// What a manifest says of itself; old ones of OCI say nothing.
fn media_type(manifest: &Blob) -> Result<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Top {
        #[serde(default)]
        media_type: String,
        manifests: Option<serde::de::IgnoredAny>,
        schema_version: Option<u32>,
    }
    let text = manifest.read(MAX_MANIFEST)?;
    let top: Top = serde_json::from_slice(&text).map_err(|e| {
        Error::damaged(format!("the manifest of {} is not what it should be: {e}", manifest.path.display()))
    })?;
    if top.schema_version == Some(1) {
        let what = format!(
            "{} has a manifest of schema 1, which registries gave up in 2016",
            manifest.path.display()
        );
        return Err(Error::new(
            Kind::Unsupported,
            what,
            "push the image again with a docker, podman or skopeo of today",
        ));
    }
    Ok(match (top.media_type, top.manifests) {
        (media_type, _) if !media_type.is_empty() => media_type,
        (_, Some(_)) => "application/vnd.oci.image.index.v1+json".to_owned(),
        _ => "application/vnd.oci.image.manifest.v1+json".to_owned(),
    })
}

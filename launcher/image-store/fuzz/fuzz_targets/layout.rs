//! Any JSON as the parts of an OCI layout or of a docker archive: `@0`, `@1`… in one part stand for the digest of a
//! later one, for nothing else could get by the check of digests.
#![no_main]

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use arbitrary::Arbitrary;
use image_store::blob::Blob;
use image_store::error::Result;
use image_store::layout::{self, Platform};
use image_store::members::Files;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

#[derive(Arbitrary, Debug)]
struct Input {
    parts: Vec<String>,
    wanted: Option<String>,
    docker: bool,
}

struct Parts(Vec<(String, Vec<u8>)>);

impl Files for Parts {
    fn open(&self, path: &str) -> Result<Option<Blob>> {
        let Some((_, bytes)) = self.0.iter().find(|(name, _)| name == path) else { return Ok(None) };
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        Ok(Some(Blob {
            file: Arc::new(file),
            path: PathBuf::from(path),
            offset: 0,
            length: bytes.len() as u64,
        }))
    }

    fn name(&self) -> String {
        "fuzz".to_owned()
    }
}

fuzz_target!(|input: Input| {
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    for text in input.parts.iter().take(8).rev() {
        let mut text = text.clone();
        for (number, (name, bytes)) in parts.iter().enumerate() {
            let digest = name.rsplit('/').next().unwrap_or_default();
            text = text.replace(&format!("@{number}"), &format!("sha256:{digest}"));
            text = text.replace(&format!("#{number}"), &bytes.len().to_string());
        }
        let digest: String = Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        parts.push((format!("blobs/sha256/{digest}"), text.into_bytes()));
    }
    if let Some((_, first)) = parts.last().cloned() {
        parts.push((if input.docker { "manifest.json" } else { "index.json" }.to_owned(), first));
    }
    let (parts, host) = (Parts(parts), Platform::host());
    let _ = if input.docker {
        layout::docker(&parts, input.wanted.as_deref(), &host)
    } else {
        layout::oci(&parts, input.wanted.as_deref(), &host)
    };
});

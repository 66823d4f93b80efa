//! An archive of an image (OCI layout or `docker save`) as a tar file: its members, without unpacking it.

use std::collections::HashMap;

use crate::blob::Blob;
use crate::error::{Error, Kind, Result};
use crate::name::Digest;
use crate::tar::{Reader, What};
use crate::tree::parts;

/// Members of an archive of one image, or of many.
const MAX_MEMBERS: usize = 100_000;
const MAX_LINKS: usize = 8;

/// Files by path.
pub trait Files {
    /// The file at this path, if there is one.
    fn open(&self, path: &str) -> Result<Option<Blob>>;
    /// The manifest or index of this digest.
    fn manifest(&self, digest: &Digest) -> Result<Option<Blob>> {
        self.open(&format!("blobs/sha256/{}", digest.hex()))
    }
    /// Says which blobs will be opened, and how long they are: they may be fetched side by side.
    fn announce(&self, _blobs: &[(Digest, u64)]) -> Result<()> {
        Ok(())
    }
    /// What to call it.
    fn name(&self) -> String;
}

/// The members of a tar file.
pub struct Members {
    blob: Blob,
    files: HashMap<String, (u64, u64)>,
    /// `docker save` before 25 wrote layers that two images share as links.
    links: HashMap<String, String>,
}

/// Whether an archive of an image may have this at its top.
pub fn belongs(path: &str) -> bool {
    let top = path.split('/').next().unwrap_or_default();
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let stem = top.strip_suffix(".json").or_else(|| top.strip_suffix(".tar")).unwrap_or(top);
    matches!(top, "manifest.json" | "repositories" | "oci-layout" | "index.json" | "blobs") || is_hex(stem)
}

impl Members {
    /// Looks through the archive; `None` if it holds a root file system itself, which mostly its first entry tells.
    pub fn of(blob: &Blob) -> Result<Option<Members>> {
        let mut members = Members { blob: blob.clone(), files: HashMap::new(), links: HashMap::new() };
        let mut reader = Reader::new(blob.reader());
        while let Some(entry) = reader.next_entry()? {
            let Ok(path) = String::from_utf8(parts(&entry.path)?.join(&b'/')) else { return Ok(None) };
            if path.is_empty() {
                continue;
            }
            if !belongs(&path) {
                return Ok(None);
            }
            if members.files.len() + members.links.len() > MAX_MEMBERS {
                return Err(Error::new(
                    Kind::TooLarge,
                    format!("an archive of more than {MAX_MEMBERS} members"),
                    "split it",
                ));
            }
            match entry.what {
                What::File => {
                    let length = reader.stored();
                    members.files.insert(path, (reader.pass()?, length));
                }
                What::Symlink(to) | What::Link(to) => {
                    let to = String::from_utf8_lossy(&to).into_owned();
                    members.links.insert(path, to);
                }
                _ => {}
            }
        }
        let is_image =
            members.files.contains_key("manifest.json") || members.files.contains_key("index.json");
        Ok(is_image.then_some(members))
    }
}

impl Files for Members {
    fn open(&self, path: &str) -> Result<Option<Blob>> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            if let Some((offset, length)) = self.files.get(&path) {
                let mut blob = self.blob.part(*offset, *length);
                blob.path = self.blob.path.join(&path);
                return Ok(Some(blob));
            }
            let Some(to) = self.links.get(&path) else { return Ok(None) };
            path = beside(&path, to);
        }
        Ok(None)
    }

    fn name(&self) -> String {
        self.blob.path.display().to_string()
    }
}

/// Where a link leads, inside of the archive.
fn beside(path: &str, to: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in to.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_in_the_archive() {
        assert_eq!(beside("a/layer.tar", "../b/layer.tar"), "b/layer.tar");
        assert_eq!(beside("a", "../../../etc/passwd"), "etc/passwd");
    }

    #[test]
    fn what_belongs_to_an_archive() {
        let hex = "0a".repeat(32);
        for path in
            ["manifest.json", "blobs/sha256/x", &hex, &format!("{hex}.json"), &format!("{hex}/layer.tar")]
        {
            assert!(belongs(path), "{path}");
        }
        for path in ["bin", "etc/passwd", "manifest.json.bak", &hex[1..]] {
            assert!(!belongs(path), "{path}");
        }
    }
}

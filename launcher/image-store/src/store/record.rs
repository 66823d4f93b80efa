//! What a store says of an image.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::layout::{Platform, Runtime};
use crate::name::Digest;

/// The record's file.
pub const RECORD: &str = "image.json";
/// Where it came from.
pub const ORIGIN: &str = "origin.json";
/// The root file system's file.
pub const ROOT_FILE: &str = "image.sqfs";

/// What an image is: its id is the SHA-256 of this, as it lies in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Of the root file system's file.
    pub squashfs: Digest,
    /// Its length.
    pub size: u64,
    /// For which machine; empty where nobody said.
    #[serde(default)]
    pub platform: Platform,
    /// How its programs want to run.
    #[serde(default)]
    pub config: Runtime,
}

/// Where an image came from, and when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Origin {
    /// What kind of source it was.
    pub form: String,
    /// Where that was.
    pub from: PathBuf,
    /// What it was called there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The digest by which registries know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// When it was built, as its builder says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// When it was imported, seconds since 1970.
    pub imported: u64,
    /// By which program.
    pub by: String,
    /// Bytes of its files.
    pub unpacked: u64,
    /// What was left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Fingerprints of the keys whose signatures of it were verified, in a file that it was made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signed_by: Vec<String>,
}

/// A name's image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Named {
    /// Its id.
    pub image: Digest,
    /// Since when, seconds since 1970.
    pub since: u64,
}

/// The id of an image whose record this is.
pub fn id(record: &[u8]) -> Digest {
    Digest::of_bytes(&Sha256::digest(record))
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

//! SIF, the file of Singularity and Apptainer: a header, descriptors, and what they describe. The root file system is a
//! SquashFS somewhere in it (sylabs/sif and apptainer/sif, pkg/sif: structures in little endian, packed).

pub mod signature;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::bytes::u32_at;
use crate::error::{Error, Kind, Result};
use crate::layout::Platform;

/// Where the magic number is: behind a `#!` line.
pub const MAGIC_AT: usize = 32;
/// With the NUL behind it.
pub const MAGIC: &[u8] = b"SIF_MAGIC\0";

const HEADER: usize = 128;
const DESCRIPTOR: usize = 585;
/// New files have room for 48.
const MAX_DESCRIPTORS: u64 = 4096;
const MAX_TEXT: u64 = 1 << 20;

/// Types of objects.
const LABELS: u32 = 0x4003;
const PARTITION: u32 = 0x4004;
const SIGNATURE: u32 = 0x4005;
/// Types of file systems.
const SQUASHFS: u32 = 1;
const ENCRYPTED: u32 = 5;
/// A partition with the root.
const PRIMARY: u32 = 2;

/// What of a SIF file is needed to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sif {
    /// Where its root file system begins.
    pub offset: u64,
    /// How long that is.
    pub length: u64,
    /// For which machine it is.
    pub platform: Platform,
    /// What its builder says of it.
    pub labels: BTreeMap<String, String>,
    /// How many signatures it has.
    pub signatures: usize,
}

/// One descriptor that is in use.
struct Descriptor {
    kind: u32,
    /// Its object's number.
    id: u32,
    group: u32,
    link: u32,
    offset: u64,
    length: u64,
    /// As it lies in the file.
    raw: Vec<u8>,
}

impl Descriptor {
    /// What only objects of its type have.
    fn extra(&self) -> &[u8] {
        &self.raw[201..]
    }

    fn is_root(&self) -> bool {
        self.kind == PARTITION && u32_at(self.extra(), 4) == PRIMARY
    }
}

/// A header, and descriptors whose objects lie in the file, apart from each other.
struct Table {
    header: Vec<u8>,
    all: Vec<Descriptor>,
}

fn damaged(path: &Path, why: String) -> Error {
    Error::damaged(format!("the SIF file {} is damaged: {why}", path.display()))
}

/// A number of the header that must not be negative.
fn u64_at(path: &Path, bytes: &[u8], at: usize, what: &str) -> Result<u64> {
    let number = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(-1, i64::from_le_bytes);
    u64::try_from(number).map_err(|_| damaged(path, format!("its {what} is {number}")))
}

/// The architecture by its two digits.
fn architecture(code: &[u8]) -> String {
    let name = match code.get(..2) {
        Some(b"01") => "386",
        Some(b"02") => "amd64",
        Some(b"03") => "arm",
        Some(b"04") => "arm64",
        Some(b"05") => "ppc64",
        Some(b"06") => "ppc64le",
        Some(b"07") => "mips",
        Some(b"08") => "mipsle",
        Some(b"09") => "mips64",
        Some(b"10") => "mips64le",
        Some(b"11") => "s390x",
        Some(b"12") => "riscv64",
        _ => "unknown",
    };
    name.to_owned()
}

/// Bytes of the file.
fn read(file: &File, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => damaged(path, "it is cut short".to_owned()),
        _ => Error::reading(path, &e),
    })?;
    Ok(bytes)
}

impl Table {
    fn read(file: &File, path: &Path) -> Result<Table> {
        let size = file.metadata().map_err(|e| Error::reading(path, &e))?.len();
        let header = read(file, path, 0, HEADER)?;
        if !header[MAGIC_AT..].starts_with(MAGIC) {
            return Err(damaged(path, "it has no SIF_MAGIC".to_owned()));
        }
        if &header[42..44] != b"01" {
            let version = header[42..44].escape_ascii().to_string();
            return Err(Error::new(
                Kind::Unsupported,
                format!("{} is SIF of version {version}", path.display()),
                "build it with Singularity 3 or 4, or Apptainer",
            ));
        }
        let total = u64_at(path, &header, 88, "number of descriptors")?;
        let at = u64_at(path, &header, 96, "descriptors' place")?;
        if total > MAX_DESCRIPTORS {
            return Err(damaged(path, format!("it has {total} descriptors")));
        }
        if at.checked_add(total * DESCRIPTOR as u64).is_none_or(|end| end > size) {
            return Err(damaged(
                path,
                format!("its {total} descriptors at {at} lie behind its end at {size}"),
            ));
        }
        let bytes = read(file, path, at, total as usize * DESCRIPTOR)?;
        let mut all = Vec::new();
        for (number, descriptor) in bytes.chunks(DESCRIPTOR).enumerate().filter(|(_, d)| d[4] != 0) {
            let offset = u64_at(path, descriptor, 17, "object's place")?;
            let length = u64_at(path, descriptor, 25, "object's length")?;
            if offset.checked_add(length).is_none_or(|end| end > size) {
                let number = number + 1;
                return Err(damaged(
                    path,
                    format!("object {number}, {length} bytes at {offset}, lies behind its end at {size}"),
                ));
            }
            if length > 0
                && offset < at + total * DESCRIPTOR as u64
                && offset + length > at.min(HEADER as u64)
            {
                return Err(damaged(
                    path,
                    format!("object {} lies over the header or the descriptors", number + 1),
                ));
            }
            all.push(Descriptor {
                kind: u32_at(descriptor, 0),
                id: u32_at(descriptor, 5),
                group: u32_at(descriptor, 9),
                link: u32_at(descriptor, 13),
                offset,
                length,
                raw: descriptor.to_vec(),
            });
        }
        let mut by_place: Vec<&Descriptor> = all.iter().filter(|d| d.length > 0).collect();
        by_place.sort_by_key(|d| d.offset);
        if let Some(pair) = by_place.windows(2).find(|p| p[0].offset + p[0].length > p[1].offset) {
            let (a, b) = (pair[0].offset, pair[1].offset);
            return Err(damaged(path, format!("objects at {a} and {b} overlap")));
        }
        Ok(Table { header, all })
    }
}

impl Sif {
    /// Reads header and descriptors.
    pub fn read(file: &File, path: &Path) -> Result<Sif> {
        let Table { all, .. } = Table::read(file, path)?;
        let mut roots = all.iter().filter(|d| d.is_root());
        let root = roots.next().ok_or_else(|| {
            let what = format!(
                "the SIF file {} has no primary partition: it holds no root file system",
                path.display()
            );
            Error::new(
                Kind::Unknown,
                what,
                "OCI-SIF and data containers cannot be run; pull the image itself, or build a SIF of it",
            )
        })?;
        if roots.next().is_some() {
            return Err(damaged(path, "it has two primary partitions".to_owned()));
        }
        match u32_at(root.extra(), 0) {
            SQUASHFS => {}
            ENCRYPTED => {
                let what = format!("the SIF file {} is encrypted", path.display());
                return Err(Error::new(
                    Kind::Unsupported,
                    what,
                    "build it without --encrypt: only setuid installations of Singularity can open it, with its key",
                ));
            }
            other => {
                let name = match other {
                    2 => "an ext3 file system".to_owned(),
                    3 => "an archive".to_owned(),
                    4 => "raw data".to_owned(),
                    other => format!("of the unknown type {other}"),
                };
                let what = format!("the root of the SIF file {} is {name}", path.display());
                return Err(Error::new(
                    Kind::Unsupported,
                    what,
                    "build it anew: `apptainer build NEW.sif OLD.sif` makes a SquashFS",
                ));
            }
        }
        let labels = all.iter().find(|d| d.kind == LABELS && d.length <= MAX_TEXT);
        let labels = match labels {
            Some(d) => labels_of(&read(file, path, d.offset, d.length as usize)?),
            None => BTreeMap::new(),
        };
        Ok(Sif {
            offset: root.offset,
            length: root.length,
            platform: Platform {
                architecture: architecture(&root.extra()[8..]),
                os: "linux".to_owned(),
                variant: None,
            },
            labels,
            signatures: all.iter().filter(|d| d.kind == SIGNATURE).count(),
        })
    }
}

/// JSON; what is no text is passed over.
fn labels_of(bytes: &[u8]) -> BTreeMap<String, String> {
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |p| p + 1);
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes[..end]).unwrap_or_default();
    all.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Type, offset, length, type of file system, type of partition.
    pub(super) type Object = (u32, i64, i64, u32, u32);

    pub(super) fn made(objects: &[Object]) -> Vec<u8> {
        let mut bytes = vec![0u8; 65536];
        bytes[..32].copy_from_slice(b"#!/usr/bin/env run-singularity\n\0");
        bytes[32..42].copy_from_slice(MAGIC);
        bytes[42..48].copy_from_slice(b"01\x0002\0");
        let mut put = |at: usize, n: i64| bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
        put(88, 48);
        put(96, 4096);
        for (i, (kind, offset, length, fs, part)) in objects.iter().enumerate() {
            let at = 4096 + i * DESCRIPTOR;
            put(at + 17, *offset);
            put(at + 25, *length);
            put(at, i64::from(*kind) | 1 << 32);
            put(at + 201, i64::from(*fs) | i64::from(*part) << 32);
            put(at + 209, i64::from_le_bytes(*b"02\0\0\0\0\0\0"));
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Sif> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Sif::read(file.as_file(), Path::new("x.sif"))
    }

    pub(super) const ROOT: Object = (PARTITION, 40960, 4096, SQUASHFS, PRIMARY);

    #[test]
    fn the_primary_partition_is_found() {
        let mut bytes = made(&[(LABELS, 35000, 20, 0, 0), ROOT, (SIGNATURE, 50000, 10, 0, 0)]);
        bytes[35000..35020].copy_from_slice(b"{\"a\":\"b\",\"c\":3}\0\0\0\0\0");
        let sif = read(&bytes).unwrap();
        assert_eq!((sif.offset, sif.length, sif.signatures), (40960, 4096, 1));
        assert_eq!(sif.platform.architecture, "amd64");
        assert_eq!(sif.labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (objects, why) in [
            (vec![(PARTITION, 40960, i64::MAX, SQUASHFS, PRIMARY)], "lies behind its end at 65536"),
            (vec![(PARTITION, i64::MAX, 1, SQUASHFS, PRIMARY)], "lies behind its end"),
            (vec![(PARTITION, -1, 1, SQUASHFS, PRIMARY)], "its object's place is -1"),
            (vec![(PARTITION, 40960, -5, SQUASHFS, PRIMARY)], "its object's length is -5"),
            (vec![(PARTITION, 0, 65536, SQUASHFS, PRIMARY)], "lies over the header"),
            (vec![(PARTITION, 4000, 9000, SQUASHFS, PRIMARY)], "lies over the header"),
            (vec![ROOT, (LABELS, 41000, 10, 0, 0)], "objects at 40960 and 41000 overlap"),
            (vec![ROOT, (PARTITION, 50000, 10, SQUASHFS, PRIMARY)], "two primary partitions"),
            (vec![(PARTITION, 40960, 10, SQUASHFS, 3)], "has no primary partition"),
            (vec![(PARTITION, 40960, 10, ENCRYPTED, PRIMARY)], "is encrypted"),
            (vec![(PARTITION, 40960, 10, 2, PRIMARY)], "is an ext3 file system"),
            (vec![(PARTITION, 40960, 10, 77, PRIMARY)], "of the unknown type 77"),
        ] {
            let e = read(&made(&objects)).unwrap_err();
            assert!(e.what.contains(why), "{} instead of {why}", e.what);
        }
        let mut bytes = made(&[ROOT]);
        bytes[88..96].copy_from_slice(&(1i64 << 40).to_le_bytes());
        assert!(read(&bytes).unwrap_err().what.contains("it has 1099511627776 descriptors"));
        bytes[88..96].copy_from_slice(&48i64.to_le_bytes());
        bytes[96..104].copy_from_slice(&i64::MAX.to_le_bytes());
        assert!(read(&bytes).unwrap_err().what.contains("lie behind its end"));
        bytes[42] = b'9';
        assert!(read(&bytes).unwrap_err().what.contains("SIF of version 91"));
        assert!(read(&bytes[..100]).unwrap_err().what.contains("it is cut short"));
    }
}

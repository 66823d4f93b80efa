//! `plan --lock` and `plan --diff`: every file of the host that an injection puts into a container, by its bytes,
//! to be compared with another site's, or with the same one's of last month.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use abi_probe::fabric::Fabric;
use abi_probe::inject::Injection;
use abi_probe::mpi::Mpi;
use abi_probe::rootfs::{Kind, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Code, Error, Result};

/// The layout's version.
const VERSION: u32 = 1;
/// More files than any MPI has beside its library.
const MAX_FILES: usize = 16384;
/// Directories below each other.
const MAX_DEPTH: usize = 16;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// On the host, without links.
    pub source: PathBuf,
    /// Its bytes.
    pub sha256: String,
    /// How many.
    pub size: u64,
    /// Why it is there.
    pub why: String,
}

/// All of them, by their paths inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// As the plan names it.
    image: PathBuf,
    /// The program.
    program: PathBuf,
    /// The host's MPI; none: the image's own is used.
    host_mpi: Option<String>,
    /// The host's fabrics beneath the image's own MPI.
    #[serde(default)]
    host_fabrics: Vec<String>,
    /// By path inside.
    files: BTreeMap<PathBuf, Locked>,
}

impl Lock {
    /// Reads every file of an injection from the host.
    pub fn of(image: &Path, program: &Path, injection: Option<&Injection>, host: &View) -> Result<Lock> {
        let mut lock = Lock {
            version: VERSION,
            image: image.to_owned(),
            program: program.to_owned(),
            host_mpi: injection.and_then(|i| i.mpi.as_ref()).map(Mpi::describe),
            host_fabrics: injection.iter().flat_map(|i| i.fabrics.iter().map(Fabric::describe)).collect(),
            files: BTreeMap::new(),
        };
        let Some(injection) = injection else { return Ok(lock) };
        for link in &injection.links {
            lock.add(&link.source, &injection.library_path.join(&link.name), &link.why, host, 0)?;
        }
        for shown in &injection.shown {
            // Trees that only hold what the links lead to are not looked into.
            let holds = shown.directory && injection.links.iter().any(|l| l.target.starts_with(&shown.at));
            if !holds {
                lock.add(&shown.source, &shown.at, &shown.why, host, 0)?;
            }
        }
        Ok(lock)
    }

    fn add(&mut self, source: &Path, at: &Path, why: &str, host: &View, depth: usize) -> Result<()> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(
                Code::BindSource,
                format!("cannot read {} for the lock: {e}", source.display()),
                "every file that would be injected must be readable",
            )
        };
        let Some(entry) = host.find(source).map_err(|e| failed(&e))? else {
            // A link that leads nowhere is no file.
            return Ok(());
        };
        match entry.kind {
            Kind::Directory if depth < MAX_DEPTH => {
                for name in entry.list(MAX_FILES).map_err(|e| failed(&e))?.0 {
                    self.add(&entry.path.join(&name), &at.join(&name), why, host, depth + 1)?;
                }
            }
            Kind::File if self.files.len() < MAX_FILES => {
                let mut file = host.open_file(&entry).map_err(|e| failed(&e))?;
                let (mut hash, mut piece, mut size) = (Sha256::new(), vec![0; 1 << 16], 0);
                loop {
                    match file.read(&mut piece).map_err(|e| failed(&e))? {
                        0 => break,
                        n => {
                            hash.update(&piece[..n]);
                            size += n as u64;
                        }
                    }
                }
                let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                let locked = Locked { source: entry.path.clone(), sha256, size, why: why.to_owned() };
                self.files.insert(at.to_owned(), locked);
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads one that was written before.
    pub fn read(path: &Path) -> Result<Lock> {
        let bad = |e: &dyn std::fmt::Display| {
            Error::new(
                Code::Usage,
                format!("{} is no lock: {e}", path.display()),
                "make one with hpc-launch plan --lock FILE IMAGE COMMAND",
            )
        };
        let text = std::fs::read_to_string(path).map_err(|e| bad(&e))?;
        let lock: Lock = serde_json::from_str(&text).map_err(|e| bad(&e))?;
        if lock.version != VERSION {
            return Err(bad(&format!("its version is {}, not {VERSION}", lock.version)));
        }
        Ok(lock)
    }

    /// How many files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// What is another one here than there, a line each.
    pub fn differences(&self, there: &Lock) -> Vec<String> {
        let mut lines = Vec::new();
        let or_none =
            |mpi: &Option<String>| mpi.clone().unwrap_or_else(|| "none, the image's own".to_owned());
        if self.host_mpi != there.host_mpi {
            let (here, there) = (or_none(&self.host_mpi), or_none(&there.host_mpi));
            lines.push(format!("host MPI: here {here}; there {there}"));
        }
        if self.host_fabrics != there.host_fabrics {
            let list = |lock: &Lock| match lock.host_fabrics.as_slice() {
                [] => "the image's own".to_owned(),
                some => some.join(", "),
            };
            lines.push(format!("fabrics: here {}; there {}", list(self), list(there)));
        }
        let all: std::collections::BTreeSet<&PathBuf> = self.files.keys().chain(there.files.keys()).collect();
        for at in all {
            let line = match (self.files.get(at), there.files.get(at)) {
                (Some(here), Some(there)) if here.sha256 == there.sha256 => continue,
                (Some(here), Some(there)) => format!(
                    "{}: here {} ({} bytes, {:.12}); there {} ({} bytes, {:.12})",
                    at.display(),
                    here.source.display(),
                    here.size,
                    here.sha256,
                    there.source.display(),
                    there.size,
                    there.sha256
                ),
                (Some(here), None) => {
                    format!("{}: only here, {} ({})", at.display(), here.source.display(), here.why)
                }
                (None, Some(there)) => {
                    format!("{}: only there, {} ({})", at.display(), there.source.display(), there.why)
                }
                (None, None) => continue,
            };
            lines.push(line);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(files: &[(&str, &str)]) -> Lock {
        let file = |sha256: &str| Locked {
            source: PathBuf::from("/host/file"),
            sha256: sha256.to_owned(),
            size: 1,
            why: "a reason".to_owned(),
        };
        Lock {
            version: VERSION,
            image: "/i".into(),
            program: "/p".into(),
            host_mpi: Some("an MPI".to_owned()),
            host_fabrics: Vec::new(),
            files: files.iter().map(|(at, sha)| (PathBuf::from(at), file(sha))).collect(),
        }
    }

    #[test]
    fn differences_name_the_file_and_both_sides() {
        let (here, there) =
            (lock(&[("/a", "1"), ("/b", "2"), ("/c", "3")]), lock(&[("/a", "1"), ("/b", "9"), ("/d", "4")]));
        let lines = here.differences(&there);
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].starts_with("/b: here /host/file"), "{lines:#?}");
        assert_eq!(lines[1], "/c: only here, /host/file (a reason)");
        assert_eq!(lines[2], "/d: only there, /host/file (a reason)");
        assert!(here.differences(&here).is_empty());
    }
}

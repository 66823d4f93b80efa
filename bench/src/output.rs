//! Where results go: whole files or none, so that what was there before is not lost to a full disk.

use crate::document::Document;
use crate::error::Error;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The samples, as they come.
pub const SAMPLES: &str = "samples.jsonl";
const JSON: &str = "report.json";

/// The files that were asked for.
#[derive(Debug, Default)]
pub struct Outputs {
    /// A directory for all of them, and for the samples as they come.
    pub directory: Option<PathBuf>,
    /// The document alone.
    pub json: Option<PathBuf>,
}

impl Outputs {
    /// Makes the directory and tries to write where the JSON is to be: a typing error must not cost a measurement.
    pub fn prepare(&self, again: bool) -> Result<(), Error> {
        if let Some(dir) = &self.directory {
            fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
            if again {
                for name in [SAMPLES, JSON] {
                    match fs::remove_file(dir.join(name)) {
                        Err(e) if e.kind() != io::ErrorKind::NotFound => {
                            return Err(failed(&dir.join(name), &e));
                        }
                        _ => {}
                    }
                }
            }
            if is_finished(&dir.join(JSON)) {
                return Err(Error::new(
                    format!("measure into {}", dir.display()),
                    "it holds a finished measurement",
                    "give another --out, or --again to throw that one away",
                ));
            }
            temporary(&dir.join(JSON))?;
        }
        match &self.json {
            Some(path) if path.is_file() => {
                File::options().append(true).open(path).map(drop).map_err(|e| failed(path, &e))
            }
            Some(path) if path.metadata().is_ok_and(|meta| !meta.is_dir()) => Ok(()),
            Some(path) => temporary(path).map(drop),
            None => Ok(()),
        }
    }

    /// Writes all of them.
    pub fn write(&self, document: &Document) -> Result<(), Error> {
        if let Some(path) = &self.json {
            json(path, document)?;
        }
        if let Some(dir) = &self.directory {
            json(&dir.join(JSON), document)?;
        }
        Ok(())
    }
}

/// Whether a report is there that needs no more samples.
fn is_finished(path: &Path) -> bool {
    let Ok(text) = fs::read(path) else { return false };
    let document: Result<Document, _> = serde_json::from_slice(&text);
    document.is_ok_and(|document| !document.interrupted)
}

/// Writes `value` as JSON.
pub fn json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|e| failed(path, &e))?;
    whole(path, &(text + "\n"))
}

/// Puts `text` in the place of `path`, all of it or nothing. What is no regular file (/dev/stdout, a pipe), or lies
/// where this user can make no file beside it, is written to.
pub fn whole(path: &Path, text: &str) -> Result<(), Error> {
    let there = path.metadata().ok();
    if there.as_ref().is_some_and(|meta| !meta.is_file()) {
        return fs::write(path, text).map_err(|e| failed(path, &e));
    }
    let mut file = match temporary(path) {
        Err(_) if there.is_some() => return fs::write(path, text).map_err(|e| failed(path, &e)),
        file => file?,
    };
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(|e| failed(path, &e))?;
    file.persist(path).map_err(|e| failed(path, &e.error))?;
    Ok(())
}

fn temporary(path: &Path) -> Result<NamedTempFile, Error> {
    if path.is_dir() {
        return Err(failed(path, &"it is a directory"));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    tempfile::Builder::new().permissions(mode).tempfile_in(dir).map_err(|e| failed(path, &e))
}

fn failed(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(
        format!("write {}", path.display()),
        why,
        "make room there, or give another path; what was there before is as it was",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        whole(&path, "one").unwrap();
        whole(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = whole(dir.path(), "x").unwrap_err().to_string();
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        let error = whole(&dir.path().join("no/such"), "x").unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
        let error = whole(Path::new("/dev/full"), "x").unwrap_err().to_string();
        assert!(error.contains("No space left") && error.contains("make room"), "{error}");
    }
}

//! Where results go: whole files or none, so that what was there before is not lost to a full disk.

use crate::document::Document;
use crate::error::Error;
use crate::publish::publish;
use crate::{csv, page};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The samples, as they come.
pub const SAMPLES: &str = "samples.jsonl";
const JSON: &str = "report.json";
const CSV: &str = "report.csv";
const PAGE: &str = "report.html";

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
        let broken = |e: serde_json::Error| Error::new("write the report as JSON", e, "report this as a bug");
        let json = serde_json::to_string_pretty(document).map_err(broken)? + "\n";
        let alone = match &self.json {
            Some(path) => publish(path, json.as_bytes(), "--json"),
            None => Ok(()),
        };
        if let Some(dir) = &self.directory {
            publish(&dir.join(CSV), csv::csv(document).as_bytes(), "--out")?;
            publish(&dir.join(PAGE), page::html(document).as_bytes(), "--out")?;
            // Last: it says that there is nothing left to do.
            publish(&dir.join(JSON), json.as_bytes(), "--out")?;
        }
        alone
    }
}

/// Whether a report is there that needs no more samples.
fn is_finished(path: &Path) -> bool {
    let Ok(text) = fs::read(path) else { return false };
    let document: Result<Document, _> = serde_json::from_slice(&text);
    document.is_ok_and(|document| !document.interrupted)
}

fn temporary(path: &Path) -> Result<NamedTempFile, Error> {
    if path.is_dir() {
        return Err(failed(path, &"it is a directory"));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    NamedTempFile::new_in(dir).map_err(|e| failed(path, &e))
}

fn failed(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(
        format!("write {}", path.display()),
        why,
        "make room there, or give another path; what was there before is as it was",
    )
}

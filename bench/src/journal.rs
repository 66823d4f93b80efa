//! Samples as they are taken, one line of JSON each: what an interruption, a full disk or a crash leaves is a prefix
//! of whole lines, and the same command goes on from there.

use crate::error::Error;
use crate::run::Failure;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The first line: whose samples these are.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Head {
    format: String,
    version: u32,
    /// When the measurement began, RFC 3339.
    began: String,
    /// What the samples depend on, as words: the command, the programs, the images.
    of: Vec<String>,
}

/// One sample.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// The table.
    key: String,
    row: String,
    round: usize,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    value: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    /// How long it took, everything included.
    seconds: f64,
}

const FORMAT: &str = "hpc-bench samples";
const VERSION: u32 = 1;
/// In the place of a table's key.
const NOTED: &str = "noted";

/// Table, row, round.
type Place = (String, String, usize);

/// The file, and what was in it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    began: String,
    kept: HashMap<Place, (Value, Option<Failure>, f64)>,
    /// Why a line could not be written; samples go on to the report all the same.
    broken: Option<String>,
}

impl Journal {
    /// Opens `path`, or makes it. Samples of another command, program or image are refused: mixed tables mean nothing.
    pub fn open(path: &Path, began: &str, of: &[String]) -> Result<Self, Error> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(
                format!("keep samples in {}", path.display()),
                e,
                "give --out a directory you may write",
            )
        };
        let mut file =
            File::options().create(true).read(true).append(true).open(path).map_err(|e| failed(&e))?;
        let text = fs::read_to_string(path).map_err(|e| failed(&e))?;
        // A line without its end was being written when something happened.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(|e| failed(&e))?;
        let mut lines = text[..whole].lines().enumerate();
        let unreadable = |number: usize, why: &dyn std::fmt::Display| {
            Error::new(
                format!("go on with the samples in {}", path.display()),
                format!("line {}: {why}", number + 1),
                "remove that file, or give another --out",
            )
        };
        let head = Head { format: FORMAT.into(), version: VERSION, began: began.into(), of: of.to_vec() };
        let mut kept = HashMap::new();
        let began = match lines.next() {
            None => {
                let text = serde_json::to_string(&head).map_err(|e| failed(&e))?;
                writeln!(file, "{text}").map_err(|e| failed(&e))?;
                head.began
            }
            Some((number, line)) => {
                let found: Head = serde_json::from_str(line).map_err(|e| unreadable(number, &e))?;
                if let Some(why) = difference(&found, &head) {
                    return Err(Error::new(
                        format!("go on with the samples in {}", path.display()),
                        why,
                        "give another --out, or --again to throw them away",
                    ));
                }
                found.began
            }
        };
        for (number, line) in lines {
            let line: Line = serde_json::from_str(line).map_err(|e| unreadable(number, &e))?;
            kept.insert((line.key, line.row, line.round), (line.value, line.failure, line.seconds));
        }
        Ok(Journal { path: path.to_owned(), file, began, kept, broken: None })
    }

    /// When the measurement began, which may be long before this process.
    pub fn began(&self) -> &str {
        &self.began
    }

    /// How many samples were kept of earlier.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is a sample of an earlier process.
    pub fn has(&self, key: &str, row: &str, round: usize) -> bool {
        self.kept.contains_key(&(key.to_owned(), row.to_owned(), round))
    }

    /// A sample of an earlier process, with how long it took.
    pub fn find<T: DeserializeOwned>(
        &self,
        key: &str,
        row: &str,
        round: usize,
    ) -> Option<(Result<T, Failure>, f64)> {
        // Built for the look-up only; a few microseconds, outside of any timed part.
        let (value, failure, seconds) = self.kept.get(&(key.to_owned(), row.to_owned(), round))?;
        let outcome = match failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(T::deserialize(value).ok()?),
        };
        Some((outcome, *seconds))
    }

    /// Keeps a sample. What cannot be written is said once, at the end.
    pub fn keep<T: Serialize>(
        &mut self,
        key: &str,
        row: &str,
        round: usize,
        outcome: &Result<T, Failure>,
        seconds: f64,
    ) {
        if self.broken.is_some() {
            return;
        }
        let written = match outcome {
            Ok(value) => serde_json::to_value(value).map(|value| (value, None)),
            Err(failure) => Ok((Value::Null, Some(failure.clone()))),
        };
        let line = written.and_then(|(value, failure)| {
            serde_json::to_string(&Line { key: key.into(), row: row.into(), round, value, failure, seconds })
        });
        let end = self.file.metadata().map(|m| m.len());
        let done =
            line.map_err(io::Error::from).and_then(|line| self.file.write_all((line + "\n").as_bytes()));
        if let Err(e) = done {
            // Not half a line: a reader would stop there.
            if let Ok(end) = end {
                let _ = self.file.set_len(end);
            }
            self.broken = Some(e.to_string());
        }
    }

    /// Notes what the samples depend on, or finds that those there depend on something else.
    pub fn insist(&mut self, what: &str, value: &str) -> Result<(), Error> {
        match self.find::<String>(NOTED, what, 0) {
            None => {
                self.keep(NOTED, what, 0, &Ok(value), 0.0);
                self.kept.insert((NOTED.into(), what.into(), 0), (value.into(), None, 0.0));
            }
            Some((Ok(found), _)) if found == value => {}
            Some((found, _)) => {
                let found = found.unwrap_or_else(|failure| failure.status);
                return Err(Error::new(
                    format!("go on with the samples in {}", self.path.display()),
                    format!("{what} was {found} then and is {value} now"),
                    "give another --out, or --again to throw them away",
                ));
            }
        }
        Ok(())
    }

    /// Why samples after some point are not in the file.
    pub fn trouble(&self) -> Option<Error> {
        let why = self.broken.as_ref()?;
        Some(Error::new(
            format!("keep every sample in {}", self.path.display()),
            why,
            "make room there; those before are kept, and the same command goes on after them",
        ))
    }
}

/// What makes kept samples useless for this run.
fn difference(found: &Head, wanted: &Head) -> Option<String> {
    if (found.format.as_str(), found.version) != (FORMAT, VERSION) {
        return Some(format!("it is {} {}, not {FORMAT} {VERSION}", found.format, found.version));
    }
    let pairs = found.of.iter().zip(&wanted.of).find(|(a, b)| a != b);
    match pairs {
        Some((theirs, ours)) => Some(format!("they are of {theirs}, this is {ours}")),
        None if found.of.len() != wanted.of.len() => Some("they are of another command".into()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn what_was_kept_is_found_again_and_a_torn_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let mut journal = Journal::open(&path, "then", &of(&["start"])).unwrap();
        journal.keep("t", "bare", 0, &Ok(1.5), 0.1);
        journal.keep::<f64>("t", "bare", 1, &Err(Failure::new("exit 1", "no")), 0.2);
        drop(journal);
        File::options().append(true).open(&path).unwrap().write_all(b"{\"key\":\"t\",\"ro").unwrap();
        let mut journal = Journal::open(&path, "now", &of(&["start"])).unwrap();
        assert_eq!((journal.began(), journal.len()), ("then", 2));
        assert_eq!(journal.find::<f64>("t", "bare", 0), Some((Ok(1.5), 0.1)));
        assert_eq!(journal.find::<f64>("t", "bare", 1), Some((Err(Failure::new("exit 1", "no")), 0.2)));
        assert_eq!(journal.find::<f64>("t", "bare", 2), None);
        journal.keep("t", "bare", 2, &Ok(2.5), 0.1);
        drop(journal);
        let mut journal = Journal::open(&path, "now", &of(&["start"])).unwrap();
        assert_eq!(journal.len(), 3);
        journal.insist("the image", "sha256:1").unwrap();
        journal.insist("the image", "sha256:1").unwrap();
        let error = journal.insist("the image", "sha256:2").unwrap_err().to_string();
        assert!(error.contains("the image was sha256:1 then and is sha256:2 now"), "{error}");
    }

    #[test]
    fn samples_of_something_else_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        Journal::open(&path, "then", &of(&["image a", "start"])).unwrap();
        let error = Journal::open(&path, "now", &of(&["image b", "start"])).unwrap_err().to_string();
        assert!(error.contains("they are of image a, this is image b"), "{error}");
        fs::write(&path, "{\"x\":1}\n").unwrap();
        let error = Journal::open(&path, "now", &of(&[])).unwrap_err().to_string();
        assert!(error.contains("line 1: missing field"), "{error}");
    }

    #[test]
    fn a_full_disk_keeps_what_was_there() {
        // Writing to /dev/full gives ENOSPC; what is read of it is endless, so the journal is put together by hand.
        let file = File::options().append(true).open("/dev/full").unwrap();
        let mut journal = Journal {
            path: "/dev/full".into(),
            file,
            began: String::new(),
            kept: HashMap::new(),
            broken: None,
        };
        journal.keep("t", "bare", 0, &Ok(1.0), 0.1);
        let error = journal.trouble().unwrap().to_string();
        assert!(error.contains("No space left on device") && error.contains("/dev/full"), "{error}");
    }
}

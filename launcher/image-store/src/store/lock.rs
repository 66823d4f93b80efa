//! One at a time makes an image; the others wait, are told how far it is, and find it made.
//!
//! The lock is flock(2)'s: the kernel drops it with its owner, on this node and, where the file system knows locks (NFS 4,
//! Lustre with -o flock, GPFS), on all. Where it does not, work is done twice; nothing else depends on it.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use super::work::{myself, unsupported};
use super::{LOCKS, Store};
use crate::error::{Error, Kind, Result};

const POLL: Duration = Duration::from_millis(50);

/// A lock that is held.
#[derive(Debug)]
pub struct Held {
    file: File,
    /// Its owner, by a name that stays.
    who: String,
    since: Instant,
    told: Instant,
}

/// Who waits looks as often.
const TELL: Duration = Duration::from_millis(500);

impl Held {
    /// Tells those who wait, if they have not heard for a while.
    pub fn tell_now_and_then(&mut self, text: &str) {
        if self.told.elapsed() > TELL {
            self.tell(text);
        }
    }

    /// Tells those who wait.
    pub fn tell(&mut self, text: &str) {
        self.told = Instant::now();
        // As long as its owner lives, a lock says something new.
        let line = format!("{} {text}, for {} s\n", self.who, self.since.elapsed().as_secs());
        // They only read it: a failure loses nothing but words.
        let _ = self
            .file
            .rewind()
            .and_then(|()| self.file.set_len(0))
            .and_then(|()| self.file.write_all(line.as_bytes()));
    }
}

/// What waiting came to.
#[derive(Debug)]
pub enum Turn {
    /// It is our turn.
    Ours(Held),
    /// The file system knows no locks.
    Without,
}

impl Store {
    /// Waits for the lock of that name. `waiting` is told what the one who has it says, whenever that changes; it must
    /// change within `patience`.
    pub fn turn(&self, key: &str, patience: Duration, mut waiting: impl FnMut(&str)) -> Result<Turn> {
        let path = self.root.join(LOCKS).join(key);
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(|e| Error::writing(&path, &e))?;
        let mut said = String::new();
        let mut since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => {
                    let mut held = Held { file, who: myself(), since: Instant::now(), told: since };
                    held.tell("has begun");
                    return Ok(Turn::Ours(held));
                }
                Err(TryLockError::Error(e)) if unsupported(&e) => return Ok(Turn::Without),
                Err(TryLockError::Error(e)) => return Err(Error::writing(&path, &e)),
                Err(TryLockError::WouldBlock) => {}
            }
            let mut text = String::new();
            let read = File::open(&path).and_then(|f| f.take(200).read_to_string(&mut text));
            if read.is_ok() && !text.is_empty() && text != said {
                said = text;
                since = Instant::now();
                waiting(said.trim());
            }
            if since.elapsed() > patience {
                return Err(Error::new(
                    Kind::Busy,
                    format!(
                        "{} has held {} for {} s without proceeding",
                        said.trim(),
                        path.display(),
                        patience.as_secs()
                    ),
                    "end that process (host, number) if it hangs, and try again; lock_timeout in the configuration sets how long to wait",
                ));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// How long to wait for one who collects garbage, or for those who publish.
const GUARD: Duration = Duration::from_secs(30);

/// While this is held nothing is collected (shared), or nothing published (exclusive).
#[derive(Debug)]
pub struct Guard(#[expect(dead_code, reason = "held, not read")] Option<File>);

impl Store {
    /// Keeps an image that has no name yet from being collected, until it has one.
    pub fn publishing(&self) -> Guard {
        self.guard(File::try_lock_shared)
    }

    /// Keeps others from publishing what is about to be collected.
    pub fn collecting(&self) -> Guard {
        self.guard(File::try_lock)
    }

    fn guard(&self, lock: impl Fn(&File) -> std::result::Result<(), TryLockError>) -> Guard {
        let path = self.root.join(LOCKS).join("store");
        let Ok(file) = File::options().read(true).write(true).create(true).truncate(false).open(&path) else {
            return Guard(None);
        };
        let since = Instant::now();
        while since.elapsed() < GUARD {
            match lock(&file) {
                Ok(()) => return Guard(Some(file)),
                Err(TryLockError::Error(_)) => break,
                Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
            }
        }
        Guard(None)
    }
}

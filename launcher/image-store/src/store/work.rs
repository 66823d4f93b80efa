//! Directories in which something is being written, and what becomes of them when their writers die.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::{Store, WORK};
use crate::error::{Error, Kind, Result};

/// Held by the writer as long as it lives.
const LOCK: &str = "lock";
/// What has no lock and has not changed for so long was left by somebody who died while making it.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Where locks do not work, a writer is taken for dead after this.
const LONG_DEAD: Duration = Duration::from_secs(7 * 24 * 3600);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Unique on all hosts that share a store, for as long as this process lives.
pub fn myself() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host: String =
        host.to_string_lossy().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    format!("{host}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A directory of one's own in a store. It goes when this goes.
#[derive(Debug)]
pub struct Work {
    directory: PathBuf,
    _lock: File,
}

impl Work {
    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Store {
    /// A directory to write in; those of dead writers are removed first.
    pub fn work(&self) -> Result<Work> {
        self.clean()?;
        for _ in 0..16 {
            let directory = self.root.join(WORK).join(myself());
            fs::create_dir(&directory).map_err(|e| Error::writing(&directory, &e))?;
            let path = directory.join(LOCK);
            let file = File::create(&path).map_err(|e| Error::writing(&path, &e))?;
            match file.try_lock() {
                Ok(()) => {}
                // A cleaner was faster, and removes it.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) if unsupported(&e) => {}
                Err(TryLockError::Error(e)) => return Err(Error::writing(&path, &e)),
            }
            let work = Work { directory, _lock: file };
            let mine = work._lock.metadata().map(|m| m.ino()).ok();
            if mine.is_some() && fs::metadata(&path).map(|m| m.ino()).ok() == mine {
                return Ok(work);
            }
        }
        let what = format!(
            "cannot make a directory in {}: others remove it at once",
            self.root.join(WORK).display()
        );
        Err(Error::new(Kind::Busy, what, "try again"))
    }

    /// Removes what dead writers left. Answers what that was.
    pub fn clean(&self) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for name in super::list(&self.root.join(WORK))? {
            let path = self.root.join(WORK).join(name);
            if is_dead(&path) {
                let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                // Somebody else's in a shared store: not ours to remove.
                if gone.is_ok() {
                    removed.push(path);
                }
            }
        }
        Ok(removed)
    }
}

/// Whether the writer of this is dead.
pub fn is_dead(path: &Path) -> bool {
    let age = |path: &Path| {
        let modified = fs::symlink_metadata(path).and_then(|m| m.modified()).ok()?;
        SystemTime::now().duration_since(modified).ok()
    };
    let older = |path: &Path, than: Duration| age(path).is_some_and(|a| a > than);
    match File::open(path.join(LOCK)) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(_)) => older(path, LONG_DEAD),
        },
        // A file on its way, or a directory that has no lock yet.
        Err(_) => older(path, ABANDONED),
    }
}

/// Whether a file system has no locks (Lustre without -o flock, NFS without lockd).
pub fn unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(code) if [nix::errno::Errno::ENOSYS as i32, nix::errno::Errno::ENOLCK as i32, nix::errno::Errno::EOPNOTSUPP as i32].contains(&code))
}

//! Directories in which something is being written, and what becomes of them when their writers die.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::{Store, WORK};
use crate::error::{Error, Kind, Result};

/// Beside a directory: held by its writer as long as that lives. It is there before the directory, and after it.
const LOCK: &str = ".lock";
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
    lock: File,
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
        let _ = fs::remove_file(lock_of(&self.directory));
    }
}

impl Store {
    /// A directory to write in; those of dead writers are removed first.
    pub fn work(&self) -> Result<Work> {
        self.clean()?;
        self.directory()
    }

    /// A directory to write in.
    pub(super) fn directory(&self) -> Result<Work> {
        for _ in 0..16 {
            let directory = self.root.join(WORK).join(myself());
            let path = lock_of(&directory);
            let lock = File::create(&path).map_err(|e| Error::writing(&path, &e))?;
            match lock.try_lock() {
                Ok(()) => {}
                // A cleaner was faster, and removes it.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) if unsupported(&e) => {}
                Err(TryLockError::Error(e)) => return Err(Error::writing(&path, &e)),
            }
            let work = Work { directory, lock };
            let inode = |meta: io::Result<fs::Metadata>| meta.map(|m| m.ino()).ok();
            if inode(work.lock.metadata()) == inode(fs::metadata(&path)) {
                fs::create_dir(&work.directory).map_err(|e| Error::writing(&work.directory, &e))?;
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
        for path in self.all_work()? {
            let Some(_lock) = dead(&path) else { continue };
            let gone = match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => fs::remove_file(lock_of(&path)),
            };
            // Somebody else's in a shared store is not ours to remove.
            if gone.is_ok() || !path.exists() {
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// What dead writers have left.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        Ok(self.all_work()?.into_iter().filter(|path| dead(path).is_some()).collect())
    }

    /// Directories of writers, with those that are gone but for their lock.
    fn all_work(&self) -> Result<BTreeSet<PathBuf>> {
        let directory = self.root.join(WORK);
        let name = |name: String| name.strip_suffix(LOCK).map(String::from).unwrap_or(name);
        Ok(super::list(&directory)?.into_iter().map(|n| directory.join(name(n))).collect())
    }
}

fn lock_of(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(LOCK);
    name.into()
}

/// Its lock, if the writer of this directory is dead.
fn dead(directory: &Path) -> Option<Option<File>> {
    let path = lock_of(directory);
    match File::open(&path) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Some(Some(lock)),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Error(_)) => {
                let modified = fs::metadata(&path).and_then(|m| m.modified()).ok()?;
                let age = SystemTime::now().duration_since(modified).ok()?;
                (age > LONG_DEAD).then_some(None)
            }
        },
        // Without a lock there is no writer any more.
        Err(e) => (e.kind() == io::ErrorKind::NotFound).then_some(None),
    }
}

/// Whether a file system has no locks (Lustre without -o flock, NFS without lockd).
pub fn unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(code) if [nix::errno::Errno::ENOSYS as i32, nix::errno::Errno::ENOLCK as i32, nix::errno::Errno::EOPNOTSUPP as i32].contains(&code))
}

//! The image cache: finished things under a name that holds their recipe's key, one builder at a time.
//!
//! ```text
//! images/NAME-KEY, NAME-KEY.sqfs    finished images
//! hosts/NAME-VERSION                MPIs for this host
//! parts/NAME-KEY                    what images are made of: unpacked roots, compilers, programs
//! apt/SUITE                         package lists and packages
//! tmp/                              what is being built, renamed into place when complete
//! ```

use crate::layout::CacheDirs;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// What has not been used for so long goes when something new is built.
const UNUSED_KEEP: Duration = Duration::from_secs(14 * 24 * 3600);

/// The cache for reading.
pub struct Cache {
    dirs: CacheDirs,
}

/// The cache for writing: while this lives, nobody else builds in it.
pub struct Builder {
    /// Where it is.
    pub dir: PathBuf,
    _lock: File,
}

impl Cache {
    /// Finds the cache; creates nothing.
    pub fn open() -> Result<Self> {
        Ok(Self { dirs: CacheDirs::find()? })
    }

    /// A finished thing, from our own cache or the machine's.
    pub fn find(&self, kind: &str, name: &str) -> Option<PathBuf> {
        let dirs = [&self.dirs.own, &self.dirs.system];
        let path = dirs.into_iter().map(|dir| dir.join(kind).join(name)).find(|path| path.exists())?;
        mark_used(&path);
        Some(path)
    }

    /// Waits for other builders, then locks the cache.
    pub fn builder(&self) -> Result<Builder> {
        let dir = self.dirs.own.clone();
        for sub in ["", "images", "hosts", "parts", "apt", "tmp"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
            // Whatever the umask: a test runs as another user than the one who has built.
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
        let path = dir.join("lock");
        let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("    waiting for another build in {}", dir.display());
            flock(&lock, FlockOperation::LockExclusive).context("flock")?;
        }
        // Whoever was killed while building left it here.
        remove(&dir.join("tmp"))?;
        fs::create_dir_all(dir.join("tmp"))?;
        Ok(Builder { dir, _lock: lock })
    }
}

impl Builder {
    /// Returns `KIND/NAME`, made by `make` at the temporary path that it is given if it is not there.
    pub fn ensure(&self, kind: &str, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.dir.join(kind).join(name);
        if !path.exists() {
            let temporary = self.dir.join("tmp").join(name);
            make(&temporary)?;
            fs::rename(&temporary, &path).with_context(|| format!("cannot rename to {}", path.display()))?;
        }
        mark_used(&path);
        Ok(path)
    }

    /// Removes what nobody has used for long.
    pub fn prune(&self) -> Result<()> {
        for kind in ["images", "hosts", "parts"] {
            for entry in fs::read_dir(self.dir.join(kind))? {
                let mark = entry?.path();
                if mark.extension().is_none_or(|ending| ending != "used") {
                    continue;
                }
                let age = SystemTime::now().duration_since(fs::metadata(&mark)?.modified()?);
                if age.is_ok_and(|age| age > UNUSED_KEEP) {
                    remove(&mark.with_extension(""))?;
                    remove(&mark)?;
                }
            }
        }
        Ok(())
    }
}

/// Removes a file or a tree, if it is there. A tree may hold directories without write permission
/// (images do), which stop a plain user until they are opened.
pub fn remove(path: &Path) -> Result<()> {
    if !path.is_dir() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        };
    }
    if fs::remove_dir_all(path).is_err() {
        crate::run::succeeds(Command::new("chmod").args(["-R", "u+rwX"]).arg(path));
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Leaves a file beside `path` whose time says when it was last asked for. Best effort: the machine's
/// cache is not ours to write in.
fn mark_used(path: &Path) {
    let mut mark = OsString::from(path);
    mark.push(".used");
    let _ = File::create(mark);
}

//! Where things are: the repository, its build output, the image cache.

use anyhow::{Context, Result, bail};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The directories that tasks work in.
pub struct Layout {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's output directory.
    pub target: PathBuf,
}

impl Layout {
    /// Looks at what cargo told us. The run-time value comes first: with a shared target directory
    /// this program may have been compiled in another clone.
    pub fn find() -> Self {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().expect("xtask/ lies in the repository").to_path_buf();
        let target = env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), |dir| root.join(dir));
        Self { root, target }
    }

    /// Where images are found by name.
    pub fn images(&self) -> PathBuf {
        self.root.join("target/images")
    }

    /// A fresh log file for the output of one step.
    pub fn log(&self, step: &str) -> Result<PathBuf> {
        let dir = self.root.join("target/xtask");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let log = dir.join(format!("{step}.log"));
        fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        Ok(log)
    }
}

/// Points `directory/NAME` at something.
pub fn link_to(directory: &Path, name: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let link = directory.join(name);
    if fs::read_link(&link).is_ok_and(|now| now == to) {
        return Ok(());
    }
    // Renamed over the old one, so that nobody finds it missing meanwhile.
    let temporary = directory.join(format!(".{name}.{}", std::process::id()));
    symlink(to, &temporary)?;
    fs::rename(&temporary, &link).with_context(|| format!("{} is in the way", link.display()))
}

/// The image cache of whoever runs us, and the machine-wide one, which root fills and all read.
pub struct CacheDirs {
    /// Where we write.
    pub own: PathBuf,
    /// Where we look first.
    pub system: PathBuf,
}

impl CacheDirs {
    /// `$HPC_LAUNCH_CACHE`, else `/var/cache/hpc-launch` for root and `~/.cache/hpc-launch` for users.
    pub fn find() -> Result<Self> {
        let mut system = PathBuf::from("/var/cache/hpc-launch");
        let own = if let Some(dir) = env::var_os("HPC_LAUNCH_CACHE") {
            let dir = PathBuf::from(dir);
            if !dir.is_absolute() {
                bail!("HPC_LAUNCH_CACHE={} is not an absolute path", dir.display());
            }
            // Named on purpose: no other one counts.
            system.clone_from(&dir);
            dir
        } else if is_root() {
            system.clone()
        } else {
            let home = env::var_os("HOME").context("neither HOME nor HPC_LAUNCH_CACHE is set")?;
            Path::new(&home).join(".cache/hpc-launch")
        };
        Ok(Self { own, system })
    }
}

/// Whether we are root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

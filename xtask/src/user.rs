//! The plain user that containers are run as, and a place from which that user can run them.

use crate::layout::{Layout, is_root};
use crate::run;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The account that root makes for it.
const NAME: &str = "hpcl";

/// Who runs containers.
pub enum PlainUser {
    /// Whoever runs us.
    Us,
    /// The account [`NAME`], since we are root.
    Account {
        /// Its home directory.
        home: PathBuf,
    },
}

impl PlainUser {
    /// Us, or the account, made if it is missing.
    pub fn get() -> Result<Self> {
        if !is_root() {
            return Ok(Self::Us);
        }
        let entry = || run::output(Command::new("getent").args(["passwd", NAME]));
        if entry().is_err() {
            eprintln!("==> making the user {NAME}, to run containers without privileges");
            run::output(Command::new("useradd").args(["--create-home", "--shell", "/bin/bash", NAME]))?;
        }
        let entry = entry()?;
        let home = entry.trim_end().split(':').nth(5).context("no home directory in getent's answer")?;
        Ok(Self::Account { home: home.into() })
    }

    /// The account's name, when it is not us.
    pub fn account(&self) -> Option<&'static str> {
        match self {
            Self::Us => None,
            Self::Account { .. } => Some(NAME),
        }
    }

    /// A command that the user runs in `dir`.
    pub fn command(&self, program: impl AsRef<Path>, dir: &Path) -> Command {
        let program = program.as_ref();
        let mut command = match self {
            Self::Us => Command::new(program),
            Self::Account { home } => {
                let mut command = Command::new("runuser");
                command.args(["-u", NAME, "--"]).arg(program);
                command.env("HOME", home).env("USER", NAME).env("LOGNAME", NAME);
                command.env_remove("XDG_RUNTIME_DIR");
                command
            }
        };
        command.current_dir(dir);
        command
    }

    fn can(&self, test: &str, path: &Path) -> bool {
        run::succeeds(self.command("test", Path::new("/")).arg(test).arg(path))
    }
}

/// A directory that the user can reach, with the launcher, and the images in `target/images`.
pub struct Stage {
    /// The directory: the repository where that will do.
    pub dir: PathBuf,
    /// The launcher.
    pub launcher: PathBuf,
}

impl Stage {
    /// The repository itself, or, when it lies where the user may not go (/root), a copy of the
    /// launcher and the same links to the images in the user's home.
    pub fn prepare(layout: &Layout, user: &PlainUser, launcher: &Path) -> Result<Self> {
        let images = layout.images();
        if user.can("-x", launcher) && user.can("-r", &images) {
            return Ok(Self { dir: layout.root.clone(), launcher: launcher.to_path_buf() });
        }
        let PlainUser::Account { home } = user else {
            bail!("cannot run {} or read {}", launcher.display(), images.display());
        };
        let stage = Self { dir: home.join("hpc-launch"), launcher: home.join("hpc-launch/hpc-launch") };
        let links = stage.dir.join("target/images");
        crate::cache::remove(&stage.dir)?;
        fs::create_dir_all(&links).with_context(|| format!("cannot create {}", links.display()))?;
        fs::copy(launcher, &stage.launcher).with_context(|| format!("cannot copy {}", launcher.display()))?;
        for entry in fs::read_dir(&images)? {
            let link = entry?;
            if let Ok(to) = fs::read_link(link.path()) {
                symlink(to, links.join(link.file_name()))?;
            }
        }
        Ok(stage)
    }

    /// A program where the user can run it: a copy in the directory if need be.
    pub fn program(&self, user: &PlainUser, path: &Path) -> Result<PathBuf> {
        self.program_below(user, path, Path::new(""))
    }

    /// The same, with the copy in a directory below.
    pub fn program_below(&self, user: &PlainUser, path: &Path, below: &Path) -> Result<PathBuf> {
        if user.can("-x", path) {
            return Ok(path.to_path_buf());
        }
        let dir = self.dir.join(below);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let copy = dir.join(path.file_name().context("a program has a name")?);
        fs::copy(path, &copy).with_context(|| format!("cannot copy {}", path.display()))?;
        Ok(copy)
    }

    /// Where the images are.
    pub fn images(&self) -> PathBuf {
        self.dir.join("target/images")
    }

    /// An image, checked to be readable by the user.
    pub fn image(&self, user: &PlainUser, name: &str) -> Result<PathBuf> {
        let path = self.images().join(name);
        if !user.can("-r", &path) {
            let cache = fs::read_link(&path).unwrap_or_else(|_| path.clone());
            bail!(
                "the user cannot read {}: set HPC_LAUNCH_CACHE to a directory open to all",
                cache.display()
            );
        }
        Ok(path)
    }
}

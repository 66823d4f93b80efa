//! Fetches a Python wheel by name and version, and unpacks it without installing it.

use crate::run;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unpacks a wheel into the new directory `to`; `of` are pip's words for another Python than this machine's.
pub fn unpack(package: &str, version: &str, of: &[&str], to: &Path, log: &Path) -> Result<()> {
    crate::cache::remove(to)?;
    fs::create_dir_all(to)?;
    let wheel = format!("{package}=={version}");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]).args(of);
    run::logged(pip.arg("--dest").arg(to).arg(&wheel), log)
        .with_context(|| format!("pip download {wheel}"))?;
    let Some(file) = find(to, ".whl")? else { bail!("pip left no wheel in {}", to.display()) };
    run::logged(Command::new("unzip").arg("-q").arg(&file).arg("-d").arg(to), log)?;
    fs::remove_file(file)?;
    Ok(())
}

/// The entry of a directory whose name ends so.
pub fn find(directory: &Path, ending: &str) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    Ok(entries.iter().map(fs::DirEntry::path).find(|p| p.to_string_lossy().ends_with(ending)))
}

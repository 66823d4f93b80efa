//! Fetches a Python package by name and version, and unpacks it without installing it.

use crate::run;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unpacks a wheel into the new directory `to`; `of` are pip's words for another Python than this machine's.
pub fn unpack(package: &str, version: &str, of: &[&str], to: &Path, log: &Path) -> Result<()> {
    let file = download(package, version, &[&["--only-binary=:all:"], of].concat(), ".whl", to, log)?;
    run::logged(Command::new("unzip").arg("-q").arg(&file).arg("-d").arg(to), log)?;
    fs::remove_file(file)?;
    Ok(())
}

/// Unpacks one directory of a package's sources into the new directory `to`.
pub fn unpack_source(package: &str, version: &str, directory: &str, to: &Path, log: &Path) -> Result<()> {
    // What pip builds to look into the package may come as wheels.
    let file = download(package, version, &[&format!("--no-binary={package}")], ".tar.gz", to, log)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--strip-components=2", "--file"]).arg(&file);
    tar.arg("--directory").arg(to).arg(format!("{package}-{version}/{directory}"));
    run::logged(&mut tar, log)?;
    fs::remove_file(file)?;
    Ok(())
}

/// Has pip leave a file in the new directory `to`.
fn download(
    package: &str,
    version: &str,
    options: &[&str],
    ending: &str,
    to: &Path,
    log: &Path,
) -> Result<PathBuf> {
    crate::cache::remove(to)?;
    fs::create_dir_all(to)?;
    let wanted = format!("{package}=={version}");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps"]).args(options).arg("--dest").arg(to);
    run::logged(pip.arg(&wanted), log).with_context(|| format!("pip download {wanted}"))?;
    find(to, ending)?.with_context(|| format!("pip left no {ending} in {}", to.display()))
}

/// The entry of a directory whose name ends so.
pub fn find(directory: &Path, ending: &str) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    Ok(entries.iter().map(fs::DirEntry::path).find(|p| p.to_string_lossy().ends_with(ending)))
}

//! The probe as a file that the sandbox shows: made for this image's loader, and removed when all is done.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::environ::Environ;
use crate::error::{Code, Error, Result};

/// `launcher/probe`, as build.rs has made it.
const PROBE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe"));
/// Where its loader's path stands.
const LOADER: &str = env!("HPC_LAUNCH_LOADER");
/// Names of its libraries, as they stand in it.
const LIBDL: &[u8] = b"libdl.so.2\0";
const LIBC: &[u8] = b"libc.so.6\0\0";
/// Where it is inside.
pub const INSIDE: &str = "/run/hpc-launch/validate";

/// The directory with the probe in it.
pub struct Tool {
    directory: PathBuf,
}

impl Tool {
    /// Writes it into a directory of this name that is this user's alone; ranks of one job share it.
    pub fn write(key: &str, (loader, has_libdl): (&str, bool), environ: &Environ) -> Result<Tool> {
        let uid = nix::unistd::geteuid().as_raw();
        let given = environ.get_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let usual = ["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from);
        let may_execute =
            |path: &PathBuf| statvfs(path).is_ok_and(|stat| !stat.flags().contains(FsFlags::ST_NOEXEC));
        let mut tried = Vec::new();
        for above in given.into_iter().chain(usual).filter(may_execute) {
            let directory = above.join(format!("hpc-launch-validate.{uid}.{key}"));
            match fill(&directory, uid, (loader, has_libdl)) {
                Ok(()) => return Ok(Tool { directory }),
                Err(e) => tried.push(format!("{}: {e}", directory.display())),
            }
        }
        Err(Error::new(
            Code::Usage,
            format!("there is no place for the program that is run inside: {}", tried.join("; ")),
            "set TMPDIR to a directory of yours from which programs may be started",
        ))
    }

    /// `SRC:DST:ro`, as --bind takes it.
    pub fn bind(&self) -> String {
        format!("{}:{INSIDE}:ro", self.directory.display())
    }

    /// Adds a file, and answers its path inside.
    pub fn add(&self, name: &str, text: &str) -> Result<String> {
        let path = self.directory.join(name);
        fs::write(&path, text).map_err(|e| Error::step(format_args!("writing {}", path.display()), e))?;
        Ok(format!("{INSIDE}/{name}"))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The probe for this loader, and for a C library of one file or of two: needed twice, one file is loaded once.
fn made_for(loader: &str, has_libdl: bool) -> Option<Vec<u8>> {
    let mut bytes = PROBE.to_vec();
    let at = bytes.windows(LOADER.len()).position(|window| window == LOADER.as_bytes())?;
    let place = &mut bytes[at..at + LOADER.len()];
    if loader.len() > place.len() {
        return None;
    }
    place.fill(0);
    place[..loader.len()].copy_from_slice(loader.as_bytes());
    if !has_libdl {
        let at = bytes.windows(LIBDL.len()).position(|window| window == LIBDL)?;
        bytes[at..at + LIBDL.len()].copy_from_slice(LIBC);
    }
    Some(bytes)
}

fn fill(directory: &Path, uid: u32, (loader, has_libdl): (&str, bool)) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    // Another user may have been there first.
    let meta = fs::symlink_metadata(directory)?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
        return Err(std::io::Error::other("it is there already, and not yours alone"));
    }
    let bytes = made_for(loader, has_libdl)
        .ok_or_else(|| std::io::Error::other(format!("{loader} is too long a path")))?;
    // Whole or not at all: other ranks may be starting it.
    let unfinished = directory.join(format!(".{}", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o700).open(&unfinished)?;
    file.write_all(&bytes)?;
    drop(file);
    fs::rename(&unfinished, directory.join("probe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_gets_the_loader_of_the_image() {
        let bytes = made_for("/lib/ld-musl-x86_64.so.1", true).unwrap();
        let text = b"/lib/ld-musl-x86_64.so.1\0\0";
        assert!(bytes.windows(text.len()).any(|window| window == text));
        assert_eq!(bytes.len(), PROBE.len());
        assert_eq!(made_for(&"x".repeat(LOADER.len() + 1), true), None);
        let count =
            |bytes: &[u8], name: &[u8]| bytes.windows(name.len()).filter(|window| *window == name).count();
        let twice = b"libc.so.6\0";
        assert_eq!((count(&bytes, LIBDL), count(&bytes, twice)), (1, 1));
        let alone = made_for("/lib/x", false).unwrap();
        assert_eq!((count(&alone, LIBDL), count(&alone, twice)), (0, 2));
    }

    #[test]
    fn a_directory_of_somebody_elses_is_not_used() {
        let above = tempfile::tempdir().unwrap();
        let environ = Environ::from_pairs(&[("TMPDIR", above.path().to_str().unwrap())]);
        let mine = nix::unistd::geteuid().as_raw();
        let tool = Tool::write("k", ("/lib/x", true), &environ).unwrap();
        let directory = above.path().join(format!("hpc-launch-validate.{mine}.k"));
        assert_eq!(tool.bind(), format!("{}:{INSIDE}:ro", directory.display()));
        assert!(directory.join("probe").is_file());
        drop(tool);
        assert!(!directory.exists());
        let e = fill(above.path(), mine + 1, ("/lib/x", true)).unwrap_err();
        assert!(e.to_string().contains("not yours alone"), "{e}");
    }
}

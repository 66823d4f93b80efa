//! Files that appear whole or not at all: what was there before stays until all of the new one is on the disk.

use crate::error::Error;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes `bytes` to `path`, as `option` asked.
pub fn publish(path: &Path, bytes: &[u8], option: &str) -> Result<(), Error> {
    write(path, bytes).map_err(|e| {
        Error::new(
            format!("write {}", path.display()),
            format!("{e}; nothing there was changed"),
            format!("make room there, or give {option} another path"),
        )
    })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link is followed: its target is replaced, as a shell's `>` would fill it.
    let path: PathBuf = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let before = fs::metadata(&path).ok();
    if before.as_ref().is_some_and(|m| !m.is_file()) {
        // A pipe, /dev/stdout, a directory: nothing that a new file may take the place of.
        return File::options().write(true).open(&path)?.write_all(bytes);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = before.map_or(0o666, |m| m.permissions().mode() & 0o777);
    let beside = tempfile::Builder::new()
        .prefix(".hpc-bench-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(dir);
    let mut file = match beside {
        // Root hands a file to the user who measures, in a directory that this user may not write to.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && path.exists() => {
            return fs::write(&path, bytes);
        }
        file => file?,
    };
    file.write_all(bytes)?;
    // Some file systems tell of a full disk only now.
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_file_is_replaced_and_a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&file, "before, and longer").unwrap();
        symlink("a", &link).unwrap();
        publish(&link, b"after", "--html").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"after");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(dir.path().read_dir().unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let error = publish(Path::new("/dev/full"), b"x", "--csv").unwrap_err().to_string();
        assert!(error.contains("write /dev/full: No space left on device"), "{error}");
        assert!(error.contains("give --csv another path"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let error = publish(dir.path(), b"x", "--csv").unwrap_err().to_string();
        assert!(error.contains("Is a directory"), "{error}");
        let missing = dir.path().join("no/such");
        assert!(publish(&missing, b"x", "--csv").unwrap_err().to_string().contains("No such file"));
    }
}

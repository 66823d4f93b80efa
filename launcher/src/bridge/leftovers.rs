//! Shared memory that ranks leave when they fall. MPI asks its PMIx server to remove it then.

use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Where MPI has files that outlive a process; all else of it is in the sandbox's own memory.
const PLACE: &str = "/dev/shm";

/// Removes those of these files that are there and this user's. What ranks say is not to be trusted: nothing
/// elsewhere, and nothing that is no regular file.
pub fn remove(paths: &[String], uid: u32) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(place) = Dir::open(PLACE, flags, Mode::empty()) else { return };
    for path in paths {
        let Some(name) = name(path) else { continue };
        let found = fstatat(&place, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let is_file = |mode: u32| mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
        if found.is_ok_and(|meta| is_file(meta.st_mode) && meta.st_uid == uid) {
            let _ = unlinkat(&place, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// A name in that very directory.
fn name(path: &str) -> Option<&str> {
    let name = Path::new(path).strip_prefix(PLACE).ok()?.to_str()?;
    (!name.is_empty() && !name.contains('/') && name != "." && name != "..").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_in_that_directory() {
        assert_eq!(name("/dev/shm/vader_segment.h.0.1"), Some("vader_segment.h.0.1"));
        for path in [
            "",
            "/dev/shm",
            "/dev/shm/",
            "/dev/shm/..",
            "/dev/shm/a/b",
            "/dev/shm/../null",
            "/etc/passwd",
            "a",
        ] {
            assert_eq!(name(path), None, "{path}");
        }
    }

    #[test]
    fn only_files_of_ones_own() {
        let me = nix::unistd::geteuid().as_raw();
        let dir = tempfile::Builder::new().prefix("hpcl-test.").tempdir_in(PLACE).unwrap();
        let file = tempfile::Builder::new().prefix("hpcl-test.").tempfile_in(PLACE).unwrap();
        let link = format!("{PLACE}/hpcl-test-link.{}", std::process::id());
        std::os::unix::fs::symlink(file.path(), &link).unwrap();
        let all = [file.path(), dir.path(), Path::new(&link)].map(|p| p.display().to_string());
        remove(&all, me + 1);
        assert!(file.path().exists(), "somebody else's");
        remove(&all, me);
        assert!(!file.path().exists() && dir.path().exists() && std::fs::symlink_metadata(&link).is_ok());
        std::fs::remove_file(link).unwrap();
    }
}

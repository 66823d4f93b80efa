//! System calls as the sandbox makes them: on descriptors, with what failed and where in their errors.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::error::{Error, Result};

/// No path, where mount(2) wants one.
pub fn none() -> Option<&'static Path> {
    None
}

/// mount(2), with what it was for in its error.
pub fn do_mount(
    what: &str,
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<()> {
    mount(source, target, kind, flags, data)
        .map_err(|e| Error::step(format_args!("{what} ({})", target.display()), e))
}

/// The path under which a descriptor's object can be mounted or mounted on.
pub fn path_of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The path under which a descriptor's object can be mounted on. A directory is entered and mounted on as
/// `.`: every name in /proc/self/fd costs the kernel an entry there. A file's only name is that one.
pub fn mount_point(fd: &OwnedFd) -> PathBuf {
    match nix::unistd::fchdir(fd) {
        Ok(()) => PathBuf::from("."),
        Err(_) => path_of(fd),
    }
}

/// Overlays in a user namespace keep their attributes where users may (Linux 5.11).
pub fn user_xattr(privileged: bool) -> &'static str {
    if privileged { "" } else { ",userxattr" }
}

/// statfs(2), and include/linux/statfs.h; not every libc names it.
const ST_RELATIME: libc::c_ulong = 0x1000;

/// Adds flags to a mount and keeps those that it has: the kernel refuses to drop nosuid, nodev, noexec
/// or the atime mode of a mount that came from outside the user namespace.
pub fn remount(fd: &OwnedFd, add: MsFlags, what: &str) -> Result<()> {
    let stat = fstatvfs(fd).map_err(|e| Error::step(what, e))?.flags();
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | add;
    for (has, keep) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::from_bits_retain(ST_RELATIME), MsFlags::MS_RELATIME),
    ] {
        if stat.contains(has) {
            flags |= keep;
        }
    }
    mount(none(), &mount_point(fd), none(), flags, none()).map_err(|e| Error::step(what, e))
}

/// mkdir(2), with the path in its error.
pub fn mkdir(path: &Path) -> Result<()> {
    std::fs::create_dir(path).map_err(|e| Error::step(format_args!("making {}", path.display()), e))
}

/// An empty file, with the path in its error.
pub fn make_file(path: &Path) -> Result<()> {
    File::create(path).map(drop).map_err(|e| Error::step(format_args!("making {}", path.display()), e))
}

/// A directory or an empty file in an open directory.
pub fn make_at(directory: &OwnedFd, name: &Path, is_directory: bool) -> nix::Result<()> {
    if is_directory {
        return mkdirat(directory, name, Mode::from_bits_truncate(0o755));
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
}

/// mountinfo writes blanks and backslashes in octal (proc(5)).
pub fn unescape(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|o| u8::from_str_radix(o, 8).ok()) {
            Some(byte) => out.push(char::from(byte)),
            None => out.push('\\'),
        }
        rest = rest.get(at + 4..).unwrap_or_default();
    }
    out.push_str(rest);
    PathBuf::from(out)
}

/// Whether overlays can be mounted in a user namespace: since Linux 5.11.
pub fn user_overlays() -> bool {
    let release =
        nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (5, 11)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape(r"/a\040b\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(r"/plain"), Path::new("/plain"));
    }
}

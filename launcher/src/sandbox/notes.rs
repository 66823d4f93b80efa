//! Notes of the sandbox about itself, in memory, gone with its last rank: what the first rank found out
//! the others need not find out again.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::unistd::UnlinkatFlags;

use crate::job::siblings::{MARK_DIRECTORY, MARK_LINK};

/// Writes a note; a sandbox works without.
pub fn write(name: &str, text: &[u8]) {
    let path = Path::new(MARK_DIRECTORY).join(name);
    let unfinished = Path::new(MARK_DIRECTORY).join(format!("{name}.{}", std::process::id()));
    let written = File::options()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&unfinished)
        .and_then(|mut f| f.write_all(text));
    if written.and_then(|()| std::fs::rename(&unfinished, &path)).is_err() {
        let _ = nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, &unfinished, UnlinkatFlags::NoRemoveDir);
    }
}

/// Notes that a program may run here; a sandbox works without.
pub fn judged(digest: &str) {
    let _ = File::create_new(Path::new(MARK_DIRECTORY).join(digest));
}

/// Whether a program was judged before: the builder's stands behind the mark, others have notes.
pub fn is_judged(digest: &str) -> bool {
    let directory = Path::new(MARK_DIRECTORY);
    let mark = std::fs::read_link(directory.join(MARK_LINK)).unwrap_or_default();
    mark.to_str().is_some_and(|mark| mark.rsplit('.').next() == Some(digest))
        || nix::unistd::access(&directory.join(digest), nix::unistd::AccessFlags::F_OK).is_ok()
}

/// Reads a note.
pub fn read(name: &str) -> Option<Vec<u8>> {
    let meta = std::fs::metadata(Path::new(MARK_DIRECTORY).join(name)).ok()?;
    if meta.len() > 1 << 20 {
        return None;
    }
    std::fs::read(Path::new(MARK_DIRECTORY).join(name)).ok()
}

//! The crate's one error type: what was tried, why it failed, what to do.

use std::fmt;
use std::path::Path;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name, a reference or a digest cannot be understood.
    Name,
    /// There is nothing of that name or at that path.
    Missing,
    /// It exists and may not be read.
    Unreadable,
    /// It is no image of a known kind.
    Unknown,
    /// It is truncated, or contradicts itself.
    Damaged,
    /// It asks for something that no image may: a path out of the root, say.
    Hostile,
    /// It is larger than the limit.
    TooLarge,
    /// It is for another machine.
    Architecture,
    /// What was read is not what its digest says.
    Digest,
    /// It is encrypted, or of a kind that no ordinary user can mount.
    Unsupported,
    /// A signature is asked for, and there is none of something.
    Unsigned,
    /// It is not what was signed.
    Signature,
    /// The store is not there, may not be written to, or is of another version.
    Store,
    /// There is not enough space.
    Space,
    /// Somebody else holds a lock and does not proceed.
    Busy,
    /// A registry cannot be reached, or does not speak as one.
    Registry,
    /// A registry wants another user, or none at all.
    Denied,
    /// A registry wants fewer requests.
    RateLimit,
    /// Anything else that the operating system refused.
    Io,
}

/// A refusal.
#[derive(Clone, Debug)]
pub struct Error {
    /// Its kind.
    pub kind: Kind,
    /// What was tried, on which path, and why it failed.
    pub what: String,
    /// What to do.
    pub cure: String,
}

impl Error {
    /// A refusal of this kind.
    pub fn new(kind: Kind, what: impl Into<String>, cure: impl Into<String>) -> Error {
        Error { kind, what: what.into(), cure: cure.into() }
    }

    /// What the operating system said of a path that is read.
    pub fn reading(path: &Path, e: &std::io::Error) -> Error {
        let what = format!("cannot read {}: {e}", path.display());
        match e.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                Error::new(Kind::Missing, what, "check the path")
            }
            std::io::ErrorKind::PermissionDenied => Error::new(
                Kind::Unreadable,
                what,
                "ask its owner for read permission on it and on every directory above",
            ),
            _ => Error::new(Kind::Io, what, "see what the error says of the device or file system"),
        }
    }

    /// What the operating system said of a path that is written.
    pub fn writing(path: &Path, e: &std::io::Error) -> Error {
        let what = format!("cannot write {}: {e}", path.display());
        match e.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => Error::new(
                Kind::Space,
                format!("{what}{}", free(path)),
                "make room (`hpc-launch image gc`, `hpc-launch image rm`), or name a store elsewhere: --store DIR",
            ),
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => Error::new(
                Kind::Store,
                what,
                "name a store that you may write to: --store DIR, or store = [...] in the configuration",
            ),
            _ => Error::new(Kind::Io, what, "see what the error says of the device or file system"),
        }
    }

    /// Bytes that contradict themselves.
    pub fn damaged(what: impl Into<String>) -> Error {
        Error::new(Kind::Damaged, what, "copy or build it again")
    }

    /// Something that no image may ask for.
    pub fn hostile(what: impl Into<String>) -> Error {
        Error::new(
            Kind::Hostile,
            what,
            "no image needs that: do not trust who made it; build it anew from its sources",
        )
    }

    /// The same, said of something.
    pub fn of(mut self, what: impl fmt::Display) -> Error {
        self.what = format!("{what}: {}", self.what);
        self
    }
}

/// "; free there: 12 MiB", where that can be told.
fn free(path: &Path) -> String {
    let dir = if path.is_dir() { Some(path) } else { path.parent() };
    dir.and_then(|d| nix::sys::statvfs::statvfs(d).ok())
        .map(|s| format!("; free there: {}", size(s.blocks_available() * s.fragment_size())))
        .unwrap_or_default()
}

/// A number of bytes as people read it.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_read_them() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(350 << 20), "350 MiB");
        assert_eq!(size(u64::MAX), "16384 PiB");
    }
}

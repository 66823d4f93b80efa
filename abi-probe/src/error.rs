//! The crate's one error type: what was tried, on which path, and why it failed.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a file of an image could not be looked up, opened or read as ELF.
#[derive(Debug)]
pub enum Error {
    /// A system call failed on a path of the view.
    Io {
        /// What was tried: "open", "read the link", …
        tried: &'static str,
        /// The path inside the view.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// More symbolic links than the kernel itself would follow (40, MAXSYMLINKS).
    LinkLoop {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// A component in the middle of the path is not a directory.
    NotADirectory {
        /// The component.
        path: PathBuf,
    },
    /// The path is longer than PATH_MAX after its links were followed.
    TooLong {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// A regular file was needed and something else is there.
    NotAFile {
        /// The path inside the view.
        path: PathBuf,
        /// What is there: "a directory", "a device", …
        is: &'static str,
    },
    /// The bytes are not the ELF that they claim to be.
    Elf {
        /// The file.
        path: PathBuf,
        /// Which field, and what it holds.
        why: String,
    },
}

impl Error {
    pub(crate) fn io(tried: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Error::Io { tried, path: path.to_owned(), source: source.into() }
    }

    pub(crate) fn elf(path: &Path, why: impl Into<String>) -> Self {
        Error::Elf { path: path.to_owned(), why: why.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Io { tried, path, source } => write!(f, "cannot {tried} {}: {source}", path.display()),
            Error::LinkLoop { path } => {
                write!(f, "{}: symbolic links go round in circles (more than 40 followed)", path.display())
            }
            Error::NotADirectory { path } => write!(f, "{} is not a directory", path.display()),
            Error::TooLong { path } => {
                write!(f, "{}: longer than 4096 bytes once its links are followed", path.display())
            }
            Error::NotAFile { path, is } => write!(f, "{} is {is}, not a regular file", path.display()),
            Error::Elf { path, why } => write!(f, "{}: bad ELF: {why}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

//! Why the bench itself could not go on: what was tried, why it failed, what to do.

use std::fmt;

/// An error that ends the bench. A measured program that fails is no such error: it is a row that says so.
#[derive(Debug)]
pub struct Error {
    tried: String,
    why: String,
    cure: String,
}

impl Error {
    /// All three parts are for the reader: "cannot TRIED: WHY", then the cure on a line of its own.
    pub fn new(tried: impl Into<String>, why: impl fmt::Display, cure: impl Into<String>) -> Self {
        Error { tried: tried.into(), why: why.to_string(), cure: cure.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}\n  to do: {}", self.tried, self.why, self.cure)
    }
}

impl std::error::Error for Error {}

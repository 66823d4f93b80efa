//! Bytes somewhere in a file: a whole one, or a part.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result, size};

/// Bytes somewhere in a file.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The file.
    pub file: Arc<File>,
    /// Where it is, for messages.
    pub path: PathBuf,
    /// Where the bytes begin.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

impl Blob {
    /// A whole file.
    pub fn whole(file: File, path: PathBuf) -> Result<Blob> {
        let length = file.metadata().map_err(|e| Error::reading(&path, &e))?.len();
        Ok(Blob { file: Arc::new(file), path, offset: 0, length })
    }

    /// Reads it from its begin.
    pub fn reader(&self) -> BlobReader {
        BlobReader { blob: self.clone(), at: 0 }
    }

    /// A part of it.
    pub fn part(&self, offset: u64, length: u64) -> Blob {
        Blob { offset: self.offset + offset, length, ..self.clone() }
    }

    /// All of it, if it has no more than `most` bytes.
    pub fn read(&self, most: u64) -> Result<Vec<u8>> {
        if self.length > most {
            let length = size(self.length);
            return Err(Error::hostile(format!(
                "{}: {length} where at most {} make sense",
                self.path.display(),
                size(most)
            )));
        }
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes).map_err(|e| Error::reading(&self.path, &e))?;
        Ok(bytes)
    }
}

/// A blob being read.
pub struct BlobReader {
    blob: Blob,
    at: u64,
}

impl BlobReader {
    /// How much has been read or passed over.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Passes over so many bytes; whether there were as many.
    pub fn pass(&mut self, bytes: u64) -> bool {
        let at = self.at.checked_add(bytes).filter(|at| *at <= self.blob.length);
        self.at = at.unwrap_or(self.blob.length);
        at.is_some()
    }
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let want = (self.blob.length - self.at).min(into.len() as u64) as usize;
        let n = self.blob.file.read_at(&mut into[..want], self.blob.offset + self.at)?;
        if n == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

//! Compressed streams, told by their first bytes; and a limit on what comes out of them.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, size};

/// Compressions of archives and layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// None.
    None,
    /// gzip (RFC 1952), as layers mostly are.
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
    /// xz.
    Xz,
}

/// A window of more than this is refused: 128 MiB, as zstd's own program does without --long.
const MAX_WINDOW_LOG: u32 = 27;
/// xz's dictionaries: 64 MiB is what `xz -9` makes; the decoder needs that much.
const MAX_XZ_KIB: u32 = 100 << 10;

impl Compression {
    /// By the first bytes.
    pub fn of(head: &[u8]) -> Compression {
        match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame may come first (estargz's successors write such).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            _ => Compression::None,
        }
    }

    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Xz => "xz",
        }
    }
}

/// What comes out of `inner`, which is looked at to tell how it is compressed.
pub fn decoder<'a>(inner: impl Read + Send + 'a) -> Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut inner = BufReader::with_capacity(256 << 10, inner);
    // One read may yield less than a magic number has.
    let mut head = Vec::new();
    while head.len() < 6 {
        let mut byte = [0u8; 6];
        match inner.read(&mut byte[..6 - head.len()]) {
            Ok(0) => break,
            Ok(n) => head.extend_from_slice(&byte[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(error(e)),
        }
    }
    let compression = Compression::of(&head);
    Ok((compression, open(compression, io::Cursor::new(head).chain(inner))?))
}

fn open<'a>(compression: Compression, inner: impl BufRead + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(inner),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(inner)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(inner).map_err(error)?;
            decoder.window_log_max(MAX_WINDOW_LOG).map_err(error)?;
            Box::new(decoder)
        }
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(inner, true, MAX_XZ_KIB)),
    })
}

/// An error that came through `Read`: ours, or the decoder's.
pub fn error(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::damaged("it is cut short"),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Error::damaged(format!("what is compressed in it is damaged: {e}"))
        }
        _ => match e.downcast::<Error>() {
            Ok(ours) => ours,
            Err(e) => Error::new(
                Kind::Io,
                format!("cannot read on: {e}"),
                "see what the error says of the device or file system",
            ),
        },
    }
}

/// How much may still come out of an image's archives.
#[derive(Clone, Debug)]
pub struct Allowance {
    left: Rc<Cell<u64>>,
    all: u64,
}

impl Allowance {
    /// So many bytes.
    pub fn new(bytes: u64) -> Allowance {
        Allowance { left: Rc::new(Cell::new(bytes)), all: bytes }
    }

    /// Takes some of it.
    pub fn take(&self, bytes: u64) -> Result<()> {
        match self.left.get().checked_sub(bytes) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(Error::new(
                Kind::TooLarge,
                format!("the image holds more than {}", size(self.all)),
                "if it is to be trusted and really that large: --max-size SIZE (200G, say), or max_size in the configuration",
            )),
        }
    }

    /// What has been taken.
    pub fn taken(&self) -> u64 {
        self.all - self.left.get()
    }
}

/// A stream that takes from an allowance what is read from it.
pub struct Limited<R> {
    inner: R,
    allowance: Allowance,
}

impl<R> Limited<R> {
    /// With its allowance.
    pub fn new(inner: R, allowance: Allowance) -> Limited<R> {
        Limited { inner, allowance }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.allowance.take(n as u64).map_err(io::Error::other)?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(bytes: &[u8]) -> Result<(Compression, Vec<u8>)> {
        let (compression, mut decoder) = decoder(bytes)?;
        let mut out = Vec::new();
        decoder.read_to_end(&mut out).map_err(error)?;
        Ok((compression, out))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let text = b"hello hello hello".repeat(1000);
        // Two members: pigz and stargz write many.
        let twice = [gzip(&text), gzip(&text)].concat();
        assert_eq!(all(&twice).unwrap(), (Compression::Gzip, text.repeat(2)));
        let packed = zstd::bulk::compress(&text, 3).unwrap();
        assert_eq!(all(&packed).unwrap(), (Compression::Zstd, text.clone()));
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &packed].concat();
        assert_eq!(all(&skippable).unwrap(), (Compression::Zstd, text.clone()));
        assert_eq!(all(&text).unwrap(), (Compression::None, text.clone()));
        assert_eq!(all(b"").unwrap(), (Compression::None, Vec::new()));
        for packed in [&packed[..packed.len() - 3], &twice[..40]] {
            let e = all(packed).unwrap_err();
            assert_eq!(e.kind, Kind::Damaged, "{e}");
        }
    }

    #[test]
    fn an_allowance_is_for_all_streams_of_an_image() {
        let allowance = Allowance::new(10);
        let mut out = Vec::new();
        Limited::new(&b"12345678"[..], allowance.clone()).read_to_end(&mut out).unwrap();
        let e = error(Limited::new(&b"123"[..], allowance).read_to_end(&mut out).unwrap_err());
        assert_eq!(e.kind, Kind::TooLarge);
        assert_eq!(e.what, "the image holds more than 10 B");
    }
}

//! One extent of a compressed file, unpacked.

use std::io::Read;

use super::extents::{Coding, Extent, Place};
use super::{Erofs, ZERO_PADDING, unsupported};
use crate::error::Result;

/// Algorithms (Z_EROFS_COMPRESSION_*).
const LZ4: u8 = 0;
pub const LZMA: u8 = 1;
const DEFLATE: u8 = 2;
const ZSTD: u8 = 3;
/// Z_EROFS_LZMA_MAX_DICT_SIZE.
const MAX_DICTIONARY: u32 = 8 << 20;
/// What comes out of an extent at most, whatever part of it a file has.
const MAX_LENGTH: usize = 12 << 20;

impl Erofs<'_> {
    /// What the extent holds.
    pub fn unpack(&self, extent: &Extent, out: &mut Vec<u8>) -> Result<()> {
        let Place::Stored(at, stored) = extent.place else {
            return Err(self.damaged("fragments in the inode that holds fragments"));
        };
        let bytes = self.bytes(at, stored as usize, "an extent")?;
        let (length, block) = (extent.length as usize, 1usize << self.block_bits);
        out.clear();
        let algorithm = match extent.coding {
            Coding::Packed(algorithm) => algorithm,
            Coding::Plain | Coding::Interlaced => {
                let is_rotated = extent.coding == Coding::Interlaced;
                if length > bytes.len() || (is_rotated && bytes.len() != block) {
                    return Err(self.damaged(format!("an extent of {length} bytes in {stored}")));
                }
                // What lies at the block's end comes first.
                let offset = extent.at as usize % block;
                if is_rotated && offset > 0 {
                    let first = &bytes[offset..];
                    out.extend_from_slice(&first[..first.len().min(length)]);
                }
                out.extend_from_slice(&bytes[..length - out.len()]);
                return Ok(());
            }
        };
        // Of the first block what is compressed is the end (EROFS_FEATURE_INCOMPAT_ZERO_PADDING).
        if self.features & ZERO_PADDING == 0 {
            return Err(unsupported(
                &self.blob.path,
                "is compressed as before Linux 5.3 (-Elegacy-compress)",
            ));
        }
        let edge = bytes.len().min(block - at as usize % block);
        let begin = bytes[..edge].iter().position(|b| *b != 0).unwrap_or(edge);
        let bytes = &bytes[begin..];
        let failed =
            |e: &dyn std::fmt::Display| self.damaged(format!("an extent at {at} cannot be unpacked: {e}"));
        match algorithm {
            LZ4 => {
                out.resize(length, 0);
                // Files may have the begin of an extent only: then more comes out than fits.
                let all = lz4_flex::block::decompress_into(bytes, out).or_else(|_| {
                    out.resize(MAX_LENGTH, 0);
                    lz4_flex::block::decompress_into(bytes, out)
                });
                let all = all.map_err(|e| failed(&e))?;
                if all < length {
                    return Err(failed(&format!("{all} bytes come out of it, not {length}")));
                }
                out.truncate(length);
                Ok(())
            }
            LZMA => {
                // MicroLZMA (liblzma's lzma_microlzma_decoder): in place of the first byte, a zero, the properties,
                // complemented.
                let (first, rest) = bytes.split_first().ok_or_else(|| failed(&"it is empty"))?;
                let dictionary = self.dictionary.clamp(4096, MAX_DICTIONARY);
                // Files may have the begin of an extent only; the decoder looks one byte ahead.
                let stream = [0u8].as_slice().chain(rest).chain(std::io::repeat(0));
                let all = MAX_LENGTH as u64;
                let mut reader =
                    lzma_rust2::LzmaReader::new_with_props(stream, all, !first, dictionary, None)
                        .map_err(|e| failed(&e))?;
                self.take(&mut reader, length, out).map_err(|e| failed(&e))
            }
            DEFLATE => {
                self.take(&mut flate2::read::DeflateDecoder::new(bytes), length, out).map_err(|e| failed(&e))
            }
            ZSTD => {
                let mut reader = zstd::stream::read::Decoder::with_buffer(bytes).map_err(|e| failed(&e))?;
                self.take(&mut reader, length, out).map_err(|e| failed(&e))
            }
            other => {
                Err(unsupported(&self.blob.path, &format!("is compressed by the unknown algorithm {other}")))
            }
        }
    }

    fn take(&self, reader: &mut dyn Read, length: usize, out: &mut Vec<u8>) -> std::io::Result<()> {
        out.resize(length, 0);
        reader.read_exact(out)
    }
}

//! What files of an EROFS hold: blocks in a row, chunks, or compressed extents, some of them in the inode of fragments.

use super::extents::{Extent, Place};
use super::{CHUNKS, COMPRESSED_COMPACT, COMPRESSED_FULL, Erofs, INLINE, Inode, PLAIN, unsupported};
use crate::bytes::{u16_at, u32_at};
use crate::error::{Error, Kind, Result};

/// What is read at once.
const PIECE: u64 = 256 << 10;
/// A chunk that is nowhere: zeros (EROFS_NULL_ADDR).
const NOWHERE: u32 = u32::MAX;
/// Kept of the inode that holds fragments: 40 bytes each.
const MAX_EXTENTS: usize = 4 << 20;

/// A piece of a file.
pub enum Piece<'a> {
    /// Bytes, and how many of the image they came from.
    Data(&'a [u8], u64),
    /// Zeros.
    Hole(u64),
}

impl<'a> Piece<'a> {
    /// Its bytes, unless it is a hole.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Piece::Data(bytes, _) => Some(bytes),
            Piece::Hole(_) => None,
        }
    }

    /// How long it is.
    pub fn length(&self) -> u64 {
        match self {
            Piece::Data(bytes, _) => bytes.len() as u64,
            Piece::Hole(length) => *length,
        }
    }

    /// How much of the image it took.
    pub fn stored(&self) -> u64 {
        match self {
            Piece::Data(_, stored) => *stored,
            Piece::Hole(_) => 0,
        }
    }
}

/// Where pieces go.
pub type Sink<'a> = &'a mut dyn FnMut(Piece<'_>) -> Result<()>;

impl Erofs<'_> {
    /// All that the inode holds, from its begin to its end.
    pub fn content(&self, inode: &Inode, packed: Option<&mut Packed>, sink: Sink<'_>) -> Result<()> {
        match inode.layout {
            PLAIN => self.row(self.address(inode.place), inode.size, sink),
            INLINE => {
                let end = inode.size % (1 << self.block_bits);
                self.row(self.address(inode.place), inode.size - end, sink)?;
                self.row(inode.tail_at, end, sink)
            }
            CHUNKS => self.chunks(inode, sink),
            COMPRESSED_FULL | COMPRESSED_COMPACT => {
                let mut packed = packed;
                let mut out = Vec::new();
                self.extents(inode, &mut |extent| {
                    if let Place::Fragment(at) = extent.place {
                        let packed = packed
                            .as_deref_mut()
                            .ok_or_else(|| self.damaged("a fragment, and no inode that holds fragments"))?;
                        return self.fragment(packed, at, extent.length, sink);
                    }
                    self.unpack(&extent, &mut out)?;
                    sink(Piece::Data(&out, extent.stored()))
                })
            }
            other => {
                Err(unsupported(&self.blob.path, &format!("has files of the layout {other}, not known here")))
            }
        }
    }

    fn address(&self, block: u32) -> u64 {
        u64::from(block) << self.block_bits
    }

    fn row(&self, mut at: u64, mut length: u64, sink: Sink<'_>) -> Result<()> {
        let mut buffer = vec![0; length.min(PIECE) as usize];
        while length > 0 {
            let n = length.min(PIECE);
            let piece = &mut buffer[..n as usize];
            self.fill(at, piece, "a file")?;
            sink(Piece::Data(piece, n))?;
            (at, length) = (at + n, length - n);
        }
        Ok(())
    }

    /// Chunks of a power of two, each somewhere.
    fn chunks(&self, inode: &Inode, sink: Sink<'_>) -> Result<()> {
        let has_indexes = inode.place & 0x20 != 0;
        let bits = self.block_bits + (inode.place & 0x1f);
        let unit: u64 = if has_indexes { 8 } else { 4 };
        let (mut at, mut rest) = (inode.tail_at.next_multiple_of(unit), inode.size);
        while rest > 0 {
            let index = self.bytes(at, unit as usize, "a file's index of chunks")?;
            if has_indexes && u16_at(&index, 2) != 0 {
                return Err(unsupported(&self.blob.path, "has its data in other files (--blobdev)"));
            }
            let block = u32_at(&index, unit as usize - 4);
            let length = rest.min(1 << bits);
            if block == NOWHERE {
                sink(Piece::Hole(length))?;
            } else {
                self.row(self.address(block), length, sink)?;
            }
            (at, rest) = (at + unit, rest - length);
        }
        Ok(())
    }

    /// A part of the inode that holds fragments.
    fn fragment(&self, packed: &mut Packed, mut at: u64, mut length: u64, sink: Sink<'_>) -> Result<()> {
        let size = packed.inode.size;
        if at.checked_add(length).is_none_or(|end| end > size) {
            return Err(self.damaged(format!("a fragment, {length} bytes at {at}, lies behind {size}")));
        }
        if packed.extents.is_empty() {
            // Not compressed: in a row, and the end perhaps behind the inode. What lies before `at` has been checked.
            let row = match packed.inode.layout {
                PLAIN => size,
                INLINE => size - size % (1 << self.block_bits),
                _ => {
                    return Err(unsupported(&self.blob.path, "has fragments in an inode of chunks"));
                }
            };
            let in_row = length.min(row.saturating_sub(at));
            let begin = self.address(packed.inode.place).saturating_add(at);
            self.row(begin, in_row, sink)?;
            return self.row(packed.inode.tail_at + (at + in_row).saturating_sub(row), length - in_row, sink);
        }
        while length > 0 {
            let which = packed.extents.partition_point(|e| e.at <= at) - 1;
            let extent = packed.extents[which];
            if packed.held != Some(which) {
                packed.held = None;
                self.unpack(&extent, &mut packed.bytes)?;
                packed.held = Some(which);
            }
            let from = (at - extent.at) as usize;
            let n = (packed.bytes.len() - from).min(length as usize);
            sink(Piece::Data(&packed.bytes[from..from + n], 0))?;
            (at, length) = (at + n as u64, length - n as u64);
        }
        Ok(())
    }
}

/// The inode that holds ends of files, and small files: read here and there.
pub struct Packed {
    inode: Inode,
    extents: Vec<Extent>,
    /// The extent that was read last.
    held: Option<usize>,
    bytes: Vec<u8>,
}

impl Packed {
    /// Where its parts are.
    pub fn open(erofs: &Erofs<'_>, inode: Inode) -> Result<Packed> {
        let mut extents = Vec::new();
        if matches!(inode.layout, COMPRESSED_FULL | COMPRESSED_COMPACT) {
            erofs.extents(&inode, &mut |extent| {
                if let Place::Fragment(_) = extent.place {
                    return Err(erofs.damaged("fragments in the inode that holds fragments"));
                }
                if extents.len() == MAX_EXTENTS {
                    let what = format!(
                        "{}: more than {MAX_EXTENTS} extents of fragments",
                        erofs.blob.path.display()
                    );
                    return Err(Error::new(
                        Kind::TooLarge,
                        what,
                        "make it anew with larger clusters (-C65536)",
                    ));
                }
                extents.push(extent);
                Ok(())
            })?;
        }
        Ok(Packed { inode, extents, held: None, bytes: Vec::new() })
    }
}

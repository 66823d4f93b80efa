//! Metadata blocks: 8 KiB of tables each, compressed, behind a length of two bytes.

use super::{Compressor, Packer};

/// SQUASHFS_METADATA_SIZE.
pub const SIZE: usize = 8192;
/// In the length: not compressed.
const STORED: u16 = 1 << 15;

/// A table in the making.
pub struct Meta {
    packer: Packer,
    /// Blocks that are done.
    pub out: Vec<u8>,
    block: Vec<u8>,
    /// How much of `out` has been taken away.
    taken: u64,
}

impl Meta {
    /// An empty one.
    pub fn new(compressor: Compressor) -> std::io::Result<Meta> {
        Ok(Meta {
            packer: Packer::new(compressor)?,
            out: Vec::new(),
            block: Vec::with_capacity(SIZE),
            taken: 0,
        })
    }

    /// Where the next byte will be: the block's place in the table, the place in the block.
    pub fn place(&mut self) -> std::io::Result<(u64, u16)> {
        if self.block.len() == SIZE {
            self.cut()?;
        }
        Ok((self.taken + self.out.len() as u64, self.block.len() as u16))
    }

    /// Appends.
    pub fn put(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            if self.block.len() == SIZE {
                self.cut()?;
            }
            let n = bytes.len().min(SIZE - self.block.len());
            self.block.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn cut(&mut self) -> std::io::Result<()> {
        let packed = self.packer.pack(&self.block)?;
        let (length, bytes) = match &packed {
            Some(packed) => (packed.len() as u16, packed),
            None => (self.block.len() as u16 | STORED, &self.block),
        };
        self.out.extend_from_slice(&length.to_le_bytes());
        self.out.extend_from_slice(bytes);
        self.block.clear();
        Ok(())
    }

    /// The blocks that are done, to be written.
    pub fn take(&mut self) -> Vec<u8> {
        self.taken += self.out.len() as u64;
        std::mem::take(&mut self.out)
    }

    /// The rest.
    pub fn finish(mut self) -> std::io::Result<Vec<u8>> {
        if !self.block.is_empty() {
            self.cut()?;
        }
        Ok(self.out)
    }
}

/// A table that is found through an index of its blocks: the blocks, and where each begins in them.
pub fn indexed(compressor: Compressor, table: &[u8]) -> std::io::Result<(Vec<u8>, Vec<u64>)> {
    let mut meta = Meta::new(compressor)?;
    let mut index = Vec::new();
    for block in table.chunks(SIZE) {
        index.push(meta.place()?.0);
        meta.put(block)?;
    }
    Ok((meta.finish()?, index))
}

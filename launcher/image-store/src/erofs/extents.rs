//! Maps of compressed files: logical clusters, most often blocks, of which each says where an extent begins in it, or how
//! far it is from one (fs/erofs/zmap.c of the kernel).

use super::{COMPRESSED_FULL, Erofs, Inode, unsupported};
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::error::Result;

/// What a pcluster may have at most, stored and unpacked (Z_EROFS_PCLUSTER_MAX_SIZE, _DSIZE).
const MAX_STORED: u64 = 1 << 20;
const MAX_LENGTH: u64 = 12 << 20;

/// What a map's header says (Z_EROFS_ADVISE_*).
const COMPACT_2B: u16 = 0x01;
const BIG_1: u16 = 0x02;
const BIG_2: u16 = 0x04;
const INLINE_END: u16 = 0x08;
const INTERLACED: u16 = 0x10;
const FRAGMENT: u16 = 0x20;

/// Types of logical clusters.
const HEAD_PLAIN: u8 = 0;
const NO_HEAD: u8 = 2;
const HEAD_2: u8 = 3;
/// In a cluster without a head: how many blocks the extent has, not how far its head is.
const IS_COUNT: u32 = 1 << 11;

/// How an extent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As it is, from its begin.
    Plain,
    /// As it is, where in a block it also lies in the file.
    Interlaced,
    /// Compressed, by this algorithm.
    Packed(u8),
}

/// Where an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Stored bytes of the image: from where, how many.
    Stored(u64, u32),
    /// In the inode that holds fragments.
    Fragment(u64),
}

/// A part of a file that is stored as one.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Where in the file it begins.
    pub at: u64,
    /// How long it is.
    pub length: u64,
    /// Where it is.
    pub place: Place,
    /// How.
    pub coding: Coding,
}

impl Extent {
    /// How much of the image it takes.
    pub fn stored(&self) -> u64 {
        match self.place {
            Place::Stored(_, length) => u64::from(length),
            Place::Fragment(_) => 0,
        }
    }
}

/// A logical cluster.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    kind: u8,
    /// Where in it an extent begins; without a head: that extent's blocks, if said here.
    low: u32,
    /// The first block of the extent that begins here.
    block: u32,
}

/// The header of a map.
struct Map {
    at: u64,
    advise: u16,
    /// Algorithms of heads 1 and 2.
    algorithms: [u8; 2],
    /// Bits of a logical cluster's size.
    bits: u32,
    /// How long the end of the file is that follows the map.
    end_length: u32,
    fragment: u64,
}

impl Erofs<'_> {
    /// The extents of a compressed file, in their order; together they are all of it.
    pub fn extents(&self, inode: &Inode, take: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        if inode.size == 0 {
            return Ok(());
        }
        let at = inode.tail_at.next_multiple_of(8);
        let header = self.bytes(at, 8, "the map of a file")?;
        let whole = u64_at(&header, 0);
        if whole >> 63 != 0 {
            let place = Place::Fragment(whole ^ 1 << 63);
            return take(Extent { at: 0, length: inode.size, place, coding: Coding::Plain });
        }
        let map = Map {
            at: at + 8,
            advise: u16_at(&header, 4),
            algorithms: [header[6] & 15, header[6] >> 4],
            bits: self.block_bits + u32::from(header[7] & 7),
            end_length: u32::from(u16_at(&header, 2)),
            fragment: u64::from(u32_at(&header, 0)),
        };
        if map.advise > 0x3f {
            return Err(unsupported(
                &self.blob.path,
                &format!("has files compressed in a way that is not known here ({:#x})", map.advise),
            ));
        }
        let mut parts = Parts { erofs: self, inode, map: &map, begun: None, take };
        let count = inode.size.div_ceil(1 << map.bits);
        let end_at = if inode.layout == COMPRESSED_FULL {
            self.full(&map, count, &mut parts)?
        } else {
            self.compact(&map, count, &mut parts)?
        };
        parts.last(end_at)
    }

    /// Eight bytes a cluster. Answers where the map ends.
    fn full(&self, map: &Map, count: u64, parts: &mut Parts<'_>) -> Result<u64> {
        const ROW: u64 = 512;
        // Z_EROFS_FULL_INDEX_ALIGN: eight more bytes than compact ones.
        let begin = map.at + 8;
        for first in (0..count).step_by(ROW as usize) {
            let n = ROW.min(count - first);
            let bytes = self.bytes(begin + 8 * first, 8 * n as usize, "the map of a file")?;
            for (number, entry) in (first..).zip(bytes.chunks_exact(8)) {
                let kind = (u16_at(entry, 0) & 3) as u8;
                let low = if kind == NO_HEAD { u16_at(entry, 4) } else { u16_at(entry, 2) };
                parts.cluster(number, Cluster { kind, low: u32::from(low), block: u32_at(entry, 4) })?;
            }
        }
        Ok(begin + 8 * count)
    }

    /// Packs of two clusters in eight bytes, or of sixteen in 32, where these are aligned.
    fn compact(&self, map: &Map, count: u64, parts: &mut Parts<'_>) -> Result<u64> {
        let before = ((32 - map.at % 32) / 4 % 8).min(count);
        let small = if map.advise & COMPACT_2B != 0 { (count - before) / 16 * 16 } else { 0 };
        if map.bits > 14 || (small > 0 && map.bits > 12) {
            return Err(self.damaged(format!("a compact map of clusters of 2^{} bytes", map.bits)));
        }
        let (mut at, mut number) = (map.at, 0);
        while number < count {
            let (length, n) = if number >= before && number < before + small { (32, 16) } else { (8, 2) };
            let pack = self.bytes(at, length, "the map of a file")?;
            let clusters = unpacked(&pack, n, map);
            for cluster in clusters.into_iter().take((count - number) as usize) {
                parts.cluster(number, cluster)?;
                number += 1;
            }
            at += length as u64;
        }
        Ok(at)
    }
}

/// The clusters of a pack: bits, and behind them the first block of the first extent that is counted in it.
fn unpacked(pack: &[u8], n: usize, map: &Map) -> Vec<Cluster> {
    let bits = (pack.len() - 4) * 8 / n;
    let low_bits = map.bits.max(12);
    let is_big = map.advise & BIG_1 != 0;
    let base = u32_at(pack, pack.len() - 4);
    let mut clusters: Vec<Cluster> = (0..n)
        .map(|i| {
            let value = u32_at(pack, i * bits / 8) >> (i * bits % 8);
            Cluster { kind: (value >> low_bits & 3) as u8, low: value & ((1 << low_bits) - 1), block: 0 }
        })
        .collect();
    let is_count = |c: &Cluster| c.kind == NO_HEAD && c.low & IS_COUNT != 0;
    let mut blocks: u32 = 0;
    for i in 0..n {
        if clusters[i].kind != NO_HEAD {
            if !is_big {
                // All of one block; the base is before the first.
                blocks = blocks.wrapping_add(1);
            }
            clusters[i].block = base.wrapping_add(blocks);
            if is_big && !clusters.get(i + 1).is_some_and(is_count) {
                blocks = blocks.wrapping_add(1);
            }
        } else if is_big && is_count(&clusters[i]) {
            blocks = blocks.wrapping_add(clusters[i].low & !IS_COUNT);
        }
    }
    clusters
}

/// An extent whose end is not known yet.
struct Begun {
    at: u64,
    number: u64,
    kind: u8,
    block: u32,
    /// How many blocks it has, where that is said.
    blocks: Option<u32>,
}

/// Extents being put together.
struct Parts<'a> {
    erofs: &'a Erofs<'a>,
    inode: &'a Inode,
    map: &'a Map,
    begun: Option<Begun>,
    take: &'a mut dyn FnMut(Extent) -> Result<()>,
}

impl Parts<'_> {
    fn cluster(&mut self, number: u64, cluster: Cluster) -> Result<()> {
        let (erofs, map) = (self.erofs, self.map);
        let inode = self.inode.number;
        if cluster.kind == NO_HEAD {
            let begun = self.begun.as_mut();
            let begun = begun.ok_or_else(|| erofs.damaged(format!("inode {inode} begins with no extent")))?;
            if cluster.low & IS_COUNT != 0 && number == begun.number + 1 {
                begun.blocks = Some(cluster.low & !IS_COUNT);
            }
            return Ok(());
        }
        if u64::from(cluster.low) >= 1 << map.bits || (number == 0 && cluster.low != 0) {
            return Err(
                erofs.damaged(format!("inode {inode} has an extent that begins outside of its cluster"))
            );
        }
        let at = (number << map.bits) + u64::from(cluster.low);
        // The last cluster may name an end that is not there.
        if at >= self.inode.size {
            return Ok(());
        }
        let begun = Begun { at, number, kind: cluster.kind, block: cluster.block, blocks: None };
        match self.begun.replace(begun) {
            Some(before) if before.at < at => {
                let extent = self.stored(&before, at)?;
                (self.take)(extent)
            }
            _ => Ok(()),
        }
    }

    fn coding(&self, begun: &Begun) -> Coding {
        match begun.kind {
            HEAD_PLAIN if self.map.advise & INTERLACED != 0 => Coding::Interlaced,
            HEAD_PLAIN => Coding::Plain,
            HEAD_2 => Coding::Packed(self.map.algorithms[1]),
            _ => Coding::Packed(self.map.algorithms[0]),
        }
    }

    fn stored(&self, begun: &Begun, end: u64) -> Result<Extent> {
        let big = if begun.kind == HEAD_2 { BIG_2 } else { BIG_1 };
        let cluster = 1u64 << (self.map.bits - self.erofs.block_bits);
        let blocks = match begun.blocks.filter(|_| self.map.advise & big != 0) {
            Some(blocks) => u64::from(blocks),
            None => cluster,
        };
        let stored = blocks << self.erofs.block_bits;
        let place = Place::Stored(u64::from(begun.block) << self.erofs.block_bits, stored as u32);
        self.extent(begun, end, stored, place)
    }

    fn extent(&self, begun: &Begun, end: u64, stored: u64, place: Place) -> Result<Extent> {
        let length = end - begun.at;
        let is_fragment = matches!(place, Place::Fragment(_));
        if !is_fragment && (stored == 0 || stored > MAX_STORED || length > MAX_LENGTH) {
            let inode = self.inode.number;
            return Err(self.erofs.damaged(format!(
                "inode {inode} has an extent of {length} bytes in {stored}, more than any may have"
            )));
        }
        Ok(Extent { at: begun.at, length, place, coding: self.coding(begun) })
    }

    /// The last extent: may lie behind the map, or in the inode that holds fragments.
    fn last(mut self, end_at: u64) -> Result<()> {
        let Some(begun) = self.begun.take() else { return Ok(()) };
        let end = self.inode.size;
        let extent = if self.map.advise & INLINE_END != 0 {
            let stored = self.map.end_length;
            let mut extent = self.extent(&begun, end, u64::from(stored), Place::Stored(end_at, stored))?;
            if extent.coding == Coding::Interlaced {
                extent.coding = Coding::Plain;
            }
            extent
        } else if self.map.advise & FRAGMENT != 0 {
            let is_full = self.inode.layout == COMPRESSED_FULL;
            let high = if is_full { u64::from(begun.block) << 32 } else { 0 };
            self.extent(&begun, end, 0, Place::Fragment(self.map.fragment | high))?
        } else {
            self.stored(&begun, end)?
        };
        (self.take)(extent)
    }
}

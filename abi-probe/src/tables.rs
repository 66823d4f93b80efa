//! Tables of an object, at the addresses that its dynamic section gives: hash tables and relocations.
//!
//! Each is read by pread, bounded by [`MAX_TABLE`] and by the file.

use std::fs::File;
use std::path::Path;

use crate::elf::{Numbers, Object, read_at};
use crate::error::{Error, Result};
use crate::symbols::Class;

/// Larger than any table of a real library (the largest string table in Debian is 24 MiB).
pub(crate) const MAX_TABLE: u64 = 48 << 20;
// Dynamic tags: gABI figure 5-10; the GNU ones from include/elf.h.
pub(crate) const DT_PLTRELSZ: u64 = 2;
pub(crate) const DT_HASH: u64 = 4;
pub(crate) const DT_STRTAB: u64 = 5;
pub(crate) const DT_SYMTAB: u64 = 6;
pub(crate) const DT_RELA: u64 = 7;
pub(crate) const DT_RELASZ: u64 = 8;
pub(crate) const DT_STRSZ: u64 = 10;
pub(crate) const DT_REL: u64 = 17;
pub(crate) const DT_RELSZ: u64 = 18;
pub(crate) const DT_PLTREL: u64 = 20;
pub(crate) const DT_JMPREL: u64 = 23;
pub(crate) const DT_GNU_HASH: u64 = 0x6fff_fef5;
pub(crate) const DT_VERSYM: u64 = 0x6fff_fff0;
pub(crate) const DT_VERDEF: u64 = 0x6fff_fffc;
pub(crate) const DT_VERNEED: u64 = 0x6fff_fffe;

/// Reads a table of the dynamic section.
pub(crate) struct Tables<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
    pub(crate) object: &'a Object,
}

impl Tables<'_> {
    /// The address of a table, if there is one.
    pub(crate) fn address(&self, tag: u64) -> Option<u64> {
        self.object.layout.value(tag).filter(|a| *a != 0)
    }

    /// `len` bytes at an address.
    pub(crate) fn read(&self, what: &str, address: u64, len: u64) -> Result<Vec<u8>> {
        let bad = |why: String| Error::elf(self.path, why);
        if len > MAX_TABLE {
            return Err(bad(format!("{what} is {len} bytes")));
        }
        match self.object.layout.offset(address) {
            Some((offset, rest)) if len <= rest => read_at(self.file, self.path, what, offset, len as usize),
            _ => Err(bad(format!("{what} at {address:#x}, {len} bytes, lies in no loaded segment"))),
        }
    }

    /// What follows an address in its segment, at most `len` bytes.
    pub(crate) fn read_up_to(&self, what: &str, address: u64, len: u64) -> Result<Vec<u8>> {
        let rest = self.object.layout.offset(address).map_or(0, |(_, rest)| rest);
        self.read(what, address, len.min(rest))
    }
}

/// A hash table of symbol names.
pub(crate) enum Hash {
    Gnu { buckets: Vec<u8>, chain: Vec<u8>, first: usize },
    Sysv { buckets: Vec<u8>, chain: Vec<u8> },
    None,
}

impl Hash {
    /// Numbers of the symbols that may have this name, in the order of the chain: `is` decides.
    pub(crate) fn candidates(&self, numbers: Numbers, name: &[u8], is: impl Fn(usize) -> bool) -> Vec<usize> {
        let number = |bytes: &[u8], i: usize| numbers.u32_at(bytes, i.checked_mul(4)?);
        let mut found = Vec::new();
        match self {
            Hash::None => {}
            Hash::Gnu { buckets, chain, first } if buckets.len() >= 4 => {
                let hash = gnu_hash(name);
                let bucket = hash as usize % (buckets.len() / 4);
                let mut at = number(buckets, bucket).unwrap_or(0) as usize;
                while at >= *first && at != 0 {
                    let Some(value) = number(chain, at - first) else { break };
                    if (value ^ hash) >> 1 == 0 && is(at) {
                        found.push(at);
                    }
                    if value & 1 != 0 {
                        break;
                    }
                    at += 1;
                }
            }
            Hash::Sysv { buckets, chain } if buckets.len() >= 4 => {
                let bucket = sysv_hash(name) as usize % (buckets.len() / 4);
                let mut at = number(buckets, bucket).unwrap_or(0) as usize;
                // A chain cannot be longer than the table, unless it runs in circles.
                for _ in 0..chain.len() / 4 {
                    if at == 0 {
                        break;
                    }
                    if is(at) {
                        found.push(at);
                    }
                    at = number(chain, at).unwrap_or(0) as usize;
                }
            }
            Hash::Gnu { .. } | Hash::Sysv { .. } => {}
        }
        found
    }
}

/// The hash table, and how many symbols it tells of. As the loader, we prefer GNU's.
pub(crate) fn read_hash(tables: &Tables) -> Result<(Hash, usize)> {
    let n = tables.object.layout.numbers;
    let bad = |why: &str| Error::elf(tables.path, why.to_owned());
    if let Some(address) = tables.address(DT_GNU_HASH) {
        let what = "DT_GNU_HASH";
        let head = tables.read(what, address, 16)?;
        let field =
            |i: usize| n.u32_at(&head, i * 4).map(u64::from).ok_or_else(|| bad("DT_GNU_HASH is cut off"));
        let (count, first, bloom) = (field(0)?, field(1)?, field(2)?);
        let buckets_at = address + 16 + bloom * n.word() as u64;
        let buckets = tables.read(what, buckets_at, count * 4)?;
        let last = (0..buckets.len() / 4).filter_map(|i| n.u32_at(&buckets, i * 4)).max().unwrap_or(0);
        let first_in = |bytes: &[u8]| {
            (0..bytes.len() / 4).position(|i| n.u32_at(bytes, i * 4).is_some_and(|v| v & 1 != 0))
        };
        let chain_at = buckets_at + count * 4;
        if u64::from(last) < first {
            return Ok((Hash::Gnu { buckets, chain: Vec::new(), first: first as usize }, first as usize));
        }
        // The table says nowhere how long it is: the last chain ends with a mark.
        let before = u64::from(last) - first;
        let mut step = 256;
        let length = loop {
            let tail = tables.read_up_to(what, chain_at + before * 4, step * 4)?;
            match first_in(&tail) {
                Some(end) => break before + end as u64 + 1,
                None if (tail.len() as u64) < step * 4 || step * 4 > MAX_TABLE => {
                    return Err(bad("the last chain of DT_GNU_HASH has no end"));
                }
                None => step *= 16,
            }
        };
        let chain = tables.read(what, chain_at, length * 4)?;
        return Ok((Hash::Gnu { buckets, chain, first: first as usize }, (first + length) as usize));
    }
    if let Some(address) = tables.address(DT_HASH) {
        let head = tables.read("DT_HASH", address, 8)?;
        let field = |i: usize| n.u32_at(&head, i * 4).map(u64::from).ok_or_else(|| bad("DT_HASH is cut off"));
        let (count, length) = (field(0)?, field(1)?);
        let buckets = tables.read("DT_HASH", address + 8, count * 4)?;
        let chain = tables.read("DT_HASH", address + 8 + count * 4, length * 4)?;
        return Ok((Hash::Sysv { buckets, chain }, length as usize));
    }
    Ok((Hash::None, 0))
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |h: u32, b| h.wrapping_mul(33).wrapping_add(u32::from(*b)))
}

fn sysv_hash(name: &[u8]) -> u32 {
    name.iter().fold(0, |h: u32, b| {
        let h = (h << 4).wrapping_add(u32::from(*b));
        let high = h & 0xf000_0000;
        (h ^ high >> 24) & !high
    })
}

/// A relocation that names a symbol.
pub(crate) struct Relocation {
    pub(crate) symbol: u32,
    pub(crate) kind: u32,
    /// Bound when it is first called, unless all are bound at once.
    pub(crate) is_plt: bool,
}

/// DT_REL, DT_RELA and DT_JMPREL. (DT_RELR names no symbols.)
pub(crate) fn relocations(tables: &Tables) -> Result<Vec<Relocation>> {
    let n = tables.object.layout.numbers;
    let value = |tag| tables.object.layout.value(tag);
    let plt_has_addends = value(DT_PLTREL) == Some(DT_RELA);
    let mut found = Vec::new();
    for (tag, size, has_addends, is_plt) in [
        (DT_RELA, DT_RELASZ, true, false),
        (DT_REL, DT_RELSZ, false, false),
        (DT_JMPREL, DT_PLTRELSZ, plt_has_addends, true),
    ] {
        let (Some(address), Some(size)) = (tables.address(tag), value(size)) else { continue };
        if size == 0 {
            continue;
        }
        let bytes = tables.read("a relocation table", address, size)?;
        let entry = if has_addends { 3 } else { 2 } * n.word();
        for i in 0..bytes.len() / entry {
            let Some(info) = n.word_at(&bytes, i * entry + n.word()) else { break };
            // ELF64_R_SYM, ELF32_R_SYM and their types.
            let (symbol, kind) = if n.is_64 {
                ((info >> 32) as u32, info as u32)
            } else {
                ((info >> 8) as u32, info as u32 & 0xff)
            };
            // Type 0 is NONE everywhere.
            if kind != 0 && symbol != 0 {
                found.push(Relocation {
                    symbol,
                    kind,
                    is_plt: is_plt && is_jump_slot(tables.object.arch.machine, kind),
                });
            }
        }
    }
    Ok(found)
}

// e_machine, and types of relocations in the machines' psABI supplements.
const I386: u16 = 3;
const X86_64: u16 = 62;
const AARCH64: u16 = 183;

fn is_jump_slot(machine: u16, kind: u32) -> bool {
    matches!((machine, kind), (X86_64 | I386, 7) | (AARCH64, 1026))
}

/// sysdeps/*/dl-machine.h, `elf_machine_type_class`.
pub(crate) fn class_of(machine: u16, kind: u32) -> Class {
    match (machine, kind) {
        (X86_64 | I386, 5) | (AARCH64, 1024) => Class::Copy,
        (X86_64, 7 | 16 | 17 | 18 | 36)
        | (I386, 7 | 14 | 35 | 36 | 37 | 41)
        | (AARCH64, 1026 | 1028..=1031) => Class::Plt,
        _ => Class::Data,
    }
}

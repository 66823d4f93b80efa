//! ELF bytes to what the loader needs of them; the only module that names goblin.
//!
//! [`read`] takes the headers and the dynamic section alone, by pread, so that a large library costs
//! a few small reads. Every count and offset comes from hostile bytes and is bounded here.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use goblin::container::Ctx;
use goblin::elf::dynamic::{
    DF_1_NODEFLIB, DF_1_NOW, DF_BIND_NOW, DF_SYMBOLIC, DT_BIND_NOW, DT_FLAGS, DT_FLAGS_1, DT_NEEDED,
    DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRSZ, DT_STRTAB, DT_SYMBOLIC,
};
use goblin::elf::header;
use goblin::elf::program_header::{PT_DYNAMIC, PT_GNU_PROPERTY, PT_INTERP, PT_LOAD, ProgramHeader};
use goblin::elf::section_header::SectionHeader;

use crate::error::{Error, Result};

/// More program headers, sections, dynamic entries or needed objects than any real object has.
const MAX_PROGRAM_HEADERS: usize = 4096;
const MAX_SECTIONS: usize = 4096;
const MAX_DYNAMIC_BYTES: u64 = 1 << 20;
const MAX_NEEDED: usize = 4096;
const MAX_STRING: usize = 4096;
const MAX_NOTE: u64 = 1 << 16;
/// Largest library that is read whole to look at its symbols.
const MAX_WHOLE: u64 = 256 << 20;

/// Machine and class of an object: the loader passes over objects of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// e_machine.
    pub machine: u16,
    /// 64-bit class.
    pub is_64: bool,
}

impl Arch {
    /// The machine that this program was compiled for.
    pub const NATIVE: Arch = Arch {
        machine: if cfg!(target_arch = "x86_64") {
            header::EM_X86_64
        } else if cfg!(target_arch = "aarch64") {
            header::EM_AARCH64
        } else if cfg!(target_arch = "powerpc64") {
            header::EM_PPC64
        } else if cfg!(target_arch = "riscv64") {
            header::EM_RISCV
        } else {
            header::EM_NONE
        },
        is_64: cfg!(target_pointer_width = "64"),
    };

    /// Whether this machine's kernel runs it: its own kind, and i386 on x86-64.
    pub fn runs_here(self) -> bool {
        self == Arch::NATIVE || (Arch::NATIVE.machine == header::EM_X86_64 && self.machine == header::EM_386)
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.machine {
            header::EM_X86_64 => "x86_64",
            header::EM_386 => "i386",
            header::EM_AARCH64 => "aarch64",
            header::EM_ARM => "arm",
            header::EM_PPC64 => "ppc64",
            header::EM_RISCV => "riscv",
            header::EM_S390 => "s390",
            _ => return write!(f, "e_machine {}", self.machine),
        };
        f.write_str(name)
    }
}

/// The loader's view of one ELF object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Machine and class.
    pub arch: Arch,
    /// PT_INTERP.
    pub interp: Option<String>,
    /// Whether there is a dynamic section: a static program has none.
    pub is_dynamic: bool,
    /// Whether it can be loaded anywhere (ET_DYN): a library, or a position-independent program.
    pub is_shared: bool,
    /// DT_SONAME.
    pub soname: Option<String>,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// DT_RPATH, unexpanded; none where there is a DT_RUNPATH, which silences it (glibc
    /// elf/get-dynamic-info.h).
    pub rpath: Option<String>,
    /// DT_RUNPATH, unexpanded.
    pub runpath: Option<String>,
    /// DF_1_NODEFLIB: neither the cache's default directories nor these themselves are searched for it.
    pub no_default_directories: bool,
    /// DT_SYMBOLIC or DF_SYMBOLIC: its own symbols come first for it.
    pub symbolic: bool,
    /// Every symbol is bound before main (DT_BIND_NOW, DF_BIND_NOW, DF_1_NOW).
    pub bind_now: bool,
    /// GNU_PROPERTY_X86_ISA_1_NEEDED: bit 0 baseline, 1 x86-64-v2, 2 v3, 3 v4.
    pub isa_needed: u32,
    /// Where its tables are.
    pub(crate) layout: Layout,
}

/// Where in the file the dynamic section's addresses lie.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// How its numbers are written.
    pub(crate) numbers: Numbers,
    /// Address, file offset, size in the file: PT_LOAD.
    loads: Vec<(u64, u64, u64)>,
    /// Those that cannot be written: file offset, size, and whether there is code in them.
    constants: Vec<(u64, u64, bool)>,
    dynamic: Vec<(u64, u64)>,
}

impl Layout {
    /// The first value of a dynamic tag.
    pub(crate) fn value(&self, tag: u64) -> Option<u64> {
        self.dynamic.iter().find(|(t, _)| *t == tag).map(|(_, v)| *v)
    }

    /// The file offset of an address, and how many bytes of its segment follow.
    pub(crate) fn offset(&self, address: u64) -> Option<(u64, u64)> {
        let (vaddr, offset, size) =
            self.loads.iter().find(|(vaddr, _, size)| address >= *vaddr && address - vaddr < *size)?;
        Some((offset.checked_add(address - vaddr)?, size - (address - vaddr)))
    }
}

/// A file with its first page at hand: headers, PT_INTERP and notes lie there in nearly every object.
struct Source<'f> {
    file: &'f File,
    path: &'f Path,
    head: Vec<u8>,
}

/// What is read at once.
const HEAD: usize = 4096;

impl<'f> Source<'f> {
    fn open(file: &'f File, path: &'f Path) -> Result<Source<'f>> {
        let mut head = vec![0; HEAD];
        let n = file.read_at(&mut head, 0).map_err(|e| Error::io("read", path, e))?;
        head.truncate(n);
        Ok(Source { file, path, head })
    }

    fn bytes(&self, what: &str, offset: u64, len: usize) -> Result<Cow<'_, [u8]>> {
        let at_hand = usize::try_from(offset).ok().and_then(|o| self.head.get(o..o.checked_add(len)?));
        match at_hand {
            Some(bytes) => Ok(Cow::Borrowed(bytes)),
            None => read_at(self.file, self.path, what, offset, len).map(Cow::Owned),
        }
    }

    fn string(&self, what: &str, offset: u64) -> Result<String> {
        let at_hand = usize::try_from(offset).ok().and_then(|o| self.head.get(o..));
        let end = at_hand.and_then(|bytes| bytes.iter().position(|b| *b == 0));
        match (at_hand, end) {
            (Some(bytes), Some(end)) => Ok(String::from_utf8_lossy(&bytes[..end]).into_owned()),
            _ => string_at(self.file, self.path, what, offset),
        }
    }
}

/// Bytes of the file; one read, whose length is bounded by the caller.
pub(crate) fn read_at(file: &File, path: &Path, what: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
    let fails = |e: std::io::Error| Error::elf(path, format!("{what} at offset {offset}, {len} bytes: {e}"));
    if len > HEAD {
        // Before the memory is asked for.
        let size = file.metadata().map_err(fails)?.len();
        if offset.checked_add(len as u64).is_none_or(|end| end > size) {
            return Err(fails(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).map_err(fails)?;
    Ok(bytes)
}

/// A NUL-terminated string at `offset`.
fn string_at(file: &File, path: &Path, what: &str, offset: u64) -> Result<String> {
    let mut bytes = vec![0; 256];
    loop {
        let n = file
            .read_at(&mut bytes, offset)
            .map_err(|e| Error::elf(path, format!("{what} at offset {offset}: {e}")))?;
        if let Some(end) = bytes[..n].iter().position(|b| *b == 0) {
            return Ok(String::from_utf8_lossy(&bytes[..end]).into_owned());
        }
        if n < bytes.len() || bytes.len() >= MAX_STRING {
            return Err(Error::elf(path, format!("{what} at offset {offset} has no end")));
        }
        bytes.resize(MAX_STRING, 0);
    }
}

/// Reads headers and dynamic section; `None` when the file does not begin with the ELF magic.
pub fn read(file: &File, path: &Path) -> Result<Option<Object>> {
    let source = Source::open(file, path)?;
    let start = &source.head[..source.head.len().min(64)];
    if !start.starts_with(header::ELFMAG) {
        return Ok(None);
    }
    let head = goblin::elf::Elf::parse_header(start).map_err(|e| Error::elf(path, format!("header: {e}")))?;
    let ctx = Ctx::new(
        head.container().map_err(|e| Error::elf(path, format!("class: {e}")))?,
        head.endianness().map_err(|e| Error::elf(path, format!("data encoding: {e}")))?,
    );
    let count = usize::from(head.e_phnum);
    if count > MAX_PROGRAM_HEADERS {
        return Err(Error::elf(path, format!("e_phnum is {count}")));
    }
    let size = ProgramHeader::size(ctx);
    if count > 0 && usize::from(head.e_phentsize) != size {
        return Err(Error::elf(path, format!("e_phentsize is {}, not {size}", head.e_phentsize)));
    }
    let table = source.bytes("program headers", head.e_phoff, count * size)?;
    let segments = ProgramHeader::parse(&table, 0, count, ctx)
        .map_err(|e| Error::elf(path, format!("program headers: {e}")))?;

    let interp = match segments.iter().find(|s| s.p_type == PT_INTERP) {
        Some(s) => Some(source.string("PT_INTERP", s.p_offset)?),
        None => None,
    };
    let arch = Arch { machine: head.e_machine, is_64: ctx.is_big() };
    let isa_needed = match segments.iter().find(|s| s.p_type == PT_GNU_PROPERTY) {
        Some(s) if head.e_machine == header::EM_X86_64 && s.p_filesz <= MAX_NOTE => {
            isa_needed(&source.bytes("PT_GNU_PROPERTY", s.p_offset, s.p_filesz as usize)?)
        }
        _ => 0,
    };
    let loads = segments.iter().filter(|s| s.p_type == PT_LOAD).map(|s| (s.p_vaddr, s.p_offset, s.p_filesz));
    let numbers = Numbers { is_64: ctx.is_big(), is_little: ctx.is_little_endian() };
    let constants = segments
        .iter()
        .filter(|s| s.p_type == PT_LOAD && !s.is_write())
        .map(|s| (s.p_offset, s.p_filesz, s.is_executable()));
    let layout =
        Layout { numbers, loads: loads.collect(), constants: constants.collect(), dynamic: Vec::new() };
    let mut object = Object {
        arch,
        interp,
        is_dynamic: false,
        is_shared: head.e_type == header::ET_DYN,
        soname: None,
        needed: Vec::new(),
        rpath: None,
        runpath: None,
        no_default_directories: false,
        symbolic: false,
        bind_now: false,
        isa_needed,
        layout,
    };
    let Some(dynamic) = segments.iter().find(|s| s.p_type == PT_DYNAMIC) else { return Ok(Some(object)) };
    object.is_dynamic = true;
    if dynamic.p_filesz > MAX_DYNAMIC_BYTES {
        return Err(Error::elf(path, format!("PT_DYNAMIC is {} bytes", dynamic.p_filesz)));
    }
    let bytes = source.bytes("PT_DYNAMIC", dynamic.p_offset, dynamic.p_filesz as usize)?;
    object.layout.dynamic = dynamic_entries(&bytes, numbers).collect();
    object.dynamic(&source)?;
    Ok(Some(object))
}

impl Object {
    /// What the dynamic section says.
    fn dynamic(&mut self, source: &Source) -> Result<()> {
        let path = source.path;
        let flags = self.layout.value(DT_FLAGS).unwrap_or(0);
        let flags_1 = self.layout.value(DT_FLAGS_1).unwrap_or(0);
        self.symbolic = flags & DF_SYMBOLIC != 0 || self.layout.value(DT_SYMBOLIC).is_some();
        self.bind_now =
            flags & DF_BIND_NOW != 0 || flags_1 & DF_1_NOW != 0 || self.layout.value(DT_BIND_NOW).is_some();
        self.no_default_directories = flags_1 & DF_1_NODEFLIB != 0;

        let (Some(strtab), Some(strsz)) = (self.layout.value(DT_STRTAB), self.layout.value(DT_STRSZ)) else {
            return Ok(());
        };
        let Some((strings, _)) = self.layout.offset(strtab) else {
            return Err(Error::elf(path, format!("DT_STRTAB {strtab:#x} lies in no loaded segment")));
        };
        let text = |what: &str, at: u64| match strings.checked_add(at) {
            Some(offset) if at < strsz => source.string(what, offset),
            _ => Err(Error::elf(path, format!("{what} {at:#x} lies outside DT_STRSZ {strsz:#x}"))),
        };
        for (tag, at) in &self.layout.dynamic {
            match *tag {
                DT_NEEDED if self.needed.len() == MAX_NEEDED => {
                    return Err(Error::elf(path, format!("more than {MAX_NEEDED} DT_NEEDED entries")));
                }
                DT_NEEDED => self.needed.push(text("DT_NEEDED", *at)?),
                DT_SONAME => self.soname = Some(text("DT_SONAME", *at)?),
                DT_RPATH => self.rpath = Some(text("DT_RPATH", *at)?),
                DT_RUNPATH => self.runpath = Some(text("DT_RUNPATH", *at)?),
                _ => {}
            }
        }
        if self.runpath.is_some() {
            self.rpath = None;
        }
        Ok(())
    }
}

/// What stands in the first section of this name, if there is one and it is small; the loader does not know of
/// sections, other tools leave notes in them.
pub fn section(file: &File, path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let source = Source::open(file, path)?;
    let start = &source.head[..source.head.len().min(64)];
    if !start.starts_with(header::ELFMAG) {
        return Ok(None);
    }
    let fails = |e: goblin::error::Error| Error::elf(path, format!("sections: {e}"));
    let head = goblin::elf::Elf::parse_header(start).map_err(fails)?;
    let ctx = Ctx::new(head.container().map_err(fails)?, head.endianness().map_err(fails)?);
    let (count, size) = (usize::from(head.e_shnum), SectionHeader::size(ctx));
    if count == 0 || count > MAX_SECTIONS || usize::from(head.e_shentsize) != size {
        return Ok(None);
    }
    // goblin takes a table at 0 for none.
    let mut table = vec![0; size];
    table.extend_from_slice(&source.bytes("section headers", head.e_shoff, count * size)?);
    let sections = SectionHeader::parse(&table, size, count, ctx).map_err(fails)?;
    let Some(names) = sections.get(usize::from(head.e_shstrndx)) else { return Ok(None) };
    for section in &sections {
        let at = names.sh_offset.checked_add(section.sh_name as u64);
        let found = at.and_then(|at| source.bytes("a section's name", at, name.len() + 1).ok());
        let is_it = found.is_some_and(|text| text.strip_suffix(&[0]) == Some(name.as_bytes()));
        if is_it && section.sh_size <= MAX_NOTE {
            let len = section.sh_size as usize;
            return source.bytes(name, section.sh_offset, len).map(|bytes| Some(bytes.into_owned()));
        }
    }
    Ok(None)
}

/// GNU_PROPERTY_X86_ISA_1_NEEDED of a PT_GNU_PROPERTY segment (x86-64 psABI, "Program Property").
fn isa_needed(note: &[u8]) -> u32 {
    const ISA_1_NEEDED: u32 = 0xc000_8002;
    let number = |at: usize| {
        let bytes: [u8; 4] = note.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    // Sizes of name ("GNU", 4 bytes) and properties, type, name; then the properties, aligned to 8.
    let Some(end) = number(4).map(|size| (16 + size as usize).min(note.len())) else { return 0 };
    let mut at = 16;
    while let (Some(kind), Some(size)) = (number(at), number(at + 4)) {
        if kind == ISA_1_NEEDED && size == 4 {
            return number(at + 8).unwrap_or(0);
        }
        at += 8 + (size as usize).min(note.len()).next_multiple_of(8);
        if at >= end {
            break;
        }
    }
    0
}

/// (tag, value) pairs up to DT_NULL.
fn dynamic_entries(bytes: &[u8], numbers: Numbers) -> impl Iterator<Item = (u64, u64)> + '_ {
    let word = numbers.word();
    (0..bytes.len() / (2 * word))
        .filter_map(move |i| {
            Some((numbers.word_at(bytes, 2 * i * word)?, numbers.word_at(bytes, (2 * i + 1) * word)?))
        })
        .take_while(|(tag, _)| *tag != 0)
}

/// How an object writes its numbers. Every read is bounded by the bytes that are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) is_64: bool,
    is_little: bool,
}

impl Numbers {
    /// Bytes of an address.
    pub(crate) fn word(self) -> usize {
        if self.is_64 { 8 } else { 4 }
    }

    fn number(self, bytes: &[u8], at: usize, len: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(len)?)?;
        let fold = |n: u64, byte: &u8| n << 8 | u64::from(*byte);
        Some(if self.is_little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) })
    }

    pub(crate) fn half_at(self, bytes: &[u8], at: usize) -> Option<u16> {
        self.number(bytes, at, 2).map(|n| n as u16)
    }

    pub(crate) fn u32_at(self, bytes: &[u8], at: usize) -> Option<u32> {
        self.number(bytes, at, 4).map(|n| n as u32)
    }

    pub(crate) fn word_at(self, bytes: &[u8], at: usize) -> Option<u64> {
        self.number(bytes, at, self.word())
    }
}

/// What is searched for strings at once, and by how much two pieces overlap.
const PIECE: usize = 1 << 20;
const OVERLAP: usize = 256;

impl Object {
    /// The NUL-terminated text at an address (`const char name[]`).
    pub fn text_at(&self, file: &File, path: &Path, address: u64) -> Option<String> {
        let (offset, _) = self.layout.offset(address)?;
        string_at(file, path, "a text", offset).ok()
    }

    /// The first NUL-terminated text of at most 256 bytes among the constants for which `pick` has an answer.
    pub fn find_text<T>(&self, file: &File, mut pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        self.find_constant(file, |bytes| std::str::from_utf8(bytes).ok().and_then(&mut pick))
    }

    /// The same for whatever lies between two NULs: a number may stand right before a text.
    /// Constants lie in segments that cannot be written; those without code come first.
    pub fn find_constant<T>(&self, file: &File, mut pick: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let mut segments: Vec<_> = self.layout.constants.clone();
        segments.sort_by_key(|(_, _, has_code)| *has_code);
        // No more than is there: to fill a page with zeros costs as much as to read it.
        let largest = segments.iter().map(|(_, size, _)| *size).max().unwrap_or(0);
        let mut piece = vec![0; largest.min((PIECE + OVERLAP) as u64) as usize];
        for (start, size, _) in segments {
            let end = start.checked_add(size.min(MAX_WHOLE))?;
            let mut at = start;
            while at < end {
                let want = usize::try_from(end - at).map_or(piece.len(), |left| left.min(piece.len()));
                let n = file.read_at(&mut piece[..want], at).ok()?;
                let mut texts = piece[..n].split(|b| *b == 0).filter(|t| !t.is_empty() && t.len() <= OVERLAP);
                if let Some(found) = texts.find_map(&mut pick) {
                    return Some(found);
                }
                if n < piece.len() {
                    break;
                }
                at += PIECE as u64;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<Option<Object>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.as_file(), Path::new("/x"))
    }

    #[test]
    fn a_real_program() {
        let object = read(&File::open("/bin/sh").unwrap(), Path::new("/bin/sh")).unwrap().unwrap();
        assert_eq!(object.arch, Arch::NATIVE);
        assert!(object.interp.unwrap().contains("ld-linux"));
        assert!(object.needed.iter().any(|n| n == "libc.so.6"), "{:?}", object.needed);
    }

    #[test]
    fn not_elf_is_none_and_half_an_elf_is_an_error() {
        assert!(of(b"#!/bin/sh\n").unwrap().is_none());
        assert!(of(b"").unwrap().is_none());
        let e = of(b"\x7fELF\x02\x01\x01").unwrap_err().to_string();
        assert!(e.starts_with("/x: bad ELF: header"), "{e}");
    }

    #[test]
    fn every_truncation_and_many_bit_flips_of_a_real_program_end_in_an_answer() {
        let whole = std::fs::read("/bin/sh").unwrap();
        for cut in (0..4096.min(whole.len())).step_by(7) {
            let _ = of(&whole[..cut]);
        }
        for bit in (0..64 * 8).chain(64 * 8..64 * 64) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = of(&bytes);
        }
    }
}

//! ELF bytes to what the loader needs of them; the only module that names goblin.
//!
//! [`read`] takes the headers and the dynamic section alone, by pread, so that a large library costs
//! a few small reads. Every count and offset comes from hostile bytes and is bounded here.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use goblin::container::Ctx;
use goblin::elf::dynamic::{DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRSZ, DT_STRTAB};
use goblin::elf::header;
use goblin::elf::program_header::{PT_DYNAMIC, PT_INTERP, PT_LOAD, ProgramHeader};

use crate::error::{Error, Result};

/// More program headers, dynamic entries or needed objects than any real object has.
const MAX_PROGRAM_HEADERS: usize = 4096;
const MAX_DYNAMIC_BYTES: u64 = 1 << 20;
const MAX_NEEDED: usize = 4096;
const MAX_STRING: usize = 4096;
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
    /// DT_SONAME.
    pub soname: Option<String>,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// DT_RPATH, unexpanded.
    pub rpath: Option<String>,
    /// DT_RUNPATH, unexpanded.
    pub runpath: Option<String>,
}

fn read_at(file: &File, path: &Path, what: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|e| Error::elf(path, format!("{what} at offset {offset}, {len} bytes: {e}")))?;
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
    let mut start = [0u8; 64];
    let n = file.read_at(&mut start, 0).map_err(|e| Error::io("read", path, e))?;
    if n < 4 || start[..4] != *header::ELFMAG {
        return Ok(None);
    }
    let head =
        goblin::elf::Elf::parse_header(&start[..n]).map_err(|e| Error::elf(path, format!("header: {e}")))?;
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
    let table = read_at(file, path, "program headers", head.e_phoff, count * size)?;
    let segments = ProgramHeader::parse(&table, 0, count, ctx)
        .map_err(|e| Error::elf(path, format!("program headers: {e}")))?;

    let interp = match segments.iter().find(|s| s.p_type == PT_INTERP) {
        Some(s) => Some(string_at(file, path, "PT_INTERP", s.p_offset)?),
        None => None,
    };
    let mut object = Object {
        arch: Arch { machine: head.e_machine, is_64: ctx.is_big() },
        interp,
        is_dynamic: false,
        soname: None,
        needed: Vec::new(),
        rpath: None,
        runpath: None,
    };
    let Some(dynamic) = segments.iter().find(|s| s.p_type == PT_DYNAMIC) else { return Ok(Some(object)) };
    object.is_dynamic = true;
    if dynamic.p_filesz > MAX_DYNAMIC_BYTES {
        return Err(Error::elf(path, format!("PT_DYNAMIC is {} bytes", dynamic.p_filesz)));
    }
    let bytes = read_at(file, path, "PT_DYNAMIC", dynamic.p_offset, dynamic.p_filesz as usize)?;
    let entries: Vec<(u64, u64)> = dynamic_entries(&bytes, ctx).collect();
    let value = |tag| entries.iter().find(|(t, _)| *t == tag).map(|(_, v)| *v);
    let (Some(strtab), Some(strsz)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Ok(Some(object)) };
    let Some(strings) = segments
        .iter()
        .find(|s| s.p_type == PT_LOAD && strtab >= s.p_vaddr && strtab - s.p_vaddr < s.p_filesz)
        .and_then(|s| s.p_offset.checked_add(strtab - s.p_vaddr))
    else {
        return Err(Error::elf(path, format!("DT_STRTAB {strtab:#x} lies in no loaded segment")));
    };
    let text = |what: &str, at: u64| match strings.checked_add(at) {
        Some(offset) if at < strsz => string_at(file, path, what, offset),
        _ => Err(Error::elf(path, format!("{what} {at:#x} lies outside DT_STRSZ {strsz:#x}"))),
    };
    for (tag, at) in &entries {
        match *tag {
            DT_NEEDED if object.needed.len() == MAX_NEEDED => {
                return Err(Error::elf(path, format!("more than {MAX_NEEDED} DT_NEEDED entries")));
            }
            DT_NEEDED => object.needed.push(text("DT_NEEDED", *at)?),
            DT_SONAME => object.soname = Some(text("DT_SONAME", *at)?),
            DT_RPATH => object.rpath = Some(text("DT_RPATH", *at)?),
            DT_RUNPATH => object.runpath = Some(text("DT_RUNPATH", *at)?),
            _ => {}
        }
    }
    Ok(Some(object))
}

/// (tag, value) pairs up to DT_NULL.
fn dynamic_entries(bytes: &[u8], ctx: Ctx) -> impl Iterator<Item = (u64, u64)> + '_ {
    let word = if ctx.is_big() { 8 } else { 4 };
    let number = move |b: &[u8]| {
        let fold = |n: u64, byte: &u8| n << 8 | u64::from(*byte);
        if ctx.is_little_endian() { b.iter().rev().fold(0, fold) } else { b.iter().fold(0, fold) }
    };
    bytes
        .chunks_exact(2 * word)
        .map(move |pair| (number(&pair[..word]), number(&pair[word..])))
        .take_while(|(tag, _)| *tag != 0)
}

/// Dynamic symbols of a library, read whole: for the few libraries whose identity matters.
pub struct Symbols {
    bytes: Vec<u8>,
    /// Name, value (an address, 0 when undefined) and whether it is defined.
    table: Vec<(String, u64, bool)>,
    loads: Vec<(u64, u64, u64)>,
}

impl Symbols {
    /// Reads every dynamic symbol.
    pub fn read(file: &File, path: &Path) -> Result<Symbols> {
        let size = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        if size > MAX_WHOLE {
            return Err(Error::elf(path, format!("{size} bytes are more than a library has")));
        }
        let bytes = read_at(file, path, "the file", 0, size as usize)?;
        let elf = goblin::elf::Elf::parse(&bytes).map_err(|e| Error::elf(path, e.to_string()))?;
        let table = elf
            .dynsyms
            .iter()
            .filter_map(|s| {
                let name = elf.dynstrtab.get_at(s.st_name)?;
                Some((name.to_owned(), s.st_value, s.st_shndx != 0))
            })
            .collect();
        let loads = elf
            .program_headers
            .iter()
            .filter(|s| s.p_type == PT_LOAD)
            .map(|s| (s.p_vaddr, s.p_offset, s.p_filesz))
            .collect();
        Ok(Symbols { table, loads, bytes })
    }

    /// Whether the library defines `name`.
    pub fn defines(&self, name: &str) -> bool {
        self.table.iter().any(|(n, _, defined)| *defined && n == name)
    }

    /// The NUL-terminated text that the data symbol `name` begins with (`const char name[]`).
    pub fn text(&self, name: &str) -> Option<String> {
        let (_, at, _) = self.table.iter().find(|(n, _, defined)| *defined && n == name)?;
        let (vaddr, offset, _) = self.loads.iter().find(|(v, _, size)| at >= v && at - v < *size)?;
        let start = usize::try_from(offset.checked_add(at - vaddr)?).ok()?;
        let tail = self.bytes.get(start..)?;
        let end = tail.iter().take(MAX_STRING).position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(&tail[..end]).into_owned())
    }

    /// Every NUL-terminated printable string of the file, as strings(1) finds them.
    pub fn strings(&self) -> impl Iterator<Item = &str> {
        self.bytes.split(|b| *b == 0).filter_map(|s| std::str::from_utf8(s).ok()).filter(|s| s.len() >= 3)
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

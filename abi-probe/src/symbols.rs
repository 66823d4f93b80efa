//! The symbols of one object as the loader sees them: its hash table, versions and relocations.
//!
//! Sources: System V gABI ("Hash Table", "Symbol Table"); the GNU hash section and symbol versioning as in
//! glibc elf/dl-lookup.c (`do_lookup_x`, `check_match`) and elf/dl-version.c.

use std::fs::File;
use std::path::Path;

use crate::elf::{Numbers, Object};
use crate::error::Result;
use crate::tables::{
    DT_STRSZ, DT_STRTAB, DT_SYMTAB, DT_VERDEF, DT_VERNEED, DT_VERSYM, Hash, MAX_TABLE, Tables, class_of,
    read_hash, relocations,
};

/// More versions than any library defines or needs.
const MAX_VERSIONS: usize = 1 << 15;

const SHN_UNDEF: u16 = 0;
const SHN_ABS: u16 = 0xfff1;
const STB_LOCAL: u8 = 0;
const STB_WEAK: u8 = 2;
/// NOTYPE, OBJECT, FUNC, COMMON, TLS, GNU_IFUNC: the types that name code or data (dl-lookup.c, ALLOWED_STT).
const ALLOWED_TYPES: u32 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << STT_TLS | 1 << 10;
const STT_TLS: u8 = 6;
/// In a versym: the version's number, and the bit that hides all but the default version.
const VERSION: u16 = 0x7fff;
const HIDDEN: u16 = 0x8000;
const VER_FLG_BASE: u16 = 1;
const VER_FLG_WEAK: u16 = 2;

/// What a relocation wants of the definition that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Any.
    Data,
    /// Not a program's stand-in for a function (JUMP_SLOT, thread-local).
    Plt,
    /// Not the program's own copy (COPY).
    Copy,
}

/// A symbol that an object's relocations need from elsewhere.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// The version with which it was linked.
    pub version: Option<Version>,
    /// Nobody minds if there is none.
    pub weak: bool,
    /// What is wanted.
    pub class: Class,
    /// Needed before main, whatever the loader's laziness: some relocation is no JUMP_SLOT.
    pub eager: bool,
    /// The size of the object to be copied (COPY), as the program knows it.
    pub size: u64,
}

/// A symbol's version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// As in `GLIBC_2.34`.
    pub name: String,
    /// The file that it was linked from; none for a version of the object's own.
    pub file: Option<String>,
    /// Default versions do not do.
    pub hidden: bool,
}

/// A version that an object needs of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededVersion {
    /// The file's soname.
    pub file: String,
    /// The version.
    pub version: String,
    /// Its absence is no error.
    pub weak: bool,
}

/// One object's tables.
pub struct Symbols {
    numbers: Numbers,
    strings: Vec<u8>,
    symbols: Vec<u8>,
    hash: Hash,
    /// Empty when the object knows no versions.
    versym: Vec<u8>,
    /// By number; of needed and of defined versions.
    versions: Vec<Option<Version>>,
    needs: Vec<NeededVersion>,
    defined: Vec<String>,
    has_definitions: bool,
}

/// What a look-up in one object came to.
pub(crate) enum Lookup {
    /// The definition's size in bytes.
    Found(u64),
    Missing,
}

struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

impl Symbol {
    fn kind(&self) -> u8 {
        self.info & 0xf
    }

    fn binding(&self) -> u8 {
        self.info >> 4
    }

    /// STV_INTERNAL and STV_HIDDEN are nobody else's; STV_PROTECTED binds references within.
    fn is_hidden(&self) -> bool {
        matches!(self.other & 3, 1 | 2)
    }
}

impl Symbols {
    /// Reads the tables of `object`, which was read from `file`.
    pub fn read(file: &File, path: &Path, object: &Object) -> Result<Symbols> {
        let tables = Tables { file, path, object };
        let numbers = object.layout.numbers;
        let mut this = Symbols {
            numbers,
            strings: Vec::new(),
            symbols: Vec::new(),
            hash: Hash::None,
            versym: Vec::new(),
            versions: Vec::new(),
            needs: Vec::new(),
            defined: Vec::new(),
            has_definitions: false,
        };
        let (Some(strtab), Some(strsz), Some(symtab)) =
            (tables.address(DT_STRTAB), object.layout.value(DT_STRSZ), tables.address(DT_SYMTAB))
        else {
            return Ok(this);
        };
        this.strings = tables.read("DT_STRTAB", strtab, strsz)?;
        let (hash, hashed) = read_hash(&tables)?;
        this.hash = hash;
        let relocated = relocations(&tables)?.iter().map(|r| r.symbol as usize + 1).max().unwrap_or(0);
        let count = hashed.max(relocated) as u64;
        this.symbols = tables.read("DT_SYMTAB", symtab, count.saturating_mul(this.symbol_size() as u64))?;
        if let Some(address) = tables.address(DT_VERNEED) {
            this.read_needed_versions(&tables.read_up_to("DT_VERNEED", address, MAX_TABLE)?);
        }
        if let Some(address) = tables.address(DT_VERDEF) {
            this.has_definitions = true;
            this.read_defined_versions(&tables.read_up_to("DT_VERDEF", address, MAX_TABLE)?);
        }
        if let Some(address) = tables.address(DT_VERSYM)
            && !this.versions.is_empty()
        {
            this.versym = tables.read("DT_VERSYM", address, count.saturating_mul(2))?;
        }
        Ok(this)
    }

    /// What the object's relocations need from elsewhere, each symbol and class once.
    pub fn references(&self, file: &File, path: &Path, object: &Object) -> Result<Vec<Reference>> {
        let mut wanted: Vec<(u32, Class, bool)> = relocations(&Tables { file, path, object })?
            .iter()
            .filter(|r| r.symbol != 0)
            .map(|r| (r.symbol, class_of(object.arch.machine, r.kind), !r.is_plt))
            .collect();
        wanted.sort_unstable();
        let mut found: Vec<Reference> = Vec::new();
        let mut last = None;
        for (index, class, eager) in wanted {
            let Some(symbol) = self.symbol(index as usize) else { continue };
            // Its own definition would do, whatever else is found: nothing can be missing.
            if class != Class::Copy && symbol.section != SHN_UNDEF {
                continue;
            }
            if symbol.binding() == STB_LOCAL || symbol.is_hidden() || symbol.other & 3 == 3 {
                continue;
            }
            // Sorted: equal ones follow each other, the lazy before the eager.
            if last.replace((index, class)) == Some((index, class)) {
                if let Some(reference) = found.last_mut() {
                    reference.eager |= eager;
                }
                continue;
            }
            let version = self.version_of(index as usize).cloned();
            let weak = symbol.binding() == STB_WEAK;
            found.push(Reference {
                name: self.text(symbol.name).into_owned(),
                version,
                weak,
                class,
                eager,
                size: symbol.size,
            });
        }
        Ok(found)
    }

    /// Whether the object has versions at all, needed or defined.
    pub(crate) fn knows_versions(&self) -> bool {
        !self.versym.is_empty()
    }

    /// Versions that other files must define.
    pub fn needed_versions(&self) -> &[NeededVersion] {
        &self.needs
    }

    /// Whether versions are defined at all; `None`: the object knows none.
    pub fn defines_version(&self, name: &str) -> Option<bool> {
        self.has_definitions.then(|| self.defined.iter().any(|d| d == name))
    }

    /// The versions that the object defines, without the one that names the file itself.
    pub fn defined_versions(&self) -> &[String] {
        &self.defined
    }

    /// Whether the object has a definition for others of this name, in any version.
    pub fn defines(&self, name: &str) -> bool {
        let any = |symbol: &Symbol| symbol.section != SHN_UNDEF && is_global(symbol);
        self.candidates(name).into_iter().any(|i| self.symbol(i).is_some_and(|s| any(&s)))
    }

    /// Names of everything that the object has for others.
    pub fn exports(&self) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
        (1..self.symbols.len() / self.symbol_size())
            .filter_map(|i| self.symbol(i))
            .filter(|s| s.section != SHN_UNDEF && is_global(s))
            .map(|s| self.text(s.name))
    }

    /// The address of the definition of this name.
    pub fn address(&self, name: &str) -> Option<u64> {
        let defined = |i: usize| self.symbol(i).filter(|s| s.section != SHN_UNDEF && is_global(s));
        self.candidates(name).into_iter().find_map(defined).map(|s| s.value)
    }

    /// As the loader looks for a reference in one object (dl-lookup.c, `do_lookup_x`).
    pub(crate) fn lookup(&self, reference: &Reference) -> Lookup {
        let mut only_versioned = None;
        let mut versioned = 0;
        let mut found = None;
        for index in self.candidates(&reference.name) {
            let Some(symbol) = self.symbol(index) else { continue };
            if symbol.value == 0 && symbol.section != SHN_ABS && symbol.kind() != STT_TLS {
                continue;
            }
            if reference.class == Class::Plt && symbol.section == SHN_UNDEF
                || 1u32.checked_shl(symbol.kind().into()).unwrap_or(0) & ALLOWED_TYPES == 0
            {
                continue;
            }
            if !self.versym.is_empty() {
                let versym = self.versym_of(index);
                match &reference.version {
                    Some(wanted) => {
                        let has = self.versions.get(usize::from(versym & VERSION)).and_then(Option::as_ref);
                        let same = has.is_some_and(|v| v.name == wanted.name);
                        if !same && (wanted.hidden || has.is_some() || versym & HIDDEN != 0) {
                            continue;
                        }
                    }
                    // Numbers 0 to 2 are the object's own and its oldest version.
                    None if versym & VERSION >= 3 => {
                        if versym & HIDDEN == 0 {
                            versioned += 1;
                            only_versioned.get_or_insert(symbol);
                        }
                        continue;
                    }
                    None => {}
                }
            }
            found = Some(symbol);
            break;
        }
        match found.or(only_versioned.filter(|_| versioned == 1)) {
            Some(symbol) if is_global(&symbol) => Lookup::Found(symbol.size),
            _ => Lookup::Missing,
        }
    }

    /// Symbols of that name, in the order of the hash chain.
    fn candidates(&self, name: &str) -> Vec<usize> {
        self.hash.candidates(self.numbers, name.as_bytes(), |i| {
            self.symbol(i).is_some_and(|s| self.text_is(s.name, name))
        })
    }

    fn symbol_size(&self) -> usize {
        if self.numbers.is_64 { 24 } else { 16 }
    }

    fn symbol(&self, index: usize) -> Option<Symbol> {
        let at = index.checked_mul(self.symbol_size())?;
        let bytes = self.symbols.get(at..at.checked_add(self.symbol_size())?)?;
        let n = self.numbers;
        // Elf64_Sym: name, info, other, shndx, value, size. Elf32_Sym: name, value, size, info, other, shndx.
        let (info, value, size) = if n.is_64 { (4, 8, 16) } else { (12, 4, 8) };
        Some(Symbol {
            name: n.u32_at(bytes, 0)?,
            info: bytes[info],
            other: bytes[info + 1],
            section: n.half_at(bytes, info + 2)?,
            value: n.word_at(bytes, value)?,
            size: n.word_at(bytes, size)?,
        })
    }

    fn versym_of(&self, index: usize) -> u16 {
        self.numbers.half_at(&self.versym, index * 2).unwrap_or(0)
    }

    fn version_of(&self, index: usize) -> Option<&Version> {
        let number = self.versym_of(index) & VERSION;
        self.versions.get(usize::from(number))?.as_ref()
    }

    fn bytes_at(&self, offset: u32) -> &[u8] {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        tail.split(|b| *b == 0).next().unwrap_or_default()
    }

    fn text(&self, offset: u32) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.bytes_at(offset))
    }

    fn text_is(&self, offset: u32, name: &str) -> bool {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        tail.starts_with(name.as_bytes()) && tail.get(name.len()) == Some(&0)
    }

    fn set_version(&mut self, number: u16, version: Version) {
        let number = usize::from(number & VERSION);
        if number >= self.versions.len() {
            self.versions.resize(number + 1, None);
        }
        self.versions[number] = Some(version);
    }

    /// Verneed: version 2, count 2, file 4, first aux 4, next 4; Vernaux: hash 4, flags 2, other 2, name 4,
    /// next 4. Offsets are relative to the record that holds them.
    fn read_needed_versions(&mut self, bytes: &[u8]) {
        let n = self.numbers;
        let mut at = 0;
        let mut budget = MAX_VERSIONS;
        loop {
            let (Some(file), Some(aux), Some(next)) =
                (n.u32_at(bytes, at + 4), n.u32_at(bytes, at + 8), n.u32_at(bytes, at + 12))
            else {
                return;
            };
            let file = self.text(file).into_owned();
            let mut aux_at = at.saturating_add(aux as usize);
            loop {
                let (Some(flags), Some(other), Some(name), Some(aux_next)) = (
                    n.half_at(bytes, aux_at + 4),
                    n.half_at(bytes, aux_at + 6),
                    n.u32_at(bytes, aux_at + 8),
                    n.u32_at(bytes, aux_at + 12),
                ) else {
                    return;
                };
                let name = self.text(name).into_owned();
                let weak = flags & VER_FLG_WEAK != 0;
                self.needs.push(NeededVersion { file: file.clone(), version: name.clone(), weak });
                let hidden = other & HIDDEN != 0;
                self.set_version(other, Version { name, file: Some(file.clone()), hidden });
                budget -= 1;
                if aux_next == 0 || budget == 0 {
                    break;
                }
                aux_at = aux_at.saturating_add(aux_next as usize);
            }
            if next == 0 || budget == 0 {
                return;
            }
            at = at.saturating_add(next as usize);
        }
    }

    /// Verdef: version 2, flags 2, number 2, count 2, hash 4, aux 4, next 4; Verdaux: name 4, next 4. The
    /// first aux names the version, others its parents.
    fn read_defined_versions(&mut self, bytes: &[u8]) {
        let n = self.numbers;
        let mut at = 0;
        for _ in 0..MAX_VERSIONS {
            let (Some(flags), Some(number), Some(aux), Some(next)) = (
                n.half_at(bytes, at + 2),
                n.half_at(bytes, at + 4),
                n.u32_at(bytes, at + 12),
                n.u32_at(bytes, at + 16),
            ) else {
                return;
            };
            let Some(name) = n.u32_at(bytes, at.saturating_add(aux as usize)) else { return };
            let name = self.text(name).into_owned();
            if flags & VER_FLG_BASE == 0 {
                self.defined.push(name.clone());
                self.set_version(number, Version { name, file: None, hidden: false });
            } else {
                // Its name is the file's: asked for by files that were linked against an unversioned one.
                self.defined.push(name);
            }
            if next == 0 {
                return;
            }
            at = at.saturating_add(next as usize);
        }
    }
}

/// A definition that others may use: STB_GLOBAL, STB_WEAK or STB_GNU_UNIQUE, and visible.
fn is_global(symbol: &Symbol) -> bool {
    matches!(symbol.binding(), 1 | 2 | 10) && !symbol.is_hidden()
}

//! The dynamic loader's search order and cache formats, as pure functions.
//!
//! Sources: ld.so(8); glibc elf/dl-load.c (`_dl_map_new_object`, `fillin_rpath`), sysdeps/generic/
//! dl-cache.h; musl ldso/dynlink.c (`load_library`).

use crate::elf::Arch;

/// Which loader a program names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// glibc's ld-linux*.so.
    Glibc,
    /// musl's ld-musl-*.so.
    Musl,
}

impl Loader {
    /// From PT_INTERP.
    pub fn of(interp: &str) -> Loader {
        if interp.contains("ld-musl") { Loader::Musl } else { Loader::Glibc }
    }
}

/// What a loader's own bytes tell of it: distributions change its directories, releases what it looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Directories searched last, in order, without a slash at the end.
    pub directories: Vec<String>,
    /// `$LIB`.
    pub lib: String,
    /// `glibc-hwcaps` subdirectories are searched (glibc 2.33).
    pub hwcaps: bool,
    /// Subdirectories by platform and capability are searched (until glibc 2.36).
    pub platforms: bool,
}

impl Traits {
    /// Of the loader with these bytes, for programs of this architecture.
    pub fn of(loader: Loader, bytes: &[u8], arch: Arch) -> Traits {
        if loader == Loader::Musl {
            let directories = ["/lib", "/usr/local/lib", "/usr/lib"].map(String::from).to_vec();
            return Traits { directories, lib: "lib".into(), hwcaps: false, platforms: false };
        }
        let directories = system_directories(bytes).unwrap_or_else(|| usual_directories(arch));
        let lib = directories.first().map_or("lib", |d| d.trim_start_matches('/')).to_owned();
        let hwcaps = contains(bytes, b"glibc-hwcaps");
        // Older loaders do not say their version, newer ones do in their --version.
        let platforms = release(bytes).is_none_or(|minor| minor < 37);
        Traits { directories, lib, hwcaps, platforms }
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    find(bytes, wanted).is_some()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = wanted.first()?;
    let mut at = 0;
    loop {
        at += bytes.get(at..)?.iter().position(|b| b == first)?;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
}

/// The minor number of "stable release version 2.36.".
fn release(bytes: &[u8]) -> Option<u32> {
    const BEFORE: &[u8] = b"release version 2.";
    let digits = bytes.get(find(bytes, BEFORE)? + BEFORE.len()..)?;
    let end = digits.iter().take(4).position(|b| !b.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// `system_dirs` of elf/dl-load.c: strings one behind the other, each with a slash at both ends.
fn system_directories(bytes: &[u8]) -> Option<Vec<String>> {
    let mut rest = bytes;
    let mut base = 0;
    while let Some(start) = find(rest, b"\0/") {
        let mut found = Vec::new();
        for text in rest[start + 1..].split(|b| *b == 0).take(8) {
            let is_path =
                text.starts_with(b"/") && text.ends_with(b"/") && text.len() > 1 && text.len() < 128;
            match std::str::from_utf8(text) {
                Ok(text) if is_path => found.push(text.trim_end_matches('/').to_owned()),
                _ => break,
            }
        }
        if found.len() >= 2 {
            return Some(found);
        }
        base += start + 1;
        rest = bytes.get(base..)?;
    }
    None
}

/// Where the loader does not tell: Debian's multiarch directories where they are usual, then the plain ones.
fn usual_directories(arch: Arch) -> Vec<String> {
    let lib = if arch.is_64 { "lib64" } else { "lib" };
    [format!("/{lib}"), format!("/usr/{lib}")].to_vec()
}

/// What the processor can do, as far as loaders look for libraries made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// x86-64-v1 to v4; 0 on other machines.
    pub level: u32,
}

impl Cpu {
    /// This machine's (x86-64 psABI, "Micro-Architecture Levels"; LAHF and CMPXCHG16B come with POPCNT).
    #[cfg(target_arch = "x86_64")]
    pub fn this() -> Cpu {
        use std::arch::is_x86_feature_detected as has;
        let v2 = has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt");
        let v3 =
            v2 && has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
        let v3 = v3 && has!("lzcnt") && has!("movbe");
        let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq");
        let v4 = v4 && has!("avx512vl");
        Cpu { level: 1 + u32::from(v2) + u32::from(v3) + u32::from(v4) }
    }

    /// Other machines have no levels.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn this() -> Cpu {
        Cpu { level: 0 }
    }

    /// Names of `glibc-hwcaps` subdirectories, best first.
    pub fn hwcaps(self) -> impl Iterator<Item = String> {
        (2..=self.level).rev().map(|level| format!("x86-64-v{level}"))
    }

    /// Subdirectories of loaders before glibc 2.37, best first: every choice of these, in this order
    /// (elf/dl-hwcaps.c, `_dl_important_hwcaps`; sysdeps/x86/cpu-features.c for "haswell").
    pub fn platforms(self) -> Vec<String> {
        let mut names = vec!["tls"];
        if self.level >= 3 {
            names.push("haswell");
        }
        if self.level >= 4 {
            names.push("avx512_1");
        }
        if self.level >= 1 {
            names.push("x86_64");
        }
        let chosen = |mask: usize| {
            let bit = |i: usize| mask >> (names.len() - 1 - i) & 1 == 1;
            names.iter().enumerate().filter(|(i, _)| bit(*i)).map(|(_, n)| *n).collect::<Vec<_>>().join("/")
        };
        (1..1 << names.len()).rev().map(chosen).collect()
    }

    /// `$PLATFORM`.
    fn platform(self, arch: Arch) -> &'static str {
        match arch.machine {
            X86_64 if self.level >= 3 => "haswell",
            X86_64 => "x86_64",
            I386 => "i686",
            AARCH64 => "aarch64",
            _ => "",
        }
    }
}

// e_machine numbers of the ELF specification.
const I386: u16 = 3;
const PPC64: u16 = 21;
const X86_64: u16 = 62;
const AARCH64: u16 = 183;
const RISCV: u16 = 243;

/// Expands `$ORIGIN`, `$LIB` and `$PLATFORM` (braces allowed) in one search directory.
pub fn expand(dir: &str, origin: &str, lib: &str, cpu: Cpu, arch: Arch) -> String {
    if !dir.contains('$') {
        return dir.to_owned();
    }
    let mut out = dir.to_owned();
    for (name, value) in [("ORIGIN", origin), ("LIB", lib), ("PLATFORM", cpu.platform(arch))] {
        out = out.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    out
}

/// Splits a search list (`:`; LD_LIBRARY_PATH also `;`).
pub fn split(list: &str, semicolons: bool) -> impl Iterator<Item = &str> {
    list.split(move |c| c == ':' || semicolons && c == ';')
}

/// /etc/ld.so.cache: the format of glibc 2.2 and later, alone or behind the old one, or the old one alone.
pub struct Cache<'a> {
    bytes: &'a [u8],
    entries: usize,
    size: usize,
    count: usize,
    /// What string offsets count from.
    strings: usize,
    /// Names of capabilities, by number (glibc 2.33).
    hwcaps: Vec<&'a [u8]>,
}

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
/// sizeof(struct cache_file): magic 11 and padding, nlibs 4.
const OLD_HEADER: usize = 16;
/// sizeof(struct file_entry): flags 4, key 4, value 4.
const OLD_ENTRY: usize = 12;
const NEW_MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// sizeof(struct cache_file_new): magic 20, nlibs 4, len_strings 4, flags 1, padding 3,
/// extension_offset 4, unused 12.
const NEW_HEADER: usize = 48;
const EXTENSION_OFFSET: usize = 32;
/// sizeof(struct file_entry_new): flags 4, key 4, value 4, osversion 4, hwcap 8.
const NEW_ENTRY: usize = 24;
/// struct cache_extension: magic 4, count 4; then sections: tag 4, flags 4, offset 4, size 4.
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
const TAG_HWCAPS: u32 = 1;
/// Set in an entry's hwcap when its low half is the number of a named capability.
const NAMED: u64 = 1 << 62;
/// Bits of older entries that this processor may be taken to have: TLS, platforms, x86_64, avx512_1.
const OLD_BITS: u64 = 1 << 63 | 0b11 << 48 | 0b110;

impl<'a> Cache<'a> {
    /// Reads the header; `None` when these bytes are no cache of this machine's byte order.
    pub fn parse(bytes: &'a [u8]) -> Option<Cache<'a>> {
        let mut base = 0;
        if bytes.starts_with(OLD_MAGIC) {
            let count = usize::try_from(number(bytes, 12)?).ok()?;
            let strings = count.checked_mul(OLD_ENTRY)?.checked_add(OLD_HEADER)?;
            // The new part is aligned to 8.
            base = strings.checked_add(7)? & !7;
            if !bytes.get(base..).is_some_and(|rest| rest.starts_with(NEW_MAGIC)) {
                let cache =
                    Cache { bytes, entries: OLD_HEADER, size: OLD_ENTRY, count, strings, hwcaps: Vec::new() };
                return (strings <= bytes.len()).then_some(cache);
            }
        }
        if !bytes.get(base..)?.starts_with(NEW_MAGIC) {
            return None;
        }
        let count = usize::try_from(number(bytes, base + NEW_MAGIC.len())?).ok()?;
        let entries = base + NEW_HEADER;
        if count.checked_mul(NEW_ENTRY)?.checked_add(entries)? > bytes.len() {
            return None;
        }
        let hwcaps = hwcap_names(bytes, base).unwrap_or_default();
        // String offsets count from the new header (dl-cache.c: `cache_data = (char *) cache_new`).
        Some(Cache { bytes, entries, size: NEW_ENTRY, count, strings: base, hwcaps })
    }

    /// The path that a loader takes for `soname`: of the entries for its architecture the one whose named
    /// capability is best, else the first that the processor can use (dl-cache.c, `search_cache`).
    /// `named` tells whether this loader knows named capabilities.
    pub fn path(&self, soname: &str, arch: Arch, cpu: Cpu, named: impl Fn() -> bool) -> Option<&'a str> {
        let flags = flags_of(arch);
        let mut capable: Option<Vec<String>> = None;
        let mut best: Option<(usize, &str)> = None;
        for i in 0..self.count {
            let Some((path, hwcap)) = self.entry(i, soname, flags) else { continue };
            let rank = if hwcap & NAMED != 0 {
                let name = self.hwcaps.get(hwcap as u32 as usize);
                let capable =
                    capable.get_or_insert_with(|| if named() { cpu.hwcaps().collect() } else { Vec::new() });
                match name.and_then(|name| capable.iter().position(|c| c.as_bytes() == *name)) {
                    Some(rank) => rank,
                    None => continue,
                }
            } else if hwcap & !OLD_BITS == 0 {
                usize::MAX
            } else {
                continue;
            };
            if best.is_none_or(|(other, _)| rank < other) {
                best = Some((rank, path));
            }
        }
        best.map(|(_, path)| path)
    }

    fn entry(&self, i: usize, soname: &str, wanted: u32) -> Option<(&'a str, u64)> {
        let at = self.entries + i * self.size;
        let string = |field: usize| self.strings.checked_add(number(self.bytes, at + field)? as usize);
        text(self.bytes, string(4)?, Some(soname.as_bytes()))?;
        let flags = number(self.bytes, at)?;
        // FLAG_ELF: for any.
        if flags != wanted && flags != 1 {
            return None;
        }
        let hwcap = if self.size == NEW_ENTRY {
            u64::from(number(self.bytes, at + 16)?) | u64::from(number(self.bytes, at + 20)?) << 32
        } else {
            0
        };
        Some((std::str::from_utf8(text(self.bytes, string(8)?, None)?).ok()?, hwcap))
    }
}

/// FLAG_ELF_LIBC6 and the architecture's flag (sysdeps/generic/ldconfig.h).
fn flags_of(arch: Arch) -> u32 {
    match (arch.machine, arch.is_64) {
        (X86_64, true) => 0x0303,
        (X86_64, false) => 0x0803,
        (PPC64, true) => 0x0503,
        (AARCH64, true) => 0x0a03,
        (RISCV, true) => 0x1003,
        _ => 3,
    }
}

fn hwcap_names(bytes: &[u8], base: usize) -> Option<Vec<&[u8]>> {
    let extension = base.checked_add(number(bytes, base + EXTENSION_OFFSET)? as usize)?;
    if extension == base || number(bytes, extension)? != EXTENSION_MAGIC {
        return None;
    }
    let sections = number(bytes, extension + 4)?.min(64) as usize;
    let section =
        (0..sections).map(|i| extension + 8 + i * 16).find(|at| number(bytes, *at) == Some(TAG_HWCAPS))?;
    let start = base.checked_add(number(bytes, section + 8)? as usize)?;
    let count = (number(bytes, section + 12)? / 4).min(64) as usize;
    (0..count)
        .map(|i| text(bytes, base.checked_add(number(bytes, start.checked_add(i * 4)?)? as usize)?, None))
        .collect()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The NUL-terminated bytes at `at`; with `wanted`, only if they are exactly those.
fn text<'a>(bytes: &'a [u8], at: usize, wanted: Option<&[u8]>) -> Option<&'a [u8]> {
    let tail = bytes.get(at..)?;
    if let Some(wanted) = wanted {
        return (tail.starts_with(wanted) && tail.get(wanted.len()) == Some(&0))
            .then(|| &tail[..wanted.len()]);
    }
    let end = tail.iter().take(4096).position(|b| *b == 0)?;
    Some(&tail[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCH: Arch = Arch { machine: X86_64, is_64: true };

    #[test]
    fn expands_every_token() {
        let expand = |dir| expand(dir, "/opt/a/bin", "lib/x86_64-linux-gnu", Cpu { level: 1 }, ARCH);
        assert_eq!(expand("$ORIGIN/../lib"), "/opt/a/bin/../lib");
        assert_eq!(expand("${ORIGIN}/$LIB/${PLATFORM}"), "/opt/a/bin/lib/x86_64-linux-gnu/x86_64");
    }

    #[test]
    fn a_loader_tells_its_directories_and_its_age() {
        let bytes = |release: &str| {
            format!("x\0/proc/self\0/lib64/\0/usr/lib64/\0foo\0glibc-hwcaps\0 release version 2.{release}.")
                .into_bytes()
        };
        let traits = Traits::of(Loader::Glibc, &bytes("36"), ARCH);
        assert_eq!(traits.directories, ["/lib64", "/usr/lib64"]);
        assert_eq!((traits.lib.as_str(), traits.hwcaps, traits.platforms), ("lib64", true, true));
        assert!(!Traits::of(Loader::Glibc, &bytes("37"), ARCH).platforms);
        let old = Traits::of(Loader::Glibc, b"nothing", ARCH);
        assert_eq!((old.directories[0].as_str(), old.hwcaps, old.platforms), ("/lib64", false, true));
    }

    #[test]
    fn subdirectories_come_in_the_loaders_order() {
        assert_eq!(Cpu { level: 3 }.hwcaps().collect::<Vec<_>>(), ["x86-64-v3", "x86-64-v2"]);
        // As LD_DEBUG=libs of glibc 2.36 prints them.
        let platforms = Cpu { level: 4 }.platforms();
        assert_eq!(platforms.len(), 15);
        assert_eq!(platforms[0], "tls/haswell/avx512_1/x86_64");
        assert_eq!(platforms[2], "tls/haswell/x86_64");
        assert_eq!(platforms[14], "x86_64");
    }

    /// An entry: soname, path, flags, capabilities.
    type CacheEntry<'a> = (&'a str, &'a str, u32, u64);

    /// A cache as ldconfig writes it, with two named capabilities: x86-64-v2 and x86-64-v9.
    fn cache(entries: &[CacheEntry], old: bool) -> Vec<u8> {
        let (header, size) = if old { (OLD_HEADER, OLD_ENTRY) } else { (NEW_HEADER, NEW_ENTRY) };
        let strings_at = header + entries.len() * size;
        let mut strings = Vec::new();
        let mut put = |text: &str| {
            // Old offsets count from the strings, new ones from the header.
            let at = strings.len() + if old { 0 } else { strings_at };
            strings.extend(text.bytes().chain([0]));
            at as u32
        };
        let mut table = Vec::new();
        for (soname, path, flags, hwcap) in entries {
            for n in [*flags, put(soname), put(path)] {
                table.extend(n.to_ne_bytes());
            }
            if !old {
                table.extend(0u32.to_ne_bytes());
                table.extend(hwcap.to_ne_bytes());
            }
        }
        let names = [put("x86-64-v2"), put("x86-64-v9")];
        let mut bytes = if old { OLD_MAGIC.to_vec() } else { NEW_MAGIC.to_vec() };
        bytes.resize(if old { 12 } else { 20 }, 0);
        bytes.extend((entries.len() as u32).to_ne_bytes());
        bytes.resize(header, 0);
        bytes.extend(table);
        bytes.extend(strings);
        if !old {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            let extension = bytes.len() as u32;
            bytes[EXTENSION_OFFSET..EXTENSION_OFFSET + 4].copy_from_slice(&extension.to_ne_bytes());
            for n in [EXTENSION_MAGIC, 1, TAG_HWCAPS, 0, extension + 24, 8, names[0], names[1]] {
                bytes.extend(n.to_ne_bytes());
            }
        }
        bytes
    }

    #[test]
    fn the_best_entry_that_this_processor_can_use() {
        let entries = [
            ("liba.so.1", "/v9", 0x0303, NAMED | 1),
            ("liba.so.1", "/v2", 0x0303, NAMED),
            ("liba.so.1", "/i386", 3, 0),
            ("liba.so.1", "/plain", 0x0303, 0),
            ("liba.so", "/prefix", 0x0303, 0),
        ];
        let bytes = cache(&entries, false);
        let cache = Cache::parse(&bytes).unwrap();
        let path = |level, named| cache.path("liba.so.1", ARCH, Cpu { level }, || named);
        assert_eq!(path(1, true), Some("/plain"));
        assert_eq!(path(3, true), Some("/v2"));
        assert_eq!(path(3, false), Some("/plain"), "a loader before 2.33 knows no names");
        assert_eq!(
            cache.path("liba.so.1", Arch { machine: I386, is_64: false }, Cpu { level: 1 }, || true),
            Some("/i386")
        );
        assert_eq!(cache.path("liba", ARCH, Cpu { level: 1 }, || true), None);
    }

    #[test]
    fn the_old_format_alone() {
        let bytes = cache(&[("liba.so.1", "/old", 0x0303, 0)], true);
        let cache = Cache::parse(&bytes).unwrap();
        assert_eq!(cache.path("liba.so.1", ARCH, Cpu { level: 4 }, || true), Some("/old"));
    }

    #[test]
    fn semicolons_split_where_they_do() {
        assert_eq!(split("/a::/b;/c", true).collect::<Vec<_>>(), ["/a", "", "/b", "/c"]);
        assert_eq!(split("/a;b", false).collect::<Vec<_>>(), ["/a;b"]);
    }

    #[test]
    fn the_hosts_cache_knows_its_libc() {
        let bytes = std::fs::read("/etc/ld.so.cache").unwrap();
        let cache = Cache::parse(&bytes).unwrap();
        let path = |name| cache.path(name, Arch::NATIVE, Cpu::this(), || true);
        assert!(path("libc.so.6").is_some_and(|p| p.ends_with("/libc.so.6")));
        assert_eq!(path("libc.so"), None, "a prefix is no match");
    }

    #[test]
    fn every_truncation_of_a_cache_is_refused_or_bounded() {
        let bytes = std::fs::read("/etc/ld.so.cache").unwrap();
        for cut in (0..bytes.len()).step_by(97) {
            if let Some(cache) = Cache::parse(&bytes[..cut]) {
                let _ = cache.path("libc.so.6", Arch::NATIVE, Cpu::this(), || true);
            }
        }
        let mut lying = bytes.clone();
        lying[NEW_MAGIC.len()..NEW_MAGIC.len() + 4].fill(0xff);
        assert!(Cache::parse(&lying).is_none());
    }
}

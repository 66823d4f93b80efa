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

/// Directories searched last, in the order of the distributions' loaders: Debian's multiarch
/// directories, then lib64 where a distribution uses it, then the plain ones.
pub fn default_directories(loader: Loader, arch: Arch) -> Vec<String> {
    if loader == Loader::Musl {
        return ["/lib", "/usr/local/lib", "/usr/lib"].map(String::from).to_vec();
    }
    let mut dirs = Vec::new();
    if let Some(triplet) = triplet(arch) {
        dirs.extend([format!("/lib/{triplet}"), format!("/usr/lib/{triplet}")]);
    }
    if arch.is_64 {
        dirs.extend(["/lib64", "/usr/lib64"].map(String::from));
    }
    dirs.extend(["/lib", "/usr/lib"].map(String::from));
    dirs
}

fn triplet(arch: Arch) -> Option<&'static str> {
    use goblin_machine::*;
    match (arch.machine, arch.is_64) {
        (X86_64, true) => Some("x86_64-linux-gnu"),
        (I386, false) => Some("i386-linux-gnu"),
        (AARCH64, true) => Some("aarch64-linux-gnu"),
        (PPC64, true) => Some("powerpc64le-linux-gnu"),
        (RISCV, true) => Some("riscv64-linux-gnu"),
        _ => None,
    }
}

/// e_machine numbers of the ELF specification.
mod goblin_machine {
    pub const I386: u16 = 3;
    pub const PPC64: u16 = 21;
    pub const X86_64: u16 = 62;
    pub const AARCH64: u16 = 183;
    pub const RISCV: u16 = 243;
}

/// Expands `$ORIGIN`, `$LIB` and `$PLATFORM` (braces allowed) in one search directory.
pub fn expand(dir: &str, origin: &str, arch: Arch) -> String {
    let lib = triplet(arch).map_or_else(
        || if arch.is_64 { "lib64".to_owned() } else { "lib".to_owned() },
        |t| format!("lib/{t}"),
    );
    let platform = match arch.machine {
        goblin_machine::X86_64 => "x86_64",
        goblin_machine::I386 => "i686",
        goblin_machine::AARCH64 => "aarch64",
        _ => "",
    };
    let mut out = dir.to_owned();
    for (name, value) in [("ORIGIN", origin), ("LIB", lib.as_str()), ("PLATFORM", platform)] {
        out = out.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    out
}

/// Splits a search list (`:`; LD_LIBRARY_PATH also `;`); an empty item is the working directory.
pub fn split(list: &str, semicolons: bool) -> impl Iterator<Item = &str> {
    list.split(move |c| c == ':' || semicolons && c == ';').map(|d| if d.is_empty() { "." } else { d })
}

/// /etc/ld.so.cache, new format (glibc 2.2 and later; the old header may precede it).
pub struct Cache<'a> {
    bytes: &'a [u8],
    base: usize,
    count: usize,
}

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const NEW_MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// sizeof(struct cache_file_new): magic 20, nlibs 4, len_strings 4, flags 1, padding 3,
/// extension_offset 4, unused 12.
const NEW_HEADER: usize = 48;
/// sizeof(struct file_entry_new): flags 4, key 4, value 4, osversion 4, hwcap 8.
const NEW_ENTRY: usize = 24;

impl<'a> Cache<'a> {
    /// Reads the header; `None` when these bytes are no cache of this machine's byte order.
    pub fn parse(bytes: &'a [u8]) -> Option<Cache<'a>> {
        let mut base = 0;
        if bytes.starts_with(OLD_MAGIC) {
            // struct cache_file: magic 11 + padding, nlibs 4, then 12-byte entries; the new part is
            // aligned to 8 behind them.
            let count = usize::try_from(number(bytes, 12)?).ok()?;
            base = count.checked_mul(12)?.checked_add(16)?.checked_add(7)? & !7;
        }
        if !bytes.get(base..)?.starts_with(NEW_MAGIC) {
            return None;
        }
        let count = usize::try_from(number(bytes, base + NEW_MAGIC.len())?).ok()?;
        let end = count.checked_mul(NEW_ENTRY)?.checked_add(base + NEW_HEADER)?;
        (end <= bytes.len()).then_some(Cache { bytes, base, count })
    }

    /// The paths that the cache holds for `soname`, best hardware capability first as ldconfig wrote them.
    pub fn paths(&self, soname: &str) -> impl Iterator<Item = &'a str> {
        let wanted = soname.as_bytes().to_owned();
        let (bytes, base) = (self.bytes, self.base);
        (0..self.count).filter_map(move |i| {
            let entry = base + NEW_HEADER + i * NEW_ENTRY;
            // String offsets count from the new header (dl-cache.c: `cache_data = (char *) cache_new`).
            text(bytes, base.checked_add(number(bytes, entry + 4)? as usize)?, Some(&wanted))?;
            let value = text(bytes, base.checked_add(number(bytes, entry + 8)? as usize)?, None)?;
            std::str::from_utf8(value).ok()
        })
    }
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

    #[test]
    fn expands_every_token() {
        let arch = Arch { machine: 62, is_64: true };
        assert_eq!(expand("$ORIGIN/../lib", "/opt/a/bin", arch), "/opt/a/bin/../lib");
        assert_eq!(expand("${ORIGIN}/$LIB/${PLATFORM}", "/o", arch), "/o/lib/x86_64-linux-gnu/x86_64");
    }

    #[test]
    fn an_empty_item_is_the_working_directory() {
        assert_eq!(split("/a::/b;/c", true).collect::<Vec<_>>(), ["/a", ".", "/b", "/c"]);
        assert_eq!(split("/a;b", false).collect::<Vec<_>>(), ["/a;b"]);
    }

    #[test]
    fn the_hosts_cache_knows_its_libc() {
        let bytes = std::fs::read("/etc/ld.so.cache").unwrap();
        let cache = Cache::parse(&bytes).unwrap();
        assert!(cache.paths("libc.so.6").any(|p| p.ends_with("/libc.so.6")));
        assert_eq!(cache.paths("libc.so").count(), 0, "a prefix is no match");
    }

    #[test]
    fn every_truncation_of_a_cache_is_refused_or_bounded() {
        let bytes = std::fs::read("/etc/ld.so.cache").unwrap();
        for cut in (0..bytes.len()).step_by(97) {
            if let Some(cache) = Cache::parse(&bytes[..cut]) {
                let _ = cache.paths("libc.so.6").count();
            }
        }
        let mut lying = bytes.clone();
        lying[NEW_MAGIC.len()..NEW_MAGIC.len() + 4].fill(0xff);
        assert!(Cache::parse(&lying).is_none());
    }
}

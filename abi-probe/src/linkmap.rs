//! From a program to the objects that the image's own loader would map, breadth first.
//!
//! What is followed: `#!` lines, PT_INTERP, DT_NEEDED, DT_RPATH (inherited) against DT_RUNPATH,
//! LD_LIBRARY_PATH, ld.so.cache and the default directories. Directories for hardware capabilities
//! are found through the cache, as ldconfig entered them.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::elf::{self, Arch, Object};
use crate::error::{Error, Result};
use crate::ldso::{self, Cache, Loader};
use crate::rootfs::{Entry, Lookup, View};

/// The kernel follows so many `#!` lines (fs/exec.c, exec_binprm).
const MAX_INTERPRETERS: usize = 5;
/// More objects than any real program maps.
const MAX_OBJECTS: usize = 4096;
/// A loader cache is about 100 KiB; the largest seen are a few MiB.
const MAX_CACHE: u64 = 64 << 20;

/// One needed object.
#[derive(Debug, Clone)]
pub struct Linked {
    /// The name as needed (a soname or a path).
    pub name: String,
    /// Where the loader finds it; `None`: not found.
    pub path: Option<PathBuf>,
    /// Index of the object that needs it first; the program is `None`.
    pub needed_by: Option<usize>,
}

/// What a program will link.
#[derive(Debug, Clone, Default)]
pub struct LinkMap {
    /// The ELF program that runs in the end: the command, or the last interpreter of its `#!` line.
    pub program: PathBuf,
    /// Scripts on the way there, outermost first.
    pub scripts: Vec<PathBuf>,
    /// PT_INTERP; `None` for a static program.
    pub interp: Option<PathBuf>,
    /// The program's architecture.
    pub arch: Option<Arch>,
    /// The needed objects in load order.
    pub objects: Vec<Linked>,
}

/// Why a program cannot be started at all.
#[derive(Debug)]
pub enum Unrunnable {
    /// A file or its interpreter is not there.
    InterpreterMissing {
        /// The file that asks for it.
        file: PathBuf,
        /// What it asks for.
        interpreter: PathBuf,
    },
    /// Neither ELF nor `#!`.
    NoFormat {
        /// The file.
        file: PathBuf,
        /// Its first bytes, printable.
        magic: String,
    },
    /// ELF for another machine.
    WrongArch {
        /// The file.
        file: PathBuf,
        /// Its machine.
        arch: Arch,
    },
    /// Scripts that name scripts, deeper than the kernel goes.
    TooManyInterpreters {
        /// The first script.
        file: PathBuf,
    },
}

/// Either answer about a program.
pub type Outcome = std::result::Result<LinkMap, Unrunnable>;

/// What of the link map is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every object.
    Whole,
    /// Only what may lead to an MPI: the C library's family needs nothing but itself and is not looked for.
    Mpi,
}

/// Sonames of glibc's own libraries (its NEWS and Versions.all; the musl loader is its libc).
const LIBC_FAMILY: &[&str] = &["libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"];

/// Simulates the loader on `program` (an entry of `view`) with this `LD_LIBRARY_PATH`.
pub fn link(view: &View, program: &Entry, ld_library_path: Option<&str>, scope: Scope) -> Result<Outcome> {
    let mut map = LinkMap { program: program.path.clone(), ..LinkMap::default() };
    let mut object = None;
    let mut interpreter_entry;
    let mut entry = program;
    for _ in 0..MAX_INTERPRETERS {
        if let Some(script) = map.scripts.last() {
            let Some(found) = view.find(&map.program)? else {
                return Ok(Err(Unrunnable::InterpreterMissing {
                    file: script.clone(),
                    interpreter: map.program,
                }));
            };
            interpreter_entry = found;
            entry = &interpreter_entry;
        }
        let file = view.open_file(entry)?;
        if let Some(found) = elf::read(&file, &entry.path)? {
            map.program = entry.path.clone();
            object = Some(found);
            break;
        }
        let mut head = Vec::new();
        file.take(256).read_to_end(&mut head).map_err(|e| Error::io("read", &entry.path, e))?;
        let Some(interpreter) = shebang(&head) else {
            let magic = head.iter().take(4).flat_map(|b| b.escape_ascii()).map(char::from).collect();
            return Ok(Err(Unrunnable::NoFormat { file: entry.path.clone(), magic }));
        };
        map.scripts.push(entry.path.clone());
        map.program = interpreter;
    }
    let Some(object) = object else {
        return Ok(Err(Unrunnable::TooManyInterpreters { file: map.scripts[0].clone() }));
    };
    if !object.arch.runs_here() {
        return Ok(Err(Unrunnable::WrongArch { file: map.program, arch: object.arch }));
    }
    map.arch = Some(object.arch);
    let Some(interp) = object.interp.clone() else { return Ok(Ok(map)) };
    if !view.exists(Path::new(&interp))? {
        return Ok(Err(Unrunnable::InterpreterMissing { file: map.program, interpreter: interp.into() }));
    }
    Search::new(view, Loader::of(&interp), object.arch, ld_library_path, scope)?
        .closure(&mut map, object, &interp)?;
    map.interp = Some(interp.into());
    Ok(Ok(map))
}

/// The interpreter of a `#!` line, as fs/binfmt_script.c takes it.
fn shebang(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let words = String::from_utf8_lossy(line).into_owned();
    words.split([' ', '\t']).find(|w| !w.is_empty()).map(PathBuf::from)
}

struct Search<'v> {
    view: &'v View,
    loader: Loader,
    arch: Arch,
    library_path: Vec<String>,
    defaults: Vec<String>,
    cache: OnceCell<Vec<u8>>,
    scope: Scope,
}

struct Loaded {
    object: Object,
    origin: String,
    parent: Option<usize>,
}

impl<'v> Search<'v> {
    fn new(
        view: &'v View,
        loader: Loader,
        arch: Arch,
        ld_library_path: Option<&str>,
        scope: Scope,
    ) -> Result<Self> {
        let library_path = ld_library_path
            .filter(|l| !l.is_empty())
            .map(|l| ldso::split(l, true).map(String::from).collect())
            .unwrap_or_default();
        let mut defaults = ldso::default_directories(loader, arch);
        if loader == Loader::Musl {
            let name = format!("/etc/ld-musl-{arch}.path");
            if let Some(list) = view.read(Path::new(&name), 64 << 10)? {
                let list = String::from_utf8_lossy(&list).into_owned();
                defaults = list.split([':', '\n']).filter(|d| !d.is_empty()).map(String::from).collect();
            }
        }
        Ok(Search { view, loader, arch, library_path, defaults, cache: OnceCell::new(), scope })
    }

    fn closure(&self, map: &mut LinkMap, program: Object, interp: &str) -> Result<()> {
        let origin = |p: &Path| p.parent().unwrap_or(Path::new("/")).display().to_string();
        // Index 0 is the program; `map.objects[i]` is `loaded[i + 1]` when it was found.
        let mut loaded = vec![Loaded { origin: origin(&map.program), object: program, parent: None }];
        let mut slot = vec![None];
        // The loader itself is mapped already: libc needs it by its file name.
        let mut seen: BTreeSet<String> = interp.rsplit('/').next().map(String::from).into_iter().collect();
        let mut next = 0;
        while next < loaded.len() {
            for name in loaded[next].object.needed.clone() {
                let leads_nowhere = self.scope == Scope::Mpi && LIBC_FAMILY.contains(&name.as_str());
                if leads_nowhere || !seen.insert(name.clone()) {
                    continue;
                }
                if map.objects.len() == MAX_OBJECTS {
                    return Err(Error::elf(&map.program, format!("links more than {MAX_OBJECTS} objects")));
                }
                let found = self.find(&name, &loaded, next)?;
                let index = map.objects.len();
                map.objects.push(Linked {
                    name,
                    path: found.as_ref().map(|(e, _)| e.path.clone()),
                    needed_by: slot[next],
                });
                if let Some((entry, object)) = found {
                    // Another name for something that is loaded already maps nothing new.
                    seen.extend(object.soname.clone());
                    loaded.push(Loaded { origin: origin(&entry.path), object, parent: Some(next) });
                    slot.push(Some(index));
                }
            }
            next += 1;
        }
        Ok(())
    }

    fn find(&self, name: &str, loaded: &[Loaded], by: usize) -> Result<Option<(Entry, Object)>> {
        if name.contains('/') {
            return self.try_path(Path::new(name));
        }
        let requester = &loaded[by].object;
        let chain = std::iter::successors(Some(by), |i| loaded[*i].parent).map(|i| &loaded[i]);
        let mut dirs: Vec<String> = Vec::new();
        match self.loader {
            // DT_RPATH counts only where the requesting object has no DT_RUNPATH; it is inherited
            // from the objects that led here, DT_RUNPATH is not (ld.so(8)).
            Loader::Glibc => {
                if requester.runpath.is_none() {
                    for l in chain.filter(|l| l.object.runpath.is_none()) {
                        dirs.extend(self.expand(&l.object.rpath, &l.origin));
                    }
                }
                dirs.extend(self.library_path.iter().cloned());
                dirs.extend(self.expand(&requester.runpath, &loaded[by].origin));
            }
            // musl treats both alike, inherits both, and asks LD_LIBRARY_PATH first.
            Loader::Musl => {
                dirs.extend(self.library_path.iter().cloned());
                for l in chain {
                    let list = if l.object.runpath.is_some() { &l.object.runpath } else { &l.object.rpath };
                    dirs.extend(self.expand(list, &l.origin));
                }
            }
        }
        for dir in &dirs {
            if let Some(found) = self.try_path(&Path::new(dir).join(name))? {
                return Ok(Some(found));
            }
        }
        let cache = self.cache.get_or_init(|| {
            let read = || self.view.read(Path::new("/etc/ld.so.cache"), MAX_CACHE).ok().flatten();
            (self.loader == Loader::Glibc).then(read).flatten().unwrap_or_default()
        });
        if let Some(cache) = Cache::parse(cache) {
            for path in cache.paths(name) {
                if let Some(found) = self.try_path(Path::new(path))? {
                    return Ok(Some(found));
                }
            }
        }
        for dir in &self.defaults {
            if let Some(found) = self.try_path(&Path::new(dir).join(name))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn expand(&self, list: &Option<String>, origin: &str) -> Vec<String> {
        let Some(list) = list else { return Vec::new() };
        ldso::split(list, false).map(|d| ldso::expand(d, origin, self.arch)).collect()
    }

    /// The object at `path` if it is one for this machine: the loader passes over all else.
    fn try_path(&self, path: &Path) -> Result<Option<(Entry, Object)>> {
        let entry = match self.view.lookup(path) {
            Ok(Lookup::Exists(entry)) => entry,
            Ok(Lookup::Missing { .. }) | Err(_) => return Ok(None),
        };
        let Ok(file) = self.view.open_file(&entry) else { return Ok(None) };
        match elf::read(&file, &entry.path) {
            Ok(Some(object)) if object.arch == self.arch => Ok(Some((entry, object))),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link_host(program: &str) -> LinkMap {
        let view = View::open(Path::new("/")).unwrap();
        let entry = view.find(Path::new(program)).unwrap().unwrap();
        link(&view, &entry, None, Scope::Whole).unwrap().unwrap()
    }

    #[test]
    fn links_what_the_real_loader_links() {
        let map = link_host("/usr/bin/bash");
        let mut ours: Vec<String> = map
            .objects
            .iter()
            .filter_map(|o| Some(std::fs::canonicalize(o.path.as_ref()?).unwrap().display().to_string()))
            .collect();
        let out = std::process::Command::new("/usr/bin/bash")
            .env("LD_TRACE_LOADED_OBJECTS", "1")
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .unwrap();
        let mut real: Vec<String> = String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .filter_map(|l| l.split("=> ").nth(1)?.split(' ').next().map(String::from))
            .map(|p| std::fs::canonicalize(p).unwrap().display().to_string())
            .collect();
        ours.sort();
        real.sort();
        assert!(!real.is_empty());
        assert_eq!(ours, real);
    }

    #[test]
    fn scripts_lead_to_their_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "#! /b -x\n").unwrap();
        std::fs::write(dir.path().join("b"), "#!/nowhere/sh\n").unwrap();
        std::fs::write(dir.path().join("loop"), "#!/loop\n").unwrap();
        std::fs::write(dir.path().join("text"), "hello").unwrap();
        let view = View::open(dir.path()).unwrap();
        let outcome = |name: &str| {
            let entry = view.find(Path::new(name)).unwrap().unwrap();
            link(&view, &entry, None, Scope::Whole).unwrap().unwrap_err()
        };
        assert!(matches!(outcome("/a"), Unrunnable::InterpreterMissing { file, interpreter }
            if file == Path::new("/b") && interpreter == Path::new("/nowhere/sh")));
        assert!(matches!(outcome("/loop"), Unrunnable::TooManyInterpreters { .. }));
        assert!(matches!(outcome("/text"), Unrunnable::NoFormat { magic, .. } if magic == "hell"));
    }
}

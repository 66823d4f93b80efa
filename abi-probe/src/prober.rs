//! From a program to the objects that the image's own loader would map: which files are looked at, each once.
//!
//! `#!` lines are followed to their interpreter, and PT_INTERP to the loader, whose rules [`crate::walk`] has.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::elf::{self, Arch, Object};
use crate::error::{Error, Result};
use crate::ldso::{Cache, Cpu, Loader, Traits};
use crate::linkmap::{Circumstances, LinkMap, Outcome, Unrunnable};
use crate::rootfs::{Entry, View};
use crate::symbols::{Reference, Symbols};
use crate::walk::Walk;

/// The kernel follows so many `#!` lines (fs/exec.c, exec_binprm).
const MAX_INTERPRETERS: usize = 5;
/// A loader cache is about 100 KiB; the largest seen are a few MiB.
const MAX_CACHE: u64 = 64 << 20;
/// A loader is 200 KiB, or 1 MiB where it is the C library too.
const MAX_LOADER: u64 = 16 << 20;
/// musl keeps its directories in a file.
pub(crate) const MAX_LIST: u64 = 64 << 10;

/// A file of the view that is an ELF object.
pub struct Probed {
    /// Its path without links.
    pub path: PathBuf,
    /// Its headers.
    pub object: Object,
    pub(crate) entry: Entry,
    symbols: OnceCell<Rc<Symbols>>,
}

impl std::fmt::Debug for Probed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Probed").field(&self.path).finish()
    }
}

/// What lies at a path, as a loader sees it.
#[derive(Clone)]
pub(crate) enum Probe {
    Object(Rc<Probed>),
    /// Nothing, or something for another architecture: the search goes on.
    Nothing,
    /// The loader gives up.
    Bad(String),
}

/// Simulates loaders over one view, and remembers what it has read.
pub struct Prober<'v> {
    pub(crate) view: &'v View,
    probed: RefCell<HashMap<PathBuf, Probe>>,
    by_id: RefCell<HashMap<(u64, u64), Probe>>,
    loaders: RefCell<HashMap<(PathBuf, u16), Rc<Traits>>>,
    cache: OnceCell<Vec<u8>>,
    /// Subdirectories for better processors that exist, by directory.
    subdirectories: RefCell<HashMap<String, Rc<Vec<String>>>>,
}

impl<'v> Prober<'v> {
    /// Nothing is read yet.
    pub fn new(view: &'v View) -> Prober<'v> {
        Prober {
            view,
            probed: RefCell::default(),
            by_id: RefCell::default(),
            loaders: RefCell::default(),
            cache: OnceCell::new(),
            subdirectories: RefCell::default(),
        }
    }

    /// The link map of a program, as execve would start it.
    pub fn program(&self, program: &Entry, how: &Circumstances) -> Result<Outcome> {
        let mut map =
            LinkMap { program: program.path.clone(), asked: program.path.clone(), ..LinkMap::default() };
        let mut main = None;
        for _ in 0..MAX_INTERPRETERS {
            let found = match map.scripts.last() {
                None => self.view.find(&program.path)?,
                Some(_) => self.view.find(&map.program)?,
            };
            let Some(entry) = found else {
                let file = map.scripts.last().unwrap_or(&program.path).clone();
                return Ok(Err(Unrunnable::InterpreterMissing { file, interpreter: map.program }));
            };
            let file = self.view.open_file(&entry)?;
            if let Some(object) = elf::read(&file, &entry.path)? {
                map.program = entry.path.clone();
                main = Some(Rc::new(Probed {
                    path: entry.path.clone(),
                    object,
                    entry,
                    symbols: OnceCell::new(),
                }));
                break;
            }
            let mut head = Vec::new();
            file.take(256).read_to_end(&mut head).map_err(|e| Error::io("read", &entry.path, e))?;
            let Some((interpreter, argument)) = shebang(&head) else {
                let magic = head.iter().take(4).flat_map(|b| b.escape_ascii()).map(char::from).collect();
                return Ok(Err(Unrunnable::NoFormat { file: entry.path.clone(), magic }));
            };
            map.scripts.push(entry.path.clone());
            map.asked = interpreter.clone();
            map.argument = argument;
            map.program = interpreter;
        }
        let Some(main) = main else {
            return Ok(Err(Unrunnable::TooManyInterpreters { file: map.scripts[0].clone() }));
        };
        let arch = main.object.arch;
        if !arch.runs_here() {
            return Ok(Err(Unrunnable::WrongArch { file: map.program, arch }));
        }
        map.arch = Some(arch);
        map.main = Some(Rc::clone(&main));
        let Some(interp) = main.object.interp.clone() else { return Ok(Ok(map)) };
        if !self.view.exists(Path::new(&interp))? {
            return Ok(Err(Unrunnable::InterpreterMissing { file: map.program, interpreter: interp.into() }));
        }
        self.walk(&mut map, main, &interp, how, false)?;
        Ok(Ok(map))
    }

    /// The link map of any object, as if the loader `interp` had been told to load it: `ld.so OBJECT`.
    /// `None` when the file is no dynamic object.
    pub fn object(&self, file: &Entry, interp: &str, how: &Circumstances) -> Result<Option<LinkMap>> {
        let Some(object) = elf::read(&self.view.open_file(file)?, &file.path)? else { return Ok(None) };
        if !object.is_dynamic {
            return Ok(None);
        }
        let Some(entry) = self.view.find(&file.path)? else { return Ok(None) };
        let arch = object.arch;
        if let Probe::Nothing = self.probe(Path::new(interp), arch) {
            return Err(Error::elf(
                &file.path,
                format!("it is for {arch}, and {interp} is no loader for that"),
            ));
        }
        let main = Rc::new(Probed { path: file.path.clone(), object, entry, symbols: OnceCell::new() });
        let mut map = LinkMap {
            program: file.path.clone(),
            arch: Some(arch),
            main: Some(Rc::clone(&main)),
            ..LinkMap::default()
        };
        self.walk(&mut map, main, interp, how, true)?;
        Ok(Some(map))
    }

    /// The tables of an object.
    pub fn symbols(&self, probed: &Probed) -> Result<Rc<Symbols>> {
        if let Some(symbols) = probed.symbols.get() {
            return Ok(Rc::clone(symbols));
        }
        let file = self.view.open_file(&probed.entry)?;
        let symbols = Rc::new(Symbols::read(&file, &probed.path, &probed.object)?);
        Ok(Rc::clone(probed.symbols.get_or_init(|| symbols)))
    }

    /// The file of an object.
    pub fn open(&self, probed: &Probed) -> Result<File> {
        self.view.open_file(&probed.entry)
    }

    /// The object in a file; `None`: there is none, or none for this architecture.
    pub fn file(&self, path: &Path, arch: Arch) -> Option<Rc<Probed>> {
        match self.probe(path, arch) {
            Probe::Object(probed) => Some(probed),
            Probe::Nothing | Probe::Bad(_) => None,
        }
    }

    /// What an object's relocations need from elsewhere.
    pub fn references(&self, probed: &Probed) -> Result<Vec<Reference>> {
        let file = self.view.open_file(&probed.entry)?;
        self.symbols(probed)?.references(&file, &probed.path, &probed.object)
    }

    fn walk(
        &self,
        map: &mut LinkMap,
        main: Rc<Probed>,
        interp: &str,
        how: &Circumstances,
        told: bool,
    ) -> Result<()> {
        let (loader, arch) = (Loader::of(interp), main.object.arch);
        Walk::new(self, loader, interp, arch, how).closure(map, main, told)
    }

    /// What the loader's bytes tell of it; read when it first matters.
    pub(crate) fn traits(&self, loader: Loader, interp: &str, arch: Arch) -> Rc<Traits> {
        let key = (PathBuf::from(interp), arch.machine);
        if let Some(traits) = self.loaders.borrow().get(&key) {
            return Rc::clone(traits);
        }
        let bytes = self.view.read(&key.0, MAX_LOADER).ok().flatten().unwrap_or_default();
        let mut traits = Traits::of(loader, &bytes, arch);
        if loader == Loader::Musl {
            let name = format!("/etc/ld-musl-{arch}.path");
            if let Ok(Some(list)) = self.view.read(Path::new(&name), MAX_LIST) {
                let list = String::from_utf8_lossy(&list).into_owned();
                let named = list.split([':', '\n']).filter(|d| !d.is_empty());
                traits.directories = named.map(|d| d.trim_end_matches('/').to_owned()).collect();
            }
        }
        let traits = Rc::new(traits);
        self.loaders.borrow_mut().insert(key, Rc::clone(&traits));
        traits
    }

    /// What the root's loader cache has for a name.
    pub fn cached(&self, name: &str, arch: Arch, cpu: Cpu, named: impl Fn() -> bool) -> Option<String> {
        let bytes = self.cache.get_or_init(|| {
            self.view.read(Path::new("/etc/ld.so.cache"), MAX_CACHE).ok().flatten().unwrap_or_default()
        });
        Cache::parse(bytes)?.path(name, arch, cpu, named).map(String::from)
    }

    /// What lies at an absolute path.
    pub(crate) fn probe(&self, path: &Path, arch: Arch) -> Probe {
        if let Some(known) = self.probed.borrow().get(path) {
            return for_arch(known.clone(), arch);
        }
        let probe = self.look(path);
        self.probed.borrow_mut().insert(path.to_owned(), probe.clone());
        for_arch(probe, arch)
    }

    fn look(&self, path: &Path) -> Probe {
        let Ok(Some(entry)) = self.view.find(path) else { return Probe::Nothing };
        if let Some(known) = self.by_id.borrow().get(&entry.id) {
            return known.clone();
        }
        let id = entry.id;
        let probe = match self.view.open_file(&entry) {
            Ok(file) => match elf::read(&file, &entry.path) {
                Ok(Some(object)) => {
                    let path = entry.path.clone();
                    Probe::Object(Rc::new(Probed { path, object, entry, symbols: OnceCell::new() }))
                }
                Ok(None) => Probe::Bad("it does not begin as ELF does".to_owned()),
                Err(Error::Elf { why, .. }) => Probe::Bad(why),
                Err(e) => Probe::Bad(e.to_string()),
            },
            Err(Error::NotAFile { is, .. }) => Probe::Bad(format!("it is {is}")),
            Err(_) => Probe::Nothing,
        };
        self.by_id.borrow_mut().insert(id, probe.clone());
        probe
    }

    /// Subdirectories of `directory` (absolute, of the view) that this loader prefers on this processor.
    pub(crate) fn better(
        &self,
        directory: &str,
        traits: impl Fn() -> Rc<Traits>,
        cpu: Cpu,
    ) -> Rc<Vec<String>> {
        if let Some(known) = self.subdirectories.borrow().get(directory) {
            return Rc::clone(known);
        }
        let mut found = Vec::new();
        let exists = |name: &str| matches!(self.view.find(&Path::new(directory).join(name)), Ok(Some(_)));
        if exists(".") {
            let traits = traits();
            if traits.hwcaps && exists("glibc-hwcaps") {
                found.extend(cpu.hwcaps().map(|name| format!("glibc-hwcaps/{name}")));
            }
            let platforms = if traits.platforms { cpu.platforms() } else { Vec::new() };
            // The single names come last in the list, and every longer one begins with one of them.
            let present: Vec<&String> = platforms.iter().filter(|p| !p.contains('/') && exists(p)).collect();
            let begins =
                |p: &String| present.iter().any(|one| p == *one || p.starts_with(&format!("{one}/")));
            found.extend(platforms.iter().filter(|p| begins(p)).cloned());
        }
        let found = Rc::new(found);
        self.subdirectories.borrow_mut().insert(directory.to_owned(), Rc::clone(&found));
        found
    }
}

fn for_arch(probe: Probe, arch: Arch) -> Probe {
    match probe {
        Probe::Object(probed) if probed.object.arch != arch => Probe::Nothing,
        other => other,
    }
}

/// The interpreter of a `#!` line and its argument, as fs/binfmt_script.c takes them.
fn shebang(head: &[u8]) -> Option<(PathBuf, Option<String>)> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let words = String::from_utf8_lossy(line).into_owned();
    let words = words.trim_matches([' ', '\t']);
    let (interpreter, rest) = words.split_once([' ', '\t']).unwrap_or((words, ""));
    let argument = Some(rest.trim_matches([' ', '\t']).to_owned()).filter(|a| !a.is_empty());
    (!interpreter.is_empty()).then(|| (PathBuf::from(interpreter), argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link_host(program: &str) -> LinkMap {
        let view = View::open(Path::new("/")).unwrap();
        let entry = view.find(Path::new(program)).unwrap().unwrap();
        Prober::new(&view).program(&entry, &Circumstances::default()).unwrap().unwrap()
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
            .filter(|l| !l.contains("linux-vdso"))
            .filter_map(|l| l.trim().rsplit("=> ").next()?.split(' ').next().map(String::from))
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
            Prober::new(&view).program(&entry, &Circumstances::default()).unwrap().unwrap_err()
        };
        assert!(matches!(outcome("/a"), Unrunnable::InterpreterMissing { file, interpreter }
            if file == Path::new("/b") && interpreter == Path::new("/nowhere/sh")));
        assert!(matches!(outcome("/loop"), Unrunnable::TooManyInterpreters { .. }));
        assert!(matches!(outcome("/text"), Unrunnable::NoFormat { magic, .. } if magic == "hell"));
    }
}

//! The loader's walk through what is needed, breadth first, and its search for each name.
//!
//! LD_PRELOAD and /etc/ld.so.preload, DT_RPATH (inherited) against DT_RUNPATH, LD_LIBRARY_PATH, ld.so.cache,
//! the default directories, and in each directory those for better processors. Sources: glibc elf/dl-load.c
//! (`_dl_map_object`), elf/dl-deps.c, elf/rtld.c; musl ldso/dynlink.c (`load_library`).

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::elf::{Arch, Object};
use crate::error::{Error, Result};
use crate::ldso::{self, Loader, Traits};
use crate::linkmap::{Circumstances, LinkMap, Linked, Opened, OpenedObject, Problem, Scope};
use crate::prober::{MAX_LIST, Probe, Probed, Prober};

/// More objects than any real program maps.
const MAX_OBJECTS: usize = 4096;

/// Sonames of glibc's own libraries (its NEWS and Versions.all; the musl loader is its libc).
const LIBC_FAMILY: &[&str] = &["libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"];

/// An object in the process.
struct Node {
    names: Vec<String>,
    file: Option<Rc<Probed>>,
    /// Where `$ORIGIN` is.
    origin: String,
    /// Who needed it first.
    needed_by: Option<usize>,
    /// Its place in the link map, once it has one.
    slot: Option<usize>,
    /// The same file under another name is this object. Not so for what the kernel has mapped.
    is_known_by_file: bool,
}

impl Node {
    fn goes_by(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
            || self.file.as_ref().and_then(|f| f.object.soname.as_deref()) == Some(name)
    }
}

/// One process under construction.
pub(crate) struct Walk<'p, 'v, 'h> {
    prober: &'p Prober<'v>,
    loader: Loader,
    interp: &'h str,
    arch: Arch,
    how: &'h Circumstances<'h>,
    nodes: Vec<Node>,
    library_path: Vec<String>,
}

/// Indices of nodes that are always there.
const MAIN: usize = 0;
const LOADER: usize = 1;

/// How a name was resolved.
enum Found {
    Known(usize),
    New(usize),
    Missing,
}

impl<'p, 'v, 'h> Walk<'p, 'v, 'h> {
    /// Nothing is loaded yet.
    pub(crate) fn new(
        prober: &'p Prober<'v>,
        loader: Loader,
        interp: &'h str,
        arch: Arch,
        how: &'h Circumstances<'h>,
    ) -> Self {
        Walk { prober, loader, interp, arch, how, nodes: Vec::new(), library_path: Vec::new() }
    }

    /// Loads `main` and all that it needs into `map`; `told`: the loader was told its path, and did not find
    /// it mapped by the kernel.
    pub(crate) fn closure(&mut self, map: &mut LinkMap, main: Rc<Probed>, told: bool) -> Result<()> {
        let interp = self.interp;
        let origin = parent(&map.program.display().to_string());
        self.nodes.push(Node {
            names: if told { vec![map.program.display().to_string()] } else { Vec::new() },
            file: Some(Rc::clone(&main)),
            origin,
            needed_by: None,
            slot: None,
            is_known_by_file: told,
        });
        let loader = match self.prober.probe(Path::new(interp), self.arch) {
            Probe::Object(probed) => Some(probed),
            _ => None,
        };
        // The loader is asked for by its file name, whatever its soname.
        let file_name = interp.rsplit('/').next().unwrap_or(interp).to_owned();
        self.nodes.push(Node {
            names: vec![interp.to_owned(), file_name],
            file: loader,
            origin: parent(interp),
            needed_by: None,
            slot: None,
            is_known_by_file: false,
        });
        self.library_path = match self.how.library_path {
            Some(list) if !list.is_empty() => self.directories(list, true, MAIN),
            _ => Vec::new(),
        };
        self.check(&mut map.problems, &main);

        let mut queue = vec![MAIN];
        for name in self.preloads() {
            match self.resolve(&name, MAIN, &mut map.problems) {
                Found::New(node) => {
                    self.enter(map, node, &name, Some(MAIN));
                    queue.push(node);
                }
                Found::Known(_) => {}
                Found::Missing => map.problems.push(Problem::NoPreload { name }),
            }
        }
        let mut next = 0;
        while let Some(node) = queue.get(next).copied() {
            next += 1;
            let Some(file) = self.nodes[node].file.clone() else { continue };
            for needed in &file.object.needed {
                if self.how.scope == Scope::Mpi && LIBC_FAMILY.contains(&needed.as_str()) {
                    continue;
                }
                if map.objects.len() >= MAX_OBJECTS {
                    return Err(Error::elf(&map.program, format!("links more than {MAX_OBJECTS} objects")));
                }
                let needed = self.expand(needed, node);
                match self.resolve(&needed, node, &mut map.problems) {
                    Found::New(found) => {
                        self.enter(map, found, &needed, Some(node));
                        queue.push(found);
                    }
                    // It is in every process, and in the list from where it is first asked for.
                    Found::Known(LOADER) if self.nodes[LOADER].slot.is_none() => {
                        self.enter(map, LOADER, interp, Some(node));
                        queue.push(LOADER);
                    }
                    Found::Known(_) => {}
                    // Asked for anew by everyone who needs it, as the real one does.
                    Found::Missing => map.objects.push(Linked {
                        name: needed,
                        path: None,
                        needed_by: self.nodes[node].slot,
                        file: None,
                        names: Vec::new(),
                        is_loader: false,
                    }),
                }
            }
        }
        map.interp = Some(interp.into());
        for (index, name) in self.how.opens.iter().enumerate() {
            let mut opened = self.open(name);
            opened.is_global = index < self.how.global;
            map.opened.push(opened);
        }
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if let Some(slot) = node.slot {
                map.objects[slot].names = std::mem::take(&mut node.names);
                map.objects[slot].is_loader = index == LOADER;
            }
        }
        Ok(())
    }

    /// What dlopen of `name` by the program brings: in the order of its own scope, without what is in the map.
    fn open(&mut self, name: &str) -> Opened {
        let mut opened =
            Opened { name: name.to_owned(), objects: Vec::new(), problems: Vec::new(), is_global: false };
        let before = self.nodes.len();
        let missing = |name: String, needed_by| OpenedObject {
            linked: Linked { name, path: None, needed_by, file: None, names: Vec::new(), is_loader: false },
            is_new: true,
        };
        // Nodes, with the names they are asked for by, and the place of who asks.
        let mut queue: Vec<(usize, String, Option<usize>)> = Vec::new();
        match self.resolve(name, MAIN, &mut opened.problems) {
            Found::New(node) | Found::Known(node) => queue.push((node, name.to_owned(), None)),
            Found::Missing => opened.objects.push(missing(name.to_owned(), None)),
        }
        let mut next = 0;
        while let Some((node, name, by)) = queue.get(next).cloned() {
            next += 1;
            // What the program has linked is in every scope, with all that it needs.
            if node == MAIN || node == LOADER || self.nodes[node].slot.is_some() {
                continue;
            }
            let file = self.nodes[node].file.clone();
            let place = opened.objects.len();
            opened.objects.push(OpenedObject {
                linked: Linked {
                    name,
                    path: self.nodes[node].names.first().map(PathBuf::from),
                    needed_by: by,
                    file: file.clone(),
                    names: self.nodes[node].names.clone(),
                    is_loader: false,
                },
                is_new: node >= before,
            });
            let Some(file) = file else { continue };
            if node >= before {
                self.check(&mut opened.problems, &file);
            }
            for needed in &file.object.needed {
                if queue.len() >= MAX_OBJECTS {
                    break;
                }
                let needed = self.expand(needed, node);
                match self.resolve(&needed, node, &mut opened.problems) {
                    Found::New(found) | Found::Known(found) => {
                        if !queue.iter().any(|(node, ..)| *node == found) {
                            queue.push((found, needed, Some(place)));
                        }
                    }
                    Found::Missing => opened.objects.push(missing(needed, Some(place))),
                }
            }
        }
        opened
    }

    /// Gives a node its place in the map.
    fn enter(&mut self, map: &mut LinkMap, node: usize, name: &str, by: Option<usize>) {
        let slot = match node {
            // Put back behind the last object that was found (elf/rtld.c, dl_main).
            LOADER => map.objects.iter().rposition(|o| o.path.is_some()).map_or(0, |last| last + 1),
            _ => map.objects.len(),
        };
        self.nodes[node].slot = Some(slot);
        map.objects.insert(
            slot,
            Linked {
                name: name.to_owned(),
                path: self.nodes[node].names.first().map(PathBuf::from),
                needed_by: by.and_then(|by| self.nodes[by].slot),
                file: self.nodes[node].file.clone(),
                names: Vec::new(),
                is_loader: false,
            },
        );
        if let Some(file) = self.nodes[node].file.clone() {
            self.check(&mut map.problems, &file);
        }
    }

    fn check(&self, problems: &mut Vec<Problem>, file: &Probed) {
        // Bit 0 is the baseline, bit 1 is v2, …
        let needed = 32 - file.object.isa_needed.leading_zeros();
        if needed > self.how.processor().level && self.traits().hwcaps {
            let path = file.path.clone();
            problems.push(Problem::IsaLevel { path, needed, have: self.how.processor().level });
        }
    }

    /// LD_PRELOAD, then /etc/ld.so.preload (which musl does not read).
    fn preloads(&self) -> Vec<String> {
        let words = |list: &str| -> Vec<String> {
            list.split([':', ' ', '\t', '\n']).filter(|w| !w.is_empty()).map(String::from).collect()
        };
        let mut names = self.how.preload.map(words).unwrap_or_default();
        // One that cannot be read is as good as none.
        if self.loader == Loader::Glibc
            && let Ok(Some(list)) = self.prober.view.read(Path::new("/etc/ld.so.preload"), MAX_LIST)
        {
            let list = String::from_utf8_lossy(&list).into_owned();
            let lines: Vec<&str> = list.lines().map(|l| l.split('#').next().unwrap_or_default()).collect();
            names.extend(words(&lines.join(" ")));
        }
        names.iter().map(|name| self.expand(name, MAIN)).collect()
    }

    fn traits(&self) -> Rc<Traits> {
        self.prober.traits(self.loader, self.interp, self.arch)
    }

    fn expand(&self, text: &str, node: usize) -> String {
        if !text.contains('$') {
            return text.to_owned();
        }
        ldso::expand(text, &self.nodes[node].origin, &self.traits().lib, self.how.processor(), self.arch)
    }

    /// The directories of a search list, as they are put before a name: an empty one is the working directory.
    fn directories(&self, list: &str, semicolons: bool, node: usize) -> Vec<String> {
        let prefix = |directory: &str| match self.expand(directory, node) {
            empty if empty.is_empty() => empty,
            directory => directory.trim_end_matches('/').to_owned() + "/",
        };
        ldso::split(list, semicolons).map(prefix).collect()
    }

    /// The loader's own directories, likewise.
    fn default_directories(&self) -> Vec<String> {
        self.traits().directories.iter().map(|d| format!("{d}/")).collect()
    }

    /// DT_RPATH or DT_RUNPATH of a node.
    fn own_path(&self, node: usize, list: impl Fn(&Object) -> &Option<String>) -> Option<Vec<String>> {
        let file = self.nodes[node].file.as_ref()?;
        list(&file.object).as_ref().map(|list| self.directories(list, false, node))
    }

    /// The object that answers to `name` for the node `by`.
    fn resolve(&mut self, name: &str, by: usize, problems: &mut Vec<Problem>) -> Found {
        if let Some(known) = self.nodes.iter().position(|node| node.goes_by(name)) {
            if !self.nodes[known].names.iter().any(|n| n == name) {
                self.nodes[known].names.push(name.to_owned());
            }
            return Found::Known(known);
        }
        if self.loader == Loader::Musl && is_musls_own(name) {
            return Found::Known(LOADER);
        }
        let spelled =
            if name.contains('/') { self.attempt(name, problems) } else { self.search(name, by, problems) };
        let Some((spelled, file)) = spelled else { return Found::Missing };
        let same = |node: &Node| {
            node.is_known_by_file && node.file.as_ref().is_some_and(|f| f.entry.id == file.entry.id)
        };
        if let Some(known) = self.nodes.iter().position(same) {
            self.nodes[known].names.push(name.to_owned());
            return Found::Known(known);
        }
        self.nodes.push(Node {
            origin: parent(&self.absolute(&spelled).display().to_string()),
            names: if spelled == name { vec![spelled] } else { vec![spelled, name.to_owned()] },
            file: Some(file),
            needed_by: Some(by),
            slot: None,
            is_known_by_file: true,
        });
        Found::New(self.nodes.len() - 1)
    }

    fn search(&self, name: &str, by: usize, problems: &mut Vec<Problem>) -> Option<(String, Rc<Probed>)> {
        let chain = std::iter::successors(Some(by), |node| self.nodes[*node].needed_by);
        if self.loader == Loader::Musl {
            // LD_LIBRARY_PATH first; both kinds of path, both inherited.
            let own = |node| self.own_path(node, |o| if o.runpath.is_some() { &o.runpath } else { &o.rpath });
            let lists = std::iter::once(Some(self.library_path.clone()))
                .chain(chain.map(own))
                .chain([Some(self.default_directories())]);
            return lists.flatten().find_map(|list| self.look_in(&list, name, problems));
        }
        let requester = self.nodes[by].file.as_ref();
        if requester.is_none_or(|f| f.object.runpath.is_none()) {
            let mut asked_main = false;
            for node in chain {
                asked_main |= node == MAIN;
                if let Some(found) = self.look_in_rpath(node, name, problems) {
                    return Some(found);
                }
            }
            if !asked_main && let Some(found) = self.look_in_rpath(MAIN, name, problems) {
                return Some(found);
            }
        }
        if let Some(found) = self.look_in(&self.library_path, name, problems) {
            return Some(found);
        }
        if let Some(list) = self.own_path(by, |o| &o.runpath)
            && let Some(found) = self.look_in(&list, name, problems)
        {
            return Some(found);
        }
        let keeps_to_itself = requester.is_some_and(|f| f.object.no_default_directories);
        if let Some(path) = self.prober.cached(name, self.arch, self.how.processor(), || self.traits().hwcaps)
            && !(keeps_to_itself && self.traits().directories.contains(&parent(&path)))
            && let Some(found) = self.attempt(&path, problems)
        {
            return Some(found);
        }
        if keeps_to_itself { None } else { self.look_in(&self.default_directories(), name, problems) }
    }

    fn look_in_rpath(
        &self,
        node: usize,
        name: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<(String, Rc<Probed>)> {
        self.look_in(&self.own_path(node, |o| &o.rpath)?, name, problems)
    }

    fn look_in(
        &self,
        list: &[String],
        name: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<(String, Rc<Probed>)> {
        list.iter().find_map(|directory| {
            let better = match self.loader {
                Loader::Glibc => {
                    let absolute = self.absolute(directory).display().to_string();
                    self.prober.better(&absolute, || self.traits(), self.how.processor())
                }
                Loader::Musl => Rc::default(),
            };
            let better =
                better.iter().find_map(|sub| self.attempt(&format!("{directory}{sub}/{name}"), problems));
            better.or_else(|| self.attempt(&format!("{directory}{name}"), problems))
        })
    }

    /// Opens `spelled`; a relative path begins in the working directory.
    fn attempt(&self, spelled: &str, problems: &mut Vec<Problem>) -> Option<(String, Rc<Probed>)> {
        match self.prober.probe(&self.absolute(spelled), self.arch) {
            Probe::Object(file) => Some((spelled.to_owned(), file)),
            Probe::Nothing => None,
            Probe::Bad(why) => {
                let problem = Problem::BadFile { path: PathBuf::from(spelled), why };
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
                None
            }
        }
    }

    fn absolute(&self, path: &str) -> PathBuf {
        self.how.directory.join(path)
    }
}

/// The directory part of a path, as dirname has it.
fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) => "/".to_owned(),
        Some((parent, _)) => parent.to_owned(),
        None => ".".to_owned(),
    }
}

/// Names that are musl's libc whatever is on disk (ldso/dynlink.c, `reserved`).
fn is_musls_own(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("lib") else { return false };
    ["c.", "pthread.", "rt.", "m.", "dl.", "util.", "xnet."].iter().any(|own| rest.starts_with(own))
}

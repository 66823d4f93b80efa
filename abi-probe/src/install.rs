//! What an MPI, or a fabric's libraries, need around them: bindings, every library that they and their plugins
//! load, and the directories into which they look. Found by simulating the loader and from the libraries' own
//! constants.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::elf::Arch;
use crate::error::{Error, Result};
use crate::linkmap::{Circumstances, LinkMap};
use crate::mpi::{self, Detail, Family, Mpi};
use crate::parts::{self, Role};
use crate::prober::{Probed, Prober};
use crate::rootfs::Kind;

/// More entries than any directory of plugins has.
const MAX_ENTRIES: usize = 4096;
/// More constants that look like a directory than any library has.
const MAX_TEXTS: usize = 512;

/// A directory that is looked into at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Its path on the host, without links.
    pub path: PathBuf,
    /// Where it is looked for: as the library spells it.
    pub at: PathBuf,
    /// The library that looks.
    pub of: String,
    /// Objects in it that will be opened.
    pub plugins: Vec<PathBuf>,
}

/// A library that belongs to an installation.
#[derive(Clone, Debug)]
pub struct Library {
    /// The file.
    pub file: Rc<Probed>,
    /// Who needs it, for messages.
    pub needed_by: String,
}

/// An MPI as it is installed, or the libraries of fabrics beneath one.
#[derive(Debug)]
pub struct Installation {
    /// How people call it, with the libraries' paths.
    pub name: String,
    /// The MPI; none: fabrics alone.
    pub mpi: Option<Mpi>,
    /// The MPI's file, or the first of the fabrics'.
    pub core: Rc<Probed>,
    /// The bindings and internal libraries that lie beside it, by file name.
    pub parts: BTreeMap<String, Rc<Probed>>,
    /// Everything that it, its bindings and its plugins load, by the name that is asked for. Without the C
    /// library's family.
    pub libraries: BTreeMap<String, Library>,
    /// Directories of plugins and texts.
    pub directories: Vec<Directory>,
    /// The tree that it was installed into, where that is its own: none for `/usr`.
    pub prefix: Option<PathBuf>,
    /// Its tree is not the one that it was configured for: the environment must say where it is.
    pub relocated: bool,
    /// The C library that it loads.
    pub libc: Option<Rc<Probed>>,
    /// The loader that it was looked at with.
    pub loader: Rc<Probed>,
}

/// What does not work on the host itself, and so cannot be asked of the container.
#[derive(Debug, Default)]
pub struct Faults {
    /// Plugins that cannot be loaded.
    pub broken: BTreeSet<PathBuf>,
    /// Symbols that are missing: file name of the object, and name.
    pub missing: BTreeSet<(String, String)>,
}

/// Loaders of Debian, Red Hat, SUSE and Arch on the machines that are known.
pub const LOADERS: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib64/ld64.so.2",
    "/lib/ld-linux-riscv64-lp64d.so.1",
];

/// Looks at an MPI: the host's, or an image's, whichever `side` views. `library_path` is LD_LIBRARY_PATH there.
pub fn look(side: &Prober, library: &Path, library_path: Option<&str>) -> Result<Option<Installation>> {
    let Some(core) = side.file(library, Arch::NATIVE) else { return Ok(None) };
    let Some(mpi) = mpi::identify(side, &core, Detail::Version)? else { return Ok(None) };
    let family = mpi.family;
    let mut this = Installation::new(side, core, mpi.describe(), Some(mpi))?;
    this.parts = parts_beside(side, library, &this.core, family)?;
    this.complete(side, library_path)?;
    this.find_prefix(library, side, family)?;
    Ok(Some(this))
}

/// Looks at libraries of fabrics, by the names by which they are asked for. `None`: there are none.
pub fn look_at_fabric(
    side: &Prober,
    heads: &BTreeMap<String, Rc<Probed>>,
    name: String,
    library_path: Option<&str>,
) -> Result<Option<Installation>> {
    let Some(core) = heads.values().next() else { return Ok(None) };
    let mut this = Installation::new(side, Rc::clone(core), name, None)?;
    for (name, file) in heads {
        let needed_by = "the image's MPI".to_owned();
        this.libraries.insert(name.clone(), Library { file: Rc::clone(file), needed_by });
    }
    this.complete(side, library_path)?;
    Ok(Some(this))
}

/// The MPI's other libraries in the directories of the core.
fn parts_beside(
    host: &Prober,
    library: &Path,
    core: &Rc<Probed>,
    family: Family,
) -> Result<BTreeMap<String, Rc<Probed>>> {
    let mut found = BTreeMap::new();
    let directories: BTreeSet<&Path> = [library.parent(), core.path.parent()].into_iter().flatten().collect();
    for directory in directories {
        let Some(entry) = host.view.find(directory)? else { continue };
        for name in entry.list(MAX_ENTRIES)?.0 {
            let Some(name) = name.to_str() else { continue };
            // The name that programs ask for: `.so.` and one number.
            let (_, version) = parts::stem(name);
            let is_soname = version.strip_prefix(".so.").is_some_and(|v| v.parse::<u32>().is_ok());
            if !is_soname || parts::part(name).is_none() {
                continue;
            }
            if let Some(file) = host.file(&directory.join(name), Arch::NATIVE) {
                found.insert(name.to_owned(), file);
            }
        }
    }
    // Two families may share a directory: only what the core itself answers for is its own.
    let core_stem = parts::stem(library.to_str().unwrap_or_default()).0.to_owned();
    let open_mpi = |name: &str| {
        let (stem, _) = parts::stem(name);
        stem.starts_with("libmpi_") && stem != "libmpi_abi"
            || stem.starts_with("libopen")
            || stem.starts_with("libmca_common_")
            || ["liboshmem", "libpmix", "libprrte"].contains(&stem)
    };
    let is_open_mpi = family == Family::OpenMpi;
    found.retain(|name, file| match parts::part(name) {
        Some((Role::Core, _)) => file.entry.id == core.entry.id || parts::stem(name).0 == core_stem,
        Some(_) => open_mpi(name) == is_open_mpi,
        None => false,
    });
    Ok(found)
}

impl Installation {
    /// Nothing around it is known yet.
    fn new(side: &Prober, core: Rc<Probed>, name: String, mpi: Option<Mpi>) -> Result<Installation> {
        let Some(loader) = LOADERS.iter().find_map(|path| side.file(Path::new(path), Arch::NATIVE)) else {
            return Err(Error::elf(&core.path, "there is no loader of the GNU C library"));
        };
        Ok(Installation {
            name,
            mpi,
            core,
            parts: BTreeMap::new(),
            libraries: BTreeMap::new(),
            directories: Vec::new(),
            prefix: None,
            relocated: false,
            libc: None,
            loader,
        })
    }

    /// Finds its libraries and their plugins. Plugins load libraries that have plugins: a few rounds find them all.
    fn complete(&mut self, side: &Prober, library_path: Option<&str>) -> Result<()> {
        let mut known = usize::MAX;
        for _ in 0..4 {
            let map = self.link(side, library_path)?;
            self.collect(&map);
            if self.libraries.len() == known {
                break;
            }
            known = self.libraries.len();
            self.find_directories(side)?;
        }
        Ok(())
    }

    /// Links the library with all that it may open.
    fn link(&self, host: &Prober, library_path: Option<&str>) -> Result<LinkMap> {
        let plugins = self.directories.iter().flat_map(|d| &d.plugins);
        // Fabrics' libraries are nobody's need here.
        let heads = self.libraries.values().map(|l| &l.file.path).filter(|_| self.mpi.is_none());
        let parts = self.parts.values().map(|p| &p.path).chain(heads);
        let opens: Vec<String> = parts.chain(plugins).map(|p| p.display().to_string()).collect();
        let how = Circumstances { library_path, opens: &opens, ..Circumstances::default() };
        let interp = self.loader.path.display().to_string();
        let map = host.object(&self.core.entry, &interp, &how)?;
        map.ok_or_else(|| Error::elf(&self.core.path, "it is no dynamic object"))
    }

    fn collect(&mut self, map: &LinkMap) {
        let opened = map.opened.iter().flat_map(|o| {
            let name = |i: Option<usize>| i.map_or(&o.name, |i| &o.objects[i].linked.name);
            o.objects.iter().map(move |object| (&object.linked, name(object.linked.needed_by).clone()))
        });
        let own = map.objects.iter().map(|linked| {
            let by = linked
                .needed_by
                .map_or(&self.core.path, |i| map.objects[i].path.as_ref().unwrap_or(&self.core.path));
            (linked, by.display().to_string())
        });
        let mut found = Vec::new();
        for (linked, needed_by) in own.chain(opened) {
            let Some(file) = &linked.file else { continue };
            // What is opened by its path is not looked for by name.
            if linked.is_loader || linked.name.contains('/') {
                continue;
            }
            found.push((linked.name.clone(), Library { file: Rc::clone(file), needed_by }));
        }
        // A provider of verbs may be a library that others need by its own name (libmlx5-rdmav34.so is libmlx5.so.1):
        // the two must not be of different sides.
        for opened in &map.opened {
            let Some(file) = opened.objects.first().and_then(|o| o.linked.file.as_ref()) else { continue };
            if let Some(soname) = file.object.soname.as_ref().filter(|name| parts::stack(name).is_some()) {
                let library = Library { file: Rc::clone(file), needed_by: opened.name.clone() };
                found.push((soname.clone(), library));
            }
        }
        for (name, library) in found {
            if parts::is_libc(&name) {
                if name == "libc.so.6" {
                    self.libc = Some(library.file);
                }
            } else {
                self.libraries.entry(name).or_insert(library);
            }
        }
    }

    /// What does not work on the host. Binds every symbol: to be asked only when something is missing inside.
    pub fn faults(&self, host: &Prober, library_path: Option<&str>) -> Result<Faults> {
        let map = self.link(host, library_path)?;
        let (own, opened) = crate::bind::bind_all(host, &map)?;
        let mut faults = Faults::default();
        for (opened, binding) in map.opened.iter().zip(&opened) {
            let is_missing = opened.objects.iter().any(|o| o.linked.path.is_none());
            if is_missing || !opened.problems.is_empty() || binding.unresolved.iter().any(|u| u.hard) {
                faults.broken.insert(PathBuf::from(&opened.name));
            }
        }
        for missing in opened.iter().chain([&own]).flat_map(|b| &b.unresolved) {
            faults.missing.insert((parts::file_name(&missing.object).to_owned(), missing.symbol.clone()));
        }
        Ok(faults)
    }

    /// From constants of the libraries that have directories.
    fn find_directories(&mut self, host: &Prober) -> Result<()> {
        let files: Vec<(String, Rc<Probed>)> =
            self.libraries.iter().map(|(name, library)| (name.clone(), Rc::clone(&library.file))).collect();
        for (name, file) in files {
            let stem = parts::stem(&name).0;
            let Some((_, words)) = parts::DIRECTORIES.iter().find(|(holder, _)| *holder == stem) else {
                continue;
            };
            let of = file.path.display().to_string();
            if self.directories.iter().any(|d| d.of == of) {
                continue;
            }
            // UCX and libfabric look beside themselves, wherever they are.
            let beside = matches!(stem, "libucs" | "libfabric").then(|| file.path.with_file_name(words[0]));
            for at in candidates(host, &file, beside)? {
                let last = at.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                let is_header = at.components().any(|c| c.as_os_str() == "include");
                if is_header || !words.iter().any(|word| last.starts_with(word)) {
                    continue;
                }
                let Some(entry) = host.view.find(&at)?.filter(|e| e.kind == Kind::Directory) else {
                    continue;
                };
                if self.directories.iter().any(|d| d.path == entry.path) {
                    continue;
                }
                let mut plugins = Vec::new();
                for name in entry.list(MAX_ENTRIES)?.0 {
                    let Some(name) = name.to_str().filter(|n| is_plugin(n)) else { continue };
                    plugins.push(at.join(name));
                }
                plugins.sort();
                self.directories.push(Directory { path: entry.path, at, of: of.clone(), plugins });
            }
        }
        Ok(())
    }

    /// Plugins that are an MPI's own: not those that the stacks of fabrics beneath it open themselves.
    pub fn own_plugins(&self) -> impl Iterator<Item = &PathBuf> {
        self.directories.iter().filter(|d| parts::stack(&d.of).is_none()).flat_map(|d| &d.plugins)
    }

    /// Directories to be shown, each with what is below it: those that lie in another one are not named again.
    pub fn outermost(&self) -> impl Iterator<Item = &Directory> {
        let inner = |d: &Directory| {
            self.directories
                .iter()
                .any(|o| o.at != d.at && d.at.starts_with(&o.at) && d.path.starts_with(&o.path))
        };
        self.directories.iter().filter(move |d| !inner(d))
    }

    /// The directory above `lib`, `lib64` or `lib/TRIPLET`, if that is not the system's.
    fn find_prefix(&mut self, library: &Path, host: &Prober, family: Family) -> Result<()> {
        let mut at = library.parent().unwrap_or(Path::new("/"));
        if at.parent().and_then(Path::file_name).is_some_and(|n| n == "lib") && !at.ends_with("lib") {
            at = at.parent().unwrap_or(at);
        }
        // Intel's libraries lie in lib/release.
        if at.ends_with("release") {
            at = at.parent().unwrap_or(at);
        }
        let is_lib = at.file_name().is_some_and(|n| n == "lib" || n == "lib64");
        let Some(prefix) = at.parent().filter(|_| is_lib) else { return Ok(()) };
        if ["/", "/usr", "/usr/local"].iter().any(|system| prefix == Path::new(system)) {
            return Ok(());
        }
        self.prefix = Some(prefix.to_owned());
        if family != Family::OpenMpi {
            return Ok(());
        }
        // Open MPI remembers the tree that it was configured for.
        let Some(pal) = self.libraries.iter().find(|(name, _)| name.starts_with("libopen-pal.")) else {
            return Ok(());
        };
        let texts = texts(host, &pal.1.file)?;
        let knows = |path: &Path| texts.iter().any(|text| Path::new(text) == path);
        self.relocated =
            !knows(prefix) && !self.core.path.ancestors().any(|a| a.ends_with("lib") && knows(a));
        Ok(())
    }

    /// The host's file for a name that the program asks for: the very name, or another one of the same library.
    pub fn part(&self, name: &str) -> Option<&Rc<Probed>> {
        if self.mpi.is_none() {
            return parts::stack(name).and(self.libraries.get(name)).map(|library| &library.file);
        }
        let (role, names) = parts::part(name)?;
        if role == Role::Core {
            return Some(&self.core);
        }
        if let Some(file) = self.parts.get(name) {
            return Some(file);
        }
        let (_, version) = parts::stem(name);
        names.iter().find_map(|stem| self.parts.get(&format!("{stem}{version}")))
    }
}

/// Files that are opened: not the links by which linkers find them, nor archives.
fn is_plugin(name: &str) -> bool {
    let (stem, version) = parts::stem(name);
    if stem.starts_with("libuct_") || stem.starts_with("libucm_") || stem.starts_with("libucx_") {
        // UCX adds the suffix under which libucs was loaded: `.so.0`.
        return version.strip_prefix(".so.").is_some_and(|v| v.parse::<u32>().is_ok());
    }
    version == ".so"
        && (stem.starts_with("mca_")
            || stem.starts_with("pmix_mca_")
            || stem.starts_with("prte_mca_")
            || stem.ends_with("-fi")
            || stem.contains("-rdmav"))
}

/// Constants that may name a directory.
fn texts(host: &Prober, file: &Rc<Probed>) -> Result<Vec<String>> {
    let bytes = host.open(file)?;
    let mut found: Vec<String> = Vec::new();
    file.object.find_text(&bytes, |text| {
        let begins = text.starts_with('/') && text.len() > 3 || text.starts_with("${");
        let odd = |c: char| c.is_whitespace() || c.is_control() || ":;,\"'()".contains(c);
        if begins && !text.contains(odd) && found.len() < MAX_TEXTS && !found.iter().any(|f| f == text) {
            found.push(text.to_owned());
        }
        None::<()>
    });
    Ok(found)
}

/// Directories that a library's constants may mean. `${libdir}/openmpi` and the like are tried with everything
/// that a variable may stand for: the order of constants says nothing.
fn candidates(host: &Prober, file: &Rc<Probed>, beside: Option<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let texts = texts(host, file)?;
    let mut whole: BTreeSet<String> = BTreeSet::new();
    let elsewhere = ["/proc", "/sys", "/dev", "/tmp", "/var", "/run", "/build", "/etc/mtab"];
    let is_elsewhere = |text: &&String| elsewhere.iter().any(|e| Path::new(text).starts_with(e));
    for text in texts.iter().filter(|t| t.starts_with('/') && !is_elsewhere(t)) {
        whole.insert(text.clone());
        // "…/libibverbs/lib%s-rdmav34.so" names its directory.
        if text.contains('%')
            && let Some((directory, _)) = text.rsplit_once('/')
        {
            whole.insert(directory.to_owned());
        }
    }
    // Of a relocated tree: what is beside the library.
    whole.extend(file.path.parent().map(|directory| directory.display().to_string()));
    whole.extend(beside.map(|path| path.display().to_string()));
    for _ in 0..3 {
        let bases: Vec<String> = whole.iter().cloned().collect();
        for text in texts.iter().filter(|t| t.starts_with("${")) {
            let Some((_, rest)) = text.split_once('}') else { continue };
            for base in &bases {
                if whole.len() >= MAX_TEXTS {
                    break;
                }
                let path = format!("{}{rest}", base.trim_end_matches('/'));
                // Only what exists leads further.
                if !whole.contains(&path) && matches!(host.view.find(Path::new(&path)), Ok(Some(_))) {
                    whole.insert(path);
                }
            }
        }
    }
    Ok(whole.into_iter().map(PathBuf::from).collect())
}

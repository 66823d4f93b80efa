//! The link map: what a program will link, in the loader's order, and what the loader will not like.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::elf::Arch;
use crate::ldso::Cpu;
use crate::prober::Probed;

/// An object that was asked for.
#[derive(Debug, Clone)]
pub struct Linked {
    /// The name by which it was first asked for (a soname or a path).
    pub name: String,
    /// The path by which the loader opens it, links and all; `None`: not found.
    pub path: Option<PathBuf>,
    /// Index of the object that needs it first; the program is `None`.
    pub needed_by: Option<usize>,
    /// The file.
    pub file: Option<Rc<Probed>>,
    /// Every name that it goes by in this process.
    pub(crate) names: Vec<String>,
    /// It is the loader itself, whose symbols others use and which is there whatever happens.
    pub(crate) is_loader: bool,
}

/// What stops the loader, or what it says aloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// A file of the right name is no library: the loader gives up there.
    BadFile {
        /// The path that was opened.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// LD_PRELOAD or /etc/ld.so.preload names something that is not there; passed over.
    NoPreload {
        /// As it was named.
        name: String,
    },
    /// An object is made for a better processor (GNU_PROPERTY_X86_ISA_1_NEEDED).
    IsaLevel {
        /// The object.
        path: PathBuf,
        /// x86-64-v2, 3 or 4.
        needed: u32,
        /// What this processor is.
        have: u32,
    },
}

/// What a program will link.
#[derive(Debug, Clone, Default)]
pub struct LinkMap {
    /// The ELF program that runs in the end: the command, or the last interpreter of its `#!` line.
    pub program: PathBuf,
    /// The path by which it is executed, links and all: the command's own, or that of the last `#!` line.
    pub asked: PathBuf,
    /// What stands behind the interpreter in the last `#!` line.
    pub argument: Option<String>,
    /// Scripts on the way there, outermost first.
    pub scripts: Vec<PathBuf>,
    /// PT_INTERP; `None` for a static program.
    pub interp: Option<PathBuf>,
    /// The program's architecture.
    pub arch: Option<Arch>,
    /// The program's file.
    pub main: Option<Rc<Probed>>,
    /// The objects in load order, preloaded ones first.
    pub objects: Vec<Linked>,
    /// What the loader will not like.
    pub problems: Vec<Problem>,
    /// What the program opens later, in the order of [`Circumstances::opens`].
    pub opened: Vec<Opened>,
}

/// What dlopen of an object brings into the process.
#[derive(Debug, Clone)]
pub struct Opened {
    /// As it was asked for.
    pub name: String,
    /// Its own scope but for what the program has linked, itself first; empty: the program has linked it.
    pub objects: Vec<OpenedObject>,
    /// What the loader will not like.
    pub problems: Vec<Problem>,
    /// Whatever is opened later sees its symbols.
    pub is_global: bool,
}

/// An object that is not among those that the program links.
#[derive(Debug, Clone)]
pub struct OpenedObject {
    /// It; `needed_by` is a place in [`Opened::objects`].
    pub linked: Linked,
    /// Nothing opened earlier has brought it.
    pub is_new: bool,
}

impl LinkMap {
    /// What answers to a name in this process: linked, or opened.
    pub fn answer(&self, name: &str) -> Option<&Rc<Probed>> {
        let opened = self.opened.iter().flat_map(|o| o.objects.iter().map(|o| &o.linked));
        let answers = |linked: &&Linked| {
            let soname = linked.file.as_ref().and_then(|f| f.object.soname.as_deref());
            linked.file.is_some()
                && (linked.name == name || soname == Some(name) || linked.names.iter().any(|n| n == name))
        };
        self.objects.iter().chain(opened).find(answers)?.file.as_ref()
    }
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
pub type Outcome = Result<LinkMap, Unrunnable>;

/// What of the link map is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every object.
    Whole,
    /// Only what may lead to an MPI: the C library's family needs nothing but itself and is not looked for.
    Mpi,
}

/// The circumstances in which a program is started.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// LD_LIBRARY_PATH.
    pub library_path: Option<&'a str>,
    /// LD_PRELOAD.
    pub preload: Option<&'a str>,
    /// The working directory: relative paths begin there.
    pub directory: &'a Path,
    /// The processor; none: this machine's, which is asked when it matters.
    pub cpu: Option<Cpu>,
    /// What is wanted.
    pub scope: Scope,
    /// What the program will dlopen: names or paths.
    pub opens: &'a [String],
    /// So many of them, the first, for all to see (RTLD_GLOBAL), as mpi4py opens its MPI.
    pub global: usize,
}

impl Default for Circumstances<'_> {
    fn default() -> Self {
        let directory = Path::new("/");
        Circumstances {
            library_path: None,
            preload: None,
            directory,
            cpu: None,
            scope: Scope::Whole,
            opens: &[],
            global: 0,
        }
    }
}

impl Circumstances<'_> {
    /// The processor.
    pub fn processor(&self) -> Cpu {
        self.cpu.unwrap_or_else(Cpu::this)
    }
}

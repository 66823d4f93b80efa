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
    /// The processor.
    pub cpu: Cpu,
    /// What is wanted.
    pub scope: Scope,
}

impl Default for Circumstances<'_> {
    fn default() -> Self {
        let directory = Path::new("/");
        Circumstances { library_path: None, preload: None, directory, cpu: Cpu::this(), scope: Scope::Whole }
    }
}

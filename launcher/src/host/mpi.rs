//! The host's MPIs: the site's own list, the launcher's, the environment's, and the loader's.
//!
//! Nothing is run. The launcher's MPI lies in the tree of the program that forked this rank; the others where
//! variables, PATH and the loader's cache say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use abi_probe::elf::Arch;
use abi_probe::ldso::Cpu;
use abi_probe::mpi::{self, Detail, Mpi};
use abi_probe::prober::Prober;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Sourced};
use crate::environ::Environ;
use crate::error::{Code, Error, Result};

/// Names under which an MPI's core library is linked against (abi-probe's mpi.rs knows their families).
pub const CORES: &[&str] = &[
    "libmpi.so.40",
    "libmpi.so.12",
    "libmpich.so.12",
    "libmpi_abi.so.1",
    "libmpi.so.20",
    "libmpi.so.0",
    "libmpi_cray.so.12",
    "libmpi_gnu.so.12",
    "libmpi_intel.so.12",
];

/// Variables that name the tree of an MPI.
pub const TREES: &[&str] =
    &["OPAL_PREFIX", "MPI_HOME", "MPI_ROOT", "I_MPI_ROOT", "MPICH_DIR", "EBROOTOPENMPI"];

/// An MPI of the site's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// As `--host-mpi` calls it.
    pub name: String,
    /// Its core library.
    pub library: PathBuf,
}

/// A library that may be the one.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its path on the host.
    pub library: PathBuf,
    /// Why it is looked at.
    pub why: String,
    /// Somebody named it: if it is none, that is an error.
    pub must: bool,
}

/// What is known of the host outside, before namespaces were entered.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The program that forked this rank.
    pub launcher: Option<PathBuf>,
    /// Devices of fabrics.
    pub fabric: Vec<String>,
}

impl Surroundings {
    /// Of the daemon with this process number. To be asked before a user namespace is entered: from inside,
    /// the kernel answers EACCES (fs/proc/base.c, proc_pid_get_link; ptrace_may_access).
    pub fn of(daemon: Option<i32>) -> Surroundings {
        let launcher = daemon.and_then(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok());
        Surroundings { launcher, fabric: super::fabric::devices() }
    }
}

/// Where the host's MPIs may be, the likeliest first.
pub fn candidates(
    host: &Prober,
    config: &Config,
    environ: &Environ,
    around: &Surroundings,
) -> Result<Vec<Candidate>> {
    if let Some(asked) = &config.host_mpi.value {
        let library = named(config, asked)?;
        return Ok(vec![Candidate { library, why: config.host_mpi.origin.to_string(), must: true }]);
    }
    let mut search = Search { host, seen: BTreeSet::new(), found: Vec::new() };
    for Sourced { value: Named { name, library }, origin } in &config.host_mpis {
        search.named(library, format!("host_mpis, {name:?}, in {origin}"));
    }
    if let Some(program) = &around.launcher {
        search.program(program, "the launcher's own");
    }
    for variable in TREES {
        if let Some(tree) = environ.get_os(variable).map(PathBuf::from).filter(|t| t.is_absolute()) {
            search.tree(&tree, variable);
        }
    }
    let list = environ.get("LD_LIBRARY_PATH").unwrap_or_default();
    for directory in list.split(':').filter(|d| d.starts_with('/')) {
        search.directory(Path::new(directory), "LD_LIBRARY_PATH");
    }
    let path = environ.get("PATH").unwrap_or_default();
    for directory in path.split(':').filter(|d| d.starts_with('/')) {
        for name in ["mpirun", "mpiexec"] {
            if let Ok(program) = std::fs::canonicalize(Path::new(directory).join(name)) {
                search.program(&program, "mpirun on PATH");
            }
        }
    }
    for name in CORES {
        if let Some(path) = host.cached(name, Arch::NATIVE, Cpu::this(), || true) {
            search.library(Path::new(&path), "the loader's cache");
        }
    }
    Ok(search.found)
}

/// The library of an MPI that was asked for, by its name in the configuration or by its path.
fn named(config: &Config, asked: &str) -> Result<PathBuf> {
    if let Some(one) = config.host_mpis.iter().find(|m| m.value.name == *asked) {
        return Ok(one.value.library.clone());
    }
    let path = PathBuf::from(asked);
    if path.is_absolute() {
        return Ok(path);
    }
    let names: Vec<&str> = config.host_mpis.iter().map(|m| m.value.name.as_str()).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(Error::new(
        Code::HostMpiMissing,
        format!(
            "--host-mpi {asked} ({}): no configuration names an MPI so; named are: {known}",
            config.host_mpi.origin
        ),
        "give one of these names, or the absolute path of its library, as /opt/openmpi/lib/libmpi.so.40",
    ))
}

/// Identifies a candidate. One that was named by somebody must be an MPI; others are passed over.
pub fn identify(host: &Prober, candidate: &Candidate, detail: Detail) -> Result<Option<Mpi>> {
    let must = candidate.must;
    let bad = |why: String| {
        Error::new(
            Code::HostMpiMissing,
            format!("{} ({}): {why}", candidate.library.display(), candidate.why),
            "correct the path: it should be an MPI's core library, as libmpi.so.40 or libmpich.so.12",
        )
    };
    let Some(file) = host.file(&candidate.library, Arch::NATIVE) else {
        return match must {
            true if candidate.library.exists() => Err(bad("it is no library for this machine".to_owned())),
            true => Err(bad("there is no such file on this host".to_owned())),
            false => Ok(None),
        };
    };
    match mpi::identify(host, &file, detail) {
        Ok(None) if must => Err(bad("it is no MPI that we know".to_owned())),
        Err(e) if must => Err(bad(e.to_string())),
        Ok(found) => Ok(found),
        Err(_) => Ok(None),
    }
}

struct Search<'a> {
    host: &'a Prober<'a>,
    /// Real paths.
    seen: BTreeSet<PathBuf>,
    found: Vec<Candidate>,
}

impl Search<'_> {
    /// Kept even if it is not there: that is an error to be told.
    fn named(&mut self, library: &Path, why: String) {
        let real = self.host.file(library, Arch::NATIVE).map_or(library.to_owned(), |f| f.path.clone());
        if self.seen.insert(real) {
            self.found.push(Candidate { library: library.to_owned(), why, must: true });
        }
    }

    fn library(&mut self, library: &Path, why: &str) {
        if let Some(file) = self.host.file(library, Arch::NATIVE)
            && self.seen.insert(file.path.clone())
        {
            self.found.push(Candidate { library: library.to_owned(), why: why.to_owned(), must: false });
        }
    }

    fn directory(&mut self, directory: &Path, why: &str) {
        for name in CORES {
            let path = directory.join(name);
            if self.host.file(&path, Arch::NATIVE).is_some() {
                self.library(&path, why);
            }
        }
    }

    /// Where a tree has its libraries.
    fn tree(&mut self, tree: &Path, why: &str) {
        let triple = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
        for lib in ["lib", "lib64", &triple, "lib/release"] {
            self.directory(&tree.join(lib), why);
        }
    }

    /// The tree of a program in its `bin`.
    fn program(&mut self, program: &Path, why: &str) {
        if let Some(tree) = program.parent().and_then(Path::parent) {
            self.tree(tree, &format!("{why}: {}", program.display()));
        }
    }
}

//! What stands in the way of an injection: each with the files and the symbol that show it, and a cure.

use std::path::PathBuf;

use crate::bind::{Binding, Unresolved};
use crate::linkmap::Problem;

/// One reason why the host's MPI cannot replace the image's, or should not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The program has no loader that could be shown another library.
    Static {
        /// The program.
        program: PathBuf,
    },
    /// The program's C library is musl: libraries built for glibc cannot be loaded.
    Musl {
        /// Its loader.
        interp: PathBuf,
    },
    /// The host's C library is needed, and lacks a version that the image's has.
    Libc {
        /// The version that the image's C library has and the host's lacks.
        lacks: String,
        /// The version that the image's lacks.
        needs: String,
        /// The host's library that needs it.
        needed_by: String,
    },
    /// A library is in no place where the loader looks.
    Missing {
        /// Its name.
        name: String,
        /// Who needs it.
        needed_by: String,
    },
    /// A file that the loader will not like.
    Bad(Problem),
    /// A file does not define a version.
    Version {
        /// The file.
        file: String,
        /// The version.
        version: String,
        /// Who needs it.
        needed_by: String,
    },
    /// A symbol is nowhere.
    Symbol(Unresolved),
    /// A library without versions in the place of one with them.
    Unversioned {
        /// The library.
        file: String,
        /// Who looks for a version in it.
        object: String,
        /// The symbol.
        symbol: String,
    },
    /// The program has a copy of a variable, of another size.
    Resized {
        /// The variable.
        symbol: String,
        /// Its size in the program, in bytes.
        program: u64,
        /// Its size in the library.
        library: u64,
        /// The library.
        object: String,
    },
    /// A plugin of the host's MPI would not load.
    Plugin {
        /// The plugin.
        plugin: String,
        /// Why.
        why: String,
    },
    /// The host's MPI lacks bindings that the program links, and the image's do not go with it.
    NoPart {
        /// The library that the program asks for.
        name: String,
        /// What it is.
        what: &'static str,
        /// Who needs it.
        needed_by: String,
        /// The host's MPI.
        host: String,
        /// The image's lacks only what may never be called.
        is_latent: bool,
    },
    /// The image's MPI sends GPUs' memory, and the host's does not.
    Gpus {
        /// The image's, and what shows it.
        image: String,
        /// The host's.
        host: String,
    },
}

impl Obstacle {
    /// It matters only if something is called that may never be.
    pub fn is_latent(&self) -> bool {
        matches!(
            self,
            Obstacle::Symbol(Unresolved { hard: false, .. })
                | Obstacle::NoPart { is_latent: true, .. }
                | Obstacle::Gpus { .. }
        )
    }

    /// Both sides, and the evidence.
    pub fn what(&self) -> String {
        match self {
            Obstacle::Static { program } => {
                format!("{} is statically linked: no other MPI can be put under it", program.display())
            }
            Obstacle::Musl { interp } => format!(
                "the program's loader is {}: libraries of this host, built for glibc, cannot be loaded by it",
                interp.display()
            ),
            Obstacle::Libc { lacks, needs, needed_by } => format!(
                "{needed_by} needs {needs}, which the image's C library lacks, and the host's C library lacks {lacks}, which the image's has"
            ),
            Obstacle::Missing { name, needed_by } => {
                format!("{needed_by} needs {name}, which is in no place where the program's loader looks")
            }
            Obstacle::Bad(Problem::BadFile { path, why }) => {
                format!("{} is no library: {why}", path.display())
            }
            Obstacle::Bad(Problem::NoPreload { name }) => format!("{name} cannot be preloaded"),
            Obstacle::Bad(Problem::IsaLevel { path, needed, have }) => {
                format!("{} needs x86-64-v{needed}, this processor is x86-64-v{have}", path.display())
            }
            Obstacle::Version { file, version, needed_by } => {
                format!("{file} does not define the version {version}, which {needed_by} needs")
            }
            Obstacle::Symbol(u) => {
                let version = u.version.as_ref().map(|v| format!(", version {v}")).unwrap_or_default();
                let when = if u.hard { "" } else { " (looked for only when it is called)" };
                format!("{} needs the symbol {}{version}, which is nowhere{when}", u.object, u.symbol)
            }
            Obstacle::Unversioned { file, object, symbol } => {
                format!(
                    "{file} knows no versions, and the loader aborts when {object} looks for {symbol} in it"
                )
            }
            Obstacle::Resized { symbol, program, library, object } => format!(
                "{symbol} is {program} bytes in the program and {library} bytes in {object}: what lies behind it would be overwritten"
            ),
            Obstacle::Plugin { plugin, why } => format!("the host's plugin {plugin} would not load: {why}"),
            Obstacle::Gpus { image, host } => {
                format!(
                    "the image's {image} sends GPUs' memory, and nothing shows that {host} does: a program that hands such memory to MPI crashes"
                )
            }
            Obstacle::NoPart { name, what, needed_by, host, is_latent } => {
                let fit = if *is_latent { "goes with it only in part" } else { "does not go with it" };
                format!(
                    "{needed_by} needs {name} ({what}), the host's {host} comes without, and the image's own {fit}"
                )
            }
        }
    }

    /// What to do.
    pub fn cure(&self) -> &'static str {
        match self {
            Obstacle::Static { .. } => {
                "link the program dynamically to its MPI, or start it with a launcher that its MPI understands"
            }
            Obstacle::Musl { .. } => {
                "use an image with glibc (Debian, Ubuntu, Rocky, SUSE), or a launcher that the image's MPI understands"
            }
            Obstacle::Libc { .. } => {
                "use an image of a release as old as the host or newer, without changes to its C library"
            }
            Obstacle::NoPart { is_latent: true, .. } => {
                "install these bindings of the host's MPI, or let --mpi=host run it all the same: it fails if what is missing is called"
            }
            Obstacle::NoPart { .. } => {
                "install these bindings of the host's MPI, choose another one with --host-mpi, or build the program without them"
            }
            Obstacle::Bad(Problem::IsaLevel { .. }) => "use an image and an MPI built for this processor",
            Obstacle::Symbol(Unresolved { hard: false, .. }) => {
                "--mpi=host runs it all the same; it fails if that symbol is called"
            }
            Obstacle::Gpus { .. } => {
                "install an MPI that is built for GPUs on the host, or keep the image's: --mpi=bridge; --mpi=host runs it all \
                 the same"
            }
            Obstacle::Plugin { .. } => {
                "install the plugin's libraries on the host, or choose another MPI with --host-mpi"
            }
            _ => {
                "choose another MPI of the host with --host-mpi, or build the image with an MPI of the same release"
            }
        }
    }
}

/// What a binding lacks.
pub(crate) fn of_binding(binding: &Binding, found: &mut Vec<Obstacle>) {
    for v in binding.versions.iter().filter(|v| !v.harmless) {
        found.push(Obstacle::Version {
            file: v.file.clone(),
            version: v.version.clone(),
            needed_by: v.needed_by.clone(),
        });
    }
    for a in &binding.aborts {
        found.push(Obstacle::Unversioned {
            file: a.file.clone(),
            object: a.object.clone(),
            symbol: a.symbol.clone(),
        });
    }
    let (hard, latent): (Vec<_>, Vec<_>) = binding.unresolved.iter().cloned().partition(|u| u.hard);
    found.extend(hard.into_iter().chain(latent).map(Obstacle::Symbol));
    // The loader copies no more than the program has room for; the library then uses more than there is.
    found.extend(binding.resized.iter().filter(|r| r.library > r.program).map(|r| Obstacle::Resized {
        symbol: r.symbol.clone(),
        program: r.program,
        library: r.library,
        object: r.object.clone(),
    }));
}

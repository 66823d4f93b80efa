//! What each test image consists of: tables, and a key that changes when they do.

use anyhow::{Context, Result, bail};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// To be raised when the way images are built changes; it is part of every key.
const VERSION: u32 = 4;

/// A Debian release.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Suite {
    /// Its code name.
    pub name: &'static str,
    /// Whether /bin, /lib and so on are links into /usr.
    pub merged_usr: bool,
    /// The package with Open MPI's libraries.
    openmpi: &'static str,
}

static BULLSEYE: Suite = Suite { name: "bullseye", merged_usr: false, openmpi: "libopenmpi3" };
static BOOKWORM: Suite = Suite { name: "bookworm", merged_usr: true, openmpi: "libopenmpi3" };
static TRIXIE: Suite = Suite { name: "trixie", merged_usr: true, openmpi: "libopenmpi40" };

/// An MPI implementation that Debian has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mpi {
    /// Open MPI
    OpenMpi,
    /// MPICH
    Mpich,
}

impl Mpi {
    /// As Debian names it in `mpicc.NAME` and `mpirun.NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "openmpi",
            Self::Mpich => "mpich",
        }
    }
}

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// An MPI's run-time libraries, a shell, the usual small tools, and the examples.
    Mpi(Mpi),
    /// The same with Open MPI, and Python with mpi4py in a virtual environment.
    Python,
    /// The C library and two programs that need no more. No shell.
    Libc,
}

/// One image.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// Its name under target/images.
    pub name: &'static str,
    /// The release its packages come from.
    pub suite: &'static Suite,
    /// What is in it.
    pub content: Content,
}

static RECIPES: [Recipe; 8] = [
    Recipe { name: "bullseye-openmpi", suite: &BULLSEYE, content: Content::Mpi(Mpi::OpenMpi) },
    Recipe { name: "bullseye-mpich", suite: &BULLSEYE, content: Content::Mpi(Mpi::Mpich) },
    Recipe { name: "bookworm-openmpi", suite: &BOOKWORM, content: Content::Mpi(Mpi::OpenMpi) },
    Recipe { name: "bookworm-mpich", suite: &BOOKWORM, content: Content::Mpi(Mpi::Mpich) },
    Recipe { name: "trixie-openmpi", suite: &TRIXIE, content: Content::Mpi(Mpi::OpenMpi) },
    Recipe { name: "trixie-mpich", suite: &TRIXIE, content: Content::Mpi(Mpi::Mpich) },
    Recipe { name: "bookworm-python", suite: &BOOKWORM, content: Content::Python },
    Recipe { name: "libc", suite: &BOOKWORM, content: Content::Libc },
];

/// The image that `cargo xtask demo` runs: another name for the one whose MPI is the host's.
pub const DEMO: &str = "demo";

/// All names that `cargo xtask images` knows.
pub fn names() -> Vec<&'static str> {
    RECIPES.iter().map(|recipe| recipe.name).chain([DEMO]).collect()
}

/// The recipe of an image; `host` is the MPI that the host's mpirun belongs to.
pub fn named(name: &str, host: Mpi) -> Result<&'static Recipe> {
    let found = RECIPES.iter().find(|recipe| match name {
        DEMO => recipe.suite == &BOOKWORM && recipe.content == Content::Mpi(host),
        _ => recipe.name == name,
    });
    match found {
        Some(recipe) => Ok(recipe),
        None => bail!("no image is called '{name}'; there are {}", names().join(", ")),
    }
}

impl Recipe {
    /// The packages asked for; what they depend on comes along.
    pub fn packages(&self) -> Vec<&'static str> {
        let mpi = match self.content {
            Content::Mpi(mpi) => mpi,
            Content::Python => Mpi::OpenMpi,
            Content::Libc => return vec!["libc6"],
        };
        // As small as an image can be in which a user's scripts still run.
        let mut packages = vec!["base-files", "base-passwd", "libc-bin", "bash", "coreutils", "dash"];
        packages.extend(["grep", "procps", "sed", "libgfortran5", "libstdc++6"]);
        match mpi {
            // openmpi-bin: its error messages' texts and Debian's parameters, without which it prefers
            // libfabric's TCP to shared memory.
            Mpi::OpenMpi => packages.extend([self.suite.openmpi, "openmpi-bin"]),
            Mpi::Mpich => packages.push("libmpich12"),
        }
        if self.content == Content::Python {
            packages.push("python3");
        }
        packages.extend(self.suite.placeholders());
        packages
    }
}

/// mpi4py's wheel, and the Python that bookworm has.
pub const MPI4PY: (&str, &str) = ("4.1.2", "3.11");

impl Suite {
    /// The packages with which the examples are compiled for either MPI.
    pub fn toolchain(&self) -> Vec<&'static str> {
        let mut packages = vec!["bash", "coreutils", "dash", "g++", "gcc", "gfortran", "libc6-dev", "sed"];
        packages.extend(["grep", "libmpich-dev", "libopenmpi-dev", "openmpi-bin", "mpich"]);
        packages.extend(self.placeholders());
        packages
    }

    /// Satisfies a dependency that would otherwise bring in usrmerge and with it all of Perl.
    fn placeholders(&self) -> Option<&'static str> {
        self.merged_usr.then_some("usr-is-merged")
    }
}

/// The example solvers, with their sources' text.
#[derive(Hash)]
pub struct Examples {
    /// File name and text, sorted by name.
    pub sources: Vec<(String, String)>,
}

impl Examples {
    /// Reads the sources in `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut sources = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "c" || ending == "cc" || ending == "f90") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let text = fs::read_to_string(&path);
                sources.push((name, text.with_context(|| format!("cannot read {}", path.display()))?));
            }
        }
        sources.sort();
        Ok(Self { sources })
    }
}

/// A short text that differs when any of `parts` does. Not stable over releases of Rust, which costs
/// one rebuild of the images then.
pub fn key(parts: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    (VERSION, MPI4PY, std::env::consts::ARCH, parts).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_follows_the_mpi_of_the_host() {
        assert_eq!(named(DEMO, Mpi::OpenMpi).unwrap().name, "bookworm-openmpi");
        assert_eq!(named(DEMO, Mpi::Mpich).unwrap().name, "bookworm-mpich");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = named("sid-openmpi", Mpi::OpenMpi).unwrap_err().to_string();
        assert!(error.contains("'sid-openmpi'") && error.contains("trixie-mpich"), "{error}");
    }

    #[test]
    fn the_key_follows_packages_and_sources() {
        let recipe = named("bookworm-mpich", Mpi::Mpich).unwrap();
        let sources = |text: &str| Examples { sources: vec![("a.c".into(), text.into())] };
        assert_eq!(key((recipe, sources("x"))), key((recipe, sources("x"))));
        assert_ne!(key((recipe, sources("x"))), key((recipe, sources("y"))));
        assert_ne!(key(recipe.packages()), key(recipe.suite.toolchain()));
    }
}

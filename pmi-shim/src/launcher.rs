//! Which launcher started this rank, what PMI it offers, and the rank's place in the job: from the
//! environment alone.
//!
//! Sources: observed with Open MPI 4.1 – 5.0, PRRTE 3, hydra 3.4 – 5.0 and Slurm 22.05; hydra's
//! pm/hydra/proxy/pmip_cb.c, orte/mca/schizo/ompi, prte's schizo, slurm's mpi/pmi2 and mpi/pmix plugins.

use serde::Serialize;

/// Who started the rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Launcher {
    /// Open MPI 4's mpirun (orted).
    OpenMpi4,
    /// Open MPI 5's mpirun, or prterun.
    Prrte,
    /// MPICH's mpiexec, Intel MPI's, or another of that protocol.
    Hydra,
    /// Slurm's srun.
    Slurm,
    /// Flux.
    Flux,
    /// Something else that offers PMIx.
    OtherPmix,
    /// This program itself.
    Own,
}

impl Launcher {
    /// The name people use.
    pub fn name(self) -> &'static str {
        match self {
            Launcher::OpenMpi4 => "Open MPI 4's mpirun",
            Launcher::Prrte => "PRRTE (Open MPI 5's mpirun, prterun)",
            Launcher::Hydra => "hydra (MPICH's mpiexec)",
            Launcher::Slurm => "Slurm's srun",
            Launcher::Flux => "Flux",
            Launcher::OtherPmix => "a PMIx launcher",
            Launcher::Own => "hpc-launch",
        }
    }
}

/// The PMI that a launcher offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Offer {
    /// PMI-1 and PMI-2 over an inherited descriptor or a port.
    Simple,
    /// PMIx.
    Pmix,
    /// None: each rank would be alone.
    Nothing,
    /// Whatever the program's MPI speaks: we are the launcher.
    Any,
}

impl Rank {
    /// Whether all ranks of the job are on this node, as far as the launcher said.
    pub fn is_alone_on_node(&self) -> bool {
        self.size.is_some() && self.size == self.local_size
    }
}

impl Offer {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Offer::Simple => "PMI-1/PMI-2",
            Offer::Pmix => "PMIx",
            Offer::Nothing => "no PMI",
            Offer::Any => "PMI-1, PMI-2 and PMIx",
        }
    }
}

/// A rank's place, as its launcher told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rank {
    /// Who told it.
    pub launcher: Launcher,
    /// What PMI it offers.
    pub offers: Offer,
    /// The launcher's own name for the job step, where it has one on the wire: PMIx namespace or
    /// Slurm's job and step. hydra has none; its proxy is one per node and job.
    pub step: Option<String>,
    /// Rank in the job.
    pub rank: Option<u32>,
    /// Ranks in the job.
    pub size: Option<u32>,
    /// Rank among those of this node.
    pub local_rank: Option<u32>,
    /// Ranks of this node.
    pub local_size: Option<u32>,
    /// Variables that together are this rank's own: a process that has them too with the same values
    /// stands between the launcher and us.
    pub identity: Vec<(String, String)>,
}

/// Reads the rank's place; `None` without a launcher.
///
/// Where launchers are nested the innermost counts: `mpirun` inside `srun` leaves Slurm's variables
/// in place, so Slurm is asked last, and a Slurm PMIx namespace yields to a hydra descriptor.
pub fn detect(get: impl Fn(&str) -> Option<String>) -> Option<Rank> {
    let has = |name: &str| get(name).is_some();
    let number = |names: &[&str]| names.iter().find_map(|n| get(n)?.parse::<u32>().ok());
    let identity = |names: &[&str]| -> Vec<(String, String)> {
        names.iter().filter_map(|n| Some(((*n).to_owned(), get(n)?))).collect()
    };
    let slurm_step = || Some(format!("{}.{}", get("SLURM_JOB_ID")?, get("SLURM_STEP_ID")?));
    let simple = has("PMI_FD") || has("PMI_PORT");
    let pmix = get("PMIX_NAMESPACE").filter(|_| has("PMIX_RANK"));
    let of_slurm = |nspace: &String| nspace.starts_with("slurm.pmix.");

    if let Some(nspace) = pmix.clone().filter(|n| !(simple && of_slurm(n))) {
        let launcher = if has("PRTE_LAUNCHED") {
            Launcher::Prrte
        } else if of_slurm(&nspace) {
            Launcher::Slurm
        } else if has("OMPI_MCA_orte_local_daemon_uri") || has("OMPI_MCA_orte_hnp_uri") {
            Launcher::OpenMpi4
        } else if has("FLUX_JOB_ID") {
            Launcher::Flux
        } else {
            Launcher::OtherPmix
        };
        let slurm = launcher == Launcher::Slurm;
        let slurm_number = |name: &str| if slurm { number(&[name]) } else { None };
        return Some(Rank {
            launcher,
            offers: Offer::Pmix,
            step: Some(nspace),
            rank: number(&["PMIX_RANK"]),
            size: number(&["OMPI_COMM_WORLD_SIZE"]).or_else(|| slurm_number("SLURM_STEP_NUM_TASKS")),
            local_rank: number(&["OMPI_COMM_WORLD_LOCAL_RANK"]).or_else(|| slurm_number("SLURM_LOCALID")),
            local_size: number(&["OMPI_COMM_WORLD_LOCAL_SIZE"])
                .or_else(|| slurm.then(|| slurm_local_size(&get)).flatten()),
            identity: identity(&["PMIX_NAMESPACE", "PMIX_RANK"]),
        });
    }
    if simple {
        let slurm = has("PMI_JOBID") && has("SLURM_STEP_ID");
        let launcher = match () {
            () if slurm => Launcher::Slurm,
            () if has("FLUX_JOB_ID") => Launcher::Flux,
            () => Launcher::Hydra,
        };
        return Some(Rank {
            launcher,
            offers: Offer::Simple,
            step: get("PMI_JOBID").or_else(|| get("FLUX_JOB_ID")),
            rank: number(&["PMI_RANK", "PMI_ID"]),
            size: number(&["PMI_SIZE"]),
            local_rank: number(&["MPI_LOCALRANKID"])
                .or_else(|| slurm.then(|| number(&["SLURM_LOCALID"])).flatten()),
            local_size: number(&["MPI_LOCALNRANKS"])
                .or_else(|| slurm.then(|| slurm_local_size(&get)).flatten()),
            identity: identity(&["PMI_FD", "PMI_PORT", "PMI_RANK", "PMI_ID"]),
        });
    }
    if has("SLURM_STEP_ID") && has("SLURM_PROCID") {
        return Some(Rank {
            launcher: Launcher::Slurm,
            offers: Offer::Nothing,
            step: slurm_step(),
            rank: number(&["SLURM_PROCID"]),
            size: number(&["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]),
            local_rank: number(&["SLURM_LOCALID"]),
            local_size: slurm_local_size(&get),
            identity: identity(&["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID"]),
        });
    }
    None
}

/// Variables of the one family and of the other, by which two launchers can be told apart that are nested.
pub const FAMILIES: [&[&str]; 2] =
    [&["PMIX_", "PRTE_", "OMPI_MCA_orte_", "OMPI_MCA_ess"], &["PMI_", "HYDI_", "HYDRA_", "MPI_LOCAL"]];

/// A launcher inside a rank of another one, of the other family: both, as if the other were not there. (Slurm's
/// variables stay where they are under whatever is started in its job; it yields.)
pub fn nested(get: impl Fn(&str) -> Option<String>) -> Option<[Rank; 2]> {
    let of = |family: &[&str]| {
        let hidden = |name: &str| {
            let other = FAMILIES.iter().filter(|f| **f != family).flat_map(|f| f.iter());
            other.into_iter().any(|beginning| name.starts_with(beginning))
        };
        let rank = detect(|name| if hidden(name) { None } else { get(name) })?;
        (rank.launcher != Launcher::Slurm && rank.offers != Offer::Nothing).then_some(rank)
    };
    let both = [of(FAMILIES[0])?, of(FAMILIES[1])?];
    // Flux offers both itself.
    (both[0].launcher != both[1].launcher).then_some(both)
}

/// This node's share of `SLURM_STEP_TASKS_PER_NODE`, "4(x2),3", by SLURM_NODEID.
fn slurm_local_size(get: &impl Fn(&str) -> Option<String>) -> Option<u32> {
    let mut node: u32 = get("SLURM_NODEID")?.parse().ok()?;
    for part in get("SLURM_STEP_TASKS_PER_NODE")?.split(',') {
        let (tasks, times) = match part.split_once("(x") {
            Some((tasks, times)) => (tasks, times.trim_end_matches(')').parse().ok()?),
            None => (part, 1u32),
        };
        if node < times {
            return tasks.parse().ok();
        }
        node -= times;
    }
    None
}

/// What the launchers set for rank 0 of 2, as far as it tells them apart: for judging a program where no
/// launcher runs. By the name of the launcher and of what it offers.
pub const ASSUMED: &[(&str, &[(&str, &str)])] = &[
    (
        "openmpi",
        &[
            ("PMIX_NAMESPACE", "assumed"),
            ("PMIX_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_MCA_orte_local_daemon_uri", "assumed"),
        ],
    ),
    (
        "prrte",
        &[
            ("PMIX_NAMESPACE", "assumed"),
            ("PMIX_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("PRTE_LAUNCHED", "1"),
        ],
    ),
    ("hydra", &[("PMI_FD", "6"), ("PMI_RANK", "0"), ("PMI_SIZE", "2")]),
    (
        "slurm-pmi2",
        &[
            ("PMI_FD", "6"),
            ("PMI_RANK", "0"),
            ("PMI_SIZE", "2"),
            ("PMI_JOBID", "1.0"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_NODELIST", "assumed"),
        ],
    ),
    (
        "slurm-pmix",
        &[
            ("PMIX_NAMESPACE", "slurm.pmix.1.0"),
            ("PMIX_RANK", "0"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_NODELIST", "assumed"),
        ],
    ),
    (
        "slurm-none",
        &[
            ("SLURM_JOB_ID", "1"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ],
    ),
    ("none", &[]),
];

/// Variables by which launchers are known, by their beginnings.
pub const VARIABLES: &[&str] = &["PMI_", "PMIX_", "OMPI_", "PRTE_", "SLURM_", "FLUX_", "MPI_LOCAL"];

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Option<Rank> {
        detect(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    const ORTED: [(&str, &str); 7] = [
        ("PMIX_NAMESPACE", "2893938689"),
        ("PMIX_RANK", "3"),
        ("OMPI_MCA_orte_local_daemon_uri", "2893938688.0;tcp://127.0.0.1:1"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ("SLURM_STEP_ID", "0"),
    ];

    #[test]
    fn open_mpi_4_also_inside_a_slurm_step() {
        let rank = from(&ORTED).unwrap();
        assert_eq!((rank.launcher, rank.offers), (Launcher::OpenMpi4, Offer::Pmix));
        assert_eq!(
            (rank.rank, rank.size, rank.local_rank, rank.local_size),
            (Some(3), Some(4), Some(1), Some(2))
        );
        assert_eq!(rank.step.as_deref(), Some("2893938689"));
    }

    #[test]
    fn hydra_has_no_step_and_slurm_pmi2_has() {
        let hydra = [
            ("PMI_FD", "6"),
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "2"),
            ("MPI_LOCALNRANKS", "2"),
            ("MPI_LOCALRANKID", "1"),
        ];
        let rank = from(&hydra).unwrap();
        assert_eq!((rank.launcher, rank.offers, rank.step), (Launcher::Hydra, Offer::Simple, None));
        assert_eq!(rank.local_size, Some(2));
        let slurm = [
            ("PMI_FD", "9"),
            ("PMI_JOBID", "7.0"),
            ("PMI_RANK", "5"),
            ("PMI_SIZE", "11"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3"),
        ];
        let rank = from(&slurm).unwrap();
        assert_eq!((rank.launcher, rank.local_size), (Launcher::Slurm, Some(3)));
        assert_eq!(rank.step.as_deref(), Some("7.0"));
    }

    #[test]
    fn srun_without_pmi_offers_nothing_and_a_shell_is_no_rank() {
        let none = [
            ("SLURM_JOB_ID", "7"),
            ("SLURM_STEP_ID", "1"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "4"),
        ];
        let rank = from(&none).unwrap();
        assert_eq!((rank.offers, rank.size), (Offer::Nothing, Some(4)));
        assert_eq!(from(&[("SLURM_JOB_ID", "7"), ("PATH", "/bin")]), None);
    }

    #[test]
    fn two_launchers_are_seen_as_two() {
        let both = [&ORTED[..], &[("PMI_FD", "6"), ("PMI_RANK", "1"), ("PMI_SIZE", "2")]].concat();
        let get = |name: &str| both.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let [pmix, simple] = nested(get).unwrap();
        assert_eq!((pmix.launcher, pmix.rank), (Launcher::OpenMpi4, Some(3)));
        assert_eq!((simple.launcher, simple.rank), (Launcher::Hydra, Some(1)));
        let get = |name: &str| ORTED.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        assert_eq!(nested(get), None);
    }

    #[test]
    fn hydra_inside_a_slurm_pmix_step_is_hydra() {
        let rank = from(&[
            ("PMIX_NAMESPACE", "slurm.pmix.7.0"),
            ("PMIX_RANK", "0"),
            ("PMI_FD", "6"),
            ("PMI_RANK", "0"),
        ]);
        assert_eq!(rank.unwrap().launcher, Launcher::Hydra);
    }

    #[test]
    fn assumed_launchers_are_known_as_what_they_are() {
        let known: Vec<_> =
            ASSUMED.iter().map(|(_, vars)| from(vars).map(|r| (r.launcher, r.offers))).collect();
        assert_eq!(
            known,
            [
                Some((Launcher::OpenMpi4, Offer::Pmix)),
                Some((Launcher::Prrte, Offer::Pmix)),
                Some((Launcher::Hydra, Offer::Simple)),
                Some((Launcher::Slurm, Offer::Simple)),
                Some((Launcher::Slurm, Offer::Pmix)),
                Some((Launcher::Slurm, Offer::Nothing)),
                None,
            ]
        );
        for (name, value) in ASSUMED.iter().flat_map(|(_, vars)| *vars) {
            assert!(VARIABLES.iter().any(|v| name.starts_with(v)), "{name}={value}");
        }
        let sizes = ASSUMED.iter().filter_map(|(_, vars)| from(vars)).map(|r| r.size);
        assert!(sizes.into_iter().all(|size| size == Some(2)));
    }
}

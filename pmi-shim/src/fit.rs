//! Whether an image's own MPI can talk to the launcher that started the rank, by the facts measured
//! with each pair. Where it cannot, each rank would silently become a job of one.

use crate::downlink::{Downlink, Wiring};
use crate::launcher::{Launcher, Offer, Rank};

/// What is known of the image's MPI.
#[derive(Clone, Debug)]
pub struct ImageMpi {
    /// "Open MPI 4.1.4 (/usr/lib/libmpi.so.40)".
    pub described: String,
    /// Speaks PMI-1/PMI-2.
    pub simple: bool,
    /// Speaks PMIx.
    pub pmix: bool,
    /// Major version, if it is Open MPI's.
    pub open_mpi: Option<u32>,
}

/// Why the two do not fit, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Both sides, named.
    pub why: String,
    /// What to do.
    pub cure: String,
}

/// Variables whose presence [`judge`] asks for.
pub const VARIABLES: [&str; 5] =
    ["OMPI_MCA_orte_local_daemon_uri", "SLURM_NODELIST", "SLURM_STEP_ID", "FLUX_JOB_ID", "JSM_JSRUN_PORT"];

/// Judges one pair; `get` reads the rank's environment.
pub fn judge(rank: &Rank, mpi: &ImageMpi, get: impl Fn(&str) -> Option<String>) -> Result<(), Misfit> {
    let speaks = match (mpi.simple, mpi.pmix) {
        (true, true) => "PMI-1 and PMIx",
        (true, false) => "only PMI-1/PMI-2",
        (false, true) => "only PMIx",
        (false, false) => "no PMI that we know",
    };
    let launcher = rank.launcher.name();
    let ranks = rank.size.map_or_else(|| "all ranks".to_owned(), |n| format!("{n} ranks"));
    let why = format!(
        "{launcher} offers {}, the program's MPI, {}, speaks {speaks}: {ranks} would each run alone as rank 0 of 1, or hang",
        rank.offers.name(),
        mpi.described,
    );
    let launch_with = |what: &str| format!("{what}, or use an image whose MPI fits the launcher");
    match rank.offers {
        // It takes srun for its launcher, and does not start without PMIx (orte/mca/schizo/slurm; measured).
        Offer::Nothing if rank.size == Some(1) && mpi.open_mpi.is_some_and(|major| major < 5) => {
            Err(Misfit {
                why: format!(
                    "{launcher} offers no PMI, and {} does not start under it without PMIx",
                    mpi.described
                ),
                cure: launch_with("start it with srun --mpi=pmix"),
            })
        }
        // One rank alone is what was asked for.
        Offer::Nothing if rank.size == Some(1) => Ok(()),
        Offer::Nothing => {
            let option = if mpi.pmix { "srun --mpi=pmix" } else { "srun --mpi=pmi2" };
            Err(Misfit { why, cure: launch_with(&format!("start it with {option}")) })
        }
        Offer::Simple if !mpi.simple => {
            let option = match rank.launcher {
                Launcher::Slurm => "start it with srun --mpi=pmix",
                _ => "start it with Open MPI's mpirun",
            };
            Err(Misfit { why, cure: launch_with(option) })
        }
        Offer::Pmix if !mpi.pmix => {
            let option = match rank.launcher {
                Launcher::Slurm => "start it with srun --mpi=pmi2",
                _ => "start it with MPICH's mpiexec (mpiexec.hydra)",
            };
            Err(Misfit { why, cure: launch_with(option) })
        }
        Offer::Pmix if mpi.open_mpi.is_some_and(|major| major < 5) => open_mpi_4(rank, mpi, &get),
        Offer::Simple | Offer::Pmix | Offer::Any => Ok(()),
    }
}

/// By which way an MPI could be served by us; `asked`: one that somebody insists on. The error says why it cannot.
pub fn wiring(rank: &Rank, mpi: Option<&ImageMpi>, asked: Option<Downlink>) -> Result<Wiring, Misfit> {
    let open_mpi_4 = mpi.is_some_and(|mpi| mpi.open_mpi.is_some_and(|major| major < 5));
    let described = mpi.map_or("the program, which links no MPI", |mpi| mpi.described.as_str());
    let launcher = rank.launcher.name();
    if rank.offers == Offer::Nothing && !rank.is_alone_on_node() {
        return Err(Misfit {
            why: format!(
                "{launcher} offers no PMI, and the ranks are on several nodes: they cannot find each other"
            ),
            cure: "start it with srun --mpi=pmi2 or --mpi=pmix, or all ranks on one node".to_owned(),
        });
    }
    let fitting = match mpi {
        None => Some(Downlink::Descriptor),
        Some(mpi) if mpi.pmix && (mpi.open_mpi.is_some() || !mpi.simple) => Some(Downlink::Pmix),
        Some(mpi) if mpi.simple => Some(Downlink::Descriptor),
        Some(_) => None,
    };
    match asked.or(fitting) {
        Some(downlink) => Ok(Wiring { downlink, open_mpi_4 }),
        None => Err(Misfit {
            why: format!("{described} speaks no PMI that we know: there is nothing to translate"),
            cure: "use an image whose MPI speaks PMI-1, PMI-2 or PMIx (MPICH, Open MPI, Intel MPI, MVAPICH)"
                .to_owned(),
        }),
    }
}

/// Open MPI 4 looks for PMIx only under launchers that it knows by these variables
/// (orte/mca/ess/pmi, opal/mca/pmix; measured: prterun 5.0 with 4.1 gives singletons, exit 0).
fn open_mpi_4(rank: &Rank, mpi: &ImageMpi, get: &impl Fn(&str) -> Option<String>) -> Result<(), Misfit> {
    let has = |name: &str| get(name).is_some();
    let slurm = has("SLURM_NODELIST") && has("SLURM_STEP_ID");
    if rank.launcher != Launcher::Prrte
        && (has("OMPI_MCA_orte_local_daemon_uri") || slurm || has("FLUX_JOB_ID") || has("JSM_JSRUN_PORT"))
    {
        return Ok(());
    }
    Err(Misfit {
        why: format!(
            "{} offers PMIx, but the program's MPI, {}, looks for it only under Open MPI 4's mpirun, Slurm, Flux \
             or jsrun: every rank would run alone as rank 0 of 1",
            rank.launcher.name(),
            mpi.described,
        ),
        cure: "start it with Open MPI 4's mpirun or srun --mpi=pmix, or use an image with Open MPI 5"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(launcher: Launcher, offers: Offer, size: u32) -> Rank {
        Rank {
            launcher,
            offers,
            step: None,
            rank: Some(0),
            size: Some(size),
            local_rank: None,
            local_size: None,
            identity: Vec::new(),
        }
    }

    fn open_mpi(major: u32) -> ImageMpi {
        ImageMpi { described: format!("Open MPI {major}"), simple: false, pmix: true, open_mpi: Some(major) }
    }

    fn mpich() -> ImageMpi {
        ImageMpi { described: "MPICH 4".into(), simple: true, pmix: false, open_mpi: None }
    }

    fn verdict(rank: &Rank, mpi: &ImageMpi, vars: &[&str]) -> Result<(), String> {
        judge(rank, mpi, |n| vars.contains(&n).then(|| "x".to_owned()))
            .map_err(|m| format!("{} | {}", m.why, m.cure))
    }

    #[test]
    fn pairs_that_were_measured() {
        use Launcher::*;
        let orted = ["OMPI_MCA_orte_local_daemon_uri"];
        assert!(verdict(&rank(OpenMpi4, Offer::Pmix, 4), &open_mpi(4), &orted).is_ok());
        assert!(verdict(&rank(OpenMpi4, Offer::Pmix, 4), &open_mpi(5), &orted).is_ok());
        assert!(verdict(&rank(Prrte, Offer::Pmix, 4), &open_mpi(5), &[]).is_ok());
        assert!(verdict(&rank(Hydra, Offer::Simple, 4), &mpich(), &[]).is_ok());
        assert!(
            verdict(&rank(Slurm, Offer::Pmix, 4), &open_mpi(4), &["SLURM_NODELIST", "SLURM_STEP_ID"]).is_ok()
        );
        assert!(verdict(&rank(Slurm, Offer::Nothing, 1), &mpich(), &[]).is_ok());
        assert!(verdict(&rank(Slurm, Offer::Nothing, 1), &open_mpi(5), &[]).is_ok());
        let e = verdict(&rank(Slurm, Offer::Nothing, 1), &open_mpi(4), &[]).unwrap_err();
        assert!(e.contains("does not start under it without PMIx"), "{e}");
    }

    #[test]
    fn misfits_name_both_sides_and_a_cure() {
        use Launcher::*;
        let e = verdict(&rank(Hydra, Offer::Simple, 4), &open_mpi(4), &[]).unwrap_err();
        assert!(
            e.contains("hydra") && e.contains("Open MPI 4") && e.contains("4 ranks") && e.contains("mpirun"),
            "{e}"
        );
        let e = verdict(&rank(OpenMpi4, Offer::Pmix, 4), &mpich(), &[]).unwrap_err();
        assert!(
            e.contains("offers PMIx") && e.contains("speaks only PMI-1") && e.contains("mpiexec.hydra"),
            "{e}"
        );
        let e = verdict(&rank(Prrte, Offer::Pmix, 4), &open_mpi(4), &[]).unwrap_err();
        assert!(e.contains("rank 0 of 1") && e.contains("Open MPI 5"), "{e}");
        let e = verdict(&rank(Slurm, Offer::Nothing, 4), &mpich(), &[]).unwrap_err();
        assert!(e.contains("srun --mpi=pmi2"), "{e}");
    }
}

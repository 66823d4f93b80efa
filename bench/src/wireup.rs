//! `hpc-bench wireup`: how long it takes until the last rank comes out of MPI_Init, by the example `init`: under the
//! MPI's own launcher, bridged under one that speaks another PMI, and without any.

use crate::contender::{BARE, BARE_AGAIN, Contender, HPC_LAUNCH, Setup, measure};
use crate::error::Error;
use crate::machine::Machine;
use crate::mpirun::HostLauncher;
use crate::report::{Budget, Group, Report};
use crate::run::{Failure, Runner};
use crate::{Common, Outcome};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The row of the bridged job.
pub const BRIDGED: &str = "bridged";
/// The row of the job without a launcher.
pub const ALONE: &str = "hpc-launch -n";

/// Options of `hpc-bench wireup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Ranks
    #[arg(short = 'n', default_value_t = 64)]
    ranks: usize,
    /// The program inside the image
    #[arg(long, default_value = "/opt/examples/init")]
    program: String,
    /// The same program, built for the host's MPI
    #[arg(long, value_name = "PROGRAM")]
    bare: PathBuf,
    /// Rounds; every round runs each row once
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// The launcher of the image's MPI
    #[arg(long, value_name = "CMD", default_value = "mpiexec.hydra")]
    mpirun: String,
    /// A launcher that speaks another PMI
    #[arg(long, value_name = "CMD", default_value = "mpirun.openmpi")]
    over: String,
    /// A run that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

impl Args {
    /// The options that all benches share.
    pub fn common(&self) -> &Common {
        &self.common
    }
}

/// The same words bridged under another launcher, and without any.
pub fn bridged(
    over: &str,
    ranks: usize,
    words: &[String],
    setup: &Setup,
    runner: &mut Runner,
) -> Result<[Contender; 2], Error> {
    let other = HostLauncher::find(over, setup, runner)?;
    let under = setup.hpc_launch_with(&["--mpi=bridge"], words).map(|line| other.ranks(ranks, &line));
    let count = ranks.to_string();
    let alone = setup.hpc_launch_with(&["--oversubscribe", "-n", &count], words);
    Ok([Contender { name: BRIDGED.into(), line: under }, Contender { name: ALONE.into(), line: alone }])
}

/// Measures, and compares.
pub fn run(args: &Args) -> Result<Outcome, Error> {
    let bare = args.bare.canonicalize().map_err(|e| {
        Error::new(
            format!("use the bare program {}", args.bare.display()),
            e,
            "build one: mpicc -O2 -o /tmp/init examples/init.c",
        )
    })?;
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = Runner::new(Duration::from_secs(args.timeout))?;
    let launcher = HostLauncher::find(&args.mpirun, &setup, &mut runner)?;
    let mut machine = Machine::survey(&setup, &mut runner, &[launcher.name()]);

    let words = [args.program.clone()];
    let bare = launcher.ranks(args.ranks, &setup.bare(&[bare.display().to_string()]));
    let inside = setup.hpc_launch_with(&["--mpi=image"], &words);
    let inside = inside.map(|line| launcher.ranks(args.ranks, &line));
    let row = |name: &str, line| Contender { name: name.into(), line };
    let mut contenders =
        vec![row(BARE, Ok(bare.clone())), row(BARE_AGAIN, Ok(bare)), row(HPC_LAUNCH, inside)];
    contenders.extend(bridged(&args.over, args.ranks, &words, &setup, &mut runner)?);
    let measured = measure(&contenders, 1, args.runs, |_, line| {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = runner.output(line)?;
        let ended = parse(&text, args.ranks)?;
        Ok(ended.saturating_sub(began).as_secs_f64() * 1e3)
    });
    machine.finish();

    let title = format!("{} ranks, to the end of MPI_Init, {} alternating rounds", args.ranks, args.runs);
    let group = Group::new(title, "ms", &[BARE], &measured);
    let budget = |name| Budget::at_most(format!("{name} against bare"), 1.3, group.ratio(name, BARE));
    let budgets = vec![budget(BRIDGED), budget(ALONE)];
    let settings = BTreeMap::from([
        ("image", setup.image.display().to_string()),
        ("program", args.program.clone()),
        ("ranks", args.ranks.to_string()),
        ("runs", args.runs.to_string()),
        ("mpirun", args.mpirun.clone()),
        ("over", args.over.clone()),
    ]);
    Ok(Outcome::from(Report {
        bench: "wireup",
        machine,
        settings,
        groups: vec![group],
        budgets,
        notes: Vec::new(),
    }))
}

/// When the last rank came out of MPI_Init: since the epoch.
fn parse(text: &str, ranks: usize) -> Result<Duration, Failure> {
    let start = format!("init of {ranks} ranks at ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    let nanoseconds = line.and_then(|n| n.trim().parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| Failure::new("exit 0, but no result", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_job_of_all_ranks_counts() {
        let text = "a warning\ninit of 4 ranks at 1764060000123456789\n";
        assert_eq!(parse(text, 4).unwrap().as_nanos(), 1_764_060_000_123_456_789);
        assert_eq!(parse(text, 1).unwrap_err().status, "exit 0, but no result");
    }
}

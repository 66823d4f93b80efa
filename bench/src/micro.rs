//! `hpc-bench micro`: messages between ranks, bare and inside, as the OSU suite defines them: latency, bandwidth,
//! rates, collectives, and the time in MPI_Init.

use crate::contender::{BARE, BARE_AGAIN, Contender, HPC_LAUNCH, Measured, Setup};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::launcher::HostLauncher;
use crate::peer::{self, Job, Peers};
use crate::programs::{Program, Results, results};
use crate::run::{CommandLine, Failure, Runner};
use crate::session::Session;
use crate::{Common, Rounds};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The image's own MPI, where the launcher's would be put in its place otherwise.
pub const OWN: &str = "hpc-launch, image's MPI";
/// The row of the bridged job.
pub const BRIDGED: &str = "hpc-launch, bridged";
/// The row of the job without a launcher.
pub const ALONE: &str = "hpc-launch -n";

/// Options of `hpc-bench micro`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub peers: peer::Args,
    #[command(flatten)]
    pub rounds: Rounds,
    #[command(flatten)]
    pub job: JobArgs,
    /// Arguments of the program: `pt2pt --sizes 8,65536`, `multi`, `coll`, `init`
    #[arg(last = true, default_values = ["pt2pt"])]
    pub words: Vec<String>,
}

/// What every bench with ranks takes.
#[derive(Debug, Clone, clap::Args)]
pub struct JobArgs {
    /// Ranks
    #[arg(short = 'n', long = "ranks", default_value_t = 2)]
    pub ranks: usize,
    /// The launcher, with options of its own if you like
    #[arg(long, value_name = "CMD", default_value = "mpirun.openmpi")]
    pub mpirun: String,
    /// A launcher that speaks another PMI than the image's MPI: two more rows, bridged under it and under none
    #[arg(long, value_name = "CMD")]
    pub over: Option<String>,
    /// The benchmark program, built for the launcher's MPI [default: as `cargo xtask programs` leaves it]
    #[arg(long, value_name = "PATH")]
    pub program: Option<PathBuf>,
    /// A run that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

/// The launchers of a job, and the rows that they give.
pub struct JobSetup {
    setup: Setup,
    launcher: HostLauncher,
    over: Option<HostLauncher>,
    peers: Peers,
}

impl JobSetup {
    /// Finds the launchers and makes what peers need.
    pub fn find(
        common: &Common,
        job: &JobArgs,
        peers: &peer::Args,
        session: &mut Session,
        runner: &mut Runner,
    ) -> Result<Self, Error> {
        let setup = Setup::new(&common.image, common.launcher_bin.as_deref())?;
        let launcher = HostLauncher::find(&job.mpirun, &setup, runner)?;
        let over = job.over.as_deref().map(|over| HostLauncher::find(over, &setup, runner)).transpose()?;
        let names: Vec<&str> = [&launcher].into_iter().chain(&over).map(HostLauncher::name).collect();
        session.note(&setup, runner, &[peer::PROGRAMS, &names].concat())?;
        let peers = peers.prepare(&setup, runner)?;
        Ok(JobSetup { setup, launcher, over, peers })
    }

    /// The launcher under which bare metal runs.
    pub fn launcher(&self) -> &HostLauncher {
        &self.launcher
    }

    /// Every way of running `words` as so many ranks.
    pub fn rows(
        &self,
        ranks: usize,
        words: &[String],
        session: &mut Session,
        runner: &mut Runner,
    ) -> Vec<Contender> {
        self.rows_of(ranks, words, words, session, runner)
    }

    /// The same of a program that is another one outside of the image.
    pub fn rows_of(
        &self,
        ranks: usize,
        bare: &[String],
        words: &[String],
        session: &mut Session,
        runner: &mut Runner,
    ) -> Vec<Contender> {
        let setup = &self.setup;
        let bare = setup.bare(bare);
        let mut rows = vec![Contender::new(BARE, Ok(bare.clone())), Contender::new(BARE_AGAIN, Ok(bare))];
        rows.push(Contender::new(HPC_LAUNCH, setup.hpc_launch(words)));
        rows.push(Contender::new(OWN, self.allowed("--mpi=image", words, runner)));
        rows.extend(self.peers.rows(words, Job::Ranks(ranks), setup));
        for row in &mut rows {
            session.plan(&row.name, &row.line, setup, runner);
            row.line = row.line.clone().map(|line| self.launcher.ranks(ranks, &line));
        }
        if let Some(over) = &self.over {
            let bridged = setup.hpc_launch_with(&["--mpi=bridge"], words);
            rows.push(Contender::new(BRIDGED, bridged.map(|line| over.ranks(ranks, &line))));
            let count = ranks.to_string();
            let alone = setup.hpc_launch_with(&["--oversubscribe", "-n", &count], words);
            rows.push(Contender::new(ALONE, alone));
        }
        rows
    }

    /// A way that the verdict allows, or what it says instead.
    fn allowed(&self, option: &str, words: &[String], runner: &mut Runner) -> Result<CommandLine, String> {
        let setup = &self.setup;
        let line = setup.hpc_launch_with(&[option], words)?;
        let launcher = setup.launcher.as_ref().map_err(Clone::clone)?;
        let family = format!("--launcher={}", self.launcher.family());
        let args = [&["check".into(), family.into()], &line.args[..]].concat();
        match runner.said(&setup.line(launcher, &args)) {
            Ok((_, Ok(_))) => Ok(line),
            Ok((text, Err(failure))) => {
                Err(format!("hpc-launch check refuses it: {failure}\n{}", text.trim()))
            }
            Err(failure) => Err(format!("hpc-launch check cannot be run: {failure}")),
        }
    }
}

/// Measures, and compares.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let mut runner = session.runner(Duration::from_secs(args.job.timeout))?;
    let job = JobSetup::find(&args.common, &args.job, &args.peers, session, &mut runner)?;
    let family = job.launcher().family();
    let program = Program::stage(args.job.program.as_deref(), family)?;
    let ranks = args.job.ranks;
    // A launcher whose ranks do not find each other starts as many jobs of one.
    let expected = ["--expect-ranks".to_owned(), ranks.to_string()];
    let words = program.words(&[&args.words[..], &expected].concat());
    let contenders = job.rows(ranks, &words, session, &mut runner);
    let watch = session.watch();
    let what = args.words.join(" ");
    let key = format!("micro/{family}/{ranks}/{what}");
    let measured = session.measure(&key, &contenders, &args.rounds.effort(1, 9), |_, line| {
        let (text, ended) = runner.said(line)?;
        results(&text, ended)
    });
    let noise = watch.finish();
    let groups = groups(&measured, family, ranks);
    let budgets = budgets(&groups, family, args.job.over.is_some());
    let settings = BTreeMap::from([
        ("image".into(), args.common.image.display().to_string()),
        ("program".into(), what.clone()),
        ("ranks".into(), ranks.to_string()),
        ("mpirun".into(), args.job.mpirun.clone()),
    ]);
    let title = format!("{what}, {ranks} ranks under {}", args.job.mpirun);
    Ok(Report { bench: "micro".into(), title, settings, noise, groups, budgets, notes: Vec::new() })
}

/// One table per benchmark and size, in the order in which the program has them.
fn groups(measured: &[Measured<Results>], family: &str, ranks: usize) -> Vec<Group> {
    let mut kinds: Vec<(String, u64, String)> = Vec::new();
    for value in
        measured.iter().flat_map(|row| row.outcomes.iter().flatten().flatten()).flat_map(|r| &r.values)
    {
        let kind = (value.benchmark.clone(), value.size, value.unit.clone());
        if !is_detail(&value.benchmark) && !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    if kinds.is_empty() {
        // Nothing was measured, and the failures must still be told.
        let nothing: Vec<Measured<f64>> = measured.iter().map(|row| row.map(|_| f64::NAN)).collect();
        return vec![Group::new(
            format!("micro/{family}/{ranks}"),
            "messages between ranks",
            "us",
            &[BARE],
            &nothing,
        )];
    }
    let few = kinds.len() <= 8;
    let group = |(benchmark, size, unit): &(String, u64, String)| {
        let key = format!("micro/{family}/{ranks}/{benchmark}/{size}");
        let sized = if *size > 0 { format!("{benchmark}, {size} B") } else { benchmark.clone() };
        let title = format!("{sized}, {ranks} ranks, {}", mpi(family));
        let written = if unit == "us" { "µs" } else { unit };
        let group = Group::new(key, title, written, &[BARE], &pick(measured, benchmark, *size));
        let group = if unit.ends_with("/s") { group.higher_is_better() } else { group };
        let group = if few || is_telling(benchmark, *size) { group } else { group.only_in_json() };
        match size {
            0 => group,
            size => group.at(format!("{benchmark}, {ranks} ranks, {}", mpi(family)), *size as f64, "B"),
        }
    };
    kinds.iter().map(group).collect()
}

/// The fastest and the slowest rank of a collective: the samples have them, a reader has enough of the mean.
fn is_detail(benchmark: &str) -> bool {
    let collective = !benchmark.starts_with("init");
    collective && (benchmark.ends_with(".min") || benchmark.ends_with(".max"))
}

/// Whose launcher it is.
pub fn mpi(family: &str) -> &str {
    match family {
        "openmpi" => "Open MPI",
        "hydra" => "MPICH",
        other => other,
    }
}

/// At which sizes people know a benchmark: the others fill the terminal.
fn is_telling(benchmark: &str, size: u64) -> bool {
    match benchmark {
        "latency" => size == 8,
        "bw" => [64 << 10, 1 << 20, 4 << 20].contains(&size),
        "bibw" => size == 1 << 20,
        _ => [0, 8, 64 << 10].contains(&size),
    }
}

/// One number out of each run.
fn pick(measured: &[Measured<Results>], benchmark: &str, size: u64) -> Vec<Measured<f64>> {
    let pick = |results: &Results| {
        let found = results.values.iter().find(|value| value.benchmark == benchmark && value.size == size);
        let why =
            || results.ended.clone().unwrap_or_else(|| Failure::new(format!("no result for {size} B"), ""));
        found.map(|value| value.value).ok_or_else(why)
    };
    measured.iter().map(|row| row.and_then(pick)).collect()
}

/// What is promised of the host's MPI in the image's place.
fn budgets(groups: &[Group], family: &str, bridged: bool) -> Vec<Budget> {
    const PROMISED: [(&str, u64); 4] = [("latency", 8), ("bw", 64 << 10), ("bw", 1 << 20), ("bw", 4 << 20)];
    let mut budgets = Vec::new();
    for (benchmark, size) in PROMISED {
        let end = format!("/{benchmark}/{size}");
        for group in groups.iter().filter(|group| group.key.ends_with(&end)) {
            let rows: &[&str] = if bridged { &[HPC_LAUNCH, BRIDGED, ALONE] } else { &[HPC_LAUNCH] };
            for row in rows {
                let what = format!("{benchmark} at {size} B, {}, {row}, against bare", mpi(family));
                let ratio = group.ratio(row, BARE);
                budgets.push(match benchmark {
                    "latency" => Budget::at_most(what, 1.02, ratio),
                    _ => Budget::at_least(what, 0.98, ratio),
                });
            }
        }
    }
    budgets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::Value;

    fn values(sizes: &[u64]) -> Vec<Value> {
        let value = |&size| Value { benchmark: "bw".into(), size, value: 100.0, unit: "MB/s".into() };
        sizes.iter().map(value).collect()
    }

    #[test]
    fn a_run_that_hung_is_a_result_where_it_came_and_a_failure_beyond() {
        let hung = Failure::timed_out(Duration::from_secs(9), "said");
        let whole = Results { values: values(&[8, 4 << 20]), ended: None };
        let part = Results { values: values(&[8]), ended: Some(hung.clone()) };
        let row = |name: &str, results: Results| Measured {
            name: name.into(),
            command: String::new(),
            outcomes: Ok(vec![Ok(results)]),
        };
        let groups = groups(&[row(BARE, whole), row("ch-run", part)], "openmpi", 2);
        assert_eq!(
            groups.iter().map(|g| g.key.as_str()).collect::<Vec<_>>(),
            ["micro/openmpi/2/bw/8", "micro/openmpi/2/bw/4194304"]
        );
        assert_eq!(groups[0].rows[1].samples, [Some(100.0)]);
        assert_eq!(groups[1].rows[1].samples, [None]);
        assert_eq!(groups[1].rows[1].failures[0].first, hung);
        assert_eq!(groups[1].point.as_ref().unwrap().x, 4194304.0);
    }

    #[test]
    fn nothing_measured_is_still_a_table() {
        let rows = [Measured {
            name: BARE.into(),
            command: String::new(),
            outcomes: Ok(vec![Err(Failure::new("exit 1", ""))]),
        }];
        let groups = groups(&rows, "hydra", 2);
        assert_eq!((groups.len(), groups[0].rows[0].failures.len()), (1, 1));
    }
}

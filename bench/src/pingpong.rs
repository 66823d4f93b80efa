//! `hpc-bench pingpong`: messages between two ranks, bare and inside, by the example of that name.

use crate::contender::{BARE, BARE_AGAIN, Contender, HPC_LAUNCH, Measured, Setup, measure};
use crate::error::Error;
use crate::machine::Machine;
use crate::mpirun::HostLauncher;
use crate::report::{Budget, Group, Report};
use crate::run::{Failure, Runner};
use crate::wireup::{ALONE, BRIDGED, bridged};
use crate::{Common, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// Where the bandwidth is promised.
const LARGE: u64 = 4 << 20;
const PROMISE: &str = "4 MiB bandwidth against bare";
/// Below it one speaks of a message's latency.
const BANDWIDTH_FROM: u64 = 16 << 10;

/// Options of `hpc-bench pingpong`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// The program inside the image
    #[arg(long, default_value = "/opt/examples/pingpong")]
    program: String,
    /// The same program, built for the host's MPI
    #[arg(long, value_name = "PROGRAM")]
    bare: PathBuf,
    /// Rounds; every round runs each row once
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// The launcher, with options of its own if you like
    #[arg(long, value_name = "CMD", default_value = "mpirun.openmpi")]
    mpirun: String,
    /// A launcher that speaks another PMI than the image's MPI: two more rows, bridged under it and under none
    #[arg(long, value_name = "CMD")]
    over: Option<String>,
    /// Round trips at 8 B, fewer at the larger sizes
    #[arg(long, default_value_t = 1000)]
    repeats: usize,
    /// A run that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

impl Args {
    /// The options that all benches share.
    pub fn common(&self) -> &Common {
        &self.common
    }
}

/// One size, as the program printed it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    size: u64,
    microseconds: f64,
    megabytes: f64,
}

/// Measures, and compares.
pub fn run(args: &Args) -> Result<Outcome, Error> {
    let bare = args.bare.canonicalize().map_err(|e| {
        Error::new(
            format!("use the bare program {}", args.bare.display()),
            e,
            "build one: mpicc -O2 -o /tmp/pingpong examples/pingpong.c",
        )
    })?;
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = Runner::new(Duration::from_secs(args.timeout))?;
    let launcher = HostLauncher::find(&args.mpirun, &setup, &mut runner)?;
    let mut machine = Machine::survey(&setup, &mut runner, &[launcher.name()]);

    let repeats = args.repeats.to_string();
    let bare = setup.bare(&[bare.display().to_string(), repeats.clone()]);
    let inside = setup.hpc_launch(&[args.program.clone(), repeats]);
    let row = |name: &str, line: Result<_, String>| Contender {
        name: name.into(),
        line: line.map(|line| launcher.ranks(2, &line)),
    };
    let mut contenders =
        vec![row(BARE, Ok(bare.clone())), row(BARE_AGAIN, Ok(bare)), row(HPC_LAUNCH, inside)];
    if let Some(over) = &args.over {
        let words = [args.program.clone(), args.repeats.to_string()];
        contenders.extend(bridged(over, 2, &words, &setup, &mut runner)?);
    }
    let measured = measure(&contenders, 1, args.runs, |_, line| parse(&runner.output(line)?));
    machine.finish();

    let mut groups = Vec::new();
    let mut budgets = Vec::new();
    for size in sizes(&measured) {
        let latency = by_size(&measured, size, |line| line.microseconds);
        let latency = Group::new(format!("{size} B, latency"), "µs", &[BARE], &latency);
        let bandwidth = by_size(&measured, size, |line| line.megabytes);
        let bandwidth = Group::new(format!("{size} B, bandwidth"), "MB/s", &[BARE], &bandwidth);
        if size == LARGE {
            budgets.push(Budget::at_least(PROMISE, 0.95, bandwidth.ratio(HPC_LAUNCH, BARE)));
            if args.over.is_some() {
                for name in [BRIDGED, ALONE] {
                    let what = format!("{PROMISE}, {name}");
                    budgets.push(Budget::at_least(what, 0.98, bandwidth.ratio(name, BARE)));
                }
            }
        }
        // Each is the other's inverse: the terminal shows the one that people know the size by.
        if size < BANDWIDTH_FROM {
            groups.extend([latency, bandwidth.only_in_json()]);
        } else {
            groups.extend([latency.only_in_json(), bandwidth]);
        }
    }
    if groups.is_empty() {
        // Nothing was measured, and the failures must still be told.
        groups.push(Group::new("messages between two ranks", "µs", &[BARE], &by_size(&measured, 0, |_| 0.0)));
    }
    if budgets.is_empty() {
        budgets.push(Budget::at_least(PROMISE, 0.95, None));
    }
    let settings = BTreeMap::from([
        ("image", setup.image.display().to_string()),
        ("program", args.program.clone()),
        ("runs", args.runs.to_string()),
        ("repeats", args.repeats.to_string()),
        ("mpirun", args.mpirun.clone()),
    ]);
    Ok(Outcome::from(Report { bench: "pingpong", machine, settings, groups, budgets, notes: Vec::new() }))
}

/// Lines `SIZE B  LAT us  BW MB/s`; others are left out, but wrong contents are a failure even where the
/// program's exit status got lost.
fn parse(text: &str) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "B", "WRONG", ..] => return Err(Failure::new("wrong contents", line)),
            [size, "B", latency, "us", bandwidth, "MB/s"] => {
                let (Ok(size), Ok(microseconds), Ok(megabytes)) =
                    (size.parse(), latency.parse(), bandwidth.parse())
                else {
                    return Err(Failure::new("a line that cannot be read", line));
                };
                lines.push(Line { size, microseconds, megabytes });
            }
            _ => {}
        }
    }
    if lines.is_empty() {
        // N singletons exit with 0 and measure nothing.
        return Err(Failure::new("exit 0, but no result", text.trim()));
    }
    Ok(lines)
}

fn sizes(measured: &[Measured<Vec<Line>>]) -> BTreeSet<u64> {
    let lines = measured.iter().flat_map(|row| row.outcomes.iter().flatten().flatten().flatten());
    lines.map(|line| line.size).collect()
}

/// One number of one size out of each run.
fn by_size(measured: &[Measured<Vec<Line>>], size: u64, number: impl Fn(&Line) -> f64) -> Vec<Measured<f64>> {
    let pick = |outcome: &Result<Vec<Line>, Failure>| {
        let lines = outcome.as_ref().map_err(Clone::clone)?;
        let line = lines.iter().find(|line| line.size == size);
        line.map(&number).ok_or_else(|| Failure::new(format!("no result for {size} B"), ""))
    };
    measured
        .iter()
        .map(|row| Measured {
            name: row.name.clone(),
            command: row.command.clone(),
            outcomes: row.outcomes.as_ref().map(|all| all.iter().map(pick).collect()).map_err(Clone::clone),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_lines_among_a_launchers_noise() {
        let text = "some warning\n8 B  0.19 us  42.1 MB/s\n4194304 B  451.20 us  9295.9 MB/s\n";
        let lines = parse(text).unwrap();
        assert_eq!(lines[0], Line { size: 8, microseconds: 0.19, megabytes: 42.1 });
        assert_eq!((lines.len(), lines[1].size), (2, LARGE));
    }

    #[test]
    fn wrong_contents_and_empty_results_are_failures() {
        let wrong = parse("8 B  0.19 us  42.1 MB/s\n65536 B  WRONG contents\n").unwrap_err();
        assert_eq!(wrong, Failure::new("wrong contents", "65536 B  WRONG contents"));
        let single = "pingpong: one rank has nobody to play with, nothing measured";
        assert_eq!(parse(single).unwrap_err(), Failure::new("exit 0, but no result", single));
        assert_eq!(parse("8 B  fast us  1 MB/s").unwrap_err().status, "a line that cannot be read");
    }

    #[test]
    fn a_failed_run_stays_in_every_size() {
        let line = Line { size: 8, microseconds: 1.0, megabytes: 8.0 };
        let measured = [Measured {
            name: "bare".into(),
            command: String::new(),
            outcomes: Ok(vec![Ok(vec![line]), Err(Failure::new("exit 1", ""))]),
        }];
        let rows = by_size(&measured, 8, |line| line.megabytes);
        assert!(matches!(rows[0].outcomes.as_ref().unwrap()[..], [Ok(8.0), Err(_)]));
        assert_eq!(sizes(&measured), BTreeSet::from([8]));
    }
}

//! `hpc-bench app`: any command, by its figure of merit or its time; and the conjugate gradient of our own.

use crate::contender::{BARE, HPC_LAUNCH};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::micro::{JobArgs, JobSetup, mpi};
use crate::peer;
use crate::programs::{Program, results};
use crate::run::Failure;
use crate::session::Session;
use crate::{Common, Rounds};
use regex_lite::Regex;
use std::collections::BTreeMap;
use std::time::Duration;

/// Options of `hpc-bench app`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    peers: peer::Args,
    #[command(flatten)]
    rounds: Rounds,
    #[command(flatten)]
    job: JobArgs,
    /// The figure of merit in what the command prints: a regular expression whose first group is the number. Of
    /// several matches the last counts. Without it the wall time is taken
    #[arg(long, value_name = "REGEX")]
    figure: Option<Regex>,
    /// Of the figure
    #[arg(long, default_value = "", requires = "figure")]
    unit: String,
    /// A larger figure is a better one
    #[arg(long, requires = "figure")]
    higher: bool,
    /// The same command outside of the image, if it is another one there, as one word
    #[arg(long, value_name = "COMMAND")]
    bare: Option<String>,
    /// The command, as it is called inside
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

/// Measures, and compares.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let mut runner = session.runner(Duration::from_secs(args.job.timeout))?;
    let job = JobSetup::find(&args.common, &args.job, &args.peers, session, &mut runner)?;
    let ranks = args.job.ranks;
    let bare: Vec<String> = match &args.bare {
        Some(line) => line.split_whitespace().map(str::to_owned).collect(),
        None => args.words.clone(),
    };
    if bare.is_empty() {
        return Err(Error::new("run the command bare", "--bare is empty", "give it a command"));
    }
    let contenders = job.rows_of(ranks, &bare, &args.words, session, &mut runner);
    let watch = session.watch();
    let command = args.words.join(" ");
    let key = format!("app/{}/{ranks}/{command}", job.launcher().family());
    let measured =
        session.measure(&key, &contenders, &args.rounds.effort(1, 9), |_, line| match &args.figure {
            None => runner.time(line).map(|time| time.as_secs_f64()),
            Some(pattern) => figure(&runner.output(line)?, pattern),
        });
    let noise = watch.finish();
    let (unit, what) = match &args.figure {
        Some(pattern) => (args.unit.as_str(), pattern.to_string()),
        None => ("s", "wall time".into()),
    };
    let group = Group::new(key, format!("{command}, {ranks} ranks: {what}"), unit, &[BARE], &measured);
    let group = if args.higher { group.higher_is_better() } else { group };
    let settings = BTreeMap::from([
        ("image".into(), args.common.image.display().to_string()),
        ("command".into(), command.clone()),
        ("ranks".into(), ranks.to_string()),
        ("mpirun".into(), args.job.mpirun.clone()),
    ]);
    Ok(Report {
        bench: "app".into(),
        title: command,
        settings,
        noise,
        groups: vec![group],
        budgets: Vec::new(),
        notes: Vec::new(),
    })
}

/// The last match's first group, or all of it where the pattern has none.
fn figure(text: &str, pattern: &Regex) -> Result<f64, Failure> {
    let Some(found) = pattern.captures_iter(text).last() else {
        let why = format!("exit 0, but nothing in its output matches {pattern}");
        return Err(Failure::new(why, last_lines(text)));
    };
    let word = found.get(1).or(found.get(0)).map_or("", |found| found.as_str()).trim();
    match word.replace(',', "").parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(Failure::new(format!("{word:?}, which {pattern} found, is no number"), last_lines(text))),
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// Options of `hpc-bench cg`.
#[derive(Debug, clap::Args)]
pub struct CgArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub peers: peer::Args,
    #[command(flatten)]
    pub rounds: Rounds,
    #[command(flatten)]
    pub job: JobArgs,
    /// Points of each rank (weak scaling)
    #[arg(long, value_name = "NXxNYxNZ", default_value = "32x32x32")]
    pub local: String,
    /// Points of all ranks together (strong scaling)
    #[arg(long, value_name = "NXxNYxNZ", default_value = "48x48x48")]
    pub global: String,
    /// Ranks, of one job after the other
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    pub scale: Vec<usize>,
}

/// Conjugate gradient on a 27-point stencil, with its check of the solution: weak and strong scaling.
pub fn cg(args: &CgArgs, session: &mut Session) -> Result<Report, Error> {
    let mut runner = session.runner(Duration::from_secs(args.job.timeout))?;
    let job = JobSetup::find(&args.common, &args.job, &args.peers, session, &mut runner)?;
    let family = job.launcher().family();
    let program = Program::stage(args.job.program.as_deref(), family)?;
    let watch = session.watch();
    let mut groups = Vec::new();
    let mut budgets = Vec::new();
    let parts = args.scale.len() * 2;
    for (scaling, option, points) in [("weak", "--local", &args.local), ("strong", "--global", &args.global)]
    {
        for &ranks in &args.scale {
            if session.is_interrupted() {
                break;
            }
            let words = ["cg", option, points, "--expect-ranks", &ranks.to_string()].map(str::to_owned);
            let contenders = job.rows(ranks, &program.words(&words), session, &mut runner);
            let key = format!("cg/{family}/{scaling}/{points}/{ranks}");
            let effort = args.rounds.share(parts).effort(1, 9);
            let measured = session.measure(&key, &contenders, &effort, |_, line| {
                let (text, ended) = runner.said(line)?;
                let results = results(&text, ended)?;
                match results.ended {
                    Some(failure) => Err(failure),
                    None => rate(&results.values),
                }
            });
            let plot = format!("conjugate gradient, {scaling} scaling, {points}, {}", mpi(family));
            let title = format!("{plot}, {ranks} ranks");
            let group = Group::new(key, title, "GFLOP/s", &[BARE], &measured).higher_is_better();
            let what = format!("conjugate gradient, {scaling}, {ranks} ranks, {}, against bare", mpi(family));
            budgets.push(Budget::at_least(what, 0.95, group.ratio(HPC_LAUNCH, BARE)));
            groups.push(group.at(plot, ranks as f64, "ranks"));
        }
    }
    let settings = BTreeMap::from([
        ("image".into(), args.common.image.display().to_string()),
        ("local".into(), args.local.clone()),
        ("global".into(), args.global.clone()),
        ("mpirun".into(), args.job.mpirun.clone()),
    ]);
    Ok(Report {
        bench: "cg".into(),
        title: format!("conjugate gradient on a 27-point stencil, under {}", args.job.mpirun),
        settings,
        noise: watch.finish(),
        groups,
        budgets,
        notes: Vec::new(),
    })
}

fn rate(values: &[crate::programs::Value]) -> Result<f64, Failure> {
    let found = values.iter().find(|value| value.unit == "GFLOP/s");
    found.map(|value| value.value).ok_or_else(|| Failure::new("exit 0, but no rate", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_counts() {
        let pattern = Regex::new(r"rate: ([0-9.,e+-]+)").unwrap();
        assert_eq!(figure("rate: 1.5 x\nrate: 1,234.5 y\n", &pattern), Ok(1234.5));
        assert_eq!(figure("x 7 y", &Regex::new("[0-9]+").unwrap()), Ok(7.0));
    }

    #[test]
    fn no_figure_shows_what_was_printed_instead() {
        let pattern = Regex::new("rate: (.+)").unwrap();
        let failure = figure("a\n\nb\n", &pattern).unwrap_err();
        assert_eq!(failure, Failure::new("exit 0, but nothing in its output matches rate: (.+)", "a\nb"));
        let failure = figure("rate: fast", &pattern).unwrap_err();
        assert!(failure.status.contains("\"fast\", which rate: (.+) found, is no number"), "{failure}");
    }
}

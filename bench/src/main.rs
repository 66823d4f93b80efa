//! `hpc-bench`: measures hpc-launch against bare metal and its peers, in alternating runs on one machine.
//!
//! Each bench is a module with its options and a `run`; what they share is the `session` with its sampler
//! (`alternate`), the command lines (`contender`), one run (`run`), the statistics (`stats`), what is kept
//! (`document`) and how it is told (`report`).

mod agree;
mod alternate;
mod app;
mod baseline;
mod change;
mod compare;
mod comparison;
mod contender;
mod csv;
mod digest;
mod document;
mod error;
#[cfg(test)]
mod fixture;
mod import;
mod inspect;
mod interrupt;
mod itself;
mod jobs;
mod journal;
mod launcher;
mod machine;
mod micro;
mod model;
mod output;
mod page;
mod peer;
mod programs;
mod progress;
mod publish;
mod render;
mod report;
mod run;
mod saved;
mod scale;
mod session;
mod start;
mod stats;
mod step;
mod suite;
mod syscalls;
mod text;
mod user;

use alternate::Effort;
use clap::{Parser, Subcommand};
use document::Report;
use error::Error;
use interrupt::Interrupt;
use journal::Journal;
use output::Outputs;
use session::Session;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Measures hpc-launch against bare metal and its peers, in alternating runs on one machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

/// Where results go.
#[derive(Debug, clap::Args)]
struct Files {
    /// Keep all of it in this directory: samples as they come, report.json, report.csv, report.html. The same command
    /// goes on where one was interrupted
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Throw away what is in that directory
    #[arg(long, requires = "out")]
    again: bool,
    /// Write everything, each sample included, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exit with 1 if a run failed or a budget is missed
    #[arg(long)]
    check: bool,
    /// As root: measure as this ordinary user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// All that a report needs, in a given time
    Suite(Kept<suite::Args>),
    /// Start of one rank: bare, hpc-launch (alone, first, joining), and peers
    Start(Kept<start::Args>),
    /// Start and end of jobs of many ranks under the host's launcher
    Jobs(Kept<jobs::Args>),
    /// Messages between ranks, bare and inside: latency, bandwidth, rates, collectives, MPI_Init
    Micro(Kept<micro::Args>),
    /// A conjugate gradient, weak and strong scaling
    Cg(Kept<app::CgArgs>),
    /// Any command, by its time or by a figure that it prints
    App(Kept<app::Args>),
    /// Many ranks on many simulated hosts under hydra, and what follows for more nodes; needs root
    Scale(Kept<scale::Args>),
    /// System calls before the program starts
    Syscalls(Kept<syscalls::Args>),
    /// What it costs to look at libraries, and to give a program the host's MPI
    Inspect(Kept<inspect::Args>),
    /// From an OCI image to one file that can be run: hpc-launch, umoci with mksquashfs, podman, ch-convert
    Import(Kept<import::Args>),
    /// Bare metal against itself, many times over: what the intervals are worth here
    Itself(Kept<itself::Args>),
    /// Whether the programs that we measure with agree with others' programs
    Agree(Kept<agree::Args>),
    /// What became worse from one measurement to another; exit status 1 if something did
    Compare(compare::Args),
    /// Page and CSV of a measurement that was kept
    Report(render::Args),
}

/// A bench's options, and where its results go.
#[derive(Debug, clap::Args)]
struct Kept<A: clap::Args> {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    args: A,
}

/// What every bench takes.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Image: a directory; hpc-launch alone takes a file too
    #[arg(long, value_name = "IMAGE")]
    image: PathBuf,
    /// The hpc-launch to measure [default: the one beside hpc-bench, then PATH]
    #[arg(long, value_name = "PATH")]
    launcher_bin: Option<PathBuf>,
}

/// How often.
#[derive(Debug, Clone, Default, clap::Args)]
struct Rounds {
    /// Rounds at most; every round runs each row once
    #[arg(long)]
    runs: Option<usize>,
    /// Fewer rounds once so much time went by, but no fewer than six
    #[arg(long, value_name = "SECONDS")]
    within: Option<f64>,
}

impl Rounds {
    /// What was asked for, or else so many rounds.
    fn effort(&self, warm_up: usize, rounds: usize) -> Effort {
        let rounds = self.runs.unwrap_or(rounds);
        match self.within {
            Some(seconds) => {
                Effort::within(warm_up, rounds, Duration::from_secs_f64(seconds.clamp(0.0, 1e6)))
            }
            None => Effort::rounds(warm_up, rounds),
        }
    }

    /// For each of so many tables.
    fn share(&self, tables: usize) -> Rounds {
        Rounds { within: self.within.map(|seconds| seconds / tables.max(1) as f64), ..self.clone() }
    }
}

fn main() -> ExitCode {
    // A copy of this program is that of the simulated hosts.
    if simulated_hosts::is_called() {
        return simulated_hosts::main(std::env::args_os().skip(1).collect());
    }
    match bench(&Cli::parse()) {
        Ok(status) => status,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hpc-bench: {}", text::visible_text(&error.to_string()));
            ExitCode::from(125)
        }
    }
}

/// Runs one bench as the user it asks for.
fn bench(cli: &Cli) -> Result<ExitCode, Error> {
    let judged = |is_good| if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let files = match &cli.bench {
        Bench::Compare(args) => return compare::run(args).map(judged),
        Bench::Report(args) => return render::run(args).map(judged),
        Bench::Suite(kept) => &kept.files,
        Bench::Start(kept) => &kept.files,
        Bench::Jobs(kept) => &kept.files,
        Bench::Micro(kept) => &kept.files,
        Bench::Cg(kept) => &kept.files,
        Bench::App(kept) => &kept.files,
        Bench::Scale(kept) => &kept.files,
        Bench::Syscalls(kept) => &kept.files,
        Bench::Inspect(kept) => &kept.files,
        Bench::Import(kept) => &kept.files,
        Bench::Itself(kept) => &kept.files,
        Bench::Agree(kept) => &kept.files,
    };
    if let Bench::Scale(kept) = &cli.bench
        && kept.args.is_outside()
    {
        return scale::outside(&kept.args, files);
    }
    if let Some(name) = &files.user {
        user::become_user(name, files.json.as_deref(), files.out.as_deref())?;
    }
    let outputs = Outputs { directory: files.out.clone(), json: files.json.clone() };
    outputs.prepare(files.again)?;
    let interrupt = Interrupt::catch()?;
    let command = command();
    let journal = match &files.out {
        Some(dir) => {
            let of = [format!("hpc-bench {}", env!("CARGO_PKG_VERSION")), command.clone()];
            Some(Journal::open(&dir.join(output::SAMPLES), &session::now(), &of)?)
        }
        None => None,
    };
    let mut session = Session::new(journal, interrupt);
    let reports = match &cli.bench {
        Bench::Suite(kept) => suite::run(&kept.args, &mut session),
        Bench::Start(kept) => start::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Jobs(kept) => jobs::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Micro(kept) => micro::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Cg(kept) => app::cg(&kept.args, &mut session).map(|report| vec![report]),
        Bench::App(kept) => app::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Scale(kept) => scale::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Syscalls(kept) => syscalls::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Inspect(kept) => inspect::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Import(kept) => import::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Itself(kept) => itself::run(&kept.args, &mut session).map(|report| vec![report]),
        Bench::Agree(kept) => agree::run(&kept.args, &mut session).map(|report| vec![report]),
        // No measurements: they were answered above.
        Bench::Compare(_) | Bench::Report(_) => Ok(Vec::new()),
    }?;
    finish(session, reports, command, &outputs, files.check)
}

/// Shows and writes what there is; the exit status says how it went.
fn finish(
    session: Session,
    reports: Vec<Report>,
    command: String,
    outputs: &Outputs,
    check: bool,
) -> Result<ExitCode, Error> {
    let (document, trouble) = session.document(command, reports);
    let written = outputs.write(&document);
    // Nobody may read it; what was measured is in the files.
    let _ = std::io::stdout().write_all(text::visible_text(&document.text()).as_bytes());
    written?;
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    Ok(match (document.interrupted, check && !document.is_good()) {
        // As a shell has it for SIGINT.
        (true, _) => ExitCode::from(130),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    })
}

/// As one would type it, without what does not change a sample.
fn command() -> String {
    let mut words = std::env::args().skip(1);
    let mut kept = vec!["hpc-bench".to_owned()];
    while let Some(word) = words.next() {
        match word.as_str() {
            "--out" | "--json" | scale::BED => drop(words.next()),
            "--again" | "--check" => {}
            word if word.starts_with("--out=") || word.starts_with("--json=") => {}
            word => kept.push(word.to_owned()),
        }
    }
    kept.join(" ")
}

//! `hpc-bench`: measures hpc-launch against bare metal and its peers, in alternating runs on one machine.
//!
//! Each bench is a module with its options and a `run`; what they share is the sampler (`alternate`),
//! the command lines (`contender`), one run (`run`), the statistics (`stats`) and the `report`.

mod alternate;
mod contender;
#[allow(dead_code, reason = "its users come next")]
mod document;
mod error;
mod import;
mod inspect;
mod machine;
mod mpirun;
mod pingpong;
mod report;
mod run;
mod start;
mod stats;
mod step;
mod syscalls;
mod user;
mod wireup;

use clap::{Parser, Subcommand};
use error::Error;
use report::{JsonFile, Report};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures hpc-launch against bare metal and its peers, in alternating runs on one machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Start of one rank: bare, hpc-launch (alone, first, joining), ch-run and bwrap
    Start(start::Args),
    /// Start and end of many ranks under the host's launcher
    Mpirun(mpirun::Args),
    /// Latency and bandwidth between two ranks, bare and inside
    Pingpong(pingpong::Args),
    /// From the launcher's start to the end of MPI_Init, of many ranks: bare, bridged, and without a launcher
    Wireup(wireup::Args),
    /// System calls before the program starts
    Syscalls(syscalls::Args),
    /// What it costs to look at libraries, and to give a program the host's MPI
    Inspect(inspect::Args),
    /// From an OCI image to one file that can be run: hpc-launch, umoci with mksquashfs, podman, ch-convert
    Import(import::Args),
}

/// What every bench takes.
#[derive(Debug, clap::Args)]
struct Common {
    /// Image directory
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// The hpc-launch to measure [default: the one beside hpc-bench, then PATH]
    #[arg(long, value_name = "PATH")]
    launcher_bin: Option<PathBuf>,
    /// As root: measure as this ordinary user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Write everything, each sample included, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exit with 1 if a run failed or a budget is missed
    #[arg(long)]
    check: bool,
}

/// A bench's result, ready to be shown.
struct Outcome {
    text: String,
    json: serde_json::Result<serde_json::Value>,
    is_good: bool,
}

impl Outcome {
    fn new(report: &impl Serialize, text: String, is_good: bool) -> Self {
        Outcome { text, json: serde_json::to_value(report), is_good }
    }
}

impl From<Report> for Outcome {
    fn from(report: Report) -> Self {
        Outcome::new(&report, report.text(), report.is_good())
    }
}

fn main() -> ExitCode {
    match bench(&Cli::parse().bench) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hpc-bench: {error}");
            ExitCode::from(125)
        }
    }
}

/// Runs one bench as the user it asks for; false when it should make the exit status say so.
fn bench(bench: &Bench) -> Result<bool, Error> {
    let common = match bench {
        Bench::Start(args) => args.common(),
        Bench::Mpirun(args) => args.common(),
        Bench::Pingpong(args) => args.common(),
        Bench::Wireup(args) => args.common(),
        Bench::Syscalls(args) => args.common(),
        Bench::Inspect(args) => args.common(),
        Bench::Import(args) => args.common(),
    };
    if let Some(name) = &common.user {
        user::become_user(name, common.json.as_deref())?;
    }
    let json = common.json.as_deref().map(JsonFile::create).transpose()?;
    let outcome = match bench {
        Bench::Start(args) => start::run(args),
        Bench::Mpirun(args) => mpirun::run(args),
        Bench::Pingpong(args) => pingpong::run(args),
        Bench::Wireup(args) => wireup::run(args),
        Bench::Syscalls(args) => syscalls::run(args),
        Bench::Inspect(args) => inspect::run(args),
        Bench::Import(args) => import::run(args),
    }?;
    print!("{}", outcome.text);
    if let Some(mut json) = json {
        let value =
            outcome.json.map_err(|e| Error::new("write the report as JSON", e, "report this as a bug"))?;
        json.write(&value)?;
    }
    Ok(outcome.is_good || !common.check)
}

//! `hpc-bench-mpi`: the MPI programs that hpc-bench measures with, bare and inside.
//!
//! Definitions are those of the OSU Micro-Benchmarks, so that numbers compare; `cg` is a small solver.
//! Exit status: 0 measured and correct, 1 wrong contents or a wrong solution, 2 refused.

mod buffer;
mod cg;
mod cli;
mod coll;
mod contents;
mod counts;
mod init;
mod job;
mod multi;
mod output;
mod pt2pt;
mod sizes;
mod windows;

use cli::{Cli, Program};
use job::Job;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

fn main() -> ExitCode {
    // Before anything else: `init` reports from here on.
    let began = (SystemTime::now(), Instant::now());
    let cli = Cli::read();
    let Some((job, times)) = Job::begin(began) else {
        eprintln!("hpc-bench-mpi: MPI was initialised before main: nothing measured");
        return ExitCode::from(2);
    };
    if let Err(refusal) = cli.check(job.ranks()) {
        // Every rank comes to the same conclusion; one says it. Singletons are all rank 0, and all say it.
        if job.rank() == 0 {
            eprintln!("hpc-bench-mpi: {refusal}");
        }
        return ExitCode::from(2);
    }
    let counts = cli.counts();
    let mut out = job.output();
    out.begin(cli.program.name(), job.ranks(), &job::library_version(), &counts.describe());
    match &cli.program {
        Program::Pt2pt(options) => pt2pt::run(&job, options, counts, cli.spoil, &mut out),
        Program::Multi(options) => multi::run(&job, options, counts, cli.spoil, &mut out),
        Program::Coll(options) => coll::run(&job, options, counts, cli.spoil, &mut out),
        Program::Init(options) => init::run(&job, options, &times, &mut out),
        Program::Cg(options) => cg::run(&job, options, cli.spoil, &mut out),
    }
    out.end();
    ExitCode::SUCCESS
}

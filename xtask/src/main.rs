//! `cargo xtask`: what is done with the sources, from a machine's set-up to its tests.

mod apt;
mod bench;
mod cache;
mod demo;
mod hosts;
mod images;
mod layout;
mod order;
mod programs;
mod rdma;
mod recipe;
mod release;
mod rootfs;
mod run;
mod setup;
mod test;
mod toolchain;
mod user;
mod wheel;

use clap::{Parser, Subcommand};
use layout::Layout;
use std::path::PathBuf;
use std::process::ExitCode;

/// Tasks around the sources of hpc-launch.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the ring example in a container under mpirun, as a plain user, installing what is missing
    Demo,
    /// Install what is missing, build all, and run every test
    Test {
        /// Only formatting, lints and unit tests
        #[arg(long)]
        unit: bool,
        /// Only the end-to-end tests, those whose name contains FILTER
        #[arg(long, value_name = "FILTER", num_args = 0..=1, default_missing_value = "", conflicts_with = "unit")]
        e2e: Option<String>,
    },
    /// Run the end-to-end tests in full: every pair, hundreds of jobs, hundreds of killed ranks
    Stress,
    /// Compare abi-probe with the real loaders, over every object of the images and of this machine
    Oracle,
    /// Run every image under every launcher and with every MPI of this host: docs/matrix.md, docs/matrix-hosts.md
    Matrix,
    /// Run the tests that need an adapter, in a virtual machine that has one (Soft-RoCE)
    TestRdma,
    /// Check formatting and lints
    Check,
    /// Make test images as directories target/images/NAME
    Images {
        /// Which ones; all if none is named
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Make target/images/NAME.sqfs as well
        #[arg(long)]
        squashfs: bool,
    },
    /// Build the programs that hpc-bench measures with: target/bench-programs/MPI/hpc-bench-mpi
    Programs {
        /// For these MPIs, by their compilers [default: mpicc.openmpi,mpicc.mpich, as far as installed]
        #[arg(long, value_name = "LIST", value_delimiter = ',')]
        mpicc: Vec<String>,
    },
    /// Compare containers with bare metal, as a plain user: target/bench/report.html
    Bench {
        /// How long the benches may take that share a limit; simulated hosts and what has to be built come on top
        #[arg(long, default_value_t = 5.0)]
        minutes: f64,
        /// Where the report goes [default: target/bench]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Throw away what is there; without it, an interrupted measurement goes on
        #[arg(long)]
        again: bool,
    },
    /// Find out in which order ranks go through the launcher's functions: launcher/start.ld
    StartOrder,
    /// Install the Debian packages that a task needs
    Setup {
        /// For which task
        #[arg(value_enum, default_value = "test")]
        set: setup::Set,
    },
}

fn main() -> ExitCode {
    let layout = Layout::find();
    let result = match Arguments::parse().task {
        Task::Demo => demo::demo(&layout),
        Task::Test { unit: true, .. } => test::test(&layout, &test::Scope::Unit),
        Task::Test { e2e: Some(filter), .. } => test::test(&layout, &test::Scope::EndToEnd(filter)),
        Task::Test { .. } => test::test(&layout, &test::Scope::All),
        Task::Stress => test::test(&layout, &test::Scope::Stress),
        Task::Oracle => test::test(&layout, &test::Scope::Oracle),
        Task::Matrix => test::test(&layout, &test::Scope::Matrix),
        Task::TestRdma => test::test(&layout, &test::Scope::Rdma),
        Task::Check => test::test(&layout, &test::Scope::Check),
        Task::Images { names, squashfs } => images::make(&layout, &names, squashfs),
        Task::Programs { mpicc } => programs::make(&layout, &mpicc).map(drop),
        Task::Bench { minutes, out, again } => bench::bench(&layout, minutes, out, again),
        Task::StartOrder => order::make(&layout),
        Task::Setup { set } => setup::install(&layout, set),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

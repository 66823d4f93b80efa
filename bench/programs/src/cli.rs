//! The command line.

use crate::cg::grid::Extents;
use crate::counts::{Counts, parse_factor};
use crate::sizes::Sizes;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// MPI programs to measure with: messages, collectives, start-up, a solver
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// What to measure
    #[command(subcommand)]
    pub program: Program,
    /// Refuse (exit status 2) unless the job has so many ranks: ranks that are each alone are no job
    #[arg(long, global = true, value_name = "N")]
    expect_ranks: Option<usize>,
    /// Times OSU's number of rounds
    #[arg(long, global = true, value_name = "F", value_parser = parse_factor, conflicts_with = "iterations")]
    scale: Option<f64>,
    /// So many rounds for each size, instead of OSU's; of cg: so many iterations
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    iterations: Option<u32>,
    /// Spoil one value on purpose: the run must say WRONG and end with 1
    #[arg(long, global = true)]
    pub spoil: bool,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Program {
    /// Between the first and the last rank: latency, bandwidth, both directions at once
    Pt2pt(Pt2pt),
    /// Several pairs at once: bandwidth and message rate
    Multi(Multi),
    /// Collectives over all ranks
    Coll(Coll),
    /// Time in MPI_Init, and until the last rank is through
    Init(Init),
    /// Conjugate gradient with a 27-point stencil
    Cg(Cg),
}

/// Options of `pt2pt`.
#[derive(Debug, Args)]
pub struct Pt2pt {
    /// Which sizes
    #[command(flatten)]
    pub sizes: Sizes,
    /// Which ones
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "latency,bw,bibw")]
    pub benchmarks: Vec<Pair>,
    /// What the clock is read around
    #[arg(long, value_enum, default_value_t = Clock::Round)]
    pub clock: Clock,
}

/// What the clock is read around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Clock {
    /// Each round, as OSU 7 does it: reading the clock is in each
    Round,
    /// All rounds together, as OSU 5 and Intel's benchmarks do it
    Loop,
}

/// What two ranks measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pair {
    /// Half a round trip
    Latency,
    /// One direction, windows of 64
    Bw,
    /// Both directions, windows of 64
    Bibw,
}

/// Options of `multi`.
#[derive(Debug, Args)]
pub struct Multi {
    /// Which sizes
    #[command(flatten)]
    pub sizes: Sizes,
    /// So many pairs [default: half of the ranks]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pairs: Option<u32>,
}

/// Options of `coll`.
#[derive(Debug, Args)]
pub struct Coll {
    /// Which sizes
    #[command(flatten)]
    pub sizes: Sizes,
    /// Which ones
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "allreduce,bcast,alltoall,barrier"
    )]
    pub benchmarks: Vec<Collective>,
}

/// What all ranks measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Collective {
    /// Sum of floats, as OSU's default
    Allreduce,
    /// Sum of doubles
    AllreduceDouble,
    /// From rank 0
    Bcast,
    /// SIZE bytes from each to each
    Alltoall,
    /// No contents
    Barrier,
}

/// Options of `init`.
#[derive(Debug, Args)]
pub struct Init {
    /// When the job was started, in nanoseconds since the epoch [default: the earliest rank's main]
    #[arg(long, value_name = "NANOSECONDS")]
    pub start: Option<u64>,
}

/// Options of `cg`.
#[derive(Debug, Args)]
pub struct Cg {
    /// Points of each rank (weak scaling) [default: 32x32x32]
    #[arg(long, value_name = "NXxNYxNZ", conflicts_with = "global_grid")]
    pub local: Option<Extents>,
    /// Points of all ranks together (strong scaling)
    #[arg(long = "global", value_name = "NXxNYxNZ", id = "global_grid")]
    pub global: Option<Extents>,
    /// Stop when the residual is this part of the first; not with --iterations
    #[arg(long, value_name = "R", value_parser = parse_factor, conflicts_with = "iterations", default_value = "1e-9")]
    pub tolerance: f64,
    /// Give up (WRONG, exit status 1) after so many
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub most: u32,
    /// From --iterations, which every program has.
    #[arg(skip)]
    pub iterations: Option<u32>,
}

impl Program {
    /// As on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Program::Pt2pt(_) => "pt2pt",
            Program::Multi(_) => "multi",
            Program::Coll(_) => "coll",
            Program::Init(_) => "init",
            Program::Cg(_) => "cg",
        }
    }

    /// Fewer measure nothing.
    fn least_ranks(&self) -> usize {
        match self {
            Program::Pt2pt(_) | Program::Coll(_) => 2,
            Program::Multi(options) => options.pairs.map_or(2, |pairs| 2 * pairs as usize),
            Program::Init(_) | Program::Cg(_) => 1,
        }
    }
}

impl Cli {
    /// Reads the command line; errors end the program with status 2.
    pub fn read() -> Self {
        let mut cli = Cli::parse();
        if let Program::Cg(options) = &mut cli.program {
            options.iterations = cli.iterations;
        }
        cli
    }

    /// How often loops run.
    pub fn counts(&self) -> Counts {
        match (self.scale, self.iterations) {
            (Some(factor), _) => Counts::Scaled(factor),
            (None, Some(rounds)) => Counts::Fixed(rounds as usize),
            (None, None) => Counts::Osu,
        }
    }

    /// Why a job of `ranks` ranks is refused.
    pub fn check(&self, ranks: usize) -> Result<(), String> {
        let hint = "ranks that are each alone were started by a launcher that their MPI does not understand";
        if let Some(expected) = self.expect_ranks.filter(|expected| *expected != ranks) {
            return Err(format!(
                "{expected} ranks were expected and this job has {ranks}: nothing measured ({hint})"
            ));
        }
        let (name, least) = (self.program.name(), self.program.least_ranks());
        if ranks < least {
            return Err(format!(
                "{name} needs {least} ranks and this job has {ranks}: nothing measured ({hint})"
            ));
        }
        if let Program::Cg(options) = &self.program {
            options.grid(ranks)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(words: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(words.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_job_of_one_is_refused_where_two_are_needed() {
        for program in ["pt2pt", "multi", "coll"] {
            let refusal = cli(&format!("x {program}")).unwrap().check(1).unwrap_err();
            assert!(refusal.starts_with(&format!("{program} needs 2 ranks and this job has 1")), "{refusal}");
        }
        assert!(cli("x init").unwrap().check(1).is_ok());
        assert!(cli("x multi --pairs 2").unwrap().check(3).is_err());
    }

    #[test]
    fn another_number_than_expected_is_refused() {
        let cli = cli("x init --expect-ranks 4").unwrap();
        assert!(cli.check(4).is_ok());
        assert!(cli.check(1).unwrap_err().starts_with("4 ranks were expected and this job has 1"));
    }

    #[test]
    fn counts_come_from_one_option() {
        assert_eq!(cli("x pt2pt").unwrap().counts(), Counts::Osu);
        assert_eq!(cli("x pt2pt --scale 0.5").unwrap().counts(), Counts::Scaled(0.5));
        assert_eq!(cli("x --iterations 7 coll").unwrap().counts(), Counts::Fixed(7));
        assert!(cli("x pt2pt --scale 1 --iterations 2").is_err());
        assert!(cli("x pt2pt --iterations 0").is_err());
    }

    #[test]
    fn lists() {
        let Program::Pt2pt(options) = cli("x pt2pt --sizes 8,64K --benchmarks bw,latency").unwrap().program
        else {
            panic!("another program");
        };
        assert_eq!(options.benchmarks, [Pair::Bw, Pair::Latency]);
        assert_eq!(options.sizes.list(1), [8, 65536]);
        assert!(cli("x pt2pt --sizes 8 --max 16").is_err());
        assert!(cli("x cg --local 4x4x4 --global 8x8x8").is_err());
        assert!(cli("x cg --tolerance 1e-6 --iterations 5").is_err());
    }
}

//! `hpc-bench suite`: all that a report needs, in a given time.

use crate::app::CgArgs;
use crate::document::{Budget, Report};
use crate::error::Error;
use crate::micro::JobArgs;
use crate::session::Session;
use crate::{Common, Rounds, app, jobs, micro, peer, saved, start, syscalls};
use std::path::PathBuf;
use std::time::Duration;

/// Options of `hpc-bench suite`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    peers: peer::Args,
    /// An image for another MPI, and its launcher: benches of messages and the application run there too. May be given
    /// several times
    #[arg(long = "also", value_name = "IMAGE=LAUNCHER")]
    also: Vec<Pair>,
    /// The launcher of the image's MPI
    #[arg(long, value_name = "CMD", default_value = "mpirun.openmpi")]
    mpirun: String,
    /// The launcher of whole jobs, which has to be quick itself
    #[arg(long, value_name = "CMD", default_value = "mpiexec.hydra")]
    starter: String,
    /// How long all of it may take; warming up and runs that hang come on top
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Take the reports of another document along: of `hpc-bench scale`, which only root can measure
    #[arg(long, value_name = "FILE")]
    include: Vec<PathBuf>,
}

/// An image and the launcher of its MPI.
#[derive(Debug, Clone)]
pub struct Pair {
    image: PathBuf,
    mpirun: String,
}

impl std::str::FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (image, mpirun) =
            text.split_once('=').ok_or("IMAGE=LAUNCHER is wanted, as 'mpich.sqfs=mpiexec.hydra'")?;
        Ok(Pair { image: image.into(), mpirun: mpirun.into() })
    }
}

/// What is run, and which share of the time it gets.
enum Part {
    Start,
    Syscalls,
    Jobs,
    Micro(Pair, &'static [&'static str]),
    Cg(Pair),
}

/// A tenth of OSU's loops in ten times as many runs: what differs from run to run is seen then.
const SCALE: [&str; 2] = ["--scale", "0.1"];
/// A run that takes longer has failed; none of those that do not hang takes a quarter of it.
const LIMIT: u64 = 10;
/// Sizes at which peers are told apart: small, around the change of protocol, large.
const PT2PT: &[&str] =
    &["pt2pt", "--sizes", "1,8,64,512,4096,16384,65536,262144,1048576,4194304", SCALE[0], SCALE[1]];
const COLL: &[&str] = &["coll", "--sizes", "8,1024,65536,1048576", SCALE[0], SCALE[1]];
const MULTI: &[&str] = &["multi", "--sizes", "8,1024,65536", SCALE[0], SCALE[1]];

impl Part {
    fn share(&self) -> f64 {
        match self {
            Self::Syscalls => 0.2,
            Self::Start => 2.0,
            Self::Jobs => 3.0,
            Self::Micro(_, words) if words[0] == "pt2pt" => 4.0,
            Self::Micro(..) => 1.0,
            Self::Cg(_) => 2.0,
        }
    }
}

/// Measures all of it. What cannot be measured here at all is a note, and the others go on.
pub fn run(args: &Args, session: &mut Session) -> Result<Vec<Report>, Error> {
    let mut reports = Vec::new();
    let mut included = Vec::new();
    for path in &args.include {
        included.extend(saved::read(path)?.reports);
    }
    let pair = Pair { image: args.common.image.clone(), mpirun: args.mpirun.clone() };
    let pairs: Vec<Pair> = [pair].into_iter().chain(args.also.iter().cloned()).collect();
    let mut parts = vec![Part::Start, Part::Syscalls, Part::Jobs];
    parts.extend(pairs.iter().map(|pair| Part::Micro(pair.clone(), PT2PT)));
    for pair in &pairs {
        parts.extend([COLL, MULTI, &["init"]].map(|words| Part::Micro(pair.clone(), words)));
    }
    parts.extend(pairs.iter().map(|pair| Part::Cg(pair.clone())));

    let shares: f64 = parts.iter().map(Part::share).sum();
    let seconds = |part: &Part| args.minutes * 60.0 * part.share() / shares;
    for (n, part) in parts.iter().enumerate() {
        if session.is_interrupted() {
            break;
        }
        let later: f64 = parts[n + 1..].iter().map(seconds).sum();
        session.then(Duration::from_secs_f64(later));
        let rounds = Rounds { runs: None, within: Some(seconds(part)) };
        match run_part(part, rounds, args, session) {
            Ok(report) => reports.push(report),
            Err(error) => {
                session.say(&error.to_string());
                reports.push(nothing(part, &error));
            }
        }
    }
    reports.extend(included);
    Ok(reports)
}

fn run_part(part: &Part, rounds: Rounds, args: &Args, session: &mut Session) -> Result<Report, Error> {
    let common = |pair: &Pair| Common { image: pair.image.clone(), ..args.common.clone() };
    let job = |pair: &Pair| JobArgs {
        ranks: 2,
        mpirun: pair.mpirun.clone(),
        over: None,
        program: None,
        timeout: LIMIT,
    };
    match part {
        Part::Start => start::run(
            &start::Args { common: args.common.clone(), peers: args.peers.clone(), rounds },
            session,
        ),
        Part::Syscalls => {
            let peers = args.peers.clone();
            syscalls::run(&syscalls::Args { common: args.common.clone(), peers, list: false }, session)
        }
        Part::Jobs => jobs::run(
            &jobs::Args {
                common: args.common.clone(),
                peers: args.peers.clone(),
                rounds,
                ranks: vec![1, 4, 16, 64, 256],
                mpirun: args.starter.clone(),
                hold: None,
                timeout: LIMIT,
            },
            session,
        ),
        Part::Micro(pair, words) => {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            let peers = args.peers.clone();
            micro::run(&micro::Args { common: common(pair), peers, rounds, job: job(pair), words }, session)
        }
        Part::Cg(pair) => app::cg(
            &CgArgs {
                common: common(pair),
                peers: args.peers.clone(),
                rounds,
                job: job(pair),
                local: "32x32x32".into(),
                global: "48x48x48".into(),
                scale: vec![1, 2],
            },
            session,
        ),
    }
}

/// In the place of a report: a reader looks for it.
fn nothing(part: &Part, error: &Error) -> Report {
    let (bench, title) = match part {
        Part::Start => ("start", "one rank".into()),
        Part::Syscalls => ("syscalls", "system calls of one rank".into()),
        Part::Jobs => ("jobs", "whole jobs".into()),
        Part::Micro(pair, words) => ("micro", format!("{} under {}", words[0], pair.mpirun)),
        Part::Cg(pair) => ("cg", format!("conjugate gradient, under {}", pair.mpirun)),
    };
    Report {
        bench: bench.into(),
        title,
        settings: Default::default(),
        noise: Default::default(),
        groups: Vec::new(),
        budgets: vec![Budget::at_least("measured at all", 1.0, None)],
        notes: vec![format!("not measured: {error}")],
    }
}

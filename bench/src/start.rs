//! `hpc-bench start`: what it costs to start one rank, from spawn to reaped.

use crate::alternate::Sample;
use crate::contender::{BARE, BARE_AGAIN, Contender, Measured, Setup};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::peer::{self, CH_RUN, Job};
use crate::run::{CommandLine, Failure};
use crate::session::Session;
use crate::step::{FreshSteps, Step, joining};
use crate::{Common, Rounds};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

/// No launcher around: the sandbox is nobody else's business.
const ALONE: &str = "hpc-launch, no launcher";
/// The same without a look at what the host has of GPUs and fabrics: what that look costs where there are none.
const UNSURVEYED: &str = "hpc-launch, no look at devices";
/// Builds the sandbox that others would join.
const FIRST: &str = "hpc-launch, first rank";
/// Joins the sandbox of a rank that runs already.
const JOINING: &str = "hpc-launch, joining rank";

/// Options of `hpc-bench start`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub peers: peer::Args,
    #[command(flatten)]
    pub rounds: Rounds,
}

/// One run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Start {
    milliseconds: f64,
    faults: f64,
}

impl Sample for Start {}

/// By variables: a command line with options is read in another way.
fn unsurveyed() -> impl Iterator<Item = (OsString, OsString)> {
    [("HPC_LAUNCH_GPU", "none"), ("HPC_LAUNCH_FABRIC", "image")]
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
}

/// Measures, and compares.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = session.runner(Duration::from_secs(30))?;
    session.note(&setup, &mut runner, peer::PROGRAMS)?;
    let peers = args.peers.prepare(&setup, &mut runner)?;
    let watch = session.watch();
    let mut notes = Vec::new();

    // Started once and kept: the timed joiners find a rank that runs, as all but the first do in a job.
    let step = Step::start(&setup).and_then(|step| {
        notes.push(step.verify(&setup, &mut runner)?);
        Ok(step)
    });

    // Without input it does as little as `true`, and it is what the step's first rank runs: others do not join.
    let words = ["/bin/cat".to_owned()];
    let ours = setup.hpc_launch(&words);
    session.plan(ALONE, &ours, &setup, &mut runner);
    let mut contenders = vec![
        Contender::new(BARE, Ok(setup.bare(&words))),
        Contender::new(BARE_AGAIN, Ok(setup.bare(&words))),
        Contender::new(FIRST, ours.clone()),
        Contender::new(JOINING, joining(&ours, &step)),
        Contender::new(ALONE, ours.clone()),
        Contender::new(UNSURVEYED, ours.clone().map(|line| line.with_env(unsurveyed()))),
    ];
    contenders.extend(peers.rows(&words, Job::Single, &setup));
    let mut steps = FreshSteps::default();
    let mut sample = |name: &str, line: &CommandLine| {
        let ran = if name == FIRST {
            runner.ran(&line.clone().with_env(steps.first_rank()))
        } else {
            runner.ran(line)
        }?;
        Ok::<_, Failure>(Start { milliseconds: ran.took.as_secs_f64() * 1e3, faults: ran.faults as f64 })
    };
    let effort = args.rounds.effort(3, 200);
    let measured = session.measure("start", &contenders, &effort, &mut sample);
    drop(step);

    let of =
        |what: fn(&Start) -> f64| -> Vec<Measured<f64>> { measured.iter().map(|m| m.map(what)).collect() };
    let title = "start and end of /bin/cat, whole process";
    let baselines = [BARE, CH_RUN, UNSURVEYED];
    let group = Group::new("start/time", title, "ms", &baselines, &of(|start| start.milliseconds));
    let faults = Group::new(
        "start/faults",
        "page faults, of the process and of those that it waited for",
        "faults",
        &[BARE],
        &of(|start| start.faults),
    );
    let budgets = vec![
        Budget::at_most("first rank against ch-run", 0.65, group.ratio(FIRST, CH_RUN)),
        Budget::at_most("joining rank against ch-run", 0.5, group.ratio(JOINING, CH_RUN)),
        Budget::at_most("the look at devices", 1.1, group.ratio(ALONE, UNSURVEYED)),
    ];
    let settings = BTreeMap::from([("image".into(), setup.image.display().to_string())]);
    Ok(Report {
        bench: "start".into(),
        title: "one rank".into(),
        settings,
        noise: watch.finish(),
        groups: vec![group, faults],
        budgets,
        notes,
    })
}

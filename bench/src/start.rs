//! `hpc-bench start`: what it costs to start one rank, from spawn to reaped.

use crate::contender::{BARE, BARE_AGAIN, BWRAP, CH_RUN, Contender, Setup, measure};
use crate::error::Error;
use crate::machine::Machine;
use crate::report::{Budget, Group, Report};
use crate::run::{CommandLine, Runner};
use crate::step::{FreshSteps, Step, joining};
use crate::{Common, Outcome};
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
    common: Common,
    /// Rounds; every round runs each row once
    #[arg(long, default_value_t = 200)]
    runs: usize,
}

impl Args {
    /// The options that all benches share.
    pub fn common(&self) -> &Common {
        &self.common
    }
}

/// By variables: a command line with options is read in another way.
fn unsurveyed() -> impl Iterator<Item = (OsString, OsString)> {
    [("HPC_LAUNCH_GPU", "none"), ("HPC_LAUNCH_FABRIC", "image")]
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
}

/// Measures, and compares.
pub fn run(args: &Args) -> Result<Outcome, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = Runner::new(Duration::from_secs(30))?;
    let mut machine = Machine::survey(&setup, &mut runner, &["ch-run", "bwrap"]);
    let mut notes = Vec::new();

    // Started once and kept: the timed joiners find a rank that runs, as all but the first do in a job.
    let step = Step::start(&setup).and_then(|step| {
        notes.push(step.verify(&setup, &mut runner)?);
        Ok(step)
    });

    // Without input it does as little as `true`, and it is what the step's first rank runs: others do not join.
    let words = ["/bin/cat".to_owned()];
    let ours = setup.hpc_launch(&words);
    let row = |name: &str, line| Contender { name: name.into(), line };
    let contenders = [
        row(BARE, Ok(setup.bare(&words))),
        row(BARE_AGAIN, Ok(setup.bare(&words))),
        row(ALONE, ours.clone()),
        row(UNSURVEYED, ours.clone().map(|line| line.with_env(unsurveyed()))),
        row(FIRST, ours.clone()),
        row(JOINING, joining(&ours, &step)),
        row(CH_RUN, setup.ch_run(&words)),
        row(BWRAP, setup.bwrap(&words)),
    ];
    let mut steps = FreshSteps::default();
    let mut sample = |name: &str, line: &CommandLine| {
        let took = if name == FIRST {
            runner.time(&line.clone().with_env(steps.first_rank()))
        } else {
            runner.time(line)
        };
        took.map(|time| time.as_secs_f64() * 1e3)
    };
    let measured = measure(&contenders, 3, args.runs, &mut sample);
    machine.finish();
    drop(step);

    let title = format!("start of /bin/cat, whole process, {} alternating rounds", args.runs);
    let group = Group::new(title, "ms", &[BARE, CH_RUN, UNSURVEYED], &measured);
    let budgets = vec![
        Budget::at_most("first rank against ch-run", 0.65, group.ratio(FIRST, CH_RUN)),
        Budget::at_most("the look at devices", 1.1, group.ratio(ALONE, UNSURVEYED)),
        Budget::at_most("joining rank against ch-run", 0.5, group.ratio(JOINING, CH_RUN)),
    ];
    let settings =
        BTreeMap::from([("image", setup.image.display().to_string()), ("runs", args.runs.to_string())]);
    Ok(Outcome::from(Report { bench: "start", machine, settings, groups: vec![group], budgets, notes }))
}

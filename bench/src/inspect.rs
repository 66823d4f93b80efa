//! `hpc-bench inspect`: what it costs to look at a program's libraries, and to give it the host's MPI.

use crate::contender::{Contender, Measured, Setup, find_program};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::run::CommandLine;
use crate::session::Session;
use crate::stats::median_estimate;
use crate::step::{FreshSteps, Step, joining};
use crate::{Common, Rounds};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const LDD: &str = "ldd, on the host";
const LINKS: &str = "abi-probe links, on the host";
const CHECK: &str = "check, nothing kept";
const FIRST_OWN: &str = "first rank, image's MPI";
const FIRST_HOST: &str = "first rank, host's MPI, decided before";
const JOINING_OWN: &str = "joining rank, image's MPI";
const JOINING_HOST: &str = "joining rank, host's MPI";

/// Options of `hpc-bench inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// An Open MPI program of this host
    #[arg(long, value_name = "PATH", default_value = "/usr/bin/ompi_info")]
    program: PathBuf,
    #[command(flatten)]
    rounds: Rounds,
}

/// Measures, and compares. The image must be one with Open MPI and the examples.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = session.runner(Duration::from_secs(30))?;
    session.note(&setup, &mut runner, &["ldd"])?;
    let watch = session.watch();
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>();
    let program = args.program.display().to_string();
    let launcher = setup.launcher.clone();
    let beside = launcher.as_ref().map(|path| path.with_file_name("abi-probe")).map_err(Clone::clone);
    let links = beside.and_then(|path| {
        let path = find_program(&path.display().to_string(), "cargo build --release builds it")?;
        Ok(setup.line(&path, &["links", "/", &program]))
    });
    let ldd = find_program("ldd", "apt-get install libc-bin").map(|path| setup.line(&path, &[&program]));
    let check = launcher.as_ref().map_err(Clone::clone).map(|path| {
        let image = setup.image.display().to_string();
        setup.line(path, &["check", "--launcher=openmpi", "--mpi=host", &image, "/opt/examples/ring"])
    });
    let nothing = words(&["/opt/examples/nothing"]);
    let wait = words(&["/opt/examples/nothing", "wait"]);
    let own_step = Step::start_with(&setup, &["--mpi=image"], &wait);
    let host_step = Step::start_with(&setup, &["--mpi=host"], &wait);
    let own = setup.hpc_launch_with(&["--mpi=image"], &nothing);
    let host = setup.hpc_launch_with(&["--mpi=host"], &nothing);
    let contenders = [
        Contender::new(LDD, ldd),
        Contender::new(LINKS, links),
        Contender::new(CHECK, check),
        Contender::new(FIRST_OWN, own.clone()),
        Contender::new(FIRST_HOST, host.clone()),
        Contender::new(JOINING_OWN, joining(&own, &own_step)),
        Contender::new(JOINING_HOST, joining(&host, &host_step)),
    ];
    let mut steps = FreshSteps::default();
    let mut sample = |name: &str, line: &CommandLine| {
        let took = match name {
            FIRST_OWN | FIRST_HOST => runner.time(&line.clone().with_env(steps.first_rank())),
            _ => runner.time(line),
        };
        took.map(|time| time.as_secs_f64() * 1e3)
    };
    let measured = session.measure("inspect", &contenders, &args.rounds.effort(3, 100), &mut sample);
    let noise = watch.finish();
    drop((own_step, host_step));

    let group = Group::new("inspect", "whole processes", "ms", &[LDD, FIRST_OWN, JOINING_OWN], &measured);
    let cold = measured.iter().find(|m| m.name == CHECK).and_then(|m| median_estimate(&good(m)));
    let budgets = vec![
        Budget::at_most("abi-probe links against ldd", 1.0, group.ratio(LINKS, LDD)),
        Budget::at_most("check with nothing kept, ms", 100.0, cold),
        Budget::at_most(
            "what the host's MPI adds to a joining rank, ms",
            0.3,
            difference(&measured, JOINING_HOST, JOINING_OWN),
        ),
    ];
    let first = difference(&measured, FIRST_HOST, FIRST_OWN);
    let notes = first
        .map(|d| {
            format!("the host's MPI adds {:.2} ms to a node's first rank, whose binds it makes", d.value)
        })
        .into_iter()
        .collect();
    let settings =
        BTreeMap::from([("image".into(), setup.image.display().to_string()), ("program".into(), program)]);
    Ok(Report {
        bench: "inspect".into(),
        title: "looking at libraries, and the host's MPI in a program".into(),
        settings,
        noise,
        groups: vec![group],
        budgets,
        notes,
    })
}

fn good(row: &Measured<f64>) -> Vec<f64> {
    row.outcomes.iter().flatten().filter_map(|o| o.as_ref().ok().copied()).collect()
}

/// By how much one row is longer than another, over the rounds in which both ran.
fn difference(measured: &[Measured<f64>], row: &str, than: &str) -> Option<crate::stats::Estimate> {
    let of = |name: &str| measured.iter().find(|m| m.name == name)?.outcomes.as_ref().ok();
    let pairs = of(row)?.iter().zip(of(than)?);
    let differences: Vec<f64> =
        pairs.filter_map(|(a, b)| Some(a.as_ref().ok()? - b.as_ref().ok()?)).collect();
    median_estimate(&differences)
}

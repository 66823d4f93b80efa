//! `hpc-bench jobs`: how long the host's launcher takes to start and end jobs of more and more ranks.

use crate::contender::{BARE, Contender, HPC_LAUNCH, Setup};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::launcher::HostLauncher;
use crate::peer::{self, CH_RUN, Job};
use crate::session::Session;
use crate::{Common, Rounds};
use std::collections::BTreeMap;
use std::time::Duration;

/// Options of `hpc-bench jobs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub peers: peer::Args,
    #[command(flatten)]
    pub rounds: Rounds,
    /// Ranks, of one job after the other
    #[arg(short = 'n', long = "ranks", value_delimiter = ',', default_value = "1,4,16,64,256")]
    pub ranks: Vec<usize>,
    /// The launcher, with options of its own if you like: --mpirun "mpirun.openmpi --bind-to none"
    #[arg(long, value_name = "CMD", default_value = "mpiexec.hydra")]
    pub mpirun: String,
    /// Ranks that sleep this long instead of ending at once
    #[arg(long, value_name = "SECONDS")]
    pub hold: Option<f64>,
    /// A run that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
}

/// Measures, and compares.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = session.runner(Duration::from_secs(args.timeout))?;
    let launcher = HostLauncher::find(&args.mpirun, &setup, &mut runner)?;
    session.note(&setup, &mut runner, &[peer::PROGRAMS, &[launcher.name()]].concat())?;
    let peers = args.peers.prepare(&setup, &mut runner)?;
    let watch = session.watch();

    let words = match args.hold {
        Some(seconds) => vec!["/bin/sleep".to_owned(), seconds.to_string()],
        None => vec!["/bin/true".to_owned()],
    };
    let mut contenders = setup.contenders(&words);
    contenders.extend(peers.rows(&words, Job::Single, &setup));
    let program = words.join(" ");
    let mut groups = Vec::new();
    let mut budgets = Vec::new();
    for &ranks in &args.ranks {
        if session.is_interrupted() {
            break;
        }
        let rows: Vec<Contender> = contenders
            .iter()
            .map(|c| Contender::new(&c.name, c.line.clone().map(|line| launcher.ranks(ranks, &line))))
            .collect();
        let key = format!("jobs/{}/{program}/{ranks}", args.mpirun);
        let effort = args.rounds.share(args.ranks.len()).effort(1, 15);
        let measured = session
            .measure(&key, &rows, &effort, |_, line| runner.time(line).map(|time| time.as_secs_f64() * 1e3));
        let title = format!("{} -n {ranks} {program}, wall time", args.mpirun);
        let group = Group::new(key, title, "ms", &[BARE, CH_RUN], &measured).at(
            format!("jobs of {program}, {}", args.mpirun),
            ranks as f64,
            "ranks",
        );
        let what = format!("{ranks} ranks, wall time against ch-run");
        budgets.push(Budget::at_most(what, 1.0, group.ratio(HPC_LAUNCH, CH_RUN)));
        // Open MPI's own start takes so long that ours must not be seen beside it.
        if launcher.family() == "openmpi" {
            let what = format!("{ranks} ranks, wall time against bare");
            budgets.push(Budget::at_most(what, 1.05, group.ratio(HPC_LAUNCH, BARE)));
        }
        groups.push(group);
    }
    let settings = BTreeMap::from([
        ("image".into(), setup.image.display().to_string()),
        ("mpirun".into(), args.mpirun.clone()),
        ("program".into(), program),
    ]);
    Ok(Report {
        bench: "jobs".into(),
        title: format!("whole jobs under {}", args.mpirun),
        settings,
        noise: watch.finish(),
        groups,
        budgets,
        notes: Vec::new(),
    })
}

//! `hpc-bench itself`: bare metal against itself, many times over. An interval that is worth its name holds 1.00 in
//! 19 of 20 of them; on a machine where it does not, no other table can be trusted.

use crate::Common;
use crate::Rounds;
use crate::contender::{BARE, BARE_AGAIN, Contender, Setup};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::session::Session;
use crate::stats::Estimate;
use std::collections::BTreeMap;
use std::time::Duration;

/// Options of `hpc-bench itself`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    rounds: Rounds,
    /// Measurements
    #[arg(long, default_value_t = 20)]
    repeat: usize,
    /// What is run
    #[arg(last = true, default_values = ["/bin/cat"])]
    words: Vec<String>,
}

/// Measures, and counts.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = session.runner(Duration::from_secs(30))?;
    session.note(&setup, &mut runner, &[])?;
    let watch = session.watch();
    let line = setup.bare(&args.words);
    let rows = [Contender::new(BARE, Ok(line.clone())), Contender::new(BARE_AGAIN, Ok(line))];
    let effort = args.rounds.share(args.repeat).effort(3, 60);
    let mut groups = Vec::new();
    for n in 1..=args.repeat {
        if session.is_interrupted() {
            break;
        }
        let key = format!("itself/{n}");
        let measured = session
            .measure(&key, &rows, &effort, |_, line| runner.time(line).map(|time| time.as_secs_f64() * 1e3));
        groups.push(Group::new(key, format!("measurement {n}"), "ms", &[BARE], &measured));
    }
    let ratios: Vec<Estimate> = groups.iter().filter_map(|group| group.ratio(BARE_AGAIN, BARE)).collect();
    let held = ratios.iter().filter(|ratio| ratio.low <= 1.0 && 1.0 <= ratio.high).count();
    let share = Estimate::exact(held as f64 / ratios.len().max(1) as f64);
    let widest = ratios.iter().map(|ratio| ratio.high - ratio.low).fold(0.0, f64::max);
    let notes =
        vec![format!("1.00 is within the interval in {held} of {}; the widest is {widest:.3}", ratios.len())];
    let budgets = vec![Budget::at_least("share of intervals that hold 1.00", 0.95, Some(share))];
    let settings = BTreeMap::from([("program".into(), args.words.join(" "))]);
    Ok(Report {
        bench: "itself".into(),
        title: "bare metal against itself".into(),
        settings,
        noise: watch.finish(),
        groups,
        budgets,
        notes,
    })
}

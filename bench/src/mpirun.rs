//! `hpc-bench mpirun`: how long the host's launcher takes to start and end many ranks.

use crate::contender::{BARE, CH_RUN, Contender, HPC_LAUNCH, Setup, find_program, measure};
use crate::error::Error;
use crate::machine::Machine;
use crate::report::{Budget, Group, Report};
use crate::run::{CommandLine, Runner};
use crate::{Common, Outcome};
use std::collections::BTreeMap;
use std::time::Duration;

/// Options of `hpc-bench mpirun`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Ranks
    #[arg(short = 'n', default_value_t = 64)]
    ranks: usize,
    /// Rounds; every round runs each row once
    #[arg(long, default_value_t = 15)]
    runs: usize,
    /// The launcher, with options of its own if you like: --mpirun "mpirun.openmpi --bind-to none"
    #[arg(long, value_name = "CMD", default_value = "mpirun.openmpi")]
    mpirun: String,
    /// Ranks that sleep this long instead of ending at once
    #[arg(long, value_name = "SECONDS")]
    hold: Option<f64>,
    /// A run that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

impl Args {
    /// The options that all benches share.
    pub fn common(&self) -> &Common {
        &self.common
    }
}

/// Measures, and compares.
pub fn run(args: &Args) -> Result<Outcome, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = Runner::new(Duration::from_secs(args.timeout))?;
    let launcher = HostLauncher::find(&args.mpirun, &setup, &mut runner)?;
    let mut machine = Machine::survey(&setup, &mut runner, &["ch-run", "bwrap", launcher.name()]);

    let words = match args.hold {
        Some(seconds) => vec!["/bin/sleep".to_owned(), seconds.to_string()],
        None => vec!["/bin/true".to_owned()],
    };
    let contenders: Vec<Contender> = setup
        .contenders(&words)
        .into_iter()
        .map(|c| Contender { line: c.line.map(|line| launcher.ranks(args.ranks, &line)), ..c })
        .collect();
    let measured =
        measure(&contenders, 1, args.runs, |_, line| runner.time(line).map(|time| time.as_secs_f64() * 1e3));
    machine.finish();

    let program = words.join(" ");
    let title =
        format!("{} -n {} {program}, wall time, {} alternating rounds", args.mpirun, args.ranks, args.runs);
    let group = Group::new(title, "ms", &[BARE, CH_RUN], &measured);
    let budgets = vec![Budget::at_most("wall time against bare", 1.05, group.ratio(HPC_LAUNCH, BARE))];
    let settings = BTreeMap::from([
        ("image", setup.image.display().to_string()),
        ("runs", args.runs.to_string()),
        ("ranks", args.ranks.to_string()),
        ("mpirun", args.mpirun.clone()),
        ("program", program),
    ]);
    Ok(Outcome::from(Report {
        bench: "mpirun",
        machine,
        settings,
        groups: vec![group],
        budgets,
        notes: Vec::new(),
    }))
}

/// mpirun or mpiexec, and the options that it needs here.
#[derive(Debug)]
pub struct HostLauncher {
    line: CommandLine,
    name: String,
}

impl HostLauncher {
    /// Finds the program and asks it what it is: the name `mpirun` says nothing.
    pub fn find(words: &str, setup: &Setup, runner: &mut Runner) -> Result<Self, Error> {
        let mut words = words.split_whitespace().map(str::to_owned);
        let name = words.next().unwrap_or_default();
        let failed = |why: String| {
            Error::new(format!("use the launcher {name:?}"), why, "give --mpirun a launcher of this machine")
        };
        let program = find_program(&name, "apt-get install openmpi-bin or mpich").map_err(failed)?;
        let version = runner.output(&setup.line(&program, &["--version"]));
        let version = version.map_err(|failure| failed(format!("{name} --version: {failure}")))?;
        let is_root = rustix::process::geteuid().is_root();
        let args: Vec<String> =
            options(&version, is_root).into_iter().map(str::to_owned).chain(words).collect();
        Ok(HostLauncher { line: setup.line(&program, &args), name })
    }

    /// As it was given, without its options.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `line` as `count` ranks.
    pub fn ranks(&self, count: usize, line: &CommandLine) -> CommandLine {
        let mut prefix = self.line.clone();
        prefix.args.extend(["-n".into(), count.to_string().into()]);
        line.after(&prefix)
    }
}

/// What a launcher needs, by what it says about itself.
fn options(version: &str, is_root: bool) -> Vec<&'static str> {
    let mut options = Vec::new();
    if version.contains("Open MPI") || version.contains("OpenRTE") {
        options.push("--oversubscribe");
        // Open MPI 4.1.4 loses track of very short programs at 32 and more ranks of a node and hangs; it
        // does not once it may hold more of their pipes at a time. Version 5 has no odls framework.
        if version.contains(") 4.") || version.contains(") 3.") {
            options.extend(["--mca", "odls_base_cutoff", "100000"]);
        }
        if is_root {
            options.push("--allow-run-as-root");
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_mpi_gets_what_it_needs_and_hydra_nothing() {
        assert_eq!(
            options("mpirun.openmpi (OpenRTE) 4.1.4", false),
            ["--oversubscribe", "--mca", "odls_base_cutoff", "100000"]
        );
        assert_eq!(options("mpirun (Open MPI) 5.0.7", true), ["--oversubscribe", "--allow-run-as-root"]);
        assert!(options("HYDRA build details:\n    Version: 4.0.2", true).is_empty());
    }
}

//! `hpc-bench scale`: what a launch costs as hosts and ranks grow, on simulated hosts under hydra, and what that means
//! for more nodes than there are here.

mod bed;
mod counts;
mod figures;
mod report;

use crate::contender::{BARE, BARE_AGAIN, Contender, HPC_LAUNCH, Setup, find_program};
use crate::document::Report;
use crate::error::Error;
use crate::peer::{CH_RUN, Job, Peers};
use crate::run::{CommandLine, Failure, Runner};
use crate::session::Session;
use crate::{Common, Rounds};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use bed::outside;
use figures::Size;

/// Rounds, where nothing else is asked for: all sizes take about four minutes on two processors.
const ROUNDS: usize = 8;
/// Kinds of images.
const DIRECTORY: &str = "directory";
const FILE: &str = "file";

/// A process in namespaces of its own, rooted in the image: the least that any launcher must do for each rank, if its
/// ranks do not share.
const UNSHARE: &str = "unshare";

/// The option by which the bench on the hosts knows that it is there. It changes no sample.
pub const BED: &str = "--bed";

/// Options of `hpc-bench scale`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    rounds: Rounds,
    /// Numbers of simulated hosts
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,4,16,64",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    hosts: Vec<u16>,
    /// Numbers of ranks on each of them
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,2,4,8,16",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    ranks: Vec<u16>,
    /// The same image as a SquashFS file: its operations on the shared file system are counted too
    #[arg(long, value_name = "FILE")]
    squashfs: Option<PathBuf>,
    /// Measure ch-run as well
    #[arg(long)]
    peers: bool,
    /// hydra's mpiexec
    #[arg(long, value_name = "CMD", default_value = "mpiexec.hydra")]
    mpiexec: String,
    /// A run that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// The directory of the hosts on which this process finds itself
    #[arg(long = "bed", hide = true)]
    bed: Option<PathBuf>,
}

impl Args {
    /// Whether the hosts are still to be started.
    pub fn is_outside(&self) -> bool {
        self.bed.is_none()
    }

    /// In the order in which they are measured, each once.
    fn sizes(&self) -> Vec<(usize, usize)> {
        let sorted = |counts: &[u16]| {
            let mut counts: Vec<usize> = counts.iter().copied().map(usize::from).collect();
            counts.sort_unstable();
            counts.dedup();
            counts
        };
        let ranks = sorted(&self.ranks);
        sorted(&self.hosts).into_iter().flat_map(|h| ranks.iter().map(move |r| (h, *r))).collect()
    }
}

/// Measures, counts, and computes. On the head of the simulated hosts.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let squashfs = args.squashfs.as_deref().map(Path::canonicalize).transpose();
    let squashfs = squashfs.map_err(|e| {
        let what = args.squashfs.as_deref().unwrap_or(Path::new("")).display().to_string();
        Error::new(format!("use the image {what}"), e, "give --squashfs a file, or leave it out")
    })?;
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = session.runner(Duration::from_secs(args.timeout))?;
    let cluster = Cluster::find(args)?;
    session.note(&setup, &mut runner, &[&args.mpiexec, CH_RUN])?;
    let mut notes = vec![cluster.verify(args, &setup, &mut runner)?];

    let watch = session.watch();
    let sizes = measure(args, &setup, &cluster, session, &mut runner);
    let noise = watch.finish();
    let kind = if setup.image.is_dir() { DIRECTORY } else { FILE };
    let mut images = vec![(kind, setup.image.clone())];
    images.extend(squashfs.map(|file| (FILE, file)));
    let counts = if session.is_interrupted() {
        Vec::new()
    } else {
        counts::count(&images, &cluster.mpiexec, &setup, &mut runner).unwrap_or_else(|why| {
            notes.push(format!("system calls were not counted: {why}"));
            Vec::new()
        })
    };
    Ok(report::make(args, &setup, noise, sizes, counts, notes))
}

/// The hosts, and how ranks get to them.
struct Cluster {
    mpiexec: PathBuf,
    rsh: PathBuf,
}

impl Cluster {
    fn find(args: &Args) -> Result<Cluster, Error> {
        let mpiexec = find_program(&args.mpiexec, "apt-get install mpich").map_err(|why| {
            Error::new(format!("use the launcher {:?}", args.mpiexec), why, "give --mpiexec hydra's")
        })?;
        let bed = args.bed.as_deref().unwrap_or(Path::new("/"));
        Ok(Cluster { mpiexec, rsh: bed.join(simulated_hosts::RSH) })
    }

    /// `line` on so many hosts, so many times on each.
    fn job(&self, setup: &Setup, hosts: usize, ranks: usize, line: &CommandLine) -> CommandLine {
        let names: Vec<String> =
            (1..=hosts).map(|n| format!("{}:{ranks}", simulated_hosts::name(n))).collect();
        let (names, count, rsh) =
            (names.join(","), (hosts * ranks).to_string(), self.rsh.display().to_string());
        let words = ["-launcher", "rsh", "-launcher-exec", &rsh, "-hosts", &names, "-n", &count];
        line.after(&setup.line(&self.mpiexec, &words))
    }

    /// That the ranks are where they are believed to be.
    fn verify(&self, args: &Args, setup: &Setup, runner: &mut Runner) -> Result<String, Error> {
        let (hosts, _) = args.sizes().last().copied().unwrap_or((1, 1));
        let line = setup.bare(&["/bin/cat".into(), "/proc/sys/kernel/hostname".into()]);
        let line = self.job(setup, hosts, 2, &line);
        let failed = |why: String| {
            Error::new(
                format!("start ranks on {hosts} simulated hosts ({line})"),
                why,
                "is --mpiexec hydra's?",
            )
        };
        let said = runner.output(&line).map_err(|failure| failed(failure.to_string()))?;
        let mut names: Vec<&str> = said.lines().collect();
        names.sort_unstable();
        let mut expected: Vec<String> = (1..=hosts).map(simulated_hosts::name).collect();
        expected.extend(expected.clone());
        expected.sort_unstable();
        if names != expected {
            return Err(failed(format!("they are on {names:?}")));
        }
        Ok(format!("verified: two ranks on each of {hosts} hosts"))
    }

    /// Ends what a job that hung has left on its hosts: their processes are no descendants of this one. Every one of
    /// this user's, but for the first of each host, which is root's or is spared by kill(2).
    fn sweep(&self, setup: &Setup, hosts: usize, runner: &mut Runner) {
        for host in (1..=hosts).map(simulated_hosts::name) {
            // It kills itself too, so it always fails.
            let _ = runner.time(&setup.line(&self.rsh, &[host.as_str(), "kill -9 -1"]));
        }
    }
}

fn contenders(args: &Args, setup: &Setup, runner: &mut Runner) -> Vec<Contender> {
    let words = ["/bin/true".to_owned()];
    let unshare = if setup.image.is_dir() {
        find_program("unshare", "apt-get install util-linux").map(|path| {
            let root = setup.image.display().to_string();
            setup.bare(&words).after(&setup.line(&path, &["-Ucm", "--root", &root]))
        })
    } else {
        Err("its root must be a directory: give --image one".into())
    };
    let mut rows = vec![
        Contender::new(BARE, Ok(setup.bare(&words))),
        Contender::new(BARE_AGAIN, Ok(setup.bare(&words))),
        Contender::new(UNSHARE, unshare),
        Contender::new(HPC_LAUNCH, setup.hpc_launch(&words)),
    ];
    if args.peers {
        let peers = Peers::prepare(&[], false, setup, runner).rows(&words, Job::Single, setup);
        rows.extend(peers.into_iter().filter(|row| row.name == CH_RUN));
    }
    rows
}

/// One size after the other: its rows run next to each other, so that what drifts meanwhile drifts for all of them.
fn measure(
    args: &Args,
    setup: &Setup,
    cluster: &Cluster,
    session: &mut Session,
    runner: &mut Runner,
) -> Vec<Size> {
    let contenders = contenders(args, setup, runner);
    let sizes = args.sizes();
    let mut measured = Vec::new();
    for &(hosts, ranks) in &sizes {
        if session.is_interrupted() {
            break;
        }
        let rows: Vec<Contender> = contenders
            .iter()
            .map(|c| {
                let job = c.line.as_ref().map(|line| cluster.job(setup, hosts, ranks, line));
                Contender::new(&c.name, job.map_err(Clone::clone))
            })
            .collect();
        let effort = args.rounds.share(sizes.len()).effort(1, ROUNDS * repeats(hosts));
        let rows = session.measure(&key(hosts, ranks), &rows, &effort, |_, line| {
            let took = runner.time(line);
            if took.as_ref().is_err_and(Failure::is_time_out) {
                cluster.sweep(setup, hosts, runner);
            }
            took.map(|time| time.as_secs_f64() * 1e3)
        });
        measured.push(Size { hosts, ranks, rows });
    }
    measured
}

/// Tells the samples of a size from others.
fn key(hosts: usize, ranks: usize) -> String {
    format!("scale/{hosts}x{ranks}")
}

/// How many times as many rounds: few hosts take no time, and their samples more noise.
fn repeats(hosts: usize) -> usize {
    (8 / hosts).clamp(1, 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Result<Args, clap::Error> {
        let line = ["scale", "--image", "/i"].iter().chain(words);
        Line::try_parse_from(line).map(|line| line.args)
    }

    #[test]
    fn sizes_are_sorted_and_each_there_once() {
        let args = args(&["--hosts", "4,1,4", "--ranks", "2,1"]).unwrap();
        assert_eq!(args.sizes(), [(1, 1), (1, 2), (4, 1), (4, 2)]);
        assert!(args.is_outside());
    }

    #[test]
    fn no_hosts_and_no_ranks_are_refused() {
        for words in [["--hosts", "0"], ["--ranks", "1,0"], ["--hosts", "many"]] {
            assert!(args(&words).is_err(), "{words:?}");
        }
        assert_eq!(args(&[]).unwrap().sizes().len(), 20);
    }

    #[test]
    fn few_hosts_are_measured_more_often() {
        assert_eq!([1, 2, 4, 16, 64].map(repeats), [4, 4, 2, 1, 1]);
    }
}

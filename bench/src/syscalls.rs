//! `hpc-bench syscalls`: how many system calls lie between a launcher's start and its program's.

use crate::Common;
use crate::contender::{BARE, Contender, Measured, Setup, find_program};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::peer::{self, Job};
use crate::run::{CommandLine, Failure, Runner};
use crate::session::Session;
use crate::stats::Estimate;
use crate::step::{FreshSteps, Step, joining};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

const FIRST: &str = "hpc-launch, first rank";
const JOINING: &str = "hpc-launch, joining rank";

/// Options of `hpc-bench syscalls`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub peers: peer::Args,
    /// Also list which calls they are
    #[arg(long)]
    pub list: bool,
}

/// The calls of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Count {
    /// Of the process that becomes the program, from the launcher's first to the last before the execve.
    before_program: usize,
    /// The same, by name.
    by_name: BTreeMap<String, usize>,
    /// Of all other processes of the run.
    elsewhere: usize,
    /// How many those are.
    other_processes: usize,
    /// All of it, the program's own included: what `strace -f -c` counts.
    whole: usize,
}

/// Counts, and compares.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = session.runner(Duration::from_secs(60))?;
    session.note(&setup, &mut runner, &[peer::PROGRAMS, &["strace"]].concat())?;
    let strace = find_program("strace", "apt-get install strace")
        .map_err(|why| Error::new("count system calls", why, "install it, or leave this bench out"))?;
    let peers = args.peers.prepare(&setup, &mut runner)?;
    let watch = session.watch();
    let mut notes = Vec::new();
    let step = Step::start(&setup).and_then(|step| {
        notes.push(step.verify(&setup, &mut runner)?);
        Ok(step)
    });

    // Without input it does as little as `true`, and it is what the step's first rank runs: others do not join.
    let words = ["/bin/cat".to_owned()];
    let ours = setup.hpc_launch(&words);
    let first = ours.clone().map(|line| line.with_env(FreshSteps::default().first_rank()));
    let mut contenders = vec![
        Contender::new(BARE, Ok(setup.bare(&words))),
        Contender::new(FIRST, first),
        Contender::new(JOINING, joining(&ours, &step)),
    ];
    contenders.extend(peers.rows(&words, Job::Single, &setup));
    let counts: Vec<Measured<Count>> = contenders
        .iter()
        .map(|c| Measured {
            name: c.name.clone(),
            command: c.line.as_ref().map(CommandLine::to_string).unwrap_or_default(),
            outcomes: c.line.clone().map(|line| {
                // Once without strace: the count of a rank that finds a plan made before is wanted, as in a job.
                vec![runner.time(&line).and_then(|_| {
                    count(&setup, &strace, &line, &mut runner).map_err(|why| Failure::new(why, ""))
                })]
            }),
        })
        .collect();
    drop(step);

    let table = |key: &str, title: &str, unit: &str, of: fn(&Count) -> usize| {
        let rows: Vec<Measured<f64>> = counts.iter().map(|row| row.map(|count| of(count) as f64)).collect();
        Group::new(format!("syscalls/{key}"), title, unit, &[], &rows)
    };
    let groups = vec![
        table("before", "system calls before the program starts", "calls", |c| c.before_program),
        table("elsewhere", "system calls of other processes", "calls", |c| c.elsewhere),
        table("processes", "other processes", "processes", |c| c.other_processes),
        table("whole", "system calls of the whole run, the program's own included", "calls", |c| c.whole),
    ];
    let found = |name: &str| {
        let row = counts.iter().find(|row| row.name == name)?;
        row.outcomes.as_ref().ok()?.first()?.as_ref().ok()
    };
    let joined = found(JOINING).map(|count| Estimate::exact((count.before_program + count.elsewhere) as f64));
    let budgets = vec![Budget::at_most("system calls of a joining rank before its program", 149.0, joined)];
    if args.list {
        notes.extend(counts.iter().filter_map(|row| {
            let count = found(&row.name).filter(|count| count.before_program > 0)?;
            let mut calls: Vec<_> = count.by_name.iter().collect();
            calls.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let calls: Vec<String> = calls.iter().map(|(name, n)| format!("{n} {name}")).collect();
            Some(format!("{}: {}", row.name, calls.join(", ")))
        }));
    }
    let settings = BTreeMap::from([("image".into(), setup.image.display().to_string())]);
    Ok(Report {
        bench: "syscalls".into(),
        title: "system calls of one rank".into(),
        settings,
        noise: watch.finish(),
        groups,
        budgets,
        notes,
    })
}

/// One traced run. `-ff` gives each process a file of its own, so no line is torn by another's.
fn count(setup: &Setup, strace: &Path, line: &CommandLine, runner: &mut Runner) -> Result<Count, String> {
    let dir = tempfile::tempdir().map_err(|e| format!("no directory for the trace: {e}"))?;
    let trace = dir.path().join("trace");
    let prefix = setup.line(strace, &["-ff".as_ref(), "-o".as_ref(), trace.as_os_str()]);
    runner.time(&line.after(&prefix)).map_err(|failure| failure.to_string())?;
    let mut traces = Vec::new();
    for entry in fs::read_dir(dir.path()).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        traces.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    tally(&traces, &line.program.display().to_string())
        .ok_or_else(|| format!("in the trace of {line}, no process started {}", line.program.display()))
}

/// Counts in the traces of a run's processes. The process that became the program is the one with the
/// most successful execves: the launcher's own (if it was not forked by it) and the program's.
fn tally(traces: &[String], launcher: &str) -> Option<Count> {
    let starts = |trace: &str| {
        trace.lines().filter(|line| is_exec(line)).any(|line| line.contains(&format!("(\"{launcher}\"")))
    };
    let root = traces.iter().position(|trace| starts(trace))?;
    // bwrap stays behind and lets a child become the program: then the program is where an execve is
    // that did not start the launcher.
    let program = traces
        .iter()
        .position(|trace| trace.lines().filter(|line| is_exec(line)).count() > usize::from(starts(trace)))
        .unwrap_or(root);

    let mut count = Count::default();
    for (index, trace) in traces.iter().enumerate() {
        let calls: Vec<&str> = trace.lines().filter_map(name_of_call).collect();
        count.whole += calls.len();
        if index != program {
            count.elsewhere += calls.len();
            count.other_processes += 1;
            continue;
        }
        let lines: Vec<&str> = trace.lines().filter(|line| name_of_call(line).is_some()).collect();
        let last = lines.iter().rposition(|line| is_exec(line)).unwrap_or(0);
        // The execve that started the launcher itself is its parent's doing.
        let from = usize::from(index == root);
        for name in calls.get(from..last).unwrap_or_default() {
            *count.by_name.entry((*name).into()).or_default() += 1;
        }
        count.before_program = count.by_name.values().sum();
    }
    Some(count)
}

/// The name in a line `name(arguments) = result`; signals and exits are no calls.
fn name_of_call(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('(')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(plain)).then_some(name)
}

/// A successful execve or execveat; after it the process is another program.
fn is_exec(line: &str) -> bool {
    matches!(name_of_call(line), Some("execve" | "execveat")) && line.trim_end().ends_with(" = 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn calls_between_the_two_execves() {
        let count = tally(
            &traces(&["execve(\"/l/hpc-launch\", [\"x\"], 0x7 /* 3 vars */) = 0\n\
                brk(NULL) = 0x55\n\
                execve(\"/usr/local/bin/true\", [\"true\"], 0x7 /* 3 vars */) = -1 ENOENT (No such file or directory)\n\
                --- SIGCHLD {si_signo=SIGCHLD} ---\n\
                execve(\"/bin/true\", [\"true\"], 0x7 /* 3 vars */) = 0\n\
                brk(NULL) = 0x56\n\
                exit_group(0) = ?\n\
                +++ exited with 0 +++\n"]),
            "/l/hpc-launch",
        )
        .unwrap();
        let by_name = BTreeMap::from([("brk".into(), 1), ("execve".into(), 1)]);
        assert_eq!(count, Count { before_program: 2, by_name, elsewhere: 0, other_processes: 0, whole: 6 });
    }

    #[test]
    fn a_launcher_that_stays_behind_is_another_process() {
        let count = tally(
            &traces(&[
                "execve(\"/usr/bin/bwrap\", [], 0x7) = 0\nclone(child_stack=NULL) = 7\nwait4(7) = 7\n",
                "mount(\"a\", \"b\") = 0\nexecve(\"/bin/true\", [], 0x7) = 0\nexit_group(0) = ?\n",
            ]),
            "/usr/bin/bwrap",
        )
        .unwrap();
        assert_eq!((count.before_program, count.elsewhere, count.other_processes, count.whole), (1, 3, 1, 6));
    }

    #[test]
    fn a_program_without_a_launcher_has_nothing_before_it() {
        let count =
            tally(&traces(&["execve(\"/bin/true\", [], 0x7) = 0\nbrk(NULL) = 0x5\n"]), "/bin/true").unwrap();
        assert_eq!((count.before_program, count.whole), (0, 2));
    }

    #[test]
    fn a_trace_of_something_else_is_no_count() {
        assert_eq!(tally(&traces(&["brk(NULL) = 0x5\n"]), "/bin/true"), None);
    }

    #[test]
    fn execveat_counts_as_the_program_too() {
        assert!(is_exec("execveat(3, \"\", [\"true\"], 0x7 /* 2 vars */, AT_EMPTY_PATH) = 0"));
        assert!(!is_exec("execve(\"/x\", [], 0x7) = -1 EACCES (Permission denied)"));
        assert!(!is_exec("close(3) = 0"));
    }
}

//! Jobs that hpc-launch starts itself, and what a test wants to know of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::host::{self, Who};
use crate::image::directory;
use crate::run::{Outcome, Run, Running};

/// One of each family.
pub const FAMILIES: [&str; 2] = ["bookworm-openmpi", "bookworm-mpich"];

/// How long a job may take to end once it must.
pub const SOON: Duration = Duration::from_secs(5);

/// One test at a time: they look at the whole host, and at who is on which core.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Root's image is a directory, the user's a file: there a server of its files lives beside the ranks.
pub fn image(who: Who, name: &str) -> String {
    let file = if who == Who::Root { name.to_owned() } else { format!("{name}.sqfs") };
    host::image(&file).display().to_string()
}

/// A job of so many ranks, whether there are cores for them or not.
pub fn job<A: AsRef<std::ffi::OsStr>>(who: Who, ranks: u32, rest: impl IntoIterator<Item = A>) -> Run {
    let ranks = ranks.to_string();
    Run::launch(who, ["-n", &ranks, "--oversubscribe"]).args(rest).limit(Duration::from_secs(40))
}

/// The same of a line of shell, which no MPI is needed for.
pub fn shell(who: Who, ranks: u32, options: &[&str], script: &str) -> Run {
    job(who, ranks, options).args([&image(who, FAMILIES[0]), "/bin/sh", "-c", script])
}

/// A directory that everybody may write to, and that ranks see.
pub fn shared() -> TempDir {
    let dir = directory("/tmp");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    dir
}

/// Lines in order: ranks write when they like.
pub fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// What hpc-launch itself said, without its name.
pub fn remarks(outcome: &Outcome) -> Vec<String> {
    outcome.err().lines().filter_map(|l| l.strip_prefix("hpc-launch: ")).map(str::to_owned).collect()
}

/// Asserts that the job did not take long.
#[track_caller]
pub fn ended_soon(outcome: &Outcome) {
    assert!(outcome.wall < SOON, "took {:?}\n{outcome}", outcome.wall);
}

/// The processes of a job that have this name, which a process has from its exec on.
pub fn named(running: &Running, name: &str) -> Vec<i32> {
    let comm = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    running.processes().into_iter().map(|(pid, _)| pid).filter(|pid| comm(*pid).trim_end() == name).collect()
}

/// To hpc-launch itself.
pub fn send(running: &Running, signal: Signal) {
    kill(Pid::from_raw(running.pid()), signal).unwrap_or_else(|e| panic!("{signal}: {e}"));
}

/// The processors of a list as the kernel writes it: `0-1,4`.
pub fn processors(list: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse().unwrap()..=last.parse::<usize>().unwrap()
    };
    list.trim().split(',').flat_map(range).collect()
}

/// Processors that we may use.
pub fn allowed() -> BTreeSet<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    processors(status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap())
}

/// The processors of each core that we may use, and of the socket around each.
pub fn cores() -> (BTreeSet<BTreeSet<usize>>, BTreeSet<BTreeSet<usize>>) {
    let allowed = allowed();
    let shared = |name: &str| {
        let of = |cpu: &usize| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}");
            let all = fs::read_to_string(path).map_or_else(|_| BTreeSet::from([*cpu]), |l| processors(&l));
            all.intersection(&allowed).copied().collect()
        };
        allowed.iter().map(of).collect()
    };
    (shared("thread_siblings_list"), shared("core_siblings_list"))
}

/// What the wire-up program says when all is well, and that nothing else is said of us.
#[track_caller]
pub fn wired_up(run: &Run, ranks: u32) {
    let outcome = run.run().good();
    let expected = format!("wireup of {ranks} ranks: ring allreduce shared split put correct");
    assert!(outcome.out().lines().any(|l| l == expected), "{outcome}");
    assert_eq!(remarks(&outcome), [""; 0], "{outcome}");
}

/// A program that uses MPI, says `ready`, and then waits for long.
pub const WAITS: &str = "/opt/examples/signals";

/// Until all ranks are through MPI_Init.
pub fn are_ready(running: &mut Running, ranks: usize) {
    running.wait_until("all ranks are ready", |r| r.out().matches("ready\n").count() == ranks);
}

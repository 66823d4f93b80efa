//! Signals, deaths and the process itself: what a rank is to its launcher does not change inside.
//!
//! Launchers differ and have errors of their own, so "as bare" is measured: the same program runs on the
//! host under the same launcher, and both must come out alike. The hosts that we test on have the MPIs of
//! the bookworm images, whose programs they can therefore run as they are.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone, launcher};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::leaks::Host;
use hpc_launch_tests::run::{Outcome, Run, Running};
use nix::sys::signal::Signal::{self, SIGCONT, SIGINT, SIGSEGV, SIGSTOP, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mpi {
    OpenMpi,
    Mpich,
}
use Mpi::{Mpich, OpenMpi};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Bare,
    Inside,
}
use Place::{Bare, Inside};

const PLACES: [Place; 2] = [Bare, Inside];

impl Mpi {
    /// Root's image is a directory, the user's a file: there a server of its files lives beside the ranks.
    fn image(self, who: Who) -> PathBuf {
        let name = if self == OpenMpi { "bookworm-openmpi" } else { "bookworm-mpich" };
        host::image(&if who == Who::Root { name.to_owned() } else { format!("{name}.sqfs") })
    }

    /// The launcher with so many ranks of what follows.
    fn mpirun(self, who: Who, ranks: u32) -> Run {
        let ranks = ranks.to_string();
        let run = match self {
            OpenMpi => Run::command(who, ["mpirun.openmpi", "--oversubscribe", "-n", &ranks]),
            Mpich => Run::command(who, ["mpiexec.hydra", "-n", &ranks]),
        };
        run.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    }

    /// A job of a program that lies in the image, there or on the host.
    fn job(self, who: Who, ranks: u32, place: Place, program: &[&str]) -> Run {
        let run = self.mpirun(who, ranks);
        let run = match place {
            Inside => run.args([launcher()]).args([self.image(who)]).args(&program[..1]),
            Bare if program[0].starts_with('/') => {
                run.args([format!("{}{}", self.image(Who::Root).display(), program[0])])
            }
            Bare => run.args(&program[..1]),
        };
        run.args(&program[1..])
    }
}

/// One test at a time: they look at the whole host, and some at what the launcher says first.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As everyone, at the same time: mpirun waits for a second or two when a rank has died.
fn at_once(job: impl Fn(Who) + Sync) {
    thread::scope(|scope| {
        let threads: Vec<_> = everyone().iter().map(|who| scope.spawn(|| job(*who))).collect();
        assert!(threads.into_iter().all(|t| t.join().is_ok()), "see above");
    });
}

/// Lines, sorted, without what is another one in each run: numbers of processes and jobs, and that of
/// the rank which hydra happens to find dead first (the one that fell or one that it ended).
fn alike(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let masked = ["Process name: [[", "=   PID ", "=   EXIT CODE: "].iter().any(|p| line.contains(p));
            let line = line.trim_end();
            if masked { line.chars().filter(|c| !c.is_ascii_digit()).collect() } else { line.to_owned() }
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// Asserts that two runs ended alike and said alike.
#[track_caller]
fn assert_alike(bare: &Outcome, inside: &Outcome) {
    let both = format!("bare: {bare}\ninside: {inside}");
    assert_eq!((inside.code(), inside.signal()), (bare.code(), bare.signal()), "{both}");
    assert_eq!(inside.status.core_dumped(), bare.status.core_dumped(), "{both}");
    assert_eq!(alike(&inside.out()), alike(&bare.out()), "{both}");
    assert_eq!(alike(&inside.err()), alike(&bare.err()), "{both}");
}

/// The field of /proc/PID/stat that says what a process does: `T` is stopped.
fn state(pid: i32) -> char {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

/// The processes of a job that have this name, which a process has from its exec on.
fn named(running: &Running, name: &str) -> Vec<i32> {
    let comm = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    running.processes().into_iter().map(|(pid, _)| pid).filter(|pid| comm(*pid).trim_end() == name).collect()
}

/// The processes of a job, each with its parent, by name. The server of an image's files is no part of it.
fn tree(running: &Running) -> Vec<(String, String)> {
    let status = |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = |text: &str, key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        line.unwrap_or_default().trim().to_owned()
    };
    let names = running.processes().into_iter().map(|(pid, _)| {
        let own = status(pid);
        let parent = status(value(&own, "PPid:").parse().unwrap_or(0));
        (value(&own, "Name:"), value(&parent, "Name:"))
    });
    let mut names: Vec<(String, String)> = names.filter(|(own, _)| !own.starts_with("squashfuse")).collect();
    names.sort_unstable();
    names
}

#[derive(Clone, Copy, Debug)]
enum To {
    Launcher,
    Ranks,
}

/// A signal, to whom, and what each rank says of it; nothing: it stops.
type Step = (To, Signal, &'static [&'static str]);

const RANKS: u32 = 2;

/// What `signals` is expected to say after these steps.
fn words(steps: &[Step]) -> Vec<String> {
    let words = || std::iter::once("ready").chain(steps.iter().flat_map(|s| s.2.iter().copied()));
    let mut lines: Vec<String> =
        (0..RANKS).flat_map(|r| words().map(move |w| format!("rank {r}: {w}"))).collect();
    lines.sort_unstable();
    lines
}

/// The lines of the ranks: hydra has some of its own.
fn said(text: &str) -> Vec<String> {
    let mut lines = alike(text);
    lines.retain(|line| line.starts_with("rank "));
    lines
}

/// `signals` under a launcher, bare and inside at once; every step is taken when the one before has
/// arrived at all ranks.
fn scenario(mpi: Mpi, who: Who, steps: &[Step], code: i32) {
    let mut jobs = PLACES.map(|place| mpi.job(who, RANKS, place, &["/opt/examples/signals", "40"]).start());
    let mut ranks = Vec::new();
    for job in &mut jobs {
        job.wait_until("all ranks are ready", |job| said(&job.out()) == words(&[]));
        ranks.push(named(job, "signals"));
    }
    assert!(ranks.iter().all(|r| r.len() == RANKS as usize), "{mpi:?} as {who:?}: {ranks:?}");
    let trees = [tree(&jobs[0]), tree(&jobs[1])];
    assert_eq!(trees[0], trees[1], "{mpi:?} as {who:?}: processes, bare and inside");
    for (number, (to, signal, says)) in steps.iter().enumerate() {
        for (job, ranks) in jobs.iter().zip(&ranks) {
            let pids = match to {
                To::Launcher => vec![job.pid()],
                To::Ranks => ranks.clone(),
            };
            for pid in pids {
                kill(Pid::from_raw(pid), *signal).unwrap_or_else(|e| panic!("{signal} to {pid}: {e}"));
            }
        }
        let expected = words(&steps[..=number]);
        for (job, ranks) in jobs.iter_mut().zip(&ranks) {
            job.wait_until(&format!("{signal} to the {to:?} arrives"), |job| {
                let stopped = ranks.iter().filter(|pid| state(**pid) == 'T').count();
                let right = if says.is_empty() { ranks.len() } else { 0 };
                said(&job.out()) == expected && stopped == right
            });
        }
    }
    let [bare, inside] = jobs.map(Running::finish);
    assert_eq!(bare.code(), Some(code), "{bare}");
    assert_eq!(said(&inside.out()), words(steps), "{inside}");
    assert_alike(&bare, &inside);
}

/// TERM, INT, USR1, USR2, STOP and CONT one by one, to the ranks and to the launcher, which passes on
/// what it does bare: Open MPI's TSTP too, of which the ranks stop; hydra dies of USR2 itself.
#[test]
fn every_signal_arrives() {
    let _alone = alone();
    let before = Host::now();
    let ranks: [Step; 5] = [
        (To::Ranks, SIGUSR1, &["USR1"]),
        (To::Ranks, SIGTERM, &["TERM"]),
        (To::Ranks, SIGINT, &["INT"]),
        (To::Ranks, SIGSTOP, &[]),
        (To::Ranks, SIGCONT, &["CONT"]),
    ];
    let openmpi: [Step; 4] = [
        (To::Launcher, SIGUSR1, &["USR1"]),
        (To::Launcher, SIGTSTP, &[]),
        (To::Launcher, SIGCONT, &["CONT"]),
        (To::Launcher, SIGUSR2, &["USR2"]),
    ];
    let mpich: [Step; 4] = [
        (To::Launcher, SIGUSR1, &["USR1"]),
        (To::Launcher, SIGTERM, &["TERM"]),
        (To::Launcher, SIGINT, &["INT"]),
        (To::Ranks, SIGUSR2, &["USR2"]),
    ];
    for who in everyone() {
        scenario(OpenMpi, *who, &[&ranks[..], &openmpi[..]].concat(), 0);
        scenario(Mpich, *who, &[&ranks[..], &mpich[..]].concat(), 0);
    }
    before.is_as_before("signals");
}

/// Asked to end, Open MPI wakes and asks its ranks, and kills them two seconds later.
#[test]
fn mpirun_that_is_told_to_end_ends_its_ranks() {
    let _alone = alone();
    let before = Host::now();
    at_once(|who| {
        for signal in [SIGTERM, SIGINT] {
            scenario(OpenMpi, who, &[(To::Launcher, signal, &["CONT", "TERM"])], 1);
        }
    });
    before.is_as_before("the end of mpirun");
}

/// Signals for a whole process group (Ctrl-C; Open MPI's TERM) must not take the image's files away from a
/// program that cleans up.
#[test]
fn a_group_that_is_told_to_end_keeps_its_files() {
    let _alone = alone();
    let script = "trap 'cat /etc/debian_version; exit 5' INT TERM; echo ready; while :; do sleep 0.02; done";
    for who in everyone() {
        for image in ["bookworm-mpich", "bookworm-mpich.sqfs"] {
            for signal in [SIGINT, SIGTERM] {
                let image = host::image(image);
                let run = Run::launch(*who, [image.to_str().unwrap(), "/bin/sh", "-c", script]);
                let mut running = run.limit(Duration::from_secs(20)).start();
                running.wait_until("it is ready", |r| r.out() == "ready\n");
                killpg(Pid::from_raw(running.pid()), signal).unwrap();
                let outcome = running.finish();
                assert_eq!(outcome.code(), Some(5), "{signal}: {outcome}");
                assert!(outcome.out().starts_with("ready\n12."), "{signal}: {outcome}");
            }
        }
    }
}

/// Statuses and signals of one rank, with MPI and without, and MPI_Abort(3): for the launcher the same end,
/// in the same words. Launchers lose or garble last words now and then, bare as well (hydra 4.0 in 3 of 100
/// aborts; Open MPI 4.1.4 in 9 of 40: "ORTE_ERROR_LOG: Data unpack would read past end of buffer"), and
/// hydra reports 1 for a rank that it buries before it sees its PMI socket closed: then we ask again.
#[test]
fn deaths_look_to_the_launcher_as_they_do_bare() {
    let _alone = alone();
    let before = Host::now();
    // Ranks, program; status and words of mpirun; those of hydra, whose status is made of all ranks'.
    type End = (i32, &'static str);
    type Row = (u32, &'static [&'static str], End, End);
    let table: [Row; 6] = [
        (3, &["/opt/examples/exitcode", "1", "exit", "7"], (7, "Exit code:    7"), (7, "")),
        (1, &["/opt/examples/exitcode", "0", "quit", "7"], (7, "Exit code:    7"), (7, "")),
        (3, &["/opt/examples/exitcode", "1", "signal", "11"], (139, "rank 1 with PID"), (11, "Segmentation")),
        (3, &["/opt/examples/abort"], (3, "MPI_ABORT was invoked on rank 1"), (3, "called MPI_Abort")),
        (1, &["sh", "-c", "exit 7"], (7, "Exit code:    7"), (7, "")),
        (1, &["sh", "-c", "kill -SEGV $$"], (139, "Segmentation fault"), (11, "Segmentation fault")),
    ];
    at_once(|who| {
        for mpi in [OpenMpi, Mpich] {
            for (ranks, program, openmpi, mpich) in table {
                let (status, words) = if mpi == OpenMpi { openmpi } else { mpich };
                let start = |place| mpi.job(who, ranks, place, program).start();
                let jobs = PLACES.map(|place| (place, start(place)));
                let [bare, inside] = jobs.map(|(place, job)| {
                    let mut outcome = job.finish();
                    for attempt in 0.. {
                        let right = outcome.code() == Some(status);
                        assert!(right || mpi == Mpich, "{status} expected\n{outcome}");
                        let said = outcome.out() + &outcome.err();
                        let whole = status != 3 || said.contains("rank 1 aborts with 3");
                        if right && whole && said.contains(words) {
                            break;
                        }
                        assert!(attempt < 10, "never {status} with {words:?}\n{outcome}");
                        outcome = start(place).finish();
                    }
                    outcome
                });
                assert_alike(&bare, &inside);
            }
        }
    });
    before.is_as_before("deaths");
}

/// As the program that was started, and as a rank that joined the sandbox of another one.
#[test]
fn a_core_is_dumped_where_it_is_bare() {
    let _alone = alone();
    let limited = ["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"];
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let is_file = !pattern.contains(['|', '/']);
    for who in everyone() {
        let mut seen = Vec::new();
        for command in [vec![], vec![launcher().to_owned(), OpenMpi.image(*who)]] {
            let dir = directory("/tmp");
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
            let run = Run::command(*who, limited).args(&command).cwd(dir.path());
            let outcome = run.args(["sh", "-c", "kill -SEGV $$"]).run();
            assert_eq!(outcome.signal(), Some(SIGSEGV as i32), "{outcome}");
            let job = OpenMpi.mpirun(*who, 2).args(limited).args(&command).cwd(dir.path());
            // Each in a directory of its own, none before the other is there.
            let script = "mkdir $OMPI_COMM_WORLD_RANK; cd $OMPI_COMM_WORLD_RANK; \
                          until [ -d ../0 -a -d ../1 ]; do sleep 0.01; done; kill -SEGV $$";
            let job = job.args(["sh", "-c", script]).run();
            assert_eq!(job.code(), Some(139), "{job}");
            let cores = |below: &str| -> Vec<(u32, u32)> {
                let entries = fs::read_dir(dir.path().join(below)).unwrap().map(|e| e.unwrap());
                let files = entries.filter(|e| e.file_name().to_string_lossy().starts_with("core"));
                files.map(|e| e.metadata().unwrap()).map(|m| (m.uid(), m.mode())).collect()
            };
            if is_file {
                assert_eq!(cores("").len(), 1, "{outcome}");
            }
            seen.push((outcome.status.core_dumped(), cores("")));
        }
        assert!(seen[0].0 || !is_file, "no core even on the bare host: {seen:?}");
        assert_eq!(seen[0], seen[1], "as {who:?}, bare and inside");
    }
}

/// A shell looks at its own process, writes what it sees to $0/PID.$1, and becomes what is left of its
/// arguments. It says nothing of privileges: that the program cannot gain any is by design.
const LOOK: &str = r#"
out=$0/$$.$1; shift
say() { echo "$*" >>"$out"; }
for file in limits cgroup oom_score_adj coredump_filter personality timerslack_ns; do
    while IFS= read -r line; do say "$file: $line"; done </proc/$$/$file
done
while read -r key values; do
    case $key in
    Sig[PBIC]*|Shd*|Uid:|Gid:|Groups:|Umask:|Cpus_allowed:|Mems_allowed:|NSpid:|TracerPid:|THP_enabled:|Seccomp:) say "$key $values";;
    esac
done </proc/$$/status
for name in net pid ipc uts cgroup time; do say "$name namespace $(readlink /proc/$$/ns/$name)"; done
for path in /proc/$$/fd/*; do
    number=${path##*/}
    say "descriptor $number"
    # In a subshell, which alone gets the redirection; what the shell lists them by is gone.
    (readlink $path >>"$out") || continue
    while read -r key value; do case $key in pos:|flags:|ino:) say "$number $key $value";; esac; done </proc/$$/fdinfo/$number
done
place() {
    say "process $1 $2 parent $4 group $5 session $6 terminal $7 nice ${19} started ${22} realtime ${40} policy ${41}"
}
read -r line </proc/$$/stat
place $line
[ $# = 0 ] || exec "$@"
"#;

/// What such shells wrote: for each process the lines before hpc-launch and those in the program.
fn looks(dir: &Path) -> BTreeMap<i32, [String; 2]> {
    let read =
        |pid: i32, when: &str| fs::read_to_string(dir.join(format!("{pid}.{when}"))).unwrap_or_default();
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let pids = names.filter_map(|name| name.split_once('.')?.0.parse().ok());
    pids.map(|pid| (pid, [read(pid, "before"), read(pid, "after")])).collect()
}

/// The shell that looks becomes hpc-launch, which becomes a shell that looks: both must see the same, since
/// they are one process. Alone and as a rank, with all that is unusual about a process.
#[test]
fn the_program_is_the_process_that_the_launcher_forked() {
    let _alone = alone();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let cpus = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    let cpu = cpus.split(['-', ',']).next().unwrap();
    for who in everyone() {
        for launched in [None, Some(OpenMpi), Some(Mpich)] {
            let dir = directory("/tmp");
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
            let path = dir.path().to_str().unwrap();
            fs::write(dir.path().join("input"), "one\ntwo\n").unwrap();
            let around = format!(
                "umask 0027; ulimit -S -n 777; ulimit -S -c 1; trap '' HUP USR2; exec 9<{path}/input 8>/dev/null; \
                 read -r line <&9; exec nice -n 5 taskset -c {cpu} \"$@\""
            );
            let image = launched.unwrap_or(Mpich).image(*who);
            let run = launched.map_or_else(|| Run::command(*who, ["env"]), |mpi| mpi.mpirun(*who, 3));
            let run = run.args(["sh", "-c", &around, "sh", "/bin/sh", "-c", LOOK, path, "before"]);
            let run = run.args([launcher(), &image]).args(["/bin/sh", "-c", LOOK, path, "after"]);
            let outcome = run.run().good();
            assert!(outcome.stderr.is_empty(), "{outcome}");
            let looks = looks(dir.path());
            assert_eq!(looks.len(), if launched.is_some() { 3 } else { 1 }, "{:?}\n{outcome}", looks.keys());
            assert!(launched.is_some() || looks.contains_key(&outcome.pid), "another process\n{outcome}");
            for [before, after] in looks.values() {
                for (one, other) in before.lines().zip(after.lines()) {
                    assert_eq!(one, other, "{launched:?} as {who:?}: before and after\n{outcome}");
                }
                assert_eq!(before, after, "{outcome}");
                for part in ["Umask: 0027\n", "9 pos: 4\n", "descriptor 8\n/dev/null\n", "process "] {
                    assert!(after.contains(part), "{part:?} is missing\n{after}");
                }
                let mask = |key: &str| {
                    let line = after.lines().find_map(|l| l.strip_prefix(key)).unwrap();
                    u64::from_str_radix(line, 16).unwrap()
                };
                assert_eq!(mask("SigIgn: ") & 0x1801, 0x801, "HUP and USR2 ignored, PIPE not\n{after}");
                assert_eq!(mask("Cpus_allowed: ").count_ones(), 1, "{after}");
            }
        }
    }
}

/// A signal that waits, blocked, and the wish to die with the parent, which has no place in /proc. (A program
/// without it would be left behind, for which `Run` looks.)
#[test]
fn what_waits_for_the_process_waits_for_the_program() {
    let _alone = alone();
    let dir = directory("/tmp");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let wait = ["env", "--block-signal=USR1", "sh", "-c", "kill -USR1 $$; exec \"$@\"", "sh"];
    let orphan =
        "rm -f up; setpriv --pdeathsig TERM -- \"$@\" & until [ -e up ]; do sleep 0.02; done; kill -9 $$";
    for who in everyone() {
        let image = [launcher().to_owned(), Mpich.image(*who)];
        let run = Run::command(*who, wait).args(&image);
        let outcome = run.args(["grep", "^S[ih][gd]\\(Blk\\|Pnd\\)", "/proc/self/status"]).run();
        outcome.prints("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000200\nSigBlk:\t0000000000000200");
        let run = Run::command(*who, ["sh", "-c", orphan, "sh"]).cwd(dir.path());
        let outcome = run.args(&image).args(["sh", "-c", "touch up; exec sleep 30"]).run();
        assert_eq!(outcome.signal(), Some(9), "{outcome}");
    }
}

/// A program is started by the name under which PATH has it, not by what that name is a link to: scripts
/// tell by `$0` what they are to do, people and tools find a process by its name.
#[test]
fn a_program_keeps_the_name_by_which_it_was_found() {
    let dir = directory("/tmp");
    fs::write(dir.path().join("real"), "#!/bin/sh\nread -r name </proc/$$/comm; echo \"$0 $name\"\n")
        .unwrap();
    fs::set_permissions(dir.path().join("real"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("real", dir.path().join("alias")).unwrap();
    for who in everyone() {
        let path = format!("PATH={}:/usr/bin:/bin", dir.path().display());
        let alias = dir.path().join("alias").display().to_string();
        for program in ["alias", &alias] {
            let bare = Run::command(*who, ["env", &path, program]).run();
            let bare = bare.prints(&format!("{alias} alias"));
            let image = Mpich.image(*who);
            let run = Run::launch(*who, ["--env", &path]).args([&image]).args([program]);
            run.run().prints(&bare.out());
        }
    }
}

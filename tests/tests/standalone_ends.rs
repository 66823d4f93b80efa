//! How jobs of `hpc-launch -n` end: by signals, by deaths, by orders; and what is left of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use hpc_launch_tests::host::{self, everyone, launcher};
use hpc_launch_tests::leaks::Host;
use hpc_launch_tests::run::{Run, Running};
use hpc_launch_tests::standalone::{
    FAMILIES, SOON, WAITS, alone, are_ready, ended_soon, image, job, named, remarks, send, shared, shell,
    sorted,
};
use nix::sys::signal::Signal::{
    SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;

/// The field of /proc/PID/stat that says what a process does: `T` is stopped.
fn state(pid: i32) -> char {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

const TRAPS: &str = "for s in HUP INT QUIT TERM USR1 USR2; do trap \"echo $HPC_LAUNCH_RANK $s\" $s; done; \
                     echo $HPC_LAUNCH_RANK ready; while :; do sleep 0.02; done";

/// To us, and to our process group as a shell or a batch system sends them: each rank gets each of them once.
#[test]
fn signals_reach_every_rank_and_the_second_request_to_end_is_an_order() {
    let _alone = alone();
    let before = Host::now();
    for who in everyone() {
        for (last, group) in [(SIGTERM, false), (SIGINT, false), (SIGTERM, true), (SIGINT, true)] {
            let mut running = shell(*who, 3, &[], TRAPS).start();
            let mut expected = Vec::new();
            let mut arrives = |running: &mut Running, word: &str| {
                expected.extend((0..3).map(|rank| format!("{rank} {word}")));
                expected.sort_unstable();
                running.wait_until(&format!("{word} everywhere"), |r| sorted(&r.out()) == expected);
            };
            let to = |running: &Running, signal| match group {
                true => killpg(Pid::from_raw(running.pid()), signal).unwrap(),
                false => send(running, signal),
            };
            arrives(&mut running, "ready");
            for signal in [SIGUSR1, SIGHUP, SIGUSR2, SIGQUIT, last] {
                to(&running, signal);
                arrives(&mut running, signal.as_str().trim_start_matches("SIG"));
            }
            let since = Instant::now();
            to(&running, last);
            let outcome = running.finish();
            assert_eq!(outcome.code(), Some(128 + last as i32), "{outcome}");
            assert!(since.elapsed() < SOON, "{outcome}");
            // Who asked for it need not be told.
            assert_eq!(remarks(&outcome), [""; 0], "{outcome}");
        }
    }
    before.is_as_before("signals");
}

#[test]
fn a_job_that_is_told_to_end_ends() {
    let _alone = alone();
    for who in everyone() {
        for name in FAMILIES {
            for signal in [SIGTERM, SIGINT, SIGHUP] {
                // UCX, below Debian's MPICH, takes this one for a request to say more (UCX_DEBUG_SIGNO).
                if signal == SIGHUP && name == "bookworm-mpich" {
                    continue;
                }
                let line = [&image(*who, name), "/opt/examples/exitcode", "9", "quit", "0", "60"];
                let mut running = job(*who, 3, line).start();
                running.wait_until("all ranks run", |r| named(r, "exitcode").len() == 3);
                let since = Instant::now();
                send(&running, signal);
                let outcome = running.finish();
                assert_eq!(outcome.code(), Some(128 + signal as i32), "{outcome}");
                assert!(since.elapsed() < SOON, "{outcome}");
            }
        }
        // Ranks that clean up and end well have ended well, and still have the image's files for that.
        let script = "trap 'cat /etc/debian_version; exit 0' TERM; echo ready; while :; do sleep 0.02; done";
        let mut running = shell(*who, 2, &[], script).start();
        running.wait_until("both are ready", |r| r.out() == "ready\nready\n");
        killpg(Pid::from_raw(running.pid()), SIGTERM).unwrap();
        let outcome = running.finish().good();
        assert_eq!(outcome.out().lines().filter(|l| l.starts_with("12.")).count(), 2, "{outcome}");
    }
}

/// Before there is a rank, while ranks build their sandbox, in MPI_Init, behind it.
#[test]
fn a_job_can_be_ended_at_any_moment() {
    let _alone = alone();
    let before = Host::now();
    let steps = if host::full() { 100 } else { 12 };
    for who in everyone() {
        for name in FAMILIES {
            for step in 0..steps {
                let signal = [SIGTERM, SIGKILL, SIGINT][step % 3];
                let line = [&image(*who, name), "/opt/examples/exitcode", "9", "quit", "0", "60"];
                let running = job(*who, 3, line).start();
                thread::sleep(Duration::from_micros(150_000 * step as u64 / steps as u64));
                let since = Instant::now();
                send(&running, signal);
                let outcome = running.finish();
                // By its own default, where we had not got as far as to wait for it.
                let ends =
                    [outcome.code() == Some(128 + signal as i32), outcome.signal() == Some(signal as i32)];
                assert!(ends.contains(&true), "{step}: {outcome}");
                assert!(since.elapsed() < SOON, "{step}: {outcome}");
            }
        }
    }
    before.is_as_before("ends at any moment");
}

/// Programs that use MPI get them too; a stop stops us as well, and a stopped job can be ended.
#[test]
fn a_job_stops_and_goes_on() {
    let _alone = alone();
    for who in everyone() {
        for name in FAMILIES {
            let start = || job(*who, 2, [&image(*who, name), "/opt/examples/signals", "40"]).start();
            let words = |words: &[&str]| -> Vec<String> {
                let mut all: Vec<String> =
                    (0..2).flat_map(|r| words.iter().map(move |w| format!("rank {r}: {w}"))).collect();
                all.sort_unstable();
                all
            };
            let stop = |running: &mut Running| {
                running.wait_until("both are ready", |r| sorted(&r.out()) == words(&["ready"]));
                let all = [vec![running.pid()], named(running, "signals")].concat();
                assert_eq!(all.len(), 3);
                send(running, SIGTSTP);
                running.wait_until("all are stopped", |_| all.iter().all(|pid| state(*pid) == 'T'));
            };
            let mut running = start();
            stop(&mut running);
            send(&running, SIGCONT);
            running.wait_until("they go on", |r| sorted(&r.out()) == words(&["ready", "CONT"]));
            send(&running, SIGUSR1);
            running.wait_until("USR1", |r| sorted(&r.out()) == words(&["ready", "CONT", "USR1"]));
            // Again: what was done once can be done twice.
            send(&running, SIGTSTP);
            running.wait_until("all are stopped", |r| state(r.pid()) == 'T');
            send(&running, SIGCONT);
            running
                .wait_until("they go on", |r| sorted(&r.out()) == words(&["ready", "CONT", "USR1", "CONT"]));
            send(&running, SIGUSR2);
            let outcome = running.finish().good();
            assert_eq!(
                sorted(&outcome.out()),
                words(&["ready", "CONT", "USR1", "CONT", "USR2"]),
                "{outcome}"
            );

            let mut running = start();
            stop(&mut running);
            send(&running, SIGTERM);
            send(&running, SIGCONT);
            running.wait_until("they are told", |r| sorted(&r.out()) == words(&["ready", "CONT", "TERM"]));
            send(&running, SIGTERM);
            assert_eq!(running.finish().code(), Some(143));
        }
    }
}

/// How a job ends by what one of its ranks does; nothing: the status alone is certain.
type End = (u32, &'static [&'static str], i32, &'static str);

#[test]
fn the_first_rank_that_fails_ends_the_job() {
    let _alone = alone();
    let before = Host::now();
    let table: [End; 7] = [
        (3, &["/opt/examples/exitcode", "1", "exit", "7", "60"], 7, ""),
        (
            3,
            &["/opt/examples/exitcode", "1", "quit", "7", "60"],
            7,
            "rank 1 ended with status 7: the job is ended",
        ),
        (
            3,
            &["/opt/examples/exitcode", "1", "quit", "0", "60"],
            1,
            "rank 1 ended without MPI_Finalize: the job is ended",
        ),
        (
            3,
            &["/opt/examples/exitcode", "1", "signal", "11", "60"],
            139,
            "rank 1 was killed by SIGSEGV (11): the job is ended",
        ),
        (3, &["/opt/examples/abort"], 3, "rank 1 called MPI_Abort with status 3"),
        (
            3,
            &["/bin/sh", "-c", "[ $HPC_LAUNCH_RANK = 1 ] && exit 7; sleep 60"],
            7,
            "rank 1 ended with status 7: the job is ended",
        ),
        (1, &["/bin/sh", "-c", "exit 7"], 7, ""),
    ];
    for who in everyone() {
        for name in FAMILIES {
            for (ranks, program, status, says) in table {
                let outcome = job(*who, ranks, [&image(*who, name)]).args(program).run();
                assert_eq!(outcome.code(), Some(status), "{outcome}");
                ended_soon(&outcome);
                let remarks = remarks(&outcome);
                assert!(remarks.len() <= 1, "{outcome}");
                assert!(
                    says.is_empty() || remarks.iter().any(|r| r.starts_with(says)),
                    "{says:?}\n{outcome}"
                );
            }
        }
    }
    before.is_as_before("deaths");
}

/// Where no other rank is left nobody is ended: but that it failed, and why, would otherwise be anybody's guess.
#[test]
fn the_death_of_the_last_rank_is_told_too() {
    let _alone = alone();
    for who in everyone() {
        for name in FAMILIES {
            let run = |program: &[&str]| job(*who, 1, [&image(*who, name)]).args(program).run();
            let outcome = run(&["/opt/examples/exitcode", "0", "quit", "0"]);
            assert_eq!(outcome.code(), Some(1), "{outcome}");
            outcome.says(&["hpc-launch: rank 0 ended without MPI_Finalize"]);
            let outcome = run(&["/opt/examples/exitcode", "0", "signal", "11"]);
            assert_eq!(outcome.code(), Some(139), "{outcome}");
            outcome.says(&["hpc-launch: rank 0 was killed by SIGSEGV (11)"]);
        }
    }
}

/// What cannot be told by an exit status is not 0, and what was asked for is what is told.
#[test]
fn statuses_of_mpi_abort() {
    let _alone = alone();
    for who in everyone() {
        for name in ["bookworm-python", "bookworm-python-mpich"] {
            for (asked, status) in [("0", 1), ("256", 1), ("263", 7), ("-1", 255)] {
                let script = format!(
                    "from mpi4py import MPI; w = MPI.COMM_WORLD; w.rank == 1 and w.Abort({asked}); w.Barrier()"
                );
                let line = [&image(*who, name), "/opt/venv/bin/python3", "-c", &script];
                let outcome = job(*who, 2, line).run();
                assert_eq!(outcome.code(), Some(status), "{outcome}");
                assert_eq!(
                    remarks(&outcome),
                    [format!("rank 1 called MPI_Abort with status {asked}")],
                    "{outcome}"
                );
            }
        }
    }
}

#[test]
fn what_cannot_start_is_said_once() {
    let _alone = alone();
    let before = Host::now();
    for who in everyone() {
        for name in FAMILIES {
            let image = image(*who, name);
            let absent = ["/opt/examples/nope does not exist inside"];
            job(*who, 4, [&image, "/opt/examples/nope"]).run().refused("program-not-found", &absent);
            job(*who, 4, [&image, "nope"]).run().refused("program-not-found", &["nope is in no directory"]);
            job(*who, 4, [&image, "/etc"]).run().refused("program-not-executable", &["it is a directory"]);
            let outcome = job(*who, 4, ["/nonexistent/image", "true"]).run();
            outcome.refused("image-missing", &["/nonexistent/image"]);
            // One of two programs: the ranks of the other do not wait for it.
            let line = [&image, "sleep", "60", ":", "-n", "1", &image, "/opt/examples/nope"];
            let outcome = job(*who, 2, line).run();
            ended_soon(&outcome);
            outcome
                .refused("program-not-found", &absent)
                .says(&["rank 2 ended with status 127: the job is ended"]);
        }
    }
    before.is_as_before("refusals");
}

/// Asked to end, given time, killed: themselves and what they have started.
#[test]
fn ranks_that_do_not_want_to_end_are_killed() {
    let _alone = alone();
    for who in everyone() {
        let dir = shared();
        let up = dir.path().join("up").display().to_string();
        let script = "[ $HPC_LAUNCH_RANK = 1 ] || { trap '' TERM; sleep 60 & : >$0; sleep 60; sleep 60; }; \
                      until [ -e $0 ]; do sleep 0.01; done; exit 7";
        let outcome = shell(*who, 2, &[], script).args([&up]).run();
        assert_eq!(outcome.code(), Some(7), "{outcome}");
        assert!(outcome.wall > Duration::from_millis(450), "{:?}\n{outcome}", outcome.wall);
        ended_soon(&outcome);
        assert_eq!(remarks(&outcome), ["rank 1 ended with status 7: the job is ended"], "{outcome}");
    }
}

#[test]
fn a_limit_of_time() {
    let _alone = alone();
    for who in everyone() {
        let check = |seconds: u64, program: &[&str]| {
            let limit = seconds.to_string();
            let outcome = job(*who, 2, ["--timeout", &limit]).args(program).run();
            assert_eq!(outcome.code(), Some(124), "{outcome}");
            let said = format!("--timeout: the job has run for {seconds} s and is ended");
            assert_eq!(remarks(&outcome), [said], "{outcome}");
            let range = Duration::from_secs(seconds)..Duration::from_secs(seconds) + SOON;
            assert!(range.contains(&outcome.wall), "{:?}\n{outcome}", outcome.wall);
        };
        for name in FAMILIES {
            let image = image(*who, name);
            check(2, &[&image, "/opt/examples/exitcode", "9", "quit", "0", "60"]);
            check(1, &[&image, "sleep", "60"]);
            check(1, &[&image, "sh", "-c", "trap '' TERM; sleep 60; sleep 60"]);
            // A stopped rank is woken for it.
            check(1, &[&image, "sh", "-c", "kill -STOP $$; sleep 60"]);
        }
        shell(*who, 1, &["--timeout", "30"], "echo in time").run().prints("in time");
    }
}

/// A rank that ends well when it is asked to may leave something that does not.
#[test]
fn what_ranks_have_started_ends_with_the_job() {
    let _alone = alone();
    for who in everyone() {
        let script = "trap 'exit 0' TERM; (trap '' TERM; sleep 30; sleep 30) & wait";
        let outcome = shell(*who, 1, &["--timeout", "1"], script).run();
        assert_eq!(outcome.code(), Some(124), "{outcome}");
    }
}

/// Killed itself, hpc-launch can do nothing more for anybody: the kernel ends its ranks.
#[track_caller]
fn killed(mut running: Running, ranks: usize) {
    are_ready(&mut running, ranks);
    send(&running, SIGKILL);
    let since = Instant::now();
    // The server of an image's files ends when the kernel has let go of them.
    while !running.processes().is_empty() && since.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(5));
    }
    let left = running.processes();
    for (pid, _) in &left {
        let _ = kill(Pid::from_raw(*pid), SIGKILL);
    }
    let outcome = running.finish();
    assert!(left.is_empty(), "left behind after 2 s: {left:#?}\n{outcome}");
    assert_eq!(outcome.signal(), Some(9), "{outcome}");
}

#[test]
fn ranks_die_with_hpc_launch() {
    let _alone = alone();
    let before = Host::now();
    for who in everyone() {
        for name in FAMILIES {
            for options in [&[][..], &["--tag-output"]] {
                let line = [&image(*who, name), WAITS, "60"];
                killed(job(*who, 3, options).args(line).start(), 3);
            }
        }
        // Without MPI.
        killed(shell(*who, 3, &[], "echo ready; exec sleep 60").start(), 3);
    }
    before.is_as_before("the death of hpc-launch");
}

/// An MPI program that a script starts is no rank of ours, but the rank's.
#[test]
fn what_ranks_have_started_dies_with_hpc_launch() {
    let _alone = alone();
    for who in everyone() {
        for name in FAMILIES {
            let line = [&image(*who, name), "/bin/sh", "-c", "/opt/examples/signals 60; true"];
            killed(job(*who, 2, line).start(), 2);
        }
    }
}

/// Files in /dev/shm that these processes have mapped, and that have a name there.
fn shared_memory(ranks: &[i32]) -> BTreeSet<PathBuf> {
    let maps = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let path = |line: &str| Some(PathBuf::from(line.get(line.find("/dev/shm/")?..)?));
    let all: Vec<String> = ranks.iter().map(maps).collect();
    all.iter().flat_map(|text| text.lines()).filter_map(path).filter(|p| p.exists()).collect()
}

/// Ranks that fall leave their shared memory, which their MPI has asked its server to remove for that case.
#[test]
fn no_memory_stays_behind() {
    let _alone = alone();
    for who in everyone() {
        for name in host::MPI_IMAGES {
            if !host::full() && !FAMILIES.contains(&name) {
                continue;
            }
            let mut running = job(*who, 3, ["--mpi=image", &image(*who, name), WAITS, "60"]).start();
            are_ready(&mut running, 3);
            let ranks = named(&running, "signals");
            let files = shared_memory(&ranks);
            kill(Pid::from_raw(ranks[1]), SIGKILL).unwrap();
            let outcome = running.finish();
            assert_eq!(outcome.code(), Some(137), "{outcome}");
            let left: Vec<_> = files.iter().filter(|p| p.exists()).collect();
            left.iter().for_each(|p| fs::remove_file(p).unwrap());
            assert!(left.is_empty(), "{name} as {who:?} leaves {left:?}");
        }
    }
}

/// Whoever starts us may wait for its own children in this way, which we would inherit.
#[test]
fn a_parent_that_does_not_wait_for_children() {
    let _alone = alone();
    for who in everyone() {
        let line = [launcher().to_str().unwrap(), "-n", "2", "--oversubscribe", &image(*who, FAMILIES[0])];
        let run = Run::command(*who, ["env", "--ignore-signal=CHLD"]).args(line);
        let run = run.args(["/bin/sh", "-c", "exit 3"]).limit(Duration::from_secs(10));
        assert_eq!(run.run().code(), Some(3));
    }
}

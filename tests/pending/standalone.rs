//! `hpc-launch -n N IMAGE COMMAND`: a job of one node without any launcher.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hpc_launch_tests::host::{self, Who, everyone, launcher};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::leaks::Host;
use hpc_launch_tests::run::{Outcome, Run, Running};
use nix::sys::signal::Signal::{
    self, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Every image with an MPI.
const IMAGES: [&str; 8] = [
    "bullseye-openmpi",
    "bookworm-openmpi",
    "trixie-openmpi",
    "bullseye-mpich",
    "bookworm-mpich",
    "trixie-mpich",
    "bookworm-mpich-wheel",
    "bookworm-intel",
];
/// One of each family.
const FAMILIES: [&str; 2] = ["bookworm-openmpi", "bookworm-mpich"];
/// How long a job may take to end once it must.
const SOON: Duration = Duration::from_secs(5);

/// One test at a time: they look at the whole host, and at who is on which core.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Root's image is a directory, the user's a file: there a server of its files lives beside the ranks.
fn image(who: Who, name: &str) -> String {
    let file = if who == Who::Root { name.to_owned() } else { format!("{name}.sqfs") };
    host::image(&file).display().to_string()
}

/// A job of so many ranks, whether there are cores for them or not.
fn job<A: AsRef<std::ffi::OsStr>>(who: Who, ranks: u32, rest: impl IntoIterator<Item = A>) -> Run {
    let ranks = ranks.to_string();
    Run::launch(who, ["-n", &ranks, "--oversubscribe"]).args(rest).limit(Duration::from_secs(40))
}

/// The same of a line of shell, which no MPI is needed for.
fn shell(who: Who, ranks: u32, options: &[&str], script: &str) -> Run {
    job(who, ranks, options).args([&image(who, FAMILIES[0]), "/bin/sh", "-c", script])
}

/// A directory that everybody may write to, and that ranks see.
fn shared() -> TempDir {
    let dir = directory("/tmp");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    dir
}

/// Lines in order: ranks write when they like.
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// What hpc-launch itself said, without its name.
fn remarks(outcome: &Outcome) -> Vec<String> {
    outcome.err().lines().filter_map(|l| l.strip_prefix("hpc-launch: ")).map(str::to_owned).collect()
}

#[track_caller]
fn ended_soon(outcome: &Outcome) {
    assert!(outcome.wall < SOON, "took {:?}\n{outcome}", outcome.wall);
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

fn send(running: &Running, signal: Signal) {
    kill(Pid::from_raw(running.pid()), signal).unwrap_or_else(|e| panic!("{signal}: {e}"));
}

/// The processors of a list as the kernel writes it: `0-1,4`.
fn processors(list: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse().unwrap()..=last.parse::<usize>().unwrap()
    };
    list.trim().split(',').flat_map(range).collect()
}

fn allowed() -> BTreeSet<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    processors(status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap())
}

/// The processors of each core that we may use, and of the socket around each.
fn cores() -> (BTreeSet<BTreeSet<usize>>, BTreeSet<BTreeSet<usize>>) {
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
fn wired_up(run: &Run, ranks: u32) {
    let outcome = run.run().good();
    let expected = format!("wireup of {ranks} ranks: ring allreduce shared split put correct");
    assert!(outcome.out().lines().any(|l| l == expected), "{outcome}");
    assert_eq!(remarks(&outcome), [""; 0], "{outcome}");
}

#[test]
fn every_image_and_every_number_of_ranks() {
    let _alone = alone();
    let before = Host::now();
    for (i, name) in IMAGES.iter().enumerate() {
        for (s, ranks) in [1u32, 2, 5].into_iter().enumerate() {
            for (w, who) in everyone().iter().enumerate() {
                // Each image and each user with one of the numbers.
                if !host::full() && s != (i + w) % 3 {
                    continue;
                }
                // Where the host's MPI is better for the program, it has that.
                for mpi in ["--mpi=image", "--mpi=auto"] {
                    let run = job(*who, ranks, [mpi, &image(*who, name), "/opt/examples/wireup"]);
                    wired_up(&run.env("WIREUP_LOCAL", ranks.to_string()), ranks);
                }
            }
        }
    }
    before.is_as_before("jobs of every image");
}

/// No launcher can be found, and the only processes are the ranks, which are our children.
#[test]
fn no_launcher_is_needed() {
    let _alone = alone();
    for who in everyone() {
        for name in FAMILIES {
            let image = host::image(name).display().to_string();
            let run = Run::command(*who, ["env", "PATH=/nonexistent"]).args([launcher()]);
            wired_up(&run.args(["-n", "2", "--oversubscribe", &image, "/opt/examples/wireup"]), 2);
            let line = [image.as_str(), "/opt/examples/exitcode", "9", "signal", "9", "60"];
            let mut running = job(*who, 2, line).start();
            running.wait_until("both ranks run", |r| named(r, "exitcode").len() == 2);
            let parent = |pid: &i32| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                status.lines().find_map(|l| l.strip_prefix("PPid:")?.trim().parse().ok())
            };
            let ranks = named(&running, "exitcode");
            assert!(ranks.iter().all(|pid| parent(pid) == Some(running.pid())), "{ranks:?}");
            assert_eq!(running.processes().len(), 3, "{:#?}", running.processes());
            send(&running, SIGTERM);
            assert_eq!(running.finish().code(), Some(143));
        }
    }
}

#[test]
fn programs_without_mpi_know_their_place() {
    let _alone = alone();
    let outside = fs::read_link("/proc/self/ns/mnt").unwrap().display().to_string();
    for who in everyone() {
        // All of them live until the last is there: else one sandbox might follow another.
        let dir = shared();
        let wait = format!(
            "cd {}; : > $HPC_LAUNCH_RANK; until [ -e 0 -a -e 1 -a -e 2 ]; do sleep 0.01; done;",
            dir.path().display()
        );
        let script =
            format!("{wait} echo \"$HPC_LAUNCH_RANK of $HPC_LAUNCH_SIZE in $(readlink /proc/self/ns/mnt)\"");
        let outcome = shell(*who, 3, &[], &script).run().good();
        let lines = sorted(&outcome.out());
        let inside = lines[0].split_once(" in ").unwrap().1.to_owned();
        let expected: Vec<String> = (0..3).map(|r| format!("{r} of 3 in {inside}")).collect();
        assert_eq!(lines, expected, "{outcome}");
        assert_ne!(inside, outside, "{outcome}");
        assert!(inside.starts_with("mnt:["), "{outcome}");
    }
}

/// What a rank inherits is what it would have inherited without us.
#[test]
fn ranks_inherit_what_we_did() {
    let _alone = alone();
    let around = "umask 0027; ulimit -S -n 777; trap '' USR2; exec 9</dev/null nice -n 5 \"$@\"";
    let look = "umask; ulimit -S -n; nice; pwd; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/$$/fd";
    for who in everyone() {
        let run = |launcher: &[&str]| {
            let run = Run::command(*who, ["sh", "-c", around, "sh"]).args(launcher).cwd("/tmp");
            run.args(["/bin/sh", "-c", look]).run().good()
        };
        let bare = run(&[]);
        let line = [launcher().to_str().unwrap(), "-n", "1", &image(*who, FAMILIES[0])];
        let inside = run(&line);
        // By one descriptor more it knows that we live.
        let (bare, inside) = (sorted(&bare.out()), sorted(&inside.out()));
        let more: Vec<&String> = inside.iter().filter(|l| !bare.contains(l)).collect();
        let less: Vec<&String> = bare.iter().filter(|l| !inside.contains(l)).collect();
        assert!(more.len() <= 1 && more.iter().all(|l| l.parse::<u32>().is_ok_and(|n| n < 777)), "{more:?}");
        assert!(less.is_empty(), "{less:?} became {more:?}");
    }
}

#[test]
fn whole_lines_of_all_ranks() {
    let _alone = alone();
    let script =
        "i=0; while [ $i -lt 300 ]; do echo \"rank $HPC_LAUNCH_RANK line $i end\"; i=$((i + 1)); done";
    let mut expected: Vec<String> =
        (0..4).flat_map(|r| (0..300).map(move |i| format!("rank {r} line {i} end"))).collect();
    expected.sort_unstable();
    for who in everyone() {
        let outcome = shell(*who, 4, &[], script).run().good();
        assert_eq!(sorted(&outcome.out()), expected, "{outcome}");
        let tagged = shell(*who, 4, &["--tag-output"], script).run().good();
        let tags: Vec<String> =
            expected.iter().map(|l| format!("[1,{}]<stdout>:{l}", l.split(' ').nth(1).unwrap())).collect();
        assert_eq!(sorted(&tagged.out()), tags, "{tagged}");
        assert!(tagged.stderr.is_empty(), "{tagged}");
    }
}

#[test]
fn tagged_output() {
    let _alone = alone();
    let script =
        "echo out $HPC_LAUNCH_RANK; echo err $HPC_LAUNCH_RANK >&2; echo; printf 'last %s' $HPC_LAUNCH_RANK";
    for who in everyone() {
        let outcome = shell(*who, 2, &["--tag-output"], script).run().good();
        let rank = |r| {
            [
                format!("[1,{r}]<stdout>:"),
                format!("[1,{r}]<stdout>:last {r}"),
                format!("[1,{r}]<stdout>:out {r}"),
            ]
        };
        assert_eq!(sorted(&outcome.out()), [rank(0), rank(1)].concat(), "{outcome}");
        assert_eq!(sorted(&outcome.err()), ["[1,0]<stderr>:err 0", "[1,1]<stderr>:err 1"], "{outcome}");
        assert!(outcome.out().ends_with('\n'), "{outcome}");
        // Longer than what is kept: in pieces, of which nothing is missing.
        let long = "head -c 200000 /dev/zero | tr '\\0' x; echo";
        let outcome = shell(*who, 1, &["--tag-output"], long).run().good();
        let pieces = outcome.out();
        let pieces = pieces.lines().map(|l| l.strip_prefix("[1,0]<stdout>:").expect("a tag"));
        assert_eq!(pieces.collect::<String>(), "x".repeat(200_000));
        // Who holds the pipe for longer than the job lives is not waited for.
        let outcome = shell(*who, 2, &["--tag-output"], "(sleep 1.5; echo late) & echo now").run().good();
        assert_eq!(sorted(&outcome.out()), ["[1,0]<stdout>:now", "[1,1]<stdout>:now"], "{outcome}");
        assert!(outcome.wall < Duration::from_millis(1400), "{:?}\n{outcome}", outcome.wall);
    }
}

/// A reader that takes its time gets all of it, also of ranks that have ended long before.
#[test]
fn tagged_output_waits_for_its_reader() {
    let _alone = alone();
    // Less than a pipe holds: no rank has to wait.
    let script = "i=0; while [ $i -lt 1000 ]; do printf '%049d\\n' $i; i=$((i + 1)); done";
    let slow = "\"$@\" | { sum=0; while sleep 0.3; n=$(dd bs=65536 count=1 2>/dev/null | wc -c); [ $n -gt 0 ]; \
                do sum=$((sum + n)); done; echo $sum; }";
    for who in everyone() {
        let line = [launcher().to_str().unwrap(), "-n", "8", "--oversubscribe", "--tag-output"];
        let run = Run::command(*who, ["sh", "-c", slow, "sh"]).args(line);
        let run = run.args([&image(*who, FAMILIES[0]), "/bin/sh", "-c", script]);
        run.run().prints(&(8 * 1000 * ("[1,0]<stdout>:".len() + 50)).to_string());
    }
}

#[test]
fn output_in_files() {
    let _alone = alone();
    let script = "echo out $HPC_LAUNCH_RANK; printf 'err %s' $HPC_LAUNCH_RANK >&2";
    for who in everyone() {
        let dir = shared();
        // Made where it is missing, found where a relative one leads.
        for out in ["new/in/new", "relative"] {
            let option =
                if out == "relative" { out.to_owned() } else { dir.path().join(out).display().to_string() };
            let run = shell(*who, 3, &["--output-dir", &option], script).cwd(dir.path());
            let outcome = run.run().good();
            assert!(outcome.stdout.is_empty() && outcome.stderr.is_empty(), "{outcome}");
            for rank in 0..3 {
                let file = |name: &str| dir.path().join(out).join(format!("rank.{rank}")).join(name);
                assert_eq!(fs::read_to_string(file("stdout")).unwrap(), format!("out {rank}\n"));
                assert_eq!(fs::read_to_string(file("stderr")).unwrap(), format!("err {rank}"));
                assert_eq!(fs::metadata(file("stdout")).unwrap().uid(), who.account().uid);
            }
        }
        let outcome = shell(*who, 2, &["--output-dir", "/proc/nope"], script).run();
        outcome
            .refused("usage", &["--output-dir: cannot write /proc/nope/rank.0/stdout: ", "name a directory"]);
        let outcome = shell(*who, 2, &["--output-dir", "x", "--tag-output"], script).run();
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        outcome.says(&["'--output-dir <DIR>' cannot be used with '--tag-output'"]);
    }
}

/// Found out when some ranks run already: they are ended too.
#[test]
fn ranks_do_not_outlive_a_start_that_fails() {
    let _alone = alone();
    for who in everyone() {
        let dir = shared();
        fs::write(dir.path().join("rank.1"), "in the way").unwrap();
        let path = dir.path().display().to_string();
        let outcome = shell(*who, 2, &["--output-dir", &path], "sleep 30").run();
        outcome.refused("usage", &["/rank.1/stdout: File exists"]);
    }
}

#[test]
fn standard_input_is_rank_0s() {
    let _alone = alone();
    for who in everyone() {
        let script = "echo $HPC_LAUNCH_RANK read $(wc -c)";
        let run = shell(*who, 3, &[], script).stdin("0123456789abcdef\n".repeat(100_000));
        let outcome = run.run().good();
        assert_eq!(sorted(&outcome.out()), ["0 read 1700000", "1 read 0", "2 read 0"], "{outcome}");
        // Closed for us, it is closed for rank 0.
        let line = [launcher().to_str().unwrap(), "-n", "1", &image(*who, FAMILIES[0])];
        let script = "[ -e /proc/$$/fd/0 ] || echo closed";
        let run = Run::command(*who, ["sh", "-c", "exec \"$@\" <&-", "sh"]).args(line);
        run.args(["/bin/sh", "-c", script]).run().prints("closed");
    }
}

/// Starts its arguments at a terminal, waits for the word `ready`, types what it reads, and prints what comes out;
/// interrupts the job when not all can be typed. (Python alone has terminals to give.)
const TERMINAL: &str = r#"
import fcntl, os, pty, select, sys, time
typed = sys.stdin.buffer.read()
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
out, ready, end = b"", False, time.time() + 3
while True:
    if select.select([fd], [], [], 0.01)[0]:
        try:
            got = os.read(fd, 65536)
        except OSError:
            break
        out += got
        if not got:
            break
    if not ready and b"ready" in out:
        ready, end = True, time.time() + 3
    if ready and typed:
        try:
            typed = typed[os.write(fd, typed[:1000]):]
        except BlockingIOError:
            pass
        if time.time() > end:
            typed = b""
            os.kill(pid, 2)
status = os.waitpid(pid, 0)[1]
sys.stdout.buffer.write(out.replace(b"\r\n", b"\n"))
sys.exit(os.waitstatus_to_exitcode(status))
"#;

fn at_a_terminal(who: Who, typed: impl Into<Vec<u8>>, script: &str) -> Outcome {
    let run = Run::command(who, ["python3", "-c", TERMINAL]).args([launcher()]).args([
        "-n",
        "2",
        "--oversubscribe",
    ]);
    let run = run.args([&image(who, FAMILIES[0]), "/bin/sh", "-c", script]).stdin(typed);
    run.limit(Duration::from_secs(20)).run()
}

#[test]
fn at_a_terminal_rank_0_gets_what_is_typed() {
    let _alone = alone();
    for who in everyone() {
        let script =
            "echo ready; read -r line; echo $HPC_LAUNCH_RANK: $line; cat; echo $HPC_LAUNCH_RANK: end";
        let outcome = at_a_terminal(*who, "one\ntwo\n\x04", script).good();
        let lines = sorted(&outcome.out());
        for line in ["0: one", "1:", "two", "0: end", "1: end"] {
            assert!(lines.iter().any(|l| l == line), "{line}\n{outcome}");
        }
        // Ctrl-C.
        let outcome = at_a_terminal(*who, "\x03", "echo ready; exec sleep 30");
        assert_eq!(outcome.code(), Some(130), "{outcome}");
        ended_soon(&outcome);
    }
}

/// More is typed than rank 0 and the kernel take: what else we have to do is still done.
#[test]
fn a_rank_that_does_not_read_does_not_stop_us() {
    let _alone = alone();
    let typed = "a line of what somebody pastes\n".repeat(10_000);
    let outcome = at_a_terminal(Who::User, typed, "echo ready; exec sleep 30");
    assert_eq!(outcome.code(), Some(130), "{outcome}");
}

/// Where each rank runs, by rank.
fn places(run: &Run) -> Vec<BTreeSet<usize>> {
    let outcome = run.run().good();
    let lines = sorted(&outcome.out());
    lines.iter().map(|l| processors(l.split_whitespace().nth(2).unwrap())).collect()
}

#[test]
fn ranks_are_bound_to_cores() {
    let _alone = alone();
    let (cores, sockets) = cores();
    if cores.len() < 2 {
        eprintln!("not run: there is one core only");
        return;
    }
    let script = "echo $HPC_LAUNCH_RANK $(grep Cpus_allowed_list: /proc/self/status)";
    let too_many = (cores.len() + 1) as u32;
    for who in everyone() {
        let with = |options: &[&str]| {
            let line = [image(*who, FAMILIES[0]), "/bin/sh".into(), "-c".into(), script.into()];
            Run::launch(*who, ["-n", "2"]).args(options).args(line)
        };
        for options in [&[][..], &["--bind-to", "core"]] {
            let places = places(&with(options));
            assert!(places.iter().all(|place| cores.contains(place)), "{places:?} of {cores:?}");
            assert_ne!(places[0], places[1], "{places:?}");
        }
        assert_eq!(places(&with(&["--bind-to", "none"])), [allowed(), allowed()]);
        let places_in_sockets = places(&with(&["--bind-to=socket"]));
        assert!(places_in_sockets.iter().all(|place| sockets.contains(place)), "{places_in_sockets:?}");
        let places_of_many = places(&shell(*who, too_many, &[], script));
        assert_eq!(places_of_many, vec![allowed(); too_many as usize]);
        // What is allowed to us is what there is.
        let first = allowed().first().unwrap().to_string();
        let line = [launcher().to_str().unwrap(), "-n", "1", &image(*who, FAMILIES[0])];
        let run = Run::command(*who, ["taskset", "-c", &first]).args(line).args(["/bin/sh", "-c", script]);
        run.run().prints(&format!("0 Cpus_allowed_list: {first}"));
    }
}

/// As many ranks as cores, each on its own: MPI must not yield its core at every turn.
#[test]
fn bound_ranks_do_not_share_a_core() {
    let _alone = alone();
    let cores = cores().0.len() as u32;
    if cores < 2 {
        eprintln!("not run: there is one core only");
        return;
    }
    let script = "echo yield ${OMPI_MCA_mpi_yield_when_idle-unset}; exec /opt/examples/ring";
    for who in everyone() {
        for (ranks, yields) in [(2, "unset"), (cores + 1, "1")] {
            let outcome = shell(*who, ranks, &[], script).run().good();
            let count = outcome.out().lines().filter(|l| *l == format!("yield {yields}")).count();
            assert_eq!(count, ranks as usize, "{outcome}");
        }
    }
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

/// A program that uses MPI, says `ready`, and then waits for long.
const WAITS: &str = "/opt/examples/signals";

/// Until all ranks are through MPI_Init.
fn are_ready(running: &mut Running, ranks: usize) {
    running.wait_until("all ranks are ready", |r| r.out().matches("ready\n").count() == ranks);
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
        for name in IMAGES {
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

#[test]
fn several_programs_are_one_job() {
    let _alone = alone();
    let before = Host::now();
    for who in everyone() {
        for name in FAMILIES {
            // One image is a directory, the other a file; the other program has another name too.
            let [one, other] =
                [name.to_owned(), format!("{name}.sqfs")].map(|n| host::image(&n).display().to_string());
            let other_name = "/opt/examples/../examples/ring";
            let line = [&one, "/opt/examples/ring", ":", "-n", "1", &other, other_name];
            let outcome = job(*who, 2, line).run().good();
            assert_eq!(outcome.out(), "ring of 3 ranks: sum 3 correct\n", "{outcome}");
            let line =
                [&one, "/opt/examples/wireup", ":", "-n", "3", &one, "/opt/examples/../examples/wireup"];
            wired_up(&job(*who, 1, line).env("WIREUP_LOCAL", "4"), 4);
            // Each with options of its own; those of the job before the first.
            let say = ["/bin/sh", "-c", "echo $HPC_LAUNCH_RANK of $HPC_LAUNCH_SIZE $A"];
            let first = [&["--tag-output", "--env", "A=one", &one][..], &say].concat();
            let second = [&[":", "-n", "2", "--env", "A=two", &other][..], &say].concat();
            let third = [":", "-n", "1", &one, "echo", "three"];
            let line = [&first[..], &second, &third].concat();
            let outcome = job(*who, 1, line).run().good();
            let tags = [(0, "0 of 4 one"), (1, "1 of 4 two"), (2, "2 of 4 two"), (3, "three")];
            assert_eq!(
                sorted(&outcome.out()),
                tags.map(|(r, l)| format!("[1,{r}]<stdout>:{l}")),
                "{outcome}"
            );
        }
        for name in ["bookworm-python", "bookworm-python-mpich"] {
            let image = image(*who, name);
            let script = "from mpi4py import MPI; w = MPI.COMM_WORLD; \
                          print(f'{w.rank} of {w.size} is of program {w.Get_attr(MPI.APPNUM)}')";
            let python = [&image, "/opt/venv/bin/python3", "-c", script];
            let line = python.iter().copied().chain([":", "-n", "2"]).chain(python);
            let outcome = job(*who, 1, line).run().good();
            let expected = ["0 of 3 is of program 0", "1 of 3 is of program 1", "2 of 3 is of program 1"];
            assert_eq!(sorted(&outcome.out()), expected, "{outcome}");
        }
    }
    before.is_as_before("jobs of several programs");
}

/// Of one command by its name, and of two by what they do.
#[test]
fn programs_of_one_name_that_differ() {
    let _alone = alone();
    for who in everyone() {
        for name in FAMILIES {
            let image = image(*who, name);
            let line = [
                &image,
                "sh",
                "-c",
                "sleep 1",
                ":",
                "-n",
                "1",
                &image,
                "sh",
                "-c",
                "exec /opt/examples/hello",
            ];
            let outcome = job(*who, 1, ["--timeout", "5"]).args(line).run();
            // Told that it cannot be, or a job of two, whose other rank never comes: but no job of its own.
            assert!(!outcome.out().contains("of 1 on"), "{outcome}");
        }
    }
}

#[test]
fn command_lines_that_cannot_be() {
    let _alone = alone();
    let image = host::image(FAMILIES[0]).display().to_string();
    let image = image.as_str();
    let cores = cores().0.len();
    let too_many = (cores + 1).to_string();
    for who in everyone() {
        let run = |line: &[&str]| Run::launch(*who, line).run();
        let parts =
            format!("{too_many} ranks were asked for, and there are {cores} cores that this process may use");
        let outcome = run(&["-n", &too_many, image, "true"]);
        outcome.refused("too-many-ranks", &[&parts, "--oversubscribe starts them all the same"]);
        let half = [image, "true", ":", "-n", &too_many, image, "true"];
        let parts = format!("{} ranks were asked for, and there are {cores} cores", cores + 2);
        run(&[&["-n", "1"][..], &half].concat()).refused("too-many-ranks", &[&parts]);
        let first = allowed().first().unwrap().to_string();
        let line = ["taskset", "-c", &first, launcher().to_str().unwrap(), "-n", "2", image, "true"];
        Run::command(*who, line).run().refused("too-many-ranks", &["2 ranks were asked for, and there"]);
        for (line, why) in [
            (&["-n", "0", image, "true"][..], "-n 0: a job has at least one rank"),
            (&["-n", "1", image, "true", ":"], "nothing follows `:`"),
            (&["-n", "1", image, ":", "-n", "1", image, "true"], "no command stands before `:`"),
            (
                &["-n", "1", image, "true", ":", image, "true"],
                "each part of a command line with `:` needs -n and an image",
            ),
            (&["-n", "1", image, "true", ":", "-n", "0", image, "true"], "-n 0: a job has at least one rank"),
            (&["-n", "1", image, "true", ":", "-n", "1", image], "behind `:`: "),
            (
                &["-n", "1", image, "true", ":", "-n", "x", image, "true"],
                "behind `:`: invalid value 'x' for '--np <N>'",
            ),
            (
                &["-n", "1", image, "true", ":", "-n", "1", "--nope", image, "true"],
                "behind `:`: unexpected argument '--nope'",
            ),
            (
                &["-n", "1", image, "true", ":", "-n", "1", "--timeout", "3", image, "true"],
                "options of the whole job stand before the first image, not behind `:`",
            ),
            (
                &["-n", "65000", image, "true", ":", "-n", "1000", image, "true"],
                "66000 ranks on one node; at most 65535",
            ),
            (
                &["-n", "1", image, "true", ":", "-n", "1", "--env", "A", image, "true"],
                "there is no NAME=VALUE",
            ),
        ] {
            run(line).refused("usage", &[why]);
        }
        for (line, why) in [
            (&["-n", "x", image, "true"][..], "invalid value 'x' for '--np <N>'"),
            (&["-n", image, "true"], "for '--np <N>'"),
            (
                &["-n", "1", "--timeout", "soon", image, "true"],
                "invalid value 'soon' for '--timeout <SECONDS>'",
            ),
            (&["-n", "1", "--bind-to", "numa", image, "true"], "[possible values: core, socket, none]"),
            (&["-n", "1", image], "<COMMAND>"),
            (&["-n", "1"], "<IMAGE>"),
            (&["--tag-output", image, "true"], "--np <N>"),
            (&["--oversubscribe", image, "true"], "--np <N>"),
            (&["--bind-to=none", image, "true"], "--np <N>"),
            (&["--output-dir=/tmp", image, "true"], "--np <N>"),
            (&["--timeout=3", image, "true"], "--np <N>"),
        ] {
            let outcome = run(line);
            assert_eq!(outcome.code(), Some(125), "{outcome}");
            assert!(outcome.stdout.is_empty(), "{outcome}");
            outcome.says(&[why]);
        }
    }
}

/// Inside a rank of somebody else's: a job of its own, of which nothing of the outer one's is told.
#[test]
fn inside_a_rank_of_a_launcher() {
    let _alone = alone();
    let before = Host::now();
    for who in everyone() {
        for name in FAMILIES {
            let image = image(*who, name);
            let line = ["-n", "2", "--oversubscribe", &image, "/opt/examples/ring"];
            for (run, by) in [
                (Run::mpirun(*who, 2, line), "Open MPI 4's mpirun"),
                (Run::hydra(*who, 2, line), "hydra (MPICH's mpiexec)"),
            ] {
                let outcome = run.run().good();
                assert_eq!(outcome.out(), "ring of 2 ranks: sum 1 correct\n".repeat(2), "{outcome}");
                let said = format!(
                    "-n 2 starts a job of its own inside a rank of {by}; to be a rank of that, leave out -n"
                );
                // hydra joins what ranks say at the same time.
                assert_eq!(outcome.err().matches(&said).count(), 1, "{outcome}");
            }
        }
    }
    before.is_as_before("jobs inside of jobs");
}

/// Programs tell their place by such variables where they choose a device: the outer rank's place is not theirs.
#[test]
fn nothing_of_an_outer_job_is_told() {
    let _alone = alone();
    let of_a_place = ["PMI", "OMPI_COMM_WORLD_", "MPI_LOCAL"];
    for who in everyone() {
        for name in FAMILIES {
            let image = image(*who, name);
            let line = ["-n", "1", "--oversubscribe", &image, "env"];
            for run in [Run::mpirun(*who, 2, line), Run::hydra(*who, 2, line)] {
                let outcome = run.run().good();
                let out = outcome.out();
                let told: Vec<&str> =
                    out.lines().filter(|l| of_a_place.iter().any(|p| l.starts_with(p))).collect();
                assert!(told.is_empty(), "{told:?}\n{outcome}");
                assert_eq!(out.lines().filter(|l| *l == "HPC_LAUNCH_SIZE=1").count(), 2, "{outcome}");
            }
        }
    }
}

/// Where a reader goes away ranks die of it, as without us.
#[test]
fn a_reader_that_goes_away() {
    let _alone = alone();
    let pipe = "\"$@\" | head -n 1 >/dev/null; echo ${PIPESTATUS[0]}";
    for who in everyone() {
        let line = [launcher().to_str().unwrap(), "-n", "1", &image(*who, FAMILIES[0]), "yes"];
        let outcome = Run::command(*who, ["bash", "-c", pipe, "bash"]).args(line).run();
        outcome.prints("141");
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

/// More than there are cores by far.
#[test]
fn many_ranks() {
    let _alone = alone();
    let before = Host::now();
    let ranks = if host::full() { 128 } else { 24 };
    for who in everyone() {
        for name in FAMILIES {
            let outcome = job(*who, ranks, [&image(*who, name), "/opt/examples/ring"]).run().good();
            let sum = ranks * (ranks - 1) / 2;
            assert_eq!(outcome.out(), format!("ring of {ranks} ranks: sum {sum} correct\n"), "{outcome}");
        }
        let outcome = shell(*who, 200, &["--tag-output"], "echo here").run().good();
        let expected: BTreeSet<String> = (0..200).map(|r| format!("[1,{r}]<stdout>:here")).collect();
        assert_eq!(outcome.out().lines().map(str::to_owned).collect::<BTreeSet<_>>(), expected, "{outcome}");
    }
    before.is_as_before("many ranks");
}

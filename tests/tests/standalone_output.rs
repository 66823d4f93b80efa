//! What ranks of `hpc-launch -n` read and write.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use hpc_launch_tests::host::{Who, everyone, launcher};
use hpc_launch_tests::run::{Outcome, Run};
use hpc_launch_tests::standalone::{FAMILIES, alone, ended_soon, image, shared, shell, sorted};

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

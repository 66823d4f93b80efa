//! One run of one command line: started, timed, bounded in time, and its failure told.

use crate::error::Error;
use crate::interrupt::Interrupt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{fmt, fs, io};

/// How much of a failed run's stderr is shown.
const TAIL_BYTES: u64 = 2000;
/// How much of what a run prints is looked at.
const OUTPUT_BYTES: u64 = 4 << 20;
/// What a process gets between SIGTERM and SIGKILL; mpirun needs about 2 s to end its ranks.
const GRACE: Duration = Duration::from_secs(4);

/// A program, its arguments, and its whole environment.
#[derive(Debug, Clone)]
pub struct CommandLine {
    /// Absolute: a search through PATH inside the timed part would be measured too.
    pub program: PathBuf,
    /// Without the program's name.
    pub args: Vec<OsString>,
    /// Nothing else is in the child's environment.
    pub env: Vec<(OsString, OsString)>,
}

impl CommandLine {
    /// `self` as the last words of `prefix`: how mpirun and strace take a command.
    pub fn after(&self, prefix: &CommandLine) -> CommandLine {
        let mut args = prefix.args.clone();
        args.push(self.program.clone().into());
        args.extend(self.args.iter().cloned());
        CommandLine { program: prefix.program.clone(), args, env: self.env.clone() }
    }

    /// The same command with further variables.
    pub fn with_env(mut self, more: impl IntoIterator<Item = (OsString, OsString)>) -> CommandLine {
        self.env.extend(more);
        self
    }

    /// Ready to be started. No `pre_exec`, directory or user: std then uses vfork (posix_spawn), whose
    /// cost does not grow with the memory of this process.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }
}

impl fmt::Display for CommandLine {
    /// As one would type it, without the environment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        for arg in &self.args {
            let arg = arg.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
            if !arg.is_empty() && arg.chars().all(plain) {
                write!(f, " {arg}")?;
            } else {
                write!(f, " '{}'", arg.replace('\'', r"'\''"))?;
            }
        }
        Ok(())
    }
}

/// Why a run gave no sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// "exit 1", "signal 11", "timed out after 30 s", "not started: …".
    pub status: String,
    /// The last lines it wrote to stderr.
    pub stderr: String,
}

impl Failure {
    /// A failure with the end of what the run said about it.
    pub fn new(status: impl Into<String>, stderr: impl Into<String>) -> Self {
        Failure { status: status.into(), stderr: stderr.into() }
    }

    /// It took longer than it was given.
    pub fn timed_out(limit: Duration, stderr: impl Into<String>) -> Self {
        Failure::new(format!("{TIMED_OUT} after {} s", limit.as_secs_f64()), stderr)
    }

    /// Whether it took longer than it was given.
    pub fn is_time_out(&self) -> bool {
        self.status.starts_with(TIMED_OUT)
    }
}

const TIMED_OUT: &str = "timed out";

/// A run that ended well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ran {
    /// From spawn to its end.
    pub took: Duration,
    /// Minor page faults of the process and of those of its children that it waited for.
    pub faults: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        for line in self.stderr.lines() {
            write!(f, "\n    | {line}")?;
        }
        Ok(())
    }
}

/// Runs commands one after another. stderr goes to an unlinked file, which costs the run no more than
/// /dev/null does and needs no reader beside it; stdout does the same where it is wanted.
#[derive(Debug)]
pub struct Runner {
    stderr: File,
    stdout: File,
    limit: Duration,
    interrupt: Interrupt,
}

impl Runner {
    /// A runner that ends each run which takes longer than `limit`, or is under way when the user wants to stop.
    pub fn new(limit: Duration, interrupt: Interrupt) -> Result<Self, Error> {
        let scratch = || {
            tempfile::tempfile().map_err(|e| {
                let dir = std::env::temp_dir();
                Error::new(
                    format!("make a scratch file in {}", dir.display()),
                    e,
                    "set TMPDIR to a directory you may write",
                )
            })
        };
        Ok(Runner { stderr: scratch()?, stdout: scratch()?, limit, interrupt })
    }

    /// The time from spawn to its end; stdin and stdout are /dev/null.
    pub fn time(&mut self, line: &CommandLine) -> Result<Duration, Failure> {
        self.ran(line).map(|ran| ran.took)
    }

    /// The same with what else is known of it.
    pub fn ran(&mut self, line: &CommandLine) -> Result<Ran, Failure> {
        self.go(line, Stdio::null())
    }

    /// What the run wrote to stdout.
    pub fn output(&mut self, line: &CommandLine) -> Result<String, Failure> {
        let (text, ended) = self.said(line)?;
        ended.map(|_| text)
    }

    /// What the run wrote to stdout, however it ended.
    pub fn said(&mut self, line: &CommandLine) -> Result<(String, Result<Ran, Failure>), Failure> {
        let unusable = |e: io::Error| Failure::new(format!("its output cannot be kept: {e}"), "");
        self.stdout.set_len(0).and_then(|()| self.stdout.rewind()).map_err(unusable)?;
        let stdout = self.stdout.try_clone().map_err(unusable)?;
        let ended = self.go(line, stdout.into());
        let mut text = Vec::new();
        let bounded = self.stdout.rewind().map(|()| self.stdout.by_ref().take(OUTPUT_BYTES));
        bounded.and_then(|mut stdout| stdout.read_to_end(&mut text)).map_err(unusable)?;
        Ok((String::from_utf8_lossy(&text).into_owned(), ended))
    }

    /// What the run wrote to stdout and stderr.
    pub fn both(&mut self, line: &CommandLine) -> Result<String, Failure> {
        let mut text = self.output(line)?;
        text += &self.stderr_tail();
        Ok(text)
    }

    fn go(&mut self, line: &CommandLine, stdout: Stdio) -> Result<Ran, Failure> {
        let unusable = |e: io::Error| Failure::new(format!("its stderr cannot be kept: {e}"), "");
        self.stderr.set_len(0).and_then(|()| self.stderr.rewind()).map_err(unusable)?;
        let stderr = self.stderr.try_clone().map_err(unusable)?;
        let mut command = line.command();
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);

        // Instant is CLOCK_MONOTONIC.
        let start = Instant::now();
        let mut child = command.spawn().map_err(|e| Failure::new(format!("not started: {e}"), ""))?;
        let ended = self.ends_within(&child);
        let took = start.elapsed();

        let status = match ended {
            Ok(true) => {
                let faults = faults(child.id());
                let status =
                    child.wait().map_err(|e| Failure::new(format!("cannot be waited for: {e}"), ""))?;
                if status.success() {
                    return Ok(Ran { took, faults });
                }
                status
            }
            Ok(false) => {
                end_tree(&mut child);
                return Err(Failure::timed_out(self.limit, self.stderr_tail()));
            }
            Err(e) => {
                end_tree(&mut child);
                return Err(Failure::new(format!("cannot be waited for: {e}"), self.stderr_tail()));
            }
        };
        Err(Failure::new(status_text(status), self.stderr_tail()))
    }

    /// Until the child ends, the limit is reached or the user wants to stop.
    fn ends_within(&self, child: &Child) -> io::Result<bool> {
        let pidfd = pidfd_open(pid_of(child), PidfdFlags::empty())?;
        let deadline = Instant::now() + self.limit;
        while !self.interrupt.came() {
            // A signal that comes before the poll does not end it.
            let left = deadline.saturating_duration_since(Instant::now());
            if ends_within(&pidfd, left.min(Duration::from_secs(1)))? {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
        Ok(false)
    }

    fn stderr_tail(&mut self) -> String {
        let mut bytes = Vec::new();
        let start = self.stderr.metadata().map_or(0, |m| m.len().saturating_sub(TAIL_BYTES));
        // A tail that cannot be read must not hide the status that it belongs to.
        if self.stderr.seek(SeekFrom::Start(start)).and_then(|_| self.stderr.read_to_end(&mut bytes)).is_err()
        {
            return "(its stderr could not be read)".into();
        }
        tail(&String::from_utf8_lossy(&bytes), 8)
    }
}

/// Waits at most `limit`; `None` when the child still runs then.
pub fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(pid_of(child), PidfdFlags::empty())?;
    if ends_within(&pidfd, limit)? { child.wait().map(Some) } else { Ok(None) }
}

/// A pidfd is readable once its process is dead, and stays that process's own if the number is used again.
fn ends_within(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let timeout = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        // Whoever waits for longer looks whether the user wants to stop.
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// SIGTERM to the child, SIGKILL to whatever of its tree still runs after a while: a hung mpirun that is
/// only killed leaves ranks behind that poll at 100 % and spoil every later sample.
pub fn end_tree(child: &mut Child) {
    let tree: Vec<_> = descendants(child.id())
        .into_iter()
        .filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .collect();
    // Errors here mean that the process is gone already, which is what we want.
    let _ = pidfd_open(pid_of(child), PidfdFlags::empty()).map(|fd| pidfd_send_signal(fd, Signal::TERM));
    let ended = matches!(wait(child, GRACE), Ok(Some(_)));
    for pidfd in &tree {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    // A killed process still runs for a moment, and longer where it has much memory to give back.
    for pidfd in &tree {
        let _ = ends_within(pidfd, GRACE);
    }
    if !ended {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A child's number fits and is not 0, or there would be no child.
fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn descendants(root: u32) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut unseen = vec![root];
    while let Some(pid) = unseen.pop() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()) {
            unseen.push(child);
            found.extend(i32::try_from(child).ok().and_then(Pid::from_raw));
        }
    }
    found
}

/// Of a process that has ended and was not reaped: minflt and cminflt, fields 10 and 11 of proc_pid_stat(5).
fn faults(pid: u32) -> u64 {
    faults_of(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

fn faults_of(stat: &str) -> u64 {
    // The name, in parentheses, may hold blanks and parentheses; the fields after it are 3, 4, ….
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    fields.skip(7).take(2).filter_map(|word| word.parse::<u64>().ok()).sum()
}

fn status_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The last `lines` lines that are not blank.
fn tail(text: &str, lines: usize) -> String {
    let kept: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    kept[kept.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> CommandLine {
        CommandLine { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], env: Vec::new() }
    }

    fn runner() -> Runner {
        Runner::new(Duration::from_millis(300), Interrupt::default()).unwrap()
    }

    #[test]
    fn a_run_is_timed() {
        assert!(runner().time(&shell("exec sleep 0.05")).unwrap() >= Duration::from_millis(50));
    }

    #[test]
    fn a_failed_run_tells_its_status_and_its_own_stderr_only() {
        let mut runner = runner();
        runner.time(&shell("echo of the run before >&2")).unwrap();
        assert_eq!(runner.time(&shell("echo bad >&2; exit 7")), Err(Failure::new("exit 7", "bad")));
        assert_eq!(runner.time(&shell("kill -11 $$")), Err(Failure::new("signal 11", "")));
    }

    #[test]
    fn a_program_that_is_not_there() {
        let line = CommandLine { program: "/no/such".into(), args: Vec::new(), env: Vec::new() };
        assert!(runner().time(&line).unwrap_err().status.starts_with("not started: No such file"));
    }

    #[test]
    fn output_is_of_this_run() {
        let mut runner = runner();
        assert_eq!(runner.output(&shell("echo a longer first one")).unwrap(), "a longer first one\n");
        assert_eq!(runner.output(&shell("echo two")).unwrap(), "two\n");
    }

    #[test]
    fn a_run_over_its_limit_is_ended_with_its_children() {
        let start = Instant::now();
        let mut runner = runner();
        let failure = runner.time(&shell("echo hung >&2; sleep 61.7 & wait")).unwrap_err();
        assert_eq!(failure, Failure::new("timed out after 0.3 s", "hung"));
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        let left = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            fs::read(entry.path().join("cmdline")).is_ok_and(|words| words == b"sleep\x0061.7\0")
        });
        assert!(!left, "the child of the ended run still runs");
    }

    #[test]
    fn what_was_said_before_the_end_is_kept() {
        let (text, ended) = runner().said(&shell("echo so far; exec sleep 9")).unwrap();
        assert_eq!(text, "so far\n");
        assert!(ended.unwrap_err().is_time_out());
    }

    #[test]
    fn page_faults_of_a_process_and_its_children() {
        assert_eq!(faults_of("7 (a ) b) Z 1 7 7 0 -1 4194564 120 30 0 0 1 2"), 150);
        assert!(runner().ran(&shell("/bin/true; exit 0")).unwrap().faults > 50);
    }

    #[test]
    fn a_prefix_takes_the_command_as_its_last_words() {
        let prefix = CommandLine {
            program: "/usr/bin/mpirun".into(),
            args: vec!["-n".into(), "2".into()],
            env: Vec::new(),
        };
        assert_eq!(
            shell("a 'b'").after(&prefix).to_string(),
            r"/usr/bin/mpirun -n 2 /bin/sh -c 'a '\''b'\'''"
        );
    }

    #[test]
    fn the_tail_skips_blank_lines() {
        assert_eq!(tail("a\n\nb \nc\n\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}

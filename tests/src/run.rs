//! Runs a program with a limit of time, and looks what it left behind.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::host::{Who, is_root, launcher};

/// The variable by which everything that a run started is found again.
pub use simulated_hosts::MARKER;

/// How long what a run started may live on after it.
const GRACE: Duration = Duration::from_secs(2);
/// A search path that does not depend on who runs the tests.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command to be run.
#[derive(Clone)]
pub struct Run {
    who: Who,
    command: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    cwd: PathBuf,
    prelude: Option<String>,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Run {
    /// The launcher, with these arguments.
    pub fn launch<A: AsRef<OsStr>>(who: Who, arguments: impl IntoIterator<Item = A>) -> Run {
        Run::command(who, [launcher()]).args(arguments)
    }

    /// Any program and its arguments.
    pub fn command<A: AsRef<OsStr>>(who: Who, command: impl IntoIterator<Item = A>) -> Run {
        Run {
            who,
            command: command.into_iter().map(|a| a.as_ref().to_owned()).collect(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            prelude: None,
            stdin: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// The launcher under Open MPI's mpirun, with so many ranks.
    pub fn mpirun<A: AsRef<OsStr>>(who: Who, ranks: u32, arguments: impl IntoIterator<Item = A>) -> Run {
        let ranks = ranks.to_string();
        Run::command(who, ["mpirun.openmpi", "--oversubscribe", "-n", &ranks])
            .args([launcher()])
            .args(arguments)
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    }

    /// The launcher under MPICH's mpiexec, with so many ranks.
    pub fn hydra<A: AsRef<OsStr>>(who: Who, ranks: u32, arguments: impl IntoIterator<Item = A>) -> Run {
        let ranks = ranks.to_string();
        Run::command(who, ["mpiexec.hydra", "-n", &ranks]).args([launcher()]).args(arguments)
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Run {
        self.command.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Run {
        self.env.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes one of the few variables that there are: PATH, HOME, USER, LOGNAME.
    pub fn without_env(mut self, name: &str) -> Run {
        self.env.push((name.into(), None));
        self
    }

    /// Starts in this directory; `/` if not said.
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Run {
        dir.as_ref().clone_into(&mut self.cwd);
        self
    }

    /// Runs this line of shell first, as root, in a mount namespace of its own in which the command
    /// runs too. Needs root.
    pub fn prelude(mut self, shell: impl Into<String>) -> Run {
        self.prelude = Some(shell.into());
        self
    }

    /// What the command reads; nothing if not said.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Run {
        self.stdin = bytes.into();
        self
    }

    /// Another limit of time than a minute.
    pub fn limit(mut self, limit: Duration) -> Run {
        self.limit = limit;
        self
    }

    /// The whole command line: private mounts, the change of user, the command.
    fn line(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = Vec::new();
        if let Some(prelude) = &self.prelude {
            assert!(is_root(), "only root can have mounts of its own");
            line.extend(["unshare", "--mount", "--propagation", "private", "sh", "-c"].map(Into::into));
            line.push(format!("set -e; {prelude}\nexec \"$@\"").into());
            line.push("sh".into());
        }
        if is_root() && self.who == Who::User {
            // Not runuser: setpriv execs, so the process that we started is the program.
            let account = self.who.account();
            line.push("setpriv".into());
            line.push(format!("--reuid={}", account.uid).into());
            line.push(format!("--regid={}", account.gid).into());
            line.extend(["--init-groups", "--"].map(Into::into));
        }
        line.extend(self.command.iter().cloned());
        line
    }

    /// Starts the command, its output piped, in a process group of its own.
    pub fn start(&self) -> Running {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let marker = format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let account = self.who.account();
        let line = self.line();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).current_dir(&self.cwd).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_clear().env("PATH", PATH).env("HOME", &account.home);
        command.env("USER", &account.name).env("LOGNAME", &account.name).env(MARKER, &marker);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let started = Instant::now();
        let mut child =
            command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", line[0].to_string_lossy()));
        let mut stdin = child.stdin.take().expect("piped");
        let text = self.stdin.clone();
        thread::spawn(move || {
            // A command that does not read is none of our business.
            let _ = stdin.write_all(&text);
        });
        let stdout = reader(child.stdout.take().expect("piped"));
        let stderr = reader(child.stderr.take().expect("piped"));
        let shown = self.command.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let shown = format!("as {:?}: {}", self.who, shown.chars().take(2000).collect::<String>());
        Running { child, marker: Marker(marker), stdout, stderr, started, limit: self.limit, shown }
    }

    /// Runs the command to its end. Panics when it takes too long, or leaves a process behind.
    pub fn run(&self) -> Outcome {
        self.start().finish()
    }
}

/// What comes out of a pipe, readable while more of it comes.
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: thread::JoinHandle<()>,
}

impl Reader {
    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn whole(self) -> Vec<u8> {
        self.thread.join().expect("reading does not panic");
        Arc::into_inner(self.bytes).and_then(|b| b.into_inner().ok()).expect("the reader has ended")
    }
}

fn reader(mut pipe: impl Read + Send + 'static) -> Reader {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&bytes);
    let thread = thread::spawn(move || {
        let mut chunk = [0; 65536];
        loop {
            match pipe.read(&mut chunk) {
                Ok(count @ 1..) => {
                    shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..count]);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
    });
    Reader { bytes, thread }
}

/// Ends what a run started when the test fails before the run is over.
struct Marker(String);

impl Drop for Marker {
    fn drop(&mut self) {
        if thread::panicking() {
            end(&self.0);
        }
    }
}

/// A command that runs.
pub struct Running {
    child: Child,
    marker: Marker,
    stdout: Reader,
    stderr: Reader,
    started: Instant,
    limit: Duration,
    shown: String,
}

impl Running {
    /// The number of the process that was started.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process number")
    }

    /// The processes that this run started and that still live, each with its command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        marked(&self.marker.0)
    }

    /// What it has written to standard output so far.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    /// Waits until something holds. Panics when that takes as long as all of it may, or
    /// when the command has ended and it does not.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&Running) -> bool) {
        let mut over = None;
        while !holds(self) {
            if over.is_none() && self.child.try_wait().expect("our own child").is_some() {
                // What it wrote last may be on its way.
                over = Some(Instant::now());
            }
            if self.started.elapsed() > self.limit || over.is_some_and(|o| o.elapsed() > GRACE) {
                let processes = self.processes();
                let err = String::from_utf8_lossy(&self.stderr.so_far()).into_owned();
                panic!(
                    "{}\nnever: {what}; its processes: {processes:#?}\nstdout: {}\nstderr: {err}",
                    self.shown,
                    self.out()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end, ours or the command's.
    pub fn finish(mut self) -> Outcome {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                break Some(status);
            }
            if self.started.elapsed() > self.limit {
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let pid = self.pid();
        let wall = self.started.elapsed();
        let Some(status) = status else {
            let processes = marked(&self.marker.0);
            let _ = killpg(Pid::from_raw(pid), Signal::SIGTERM);
            thread::sleep(Duration::from_millis(500));
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            end(&self.marker.0);
            let _ = self.child.wait();
            let stdout = self.stdout.whole();
            let stderr = self.stderr.whole();
            panic!(
                "{}\ntook longer than {:?}; its processes: {processes:#?}\nstdout: {}\nstderr: {}",
                self.shown,
                self.limit,
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr),
            );
        };
        let ended = Instant::now();
        let left = loop {
            let left = marked(&self.marker.0);
            if left.is_empty() || ended.elapsed() > GRACE {
                break left;
            }
            thread::sleep(Duration::from_millis(10));
        };
        end(&self.marker.0);
        let stdout = self.stdout.whole();
        let stderr = self.stderr.whole();
        let outcome = Outcome { status, stdout, stderr, pid, wall, shown: self.shown };
        assert!(left.is_empty(), "{outcome}\nleft behind after {GRACE:?}: {left:#?}");
        outcome
    }
}

/// Ends what this run started, and nothing else.
fn end(marker: &str) {
    for _ in 0..3 {
        for (pid, _) in marked(marker) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Living processes with this run's marker in their environment. A zombie has no environment.
fn marked(marker: &str) -> Vec<(i32, String)> {
    let wanted = format!("{MARKER}={marker}").into_bytes();
    let Ok(proc) = std::fs::read_dir("/proc") else { return Vec::new() };
    proc.filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        environ.split(|b| *b == 0).any(|v| v == wanted).then(|| (pid, command_line(pid)))
    })
    .collect()
}

/// A process's command line, its parts separated by blanks.
pub fn command_line(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// How a command ended, and what it said.
pub struct Outcome {
    /// As the kernel reports it.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// Its process number.
    pub pid: i32,
    /// How long it took.
    pub wall: Duration,
    shown: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = |s: String| s.chars().take(6000).collect::<String>();
        write!(
            f,
            "{}\n{}\nstdout:\n{}\nstderr:\n{}",
            self.shown,
            self.status,
            cut(self.out()),
            cut(self.err())
        )
    }
}

impl Outcome {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The exit status; none after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Asserts exit status 0.
    #[track_caller]
    pub fn good(self) -> Outcome {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Asserts exit status 0 and exactly this output, but for white space at its ends.
    #[track_caller]
    pub fn prints(self, expected: &str) -> Outcome {
        let outcome = self.good();
        assert_eq!(outcome.out().trim(), expected.trim(), "{outcome}");
        outcome
    }

    /// Asserts that standard error holds every one of these.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Outcome {
        let text = self.err();
        for part in parts {
            assert!(text.contains(part), "not said: {part:?}\n{self}");
        }
        self
    }

    /// Asserts a refusal: the exit status that belongs to the code, the code once, the message's
    /// parts, a cure, and no output of any program.
    #[track_caller]
    pub fn refused(self, code: &str, parts: &[&str]) -> Outcome {
        let expected = match code {
            "program-not-found" => 127,
            "program-not-executable" | "interpreter-missing" | "wrong-architecture" | "exec" => 126,
            _ => 125,
        };
        let outcome = self.says(&[&format!("hpc-launch: [{code}] ")]).says(parts);
        let text = outcome.err();
        assert_eq!(outcome.code(), Some(expected), "{outcome}");
        assert_eq!(text.matches("hpc-launch: [").count(), 1, "said more than once\n{outcome}");
        let cure = text.split("\n  what to do: ").nth(1).unwrap_or_default();
        assert!(cure.trim().len() > 10, "no cure\n{outcome}");
        assert!(outcome.stdout.is_empty(), "something ran\n{outcome}");
        outcome
    }

    /// The code word of a refusal.
    pub fn refusal(&self) -> Option<String> {
        let text = self.err();
        let rest = text.split("hpc-launch: [").nth(1)?;
        rest.split_once(']').map(|(code, _)| code.to_owned())
    }
}

//! A real Slurm of one node, in a directory of its own: munged, slurmctld and slurmd, without systemd,
//! cgroups or anything of the system's configuration.
//!
//! It ends with the value, also when a test panics. slurm.conf(5), munged(8).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::host::{Who, is_root, launcher};
use crate::image::directory;
use crate::run::Run;

/// How long starting may take on a slow machine.
const START: Duration = Duration::from_secs(30);
/// How long anything may take to end after a job did.
const GRACE: Duration = Duration::from_secs(10);
/// More than the tests ask for at once; Slurm believes what it is told.
pub(crate) const CPUS: u32 = 16;

/// The running daemons, and where all of theirs lies.
pub struct Slurm {
    /// In the order in which they end.
    daemons: Vec<Child>,
    /// Where Slurm makes directories for ranks. Like the usual /tmp it is shown to them.
    tmp: TempDir,
    /// All else. As with the usual /var/spool/slurmd, sandboxes do not show it.
    dir: TempDir,
}

impl Slurm {
    /// Starts it; needs root. The daemons end with the calling thread, if nothing else ends them.
    pub fn start() -> Slurm {
        Slurm::start_with(None)
    }

    /// The same, with another directory as `TmpFS`.
    pub fn start_with(tmpfs: Option<&Path>) -> Slurm {
        assert!(is_root(), "slurmd must be root to start other users' ranks");
        let mut said = String::new();
        // A free port may be somebody else's by the time that it is bound.
        for _ in 0..3 {
            let mut slurm = Slurm { daemons: Vec::new(), tmp: directory("/tmp"), dir: directory("/var/tmp") };
            match slurm.bring_up(tmpfs) {
                Ok(()) => return slurm,
                Err(why) => said = format!("{why}\n{}", slurm.logs()),
            }
        }
        panic!("Slurm does not start: {said}");
    }

    fn bring_up(&mut self, tmpfs: Option<&Path>) -> Result<(), String> {
        for name in ["state", "spool", "log"] {
            fs::create_dir(self.at(name)).expect("a directory");
        }
        fs::write(self.at("plugstack.conf"), "").expect("a file");
        let tmpfs = tmpfs.unwrap_or(self.tmp.path()).to_owned();
        fs::write(self.conf(), configuration(self.dir.path(), &tmpfs)).expect("a file");

        let mut munged = munged(self.dir.path());
        munged.push("--foreground".to_owned());
        self.daemon(&munged)?;
        self.wait("munged makes its socket", |s| s.at("munge.sock").exists())?;
        let conf = self.conf().display().to_string();
        self.daemon(&["slurmctld", "-D", "-f", &conf])?;
        self.daemon(&["slurmd", "-D", "-f", &conf])?;
        self.wait("the node is idle", |s| s.ask("sinfo", &["-h", "-t", "idle", "-o", "%D"]) == "1")
    }

    /// Starts one, ahead of those that it needs. It gets SIGTERM when this thread ends, even if that
    /// is by SIGKILL: prctl(2), PR_SET_PDEATHSIG.
    fn daemon<A: AsRef<OsStr>>(&mut self, line: &[A]) -> Result<(), String> {
        let name = line[0].as_ref().to_string_lossy().into_owned();
        let log = File::create(self.at("log").join(format!("{name}.err"))).expect("a file");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).args(line).current_dir(self.dir.path()).process_group(0);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        let child = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        self.daemons.insert(0, child);
        Ok(())
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Slurm) -> bool) -> Result<(), String> {
        let start = Instant::now();
        while !done(self) {
            for daemon in &mut self.daemons {
                if let Ok(Some(status)) = daemon.try_wait() {
                    return Err(format!("a daemon ended before {what}: {status}"));
                }
            }
            if start.elapsed() > START {
                return Err(format!("{what}: not within {START:?}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn conf(&self) -> PathBuf {
        self.at("slurm.conf")
    }

    /// What one of Slurm's commands prints.
    fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments).env("SLURM_CONF", self.conf()).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|e| panic!("{program} is not installed: {e}"));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// One of Slurm's commands, or a program that calls them.
    pub fn command<A: AsRef<OsStr>>(&self, who: Who, command: impl IntoIterator<Item = A>) -> Run {
        Run::command(who, command).env("SLURM_CONF", self.conf())
    }

    /// srun with so many ranks, of any program.
    pub fn srun<A: AsRef<OsStr>>(
        &self,
        who: Who,
        mpi: &str,
        ranks: u32,
        command: impl IntoIterator<Item = A>,
    ) -> Run {
        let (mpi, ranks) = (format!("--mpi={mpi}"), ranks.to_string());
        self.command(who, ["srun", &mpi, "-n", &ranks]).args(command)
    }

    /// srun with so many ranks of the launcher.
    pub fn launch<A: AsRef<OsStr>>(
        &self,
        who: Who,
        mpi: &str,
        ranks: u32,
        arguments: impl IntoIterator<Item = A>,
    ) -> Run {
        self.srun(who, mpi, ranks, [launcher()]).args(arguments)
    }

    /// Cancels the jobs of this name.
    pub fn cancel(&self, name: &str) {
        self.ask("scancel", &["-n", name]);
    }

    /// Asserts that every job ends by itself, and that the directories are gone that Slurm makes for
    /// the ranks of a step and removes after it.
    #[track_caller]
    pub fn is_clean(&self, after: &str) {
        let start = Instant::now();
        loop {
            let jobs = self.ask("squeue", &["-h", "-o", "%i %j %t"]);
            let left: Vec<PathBuf> = [self.tmp.path(), &self.at("spool")]
                .iter()
                .flat_map(|dir| fs::read_dir(dir).expect("a directory"))
                .map(|entry| entry.expect("an entry").path())
                .filter(|path| path.to_string_lossy().contains("pmix"))
                .collect();
            if jobs.is_empty() && left.is_empty() {
                return;
            }
            assert!(start.elapsed() < GRACE, "after {after}: jobs {jobs:?}, left behind: {left:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the daemons have to say.
    pub fn logs(&self) -> String {
        logs(&self.at("log"))
    }

    /// Processes that hold a file of ours open: slurmstepd is no child of anybody and keeps no environment.
    fn holders(&self) -> Vec<i32> {
        let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
        let holds = |pid: i32| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files.filter_map(|f| fs::read_link(f.path()).ok()).any(|f| f.starts_with(self.dir.path()))
        };
        proc.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|p| holds(*p))
            .collect()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("Slurm says:\n{}", self.logs());
        }
        let ended = |test: &mut dyn FnMut() -> bool| {
            let start = Instant::now();
            while !test() && start.elapsed() < GRACE {
                thread::sleep(Duration::from_millis(20));
            }
        };
        if self.daemons.len() == 3 && !self.ask("squeue", &["-h"]).is_empty() {
            self.ask("scancel", &["-p", "all"]);
            ended(&mut || self.ask("squeue", &["-h"]).is_empty());
        }
        for mut daemon in std::mem::take(&mut self.daemons) {
            let pid = Pid::from_raw(i32::try_from(daemon.id()).expect("a process number"));
            let _ = kill(pid, Signal::SIGTERM);
            ended(&mut || !matches!(daemon.try_wait(), Ok(None)));
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let us = std::process::id();
        ended(&mut || {
            let left = self.holders();
            left.iter().filter(|pid| **pid as u32 != us).for_each(|pid| {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            });
            left.is_empty()
        });
    }
}

/// A directory where ranks meet: everybody's, and shown in sandboxes, since it is below /tmp.
pub struct Meeting(TempDir);

impl Meeting {
    /// An empty one.
    pub fn new() -> Meeting {
        let dir = directory("/tmp");
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).expect("chmod");
        Meeting(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A shell line that goes on when so many ranks, of all steps together, have come this far.
    pub fn wait(&self, ranks: u32) -> String {
        let dir = self.path().display();
        format!(
            ": > {dir}/$SLURM_STEP_ID.$SLURM_PROCID; \
             until [ $(ls {dir} | wc -l) -ge {ranks} ]; do sleep 0.05; done"
        )
    }

    /// Waits until so many ranks are there.
    #[track_caller]
    pub fn have_come(&self, ranks: usize) {
        let start = Instant::now();
        while fs::read_dir(self.path()).expect("a directory").count() < ranks {
            assert!(start.elapsed() < Duration::from_secs(30), "the ranks do not come");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Default for Meeting {
    fn default() -> Meeting {
        Meeting::new()
    }
}

/// slurm.conf: nothing that needs cgroups, accounting or another host. The node has the host's name:
/// where it has another, Open MPI 5 finds no local peers from the third rank on, on a bare host too.
fn configuration(dir: &Path, tmpfs: &Path) -> String {
    let tmpfs = tmpfs.display();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let host = host.trim().split('.').next().unwrap_or_default();
    // srun would listen where its host's name leads; slurmd looks for it at the loopback address.
    let loopback =
        (host, 0).to_socket_addrs().is_ok_and(|mut all| all.all(|a| a.ip().to_string() == "127.0.0.1"));
    let anywhere = if loopback { ",NoInAddrAny" } else { "" };
    // Held together, or both might be the same.
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let [control, node] = listeners.each_ref().map(|l| l.local_addr().expect("an address").port());
    common(dir)
        + &format!(
            "SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
CommunicationParameters=NoCtldInAddrAny{anywhere}
SlurmdSpoolDir={dir}/spool
TmpFS={tmpfs}
SlurmdPidFile={dir}/slurmd.pid
SlurmdLogFile={dir}/log/slurmd
NodeName={host} NodeAddr=127.0.0.1 Port={node} CPUs={CPUS}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
",
            dir = dir.display()
        )
}

/// The ends of the daemons' logs.
pub(crate) fn logs(dir: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // What is said while there is no log file yet is in NAME.err, and so is all else again.
        if entry.path().extension().is_some_and(|e| e == "err") && entry.path().with_extension("").exists() {
            continue;
        }
        let log = fs::read(entry.path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last: Vec<&str> = log.lines().rev().take(20).collect();
        text += &format!("{}:\n", entry.path().display());
        last.iter().rev().for_each(|line| text += &format!("  {line}\n"));
    }
    text
}

/// What every Slurm of the tests has in its slurm.conf, with all of its files in this directory.
pub(crate) fn common(dir: &Path) -> String {
    format!(
        "ClusterName=test
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock
StateSaveLocation={dir}/state
SlurmctldPidFile={dir}/slurmctld.pid
SlurmctldLogFile={dir}/log/slurmctld
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
TaskPluginParam=None
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
KillWait=5
",
        dir = dir.display()
    )
}

/// Makes a key, and says how munged is called with it.
pub(crate) fn munged(dir: &Path) -> Vec<String> {
    // Any 1024 bytes will do: the key protects nothing that lasts.
    let mut key = vec![0u8; 1024];
    std::io::Read::read_exact(&mut File::open("/dev/urandom").expect("/dev/urandom"), &mut key)
        .expect("read");
    let file = dir.join("munge.key");
    fs::write(&file, key).expect("a file");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
    let option = |name: &str, file: &str| format!("--{name}={}", dir.join(file).display());
    vec![
        "munged".to_owned(),
        option("key-file", "munge.key"),
        option("socket", "munge.sock"),
        option("pid-file", "munged.pid"),
        option("seed-file", "munge.seed"),
    ]
}

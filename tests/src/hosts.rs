//! Several hosts on one machine: a launcher starts ranks on all of them, as on a cluster.
//!
//! They are those of [`simulated_hosts`], which says what a host is. A [`Run`] goes to a host as a plain user gets there by
//! ssh, with its environment and the mark of what belongs to it; the machine sees every process of every host. All of
//! it ends with the value, or when the process of the tests ends, however it does.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use simulated_hosts::{Bed, PATIENCE};
use tempfile::TempDir;

use crate::host::{Who, is_root, tested};
use crate::image::directory;
use crate::leaks;
use crate::run::{Run, command_line};

mod launch;
mod slurm;

pub use launch::By;
pub use simulated_hosts::{HEAD, SWITCH};

/// The hosts, up and connected.
pub struct Hosts {
    /// Its directory has Slurm's files too.
    bed: Bed,
    slurm: bool,
    /// Below /tmp, thus shown in sandboxes.
    shared: TempDir,
}

impl Hosts {
    /// So many hosts, and the head. Needs root.
    pub fn new(count: usize) -> Hosts {
        assert!(is_root(), "hosts start programs as other users: that needs root");
        let shared = directory("/tmp");
        fs::set_permissions(shared.path(), Permissions::from_mode(0o777)).expect("chmod");
        let mut shown = tested();
        shown.retain(|path| path.starts_with("/tmp") && path.exists());
        shown.push(shared.path().to_owned());
        let bed = Bed::start(&program(), count, &shown).expect("the hosts come up");
        Hosts { bed, slurm: false, shared }
    }

    /// The same with Slurm, of which the hosts are the nodes.
    pub fn with_slurm(count: usize) -> Hosts {
        let mut hosts = Hosts::new(count);
        slurm::start(&hosts);
        hosts.slurm = true;
        hosts
    }

    /// The names of the ranks' hosts.
    pub fn names(&self) -> &[String] {
        self.bed.names()
    }

    /// A directory that all hosts share and everybody can write to, at the same path everywhere. It is below /tmp,
    /// thus in sandboxes too.
    pub fn shared(&self) -> &Path {
        self.shared.path()
    }

    /// The program that starts another on a host, as rsh and ssh do.
    pub fn rsh(&self) -> PathBuf {
        self.bed.rsh()
    }

    /// A host by its name: one of the ranks', [`HEAD`], or [`SWITCH`].
    pub fn on<'a>(&'a self, name: &'a str) -> Host<'a> {
        Host { bed: self, name }
    }

    /// The host that has no ranks.
    pub fn head(&self) -> Host<'_> {
        self.on(HEAD)
    }

    /// The host on which a process is, by its number on the machine.
    pub fn of(&self, pid: i32) -> Option<&str> {
        let wanted = processes_seen_by(pid)?;
        let all = self.names().iter().map(String::as_str).chain([HEAD, SWITCH]);
        all.into_iter()
            .find(|name| self.on(name).first().and_then(processes_seen_by).as_ref() == Some(&wanted))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if thread::panicking() {
            eprint!("{}", self.slurm_logs());
        }
    }
}

/// One of the hosts.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    bed: &'a Hosts,
    name: &'a str,
}

impl Host<'_> {
    /// Any program and its arguments, on this host. Signals to the process that is started reach the program, but
    /// for SIGKILL and SIGSTOP; how the program ends is how the process does, with 255 if the host is gone.
    pub fn command<A: AsRef<OsStr>>(&self, who: Who, command: impl IntoIterator<Item = A>) -> Run {
        Run::command(who, [self.bed.rsh()]).args(["--here", self.name]).args(command)
    }

    /// A line of shell, on this host.
    pub fn shell(&self, who: Who, line: &str) -> Run {
        self.command(who, ["sh", "-c", line])
    }

    /// The number on the machine of the host's first process; none when the host is dead.
    pub fn first(&self) -> Option<i32> {
        let socket = self.bed.bed.directory().join(self.name).with_extension("sock");
        let stream = UnixStream::connect(socket).ok()?;
        getsockopt(&stream, PeerCredentials).ok().map(|peer| peer.pid())
    }

    /// The host's processes but for the first, by their numbers on the machine, each with its command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let Some(first) = self.first() else { return Vec::new() };
        let ours = processes_seen_by(first);
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != first && processes_seen_by(*pid) == ours)
            .map(|pid| (pid, command_line(pid)))
            .collect()
    }

    /// What a job could leave behind, as it is now.
    pub fn state(&self) -> leaks::Host {
        leaks::Host::seen_by(&self.living().to_string())
    }

    /// The host dies: every process of it at once, and the others see its connections break.
    pub fn kill(&self) {
        let first = self.living();
        let status = fs::read_to_string(format!("/proc/{first}/status")).expect("it lives");
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        // The first process ends with unshare(1), which would complain if only that process were killed.
        kill(Pid::from_raw(parent.expect("a parent")), Signal::SIGKILL).expect("a process of ours");
        // It is the last to go.
        let start = Instant::now();
        while Path::new(&format!("/proc/{first}")).exists() {
            assert!(start.elapsed() < PATIENCE, "{} does not die", self.name);
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn living(&self) -> i32 {
        self.first().unwrap_or_else(|| panic!("{} is dead", self.name))
    }

    /// The wire is pulled out: nobody hears anything from the host any more, nor the host from anybody.
    pub fn unplug(&self) {
        let line = ["ip", "link", "set", self.name, "down"];
        self.bed.on(SWITCH).command(Who::Root, line).run().good();
    }

    /// The wire is plugged in again.
    pub fn plug(&self) {
        let line = ["ip", "link", "set", self.name, "up"];
        self.bed.on(SWITCH).command(Who::Root, line).run().good();
    }
}

/// The PID namespace of a process. It is what only the host's own processes have: unshare(1) stays outside.
fn processes_seen_by(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// The hosts' program, which cargo builds beside the directory of the tests' own.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("this program has a path");
    let path = own.ancestors().nth(2).expect("in target/PROFILE/deps").join("simulated-host");
    assert!(path.is_file(), "there is no {}: cargo test builds it with the tests", path.display());
    path
}

//! Slurm on the hosts: slurmctld on the head, a slurmd on each of the others, one munged for all of them, since
//! a socket in a shared directory is the same from everywhere.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use simulated_hosts::{HEAD, PATIENCE, address, name};

use super::Hosts;
use crate::slurm::{CPUS, common, logs, munged};

impl Hosts {
    /// slurm.conf: `SLURM_CONF` for all of Slurm's commands.
    pub fn slurm_conf(&self) -> PathBuf {
        self.slurm_dir().join("slurm.conf")
    }

    fn slurm_dir(&self) -> PathBuf {
        self.bed.directory().join("slurm")
    }

    /// What the daemons have to say; nothing without Slurm.
    pub fn slurm_logs(&self) -> String {
        logs(&self.slurm_dir().join("log"))
    }

    /// What one of Slurm's commands prints.
    pub fn slurm_says(&self, program: &str, arguments: &[&str]) -> String {
        let line: Vec<&str> = [program].iter().chain(arguments).copied().collect();
        let output = daemon(self, HEAD, &line).wait_with_output().expect("our own child");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// Starts it, and waits until every host is idle. It ends with the hosts.
pub(super) fn start(hosts: &Hosts) {
    let dir = hosts.slurm_dir();
    for name in ["", "state", "log"] {
        fs::create_dir(dir.join(name)).expect("a directory");
    }
    fs::write(hosts.slurm_conf(), configuration(hosts)).expect("a file");
    fs::write(dir.join("plugstack.conf"), "").expect("a file");
    // Unless told it looks for a mounted cgroup file system, of which a host has none.
    fs::write(dir.join("cgroup.conf"), "CgroupPlugin=cgroup/v1\n").expect("a file");

    // All of them go to the background when they are up.
    let mut munged = munged(&dir);
    munged.push(format!("--log-file={}", dir.join("log/munged").display()));
    is_up(daemon(hosts, HEAD, &munged), "munged");
    let controller = daemon(hosts, HEAD, &["slurmctld"]);
    let nodes: Vec<Child> = hosts.names().iter().map(|name| daemon(hosts, name, &["slurmd"])).collect();
    is_up(controller, "slurmctld");
    nodes.into_iter().for_each(|node| is_up(node, "slurmd"));
    let (all, start) = (hosts.names().len().to_string(), Instant::now());
    while hosts.slurm_says("sinfo", &["-h", "-t", "idle", "-o", "%D"]) != all {
        assert!(start.elapsed() < PATIENCE, "the nodes are not idle: {}", hosts.slurm_says("sinfo", &[]));
        thread::sleep(Duration::from_millis(20));
    }
}

fn daemon<A: AsRef<std::ffi::OsStr>>(hosts: &Hosts, host: &str, line: &[A]) -> Child {
    let mut command = Command::new(hosts.rsh());
    command.args(["--here", host]).args(line).current_dir("/");
    command.env_clear().env("PATH", crate::run::PATH).env("SLURM_CONF", hosts.slurm_conf());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the hosts' program starts")
}

#[track_caller]
fn is_up(daemon: Child, name: &str) {
    let output = daemon.wait_with_output().expect("our own child");
    assert!(output.status.success(), "{name} does not start: {}", output.status);
}

fn configuration(hosts: &Hosts) -> String {
    let dir = hosts.slurm_dir();
    let mut text = common(&dir);
    let lines = format!(
        "SlurmctldHost={HEAD}({})
SlurmdSpoolDir={dir}/spool.%n
SlurmdPidFile={dir}/slurmd.%n.pid
SlurmdLogFile={dir}/log/slurmd.%n
PlugStackConfig={dir}/plugstack.conf
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
",
        address(0),
        dir = dir.display()
    );
    // Nodes come before the partition that has them all.
    for n in 1..=hosts.names().len() {
        text += &format!("NodeName={} NodeAddr={} CPUs={CPUS}\n", name(n), address(n));
    }
    text + &lines
}

//! A pretended job step: this process plays the launcher, so that ranks can be the first or join.

use crate::contender::Setup;
use crate::run::{CommandLine, Failure, Runner, end_tree, wait};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long the leader may take to reach its program.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What Open MPI's orted sets for a rank, as far as finding the job step needs it. A step is known by
/// its namespace name; its members are found among the children of this process.
pub fn rank_env(nspace: &str, rank: usize) -> Vec<(OsString, OsString)> {
    let rank = rank.to_string();
    [
        ("PMIX_NAMESPACE", nspace),
        ("PMIX_RANK", &rank),
        ("OMPI_COMM_WORLD_RANK", &rank),
        ("OMPI_COMM_WORLD_LOCAL_RANK", &rank),
        ("OMPI_COMM_WORLD_NODE_RANK", &rank),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ("OMPI_UNIVERSE_SIZE", "2"),
        // What tells orted from other daemons that speak PMIx; nothing listens there.
        ("OMPI_MCA_orte_local_daemon_uri", "1.0;tcp://127.0.0.1:9"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}

/// Makes names for job steps of one rank each.
#[derive(Debug, Default)]
pub struct FreshSteps(usize);

impl FreshSteps {
    /// The environment of the first rank of a step that nobody has seen before.
    pub fn first_rank(&mut self) -> Vec<(OsString, OsString)> {
        self.0 += 1;
        rank_env(&format!("bench-{}-first-{}", std::process::id(), self.0), 0)
    }
}

/// A step whose first rank lives as long as this value does.
#[derive(Debug)]
pub struct Step {
    nspace: String,
    leader: Child,
    mount_namespace: PathBuf,
}

impl Step {
    /// Starts the first rank and waits until its program runs. That program is `cat` on a pipe from
    /// here: it ends when this process does, however that happens. Ranks of the same program join it.
    pub fn start(setup: &Setup) -> Result<Step, String> {
        Step::start_with(setup, &[], &["/bin/cat".into()])
    }

    /// The same with options and another program that ends with its input.
    pub fn start_with(setup: &Setup, options: &[&str], words: &[String]) -> Result<Step, String> {
        let nspace = format!("bench-{}-{}", std::process::id(), options.join("-"));
        let line = setup.hpc_launch_with(options, words)?.with_env(rank_env(&nspace, 0));
        let failed = |why: String| format!("the step's first rank did not start ({line}): {why}");
        let mut said = tempfile::tempfile().map_err(|e| failed(e.to_string()))?;
        let stderr = said.try_clone().map_err(|e| failed(e.to_string()))?;
        let mut leader = line
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|e| failed(e.to_string()))?;

        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(mount_namespace) = arrived(leader.id(), &line.program) {
                return Ok(Step { nspace, leader, mount_namespace });
            }
            match leader.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => {
                    end_tree(&mut leader);
                    let limit = START_LIMIT.as_secs();
                    return Err(failed(format!(
                        "after {limit} s it still ran no program in a sandbox{}",
                        text(&mut said)
                    )));
                }
                Ok(Some(status)) => return Err(failed(format!("{status}{}", text(&mut said)))),
                Err(e) => return Err(failed(e.to_string())),
            }
        }
    }

    /// The environment of a rank that joins.
    pub fn joining_rank(&self) -> Vec<(OsString, OsString)> {
        rank_env(&self.nspace, 1)
    }

    /// Runs one rank of each sort that says where it is. A joiner that quietly built a sandbox of its
    /// own, or a first rank that quietly joined, would be measured under a wrong name.
    pub fn verify(&self, setup: &Setup, runner: &mut Runner) -> Result<String, String> {
        // Its mounts have numbers that no other namespace's have (proc_pid_mountinfo(5)).
        let whereabouts = setup.hpc_launch(&["/bin/cat".into(), "/proc/self/mountinfo".into()])?;
        let mut ask = |env| {
            let told = runner.output(&whereabouts.clone().with_env(env));
            told.map(|text| text.trim().to_owned()).map_err(|e: Failure| format!("{whereabouts} failed: {e}"))
        };
        let joined = ask(self.joining_rank())?;
        let alone = ask(rank_env(&format!("{}-verify", self.nspace), 0))?;
        let leader = fs::read_to_string(format!("/proc/{}/mountinfo", self.leader.id()))
            .map_err(|e| format!("the step's first rank has no mounts to compare: {e}"))?;
        let namespace = self.mount_namespace.display();
        if joined != leader.trim() {
            return Err(format!("the joining rank did not join the step's first rank in {namespace}"));
        }
        if alone == leader.trim() {
            return Err(format!("the first rank of another step joined this one: both are in {namespace}"));
        }
        Ok(format!(
            "verified: the joining rank is in its leader's {namespace}, another step's first rank is not"
        ))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        drop(self.leader.stdin.take());
        if !matches!(wait(&mut self.leader, Duration::from_secs(2)), Ok(Some(_))) {
            end_tree(&mut self.leader);
        }
    }
}

/// The mount namespace of `pid`, once it is not ours and the launcher has become its program.
fn arrived(pid: u32, launcher: &Path) -> Option<PathBuf> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let theirs = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    let ours = fs::read_link("/proc/self/ns/mnt").ok()?;
    // Between fork and exec it is still this program.
    let this = fs::read_link("/proc/self/exe").ok()?;
    // The launcher may have been named through a symbolic link.
    let launcher = launcher.canonicalize().ok()?;
    (exe != launcher && exe != this && theirs != ours).then_some(theirs)
}

/// What was said, ready to be put behind a reason.
fn text(said: &mut File) -> String {
    let mut text = String::new();
    let read = said.rewind().and_then(|()| said.read_to_string(&mut text));
    if read.is_err() || text.trim().is_empty() {
        String::new()
    } else {
        format!("; it said: {}", text.trim())
    }
}

/// `line` as a rank that joins, or why there is nobody to join.
pub fn joining(
    line: &Result<CommandLine, String>,
    step: &Result<Step, String>,
) -> Result<CommandLine, String> {
    let step = step.as_ref().map_err(Clone::clone)?;
    Ok(line.clone()?.with_env(step.joining_rank()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_says_its_step_and_its_number() {
        let env = rank_env("bench-1", 1);
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_str().unwrap());
        assert_eq!(get("PMIX_NAMESPACE"), Some("bench-1"));
        assert_eq!(get("PMIX_RANK"), Some("1"));
        assert_eq!(get("OMPI_COMM_WORLD_LOCAL_SIZE"), Some("2"));
    }

    #[test]
    fn fresh_steps_never_share_a_name() {
        let mut steps = FreshSteps::default();
        assert_ne!(steps.first_rank()[0], steps.first_rank()[0]);
    }

    #[test]
    fn this_process_has_not_arrived_anywhere() {
        assert_eq!(arrived(std::process::id(), Path::new("/bin/true")), None);
    }
}

//! The job step that this rank belongs to: who its siblings on this node are, and how they meet.
//!
//! Nothing is written anywhere. Siblings are found in the process tree below the launcher's daemon
//! ([`siblings`]), and a sandbox says in its own /run whose it is ([`Mark`]). While one is being built
//! its builder holds an abstract socket ([`meeting`]), which the kernel removes with the process.

pub mod keeper;
pub mod meeting;
pub mod once;
pub mod siblings;

use std::hash::{DefaultHasher, Hash, Hasher};

use pmi_shim::launcher::{self, Launcher, Rank};
use serde::Serialize;

use crate::environ::Environ;

/// A rank's job step on this node.
#[derive(Clone, Debug, Serialize)]
pub struct JobStep {
    /// What the launcher told the rank.
    pub rank: Rank,
    /// The launcher's daemon on this node, by its process number. (A later daemon of the same number has
    /// other children: siblings are looked for below the daemon only.)
    pub daemon: i32,
    /// Another launcher, inside of whose rank this one runs.
    pub outer: Option<Launcher>,
}

impl JobStep {
    /// The job step of this process; `None` without a launcher: then nothing is shared. Of two launchers, one inside
    /// of the other's rank, the inner counts, and the variables of the outer one are removed.
    pub fn of_process(environ: &mut Environ) -> Option<JobStep> {
        let outer = unnest(environ);
        let mut step = JobStep::of_environ(environ)?;
        step.outer = outer;
        Some(step)
    }

    fn of_environ(environ: &Environ) -> Option<JobStep> {
        let rank = launcher::detect(|name| environ.get(name))?;
        let daemon = siblings::daemon(&rank.identity);
        Some(JobStep { rank, daemon, outer: None })
    }
}

/// Removes what an outer launcher of another family has set; answers which one.
fn unnest(environ: &mut Environ) -> Option<Launcher> {
    let both = launcher::nested(|name| environ.get(name))?;
    let distances = [0, 1].map(|i| siblings::distance(&both[i].identity));
    // Where nothing tells them apart PMIx counts, as the only one that says so itself.
    let outer = usize::from(distances[0] <= distances[1]);
    *environ = std::mem::take(environ).without(launcher::FAMILIES[outer]);
    Some(both[outer].launcher)
}

/// The name of a sandbox: the job step's part, within which the user namespace is shared, and the
/// part that tells different sandboxes of one step apart (programs of one job may have different images).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// User, daemon, step.
    pub step: String,
    /// Image, binds, options.
    pub sandbox: String,
}

impl Mark {
    /// From the job step and whatever makes two sandboxes differ.
    pub fn new(uid: u32, step: &JobStep, sandbox: &impl Hash) -> Mark {
        Mark { step: digest(&(uid, &step.rank.step, step.daemon)), sandbox: digest(sandbox) }
    }

    /// As it is written into the sandbox.
    pub fn text(&self) -> String {
        format!("{}.{}", self.step, self.sandbox)
    }
}

/// 128 bits as 32 digits. Every rank of a job runs the same hpc-launch, so the standard library's hash
/// will do; it names, it protects nothing.
pub fn digest(value: &impl Hash) -> String {
    let half = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
        value.hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(1), half(2))
}

//! The job step that this rank belongs to: who its siblings on this node are, and how they meet.
//!
//! Nothing is written anywhere. Siblings are found in the process tree below the launcher's daemon
//! ([`siblings`]), and a sandbox says in its own /run whose it is ([`Mark`]). While one is being built
//! its builder holds an abstract socket ([`meeting`]), which the kernel removes with the process.

pub mod keeper;
pub mod meeting;
pub mod once;
pub mod siblings;

use std::hash::{Hash, Hasher};

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

/// 128 bits as 32 digits: it names, it protects nothing.
pub fn digest(value: &impl Hash) -> String {
    let mut hasher = Fnv::new();
    (env!("CARGO_PKG_VERSION"), value).hash(&mut hasher);
    format!("{:032x}", hasher.0)
}

/// FNV-1a of 128 bits (draft-eastlake-fnv, section 2): a twentieth of the instructions of two rounds of the standard
/// library's hash, which were a tenth of a first rank's.
struct Fnv(u128);

impl Fnv {
    const PRIME: u128 = (1 << 88) + 0x13b;

    fn new() -> Fnv {
        Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(Fnv::PRIME);
        }
    }

    /// The upper half and the lower one, in one.
    fn finish(&self) -> u64 {
        (self.0 >> 64) as u64 ^ self.0 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fnv_1a() {
        // draft-eastlake-fnv, appendix: of nothing, of "a", of "foobar".
        for (text, sum) in [
            ("", 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128),
            ("a", 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964),
            ("foobar", 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18),
        ] {
            let mut hasher = Fnv::new();
            hasher.write(text.as_bytes());
            assert_eq!(hasher.0, sum, "{text}");
        }
    }

    #[test]
    fn digests_tell_values_apart() {
        let all = [digest(&("ab", "c")), digest(&("a", "bc")), digest(&("abc", "")), digest(&(1u8, "abc"))];
        for (i, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 32);
            assert!(!all[..i].contains(one));
        }
    }
}

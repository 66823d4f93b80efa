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
    let mut hasher = Folded(1);
    (env!("CARGO_PKG_VERSION"), value).hash(&mut hasher);
    format!("{:032x}", hasher.0)
}

/// 128 bits that every word is folded into: multiplied by an odd constant (which loses nothing), with the upper half,
/// which such a product mixes well, put into the lower one. Two rounds of the standard library's hash, of 64 bits,
/// were a tenth of a first rank's instructions.
struct Folded(u128);

impl Folded {
    /// The multiplier of PCG's generator of 128 bits.
    const FACTOR: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

    fn fold(&mut self, word: u64) {
        let product = (self.0 ^ u128::from(word)).wrapping_mul(Folded::FACTOR);
        self.0 = product ^ (product >> 64);
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        // With their number: fewer than eight leave room for it.
        let last = rest.iter().fold(rest.len() as u64, |word, byte| word << 8 | u64::from(*byte));
        self.fold(last);
    }

    fn write_u8(&mut self, number: u8) {
        self.fold(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.fold(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.fold(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.fold(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_every_word_counts() {
        let words = [7u64, 0, u64::MAX, 1 << 40];
        let mut all: Vec<String> = (0..4 * 64)
            .map(|bit| {
                let mut changed = words;
                changed[bit / 64] ^= 1 << (bit % 64);
                digest(&changed)
            })
            .collect();
        all.push(digest(&words));
        for digit in 0..32 {
            // As good as any: no digit is the same for all, or for half of them.
            let most = "0123456789abcdef"
                .chars()
                .map(|c| all.iter().filter(|d| d.chars().nth(digit) == Some(c)).count());
            assert!(most.max().is_some_and(|most| most < all.len() / 5), "digit {digit}");
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4 * 64 + 1);
    }

    #[test]
    fn digests_tell_values_apart() {
        let all = [
            digest(&("ab", "c")),
            digest(&("a", "bc")),
            digest(&("abc", "")),
            digest(&(1u8, "abc")),
            digest(&"abc\0"),
        ];
        for (i, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 32);
            assert!(!all[..i].contains(one));
        }
    }
}

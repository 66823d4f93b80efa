//! What is kept of a measurement: every sample, what was compared with what, and where it ran. The JSON file is this,
//! and all else (tables, CSV, the page, comparisons) is made of it; docs/bench.schema.json describes it.

use crate::run::Failure;
use crate::stats::Estimate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The first word of every file, which tells it from other JSON.
pub const FORMAT: &str = "hpc-bench";
/// Raised when a reader of the one before would misread a file.
pub const VERSION: u32 = 1;

/// A whole measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// When the first sample was about to be taken: RFC 3339, UTC.
    pub began: String,
    /// How long it took, in seconds, pauses between an interruption and its resumption left out.
    pub seconds: f64,
    /// Whether it was ended before all rounds were run; what there is counts all the same.
    pub interrupted: bool,
    /// As one would type it.
    pub command: String,
    /// Where it ran.
    pub machine: Machine,
    /// What was run in.
    pub images: Vec<Image>,
    /// What hpc-launch was going to do, as `hpc-launch plan --json` has it.
    pub plans: Vec<Plan>,
    /// One per bench.
    pub reports: Vec<Report>,
}

/// What a reader needs to compare two reports.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Its release.
    pub kernel: String,
    /// The distribution, by its own words.
    pub system: String,
    /// The processor's model.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Whether the processor says that a hypervisor runs it.
    pub virtual_machine: bool,
    /// In MiB.
    pub memory: u64,
    /// The cost of a mount namespace grows with the mounts that exist.
    pub mounts: usize,
    /// Who ran it.
    pub user: String,
    /// What changes the clock rate: the scaling governor, if the kernel has one here.
    pub governor: Option<String>,
    /// The first line that each program says of its version.
    pub versions: BTreeMap<String, String>,
}

/// An image that was used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Where it is.
    pub path: String,
    /// "directory", "SquashFS", …
    pub kind: String,
    /// Of a file: `sha256:…` of its bytes. Of a directory: of the names, kinds, sizes and links in it, as
    /// `tree-sha256:…`.
    pub digest: String,
}

/// A plan of hpc-launch's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Of which row.
    pub row: String,
    /// The command that it was asked for.
    pub command: String,
    /// The plan, or what was said instead of one.
    pub plan: serde_json::Value,
}

/// One bench's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The subcommand.
    pub bench: String,
    /// For people.
    pub title: String,
    /// What was asked for.
    pub settings: BTreeMap<String, String>,
    /// What else went on.
    pub noise: Noise,
    /// The tables.
    pub groups: Vec<Group>,
    /// The numbers that were promised.
    pub budgets: Vec<Budget>,
    /// What was verified or noticed on the way.
    pub notes: Vec<String>,
}

/// What else the machine was doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// One-minute load average before the first sample of the measurement.
    pub load_before: f64,
    /// … and after the last: the measurement itself is in it.
    pub load_after: f64,
    /// Time that a hypervisor gave to others meanwhile, as a share of this machine's processors' time.
    pub stolen: Option<f64>,
    /// The mean clock rate of the processors before and after, in MHz, if the kernel tells it.
    pub clock: Option<(f64, f64)>,
    /// CPUs that it may be compared with.
    pub cpus: usize,
}

/// One table: rows that are compared with each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Group {
    /// Tells it from all other groups of a document, and finds the same one in another document:
    /// `pt2pt/latency/openmpi/8`.
    pub key: String,
    /// What was measured.
    pub title: String,
    /// Of all its numbers but the ratios.
    pub unit: String,
    /// Which way is better.
    pub better: Better,
    /// Where it belongs in a plot.
    pub point: Option<Point>,
    /// In the order of the table.
    pub rows: Vec<Row>,
    /// Whether the terminal shows it too; the JSON always has it.
    #[serde(skip)]
    pub in_text: bool,
}

/// Which numbers are the good ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Times, counts.
    Lower,
    /// Bandwidths, rates.
    Higher,
}

/// A group's place in a plot: groups with the same `plot` are one plot, each row is a line through them, or a set of
/// bars.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The plot's title.
    pub plot: String,
    /// Where on the axis.
    pub x: f64,
    /// "B", "ranks", "hosts".
    pub x_unit: String,
}

/// One contender.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// As in the table.
    pub name: String,
    /// As one would type it.
    pub command: String,
    /// One per round; `null` where the run failed.
    pub samples: Vec<Option<f64>>,
    /// Of the samples there are.
    pub median: Option<Estimate>,
    /// By the row it is compared with, over the rounds in which both ran.
    pub ratios: BTreeMap<String, Estimate>,
    /// Failed runs, alike ones together.
    pub failures: Vec<FailureKind>,
    /// Why the row was not run at all.
    pub not_run: Option<String>,
}

/// Failed runs that ended alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FailureKind {
    /// How many.
    pub runs: usize,
    /// The first of them.
    #[serde(flatten)]
    pub first: Failure,
}

/// A number that was promised, and whether it holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Budget {
    /// Of what.
    pub what: String,
    /// "at most 1.05".
    pub limit: String,
    /// What was found.
    pub measured: Option<Estimate>,
    /// Whether it was measured and holds.
    pub met: bool,
    /// The limit lies within the interval: another run might judge otherwise.
    pub close: bool,
}

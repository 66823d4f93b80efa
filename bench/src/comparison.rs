//! What became of each row from one kept measurement to another: pure, and as data.

use crate::baseline::baseline;
use crate::change::change;
use crate::contender::BARE_AGAIN;
use crate::document::{Better, Document, Group, Machine, Row};
use crate::report::number;
use crate::stats::{Estimate, median};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What both files have to say to each other.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Of this layout.
    pub version: u32,
    pub a: Side,
    pub b: Side,
    /// "ratio" or "absolute".
    pub compared: &'static str,
    /// In percent.
    pub tolerance: f64,
    /// What else is not the same: each a sentence.
    pub differences: Vec<String>,
    /// One per row that both measured, the worst first.
    pub changes: Vec<Change>,
    /// Rows with failed runs in B and none in A; regressions, too.
    pub now_failing: Vec<Place>,
    /// The other way round.
    pub no_longer_failing: Vec<Place>,
    /// Rows and groups of A that B has not, or did not run.
    pub disappeared: Vec<Place>,
    /// The other way round.
    pub new: Vec<Place>,
    /// Rows that both measured and that cannot be compared.
    pub not_compared: Vec<Place>,
}

#[derive(Debug, Serialize)]
pub struct Side {
    pub file: String,
    pub began: String,
    pub interrupted: bool,
}

/// One row of one group.
#[derive(Debug, Serialize)]
pub struct Place {
    pub key: String,
    pub group: String,
    pub row: String,
    pub why: String,
}

#[derive(Debug, Serialize)]
pub struct Change {
    pub key: String,
    pub group: String,
    pub row: String,
    pub kind: Kind,
    /// Of ratios or medians.
    pub unit: String,
    pub a: f64,
    pub b: f64,
    /// B over A.
    pub change: Estimate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Regression,
    Improvement,
    Same,
    /// Bare against bare: what changed there is noise.
    Noise,
}

/// Of all rows that both have; files and dates are for the caller to add.
pub fn compare(a: &Document, b: &Document, tolerance: f64, absolute: bool) -> Comparison {
    let none = || Side { file: String::new(), began: String::new(), interrupted: false };
    let mut found = Comparison {
        version: 1,
        a: none(),
        b: none(),
        compared: if absolute { "absolute" } else { "ratio" },
        tolerance,
        differences: differences(a, b),
        changes: Vec::new(),
        now_failing: Vec::new(),
        no_longer_failing: Vec::new(),
        disappeared: Vec::new(),
        new: Vec::new(),
        not_compared: Vec::new(),
    };
    let groups = |document: &'_ Document| -> Vec<Group> {
        document.reports.iter().flat_map(|report| &report.groups).cloned().collect()
    };
    let (before, after) = (groups(a), groups(b));
    let by_key: BTreeMap<&str, &Group> = after.iter().map(|group| (group.key.as_str(), group)).collect();
    let known: BTreeSet<&str> = before.iter().map(|group| group.key.as_str()).collect();
    for group in &before {
        match by_key.get(group.key.as_str()) {
            Some(other) => found.group(group, other),
            None => found.disappeared.push(place(group, "all rows", "B has no such table")),
        }
    }
    let new = after.iter().filter(|group| !known.contains(group.key.as_str()));
    found.new.extend(new.map(|group| place(group, "all rows", "A has no such table")));
    found.changes.sort_by(|a, b| b.worsening().total_cmp(&a.worsening()));
    found
}

fn place(group: &Group, row: &str, why: impl Into<String>) -> Place {
    Place { key: group.key.clone(), group: group.title.clone(), row: row.into(), why: why.into() }
}

/// Whether it was tried and gave at least one sample or failure.
fn ran(row: &Row) -> bool {
    row.not_run.is_none() && !row.samples.is_empty()
}

fn failed(row: &Row) -> Option<String> {
    let kind = row.failures.first()?;
    Some(format!("{} of {} runs: {}", kind.runs, row.samples.len(), kind.first.status))
}

impl Comparison {
    fn group(&mut self, before: &Group, after: &Group) {
        if before.unit != after.unit || before.better != after.better {
            let why = format!("measured in {} before, in {} now", before.unit, after.unit);
            self.not_compared.push(place(after, "all rows", why));
            return;
        }
        for row in &before.rows {
            let Some(other) = after.rows.iter().find(|other| other.name == row.name) else {
                self.disappeared.push(place(before, &row.name, "B has no such row"));
                continue;
            };
            match (ran(row), ran(other)) {
                (true, true) => self.row((before, row), (after, other)),
                (true, false) => {
                    let why = other.not_run.clone().unwrap_or_else(|| "it was not reached in B".into());
                    self.disappeared.push(place(after, &row.name, why));
                }
                (false, true) => {
                    self.new.push(place(after, &row.name, "it was not run in A"));
                    if let Some(why) = failed(other) {
                        // Nobody knows how it would have ended before.
                        self.not_compared.push(place(after, &row.name, format!("it failed in B: {why}")));
                    }
                }
                (false, false) => {}
            }
        }
        for row in after.rows.iter().filter(|row| before.rows.iter().all(|other| other.name != row.name)) {
            self.new.push(place(after, &row.name, "A has no such row"));
        }
    }

    fn row(&mut self, before: (&Group, &Row), after: (&Group, &Row)) {
        let (group, row) = after;
        match (failed(before.1), failed(row)) {
            (None, Some(why)) => self.now_failing.push(place(group, &row.name, why)),
            (Some(why), None) => self.no_longer_failing.push(place(group, &row.name, format!("in A {why}"))),
            _ => {}
        }
        let base = baseline(group);
        let ratio = self.compared == "ratio";
        if ratio && base != baseline(before.0) {
            self.not_compared.push(place(group, &row.name, "its table has another row to be compared with"));
            return;
        }
        // The base has no ratio to itself.
        if ratio && base == Some(row.name.as_str()) {
            return;
        }
        let rounds = |side: (&Group, &Row)| -> Vec<(f64, f64)> {
            let base = side.0.rows.iter().find(|other| Some(other.name.as_str()) == base);
            match base {
                Some(base) if ratio => row_pairs(side.1, base),
                _ => side.1.samples.iter().flatten().map(|sample| (*sample, 1.0)).collect(),
            }
        };
        let (a, b) = (rounds(before), rounds(after));
        let value = |rounds: &[(f64, f64)]| {
            let (mut own, mut base): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
            Some(median(&mut own)? / median(&mut base)?)
        };
        let (Some(from), Some(to)) = (value(&a), value(&b)) else {
            if row.failures.is_empty() && before.1.failures.is_empty() {
                self.not_compared.push(place(
                    group,
                    &row.name,
                    "no round has both it and what it is compared with",
                ));
            }
            return;
        };
        let found = match change(&a, &b) {
            Some(found) => found,
            // Counts may be 0, and stay so.
            None if from == 0.0 && to == 0.0 => Estimate::exact(1.0),
            None => {
                let why = format!("there is no ratio of {} to {}", number(to), number(from));
                self.not_compared.push(place(group, &row.name, why));
                return;
            }
        };
        let unit = match base {
            Some(base) if ratio => format!("× {base}"),
            _ => group.unit.clone(),
        };
        let kind = if row.name == BARE_AGAIN && ratio {
            Kind::Noise
        } else {
            kind(&found, group.better, self.tolerance)
        };
        let (key, group, row) = (group.key.clone(), group.title.clone(), row.name.clone());
        self.changes.push(Change { key, group, row, kind, unit, a: from, b: to, change: found });
    }

    /// Whether nothing became worse.
    pub fn is_good(&self) -> bool {
        self.now_failing.is_empty() && self.of(Kind::Regression).next().is_none()
    }

    /// The rows that this became of.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.kind == kind)
    }
}

fn row_pairs(row: &Row, base: &Row) -> Vec<(f64, f64)> {
    row.samples.iter().zip(&base.samples).filter_map(|(own, base)| own.zip(*base)).collect()
}

impl Change {
    /// A regression above all else, and of two the larger.
    fn worsening(&self) -> f64 {
        let size = self.change.value.ln().abs();
        match self.kind {
            Kind::Regression => size,
            Kind::Improvement => -size,
            Kind::Same | Kind::Noise => 0.0,
        }
    }
}

/// By more than `tolerance` percent, and with 1 outside of the interval.
fn kind(change: &Estimate, better: Better, tolerance: f64) -> Kind {
    // As factors above 1 for the worse, whichever way that is.
    let (value, low, high) = match better {
        Better::Lower => (change.value, change.low, change.high),
        Better::Higher => (1.0 / change.value, 1.0 / change.high, 1.0 / change.low),
    };
    let limit = 1.0 + tolerance / 100.0;
    match value {
        _ if value > limit && low > 1.0 => Kind::Regression,
        _ if value < 1.0 / limit && high < 1.0 => Kind::Improvement,
        _ => Kind::Same,
    }
}

/// What a reader must know before believing that the program made the change.
fn differences(a: &Document, b: &Document) -> Vec<String> {
    let mut all = Vec::new();
    let mut differ = |what: &str, a: &str, b: &str| {
        if a != b {
            all.push(format!("{what}: {a} in A, {b} in B"));
        }
    };
    let facts = |m: &Machine| {
        [
            ("processor", m.cpu.clone()),
            ("CPUs", m.cpus.to_string()),
            ("memory in MiB", m.memory.to_string()),
            ("virtual machine", m.virtual_machine.to_string()),
            ("kernel", m.kernel.clone()),
            ("system", m.system.clone()),
            ("governor", m.governor.clone().unwrap_or_else(|| "none".into())),
            ("user", m.user.clone()),
        ]
    };
    for ((what, a), (_, b)) in facts(&a.machine).iter().zip(&facts(&b.machine)) {
        differ(what, a, b);
    }
    let version = |m: &Machine, name: &str| m.versions.get(name).cloned().unwrap_or_else(|| "none".into());
    let programs: BTreeSet<&String> = a.machine.versions.keys().chain(b.machine.versions.keys()).collect();
    for name in programs {
        differ(name, &version(&a.machine, name), &version(&b.machine, name));
    }
    let digests = |d: &Document| d.images.iter().map(|i| i.digest.clone()).collect::<BTreeSet<_>>();
    let (first, second) = (digests(a), digests(b));
    let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
    differ("images", &list(&first), &list(&second));
    let settings = |d: &Document| -> BTreeMap<String, String> {
        let all = d
            .reports
            .iter()
            .flat_map(|r| r.settings.iter().map(|(k, v)| (format!("{} {k}", r.bench), v.clone())));
        all.collect()
    };
    let (first, second) = (settings(a), settings(b));
    for (name, value) in &first {
        if let Some(other) = second.get(name) {
            differ(name, value, other);
        }
    }
    all
}

//! `hpc-bench compare`: what became worse from one kept measurement to another, for people and for CI.

use crate::baseline::baseline;
use crate::change::change;
use crate::contender::BARE_AGAIN;
use crate::document::{Better, Document, Group, Machine, Row};
use crate::error::Error;
use crate::report::{columns, number};
use crate::stats::Estimate;
use crate::{saved, text};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Options of `hpc-bench compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The measurement before
    #[arg(value_name = "A.json")]
    first: PathBuf,
    /// The measurement after
    #[arg(value_name = "B.json")]
    second: PathBuf,
    /// A change for the worse of no more than this is none
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = tolerance)]
    tolerance: f64,
    /// Compare medians, not ratios to bare: the machine's own change is in them
    #[arg(long)]
    absolute: bool,
    /// Everything as JSON, the rows that did not change included
    #[arg(long)]
    json: bool,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1000.0).contains(&percent) { Ok(percent) } else { Err("not from 0 to 1000".into()) }
}

/// What both files have to say to each other.
#[derive(Debug, Serialize)]
struct Comparison {
    /// Of this layout.
    version: u32,
    a: Side,
    b: Side,
    /// "ratio" or "absolute".
    compared: &'static str,
    /// In percent.
    tolerance: f64,
    /// What else is not the same: each a sentence.
    differences: Vec<String>,
    /// One per row that both measured, the worst first.
    changes: Vec<Change>,
    /// Rows with failed runs in B and none in A; regressions, too.
    now_failing: Vec<Place>,
    /// The other way round.
    no_longer_failing: Vec<Place>,
    /// Rows and groups of A that B has not, or did not run.
    disappeared: Vec<Place>,
    /// The other way round.
    new: Vec<Place>,
    /// Rows that both measured and that cannot be compared.
    not_compared: Vec<Place>,
}

#[derive(Debug, Serialize)]
struct Side {
    file: String,
    began: String,
    interrupted: bool,
}

/// One row of one group.
#[derive(Debug, Serialize)]
struct Place {
    key: String,
    group: String,
    row: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct Change {
    key: String,
    group: String,
    row: String,
    kind: Kind,
    /// Of ratios or medians.
    unit: String,
    a: f64,
    b: f64,
    /// B over A.
    change: Estimate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Regression,
    Improvement,
    Same,
    /// Bare against bare: what changed there is noise.
    Noise,
}

/// Compares; false when something became worse.
pub fn run(args: &Args) -> Result<bool, Error> {
    let (a, b) = (saved::read(&args.first)?, saved::read(&args.second)?);
    let side = |path: &PathBuf, document: &Document| Side {
        file: path.display().to_string(),
        began: document.began.clone(),
        interrupted: document.interrupted,
    };
    let mut found = compare(&a, &b, args.tolerance, args.absolute);
    (found.a, found.b) = (side(&args.first, &a), side(&args.second, &b));
    let pairs = found.changes.len()
        + found.now_failing.len()
        + found.no_longer_failing.len()
        + found.not_compared.len();
    if pairs == 0 {
        return Err(Error::new(
            format!("compare {} with {}", args.first.display(), args.second.display()),
            "no row of the one was measured in the other",
            "give two measurements of the same benches",
        ));
    }
    if args.json {
        let text = serde_json::to_string_pretty(&found)
            .map_err(|e| Error::new("write the comparison as JSON", e, "report this as a bug"))?;
        println!("{text}");
    } else {
        print!("{}", found.text());
    }
    Ok(found.is_good())
}

fn compare(a: &Document, b: &Document, tolerance: f64, absolute: bool) -> Comparison {
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
            Some(crate::stats::median(&mut own)? / crate::stats::median(&mut base)?)
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

    fn is_good(&self) -> bool {
        self.now_failing.is_empty() && self.of(Kind::Regression).next().is_none()
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.kind == kind)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, side) in [("A", &self.a), ("B", &self.b)] {
            let interrupted = if side.interrupted { ", interrupted" } else { "" };
            text +=
                &format!("{name}  {}, {}{interrupted}\n", text::line(&side.file), text::line(&side.began));
        }
        for difference in &self.differences {
            text += &format!("differs: {}\n", text::line(difference));
        }
        let what = if self.compared == "ratio" { "ratios" } else { "medians" };
        text += &changes(
            &format!("became worse ({what}, by more than {} %)", self.tolerance),
            self.of(Kind::Regression),
        );
        text += &places("failing now", &self.now_failing);
        let better = self.changes.iter().rev().filter(|change| change.kind == Kind::Improvement);
        text += &changes("became better", better);
        text += &places("no longer failing", &self.no_longer_failing);
        text += &places("not measured any more", &self.disappeared);
        text += &places("new", &self.new);
        text += &places("not compared", &self.not_compared);
        let noise = |change: &&Change| change.change.low > 1.0 || change.change.high < 1.0;
        let (all, off) = (self.of(Kind::Noise).count(), self.of(Kind::Noise).filter(noise).count());
        text.push('\n');
        if off * 10 > all.max(10) {
            text += &format!(
                "warning: bare against bare itself changed in {off} of {all} tables: one of the two runs was disturbed\n"
            );
        }
        let few = self.changes.iter().any(|change| change.change.samples < 6);
        if few {
            text += "warning: some rows have fewer than 6 rounds, too few for an interval: measure with more --runs\n";
        }
        let count = |kind| self.of(kind).count();
        text += &format!(
            "{} worse, {} failing now, {} better, {} the same within {} % or their intervals\n",
            count(Kind::Regression),
            self.now_failing.len(),
            count(Kind::Improvement),
            count(Kind::Same),
            self.tolerance
        );
        text
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

fn changes<'a>(title: &str, changes: impl Iterator<Item = &'a Change>) -> String {
    let mut lines = vec![["", "A", "B", "", "B / A", "95 %"].map(String::from).to_vec()];
    for change in changes {
        let Estimate { value, low, high, .. } = change.change;
        lines.push(vec![
            format!("{}: {}", text::line(&change.group), text::line(&change.row)),
            number(change.a),
            number(change.b),
            text::line(&change.unit),
            number(value),
            format!("[{}, {}]", number(low), number(high)),
        ]);
    }
    if lines.len() == 1 { String::new() } else { format!("\n{title}\n{}", columns(&lines)) }
}

fn places(title: &str, places: &[Place]) -> String {
    let mut text = String::new();
    for place in places {
        text += &format!(
            "  {}: {}: {}\n",
            text::line(&place.group),
            text::line(&place.row),
            text::line(&place.why)
        );
    }
    if text.is_empty() { text } else { format!("\n{title}\n{text}") }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn slower(by: f64) -> Document {
        let mut document = fixture::document();
        for group in
            document.reports.iter_mut().flat_map(|r| &mut r.groups).filter(|g| g.key.starts_with("start/job"))
        {
            for row in group.rows.iter_mut().filter(|row| row.name.starts_with("hpc-launch")) {
                row.samples.iter_mut().flatten().for_each(|sample| *sample *= by);
            }
        }
        document
    }

    #[test]
    fn the_same_is_the_same() {
        let found = compare(&fixture::document(), &fixture::document(), 5.0, false);
        assert!(found.is_good() && found.differences.is_empty(), "{}", found.text());
        assert_eq!(found.of(Kind::Regression).count() + found.of(Kind::Improvement).count(), 0);
        assert!(found.of(Kind::Same).count() > 100 && found.of(Kind::Noise).count() == 30);
        assert!(found.not_compared.is_empty() && found.now_failing.is_empty(), "{}", found.text());
    }

    #[test]
    fn what_is_worse_comes_first_and_tolerance_holds() {
        let found = compare(&fixture::document(), &slower(1.2), 5.0, false);
        assert!(!found.is_good());
        assert_eq!(found.of(Kind::Regression).count(), 9);
        assert!(found.changes[..9].iter().all(|change| change.kind == Kind::Regression));
        assert!(compare(&fixture::document(), &slower(1.2), 25.0, false).is_good());
        assert!(compare(&fixture::document(), &slower(1.02), 5.0, false).is_good());
        let found = compare(&slower(1.2), &fixture::document(), 5.0, false);
        assert!(found.is_good());
        assert_eq!(found.of(Kind::Improvement).count(), 9);
        assert!(found.text().contains("became better"), "{}", found.text());
    }

    #[test]
    fn a_slower_machine_is_no_regression_unless_medians_are_compared() {
        let mut other = fixture::document();
        for row in other.reports.iter_mut().flat_map(|r| &mut r.groups).flat_map(|g| &mut g.rows) {
            row.samples.iter_mut().flatten().for_each(|sample| *sample *= 2.0);
        }
        other.machine.cpu = "another".into();
        let found = compare(&fixture::document(), &other, 5.0, false);
        assert!(found.is_good());
        assert!(
            found.text().contains("differs: processor: AMD EPYC 7B13 64-Core Processor in A, another in B")
        );
        let found = compare(&fixture::document(), &other, 5.0, true);
        assert!(!found.is_good());
        // Half of the groups are times, and twice as large there is worse; for the others it is better.
        assert!(found.of(Kind::Regression).count() > 50 && found.of(Kind::Improvement).count() > 50);
    }

    #[test]
    fn failing_gone_and_new_rows() {
        let (a, mut b) = (fixture::document(), fixture::document());
        let groups = &mut b.reports[0].groups;
        let failures = groups
            .iter()
            .flat_map(|g| &g.rows)
            .find(|row| !row.failures.is_empty())
            .unwrap()
            .failures
            .clone();
        groups[0].rows[2].samples[0] = None;
        groups[0].rows[2].failures = failures;
        groups[0].rows[2].failures[0].runs = 1;
        groups[0].rows.remove(6);
        groups[1].rows[4].name = "enroot".into();
        groups[2].rows[4].not_run = Some("ch-run was not found".into());
        groups[3].key = "another".into();
        let found = compare(&a, &b, 5.0, false);
        assert!(!found.is_good());
        let said = found.text();
        assert!(
            said.contains(
                "failing now\n  latency, Open MPI, 8 B: hpc-launch, host's MPI: 1 of 15 runs: exit 1"
            ),
            "{said}"
        );
        assert!(
            said.contains("ch-run: ch-run was not found") && said.contains("enroot: A has no such row"),
            "{said}"
        );
        assert_eq!((found.disappeared.len(), found.new.len()), (4, 2));
        assert!(compare(&b, &a, 5.0, false).is_good());
    }

    #[test]
    fn counts_may_be_nothing() {
        let (mut a, mut b) = (fixture::document(), fixture::document());
        let set = |document: &mut Document, value: f64| {
            for row in &mut document.reports[0].groups[0].rows {
                row.samples.iter_mut().for_each(|sample| *sample = Some(value));
            }
        };
        set(&mut a, 0.0);
        set(&mut b, 0.0);
        let found = compare(&a, &b, 5.0, true);
        assert!(found.is_good() && found.not_compared.is_empty(), "{}", found.text());
        set(&mut b, 3.0);
        let found = compare(&a, &b, 5.0, true);
        assert!(found.text().contains("there is no ratio of 3.000 to 0.000"), "{}", found.text());
    }

    #[test]
    fn a_tolerance_is_a_percentage() {
        assert_eq!([tolerance("5"), tolerance("2.5%")], [Ok(5.0), Ok(2.5)]);
        assert!(tolerance("-1").is_err() && tolerance("NaN").is_err() && tolerance("much").is_err());
    }
}

//! What is shown: a table on the terminal and everything, sample by sample, as JSON.

use crate::contender::{BARE, BARE_AGAIN, Measured};
use crate::document::{Better, Budget, Document, FailureKind, Group, Noise, Point, Report, Row};
use crate::stats::{Estimate, median_estimate, ratio_estimate};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Time that a hypervisor gave to others, from which on it is told.
const MUCH_STOLEN: f64 = 0.01;
/// How far the clock rate may be from what it was without being told.
const CLOCK_DRIFT: f64 = 0.03;

impl Budget {
    /// A value that must not exceed `limit`.
    pub fn at_most(what: impl Into<String>, limit: f64, measured: Option<Estimate>) -> Self {
        Budget::new(what.into(), "at most", limit, measured, |value| value <= limit)
    }

    /// A value that must reach `limit`.
    pub fn at_least(what: impl Into<String>, limit: f64, measured: Option<Estimate>) -> Self {
        Budget::new(what.into(), "at least", limit, measured, |value| value >= limit)
    }

    /// A ratio that must be 1, give or take `share`.
    pub fn within(what: impl Into<String>, share: f64, measured: Option<Estimate>) -> Self {
        Budget::new(what.into(), "1 ±", share, measured, |value| (value - 1.0).abs() <= share)
    }

    fn new(
        what: String,
        bound: &str,
        limit: f64,
        measured: Option<Estimate>,
        holds: impl Fn(f64) -> bool,
    ) -> Self {
        let met = measured.is_some_and(|m| holds(m.value));
        let close = measured.is_some_and(|m| holds(m.low) != holds(m.high));
        Budget { what, limit: format!("{bound} {limit}"), measured, met, close }
    }

    /// Whether it was measured and holds.
    pub fn is_met(&self) -> bool {
        self.met
    }

    /// A line for the terminal.
    pub fn text(&self) -> String {
        let measured = match &self.measured {
            Some(exact) if exact.low == exact.high => number(exact.value),
            Some(measured) => format!("{} {}", number(measured.value), interval(measured)),
            None => "not measured".into(),
        };
        let verdict = if self.met { "ok" } else { "MISSED" };
        let close = if self.close { ", but close: more --runs or a calmer machine would decide" } else { "" };
        format!("budget: {}: {measured}, {}: {verdict}{close}\n", self.what, self.limit)
    }
}

impl Group {
    /// Statistics of times, or what else is better the less there is of it, of all rows, each against each of the rows
    /// named in `baselines`.
    pub fn new(
        key: impl Into<String>,
        title: impl Into<String>,
        unit: &str,
        baselines: &[&str],
        measured: &[Measured<f64>],
    ) -> Self {
        let values: Vec<Vec<Option<f64>>> = measured
            .iter()
            .map(|m| m.outcomes.iter().flatten().map(|o| o.as_ref().ok().copied()).collect())
            .collect();
        let rows = measured.iter().zip(&values).map(|(row, own)| {
            let mut ratios = BTreeMap::new();
            for (other, theirs) in measured.iter().zip(&values) {
                if other.name == row.name || !baselines.contains(&other.name.as_str()) {
                    continue;
                }
                let pairs: Vec<(f64, f64)> = own.iter().zip(theirs).filter_map(|(a, b)| a.zip(*b)).collect();
                // Against a count of none there is no ratio, nor has JSON a number for it.
                let ratio = ratio_estimate(&pairs).filter(|r| r.low.is_finite() && r.high.is_finite());
                ratios.extend(ratio.map(|ratio| (other.name.clone(), ratio)));
            }
            let good: Vec<f64> = own.iter().flatten().copied().collect();
            Row {
                name: row.name.clone(),
                command: row.command.clone(),
                median: median_estimate(&good),
                samples: own.clone(),
                ratios,
                failures: failure_kinds(row),
                not_run: row.outcomes.as_ref().err().cloned(),
            }
        });
        Group {
            key: key.into(),
            title: title.into(),
            unit: unit.into(),
            better: Better::Lower,
            point: None,
            rows: rows.collect(),
            in_text: true,
        }
    }

    /// Of rates.
    pub fn higher_is_better(mut self) -> Self {
        self.better = Better::Higher;
        self
    }

    /// A place in a plot.
    pub fn at(mut self, plot: impl Into<String>, x: f64, x_unit: &str) -> Self {
        self.point = Some(Point { plot: plot.into(), x, x_unit: x_unit.into() });
        self
    }

    /// For the JSON only.
    pub fn only_in_json(mut self) -> Self {
        self.in_text = false;
        self
    }

    /// The ratio of two rows' medians, if both were measured.
    pub fn ratio(&self, row: &str, to: &str) -> Option<Estimate> {
        self.rows.iter().find(|r| r.name == row)?.ratios.get(to).copied()
    }

    fn table(&self) -> String {
        let mut baselines: Vec<&String> = self.rows.iter().flat_map(|row| row.ratios.keys()).collect();
        baselines.sort_unstable();
        baselines.dedup();
        let mut lines = vec![vec![String::new(), self.unit.clone(), "95 %".into()]];
        lines[0].extend(baselines.iter().map(|name| format!("× {name}")));
        for row in &self.rows {
            let mut cells = vec![row.name.clone()];
            match &row.median {
                Some(median) => {
                    cells.extend([number(median.value), interval(median)]);
                    cells.extend(baselines.iter().map(|name| match row.ratios.get(*name) {
                        Some(ratio) => format!("{} {}", number(ratio.value), interval(ratio)),
                        None => "-".into(),
                    }));
                }
                None if row.not_run.is_some() => cells.push("not run".into()),
                None => cells.push("FAILED".into()),
            }
            let failed: usize = row.failures.iter().map(|kind| kind.runs).sum();
            if failed > 0 {
                cells.resize(3 + baselines.len(), String::new());
                cells.push(format!("{failed} of {} FAILED", row.samples.len()));
            }
            lines.push(cells);
        }
        format!("{}\n{}", self.title, columns(&lines))
    }
}

impl Report {
    /// True when no run failed and every budget is met.
    pub fn is_good(&self) -> bool {
        let rows = || self.groups.iter().flat_map(|group| &group.rows);
        rows().all(|row| row.failures.is_empty()) && self.budgets.iter().all(Budget::is_met)
    }

    /// The whole report as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for group in self.groups.iter().filter(|group| group.in_text) {
            text += &format!("{}\n", group.table());
        }
        text += &self.troubles();
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        text += &self.noise();
        for budget in &self.budgets {
            text += &budget.text();
        }
        text
    }

    /// Failed runs with what they said, and rows that were not run. A row of several tables says it once,
    /// rows with the same reason say it together.
    fn troubles(&self) -> String {
        let rows = || self.groups.iter().flat_map(|group| &group.rows);
        let mut not_run: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (row, why) in rows().filter_map(|row| Some((row, row.not_run.as_ref()?))) {
            not_run.entry(why).or_default().insert(&row.name);
        }
        let mut text = String::new();
        for (why, names) in not_run {
            let names: Vec<&str> = names.into_iter().collect();
            text += &format!("not run: {}\n    {why}\n", names.join("; "));
        }
        let mut said = BTreeSet::new();
        let mut commands = BTreeSet::new();
        for row in rows() {
            for kind in &row.failures {
                let (failed, all) = (kind.runs, row.samples.len());
                let line = format!("{}: {failed} of {all} runs: {}\n", row.name, kind.first);
                if said.insert(line.clone()) {
                    text += &line;
                }
                if commands.insert(&row.command) {
                    text += &format!("    $ {}\n", row.command);
                }
            }
        }
        text
    }

    /// Of all tables the ratio of bare metal to itself that is the farthest from 1.
    pub fn against_itself(&self) -> Option<Estimate> {
        let ratios = self.groups.iter().filter_map(|group| group.ratio(BARE_AGAIN, BARE));
        ratios.max_by(|a, b| a.value.ln().abs().total_cmp(&b.value.ln().abs()))
    }

    fn noise(&self) -> String {
        let noise = &self.noise;
        let mut text = String::from("noise: ");
        if let Some(ratio) = self.against_itself() {
            let _ = write!(text, "bare against bare {} {}; ", number(ratio.value), interval(&ratio));
        }
        let _ = writeln!(
            text,
            "load average {:.2} before, {:.2} after, on {} CPUs",
            noise.load_before, noise.load_after, noise.cpus
        );
        for warning in self.warnings() {
            text += &format!("warning: {warning}\n");
        }
        text
    }

    /// What a reader must know before believing the numbers.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.noise.warnings();
        let ratios: Vec<Estimate> =
            self.groups.iter().filter_map(|group| group.ratio(BARE_AGAIN, BARE)).collect();
        let off = ratios.iter().filter(|ratio| ratio.low > 1.0 || ratio.high < 1.0).count();
        // One interval in twenty misses by chance.
        if off > 0 && off >= ratios.len().div_ceil(10) {
            warnings.push(format!(
                "bare against bare is not 1 within its interval in {off} of {} tables; differences of that size mean \
                 nothing here",
                ratios.len()
            ));
        }
        warnings
    }
}

impl Noise {
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.load_before > self.cpus as f64 / 2.0 {
            warnings.push(
                "the machine was busy before the first sample; wait for it to rest, or trust the ratios only"
                    .into(),
            );
        }
        if let Some(stolen) = self.stolen.filter(|stolen| *stolen > MUCH_STOLEN) {
            let share = stolen * 100.0;
            warnings.push(format!("the hypervisor gave {share:.1} % of the processors' time to others"));
        }
        if let Some((before, after)) = self.clock.filter(|(a, b)| (b / a - 1.0).abs() > CLOCK_DRIFT) {
            warnings.push(format!("the clock rate went from {before:.0} to {after:.0} MHz"));
        }
        if self.cpus == 1 {
            warnings.push(
                "there is one CPU: two ranks never run at once, so that latency and bandwidth are the scheduler's".into(),
            );
        }
        warnings
    }
}

impl Document {
    /// True when nothing failed and every budget is met.
    pub fn is_good(&self) -> bool {
        self.reports.iter().all(Report::is_good)
    }

    /// All reports as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for report in &self.reports {
            if self.reports.len() > 1 {
                let title = format!("{}: {}", report.bench, report.title);
                let _ = writeln!(text, "{title}\n{}\n", "=".repeat(title.chars().count()));
            }
            text += &report.text();
            if self.reports.len() > 1 {
                text.push('\n');
            }
        }
        if self.interrupted {
            text += "interrupted: these are the rounds that there are\n";
        }
        text
    }
}

/// Text in columns: the first to the left, the others to the right.
pub fn columns(lines: &[Vec<String>]) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let _ =
                if column == 0 { write!(row, "  {cell:<width$}") } else { write!(row, "  {cell:>width$}") };
        }
        text += row.trim_end();
        text.push('\n');
    }
    text
}

/// Three or four digits that matter.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 10.0 && size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The ends of an interval.
pub fn interval(estimate: &Estimate) -> String {
    format!("[{}, {}]", number(estimate.low), number(estimate.high))
}

fn failure_kinds(row: &Measured<f64>) -> Vec<FailureKind> {
    let mut kinds: Vec<FailureKind> = Vec::new();
    for failure in row.outcomes.iter().flatten().filter_map(|outcome| outcome.as_ref().err()) {
        match kinds.iter_mut().find(|kind| kind.first.status == failure.status) {
            Some(kind) => kind.runs += 1,
            None => kinds.push(FailureKind { runs: 1, first: failure.clone() }),
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Failure;

    fn measured(name: &str, outcomes: Result<Vec<Result<f64, Failure>>, String>) -> Measured<f64> {
        Measured { name: name.into(), command: format!("run {name}"), outcomes }
    }

    fn group() -> Group {
        let hung = || Err(Failure::new("timed out after 30 s", "PMIX ERROR"));
        Group::new(
            "a/key",
            "a title",
            "ms",
            &["bare"],
            &[
                measured("bare", Ok(vec![Ok(1.0), Ok(2.0), Ok(2.0), Ok(2.0)])),
                measured("half-failed", Ok(vec![Ok(2.0), hung(), Ok(4.0), hung()])),
                measured("all-failed", Ok(vec![Err(Failure::new("exit 1", "a\nb"))])),
                measured("missing", Err("not installed: install it".into())),
            ],
        )
    }

    #[test]
    fn a_ratio_is_taken_over_the_rounds_in_which_both_ran() {
        let group = group();
        let ratio = group.rows[1].ratios["bare"];
        assert_eq!((ratio.value, ratio.samples), (2.0, 2));
        assert_eq!(group.ratio("half-failed", "bare"), Some(ratio));
        assert_eq!(group.ratio("missing", "bare"), None);
        assert_eq!(group.rows[1].samples, [Some(2.0), None, Some(4.0), None]);
    }

    #[test]
    fn no_failed_run_is_dropped() {
        let table = group().table();
        assert!(table.contains("2 of 4 FAILED"), "{table}");
        let line = |name: &str| table.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(
            line("all-failed").contains("FAILED") && line("all-failed").contains("1 of 1 FAILED"),
            "{table}"
        );
        assert!(line("missing").contains("not run"), "{table}");
    }

    #[test]
    fn alike_failures_are_told_once_with_their_number() {
        let kinds = &group().rows[1].failures;
        assert_eq!(kinds.len(), 1);
        assert_eq!((kinds[0].runs, kinds[0].first.stderr.as_str()), (2, "PMIX ERROR"));
    }

    #[test]
    fn a_budget_without_a_measurement_is_missed() {
        let exactly = |value| Some(Estimate::exact(value));
        assert!(Budget::at_most("a", 0.5, exactly(0.5)).is_met());
        assert!(!Budget::at_most("a", 0.5, exactly(0.51)).is_met());
        assert!(Budget::at_least("a", 0.95, exactly(1.0)).is_met());
        assert!(!Budget::at_least("a", 0.95, None).is_met());
    }

    #[test]
    fn a_budget_says_when_its_limit_lies_within_the_interval() {
        let measured = Estimate { value: 1.06, low: 1.01, high: 1.1, samples: 15 };
        let text = Budget::at_most("wall time", 1.05, Some(measured)).text();
        assert!(
            text.starts_with("budget: wall time: 1.060 [1.010, 1.100], at most 1.05: MISSED, but close"),
            "{text}"
        );
        let text = Budget::at_most("calls", 149.0, Some(Estimate::exact(130.0))).text();
        assert_eq!(text, "budget: calls: 130, at most 149: ok\n");
    }

    #[test]
    fn columns_line_up_and_end_without_blanks() {
        let lines = [vec!["a".into(), "1".into()], vec!["bcd".into(), "×22".into()], vec!["e".into()]];
        assert_eq!(columns(&lines), "  a      1\n  bcd  ×22\n  e\n");
    }

    #[test]
    fn numbers_keep_their_digits() {
        assert_eq!(
            ["0.190", "9.123", "43.21", "852.1", "9332"],
            [0.19, 9.123, 43.21, 852.1, 9332.4].map(number)[..]
        );
    }
}

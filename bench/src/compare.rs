//! `hpc-bench compare`: what became worse from one kept measurement to another, for people and for CI.

use crate::comparison::{Change, Comparison, Kind, Place, Side, compare};
use crate::document::Document;
use crate::error::Error;
use crate::report::{columns, number};
use crate::stats::Estimate;
use crate::{saved, text};
use std::path::PathBuf;

/// How much of a reason is shown; --json has it all.
const SENTENCE: usize = 300;

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

impl Comparison {
    fn text(&self) -> String {
        let mut text = String::new();
        for (name, side) in [("A", &self.a), ("B", &self.b)] {
            let interrupted = if side.interrupted { ", interrupted" } else { "" };
            text +=
                &format!("{name}  {}, {}{interrupted}\n", text::line(&side.file), text::line(&side.began));
        }
        for difference in &self.differences {
            text += &format!("differs: {}\n", text::brief(difference, SENTENCE));
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

fn changes<'a>(title: &str, changes: impl Iterator<Item = &'a Change>) -> String {
    let mut lines = vec![["", "A", "B", "", "B / A", "95 %"].map(String::from).to_vec()];
    for change in changes {
        let Estimate { value, low, high, .. } = change.change;
        lines.push(vec![
            format!("{}: {}", text::name(&change.group), text::name(&change.row)),
            number(change.a),
            number(change.b),
            text::name(&change.unit),
            number(value),
            format!("[{}, {}]", number(low), number(high)),
        ]);
    }
    if lines.len() == 1 { String::new() } else { format!("\n{title}\n{}", columns(&lines)) }
}

fn places(title: &str, places: &[Place]) -> String {
    // What holds for the same row of many tables is said once.
    let mut said: Vec<(&Place, usize)> = Vec::new();
    for place in places {
        match said.iter_mut().find(|(first, _)| first.row == place.row && first.why == place.why) {
            Some((_, count)) => *count += 1,
            None => said.push((place, 1)),
        }
    }
    let mut text = String::new();
    for (place, count) in said {
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        text += &format!(
            "  {}{more}: {}: {}\n",
            text::name(&place.group),
            text::name(&place.row),
            text::brief(&place.why, SENTENCE)
        );
    }
    if text.is_empty() { text } else { format!("\n{title}\n{text}") }
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

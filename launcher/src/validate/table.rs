//! What was validated: a line for each thing, with evidence and cure.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Area;

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It works.
    Pass,
    /// It does not.
    Fail,
    /// It works, and not as well as it could.
    Warn,
    /// It is not there, or could not be tried.
    Skip,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Pass => "PASS",
            Status::Fail => "FAIL",
            Status::Warn => "WARN",
            Status::Skip => "SKIP",
        }
    }
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What it is about.
    pub area: Area,
    /// How it ended.
    pub status: Status,
    /// What was seen, and where.
    pub evidence: String,
    /// What to do; empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cure: String,
}

/// All lines of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name.
    pub host: String,
    /// In the order of the steps.
    pub lines: Vec<Line>,
}

/// So much of a text is printed.
const MAX_SHOWN: usize = 4096;

/// What comes from an image is no command to a terminal, and no page of it.
fn shown(text: String) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(MAX_SHOWN).map(plain).collect()
}

/// The layout's version.
const VERSION: u32 = 1;

/// The tables of all nodes.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    version: u32,
    passed: usize,
    failed: usize,
    warned: usize,
    skipped: usize,
    nodes: &'a [Table],
}

impl Table {
    /// The same, with nothing in its texts that a terminal would obey.
    pub fn shown(self) -> Table {
        let mut table = Table { host: shown(self.host), lines: Vec::new() };
        for Line { area, status, evidence, cure } in self.lines {
            table.add(area, status, evidence, cure);
        }
        table
    }

    /// One more.
    pub fn add(&mut self, area: Area, status: Status, evidence: impl Into<String>, cure: impl Into<String>) {
        let line = Line { area, status, evidence: shown(evidence.into()), cure: shown(cure.into()) };
        // Seen again in another process.
        if !self.lines.contains(&line) {
            self.lines.push(line);
        }
    }

    /// It works.
    pub fn pass(&mut self, area: Area, evidence: impl Into<String>) {
        self.add(area, Status::Pass, evidence, "");
    }

    /// It does not.
    pub fn fail(&mut self, area: Area, evidence: impl Into<String>, cure: impl Into<String>) {
        self.add(area, Status::Fail, evidence, cure);
    }

    /// It could be better.
    pub fn warn(&mut self, area: Area, evidence: impl Into<String>, cure: impl Into<String>) {
        self.add(area, Status::Warn, evidence, cure);
    }

    /// It is not there.
    pub fn skip(&mut self, area: Area, evidence: impl Into<String>) {
        self.add(area, Status::Skip, evidence, "");
    }

    /// What is required and was skipped has failed; so has what is required and was not even come to.
    pub fn require(&mut self, areas: &[Area]) {
        for area in areas {
            let of = |line: &&mut Line| line.area == *area;
            let worked = self.lines.iter_mut().filter(of).any(|line| line.status != Status::Skip);
            for line in self.lines.iter_mut().filter(of) {
                if line.status == Status::Skip && !worked {
                    line.status = Status::Fail;
                    line.cure = format!("--require {}: it was asked for", area.name());
                }
            }
            if !self.lines.iter().any(|line| line.area == *area) {
                let cure = "see what failed before";
                self.fail(*area, format!("--require {}: nothing of it could be tried", area.name()), cure);
            }
        }
    }
}

impl<'a> Report<'a> {
    /// Of these nodes.
    pub fn new(nodes: &'a [Table]) -> Report<'a> {
        let count = |status: Status| {
            nodes.iter().flat_map(|node| &node.lines).filter(|line| line.status == status).count()
        };
        Report {
            version: VERSION,
            passed: count(Status::Pass),
            failed: count(Status::Fail),
            warned: count(Status::Warn),
            skipped: count(Status::Skip),
            nodes,
        }
    }

    /// Whether nothing failed.
    pub fn is_good(&self) -> bool {
        self.failed == 0
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Table { host, lines } in self.nodes {
            let _ = writeln!(out, "{host}");
            for Line { area, status, evidence, cure } in lines {
                let _ = writeln!(out, "  {} {:<10} {evidence}", status.name(), area.name());
                if !cure.is_empty() {
                    let _ = writeln!(out, "       {:<10} -> {cure}", "");
                }
            }
        }
        let Report { passed, failed, warned, skipped, .. } = self;
        let _ = writeln!(out, "{passed} passed, {failed} failed, {warned} warnings, {skipped} skipped");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_images_are_no_commands() {
        let mut table = Table::default();
        table.pass(Area::Ucx, format!("UCX \x1b[2J\n{}", "9".repeat(100_000)));
        let line = &table.lines[0];
        assert!(line.evidence.starts_with("UCX ?[2J?99") && line.evidence.len() == MAX_SHOWN, "{line:?}");
        // The same, from another process.
        table.pass(Area::Cdi, "a");
        table.pass(Area::Cdi, "a");
        assert_eq!(table.lines.len(), 2);
        let forged = r#"{"host":"\u001b[2Jn1","lines":[{"area":"mpi","status":"PASS","evidence":"\u001b[31mall is well"}]}"#;
        let table = serde_json::from_str::<Table>(forged).unwrap().shown();
        assert_eq!((table.host.as_str(), table.lines[0].evidence.as_str()), ("?[2Jn1", "?[31mall is well"));
    }

    #[test]
    fn what_is_required_may_not_be_skipped() {
        let mut table = Table { host: "n1".into(), lines: Vec::new() };
        table.skip(Area::Verbs, "no device");
        table.skip(Area::Ucx, "no library");
        table.skip(Area::Cuda, "no driver");
        table.pass(Area::Cuda, "a GPU");
        table.require(&[Area::Verbs, Area::Cuda, Area::Libfabric]);
        let statuses: Vec<_> = table.lines.iter().map(|line| (line.area, line.status)).collect();
        assert_eq!(
            statuses,
            [
                (Area::Verbs, Status::Fail),
                (Area::Ucx, Status::Skip),
                (Area::Cuda, Status::Skip),
                (Area::Cuda, Status::Pass),
                (Area::Libfabric, Status::Fail)
            ]
        );
        let tables = [table];
        let report = Report::new(&tables);
        assert!(!report.is_good());
        assert!(report.text().ends_with("1 passed, 2 failed, 0 warnings, 2 skipped\n"), "{}", report.text());
        assert!(report.text().contains("  FAIL verbs      no device\n                  -> --require verbs"));
    }
}

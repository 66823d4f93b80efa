//! Reads a kept measurement again. The file may come from anywhere: its size is bounded, and what would make a
//! later step lie (an interval upside down, two rows of one name) is refused here, with its place.

use crate::document::{Document, FORMAT, Group, VERSION};
use crate::error::Error;
use crate::stats::Estimate;
use crate::text;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A hundred times what the longest measurement keeps. Values take up to eleven times their text in memory.
const LIMIT: u64 = 64 << 20;

/// What tells our files from others, before anything else of them is believed.
#[derive(Deserialize)]
struct Head {
    format: Option<String>,
    version: Option<u64>,
}

/// Reads and checks the whole file.
pub fn read(path: &Path) -> Result<Document, Error> {
    let failed = |why: String, cure: &str| Error::new(format!("read {}", path.display()), why, cure);
    let bytes = bytes(path)
        .map_err(|e| failed(e.to_string(), "give the path of a file that hpc-bench wrote with --json"))?;
    if bytes.len() as u64 > LIMIT {
        let why = format!("it is larger than {} MiB, which no measurement is", LIMIT >> 20);
        return Err(failed(why, "give the path of a file that hpc-bench wrote with --json"));
    }
    parse(&bytes)
        .map_err(|why| failed(why, "measure again, or give a file that this hpc-bench wrote with --json"))
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Document, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("it is empty".into());
    }
    // serde's messages may quote the file.
    let json = |e: serde_json::Error| {
        let what =
            if e.is_eof() { "it ends in the middle" } else { "it cannot be read as JSON of hpc-bench's" };
        format!("{what}: {}", text::line(&e.to_string()))
    };
    let head: Head = serde_json::from_slice(bytes).map_err(json)?;
    if head.format.as_deref() != Some(FORMAT) {
        return Err(format!("it is not a file of hpc-bench's: its \"format\" is not \"{FORMAT}\""));
    }
    match head.version {
        Some(version) if version == u64::from(VERSION) => {}
        Some(other) => {
            return Err(format!("its version is {other}, and this hpc-bench reads version {VERSION}"));
        }
        None => return Err("it has no version".into()),
    }
    let document: Document = serde_json::from_slice(bytes).map_err(json)?;
    check(&document)?;
    Ok(document)
}

fn check(document: &Document) -> Result<(), String> {
    let mut keys = BTreeSet::new();
    if !is_duration(document.seconds) {
        return Err(format!("its duration is {} s", document.seconds));
    }
    for report in &document.reports {
        for group in &report.groups {
            if !keys.insert(&group.key) {
                return Err(format!("two groups have the key {:?}", text::name(&group.key)));
            }
            check_group(group).map_err(|why| format!("in the group {:?}: {why}", text::name(&group.key)))?;
        }
        for budget in &report.budgets {
            let what = || format!("in the budget {:?}: ", text::name(&budget.what));
            budget.measured.iter().try_for_each(check_estimate).map_err(|why| what() + &why)?;
        }
    }
    Ok(())
}

fn is_duration(seconds: f64) -> bool {
    (0.0..1e10).contains(&seconds)
}

fn check_group(group: &Group) -> Result<(), String> {
    if group.point.as_ref().is_some_and(|point| !point.x.is_finite()) {
        return Err("its place in the plot is no number".into());
    }
    let mut names = BTreeSet::new();
    for row in &group.rows {
        let place = |why: String| format!("row {:?}: {why}", text::name(&row.name));
        if !names.insert(&row.name) {
            return Err(place("it is there twice".into()));
        }
        if row.samples.iter().flatten().any(|sample| !sample.is_finite()) {
            return Err(place("a sample is no number".into()));
        }
        row.median.iter().chain(row.ratios.values()).try_for_each(check_estimate).map_err(place)?;
        let failed = row.failures.iter().try_fold(0_usize, |sum, kind| sum.checked_add(kind.runs));
        if failed.is_none_or(|failed| failed > row.samples.len()) {
            return Err(place(format!("more failed runs than its {} runs", row.samples.len())));
        }
    }
    Ok(())
}

fn check_estimate(estimate: &Estimate) -> Result<(), String> {
    let Estimate { value, low, high, .. } = *estimate;
    if ![value, low, high].iter().all(|number| number.is_finite()) {
        return Err("an estimate is no number".into());
    }
    if low > high {
        return Err(format!("an interval is upside down: {low} to {high}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use serde_json::{Value, json};

    fn why(change: impl FnOnce(&mut Value)) -> String {
        let mut value = serde_json::to_value(fixture::document()).unwrap();
        change(&mut value);
        parse(&serde_json::to_vec(&value).unwrap()).unwrap_err()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let written = serde_json::to_vec(&fixture::document()).unwrap();
        let read = parse(&written).unwrap();
        // serde_json reads a number to its last digit but one.
        assert!(crate::page::html(&read) == crate::page::html(&fixture::document()));
    }

    #[test]
    fn other_files_are_told_apart() {
        let said = |bytes: &[u8]| parse(bytes).unwrap_err();
        assert_eq!(said(b" \n"), "it is empty");
        assert!(said(b"{\"format\": \"hpc-be").starts_with("it ends in the middle"));
        assert!(said(b"\x7fELF").starts_with("it cannot be read as JSON"));
        assert!(said(b"{}").contains("not a file of hpc-bench's"));
        assert!(
            said(b"[1, 2]").contains("not a file of hpc-bench's")
                || said(b"[1, 2]").contains("cannot be read")
        );
        assert!(
            why(|v| v["version"] = json!(2)).contains("its version is 2, and this hpc-bench reads version 1")
        );
        assert!(why(|v| v["version"] = Value::Null).contains("no version"));
        assert!(said("[".repeat(1 << 20).as_bytes()).starts_with("it cannot be read as JSON"));
    }

    #[test]
    fn numbers_that_lie_are_refused_with_their_place() {
        let row = |v: &mut Value, name: &str, to: Value| v["reports"][0]["groups"][0]["rows"][0][name] = to;
        let upside = json!({"value": 1.0, "low": 2.0, "high": 0.5, "samples": 3});
        let said = why(|v| row(v, "median", upside.clone()));
        assert!(said.contains("row \"bare\": an interval is upside down: 2 to 0.5"), "{said}");
        assert!(why(|v| row(v, "ratios", json!({"x": upside}))).contains("upside down"));
        assert!(
            why(|v| row(v, "failures", json!([{"runs": 9_999, "status": "", "stderr": ""}])))
                .contains("failed runs")
        );
        assert!(why(|v| row(v, "name", json!("bare, again"))).contains("there twice"));
        assert!(why(|v| v["seconds"] = json!(-1)).contains("duration"));
        let text = serde_json::to_string(&fixture::document()).unwrap();
        let huge = text.replacen("\"samples\":[", "\"samples\":[1e999,", 1);
        assert!(parse(huge.as_bytes()).unwrap_err().contains("number out of range"));
        let said = why(|v| v["reports"][0]["groups"][1]["key"] = v["reports"][0]["groups"][0]["key"].clone());
        assert!(said.contains("two groups have the key"), "{said}");
    }
}

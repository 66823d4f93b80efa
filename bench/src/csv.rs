//! The tables as CSV (RFC 4180): one line per row of each group, the same columns in all of them.

use crate::baseline::baseline;
use crate::document::{Document, Group, Row};
use crate::stats::Estimate;

/// The first line of the file; docs/BENCHMARKS.md says what they mean.
const COLUMNS: [&str; 21] = [
    "bench",
    "group",
    "title",
    "unit",
    "better",
    "plot",
    "x",
    "x_unit",
    "row",
    "median",
    "low",
    "high",
    "samples",
    "ratio_to",
    "ratio",
    "ratio_low",
    "ratio_high",
    "failed_runs",
    "runs",
    "not_run",
    "first_failure",
];

/// The whole file.
pub fn csv(document: &Document) -> String {
    let mut text = line(&COLUMNS.map(String::from));
    for report in &document.reports {
        for group in &report.groups {
            for row in &group.rows {
                text += &line(&fields(&report.bench, group, row));
            }
        }
    }
    text
}

fn fields(bench: &str, group: &Group, row: &Row) -> [String; COLUMNS.len()] {
    let point = group.point.as_ref();
    let base = baseline(group);
    let ratio = base.and_then(|name| row.ratios.get(name));
    let [median, low, high] = numbers(row.median.as_ref());
    let [ratio_value, ratio_low, ratio_high] = numbers(ratio);
    let better = match group.better {
        crate::document::Better::Lower => "lower",
        crate::document::Better::Higher => "higher",
    };
    let failed: usize = row.failures.iter().map(|kind| kind.runs).sum();
    let first = row.failures.first().map(|kind| match kind.first.stderr.as_str() {
        "" => kind.first.status.clone(),
        said => format!("{}\n{said}", kind.first.status),
    });
    [
        bench.into(),
        group.key.clone(),
        group.title.clone(),
        group.unit.clone(),
        better.into(),
        point.map_or_else(String::new, |p| p.plot.clone()),
        point.map_or_else(String::new, |p| p.x.to_string()),
        point.map_or_else(String::new, |p| p.x_unit.clone()),
        row.name.clone(),
        median,
        low,
        high,
        row.median.map_or(0, |m| m.samples).to_string(),
        ratio.and(base).unwrap_or_default().into(),
        ratio_value,
        ratio_low,
        ratio_high,
        failed.to_string(),
        row.samples.len().to_string(),
        row.not_run.clone().unwrap_or_default(),
        first.unwrap_or_default(),
    ]
}

/// With all their digits: rounding is the reader's. Empty where there is none.
fn numbers(estimate: Option<&Estimate>) -> [String; 3] {
    estimate.map_or_else(Default::default, |e| [e.value, e.low, e.high].map(|number| number.to_string()))
}

fn line(fields: &[String]) -> String {
    fields.iter().map(|field| quoted(field)).collect::<Vec<_>>().join(",") + "\r\n"
}

/// RFC 4180, 2.5 to 2.7. A text that a spreadsheet would take for a formula gets a quote before it (OWASP, "CSV
/// injection"): failures are told in words of programs in images. Our own numbers are left alone.
fn quoted(field: &str) -> String {
    let formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']) && field.parse::<f64>().is_err();
    let field = if formula { format!("'{field}") } else { field.to_owned() };
    if field.contains([',', '"', '\r', '\n']) || field.trim() != field {
        return format!("\"{}\"", field.replace('"', "\"\""));
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        let text = line(&["a", "b, \"c\"", "d\ne", "", " f"].map(String::from));
        assert_eq!(text, "a,\"b, \"\"c\"\"\",\"d\ne\",,\" f\"\r\n");
    }

    #[test]
    fn words_are_no_formulas_and_numbers_stay_numbers() {
        assert_eq!(quoted("=cmd|' /C calc'!A0"), "'=cmd|' /C calc'!A0");
        assert_eq!(quoted("-1.5"), "-1.5");
    }

    #[test]
    fn no_row_is_dropped() {
        let document = fixture::document();
        let rows: usize = document.reports.iter().flat_map(|r| &r.groups).map(|g| g.rows.len()).sum();
        let text = csv(&document);
        // Only texts of failures have line ends of their own, and those are not "\r\n".
        assert_eq!(text.matches("\r\n").count(), rows + 1);
        let hung = text.split("\r\n").find(|l| l.contains("/4194304") && l.contains(",podman,")).unwrap();
        assert!(hung.contains(",,,,0,,,,,15,15,,\"timed out after 30 s\n"), "{hung}");
        assert!(text.contains(",not installed: apt-get install apptainer,"), "{text}");
    }
}

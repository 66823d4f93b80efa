//! All numbers of a figure, and what failed and was not run, in words.

use super::figures::{Figure, failure, place_of};
use crate::baseline::baseline;
use crate::report::number;
use crate::stats::Estimate;
use crate::text::{Html, Name};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The table of one figure, to be opened.
pub fn table(figure: &Figure<'_>) -> String {
    let lone = figure.groups.len() == 1;
    let unit = &figure.groups[0].unit;
    let mut bases: Vec<&str> = figure
        .groups
        .iter()
        .flat_map(|g| &g.rows)
        .flat_map(|r| r.ratios.keys())
        .map(String::as_str)
        .collect();
    bases.sort_unstable();
    bases.dedup();
    // Bare first.
    let main = baseline(figure.groups[0]);
    bases.sort_by_key(|name| Some(*name) != main);
    let mut html =
        String::from("<details><summary>All numbers</summary><div class=\"wide\"><table><thead><tr>");
    if !lone {
        html += "<th scope=\"col\"></th>";
    }
    let _ = write!(
        html,
        "<th scope=\"col\">row</th><th scope=\"col\" class=\"n\">median, {}</th><th scope=\"col\" class=\"n\">95 % interval</th>",
        Name(unit)
    );
    for base in &bases {
        let _ = write!(
            html,
            "<th scope=\"col\" class=\"n\">× {}</th><th scope=\"col\" class=\"n\">95 % interval</th>",
            Name(base)
        );
    }
    html += "<th scope=\"col\" class=\"n\">n</th><th scope=\"col\">runs that failed</th></tr></thead>";
    for group in &figure.groups {
        html += "<tbody>";
        for (n, row) in group.rows.iter().enumerate() {
            html += "<tr>";
            if !lone && n == 0 {
                let _ = write!(
                    html,
                    "<th scope=\"rowgroup\" rowspan=\"{}\">{}</th>",
                    group.rows.len(),
                    Html(&place_of(group))
                );
            }
            let _ = write!(html, "<th scope=\"row\">{}</th>", Name(&row.name));
            html += &cells(row.median.as_ref());
            for base in &bases {
                html += &cells(row.ratios.get(*base));
            }
            let failed: usize = row.failures.iter().map(|kind| kind.runs).sum();
            let trouble = match failed {
                _ if row.not_run.is_some() => "not run".into(),
                0 => String::new(),
                _ => format!("{failed} of {}", row.samples.len()),
            };
            let samples = row.median.map_or(0, |m| m.samples);
            let _ = write!(html, "<td class=\"n\">{samples}</td><td>{trouble}</td></tr>");
        }
        html += "</tbody>";
    }
    html += "</table></div>";
    html += &commands(figure);
    html + "</details>"
}

fn cells(estimate: Option<&Estimate>) -> String {
    estimate.map_or_else(
        || "<td class=\"n\">–</td><td class=\"n\">–</td>".into(),
        |e| {
            let [value, low, high] = [e.value, e.low, e.high].map(number);
            format!("<td class=\"n\">{value}</td><td class=\"n\">{low} – {high}</td>")
        },
    )
}

fn commands(figure: &Figure<'_>) -> String {
    let mut html = String::new();
    for name in figure.names() {
        let mut said = BTreeSet::new();
        for (_, _, row) in figure.row(name).filter(|(_, _, row)| !row.command.is_empty()) {
            if said.insert(&row.command) {
                let _ = write!(html, "<dt>{}</dt><dd><code>{}</code></dd>", Name(name), Html(&row.command));
            }
        }
    }
    if html.is_empty() { html } else { format!("<dl class=\"commands\">{html}</dl>") }
}

/// Failures with what was said, and rows that were not run with the reason, which says the cure. Nothing if all is
/// well.
pub fn troubles(figure: &Figure<'_>) -> String {
    let mut html = String::new();
    let mut not_run: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in figure.names() {
        // What ended alike and said alike is one story, with its places.
        let mut stories: Vec<(String, &str, Vec<String>)> = Vec::new();
        for (_, group, row) in figure.row(name) {
            if let Some(why) = &row.not_run {
                not_run.entry(why).or_default().insert(name);
            }
            for kind in &row.failures {
                let (how, said) = (failure(kind, row), kind.first.stderr.as_str());
                match stories.iter_mut().find(|story| story.0 == how && story.1 == said) {
                    Some(story) => story.2.push(place_of(group)),
                    None => stories.push((how, said, vec![place_of(group)])),
                }
            }
        }
        for (how, said, places) in stories {
            let places = places.join(", ");
            let at = if places.is_empty() { String::new() } else { format!(" at {places}") };
            let _ = write!(html, "<li><b>{}</b> failed{}: {}", Name(name), Html(&at), Html(&how));
            if !said.is_empty() {
                let _ = write!(html, "<pre>{}</pre>", Html(said));
            }
            html += "</li>";
        }
    }
    for (why, names) in not_run {
        let names: Vec<&str> = names.into_iter().collect();
        let _ = write!(html, "<li><b>{}</b> was not run: {}</li>", Name(&names.join("; ")), Html(why));
    }
    if html.is_empty() {
        html
    } else {
        format!(
            "<details><summary>What failed, what was not run</summary><ul class=\"troubles\">{html}</ul></details>"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::page::figures::figures;

    #[test]
    fn every_row_is_in_the_table_and_every_trouble_is_told() {
        let document = fixture::document();
        let figures = figures(&document.reports[0].groups);
        let text = table(&figures[0]);
        assert_eq!(text.matches("<th scope=\"row\">").count(), 8 * 9);
        assert_eq!(text.matches("15 of 15").count(), 2);
        assert!(text.contains("× bare</th>") && text.find("× bare") < text.find("× ch-run"), "{text}");
        let told = troubles(&figures[0]);
        assert!(
            told.contains(
                "<b>podman</b> failed at 4 MiB: 15 of 15 runs: timed out after 30 s<pre>PMIX ERROR: &lt;NO"
            ),
            "{told}"
        );
        assert!(
            told.contains("<b>apptainer</b> was not run: not installed: apt-get install apptainer"),
            "{told}"
        );
        assert_eq!(troubles(&figures[1]).matches("<li>").count(), 3);
    }
}

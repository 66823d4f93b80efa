//! What a reader wants first: promises, the worst ratio of each figure, and how far the numbers can be trusted.

use super::figures::{Figure, better, estimate, figures, place_of};
use super::looks::Looks;
use super::svg::Svg;
use crate::baseline::baseline;
use crate::contender::{BARE, BARE_AGAIN};
use crate::document::{Better, Document, Group, Report};
use crate::stats::Estimate;
use crate::text::{Html, Name};
use std::fmt::Write as _;

/// The whole section.
pub fn summary(document: &Document, looks: &Looks) -> String {
    let mut html = String::from("<section id=\"summary\"><h2>Summary</h2>");
    html += &budgets(document);
    html += &ratios(document, looks);
    html += &noise(document);
    html + "</section>"
}

fn budgets(document: &Document) -> String {
    let mut html = String::new();
    for budget in document.reports.iter().flat_map(|report| &report.budgets) {
        let (class, verdict) = match (&budget.measured, budget.met) {
            (None, _) => ("missed", "not measured"),
            (Some(_), true) if budget.close => ("close", "met, but close"),
            (Some(_), false) if budget.close => ("close", "missed, but close"),
            (Some(_), true) => ("met", "met"),
            (Some(_), false) => ("missed", "missed"),
        };
        let measured = budget.measured.as_ref().map_or_else(|| "–".into(), estimate);
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{measured}</td><td class=\"verdict {class}\">{verdict}</td></tr>",
            Name(&budget.what),
            Name(&budget.limit)
        );
    }
    if html.is_empty() {
        return html;
    }
    format!(
        "<h3>Promises</h3><div class=\"wide\"><table class=\"budgets\"><thead><tr><th scope=\"col\">of what</th>\
         <th scope=\"col\">limit</th><th scope=\"col\">measured [95 %]</th><th scope=\"col\">verdict</th></tr></thead>\
         <tbody>{html}</tbody></table></div>"
    )
}

/// One line per figure, one column per name: the worst ratio, and where.
fn ratios(document: &Document, looks: &Looks) -> String {
    let all: Vec<Figure<'_>> = document.reports.iter().flat_map(|report| figures(&report.groups)).collect();
    let all: Vec<&Figure<'_>> =
        all.iter().filter(|f| f.groups.iter().any(|g| baseline(g) == Some(BARE))).collect();
    let mut names: Vec<&str> = Vec::new();
    for name in all.iter().flat_map(|figure| figure.names()).filter(|name| *name != BARE) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    // Noise, then the product, then its peers.
    names.sort_by_key(|name| (*name != BARE_AGAIN, !looks.get(name).ours));
    if all.is_empty() || names.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<h3>Worst ratio to bare</h3><div class=\"wide\"><table class=\"ratios\"><thead><tr><th scope=\"col\"></th>",
    );
    for name in &names {
        let look = looks.get(name);
        let mut svg = Svg::new("swatch", 34.0, 14.0, "");
        svg.path(&format!("line {}", look.class()), "M0 7L34 7", look.dash);
        svg.group(&format!("key {}", look.class()), name, |svg| {
            svg.path("mark", &look.marker((17.0, 7.0), 3.6), "")
        });
        let _ = write!(html, "<th scope=\"col\">{}<span>{}</span></th>", svg.finish(), words(name));
    }
    html += "</tr></thead><tbody>";
    for figure in all {
        let first = figure.groups[0];
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{}<small>{}, {}</small></th>",
            Name(figure.title),
            Name(&first.unit),
            better(first)
        );
        for name in &names {
            html += &worst(figure, name);
        }
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

/// Broken between words only, as long as they are words: a hyphen is a part of `--join`.
fn words(name: &str) -> String {
    let whole = |word: &str| {
        if word.len() <= 14 { format!("<i>{}</i>", Name(word)) } else { Name(word).to_string() }
    };
    crate::text::name(name).split(' ').map(whole).collect::<Vec<_>>().join(" ")
}

/// How much worse than bare, as a factor above 1, whichever way is better.
fn loss(group: &Group, ratio: f64) -> f64 {
    if group.better == Better::Lower { ratio } else { 1.0 / ratio }
}

fn worst(figure: &Figure<'_>, name: &str) -> String {
    let ratios = figure.row(name).filter_map(|(_, group, row)| Some((group, *row.ratios.get(BARE)?)));
    let found = ratios.max_by(|a, b| loss(a.0, a.1.value).total_cmp(&loss(b.0, b.1.value)));
    let failed: Vec<String> = figure
        .row(name)
        .filter(|(_, _, row)| !row.failures.is_empty())
        .map(|(_, group, _)| place_of(group))
        .collect();
    let mut html = String::from("<td");
    match &found {
        Some((group, ratio)) => {
            let class = class(group, ratio);
            let _ = write!(html, " class=\"{class}\"><b>{}</b>", two(ratio.value));
            if figure.groups.len() > 1 {
                let _ = write!(html, "<small>at {}</small>", Html(&place_of(group)));
            }
        }
        None if failed.is_empty() => {
            let why = if figure.row(name).any(|(_, _, row)| row.not_run.is_some()) { "not run" } else { "" };
            let _ = write!(html, " class=\"none\">{why}");
        }
        None => html += " class=\"worse\">",
    }
    // All places of many would be a list.
    let at = match &failed[..] {
        [] => None,
        [one] => Some(one.clone()),
        [first, .., last] => Some(format!("{first} … {last}")),
    };
    if let Some(at) = at {
        let at = if at.is_empty() { at } else { format!(" at {at}") };
        let _ = write!(html, "<small class=\"fails\">✕ failed{}</small>", Html(&at));
    }
    html + "</td>"
}

/// Said by a colour, beside the number: by more than the noise, and by more than anybody minds.
fn class(group: &Group, ratio: &Estimate) -> &'static str {
    let ends = [loss(group, ratio.low), loss(group, ratio.high)];
    let value = loss(group, ratio.value);
    match value {
        _ if ends.iter().all(|end| *end > 1.0) && value > 1.2 => "worse",
        _ if ends.iter().all(|end| *end > 1.0) && value > 1.02 => "slower",
        _ if ends.iter().all(|end| *end < 1.0) && value < 0.98 => "better",
        _ => "even",
    }
}

fn two(ratio: f64) -> String {
    match ratio {
        small if small < 9.995 => format!("{small:.2}"),
        middle if middle < 99.95 => format!("{middle:.1}"),
        large => super::axis::number(large.round(), 0),
    }
}

/// How quiet it was, bench by bench, and what makes one doubt the numbers.
fn noise(document: &Document) -> String {
    let mut html = String::from(
        "<h3>Noise</h3><div class=\"wide\"><table class=\"noise\"><thead><tr><th scope=\"col\">bench</th>\
         <th scope=\"col\">bare against bare, the farthest from 1</th><th scope=\"col\">load before, after</th>\
         <th scope=\"col\">stolen time</th><th scope=\"col\">clock, MHz</th></tr></thead><tbody>",
    );
    for report in &document.reports {
        let noise = &report.noise;
        let farthest =
            again(report).max_by(|a, b| a.1.value.ln().abs().total_cmp(&b.1.value.ln().abs())).map_or_else(
                || "not measured".into(),
                |(group, ratio)| {
                    let place = place_of(group);
                    let at = if place.is_empty() { place } else { format!(" at {place}") };
                    format!("{}{at}", estimate(ratio))
                },
            );
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{:.2}, {:.2} on {} CPUs</td><td>{}</td><td>{}</td></tr>",
            Name(&report.title),
            Html(&farthest),
            noise.load_before,
            noise.load_after,
            noise.cpus,
            noise.stolen.map_or_else(|| "not known".into(), |share| format!("{:.1} %", share * 100.0)),
            noise
                .clock
                .map_or_else(|| "not known".into(), |(before, after)| format!("{before:.0}, {after:.0}"))
        );
    }
    html += "</tbody></table></div>";
    let warnings = warnings(document);
    if !warnings.is_empty() {
        html += "<ul class=\"warnings\">";
        for warning in warnings {
            let _ = write!(html, "<li>{}</li>", Html(&warning));
        }
        html += "</ul>";
    }
    html
}

fn again(report: &Report) -> impl Iterator<Item = (&Group, &Estimate)> {
    let ratio = |group: &'_ Group| group.rows.iter().position(|row| row.name == BARE_AGAIN);
    report.groups.iter().filter_map(move |group| Some((group, group.rows[ratio(group)?].ratios.get(BARE)?)))
}

/// Each a sentence.
fn warnings(document: &Document) -> Vec<String> {
    let mut all = Vec::new();
    if document.machine.virtual_machine {
        all.push("This is a virtual machine: others share its processors; trust the ratios before the absolute numbers.".into());
    }
    if let Some(governor) = document.machine.governor.as_ref().filter(|g| *g != "performance") {
        all.push(format!("The clock is governed by “{governor}”: it may change while rows are measured."));
    }
    for report in &document.reports {
        let title = &report.title;
        all.extend(report.warnings().iter().map(|warning| format!("{title}: {warning}.")));
        let rows = || report.groups.iter().flat_map(|group| &group.rows);
        let failed = rows().filter(|row| !row.failures.is_empty()).count();
        if failed > 0 {
            all.push(format!("{title}: in {failed} of {} table rows runs failed.", rows().count()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_worst_is_found_whichever_way_is_better() {
        let document = fixture::document();
        let figures = figures(&document.reports[0].groups);
        let latency = worst(&figures[0], "bwrap");
        assert!(latency.starts_with("<td class=\"worse\"><b>1.5"), "{latency}");
        let bandwidth = worst(&figures[1], "bwrap");
        assert!(bandwidth.starts_with("<td class=\"worse\"><b>0.6"), "{bandwidth}");
        assert!(worst(&figures[0], "podman").contains("✕ failed at 4 MiB"));
        assert_eq!(worst(&figures[0], "apptainer"), "<td class=\"none\">not run</td>");
        assert!(worst(&figures[0], BARE_AGAIN).starts_with("<td class=\"even\">"));
    }

    #[test]
    fn doubts_are_said() {
        let said = warnings(&fixture::document()).join("\n");
        for part in ["virtual machine", "busy before", "3.1 %", "2450 to 2300", "runs failed"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let mut quiet = fixture::document();
        quiet.machine.virtual_machine = false;
        quiet.reports.truncate(1);
        quiet.reports[0].groups.truncate(2);
        assert_eq!(warnings(&quiet), Vec::<String>::new());
    }

    #[test]
    fn budgets_have_verdicts() {
        let text = budgets(&fixture::document());
        assert_eq!(text.matches("<tr><th scope=\"row\">").count(), 5);
        assert!(text.contains("verdict missed\">not measured"), "{text}");
    }
}

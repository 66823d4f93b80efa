//! The page: one HTML file without script or anything from elsewhere, for a screen and for paper.
//!
//! `figures` sorts groups into plots, `lines` and `bars` draw them by `axis`, `looks` and `svg`; `tables` has every
//! number and failure, `summary` what is read first. Whatever a document says is text (`text::Html`).

mod axis;
mod bars;
mod figures;
mod lines;
mod looks;
mod summary;
mod svg;
mod tables;

use crate::document::{Document, Report};
use crate::text::{Html, Name};
use looks::Looks;
use std::fmt::Write as _;

const STYLE: &str = include_str!("style.css");
/// Of the style sheet, in base64, so that the page's policy allows this one only. After a change:
/// `openssl dgst -sha256 -binary style.css | base64`; a browser's test sees one that is wrong.
const STYLE_SHA256: &str = include_str!("style.sha256");

/// The whole page.
pub fn html(document: &Document) -> String {
    let looks = Looks::of(document);
    let title = format!("hpc-bench, {}, {}", day(&document.began), document.machine.cpu);
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{}'; \
         base-uri 'none'; form-action 'none'\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"referrer\" content=\"no-referrer\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>{}</title><style>{STYLE}</style></head>\n<body><main>",
        STYLE_SHA256.trim(),
        Html(&title)
    );
    html += &head(document);
    html += &summary::summary(document, &looks);
    for report in &document.reports {
        html += "\n";
        html += &bench(report, &looks);
    }
    html += "\n";
    html += &plans(document);
    html += HOW_TO_READ;
    html + "</main></body></html>\n"
}

/// RFC 3339 in short; whatever else it is, as it is.
fn day(began: &str) -> String {
    let date = began.split('T').next().unwrap_or_default();
    date.into()
}

fn head(document: &Document) -> String {
    let machine = &document.machine;
    let mut html = String::from("<header><h1>What the container costs, against bare metal</h1>");
    let began: String = began(&document.began);
    let _ = write!(html, "<p class=\"lead\">{}, {}", Html(&began), Html(&machine.cpu));
    let _ = write!(html, ", {} CPUs", machine.cpus);
    html += if machine.virtual_machine { " of a virtual machine.</p>" } else { ".</p>" };
    if document.interrupted {
        html += "<p class=\"banner\"><b>Interrupted:</b> the measurement was ended before all its rounds were run. \
                 What is here was measured; intervals are wider than they would have been.</p>";
    }
    html += "<details class=\"setup\" open><summary>Machine, versions, images</summary><dl>";
    let mut item = |name: &str, value: &str| {
        let _ = write!(html, "<div><dt>{}</dt><dd>{}</dd></div>", Name(name), Html(value));
    };
    item("System", &format!("{}, Linux {}", machine.system, machine.kernel));
    item("Memory", &format!("{} MiB", axis::number(machine.memory as f64, 0)));
    item("Mounts", &format!("{}: a mount namespace copies them all", machine.mounts));
    item("Governor", machine.governor.as_deref().unwrap_or("the kernel tells of none"));
    item("User", &machine.user);
    item("Took", &duration(document.seconds));
    for (program, version) in &machine.versions {
        item(program, version);
    }
    for image in &document.images {
        let _ = write!(
            html,
            "<div class=\"all\"><dt>Image</dt><dd>{} ({})<br><code>{}</code></dd></div>",
            Html(&image.path),
            Html(&image.kind),
            Html(&image.digest)
        );
    }
    let _ = write!(
        html,
        "<div class=\"all\"><dt>Command</dt><dd><code>{}</code></dd></div>",
        Html(&document.command)
    );
    html + "</dl></details></header>"
}

fn began(text: &str) -> String {
    let (date, time) = text.split_once('T').unwrap_or((text, ""));
    match time.get(..5) {
        Some(minute) if time.ends_with('Z') => format!("{date} {minute} UTC"),
        _ => text.to_owned(),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

fn bench(report: &Report, looks: &Looks) -> String {
    let mut html = format!("<section class=\"bench\"><h2>{}</h2>", Name(&report.title));
    if !report.settings.is_empty() {
        html += "<p class=\"settings\">";
        let settings = report
            .settings
            .iter()
            .map(|(name, value)| format!("<span>{} <code>{}</code></span>", Name(name), Html(value)));
        html += &settings.collect::<Vec<_>>().join(" ");
        html += "</p>";
    }
    let figures = figures::figures(&report.groups);
    // Bars take half of the width, so that two stand beside each other.
    let mut halves = false;
    for figure in &figures {
        let half = figure.groups.len() == 1;
        if half != halves {
            html += if half { "<div class=\"halves\">" } else { "</div>" };
            halves = half;
        }
        let _ = write!(html, "<figure><figcaption><h3>{}</h3></figcaption>", Name(figure.title));
        html += &figure.html(looks);
        html += &tables::troubles(figure);
        html += &tables::table(figure);
        html += "</figure>";
    }
    if halves {
        html += "</div>";
    }
    if !report.notes.is_empty() {
        html += "<ul class=\"notes\">";
        for note in &report.notes {
            let _ = write!(html, "<li>{}</li>", Html(note));
        }
        html += "</ul>";
    }
    html + "</section>"
}

fn plans(document: &Document) -> String {
    if document.plans.is_empty() {
        return String::new();
    }
    let mut html =
        String::from("<section><h2>Plans</h2><p>What hpc-launch was going to do; it does nothing else.</p>");
    for plan in &document.plans {
        // A value that was read as JSON can be written as JSON.
        let text = serde_json::to_string_pretty(&plan.plan).unwrap_or_default();
        let _ = write!(
            html,
            "<details class=\"plan\"><summary>{}</summary><p><code>{}</code></p>",
            Name(&plan.row),
            Html(&plan.command)
        );
        // Line by line, for the whole may be longer than what is shown of one text.
        html += "<pre>";
        for line in text.lines() {
            let _ = writeln!(html, "{}", Html(line));
        }
        html += "</pre></details>";
    }
    html + "</section>"
}

const HOW_TO_READ: &str = "<section id=\"reading\"><h2>How to read this</h2>\
<p><b>Method.</b> All rows of a table alternate in one run: each round runs every row once, in an order shuffled per \
round, so that what drifts on the machine drifts for all of them. Warm-up rounds are not kept. “bare, again” is bare \
metal measured twice: how far its ratio is from 1 is the noise, drawn as a grey band.</p>\
<p><b>Median and ratio.</b> A value is the median over the rounds. A ratio is the median of a row over the median of \
bare, over the rounds in which both ran. 1 means no cost. For times less is better, for bandwidths and rates more is: \
each plot says which.</p>\
<p><b>Interval.</b> Square brackets, whiskers and bands are 95 % bootstrap intervals, from 2000 resamplings of whole \
rounds. Where a ratio’s interval holds 1, no difference was shown. Of twenty true intervals one misses.</p>\
<p><b>Plots.</b> Points of one size stand beside each other, so that their whiskers can be told apart; a row has the \
same colour, marker and dash in all plots. The lane “failed” has a cross where runs of a row failed, and its line has \
a gap where all did. Pointing at a mark tells its numbers.</p>\
<p><b>Failures.</b> A run that failed or took too long is counted and told, never dropped; a row that could not be run \
says why.</p></section>";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn nothing_from_elsewhere_and_no_script() {
        let page = html(&fixture::document());
        for part in
            ["<script", "http://", "https://", "url(", "@import", "src=", "href=", "style=", "NaN", "inf"]
        {
            let at =
                page.find(part).map(|at| page[at.saturating_sub(60)..].chars().take(120).collect::<String>());
            // The policy itself, and words.
            assert!(at.as_ref().is_none_or(|text| part == "inf" && text.contains("info")), "{part}: {at:?}");
        }
        assert!(page.contains("Interrupted:"), "an interrupted measurement says so");
    }

    #[test]
    fn what_a_document_says_stays_text() {
        let bad = "</title></style><img src=x onerror=alert(1)>\"'\0]]>";
        let text = serde_json::to_string(&fixture::document()).unwrap();
        let bad = serde_json::to_string(bad).unwrap();
        let bad = &bad[1..bad.len() - 1];
        let mut text = text;
        for word in
            ["podman", "Debian GNU/Linux", "AMD EPYC", "timed out", "µs", "PMIX ERROR", "Open MPI", "ann"]
        {
            text = text.replace(word, bad);
        }
        let page = html(&serde_json::from_str(&text).unwrap());
        assert!(!page.contains("<img") && page.contains("&lt;img src=x onerror=alert(1)&gt;"));
        assert_eq!(page.matches("</title></style>").count(), 0);
        assert_eq!(page.matches("<style>").count(), 1);
    }

    #[test]
    fn a_document_of_nothing_is_a_page() {
        let mut document = fixture::document();
        document.reports.clear();
        document.plans.clear();
        assert!(html(&document).ends_with("</html>\n"));
    }

    #[test]
    fn times_as_people_say_them() {
        assert_eq!([12.34, 61.0, 7260.0].map(duration), ["12.3 s", "1 min 1 s", "2 h 1 min"]);
        assert_eq!(began("2026-11-28T13:54:18Z"), "2026-11-28 13:54 UTC");
        assert_eq!(began("yesterday"), "yesterday");
    }
}

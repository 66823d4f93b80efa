//! What is drawn of a bench's groups: those of one plot as lines over their places, each other as bars.

use super::axis::place;
use super::bars::{Bar, Bars};
use super::lines::{Lines, Series};
use super::looks::{Looks, cross};
use super::svg::Svg;
use crate::baseline::baseline;
use crate::contender::BARE_AGAIN;
use crate::document::{Better, FailureKind, Group, Row};
use crate::report::number;
use crate::stats::Estimate;
use crate::text::{Html, Name};
use std::fmt::Write as _;

/// Groups that are one figure, in the order of their places.
#[derive(Debug)]
pub struct Figure<'a> {
    /// For people.
    pub title: &'a str,
    /// At least one; with more, each has a place.
    pub groups: Vec<&'a Group>,
}

/// The groups of one bench as figures, in the order in which they appear.
pub fn figures(groups: &[Group]) -> Vec<Figure<'_>> {
    let mut figures: Vec<Figure<'_>> = Vec::new();
    for group in groups {
        let Some(point) = &group.point else {
            figures.push(Figure { title: &group.title, groups: vec![group] });
            continue;
        };
        // Numbers of two kinds have no axis in common, whatever their plot is called.
        let same = |other: &Group| {
            let kind = |g: &Group| g.point.as_ref().map(|p| (p.plot.clone(), p.x_unit.clone()));
            kind(other) == kind(group) && other.unit == group.unit && other.better == group.better
        };
        match figures.iter_mut().find(|f| f.groups.first().is_some_and(|other| same(other))) {
            Some(figure) => figure.groups.push(group),
            None => figures.push(Figure { title: &point.plot, groups: vec![group] }),
        }
    }
    for figure in &mut figures {
        figure.groups.sort_by(|a, b| x_of(a).total_cmp(&x_of(b)));
    }
    // One place is no line.
    let lone =
        |figure: &Figure<'_>| figure.groups.first().map(|g| x_of(g)) == figure.groups.last().map(|g| x_of(g));
    figures
        .into_iter()
        .flat_map(|figure| {
            if lone(&figure) {
                figure.groups.into_iter().map(|g| Figure { title: &g.title, groups: vec![g] }).collect()
            } else {
                vec![figure]
            }
        })
        .collect()
}

fn x_of(group: &Group) -> f64 {
    group.point.as_ref().map_or(0.0, |point| point.x)
}

/// "8 B", "64 ranks"; nothing where there is no place.
pub fn place_of(group: &Group) -> String {
    group.point.as_ref().map_or_else(String::new, |point| place(point.x, &point.x_unit))
}

/// Which numbers are the good ones, in words.
pub fn better(group: &Group) -> &'static str {
    match group.better {
        Better::Lower => "lower is better",
        Better::Higher => "higher is better",
    }
}

/// "15 of 15 runs: timed out after 30 s".
pub fn failure(kind: &FailureKind, row: &Row) -> String {
    format!("{} of {} runs: {}", kind.runs, row.samples.len(), kind.first.status)
}

/// "0.190 [0.188, 0.192]".
pub fn estimate(e: &Estimate) -> String {
    format!("{} [{}, {}]", number(e.value), number(e.low), number(e.high))
}

impl<'a> Figure<'a> {
    /// The names of all its rows, in the order in which they appear.
    pub fn names(&self) -> Vec<&'a str> {
        let mut names: Vec<&str> = Vec::new();
        for row in self.groups.iter().flat_map(|group| &group.rows) {
            if !names.contains(&row.name.as_str()) {
                names.push(&row.name);
            }
        }
        names
    }

    /// One row through all groups, with each group's number.
    pub fn row(&self, name: &str) -> impl Iterator<Item = (usize, &'a Group, &'a Row)> {
        let found = |group: &'a Group| group.rows.iter().find(|row| row.name == name);
        self.groups
            .iter()
            .enumerate()
            .filter_map(move |(n, group)| Some((n, *group, found(group)?)))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Pictures and legend.
    pub fn html(&self, looks: &Looks) -> String {
        match self.groups[..] {
            [group] => match self.not_run() {
                none if none.is_empty() => bars(group, looks),
                some => format!("{}<ul class=\"legend\">{some}</ul>", bars(group, looks)),
            },
            _ => self.lines(looks),
        }
    }

    fn lines(&self, looks: &Looks) -> String {
        let first = self.groups[0];
        let base = baseline(first);
        let unit = first.point.as_ref().map_or("", |point| &point.x_unit);
        let plot = |label: String,
                    caption: String,
                    pick: &dyn Fn(&Group, &'a Row) -> Option<&'a Estimate>,
                    reference| Lines {
            label,
            caption,
            x_unit: unit,
            xs: self.groups.iter().map(|group| x_of(group)).collect(),
            series: self.names().into_iter().filter_map(|name| self.series(name, looks, pick)).collect(),
            reference,
        };
        let mut html = String::from("<div class=\"plots\">");
        if let Some(base) = base {
            let label =
                format!("{}: ratio to {base} over {unit}; all numbers are in the table below", self.title);
            let caption = format!("ratio to {base}, {}", better(first));
            html += &plot(label, caption, &|group, row| row.ratios.get(baseline(group)?), Some(1.0)).svg();
        }
        let label = format!("{}: {} over {unit}; all numbers are in the table below", self.title, first.unit);
        let caption = format!("{}, {}", first.unit, better(first));
        html += &plot(label, caption, &|_, row| row.median.as_ref(), None).svg();
        html += "</div><ul class=\"legend\">";
        for name in
            self.names().into_iter().filter(|name| self.row(name).any(|(_, _, row)| row.not_run.is_none()))
        {
            html += &self.entry(name, looks);
        }
        html + &self.not_run() + "</ul>"
    }

    /// Entries of those that no mark was drawn for.
    fn not_run(&self) -> String {
        let without = |name: &&str| self.row(name).all(|(_, _, row)| row.not_run.is_some());
        let names = self.names().into_iter().filter(without);
        names.map(|name| format!("<li class=\"none\">{}: not run</li>", Name(name))).collect()
    }

    fn series(
        &self,
        name: &'a str,
        looks: &Looks,
        pick: &dyn Fn(&Group, &'a Row) -> Option<&'a Estimate>,
    ) -> Option<Series> {
        let mut series = Series {
            look: looks.get(name),
            noise: name == BARE_AGAIN,
            points: Vec::new(),
            failed: Vec::new(),
        };
        for (n, group, row) in self.row(name) {
            if let Some(found) = pick(group, row) {
                let title = format!("{name}, {}: {}", place_of(group), in_words(group, row));
                series.points.push((n, *found, title));
            }
            if let Some(kind) = row.failures.first() {
                series.failed.push((n, format!("{name}, {}: {}", place_of(group), failure(kind, row))));
            }
        }
        (!series.points.is_empty() || !series.failed.is_empty()).then_some(series)
    }

    fn entry(&self, name: &str, looks: &Looks) -> String {
        let look = looks.get(name);
        let mut svg = Svg::new("swatch", 34.0, 14.0, "");
        let class = look.class();
        svg.path(&format!("line {class}"), "M0 7L34 7", look.dash);
        svg.group(&format!("key {class}"), name, |svg| svg.path("mark", &look.marker((17.0, 7.0), 3.6), ""));
        let mut html = format!("<li>{}<span>{}", svg.finish(), Name(name));
        // The same end at several places is one sentence.
        let mut ends: Vec<(&str, Vec<String>)> = Vec::new();
        for (_, group, row) in self.row(name) {
            for kind in &row.failures {
                let mut at = place_of(group);
                if kind.runs < row.samples.len() {
                    let _ = write!(at, " ({} of {} runs)", kind.runs, row.samples.len());
                }
                match ends.iter_mut().find(|(status, _)| *status == kind.first.status) {
                    Some((_, places)) => places.push(at),
                    None => ends.push((&kind.first.status, vec![at])),
                }
            }
        }
        for (status, places) in ends {
            let mut svg = Svg::new("swatch small", 14.0, 14.0, "failed");
            svg.group(&format!("key {class}"), status, |svg| svg.path("cross", &cross((7.0, 7.0), 3.6), ""));
            let _ =
                write!(html, " <em>{}{} at {}</em>", svg.finish(), Html(status), Html(&places.join(", ")));
        }
        html + "</span></li>"
    }
}

/// Value and ratio, as they are told of a point.
fn in_words(group: &Group, row: &Row) -> String {
    let mut words =
        row.median.as_ref().map_or_else(String::new, |m| format!("{} {}", estimate(m), group.unit));
    if let Some((base, ratio)) = baseline(group).and_then(|base| Some((base, row.ratios.get(base)?))) {
        let _ = write!(words, ", {} of {base}", estimate(ratio));
    }
    words
}

fn bars(group: &Group, looks: &Looks) -> String {
    let base = baseline(group);
    let ran = group.rows.iter().filter(|row| row.not_run.is_none());
    let bar = |row| bar(group, row, looks);
    let bars = Bars {
        label: format!("{}: {} by row; all numbers are in the table below", group.title, group.unit),
        caption: format!("{}, {}", group.unit, better(group)),
        rows: ran.map(bar).collect(),
        reference: group
            .rows
            .iter()
            .find(|row| Some(row.name.as_str()) == base)
            .and_then(|row| Some(row.median?.value)),
    };
    format!("<div class=\"plots\">{}</div>", bars.svg())
}

fn bar<'a>(group: &Group, row: &'a Row, looks: &Looks) -> Bar<'a> {
    let ratio = baseline(group).and_then(|base| row.ratios.get(base));
    let failed: usize = row.failures.iter().map(|kind| kind.runs).sum();
    let mut words = match (&row.median, row.failures.first()) {
        (Some(median), _) => format!("{} {}", number(median.value), group.unit),
        (None, Some(kind)) => failure(kind, row),
        (None, None) => "nothing was measured".into(),
    };
    if let Some(ratio) = ratio {
        let _ = write!(words, "   {}× [{}, {}]", number(ratio.value), number(ratio.low), number(ratio.high));
    }
    if row.median.is_some() && failed > 0 {
        let _ = write!(words, "   {failed} of {} failed", row.samples.len());
    }
    let mut title = format!("{}: {}", row.name, in_words(group, row));
    for kind in &row.failures {
        let _ = write!(title, "\n{}", failure(kind, row));
    }
    Bar { name: &row.name, look: looks.get(&row.name), value: row.median, words, title, failed: failed > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn groups_of_one_plot_are_one_figure_and_a_lone_place_is_bars() {
        let document = fixture::document();
        let counts = |n: usize| {
            figures(&document.reports[n].groups).iter().map(|f| f.groups.len()).collect::<Vec<_>>()
        };
        assert_eq!(counts(0), [8, 8]);
        assert_eq!(counts(1), [9, 1]);
        assert_eq!(counts(2), [3, 1]);
        let figures = figures(&document.reports[0].groups);
        assert_eq!(figures[0].title, "Latency, Open MPI");
        assert!(figures[0].groups.windows(2).all(|pair| x_of(pair[0]) < x_of(pair[1])));
    }

    #[test]
    fn two_units_are_two_figures() {
        let mut groups = fixture::document().reports[0].groups.clone();
        for group in &mut groups {
            if let Some(point) = &mut group.point {
                point.plot = "all".into();
            }
        }
        assert_eq!(figures(&groups).iter().map(|f| f.groups.len()).collect::<Vec<_>>(), [8, 8]);
    }

    #[test]
    fn a_failed_size_is_said_in_the_legend() {
        let document = fixture::document();
        let looks = Looks::of(&document);
        let html = figures(&document.reports[0].groups)[0].html(&looks);
        assert!(html.contains("timed out after 30 s at 4 MiB</em>"), "{html}");
        assert_eq!(html.matches("class=\"failed ").count(), 4, "two rows in two plots");
        assert_eq!(html.matches("<li>").count(), 8);
    }
}

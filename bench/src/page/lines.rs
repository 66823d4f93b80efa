//! Line plots: values over sizes, ranks or hosts, each point with its interval, failed runs in a lane of their own.

use super::axis::{self, Axis, Scale, Tick};
use super::looks::{Look, cross};
use super::svg::{Anchor, Svg, fit, short, through, width};
use crate::stats::Estimate;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 290.0;
/// Font sizes of the style sheet's classes.
const SMALL: f64 = 11.5;
/// How far the points of one place are spread, at most.
const SPREAD: f64 = 3.6;

/// A plot, ready to be drawn.
#[derive(Debug)]
pub struct Lines<'a> {
    /// For those who do not see it.
    pub label: String,
    /// What the values are.
    pub caption: String,
    /// "B", "ranks", "hosts".
    pub x_unit: &'a str,
    /// All places, rising.
    pub xs: Vec<f64>,
    /// In the order of the legend.
    pub series: Vec<Series>,
    /// Where nothing is lost or won; the axis is one of ratios then.
    pub reference: Option<f64>,
}

/// One row through all places.
#[derive(Debug)]
pub struct Series {
    /// The row's.
    pub look: Look,
    /// Whether its intervals are what the machine does to two runs of the same: drawn as a band, too.
    pub noise: bool,
    /// Its place by number, the value, and what is told of it when pointed at.
    pub points: Vec<(usize, Estimate, String)>,
    /// Places where runs failed.
    pub failed: Vec<(usize, String)>,
}

impl Lines<'_> {
    /// The picture.
    pub fn svg(&self) -> String {
        let lane = if self.series.iter().any(|s| !s.failed.is_empty()) { 20.0 } else { 0.0 };
        let (top, bottom) = (26.0 + lane, HEIGHT - 40.0);
        let y = self.y_axis(bottom, top);
        let ticks = y.ticks();
        let widest = ticks.iter().map(|tick| width(&tick.label, SMALL)).fold(0.0, f64::max);
        let left = widest.max(if lane > 0.0 { width("failed", SMALL) } else { 0.0 }).min(120.0) + 8.0;
        let inset = 16.0;
        let x = Places::new(&self.xs, left + inset, WIDTH - inset - 4.0);

        let mut svg = Svg::new("plot", WIDTH, HEIGHT, &self.label);
        svg.text("caption", (0.0, 13.0), Anchor::Start, &fit(&self.caption, 12.5, WIDTH));
        for tick in &ticks {
            let at = y.at(tick.value);
            svg.line("grid", (left, at), (WIDTH, at));
            svg.text("tick", (left - 6.0, at + 4.0), Anchor::End, &tick.label);
        }
        if lane > 0.0 {
            svg.rectangle("lane", (left, 22.0), (WIDTH - left, lane - 2.0));
            svg.text("tick", (left - 6.0, 22.0 + lane / 2.0 + 3.0), Anchor::End, "failed");
        }
        self.draw_x(&mut svg, &x, left, top, bottom);
        for series in self.series.iter().filter(|series| series.noise) {
            self.draw_band(&mut svg, series, &x, &y);
        }
        if let Some(reference) = self.reference {
            svg.line("reference", (left, y.at(reference)), (WIDTH, y.at(reference)));
        }
        // The product's own last, above the others.
        let mut order: Vec<usize> = (0..self.series.len()).collect();
        order.sort_by_key(|n| self.series[*n].look.ours);
        for n in order {
            self.draw(&mut svg, n, &x, &y, 22.0 + (lane - 2.0) / 2.0);
        }
        svg.finish()
    }

    fn y_axis(&self, bottom: f64, top: f64) -> Axis {
        let ends =
            || self.series.iter().flat_map(|s| &s.points).flat_map(|(_, e, _)| [e.low, e.value, e.high]);
        let (mut low, mut high) =
            (ends().fold(f64::INFINITY, f64::min), ends().fold(f64::NEG_INFINITY, f64::max));
        if self.reference.is_some() {
            // A ratio's noise is not blown up to look like much.
            (low, high) = (low.min(0.95), high.max(1.05));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if low > 0.0 {
            // A little room, in equal ratios.
            let room = (high.ln() - low.ln()).max(0.02) * 0.04;
            return Axis::new(
                Scale::Log,
                low * (-room).exp(),
                (high * room.exp()).min(f64::MAX),
                bottom,
                top,
            );
        }
        Axis::new(Scale::Linear, low.min(0.0), high.max(0.0), bottom, top)
    }

    fn draw_x(&self, svg: &mut Svg, x: &Places, left: f64, top: f64, bottom: f64) {
        svg.line("axis", (left, bottom), (WIDTH, bottom));
        for tick in x.ticks(self.x_unit) {
            let at = x.axis_at(tick.value);
            svg.line("grid", (at, top), (at, bottom));
            svg.line("axis", (at, bottom), (at, bottom + 4.0));
            svg.text("tick", (at, bottom + 17.0), Anchor::Middle, &tick.label);
        }
        let unit = match self.x_unit {
            "B" => "message size in bytes",
            other => other,
        };
        let middle = f64::midpoint(left, WIDTH);
        svg.text("tick", (middle, bottom + 34.0), Anchor::Middle, &fit(unit, SMALL, WIDTH - left));
    }

    fn draw_band(&self, svg: &mut Svg, series: &Series, x: &Places, y: &Axis) {
        let edge = |end: fn(&Estimate) -> f64| {
            series.points.iter().map(move |(place, estimate, _)| (x.at(*place), y.at(end(estimate))))
        };
        let around: Vec<_> = edge(|e| e.high).chain(edge(|e| e.low).rev()).collect();
        if series.points.len() > 1 {
            svg.path("noise", &(through(&around) + "Z"), "");
        }
    }

    fn draw(&self, svg: &mut Svg, n: usize, x: &Places, y: &Axis, lane: f64) {
        let series = &self.series[n];
        let class = series.look.class();
        // Points of one place stand beside each other, or their intervals could not be told apart. Where a curve is
        // steep, that would look like a difference: only ratios do.
        let spread = if self.reference.is_some() { SPREAD } else { 0.0 };
        let step = (x.gap() * 0.6 / self.series.len() as f64).min(spread);
        let aside = (n as f64 - (self.series.len() as f64 - 1.0) / 2.0) * step;
        let at = |place: usize, value: f64| (x.at(place) + aside, y.at(value));
        // A line through a place where there is no point would claim one.
        let whole = series.points.chunk_by(|a, b| a.0 + 1 == b.0);
        for part in whole.filter(|part| part.len() > 1) {
            let points: Vec<_> = part.iter().map(|(place, e, _)| at(*place, e.value)).collect();
            svg.path(&format!("line {class}"), &through(&points), series.look.dash);
        }
        for (place, estimate, title) in &series.points {
            svg.group(&format!("point {class}"), title, |svg| {
                let (px, low) = at(*place, estimate.low);
                let high = y.at(estimate.high);
                if (low - high).abs() > 1.0 {
                    let [from, to, up, down] = [px - 2.0, px + 2.0, high, low].map(short);
                    let stem = short(px);
                    let d = format!("M{stem} {down}V{up}M{from} {up}H{to}M{from} {down}H{to}");
                    svg.path("whisker", &d, "");
                }
                let size = if series.look.ours { 3.4 } else { 2.9 };
                svg.path("mark", &series.look.marker(at(*place, estimate.value), size), "");
            });
        }
        for (place, title) in &series.failed {
            let class = format!("failed {class}");
            svg.group(&class, title, |svg| svg.path("cross", &cross((x.at(*place) + aside, lane), 3.6), ""));
        }
    }
}

/// The horizontal places: by powers of two where they span much, else even; 0 has a place left of the powers.
struct Places {
    axis: Axis,
    xs: Vec<f64>,
    zero: f64,
}

impl Places {
    fn new(xs: &[f64], from: f64, to: f64) -> Self {
        let positive = xs.iter().copied().find(|x| *x > 0.0);
        let (first, last) = (xs.first().copied().unwrap_or(0.0), xs.last().copied().unwrap_or(1.0));
        match positive {
            Some(least) if first >= 0.0 && last / least >= 3.0 => {
                let zero = least / 2.0;
                Places { axis: Axis::new(Scale::Log, first.max(zero), last, from, to), xs: xs.into(), zero }
            }
            _ => Places { axis: Axis::new(Scale::Linear, first, last, from, to), xs: xs.into(), zero: 0.0 },
        }
    }

    fn axis_at(&self, value: f64) -> f64 {
        self.axis.at(if value == 0.0 { self.zero } else { value })
    }

    fn at(&self, place: usize) -> f64 {
        self.axis_at(self.xs.get(place).copied().unwrap_or(0.0))
    }

    /// The least distance of two neighbours.
    fn gap(&self) -> f64 {
        let places: Vec<f64> = (0..self.xs.len()).map(|n| self.at(n)).collect();
        places.windows(2).map(|pair| pair[1] - pair[0]).fold(60.0, f64::min)
    }

    /// What was measured: all of it, or every second, third, … up to the last, as there is room.
    fn ticks(&self, unit: &str) -> Vec<Tick> {
        let label = |x: f64| if unit == "B" { axis::bytes(x) } else { axis::number(x, 0) };
        let end = |x: f64, side: f64| self.axis_at(x) + side * (width(&label(x), SMALL) / 2.0 + 3.0);
        let apart = |a: f64, b: f64| end(a, 1.0) <= end(b, -1.0);
        let mut kept: Vec<f64> = Vec::new();
        for every in 1..=self.xs.len() {
            kept = self.xs.iter().rev().step_by(every).rev().copied().collect();
            if kept.windows(2).all(|pair| apart(pair[0], pair[1])) {
                break;
            }
        }
        // The first says where the axis begins.
        if let (Some(first), Some(next)) = (self.xs.first(), kept.first())
            && apart(*first, *next)
        {
            kept.insert(0, *first);
        }
        kept.into_iter().map(|value| Tick { value, label: label(value) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(xs: &[f64], unit: &str) -> Vec<String> {
        let places = Places::new(xs, 60.0, 440.0);
        places.ticks(unit).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn places_are_labelled_where_they_have_room() {
        let few = [8.0, 64.0, 512.0, 4096.0, 32768.0, 262_144.0, 1_048_576.0, 4_194_304.0];
        assert_eq!(labels(&few, "B"), ["8", "64", "512", "4 Ki", "32 Ki", "256 Ki", "1 Mi", "4 Mi"]);
        let many: Vec<f64> = (0..=22).map(|power| f64::from(1 << power)).collect();
        assert_eq!(labels(&many, "B"), ["1", "2", "16", "128", "1 Ki", "8 Ki", "64 Ki", "512 Ki", "4 Mi"]);
        assert_eq!(labels(&[0.0, 1.0, 2.0, 4.0], "B"), ["0", "1", "2", "4"]);
        let places = Places::new(&[0.0, 1.0, 2.0, 4.0], 0.0, 300.0);
        assert_eq!([0, 1, 2, 3].map(|n| places.at(n).round()), [0.0, 100.0, 200.0, 300.0]);
        assert_eq!(labels(&[1.0, 2.0], "ranks"), ["1", "2"]);
    }

    #[test]
    fn a_line_has_a_gap_where_runs_failed() {
        let look = super::super::looks::Looks::of(&crate::fixture::document()).get("bwrap");
        let point = |place| (place, Estimate { value: 1.0, low: 0.9, high: 1.2, samples: 5 }, "p".to_owned());
        let plot = |failed| Lines {
            label: String::new(),
            caption: "ratio".into(),
            x_unit: "ranks",
            xs: vec![1.0, 2.0, 4.0, 8.0],
            series: vec![Series { look, noise: false, points: vec![point(0), point(1), point(3)], failed }],
            reference: Some(1.0),
        };
        let svg = plot(vec![(2, "all failed".into())]).svg();
        assert_eq!(svg.matches("class=\"point ").count(), 3);
        assert_eq!(svg.matches("class=\"line ").count(), 1, "from the first to the second only: {svg}");
        assert!(svg.contains("<title>all failed</title>") && svg.contains(">failed</text>"), "{svg}");
        assert!(!plot(Vec::new()).svg().contains("failed"));
    }
}

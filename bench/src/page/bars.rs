//! Bars: the rows of one group, each with its value, its interval and its ratio in words beside it.

use super::axis::{Axis, Scale};
use super::looks::{Look, cross};
use super::svg::{Anchor, Svg, fit, short, width};
use crate::stats::Estimate;

const WIDTH: f64 = 460.0;
const NAME: f64 = 12.5;
const PITCH: f64 = 35.0;
const THICK: f64 = 9.0;
const TOP: f64 = 24.0;
/// From here on bars of the small would not be seen: points on a logarithmic axis then.
const FAR: f64 = 40.0;

/// A group, ready to be drawn.
#[derive(Debug)]
pub struct Bars<'a> {
    /// For those who do not see it.
    pub label: String,
    /// What the values are.
    pub caption: String,
    /// In the order of the table.
    pub rows: Vec<Bar<'a>>,
    /// The value that others are held against.
    pub reference: Option<f64>,
}

/// One row.
#[derive(Debug)]
pub struct Bar<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its look.
    pub look: Look,
    /// Its value; none if all runs failed.
    pub value: Option<Estimate>,
    /// Value and ratio in words, or what went wrong.
    pub words: String,
    /// What is told of it when pointed at.
    pub title: String,
    /// Whether a run failed.
    pub failed: bool,
}

impl Bars<'_> {
    /// The picture.
    pub fn svg(&self) -> String {
        let bottom = TOP + PITCH * self.rows.len() as f64;
        let axis = self.axis();
        let ticks = axis.ticks();
        let mut svg = Svg::new("plot", WIDTH, bottom + 26.0, &self.label);
        let log = axis.scale == Scale::Log;
        let caption = if log { format!("{}, logarithmic axis", self.caption) } else { self.caption.clone() };
        svg.text("caption", (0.0, 13.0), Anchor::Start, &fit(&caption, 12.5, WIDTH));
        let mut free = f64::NEG_INFINITY;
        for tick in &ticks {
            let at = axis.at(tick.value);
            let half = width(&tick.label, 11.5) / 2.0;
            // The first and the last may not stick out.
            let middle = at.clamp(half, WIDTH - half);
            if middle - half < free {
                continue;
            }
            free = middle + half + 6.0;
            svg.line("axis", (at, bottom + 2.0), (at, bottom + 6.0));
            svg.text("tick", (middle, bottom + 19.0), Anchor::Middle, &tick.label);
        }
        svg.line("axis", (0.0, bottom + 2.0), (WIDTH, bottom + 2.0));
        for (n, row) in self.rows.iter().enumerate() {
            self.draw(&mut svg, row, &axis, TOP + PITCH * n as f64);
        }
        svg.finish()
    }

    fn axis(&self) -> Axis {
        let values = || self.rows.iter().filter_map(|row| row.value);
        let high = values().map(|e| e.high.max(e.value)).fold(0.0, f64::max);
        let low = values().map(|e| e.low.min(e.value)).fold(high, f64::min);
        if low > 0.0 && high / low >= FAR {
            return Axis::new(Scale::Log, low / 1.3, (high * 1.15).min(f64::MAX), 0.0, WIDTH);
        }
        Axis::new(Scale::Linear, low.min(0.0), (high * 1.02).min(f64::MAX), 0.0, WIDTH)
    }

    fn draw(&self, svg: &mut Svg, row: &Bar<'_>, axis: &Axis, top: f64) {
        let class = row.look.class();
        let base = top + 15.0;
        let words = fit(&row.words, NAME, WIDTH * 0.68);
        let room = WIDTH - width(&words, NAME) - 12.0;
        svg.text("name", (0.0, base), Anchor::Start, &fit(row.name, NAME, room));
        svg.text("words", (WIDTH, base), Anchor::End, &words);
        let y = top + 21.0;
        let middle = y + THICK / 2.0;
        svg.rectangle("lane", (0.0, y), (WIDTH, THICK));
        if let Some(reference) = self.reference {
            let at = axis.at(reference);
            svg.line("reference", (at, y - 2.0), (at, y + THICK + 2.0));
        }
        if let Some(estimate) = row.value {
            let at = axis.at(estimate.value);
            svg.group(&format!("point {class}"), &row.title, |svg| {
                if axis.scale == Scale::Log {
                    svg.line("stem", (0.0, middle), (at, middle));
                    svg.path("mark", &row.look.marker((at, middle), 3.6), "");
                } else {
                    let zero = axis.at(0.0);
                    svg.rectangle("mark", (zero.min(at), y), ((at - zero).abs().max(0.8), THICK));
                }
                let (low, high) = (axis.at(estimate.low), axis.at(estimate.high));
                if high - low > 1.0 {
                    let [from, to, mid, up, down] = [low, high, middle, y - 1.0, y + THICK + 1.0].map(short);
                    svg.path(
                        "interval",
                        &format!("M{from} {mid}H{to}M{from} {up}V{down}M{to} {up}V{down}"),
                        "",
                    );
                }
            });
        }
        if row.failed {
            let at = if row.value.is_some() { WIDTH - 6.0 } else { 6.0 };
            svg.group(&format!("failed {class}"), &row.title, |svg| {
                svg.path("cross", &cross((at, middle), 3.6), "")
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(values: &[f64]) -> String {
        let look = super::super::looks::Looks::of(&crate::fixture::document()).get("bwrap");
        let row = |value: &f64| Bar {
            name: "bwrap",
            look,
            value: Some(Estimate { value: *value, low: value * 0.9, high: value * 1.1, samples: 3 }),
            words: format!("{value} ms"),
            title: String::new(),
            failed: false,
        };
        let rows = values.iter().map(row).collect();
        Bars { label: String::new(), caption: "ms".into(), rows, reference: values.first().copied() }.svg()
    }

    #[test]
    fn near_values_are_bars_from_zero_and_far_ones_points() {
        let near = bars(&[1.0, 2.0]);
        assert!(near.contains("<rect class=\"mark\" x=\"0\"") && !near.contains("logarithmic"), "{near}");
        let far = bars(&[1.0, 200.0]);
        assert!(!far.contains("<rect class=\"mark\"") && far.contains("logarithmic axis"), "{far}");
    }

    #[test]
    fn nothing_and_zero_can_be_drawn() {
        assert!(!bars(&[]).contains("NaN"));
        assert!(!bars(&[0.0, 0.0]).contains("NaN"));
    }
}

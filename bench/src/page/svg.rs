//! Writes SVG: shapes with classes, text that is escaped, and how wide text will be.

use crate::text::Html;
use std::fmt::Write as _;

/// A picture in the making. Colours and fonts are the style sheet's, by class: so they follow dark mode and print.
#[derive(Debug)]
pub struct Svg {
    text: String,
}

/// Where text stands to its place.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    /// It starts there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

impl Svg {
    /// A picture of this size in its own units; on the page it takes the width that it gets. `label` tells those who
    /// do not see it what it shows.
    pub fn new(class: &str, width: f64, height: f64, label: &str) -> Self {
        let mut text = String::new();
        let _ = write!(
            text,
            "<svg class=\"{class}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
            short(width),
            short(height),
            Html(label)
        );
        Svg { text }
    }

    /// The end.
    pub fn finish(mut self) -> String {
        self.text += "</svg>";
        self.text
    }

    /// Shapes that belong together and tell of themselves when pointed at.
    pub fn group(&mut self, class: &str, title: &str, inner: impl FnOnce(&mut Self)) {
        let _ = write!(self.text, "<g class=\"{class}\"><title>{}</title>", Html(title));
        inner(self);
        self.text += "</g>";
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(short);
        let _ =
            write!(self.text, "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>");
    }

    /// A rectangle by its corner and size.
    pub fn rectangle(&mut self, class: &str, corner: (f64, f64), size: (f64, f64)) {
        let [x, y, w, h] = [corner.0, corner.1, size.0, size.1].map(short);
        let _ =
            write!(self.text, "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\"/>");
    }

    /// Any shape, in the path's own language. `dash` as in stroke-dasharray; none if empty.
    pub fn path(&mut self, class: &str, d: &str, dash: &str) {
        let _ = write!(self.text, "<path class=\"{class}\" d=\"{d}\"");
        if !dash.is_empty() {
            let _ = write!(self.text, " stroke-dasharray=\"{dash}\"");
        }
        self.text += "/>";
    }

    /// One line of text, its base line at `at`.
    pub fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y) = (short(at.0), short(at.1));
        let text = Html(text);
        let _ = write!(
            self.text,
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }
}

/// The path through `points`.
pub fn through(points: &[(f64, f64)]) -> String {
    let mut d = String::new();
    for (place, (x, y)) in points.iter().enumerate() {
        let _ = write!(d, "{}{} {}", if place == 0 { 'M' } else { 'L' }, short(*x), short(*y));
    }
    d
}

/// Tenths are finer than a screen.
pub fn short(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), Into::into)
}

/// At most how wide a text is at this size, without knowing the font: by DejaVu Sans, the widest of the usual ones.
pub fn width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | '\'' | '|' => 0.29,
        ' ' | ',' | '.' | '/' | ':' | ';' | '!' | 'I' | 'f' | 't' | '-' | '(' | ')' | '[' | ']' => 0.41,
        'm' | 'M' | 'w' | 'W' | '@' | '%' | '…' => 1.0,
        'A'..='Z' | '&' | '+' | '<' | '>' | '=' | '×' | '~' | '#' => 0.84,
        ' '..='~' | '\u{a0}'..='\u{24f}' => 0.64,
        // Not narrower than an ideograph; emoji are wider.
        _ => 1.4,
    };
    text.chars().map(em).sum::<f64>() * size
}

/// As much of the text as has room, and a sign that it is not all.
pub fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut used = width("…", size);
    let kept = text.chars().take_while(|c| {
        used += width(c.encode_utf8(&mut [0; 4]), size);
        used <= room
    });
    let kept: String = kept.collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_text() {
        let mut svg = Svg::new("plot", 460.0, 280.0, "a \"plot\"");
        svg.group("point k2", "<b>", |svg| svg.line("bar", (1.0, 2.25), (3.04, -4.0)));
        svg.text("tick", (1.0, 2.0), Anchor::End, "]]></svg>");
        assert_eq!(
            svg.finish(),
            "<svg class=\"plot\" viewBox=\"0 0 460 280\" role=\"img\" aria-label=\"a &quot;plot&quot;\">\
             <g class=\"point k2\"><title>&lt;b&gt;</title>\
             <line class=\"bar\" x1=\"1\" y1=\"2.2\" x2=\"3\" y2=\"-4\"/></g>\
             <text class=\"tick\" x=\"1\" y=\"2\" text-anchor=\"end\">]]&gt;&lt;/svg&gt;</text></svg>"
        );
        assert_eq!(through(&[(1.0, 2.0), (3.5, 4.0)]), "M1 2L3.5 4");
    }

    #[test]
    fn text_is_cut_to_its_room() {
        assert_eq!(fit("bare", 12.0, 100.0), "bare");
        let cut = fit(&"wide ".repeat(99), 12.0, 100.0);
        assert!(cut.ends_with('…') && width(&cut, 12.0) <= 100.0, "{cut}");
        assert_eq!(fit("x", 12.0, 0.0), "…");
    }
}

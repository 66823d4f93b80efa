//! How each row looks: one colour, marker and dash for its name on the whole page.

use super::svg::short;
use crate::contender::{BARE, BARE_AGAIN, HPC_LAUNCH};
use crate::document::Document;
use std::collections::BTreeMap;

/// Classes k2… of the style sheet; k0 is bare, k1 bare again. They were chosen so that any two are at least 11 apart
/// (CIE76) to those who see no red, green or blue (Machado et al., 2009), and 3:1 against paper (WCAG 1.4.11).
const COLOURS: usize = 8;
/// Told apart without colour, too: in print, and by those who see few.
const DASHES: [&str; 5] = ["", "7 3", "2 2.5", "9 3 2 3", "5 2 1.5 2 1.5 2"];

/// The shape of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Circle,
    Square,
    Up,
    Diamond,
    Down,
    Hexagon,
    Bar,
}

const MARKERS: [Marker; 7] =
    [Marker::Circle, Marker::Square, Marker::Up, Marker::Diamond, Marker::Down, Marker::Hexagon, Marker::Bar];

/// One row's look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    colour: usize,
    marker: Marker,
    /// As in stroke-dasharray.
    pub dash: &'static str,
    /// The product's own lines are drawn above the others', and thicker.
    pub ours: bool,
}

impl Look {
    /// The classes of all that is drawn for the row.
    pub fn class(&self) -> String {
        format!("k{}{}", self.colour, if self.ours { " ours" } else { "" })
    }

    /// The marker's path around a place.
    pub fn marker(&self, (x, y): (f64, f64), size: f64) -> String {
        let polygon = |corners: &[(f64, f64)]| {
            let places: Vec<_> = corners.iter().map(|(dx, dy)| (x + dx * size, y + dy * size)).collect();
            super::svg::through(&places) + "Z"
        };
        match self.marker {
            Marker::Circle => {
                let [left, y, r, d] = [x - size, y, size, 2.0 * size].map(short);
                format!("M{left} {y}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0Z")
            }
            Marker::Square => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            Marker::Up => polygon(&[(0.0, -1.2), (1.15, 0.9), (-1.15, 0.9)]),
            Marker::Diamond => polygon(&[(0.0, -1.35), (1.35, 0.0), (0.0, 1.35), (-1.35, 0.0)]),
            Marker::Down => polygon(&[(0.0, 1.2), (1.15, -0.9), (-1.15, -0.9)]),
            Marker::Hexagon => {
                polygon(&[(-0.6, -1.1), (0.6, -1.1), (1.2, 0.0), (0.6, 1.1), (-0.6, 1.1), (-1.2, 0.0)])
            }
            Marker::Bar => polygon(&[(-1.4, -0.5), (1.4, -0.5), (1.4, 0.5), (-1.4, 0.5)]),
        }
    }
}

/// The mark of a failed run: no marker has its shape.
pub fn cross((x, y): (f64, f64), size: f64) -> String {
    let [left, right, up, down] = [x - size, x + size, y - size, y + size].map(short);
    format!("M{left} {up}L{right} {down}M{left} {down}L{right} {up}")
}

/// The looks of all names of a document.
#[derive(Debug)]
pub struct Looks(BTreeMap<String, Look>);

impl Looks {
    /// In the order in which the names appear, which is the same for each page of the same command.
    pub fn of(document: &Document) -> Self {
        let mut looks = BTreeMap::new();
        let mut others = 0;
        for row in document.reports.iter().flat_map(|r| &r.groups).flat_map(|g| &g.rows) {
            if looks.contains_key(&row.name) {
                continue;
            }
            let (colour, place) = match row.name.as_str() {
                BARE => (0, 0),
                BARE_AGAIN => (1, 2),
                _ => {
                    others += 1;
                    (2 + (others - 1) % COLOURS, others - 1)
                }
            };
            let ours = row.name.starts_with(HPC_LAUNCH);
            let look = Look {
                colour,
                marker: MARKERS[place % MARKERS.len()],
                dash: DASHES[place % DASHES.len()],
                ours,
            };
            looks.insert(row.name.clone(), look);
        }
        Looks(looks)
    }

    /// Of a name that the document has.
    pub fn get(&self, name: &str) -> Look {
        let none = Look { colour: 0, marker: Marker::Circle, dash: "", ours: false };
        self.0.get(name).copied().unwrap_or(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn no_two_names_look_alike() {
        let mut document = fixture::document();
        let row = document.reports[0].groups[0].rows[2].clone();
        for n in 0..30 {
            let mut row = row.clone();
            row.name = format!("row {n}");
            document.reports[2].groups[0].rows.push(row);
        }
        let looks = Looks::of(&document);
        let all: Vec<Look> = looks.0.values().copied().collect();
        assert!(all.len() > 40);
        for (place, look) in all.iter().enumerate() {
            assert!(!all[..place].contains(look), "{look:?}");
        }
        assert_eq!(looks.get(BARE).class(), "k0");
        assert!(looks.get("hpc-launch, host's MPI").ours);
    }
}

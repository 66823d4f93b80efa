//! Axes: where a value goes, and ticks as people write them.

/// How values become places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences, equal distances.
    Linear,
    /// Equal ratios, equal distances.
    Log,
}

/// From values to places in the picture.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// How.
    pub scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

/// A mark on an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    /// Where.
    pub value: f64,
    /// What is written there.
    pub label: String,
}

/// Ticks that are nearer than this (in units of the picture) run into each other.
const NEAR: f64 = 17.0;

impl Axis {
    /// `low` is drawn at `from`, `high` at `to`. Equal ends are moved apart, so that every value has a place; a
    /// logarithmic axis needs a `low` above 0 and is linear else.
    pub fn new(scale: Scale, low: f64, high: f64, from: f64, to: f64) -> Self {
        let scale = if low > 0.0 { scale } else { Scale::Linear };
        let (mut low, mut high) = (low, high);
        if high <= low {
            let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (low - room, low + room);
        }
        Axis { scale, low, high, from, to }
    }

    /// The place of `value`; of values beyond the ends, the end.
    pub fn at(&self, value: f64) -> f64 {
        let map = |v: f64| if self.scale == Scale::Log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        // Halved, because the difference of two finite numbers need not be finite.
        let (low, high, value) = (map(self.low) / 2.0, map(self.high) / 2.0, map(value) / 2.0);
        let share = ((value - low) / (high - low)).clamp(0.0, 1.0);
        if share.is_nan() { self.from } else { self.from + (self.to - self.from) * share }
    }

    /// As many ticks as have room, at round values.
    pub fn ticks(&self) -> Vec<Tick> {
        const DENSE_TO_SPARSE: [&[f64]; 4] =
            [&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0], &[1.0, 2.0, 3.0, 5.0], &[1.0, 2.0, 5.0], &[1.0, 3.0]];
        if self.scale == Scale::Log && self.high / self.low >= 3.0 {
            let powers = DENSE_TO_SPARSE.iter().map(|steps| self.powers(steps, 1));
            let sparser = (1..400).map(|every| self.powers(&[1.0], every));
            if let Some(values) = powers.chain(sparser).find(|values| self.has_room(values)) {
                return values.into_iter().map(|value| Tick { value, label: number(value, 0) }).collect();
            }
        }
        self.even()
    }

    /// Multiples of powers of ten within the axis.
    fn powers(&self, steps: &[f64], every: usize) -> Vec<f64> {
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        let decades = (first..=last).filter(|power| power.rem_euclid(every as i32) == 0);
        // Parsed, so that 0.3 is 0.3 and not 3 * 0.1.
        let value = |step: f64, power: i32| format!("{step}e{power}").parse::<f64>().unwrap_or(f64::NAN);
        decades
            .flat_map(|power| steps.iter().map(move |step| value(*step, power)))
            .filter(|value| (self.low..=self.high).contains(value))
            .collect()
    }

    fn has_room(&self, values: &[f64]) -> bool {
        values.len() <= 8 && values.windows(2).all(|pair| (self.at(pair[1]) - self.at(pair[0])).abs() >= NEAR)
    }

    /// Multiples of 1, 2 or 5 times a power of ten.
    fn even(&self) -> Vec<Tick> {
        let fit = ((self.to - self.from).abs() / (NEAR * 2.0)).clamp(2.0, 7.0);
        let rough = (self.high / fit - self.low / fit).max(f64::MIN_POSITIVE);
        let power = rough.log10().floor() as i32;
        let steps = [(1, power), (2, power), (5, power), (1, power + 1), (2, power + 1)];
        for (digit, power) in steps {
            let step: f64 = format!("{digit}e{power}").parse().unwrap_or(f64::MAX);
            if step < rough * 0.999 {
                continue;
            }
            let (first, last) = ((self.low / step).ceil(), (self.high / step).floor());
            let values: Vec<f64> = (0..=8)
                .map(|n| first + f64::from(n))
                .take_while(|n| *n <= last)
                .map(|n| if power < 0 { n * f64::from(digit) / 10_f64.powi(-power) } else { n * step })
                .collect();
            if self.has_room(&values) {
                let decimals = usize::try_from(-power).unwrap_or(0);
                return values
                    .into_iter()
                    .map(|value| Tick { value, label: number(value, decimals) })
                    .collect();
            }
        }
        Vec::new()
    }
}

/// A number with commas between thousands, with at least so many decimals where it is not written with a power.
pub fn number(value: f64, decimals: usize) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e7).contains(&size) {
        return format!("{value:e}");
    }
    let plain = if decimals > 0 { format!("{value:.decimals$}") } else { value.to_string() };
    let (whole, rest) = plain.split_once('.').map_or((plain.as_str(), None), |(a, b)| (a, Some(b)));
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    rest.map_or_else(|| format!("{sign}{grouped}"), |rest| format!("{sign}{grouped}.{rest}"))
}

/// A size in bytes, without the B: 8, 64, 1 Ki, 4 Mi.
pub fn bytes(size: f64) -> String {
    const UNITS: [(f64, &str); 4] =
        [(1_099_511_627_776.0, "Ti"), (1_073_741_824.0, "Gi"), (1_048_576.0, "Mi"), (1024.0, "Ki")];
    let unit = UNITS.into_iter().find(|(unit, _)| size.abs() >= *unit);
    // 1000 B is not 0.976… KiB to anybody.
    match unit.map(|(unit, name)| (size / unit, name)) {
        Some((count, name)) if count < 1e6 && (count * 10.0).fract() == 0.0 => format!("{count} {name}"),
        _ => number(size, 0),
    }
}

/// A place on the axis with its unit: "4 MiB", "64 ranks", "1 host".
pub fn place(x: f64, unit: &str) -> String {
    if unit == "B" {
        let text = bytes(x);
        let joint = if text.ends_with('i') { "" } else { " " };
        return format!("{text}{joint}B");
    }
    let one = unit.strip_suffix('s').filter(|_| x == 1.0);
    format!("{} {}", number(x, 0), one.unwrap_or(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Axis) -> Vec<String> {
        let ticks = axis.ticks();
        assert!(
            ticks.windows(2).all(|p| (axis.at(p[0].value) - axis.at(p[1].value)).abs() >= NEAR),
            "{ticks:?}"
        );
        ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn a_value_has_its_place() {
        let axis = Axis::new(Scale::Log, 1.0, 100.0, 0.0, 200.0);
        assert_eq!([1.0, 10.0, 100.0, 1e9, -1.0].map(|v| axis.at(v)), [0.0, 100.0, 200.0, 200.0, 0.0]);
        let down = Axis::new(Scale::Linear, 0.0, 10.0, 100.0, 0.0);
        assert_eq!([0.0, 5.0, 10.0].map(|v| down.at(v)), [100.0, 50.0, 0.0]);
        assert_eq!(Axis::new(Scale::Log, 0.0, 1.0, 0.0, 1.0).scale, Scale::Linear);
    }

    #[test]
    fn ticks_are_round() {
        let ratios = Axis::new(Scale::Log, 0.93, 1.12, 220.0, 0.0);
        assert_eq!(labels(ratios), ["0.95", "1.00", "1.05", "1.10"]);
        let wide = Axis::new(Scale::Log, 0.9, 9.0, 220.0, 0.0);
        assert_eq!(labels(wide), ["1", "1.5", "2", "3", "4", "5", "7"]);
        let times = Axis::new(Scale::Log, 0.18, 520.0, 220.0, 0.0);
        assert_eq!(labels(times), ["0.3", "1", "3", "10", "30", "100", "300"]);
        assert_eq!(
            labels(Axis::new(Scale::Linear, 0.0, 9332.0, 0.0, 440.0)),
            ["0", "2,000", "4,000", "6,000", "8,000"]
        );
        assert_eq!(
            labels(Axis::new(Scale::Linear, 0.0, 0.8, 0.0, 440.0)),
            ["0.0", "0.2", "0.4", "0.6", "0.8"]
        );
    }

    #[test]
    fn any_numbers_have_ticks_and_places() {
        let odd =
            [(0.0, 0.0), (5.0, 5.0), (-3.0, 7e-9), (1e-300, 1e300), (f64::MIN, f64::MAX), (1e-320, 2e-320)];
        for (low, high) in odd {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::new(scale, low, high, 10.0, 200.0);
                assert!(axis.ticks().len() <= 13, "{low} {high}: {:?}", axis.ticks());
                assert!(
                    [low, high, 1.0].iter().all(|v| (10.0..=200.0).contains(&axis.at(*v))),
                    "{low} {high}"
                );
            }
        }
    }

    #[test]
    fn sizes_and_places_as_people_write_them() {
        assert_eq!(
            [0.0, 8.0, 1000.0, 1024.0, 1536.0, 4194304.0].map(bytes),
            ["0", "8", "1,000", "1 Ki", "1.5 Ki", "4 Mi"]
        );
        assert_eq!(place(4194304.0, "B"), "4 MiB");
        assert_eq!(place(8.0, "B"), "8 B");
        assert_eq!([place(1.0, "ranks"), place(64.0, "ranks")], ["1 rank", "64 ranks"]);
        assert_eq!(
            [number(1234567.0, 0), number(-1234.5, 2), number(3e-9, 0)],
            ["1,234,567", "-1,234.50", "3e-9"]
        );
    }
}

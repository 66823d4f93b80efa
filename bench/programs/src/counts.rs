//! How often a loop runs: the counts of the OSU Micro-Benchmarks 5 and 7, or what was asked for instead.

/// Messages above it are large: fewer of them are sent (`LARGE_MESSAGE_SIZE` of OSU's `osu_util.h`).
pub const LARGE: usize = 8192;

/// Messages under way at once in a bandwidth loop (`WINDOW_SIZE_LARGE`, the same for small ones).
pub const WINDOW: usize = 64;

/// What a loop measures, for that says how long it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One message at a time.
    Latency,
    /// Windows of messages.
    Bandwidth,
    /// One collective at a time.
    Collective,
}

/// Rounds of one loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loop {
    /// Before the clock runs.
    pub warm_up: usize,
    /// What is measured.
    pub rounds: usize,
}

impl Loop {
    /// All of them.
    pub fn all(self) -> usize {
        self.warm_up + self.rounds
    }
}

/// Whose counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Counts {
    /// OSU's.
    Osu,
    /// OSU's, warm-up too, times this.
    Scaled(f64),
    /// So many rounds for each size, after a tenth of them as warm-up.
    Fixed(usize),
}

impl Counts {
    /// For messages of one size.
    pub fn of(self, kind: Kind, size: usize) -> Loop {
        let (warm_up, rounds) = match (kind, size > LARGE) {
            (Kind::Latency, false) => (100, 10_000),
            (Kind::Latency, true) => (10, 1000),
            (Kind::Bandwidth, false) => (10, 100),
            (Kind::Bandwidth, true) => (2, 20),
            (Kind::Collective, false) => (100, 1000),
            (Kind::Collective, true) => (10, 100),
        };
        // Something is always sent before the clock runs: the first message sets the connection up.
        match self {
            Counts::Osu => Loop { warm_up, rounds },
            Counts::Scaled(factor) => Loop { warm_up: scale(warm_up, factor), rounds: scale(rounds, factor) },
            Counts::Fixed(rounds) => Loop { warm_up: scale(rounds, 0.1), rounds },
        }
    }

    /// For the output: numbers from other counts than OSU's must be recognisable.
    pub fn describe(self) -> String {
        match self {
            Counts::Osu => "osu".into(),
            Counts::Scaled(factor) => format!("osu*{factor}"),
            Counts::Fixed(rounds) => format!("fixed:{rounds}"),
        }
    }
}

fn scale(count: usize, factor: f64) -> usize {
    ((count as f64 * factor).round() as usize).max(1)
}

/// `--scale`: above 0 and finite.
pub fn parse_factor(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if factor > 0.0 && f64::is_finite(factor) => Ok(factor),
        _ => Err(format!("{text:?} is no factor above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn osu_counts_change_above_eight_kib() {
        let at = |kind, size| {
            let Loop { warm_up, rounds } = Counts::Osu.of(kind, size);
            (warm_up, rounds)
        };
        assert_eq!(at(Kind::Latency, LARGE), (100, 10_000));
        assert_eq!(at(Kind::Latency, LARGE + 1), (10, 1000));
        assert_eq!(at(Kind::Bandwidth, 1), (10, 100));
        assert_eq!(at(Kind::Bandwidth, 4 << 20), (2, 20));
        assert_eq!(at(Kind::Collective, 8), (100, 1000));
        assert_eq!(at(Kind::Collective, 16384), (10, 100));
    }

    #[test]
    fn shortened_loops_never_become_empty_and_say_so() {
        let tiny = Counts::Scaled(0.001);
        assert_eq!(tiny.of(Kind::Bandwidth, 1 << 20), Loop { warm_up: 1, rounds: 1 });
        assert_eq!(tiny.of(Kind::Latency, 8), Loop { warm_up: 1, rounds: 10 });
        assert_eq!(Counts::Fixed(30).of(Kind::Latency, 8), Loop { warm_up: 3, rounds: 30 });
        assert_eq!(Counts::Fixed(30).of(Kind::Latency, 8).all(), 33);
        assert_eq!(
            [Counts::Osu, tiny, Counts::Fixed(30)].map(Counts::describe),
            ["osu", "osu*0.001", "fixed:30"]
        );
    }

    #[test]
    fn factors() {
        assert_eq!(parse_factor("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "inf", "NaN", "x"] {
            assert!(parse_factor(wrong).is_err(), "{wrong}");
        }
    }
}

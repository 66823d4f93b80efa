//! How far the measurement is: a bar with the time left on a terminal, a line per table elsewhere.

use crate::alternate::{Effort, Rounds, Sample};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// Of the bar: thousandths of the time that all of it takes.
const WHOLE: u64 = 1000;

/// What is shown on stderr.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    table: String,
    /// What comes after this table.
    later: Duration,
    spent: Duration,
    before: Duration,
}

impl Progress {
    /// Nothing is shown until there is something to show.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(WHOLE), ProgressDrawTarget::stderr_with_hz(5));
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Progress {
            bar,
            table: String::new(),
            later: Duration::ZERO,
            spent: Duration::ZERO,
            before: Duration::ZERO,
        }
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("hpc-bench: {text}");
        } else {
            self.bar.println(text);
        }
    }

    /// How long what comes after the next table may take.
    pub fn then(&mut self, later: Duration) {
        self.later = later;
    }

    /// A table begins.
    pub fn start(&mut self, table: &str, effort: &Effort) {
        self.table = table.to_owned();
        self.before = self.spent;
        if self.bar.is_hidden() {
            let most = effort.within.map(|most| format!(", about {}", minutes(most))).unwrap_or_default();
            eprintln!("hpc-bench: {table}: up to {} rounds{most}", effort.rounds);
        }
    }

    /// A run begins.
    pub fn run<T: Sample>(&mut self, row: &str, rounds: &Rounds<T>) {
        self.spent = self.before + rounds.spent();
        let left = rounds.left().map(|left| left + self.later);
        let (done, all) = (rounds.done(), rounds.effort().rounds);
        let tail = left.map(|left| format!(", {} left", minutes(left))).unwrap_or_default();
        if let Some(left) = left {
            let whole = (self.spent + left).as_secs_f64();
            self.bar.set_position((self.spent.as_secs_f64() / whole.max(1e-9) * WHOLE as f64) as u64);
        }
        self.bar.set_message(format!("{}: round {} of {all}, {row}{tail}", self.table, (done + 1).min(all)));
    }

    /// The table is done: what is printed next has the line for itself.
    pub fn finish(&mut self) {
        self.bar.finish_and_clear();
        self.bar.reset();
    }
}

/// As a person says it.
fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..90 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_as_a_person_says_it() {
        let said = [5, 89, 90, 149, 150, 3600].map(|s| minutes(Duration::from_secs(s)));
        assert_eq!(said, ["5 s", "89 s", "2 min", "2 min", "3 min", "60 min"]);
    }
}

//! The sampler's order: every round runs each row once, so that what drifts on the machine drifts for all of them.

use crate::run::Failure;
use crate::stats::Prng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::time::Duration;

/// What one row gave, round by round: a sample, or why there is none.
pub type Outcomes<T> = Vec<Result<T, Failure>>;

/// A row that took too long so many times in a row is not run again: each time costs the whole limit.
const PATIENCE: usize = 2;

/// With fewer rounds a bootstrap interval holds the truth less often than it says: simulated, of three in 73 %, of six
/// in 94 % of all cases.
const LEAST: usize = 6;

/// What a run gives.
pub trait Sample: Serialize + DeserializeOwned {
    /// Why it holds less than it should: what hung half-way is not tried again either.
    fn cut_short_by(&self) -> Option<&Failure> {
        None
    }
}

impl Sample for f64 {}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Rounds before the first that counts: they fill the page cache and any cache of plans.
    pub warm_up: usize,
    /// Rounds that count.
    pub rounds: usize,
    /// Fewer, once so much time went by, …
    pub within: Option<Duration>,
    /// … but not fewer than these.
    pub at_least: usize,
}

impl Effort {
    /// So many rounds, however long they take.
    pub fn rounds(warm_up: usize, rounds: usize) -> Self {
        Effort { warm_up, rounds, within: None, at_least: rounds }
    }

    /// Up to so many rounds in about this time.
    pub fn within(warm_up: usize, rounds: usize, within: Duration) -> Self {
        Effort { warm_up, rounds, within: Some(within), at_least: rounds.min(LEAST) }
    }
}

/// One run to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// Which row.
    pub row: usize,
    /// Which of the rounds that count; none while warming up.
    pub round: Option<usize>,
}

/// The runs of one table, one after the other.
///
/// The order within a round is shuffled (the same way each time for the same table): part of a namespace's clean-up runs
/// in the kernel after its process was reaped, and must not always fall on the same neighbour.
#[derive(Debug)]
pub struct Rounds<T> {
    effort: Effort,
    prng: Prng,
    order: Vec<usize>,
    /// The rest of the present round, the warm-up before it included.
    queue: VecDeque<Next>,
    /// The round after the present one.
    round: usize,
    warm: bool,
    seconds: f64,
    rows: Vec<Row<T>>,
}

#[derive(Debug)]
struct Row<T> {
    outcomes: Outcomes<T>,
    /// Runs that took too long since the last that did not, and what the last of them said.
    too_long: (usize, String),
}

impl<T: Sample> Rounds<T> {
    /// Of so many rows. The table's key decides upon the orders: if all tables had the same, a row that disturbs its
    /// neighbour would disturb the same one everywhere.
    pub fn new(key: &str, rows: usize, effort: Effort) -> Self {
        let row = || Row { outcomes: Vec::new(), too_long: (0, String::new()) };
        Rounds {
            effort,
            prng: Prng::of(key),
            order: (0..rows).collect(),
            queue: VecDeque::new(),
            round: 0,
            warm: false,
            seconds: 0.0,
            rows: (0..rows).map(|_| row()).collect(),
        }
    }

    /// The next run; `is_kept` tells whether the outcome of a (row, round) is known from an earlier process. Warming
    /// up comes before the first run that is not.
    pub fn next(&mut self, is_kept: impl Fn(usize, usize) -> bool) -> Option<Next> {
        loop {
            let Some(next) = self.queue.pop_front() else {
                if self.is_over() {
                    return None;
                }
                self.begin_round(&is_kept);
                continue;
            };
            if !self.gave_up(next.row) || next.round.is_some_and(|round| is_kept(next.row, round)) {
                return Some(next);
            }
            if next.round.is_some() {
                let why = format!("not tried again after {PATIENCE} runs that took too long");
                let row = &mut self.rows[next.row];
                row.outcomes.push(Err(Failure::new(why, row.too_long.1.clone())));
            }
        }
    }

    fn is_over(&self) -> bool {
        let late = self.effort.within.is_some_and(|most| self.seconds >= most.as_secs_f64());
        self.rows.is_empty() || self.round >= self.effort.rounds || late && self.round >= self.effort.at_least
    }

    fn begin_round(&mut self, is_kept: impl Fn(usize, usize) -> bool) {
        self.prng.shuffle(&mut self.order);
        let run = |round| self.order.iter().map(move |&row| Next { row, round });
        if !self.warm && !self.order.iter().all(|&row| is_kept(row, self.round)) {
            self.warm = true;
            (0..self.effort.warm_up).for_each(|_| self.queue.extend(run(None)));
        }
        self.queue.extend(run(Some(self.round)));
        self.round += 1;
    }

    /// What came of a run, and how long it took.
    pub fn ran(&mut self, next: Next, outcome: Result<T, Failure>, seconds: f64) {
        let row = &mut self.rows[next.row];
        let failure = outcome.as_ref().map_or_else(Some, Sample::cut_short_by);
        row.too_long = match failure {
            Some(failure) if failure.is_time_out() => (row.too_long.0 + 1, failure.stderr.clone()),
            _ => (0, String::new()),
        };
        if next.round.is_some() {
            // Warming up is not in it: what was measured before and what is measured now count alike. Nor are runs
            // that hang: they would leave the others too few rounds.
            if row.too_long.0 == 0 {
                self.seconds += seconds;
            }
            row.outcomes.push(outcome);
        }
    }

    fn gave_up(&self, row: usize) -> bool {
        self.rows[row].too_long.0 >= PATIENCE
    }

    /// Whole rounds behind us.
    pub fn done(&self) -> usize {
        self.round - usize::from(!self.queue.is_empty())
    }

    /// How long the runs that count have taken.
    pub fn spent(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// How long the rest takes, as far as one can tell from what there was.
    pub fn left(&self) -> Option<Duration> {
        let done = self.done();
        if done == 0 {
            return self.effort.within;
        }
        let rest = self.seconds / done as f64 * self.effort.rounds.saturating_sub(done) as f64;
        let most =
            self.effort.within.map_or(f64::INFINITY, |most| (most.as_secs_f64() - self.seconds).max(0.0));
        Some(Duration::from_secs_f64(rest.min(most)))
    }

    /// How much there is to do.
    pub fn effort(&self) -> &Effort {
        &self.effort
    }

    /// Each row's outcomes, in the order of the rounds.
    pub fn outcomes(self) -> Vec<Outcomes<T>> {
        self.rows.into_iter().map(|row| row.outcomes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Sample for usize {}
    impl Sample for () {}
    impl Sample for Option<usize> {}

    /// Runs all of it with outcomes by `of`.
    fn all<T: Sample>(
        rounds: &mut Rounds<T>,
        mut of: impl FnMut(Next) -> (Result<T, Failure>, f64),
    ) -> Vec<Next> {
        let mut runs = Vec::new();
        while let Some(next) = rounds.next(|_, _| false) {
            runs.push(next);
            let (outcome, seconds) = of(next);
            rounds.ran(next, outcome, seconds);
        }
        runs
    }

    #[test]
    fn every_round_holds_every_row_once_and_in_changing_order() {
        let mut rounds = Rounds::new("t", 4, Effort::rounds(2, 10));
        let runs = all(&mut rounds, |next| (Ok(next.round.unwrap_or(99)), 0.1));
        assert_eq!(runs.len(), 4 * 12);
        for round in runs.chunks(4) {
            let mut rows: Vec<usize> = round.iter().map(|next| next.row).collect();
            rows.sort_unstable();
            assert_eq!(rows, [0, 1, 2, 3]);
        }
        let order = |n: usize| runs[4 * n..4 * n + 4].iter().map(|next| next.row).collect::<Vec<_>>();
        assert!((3..12).any(|n| order(n) != order(2)));
        for row in rounds.outcomes() {
            let kept: Vec<usize> = row.into_iter().map(Result::unwrap).collect();
            assert_eq!(kept, (0..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_failed_run_keeps_its_place() {
        let mut rounds = Rounds::new("t", 1, Effort::rounds(0, 3));
        all(&mut rounds, |next| match next.round {
            Some(1) => (Err(Failure::new("exit 1", "")), 0.1),
            n => (Ok(n), 0.1),
        });
        assert!(matches!(rounds.outcomes()[0][..], [Ok(_), Err(_), Ok(_)]));
    }

    #[test]
    fn a_row_that_hangs_is_left_alone_and_says_so() {
        let mut rounds = Rounds::new("t", 2, Effort::rounds(1, 5));
        let runs = all(&mut rounds, |next| match next.row {
            0 => (Err(Failure::timed_out(Duration::from_secs(30), "PMIX ERROR")), 30.0),
            _ => (Ok(()), 0.1),
        });
        assert_eq!(runs.iter().filter(|next| next.row == 0).count(), 2);
        let outcomes = rounds.outcomes();
        let said: Vec<&str> = outcomes[0].iter().map(|o| o.as_ref().unwrap_err().status.as_str()).collect();
        assert_eq!(said[0], "timed out after 30 s");
        assert_eq!(said[1..], ["not tried again after 2 runs that took too long"; 4]);
        assert_eq!(outcomes[0][4].as_ref().unwrap_err().stderr, "PMIX ERROR");
        assert_eq!(outcomes[1].len(), 5);
    }

    #[test]
    fn time_ends_it_but_not_before_there_is_something() {
        let effort = Effort::within(1, 100, Duration::from_secs(12));
        let mut rounds = Rounds::new("t", 2, effort);
        all(&mut rounds, |_| (Ok(()), 1.0));
        assert_eq!(rounds.outcomes()[0].len(), 6);
        let mut rounds = Rounds::new("t", 2, effort);
        all(&mut rounds, |_| (Ok(()), 60.0));
        assert_eq!(rounds.outcomes()[0].len(), 6);
        // Another's hanging takes none of it.
        let mut rounds = Rounds::new("t", 2, effort);
        all(&mut rounds, |next| match next.row {
            0 => (Err(Failure::timed_out(Duration::from_secs(60), "")), 60.0),
            _ => (Ok(()), 1.0),
        });
        assert_eq!(rounds.outcomes()[1].len(), 12);
    }

    #[test]
    fn what_is_kept_needs_no_warming_up_and_the_order_goes_on() {
        let runs = |kept: usize| {
            let mut rounds = Rounds::new("t", 3, Effort::rounds(1, 6));
            let mut runs = Vec::new();
            while let Some(next) = rounds.next(|_, round| round < kept) {
                runs.push(next);
                rounds.ran(next, Ok(()), 0.1);
            }
            runs
        };
        let counted = |runs: Vec<Next>| runs.into_iter().filter(|n| n.round.is_some()).collect::<Vec<_>>();
        let resumed = runs(4);
        assert!(resumed[..12].iter().all(|next| next.round.is_some()));
        assert!(resumed[12..15].iter().all(|next| next.round.is_none()));
        assert_eq!(counted(resumed), counted(runs(0)));
        assert!(runs(6).iter().all(|next| next.round.is_some()));
    }

    #[test]
    fn the_time_left_is_known_after_a_round() {
        let mut rounds = Rounds::new("t", 2, Effort::rounds(0, 5));
        assert_eq!(rounds.left(), None);
        for _ in 0..4 {
            let next = rounds.next(|_, _| false).unwrap();
            rounds.ran(next, Ok(()), 1.0);
        }
        assert_eq!((rounds.done(), rounds.left()), (2, Some(Duration::from_secs(6))));
    }
}

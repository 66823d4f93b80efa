//! The sampler: every round runs each row once, so that what drifts on the machine drifts for all of them.

use crate::run::Failure;
use crate::stats::Prng;

/// What one row gave, round by round: a sample, or why there is none.
pub type Outcomes<T> = Vec<Result<T, Failure>>;

/// Runs `rows` rows, `runs` rounds of them, and returns each row's outcomes in the order of the rounds.
///
/// The order within a round is shuffled (the same way each time): part of a namespace's clean-up runs
/// in the kernel after its process was reaped, and must not always fall on the same neighbour.
/// `warm_up` rounds go before that are not kept: they fill the page cache and any cache of plans.
pub fn alternate<T>(
    rows: usize,
    warm_up: usize,
    runs: usize,
    mut sample: impl FnMut(usize) -> Result<T, Failure>,
) -> Vec<Outcomes<T>> {
    let mut prng = Prng::new(4);
    let mut order: Vec<usize> = (0..rows).collect();
    let mut outcomes: Vec<Outcomes<T>> = (0..rows).map(|_| Vec::with_capacity(runs)).collect();
    for round in 0..warm_up + runs {
        prng.shuffle(&mut order);
        for &row in &order {
            let outcome = sample(row);
            if round >= warm_up {
                outcomes[row].push(outcome);
            }
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_holds_every_row_once_and_in_changing_order() {
        let mut calls = Vec::new();
        let outcomes = alternate(4, 2, 10, |row| {
            calls.push(row);
            Ok(calls.len())
        });
        assert_eq!(calls.len(), 4 * 12);
        for round in calls.chunks(4) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
        }
        assert!(calls.chunks(4).any(|round| round != &calls[..4]));
        for row in outcomes {
            assert_eq!(row.len(), 10);
            assert!(row.iter().all(|sample| *sample.as_ref().unwrap() > 8), "warm-up was kept");
        }
    }

    #[test]
    fn a_failed_run_keeps_its_place() {
        let mut n = 0;
        let outcomes = alternate(1, 0, 3, |_| {
            n += 1;
            if n == 2 { Err(Failure::new("exit 1", "")) } else { Ok(n) }
        });
        assert!(matches!(outcomes[0][..], [Ok(1), Err(_), Ok(3)]));
    }
}

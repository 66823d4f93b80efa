//! What changed from one measurement to another: the ratio of two medians, or of two ratios, with its interval.

use crate::stats::{Estimate, Prng, median};

/// As many as for the intervals within one measurement.
const RESAMPLES: usize = 2000;

/// Rounds of one row: its own value, and the one it is held against (1 where it is held against none).
pub type Rounds = [(f64, f64)];

/// The second over the first. The two come from different runs, so their rounds are resampled apart; within each, a
/// round stays whole. `None` where one has no rounds or a median is not above 0: there is no ratio to nothing.
pub fn change(first: &Rounds, second: &Rounds) -> Option<Estimate> {
    let value = ratio(second)? / ratio(first)?;
    let mut prng = Prng::new(3);
    let (mut a, mut b) = (first.to_vec(), second.to_vec());
    let mut resampled: Vec<f64> = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let mut fill = |slots: &mut [(f64, f64)], from: &Rounds| {
            slots.iter_mut().for_each(|slot| *slot = from[prng.below(from.len())]);
        };
        fill(&mut a, first);
        fill(&mut b, second);
        if let (Some(a), Some(b)) = (ratio(&a), ratio(&b)) {
            resampled.push(b / a);
        }
    }
    resampled.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        resampled.get((resampled.len().saturating_sub(1) as f64 * share).round() as usize).copied()
    };
    let (low, high) = (at(0.025)?, at(0.975)?);
    let all = [value, low, high].iter().all(|number| number.is_finite());
    all.then_some(Estimate { value, low, high, samples: first.len().min(second.len()) })
}

/// The ratio of the medians, where it is above 0 and a number.
fn ratio(rounds: &Rounds) -> Option<f64> {
    let (mut tops, mut bottoms): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
    let ratio = median(&mut tops)? / median(&mut bottoms)?;
    (ratio > 0.0 && ratio.is_finite()).then_some(ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(prng: &mut Prng, centre: f64) -> f64 {
        let sum: f64 = (0..12).map(|_| prng.below(1_000_000) as f64 / 1e6).sum();
        centre * (1.0 + 0.03 * (sum - 6.0))
    }

    fn rounds(prng: &mut Prng, n: usize, row: f64, base: f64) -> Vec<(f64, f64)> {
        (0..n).map(|_| (noisy(prng, row), noisy(prng, base))).collect()
    }

    #[test]
    fn the_machine_cancels_out() {
        let mut prng = Prng::new(1);
        // Twice as slow a machine, and a tenth more for the row.
        let (a, b) = (rounds(&mut prng, 40, 2.0, 1.0), rounds(&mut prng, 30, 4.4, 2.0));
        let found = change(&a, &b).unwrap();
        assert!(found.low < 1.1 && 1.1 < found.high && found.low > 1.05, "{found:?}");
        assert_eq!(found.samples, 30);
    }

    #[test]
    fn the_interval_covers_the_truth_about_19_times_in_20() {
        let mut prng = Prng::new(9);
        let covered = (0..200).filter(|_| {
            let (a, b) = (rounds(&mut prng, 30, 2.0, 1.0), rounds(&mut prng, 30, 2.0, 1.0));
            let found = change(&a, &b).unwrap();
            found.low <= 1.0 && 1.0 <= found.high
        });
        let covered = covered.count();
        assert!((180..=199).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        assert_eq!(change(&[], &[(1.0, 1.0)]), None);
        assert_eq!(change(&[(0.0, 1.0)], &[(1.0, 1.0)]), None);
        assert_eq!(change(&[(1.0, 0.0)], &[(1.0, 1.0)]), None);
        assert_eq!(change(&[(1e-300, 1e300)], &[(1e300, 1e-300)]), None);
    }
}

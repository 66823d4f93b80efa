//! Medians, and how sure we are of them: bootstrap intervals of a median and of a ratio of medians.

use serde::{Deserialize, Serialize};

/// Resamples per interval; the ends of a 95 % interval then rest on 50 resamples each.
const RESAMPLES: usize = 2000;

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The median, or the ratio of two medians.
    pub value: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
    /// How many samples, or pairs of samples, it rests on.
    pub samples: usize,
}

impl Estimate {
    /// A value that was counted, not sampled.
    pub fn exact(value: f64) -> Self {
        Estimate { value, low: value, high: value, samples: 1 }
    }
}

/// SplitMix64: a fixed seed makes the same samples give the same interval on every machine.
#[derive(Debug, Clone)]
pub struct Prng(u64);

impl Prng {
    /// A generator that always starts alike for the same seed.
    pub fn new(seed: u64) -> Self {
        Prng(seed)
    }

    /// One that starts alike for the same text (FNV-1a).
    pub fn of(text: &str) -> Self {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Prng(text.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; its bias is below 2^-32 for any count that a bench can have.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The median; `None` of nothing. Reorders its argument.
pub fn median(samples: &mut [f64]) -> Option<f64> {
    if samples.is_empty() {
        return None;
    }
    let middle = samples.len() / 2;
    let odd = samples.len() % 2 == 1;
    let (below, &mut upper, _) = samples.select_nth_unstable_by(middle, f64::total_cmp);
    if odd {
        return Some(upper);
    }
    below.iter().copied().max_by(f64::total_cmp).map(|lower| f64::midpoint(lower, upper))
}

/// The median of `samples` with its percentile bootstrap interval.
pub fn median_estimate(samples: &[f64]) -> Option<Estimate> {
    let mut scratch = samples.to_vec();
    let value = median(&mut scratch)?;
    let mut prng = Prng::new(1);
    let resampled = (0..RESAMPLES).filter_map(|_| {
        for slot in &mut scratch {
            *slot = samples[prng.below(samples.len())];
        }
        median(&mut scratch)
    });
    Some(with_interval(value, resampled.collect(), samples.len()))
}

/// The ratio of the medians (first over second) with its interval.
///
/// A pair comes from one round. Whole rounds are resampled, because what slows a round down (another
/// process, the clock rate) slows both its runs: taken apart, they would seem more uncertain than they are.
pub fn ratio_estimate(pairs: &[(f64, f64)]) -> Option<Estimate> {
    let (mut tops, mut bottoms): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let value = median(&mut tops)? / median(&mut bottoms)?;
    let mut prng = Prng::new(2);
    let resampled = (0..RESAMPLES).filter_map(|_| {
        for slot in 0..pairs.len() {
            (tops[slot], bottoms[slot]) = pairs[prng.below(pairs.len())];
        }
        Some(median(&mut tops)? / median(&mut bottoms)?)
    });
    Some(with_interval(value, resampled.collect(), pairs.len()))
}

fn with_interval(value: f64, mut resampled: Vec<f64>, samples: usize) -> Estimate {
    resampled.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| resampled[((resampled.len() - 1) as f64 * share).round() as usize];
    Estimate { value, low: at(0.025), high: at(0.975), samples }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Roughly normal noise (sum of twelve uniforms) around `centre`.
    fn noisy(prng: &mut Prng, centre: f64, spread: f64) -> f64 {
        let sum: f64 = (0..12).map(|_| prng.below(1_000_000) as f64 / 1e6).sum();
        centre + spread * (sum - 6.0)
    }

    #[test]
    fn median_of_odd_even_and_nothing() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&mut [7.0]), Some(7.0));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn median_ignores_outliers() {
        assert_eq!(median(&mut [1.0, 1.0, 1.0, 1.0, 1e9]), Some(1.0));
    }

    #[test]
    fn equal_samples_have_an_interval_of_no_width() {
        let estimate = median_estimate(&[2.0; 9]).unwrap();
        assert_eq!((estimate.value, estimate.low, estimate.high, estimate.samples), (2.0, 2.0, 2.0, 9));
    }

    #[test]
    fn the_same_samples_give_the_same_interval() {
        let samples = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        assert_eq!(median_estimate(&samples), median_estimate(&samples));
    }

    #[test]
    fn the_interval_of_a_median_covers_the_truth_about_19_times_in_20() {
        let mut prng = Prng::new(7);
        let covered = (0..200)
            .filter(|_| {
                let samples: Vec<f64> = (0..40).map(|_| noisy(&mut prng, 10.0, 1.0)).collect();
                let estimate = median_estimate(&samples).unwrap();
                estimate.low <= 10.0 && 10.0 <= estimate.high
            })
            .count();
        assert!((180..=199).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn the_interval_of_a_ratio_covers_the_truth_about_19_times_in_20() {
        let mut prng = Prng::new(3);
        let covered = (0..200)
            .filter(|_| {
                let pairs: Vec<(f64, f64)> =
                    (0..40).map(|_| (noisy(&mut prng, 6.0, 0.1), noisy(&mut prng, 4.0, 0.1))).collect();
                let estimate = ratio_estimate(&pairs).unwrap();
                assert!((estimate.value - 1.5).abs() < 0.06, "{estimate:?}");
                assert!(estimate.high - estimate.low < 0.1, "{estimate:?}");
                estimate.low <= 1.5 && 1.5 <= estimate.high
            })
            .count();
        assert!((180..=199).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn a_drift_that_both_sides_share_does_not_widen_the_ratio() {
        let pairs: Vec<(f64, f64)> = (1..=50).map(|i| (2.0 * f64::from(i), f64::from(i))).collect();
        let estimate = ratio_estimate(&pairs).unwrap();
        assert!((estimate.low - 2.0).abs() < 1e-9 && (estimate.high - 2.0).abs() < 1e-9, "{estimate:?}");
    }

    #[test]
    fn nothing_has_no_ratio() {
        assert_eq!(ratio_estimate(&[]), None);
    }

    #[test]
    fn shuffle_keeps_every_item_and_below_stays_below() {
        let mut prng = Prng::new(5);
        let mut items: Vec<usize> = (0..20).collect();
        prng.shuffle(&mut items);
        assert_ne!(items, (0..20).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
        assert!((0..1000).all(|_| prng.below(3) < 3));
    }
}

//! Message sizes: a list, or powers of two between two ends.

use clap::Args;

/// Largest size that MPI's `int` counts of bytes can carry.
const LIMIT: usize = i32::MAX as usize;

/// Which sizes to measure.
#[derive(Debug, Clone, Args)]
pub struct Sizes {
    /// These sizes: bytes, with K, M or G for powers of 1024, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse, conflicts_with_all = ["min", "max"])]
    sizes: Vec<usize>,
    /// Smallest size; the others are its doubles
    #[arg(long, value_name = "SIZE", value_parser = parse, default_value = "1")]
    min: usize,
    /// Largest size [default: 4M; collectives: 1M]
    #[arg(long, value_name = "SIZE", value_parser = parse)]
    max: Option<usize>,
}

impl Sizes {
    /// All of them, in the order of the measurement; `max` is what counts when none was given.
    pub fn list(&self, max: usize) -> Vec<usize> {
        if !self.sizes.is_empty() {
            return self.sizes.clone();
        }
        let max = self.max.unwrap_or(max);
        std::iter::successors(Some(self.min), |size| size.checked_mul(2))
            .take_while(|size| *size <= max)
            .collect()
    }
}

/// Bytes: `8`, `64K`, `1M`.
pub fn parse(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let size = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    match size {
        Some(0) => Err("a message of no bytes has no contents to check: 1 is the least".into()),
        Some(size) if size <= LIMIT => Ok(size),
        Some(_) => Err(format!("{text} is more than MPI counts in one message ({LIMIT} bytes)")),
        None => Err(format!("{text:?} is no size: write bytes, or a number with K, M or G")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(sizes: &[usize], min: usize, max: Option<usize>) -> Vec<usize> {
        Sizes { sizes: sizes.to_vec(), min, max }.list(4 << 20)
    }

    #[test]
    fn powers_of_two_by_default() {
        let all = sizes(&[], 1, None);
        assert_eq!((all.len(), all[0], all[22]), (23, 1, 4 << 20));
    }

    #[test]
    fn a_range_starts_with_its_least_and_ends_below_its_most() {
        assert_eq!(sizes(&[], 3, Some(25)), [3, 6, 12, 24]);
        assert_eq!(sizes(&[], 8, Some(7)), [0; 0]);
    }

    #[test]
    fn a_list_is_kept_as_it_is() {
        assert_eq!(sizes(&[64, 8, 64], 1, None), [64, 8, 64]);
    }

    #[test]
    fn sizes_in_words() {
        assert_eq!(parse("8"), Ok(8));
        assert_eq!(parse("64K"), Ok(65536));
        assert_eq!(parse("1m"), Ok(1 << 20));
        assert_eq!(parse("2147483647"), Ok(LIMIT));
        for wrong in ["", "K", "0", "-1", "1.5M", "2G", "99999999999999999999", "8é"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}

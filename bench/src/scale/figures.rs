//! What the samples of all sizes say about hosts and ranks: differences, growth. Pure.

use super::UNSHARE;
use crate::contender::{BARE, BARE_AGAIN, HPC_LAUNCH, Measured};
use crate::model::Launch;
use crate::stats::{Estimate, median_estimate, ratio_estimate};

/// One number of hosts and ranks, with its rows.
#[derive(Debug)]
pub struct Size {
    /// Hosts.
    pub hosts: usize,
    /// Ranks on each.
    pub ranks: usize,
    /// One outcome per round each, in milliseconds.
    pub rows: Vec<Measured<f64>>,
}

/// What a row adds to the bare launch.
#[derive(Debug, Clone)]
pub struct Added {
    /// Milliseconds of wall time, by host.
    pub per_host: Estimate,
    /// The same, by rank.
    pub per_rank: Estimate,
}

/// How what is added by host grows from few hosts to many, at a number of ranks.
#[derive(Debug, Clone)]
pub struct Growth {
    /// Ranks on each host.
    pub ranks: usize,
    /// From so many hosts.
    pub from: usize,
    /// To so many.
    pub to: usize,
    /// 1 is flat.
    pub ratio: Estimate,
}

impl Size {
    fn row(&self, name: &str) -> Option<&Measured<f64>> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// By round; none where the row failed.
    fn samples(&self, name: &str) -> Vec<Option<f64>> {
        let outcomes = self.row(name).and_then(|row| row.outcomes.as_ref().ok());
        outcomes.into_iter().flatten().map(|outcome| outcome.as_ref().ok().copied()).collect()
    }

    /// By round, the bare launch: the mean of its two rows.
    fn bare(&self) -> Vec<Option<f64>> {
        let pairs = self.samples(BARE).into_iter().zip(self.samples(BARE_AGAIN));
        pairs.map(|(one, other)| Some(f64::midpoint(one?, other?))).collect()
    }

    /// By round, what the row adds to the bare launch.
    pub fn added(&self, name: &str) -> Vec<Option<f64>> {
        let pairs = self.samples(name).into_iter().zip(self.bare());
        pairs.map(|(row, bare)| Some(row? - bare?)).collect()
    }

    /// What the row adds, by host and by rank.
    pub fn share(&self, name: &str) -> Option<Added> {
        let by = |parts: usize| {
            let added: Vec<f64> =
                self.added(name).into_iter().flatten().map(|ms| ms / parts as f64).collect();
            median_estimate(&added)
        };
        Some(Added { per_host: by(self.hosts)?, per_rank: by(self.hosts * self.ranks)? })
    }

    /// The median bare launch.
    pub fn bare_launch(&self) -> Option<Launch> {
        let samples: Vec<f64> = self.bare().into_iter().flatten().collect();
        Some(Launch { hosts: self.hosts, ranks: self.ranks, ms: median_estimate(&samples)?.value })
    }

    /// The median of what is added.
    pub fn added_launch(&self, name: &str) -> Option<Launch> {
        let samples: Vec<f64> = self.added(name).into_iter().flatten().collect();
        Some(Launch { hosts: self.hosts, ranks: self.ranks, ms: median_estimate(&samples)?.value })
    }
}

/// The least number of hosts that keeps all processors busy: with fewer, what is added is in part hidden behind what
/// waits, or done on an idle processor.
pub fn least_busy(sizes: &[Size], processors: usize) -> Option<usize> {
    sizes.iter().map(|size| size.hosts).filter(|hosts| *hosts >= 2 * processors).min()
}

/// How what hpc-launch adds by host grows with the hosts, by number of ranks.
pub fn growth(sizes: &[Size], processors: usize) -> Vec<Growth> {
    let Some(from) = least_busy(sizes, processors) else { return Vec::new() };
    let to = sizes.iter().map(|size| size.hosts).max().unwrap_or(from);
    let at = |hosts: usize, ranks: usize| sizes.iter().find(|s| (s.hosts, s.ranks) == (hosts, ranks));
    let mut ranks: Vec<usize> = sizes.iter().map(|size| size.ranks).collect();
    ranks.sort_unstable();
    ranks.dedup();
    ranks
        .into_iter()
        .filter(|_| to > from)
        .filter_map(|ranks| {
            let (few, many) = (at(from, ranks)?, at(to, ranks)?);
            let pairs = many.added(HPC_LAUNCH).into_iter().zip(few.added(HPC_LAUNCH));
            let pairs: Vec<(f64, f64)> =
                pairs.filter_map(|(m, f)| Some((m? / to as f64, f? / from as f64))).collect();
            Some(Growth { ranks, from, to, ratio: ratio_estimate(&pairs)? })
        })
        .collect()
}

/// What each rank beyond a host's first adds, hpc-launch's against the stand-in's: where there are most hosts, between
/// the least and the most ranks.
pub fn joining_against_unshare(sizes: &[Size]) -> Option<Estimate> {
    let hosts = sizes.iter().map(|size| size.hosts).max()?;
    let mut of: Vec<&Size> = sizes.iter().filter(|size| size.hosts == hosts).collect();
    of.sort_unstable_by_key(|size| size.ranks);
    let (few, many) = (of.first()?, of.last().filter(|last| last.ranks > of[0].ranks)?);
    let slope = |name: &str| -> Vec<Option<f64>> {
        let pairs = many.added(name).into_iter().zip(few.added(name));
        pairs.map(|(many, few)| Some(many? - few?)).collect()
    };
    let pairs = slope(HPC_LAUNCH).into_iter().zip(slope(UNSHARE));
    let pairs: Vec<(f64, f64)> = pairs.filter_map(|(ours, theirs)| Some((ours?, theirs?))).collect();
    ratio_estimate(&pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Failure;

    fn row(name: &str, samples: &[f64]) -> Measured<f64> {
        // A negative sample stands for a failed run.
        let failed = || Failure::new("exit 1", "");
        let outcomes = samples.iter().map(|ms| if *ms < 0.0 { Err(failed()) } else { Ok(*ms) });
        Measured { name: name.into(), command: String::new(), outcomes: Ok(outcomes.collect()) }
    }

    fn size(hosts: usize, ranks: usize, unshare: f64, ours: f64) -> Size {
        let bare = (10 * hosts) as f64;
        let rows = vec![
            row(BARE, &[bare, bare, bare]),
            row(BARE_AGAIN, &[bare, bare + 2.0, bare]),
            row(UNSHARE, &[bare + unshare; 3]),
            row(HPC_LAUNCH, &[bare + ours, bare + ours + 1.0, -1.0]),
        ];
        Size { hosts, ranks, rows }
    }

    #[test]
    fn what_is_added_is_by_round_and_a_failed_run_adds_nothing() {
        let size = size(4, 2, 6.0, 8.0);
        assert_eq!(size.added(HPC_LAUNCH), [Some(8.0), Some(8.0), None]);
        let added = size.share(HPC_LAUNCH).unwrap();
        assert_eq!((added.per_host.value, added.per_rank.value, added.per_host.samples), (2.0, 1.0, 2));
        assert_eq!(size.bare_launch().unwrap().ms, 40.0);
        assert!(size.share("no such row").is_none());
    }

    #[test]
    fn growth_is_from_where_all_processors_are_busy() {
        let sizes =
            [size(1, 1, 1.0, 9.0), size(4, 1, 4.0, 4.0), size(16, 1, 16.0, 20.0), size(64, 1, 64.0, 128.0)];
        let growth = growth(&sizes, 2);
        assert_eq!(growth.len(), 1);
        assert_eq!((growth[0].from, growth[0].to, growth[0].ratio.value), (4, 64, 2.0));
        assert!(super::growth(&sizes, 64).is_empty());
        assert!(super::growth(&sizes[..2], 2).is_empty());
    }

    #[test]
    fn joining_is_what_more_ranks_add() {
        let sizes = [size(4, 1, 4.0, 8.0), size(4, 16, 64.0, 38.0), size(1, 16, 5.0, 500.0)];
        assert_eq!(joining_against_unshare(&sizes).unwrap().value, 0.5);
        assert_eq!(joining_against_unshare(&sizes[..1]), None);
    }
}

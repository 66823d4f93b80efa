//! What launch times would be on more nodes than there are here: fits by least squares, and what follows from them
//! under assumptions that are written down with every result.

/// A launch as it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launch {
    /// Nodes.
    pub hosts: usize,
    /// Ranks on each.
    pub ranks: usize,
    /// Wall time of the job, or what was added to it, in milliseconds.
    pub ms: f64,
}

/// The bare launch: `fixed + per_host × hosts + per_rank × ranks of all hosts`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bare {
    /// Milliseconds, whatever the size.
    pub fixed: f64,
    /// Milliseconds for each host.
    pub per_host: f64,
    /// Milliseconds for each rank.
    pub per_rank: f64,
    /// The median distance of a measured size from the fit, as a share of it.
    pub off: f64,
}

/// What a container adds: `first × hosts + joining × (ranks of all hosts − hosts)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Added {
    /// Milliseconds for the first rank of each host.
    pub first: f64,
    /// Milliseconds for each of its other ranks.
    pub joining: f64,
    /// The median distance of a measured size from the fit, as a share of it.
    pub off: f64,
}

/// Fits the bare launch; none of too few sizes.
pub fn bare(launches: &[Launch]) -> Option<Bare> {
    let rows = launches.iter().map(|l| ([1.0, l.hosts as f64, (l.hosts * l.ranks) as f64], l.ms));
    let [fixed, per_host, per_rank] = least_squares(rows)?;
    let fitted = |l: &Launch| fixed + per_host * l.hosts as f64 + per_rank * (l.hosts * l.ranks) as f64;
    Some(Bare { fixed, per_host, per_rank, off: off(launches, fitted) })
}

/// Fits what is added; none of too few sizes, or where noise makes one of the two a gain. Sizes at which nothing was
/// added do not count.
pub fn added(launches: &[Launch]) -> Option<Added> {
    let parts = |l: &Launch| [l.hosts as f64, (l.hosts * (l.ranks - 1)) as f64];
    let [first, joining] = least_squares(launches.iter().map(|l| (parts(l), l.ms)))?;
    if first <= 0.0 || joining <= 0.0 {
        return None;
    }
    let fitted = |l: &Launch| first * parts(l)[0] + joining * parts(l)[1];
    Some(Added { first, joining, off: off(launches, fitted) })
}

fn off(launches: &[Launch], fitted: impl Fn(&Launch) -> f64) -> f64 {
    let mut shares: Vec<f64> = launches.iter().map(|l| (l.ms / fitted(l) - 1.0).abs()).collect();
    crate::stats::median(&mut shares).unwrap_or(f64::NAN)
}

/// Least squares of relative distances: times span two orders of magnitude, and so does their noise. By the normal
/// equations, which are good enough for three unknowns of like size.
fn least_squares<const N: usize>(rows: impl Iterator<Item = ([f64; N], f64)>) -> Option<[f64; N]> {
    let (mut matrix, mut right) = ([[0.0; N]; N], [0.0; N]);
    for (x, y) in rows.filter(|(_, y)| *y > 0.0) {
        let weight = 1.0 / (y * y);
        for i in 0..N {
            right[i] += weight * x[i] * y;
            for j in 0..N {
                matrix[i][j] += weight * x[i] * x[j];
            }
        }
    }
    solve(matrix, right)
}

/// Gauss with pivots; none where the rows do not tell the unknowns apart.
fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N]) -> Option<[f64; N]> {
    for column in 0..N {
        let largest =
            (column..N).max_by(|a, b| matrix[*a][column].abs().total_cmp(&matrix[*b][column].abs()))?;
        matrix.swap(column, largest);
        right.swap(column, largest);
        let pivot = matrix[column];
        // Columns are of the same kind, so what is left of a dependent one is rounding.
        if pivot[column].abs() < 1e-12 * pivot.iter().fold(1e-300, |most: f64, x| most.max(x.abs())) {
            return None;
        }
        for row in column + 1..N {
            let factor = matrix[row][column] / pivot[column];
            for (cell, above) in matrix[row].iter_mut().zip(pivot) {
                *cell -= factor * above;
            }
            right[row] -= factor * right[column];
        }
    }
    let mut solution = [0.0; N];
    for row in (0..N).rev() {
        let known: f64 = (row + 1..N).map(|column| matrix[row][column] * solution[column]).sum();
        solution[row] = (right[row] - known) / matrix[row][row];
    }
    solution.iter().all(|x: &f64| x.is_finite()).then_some(solution)
}

/// What a node asks of the file system that the image is on, as counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    /// By the launcher, for its first rank: look-ups, opens.
    pub first: usize,
    /// By the launcher, for each further rank.
    pub joining: usize,
    /// By the program and its loader, for each rank.
    pub program: usize,
}

/// What is assumed of a larger machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Nodes.
    pub nodes: usize,
    /// Ranks on each.
    pub ranks: usize,
    /// Processors here: measured wall time times this is processor time, for here all of them were busy.
    pub processors_here: usize,
    /// Metadata operations that the file system's servers do in a second, all together.
    pub server: f64,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launched {
    /// Milliseconds that each node adds if its ranks start beside each other, and (`node_serial`) one after the other.
    /// Nodes do that at the same time.
    pub node: f64,
    /// See `node`.
    pub node_serial: f64,
    /// Operations of all nodes, where a node's clients remember what they have looked up.
    pub operations: f64,
    /// The same where they ask again for every rank.
    pub operations_uncached: f64,
    /// Seconds that the servers need for them.
    pub server_seconds: f64,
    /// The same, uncached.
    pub server_seconds_uncached: f64,
}

impl Machine {
    /// Extrapolates.
    pub fn launch(&self, added: &Added, operations: &Operations) -> Launched {
        let (processors, joining) = (self.processors_here as f64, self.ranks.saturating_sub(1));
        let first = added.first * processors;
        let each = added.joining * processors;
        let once = operations.first + operations.joining * joining + operations.program;
        let always = operations.first + operations.joining * joining + operations.program * self.ranks;
        let all = |per_node: usize| per_node as f64 * self.nodes as f64;
        Launched {
            node: first + if joining > 0 { each } else { 0.0 },
            node_serial: first + each * joining as f64,
            operations: all(once),
            operations_uncached: all(always),
            server_seconds: all(once) / self.server,
            server_seconds_uncached: all(always) / self.server,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> impl Iterator<Item = (usize, usize)> {
        [1, 4, 16, 64].into_iter().flat_map(|hosts| [1, 2, 4, 8, 16].map(move |ranks| (hosts, ranks)))
    }

    #[test]
    fn a_launch_that_follows_the_formula_is_fitted_exactly() {
        let launches: Vec<Launch> = sizes()
            .map(|(hosts, ranks)| Launch {
                hosts,
                ranks,
                ms: 7.0 + 5.0 * hosts as f64 + 0.75 * (hosts * ranks) as f64,
            })
            .collect();
        let fit = bare(&launches).unwrap();
        assert!((fit.fixed - 7.0).abs() < 1e-6 && (fit.per_host - 5.0).abs() < 1e-6, "{fit:?}");
        assert!((fit.per_rank - 0.75).abs() < 1e-6 && fit.off < 1e-6, "{fit:?}");
    }

    #[test]
    fn first_and_joining_ranks_are_told_apart_in_noise() {
        let mut prng = crate::stats::Prng::new(6);
        let launches: Vec<Launch> = sizes()
            .map(|(hosts, ranks)| {
                let noise = 0.95 + prng.below(1000) as f64 / 10_000.0;
                Launch { hosts, ranks, ms: noise * (hosts as f64 * 1.2 + (hosts * (ranks - 1)) as f64 * 0.3) }
            })
            .collect();
        let fit = added(&launches).unwrap();
        assert!((fit.first - 1.2).abs() < 0.1 && (fit.joining - 0.3).abs() < 0.03, "{fit:?}");
        assert!(fit.off > 0.0 && fit.off < 0.1, "{fit:?}");
    }

    #[test]
    fn sizes_that_do_not_tell_apart_give_no_fit() {
        let same = [Launch { hosts: 4, ranks: 2, ms: 9.0 }; 5];
        assert_eq!(bare(&same), None);
        assert_eq!(added(&same), None);
        assert_eq!(added(&[]), None);
        let noise = [(4, 1, 6.0), (4, 4, 4.0), (16, 1, 30.0), (16, 4, 15.0)];
        assert_eq!(added(&noise.map(|(hosts, ranks, ms)| Launch { hosts, ranks, ms })), None);
    }

    #[test]
    fn nothing_added_by_noise_is_left_out() {
        let mut launches: Vec<Launch> = sizes()
            .map(|(hosts, ranks)| Launch {
                hosts,
                ranks,
                ms: hosts as f64 + 0.5 * (hosts * (ranks - 1)) as f64,
            })
            .collect();
        launches[0].ms = -0.4;
        let fit = added(&launches).unwrap();
        assert!((fit.first - 1.0).abs() < 1e-9 && (fit.joining - 0.5).abs() < 1e-9, "{fit:?}");
    }

    #[test]
    fn nodes_work_at_the_same_time_and_servers_for_all_of_them() {
        let added = Added { first: 1.0, joining: 0.25, off: 0.0 };
        let operations = Operations { first: 60, joining: 0, program: 5 };
        let machine = Machine { nodes: 10_000, ranks: 128, processors_here: 2, server: 50_000.0 };
        let launched = machine.launch(&added, &operations);
        assert_eq!((launched.node, launched.node_serial), (2.5, 2.0 + 127.0 * 0.5));
        assert_eq!((launched.operations, launched.server_seconds), (650_000.0, 13.0));
        assert_eq!(launched.operations_uncached, 10_000.0 * (60.0 + 5.0 * 128.0));
        let alone = Machine { nodes: 1, ranks: 1, ..machine }.launch(&added, &operations);
        assert_eq!((alone.node, alone.node_serial), (2.0, 2.0));
        assert_eq!(Machine { nodes: 20_000, ..machine }.launch(&added, &operations).node, launched.node);
    }
}

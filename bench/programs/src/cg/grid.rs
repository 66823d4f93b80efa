//! The points of a box, and which rank has which: blocks as near to cubes as the number of ranks allows.

use std::f64::consts::PI;
use std::ops::Range;
use std::str::FromStr;

/// Points along x, y and z.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extents(pub [usize; 3]);

impl Extents {
    /// All of them.
    pub fn points(self) -> usize {
        self.0.iter().product()
    }
}

impl FromStr for Extents {
    type Err = String;

    /// `64x64x32`. Local indices are 32 bits wide, as HPCG's.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> = text.split('x').map(|word| word.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[x, y, z]) if x > 0 && y > 0 && z > 0 => {
                let points = x.checked_mul(y).and_then(|plane| plane.checked_mul(z));
                match points {
                    Some(points) if points <= 1 << 40 => Ok(Extents([x, y, z])),
                    _ => Err(format!("{text} are more than 2^40 points")),
                }
            }
            _ => Err(format!("{text:?} is no grid: write NXxNYxNZ, such as 64x64x32")),
        }
    }
}

/// How the box is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// All points.
    pub global: Extents,
    /// Ranks along x, y and z.
    pub ranks: [usize; 3],
}

impl Grid {
    /// Every rank gets a block of `local`.
    pub fn weak(local: Extents, ranks: usize) -> Result<Self, String> {
        let cut = factors(ranks, |_| true).ok_or("no ranks")?;
        let global = Extents(std::array::from_fn(|axis| local.0[axis] * cut[axis]));
        Grid { global, ranks: cut }.checked()
    }

    /// The ranks share `global`; blocks differ by at most one point along each axis.
    pub fn strong(global: Extents, ranks: usize) -> Result<Self, String> {
        let fits = |cut: &[usize; 3]| (0..3).all(|axis| cut[axis] <= global.0[axis]);
        let [x, y, z] = global.0;
        let cut = factors(ranks, fits).ok_or_else(|| {
            format!("{ranks} ranks cannot share {x}x{y}x{z} points in blocks: give a larger grid")
        })?;
        Grid { global, ranks: cut }.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let most = (0..3).map(|axis| self.global.0[axis].div_ceil(self.ranks[axis]) + 2).product::<usize>();
        if u32::try_from(most).is_err() {
            return Err(format!("{most} points on one rank are more than its 32-bit indices reach"));
        }
        Ok(self)
    }

    /// Where rank `rank` sits.
    pub fn place(&self, rank: usize) -> [usize; 3] {
        let [x, y, _] = self.ranks;
        [rank % x, rank / x % y, rank / (x * y)]
    }

    /// The rank that sits `step` from `place`, if there is one.
    pub fn neighbour(&self, place: [usize; 3], step: [isize; 3]) -> Option<usize> {
        let mut at = [0; 3];
        for axis in 0..3 {
            at[axis] = place[axis].checked_add_signed(step[axis]).filter(|at| *at < self.ranks[axis])?;
        }
        Some(at[0] + self.ranks[0] * (at[1] + self.ranks[1] * at[2]))
    }

    /// The points along one axis that the block at `place` has.
    pub fn range(&self, axis: usize, place: usize) -> Range<usize> {
        let (points, blocks) = (self.global.0[axis], self.ranks[axis]);
        points * place / blocks..points * (place + 1) / blocks
    }

    /// The block of rank `rank`, along each axis.
    pub fn block(&self, rank: usize) -> [Range<usize>; 3] {
        let place = self.place(rank);
        std::array::from_fn(|axis| self.range(axis, place[axis]))
    }

    /// The numbers of rank `rank`'s points within the whole box, in the order of its rows.
    pub fn own_indices(&self, rank: usize) -> impl Iterator<Item = usize> {
        let [xs, ys, zs] = self.block(rank);
        let [width, depth, _] = self.global.0;
        zs.flat_map(move |z| {
            let xs = xs.clone();
            ys.clone().flat_map(move |y| xs.clone().map(move |x| x + width * (y + depth * z)))
        })
    }

    /// Entries of the whole matrix that are not 0: a point has 3 neighbours along an axis, itself included, and
    /// 2 at an end.
    pub fn nonzeros(&self) -> usize {
        self.global.0.iter().map(|points| if *points == 1 { 1 } else { 3 * points - 2 }).product()
    }

    /// The matrix is 27 I − T⊗T⊗T with T = tridiag(1, 1, 1), whose eigenvalues are 1 + 2 cos(kπ/(n + 1)); the
    /// product of three of them is largest for k = 1.
    pub fn least_eigenvalue(&self) -> f64 {
        let largest = |points: &usize| 1.0 + 2.0 * (PI / (*points as f64 + 1.0)).cos();
        27.0 - self.global.0.iter().map(largest).product::<f64>()
    }
}

/// Three factors of `ranks` with the least sum (so with the least surface of a cube's block), the largest first
/// along x; `None` where none `fits`.
fn factors(ranks: usize, fits: impl Fn(&[usize; 3]) -> bool) -> Option<[usize; 3]> {
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    divisors(ranks)
        .flat_map(|x| divisors(ranks / x).map(move |y| [x, y, ranks / x / y]))
        .filter(fits)
        .min_by_key(|[x, y, z]| (x + y + z, std::cmp::Reverse(*x), std::cmp::Reverse(*y)))
}

/// A number in [0, 1) that depends on the point alone: the same problem however it is cut.
pub fn noise(index: usize, seed: u64) -> f64 {
    let mut z = (index as u64).wrapping_add(seed << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_in_words() {
        assert_eq!("4x5x6".parse(), Ok(Extents([4, 5, 6])));
        for wrong in ["", "4", "4x4", "4x4x0", "4x4x4x4", "-1x4x4", "99999999x99999999x99999999"] {
            assert!(wrong.parse::<Extents>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranks_form_the_nearest_to_a_cube() {
        let cut = |ranks| factors(ranks, |_| true).unwrap();
        assert_eq!(cut(1), [1, 1, 1]);
        assert_eq!(cut(4), [2, 2, 1]);
        assert_eq!(cut(8), [2, 2, 2]);
        assert_eq!(cut(12), [3, 2, 2]);
        assert_eq!(cut(7), [7, 1, 1]);
    }

    #[test]
    fn blocks_cover_the_box_once() {
        for ranks in [1, 2, 3, 4, 6, 8, 12] {
            let grid = Grid::strong(Extents([7, 5, 13]), ranks).unwrap();
            let mut seen: Vec<usize> = (0..ranks).flat_map(|rank| grid.own_indices(rank)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..7 * 5 * 13).collect::<Vec<_>>(), "{ranks} ranks");
        }
    }

    #[test]
    fn more_ranks_than_points_along_an_axis_are_cut_elsewhere_or_refused() {
        assert_eq!(Grid::strong(Extents([1, 1, 8]), 4).unwrap().ranks, [1, 1, 4]);
        assert!(Grid::strong(Extents([2, 2, 2]), 16).unwrap_err().contains("16 ranks cannot share 2x2x2"));
        assert!(Grid::weak(Extents([2000, 2000, 2000]), 1).is_err());
    }

    #[test]
    fn weak_scaling_gives_each_rank_the_same() {
        let grid = Grid::weak(Extents([4, 5, 6]), 12).unwrap();
        assert_eq!(grid.global, Extents([12, 10, 12]));
        assert!((0..12).all(|rank| grid.own_indices(rank).count() == 120));
    }

    #[test]
    fn neighbours_are_mutual() {
        let grid = Grid::weak(Extents([2, 2, 2]), 12).unwrap();
        assert_eq!(grid.neighbour([0, 0, 0], [-1, 0, 0]), None);
        assert_eq!(grid.neighbour(grid.place(0), [1, 1, 1]), Some(1 + 3 * (1 + 2)));
        assert_eq!(grid.neighbour(grid.place(10), [-1, -1, -1]), Some(0));
    }

    #[test]
    fn the_least_eigenvalue_of_one_point_is_its_diagonal() {
        let one = Grid::weak(Extents([1, 1, 1]), 1).unwrap();
        assert!((one.least_eigenvalue() - 26.0).abs() < 1e-12);
        assert_eq!(one.nonzeros(), 1);
        let larger = Grid::weak(Extents([64, 64, 64]), 1).unwrap().least_eigenvalue();
        assert!((0.0..0.1).contains(&larger), "{larger}");
    }

    #[test]
    fn noise_is_spread() {
        let mean = (0..10_000).map(|index| noise(index, 1)).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!((0..100).any(|index| noise(index, 1) != noise(index, 2)));
    }
}

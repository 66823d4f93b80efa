//! The rows of one rank: values and columns as HPCG keeps them, 27 places for each row.

use super::grid::Grid;
use super::halo::{Halo, steps};

/// Entries of a row at most.
const MOST: usize = 27;

/// One rank's rows. Columns are places of a vector with outer points ([`Halo`]).
#[derive(Debug)]
pub struct Matrix {
    values: Vec<f64>,
    columns: Vec<u32>,
    lengths: Vec<u8>,
    /// What all ones give: 26 less the number of neighbours, by the grid's own reckoning.
    pub right_side: Vec<f64>,
}

impl Matrix {
    /// Of rank `rank`.
    pub fn build(grid: &Grid, rank: usize) -> Self {
        let halo = Halo::build(grid, rank);
        let block = grid.block(rank);
        let extents = block.clone().map(|range| range.len() as isize);
        let rows: usize = block.iter().map(|range| range.len()).product();
        let mut matrix = Matrix {
            values: Vec::with_capacity(rows * MOST),
            columns: Vec::with_capacity(rows * MOST),
            lengths: Vec::with_capacity(rows),
            right_side: Vec::with_capacity(rows),
        };
        for z in 0..extents[2] {
            for y in 0..extents[1] {
                for x in 0..extents[0] {
                    matrix.add_row(&halo, [x, y, z], extents);
                    let place = |axis: usize, at: isize| block[axis].start + at as usize;
                    matrix.right_side.push(right_side(grid, [place(0, x), place(1, y), place(2, z)]));
                }
            }
        }
        matrix
    }

    /// How many there are.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// `into` = A · `vector`.
    pub fn multiply(&self, vector: &[f64], into: &mut [f64]) {
        let (values, columns) = (self.values.chunks_exact(MOST), self.columns.chunks_exact(MOST));
        for (((values, columns), length), out) in values.zip(columns).zip(&self.lengths).zip(into) {
            let length = usize::from(*length);
            let entries = values[..length].iter().zip(&columns[..length]);
            *out = entries.map(|(value, column)| value * vector[*column as usize]).sum();
        }
    }

    fn add_row(&mut self, halo: &Halo, at: [isize; 3], extents: [isize; 3]) {
        let start = self.values.len();
        for step in steps() {
            let to: [isize; 3] = std::array::from_fn(|axis| at[axis] + step[axis]);
            let Some(column) = column(halo, to, extents) else { continue };
            self.values.push(if step == [0; 3] { 26.0 } else { -1.0 });
            self.columns.push(column);
        }
        self.lengths.push((self.values.len() - start) as u8);
        self.values.resize(start + MOST, 0.0);
        self.columns.resize(start + MOST, 0);
    }
}

/// The place of the point `at`, counted from the block's first; `None` outside of the whole box.
fn column(halo: &Halo, at: [isize; 3], extents: [isize; 3]) -> Option<u32> {
    let step: [isize; 3] =
        std::array::from_fn(|axis| isize::from(at[axis] >= extents[axis]) - isize::from(at[axis] < 0));
    if step == [0; 3] {
        return Some((at[0] + extents[0] * (at[1] + extents[1] * at[2])) as u32);
    }
    // Along an axis that is stepped over there is one layer, in the others the block's own extent.
    let edge = halo.edges.iter().find(|edge| edge.step == step)?;
    let mut offset = 0;
    for axis in [2, 1, 0] {
        if step[axis] == 0 {
            offset = offset * extents[axis] + at[axis];
        }
    }
    Some((edge.receive.start as isize + offset) as u32)
}

fn right_side(grid: &Grid, at: [usize; 3]) -> f64 {
    let along = |axis: usize| {
        let (at, points) = (at[axis], grid.global.0[axis]);
        1 + usize::from(at > 0) + usize::from(at + 1 < points)
    };
    let around = along(0) * along(1) * along(2) - 1;
    26.0 - around as f64
}

#[cfg(test)]
mod tests {
    use super::super::grid::{Extents, noise};
    use super::*;

    fn exchange(grid: &Grid, ranks: usize, global: &[f64]) -> Vec<Vec<f64>> {
        let halos: Vec<Halo> = (0..ranks).map(|rank| Halo::build(grid, rank)).collect();
        let own = |rank| -> Vec<f64> { grid.own_indices(rank).map(|index| global[index]).collect() };
        halos
            .iter()
            .enumerate()
            .map(|(rank, halo)| {
                let mut vector = own(rank);
                for edge in &halo.edges {
                    let back = edge.step.map(|step| -step);
                    let theirs = halos[edge.rank].edges.iter().find(|edge| edge.step == back).unwrap();
                    let from = own(edge.rank);
                    vector.extend(theirs.send.iter().map(|row| from[*row as usize]));
                }
                vector
            })
            .collect()
    }

    fn product(extents: Extents, ranks: usize, vector: impl Fn(usize) -> f64) -> Vec<f64> {
        let grid = Grid::strong(extents, ranks).unwrap();
        let global: Vec<f64> = (0..extents.points()).map(vector).collect();
        let mut result = vec![0.0; global.len()];
        for (rank, vector) in exchange(&grid, ranks, &global).iter().enumerate() {
            let matrix = Matrix::build(&grid, rank);
            let mut into = vec![0.0; matrix.rows()];
            matrix.multiply(vector, &mut into);
            for (index, value) in grid.own_indices(rank).zip(into) {
                result[index] = value;
            }
        }
        result
    }

    #[test]
    fn cutting_the_box_does_not_change_the_product() {
        let extents = Extents([6, 5, 7]);
        let whole = product(extents, 1, |index| noise(index, 1));
        for ranks in [2, 4, 6, 8, 12, 30] {
            assert_eq!(product(extents, ranks, |index| noise(index, 1)), whole, "{ranks} ranks");
        }
    }

    #[test]
    fn all_ones_give_the_right_side() {
        let extents = Extents([4, 3, 5]);
        let grid = Grid::strong(extents, 1).unwrap();
        let matrix = Matrix::build(&grid, 0);
        assert_eq!(product(extents, 1, |_| 1.0), matrix.right_side);
        assert_eq!(matrix.lengths.iter().map(|n| usize::from(*n)).sum::<usize>(), grid.nonzeros());
        // A corner has 7 neighbours, a point within has 26.
        assert_eq!((matrix.right_side[0], matrix.right_side[4 + 1 + 12]), (19.0, 0.0));
    }
}

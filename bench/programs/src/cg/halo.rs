//! The points around a block that other ranks have: up to 26 messages each way, as HPCG's ExchangeHalo.
//!
//! A vector holds a rank's own points first, then the outer ones, neighbour by neighbour.

use super::grid::Grid;
use mpi::request::WaitGuard;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::{Destination, Source};
use std::ops::Range;

/// Tag of the halo's messages.
const TAG: i32 = 27;

/// The 27 steps to a point's neighbours and itself.
pub fn steps() -> impl Iterator<Item = [isize; 3]> {
    (-1..=1).flat_map(|z| (-1..=1).flat_map(move |y| (-1..=1).map(move |x| [x, y, z])))
}

/// What is exchanged with one neighbour.
#[derive(Debug, PartialEq, Eq)]
pub struct Edge {
    /// Its rank.
    pub rank: usize,
    /// In which direction it lies.
    pub step: [isize; 3],
    /// Our rows that it needs.
    pub send: Vec<u32>,
    /// Where its points are in our vectors.
    pub receive: Range<usize>,
}

/// All that is exchanged.
#[derive(Debug)]
pub struct Halo {
    /// In the order of [`steps`].
    pub edges: Vec<Edge>,
    own: usize,
    packed: Vec<Vec<f64>>,
}

impl Halo {
    /// Of rank `rank`.
    pub fn build(grid: &Grid, rank: usize) -> Self {
        let extents = grid.block(rank).map(|range| range.len());
        let place = grid.place(rank);
        let own = extents.iter().product();
        let mut end = own;
        let mut edges = Vec::new();
        for step in steps().filter(|step| *step != [0; 3]) {
            let Some(neighbour) = grid.neighbour(place, step) else { continue };
            // Across the step both have the same extent: blocks of a row, column or plane are cut alike.
            let send = side(extents, step);
            let start = end;
            end += send.len();
            edges.push(Edge { rank: neighbour, step, send, receive: start..end });
        }
        let packed = edges.iter().map(|edge| vec![0.0; edge.send.len()]).collect();
        Halo { edges, own, packed }
    }

    /// Of a vector with its outer points.
    pub fn length(&self) -> usize {
        self.edges.last().map_or(self.own, |edge| edge.receive.end)
    }

    /// Brings the outer points of `vector` up to date.
    pub fn fetch(&mut self, world: &SimpleCommunicator, vector: &mut [f64]) {
        let (own, mut outer) = vector.split_at_mut(self.own);
        for (edge, packed) in self.edges.iter().zip(&mut self.packed) {
            for (slot, row) in packed.iter_mut().zip(&edge.send) {
                *slot = own[*row as usize];
            }
        }
        let mut parts = Vec::with_capacity(self.edges.len());
        for edge in &self.edges {
            let (part, rest) = outer.split_at_mut(edge.receive.len());
            parts.push(part);
            outer = rest;
        }
        mpi::request::scope(|scope| {
            // A message is told by where it comes from in the receiver's eyes: the opposite of the sender's step.
            let receives: Vec<_> = self
                .edges
                .iter()
                .zip(parts)
                .map(|(edge, part)| {
                    let from = world.process_at_rank(edge.rank as i32);
                    WaitGuard::from(from.immediate_receive_into_with_tag(scope, part, TAG))
                })
                .collect();
            for (edge, packed) in self.edges.iter().zip(&self.packed) {
                world.process_at_rank(edge.rank as i32).send_with_tag(&packed[..], TAG);
            }
            drop(receives);
        });
    }
}

/// The rows of a block that touch its side, edge or corner in the direction `step`, in their order.
fn side(extents: [usize; 3], step: [isize; 3]) -> Vec<u32> {
    let [xs, ys, zs]: [Range<usize>; 3] = std::array::from_fn(|axis| match step[axis] {
        -1 => 0..1,
        0 => 0..extents[axis],
        _ => extents[axis] - 1..extents[axis],
    });
    let [width, depth, _] = extents;
    let mut rows = Vec::new();
    for z in zs {
        for y in ys.clone() {
            rows.extend(xs.clone().map(|x| (x + width * (y + depth * z)) as u32));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::grid::Extents;
    use super::*;

    #[test]
    fn sides_edges_and_corners() {
        assert_eq!(side([2, 3, 2], [-1, 0, 0]), [0, 2, 4, 6, 8, 10]);
        assert_eq!(side([2, 3, 2], [1, 1, 0]), [5, 11]);
        assert_eq!(side([2, 3, 2], [1, 1, 1]), [11]);
    }

    #[test]
    fn what_one_sends_is_what_the_other_expects() {
        let grid = Grid::strong(Extents([7, 5, 9]), 12).unwrap();
        for rank in 0..12 {
            for edge in Halo::build(&grid, rank).edges {
                let other = Halo::build(&grid, edge.rank);
                let back = edge.step.map(|step| -step);
                let theirs = other.edges.iter().find(|theirs| theirs.step == back).unwrap();
                assert_eq!((theirs.rank, theirs.send.len()), (rank, edge.receive.len()));
            }
        }
    }

    #[test]
    fn a_rank_in_the_middle_has_26_neighbours() {
        let grid = Grid::weak(Extents([2, 2, 2]), 27).unwrap();
        let halo = Halo::build(&grid, 13);
        assert_eq!((halo.edges.len(), halo.length()), (26, 4 * 4 * 4));
        assert_eq!(Halo::build(&grid, 0).edges.len(), 7);
    }
}

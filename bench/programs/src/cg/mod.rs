//! `cg`: conjugate gradient on a 27-point stencil, as the core of HPCG without its preconditioner.
//!
//! The matrix has 26 on its diagonal and -1 for each of up to 26 neighbours; the right side is such that all
//! ones solve it. It is stored row by row, as HPCG stores it: the product reads memory, it does not only compute.

pub mod grid;
mod halo;
mod matrix;
mod solve;

use crate::cli::Cg;
use crate::job::Job;
use crate::output::Output;
use grid::{Extents, Grid};
use halo::Halo;
use matrix::Matrix;
use mpi::collective::{CommunicatorCollectives, SystemOperation};
use solve::{Solution, Stop};

/// Points of each rank where nothing is said.
const LOCAL: Extents = Extents([32, 32, 32]);
/// HPCG's: twice the diagonal, about the matrix's norm.
const NORM: f64 = 2.0 * 26.0;
/// What rounding alone may add to a relative error of the solution.
const ROUNDING: f64 = 1e-10;

impl Cg {
    /// The decomposition over `ranks`, or why there is none.
    pub fn grid(&self, ranks: usize) -> Result<Grid, String> {
        match self.global {
            Some(global) => Grid::strong(global, ranks),
            None => Grid::weak(self.local.unwrap_or(LOCAL), ranks),
        }
    }
}

/// One rank's part of the problem.
struct Part<'a> {
    job: &'a Job,
    matrix: Matrix,
    halo: Halo,
}

impl Part<'_> {
    fn sum(&self, mine: f64) -> f64 {
        let mut all = 0.0;
        self.job.world().all_reduce_into(&mine, &mut all, SystemOperation::sum());
        all
    }

    fn most(&self, mine: f64) -> f64 {
        let mut all = 0.0;
        self.job.world().all_reduce_into(&mine, &mut all, SystemOperation::max());
        all
    }

    fn dot(&self, a: &[f64], b: &[f64]) -> f64 {
        self.sum(a.iter().zip(b).map(|(a, b)| a * b).sum())
    }

    /// `into` = A · `vector`; the vector's outer points are fetched first.
    fn multiply(&mut self, vector: &mut [f64], into: &mut [f64]) {
        self.halo.fetch(self.job.world(), vector);
        self.matrix.multiply(vector, into);
    }
}

/// Solves, checks, reports; ends the job if something is wrong.
pub fn run(job: &Job, options: &Cg, spoil: bool, out: &mut Output) {
    let grid = match options.grid(job.ranks()) {
        Ok(grid) => grid,
        // `Cli::check` has asked the same already.
        Err(why) => return job.require("cg", 0, Err(why)),
    };
    let rows = grid.global.points();
    let matrix = Matrix::build(&grid, job.rank());
    let mut part = Part { job, halo: Halo::build(&grid, job.rank()), matrix };

    let departure = symmetry(&mut part, &grid);
    out.result("cg.symmetry", rows, departure, "1");
    job.require("cg", rows, must("the departure from symmetry", departure, 1.0));

    let stop = match options.iterations {
        Some(count) => Stop::After(count),
        None => Stop::Below { tolerance: options.tolerance, most: options.most },
    };
    let right = part.matrix.right_side.clone();
    let mut solution = solve::solve(&mut part, &right, stop);
    if spoil {
        solution.x[0] += 1.0;
    }
    report(&mut part, &grid, &right, &mut solution, out);
    if let Stop::Below { tolerance, .. } = stop {
        job.require("cg", rows, must("the residual", solution.residual, tolerance));
    }
}

/// |x·Ay − y·Ax| as HPCG scales it: at most 1 where only rounding is at work.
fn symmetry(part: &mut Part<'_>, grid: &Grid) -> f64 {
    let length = part.halo.length();
    let mut x = vec![0.0; length];
    let mut y = vec![0.0; length];
    for (row, index) in grid.own_indices(part.job.rank()).enumerate() {
        (x[row], y[row]) = (grid::noise(index, 1), grid::noise(index, 2));
    }
    let rows = part.matrix.rows();
    let (mut ax, mut ay) = (vec![0.0; rows], vec![0.0; rows]);
    part.multiply(&mut x, &mut ax);
    part.multiply(&mut y, &mut ay);
    let (x, y) = (&x[..rows], &y[..rows]);
    let difference = part.dot(x, &ay) - part.dot(y, &ax);
    let norms = part.dot(x, x).sqrt() * part.dot(y, y).sqrt();
    difference.abs() / (2.0 * norms * NORM * f64::EPSILON)
}

/// What was measured, and whether it is right. That the residual is small says little where the matrix itself
/// is spoilt by a wrong halo: the right side comes from the grid alone, and the solution is known.
fn report(part: &mut Part<'_>, grid: &Grid, right: &[f64], solution: &mut Solution, out: &mut Output) {
    let (job, size, rows) = (part.job, grid.global.points(), part.matrix.rows());
    let iterations = solution.iterations;
    let seconds = part.most(solution.seconds);
    let operations = grid.nonzeros() as f64 * 2.0 + size as f64 * 10.0;
    out.result("cg.time", size, seconds, "s");
    out.result("cg.rate", size, operations * f64::from(iterations) / seconds / 1e9, "GFLOP/s");
    out.result("cg.iterations", size, f64::from(iterations), "1");
    out.result("cg.residual", size, solution.residual, "1");

    let mut product = vec![0.0; rows];
    part.multiply(&mut solution.x, &mut product);
    let left: f64 = right.iter().zip(&product).map(|(b, ax)| (b - ax).powi(2)).sum();
    let left = (part.sum(left) / part.dot(right, right)).sqrt();
    let drift = (left - solution.residual).abs();
    job.require("cg", size, must("the drift of the residual", drift, 1e-9));

    let error: f64 = solution.x[..rows].iter().map(|x| (x - 1.0).powi(2)).sum();
    let error = (part.sum(error) / size as f64).sqrt();
    // ‖x − 1‖ ≤ ‖A⁻¹‖ ‖b − Ax‖, whatever the iteration did.
    let norm = (part.dot(right, right) / size as f64).sqrt();
    let bound = left * norm / grid.least_eigenvalue() * 1.001 + ROUNDING / grid.least_eigenvalue();
    out.result("cg.error", size, error, "1");
    out.result("cg.bound", size, bound, "1");
    job.require("cg", size, must("the error of the solution", error, bound));
}

/// NaN is above every limit.
fn must(what: &str, value: f64, limit: f64) -> Result<(), String> {
    if value <= limit { Ok(()) } else { Err(format!("{what} is {value:.3e}, more than {limit:.3e}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_a_number_is_no_success() {
        assert!(must("it", f64::NAN, 1.0).is_err());
        assert!(must("it", 1.0, 1.0).is_ok());
        assert_eq!(must("it", 2.0, 1.0).unwrap_err(), "it is 2.000e0, more than 1.000e0");
    }
}

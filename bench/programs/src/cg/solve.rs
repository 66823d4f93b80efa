//! The iteration: conjugate gradient without a preconditioner, from zero.

use super::Part;
use mpi::collective::CommunicatorCollectives;

/// When it ends.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// After so many iterations.
    After(u32),
    /// Once the residual is this part of the right side, and after so many at the latest.
    Below {
        /// Of the norm.
        tolerance: f64,
        /// Iterations.
        most: u32,
    },
}

impl Stop {
    fn is_reached(self, iterations: u32, residual: f64) -> bool {
        match self {
            // An exact solution leaves nothing to divide by.
            Stop::After(count) => iterations >= count || residual == 0.0,
            Stop::Below { tolerance, most } => iterations >= most || residual <= tolerance,
        }
    }
}

/// What came out.
#[derive(Debug)]
pub struct Solution {
    /// With room for outer points.
    pub x: Vec<f64>,
    /// How many it took.
    pub iterations: u32,
    /// ‖r‖ / ‖b‖, as the iteration carries it along.
    pub residual: f64,
    /// Of this rank, all ranks having begun together.
    pub seconds: f64,
}

/// Solves A x = `right`.
pub fn solve(part: &mut Part<'_>, right: &[f64], stop: Stop) -> Solution {
    let rows = right.len();
    let mut x = vec![0.0; part.halo.length()];
    let mut residual = right.to_vec();
    let mut direction = vec![0.0; part.halo.length()];
    direction[..rows].copy_from_slice(right);
    let mut product = vec![0.0; rows];
    let first = part.dot(right, right);
    let mut square = first;
    let mut iterations = 0;

    part.job.world().barrier();
    let start = mpi::time();
    while !stop.is_reached(iterations, (square / first).sqrt()) {
        part.multiply(&mut direction, &mut product);
        let alpha = square / part.dot(&direction[..rows], &product);
        add(&mut x[..rows], alpha, &direction[..rows]);
        add(&mut residual, -alpha, &product);
        let next = part.dot(&residual, &residual);
        let beta = next / square;
        for (direction, residual) in direction[..rows].iter_mut().zip(&residual) {
            *direction = residual + beta * *direction;
        }
        square = next;
        iterations += 1;
    }
    let seconds = mpi::time() - start;
    Solution { x, iterations, residual: (square / first).sqrt(), seconds }
}

/// `to` += `factor` · `what`.
fn add(to: &mut [f64], factor: f64, what: &[f64]) {
    for (to, what) in to.iter_mut().zip(what) {
        *to += factor * what;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_told_and_never_divides_by_nothing() {
        let below = Stop::Below { tolerance: 1e-6, most: 10 };
        assert!(!below.is_reached(0, 1.0));
        assert!(below.is_reached(3, 1e-7));
        assert!(below.is_reached(10, 1.0));
        assert!(!Stop::After(5).is_reached(4, 1e-300));
        assert!(Stop::After(5).is_reached(5, 1.0));
        assert!(Stop::After(5).is_reached(1, 0.0));
    }
}

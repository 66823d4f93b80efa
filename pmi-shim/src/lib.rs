//! What a host's launcher offers a rank, what must cross into its container for that, and whether
//! the container's MPI can use it.
//!
//! Pure: the environment comes in as a function from name to value, answers go out as data.
#![forbid(unsafe_code)]

pub mod fit;
pub mod glob;
pub mod launcher;
pub mod passthrough;
pub mod slurm;

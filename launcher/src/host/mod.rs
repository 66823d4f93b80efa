//! What this host has: looked at only where it matters, and never changed.

pub mod fabric;
pub mod gpu;
pub mod mpi;

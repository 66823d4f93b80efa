//! What a host's launcher offers a rank, what must cross into its container for that, and whether
//! the container's MPI can use it; where it cannot, both sides' protocols, to translate between them.
//!
//! Pure: the environment comes in as a function from name to value, bytes come in as they were read, answers
//! go out as data.
#![forbid(unsafe_code)]

pub mod downlink;
pub mod engine;
pub mod fit;
pub mod glob;
pub mod job;
pub mod launcher;
pub mod node;
pub mod passthrough;
pub mod pmix;
pub mod slurm;
pub mod uplink;
pub mod wire;

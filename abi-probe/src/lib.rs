//! What a program inside an image will link, decided from the files themselves.
//!
//! No I/O leaves the [`rootfs::View`] that is given: an image is hostile bytes, and every path of it
//! is resolved inside its own root. Nothing here knows of command lines, mounts or PMI.
#![forbid(unsafe_code)]

pub mod bind;
pub mod elf;
pub mod error;
pub mod fabric;
pub mod gpus;
pub mod inject;
pub mod install;
pub mod ldso;
pub mod linkmap;
pub mod merge;
pub mod mpi;
pub mod obstacle;
pub mod parts;
pub mod prober;
pub mod rootfs;
pub mod symbols;
mod tables;
mod walk;

pub use error::{Error, Result};

//! End-to-end tests of hpc-launch: helpers shared by the tests.
//!
//! A test asserts the message and the fact. Every program is run through [`run::Run`]: with a limit of
//! time, an environment made from nothing, and a look for processes that it left behind. What a test
//! changes on the host (a bind over /dev/fuse, a site's configuration) it changes in a mount namespace
//! of its own.

pub mod browser;
pub mod canary;
pub mod host;
pub mod host_mpi;
pub mod hosts;
pub mod image;
pub mod layout;
pub mod leaks;
pub mod loader;
pub mod machine;
pub mod overlay;
pub mod registry;
pub mod run;
pub mod signed;
pub mod slurm;
pub mod standalone;
pub mod validate;

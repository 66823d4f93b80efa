//! End-to-end tests of hpc-launch: helpers shared by the tests.

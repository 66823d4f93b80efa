//! Builds what a plan says, or joins it: the only part of hpc-launch that changes anything, and only
//! inside namespaces of its own.

pub mod build;
pub mod calls;
pub mod ext;
pub mod loopdev;
pub mod namespace;
pub mod notes;
pub mod overlay;
pub mod squashfs;

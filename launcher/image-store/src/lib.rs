//! Container images of every kind, and a store of them that may lie on a shared file system.
//!
//! An image is hostile bytes. Nothing of an archive is ever unpacked into a directory: layers are merged into a tree in
//! memory, and what files hold goes straight into one SquashFS file. No path of an archive becomes a path of the host's.

#![forbid(unsafe_code)]

pub mod blob;
pub mod bundle;
mod bytes;
mod changes;
pub mod codec;
pub mod directory;
pub mod erofs;
pub mod error;
pub mod import;
pub mod layers;
pub mod layout;
pub mod members;
pub mod name;
pub mod nearby;
pub mod registry;
pub mod sif;
pub mod source;
pub mod squash;
pub mod store;
pub mod tar;
pub mod tree;

pub use error::{Error, Kind, Result};
pub use name::{Digest, Name};

//! SquashFS files, read by the tools of others.

//! What this host has: looked at only where it matters, and never changed.

pub mod fabric;
pub mod gpu;
pub mod mpi;
pub mod place;

use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// More than any directory of /dev, of /sys or of libraries has.
const MAX_ENTRIES: usize = 65536;

/// Names in a directory, sorted; none where it is not there.
fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().take(MAX_ENTRIES);
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Processors that this process may use.
pub fn allowed_processors() -> Vec<usize> {
    match sched_getaffinity(Pid::from_raw(0)) {
        Ok(set) => (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

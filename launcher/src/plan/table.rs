//! What of the host every sandbox shows, and why: a table.

/// What becomes of a row when the image has nothing at that path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It is refused when the host has none.
    Required,
    /// It is left out when the host has none.
    IfThere,
}

/// A file or directory that keeps its path.
pub struct Row {
    /// On the host and inside.
    pub path: &'static str,
    /// Whether it may be missing on the host.
    pub need: Need,
    /// Why it is there.
    pub why: &'static str,
}

const fn row(path: &'static str, need: Need, why: &'static str) -> Row {
    Row { path, need, why }
}

use Need::{IfThere, Required};

/// Directories of the host.
pub const DIRECTORIES: &[Row] = &[
    row("/dev", Required, "devices: fabric, GPUs, terminals; /dev/shm is MPI's shared memory"),
    row("/proc", Required, "processes: MPI compares namespaces and maps its peers' memory"),
    row("/sys", Required, "topology for hwloc, fabric devices, cgroups"),
    row("/tmp", Required, "session directories of launchers, sockets, scratch"),
    row("/dev/shm", IfThere, "MPI's shared memory, where it is not below /dev"),
];

/// Made new in every sandbox: where sockets and runtime directories of the host are shown.
pub const RUN: &str = "/run";
/// Why.
pub const RUN_WHY: &str = "runtime files of the host, those that ranks need; the sandbox's own notes";

/// Directories of the host below /run.
pub const RUNTIME: &[Row] = &[
    row("/run/munge", IfThere, "munge's socket: PMIx and Slurm authenticate by it"),
    row("/run/nscd", IfThere, "name service cache: users of a directory service"),
];

/// Single files of the host.
pub const FILES: &[Row] = &[
    row("/etc/passwd", IfThere, "who the user is: Open MPI's session directory, ssh, shells"),
    row("/etc/group", IfThere, "the user's groups"),
    row("/etc/hosts", IfThere, "the nodes' names: MPICH fails and Open MPI stalls without its own"),
    row("/etc/resolv.conf", IfThere, "name resolution"),
    row("/etc/hostname", IfThere, "the node's name for programs that read it here"),
    row("/etc/nsswitch.conf", IfThere, "in which order names are looked up"),
];

/// Directories that belong to the image: a working directory in them is the image's.
pub const OF_THE_IMAGE: &[&str] = &[
    "/bin",
    "/boot",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/run",
    "/sbin",
    "/usr",
    "/var/lib",
    "/var/cache",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_absolute_and_has_a_reason() {
        for row in DIRECTORIES.iter().chain(RUNTIME).chain(FILES) {
            assert!(row.path.starts_with('/') && !row.why.is_empty(), "{}", row.path);
        }
        assert!(RUNTIME.iter().all(|r| r.path.starts_with("/run/")));
    }
}

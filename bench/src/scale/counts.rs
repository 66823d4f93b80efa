//! What the ranks of a node ask of the kernel, and of the file system that the image is on, by strace.

use super::DIRECTORY;
use crate::contender::{Setup, find_program};
use crate::model::Operations;
use crate::run::Runner;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The job that is counted: enough ranks that most of them join, alive until all have.
const RANKS: usize = 4;
const PROGRAM: [&str; 2] = ["/bin/sleep", "1"];

/// Calls that name a file: each is at least one look-up for the file system on which that is.
const PATH_CALLS: &[&str] = &[
    "open",
    "openat",
    "openat2",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "execve",
    "execveat",
    "mount",
    "statfs",
    "chdir",
];
/// Calls that read from an open file.
const READ_CALLS: &[&str] = &["read", "pread64", "preadv", "getdents64"];
/// What is the host's, or nobody's, in every sandbox; the rest of a program's files are the image's.
const NOT_THE_IMAGES: &[&str] = &["/proc", "/dev", "/sys", "/tmp", "/run"];

/// One image's counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Its kind.
    pub image: &'static str,
    /// System calls of the first rank, from the launcher's start to the program's.
    pub first_calls: usize,
    /// The same of a joining rank: the median.
    pub joining_calls: usize,
    /// On the file system that the image is on.
    pub operations: Operations,
    /// Reads from it, by the launcher and by what it starts (squashfuse): for the node.
    pub reads: usize,
}

/// Runs a small job of each image under strace and counts.
pub fn count(
    images: &[(&'static str, PathBuf)],
    mpiexec: &Path,
    setup: &Setup,
    runner: &mut Runner,
) -> Result<Vec<Counts>, String> {
    let strace = find_program("strace", "apt-get install strace")?;
    let launcher = setup.launcher.clone()?;
    images
        .iter()
        .map(|(kind, image)| {
            let dir = tempfile::Builder::new().prefix("hpc-bench.").tempdir_in("/var/tmp");
            let dir = dir.map_err(|e| format!("no directory in /var/tmp: {e}"))?;
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
            let (prefix, ranks) = (dir.path().join("t").display().to_string(), RANKS.to_string());
            let job = setup.line(mpiexec, &["-n", &ranks]);
            let job = job.after(&setup.line(&strace, &["-ff", "-y", "-s", "256", "-o", &prefix]));
            let rank = setup.line(&launcher, &[image.as_os_str()]);
            let program = setup.line(Path::new(PROGRAM[0]), &PROGRAM[1..]);
            let line = program.after(&rank).after(&job);
            runner.time(&line).map_err(|failure| format!("{line}: {failure}"))?;
            let files = fs::read_dir(dir.path()).map_err(|e| e.to_string())?.flatten();
            let traces: Vec<String> = files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
            tally(kind, &traces, &launcher.display().to_string(), &image.display().to_string()).ok_or_else(
                || format!("{line}: the traces are not of a first rank and of {} that join", RANKS - 1),
            )
        })
        .collect()
}

/// Counts in the traces of a job's processes.
fn tally(kind: &'static str, traces: &[String], launcher: &str, image: &str) -> Option<Counts> {
    let starts = format!("execve(\"{launcher}\"");
    let mut first = None;
    let mut joining = Vec::new();
    let mut reads = 0;
    for trace in traces {
        let lines: Vec<&str> = trace.lines().collect();
        let touches = |line: &str| {
            line.contains(&format!("{image}/"))
                || line.contains(&format!("{image}\""))
                || line.contains(&format!("{image}>"))
        };
        let begin = lines.iter().position(|line| line.starts_with(&starts));
        let program = format!("execve(\"{}\"", PROGRAM[0]);
        let end = lines.iter().position(|line| line.starts_with(&program) && line.ends_with(" = 0"));
        let launched = match (begin, end) {
            (Some(begin), Some(end)) => &lines[begin + 1..end],
            // What the launcher starts, and what is none of this.
            _ => &lines[..],
        };
        reads += launched.iter().filter(|l| is_one_of(l, READ_CALLS) && touches(l)).count();
        let (Some(_), Some(end)) = (begin, end) else { continue };
        let calls = launched.iter().filter(|line| name(line).is_some()).count();
        let paths = launched.iter().filter(|line| is_one_of(line, PATH_CALLS) && touches(line)).count();
        // The kernel opens the program and its loader.
        let own = 2 + lines[end + 1..]
            .iter()
            .filter(|line| is_one_of(line, PATH_CALLS) && is_the_images(line))
            .count();
        if launched.iter().any(|line| line.starts_with("setns(")) {
            joining.push((calls, paths, own));
        } else if first.replace((calls, paths, own)).is_some() {
            return None;
        }
    }
    let (first_calls, first_paths, program) = first.filter(|_| !joining.is_empty())?;
    joining.sort_unstable();
    let (joining_calls, ..) = joining[joining.len() / 2];
    let joining_paths = joining.iter().map(|(_, paths, _)| *paths).max()?;
    // In a mounted file they are read from that.
    let program = if kind == DIRECTORY { program } else { 0 };
    let operations = Operations { first: first_paths, joining: joining_paths, program };
    Some(Counts { image: kind, first_calls, joining_calls, operations, reads })
}

/// The name in a line `name(arguments) = result`; signals and exits are no calls.
fn name(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('(')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(plain)).then_some(name)
}

fn is_one_of(line: &str, names: &[&str]) -> bool {
    name(line).is_some_and(|name| names.contains(&name))
}

/// Whether a program's call names a file of its root that is the image's.
fn is_the_images(line: &str) -> bool {
    let path = line.split('"').nth(1).filter(|path| path.starts_with('/'));
    path.is_some_and(|path| !NOT_THE_IMAGES.iter().any(|not| path.starts_with(not)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "set_robust_list(0x7f, 24) = 0\n\
        execve(\"/l\", [\"/l\", \"/img\"], 0x7 /* 3 vars */) = 0\n\
        open(\"/etc/hpc-launch/config.toml\", O_RDONLY) = -1 ENOENT (No such file or directory)\n\
        openat(AT_FDCWD</>, \"/img\", O_PATH) = 13</img>\n\
        openat2(13</img>, \"usr/bin/sleep\", {}, 24) = 28</img/usr/bin/sleep>\n\
        pread64(28</img/usr/bin/sleep>, \"\\177ELF\", 4096, 0) = 4096\n\
        stat(\"/img.old\", 0x7) = -1 ENOENT (No such file or directory)\n\
        execve(\"/bin/sleep\", [\"/bin/sleep\", \"1\"], 0x7 /* 3 vars */) = 0\n\
        openat(AT_FDCWD</>, \"/etc/ld.so.cache\", O_RDONLY) = 6</etc/ld.so.cache>\n\
        newfstatat(6</etc/ld.so.cache>, \"\", {}, AT_EMPTY_PATH) = 0\n\
        openat(AT_FDCWD</>, \"/proc/self/maps\", O_RDONLY) = 6</proc/1/maps>\n\
        +++ exited with 0 +++\n";
    const JOINING: &str = "execve(\"/l\", [\"/l\", \"/img\"], 0x7 /* 3 vars */) = 0\n\
        setns(11<user:[1]>, CLONE_NEWUSER) = 0\n\
        execve(\"/bin/sleep\", [\"/bin/sleep\", \"1\"], 0x7 /* 3 vars */) = 0\n\
        openat(AT_FDCWD</>, \"/etc/ld.so.cache\", O_RDONLY) = 6</etc/ld.so.cache>\n";
    const SERVER: &str = "execve(\"/usr/bin/squashfuse\", [], 0x7) = 0\n\
        openat(AT_FDCWD</>, \"/img\", O_RDONLY) = 5</img>\npread64(5</img>, \"hsqs\", 96, 0) = 96\n";

    fn counts(kind: &'static str, traces: &[&str]) -> Option<Counts> {
        let traces: Vec<String> = traces.iter().map(|trace| (*trace).to_owned()).collect();
        tally(kind, &traces, "/l", "/img")
    }

    #[test]
    fn first_and_joining_ranks_and_their_programs() {
        let operations = Operations { first: 2, joining: 0, program: 3 };
        let expected = Counts { image: "directory", first_calls: 5, joining_calls: 1, operations, reads: 1 };
        assert_eq!(counts("directory", &[JOINING, FIRST, JOINING]), Some(expected));
    }

    #[test]
    fn a_mounted_file_is_read_by_its_server_and_has_the_programs_files() {
        let counts = counts("SquashFS", &[FIRST, SERVER, JOINING]).unwrap();
        assert_eq!((counts.operations.program, counts.reads), (0, 2));
    }

    #[test]
    fn a_job_in_which_nobody_joined_or_two_were_first_is_not_counted() {
        assert_eq!(counts("directory", &[FIRST]), None);
        assert_eq!(counts("directory", &[FIRST, FIRST, JOINING]), None);
        assert_eq!(counts("directory", &[JOINING]), None);
    }
}

//! The other ranks of this node, found in the process tree: a registry that is always true and that
//! nobody has to clean up.
//!
//! The launcher's daemon is the nearest ancestor that does not carry this rank's own variables (a
//! wrapper script does). Its descendants are the ranks. A rank whose root holds our mark is in the
//! sandbox that we look for. proc(5): /proc/PID/task/TID/children, /proc/PID/environ, /proc/PID/root.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use abi_probe::rootfs::View;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};

use super::{JobStep, Mark};

/// Deeper wrappers than these are not followed.
const MAX_DEPTH: usize = 8;
/// More processes below one daemon than any node has ranks.
const MAX_VISITS: usize = 16384;
/// How many of the daemon's children are looked at before asking for the lock.
const FIRST: usize = 4;
/// Where a sandbox says whose it is, inside.
pub const MARK_DIRECTORY: &str = "/run/hpc-launch";
/// The link in that directory whose text is the mark, and behind it the digest of the first program.
pub const MARK_LINK: &str = "mark";

/// The namespaces of a sandbox that a living sibling is in.
pub struct Namespaces {
    /// Its user namespace: the host's own when root made the sandbox.
    pub user: OwnedFd,
    /// Its mount namespace.
    pub mount: OwnedFd,
}

/// What a search found.
pub enum Found {
    /// The very sandbox.
    Sandbox(Namespaces),
    /// Another sandbox of the same step: its user namespace is ours too.
    SameStep(Namespaces),
    /// Nothing.
    None,
}

/// The nearest ancestor whose environment lacks this rank's own variables.
pub fn daemon(identity: &[(String, String)]) -> i32 {
    let mut pid = nix::unistd::getppid().as_raw();
    for _ in 0..MAX_DEPTH {
        if pid <= 1 || !carries(pid, identity) {
            break;
        }
        match parent(pid) {
            Some(ppid) if ppid > 1 => pid = ppid,
            _ => break,
        }
    }
    pid
}

/// How many ancestors carry this rank's own variables: those of a launcher are carried by what runs inside of its
/// ranks, other launchers too.
pub fn distance(identity: &[(String, String)]) -> usize {
    let mut pid = nix::unistd::getppid().as_raw();
    let mut count = 0;
    while count < MAX_DEPTH && pid > 1 && carries(pid, identity) {
        count += 1;
        match parent(pid) {
            Some(ppid) => pid = ppid,
            None => break,
        }
    }
    count
}

/// Whether the process started with every one of these variables. One that may not be read (root's
/// slurmstepd) is no wrapper of ours.
fn carries(pid: i32, identity: &[(String, String)]) -> bool {
    let Some(environ) = read(&format!("/proc/{pid}/environ")) else { return false };
    identity.iter().all(|(name, value)| {
        environ.split(|b| *b == 0).any(|v| {
            v.strip_prefix(name.as_bytes()).and_then(|v| v.strip_prefix(b"=")) == Some(value.as_bytes())
        })
    })
}

/// A file of /proc in few calls: their size is not known beforehand. On the stack first: fresh pages of
/// the heap cost more than the copy. (openat: musl's open(2) makes sure of O_CLOEXEC by one call more.)
fn read(path: &str) -> Option<Vec<u8>> {
    let mut file =
        File::from(openat(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?);
    let mut first = [0; 4096];
    let mut bytes = Vec::new();
    loop {
        match file.read(&mut first).ok()? {
            0 => return Some(bytes),
            n => bytes.extend_from_slice(&first[..n]),
        }
    }
}

/// The parent: field 4 of /proc/PID/stat (the name before it may hold anything).
fn parent(pid: i32) -> Option<i32> {
    let text = String::from_utf8_lossy(&read(&format!("/proc/{pid}/stat"))?).into_owned();
    text[text.rfind(')')? + 1..].split_ascii_whitespace().nth(1)?.parse().ok()
}

/// A quick look at the daemon's first children: in most jobs the first rank is the one that built, and
/// has nobody to look for.
pub fn find_at_once(step: &JobStep, mark: &Mark) -> Option<Namespaces> {
    if step.rank.local_rank == Some(0) {
        return None;
    }
    let mut first = children_of(step.daemon, step.daemon)?;
    first.truncate(FIRST);
    Search::new(mark).visit(first, false)
}

/// Whether ranks of this node have ended before this one came: the daemon forks them in their order, and
/// the kernel lists them in that of their forks.
pub fn some_have_ended(step: &JobStep) -> bool {
    if step.rank.local_rank == Some(0) {
        return false;
    }
    let (Some(rank), Some(children)) = (step.rank.local_rank, children(step.daemon)) else { return false };
    let me = nix::unistd::getpid().as_raw();
    // Behind a wrapper we are not among them: then those count that came after us, too.
    let before = children.iter().position(|pid| *pid == me).unwrap_or(children.len().saturating_sub(1));
    let living = children[..before].iter().filter(|pid| lives(**pid)).count();
    u32::try_from(living).is_ok_and(|living| living < rank)
}

/// The name by which a rank is seen to have failed and said why (at most 15 bytes).
pub const SAID: &CStr = c"hpc-launch-said";

/// Whether another child of the daemon is on its way to its program, or to a refusal.
pub fn is_one_starting(daemon: i32) -> bool {
    let program = |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe")).map(|m| (m.dev(), m.ino()));
    let (Ok(ours), me) = (program("self"), nix::unistd::getpid().as_raw()) else { return false };
    let others = children(daemon).unwrap_or_default().into_iter().filter(|pid| *pid != me);
    let has_said =
        |pid: i32| read(&format!("/proc/{pid}/comm")).is_some_and(|name| name.starts_with(SAID.to_bytes()));
    others
        .into_iter()
        .any(|pid| program(&pid.to_string()).is_ok_and(|theirs| theirs == ours) && !has_said(pid))
}

/// A busy daemon leaves its dead children waiting for a while; they have no root any more
/// (fs/proc/base.c, proc_root_link).
fn lives(pid: i32) -> bool {
    !std::fs::metadata(format!("/proc/{pid}/root")).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// Looks at everything below the daemon for a living process in the sandbox with this mark.
pub fn find(step: &JobStep, mark: &Mark) -> Found {
    let mut search = Search::new(mark);
    // Without CONFIG_PROC_CHILDREN every process is asked.
    let all = children(step.daemon).unwrap_or_else(all_processes);
    match search.visit(all, true) {
        Some(namespaces) => Found::Sandbox(namespaces),
        None => search.same_step,
    }
}

/// The own directory of some sandbox of the step that has this in it.
pub fn find_door(step: &JobStep, mark: &Mark, name: &str) -> Option<Rc<OwnedFd>> {
    let mut level = children(step.daemon).unwrap_or_else(all_processes);
    for _ in 0..MAX_DEPTH {
        let mut below = Vec::new();
        for pid in level {
            let Some((found, directory)) = marked(pid) else {
                below.push(pid);
                continue;
            };
            let has_it = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok();
            if found.step == mark.step && has_it {
                return Some(directory);
            }
        }
        level = below.into_iter().flat_map(|pid| children_of(pid, pid).unwrap_or_default()).collect();
    }
    None
}

/// The namespaces of a process, if it is in the sandbox with this mark.
pub fn in_sandbox(pid: i32, mark: &Mark) -> Option<Namespaces> {
    if mark_of(pid)? == *mark { namespaces(pid) } else { None }
}

struct Search<'a> {
    mark: &'a Mark,
    same_step: Found,
    visits: usize,
    me: i32,
}

impl Search<'_> {
    fn new(mark: &Mark) -> Search<'_> {
        Search { mark, same_step: Found::None, visits: 0, me: nix::unistd::getpid().as_raw() }
    }

    /// Looks at these processes, and at those below the ones that are in no sandbox (wrappers).
    fn visit(&mut self, mut level: Vec<i32>, deeper: bool) -> Option<Namespaces> {
        for _ in 0..MAX_DEPTH {
            let mut below = Vec::new();
            for pid in level {
                self.visits += 1;
                if pid == self.me || self.visits > MAX_VISITS {
                    continue;
                }
                match mark_of(pid) {
                    Some(found) if found == *self.mark => {
                        if let Some(namespaces) = namespaces(pid) {
                            return Some(namespaces);
                        }
                    }
                    Some(found) if found.step == self.mark.step && matches!(self.same_step, Found::None) => {
                        if let Some(namespaces) = namespaces(pid) {
                            self.same_step = Found::SameStep(namespaces);
                        }
                    }
                    Some(_) => {}
                    None => below.push(pid),
                }
            }
            if !deeper || below.is_empty() {
                return None;
            }
            // Wrappers are shells: they fork from their only thread.
            level = below.into_iter().flat_map(|pid| children_of(pid, pid).unwrap_or_default()).collect();
        }
        None
    }
}

/// Children of every thread (orted forks from several); `None` where the kernel keeps no such list.
fn children(pid: i32) -> Option<Vec<i32>> {
    let tasks = format!("/proc/{pid}/task");
    // A directory for each thread (fs/proc/base.c, proc_task_getattr): one thread needs no listing.
    if std::fs::metadata(&tasks).is_ok_and(|m| m.nlink() == 3) {
        return children_of(pid, pid);
    }
    let mut found = None;
    for task in std::fs::read_dir(tasks).ok()?.flatten() {
        let Some(task) = task.file_name().to_str().and_then(|t| t.parse().ok()) else { continue };
        if let Some(pids) = children_of(pid, task) {
            found.get_or_insert_with(Vec::new).extend(pids);
        }
    }
    found
}

fn children_of(pid: i32, task: i32) -> Option<Vec<i32>> {
    let list = read(&format!("/proc/{pid}/task/{task}/children"))?;
    Some(String::from_utf8_lossy(&list).split_ascii_whitespace().filter_map(|c| c.parse().ok()).collect())
}

fn all_processes() -> Vec<i32> {
    std::fs::read_dir("/proc")
        .map(|dir| dir.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default()
}

/// The mark in a process's root, resolved as that process would.
fn mark_of(pid: i32) -> Option<Mark> {
    marked(pid).map(|(mark, _)| mark)
}

/// The mark, and the directory that it is in.
fn marked(pid: i32) -> Option<(Mark, Rc<OwnedFd>)> {
    let view = View::open(Path::new(&format!("/proc/{pid}/root"))).ok()?;
    let directory = view.find(Path::new(MARK_DIRECTORY)).ok()??.into_fd()?;
    let text = readlinkat(&directory, MARK_LINK).ok()?;
    let mut parts = text.to_str()?.split('.');
    let mark = Mark { step: parts.next()?.to_owned(), sandbox: parts.next()?.to_owned() };
    Some((mark, directory))
}

/// Opens the namespaces of a process, through one handle on it: its number may be another's by now.
fn namespaces(pid: i32) -> Option<Namespaces> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let dir = openat(AT_FDCWD, format!("/proc/{pid}/ns").as_str(), flags | OFlag::O_DIRECTORY, Mode::empty())
        .ok()?;
    let mount = openat(&dir, "mnt", flags, Mode::empty()).ok()?;
    let user = openat(&dir, "user", flags, Mode::empty()).ok()?;
    Some(Namespaces { user, mount })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_line_of_stat_is_read() {
        assert_eq!(parent(nix::unistd::getpid().as_raw()), Some(nix::unistd::getppid().as_raw()));
    }

    #[test]
    fn the_daemon_is_the_first_ancestor_without_our_variables() {
        let mut nobodys = vec![("HPC_LAUNCH_TEST_NOBODY_HAS_THIS".to_owned(), "1".to_owned())];
        assert_eq!(daemon(&nobodys), nix::unistd::getppid().as_raw());
        assert!(!carries(nix::unistd::getpid().as_raw(), &nobodys));
        nobodys.clear();
        assert!(carries(nix::unistd::getpid().as_raw(), &nobodys), "no variable is lacking");
    }

    #[test]
    fn children_are_seen_and_have_no_mark() {
        let mut child = std::process::Command::new("/bin/sleep").arg("10").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(children(nix::unistd::getpid().as_raw()).unwrap().contains(&pid));
        assert_eq!(mark_of(pid), None);
        assert!(lives(pid));
        child.kill().unwrap();
        while lives(pid) {
            std::thread::yield_now();
        }
        assert!(children(nix::unistd::getpid().as_raw()).unwrap().contains(&pid), "dead, not yet reaped");
        child.wait().unwrap();
        assert!(!lives(pid));
    }
}

//! Entering namespaces: new ones for the rank that builds, its siblings' for those that join.
//!
//! Only user and mount namespaces are ever made (user_namespaces(7), mount_namespaces(7)). The user
//! namespace maps the user to itself: MPI checks user ids across ranks, and a rank may read another's
//! memory (process_vm_readv) only within one user namespace.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use crate::error::{Code, Error, Result};
use crate::job::siblings::Namespaces;

/// How often, and after what time, a call is tried again that a thread which ends may be in the way of.
const TRIES: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// Makes a user namespace where one is needed, and enters it: root that may mount needs none.
/// Answers whether one was made.
pub fn new_user_namespace(uid: u32, gid: u32) -> Result<bool> {
    if uid == 0 && may_mount() {
        return Ok(false);
    }
    unshare_alone(CloneFlags::CLONE_NEWUSER).map_err(|e| forbidden("unshare(CLONE_NEWUSER)", e))?;
    let write = |file: &str, text: String| {
        let path = format!("/proc/self/{file}");
        // They are there: no O_CREAT, which would lock the directory to look.
        openat(AT_FDCWD, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|fd| std::fs::File::from(fd).write_all(text.as_bytes()))
            .map_err(|e| forbidden(&format!("writing {text:?} to {path}"), e))
    };
    // Without CAP_SETGID outside, gid_map may be written only once setgroups is denied
    // (user_namespaces(7)). The supplementary groups themselves stay in force.
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))?;
    Ok(true)
}

/// unshare(2) of what a process of several threads may not. A thread that showed progress and has ended is a member of
/// the process for a moment more: who waits for it is woken before it leaves (exit_mm before exit_notify, kernel/exit.c).
fn unshare_alone(flags: CloneFlags) -> nix::Result<()> {
    for _ in 0..TRIES {
        match unshare(flags) {
            Err(Errno::EINVAL) if has_threads() => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
    unshare(flags)
}

fn has_threads() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1)
}

/// CAP_SYS_ADMIN (bit 21) among the effective capabilities.
fn may_mount() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok())
        .is_some_and(|caps| caps & (1 << 21) != 0)
}

/// Makes a mount namespace, and keeps what happens in it from the host. The host's later mounts still
/// arrive (slave): an automounted file system must appear inside too.
pub fn new_mount_namespace(in_user_namespace: bool) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| forbidden("unshare(CLONE_NEWNS)", e))?;
    if in_user_namespace {
        // The copy is all slaves already when its owner is another user namespace (copy_mnt_ns,
        // CL_SHARED_TO_SLAVE).
        return Ok(());
    }
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
        .map_err(|e| forbidden("making all mounts private to the sandbox", e))
}

/// Enters a user namespace of a sibling, before a mount namespace of one's own is made in it. Answers
/// whether it is another than the one before.
pub fn join_user_namespace(user: &OwnedFd) -> Result<bool> {
    match setns(user, CloneFlags::CLONE_NEWUSER) {
        Ok(()) => Ok(true),
        // It is our own already (setns(2)); root's sandboxes have none of theirs.
        Err(Errno::EINVAL) => Ok(false),
        Err(e) => Err(Error::step("joining the job's user namespace", e)),
    }
}

/// Enters a sibling's sandbox whole. The kernel sets root and working directory to the sandbox's.
pub fn join(namespaces: &Namespaces) -> Result<()> {
    join_user_namespace(&namespaces.user)?;
    setns(&namespaces.mount, CloneFlags::CLONE_NEWNS)
        .map_err(|e| Error::step("joining the job's mount namespace", e))
}

/// This process's own namespaces, to hand over.
pub fn own() -> nix::Result<Namespaces> {
    let open = |path: &str| openat(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    Ok(Namespaces { user: open("/proc/self/ns/user")?, mount: open("/proc/self/ns/mnt")? })
}

/// Settings that forbid user namespaces, each with the value that does and the cure.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    ("/proc/sys/user/max_mnt_namespaces", "0", "sysctl user.max_mnt_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "an AppArmor profile for hpc-launch that has `userns,`, or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

fn forbidden(what: &str, e: impl Into<std::io::Error>) -> Error {
    let e = e.into();
    let mut found = Vec::new();
    let mut cures = Vec::new();
    for (path, bad, cure) in SETTINGS {
        let value = std::fs::read_to_string(path).unwrap_or_default();
        if value.trim() == *bad {
            found.push(format!("{path} is {bad}"));
            cures.push(*cure);
        }
    }
    if found.is_empty() {
        found.push(match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC) => "the limit in /proc/sys/user/ is used up".to_owned(),
            _ => "no sysctl forbids it: a seccomp filter or security module, or a chroot, does".to_owned(),
        });
        cures.push("run hpc-launch outside of that confinement (`unshare -Ur true` must work for this user)");
    }
    Error::new(
        Code::UserNamespace,
        format!("{what}: {e}; {}", found.join("; ")),
        format!("ask the administrator for: {}", cures.join("; ")),
    )
}

//! System calls of the bridge that no crate wraps.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

/// A descriptor that becomes readable when the process ends (pidfd_open(2), Linux 5.3).
#[allow(unsafe_code)]
pub fn pidfd(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: two integers go in, a descriptor that nothing else knows comes out.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A signal to the very process of that descriptor, whatever has become of its number.
#[allow(unsafe_code)]
pub fn signal(pidfd: &OwnedFd, signal: Signal) -> nix::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: integers and a null pointer, which stands for what kill(2) would say.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, none, 0)
    })
    .map(drop)
}

/// Gives back the pages of this program that are mapped and not needed now: what is called again comes back from the page
/// cache. (The kernel maps sixteen around each that is touched.)
#[allow(unsafe_code)]
pub fn release_program() {
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines().filter(|line| line.ends_with(&program.display().to_string())) {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        let ends =
            range.split_once('-').map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16)));
        // What may be written to has no other copy.
        if let (Some((Ok(from), Ok(to))), false) = (ends, rights.contains('w')) {
            // SAFETY: the kernel has just said that these pages are mapped from the program's file, and they cannot have
            // been changed: each comes back from there when it is touched.
            unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
        }
    }
}

/// Whoever of this process holds `end` of a pipe is killed when its other end is closed: by the kernel, also
/// after an exec (fcntl(2), F_SETSIG; fs/pipe.c, pipe_release). An error where that has happened already.
pub fn die_with(end: &OwnedFd) -> nix::Result<()> {
    killed_at_its_end(end, nix::unistd::getpid().as_raw())
}

/// The same for this process's whole group, which it leads (F_SETOWN: a negative number is a group's).
pub fn die_with_group(end: &OwnedFd) -> nix::Result<()> {
    killed_at_its_end(end, -nix::unistd::getpid().as_raw())
}

#[allow(unsafe_code)]
fn killed_at_its_end(end: &OwnedFd, owner: i32) -> nix::Result<()> {
    let fd = end.as_raw_fd();
    let set = |command: i32, value: i32| {
        // SAFETY: these commands take an integer.
        Errno::result(unsafe { libc::fcntl(fd, command, value) }).map(drop)
    };
    // Not in libc: F_SETSIG of asm-generic/fcntl.h.
    const F_SETSIG: i32 = 10;
    set(F_SETSIG, libc::SIGKILL)?;
    set(libc::F_SETOWN, owner)?;
    set(libc::F_SETFL, libc::O_ASYNC)?;
    inherit(end)?;
    // Closed before that: nobody would be told any more.
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => Ok(()),
        _ => Err(Errno::EPIPE),
    }
}

/// Survives an exec.
#[allow(unsafe_code)]
pub fn inherit(fd: &OwnedFd) -> nix::Result<()> {
    // SAFETY: the command takes an integer.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }).map(drop)
}

/// Lets so many wait that nobody is turned away: the kernel takes what net.core.somaxconn allows. (SOMAXCONN of
/// musl's headers, which crates hold to be the most, is 128.)
#[allow(unsafe_code)]
pub fn listen(socket: &impl AsRawFd) -> nix::Result<()> {
    // SAFETY: two integers go in.
    Errno::result(unsafe { libc::listen(socket.as_raw_fd(), 1 << 16) }).map(drop)
}

/// Puts a descriptor in the place of another, to be inherited.
#[allow(unsafe_code)]
pub fn replace(fd: &OwnedFd, at: RawFd) -> nix::Result<()> {
    // SAFETY: whoever uses the number afterwards expects to find there what was put in its place.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), at) }).map(drop)
}

/// Ends this process, a copy of another, without anything that the original will still do.
#[allow(unsafe_code)]
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Takes a descriptor that was inherited: it is of no more use to the program that follows.
#[allow(unsafe_code)]
pub fn take(fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the command takes an integer, and says whether there is such a descriptor; nothing else here knows it.
    unsafe {
        Errno::result(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

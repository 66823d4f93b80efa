//! A process beside the rank, which nobody waits for.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{ForkResult, fork};

/// Runs `body` in a process of its own, with these descriptors as 0, 1, 2… and no others. Forks twice, so
/// that the program which this rank becomes never sees a child that is not its own; a session of its own
/// keeps signals for the rank's process group away. Call it from a process with one thread.
#[allow(unsafe_code)]
pub fn spawn<const N: usize>(
    descriptors: [BorrowedFd; N],
    body: impl FnOnce([BorrowedFd; N]),
) -> nix::Result<()> {
    // SAFETY: this process has one thread, so the child may go on like any program.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => match nix::sys::wait::waitpid(child, None) {
            // Whoever started us wants to hear of no children: the kernel has waited for it (wait(2), NOTES).
            Ok(_) | Err(Errno::ECHILD) => Ok(()),
            Err(e) => Err(e),
        },
        ForkResult::Child => {
            let _ = nix::unistd::setsid();
            // SAFETY: as above.
            if let Ok(ForkResult::Child) = unsafe { fork() }
                && let Some(kept) = keep_only(descriptors.map(|fd| fd.as_raw_fd()))
            {
                body(kept);
            }
            // SAFETY: _exit ends this copy without running what the original will run.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Makes these descriptors 0, 1, 2… and closes all others.
#[allow(unsafe_code)]
fn keep_only<const N: usize>(descriptors: [i32; N]) -> Option<[BorrowedFd<'static>; N]> {
    // SAFETY: descriptor numbers of this process, which shares none of its values' destructors: it ends by
    // exec or _exit. All are copied out of the way of the low numbers first.
    unsafe {
        let high = descriptors.map(|fd| libc::fcntl(fd, libc::F_DUPFD, 64));
        for (to, from) in (0..).zip(high) {
            if from < 0 || libc::dup2(from, to) < 0 {
                return None;
            }
        }
        // close_range(2): Linux 5.9; before it, one by one.
        let first = N as i32;
        if libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) != 0 {
            for fd in first..libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, 1 << 20) as i32 {
                libc::close(fd);
            }
        }
        let mut kept = 0..;
        Some(descriptors.map(|_| BorrowedFd::borrow_raw(kept.next().unwrap_or_default())))
    }
}

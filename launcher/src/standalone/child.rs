//! A rank's process: forked of this one, it takes the way of any rank and becomes its program.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::CpuSet;
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::{ForkResult, Pid};

use crate::bridge::{die_with_group, exit_now, replace};
use crate::error::EXIT_REFUSED;
use crate::job::JobStep;
use crate::rank::Request;

/// What this process has of whoever started it, and has changed for itself: ranks get it as it was.
pub struct Inherited {
    /// The signals that were blocked.
    mask: SigSet,
    /// Nobody was to hear of children that end.
    ignores_children: bool,
    /// The limits of open files.
    files: Option<(rlim_t, rlim_t)>,
}

impl Inherited {
    /// Blocks these signals, hears of children, and may open many files from now on.
    #[allow(unsafe_code)]
    pub fn take(block: &SigSet) -> nix::Result<Inherited> {
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(block), Some(&mut mask))?;
        // Ignored, the kernel would reap them itself (wait(2), NOTES).
        // SAFETY: the default action runs no code of ours.
        let before = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        let ignores_children = matches!(before, SigHandler::SigIgn);
        Ok(Inherited { mask, ignores_children, files: crate::bridge::raise_limit() })
    }

    /// In a rank's process.
    #[allow(unsafe_code)]
    pub fn restore(&self) {
        if self.ignores_children {
            // SAFETY: an ignored signal runs no code of ours.
            let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
        }
        if let Some((soft, hard)) = self.files {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None);
    }
}

/// A rank's ends of what connects it with us.
pub struct Ends {
    /// The pipe by whose end it ends.
    pub lifeline: OwnedFd,
    /// By which it asks for its PMI server.
    pub door: OwnedFd,
    /// What it reads, where that is not what we would.
    pub input: Option<OwnedFd>,
    /// Where it writes, where that is not where we do.
    pub outputs: [Option<OwnedFd>; 2],
}

/// As fork(2).
#[allow(unsafe_code)]
pub fn fork() -> nix::Result<ForkResult> {
    // SAFETY: this process has one thread, so the child may go on like any program.
    unsafe { nix::unistd::fork() }
}

/// In the child: never returns.
pub fn become_rank(
    request: &Request,
    job: JobStep,
    ends: Ends,
    processors: Option<&[usize]>,
    inherited: &Inherited,
) -> ! {
    let Ends { lifeline, door, input, outputs: [out, err] } = ends;
    let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
    // Whatever becomes of this process, neither it nor what it starts outlives the job.
    if die_with_group(&lifeline).is_err() {
        exit_now(EXIT_REFUSED.into());
    }
    std::mem::forget(lifeline);
    inherited.restore();
    let place = |fd: Option<OwnedFd>, at: BorrowedFd| {
        if let Some(fd) = fd {
            let _ = replace(&fd, at.as_raw_fd());
        }
    };
    place(input, std::io::stdin().as_fd());
    place(out, std::io::stdout().as_fd());
    place(err, std::io::stderr().as_fd());
    if let Some(processors) = processors {
        let mut set = CpuSet::new();
        for cpu in processors {
            let _ = set.set(*cpu);
        }
        let _ = nix::sched::sched_setaffinity(Pid::from_raw(0), &set);
    }
    let rank = job.rank.rank.unwrap_or_default().to_string();
    let mut request = request.for_rank(job, door);
    request.environ.set("HPC_LAUNCH_RANK", rank);
    let status = match request.run() {
        Ok(never) => match never {},
        Err(e) => {
            crate::report_once(request.job.as_ref(), &e);
            e.code.exit()
        }
    };
    // Nothing of the parent's is to be undone here.
    exit_now(status.into())
}

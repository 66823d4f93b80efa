//! A part of the work in a process of its own, whose end is waited for and never for too long: what it loads may crash
//! or hang.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::bridge::{die_with_group, exit_now, replace};
use crate::error::{Code, Error, Result};
use crate::standalone::child::{Inherited, fork};

/// More than any part prints; the rest is thrown away.
const MAX_BYTES: usize = 4 << 20;
/// How long what it has written is waited for when it has ended: something else may hold the pipe.
const LAST_OUTPUT: Duration = Duration::from_millis(300);
/// Between looks whether it has ended.
const A_MOMENT: Duration = Duration::from_millis(20);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Exit(i32),
    /// By this signal.
    Signal(Signal),
    /// It was still running after this time, and was killed.
    TimeOut(Duration),
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Outcome {
    /// "was killed by SIGSEGV", for people.
    pub fn how(&self) -> String {
        match self.end {
            End::Exit(0) => "ended".to_owned(),
            End::Exit(status) => format!("ended with status {status}"),
            End::Signal(signal) => format!("was killed by {signal} ({})", signal as i32),
            End::TimeOut(limit) => format!("did not end within {} s", limit.as_secs()),
        }
    }

    /// The last lines of what it said aloud, in one.
    pub fn said(&self) -> String {
        last_words(&self.err)
    }
}

fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    last.join("; ").chars().take(600).collect()
}

/// Watches for signals that end this process, so that what it has made is removed first.
pub struct Watch {
    signals: SignalFd,
    inherited: Inherited,
}

impl Watch {
    /// From now on.
    pub fn begin() -> Result<Watch> {
        let failed = |e: Errno| Error::step("watching for signals", e);
        let mut set = SigSet::empty();
        set.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        let inherited = Inherited::take(&set).map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Watch { signals: SignalFd::with_flags(&set, flags).map_err(failed)?, inherited })
    }

    /// Runs `body` in a child, whose status it answers; for so long at most.
    pub fn run(&self, limit: Duration, body: impl FnOnce() -> u8) -> Result<Outcome> {
        let failed = |e: Errno| Error::step("starting a child", e);
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed);
        let ((out, its_out), (err, its_err), (lifeline, held)) = (pipe()?, pipe()?, pipe()?);
        let nothing = std::fs::File::open("/dev/null").map_err(|e| Error::step("opening /dev/null", e))?;
        let pid = match fork().map_err(failed)? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
                drop(held);
                if die_with_group(&lifeline).is_err() {
                    exit_now(1);
                }
                std::mem::forget(lifeline);
                self.inherited.restore();
                for (fd, at) in [(OwnedFd::from(nothing), 0), (its_out, 1), (its_err, 2)] {
                    let _ = replace(&fd, at);
                }
                exit_now(body().into())
            }
        };
        drop((its_out, its_err, lifeline));
        let ended = self.wait(pid, limit, out, err);
        // Whatever it has left behind in its group.
        let _ = killpg(pid, Signal::SIGKILL);
        drop(held);
        ended
    }

    fn wait(&self, pid: Pid, limit: Duration, out: OwnedFd, err: OwnedFd) -> Result<Outcome> {
        let began = Instant::now();
        let mut streams =
            [(Some(std::fs::File::from(out)), Vec::new()), (Some(std::fs::File::from(err)), Vec::new())];
        let mut end: Option<(End, Instant)> = None;
        loop {
            if end.is_none() {
                end = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(_, status)) => Some((End::Exit(status), Instant::now())),
                    Ok(WaitStatus::Signaled(_, signal, _)) => Some((End::Signal(signal), Instant::now())),
                    Ok(_) | Err(Errno::EINTR) => None,
                    Err(e) => return Err(Error::step("waiting for a child", e)),
                };
            }
            if end.is_none() && began.elapsed() > limit {
                let _ = killpg(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                end = Some((End::TimeOut(limit), Instant::now()));
            }
            let is_silent = streams.iter().all(|(stream, _)| stream.is_none());
            if let Some((how, at)) = end
                && (is_silent || at.elapsed() > LAST_OUTPUT)
            {
                let [out, err] = streams.map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned());
                return Ok(Outcome { end: how, out, err });
            }
            self.read(pid, &mut streams)?;
        }
    }

    /// What is there to be read, or a moment.
    fn read(&self, pid: Pid, streams: &mut [(Option<std::fs::File>, Vec<u8>); 2]) -> Result<()> {
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        for (stream, _) in streams.iter() {
            watched.extend(stream.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
        }
        let timeout = PollTimeout::try_from(A_MOMENT).unwrap_or(PollTimeout::ZERO);
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::step("waiting for a child", e)),
        }
        let ready: Vec<bool> = watched.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if ready[0]
            && let Ok(Some(signal)) = self.signals.read_signal()
        {
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            let [_, (_, err)] = streams;
            let said = last_words(&String::from_utf8_lossy(err));
            let said = if said.is_empty() { said } else { format!(", when it had said: {said}") };
            let what = format!("ended by signal {}{said}", signal.ssi_signo);
            return Err(Error::new(Code::Interrupted, what, ""));
        }
        let mut next = ready[1..].iter();
        for (stream, bytes) in streams {
            let is_ready = stream.is_some() && next.next().copied().unwrap_or(false);
            if let (true, Some(open)) = (is_ready, stream.as_mut()) {
                let mut buffer = [0; 16384];
                match open.read(&mut buffer) {
                    Ok(0) | Err(_) => *stream = None,
                    Ok(count) => {
                        let room = MAX_BYTES.saturating_sub(bytes.len());
                        bytes.extend_from_slice(&buffer[..count.min(room)]);
                    }
                }
            }
        }
        Ok(())
    }
}

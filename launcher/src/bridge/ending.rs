//! How a job that cannot go on comes to its end on this node: first the launcher has time to end it, then the
//! ranks are asked to, then they are killed. Pure: time comes in as a number of milliseconds.

use nix::sys::signal::Signal;

/// How long after the request the launcher may take to end the ranks, in milliseconds.
const LAUNCHER: u64 = 1000;
/// The same when the launcher is gone, or we are it.
const NO_LAUNCHER: u64 = 0;
/// Between SIGTERM and SIGKILL.
const GRACE: u64 = 500;

/// The state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// When SIGTERM is due; none: the job goes on.
    term: Option<u64>,
    termed: bool,
    killed: bool,
}

impl Ending {
    /// Whether the job is ending.
    pub fn has_begun(&self) -> bool {
        self.term.is_some()
    }

    /// The job is to end; with a launcher that was told so.
    pub fn begin(&mut self, now: u64, has_launcher: bool) {
        let due = now + if has_launcher { LAUNCHER } else { NO_LAUNCHER };
        self.term = Some(self.term.map_or(due, |before| before.min(due)));
    }

    /// The signal that is due.
    pub fn due(&mut self, now: u64) -> Option<Signal> {
        let term = self.term?;
        if now >= term + GRACE && self.termed && !self.killed {
            self.killed = true;
            return Some(Signal::SIGKILL);
        }
        if now >= term && !self.termed {
            self.termed = true;
            // The grace counts from now on.
            self.term = Some(now);
            return Some(Signal::SIGTERM);
        }
        None
    }

    /// When to look again.
    pub fn next(&self) -> Option<u64> {
        match (self.term, self.termed, self.killed) {
            (Some(term), false, _) => Some(term),
            (Some(term), true, false) => Some(term + GRACE),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_first_then_a_request_then_force() {
        let mut ending = Ending::default();
        assert_eq!((ending.due(5), ending.next()), (None, None));
        ending.begin(10, true);
        assert_eq!((ending.due(1009), ending.next()), (None, Some(1010)));
        assert_eq!(ending.due(1200), Some(Signal::SIGTERM));
        assert_eq!((ending.due(1300), ending.next()), (None, Some(1700)));
        assert_eq!(ending.due(1700), Some(Signal::SIGKILL));
        assert_eq!((ending.due(9999), ending.next()), (None, None));
    }

    #[test]
    fn a_launcher_that_goes_away_meanwhile_is_not_waited_for() {
        let mut ending = Ending::default();
        ending.begin(10, true);
        ending.begin(20, false);
        assert_eq!(ending.due(20), Some(Signal::SIGTERM));
    }
}

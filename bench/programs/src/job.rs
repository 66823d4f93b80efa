//! The MPI job: who takes part, how it ends early, when it began.

use crate::output::{self, Output};
use mpi::collective::CommunicatorCollectives;
use mpi::environment::Universe;
use mpi::topology::{Color, Communicator, SimpleCommunicator};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a rank that only waits looks whether the others are through.
const LOOK: Duration = Duration::from_millis(1);
/// What a launcher gets to pass our last words on: hydra drops what it has not yet passed on when a job aborts.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// An initialised MPI. It is finalised on drop.
pub struct Job {
    world: SimpleCommunicator,
    // Last: nothing may call MPI after it.
    _universe: Universe,
}

/// Of this rank.
#[derive(Debug)]
pub struct Times {
    /// The start of `main`, since the epoch.
    pub began: Duration,
    /// When `MPI_Init` returned, since the epoch.
    pub ended: Duration,
    /// How long `MPI_Init` took, by the monotonic clock.
    pub init: Duration,
    /// From the start of `main` to the call: how much of the job's time is ours.
    pub before: Duration,
}

impl Job {
    /// Initialises MPI. `None` when something has done so before.
    pub fn begin((began, main): (SystemTime, Instant)) -> Option<(Self, Times)> {
        let before = Instant::now();
        let universe = mpi::initialize()?;
        let after = Instant::now();
        let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let times = Times {
            began: since_epoch(began),
            ended: since_epoch(SystemTime::now()),
            init: after - before,
            before: before - main,
        };
        Some((Job { world: universe.world(), _universe: universe }, times))
    }

    /// All ranks.
    pub fn world(&self) -> &SimpleCommunicator {
        &self.world
    }

    /// Our number.
    pub fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.world.size() as usize
    }

    /// Prints on rank 0.
    pub fn output(&self) -> Output {
        Output::new(self.rank() == 0)
    }

    /// A communicator of those who `take_part`, in the order of their ranks. The others get none.
    pub fn part(&self, take_part: bool) -> Option<SimpleCommunicator> {
        let color = if take_part { Color::with_value(0) } else { Color::undefined() };
        self.world.split_by_color(color)
    }

    /// Meets all ranks without polling: those who only wait must not take the CPU from those who measure,
    /// where there are more ranks than cores.
    pub fn meet(&self) {
        let mut request = self.world.immediate_barrier();
        while let Err(pending) = request.test() {
            request = pending;
            sleep(LOOK);
        }
    }

    /// Ends the whole job with status 1, unless `result` is good.
    pub fn require(&self, benchmark: &str, size: usize, result: Result<(), String>) {
        if let Err(what) = result {
            output::wrong(benchmark, size, &format!("rank {}: {what}", self.rank()));
            sleep(LAST_WORDS);
            self.world.abort(1);
        }
    }
}

/// What the library says it is.
pub fn library_version() -> String {
    mpi::environment::library_version().unwrap_or_else(|_| "(no text)".into())
}

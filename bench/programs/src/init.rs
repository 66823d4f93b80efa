//! `init`: time in `MPI_Init` per rank, and until the last rank of the job is through. Times of different ranks
//! are compared by the clock of day: over several nodes they are as good as its synchronisation.

use crate::cli::Init;
use crate::job::{Job, Times};
use crate::output::Output;
use mpi::collective::{CommunicatorCollectives, SystemOperation};
use std::time::Duration;

/// Reports.
pub fn run(job: &Job, options: &Init, times: &Times, out: &mut Output) {
    let world = job.world();
    let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let over_ranks = |value: i64, operation: SystemOperation| {
        let mut result = 0;
        world.all_reduce_into(&value, &mut result, operation);
        result
    };
    let init = nanoseconds(times.init);
    let sum = over_ranks(init, SystemOperation::sum());
    let first = over_ranks(nanoseconds(times.began), SystemOperation::min());
    let last_main = over_ranks(nanoseconds(times.began), SystemOperation::max());
    let last = over_ranks(nanoseconds(times.ended), SystemOperation::max());
    let start = options.start.map_or(first, |start| i64::try_from(start).unwrap_or(i64::MAX));

    let mut milliseconds = |name: &str, nanoseconds: i64| out.result(name, 0, nanoseconds as f64 / 1e6, "ms");
    milliseconds("init.min", over_ranks(init, SystemOperation::min()));
    milliseconds("init.avg", sum / job.ranks() as i64);
    milliseconds("init.max", over_ranks(init, SystemOperation::max()));
    // Of the job's time, what passed before the last rank had begun, and what our own start took.
    milliseconds("init.main", last_main - start);
    milliseconds("init.before", over_ranks(nanoseconds(times.before), SystemOperation::max()));
    milliseconds("init.job", last - start);
}

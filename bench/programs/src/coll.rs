//! `coll`: collectives over all ranks, as `osu_allreduce`, `osu_bcast`, `osu_alltoall` and `osu_barrier` measure
//! them: each call by itself, a barrier after it; the mean over the ranks, and the fastest and slowest rank.

use crate::buffer::Buffer;
use crate::cli::{Coll, Collective};
use crate::contents;
use crate::counts::{Counts, Kind, Loop};
use crate::job::Job;
use crate::output::Output;
use mpi::collective::{CommunicatorCollectives, Root, SystemOperation};
use mpi::topology::{Communicator, SimpleCommunicator};

/// Largest size where none is given, as OSU's for collectives.
const MOST: usize = 1 << 20;

/// Measures; ends the job if a result is wrong.
pub fn run(job: &Job, options: &Coll, counts: Counts, spoil: bool, out: &mut Output) {
    let sizes = options.sizes.list(MOST);
    for benchmark in &options.benchmarks {
        if *benchmark == Collective::Barrier {
            let count = counts.of(Kind::Collective, 0);
            let mine = timed(job.world(), count, false, || job.world().barrier());
            report(job, "barrier", 0, mine, out);
            continue;
        }
        for &size in &sizes {
            let count = counts.of(Kind::Collective, size);
            let (name, time, verdict) = match benchmark {
                Collective::Allreduce if size >= size_of::<f32>() => {
                    let (time, verdict) = sum(job, size / size_of::<f32>(), count, spoil, |n| n as f32);
                    ("allreduce", time, verdict)
                }
                Collective::AllreduceDouble if size >= size_of::<f64>() => {
                    let (time, verdict) = sum(job, size / size_of::<f64>(), count, spoil, |n| n as f64);
                    ("allreduce_double", time, verdict)
                }
                Collective::Bcast => {
                    let (time, verdict) = bcast(job, size, count, spoil);
                    ("bcast", time, verdict)
                }
                Collective::Alltoall => {
                    let (time, verdict) = alltoall(job, size, count, spoil);
                    ("alltoall", time, verdict)
                }
                // Less than one element: OSU has no line for it either.
                _ => continue,
            };
            job.require(name, size, verdict);
            report(job, name, size, time, out);
        }
    }
}

type Measured = (f64, Result<(), String>);

/// What rank `rank` adds at `index`: small whole numbers, whose sum no order of summation changes.
fn summand(rank: usize, index: usize) -> usize {
    rank % 13 + index % 7 + 1
}

fn total(ranks: usize, index: usize) -> usize {
    (0..ranks).map(|rank| summand(rank, index)).sum()
}

fn sum<T>(job: &Job, length: usize, count: Loop, spoil: bool, number: impl Fn(usize) -> T) -> Measured
where
    T: mpi::traits::Equivalence + Copy + PartialEq + std::fmt::Display,
{
    let out: Vec<T> = (0..length).map(|index| number(summand(job.rank(), index))).collect();
    let mut into: Vec<T> = vec![number(0); length];
    let add = SystemOperation::sum();
    let time = timed(job.world(), count, true, || job.world().all_reduce_into(&out[..], &mut into[..], add));
    if spoil {
        into[length - 1] = number(0);
    }
    let wrong = into.iter().enumerate().find(|(index, value)| **value != number(total(job.ranks(), *index)));
    let verdict = match wrong {
        None => Ok(()),
        Some((index, value)) => Err(format!("sum {index} is {value}, not {}", total(job.ranks(), index))),
    };
    (time, verdict)
}

fn bcast(job: &Job, size: usize, count: Loop, spoil: bool) -> Measured {
    let mut buffer = Buffer::new(size);
    if job.rank() == 0 {
        contents::fill(&mut buffer, 0)
    } else {
        contents::fill_opposite(&mut buffer, 0)
    }
    let root = job.world().process_at_rank(0);
    let time = timed(job.world(), count, true, || root.broadcast_into(&mut buffer[..]));
    if spoil && job.rank() != 0 {
        buffer[size - 1] ^= 1;
    }
    (time, contents::check(&buffer, 0))
}

fn alltoall(job: &Job, size: usize, count: Loop, spoil: bool) -> Measured {
    let ranks = job.ranks();
    let (mut out, mut into) = (Buffer::new(size * ranks), Buffer::new(size * ranks));
    let seed = |from: usize, to: usize| from * ranks + to;
    for other in 0..ranks {
        contents::fill(&mut out[other * size..][..size], seed(job.rank(), other));
        contents::fill_opposite(&mut into[other * size..][..size], seed(other, job.rank()));
    }
    let time = timed(job.world(), count, true, || job.world().all_to_all_into(&out[..], &mut into[..]));
    if spoil {
        into[size * ranks - 1] ^= 1;
    }
    let verdict = (0..ranks).try_for_each(|other| {
        let block = &into[other * size..][..size];
        contents::check(block, seed(other, job.rank())).map_err(|what| format!("from rank {other}: {what}"))
    });
    (time, verdict)
}

/// Mean seconds of a call on this rank; `with_barrier` after each, so that no rank runs ahead.
fn timed(world: &SimpleCommunicator, count: Loop, with_barrier: bool, mut call: impl FnMut()) -> f64 {
    world.barrier();
    let mut sum = 0.0;
    for round in 0..count.all() {
        let start = mpi::time();
        call();
        let took = mpi::time() - start;
        if with_barrier {
            world.barrier();
        }
        if round >= count.warm_up {
            sum += took;
        }
    }
    sum / count.rounds as f64
}

fn report(job: &Job, name: &str, size: usize, seconds: f64, out: &mut Output) {
    let microseconds = seconds * 1e6;
    let (mut sum, mut least, mut most) = (0.0, 0.0, 0.0);
    let world = job.world();
    world.all_reduce_into(&microseconds, &mut sum, SystemOperation::sum());
    world.all_reduce_into(&microseconds, &mut least, SystemOperation::min());
    world.all_reduce_into(&microseconds, &mut most, SystemOperation::max());
    out.result(name, size, sum / job.ranks() as f64, "us");
    out.result(&format!("{name}.min"), size, least, "us");
    out.result(&format!("{name}.max"), size, most, "us");
    // As OSU: all are through before the next size begins.
    world.barrier();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stay_exact_in_floats() {
        // Up to 2^24 every whole number is a float.
        assert!(total(800_000, 6) < 1 << 24);
        assert_eq!(total(2, 8), summand(0, 8) + summand(1, 8));
        assert_ne!(total(4, 0), total(4, 1));
    }
}

//! `pt2pt`: messages between the first and the last rank, as `osu_latency`, `osu_bw` and `osu_bibw` measure them.

use crate::buffer::Buffer;
use crate::cli::{Clock, Pair, Pt2pt};
use crate::contents;
use crate::counts::{Counts, Kind, Loop, WINDOW};
use crate::job::Job;
use crate::output::Output;
use crate::windows::Window;
use mpi::collective::CommunicatorCollectives;
use mpi::topology::{Communicator, Process, SimpleCommunicator};
use mpi::traits::{Destination, Source};

/// Largest size where none is given.
const MOST: usize = 4 << 20;
/// Tag of single messages, and of the answer to a window, as OSU's.
const SINGLE: i32 = 1;
const ANSWER: i32 = 101;

/// Measures; ends the job if contents are wrong.
pub fn run(job: &Job, options: &Pt2pt, counts: Counts, spoil: bool, out: &mut Output) {
    let is_end = job.rank() == 0 || job.rank() + 1 == job.ranks();
    if let Some(ends) = job.part(is_end) {
        let sizes = options.sizes.list(MOST);
        let most = sizes.iter().copied().max().unwrap_or(1);
        let mut pair = Ends::new(&ends, most, options.clock);
        for benchmark in &options.benchmarks {
            for &size in &sizes {
                let (name, unit, value) = pair.measure(*benchmark, size, counts);
                if spoil {
                    pair.incoming[size - 1] ^= 1;
                }
                let expected = pair.peer_seed();
                let is_receiver = *benchmark != Pair::Bw || ends.rank() == 1;
                if is_receiver {
                    job.require(name, size, contents::check(&pair.incoming[..size], expected));
                }
                // The other end may have found something wrong: no number before it agrees.
                ends.barrier();
                out.result(name, size, value, unit);
            }
        }
    }
    job.meet();
}

/// One of the two ends: ranks 0 and 1 of a communicator of their own.
struct Ends<'a> {
    communicator: &'a SimpleCommunicator,
    peer: Process<'a>,
    outgoing: Buffer,
    incoming: Buffer,
    clock: Clock,
}

impl<'a> Ends<'a> {
    fn new(communicator: &'a SimpleCommunicator, most: usize, clock: Clock) -> Self {
        let peer = communicator.process_at_rank(1 - communicator.rank());
        Ends { communicator, peer, outgoing: Buffer::new(most), incoming: Buffer::new(most), clock }
    }

    fn is_first(&self) -> bool {
        self.communicator.rank() == 0
    }

    fn peer_seed(&self) -> usize {
        1 - self.communicator.rank() as usize
    }

    /// Name, unit and value; the value is right at the first end only.
    fn measure(&mut self, benchmark: Pair, size: usize, counts: Counts) -> (&'static str, &'static str, f64) {
        let (mine, theirs) = (self.communicator.rank() as usize, self.peer_seed());
        contents::fill(&mut self.outgoing[..size], mine);
        contents::fill_opposite(&mut self.incoming[..size], theirs);
        self.communicator.barrier();
        let bytes = (size * WINDOW) as f64 / 1e6;
        match benchmark {
            Pair::Latency => {
                let count = counts.of(Kind::Latency, size);
                ("latency", "us", self.latency(size, count) * 1e6 / 2.0)
            }
            Pair::Bw => ("bw", "MB/s", bytes / self.bandwidth(size, counts.of(Kind::Bandwidth, size))),
            Pair::Bibw => {
                ("bibw", "MB/s", 2.0 * bytes / self.both_ways(size, counts.of(Kind::Bandwidth, size)))
            }
        }
    }

    /// Seconds of a round trip.
    fn latency(&mut self, size: usize, count: Loop) -> f64 {
        let (out, into) = (&self.outgoing[..size], &mut self.incoming[..size]);
        if self.communicator.rank() == 0 {
            let peer = &self.peer;
            return timed(self.clock, count, || {
                peer.send_with_tag(out, SINGLE);
                peer.receive_into_with_tag(into, SINGLE);
            });
        }
        for _ in 0..count.all() {
            self.peer.receive_into_with_tag(into, SINGLE);
            self.peer.send_with_tag(out, SINGLE);
        }
        0.0
    }

    /// Seconds of a window and its answer.
    fn bandwidth(&mut self, size: usize, count: Loop) -> f64 {
        let mut window = Window::new(self.communicator, self.peer.rank(), WINDOW);
        let mut answer = [0u8; 1];
        if self.is_first() {
            let (peer, out) = (&self.peer, &self.outgoing[..size]);
            return timed(self.clock, count, || {
                window.send(out);
                peer.receive_into_with_tag(&mut answer[..], ANSWER);
            });
        }
        for _ in 0..count.all() {
            window.receive(&mut self.incoming[..size]);
            self.peer.send_with_tag(&answer[..], ANSWER);
        }
        0.0
    }

    /// Seconds of a window each way.
    fn both_ways(&mut self, size: usize, count: Loop) -> f64 {
        let mut window = Window::new(self.communicator, self.peer.rank(), WINDOW);
        let (out, into) = (&self.outgoing[..size], &mut self.incoming[..size]);
        timed(self.clock, count, || window.exchange(out, into))
    }
}

/// Mean seconds of `round`.
fn timed(clock: Clock, count: Loop, mut round: impl FnMut()) -> f64 {
    for _ in 0..count.warm_up {
        round();
    }
    let mut total = 0.0;
    match clock {
        Clock::Round => {
            for _ in 0..count.rounds {
                let start = mpi::time();
                round();
                total += mpi::time() - start;
            }
        }
        Clock::Loop => {
            let start = mpi::time();
            for _ in 0..count.rounds {
                round();
            }
            total = mpi::time() - start;
        }
    }
    total / count.rounds as f64
}

//! `multi`: several pairs at once, as `osu_mbw_mr` of OSU 5 measures them: rank R of the first half sends to
//! rank R + PAIRS. One barrier when the clock starts; the slowest pair's time counts for all.

use crate::buffer::Buffer;
use crate::cli::Multi;
use crate::contents;
use crate::counts::{Counts, Kind, WINDOW};
use crate::job::Job;
use crate::output::Output;
use crate::windows::Window;
use mpi::collective::{CommunicatorCollectives, SystemOperation};
use mpi::topology::Communicator;
use mpi::traits::{Destination, Source};

/// Largest size where none is given.
const MOST: usize = 4 << 20;
/// The answer to a window, in bytes and by tag.
const ANSWER: (usize, i32) = (4, 101);

/// Measures; ends the job if contents are wrong.
pub fn run(job: &Job, options: &Multi, counts: Counts, spoil: bool, out: &mut Output) {
    let pairs = options.pairs.map_or(job.ranks() / 2, |pairs| pairs as usize);
    if let Some(all) = job.part(job.rank() < 2 * pairs) {
        let sizes = options.sizes.list(MOST);
        let mut buffer = Buffer::new(sizes.iter().copied().max().unwrap_or(1));
        let is_sender = job.rank() < pairs;
        let peer = if is_sender { job.rank() + pairs } else { job.rank() - pairs };
        let sender = job.rank().min(peer);
        let process = all.process_at_rank(peer as i32);
        let mut window = Window::new(&all, peer as i32, WINDOW);
        let mut answer = [0u8; ANSWER.0];
        for size in sizes {
            let count = counts.of(Kind::Bandwidth, size);
            let message = &mut buffer[..size];
            if is_sender {
                contents::fill(message, sender)
            } else {
                contents::fill_opposite(message, sender)
            }
            all.barrier();
            let mut start = 0.0;
            for round in 0..count.all() {
                if round == count.warm_up {
                    all.barrier();
                    start = mpi::time();
                }
                if is_sender {
                    window.send(message);
                    process.receive_into_with_tag(&mut answer[..], ANSWER.1);
                } else {
                    window.receive(message);
                    process.send_with_tag(&answer[..], ANSWER.1);
                }
            }
            let mine = mpi::time() - start;
            if spoil && !is_sender {
                message[0] ^= 1;
            }
            job.require("mbw", size, contents::check(message, sender));
            let mut slowest = 0.0;
            all.all_reduce_into(&mine, &mut slowest, SystemOperation::max());
            let messages = (pairs * count.rounds * WINDOW) as f64;
            out.result("mbw", size, messages * size as f64 / 1e6 / slowest, "MB/s");
            out.result("mr", size, messages / slowest, "messages/s");
        }
    }
    job.meet();
}

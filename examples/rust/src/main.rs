//! ring.c in Rust, through rsmpi: a token goes once round all ranks, each adds its rank to it, and
//! rank 0 checks the sum.

use mpi::topology::Communicator;
use mpi::traits::{Destination, Source};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(universe) = mpi::initialize() else {
        eprintln!("MPI was initialised before");
        return ExitCode::FAILURE;
    };
    let world = universe.world();
    let (rank, size) = (world.rank(), world.size());
    let next = world.process_at_rank((rank + 1) % size);
    let previous = world.process_at_rank((rank + size - 1) % size);

    if rank > 0 {
        let (token, _) = previous.receive::<i32>();
        next.send(&(token + rank));
        return ExitCode::SUCCESS;
    }

    // The receive is posted first: with a single rank the message goes to ourselves.
    let mut sum = -1;
    mpi::request::scope(|scope| {
        let receive = previous.immediate_receive_into(scope, &mut sum);
        next.send(&0i32);
        receive.wait();
    });
    let expected = size * (size - 1) / 2;
    if sum != expected {
        println!("ring of {size} ranks: sum {sum} WRONG, expected {expected}");
        return ExitCode::FAILURE;
    }
    println!("ring of {size} ranks: sum {sum} correct");
    ExitCode::SUCCESS
}

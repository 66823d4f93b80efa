//! Several ranks' connections to the server of PMI-1 and PMI-2.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use made::memory::modest;
use made::script::{assert_bounded, steps};
use pmi_shim::engine::names::Names;
use pmi_shim::engine::simple::Simple;
use pmi_shim::engine::{Effect, Link, Peer};
use pmi_shim::job::Job;
use pmi_shim::wire::{Frame, Frames, Message};

#[derive(Default)]
struct Server {
    engine: Simple,
    names: Names,
    frames: HashMap<Link, Frames>,
    requests: usize,
    out: usize,
}

impl Server {
    fn frame(&mut self, job: &Job, rank: u32, frame: &Frame) {
        self.requests += 1;
        let effects = self.engine.handle(job, Peer { rank, link: rank }, frame);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(_, bytes) | Effect::Finalize(_, bytes) => self.said(&bytes),
                Effect::Enter { good, bad, .. } => [good, bad].iter().for_each(|bytes| self.said(bytes)),
                Effect::Abort { message, .. } => self.out += message.len(),
                Effect::Leaves(..) => panic!("there is no such request"),
                Effect::Name(asker, ask) => {
                    for (asker, answer) in self.names.ask("job", asker, ask) {
                        let effects = self.engine.named(asker, &answer);
                        self.carry_out(effects);
                    }
                }
                Effect::Broken(link, why) => {
                    self.out += why.len();
                    self.close(link);
                }
            }
        }
    }

    /// Whatever was asked, the answer is one message.
    fn said(&mut self, bytes: &[u8]) {
        self.out += bytes.len();
        let mut frames = Frames::default();
        frames.push(bytes);
        let frame = frames.frame().expect("a frame").expect("all of it");
        Message::parse(&frame).expect("a message");
        assert_eq!(frames.pending(), 0, "{frame:?}");
    }

    fn close(&mut self, link: Link) {
        self.engine.closed(link);
        self.frames.remove(&link);
    }
}

fuzz_target!(|bytes: &[u8]| {
    modest(bytes, || {
        let (job, mut server) = (made::job(), Server::default());
        for step in steps(bytes) {
            let rank = step.who % 4;
            match step.what {
                b'c' => server.close(rank),
                b'2' => server.frame(&job, rank, &Frame::Two(step.bytes.to_vec())),
                b'b' => server.frame(&job, rank, &Frame::Block(step.bytes.to_vec())),
                b't' => {
                    // What this node has put, another may have put too.
                    let fresh = server.engine.take_fresh();
                    server.out += fresh.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
                    let _ = server.engine.learn(fresh);
                }
                _ => {
                    server.frames.entry(rank).or_default().push(step.bytes);
                    loop {
                        let frame = server.frames.get_mut(&rank).map(Frames::frame);
                        match frame {
                            Some(Ok(Some(frame))) => server.frame(&job, rank, &frame),
                            Some(Ok(None)) | None => break,
                            Some(Err(_)) => {
                                server.close(rank);
                                break;
                            }
                        }
                    }
                }
            }
        }
        assert_bounded(server.out, server.requests + steps(bytes).len(), bytes.len());
    });
});

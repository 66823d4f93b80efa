//! A client of a launcher that says what a script says, and the client's owner.

use std::collections::{BTreeSet, VecDeque};

use pmi_shim::engine::names::{Ask, Asker};
use pmi_shim::engine::{Link, Peer};
use pmi_shim::pmix::handshake::Header;
use pmi_shim::pmix::{Info, Value};
use pmi_shim::uplink::{Host, Out, Uplink};

use crate::honest::Honest;
use crate::script::{Step, steps};

/// Ranks here.
const HERE: u32 = 2;
/// Ranks beyond which a job costs time and memory, and shows nothing more.
const MOST: u32 = 4096;
/// Bytes before a PMIx message, and where among them its tag is.
const HEADER: usize = 16;

/// A client with its owner's state.
pub struct Launched {
    uplink: Uplink,
    is_at: bool,
    honest: Honest,
    joined: BTreeSet<u32>,
    gathering: bool,
    failed: bool,
    requests: u32,
    /// Ranks of the job that was told of.
    ranks: u32,
    /// Sent and not yet heard by the honest launcher.
    unheard: VecDeque<(Link, Vec<u8>)>,
    /// Tags of PMIx requests, by rank.
    tags: Vec<(Link, u32)>,
    /// What came from the launcher, for seeds.
    pub heard: Vec<(Link, Vec<u8>)>,
    /// What was told to the owner, but for bytes.
    pub told: Vec<Out>,
}

impl Launched {
    /// `is_at`: its ranks connect to an address.
    pub fn new(uplink: Uplink, is_at: bool) -> Launched {
        Launched {
            uplink,
            is_at,
            honest: Honest::default(),
            joined: BTreeSet::new(),
            gathering: false,
            failed: false,
            requests: 0,
            ranks: 0,
            unheard: VecDeque::new(),
            tags: Vec::new(),
            heard: Vec::new(),
            told: Vec::new(),
        }
    }

    /// One step. What an owner never does is not done: a rank joins once and gathers one thing after the other, and
    /// nothing is read after a failure.
    pub fn step(&mut self, step: Step) {
        let (rank, mut out) = (step.who % HERE, Vec::new());
        if self.ranks > MOST {
            return;
        }
        self.requests += 1;
        let asker = Asker { peer: peer(rank), ticket: self.requests };
        match step.what {
            b'j' if self.joined.insert(rank) => {
                let host = if self.is_at { Host::At("127.0.0.1:5".to_owned()) } else { Host::Open };
                self.uplink.join(rank, rank, host);
            }
            b'j' => {}
            b's' => self.uplink.start(rank, &mut out),
            b'g' if !self.gathering => {
                self.gathering = true;
                self.uplink.gather(step.bytes, &mut out);
            }
            b'g' => {}
            b'f' => self.uplink.finalize(rank, &mut out),
            b'x' => self.uplink.abort(rank, 7, &String::from_utf8_lossy(step.bytes), &mut out),
            b'p' => {
                let key = String::from_utf8_lossy(step.bytes);
                let infos = vec![Info::new(&key, Value::string("port"))];
                self.uplink.ask(asker, &Ask::Publish(infos), &mut out);
            }
            b'l' => {
                let keys = String::from_utf8_lossy(step.bytes).split(' ').map(str::to_owned).collect();
                self.uplink.ask(asker, &Ask::Lookup { keys, wait: step.who as usize / 4 }, &mut out);
            }
            b'u' => {
                let keys = vec![String::from_utf8_lossy(step.bytes).into_owned()];
                self.uplink.ask(asker, &Ask::Unpublish(keys), &mut out);
            }
            b'h' => return self.honestly(),
            b'a' => {
                // A PMIx reply to whatever was asked first.
                let Some(at) = self.tags.iter().position(|(link, _)| *link == rank) else { return };
                let (_, tag) = self.tags.remove(at);
                return self.receive(rank, &Header::frame(0, tag, step.bytes));
            }
            b'2' => {
                let framed = format!("{:6}", step.bytes.len()).into_bytes();
                return self.receive(rank, &[&framed, step.bytes].concat());
            }
            _ => return self.receive(rank, step.bytes),
        }
        self.put_out(out);
    }

    fn receive(&mut self, link: Link, bytes: &[u8]) {
        if !self.failed {
            let mut out = Vec::new();
            self.heard.push((link, bytes.to_vec()));
            self.uplink.receive(link, bytes, &mut out);
            self.put_out(out);
        }
    }

    /// The honest launcher answers all.
    fn honestly(&mut self) {
        while let Some((link, bytes)) = self.unheard.pop_front() {
            for (link, reply) in self.honest.hear(peer(link), &bytes) {
                self.receive(link, &reply);
            }
        }
    }

    fn put_out(&mut self, out: Vec<Out>) {
        for one in out {
            match one {
                Out::Send(link, bytes) => {
                    if let Some((header, _)) = bytes.split_first_chunk::<HEADER>() {
                        let tag = [header[4], header[5], header[6], header[7]];
                        self.tags.push((link, u32::from_be_bytes(tag)));
                    }
                    self.unheard.push_back((link, bytes));
                    continue;
                }
                Out::Gathered(_) => self.gathering = false,
                Out::Failed(_) => self.failed = true,
                Out::Job(ref job) => {
                    assert_eq!((self.ranks, job.appnum.len()), (0, job.node_of.len()), "once");
                    assert!(job.node < job.nodes());
                    self.ranks = job.size();
                }
                _ => {}
            }
            self.told.push(one);
        }
    }
}

fn peer(rank: u32) -> Peer {
    Peer { rank, link: rank }
}

/// All of a script. Answers how many ranks the job has that was told of.
pub fn run(mut launched: Launched, script: &[u8]) -> usize {
    for step in steps(script) {
        launched.step(step);
    }
    launched.ranks as usize
}

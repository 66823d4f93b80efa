//! A node whose ranks, launcher and owner do what a script says.

use std::collections::VecDeque;

use pmi_shim::engine::{Link, Peer};
use pmi_shim::job::Job;
use pmi_shim::node::{Do, Node};
use pmi_shim::pmix::handshake::{Header, Hello};
use pmi_shim::pmix::job::Directories;
use pmi_shim::uplink::simple::Version;
use pmi_shim::uplink::{Host, Uplink, pmix, simple};

use crate::honest::{Honest, NSPACE};
use crate::request::request;
use crate::script::{Step, assert_bounded, steps};

/// Where the numbers of connections to the launcher begin, and of those that came by the port.
const HOST: Link = 16;
const CALLER: Link = 32;

/// Ranks beyond which a job costs time and memory, and shows nothing more: its data is in every answer.
const MOST: usize = 16;

/// What is above the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Alone,
    /// A launcher that speaks PMI-1 or PMI-2.
    Simple,
    /// One that speaks PMIx.
    Pmix,
}

/// A node and those around it.
pub struct Noded {
    node: Node,
    kind: Kind,
    honest: Honest,
    unheard: VecDeque<(Link, Vec<u8>)>,
    /// What the launcher said, for seeds.
    pub heard: Vec<(Link, Vec<u8>)>,
    welcome: Vec<u32>,
    fails: usize,
    out: usize,
    requests: usize,
    input: usize,
}

impl Noded {
    /// A node without ranks.
    pub fn new(kind: Kind) -> Noded {
        let directories = Some(Directories { job: "/d".into(), ranks: true });
        let below = |uplink| Node::below(uplink, "here", directories.clone());
        let node = match kind {
            Kind::Alone => Node::alone(Job { node_of: vec![0; 3], ..crate::job() }, directories),
            Kind::Simple => below(Uplink::Simple(Box::new(simple::Client::new(Some(3), Version::Any)))),
            Kind::Pmix => {
                let (nspace, bfrops) = (NSPACE.to_owned(), "v3".to_owned());
                let identity = pmix::Identity { nspace, bfrops, uid: 1, gid: 1 };
                below(Uplink::Pmix(Box::new(pmix::Client::new(identity))))
            }
        };
        Noded {
            node,
            kind,
            honest: Honest::default(),
            unheard: VecDeque::new(),
            heard: Vec::new(),
            welcome: Vec::new(),
            fails: 0,
            out: 0,
            requests: 0,
            input: 0,
        }
    }

    /// One step.
    pub fn step(&mut self, step: Step) {
        let (rank, caller) = (step.who % 4, CALLER + step.who % 8);
        match step.what {
            // Each with a descriptor of its own, or to come by the port.
            b'j' | b'J' => {
                let host = (self.kind != Kind::Alone).then(|| (HOST + rank, self.host()));
                let _ = self.node.join(rank, Some(rank), host, step.what == b'J');
            }
            b'a' => self.node.accepted(caller),
            b'c' => self.node.closed(rank),
            b'C' => self.node.closed(HOST + rank),
            b'd' => self.node.closed(caller),
            b'e' => drop(self.node.ended(rank)),
            b'x' => self.node.abort(rank, 1, "it ended".to_owned()),
            b'h' => self.honestly(),
            b'H' => self.receive(HOST + rank, step.bytes),
            b'p' => self.receive(caller, step.bytes),
            b'g' => {
                let nspace = self.node.nspace().unwrap_or_default().to_owned();
                self.receive(caller, &Hello::of_rank(&nspace, rank, "v3", 1, 1).encode());
            }
            b'q' => self.receive(caller, &Header::frame(0, step.bytes.len() as u32, step.bytes)),
            b'm' => {
                let nspace = self.node.nspace().unwrap_or_default().to_owned();
                let request = request(&nspace, step.bytes).pack(1);
                self.receive(caller, &Header::frame(0, 7, &request));
            }
            b'2' => {
                let framed = format!("{:6}", step.bytes.len()).into_bytes();
                self.receive(rank, &[&framed, step.bytes].concat());
            }
            _ => self.receive(rank, step.bytes),
        }
        self.take();
    }

    fn host(&self) -> Host {
        match self.kind {
            Kind::Pmix => Host::At("127.0.0.1:5".to_owned()),
            _ => Host::Open,
        }
    }

    fn ranks(&self) -> usize {
        self.node.job().map_or(0, |job| job.node_of.len())
    }

    fn receive(&mut self, link: Link, bytes: &[u8]) {
        self.input += bytes.len();
        // The shortest is `cmd=x` and the end of its line.
        self.requests += 1 + bytes.len() / 6;
        if (HOST..CALLER).contains(&link) {
            self.heard.push((link, bytes.to_vec()));
        }
        self.node.receive(link, bytes);
        self.take();
    }

    fn take(&mut self) {
        for one in self.node.take() {
            match one {
                Do::Send(link, bytes) => {
                    self.out += bytes.len();
                    if (HOST..CALLER).contains(&link) {
                        self.unheard.push_back((link, bytes));
                    }
                }
                Do::Connect(_, text) | Do::Abort { message: text, .. } => self.out += text.len(),
                Do::Remove(paths) => self.out += paths.iter().map(String::len).sum::<usize>(),
                Do::Say(text) => self.out += text.len(),
                Do::Close(_) => {}
                Do::Welcome(rank) => self.welcome.push(rank),
                Do::Fail(why) => {
                    self.out += why.len();
                    self.fails += 1;
                }
            }
        }
    }

    /// The honest launcher answers all.
    fn honestly(&mut self) {
        while let Some((link, bytes)) = self.unheard.pop_front() {
            let peer = Peer { rank: link - HOST, link };
            for (link, reply) in self.honest.hear(peer, &bytes) {
                self.receive(link, &reply);
            }
        }
    }
}

/// All of a script. Answers how many ranks the job has.
pub fn run(kind: Kind, script: &[u8]) -> usize {
    let mut noded = Noded::new(kind);
    let all = steps(script);
    for step in &all {
        noded.step(*step);
        if noded.ranks() > MOST {
            return noded.ranks();
        }
    }
    assert_bounded(noded.out, noded.requests + all.len(), noded.input + script.len());
    assert!(noded.fails <= 1, "it fails once");
    let all = noded.welcome.len();
    noded.welcome.sort_unstable();
    noded.welcome.dedup();
    assert_eq!(noded.welcome.len(), all, "a rank is welcome once");
    noded.ranks()
}

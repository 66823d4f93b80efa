//! The launcher's own PMI, as its client: a node's ranks each have a connection to it, and one of them
//! speaks for the node.
//!
//! [`simple`]: PMI-1 and PMI-2 of hydra's proxy and slurmstepd; [`pmix`]: of orted, prted and slurmstepd.
//! Without I/O: what was read goes in, what is to be written and what has happened comes out.

pub mod pmix;
pub mod simple;

use crate::engine::Link;
use crate::engine::names::{Answer, Ask, Asker};
use crate::job::Job;

/// Where a rank's connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A descriptor that was inherited.
    Open,
    /// An address to connect to, "host:port".
    At(String),
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Out {
    /// To be connected.
    Connect(Link, String),
    /// To be written.
    Send(Link, Vec<u8>),
    /// The job is known; hosts and applications of other nodes perhaps not.
    Job(Job),
    /// This rank's connection is ready.
    Started(u32),
    /// Every node's part of a gathering, but this one's.
    Gathered(Vec<(u32, Vec<u8>)>),
    /// The launcher knows that this rank has finished.
    Finalized(u32),
    /// The connection of this rank, which has ended, may be closed now.
    Left(u32),
    /// An answer of the service of names.
    Named(Asker, Answer),
    /// The launcher cannot be worked with, and why.
    Failed(String),
}

/// What is asked for by whom, as both kinds of client are used.
#[derive(Clone, Debug)]
pub enum Uplink {
    /// PMI-1 or PMI-2.
    Simple(Box<simple::Client>),
    /// PMIx.
    Pmix(Box<pmix::Client>),
}

impl Uplink {
    /// A rank's connection, not yet used.
    pub fn join(&mut self, rank: u32, link: Link, host: Host) {
        match self {
            Uplink::Simple(client) => client.join(rank, link, host),
            Uplink::Pmix(client) => client.join(rank, link, host),
        }
    }

    /// The rank begins to use PMI.
    pub fn start(&mut self, rank: u32, out: &mut Vec<Out>) {
        match self {
            Uplink::Simple(client) => client.start(rank, out),
            Uplink::Pmix(client) => client.start(rank, out),
        }
    }

    /// Gives this node's part to all others and takes theirs: all ranks of this node must have started.
    pub fn gather(&mut self, part: &[u8], out: &mut Vec<Out>) {
        match self {
            Uplink::Simple(client) => client.gather(part, out),
            Uplink::Pmix(client) => client.gather(part, out),
        }
    }

    /// The rank has finished.
    pub fn finalize(&mut self, rank: u32, out: &mut Vec<Out>) {
        match self {
            Uplink::Simple(client) => client.finalize(rank, out),
            Uplink::Pmix(client) => client.finalize(rank, out),
        }
    }

    /// The rank's process has ended. Answers whether its connection must stay until [`Out::Left`].
    pub fn leave(&mut self, rank: u32) -> bool {
        match self {
            Uplink::Simple(_) => false,
            Uplink::Pmix(client) => client.leave(rank),
        }
    }

    /// The rank ends the job.
    pub fn abort(&mut self, rank: u32, status: i32, message: &str, out: &mut Vec<Out>) {
        match self {
            Uplink::Simple(client) => client.abort(rank, status, out),
            Uplink::Pmix(client) => client.abort(rank, status, message, out),
        }
    }

    /// Asks the launcher's service of names.
    pub fn ask(&mut self, asker: Asker, ask: &Ask, out: &mut Vec<Out>) {
        match self {
            Uplink::Simple(client) => client.ask(asker, ask, out),
            Uplink::Pmix(client) => client.ask(asker, ask, out),
        }
    }

    /// What was read from a connection.
    pub fn receive(&mut self, link: Link, bytes: &[u8], out: &mut Vec<Out>) {
        match self {
            Uplink::Simple(client) => client.receive(link, bytes, out),
            Uplink::Pmix(client) => client.receive(link, bytes, out),
        }
    }
}

/// "host:port" of an address that may begin with a protocol, "tcp4://127.0.0.1:5".
pub fn address(uri: &str) -> Option<String> {
    let rest = uri.split("//").last()?;
    let (host, port) = rest.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    (!host.is_empty()).then(|| rest.to_owned())
}

//! What a launcher's PMI server does, without I/O: (rank, request) → effects.
//!
//! [`simple`] speaks PMI-1 and PMI-2, [`pmix`] speaks PMIx. Both know one node's ranks; what concerns other
//! nodes they leave to whoever carries the effects out ([`crate::node`]).

pub mod groups;
pub mod names;
pub mod pmix;
pub mod simple;

/// A connection, by a number of its owner's.
pub type Link = u32;

/// A rank's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// Its rank in the job.
    pub rank: u32,
    /// The connection.
    pub link: Link,
}

/// Ranks that wait for each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Participants {
    /// Their ranks, ascending; none: all of the job.
    pub ranks: Option<Vec<u32>>,
    /// Different operations of the same ranks do not mix.
    pub name: String,
}

impl Participants {
    /// Everybody.
    pub fn all(name: &str) -> Participants {
        Participants { ranks: None, name: name.to_owned() }
    }
}

/// What a request leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Bytes for a rank.
    Send(Link, Vec<u8>),
    /// A rank waits for others; it gets the one when they have come, the other when they cannot.
    Enter {
        /// Who.
        peer: Peer,
        /// For whom.
        others: Participants,
        /// When all are there.
        good: Vec<u8>,
        /// When that cannot be.
        bad: Vec<u8>,
    },
    /// A rank needs its server no more; it gets this when the launcher knows.
    Finalize(Peer, Vec<u8>),
    /// A rank ends the job.
    Abort {
        /// Who.
        peer: Peer,
        /// The job's exit status.
        status: i32,
        /// Why.
        message: String,
    },
    /// Files that a rank leaves when it cannot remove them itself.
    Leaves(Peer, Vec<String>),
    /// Something for the service of names.
    Name(names::Asker, names::Ask),
    /// The connection is of no more use: the rank broke the protocol, and why.
    Broken(Link, String),
}

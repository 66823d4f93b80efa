//! One node of a job: its ranks on the one side, the launcher on the other, and what they want of each other.
//!
//! Without I/O. Its owner says what was read, which connections and processes have ended, and does what comes
//! out. Ranks speak PMI-1, PMI-2 or PMIx; the launcher one of these, or there is none and the node is the job.

mod collective;
mod launcher;
mod ranks;

use std::collections::{BTreeMap, HashMap};

use self::collective::Collectives;
use crate::engine::Link;
use crate::engine::names::Names;
use crate::engine::pmix::{Committed, Pmix};
use crate::engine::simple::Simple;
use crate::job::Job;
use crate::pmix::handshake::Messages;
use crate::pmix::job::Directories;
use crate::uplink::{Host, Uplink};
use crate::wire::Frames;

/// What the owner is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Do {
    /// Connect to this address; then it is as any other connection.
    Connect(Link, String),
    /// Write.
    Send(Link, Vec<u8>),
    /// Write what is left and close.
    Close(Link),
    /// This rank's program may start: its namespace is known.
    Welcome(u32),
    /// A rank has ended the job with this status. A launcher has been told.
    Abort {
        /// Which rank.
        rank: u32,
        /// The job's exit status.
        status: i32,
        /// What it said.
        message: String,
    },
    /// Remove these files, as a rank has asked for when it was alive, if they are its user's and where MPI has its
    /// shared memory.
    Remove(Vec<String>),
    /// Something that the user is to know.
    Say(String),
    /// The job cannot go on, and why.
    Fail(String),
}

/// How far a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Has not spoken.
    Silent,
    /// Has initialised and not finished.
    Active,
    /// Has finished.
    Finished,
}

/// A rank of this node.
#[derive(Debug)]
struct Member {
    host: Option<Link>,
    stage: Stage,
    /// Its connection to the launcher is being made, or is there.
    asked: bool,
    /// It is there.
    ready: bool,
    /// Its program has been let start.
    welcome: bool,
    ended: bool,
    /// It has ended while its connection to the launcher was being made.
    leaving: bool,
    /// What it gets when the launcher knows that it has finished.
    finishing: Vec<(Link, Vec<u8>)>,
    /// Files that it may leave.
    leaves: Vec<String>,
}

/// What is at the other end of a connection.
#[derive(Debug)]
enum Session {
    /// Not known yet.
    New(Vec<u8>),
    /// A rank that speaks PMI-1 or PMI-2.
    Simple(u32, Frames),
    /// One that came by the port and is to say which it is.
    Caller(Frames),
    /// One that speaks PMIx.
    Pmix(u32, Messages),
    /// The launcher, for this rank.
    Host(u32),
}

/// The node.
#[derive(Debug)]
pub struct Node {
    uplink: Option<Uplink>,
    job: Option<Job>,
    /// Every node is known by name.
    introduced: bool,
    introducing: bool,
    directories: Option<Directories>,
    host_name: String,
    members: BTreeMap<u32, Member>,
    sessions: HashMap<Link, Session>,
    simple: Simple,
    pmix: Option<Pmix>,
    names: Names,
    collectives: Collectives,
    /// For the group that waits for other nodes: what its members have left for each other.
    left: Vec<Committed>,
    out: Vec<Do>,
    failed: bool,
    gone: bool,
}

impl Node {
    /// A node of a launcher's job. `host_name`: this host's; `directories`: where ranks may keep files.
    pub fn below(uplink: Uplink, host_name: &str, directories: Option<Directories>) -> Node {
        Node {
            uplink: Some(uplink),
            job: None,
            introduced: false,
            introducing: false,
            directories,
            host_name: host_name.to_owned(),
            members: BTreeMap::new(),
            sessions: HashMap::new(),
            simple: Simple::default(),
            pmix: None,
            names: Names::default(),
            collectives: Collectives::default(),
            left: Vec::new(),
            out: Vec::new(),
            failed: false,
            gone: false,
        }
    }

    /// A node that is the whole job.
    pub fn alone(job: Job, directories: Option<Directories>) -> Node {
        let pmix = Some(Pmix::new(&nspace(&job), directories.clone()));
        Node {
            uplink: None,
            job: Some(job),
            introduced: true,
            introducing: false,
            directories,
            host_name: String::new(),
            members: BTreeMap::new(),
            sessions: HashMap::new(),
            simple: Simple::default(),
            pmix,
            names: Names::default(),
            collectives: Collectives::default(),
            left: Vec::new(),
            out: Vec::new(),
            failed: false,
            gone: false,
        }
    }

    /// Whether the launcher has closed a connection that was in use.
    pub fn launcher_is_gone(&self) -> bool {
        self.gone
    }

    /// What is to be done.
    pub fn take(&mut self) -> Vec<Do> {
        std::mem::take(&mut self.out)
    }

    /// The job, once the launcher has told of it.
    pub fn job(&self) -> Option<&Job> {
        self.job.as_ref()
    }

    /// The PMIx namespace of the ranks, once it is known.
    pub fn nspace(&self) -> Option<&str> {
        self.pmix.as_ref().map(Pmix::nspace)
    }

    /// The connections by which a rank speaks.
    pub fn links_of(&self, rank: u32) -> Vec<Link> {
        let is_its = |session: &Session| match session {
            Session::Simple(its, _) | Session::Pmix(its, _) => *its == rank,
            _ => false,
        };
        self.sessions.iter().filter(|(_, session)| is_its(session)).map(|(link, _)| *link).collect()
    }

    /// How far a rank is.
    pub fn stage(&self, rank: u32) -> Option<Stage> {
        self.members.get(&rank).map(|m| m.stage)
    }

    /// A rank of this node, with its PMI connection if it has one, and that to the launcher. Its program may
    /// start when it is welcome; `must_know`: not before the job is known, as who speaks PMIx must have its
    /// namespace, which only some launchers tell in the environment.
    pub fn join(
        &mut self,
        rank: u32,
        pmi: Option<Link>,
        host: Option<(Link, Host)>,
        must_know: bool,
    ) -> Result<(), String> {
        if self.members.contains_key(&rank) {
            return Err(format!("there is a rank {rank} on this node already"));
        }
        if self.job.as_ref().is_some_and(|job| job.node_of.get(rank as usize) != Some(&job.node)) {
            return Err(format!("rank {rank} has no place on this node"));
        }
        let member = Member {
            host: host.as_ref().map(|(link, _)| *link),
            stage: Stage::Silent,
            asked: self.uplink.is_none(),
            ready: self.uplink.is_none(),
            welcome: false,
            ended: false,
            leaving: false,
            finishing: Vec::new(),
            leaves: Vec::new(),
        };
        self.members.insert(rank, member);
        if let Some(link) = pmi {
            self.sessions.insert(link, Session::Simple(rank, Frames::default()));
        }
        if let (Some(uplink), Some((link, host))) = (&mut self.uplink, host) {
            self.sessions.insert(link, Session::Host(rank));
            uplink.join(rank, link, host);
        }
        if must_know && self.job.is_none() {
            self.start(rank);
        } else {
            self.welcome(rank);
        }
        Ok(())
    }

    fn welcome(&mut self, rank: u32) {
        if let Some(member) = self.members.get_mut(&rank).filter(|m| !m.welcome) {
            member.welcome = true;
            self.out.push(Do::Welcome(rank));
        }
    }

    fn start(&mut self, rank: u32) {
        let Some(member) = self.members.get_mut(&rank).filter(|m| !m.asked) else { return };
        member.asked = true;
        let mut out = Vec::new();
        if let Some(uplink) = &mut self.uplink {
            uplink.start(rank, &mut out);
        }
        self.uplinked(out);
    }

    /// A rank ends the job; also for its owner's use, when a rank ended without having finished.
    pub fn abort(&mut self, rank: u32, status: i32, message: String) {
        let mut out = Vec::new();
        if let Some(uplink) = &mut self.uplink {
            uplink.abort(rank, status, &message, &mut out);
        }
        self.uplinked(out);
        self.out.push(Do::Abort { rank, status, message });
    }

    fn fail(&mut self, why: String) {
        if !self.failed {
            self.failed = true;
            self.out.push(Do::Fail(why));
        }
    }

    /// A connection has ended.
    pub fn closed(&mut self, link: Link) {
        match self.sessions.remove(&link) {
            Some(Session::Host(rank)) => {
                if let Some(Uplink::Pmix(client)) = &self.uplink
                    && client.is_finalizing(link).is_some()
                {
                    return self.finalized(rank);
                }
                let over = self
                    .members
                    .get(&rank)
                    .is_none_or(|m| m.ended || m.stage == Stage::Finished && m.finishing.is_empty());
                if !over {
                    self.gone = true;
                    self.fail(format!("the launcher has closed its connection with rank {rank}"));
                }
            }
            Some(Session::Simple(..)) => self.simple.closed(link),
            Some(Session::Pmix(..)) => {
                if let Some(pmix) = &mut self.pmix {
                    pmix.closed(link);
                }
            }
            _ => {}
        }
    }

    /// A rank's process has ended. Answers how far it was.
    pub fn ended(&mut self, rank: u32) -> Stage {
        let Some(member) = self.members.get_mut(&rank) else { return Stage::Finished };
        member.ended = true;
        let (stage, host, is_ready) = (member.stage, member.host, member.ready);
        let leaves = std::mem::take(&mut member.leaves);
        if !leaves.is_empty() && stage != Stage::Finished {
            self.out.push(Do::Remove(leaves));
        }
        match (host, stage) {
            // Known to the launcher only because we asked it something: it must not look like a loss.
            (Some(_), Stage::Silent) if is_ready => {
                let mut out = Vec::new();
                if let Some(uplink) = &mut self.uplink {
                    uplink.finalize(rank, &mut out);
                }
                self.uplinked(out);
            }
            // The launcher sees what it would see of a bare rank.
            (Some(link), _) => {
                let stays = self.uplink.as_mut().is_some_and(|uplink| uplink.leave(rank));
                match (stays, self.members.get_mut(&rank)) {
                    (true, Some(member)) => member.leaving = true,
                    _ => self.out.push(Do::Close(link)),
                }
            }
            (None, _) => {}
        }
        stage
    }
}

/// The namespace of a job's ranks.
fn nspace(job: &Job) -> String {
    format!("hpcl.{}", job.id)
}

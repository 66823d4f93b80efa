//! One node of a job: its ranks on the one side, the launcher on the other, and what they want of each other.
//!
//! Without I/O. Its owner says what was read, which connections and processes have ended, and does what comes
//! out. Ranks speak PMI-1, PMI-2 or PMIx; the launcher one of these, or there is none and the node is the job.

mod collective;

use std::collections::{BTreeMap, HashMap};

use self::collective::{Collectives, Complete, Part};
use crate::engine::names::{Answer, Ask, Asker, Names};
use crate::engine::pmix::{Committed, Pmix};
use crate::engine::simple::Simple;
use crate::engine::{Effect, Link, Participants, Peer, groups};
use crate::job::Job;
use crate::pmix::handshake::Messages;
use crate::pmix::job::Directories;
use crate::pmix::status;
use crate::uplink::{Host, Out, Uplink};
use crate::wire::message::Protocol;
use crate::wire::{Frames, Message};

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

    /// A connection of somebody's who will say who it is.
    pub fn accepted(&mut self, link: Link) {
        self.sessions.insert(link, Session::New(Vec::new()));
    }

    /// What was read from a connection.
    pub fn receive(&mut self, link: Link, bytes: &[u8]) {
        if self.failed {
            return;
        }
        match self.sessions.get_mut(&link) {
            None => {}
            Some(Session::Host(_)) => {
                let mut out = Vec::new();
                if let Some(uplink) = &mut self.uplink {
                    uplink.receive(link, bytes, &mut out);
                }
                self.uplinked(out);
            }
            Some(Session::New(before)) => {
                before.extend_from_slice(bytes);
                if before.len() < 4 {
                    return;
                }
                let before = std::mem::take(before);
                if before.starts_with(b"cmd=") {
                    let mut frames = Frames::default();
                    frames.push(&before);
                    self.sessions.insert(link, Session::Caller(frames));
                } else {
                    let mut messages = Messages::default();
                    messages.push(&before);
                    return self.greet(link, messages);
                }
                self.pump(link);
            }
            Some(Session::Simple(_, frames) | Session::Caller(frames)) => {
                frames.push(bytes);
                self.pump(link);
            }
            Some(Session::Pmix(NOBODY, messages)) => {
                messages.push(bytes);
                let messages = std::mem::take(messages);
                self.greet(link, messages);
            }
            Some(Session::Pmix(_, messages)) => {
                messages.push(bytes);
                self.pump(link);
            }
        }
    }

    /// A PMIx client's hello, if all of it is there.
    fn greet(&mut self, link: Link, mut messages: Messages) {
        let hello = match messages.hello() {
            Ok(Some(hello)) => hello,
            Ok(None) => {
                self.sessions.insert(link, Session::Pmix(NOBODY, messages));
                return;
            }
            // Whoever it is, it is no rank.
            Err(_) => return self.turn_away(link),
        };
        let Some(pmix) = &self.pmix else { return self.turn_away(link) };
        let member = self.members.get(&hello.rank);
        let taken =
            self.sessions.values().any(|s| matches!(s, Session::Pmix(rank, _) if *rank == hello.rank));
        let judged = pmix.admit(&hello).and_then(|()| match member {
            Some(_) if taken => {
                let what = format!("two processes say that they are rank {}", hello.rank);
                Err((status::BAD_PARAM, what))
            }
            Some(member) if !member.ended => Ok(()),
            _ => Err((status::BAD_PARAM, format!("rank {} is none of this node's", hello.rank))),
        });
        match judged {
            Ok(()) => {
                self.out.push(Do::Send(link, hello.welcome()));
                if let Some(pmix) = &mut self.pmix {
                    pmix.admitted(link, &hello);
                }
                self.sessions.insert(link, Session::Pmix(hello.rank, messages));
                self.pump(link);
            }
            Err((code, why)) => {
                self.out.push(Do::Send(link, code.to_be_bytes().to_vec()));
                self.turn_away(link);
                self.fail(why);
            }
        }
    }

    fn turn_away(&mut self, link: Link) {
        self.sessions.remove(&link);
        self.out.push(Do::Close(link));
    }

    /// Handles what is there of a connection, as far as it can be.
    fn pump(&mut self, link: Link) {
        loop {
            if self.failed {
                return;
            }
            let effects = match self.sessions.get_mut(&link) {
                Some(Session::Caller(_)) => {
                    if !self.call(link) {
                        return;
                    }
                    continue;
                }
                Some(Session::Simple(rank, frames)) => {
                    let rank = *rank;
                    if frames.pending() == 0 {
                        return;
                    }
                    if !self.may_speak(rank) {
                        return;
                    }
                    let Some(Session::Simple(_, frames)) = self.sessions.get_mut(&link) else { return };
                    let (Some(job), peer) = (&self.job, Peer { rank, link }) else { return };
                    match frames.frame() {
                        Ok(None) => return,
                        Ok(Some(frame)) => self.simple.handle(job, peer, &frame),
                        Err(e) => vec![Effect::Broken(link, e.0)],
                    }
                }
                Some(Session::Pmix(rank, messages)) if *rank != NOBODY => {
                    let rank = *rank;
                    if messages.is_empty() || !self.may_speak(rank) {
                        return;
                    }
                    let Some(Session::Pmix(_, messages)) = self.sessions.get_mut(&link) else { return };
                    let (Some(job), Some(pmix)) = (&self.job, &mut self.pmix) else { return };
                    match messages.message() {
                        Ok(None) => return,
                        Ok(Some((header, body))) => pmix.handle(job, Peer { rank, link }, header.tag, &body),
                        Err(e) => vec![Effect::Broken(link, e.0)],
                    }
                }
                _ => return,
            };
            self.carry_out(effects);
        }
    }

    /// A rank has something to say: the launcher must know of it first, and we of all the job.
    fn may_speak(&mut self, rank: u32) -> bool {
        self.start(rank);
        let Some(member) = self.members.get_mut(&rank) else { return false };
        if member.stage == Stage::Silent {
            member.stage = Stage::Active;
        }
        member.ready && self.introduced
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

    /// The first line of a rank that came by the port. Answers whether there is more to do.
    fn call(&mut self, link: Link) -> bool {
        let Some(Session::Caller(frames)) = self.sessions.get_mut(&link) else { return false };
        // Looked at twice if it cannot be answered yet.
        let mut ahead = frames.clone();
        let message = match ahead.frame() {
            Ok(None) => return false,
            Ok(Some(frame)) => Message::parse(&frame),
            Err(e) => Err(e),
        };
        let rank = match message {
            Ok(message) if message.command == "initack" => message.number::<u32>("pmiid"),
            _ => None,
        };
        let Some(rank) = rank.filter(|rank| self.members.get(rank).is_some_and(|m| !m.ended)) else {
            self.turn_away(link);
            return false;
        };
        if !self.may_speak(rank) {
            return false;
        }
        let size = self.job.as_ref().map_or(0, Job::size);
        let lines = [
            Message::new("initack").with("rc", 0),
            Message::new("set").with("size", size),
            Message::new("set").with("rank", rank),
            Message::new("set").with("debug", 0),
        ];
        let answer: Vec<u8> = lines.iter().flat_map(|line| line.encode(Protocol::One)).collect();
        self.out.push(Do::Send(link, answer));
        self.sessions.insert(link, Session::Simple(rank, ahead));
        true
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(link, bytes) => self.out.push(Do::Send(link, bytes)),
                Effect::Enter { peer, others, good, bad } => {
                    let Some(job) = &self.job else { continue };
                    let may_span = self.uplink.is_some();
                    let refusal = refusal(job, peer, &others);
                    match self.collectives.enter(job, may_span, peer, others, good, bad) {
                        Ok(()) => self.collect(),
                        Err((link, bad)) => {
                            self.out.extend(refusal.map(Do::Say));
                            self.out.push(Do::Send(link, bad));
                        }
                    }
                }
                Effect::Finalize(peer, reply) => self.finalize(peer, reply),
                Effect::Abort { peer, status, message } => self.abort(peer.rank, status, message),
                Effect::Leaves(peer, paths) => {
                    if let Some(member) = self.members.get_mut(&peer.rank) {
                        let room = MAX_LEAVES.saturating_sub(member.leaves.len());
                        member.leaves.extend(paths.into_iter().take(room));
                    }
                }
                Effect::Name(asker, ask) => self.name(asker, ask),
                Effect::Broken(link, why) => {
                    let rank = match self.sessions.get(&link) {
                        Some(Session::Simple(rank, _) | Session::Pmix(rank, _)) => *rank,
                        _ => NOBODY,
                    };
                    self.closed(link);
                    self.out.push(Do::Close(link));
                    self.fail(format!("rank {rank} broke the protocol: {why}"));
                }
            }
        }
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

    fn finalize(&mut self, peer: Peer, reply: Vec<u8>) {
        let Some(member) = self.members.get_mut(&peer.rank) else { return };
        let again = member.stage == Stage::Finished;
        member.stage = Stage::Finished;
        match &mut self.uplink {
            Some(uplink) if !again => {
                member.finishing.push((peer.link, reply));
                let mut out = Vec::new();
                uplink.finalize(peer.rank, &mut out);
                self.uplinked(out);
            }
            _ => self.out.push(Do::Send(peer.link, reply)),
        }
    }

    /// Names are this node's where all ranks are, else the launcher's.
    fn name(&mut self, asker: Asker, ask: Ask) {
        let local = self.job.as_ref().is_none_or(|job| job.nodes() == 1);
        match &mut self.uplink {
            Some(uplink) if !local => {
                let mut out = Vec::new();
                uplink.ask(asker, &ask, &mut out);
                self.uplinked(out);
            }
            _ => {
                let nspace = self.nspace().unwrap_or_default().to_owned();
                for (asker, answer) in self.names.ask(&nspace, asker, ask) {
                    self.named(asker, &answer);
                }
            }
        }
    }

    fn named(&mut self, asker: Asker, answer: &Answer) {
        let mut effects = self.simple.named(asker, answer);
        if let Some(pmix) = &mut self.pmix {
            effects.extend(pmix.named(asker, answer));
        }
        self.carry_out(effects);
    }

    /// Releases what is complete, and gives the launcher what needs other nodes, one after the other.
    fn collect(&mut self) {
        while let Some(complete) = self.collectives.ready() {
            match complete {
                Complete::Here(others, mut replies) => {
                    let node = self.job.as_ref().map(|job| job.node);
                    if let (Some(_), Some(pmix)) = (groups::made(&others), &mut self.pmix) {
                        let left = pmix.take_left(&others);
                        if let Err(why) = pmix.constructed(node, &left, &mut replies) {
                            return self.fail(why);
                        }
                    }
                    self.out.extend(replies.into_iter().map(|(link, good)| Do::Send(link, good)));
                }
                Complete::Spanning(others) => {
                    let committed = self.pmix.as_mut().map(Pmix::take_fresh).unwrap_or_default();
                    if let (Some(_), Some(pmix)) = (groups::made(&others), &mut self.pmix) {
                        self.left = pmix.take_left(&others);
                    }
                    let part = Part {
                        puts: self.simple.take_fresh(),
                        committed,
                        operation: others.name,
                        left: self.left.clone(),
                        ..Part::default()
                    };
                    self.gather(&part);
                }
            }
        }
    }

    fn gather(&mut self, part: &Part) {
        let mut out = Vec::new();
        if let Some(uplink) = &mut self.uplink {
            uplink.gather(&part.pack(), &mut out);
        }
        self.uplinked(out);
    }

    /// The nodes tell each other their names when all their ranks are there.
    fn introduce(&mut self) {
        let Some(job) = &self.job else { return };
        if self.introduced || self.introducing {
            return;
        }
        if job.nodes() == 1 {
            if let Some(job) = self.job.as_mut().filter(|job| job.hosts.is_empty()) {
                job.hosts.push(self.host_name.clone());
            }
            self.introduced = true;
            return;
        }
        let local = job.local();
        if local.iter().all(|rank| self.members.get(rank).is_some_and(|m| m.ready)) {
            self.introducing = true;
            let appnums = local.iter().map(|rank| (*rank, job.appnum[*rank as usize])).collect();
            let part = Part { host: self.host_name.clone(), appnums, ..Part::default() };
            self.gather(&part);
        }
    }

    fn uplinked(&mut self, out: Vec<Out>) {
        for one in out {
            match one {
                Out::Connect(link, address) => self.out.push(Do::Connect(link, address)),
                Out::Send(link, bytes) => self.out.push(Do::Send(link, bytes)),
                Out::Job(job) => {
                    self.pmix = Some(Pmix::new(&nspace(&job), self.directories.clone()));
                    let strangers: Vec<u32> = self
                        .members
                        .keys()
                        .copied()
                        .filter(|r| job.node_of.get(*r as usize) != Some(&job.node))
                        .collect();
                    self.job = Some(job);
                    if let Some(rank) = strangers.first() {
                        self.fail(format!(
                            "the launcher says that rank {rank}, which is here, is on another node"
                        ));
                    }
                    let ranks: Vec<u32> = self.members.keys().copied().collect();
                    ranks.into_iter().for_each(|rank| self.welcome(rank));
                }
                Out::Started(rank) => self.started(rank),
                Out::Gathered(parts) => self.gathered(parts),
                Out::Finalized(rank) => self.finalized(rank),
                Out::Left(rank) => self.left_launcher(rank),
                Out::Named(asker, answer) => self.named(asker, &answer),
                Out::Failed(why) => self.fail(why),
            }
        }
    }

    fn started(&mut self, rank: u32) {
        let appnum = match &self.uplink {
            Some(Uplink::Simple(client)) => Some(client.appnum(rank)),
            _ => None,
        };
        if let (Some(appnum), Some(job)) = (appnum, &mut self.job)
            && let Some(place) = job.appnum.get_mut(rank as usize)
        {
            *place = appnum;
        }
        if let Some(member) = self.members.get_mut(&rank) {
            member.ready = true;
        }
        self.introduce();
        self.pump_all();
    }

    fn pump_all(&mut self) {
        if !self.introduced {
            return;
        }
        let mut links: Vec<Link> = self.sessions.keys().copied().collect();
        links.sort_unstable();
        links.into_iter().for_each(|link| self.pump(link));
    }

    fn gathered(&mut self, parts: Vec<(u32, Vec<u8>)>) {
        let mut effects = Vec::new();
        let mut hosts = BTreeMap::new();
        for (node, bytes) in parts {
            let part = match Part::unpack(&bytes) {
                Ok(part) => part,
                Err(e) => {
                    return self.fail(format!("node {node} gave something that is none of our parts: {e}"));
                }
            };
            if self.introducing {
                hosts.insert(node, part.host);
                if let Some(job) = &mut self.job {
                    for (rank, appnum) in part.appnums {
                        if let Some(place) = job.appnum.get_mut(rank as usize) {
                            *place = appnum;
                        }
                    }
                }
                continue;
            }
            // Ranks of different nodes that enter two operations in different order would be released from the wrong
            // ones.
            if self.collectives.waits().is_none_or(|others| others.name != part.operation) {
                let ours = self.collectives.waits().map(|others| others.name.as_str()).unwrap_or_default();
                return self.fail(format!(
                    "the ranks of node {node} wait for {:?} while the ranks here wait for {ours:?}: operations of \
                     all ranks are to be begun in the same order by each",
                    part.operation
                ));
            }
            self.left.extend(part.left);
            let learnt = self.simple.learn(part.puts).and_then(|()| match (&mut self.pmix, &self.job) {
                (Some(pmix), Some(job)) => pmix.learn(job, part.committed),
                _ => Ok(Vec::new()),
            });
            match learnt {
                Ok(more) => effects.extend(more),
                Err(why) => return self.fail(why),
            }
        }
        if self.introducing {
            self.introducing = false;
            self.introduced = true;
            if let Some(job) = &mut self.job {
                hosts.insert(job.node, self.host_name.clone());
                if job.hosts.is_empty() {
                    job.hosts = hosts.into_values().collect();
                }
            }
            return self.pump_all();
        }
        self.carry_out(effects);
        let is_group = self.collectives.waits().is_some_and(|others| groups::made(others).is_some());
        let (mut replies, left) = (self.collectives.spanned(), std::mem::take(&mut self.left));
        if let (true, Some(pmix)) = (is_group, &mut self.pmix)
            && let Err(why) = pmix.constructed(None, &left, &mut replies)
        {
            return self.fail(why);
        }
        self.out.extend(replies.into_iter().map(|(link, good)| Do::Send(link, good)));
        self.collect();
    }

    fn finalized(&mut self, rank: u32) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        let replies = std::mem::take(&mut member.finishing);
        self.out.extend(replies.into_iter().map(|(link, reply)| Do::Send(link, reply)));
        if member.ended
            && let Some(link) = member.host
        {
            self.sessions.remove(&link);
            self.out.push(Do::Close(link));
        }
    }

    fn left_launcher(&mut self, rank: u32) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        member.leaving = false;
        if let Some(link) = member.host {
            self.sessions.remove(&link);
            self.out.push(Do::Close(link));
        }
    }

    /// Whether the launcher has not yet heard that a rank, of which it knows only by our asking, is finished, or
    /// greets one that has ended.
    pub fn owes_launcher(&self) -> bool {
        let owes = |m: &Member| m.leaving || m.ended && m.ready && m.stage == Stage::Silent;
        let open = |m: &Member| m.host.is_some_and(|link| self.sessions.contains_key(&link));
        self.members.values().any(|m| owes(m) && open(m))
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

/// More files than any MPI has for a rank.
const MAX_LEAVES: usize = 64;
/// What is said of a group that this rank asks for if it cannot be: by one rank of the node.
fn refusal(job: &Job, peer: Peer, others: &Participants) -> Option<String> {
    let (group, ranks) = (groups::made(others)?, others.ranks.as_ref()?);
    let first = ranks.iter().find(|rank| job.node_of.get(**rank as usize) == Some(&job.node));
    (first == Some(&peer.rank)).then(|| groups::refusal(group, ranks))
}

/// Stands for a rank that is not known.
const NOBODY: u32 = u32::MAX;

/// The namespace of a job's ranks.
fn nspace(job: &Job) -> String {
    format!("hpcl.{}", job.id)
}

//! What a node's ranks say, whichever PMI they speak, and what they get for it.

use super::{Do, Node, Session, Stage};
use crate::engine::names::{Answer, Ask, Asker};
use crate::engine::{Effect, Link, Participants, Peer, groups};
use crate::job::Job;
use crate::pmix::handshake::Messages;
use crate::pmix::status;
use crate::wire::message::Protocol;
use crate::wire::{Frames, Message};

impl Node {
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
    pub(super) fn greet(&mut self, link: Link, mut messages: Messages) {
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

    pub(super) fn turn_away(&mut self, link: Link) {
        self.sessions.remove(&link);
        self.out.push(Do::Close(link));
    }

    /// Handles what is there of a connection, as far as it can be.
    pub(super) fn pump(&mut self, link: Link) {
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
    pub(super) fn may_speak(&mut self, rank: u32) -> bool {
        self.start(rank);
        let Some(member) = self.members.get_mut(&rank) else { return false };
        if member.stage == Stage::Silent {
            member.stage = Stage::Active;
        }
        member.ready && self.introduced
    }

    /// The first line of a rank that came by the port. Answers whether there is more to do.
    pub(super) fn call(&mut self, link: Link) -> bool {
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

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
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

    pub(super) fn finalize(&mut self, peer: Peer, reply: Vec<u8>) {
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
    pub(super) fn name(&mut self, asker: Asker, ask: Ask) {
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

    pub(super) fn named(&mut self, asker: Asker, answer: &Answer) {
        let mut effects = self.simple.named(asker, answer);
        if let Some(pmix) = &mut self.pmix {
            effects.extend(pmix.named(asker, answer));
        }
        self.carry_out(effects);
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

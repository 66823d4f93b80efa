//! An honest launcher of [`crate::job`], made of our own servers. What the other node gives is what this one gave:
//! it is asked for in the other's name and found under this one's.

use std::collections::HashMap;

use pmi_shim::engine::names::Names;
use pmi_shim::engine::pmix::Pmix;
use pmi_shim::engine::simple::Simple;
use pmi_shim::engine::{Effect, Link, Peer};
use pmi_shim::job::Job;
use pmi_shim::pmix::command::Request;
use pmi_shim::pmix::handshake::Messages;
use pmi_shim::wire::{Frame, Frames};

/// The namespace that it gives its ranks.
pub const NSPACE: &str = "job";
/// Longest request that is answered: a script's bytes may come back as one.
const MOST: usize = 64 << 10;

#[derive(Default)]
struct Session {
    frames: Frames,
    messages: Messages,
    greeted: bool,
    entered: bool,
}

/// The launcher.
pub struct Honest {
    job: Job,
    simple: Simple,
    pmix: Pmix,
    names: Names,
    sessions: HashMap<Link, Session>,
    inside: Vec<(Link, Vec<u8>)>,
}

impl Default for Honest {
    fn default() -> Honest {
        Honest {
            job: crate::job(),
            simple: Simple::default(),
            pmix: Pmix::new(NSPACE, None),
            names: Names::default(),
            sessions: HashMap::new(),
            inside: Vec::new(),
        }
    }
}

impl Honest {
    /// What it answers to what a rank's client sent.
    pub fn hear(&mut self, peer: Peer, bytes: &[u8]) -> Vec<(Link, Vec<u8>)> {
        if bytes.len() > MOST {
            return Vec::new();
        }
        let session = self.sessions.entry(peer.link).or_default();
        let is_text = bytes.starts_with(b"cmd=") || bytes.iter().take(6).all(|b| b" 0123456789".contains(b));
        let mut out = Vec::new();
        if !session.greeted && is_text {
            session.frames.push(bytes);
            while let Some(Ok(Some(frame))) = self.sessions.get_mut(&peer.link).map(|s| s.frames.frame()) {
                self.frame(peer, frame, &mut out);
            }
            return out;
        }
        session.messages.push(bytes);
        if !session.greeted {
            let Ok(Some(hello)) = session.messages.hello() else { return out };
            session.greeted = true;
            out.push((peer.link, hello.welcome()));
        }
        while let Some(Ok(Some((header, body)))) =
            self.sessions.get_mut(&peer.link).map(|s| s.messages.message())
        {
            let body = match Request::parse(&body) {
                Ok(Request::Get { mut proc, infos, key }) => {
                    proc.rank = 0;
                    Request::Get { proc, infos, key }.pack(0)
                }
                _ => body,
            };
            let effects = self.pmix.handle(&self.job, peer, header.tag, &body);
            self.carry_out(effects, &mut out);
        }
        out
    }

    fn frame(&mut self, peer: Peer, frame: Frame, out: &mut Vec<(Link, Vec<u8>)>) {
        let frame = match frame {
            Frame::Line(line) if line.starts_with(b"cmd=initack") => {
                let rank = peer.rank;
                let lines =
                    format!("cmd=initack rc=0\ncmd=set size=3\ncmd=set rank={rank}\ncmd=set debug=0\n");
                return out.push((peer.link, lines.into_bytes()));
            }
            Frame::Line(line) => Frame::Line(mirrored(&line)),
            Frame::Two(body) => Frame::Two(mirrored(&body)),
            block => block,
        };
        let effects = self.simple.handle(&self.job, peer, &frame);
        self.carry_out(effects, out);
    }

    fn carry_out(&mut self, effects: Vec<Effect>, out: &mut Vec<(Link, Vec<u8>)>) {
        for effect in effects {
            match effect {
                Effect::Send(link, bytes) => out.push((link, bytes)),
                Effect::Finalize(peer, bytes) => out.push((peer.link, bytes)),
                Effect::Enter { peer, good, .. } => {
                    self.inside.push((peer.link, good));
                    if let Some(session) = self.sessions.get_mut(&peer.link) {
                        session.entered = true;
                    }
                    if self.sessions.values().all(|s| s.entered) {
                        self.sessions.values_mut().for_each(|s| s.entered = false);
                        out.append(&mut self.inside);
                    }
                }
                Effect::Name(asker, ask) => {
                    for (asker, answer) in self.names.ask(NSPACE, asker, ask) {
                        let mut effects = self.simple.named(asker, &answer);
                        effects.extend(self.pmix.named(asker, &answer));
                        self.carry_out(effects, out);
                    }
                }
                Effect::Abort { .. } | Effect::Leaves(..) | Effect::Broken(..) => {}
            }
        }
    }
}

/// What asks for the other node's part asks for this one's.
fn mirrored(request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let split = text.split_once("key=hpcl.").and_then(|(before, key)| Some((before, key.split_once(".1.")?)));
    match split {
        Some((before, (number, piece))) => format!("{before}key=hpcl.{number}.0.{piece}").into_bytes(),
        None => request.to_vec(),
    }
}

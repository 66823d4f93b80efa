//! A client of hydra's proxy or of slurmstepd's pmi2 plugin.
//!
//! One command is under way on each connection at a time: Slurm reads one `read(1024)` per command. A node's
//! part of a gathering is put in pieces whose whole line has less than that; hydra before 5.0 cuts longer
//! values in silence. Keys are seen by others only after a barrier.

use std::collections::{BTreeMap, HashMap, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{Host, Out};
use crate::engine::Link;
use crate::engine::names::{Answer, Ask, Asker};
use crate::job::{Job, parse_mapping, safe_name};
use crate::pmix::{Info, Proc, Value};
use crate::wire::message::Protocol;
use crate::wire::{Frame, Frames, Message};

/// Bytes of a whole command: below Slurm's buffer and hydra's line of 1024.
const MAX_COMMAND: usize = 1000;
/// More pieces than any node's part has: 100 MB of them.
const MAX_PIECES: usize = 1 << 17;
/// The job's name is in every command.
const MAX_NAME: usize = 256;

/// Which protocol to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// PMI-1, and PMI-2 if the launcher will not.
    Any,
    /// PMI-2 at once.
    Two,
}

/// What a command under way is for.
#[derive(Clone, Debug, PartialEq)]
enum For {
    Id,
    /// With which version.
    Init(Version),
    FullInit,
    Maxes,
    Name,
    Appnum,
    Universe,
    Mapping,
    Put,
    Barrier,
    Piece {
        node: u32,
        piece: usize,
    },
    Finalize,
    Named(Asker, Ask),
}

#[derive(Clone, Debug)]
struct Connection {
    link: Link,
    host: Host,
    frames: Frames,
    queue: VecDeque<(For, Message)>,
    under_way: Option<For>,
    two: bool,
    begun: bool,
    started: bool,
}

/// A gathering under way.
#[derive(Clone, Debug)]
struct Gathering {
    puts: usize,
    barriers: usize,
    /// Of each node's part how many pieces it has, and those that are here.
    parts: BTreeMap<u32, (usize, String)>,
    /// Nodes whose parts are not complete.
    missing: usize,
}

/// The client.
#[derive(Clone, Debug)]
pub struct Client {
    version: Version,
    size: Option<u32>,
    connections: BTreeMap<u32, Connection>,
    ranks: HashMap<Link, u32>,
    name: Option<String>,
    value_max: usize,
    universe: Option<u32>,
    appnum: BTreeMap<u32, u32>,
    job: Option<Job>,
    asking: bool,
    gathering: Option<Gathering>,
    gatherings: u32,
}

impl Client {
    /// Of a job of so many ranks, as far as the environment says.
    pub fn new(size: Option<u32>, version: Version) -> Client {
        Client {
            version,
            size,
            connections: BTreeMap::new(),
            ranks: HashMap::new(),
            name: None,
            value_max: 1024,
            universe: None,
            appnum: BTreeMap::new(),
            job: None,
            asking: false,
            gathering: None,
            gatherings: 0,
        }
    }

    pub(super) fn join(&mut self, rank: u32, link: Link, host: Host) {
        let connection = Connection {
            link,
            host,
            frames: Frames::default(),
            queue: VecDeque::new(),
            under_way: None,
            two: false,
            begun: false,
            started: false,
        };
        self.ranks.insert(link, rank);
        self.connections.insert(rank, connection);
    }

    pub(super) fn start(&mut self, rank: u32, out: &mut Vec<Out>) {
        let version = self.version;
        let Some(connection) = self.connections.get_mut(&rank).filter(|c| !c.begun) else { return };
        connection.begun = true;
        if let Host::At(address) = &connection.host {
            out.push(Out::Connect(connection.link, address.clone()));
            connection.queue.push_back((For::Id, Message::new("initack").with("pmiid", rank)));
        }
        connection.queue.push_back((For::Init(version), init(version)));
        connection.send(out);
    }

    fn ask_for(&mut self, rank: u32, what: For, message: Message, out: &mut Vec<Out>) {
        if let Some(connection) = self.connections.get_mut(&rank) {
            connection.queue.push_back((what, message));
            connection.send(out);
        }
    }

    /// The lowest rank of the node speaks for it.
    fn speaker(&self) -> Option<u32> {
        self.connections.keys().next().copied()
    }

    fn is_two(&self, rank: u32) -> bool {
        self.connections.get(&rank).is_some_and(|c| c.two)
    }

    pub(super) fn gather(&mut self, part: &[u8], out: &mut Vec<Out>) {
        let (Some(speaker), Some(job), Some(name)) = (self.speaker(), &self.job, &self.name) else {
            out.push(Out::Failed("nothing can be gathered before the job is known".to_owned()));
            return;
        };
        let (node, name) = (job.node, name.clone());
        self.gatherings += 1;
        let number = self.gatherings;
        let key = |piece: usize| format!("hpcl.{number}.{node}.{piece}");
        let two = self.is_two(speaker);
        let put = |piece: usize, value: &str| {
            let command = Message::new(if two { "kvs-put" } else { "put" });
            let command = if two { command } else { command.with("kvsname", &name) };
            command.with("key", key(piece)).with("value", value)
        };
        let text = BASE64.encode(part);
        let most = MAX_COMMAND - put(MAX_PIECES, "").encode(Protocol::One).len();
        // Room for the number of pieces in front of the first.
        let most = most.min(self.value_max.saturating_sub(1)).saturating_sub(8).max(16);
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(most).collect();
        let count = pieces.len().max(1);
        let mut values: Vec<String> =
            pieces.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect();
        values.resize(count, String::new());
        values[0] = format!("{count}:{}", values[0]);
        self.gathering = Some(Gathering { puts: count, barriers: 0, parts: BTreeMap::new(), missing: 0 });
        for (piece, value) in values.iter().enumerate() {
            self.ask_for(speaker, For::Put, put(piece, value), out);
        }
    }

    fn barrier(&mut self, out: &mut Vec<Out>) {
        let ranks: Vec<u32> = self.connections.keys().copied().collect();
        if let Some(gathering) = &mut self.gathering {
            gathering.barriers = ranks.len();
        }
        for rank in ranks {
            let command = Message::new(if self.is_two(rank) { "kvs-fence" } else { "barrier_in" });
            self.ask_for(rank, For::Barrier, command, out);
        }
    }

    fn get(&self, two: bool, node: u32, piece: usize) -> Message {
        let key = format!("hpcl.{}.{node}.{piece}", self.gatherings);
        let name = self.name.clone().unwrap_or_default();
        match two {
            true => Message::new("kvs-get").with("jobid", name).with("srcid", -1).with("key", key),
            false => Message::new("get").with("kvsname", name).with("key", key),
        }
    }

    /// The first piece of every other node says how many there are.
    fn fetch(&mut self, out: &mut Vec<Out>) {
        let (Some(speaker), Some(job)) = (self.speaker(), &self.job) else { return };
        let others: Vec<u32> = (0..job.nodes()).filter(|node| *node != job.node).collect();
        if let Some(gathering) = &mut self.gathering {
            gathering.missing = others.len();
        }
        let two = self.is_two(speaker);
        for node in others {
            let get = self.get(two, node, 0);
            self.ask_for(speaker, For::Piece { node, piece: 0 }, get, out);
        }
        self.gathered(out);
    }

    /// A piece of a part; the next one is asked for when this one is here: that there are many is only said.
    fn piece(&mut self, node: u32, piece: usize, value: &str, out: &mut Vec<Out>) -> Result<(), String> {
        let bad = || format!("what node {node} gave to the others came back as {value:?}");
        let Some(gathering) = &mut self.gathering else { return Ok(()) };
        let (count, text) = gathering.parts.entry(node).or_default();
        if piece == 0 {
            let (said, first) = value.split_once(':').ok_or_else(bad)?;
            *count = said.parse().ok().filter(|n| (1..=MAX_PIECES).contains(n)).ok_or_else(bad)?;
            text.push_str(first);
        } else {
            text.push_str(value);
        }
        let next = piece + 1;
        if next < *count {
            let speaker = self.speaker().unwrap_or_default();
            let get = self.get(self.is_two(speaker), node, next);
            self.ask_for(speaker, For::Piece { node, piece: next }, get, out);
        } else {
            gathering.missing -= 1;
        }
        self.gathered(out);
        Ok(())
    }

    fn gathered(&mut self, out: &mut Vec<Out>) {
        let Some(gathering) = self.gathering.take_if(|g| g.missing == 0) else { return };
        let mut parts = Vec::new();
        for (node, (_, text)) in gathering.parts {
            match BASE64.decode(text) {
                Ok(part) => parts.push((node, part)),
                Err(e) => {
                    return out
                        .push(Out::Failed(format!("what node {node} gave to the others is damaged: {e}")));
                }
            }
        }
        out.push(Out::Gathered(parts));
    }

    pub(super) fn finalize(&mut self, rank: u32, out: &mut Vec<Out>) {
        self.ask_for(rank, For::Finalize, Message::new("finalize"), out);
    }

    pub(super) fn abort(&mut self, rank: u32, status: i32, out: &mut Vec<Out>) {
        let Some(connection) = self.connections.get_mut(&rank) else { return };
        // There is no answer, and whatever is under way does not matter any more.
        let command = Message::new("abort").with("exitcode", status);
        let command = if connection.two { command.with("isworld", "TRUE") } else { command };
        out.push(Out::Send(connection.link, command.encode(connection.protocol())));
    }

    pub(super) fn ask(&mut self, asker: Asker, ask: &Ask, out: &mut Vec<Out>) {
        let two = self.is_two(asker.peer.rank);
        let (service, prefix) = if two { ("name", "name-") } else { ("service", "") };
        let suffix = if two { "" } else { "_name" };
        let command = |verb: &str| Message::new(format!("{prefix}{verb}{suffix}"));
        let message = match ask {
            Ask::Publish(infos) => match infos.iter().find_map(|i| Some((&i.key, i.value.text()?))) {
                Some((key, port)) => command("publish").with(service, key).with("port", port),
                None => return refuse(asker, out),
            },
            Ask::Lookup { keys, wait: 0 } if keys.len() == 1 => command("lookup").with(service, &keys[0]),
            Ask::Unpublish(keys) if keys.len() == 1 => command("unpublish").with(service, &keys[0]),
            _ => return refuse(asker, out),
        };
        if message.encode(Protocol::One).len() > MAX_COMMAND {
            return refuse(asker, out);
        }
        self.ask_for(asker.peer.rank, For::Named(asker, ask.clone()), message, out);
    }

    pub(super) fn receive(&mut self, link: Link, bytes: &[u8], out: &mut Vec<Out>) {
        let Some(rank) = self.ranks.get(&link).copied() else { return };
        if let Some(connection) = self.connections.get_mut(&rank) {
            connection.frames.push(bytes);
        }
        loop {
            let Some(connection) = self.connections.get_mut(&rank) else { return };
            // The answer to an id is several lines, of which the last one counts.
            let frame = match connection.frames.frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(e) => return out.push(Out::Failed(format!("the launcher's PMI: {e}"))),
            };
            if let Err(why) = self.frame(rank, &frame, out) {
                return out.push(Out::Failed(why));
            }
        }
    }

    fn frame(&mut self, rank: u32, frame: &Frame, out: &mut Vec<Out>) -> Result<(), String> {
        let message = Message::parse(frame).map_err(|e| format!("the launcher's PMI: {e}"))?;
        let Some(connection) = self.connections.get_mut(&rank) else { return Ok(()) };
        let Some(what) = connection.under_way.take() else {
            return Err(format!("the launcher's PMI says {:?} unasked", message.command));
        };
        // hydra answers `initack`, then `set size=`, `set rank=`, `set debug=`.
        if what == For::Id && message.get("debug").is_none() {
            self.size = message.number("size").or(self.size);
            if let Some(told) = message.number::<u32>("rank").filter(|told| *told != rank) {
                return Err(format!("the launcher's PMI calls rank {told} what PMI_ID calls {rank}"));
            }
            connection.under_way = Some(For::Id);
            return Ok(());
        }
        let code: i32 = message.number("rc").unwrap_or(0);
        let failed = |verb: &str| {
            let why = message.get("msg").or(message.get("errmsg")).unwrap_or("no reason");
            format!("the launcher's PMI: {verb} failed with {code} ({why})")
        };
        match what {
            For::Id | For::Maxes | For::Appnum | For::Universe => {}
            For::Init(Version::Any) if code != 0 => {
                self.version = Version::Two;
                connection.queue.push_front((For::Init(Version::Two), init(Version::Two)));
            }
            For::Init(_) => {
                if code != 0 {
                    return Err(failed("init"));
                }
                connection.two = message.get("pmi_version") == Some("2");
                self.initialised(rank, out);
            }
            For::FullInit => {
                if code != 0 {
                    return Err(failed("fullinit"));
                }
                self.size = message.number("size").or(self.size);
                self.appnum.extend(message.number("appnum").map(|n: u32| (rank, n)));
                self.full(rank, out);
            }
            For::Name => {
                let (one, two) = (message.get("kvsname"), message.get("jobid"));
                self.name = one.or(two).map(str::to_owned);
                if let Some(name) = self.name.as_ref().filter(|name| name.len() > MAX_NAME) {
                    let length = name.len();
                    return Err(format!("the launcher's PMI gives the job a name of {length} bytes"));
                }
                // In PMI-2 it has been asked for already.
                if let (Some(name), false) = (one, connection.two) {
                    let mapping =
                        Message::new("get").with("kvsname", name).with("key", "PMI_process_mapping");
                    self.ask_for(rank, For::Mapping, mapping, out);
                }
            }
            For::Mapping => self.mapping(rank, &message, out)?,
            For::Put => {
                if code != 0 {
                    return Err(failed("put"));
                }
                if let Some(gathering) = &mut self.gathering {
                    gathering.puts -= 1;
                    if gathering.puts == 0 {
                        self.barrier(out);
                    }
                }
            }
            For::Barrier => {
                if code != 0 {
                    return Err(failed("the barrier"));
                }
                if let Some(gathering) = &mut self.gathering {
                    gathering.barriers -= 1;
                    if gathering.barriers == 0 {
                        self.fetch(out);
                    }
                }
            }
            For::Piece { node, piece } => {
                if code != 0 || message.get("found").is_some_and(|f| f.eq_ignore_ascii_case("false")) {
                    return Err(failed(&format!("getting what node {node} put")));
                }
                let value = message.get("value").unwrap_or_default().to_owned();
                self.piece(node, piece, &value, out)?;
            }
            For::Finalize => out.push(Out::Finalized(rank)),
            For::Named(asker, ask) => {
                let good = code == 0 && message.get("info").is_none_or(|i| i == "ok");
                out.push(Out::Named(asker, named(good, &ask, &message)));
            }
        }
        match &message.command[..] {
            "maxes" => self.value_max = message.number("vallen_max").unwrap_or(1024),
            "appnum" => self.appnum.extend(message.number("appnum").map(|n: u32| (rank, n))),
            "universe_size" => self.universe = message.number("size"),
            _ => {}
        }
        if let Some(connection) = self.connections.get_mut(&rank) {
            connection.send(out);
            if connection.under_way.is_none() && !connection.started && connection.begun {
                connection.started = true;
                self.started(rank, out);
            }
        }
        Ok(())
    }

    /// The versions are agreed.
    fn initialised(&mut self, rank: u32, out: &mut Vec<Out>) {
        if self.is_two(rank) {
            let command = Message::new("fullinit").with("pmirank", rank).with("threaded", "FALSE");
            return self.ask_for(rank, For::FullInit, command, out);
        }
        if !self.asking {
            self.asking = true;
            for (what, command) in [
                (For::Maxes, "get_maxes"),
                (For::Name, "get_my_kvsname"),
                (For::Universe, "get_universe_size"),
            ] {
                self.ask_for(rank, what, Message::new(command), out);
            }
        }
        self.ask_for(rank, For::Appnum, Message::new("get_appnum"), out);
    }

    fn full(&mut self, rank: u32, out: &mut Vec<Out>) {
        if !self.asking {
            self.asking = true;
            self.ask_for(rank, For::Name, Message::new("job-getid"), out);
            let mapping = Message::new("info-getjobattr").with("key", "PMI_process_mapping");
            self.ask_for(rank, For::Mapping, mapping, out);
        }
    }

    fn mapping(&mut self, rank: u32, message: &Message, out: &mut Vec<Out>) -> Result<(), String> {
        let size = self.size.ok_or("the launcher does not say how many ranks the job has")?;
        let text = message.get("value").unwrap_or_default();
        let node_of = match parse_mapping(text, size) {
            Some(node_of) => node_of,
            None if size == 1 => vec![0],
            None => {
                return Err(format!(
                    "the launcher does not say where the ranks are: its mapping is {text:?}"
                ));
            }
        };
        let node = *node_of.get(rank as usize).ok_or_else(|| format!("rank {rank} is none of {size}"))?;
        let name = self.name.clone().ok_or("the launcher gives the job no name")?;
        self.job = Some(Job {
            id: safe_name(&name),
            hosts: Vec::new(),
            node,
            appnum: (0..size).map(|r| self.appnum.get(&r).copied().unwrap_or(0)).collect(),
            node_of,
            universe: self.universe,
            oversubscribed: false,
        });
        out.extend(self.job.clone().map(Out::Job));
        Ok(())
    }

    fn started(&mut self, rank: u32, out: &mut Vec<Out>) {
        let number = self.appnum.get(&rank).copied().unwrap_or(0);
        if let Some(place) = self.job.as_mut().and_then(|job| job.appnum.get_mut(rank as usize)) {
            *place = number;
        }
        out.push(Out::Started(rank));
    }

    /// The number of a local rank's application.
    pub fn appnum(&self, rank: u32) -> u32 {
        self.appnum.get(&rank).copied().unwrap_or(0)
    }
}

impl Connection {
    fn protocol(&self) -> Protocol {
        if self.two { Protocol::Two } else { Protocol::One }
    }

    fn send(&mut self, out: &mut Vec<Out>) {
        if self.under_way.is_some() {
            return;
        }
        if let Some((what, message)) = self.queue.pop_front() {
            out.push(Out::Send(self.link, message.encode(self.protocol())));
            self.under_way = Some(what);
        }
    }
}

fn init(version: Version) -> Message {
    let (version, subversion) = if version == Version::Two { (2, 0) } else { (1, 1) };
    Message::new("init").with("pmi_version", version).with("pmi_subversion", subversion)
}

fn refuse(asker: Asker, out: &mut Vec<Out>) {
    let why = "the launcher's PMI knows only names with a short text each".to_owned();
    out.push(Out::Named(asker, Answer::Refused(why)));
}

fn named(good: bool, ask: &Ask, message: &Message) -> Answer {
    match (good, ask) {
        (false, Ask::Publish(_)) => Answer::Exists,
        (false, _) => Answer::NotFound,
        (true, Ask::Lookup { keys, .. }) => match message.get("port") {
            Some(port) => {
                let info = Info::new(keys.first().map_or("", String::as_str), Value::string(port));
                Answer::Found(vec![(Proc { nspace: String::new(), rank: 0 }, info)])
            }
            None => Answer::NotFound,
        },
        (true, _) => Answer::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::simple::Simple;
    use crate::engine::{Effect, Participants, Peer};

    /// A launcher of several nodes, made of our own server; each node's ranks speak to it by clients of theirs.
    struct Launcher {
        job: Job,
        server: Simple,
        inside: Vec<(Link, Vec<u8>)>,
        frames: HashMap<Link, Frames>,
    }

    impl Launcher {
        fn new(node_of: Vec<u32>) -> Launcher {
            let job = Job {
                id: "kvs.7".into(),
                hosts: Vec::new(),
                node: 0,
                appnum: vec![0; node_of.len()],
                node_of,
                universe: Some(9),
                oversubscribed: false,
            };
            Launcher { job, server: Simple::default(), inside: Vec::new(), frames: HashMap::new() }
        }

        /// Replies to what a rank's client sent.
        fn hear(&mut self, link: Link, bytes: &[u8]) -> Vec<(Link, Vec<u8>)> {
            assert!(bytes.len() <= MAX_COMMAND, "{}", bytes.len());
            let frames = self.frames.entry(link).or_default();
            frames.push(bytes);
            let mut replies = Vec::new();
            while let Some(frame) = frames.frame().unwrap() {
                for effect in self.server.handle(&self.job, Peer { rank: link, link }, &frame) {
                    match effect {
                        Effect::Send(link, bytes) => replies.push((link, bytes)),
                        Effect::Finalize(peer, bytes) => replies.push((peer.link, bytes)),
                        Effect::Enter { peer, others, good, .. } => {
                            assert_eq!(others, Participants::all("barrier"));
                            self.inside.push((peer.link, good));
                            if self.inside.len() == self.job.node_of.len() {
                                replies.append(&mut self.inside);
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            replies
        }
    }

    /// Runs every node's client until nothing more is to be said; what they put out besides.
    fn talk(
        launcher: &mut Launcher,
        clients: &mut [Client],
        mut outs: Vec<(usize, Out)>,
    ) -> Vec<(usize, Out)> {
        let mut seen = Vec::new();
        while !outs.is_empty() {
            let (node, out) = outs.remove(0);
            let Out::Send(link, bytes) = out else {
                seen.push((node, out));
                continue;
            };
            for (link, reply) in launcher.hear(link, &bytes) {
                let node = launcher.job.node_of[link as usize] as usize;
                let mut more = Vec::new();
                clients[node].receive(link, &reply, &mut more);
                outs.extend(more.into_iter().map(|out| (node, out)));
            }
        }
        seen
    }

    fn exchange(version: Version, node_of: Vec<u32>, length: usize) {
        let mut launcher = Launcher::new(node_of.clone());
        let nodes = *node_of.iter().max().unwrap() as usize + 1;
        let mut clients = vec![Client::new(Some(node_of.len() as u32), version); nodes];
        let mut outs = Vec::new();
        for (rank, node) in (0..).zip(&node_of) {
            let mut out = Vec::new();
            let client = &mut clients[*node as usize];
            client.join(rank, rank, Host::Open);
            client.start(rank, &mut out);
            outs.extend(out.into_iter().map(|o| (*node as usize, o)));
        }
        let seen = talk(&mut launcher, &mut clients, outs);
        assert_eq!(seen.iter().filter(|(_, o)| matches!(o, Out::Started(_))).count(), node_of.len());
        for (node, out) in &seen {
            if let Out::Job(job) = out {
                assert_eq!(
                    (job.node as usize, &job.node_of, job.universe),
                    (*node, &node_of, clients[*node].universe)
                );
                assert_eq!(job.id, "kvs.7");
            }
        }
        let mut launched = launcher;
        for round in 0..2u8 {
            let part =
                |node: usize| (0..length).map(|i| (i as u8) ^ (node as u8) ^ round).collect::<Vec<u8>>();
            let mut outs = Vec::new();
            for (node, client) in clients.iter_mut().enumerate() {
                let mut out = Vec::new();
                client.gather(&part(node), &mut out);
                outs.extend(out.into_iter().map(|o| (node, o)));
            }
            let seen = talk(&mut launched, &mut clients, outs);
            assert_eq!(seen.len(), nodes);
            for (node, out) in seen {
                let others = (0..nodes).filter(|n| *n != node).map(|n| (n as u32, part(n))).collect();
                assert_eq!(out, Out::Gathered(others));
            }
        }
        let mut out = Vec::new();
        clients[0].finalize(0, &mut out);
        let seen = talk(&mut launched, &mut clients, vec![(0, out.remove(0))]);
        assert_eq!(seen, [(0, Out::Finalized(0))]);
    }

    #[test]
    fn nodes_exchange_parts_of_any_length_in_either_protocol() {
        for version in [Version::Any, Version::Two] {
            for length in [0, 1, 600, 5000] {
                exchange(version, vec![0, 0, 1, 2, 2], length);
            }
            exchange(version, vec![0], 10);
        }
    }

    #[test]
    fn a_launcher_that_refuses_pmi_1_is_asked_for_pmi_2() {
        let mut client = Client::new(Some(1), Version::Any);
        client.join(0, 5, Host::Open);
        client.join(1, 6, Host::Open);
        let mut out = Vec::new();
        client.start(0, &mut out);
        client.start(1, &mut out);
        out.clear();
        client.receive(5, b"cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=-1\n", &mut out);
        assert_eq!(out, [Out::Send(5, init(Version::Two).encode(Protocol::One))]);
        out.clear();
        client.receive(5, b"cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0\n", &mut out);
        assert!(matches!(&out[..], [Out::Send(5, b)] if b[6..].starts_with(b"cmd=fullinit;pmirank=0;")));
        // Another rank had asked before that was known.
        out.clear();
        client.receive(6, b"cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=-1\n", &mut out);
        assert_eq!(out, [Out::Send(6, init(Version::Two).encode(Protocol::One))]);
    }

    #[test]
    fn an_address_is_connected_to_and_asked_who_we_are() {
        let mut client = Client::new(None, Version::Any);
        client.join(3, 5, Host::At("h:1".into()));
        let mut out = Vec::new();
        client.start(3, &mut out);
        assert_eq!(out, [Out::Connect(5, "h:1".into()), Out::Send(5, b"cmd=initack pmiid=3\n".to_vec())]);
        out.clear();
        client.receive(5, b"cmd=initack rc=0\ncmd=set size=4\ncmd=set rank=3\ncmd=set debug=0\n", &mut out);
        assert_eq!((client.size, out.len()), (Some(4), 1));
        let mut out = Vec::new();
        client.receive(5, b"cmd=nonsense\ncmd=unasked\n", &mut out);
        assert!(out.iter().any(|o| matches!(o, Out::Failed(_))) || !out.is_empty());
    }

    #[test]
    fn what_a_launcher_should_not_say_fails_and_says_why() {
        let mut client = Client::new(Some(2), Version::Any);
        client.join(0, 5, Host::Open);
        let mut out = Vec::new();
        client.receive(5, b"cmd=barrier_out\n", &mut out);
        assert!(matches!(&out[..], [Out::Failed(why)] if why.contains("unasked")), "{out:?}");
    }

    #[test]
    fn what_a_launcher_only_says_costs_nothing() {
        let mut client = Client::new(Some(2), Version::Any);
        client.join(0, 5, Host::Open);
        let mut out = Vec::new();
        client.start(0, &mut out);
        for line in ["response_to_init pmi_version=1 rc=0", "maxes vallen_max=1024"] {
            client.receive(5, format!("cmd={line}\n").as_bytes(), &mut out);
        }
        let (mut other, long) = (client.clone(), "k".repeat(1000));
        out.clear();
        other.receive(5, format!("cmd=my_kvsname kvsname={long}\n").as_bytes(), &mut out);
        assert!(matches!(&out[..], [Out::Failed(why)] if why.contains("a name of 1000 bytes")), "{out:?}");
        let places = "get_result rc=0 value=(vector,(0,2,1))";
        for line in ["my_kvsname kvsname=k", "universe_size size=2", "appnum appnum=0", places] {
            client.receive(5, format!("cmd={line}\n").as_bytes(), &mut out);
        }
        client.gather(b"part", &mut out);
        out.clear();
        for line in ["put_result rc=0", "barrier_out rc=0", "get_result rc=0 value=131072:YQ=="] {
            client.receive(5, format!("cmd={line}\n").as_bytes(), &mut out);
        }
        assert_eq!(out.len(), 3, "the barrier, the first piece, the second one: {out:?}");
        assert!(client.connections[&0].queue.is_empty(), "pieces are asked for one after the other");
    }
}

//! A PMIx server for the ranks of a node.
//!
//! What ranks commit is kept as it was packed; keys alone are read. A get is answered with all that the asked
//! rank may show to the asking one, as OpenPMIx's server does (pmix_server_get.c), when it is there.

use std::collections::{HashMap, HashSet};

use super::groups::{self, Groups};
use super::names::{Answer, Ask, Asker};
use super::{Effect, Link, Participants, Peer};
use crate::job::Job;
use crate::pmix::command::{self, Request, scope};
use crate::pmix::handshake::{Header, Hello};
use crate::pmix::job::{Directories, of_rank, pack};
use crate::pmix::{Info, Proc, RANK_UNDEF, RANK_WILDCARD, Reader, Writer, status};

/// All that ranks have committed, together.
const MAX_STORE: usize = 256 << 20;
/// Requests of one rank that wait for data.
const MAX_WAITING: usize = 65536;

/// What one rank has committed.
#[derive(Debug, Default)]
struct Stored {
    /// KVALs for ranks of its node only.
    local: Vec<u8>,
    /// KVALs for ranks of other nodes.
    remote: Vec<u8>,
    /// KVALs for all.
    global: Vec<u8>,
    /// How much of remote and global has been given to other nodes.
    sent: (usize, usize),
    keys: HashSet<String>,
    committed: bool,
}

/// A get that waits.
#[derive(Debug)]
struct Waiting {
    peer: Peer,
    tag: u32,
    rank: u32,
    key: Option<String>,
}

/// All sessions of a node, and what was committed.
#[derive(Debug)]
pub struct Pmix {
    nspace: String,
    directories: Option<Directories>,
    stored: HashMap<u32, Stored>,
    size: usize,
    waiting: Vec<Waiting>,
    /// Requests whose answers come from the service of names, by their tags.
    asked: HashSet<Asker>,
    groups: Groups,
}

/// What a rank committed for other nodes.
pub type Committed = (u32, Vec<u8>);

impl Pmix {
    /// A server of this namespace.
    pub fn new(nspace: &str, directories: Option<Directories>) -> Pmix {
        Pmix {
            nspace: nspace.to_owned(),
            directories,
            stored: HashMap::new(),
            size: 0,
            waiting: Vec::new(),
            asked: HashSet::new(),
            groups: Groups::default(),
        }
    }

    /// Its namespace.
    pub fn nspace(&self) -> &str {
        &self.nspace
    }

    /// Whether this client may come in: whose namespace and dialect are ours. The rank is its caller's matter.
    pub fn admit(&self, hello: &Hello) -> Result<(), (i32, String)> {
        hello.judge()?;
        if hello.nspace != self.nspace {
            let what =
                format!("a PMIx client of {:?} asks to connect: this is {:?}", hello.nspace, self.nspace);
            return Err((status::INVALID_CRED, what));
        }
        Ok(())
    }

    /// It has come in by this connection.
    pub fn admitted(&mut self, link: Link, hello: &Hello) {
        self.groups.admitted(link, &hello.version);
    }

    /// One request, by its tag.
    pub fn handle(&mut self, job: &Job, peer: Peer, tag: u32, bytes: &[u8]) -> Vec<Effect> {
        match Request::parse(bytes) {
            Ok(request) => self.request(job, peer, tag, request),
            Err(e) => vec![Effect::Broken(peer.link, e.0)],
        }
    }

    fn request(&mut self, job: &Job, peer: Peer, tag: u32, request: Request) -> Vec<Effect> {
        let send = |w: Writer| vec![Effect::Send(peer.link, reply(tag, w))];
        let with = |code: i32| Writer::new().status(code);
        match request {
            Request::Job => {
                let told = pack(job, peer.rank, &self.nspace, self.directories.as_ref());
                vec![Effect::Send(peer.link, Header::frame(0, tag, &told))]
            }
            Request::Commit(parts) => match self.commit(peer.rank, &parts) {
                Ok(()) => {
                    let mut effects = send(with(status::SUCCESS));
                    effects.extend(self.answer_waiting(job));
                    effects
                }
                Err(why) => vec![Effect::Broken(peer.link, why)],
            },
            Request::Get { proc, infos, key } => self.get(job, peer, tag, &proc, &infos, key),
            Request::Fence { procs, .. } => self.enter(job, peer, tag, "fence", &procs, Writer::new()),
            Request::Connect { procs } => {
                // With the reply comes the job's data of every namespace that takes part: there is one.
                let job_data = pack(job, peer.rank, &self.nspace, self.directories.as_ref());
                self.enter(job, peer, tag, "connect", &procs, Writer::new().bytes(&job_data))
            }
            Request::Disconnect { procs } => self.enter(job, peer, tag, "disconnect", &procs, Writer::new()),
            Request::Finalize => vec![Effect::Finalize(peer, reply(tag, with(status::SUCCESS)))],
            Request::Abort { status: code, message } => {
                let mut effects = send(with(status::SUCCESS));
                effects.push(Effect::Abort { peer, status: code, message });
                effects
            }
            Request::Publish { infos } => self.ask(peer, tag, Ask::Publish(infos)),
            Request::Lookup { mut keys, infos } => {
                // Asked for often, a long value would be told often.
                let mut seen = HashSet::new();
                keys.retain(|key| seen.insert(key.clone()));
                let waits = command::is_set(&infos, command::WAIT);
                // 0 stands for all of them (PMIX_WAIT).
                let wait = match command::number_of(&infos, command::WAIT) {
                    Some(n @ 1..) => usize::try_from(n).unwrap_or(keys.len()).min(keys.len()),
                    Some(0) => keys.len(),
                    None if waits => keys.len(),
                    None => 0,
                };
                self.ask(peer, tag, Ask::Lookup { keys, wait })
            }
            Request::Unpublish { keys } => self.ask(peer, tag, Ask::Unpublish(keys)),
            Request::Control { infos } => {
                let paths = command::texts(&infos, command::CLEANUP);
                if paths.is_empty() {
                    return send(with(status::NOT_SUPPORTED));
                }
                let mut effects = send(with(status::SUCCESS).size(0));
                effects.push(Effect::Leaves(peer, paths));
                effects
            }
            Request::Granted => send(with(status::SUCCESS)),
            Request::Silent => Vec::new(),
            Request::GroupConstruct { group, procs, infos } => {
                self.construct(job, peer, tag, &group, &procs, &infos)
            }
            Request::GroupDestruct { group, procs } => {
                self.enter(job, peer, tag, &format!("end of group {group}"), &procs, Writer::new())
            }
            Request::Spawn | Request::Other(_) => send(with(status::NOT_SUPPORTED)),
        }
    }

    fn commit(&mut self, rank: u32, parts: &[(u8, Vec<u8>)]) -> Result<(), String> {
        let stored = self.stored.entry(rank).or_default();
        for (scope, kvals) in parts {
            self.size += kvals.len();
            if self.size > MAX_STORE {
                return Err(format!("what the ranks have put is more than {MAX_STORE} bytes"));
            }
            stored.keys.extend(keys(kvals).map_err(|e| e.0)?);
            match *scope {
                scope::LOCAL => stored.local.extend_from_slice(kvals),
                scope::REMOTE => stored.remote.extend_from_slice(kvals),
                _ => stored.global.extend_from_slice(kvals),
            }
        }
        stored.committed = true;
        Ok(())
    }

    /// What was committed on this node for others since it was last asked.
    pub fn take_fresh(&mut self) -> Vec<Committed> {
        let mut fresh = Vec::new();
        for (rank, stored) in &mut self.stored {
            let mut new = stored.remote[stored.sent.0..].to_vec();
            new.extend_from_slice(&stored.global[stored.sent.1..]);
            stored.sent = (stored.remote.len(), stored.global.len());
            if !new.is_empty() {
                fresh.push((*rank, new));
            }
        }
        fresh.sort_unstable_by_key(|(rank, _)| *rank);
        fresh
    }

    /// What was committed on other nodes; `complete`: all ranks of theirs have committed what they will.
    pub fn learn(&mut self, job: &Job, committed: Vec<Committed>) -> Result<Vec<Effect>, String> {
        for (rank, kvals) in committed {
            self.size += kvals.len();
            if self.size > MAX_STORE {
                return Err(format!("what the ranks have put is more than {MAX_STORE} bytes"));
            }
            let stored = self.stored.entry(rank).or_default();
            stored.keys.extend(keys(&kvals).map_err(|e| e.0)?);
            // From another node: nothing of it is for local ranks only, nor to be sent again.
            stored.global.extend_from_slice(&kvals);
            stored.sent.1 = stored.global.len();
            stored.committed = true;
        }
        Ok(self.answer_waiting(job))
    }

    fn get(
        &mut self,
        job: &Job,
        peer: Peer,
        tag: u32,
        proc: &Proc,
        infos: &[Info],
        key: Option<String>,
    ) -> Vec<Effect> {
        let not_found = || vec![Effect::Send(peer.link, reply(tag, Writer::new().status(status::NOT_FOUND)))];
        let known = |rank: u32| key.as_ref().is_none_or(|key| self.has(rank, key));
        if proc.nspace != self.nspace || proc.rank == RANK_WILDCARD {
            return not_found();
        }
        if let Some(kval) = key.as_deref().and_then(|key| self.groups.find(proc.rank, key, infos)) {
            let shown = Writer::new().procs(std::slice::from_ref(proc)).raw(&kval).into_bytes();
            let answer = Writer::new().status(status::SUCCESS).bytes(&shown);
            return vec![Effect::Send(peer.link, reply(tag, answer))];
        }
        if key.as_ref().is_some_and(|key| key.starts_with("pmix.")) && !known(proc.rank) {
            // The launcher's to say: it is known by now, or nothing is.
            let known = of_rank(job, proc.rank, None);
            let asked = key.as_deref().unwrap_or_default();
            return match known.filter(|kvals| keys(kvals).is_ok_and(|all| all.iter().any(|k| k == asked))) {
                Some(kvals) => {
                    let shown = Writer::new().procs(std::slice::from_ref(proc)).raw(&kvals).into_bytes();
                    let answer = Writer::new().status(status::SUCCESS).bytes(&shown);
                    vec![Effect::Send(peer.link, reply(tag, answer))]
                }
                None => not_found(),
            };
        }
        if proc.rank != RANK_UNDEF && proc.rank >= job.size() {
            return not_found();
        }
        let waiting = Waiting { peer, tag, rank: proc.rank, key };
        if let Some(effect) = self.answer(job, &waiting) {
            return vec![effect];
        }
        // A rank that has committed may commit more: but who asks has synchronised with it, or asks at once.
        let committed = self.stored.get(&proc.rank).is_some_and(|s| s.committed);
        if command::is_set(infos, command::IMMEDIATE) || committed || self.waiting.len() >= MAX_WAITING {
            return not_found();
        }
        self.waiting.push(waiting);
        Vec::new()
    }

    fn has(&self, rank: u32, key: &str) -> bool {
        self.stored.get(&rank).is_some_and(|s| s.keys.contains(key))
    }

    fn answer(&self, job: &Job, waiting: &Waiting) -> Option<Effect> {
        let rank = match (waiting.rank, &waiting.key) {
            (RANK_UNDEF, Some(key)) => (0..job.size()).find(|rank| self.has(*rank, key))?,
            (rank, _) => rank,
        };
        let stored = self.stored.get(&rank).filter(|s| s.committed)?;
        if waiting.key.as_ref().is_some_and(|key| !stored.keys.contains(key)) {
            return None;
        }
        let proc = Writer::new().procs(&[Proc { nspace: self.nspace.clone(), rank }]);
        let place = |rank: u32| job.node_of.get(rank as usize);
        // One or the other: Open MPI puts under one key an address with shared memory for its node, and one without for
        // the others (ompi/mca/pml/ucx, mca_pml_ucx_send_worker_address).
        let own = if place(rank) == place(waiting.peer.rank) { &stored.local } else { &stored.remote };
        let shown = proc.raw(own).raw(&stored.global).into_bytes();
        let answer = Writer::new().status(status::SUCCESS).bytes(&shown);
        Some(Effect::Send(waiting.peer.link, reply(waiting.tag, answer)))
    }

    fn answer_waiting(&mut self, job: &Job) -> Vec<Effect> {
        let mut effects = Vec::new();
        let waiting = std::mem::take(&mut self.waiting);
        for one in waiting {
            match self.answer(job, &one) {
                Some(effect) => effects.push(effect),
                None => self.waiting.push(one),
            }
        }
        effects
    }

    /// A fence, or what works like one. `more` follows the status of a good reply.
    fn enter(
        &self,
        job: &Job,
        peer: Peer,
        tag: u32,
        name: &str,
        procs: &[Proc],
        more: Writer,
    ) -> Vec<Effect> {
        let bad = reply(tag, Writer::new().status(status::NOT_SUPPORTED));
        if procs.iter().any(|p| p.nspace != self.nspace) {
            return vec![Effect::Send(peer.link, bad)];
        }
        let mut ranks: Vec<u32> = procs.iter().map(|p| p.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let all = ranks.is_empty() || ranks.contains(&RANK_WILDCARD) || ranks.len() == job.size() as usize;
        let is_stranger = |rank: &u32| *rank >= job.size() && *rank != RANK_WILDCARD;
        if ranks.iter().any(is_stranger) || !all && !ranks.contains(&peer.rank) {
            let bad = reply(tag, Writer::new().status(status::BAD_PARAM));
            return vec![Effect::Send(peer.link, bad)];
        }
        // Barriers of PMI-1 and fences of PMIx over the whole job are one thing.
        let name = if all && name == "fence" { "barrier" } else { name };
        let others = Participants { ranks: (!all).then_some(ranks), name: name.to_owned() };
        let good = reply(tag, Writer::new().status(status::SUCCESS).raw(&more.into_bytes()));
        vec![Effect::Enter { peer, others, good, bad }]
    }

    /// A group is a fence of its members under its name; the number of a good reply is put in when all are there.
    fn construct(
        &mut self,
        job: &Job,
        peer: Peer,
        tag: u32,
        group: &str,
        procs: &[Proc],
        infos: &[Info],
    ) -> Vec<Effect> {
        // Newer clients may leave it to others who the members are.
        if procs.is_empty() {
            return vec![Effect::Send(peer.link, reply(tag, Writer::new().status(status::NOT_SUPPORTED)))];
        }
        let is_wild = procs.iter().any(|p| p.rank == RANK_WILDCARD);
        let mut ranks: Vec<u32> =
            if is_wild { (0..job.size()).collect() } else { procs.iter().map(|p| p.rank).collect() };
        ranks.sort_unstable();
        ranks.dedup();
        let members: Vec<Proc> =
            ranks.into_iter().map(|rank| Proc { nspace: self.nspace.clone(), rank }).collect();
        let more = self.groups.reply(peer.link, &members);
        let effects = self.enter(job, peer, tag, &groups::operation(group), procs, more);
        if let [Effect::Enter { others, .. }] = &effects[..] {
            self.size += self.groups.leave(others, (peer.rank, peer.link), infos);
            if self.size > MAX_STORE {
                let why = format!("what the ranks have put is more than {MAX_STORE} bytes");
                return vec![Effect::Broken(peer.link, why)];
            }
        }
        effects
    }

    /// What the members here have left for a group that is complete here, for other nodes.
    pub fn take_left(&mut self, others: &Participants) -> Vec<Committed> {
        self.groups.take_left(others)
    }

    /// A group is complete: its number goes into its members' replies. `node`: it is on this one only; `left`: what
    /// its members have left for each other.
    pub fn constructed(
        &mut self,
        node: Option<u32>,
        left: &[Committed],
        replies: &mut [(Link, Vec<u8>)],
    ) -> Result<(), String> {
        let number = self.groups.next(node);
        replies.iter_mut().for_each(|(_, reply)| groups::number(reply, number));
        self.groups.share(number, left).map_err(|e| e.0)
    }

    fn ask(&mut self, peer: Peer, tag: u32, ask: Ask) -> Vec<Effect> {
        let asker = Asker { peer, ticket: tag };
        self.asked.insert(asker);
        vec![Effect::Name(asker, ask)]
    }

    /// The answer of the service of names, for the rank that asked.
    pub fn named(&mut self, asker: Asker, answer: &Answer) -> Vec<Effect> {
        if !self.asked.remove(&asker) {
            return Vec::new();
        }
        let w = match answer {
            Answer::Done => Writer::new().status(status::SUCCESS),
            Answer::Found(found) => Writer::new().status(status::SUCCESS).size(found.len()).pdata(found),
            Answer::NotFound => Writer::new().status(status::NOT_FOUND),
            Answer::Exists => Writer::new().status(status::DUPLICATE_KEY),
            Answer::Refused(_) => Writer::new().status(status::NOT_SUPPORTED),
        };
        vec![Effect::Send(asker.peer.link, reply(asker.ticket, w))]
    }

    /// The connection is gone.
    pub fn closed(&mut self, link: Link) {
        self.waiting.retain(|w| w.peer.link != link);
        self.asked.retain(|asker| asker.peer.link != link);
        self.groups.closed(link);
    }
}

fn reply(tag: u32, w: Writer) -> Vec<u8> {
    Header::frame(0, tag, &w.into_bytes())
}

/// The keys of packed KVALs.
fn keys(kvals: &[u8]) -> Result<Vec<String>, crate::wire::Malformed> {
    let mut r = Reader::new(kvals);
    let mut keys = Vec::new();
    while !r.is_empty() {
        keys.push(r.kval()?.key);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmix::Value;
    use crate::pmix::handshake::Messages;
    use proptest::prelude::*;

    fn job() -> Job {
        Job {
            id: "job".into(),
            node_of: vec![0, 0, 1],
            hosts: vec!["a".into(), "b".into()],
            node: 0,
            appnum: vec![0; 3],
            universe: None,
            oversubscribed: false,
        }
    }

    fn peer(rank: u32) -> Peer {
        Peer { rank, link: rank }
    }

    fn kvals(key: &str) -> Vec<u8> {
        Writer::new().kval(key, &Value::bytes(key.as_bytes().to_vec())).into_bytes()
    }

    /// Replies by link and tag.
    fn replies(effects: &[Effect]) -> Vec<(Link, u32, Vec<u8>)> {
        effects
            .iter()
            .map(|effect| {
                let Effect::Send(link, bytes) = effect else { panic!("{effect:?}") };
                let mut messages = Messages::default();
                messages.push(bytes);
                let (header, body) = messages.message().unwrap().unwrap();
                (*link, header.tag, body)
            })
            .collect()
    }

    fn commit(e: &mut Pmix, rank: u32, scope: u8, key: &str) -> Vec<(Link, u32, Vec<u8>)> {
        let request = Request::Commit(vec![(scope, kvals(key))]).pack(0);
        replies(&e.handle(&job(), peer(rank), 1, &request))
    }

    fn get(rank: u32, key: &str, infos: &[Info]) -> Vec<u8> {
        let proc = Proc { nspace: "job".into(), rank };
        Request::Get { proc, infos: infos.to_vec(), key: Some(key.into()) }.pack(0)
    }

    fn shown(body: &[u8]) -> Result<Vec<String>, i32> {
        let mut r = Reader::new(body);
        let status = r.status().unwrap();
        if status != 0 {
            return Err(status);
        }
        let mut blob = Reader::new(r.bytes().unwrap());
        blob.procs().unwrap();
        Ok(keys(blob.rest()).unwrap())
    }

    #[test]
    fn a_get_waits_for_the_commit_and_sees_what_it_may() {
        let mut e = Pmix::new("job", None);
        assert_eq!(e.handle(&job(), peer(0), 7, &get(1, "l", &[])), []);
        let immediate = [Info::new(command::IMMEDIATE, Value::Bool(true))];
        let now = replies(&e.handle(&job(), peer(0), 8, &get(1, "l", &immediate)));
        assert_eq!(shown(&now[0].2), Err(status::NOT_FOUND));
        let committed = commit(&mut e, 1, scope::LOCAL, "l");
        assert_eq!((committed[0].0, committed[1].0, committed[1].1), (1, 0, 7));
        assert_eq!(shown(&committed[1].2).unwrap(), ["l"]);
        commit(&mut e, 1, scope::GLOBAL, "g");
        commit(&mut e, 1, scope::REMOTE, "r");
        // Of what is for other nodes a rank of this one sees nothing: it may be under the same key.
        let here = replies(&e.handle(&job(), peer(0), 8, &get(1, "g", &[])));
        assert_eq!(shown(&here[0].2).unwrap(), ["l", "g"]);
        // Other nodes get what is for them, once.
        let fresh = e.take_fresh();
        assert_eq!(
            fresh.iter().map(|(r, b)| (*r, keys(b).unwrap())).collect::<Vec<_>>(),
            [(1, vec!["r".into(), "g".into()])]
        );
        assert_eq!(e.take_fresh(), []);
        // What the launcher would know, and does not, is answered at once.
        let known = replies(&e.handle(&job(), peer(0), 9, &get(1, "pmix.hwlocxml2", &[])));
        assert_eq!(shown(&known[0].2), Err(status::NOT_FOUND));
        let place = replies(&e.handle(&job(), peer(0), 9, &get(2, "pmix.hname", &[])));
        assert!(shown(&place[0].2).unwrap().contains(&"pmix.hname".to_owned()));
        let nobody = replies(&e.handle(&job(), peer(0), 9, &get(9, "g", &[])));
        assert_eq!(shown(&nobody[0].2), Err(status::NOT_FOUND));
    }

    #[test]
    fn what_other_nodes_have_answers_who_waits() {
        let mut e = Pmix::new("job", None);
        assert_eq!(e.handle(&job(), peer(0), 7, &get(2, "x", &[])), []);
        assert_eq!(e.handle(&job(), peer(1), 8, &get(RANK_UNDEF, "x", &[])), []);
        let due = replies(&e.learn(&job(), vec![(2, kvals("x"))]).unwrap());
        assert_eq!(due.iter().map(|r| (r.0, r.1)).collect::<Vec<_>>(), [(0, 7), (1, 8)]);
        assert_eq!(shown(&due[0].2).unwrap(), ["x"]);
        assert_eq!(e.take_fresh(), [], "it came from there");
        assert!(e.learn(&job(), vec![(2, vec![1, 2, 3])]).is_err());
    }

    #[test]
    fn fences_of_all_and_of_some() {
        let mut e = Pmix::new("job", None);
        let mut fence = |ranks: &[u32], nspace: &str| {
            let procs = ranks.iter().map(|r| Proc { nspace: nspace.into(), rank: *r }).collect();
            let effects = e.handle(&job(), peer(0), 3, &Request::Fence { procs, infos: Vec::new() }.pack(0));
            match effects.into_iter().next().unwrap() {
                Effect::Enter { others, .. } => Ok((others.name, others.ranks)),
                other => Err(Reader::new(&replies(&[other])[0].2).status().unwrap()),
            }
        };
        assert_eq!(fence(&[RANK_WILDCARD], "job"), Ok(("barrier".into(), None)));
        assert_eq!(fence(&[2, 1, 0], "job"), Ok(("barrier".into(), None)));
        assert_eq!(fence(&[1, 0], "job"), Ok(("fence".into(), Some(vec![0, 1]))));
        assert_eq!(fence(&[1, 2], "job"), Err(status::BAD_PARAM));
        assert_eq!(fence(&[0, 7], "job"), Err(status::BAD_PARAM));
        assert_eq!(fence(&[0, 7, 8], "job"), Err(status::BAD_PARAM), "as many as there are, but others");
        assert_eq!(fence(&[RANK_WILDCARD], "other"), Err(status::NOT_SUPPORTED));
    }

    #[test]
    fn files_that_a_rank_would_leave() {
        let mut e = Pmix::new("job", None);
        let infos = vec![Info::new(command::CLEANUP, Value::string("/dev/shm/a"))];
        let effects = e.handle(&job(), peer(1), 3, &Request::Control { infos }.pack(0));
        assert_eq!(effects[1], Effect::Leaves(peer(1), vec!["/dev/shm/a".into()]));
        assert_eq!(Reader::new(&replies(&effects[..1])[0].2).status(), Ok(status::SUCCESS));
        let effects = e.handle(&job(), peer(1), 3, &Request::Control { infos: Vec::new() }.pack(0));
        assert_eq!(Reader::new(&replies(&effects)[0].2).status(), Ok(status::NOT_SUPPORTED));
    }

    #[test]
    fn names_are_answered_under_the_tag_of_what_was_asked() {
        let mut e = Pmix::new("job", None);
        let mut ask = |tag, request: Request| {
            let effects = e.handle(&job(), peer(0), tag, &request.pack(0));
            let [Effect::Name(asker, ask)] = &effects[..] else { panic!("{effects:?}") };
            (*asker, ask.clone())
        };
        let keys = ["a", "b", "a"].map(str::to_owned).to_vec();
        let infos = vec![Info::new(command::WAIT, Value::u32(0))];
        let (first, lookup) = ask(7, Request::Lookup { keys, infos });
        assert!(matches!(lookup, Ask::Lookup { keys, wait: 2 } if keys == ["a", "b"]));
        let (second, _) = ask(8, Request::Publish { infos: vec![Info::new("a", Value::u32(1))] });
        assert_eq!(replies(&e.named(second, &Answer::Done))[0].1, 8);
        assert_eq!(replies(&e.named(first, &Answer::NotFound))[0].1, 7);
        assert_eq!(e.named(first, &Answer::Done), [], "asked once, answered once");
    }

    #[test]
    fn who_is_no_rank_of_ours_stays_out() {
        let e = Pmix::new("job", None);
        assert_eq!(e.admit(&Hello::of_rank("job", 0, "v3", 1, 1)), Ok(()));
        let (code, why) = e.admit(&Hello::of_rank("other", 0, "v3", 1, 1)).unwrap_err();
        assert_eq!((code, why.contains("\"other\"")), (status::INVALID_CRED, true));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(messages in prop::collection::vec((0u8..30, prop::collection::vec(any::<u8>(), 0..60)), 0..20)) {
            let mut e = Pmix::new("job", None);
            for (command, rest) in messages {
                let bytes = Writer::new().command(command).raw(&rest).into_bytes();
                e.handle(&job(), peer(0), 1, &bytes);
            }
        }
    }
}

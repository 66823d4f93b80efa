//! A client of the PMIx server in orted, prted or slurmstepd.
//!
//! Each rank has its own connection, as the server registered it; the lowest one asks for the job's data and
//! puts the node's part of a gathering. A fence that collects data brings the parts to every server; they are
//! then got by key.

use std::collections::{BTreeMap, HashMap};

use super::{Host, Out};
use crate::engine::Link;
use crate::engine::names::{Answer, Ask, Asker};
use crate::job::Job;
use crate::pmix::command::{COLLECT, Request, WAIT, scope};
use crate::pmix::handshake::{Header, Hello, Messages};
use crate::pmix::job::{Told, unpack};
use crate::pmix::{Info, Proc, RANK_WILDCARD, Reader, Value, Writer, find, status};
use crate::wire::Malformed;

/// The first tag that clients use (PMIX_PTL_TAG_DYNAMIC).
const FIRST_TAG: u32 = 100;

/// Who we are to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The job's namespace.
    pub nspace: String,
    /// The packing to ask for: "v3", or "v21" where only the older address is given.
    pub bfrops: String,
    /// Ours.
    pub uid: u32,
    /// Ours.
    pub gid: u32,
}

/// What a request under way is for.
#[derive(Clone, Debug)]
enum For {
    Job,
    Commit,
    Fence,
    Part(u32),
    Finalize,
    Named(Asker, Ask),
    Abort,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    Greeted,
    Ready(i32),
}

#[derive(Clone, Debug)]
struct Connection {
    link: Link,
    host: Host,
    messages: Messages,
    state: State,
    /// Its rank has ended: it is to be closed when the server has greeted it.
    leaving: bool,
    tag: u32,
    under_way: BTreeMap<u32, For>,
}

#[derive(Clone, Debug, Default)]
struct Gathering {
    fences: usize,
    missing: usize,
    parts: Vec<(u32, Vec<u8>)>,
}

/// The client.
#[derive(Clone, Debug)]
pub struct Client {
    identity: Identity,
    connections: BTreeMap<u32, Connection>,
    ranks: HashMap<Link, u32>,
    told: Option<Told>,
    job: Option<Job>,
    asking: bool,
    gathering: Option<Gathering>,
    gatherings: u32,
}

impl Client {
    /// Of this job.
    pub fn new(identity: Identity) -> Client {
        Client {
            identity,
            connections: BTreeMap::new(),
            ranks: HashMap::new(),
            told: None,
            job: None,
            asking: false,
            gathering: None,
            gatherings: 0,
        }
    }

    /// What the server said of the job.
    pub fn told(&self) -> Option<&Told> {
        self.told.as_ref()
    }

    pub(super) fn join(&mut self, rank: u32, link: Link, host: Host) {
        let (messages, state) = (Messages::default(), State::New);
        let (leaving, under_way) = (false, BTreeMap::new());
        let connection = Connection { link, host, messages, state, leaving, tag: FIRST_TAG, under_way };
        self.ranks.insert(link, rank);
        self.connections.insert(rank, connection);
    }

    pub(super) fn start(&mut self, rank: u32, out: &mut Vec<Out>) {
        let Some(connection) = self.connections.get_mut(&rank).filter(|c| c.state == State::New) else {
            return;
        };
        connection.state = State::Greeted;
        if let Host::At(address) = &connection.host {
            out.push(Out::Connect(connection.link, address.clone()));
        }
        let Identity { nspace, bfrops, uid, gid } = &self.identity;
        let hello = Hello::of_rank(nspace, rank, bfrops, *uid, *gid);
        out.push(Out::Send(connection.link, hello.encode()));
    }

    /// OpenPMIx 4.2's server, whose welcome finds nobody, keeps what it holds of that client, and its launcher
    /// (Open MPI 4.1.4) then waits for ever in PMIx_server_finalize.
    pub(super) fn leave(&mut self, rank: u32) -> bool {
        let Some(connection) = self.connections.get_mut(&rank) else { return false };
        connection.leaving = connection.state == State::Greeted;
        connection.leaving
    }

    fn request(&mut self, rank: u32, what: For, request: &Request, out: &mut Vec<Out>) {
        let uid = self.identity.uid;
        let Some(connection) = self.connections.get_mut(&rank) else { return };
        let State::Ready(index) = connection.state else { return };
        connection.tag += 1;
        connection.under_way.insert(connection.tag, what);
        out.push(Out::Send(connection.link, Header::frame(index, connection.tag, &request.pack(uid))));
    }

    fn all(&self) -> Vec<Proc> {
        vec![Proc { nspace: self.identity.nspace.clone(), rank: RANK_WILDCARD }]
    }

    fn key(&self) -> String {
        format!("hpcl.{}", self.gatherings)
    }

    pub(super) fn gather(&mut self, part: &[u8], out: &mut Vec<Out>) {
        let (Some(speaker), Some(_)) = (self.connections.keys().next().copied(), &self.job) else {
            return out.push(Out::Failed("nothing can be gathered before the job is known".to_owned()));
        };
        self.gatherings += 1;
        self.gathering = Some(Gathering::default());
        let kvals = Writer::new().kval(&self.key(), &Value::bytes(part.to_vec())).into_bytes();
        let parts = vec![(scope::LOCAL, kvals.clone()), (scope::REMOTE, kvals)];
        self.request(speaker, For::Commit, &Request::Commit(parts), out);
    }

    fn fence(&mut self, out: &mut Vec<Out>) {
        let infos = vec![Info::new(COLLECT, Value::Bool(true))];
        let request = Request::Fence { procs: self.all(), infos };
        let ranks: Vec<u32> = self.connections.keys().copied().collect();
        if let Some(gathering) = &mut self.gathering {
            gathering.fences = ranks.len();
        }
        for rank in ranks {
            self.request(rank, For::Fence, &request, out);
        }
    }

    /// From each other node's lowest rank.
    fn fetch(&mut self, out: &mut Vec<Out>) {
        let (Some(speaker), Some(job)) = (self.connections.keys().next().copied(), &self.job) else { return };
        let mut others: BTreeMap<u32, u32> = BTreeMap::new();
        for (rank, node) in (0..).zip(&job.node_of).filter(|(_, node)| **node != job.node) {
            others.entry(*node).or_insert(rank);
        }
        if let Some(gathering) = &mut self.gathering {
            gathering.missing = others.len();
        }
        for (node, rank) in others {
            let proc = Proc { nspace: self.identity.nspace.clone(), rank };
            let request = Request::Get { proc, infos: Vec::new(), key: Some(self.key()) };
            self.request(speaker, For::Part(node), &request, out);
        }
        self.gathered(out);
    }

    fn gathered(&mut self, out: &mut Vec<Out>) {
        if let Some(mut gathering) = self.gathering.take_if(|g| g.missing == 0) {
            gathering.parts.sort_unstable_by_key(|(node, _)| *node);
            out.push(Out::Gathered(gathering.parts));
        }
    }

    pub(super) fn finalize(&mut self, rank: u32, out: &mut Vec<Out>) {
        self.request(rank, For::Finalize, &Request::Finalize, out);
    }

    pub(super) fn abort(&mut self, rank: u32, status: i32, message: &str, out: &mut Vec<Out>) {
        self.request(rank, For::Abort, &Request::Abort { status, message: message.to_owned() }, out);
    }

    pub(super) fn ask(&mut self, asker: Asker, ask: &Ask, out: &mut Vec<Out>) {
        let request = match ask.clone() {
            Ask::Publish(infos) => Request::Publish { infos },
            Ask::Lookup { keys, wait } => {
                let infos = match u32::try_from(wait) {
                    Ok(wait @ 1..) => vec![Info::new(WAIT, Value::u32(wait))],
                    _ => Vec::new(),
                };
                Request::Lookup { keys, infos }
            }
            Ask::Unpublish(keys) => Request::Unpublish { keys },
        };
        self.request(asker.peer.rank, For::Named(asker, ask.clone()), &request, out);
    }

    /// Whether the end of this connection is no loss: PMIx 3.2.5 may close before its answer to a
    /// finalize is read.
    pub fn is_finalizing(&self, link: Link) -> Option<u32> {
        let rank = self.ranks.get(&link)?;
        let connection = self.connections.get(rank)?;
        connection.under_way.values().any(|what| matches!(what, For::Finalize)).then_some(*rank)
    }

    pub(super) fn receive(&mut self, link: Link, bytes: &[u8], out: &mut Vec<Out>) {
        let Some(rank) = self.ranks.get(&link).copied() else { return };
        let Some(connection) = self.connections.get_mut(&rank) else { return };
        connection.messages.push(bytes);
        if connection.state == State::Greeted {
            match connection.messages.welcome() {
                None => return,
                Some(Ok(index)) => connection.state = State::Ready(index),
                Some(Err(code)) => {
                    return out.push(Out::Failed(format!(
                        "the launcher's PMIx server refuses rank {rank} with status {code}{}",
                        match code {
                            status::INVALID_CRED => ": it takes other credentials than \"native\"",
                            _ => "",
                        }
                    )));
                }
            }
            if connection.leaving {
                return out.push(Out::Left(rank));
            }
            if self.asking {
                out.push(Out::Started(rank));
            } else {
                self.asking = true;
                self.request(rank, For::Job, &Request::Job, out);
            }
        }
        loop {
            let Some(connection) = self.connections.get_mut(&rank) else { return };
            let (header, body) = match connection.messages.message() {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(e) => return out.push(Out::Failed(format!("the launcher's server: {e}"))),
            };
            // Events of the server's come unasked, under tags of its own.
            let Some(what) = connection.under_way.remove(&header.tag) else { continue };
            if let Err(why) = self.reply(rank, what, &body, out) {
                return out.push(Out::Failed(why));
            }
        }
    }

    fn reply(&mut self, rank: u32, what: For, body: &[u8], out: &mut Vec<Out>) -> Result<(), String> {
        let mut r = Reader::new(body);
        let said = |e: Malformed| format!("the launcher's server: {e}");
        let good = |r: &mut Reader, verb: &str| match r.status().map_err(said)? {
            status::SUCCESS => Ok(()),
            code => Err(format!("the launcher's PMIx server: {verb} failed with status {code}")),
        };
        match what {
            For::Job => {
                let told = unpack(body).map_err(said)?;
                let job = told.job(rank).map_err(|why| format!("the launcher's PMIx: {why}"))?;
                self.told = Some(told);
                self.job = Some(job.clone());
                out.push(Out::Job(job));
                out.push(Out::Started(rank));
            }
            For::Commit => {
                good(&mut r, "putting")?;
                self.fence(out);
            }
            For::Fence => {
                good(&mut r, "the fence")?;
                if let Some(gathering) = &mut self.gathering {
                    gathering.fences -= 1;
                    if gathering.fences == 0 {
                        self.fetch(out);
                    }
                }
            }
            For::Part(node) => {
                good(&mut r, &format!("getting what node {node} put"))?;
                let key = self.key();
                let part = find(&mut r, &key).map_err(said)?;
                let part =
                    part.ok_or_else(|| format!("the launcher's PMIx server lost what node {node} put"))?;
                if let Some(gathering) = &mut self.gathering {
                    gathering.parts.push((node, part));
                    gathering.missing -= 1;
                }
                self.gathered(out);
            }
            For::Finalize => out.push(Out::Finalized(rank)),
            For::Named(asker, ask) => {
                let answer = match (r.status().map_err(said)?, &ask) {
                    (status::SUCCESS, Ask::Lookup { .. }) => {
                        r.size().map_err(said)?;
                        Answer::Found(r.pdata().map_err(said)?)
                    }
                    (status::SUCCESS, _) => Answer::Done,
                    (status::NOT_SUPPORTED, _) => Answer::Refused("the launcher has none".to_owned()),
                    (_, Ask::Publish(_)) => Answer::Exists,
                    _ => Answer::NotFound,
                };
                out.push(Out::Named(asker, answer));
            }
            For::Abort => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        let identity = Identity { nspace: "job".into(), bfrops: "v3".into(), uid: 1, gid: 1 };
        let mut client = Client::new(identity);
        client.join(4, 40, Host::At("127.0.0.1:9".into()));
        client
    }

    #[test]
    fn a_connection_that_is_being_greeted_outlives_its_rank() {
        let mut out = Vec::new();
        let mut client = client();
        // Nobody knows of it yet.
        assert!(!client.leave(4));
        client.start(4, &mut out);
        assert!(matches!(&out[..], [Out::Connect(40, _), Out::Send(40, _)]), "{out:?}");
        assert!(client.leave(4));
        let welcome = Hello::of_rank("job", 4, "v3", 1, 1).welcome();
        out.clear();
        client.receive(40, &welcome[..5], &mut out);
        assert_eq!(out, []);
        client.receive(40, &welcome[5..], &mut out);
        assert_eq!(out, [Out::Left(4)]);
        assert!(!client.leave(4));
    }

    #[test]
    fn one_that_was_greeted_asks_for_the_job() {
        let (mut out, mut client) = (Vec::new(), client());
        client.start(4, &mut out);
        client.receive(40, &Hello::of_rank("job", 4, "v3", 1, 1).welcome(), &mut out);
        assert!(matches!(&out[2..], [Out::Send(40, _)]), "{out:?}");
        assert!(!client.leave(4));
    }
}

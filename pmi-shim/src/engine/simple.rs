//! A PMI-1 and PMI-2 server: sessions, and the key-value space that the ranks of a node share.
//!
//! Answers are what hydra 4 and Slurm's pmi2 plugin answer, and where they differ, what every client takes:
//! version 1.1 (1.2 switches on barriers of groups), an even length of values (MPICH writes segments of
//! (max−2)/2 and reads (max−1)/2), both spellings of PMI-2's versions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::names::{Answer, Ask, Asker};
use super::{Effect, Link, Participants, Peer};
use crate::job::Job;
use crate::pmix::{Info, Value};
use crate::wire::message::Protocol;
use crate::wire::{Frame, Message};

/// Longest name of a key-value space, key, and value.
pub const MAXES: (usize, usize, usize) = (256, 64, 1024);
/// All keys and values of a job together.
const MAX_SPACE: usize = 256 << 20;

/// A connection's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Session {
    two: bool,
    initialised: bool,
}

/// All sessions of a node, and what they share.
#[derive(Debug, Default)]
pub struct Simple {
    sessions: HashMap<Link, Session>,
    space: BTreeMap<String, String>,
    size: usize,
    /// Put here since the last exchange with other nodes.
    fresh: BTreeSet<String>,
    attributes: HashMap<String, String>,
    waiting: Vec<(Peer, Message)>,
    /// Requests whose answers come from the service of names.
    asked: HashMap<Asker, Message>,
    tickets: u32,
}

impl Simple {
    /// Whether this rank's connection has said `init`.
    pub fn is_initialised(&self, link: Link) -> bool {
        self.sessions.get(&link).is_some_and(|s| s.initialised)
    }

    /// What was put on this node since it was last asked.
    pub fn take_fresh(&mut self) -> Vec<(String, String)> {
        let keys = std::mem::take(&mut self.fresh);
        keys.into_iter()
            .filter_map(|key| {
                let value = self.space.get(&key)?.clone();
                Some((key, value))
            })
            .collect()
    }

    /// What was put on another node.
    pub fn learn(&mut self, pairs: Vec<(String, String)>) -> Result<(), String> {
        pairs.into_iter().try_for_each(|(key, value)| self.insert(key, value))
    }

    fn insert(&mut self, key: String, value: String) -> Result<(), String> {
        self.size += key.len() + value.len();
        if self.size > MAX_SPACE {
            return Err(format!("the job's keys and values are more than {MAX_SPACE} bytes"));
        }
        let length = key.len();
        if let Some(before) = self.space.insert(key, value) {
            self.size -= length + before.len();
        }
        Ok(())
    }

    /// The connection is gone.
    pub fn closed(&mut self, link: Link) {
        self.sessions.remove(&link);
        self.waiting.retain(|(peer, _)| peer.link != link);
        self.asked.retain(|asker, _| asker.peer.link != link);
    }

    /// One request.
    pub fn handle(&mut self, job: &Job, peer: Peer, frame: &Frame) -> Vec<Effect> {
        let request = match Message::parse(frame) {
            Ok(request) => request,
            Err(e) => return vec![Effect::Broken(peer.link, e.0)],
        };
        let effects = match frame {
            Frame::Line(_) => self.one(job, peer, &request),
            // One of several programs, each in a block: they are answered together (simple_pmi.c, PMI_Spawn_multiple).
            Frame::Block(_) if request.number::<u32>("spawnssofar") < request.number("totspawns") => {
                Ok(Vec::new())
            }
            Frame::Block(_) => {
                // An MPI error for the program, and nothing worse.
                let answer = Message::new("spawn_result")
                    .with("rc", -1)
                    .with("msg", "this launcher starts no further processes");
                Ok(vec![self.answer(peer, &request, answer)])
            }
            Frame::Two(_) => self.two(job, peer, &request),
        };
        effects.unwrap_or_else(|why| vec![Effect::Broken(peer.link, why)])
    }

    /// The protocol's answer to a request, in the request's protocol, with its thread.
    fn answer(&self, peer: Peer, request: &Message, mut answer: Message) -> Effect {
        let two = self.sessions.get(&peer.link).is_some_and(|s| s.two);
        if two && let Some(thread) = request.get("thrid") {
            answer.fields.insert(0, ("thrid".to_owned(), thread.to_owned()));
        }
        let protocol = if two { Protocol::Two } else { Protocol::One };
        Effect::Send(peer.link, answer.encode(protocol))
    }

    fn bytes(&self, peer: Peer, request: &Message, answer: Message) -> Vec<u8> {
        match self.answer(peer, request, answer) {
            Effect::Send(_, bytes) => bytes,
            _ => Vec::new(),
        }
    }

    /// The launcher's own keys.
    fn of_job(job: &Job, key: &str) -> Option<String> {
        match key {
            "PMI_process_mapping" => Some(job.mapping()),
            "universeSize" => Some(job.universe.unwrap_or(job.size()).max(job.size()).to_string()),
            // hydra's, where it has no topology of its own.
            "PMI_hwloc_xmlfile" => Some("unavailable".to_owned()),
            "PMI_dead_processes" => Some(String::new()),
            _ => None,
        }
    }

    fn put(&mut self, key: &str, value: &str) -> Result<(), String> {
        self.insert(key.to_owned(), value.to_owned())?;
        self.fresh.insert(key.to_owned());
        Ok(())
    }

    fn one(&mut self, job: &Job, peer: Peer, request: &Message) -> Result<Vec<Effect>, String> {
        let command = request.command.as_str();
        if command != "init" && !self.is_initialised(peer.link) {
            return Err(format!("PMI-1: {command} before init"));
        }
        let field = |name: &str| request.get(name).ok_or_else(|| format!("PMI-1: {command} without {name}"));
        let reply = |answer: Message| self.answer(peer, request, answer);
        let good = |name: &str| Message::new(name).with("rc", 0).with("msg", "success");
        Ok(match command {
            "init" => {
                let two = request.get("pmi_version") == Some("2");
                self.sessions.insert(peer.link, Session { two: false, initialised: true });
                let (version, subversion) = if two { (2, 0) } else { (1, 1) };
                let answer = Message::new("response_to_init")
                    .with("pmi_version", version)
                    .with("pmi_subversion", subversion)
                    .with("rc", 0);
                let effect = self.answer(peer, request, answer);
                self.sessions.insert(peer.link, Session { two, initialised: true });
                vec![effect]
            }
            "get_maxes" => {
                let (name, key, value) = MAXES;
                vec![reply(
                    Message::new("maxes")
                        .with("kvsname_max", name)
                        .with("keylen_max", key)
                        .with("vallen_max", value),
                )]
            }
            "get_appnum" => {
                let number = job.appnum.get(peer.rank as usize).copied().unwrap_or(0);
                vec![reply(Message::new("appnum").with("appnum", number))]
            }
            "get_universe_size" => {
                let size = job.universe.unwrap_or(job.size()).max(job.size());
                vec![reply(Message::new("universe_size").with("size", size))]
            }
            "get_my_kvsname" => vec![reply(Message::new("my_kvsname").with("kvsname", &job.id))],
            "put" => {
                let (key, value) = (field("key")?, request.get("value").unwrap_or_default());
                if key.starts_with("PMI_") {
                    let answer = Message::new("put_result").with("rc", -1).with("msg", "key_is_reserved");
                    return Ok(vec![reply(answer)]);
                }
                self.put(key, value)?;
                vec![self.answer(peer, request, good("put_result"))]
            }
            "mput" => {
                for (key, value) in &request.fields {
                    self.put(key, value)?;
                }
                vec![self.answer(peer, request, good("mput_result"))]
            }
            "get" => {
                let key = field("key")?;
                let value = Simple::of_job(job, key).or_else(|| self.space.get(key).cloned());
                // hydra since 4.1.1 adds found=TRUE; older clients do not mind.
                let answer = match value {
                    Some(value) => good("get_result").with("value", value),
                    None => Message::new("get_result")
                        .with("rc", -1)
                        .with("msg", format!("key_{key}_not_found"))
                        .with("value", "unknown"),
                };
                vec![reply(answer)]
            }
            "getbyidx" => {
                let index: usize = request.number("idx").unwrap_or(0);
                let answer = match self.space.iter().nth(index) {
                    Some((key, value)) => Message::new("getbyidx_results")
                        .with("rc", 0)
                        .with("nextidx", index + 1)
                        .with("key", key)
                        .with("val", value),
                    None => Message::new("getbyidx_results").with("rc", -1).with("reason", "no_more_keyvals"),
                };
                vec![reply(answer)]
            }
            "barrier_in" => vec![Effect::Enter {
                peer,
                others: Participants::all("barrier"),
                good: Message::new("barrier_out").with("rc", 0).encode(Protocol::One),
                bad: Message::new("barrier_out").with("rc", -1).encode(Protocol::One),
            }],
            "publish_name" => {
                let info = Info::new(field("service")?, Value::string(field("port")?));
                self.ask(peer, request, Ask::Publish(vec![info]))
            }
            "unpublish_name" => {
                let ask = Ask::Unpublish(vec![field("service")?.to_owned()]);
                self.ask(peer, request, ask)
            }
            "lookup_name" => {
                let ask = Ask::Lookup { keys: vec![field("service")?.to_owned()], wait: 0 };
                self.ask(peer, request, ask)
            }
            "abort" => vec![abort(peer, request)],
            "finalize" => {
                vec![Effect::Finalize(peer, Message::new("finalize_ack").with("rc", 0).encode(Protocol::One))]
            }
            _ => return Err(format!("PMI-1: the command {command:?} is none that we know")),
        })
    }

    fn two(&mut self, job: &Job, peer: Peer, request: &Message) -> Result<Vec<Effect>, String> {
        let command = request.command.as_str();
        if !self.sessions.get(&peer.link).is_some_and(|s| s.two) {
            return Err(format!("PMI-2: {command} before init with that version"));
        }
        let field = |name: &str| request.get(name).ok_or_else(|| format!("PMI-2: {command} without {name}"));
        let reply = |answer: Message| self.answer(peer, request, answer);
        let response = || Message::new(format!("{command}-response"));
        let good = || response().with("rc", 0);
        let found = |value: Option<&String>| match value {
            Some(value) => response().with("found", "TRUE").with("value", value).with("rc", 0),
            None => response().with("found", "FALSE").with("rc", 0),
        };
        Ok(match command {
            "fullinit" => vec![reply(
                response()
                    .with("rc", 0)
                    .with("pmi-version", 2)
                    .with("pmi-subversion", 0)
                    .with("pmiversion", 2)
                    .with("pmisubversion", 0)
                    .with("rank", peer.rank)
                    .with("size", job.size())
                    .with("appnum", job.appnum.get(peer.rank as usize).copied().unwrap_or(0))
                    .with("debugged", "FALSE")
                    .with("pmiverbose", "FALSE"),
            )],
            "job-getid" => vec![reply(response().with("jobid", &job.id).with("rc", 0))],
            "info-getjobattr" => {
                let key = field("key")?;
                let value = Simple::of_job(job, key).or_else(|| self.space.get(key).cloned());
                vec![reply(found(value.as_ref()))]
            }
            "kvs-put" => {
                let (key, value) = (field("key")?, request.get("value").unwrap_or_default());
                self.put(key, value)?;
                vec![self.answer(peer, request, good())]
            }
            "kvs-get" => vec![reply(found(self.space.get(field("key")?)))],
            "kvs-fence" => vec![Effect::Enter {
                peer,
                others: Participants::all("barrier"),
                good: self.bytes(peer, request, good()),
                bad: self.bytes(peer, request, response().with("rc", -1)),
            }],
            "info-putnodeattr" => {
                let (key, value) =
                    (field("key")?.to_owned(), request.get("value").unwrap_or_default().to_owned());
                self.size += key.len() + value.len();
                if self.size > MAX_SPACE {
                    return Err(format!("the node's attributes are more than {MAX_SPACE} bytes"));
                }
                if let Some(before) = self.attributes.insert(key.clone(), value.clone()) {
                    self.size -= key.len() + before.len();
                }
                let mut effects = vec![self.answer(peer, request, good())];
                let (due, later): (Vec<_>, _) = std::mem::take(&mut self.waiting)
                    .into_iter()
                    .partition(|(_, waiting)| waiting.get("key") == Some(&key));
                self.waiting = later;
                for (peer, waiting) in due {
                    let answer = Message::new("info-getnodeattr-response")
                        .with("found", "TRUE")
                        .with("value", &value)
                        .with("rc", 0);
                    effects.push(self.answer(peer, &waiting, answer));
                }
                effects
            }
            "info-getnodeattr" => {
                let value = self.attributes.get(field("key")?);
                let wait = request.get("wait").is_some_and(|w| w.eq_ignore_ascii_case("true"));
                if value.is_none() && wait {
                    self.waiting.push((peer, request.clone()));
                    return Ok(Vec::new());
                }
                vec![reply(found(value))]
            }
            "name-publish" => {
                let info = Info::new(field("name")?, Value::string(field("port")?));
                self.ask(peer, request, Ask::Publish(vec![info]))
            }
            "name-unpublish" => {
                let ask = Ask::Unpublish(vec![field("name")?.to_owned()]);
                self.ask(peer, request, ask)
            }
            "name-lookup" => {
                let ask = Ask::Lookup { keys: vec![field("name")?.to_owned()], wait: 0 };
                self.ask(peer, request, ask)
            }
            "spawn" => vec![reply(
                response().with("rc", -1).with("errmsg", "this launcher starts no further processes"),
            )],
            "abort" => vec![abort(peer, request)],
            "finalize" => vec![Effect::Finalize(peer, self.bytes(peer, request, good()))],
            // Slurm's ring, job-connect and the like: an error, which a program may survive.
            _ => vec![reply(response().with("rc", -1).with("errmsg", "not supported"))],
        })
    }

    fn ask(&mut self, peer: Peer, request: &Message, ask: Ask) -> Vec<Effect> {
        self.tickets = self.tickets.wrapping_add(1);
        let asker = Asker { peer, ticket: self.tickets };
        self.asked.insert(asker, request.clone());
        vec![Effect::Name(asker, ask)]
    }

    /// The answer of the service of names, for the rank that asked.
    pub fn named(&mut self, asker: Asker, answer: &Answer) -> Vec<Effect> {
        let Some(request) = self.asked.remove(&asker) else { return Vec::new() };
        let peer = asker.peer;
        let two = self.sessions.get(&peer.link).is_some_and(|s| s.two);
        let name = match request.command.as_str() {
            "publish_name" => "publish_result".to_owned(),
            "unpublish_name" => "unpublish_result".to_owned(),
            "lookup_name" => "lookup_result".to_owned(),
            other => format!("{other}-response"),
        };
        let (code, port, why) = match answer {
            Answer::Done => (0, None, "ok"),
            Answer::Found(found) => (0, found.first().and_then(|(_, info)| info.value.text()), "ok"),
            Answer::NotFound => (1, None, "not_found"),
            Answer::Exists => (1, None, "exists_already"),
            Answer::Refused(why) => (1, None, why.as_str()),
        };
        let mut reply = Message::new(name);
        // hydra 3 and 4 say info=ok, hydra 5 and PMI-2 rc=0.
        if !two {
            reply = reply.with("info", why);
        }
        reply = reply.with("rc", code);
        if code != 0 {
            reply = reply.with(if two { "errmsg" } else { "msg" }, why);
        }
        if let Some(port) = port {
            reply = reply.with("port", port);
        }
        vec![self.answer(peer, &request, reply)]
    }
}

fn abort(peer: Peer, request: &Message) -> Effect {
    let message = request.get("message").or(request.get("error_msg")).unwrap_or_default().to_owned();
    Effect::Abort { peer, status: request.number("exitcode").unwrap_or(1), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job() -> Job {
        Job {
            id: "kvs.1".into(),
            node_of: vec![0, 0, 0],
            hosts: vec!["h".into()],
            node: 0,
            appnum: vec![0, 0, 1],
            universe: None,
            oversubscribed: false,
        }
    }

    fn peer(rank: u32) -> Peer {
        Peer { rank, link: 10 + rank }
    }

    /// What one line is answered with.
    fn one(engine: &mut Simple, rank: u32, line: &str) -> String {
        sent(engine.handle(&job(), peer(rank), &Frame::Line(line.into())))
    }

    fn two(engine: &mut Simple, rank: u32, body: &str) -> String {
        sent(engine.handle(&job(), peer(rank), &Frame::Two(body.into())))
    }

    fn sent(effects: Vec<Effect>) -> String {
        let bytes = effects.into_iter().flat_map(|effect| match effect {
            Effect::Send(_, bytes) => bytes,
            other => format!("{other:?}").into_bytes(),
        });
        String::from_utf8(bytes.collect()).unwrap()
    }

    #[test]
    fn a_session_of_pmi_1() {
        let mut e = Simple::default();
        assert!(one(&mut e, 0, "cmd=get_maxes").contains("get_maxes before init"));
        assert_eq!(
            one(&mut e, 0, "cmd=init pmi_version=1 pmi_subversion=1"),
            "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0\n"
        );
        one(&mut e, 2, "cmd=init pmi_version=1 pmi_subversion=1");
        assert_eq!(
            one(&mut e, 0, "cmd=get_maxes"),
            "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024\n"
        );
        assert_eq!(one(&mut e, 2, "cmd=get_appnum"), "cmd=appnum appnum=1\n");
        assert_eq!(one(&mut e, 2, "cmd=get_universe_size"), "cmd=universe_size size=3\n");
        assert_eq!(one(&mut e, 2, "cmd=get_my_kvsname"), "cmd=my_kvsname kvsname=kvs.1\n");
        assert_eq!(
            one(&mut e, 0, "cmd=get kvsname=kvs.1 key=PMI_process_mapping"),
            "cmd=get_result rc=0 msg=success value=(vector,(0,1,3))\n"
        );
        assert_eq!(
            one(&mut e, 0, "cmd=get kvsname=kvs.1 key=P1"),
            "cmd=get_result rc=-1 msg=key_P1_not_found value=unknown\n"
        );
        assert_eq!(one(&mut e, 0, "cmd=put kvsname=k key=P1 value=a=b"), "cmd=put_result rc=0 msg=success\n");
        assert!(one(&mut e, 0, "cmd=put kvsname=k key=PMI_x value=a").contains("rc=-1"));
        assert_eq!(one(&mut e, 2, "cmd=get kvsname=k key=P1"), "cmd=get_result rc=0 msg=success value=a=b\n");
        assert_eq!(
            one(&mut e, 2, "cmd=getbyidx kvsname=k idx=0"),
            "cmd=getbyidx_results rc=0 nextidx=1 key=P1 val=a=b\n"
        );
        assert!(one(&mut e, 2, "cmd=getbyidx kvsname=k idx=1").contains("rc=-1 reason=no_more_keyvals"));
        assert_eq!(e.take_fresh(), [("P1".to_owned(), "a=b".to_owned())]);
        assert_eq!(e.take_fresh(), []);
        let enter = e.handle(&job(), peer(0), &Frame::Line("cmd=barrier_in".into()));
        assert!(matches!(&enter[..], [Effect::Enter { good, .. }] if good == b"cmd=barrier_out rc=0\n"));
        let abort = e.handle(&job(), peer(2), &Frame::Line("cmd=abort exitcode=7".into()));
        assert!(matches!(&abort[..], [Effect::Abort { status: 7, .. }]));
        let spawn = sent(e.handle(&job(), peer(0), &Frame::Block("mcmd=spawn\nnprocs=1\n".into())));
        assert!(spawn.starts_with("cmd=spawn_result rc=-1 msg=this_launcher"), "{spawn}");
        let block =
            |n| Frame::Block(format!("mcmd=spawn\nnprocs=1\ntotspawns=2\nspawnssofar={n}\n").into_bytes());
        assert_eq!(e.handle(&job(), peer(0), &block(1)), [], "the second is to come");
        assert!(sent(e.handle(&job(), peer(0), &block(2))).starts_with("cmd=spawn_result rc=-1"));
        assert!(one(&mut e, 0, "cmd=dance").contains("Broken"));
    }

    #[test]
    fn a_session_of_pmi_2_with_threads_and_nodes_attributes() {
        let mut e = Simple::default();
        for rank in 0..2 {
            let reply = one(&mut e, rank, "cmd=init pmi_version=2 pmi_subversion=0");
            assert_eq!(reply, "cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0\n");
        }
        let full = two(&mut e, 1, "cmd=fullinit;pmijobid=x;pmirank=1;threaded=FALSE;");
        for part in ["rc=0;", "pmi-version=2;", "pmiversion=2;", "rank=1;size=3;appnum=0;", "debugged=FALSE;"]
        {
            assert!(full.contains(part), "{full}");
        }
        assert_eq!(two(&mut e, 0, "cmd=job-getid;"), "    40cmd=job-getid-response;jobid=kvs.1;rc=0;");
        assert!(two(&mut e, 0, "cmd=info-getnodeattr;thrid=8;key=a;wait=TRUE;").is_empty());
        let put = two(&mut e, 1, "cmd=info-putnodeattr;key=a;value=b;");
        assert!(put.contains("info-getnodeattr-response;thrid=8;found=TRUE;value=b;rc=0;"), "{put}");
        assert!(two(&mut e, 0, "cmd=info-getnodeattr;key=z;").contains("found=FALSE"));
        two(&mut e, 0, "cmd=kvs-put;key=k;value=v;;w;");
        assert!(two(&mut e, 1, "cmd=kvs-get;jobid=;srcid=0;key=k;").contains("found=TRUE;value=v;;w;rc=0;"));
        assert!(two(&mut e, 1, "cmd=spawn;ncmds=1;").contains("spawn-response;rc=-1;"));
        let early = Simple::default().handle(&job(), peer(0), &Frame::Two("cmd=job-getid;".into()));
        assert!(matches!(&early[..], [Effect::Broken(_, why)] if why.contains("before init")));
    }

    #[test]
    fn what_is_put_again_takes_no_more_room() {
        let mut e = Simple::default();
        one(&mut e, 0, "cmd=init pmi_version=2 pmi_subversion=0");
        for _ in 0..3 {
            two(&mut e, 0, "cmd=kvs-put;key=k;value=v;");
            two(&mut e, 0, "cmd=info-putnodeattr;key=a;value=b;");
        }
        assert_eq!((e.size, e.fresh.len()), (4, 1));
    }

    #[test]
    fn names_are_asked_for_and_answered() {
        let mut e = Simple::default();
        one(&mut e, 0, "cmd=init pmi_version=1 pmi_subversion=1");
        let asked = e.handle(&job(), peer(0), &Frame::Line("cmd=lookup_name service=s".into()));
        let [Effect::Name(asker, Ask::Lookup { wait: 0, .. })] = &asked[..] else { panic!("{asked:?}") };
        let found = Answer::Found(vec![(
            crate::pmix::Proc { nspace: "n".into(), rank: 0 },
            Info::new("s", Value::string("tag#0$")),
        )]);
        assert_eq!(sent(e.named(*asker, &found)), "cmd=lookup_result info=ok rc=0 port=tag#0$\n");
        assert_eq!(sent(e.named(*asker, &found)), "", "asked once, answered once");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(lines in prop::collection::vec("(cmd=|)[a-z_-]{0,12}[ ;=a-z0-9-]{0,40}", 0..20)) {
            let mut e = Simple::default();
            one(&mut e, 0, "cmd=init pmi_version=2 pmi_subversion=0");
            for line in lines {
                e.handle(&job(), peer(0), &Frame::Line(line.clone().into()));
                e.handle(&job(), peer(0), &Frame::Two(line.into()));
            }
        }
    }
}

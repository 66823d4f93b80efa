//! Requests of a PMIx client, read and written (src/server/pmix_server_ops.c, src/client).

use super::pack::Writer;
use super::unpack::Reader;
use super::value::{Info, Proc};
use crate::wire::Malformed;

/// Command numbers (src/include/pmix_globals.h).
mod number {
    pub const REQ: u8 = 0;
    pub const ABORT: u8 = 1;
    pub const COMMIT: u8 = 2;
    pub const FENCE: u8 = 3;
    pub const GET: u8 = 4;
    pub const FINALIZE: u8 = 5;
    pub const PUBLISH: u8 = 6;
    pub const LOOKUP: u8 = 7;
    pub const UNPUBLISH: u8 = 8;
    pub const SPAWN: u8 = 9;
    pub const CONNECT: u8 = 10;
    pub const DISCONNECT: u8 = 11;
    pub const NOTIFY: u8 = 12;
    pub const REGISTER_EVENTS: u8 = 13;
    pub const DEREGISTER_EVENTS: u8 = 14;
    pub const LOG: u8 = 16;
    pub const JOB_CONTROL: u8 = 18;
    pub const GROUP_CONSTRUCT: u8 = 24;
    pub const GROUP_DESTRUCT: u8 = 28;
}

/// Who may see what was put.
pub mod scope {
    /// Ranks of the same node.
    pub const LOCAL: u8 = 1;
    /// Ranks of other nodes.
    pub const REMOTE: u8 = 2;
    /// Both.
    pub const GLOBAL: u8 = 3;
}

/// The directive that makes a fence collect data.
pub const COLLECT: &str = "pmix.collect";
/// The directive by which a request for data does not wait.
pub const IMMEDIATE: &str = "pmix.immediate";
/// The directive by which a look-up waits until so many keys are there.
pub const WAIT: &str = "pmix.wait";
/// The directive that names a file to be removed when the process cannot do so itself.
pub const CLEANUP: &str = "pmix.reg.cleanup";
/// The directive that limits a wait, in seconds.
pub const TIMEOUT: &str = "pmix.timeout";

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// The job's data, first of all.
    Job,
    /// The job is to end.
    Abort {
        /// With this status.
        status: i32,
        /// For this reason.
        message: String,
    },
    /// What was put, by scope: KVALs as they were packed.
    Commit(Vec<(u8, Vec<u8>)>),
    /// Waits for these processes.
    Fence {
        /// Who takes part.
        procs: Vec<Proc>,
        /// Directives.
        infos: Vec<Info>,
    },
    /// What a process has put.
    Get {
        /// Whose.
        proc: Proc,
        /// Directives.
        infos: Vec<Info>,
        /// Under this key; none: all of it.
        key: Option<String>,
    },
    /// The rank needs PMIx no more.
    Finalize,
    /// Makes values known to all.
    Publish {
        /// Keys with values, and directives.
        infos: Vec<Info>,
    },
    /// Asks for what was published.
    Lookup {
        /// These keys.
        keys: Vec<String>,
        /// Directives.
        infos: Vec<Info>,
    },
    /// Takes it back.
    Unpublish {
        /// These keys; none: all that this rank has published.
        keys: Vec<String>,
    },
    /// New processes.
    Spawn,
    /// Waits for these processes, and learns of their jobs.
    Connect {
        /// Who takes part.
        procs: Vec<Proc>,
    },
    /// The end of that.
    Disconnect {
        /// Who takes part.
        procs: Vec<Proc>,
    },
    /// Waits for these processes, and gives them a name and a number together.
    GroupConstruct {
        /// The name.
        group: String,
        /// Who takes part.
        procs: Vec<Proc>,
        /// Directives.
        infos: Vec<Info>,
    },
    /// The end of that.
    GroupDestruct {
        /// The name.
        group: String,
        /// Who takes part.
        procs: Vec<Proc>,
    },
    /// Something is to be done with the job, or at its end.
    Control {
        /// What.
        infos: Vec<Info>,
    },
    /// Something that can be agreed to and is not acted on: events, logs.
    Granted,
    /// Something that wants no reply.
    Silent,
    /// Anything else, by its number.
    Other(u8),
}

impl Request {
    /// Parses a message.
    pub fn parse(bytes: &[u8]) -> Result<Request, Malformed> {
        let mut r = Reader::new(bytes);
        Ok(match r.command()? {
            number::REQ => Request::Job,
            number::ABORT => Request::Abort { status: r.status()?, message: r.string()? },
            number::COMMIT => {
                let mut parts = Vec::new();
                while !r.is_empty() {
                    parts.push((r.scope()?, r.buffer()?.to_vec()));
                }
                Request::Commit(parts)
            }
            number::FENCE => Request::Fence { procs: procs(&mut r)?, infos: r.infos()? },
            number::GET => {
                let proc = Proc { nspace: r.string()?, rank: r.number()? };
                let infos = r.infos()?;
                let key = if r.is_empty() { None } else { Some(r.string()?).filter(|k| !k.is_empty()) };
                Request::Get { proc, infos, key }
            }
            number::FINALIZE => Request::Finalize,
            number::PUBLISH => {
                // The user.
                r.number()?;
                Request::Publish { infos: r.infos()? }
            }
            number::LOOKUP => {
                r.number()?;
                Request::Lookup { keys: strings(&mut r)?, infos: r.infos()? }
            }
            number::UNPUBLISH => {
                r.number()?;
                Request::Unpublish { keys: strings(&mut r)? }
            }
            number::SPAWN => Request::Spawn,
            number::CONNECT => Request::Connect { procs: procs(&mut r)? },
            number::DISCONNECT => Request::Disconnect { procs: procs(&mut r)? },
            number::GROUP_CONSTRUCT => {
                Request::GroupConstruct { group: r.string()?, procs: procs(&mut r)?, infos: r.infos()? }
            }
            number::GROUP_DESTRUCT => Request::GroupDestruct { group: r.string()?, procs: procs(&mut r)? },
            number::JOB_CONTROL => {
                // Of whom: what is asked for concerns who asks.
                procs(&mut r)?;
                Request::Control { infos: r.infos()? }
            }
            number::NOTIFY | number::REGISTER_EVENTS | number::LOG => Request::Granted,
            number::DEREGISTER_EVENTS => Request::Silent,
            other => Request::Other(other),
        })
    }

    /// Packs it, as far as we are a client ourselves.
    pub fn pack(&self, uid: u32) -> Vec<u8> {
        let w = Writer::new();
        match self {
            Request::Job => w.command(number::REQ),
            Request::Abort { status, message } => {
                w.command(number::ABORT).status(*status).string(message).size(0)
            }
            Request::Commit(parts) => parts
                .iter()
                .fold(w.command(number::COMMIT), |w, (scope, kvals)| w.scope(*scope).buffer(kvals)),
            Request::Fence { procs, infos } => with_procs(w.command(number::FENCE), procs).infos(infos),
            Request::Get { proc, infos, key } => {
                let w = w.command(number::GET).string(&proc.nspace).rank(proc.rank).infos(infos);
                key.iter().fold(w, |w, key| w.string(key))
            }
            Request::Finalize => w.command(number::FINALIZE).size(0),
            Request::Publish { infos } => w.command(number::PUBLISH).u32(uid).infos(infos),
            Request::Lookup { keys, infos } => {
                with_strings(w.command(number::LOOKUP).u32(uid), keys).infos(infos)
            }
            Request::Unpublish { keys } => {
                with_strings(w.command(number::UNPUBLISH).u32(uid), keys).infos(&[])
            }
            Request::Spawn => w.command(number::SPAWN),
            Request::Connect { procs } => with_procs(w.command(number::CONNECT), procs).infos(&[]),
            Request::Disconnect { procs } => with_procs(w.command(number::DISCONNECT), procs).infos(&[]),
            Request::GroupConstruct { group, procs, infos } => {
                with_procs(w.command(number::GROUP_CONSTRUCT).string(group), procs).infos(infos)
            }
            Request::GroupDestruct { group, procs } => {
                with_procs(w.command(number::GROUP_DESTRUCT).string(group), procs).infos(&[])
            }
            Request::Control { infos } => w.command(number::JOB_CONTROL).size(0).infos(infos),
            Request::Granted => w.command(number::REGISTER_EVENTS),
            Request::Silent => w.command(number::DEREGISTER_EVENTS),
            Request::Other(number) => w.command(*number),
        }
        .into_bytes()
    }
}

fn procs(r: &mut Reader) -> Result<Vec<Proc>, Malformed> {
    match r.size()? {
        0 => Ok(Vec::new()),
        _ => r.procs(),
    }
}

fn with_procs(w: Writer, procs: &[Proc]) -> Writer {
    let w = w.size(procs.len());
    if procs.is_empty() { w } else { w.procs(procs) }
}

/// How many, and then each by a call of its own.
fn strings(r: &mut Reader) -> Result<Vec<String>, Malformed> {
    (0..r.size()?).map(|_| r.string()).collect()
}

fn with_strings(w: Writer, strings: &[String]) -> Writer {
    strings.iter().fold(w.size(strings.len()), |w, s| w.string(s))
}

/// Whether a directive is given and not false.
pub fn is_set(infos: &[Info], key: &str) -> bool {
    infos.iter().any(|i| i.key == key && i.value.number() != Some(0))
}

/// The texts of every directive of this key.
pub fn texts(infos: &[Info], key: &str) -> Vec<String> {
    let of_key = infos.iter().filter(|i| i.key == key);
    of_key.filter_map(|i| i.value.text()).map(str::to_owned).collect()
}

/// A directive's number.
pub fn number_of(infos: &[Info], key: &str) -> Option<u64> {
    infos.iter().find(|i| i.key == key)?.value.number()
}

#[cfg(test)]
mod tests {
    use super::super::value::Value;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_packed_is_what_is_parsed() {
        let procs = vec![Proc { nspace: "job".into(), rank: super::super::RANK_WILDCARD }];
        let infos = vec![Info::new(COLLECT, Value::Bool(true)), Info::new(TIMEOUT, Value::u32(7))];
        let (keys, group) = (vec!["a".to_owned(), "b".to_owned()], "g".to_owned());
        for request in [
            Request::Job,
            Request::Abort { status: 7, message: "why".into() },
            Request::Commit(vec![(scope::LOCAL, vec![1, 2]), (scope::REMOTE, Vec::new())]),
            Request::Fence { procs: procs.clone(), infos: infos.clone() },
            Request::Get { proc: procs[0].clone(), infos: Vec::new(), key: Some("k".into()) },
            Request::Get { proc: procs[0].clone(), infos: infos.clone(), key: None },
            Request::Finalize,
            Request::Publish { infos: infos.clone() },
            Request::Lookup { keys: keys.clone(), infos: infos.clone() },
            Request::Unpublish { keys },
            Request::Connect { procs: procs.clone() },
            Request::Disconnect { procs: procs.clone() },
            Request::GroupConstruct { group: group.clone(), procs: procs.clone(), infos: infos.clone() },
            Request::GroupDestruct { group, procs },
            Request::Control { infos: infos.clone() },
            Request::Spawn,
            Request::Other(15),
        ] {
            assert_eq!(Request::parse(&request.pack(0)).unwrap(), request);
        }
        assert!(is_set(&infos, COLLECT) && !is_set(&infos, WAIT));
        assert_eq!(number_of(&infos, TIMEOUT), Some(7));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(command in 0u8..40, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let message = Writer::new().command(command).raw(&bytes).into_bytes();
            let _ = Request::parse(&message);
        }
    }
}

//! Makes PMIx requests that a server has to think about.

use arbitrary::{Arbitrary, Unstructured};
use pmi_shim::pmix::command::Request;
use pmi_shim::pmix::value::kind;
use pmi_shim::pmix::{Info, Proc, RANK_UNDEF, RANK_WILDCARD, Value, Writer};

/// Keys, names and directives.
const WORDS: &[&str] = &[
    "a",
    "b",
    "c",
    "",
    "pmix.hname",
    "pmix.rank",
    "pmix.mblob",
    "pmix.collect",
    "pmix.immediate",
    "pmix.wait",
    "pmix.timeout",
    "pmix.range",
    "pmix.reg.cleanup",
    "\u{fffd}\0",
];
/// Number types.
const KINDS: &[u16] = &[
    kind::UINT32,
    kind::UINT16,
    kind::UINT64,
    kind::UINT,
    kind::PID,
    kind::TIME,
    kind::IOF_CHANNEL,
    kind::DATA_TYPE,
    kind::INFO_DIRECTIVES,
];
/// Arrays within arrays that a reader takes: it counts their elements too.
const DEEPEST: u32 = 3;

/// A word.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Word(u8);

impl Word {
    fn text(self) -> String {
        WORDS[usize::from(self.0) % WORDS.len()].to_owned()
    }
}

/// A process.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Who(u8);

impl Who {
    fn proc(self, nspace: &str) -> Proc {
        let rank = match self.0 {
            n @ 0..=7 => u32::from(n % 4),
            n if n % 2 == 0 => RANK_WILDCARD,
            n if n % 3 == 0 => RANK_UNDEF,
            n => u32::from(n),
        };
        let nspace = if self.0 == 99 { "other" } else { nspace };
        Proc { nspace: nspace.to_owned(), rank }
    }
}

/// A key with a value.
#[derive(Arbitrary, Debug)]
pub struct Pair(Word, Made);

impl Pair {
    fn info(&self, depth: u32) -> Info {
        Info { key: self.0.text(), value: self.1.value(depth) }
    }
}

/// A value.
#[derive(Arbitrary, Debug)]
pub enum Made {
    /// A flag.
    Bool(bool),
    /// A number of some type.
    Number(u8, u32),
    /// A text.
    Text(Word),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A byte of some type.
    Byte(u8),
    /// A signed number.
    Signed(i32),
    /// A length.
    Size(u64),
    /// A time.
    Time(i64, i64),
    /// Another rank.
    Proc(Who),
    /// An environment variable.
    Envar(Word, Word),
    /// Keys with values.
    Pairs(Vec<Pair>),
    /// One in the other.
    Boxed(Box<Made>),
}

impl Made {
    fn value(&self, depth: u32) -> Value {
        match self {
            _ if depth > DEEPEST => Value::Bool(false),
            Made::Bool(b) => Value::Bool(*b),
            Made::Number(kind, n) => {
                let kind = KINDS[usize::from(*kind) % KINDS.len()];
                let n = if matches!(kind, kind::UINT16 | kind::IOF_CHANNEL | kind::DATA_TYPE) {
                    *n & 0xffff
                } else {
                    *n
                };
                Value::Unsigned(kind, n.into())
            }
            Made::Text(word) => Value::String(word.text()),
            Made::Bytes(bytes) => Value::bytes(bytes.clone()),
            Made::Byte(b) => Value::Byte(kind::SCOPE, *b),
            Made::Signed(n) => Value::Signed(kind::INT, (*n).into()),
            Made::Size(n) => Value::Size(*n),
            Made::Time(seconds, micros) => Value::Time(*seconds, *micros),
            Made::Proc(who) => Value::Proc(who.proc("job")),
            Made::Envar(name, value) => Value::Envar(name.text(), value.text(), b':'),
            Made::Pairs(pairs) => {
                let infos = pairs.iter().map(|p| Value::Info(Box::new(p.info(depth + 1))));
                Value::Array(kind::INFO, infos.collect())
            }
            Made::Boxed(value) => Value::Value(Box::new(value.value(depth + 1))),
        }
    }
}

/// A request.
#[derive(Arbitrary, Debug)]
enum Kind {
    Job,
    Abort(i32, Word),
    Commit(Vec<(u8, Vec<Pair>)>),
    Fence(Vec<Who>, Vec<Pair>),
    Get(Who, Vec<Pair>, Option<Word>),
    Finalize,
    Publish(Vec<Pair>),
    Lookup(Vec<Word>, Vec<Pair>),
    Unpublish(Vec<Word>),
    Spawn,
    Connect(Vec<Who>),
    Disconnect(Vec<Who>),
    Construct(Word, Vec<Who>, Vec<Pair>),
    Destruct(Word, Vec<Who>),
    Control(Vec<Pair>),
    Granted,
    Silent,
    Other,
}

/// A request of what these bytes choose.
pub fn request(nspace: &str, bytes: &[u8]) -> Request {
    let kind = Kind::arbitrary(&mut Unstructured::new(bytes)).unwrap_or(Kind::Job);
    let infos = |pairs: Vec<Pair>| pairs.iter().map(|p| p.info(0)).collect::<Vec<_>>();
    let procs = |all: Vec<Who>| all.iter().map(|who| who.proc(nspace)).collect::<Vec<_>>();
    let words = |all: Vec<Word>| all.iter().map(|word| word.text()).collect::<Vec<_>>();
    let kvals = |pairs: Vec<Pair>| {
        let put = |w: Writer, info: Info| w.kval(&info.key, &info.value);
        infos(pairs).into_iter().fold(Writer::new(), put).into_bytes()
    };
    match kind {
        Kind::Job => Request::Job,
        Kind::Abort(status, why) => Request::Abort { status, message: why.text() },
        Kind::Commit(parts) => {
            Request::Commit(parts.into_iter().map(|(scope, pairs)| (scope % 5, kvals(pairs))).collect())
        }
        Kind::Fence(all, pairs) => Request::Fence { procs: procs(all), infos: infos(pairs) },
        Kind::Get(who, pairs, key) => Request::Get {
            proc: who.proc(nspace),
            infos: infos(pairs),
            key: key.map(Word::text).filter(|k| !k.is_empty()),
        },
        Kind::Finalize => Request::Finalize,
        Kind::Publish(pairs) => Request::Publish { infos: infos(pairs) },
        Kind::Lookup(keys, pairs) => Request::Lookup { keys: words(keys), infos: infos(pairs) },
        Kind::Unpublish(keys) => Request::Unpublish { keys: words(keys) },
        Kind::Spawn => Request::Spawn,
        Kind::Connect(all) => Request::Connect { procs: procs(all) },
        Kind::Disconnect(all) => Request::Disconnect { procs: procs(all) },
        Kind::Construct(group, all, pairs) => {
            Request::GroupConstruct { group: group.text(), procs: procs(all), infos: infos(pairs) }
        }
        Kind::Destruct(group, all) => Request::GroupDestruct { group: group.text(), procs: procs(all) },
        Kind::Control(pairs) => Request::Control { infos: infos(pairs) },
        Kind::Granted => Request::Granted,
        Kind::Silent => Request::Silent,
        Kind::Other => Request::Other(15),
    }
}

//! Writes the seeds: `cargo run --manifest-path pmi-shim/fuzz/Cargo.toml --example seeds`.

use std::fs;
use std::path::Path;

use made::honest::NSPACE;
use made::launched::Launched;
use made::noded::{Kind, Noded};
use made::script::{script, steps};
use pmi_shim::pmix::command::{COLLECT, IMMEDIATE, Request, TIMEOUT, WAIT, scope};
use pmi_shim::pmix::handshake::{Header, Hello};
use pmi_shim::pmix::job::{Directories, pack};
use pmi_shim::pmix::value::kind;
use pmi_shim::pmix::{Info, Proc, RANK_UNDEF, RANK_WILDCARD, Value, Writer};
use pmi_shim::uplink::{Out, Uplink, pmix, simple};

type Steps = Vec<(char, u32, Vec<u8>)>;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let all = [
        ("frames", frames()),
        ("pmix_messages", messages()),
        ("pmix_unpack", packed()),
        ("mapping", mappings()),
        ("engine_simple", vec![("pmi1", script(&pmi1())), ("pmi2", script(&pmi2()))]),
        ("engine_pmix", vec![("packed", script(&requests('r'))), ("made", script(&choices()))]),
        ("uplink_simple", uplink_simple()),
        ("uplink_pmix", uplink_pmix()),
        ("node", nodes()),
    ];
    for (target, seeds) in all {
        let directory = root.join(target);
        fs::create_dir_all(&directory)?;
        for (name, bytes) in seeds {
            fs::write(directory.join(name), bytes)?;
        }
    }
    Ok(())
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let two = |body: &str| format!("{:6}{body}", body.len()).into_bytes();
    let lines = "cmd=init pmi_version=1 pmi_subversion=1\ncmd=put kvsname=k key=a value=b=c\ncmd=abort\n";
    let block = "mcmd=spawn\nnprocs=2\nexecname=a b\nargcnt=0\nendcmd\ncmd=barrier_in\n";
    let put = two("cmd=kvs-put;thrid=1;key=a;;b;value=;;;;c;=;");
    vec![
        ("lines", lines.into()),
        ("block", block.into()),
        ("two", [put, two("cmd=finalize;"), two("cmd=a;;b;c;;d=;e")].concat()),
    ]
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Hello::of_rank("job", 3, "v3", 1000, 100);
    let tool = Hello { flag: 2, ..hello.clone() };
    let frame = |tag| Header::frame(3, tag, &Request::Finalize.pack(0));
    vec![
        ("rank", [hello.encode(), frame(100), frame(101)].concat()),
        ("tool", tool.encode()),
        ("munge", Hello { security: "munge".into(), bfrops: "v41".into(), ..hello.clone() }.encode()),
        ("welcome", hello.welcome()),
    ]
}

fn values() -> Vec<Info> {
    let inner = vec![Value::Info(Box::new(Info::new("k", Value::u16(7))))];
    let values = [
        Value::Bool(true),
        Value::Byte(kind::SCOPE, 1),
        Value::string("text"),
        Value::Size(1 << 40),
        Value::Signed(kind::INT, -1),
        Value::Signed(kind::INT8, -2),
        Value::Unsigned(kind::PID, 9),
        Value::Unsigned(kind::DATA_TYPE, 9),
        Value::Unsigned(kind::INFO_DIRECTIVES, 9),
        Value::Unsigned(kind::TIME, 9),
        Value::Decimal(kind::DOUBLE, "1.5".into()),
        Value::Time(1, 2),
        Value::Status(-46),
        Value::Proc(Proc { nspace: "job".into(), rank: 1 }),
        Value::Rank(2),
        Value::bytes(vec![0, 255]),
        Value::Envar("A".into(), "b".into(), b':'),
        Value::Array(kind::INFO, inner.clone()),
        Value::Array(kind::DATA_ARRAY, vec![Value::Array(kind::UINT32, vec![Value::u32(1), Value::u32(2)])]),
        Value::Array(kind::VALUE, vec![Value::Value(Box::new(Value::Bool(false)))]),
        Value::Array(kind::KVAL, vec![Value::Kval(Box::new(Info::new("k", Value::u32(1))))]),
    ];
    values.map(|value| Info::new("key", value)).to_vec()
}

fn packed() -> Vec<(&'static str, Vec<u8>)> {
    let directories = Directories { job: "/d".into(), ranks: true };
    let kvals = values().iter().fold(Writer::new(), |w, i| w.kval(&i.key, &i.value)).into_bytes();
    let procs = [Proc { nspace: "job".into(), rank: 0 }, Proc { nspace: "job".into(), rank: RANK_WILDCARD }];
    let found: Vec<_> = values().into_iter().map(|info| (procs[0].clone(), info)).collect();
    let part = Writer::new().procs(&procs[..1]).kval("hpcl.1", &Value::bytes(vec![1, 2])).into_bytes();
    let job = pack(&made::job(), 1, "job", Some(&directories));
    // As other servers say it: no map, but a list of ranks for each node.
    let array = |host: &str, ranks: &str| {
        let infos = [("pmix.hname", Value::string(host)), ("pmix.lpeers", Value::string(ranks))];
        let infos = infos.map(|(key, value)| Value::Info(Box::new(Info::new(key, value))));
        Value::Array(kind::INFO, infos.to_vec())
    };
    let arrays = Writer::new()
        .string("job")
        .kval("pmix.job.size", &Value::u32(4))
        .kval("pmix.node.arr", &array("a", "0-1"))
        .kval("pmix.node.arr", &array("b", "2,3"))
        .into_bytes();
    // As PRRTE passes on what is another host's.
    let squashed = b"\x02\x15\x02\x08job\0\0\x02\x0ehpcl.1\0\x1b\x03abc".to_vec();
    vec![
        ("squashed", squashed),
        ("kvals", kvals),
        ("infos", Writer::new().infos(&values()).into_bytes()),
        ("pdata", Writer::new().pdata(&found).into_bytes()),
        ("procs", Writer::new().procs(&procs).into_bytes()),
        ("part", Writer::new().bytes(&part).into_bytes()),
        ("job", job),
        ("arrays", arrays),
        ("fence", all_requests()[2].pack(0)),
        ("lookup", all_requests()[6].pack(0)),
        ("construct", all_requests()[12].pack(0)),
    ]
}

fn mappings() -> Vec<(&'static str, Vec<u8>)> {
    let of = |size: u16, text: &str| [&size.to_le_bytes(), text.as_bytes()].concat();
    vec![
        ("one", of(4, "(vector,(0,1,1))")),
        ("cyclic", of(64, "(vector,(0,4,1),(0,4,1))")),
        ("blocks", of(4096, "(vector,(0,31,64),(31,2,48),(33,1,16))")),
        ("empty", of(9, "(vector,(0,9,0),(0,0,9),(1,1,1))")),
        ("many", of(9, "(vector,(0,4294967295,0),(0,4294967295,1))")),
    ]
}

fn lines(rank: u32, lines: &[&str]) -> Steps {
    lines.iter().map(|line| ('r', rank, format!("cmd={line}\n").into_bytes())).collect()
}

fn pmi1() -> Steps {
    let init = "init pmi_version=1 pmi_subversion=1";
    let asks = ["get_maxes", "get_appnum", "get_my_kvsname", "get_universe_size"];
    let mapping = ["get kvsname=job key=PMI_process_mapping", "put kvsname=job key=a value=b"];
    let names = ["publish_name service=s port=p", "lookup_name service=s", "unpublish_name service=s"];
    let mut all = lines(0, &[init]);
    all.extend(lines(0, &asks));
    all.extend(lines(0, &mapping));
    all.extend(lines(1, &[init, "get kvsname=job key=a", "getbyidx kvsname=job idx=0", "barrier_in"]));
    all.extend(lines(0, &["barrier_in"]));
    all.push(('t', 0, Vec::new()));
    all.extend(lines(0, &names));
    all.push(('r', 0, b"mcmd=spawn\nnprocs=1\nendcmd\n".to_vec()));
    all.extend(lines(1, &["finalize"]));
    all.extend(lines(0, &["abort exitcode=3 message=why"]));
    all
}

fn twos(rank: u32, bodies: &[&str]) -> Steps {
    bodies.iter().map(|body| ('2', rank, format!("cmd={body}").into_bytes())).collect()
}

fn pmi2() -> Steps {
    let mut all = lines(0, &["init pmi_version=2 pmi_subversion=0"]);
    all.extend(lines(1, &["init pmi_version=2 pmi_subversion=0"]));
    let full = "fullinit;pmijobid=job;pmirank=0;threaded=FALSE;";
    all.extend(twos(0, &[full, "job-getid;", "info-getjobattr;key=PMI_process_mapping;"]));
    all.extend(twos(0, &["info-getnodeattr;thrid=8;key=a;wait=TRUE;"]));
    all.extend(twos(1, &["info-putnodeattr;key=a;value=b;", "kvs-put;key=k;value=v;;w;", "kvs-fence;"]));
    all.extend(twos(0, &["kvs-fence;", "kvs-get;jobid=job;srcid=-1;key=k;"]));
    all.extend(twos(1, &["name-publish;name=n;port=p;", "name-lookup;name=n;", "name-unpublish;name=n;"]));
    all.extend(twos(1, &["spawn;ncmds=1;", "ring;", "finalize;"]));
    all.extend(twos(0, &["abort;isworld=TRUE;msg=x;"]));
    all
}

fn all_requests() -> Vec<Request> {
    let nspace = || "job".to_owned();
    let proc = |rank| Proc { nspace: nspace(), rank };
    let kvals = |key: &str| Writer::new().kval(key, &Value::bytes(vec![1, 2, 3])).into_bytes();
    let infos = vec![Info::new(COLLECT, Value::Bool(true)), Info::new(TIMEOUT, Value::u32(7))];
    let key = |key: &str| Some(key.to_owned());
    let wait = vec![Info::new(WAIT, Value::u32(2))];
    let group = || "g".to_owned();
    vec![
        Request::Job,
        Request::Commit(vec![
            (scope::LOCAL, kvals("l")),
            (scope::REMOTE, kvals("r")),
            (scope::GLOBAL, kvals("g")),
        ]),
        Request::Fence { procs: vec![proc(RANK_WILDCARD)], infos },
        Request::Fence { procs: vec![proc(0), proc(1)], infos: Vec::new() },
        Request::Get { proc: proc(1), infos: Vec::new(), key: key("l") },
        Request::Get { proc: proc(RANK_UNDEF), infos: Vec::new(), key: key("x") },
        Request::Lookup { keys: vec!["a".into(), "b".into()], infos: wait },
        Request::Publish { infos: vec![Info::new("a", Value::string("1")), Info::new("b", Value::u32(2))] },
        Request::Get { proc: proc(2), infos: vec![Info::new(IMMEDIATE, Value::Bool(true))], key: None },
        Request::Get { proc: proc(2), infos: Vec::new(), key: key("pmix.hname") },
        Request::Unpublish { keys: vec!["a".into()] },
        Request::Connect { procs: vec![proc(0), proc(1)] },
        Request::GroupConstruct { group: group(), procs: vec![proc(0)], infos: Vec::new() },
        Request::GroupDestruct { group: group(), procs: vec![proc(0)] },
        Request::Disconnect { procs: vec![proc(0), proc(1)] },
        Request::Granted,
        Request::Silent,
        Request::Spawn,
        Request::Other(33),
        Request::Finalize,
        Request::Abort { status: 2, message: "why".into() },
    ]
}

/// All requests, of ranks 0 and 1 by turns.
fn requests(what: char) -> Steps {
    let mut all: Steps = Vec::new();
    for request in all_requests() {
        all.extend([0, 1].map(|rank| (what, rank, request.pack(1000))));
    }
    all.insert(8, ('t', 0, Vec::new()));
    all
}

/// Bytes that choose each kind of request, with whatever follows.
fn choices() -> Steps {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut one = |kind: u64| {
        let choice = ((kind << 32) / 17 + 1) as u32;
        let mut bytes = choice.to_le_bytes().to_vec();
        bytes.extend((0..24).map(|_| next()));
        ('m', (kind % 4) as u32, bytes)
    };
    (0..34).map(|kind| one(kind % 17)).collect()
}

/// What the launcher said takes the place of its being asked.
fn recorded(launched: &mut Launched, all: &Steps) -> Steps {
    let mut out = Steps::new();
    for one in all {
        let before = launched.heard.len();
        launched.step(steps(&script(std::slice::from_ref(one)))[0]);
        match one.0 {
            'h' => out.extend(launched.heard[before..].iter().map(|(link, b)| ('r', *link, b.clone()))),
            _ => out.push(one.clone()),
        }
    }
    let count = |is: fn(&Out) -> bool| launched.told.iter().filter(|out| is(out)).count();
    assert_eq!(count(|out| matches!(out, Out::Failed(_))), 0, "{:?}", launched.told);
    assert_eq!(count(|out| matches!(out, Out::Gathered(_))), 2, "{:?}", launched.told);
    assert_eq!(count(|out| matches!(out, Out::Finalized(_))), 2, "{:?}", launched.told);
    out
}

/// Two ranks, two gatherings, a name, and the end.
fn client() -> Steps {
    let step = |what, who, text: &str| (what, who, text.as_bytes().to_vec());
    let text = [
        ('j', 0, ""),
        ('j', 1, ""),
        ('s', 0, ""),
        ('s', 1, ""),
        ('h', 0, ""),
        ('g', 0, "what this node gives to the others"),
        ('h', 0, ""),
        ('p', 1, "name"),
        ('l', 0, "name"),
        ('h', 0, ""),
        ('u', 1, "name"),
        ('h', 0, ""),
        ('g', 0, ""),
        ('h', 0, ""),
        ('f', 0, ""),
        ('f', 1, ""),
        ('h', 0, ""),
        ('x', 0, "over"),
    ];
    text.map(|(what, who, text)| step(what, who, text)).to_vec()
}

fn uplink_simple() -> Vec<(&'static str, Vec<u8>)> {
    let of = |kind: u8, is_recorded: bool| {
        let version = if kind & 1 == 0 { simple::Version::Any } else { simple::Version::Two };
        let client_of = simple::Client::new((kind & 2 == 0).then_some(3), version);
        let mut launched = Launched::new(Uplink::Simple(Box::new(client_of)), kind & 4 != 0);
        let all = if is_recorded { recorded(&mut launched, &client()) } else { client() };
        [vec![kind], script(&all)].concat()
    };
    let boastful = String::from_utf8_lossy(&of(0, true)).replace("value=1:", "value=131072:").into_bytes();
    vec![
        ("honest1", of(0, false)),
        ("said1", of(0, true)),
        ("said2", of(3, true)),
        ("said_at", of(6, true)),
        ("boastful", boastful),
    ]
}

fn uplink_pmix() -> Vec<(&'static str, Vec<u8>)> {
    let identity = pmix::Identity { nspace: NSPACE.into(), bfrops: "v3".into(), uid: 1, gid: 1 };
    let mut launched = Launched::new(Uplink::Pmix(Box::new(pmix::Client::new(identity))), true);
    vec![("honest", script(&client())), ("said", script(&recorded(&mut launched, &client())))]
}

/// Two ranks that speak PMI-1 and one gathering.
fn node1() -> Steps {
    let mut all: Steps = vec![('j', 0, Vec::new()), ('j', 1, Vec::new())];
    all.extend(pmi1().into_iter().take(9));
    all.push(('h', 0, Vec::new()));
    all.extend(lines(1, &["put kvsname=k key=x value=y", "barrier_in"]));
    all.extend(lines(0, &["barrier_in"]));
    all.push(('h', 0, Vec::new()));
    all.extend(lines(0, &["publish_name service=s port=p", "lookup_name service=s"]));
    all.push(('h', 0, Vec::new()));
    all.extend(lines(0, &["finalize"]));
    all.extend(lines(1, &["finalize"]));
    all.push(('h', 0, Vec::new()));
    all.extend([('e', 0, Vec::new()), ('e', 1, Vec::new())]);
    all
}

/// Two that speak PMIx, by connections that they make themselves.
fn nodex() -> Steps {
    let none = Vec::new;
    let mut all: Steps = vec![('J', 0, none()), ('J', 1, none()), ('h', 0, none())];
    all.extend([('a', 0, none()), ('g', 0, none()), ('a', 1, none()), ('g', 1, none()), ('h', 0, none())]);
    for (what, rank, bytes) in requests('q') {
        // The node's namespace, which is as long as that of nobody else.
        let of_node = if what == 'q' { ('q', rank, renamed(&bytes)) } else { ('h', 0, none()) };
        all.push(of_node);
        all.push(('h', 0, none()));
    }
    all.extend(choices().into_iter().take(6));
    all.push(('c', 0, none()));
    all
}

/// With the node's own namespace.
fn renamed(packed: &[u8]) -> Vec<u8> {
    match Request::parse(packed).expect("packed by us") {
        Request::Fence { procs, infos } => Request::Fence { procs: renamed_all(procs), infos },
        Request::Connect { procs } => Request::Connect { procs: renamed_all(procs) },
        Request::Disconnect { procs } => Request::Disconnect { procs: renamed_all(procs) },
        Request::Get { proc, infos, key } => {
            let proc = renamed_all(vec![proc]).remove(0);
            Request::Get { proc, infos, key }
        }
        other => other,
    }
    .pack(1000)
}

fn renamed_all(procs: Vec<Proc>) -> Vec<Proc> {
    procs.into_iter().map(|p| Proc { nspace: "hpcl.job".into(), rank: p.rank }).collect()
}

/// One that comes by the port.
fn node_port() -> Steps {
    let caller = |text: &str| ('p', 0, format!("cmd={text}\n").into_bytes());
    vec![
        ('j', 0, Vec::new()),
        ('a', 0, Vec::new()),
        caller("initack pmiid=0"),
        ('h', 0, Vec::new()),
        caller("init pmi_version=1 pmi_subversion=1"),
        caller("get_maxes"),
        caller("barrier_in"),
        caller("finalize"),
        ('d', 0, Vec::new()),
    ]
}

fn nodes() -> Vec<(&'static str, Vec<u8>)> {
    let of = |kind: u8, all: &Steps| [vec![b'0' + kind], script(all)].concat();
    let said = |kind: u8, above: Kind, all: &Steps| {
        let mut noded = Noded::new(above);
        let mut out = Steps::new();
        for one in all {
            let before = noded.heard.len();
            noded.step(steps(&script(std::slice::from_ref(one)))[0]);
            match one.0 {
                'h' => {
                    out.extend(noded.heard[before..].iter().map(|(link, b)| ('H', link % 16, b.clone())));
                }
                _ => out.push(one.clone()),
            }
        }
        of(kind, &out)
    };
    vec![
        ("alone1", of(0, &node1())),
        ("alonex", of(0, &nodex())),
        ("port", of(0, &node_port())),
        ("simple1", of(1, &node1())),
        ("simplex", of(1, &nodex())),
        ("pmix1", of(2, &node1())),
        ("pmixx", of(2, &nodex())),
        ("said_simple", said(1, Kind::Simple, &node1())),
        ("said_pmix", said(2, Kind::Pmix, &nodex())),
        ("said_port", said(1, Kind::Simple, &node_port())),
    ]
}

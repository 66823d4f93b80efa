//! A job's data as a PMIx server gives it to its ranks, written and read.
//!
//! Keys: include/pmix_common.h. What Open MPI asks for was observed: 4.1 wants lrank, nrank, max.size,
//! job.size, local.size and, with several ranks on a node, lpeers; 5.0 lpeers; its sm transport lrank.

use std::collections::BTreeMap;

use super::pack::Writer;
use super::unpack::Reader;
use super::value::{Info, Value, kind};
use crate::job::{Job, MAX_RANKS, dense};
use crate::wire::Malformed;

/// Where ranks may keep files: existing directories, by their paths inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// The job's.
    pub job: String,
    /// Each rank's is that of its number in it.
    pub ranks: bool,
}

/// Packs the reply to a rank's request for the job's data.
pub fn pack(job: &Job, rank: u32, nspace: &str, directories: Option<&Directories>) -> Vec<u8> {
    let (size, nodes) = (job.size(), job.nodes());
    let mut peers: Vec<Vec<u32>> = vec![Vec::new(); nodes as usize];
    (0..size).zip(&job.node_of).for_each(|(rank, node)| peers[*node as usize].push(rank));
    let list = |ranks: &[u32]| ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let host = |node: usize| job.hosts.get(node).cloned().unwrap_or_else(|| format!("node{node}"));
    let hosts: Vec<String> = (0..nodes as usize).map(host).collect();
    let mine = &peers[job.node as usize];
    let mut w = Writer::new().string(nspace);
    let mut top = |key: &str, value: Value| w = std::mem::take(&mut w).kval(key, &value);
    for (key, number) in [
        ("pmix.job.size", size),
        ("pmix.univ.size", job.universe.map_or(size, |u| u.max(size))),
        ("pmix.max.size", size),
        ("pmix.job.napps", job.appnum.iter().max().map_or(1, |n| n + 1)),
        ("pmix.num.nodes", nodes),
        ("pmix.local.size", mine.len() as u32),
        ("pmix.node.size", mine.len() as u32),
    ] {
        top(key, Value::u32(number));
    }
    top("pmix.jobid", Value::string(nspace));
    top("pmix.nlist", Value::string(hosts.join(",")));
    top("pmix.lpeers", Value::string(list(mine)));
    top("pmix.lldr", Value::Rank(mine.first().copied().unwrap_or(0)));
    if let Some(directories) = directories {
        top("pmix.tmpdir", Value::string(&directories.job));
        top("pmix.nsdir", Value::string(&directories.job));
        // Nobody else needs to clean it up.
        top("pmix.tdir.rmclean", Value::Bool(true));
    }
    if job.oversubscribed {
        top("pmix.ndosub", Value::Bool(true));
    }
    let map = hosts
        .iter()
        .zip(&peers)
        .fold(Writer::new().size(hosts.len()), |w, (host, ranks)| w.kval(host, &Value::string(list(ranks))));
    top("pmix.mblob", Value::bytes(map.into_bytes()));
    for (node, (host, ranks)) in hosts.iter().zip(&peers).enumerate() {
        let infos = [
            ("pmix.hname", Value::string(host)),
            ("pmix.nodeid", Value::u32(node as u32)),
            ("pmix.lpeers", Value::string(list(ranks))),
            ("pmix.local.size", Value::u32(ranks.len() as u32)),
            ("pmix.node.size", Value::u32(ranks.len() as u32)),
        ];
        let infos = infos.map(|(key, value)| Value::Info(Box::new(Info::new(key, value))));
        top("pmix.node.arr", Value::Array(kind::INFO, infos.to_vec()));
    }
    let own = of_rank(job, rank, directories).unwrap_or_default();
    let own = Writer::new().rank(rank).raw(&own);
    top("pmix.pblob", Value::bytes(own.into_bytes()));
    w.into_bytes()
}

/// What is known of one rank, as KVALs. Only its own comes with the job's data: of all ranks it would be a hundred
/// bytes for each of them to each of them. Clients find the hosts of the others in the map of nodes (gds/hash,
/// PMIX_MAP_BLOB), and get the rest if they ask.
pub fn of_rank(job: &Job, rank: u32, directories: Option<&Directories>) -> Option<Vec<u8>> {
    let node = *job.node_of.get(rank as usize)?;
    let local = job.node_of[..rank as usize].iter().filter(|n| **n == node).count() as u16;
    let host = job.hosts.get(node as usize).cloned().unwrap_or_else(|| format!("node{node}"));
    let mut w = Writer::new();
    for (key, value) in [
        ("pmix.rank", Value::Rank(rank)),
        ("pmix.grank", Value::Rank(rank)),
        ("pmix.lrank", Value::u16(local)),
        ("pmix.nrank", Value::u16(local)),
        ("pmix.nodeid", Value::u32(node)),
        ("pmix.hname", Value::string(host)),
        ("pmix.appnum", Value::u32(job.appnum.get(rank as usize).copied().unwrap_or(0))),
    ] {
        w = w.kval(key, &value);
    }
    if let Some(directories) = directories.filter(|d| d.ranks && node == job.node) {
        w = w.kval("pmix.pdir", &Value::string(format!("{}/{rank}", directories.job)));
    }
    Some(w.into_bytes())
}

/// What a launcher's server says of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its namespace.
    pub nspace: String,
    /// Ranks.
    pub size: Option<u32>,
    /// Ranks that there is room for.
    pub universe: Option<u32>,
    /// More ranks than processors.
    pub oversubscribed: bool,
    /// Hosts in their order, each with its ranks.
    pub nodes: Vec<(String, Vec<u32>)>,
    /// Ranks with the numbers of their applications.
    pub appnum: BTreeMap<u32, u32>,
    /// Keys of the job's data, for people.
    pub keys: Vec<String>,
}

/// Reads a server's reply.
pub fn unpack(bytes: &[u8]) -> Result<Told, Malformed> {
    let mut r = Reader::new(bytes);
    let mut told = Told { nspace: r.string()?, ..Told::default() };
    let mut of_ranks: BTreeMap<u32, String> = BTreeMap::new();
    let mut arrays = Vec::new();
    let mut room = MAX_RANKS;
    while !r.is_empty() {
        let Info { key, value } = r.kval()?;
        match (key.as_str(), &value) {
            ("pmix.job.size", value) => told.size = value.number().and_then(|n| u32::try_from(n).ok()),
            ("pmix.univ.size", value) => told.universe = value.number().and_then(|n| u32::try_from(n).ok()),
            ("pmix.ndosub", value) => told.oversubscribed = value.number() == Some(1),
            ("pmix.mblob", Value::Bytes(_, blob)) => {
                let mut map = Reader::new(blob);
                for _ in 0..map.size()? {
                    let Info { key: host, value } = map.kval()?;
                    told.nodes.push((host, ranks(value.text().unwrap_or_default(), &mut room)?));
                }
            }
            ("pmix.node.arr", Value::Array(_, infos)) => arrays.extend(node_array(infos, &mut room)?),
            ("pmix.pblob", Value::Bytes(_, blob)) => {
                let mut of_rank = Reader::new(blob);
                let rank = of_rank.number()?;
                while !of_rank.is_empty() {
                    let Info { key, value } = of_rank.kval()?;
                    match (key.as_str(), value) {
                        ("pmix.hname", Value::String(host)) => drop(of_ranks.insert(rank, host)),
                        ("pmix.appnum", value) => {
                            let number = value.number().and_then(|n| u32::try_from(n).ok());
                            told.appnum.extend(number.map(|n| (rank, n)));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        told.keys.push(key);
    }
    if told.nodes.is_empty() {
        told.nodes = arrays;
    }
    if told.nodes.is_empty() {
        for (rank, host) in of_ranks {
            match told.nodes.iter_mut().find(|(known, _)| *known == host) {
                Some((_, ranks)) => ranks.push(rank),
                None => told.nodes.push((host, vec![rank])),
            }
        }
    }
    Ok(told)
}

fn node_array(infos: &[Value], room: &mut u32) -> Result<Option<(String, Vec<u32>)>, Malformed> {
    let mut host = None;
    let mut peers = None;
    for value in infos {
        if let Value::Info(info) = value {
            match info.key.as_str() {
                "pmix.hname" => host = info.value.text().map(str::to_owned),
                "pmix.lpeers" => peers = info.value.text(),
                _ => {}
            }
        }
    }
    match (host, peers) {
        (Some(host), Some(peers)) => Ok(Some((host, ranks(peers, room)?))),
        _ => Ok(None),
    }
}

/// "0,1,5-7". `room`: how many more there may be that a range alone stands for.
fn ranks(list: &str, room: &mut u32) -> Result<Vec<u32>, Malformed> {
    let bad = || Malformed(format!("PMIx: no list of ranks: {list:?}"));
    let mut out: Vec<u32> = Vec::new();
    for part in list.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.trim().parse().map_err(|_| bad())?;
        let last: u32 = last.trim().parse().map_err(|_| bad())?;
        *room = room.checked_sub(last.saturating_sub(first)).ok_or_else(bad)?;
        out.extend(first..=last);
    }
    Ok(out)
}

impl Told {
    /// The job, from the place of one rank.
    pub fn job(&self, rank: u32) -> Result<Job, String> {
        let size = self.size.ok_or("the server does not say how many ranks the job has")?;
        let unplaced = "the server does not say on which node each rank is";
        if size as usize > self.nodes.iter().map(|(_, ranks)| ranks.len()).sum() {
            return Err(unplaced.to_owned());
        }
        let mut node_of = vec![None; size as usize];
        for (node, (_, ranks)) in (0..).zip(&self.nodes) {
            for rank in ranks {
                if let Some(place) = node_of.get_mut(*rank as usize) {
                    *place = Some(node);
                }
            }
        }
        let Some(by_list) = node_of.iter().copied().collect::<Option<Vec<u32>>>() else {
            return Err(unplaced.to_owned());
        };
        let node_of = dense(by_list.clone());
        let mut hosts = vec![String::new(); self.nodes.len()];
        for (from, to) in by_list.iter().zip(&node_of) {
            hosts[*to as usize].clone_from(&self.nodes[*from as usize].0);
        }
        // Those without ranks are behind all others.
        hosts.truncate(node_of.iter().max().map_or(0, |n| *n as usize + 1));
        let node = *node_of.get(rank as usize).ok_or_else(|| format!("rank {rank} is none of {size}"))?;
        let appnum = (0..size).map(|r| self.appnum.get(&r).copied().unwrap_or(0)).collect();
        Ok(Job {
            id: crate::job::safe_name(&self.nspace),
            node_of,
            hosts,
            node,
            appnum,
            universe: self.universe,
            oversubscribed: self.oversubscribed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job(node_of: Vec<u32>, node: u32) -> Job {
        let nodes = node_of.iter().max().map_or(0, |n| n + 1);
        Job {
            id: "job.1".into(),
            hosts: (0..nodes).map(|n| format!("h{n}")).collect(),
            appnum: vec![0; node_of.len()],
            node_of,
            node,
            universe: Some(64),
            oversubscribed: false,
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_what_is_unpacked(nodes in prop::collection::vec(0u32..4, 1..20)) {
            let node_of = dense(nodes);
            let job = job(node_of.clone(), node_of[node_of.len() - 1]);
            let told = unpack(&pack(&job, 0, "job.1", None)).unwrap();
            prop_assert_eq!(told.job(node_of.len() as u32 - 1).unwrap(), job);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let good = pack(&job(vec![0, 0], 0), 0, "n", None);
            let _ = unpack(&bytes);
            for end in 0..good.len() {
                let _ = unpack(&good[..end]);
            }
        }
    }

    #[test]
    fn lists_of_ranks_and_what_is_missing() {
        let room = || 1 << 20;
        assert_eq!(ranks("0,2-4", &mut room()).unwrap(), [0, 2, 3, 4]);
        assert!(ranks("x", &mut room()).is_err() && ranks("0-4294967295", &mut room()).is_err());
        assert!(ranks("0-600000,0-600000", &mut room()).is_err(), "all of them together");
        let told = Told { size: Some(2), nodes: vec![("a".into(), vec![0])], ..Told::default() };
        assert!(told.job(0).unwrap_err().contains("on which node"));
        let told = Told { size: Some(u32::MAX), ..told };
        assert!(told.job(0).unwrap_err().contains("on which node"), "not by gigabytes");
        let nodes = vec![("idle".into(), vec![]), (String::new(), vec![1]), ("b".into(), vec![0])];
        let told = Told { size: Some(2), nodes, ..told };
        let job = told.job(1).unwrap();
        assert_eq!((job.hosts, job.node_of, job.node), (vec!["b".into(), String::new()], vec![0, 1], 1));
    }
}

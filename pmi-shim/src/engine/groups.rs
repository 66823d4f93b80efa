//! Groups that ranks make of themselves (PMIx_Group_construct): each gets a number, its context, which no other
//! group of the job has, and its members may leave something under it for each other.
//!
//! Open MPI 5 makes one for MPI_Comm_create_from_group and MPI_Intercomm_create_from_groups; for other
//! communicators its ranks agree by messages of their own.

use std::collections::HashMap;

use super::{Link, Participants};
use crate::pmix::command;
use crate::pmix::{Info, Proc, Reader, Value, Writer};
use crate::wire::Malformed;

/// The directive with what a member leaves for the others.
const INFO: &str = "pmix.grp.info";
/// The qualifier that says under which number something was left.
const CONTEXT: &str = "pmix.grp.ctxid";
/// What begins the names of such operations: no fence is called so.
const CONSTRUCT: &str = "group ";
/// Bits below a node's number in a group's.
const COUNT: u32 = 40;

/// How a client reads the reply (src/client/pmix_client_group.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Before 4.2: the number only.
    Number,
    /// Before 6.0: the members first.
    Members,
    /// And whether there is a number.
    Told,
}

impl Layout {
    fn of_release(version: &str) -> Layout {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        match (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) {
            (6.., _) => Layout::Told,
            (5, _) | (4, 2..) => Layout::Members,
            _ => Layout::Number,
        }
    }
}

/// What a member leaves for the others of a group that is not complete.
#[derive(Debug)]
struct Left {
    others: Participants,
    rank: u32,
    link: Link,
    infos: Vec<Info>,
}

/// The groups of a job, as one of its nodes sees them.
#[derive(Debug, Default)]
pub struct Groups {
    layouts: HashMap<Link, Layout>,
    left: Vec<Left>,
    /// Groups of this node only.
    here: u64,
    /// Groups of all ranks, on all nodes. They are complete in the same order everywhere.
    everywhere: u64,
    /// By rank and number.
    shared: HashMap<(u32, u64), Vec<Info>>,
}

/// What a group of this name waits for.
pub fn operation(group: &str) -> String {
    format!("{CONSTRUCT}{group}")
}

/// The group that these make, if they make one.
pub fn made(others: &Participants) -> Option<&str> {
    others.name.strip_prefix(CONSTRUCT)
}

/// A reply's last bytes are the number, which is known when all are there.
pub fn number(reply: &mut [u8], number: u64) {
    if let Some(last) = reply.last_chunk_mut() {
        *last = number.to_be_bytes();
    }
}

impl Groups {
    /// A client of this release is at the other end.
    pub fn admitted(&mut self, link: Link, version: &str) {
        self.layouts.insert(link, Layout::of_release(version));
    }

    /// The connection is gone.
    pub fn closed(&mut self, link: Link) {
        self.layouts.remove(&link);
        self.left.retain(|left| left.link != link);
    }

    /// A good reply, but for the number.
    pub fn reply(&self, link: Link, members: &[Proc]) -> Writer {
        let w = Writer::new();
        let w = match self.layouts.get(&link).copied().unwrap_or(Layout::Members) {
            Layout::Number => w,
            Layout::Members => w.size(members.len()).procs(members),
            Layout::Told => w.size(members.len()).procs(members).bool(true),
        };
        w.size(0)
    }

    /// What a member leaves for the others. Answers how many bytes.
    pub fn leave(&mut self, others: &Participants, (rank, link): (u32, Link), infos: &[Info]) -> usize {
        let mut left = Vec::new();
        for info in infos.iter().filter(|info| info.key == INFO) {
            if let Value::Array(_, values) = &info.value {
                left.extend(values.iter().filter_map(|value| match value {
                    Value::Info(info) => Some((**info).clone()),
                    _ => None,
                }));
            }
        }
        let size = Writer::new().infos(&left).into_bytes().len();
        self.left.push(Left { others: others.clone(), rank, link, infos: left });
        size
    }

    /// What the members on this node have left for a group that is complete here, packed.
    pub fn take_left(&mut self, others: &Participants) -> Vec<(u32, Vec<u8>)> {
        let mut taken: Vec<(u32, Vec<u8>)> = Vec::new();
        self.left.retain(|left| {
            // Of two of one name the first is complete first.
            let is_next = left.others == *others && taken.iter().all(|(rank, _)| *rank != left.rank);
            if is_next {
                taken.push((left.rank, Writer::new().infos(&left.infos).into_bytes()));
            }
            !is_next
        });
        taken
    }

    /// The number of a group that is complete. `node`: all its members are on this one; none: it has all ranks.
    pub fn next(&mut self, node: Option<u32>) -> u64 {
        match node {
            Some(node) => {
                self.here += 1;
                (u64::from(node) + 1) << COUNT | self.here
            }
            None => {
                self.everywhere += 1;
                self.everywhere
            }
        }
    }

    /// What members have left under a number.
    pub fn share(&mut self, number: u64, left: &[(u32, Vec<u8>)]) -> Result<(), Malformed> {
        for (rank, infos) in left {
            let infos = Reader::new(infos).infos()?;
            if !infos.is_empty() {
                self.shared.insert((*rank, number), infos);
            }
        }
        Ok(())
    }

    /// What a rank has left under a key and the number that the directives name: a KVAL.
    pub fn find(&self, rank: u32, key: &str, infos: &[Info]) -> Option<Vec<u8>> {
        let number = command::number_of(infos, CONTEXT)?;
        let found = self.shared.get(&(rank, number))?.iter().find(|info| info.key == key)?;
        let qualifier = Info::new(CONTEXT, Value::Size(number));
        Some(Writer::new().qualified(found, &qualifier).into_bytes())
    }
}

/// What is said of a group that cannot be.
pub fn refusal(group: &str, ranks: &[u32]) -> String {
    let name: String = group.chars().take(100).collect();
    let shown: Vec<String> = ranks.iter().take(8).map(u32::to_string).collect();
    let more = if ranks.len() > shown.len() { ", …" } else { "" };
    format!(
        "the PMIx group {name:?} of ranks {}{more} is on several nodes and has not all ranks: a bridge makes \
         groups of all ranks, or of ranks of one node. Make this communicator of another \
         (MPI_Comm_create_group, MPI_Comm_split), or use an MPI that the launcher serves itself",
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(name: &str) -> Participants {
        Participants { ranks: Some(vec![0, 1]), name: operation(name) }
    }

    #[test]
    fn each_release_is_told_in_its_layout() {
        let mut groups = Groups::default();
        let members = [Proc { nspace: "job".into(), rank: 0 }];
        let plain = |w: Writer| w.size(0).into_bytes();
        let with = || Writer::new().size(1).procs(&members);
        for (version, expected) in [
            ("4.1.2", plain(Writer::new())),
            ("4.2.0", plain(with())),
            ("5.0.7", plain(with())),
            ("6.0.0rc1", plain(with().bool(true))),
        ] {
            groups.admitted(1, version);
            assert_eq!(groups.reply(1, &members).into_bytes(), expected, "{version}");
        }
        let mut reply = groups.reply(1, &members).into_bytes();
        number(&mut reply, 77);
        let mut r = Reader::new(&reply[reply.len() - 14..]);
        assert_eq!(r.size().unwrap(), 77);
    }

    #[test]
    fn numbers_are_the_jobs() {
        let (mut one, mut other) = (Groups::default(), Groups::default());
        let mut all = vec![one.next(Some(0)), one.next(Some(0)), other.next(Some(1)), other.next(Some(1))];
        let (a, b) = (one.next(None), other.next(None));
        assert_eq!(a, b, "of all ranks, and on all nodes the same");
        all.push(a);
        all.push(one.next(None));
        let distinct: std::collections::HashSet<u64> = all.iter().copied().collect();
        assert_eq!((distinct.len(), distinct.contains(&0)), (all.len(), false), "{all:?}");
    }

    #[test]
    fn what_is_left_is_found_under_its_number_only() {
        let mut groups = Groups::default();
        let left = |n| {
            let info = Info::new("pmix.grp.lclid", Value::Size(n));
            [Info::new(INFO, Value::Array(24, vec![Value::Info(Box::new(info))]))]
        };
        groups.leave(&others("a"), (0, 0), &left(5));
        groups.leave(&others("a"), (0, 0), &left(6));
        groups.leave(&others("b"), (1, 1), &left(7));
        let first = groups.take_left(&others("a"));
        groups.share(1, &first).unwrap();
        let second = groups.take_left(&others("a"));
        groups.share(2, &second).unwrap();
        let find = |rank, number| {
            let infos = [Info::new(CONTEXT, Value::Size(number))];
            let kval = groups.find(rank, "pmix.grp.lclid", &infos)?;
            let Value::Array(_, values) = Reader::new(&kval).kval().unwrap().value else { return None };
            let Some(Value::Info(info)) = values.first() else { return None };
            info.value.number()
        };
        assert_eq!([find(0, 1), find(0, 2), find(0, 3), find(1, 1)], [Some(5), Some(6), None, None]);
        assert_eq!(groups.find(0, "pmix.grp.lclid", &[]), None);
        assert!(groups.share(3, &[(0, vec![1, 2])]).is_err());
        groups.closed(1);
        assert_eq!(groups.take_left(&others("b")), []);
    }

    #[test]
    fn a_refusal_names_the_group_and_the_cure() {
        let said = refusal("g\n", &(0..9).collect::<Vec<_>>());
        assert!(said.contains(r#""g\n" of ranks 0, 1, 2, 3, 4, 5, 6, 7, …"#), "{said}");
        assert!(said.contains("MPI_Comm_create_group"), "{said}");
    }
}

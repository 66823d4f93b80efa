//! Fences and barriers: who has come, who is missing, and what nodes give each other.

use std::collections::VecDeque;

use crate::engine::pmix::Committed;
use crate::engine::{Link, Participants, Peer};
use crate::job::Job;
use crate::pmix::{Reader, Writer};
use crate::wire::Malformed;

/// One of them.
#[derive(Debug)]
struct Collective {
    others: Participants,
    /// How many ranks of this node take part.
    expected: usize,
    spans: bool,
    entered: Vec<(Peer, Vec<u8>)>,
}

/// What can go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Complete {
    /// All are on this node: these are their replies.
    Here(Participants, Vec<(Link, Vec<u8>)>),
    /// The other nodes are to be waited for.
    Spanning(Participants),
}

/// All that are under way.
#[derive(Debug, Default)]
pub struct Collectives {
    open: Vec<Collective>,
    /// Complete on this node.
    done: VecDeque<Collective>,
    /// Waits for the other nodes.
    spanning: Option<Collective>,
}

impl Collectives {
    /// A rank enters. The error is what it gets if that cannot be.
    pub fn enter(
        &mut self,
        job: &Job,
        may_span: bool,
        peer: Peer,
        others: Participants,
        good: Vec<u8>,
        bad: Vec<u8>,
    ) -> Result<(), (Link, Vec<u8>)> {
        let is_in = |c: &Collective| c.others == others && c.entered.iter().all(|(p, _)| p.rank != peer.rank);
        let index = match self.open.iter().position(is_in) {
            Some(index) => index,
            None => {
                let here = |rank: &u32| job.node_of.get(*rank as usize) == Some(&job.node);
                let (expected, spans) = match &others.ranks {
                    None => (job.local().len(), job.nodes() > 1),
                    Some(ranks) => {
                        let expected = ranks.iter().filter(|rank| here(rank)).count();
                        (expected, expected < ranks.len())
                    }
                };
                // Launchers have barriers of the whole job only.
                if spans && (!may_span || others.ranks.is_some()) {
                    return Err((peer.link, bad));
                }
                self.open.push(Collective { others, expected, spans, entered: Vec::new() });
                self.open.len() - 1
            }
        };
        self.open[index].entered.push((peer, good));
        if self.open[index].entered.len() >= self.open[index].expected {
            let complete = self.open.remove(index);
            self.done.push_back(complete);
        }
        Ok(())
    }

    /// The next that can go on. Only one waits for other nodes at a time.
    pub fn ready(&mut self) -> Option<Complete> {
        let index = self.done.iter().position(|c| !c.spans || self.spanning.is_none())?;
        let collective = self.done.remove(index)?;
        if !collective.spans {
            let others = collective.others.clone();
            return Some(Complete::Here(others, replies(collective)));
        }
        let others = collective.others.clone();
        self.spanning = Some(collective);
        Some(Complete::Spanning(others))
    }

    /// The one that waits for the other nodes.
    pub fn waits(&self) -> Option<&Participants> {
        self.spanning.as_ref().map(|c| &c.others)
    }

    /// The other nodes have come: replies.
    pub fn spanned(&mut self) -> Vec<(Link, Vec<u8>)> {
        self.spanning.take().map(replies).unwrap_or_default()
    }
}

fn replies(collective: Collective) -> Vec<(Link, Vec<u8>)> {
    collective.entered.into_iter().map(|(peer, good)| (peer.link, good)).collect()
}

/// What a node gives to the others in a gathering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Its host's name; at the first gathering.
    pub host: String,
    /// Its ranks with the numbers of their applications; at the first gathering.
    pub appnums: Vec<(u32, u32)>,
    /// What its ranks have put by PMI-1 or PMI-2.
    pub puts: Vec<(String, String)>,
    /// What its ranks have committed by PMIx.
    pub committed: Vec<Committed>,
    /// What its ranks wait for: on all nodes the same. Empty at the first gathering.
    pub operation: String,
    /// What its ranks have left for the other members of the group that they make.
    pub left: Vec<Committed>,
}

/// The layout's version.
const VERSION: u32 = 2;

impl Part {
    /// As bytes.
    pub fn pack(&self) -> Vec<u8> {
        let w = Writer::new().u32(VERSION).string(&self.host).size(self.appnums.len());
        let w = self.appnums.iter().fold(w, |w, (rank, number)| w.rank(*rank).u32(*number));
        let w = w.size(self.puts.len());
        let w = self.puts.iter().fold(w, |w, (key, value)| w.string(key).string(value));
        let w = w.size(self.committed.len());
        let w = self.committed.iter().fold(w, |w, (rank, kvals)| w.rank(*rank).bytes(kvals));
        let w = w.string(&self.operation).size(self.left.len());
        let w = self.left.iter().fold(w, |w, (rank, infos)| w.rank(*rank).bytes(infos));
        w.into_bytes()
    }

    /// From bytes.
    pub fn unpack(bytes: &[u8]) -> Result<Part, Malformed> {
        let mut r = Reader::new(bytes);
        match r.number()? {
            VERSION => {}
            other => return Err(Malformed(format!("another version of hpc-launch runs there ({other})"))),
        }
        let host = r.string()?;
        let appnums = (0..r.size()?).map(|_| Ok((r.number()?, r.number()?))).collect::<Result<_, _>>()?;
        let puts = (0..r.size()?).map(|_| Ok((r.string()?, r.string()?))).collect::<Result<_, _>>()?;
        let committed = of_ranks(&mut r)?;
        let operation = r.string()?;
        Ok(Part { host, appnums, puts, committed, operation, left: of_ranks(&mut r)? })
    }
}

fn of_ranks(r: &mut Reader) -> Result<Vec<Committed>, Malformed> {
    (0..r.size()?).map(|_| Ok((r.number()?, r.bytes()?.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job(node_of: Vec<u32>) -> Job {
        let appnum = vec![0; node_of.len()];
        Job {
            id: "j".into(),
            node_of,
            hosts: Vec::new(),
            node: 0,
            appnum,
            universe: None,
            oversubscribed: false,
        }
    }

    fn enter(c: &mut Collectives, job: &Job, rank: u32, others: &Participants) -> bool {
        let peer = Peer { rank, link: rank };
        c.enter(job, true, peer, others.clone(), vec![rank as u8], Vec::new()).is_ok()
    }

    #[test]
    fn different_collectives_do_not_mix_and_the_next_one_may_begin() {
        let (mut c, job) = (Collectives::default(), job(vec![0, 0, 0]));
        let (all, pair) =
            (Participants::all("barrier"), Participants { ranks: Some(vec![0, 1]), name: "fence".into() });
        enter(&mut c, &job, 0, &all);
        enter(&mut c, &job, 1, &all);
        enter(&mut c, &job, 0, &pair);
        assert_eq!(c.ready(), None);
        enter(&mut c, &job, 1, &pair);
        assert_eq!(c.ready(), Some(Complete::Here(pair, vec![(0, vec![0]), (1, vec![1])])));
        // Rank 0 is in the next barrier before rank 2 is in this one.
        enter(&mut c, &job, 0, &all);
        enter(&mut c, &job, 2, &all);
        assert!(matches!(c.ready(), Some(Complete::Here(_, replies)) if replies.len() == 3));
        assert_eq!(c.ready(), None);
    }

    #[test]
    fn one_at_a_time_waits_for_other_nodes() {
        let (mut c, job) = (Collectives::default(), job(vec![0, 1]));
        let all = Participants::all("barrier");
        enter(&mut c, &job, 0, &all);
        enter(&mut c, &job, 0, &all);
        assert_eq!((c.ready(), c.ready()), (Some(Complete::Spanning(all.clone())), None));
        assert_eq!(c.waits(), Some(&all));
        assert_eq!(c.spanned(), [(0, vec![0])]);
        assert_eq!(c.ready(), Some(Complete::Spanning(all)));
        let some = Participants { ranks: Some(vec![0, 1]), name: "fence".into() };
        assert!(!enter(&mut c, &job, 0, &some), "no launcher has barriers of some ranks");
    }

    proptest! {
        #[test]
        fn parts(
            host in "[a-z]{0,9}",
            puts in prop::collection::vec(("[a-z]{1,5}", "[!-~]{0,20}"), 0..5),
            committed in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..9)), 0..5),
        ) {
            let left = committed.clone();
            let part = Part { host, appnums: vec![(1, 2)], puts, committed, operation: "barrier".into(), left };
            let bytes = part.pack();
            prop_assert_eq!(Part::unpack(&bytes).unwrap(), part);
            for end in 0..bytes.len() {
                prop_assert!(Part::unpack(&bytes[..end]).is_err());
            }
        }
    }
}

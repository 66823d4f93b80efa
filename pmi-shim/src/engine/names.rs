//! The service of names: what ranks publish for others to look up.

use std::collections::BTreeMap;

use super::Peer;
use crate::pmix::{Info, Proc};

/// Who asks, and which of its requests it is: answers come in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    /// Who.
    pub peer: Peer,
    /// Its engine's number of the request.
    pub ticket: u32,
}

/// A request, in the terms of both protocols.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Makes values known.
    Publish(Vec<Info>),
    /// Wants these; waits until so many are there.
    Lookup {
        /// The keys.
        keys: Vec<String>,
        /// How many must be there before there is an answer.
        wait: usize,
    },
    /// Takes these back; none: all of this rank's.
    Unpublish(Vec<String>),
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Done.
    Done,
    /// These are there.
    Found(Vec<(Proc, Info)>),
    /// Not there.
    NotFound,
    /// There is one already.
    Exists,
    /// Cannot be done here, and why.
    Refused(String),
}

/// What was published on this node.
#[derive(Debug, Default)]
pub struct Names {
    known: BTreeMap<String, (u32, Info)>,
    waiting: Vec<(Asker, Vec<String>, usize)>,
}

/// More names than these are refused.
const MAX_NAMES: usize = 65536;

impl Names {
    /// Answers that are due now: to this rank, and to others that were waiting for what it brought.
    pub fn ask(&mut self, nspace: &str, asker: Asker, ask: Ask) -> Vec<(Asker, Answer)> {
        let rank = asker.peer.rank;
        match ask {
            Ask::Publish(infos) => {
                // Directives are keys of PMIx's own.
                let values =
                    || infos.iter().filter(|i| !i.key.starts_with("pmix.") || i.value.text().is_some());
                if values().any(|i| self.known.contains_key(&i.key)) {
                    return vec![(asker, Answer::Exists)];
                }
                if self.known.len() + infos.len() > MAX_NAMES {
                    return vec![(asker, Answer::Refused(format!("more than {MAX_NAMES} names")))];
                }
                for info in values() {
                    self.known.insert(info.key.clone(), (rank, info.clone()));
                }
                let mut due = vec![(asker, Answer::Done)];
                let waiting = std::mem::take(&mut self.waiting);
                for (asker, keys, wait) in waiting {
                    due.extend(self.look(nspace, asker, keys, wait));
                }
                due
            }
            Ask::Lookup { keys, wait } => self.look(nspace, asker, keys, wait).into_iter().collect(),
            Ask::Unpublish(keys) => {
                let before = self.known.len();
                match keys.is_empty() {
                    true => self.known.retain(|_, (owner, _)| *owner != rank),
                    false => self.known.retain(|key, _| !keys.contains(key)),
                }
                let gone = self.known.len() < before || keys.is_empty();
                vec![(asker, if gone { Answer::Done } else { Answer::NotFound })]
            }
        }
    }

    fn look(
        &mut self,
        nspace: &str,
        asker: Asker,
        keys: Vec<String>,
        wait: usize,
    ) -> Option<(Asker, Answer)> {
        let found: Vec<(Proc, Info)> = keys
            .iter()
            .filter_map(|key| self.known.get(key))
            .map(|(rank, info)| (Proc { nspace: nspace.to_owned(), rank: *rank }, info.clone()))
            .collect();
        if found.len() < wait {
            self.waiting.push((asker, keys, wait));
            return None;
        }
        Some((asker, if found.is_empty() { Answer::NotFound } else { Answer::Found(found) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmix::Value;

    #[test]
    fn who_waits_is_answered_when_it_is_there() {
        let mut names = Names::default();
        let peer = |rank| Asker { peer: Peer { rank, link: rank }, ticket: 7 };
        let lookup = |wait| Ask::Lookup { keys: vec!["a".into()], wait };
        assert_eq!(names.ask("n", peer(0), lookup(0)), [(peer(0), Answer::NotFound)]);
        assert_eq!(names.ask("n", peer(0), lookup(1)), []);
        let info = Info::new("a", Value::string("port"));
        let publish = Ask::Publish(vec![info.clone(), Info::new("pmix.range", Value::Byte(33, 5))]);
        let found = Answer::Found(vec![(Proc { nspace: "n".into(), rank: 1 }, info)]);
        let due = names.ask("n", peer(1), publish.clone());
        assert_eq!(due, [(peer(1), Answer::Done), (peer(0), found)]);
        assert_eq!(names.ask("n", peer(2), publish), [(peer(2), Answer::Exists)]);
        let unpublish = Ask::Unpublish(vec!["a".into()]);
        assert_eq!(names.ask("n", peer(1), unpublish.clone()), [(peer(1), Answer::Done)]);
        assert_eq!(names.ask("n", peer(1), unpublish), [(peer(1), Answer::NotFound)]);
    }
}

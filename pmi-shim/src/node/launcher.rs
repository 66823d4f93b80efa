//! What goes to a node's launcher and comes from it: the job, gatherings, who is ready and who has finished.

use std::collections::BTreeMap;

use super::collective::{Complete, Part};
use super::{Do, Member, Node, Stage, nspace};
use crate::engine::Link;
use crate::engine::groups;
use crate::engine::pmix::Pmix;
use crate::uplink::{Out, Uplink};

impl Node {
    /// Releases what is complete, and gives the launcher what needs other nodes, one after the other.
    pub(super) fn collect(&mut self) {
        while let Some(complete) = self.collectives.ready() {
            match complete {
                Complete::Here(others, mut replies) => {
                    let node = self.job.as_ref().map(|job| job.node);
                    if let (Some(_), Some(pmix)) = (groups::made(&others), &mut self.pmix) {
                        let left = pmix.take_left(&others);
                        if let Err(why) = pmix.constructed(node, &left, &mut replies) {
                            return self.fail(why);
                        }
                    }
                    self.out.extend(replies.into_iter().map(|(link, good)| Do::Send(link, good)));
                }
                Complete::Spanning(others) => {
                    let committed = self.pmix.as_mut().map(Pmix::take_fresh).unwrap_or_default();
                    if let (Some(_), Some(pmix)) = (groups::made(&others), &mut self.pmix) {
                        self.left = pmix.take_left(&others);
                    }
                    let part = Part {
                        puts: self.simple.take_fresh(),
                        committed,
                        operation: others.name,
                        left: self.left.clone(),
                        ..Part::default()
                    };
                    self.gather(&part);
                }
            }
        }
    }

    pub(super) fn gather(&mut self, part: &Part) {
        let mut out = Vec::new();
        if let Some(uplink) = &mut self.uplink {
            uplink.gather(&part.pack(), &mut out);
        }
        self.uplinked(out);
    }

    /// The nodes tell each other their names when all their ranks are there.
    pub(super) fn introduce(&mut self) {
        let Some(job) = &self.job else { return };
        if self.introduced || self.introducing {
            return;
        }
        if job.nodes() == 1 {
            if let Some(job) = self.job.as_mut().filter(|job| job.hosts.is_empty()) {
                job.hosts.push(self.host_name.clone());
            }
            self.introduced = true;
            return;
        }
        let local = job.local();
        if local.iter().all(|rank| self.members.get(rank).is_some_and(|m| m.ready)) {
            self.introducing = true;
            let appnums = local.iter().map(|rank| (*rank, job.appnum[*rank as usize])).collect();
            let part = Part { host: self.host_name.clone(), appnums, ..Part::default() };
            self.gather(&part);
        }
    }

    pub(super) fn uplinked(&mut self, out: Vec<Out>) {
        for one in out {
            match one {
                Out::Connect(link, address) => self.out.push(Do::Connect(link, address)),
                Out::Send(link, bytes) => self.out.push(Do::Send(link, bytes)),
                Out::Job(job) => {
                    self.pmix = Some(Pmix::new(&nspace(&job), self.directories.clone()));
                    let strangers: Vec<u32> = self
                        .members
                        .keys()
                        .copied()
                        .filter(|r| job.node_of.get(*r as usize) != Some(&job.node))
                        .collect();
                    self.job = Some(job);
                    if let Some(rank) = strangers.first() {
                        self.fail(format!(
                            "the launcher says that rank {rank}, which is here, is on another node"
                        ));
                    }
                    let ranks: Vec<u32> = self.members.keys().copied().collect();
                    ranks.into_iter().for_each(|rank| self.welcome(rank));
                }
                Out::Started(rank) => self.started(rank),
                Out::Gathered(parts) => self.gathered(parts),
                Out::Finalized(rank) => self.finalized(rank),
                Out::Left(rank) => self.left_launcher(rank),
                Out::Named(asker, answer) => self.named(asker, &answer),
                Out::Failed(why) => self.fail(why),
            }
        }
    }

    pub(super) fn started(&mut self, rank: u32) {
        let appnum = match &self.uplink {
            Some(Uplink::Simple(client)) => Some(client.appnum(rank)),
            _ => None,
        };
        if let (Some(appnum), Some(job)) = (appnum, &mut self.job)
            && let Some(place) = job.appnum.get_mut(rank as usize)
        {
            *place = appnum;
        }
        if let Some(member) = self.members.get_mut(&rank) {
            member.ready = true;
        }
        self.introduce();
        self.pump_all();
    }

    pub(super) fn pump_all(&mut self) {
        if !self.introduced {
            return;
        }
        let mut links: Vec<Link> = self.sessions.keys().copied().collect();
        links.sort_unstable();
        links.into_iter().for_each(|link| self.pump(link));
    }

    pub(super) fn gathered(&mut self, parts: Vec<(u32, Vec<u8>)>) {
        let mut effects = Vec::new();
        let mut hosts = BTreeMap::new();
        for (node, bytes) in parts {
            let part = match Part::unpack(&bytes) {
                Ok(part) => part,
                Err(e) => {
                    return self.fail(format!("node {node} gave something that is none of our parts: {e}"));
                }
            };
            if self.introducing {
                hosts.insert(node, part.host);
                if let Some(job) = &mut self.job {
                    for (rank, appnum) in part.appnums {
                        if let Some(place) = job.appnum.get_mut(rank as usize) {
                            *place = appnum;
                        }
                    }
                }
                continue;
            }
            // Ranks of different nodes that enter two operations in different order would be released from the wrong
            // ones.
            if self.collectives.waits().is_none_or(|others| others.name != part.operation) {
                let ours = self.collectives.waits().map(|others| others.name.as_str()).unwrap_or_default();
                return self.fail(format!(
                    "the ranks of node {node} wait for {:?} while the ranks here wait for {ours:?}: operations of \
                     all ranks are to be begun in the same order by each",
                    part.operation
                ));
            }
            self.left.extend(part.left);
            let learnt = self.simple.learn(part.puts).and_then(|()| match (&mut self.pmix, &self.job) {
                (Some(pmix), Some(job)) => pmix.learn(job, part.committed),
                _ => Ok(Vec::new()),
            });
            match learnt {
                Ok(more) => effects.extend(more),
                Err(why) => return self.fail(why),
            }
        }
        if self.introducing {
            self.introducing = false;
            self.introduced = true;
            if let Some(job) = &mut self.job {
                hosts.insert(job.node, self.host_name.clone());
                if job.hosts.is_empty() {
                    job.hosts = hosts.into_values().collect();
                }
            }
            return self.pump_all();
        }
        self.carry_out(effects);
        let is_group = self.collectives.waits().is_some_and(|others| groups::made(others).is_some());
        let (mut replies, left) = (self.collectives.spanned(), std::mem::take(&mut self.left));
        if let (true, Some(pmix)) = (is_group, &mut self.pmix)
            && let Err(why) = pmix.constructed(None, &left, &mut replies)
        {
            return self.fail(why);
        }
        self.out.extend(replies.into_iter().map(|(link, good)| Do::Send(link, good)));
        self.collect();
    }

    pub(super) fn finalized(&mut self, rank: u32) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        let replies = std::mem::take(&mut member.finishing);
        self.out.extend(replies.into_iter().map(|(link, reply)| Do::Send(link, reply)));
        if member.ended
            && let Some(link) = member.host
        {
            self.sessions.remove(&link);
            self.out.push(Do::Close(link));
        }
    }

    pub(super) fn left_launcher(&mut self, rank: u32) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        member.leaving = false;
        if let Some(link) = member.host {
            self.sessions.remove(&link);
            self.out.push(Do::Close(link));
        }
    }

    /// Whether the launcher has not yet heard that a rank, of which it knows only by our asking, is finished, or
    /// greets one that has ended.
    pub fn owes_launcher(&self) -> bool {
        let owes = |m: &Member| m.leaving || m.ended && m.ready && m.stage == Stage::Silent;
        let open = |m: &Member| m.host.is_some_and(|link| self.sessions.contains_key(&link));
        self.members.values().any(|m| owes(m) && open(m))
    }
}

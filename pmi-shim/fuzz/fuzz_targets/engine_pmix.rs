//! Several ranks' requests to the PMIx server: as bytes, and made ones.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use made::memory::modest;
use made::request::request;
use made::script::{assert_bounded, steps};
use pmi_shim::engine::names::Names;
use pmi_shim::engine::pmix::Pmix;
use pmi_shim::engine::{Effect, Link, Peer};
use pmi_shim::pmix::RANK_WILDCARD;
use pmi_shim::pmix::command::Request;
use pmi_shim::pmix::handshake::Messages;
use pmi_shim::pmix::job::Directories;

struct Server {
    engine: Pmix,
    names: Names,
    out: usize,
    answered: HashSet<(Link, u32)>,
}

impl Server {
    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(link, bytes) => self.said(link, &bytes),
                Effect::Finalize(peer, bytes) => self.said(peer.link, &bytes),
                Effect::Enter { peer, others, good, bad } => {
                    assert_eq!(good[..8], bad[..8], "under the same tag");
                    self.said(peer.link, &good);
                    if let Some(ranks) = others.ranks {
                        assert!(ranks.is_sorted() && ranks.contains(&peer.rank), "{ranks:?}");
                        assert!(ranks.iter().all(|rank| *rank < made::job().size()), "{ranks:?}");
                    }
                }
                Effect::Abort { message, .. } => self.out += message.len(),
                Effect::Leaves(_, paths) => self.out += paths.iter().map(String::len).sum::<usize>(),
                Effect::Name(asker, ask) => {
                    for (asker, answer) in self.names.ask("job", asker, ask) {
                        let effects = self.engine.named(asker, &answer);
                        self.carry_out(effects);
                    }
                }
                Effect::Broken(link, why) => {
                    self.out += why.len();
                    self.engine.closed(link);
                }
            }
        }
    }

    /// Nothing is answered twice: each request has a tag of its own.
    fn said(&mut self, link: Link, bytes: &[u8]) {
        self.out += bytes.len();
        let mut messages = Messages::default();
        messages.push(bytes);
        let (header, _) = messages.message().expect("a message").expect("all of it");
        assert!(messages.is_empty() && self.answered.insert((link, header.tag)), "{header:?}");
    }
}

/// Names ranks that the job does not have.
fn is_of_strangers(request: &Request) -> bool {
    let (Request::Fence { procs, .. } | Request::Connect { procs } | Request::Disconnect { procs }) = request
    else {
        return false;
    };
    let is_wild = procs.iter().any(|p| p.rank == RANK_WILDCARD);
    !is_wild && procs.iter().any(|p| p.rank >= made::job().size())
}

fuzz_target!(|bytes: &[u8]| {
    modest(bytes, || {
        let job = made::job();
        let directories = Directories { job: "/d".into(), ranks: true };
        let engine = Pmix::new("job", Some(directories));
        let mut server = Server { engine, names: Names::default(), out: 0, answered: HashSet::new() };
        // A made request may have more bytes than what it was made from.
        let (mut requests, mut input) = (0, bytes.len());
        for (tag, step) in (0..).zip(steps(bytes)) {
            let rank = step.who % 4;
            let peer = Peer { rank, link: rank };
            requests += 1;
            let effects = match step.what {
                b'c' => {
                    server.engine.closed(rank);
                    continue;
                }
                b't' => {
                    let fresh = server.engine.take_fresh();
                    server.out += fresh.iter().map(|(_, kvals)| kvals.len()).sum::<usize>();
                    let moved = fresh.into_iter().map(|(rank, kvals)| (rank + 1, kvals)).collect();
                    server.engine.learn(&job, moved).unwrap_or_default()
                }
                b'm' => {
                    let request = request("job", step.bytes);
                    let packed = request.pack(1000);
                    input += packed.len();
                    assert_eq!(Request::parse(&packed).as_ref(), Ok(&request));
                    let effects = server.engine.handle(&job, peer, tag, &packed);
                    let is_in = effects.iter().any(|e| matches!(e, Effect::Enter { .. }));
                    assert!(!(is_in && is_of_strangers(&request)), "{request:?}");
                    effects
                }
                _ => server.engine.handle(&job, peer, tag, step.bytes),
            };
            server.carry_out(effects);
        }
        assert_bounded(server.out, requests, input);
    });
});

//! The helper: one process per node and job step, outside the sandbox, that stands between the ranks and their
//! launcher. It ends when its last rank has ended.
//!
//! It holds each rank's connection to the launcher and closes it when the rank's process ends, so that the
//! launcher sees what it would see of a bare rank. If the helper itself dies, the kernel kills its ranks
//! ([`super::calls::die_with`]).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::socket::{SockFlag, accept4, getsockopt, sockopt};
use pmi_shim::node::{Node, Stage};
use pmi_shim::uplink::{Uplink, pmix, simple};

use super::ending::Ending;
use super::events::{Event, Events};
use super::letters::{self, Reply, Request, Speaks};
use super::{alone, calls, directories, host_name, processors, raise_limit};

/// How long a rank may take from its connection to its letter: it sends it at once.
const LETTER_MS: u64 = 5000;
/// How long the launcher may take to notice a rank that ended without having finished.
const LOST_MS: u64 = 300;
/// How long the helper waits for ranks that have not come yet, when none is here.
const ALONE_MS: u64 = 5000;
/// Between words of ours and the end of the job: hydra drops what it has not passed on.
const HEARD_MS: u64 = 150;
/// How long other ranks may take to come when the one that built the sandbox has failed.
const FAILED_MS: u16 = 300;
/// How long the launcher may take over the last words.
const LAST_MS: u64 = 1000;

/// After so long without any event what the beginning of a job needed is not needed soon.
const QUIET: Duration = Duration::from_millis(500);

/// Everything that the helper holds.
struct Helper {
    events: Option<Events>,
    /// Where ranks come: one socket for each sandbox of the step.
    doors: Vec<OwnedFd>,
    /// Ranks whose letter is to come, and since when.
    callers: BTreeMap<u32, (OwnedFd, u64)>,
    /// Ranks that wait for their welcome.
    joining: BTreeMap<u32, OwnedFd>,
    next: u32,
    joined: u32,
    ended: u32,
    expected: Option<u32>,
    has_launcher: bool,
    ending: Ending,
    /// The first rank that ended without having finished.
    lost: Option<(u32, u64)>,
    /// When the launcher is to be told that the job cannot go on, and why.
    failing: Option<(u64, String)>,
    began: Instant,
    oversubscribed: bool,
    /// Nothing has happened since the program's pages were given back.
    is_quiet: bool,
}

/// Numbers of the owner's descriptors: doors count from 0, callers from here on.
const CALLERS: u32 = 1 << 16;
/// The launcher's daemon.
const DAEMON: u32 = CALLERS - 1;

/// Leaves the sandbox that is being built: a mount namespace as the host's, without the image.
/// `covered`: where the image was attached.
pub fn leave_sandbox(covered: &std::path::Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    umount2(covered, MntFlags::MNT_DETACH)
}

/// The helper's whole life. `control` brings the first door.
pub fn live(control: BorrowedFd, daemon: BorrowedFd) {
    let Ok(control) = control.try_clone_to_owned() else { return };
    let Ok(Some((Request::Listen, mut descriptors))) = letters::receive::<Request>(&control) else { return };
    let Some(door) = descriptors.pop() else { return };
    raise_limit();
    let mut helper = Helper {
        events: None,
        doors: vec![door],
        callers: BTreeMap::new(),
        joining: BTreeMap::new(),
        next: CALLERS,
        joined: 0,
        ended: 0,
        expected: None,
        has_launcher: false,
        ending: Ending::default(),
        lost: None,
        failing: None,
        began: Instant::now(),
        oversubscribed: false,
        is_quiet: false,
    };
    helper.first(control.as_fd(), daemon);
    drop(control);
    while helper.step() {}
}

impl Helper {
    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// The first rank tells what its launcher speaks: waited for without any events. `builder` is at its end when
    /// that rank, which has built the sandbox, has become its program or has failed.
    fn first(&mut self, builder: BorrowedFd, daemon: BorrowedFd) {
        let patience = Duration::from_millis(ALONE_MS);
        let mut alone = false;
        while self.events.is_none() && self.began.elapsed() < patience {
            use nix::poll::{PollFd, PollFlags, poll};
            let mut fds = [
                PollFd::new(self.doors[0].as_fd(), PollFlags::POLLIN),
                PollFd::new(daemon, PollFlags::POLLIN),
                PollFd::new(builder, PollFlags::POLLIN),
            ];
            let (watched, limit) = if alone { (2, FAILED_MS) } else { (3, ALONE_MS as u16) };
            let ready = poll(&mut fds[..watched], limit);
            if fds[0].any() != Some(true) {
                match ready {
                    Ok(n) if n > 0 && fds[1].any() != Some(true) => alone = true,
                    Err(nix::errno::Errno::EINTR) => {}
                    _ => return,
                }
                continue;
            }
            let Some(socket) = self.accept(0) else { continue };
            let timeout = nix::sys::time::TimeVal::new(LETTER_MS as i64 / 1000, 0);
            let _ = nix::sys::socket::setsockopt(&socket, sockopt::ReceiveTimeout, &timeout);
            if let Ok(Some((letter, descriptors))) = letters::receive::<Request>(&socket) {
                if let Request::Join { speaks, size, .. } = &letter {
                    match self.open(speaks, *size) {
                        Ok(events) => {
                            let _ = events.watch(self.doors[0].as_fd(), 0);
                            let _ = events.watch(daemon, DAEMON);
                            self.events = Some(events);
                        }
                        Err(e) => {
                            let why = format!("the helper cannot listen: {e}");
                            let _ = letters::send(&socket, &Reply::Refused(why), &[]);
                            return;
                        }
                    }
                }
                self.letter(socket, letter, descriptors);
            }
        }
    }

    fn open(&mut self, speaks: &Speaks, size: Option<u32>) -> std::io::Result<Events> {
        let (name, directories) = (host_name(), directories());
        self.has_launcher = *speaks != Speaks::Nothing;
        self.oversubscribed = size.is_some_and(|size| size as usize > processors());
        let node = match speaks {
            Speaks::Nothing => {
                let size = size.unwrap_or(1);
                Node::alone(alone(size, &name, self.oversubscribed), directories)
            }
            Speaks::Simple => {
                let client = simple::Client::new(size, simple::Version::Any);
                Node::below(Uplink::Simple(Box::new(client)), &name, directories)
            }
            Speaks::Pmix { nspace, bfrops } => {
                let identity = pmix::Identity {
                    nspace: nspace.clone(),
                    bfrops: bfrops.clone(),
                    uid: nix::unistd::geteuid().as_raw(),
                    gid: nix::unistd::getegid().as_raw(),
                };
                Node::below(Uplink::Pmix(Box::new(pmix::Client::new(identity))), &name, directories)
            }
        };
        Events::new(node)
    }

    /// A caller at a door. Whoever is not this user is not let in.
    #[allow(unsafe_code)]
    fn accept(&self, door: usize) -> Option<OwnedFd> {
        use std::os::fd::FromRawFd;
        let fd = accept4(self.doors.get(door)?.as_raw_fd(), SockFlag::SOCK_CLOEXEC).ok()?;
        // SAFETY: accept4 has just made this descriptor; nothing else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let peer = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
        (peer.uid() == nix::unistd::geteuid().as_raw()).then_some(socket)
    }

    fn letter(&mut self, socket: OwnedFd, letter: Request, mut descriptors: Vec<OwnedFd>) {
        let Some(events) = &mut self.events else { return };
        match letter {
            Request::Listen => {
                if let Some(door) = descriptors.pop() {
                    let number = self.doors.len() as u32;
                    if number < DAEMON && events.watch(door.as_fd(), number).is_ok() {
                        self.doors.push(door);
                        let _ = letters::send(&socket, &Reply::Listening, &[]);
                    }
                }
            }
            Request::Join { rank, local_size, .. } => {
                self.expected = self.expected.or(local_size);
                let Ok(peer) = getsockopt(&socket, sockopt::PeerCredentials) else { return };
                self.joining.insert(rank, socket);
                match events.admit(letter, descriptors, peer.pid()) {
                    Ok(()) => self.joined += 1,
                    Err(why) => {
                        if let Some(socket) = self.joining.remove(&rank) {
                            let _ = letters::send(&socket, &Reply::Refused(why.clone()), &[]);
                        }
                        // hydra and srun would let the others wait for it for ever.
                        let now = self.now();
                        self.failing = Some((now + HEARD_MS, why));
                        self.ending.begin(now, true);
                    }
                }
            }
        }
    }

    fn welcome(&mut self, rank: u32) {
        if let (Some(events), Some(socket)) = (&self.events, self.joining.remove(&rank)) {
            let _ = letters::send(&socket, &events.welcome(rank), &[]);
        }
    }

    /// Waits for the next event and handles it; answers whether there is more to do.
    fn step(&mut self) -> bool {
        let now = self.now();
        let Some(events) = &mut self.events else { return false };
        let due = [
            self.ending.next(),
            self.failing.as_ref().map(|(due, _)| *due),
            self.lost.filter(|_| !self.ending.has_begun()).map(|(_, since)| since + LOST_MS),
            self.callers.values().map(|(_, since)| since + LETTER_MS).min(),
        ];
        let idle = self.joined == self.ended;
        let is_complete = self.expected.is_some_and(|expected| self.joined >= expected);
        let idle_limit = match (idle, is_complete) {
            (true, true) => Some(now),
            (true, false) => Some(now + ALONE_MS),
            _ => None,
        };
        if idle && (is_complete || self.ending.has_begun()) {
            self.last_words();
            return false;
        }
        let next = due.into_iter().flatten().chain(idle_limit).min();
        let quiet = (next.is_none() && !self.is_quiet).then_some(QUIET);
        let wait = next.map(|at| Duration::from_millis(at.saturating_sub(now))).or(quiet);
        let happened = match events.wait(wait) {
            Ok(happened) => happened,
            // Without events there is nothing that we could do for anybody: the kernel ends the ranks.
            Err(_) => return false,
        };
        if happened.is_empty() && idle && idle_limit.is_some_and(|limit| self.now() >= limit) {
            self.last_words();
            return false;
        }
        if happened.is_empty() && quiet.is_some() {
            // The ranks compute, for hours maybe.
            calls::release_program();
            self.is_quiet = true;
            return true;
        }
        self.is_quiet = false;
        for event in happened {
            self.handle(event);
        }
        self.in_time();
        true
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Welcome(rank) => {
                if let Some(job) = self.events.as_ref().and_then(|e| e.node.job()) {
                    self.expected = Some(job.local().len() as u32);
                }
                self.welcome(rank);
            }
            Event::Ended(rank, stage) => {
                self.ended += 1;
                self.joining.remove(&rank);
                if stage == Stage::Active && self.lost.is_none() {
                    self.lost = Some((rank, now));
                }
            }
            Event::Abort { .. } => self.ending.begin(now, self.has_launcher),
            Event::Fail(why) => self.fail(&why),
            Event::Ready(DAEMON) => {
                if !self.ending.has_begun() {
                    self.say("the launcher is gone: this job ends");
                }
                self.ending.begin(now, false);
            }
            Event::Ready(door) if door < CALLERS => {
                if let Some(socket) = self.accept(door as usize)
                    && let Some(events) = &self.events
                {
                    self.next += 1;
                    let _ = events.watch(socket.as_fd(), self.next);
                    self.callers.insert(self.next, (socket, now));
                }
            }
            Event::Ready(caller) => {
                let Some((socket, _)) = self.callers.remove(&caller) else { return };
                if let Some(events) = &self.events {
                    events.unwatch(socket.as_fd());
                }
                if let Ok(Some((letter, descriptors))) = letters::receive::<Request>(&socket) {
                    self.letter(socket, letter, descriptors);
                }
            }
        }
    }

    fn fail(&mut self, why: &str) {
        if self.ending.has_begun() {
            return;
        }
        let waiting = std::mem::take(&mut self.joining);
        if waiting.is_empty() {
            self.say(why);
        }
        for socket in waiting.values() {
            let _ = letters::send(socket, &Reply::Refused(why.to_owned()), &[]);
        }
        let now = self.now();
        let Some(events) = &mut self.events else { return };
        let has_launcher = self.has_launcher && !events.node.launcher_is_gone();
        if has_launcher {
            self.failing = Some((now + HEARD_MS, why.to_owned()));
        }
        // Ranks that are told so end by themselves.
        self.ending.begin(now, has_launcher || !waiting.is_empty());
    }

    /// What time brings.
    fn in_time(&mut self) {
        let now = self.now();
        self.callers.retain(|_, (_, since)| now < *since + LETTER_MS);
        if let Some((_, why)) = self.failing.take_if(|(due, _)| now >= *due)
            && let Some(events) = &mut self.events
        {
            let some = events.living().next();
            if let Some((rank, _)) = some {
                events.abort(rank, 1, why);
            }
        }
        if let Some((rank, since)) = self.lost
            && now >= since + LOST_MS
            && !self.ending.has_begun()
        {
            let why = format!("rank {rank} ended without MPI_Finalize");
            let some = self.events.as_ref().and_then(|e| e.living().next());
            if let (Some((living, _)), Some(events)) = (some, &mut self.events) {
                events.abort(living, 1, why);
            }
            self.ending.begin(now, self.has_launcher);
        }
        if let Some(signal) = self.ending.due(now)
            && let Some(events) = &self.events
        {
            events.signal(signal);
            if signal == Signal::SIGTERM {
                // A stopped rank would not notice.
                events.signal(Signal::SIGCONT);
            }
        }
    }

    /// The launcher hears what is left to be said.
    fn last_words(&mut self) {
        let end = Instant::now() + Duration::from_millis(LAST_MS);
        let Some(events) = &mut self.events else { return };
        // What a rank that never spoke leaves with the launcher: its finalize is answered before we go.
        while (events.is_unwritten() || events.node.owes_launcher()) && Instant::now() < end {
            if events.wait(Some(Duration::from_millis(50))).is_err() {
                return;
            }
        }
    }

    fn say(&self, text: &str) {
        if let Some(events) = &self.events {
            events.say(text);
        }
    }
}

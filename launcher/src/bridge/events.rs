//! Sockets and processes of one node: carries bytes between them and the [`Node`], and tells what happens.
//!
//! One thread. Nothing here waits but for [`Events::wait`]: what cannot be written now is kept, and a rank that
//! does not read what it asked for is not read from either.

use std::collections::{BTreeMap, HashMap};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, send};
use pmi_shim::engine::Link;
use pmi_shim::job::Job;
use pmi_shim::node::{Do, Node, Stage};
use pmi_shim::uplink::Host;

use super::calls;
use super::leftovers;
use super::letters::{self, Reply, Request};
use super::peer;

/// Unread answers of a rank, in bytes, beyond which it is not listened to.
const MAX_UNREAD: usize = 1 << 20;
/// How many ranks' standard errors are kept.
const VOICES: usize = 4;
/// Events taken at once.
const BATCH: usize = 64;
/// Reads of what a rank wrote before its end.
const LAST_WORDS: u32 = 256;
/// How long a connection to the launcher may take. It is on this host.
const CONNECTING: Duration = Duration::from_secs(5);

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// This rank's program may start.
    Welcome(u32),
    /// A rank's process has ended; how far it was.
    Ended(u32, Stage),
    /// A rank has ended the job.
    Abort {
        /// Which.
        rank: u32,
        /// With this status.
        status: i32,
        /// And these words.
        message: String,
    },
    /// The job cannot go on.
    Fail(String),
    /// A descriptor that the owner watches is ready.
    Ready(u32),
}

struct Stream {
    fd: OwnedFd,
    unwritten: Vec<u8>,
    /// To be closed when all is written.
    closing: bool,
    interest: EpollFlags,
    /// Of a rank, not of the launcher.
    inside: bool,
}

struct Process {
    pid: i32,
    pidfd: OwnedFd,
    /// Kept open while we live.
    _lifeline: OwnedFd,
    /// Its standard error, of a few: launchers wait for the end of each.
    stderr: Option<OwnedFd>,
}

/// What an epoll event is about.
#[derive(Clone, Copy)]
enum Token {
    Stream(Link),
    Rank(u32),
    Caller,
    Owner(u32),
}

impl Token {
    fn data(self) -> u64 {
        let (kind, number) = match self {
            Token::Stream(link) => (0, link),
            Token::Rank(rank) => (1, rank),
            Token::Caller => (2, 0),
            Token::Owner(number) => (3, number),
        };
        u64::from(number) << 8 | kind
    }

    fn of(data: u64) -> Token {
        let number = (data >> 8) as u32;
        match data & 0xff {
            0 => Token::Stream(number),
            1 => Token::Rank(number),
            2 => Token::Caller,
            _ => Token::Owner(number),
        }
    }
}

/// All of it.
pub struct Events {
    /// What the bytes mean.
    pub node: Node,
    epoll: Epoll,
    listener: TcpListener,
    streams: HashMap<Link, Stream>,
    ranks: BTreeMap<u32, Process>,
    next: Link,
    uid: u32,
    events: Vec<Event>,
    refused: Vec<OwnedFd>,
}

impl Events {
    /// With a port of its own on the loopback interface.
    pub fn new(node: Node) -> std::io::Result<Events> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        // The library asks for 128: of more ranks at once some would try again after a second (tcp_conn_request).
        calls::listen(&listener)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, Token::Caller.data()))?;
        let (streams, ranks) = (HashMap::new(), BTreeMap::new());
        let uid = nix::unistd::geteuid().as_raw();
        Ok(Events {
            node,
            epoll,
            listener,
            streams,
            ranks,
            next: 1,
            uid,
            events: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// "127.0.0.1:port".
    pub fn address(&self) -> std::io::Result<String> {
        self.listener.local_addr().map(|address| address.to_string())
    }

    /// Tells when a descriptor of the owner's can be read from.
    pub fn watch(&self, fd: BorrowedFd, number: u32) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, Token::Owner(number).data()))
    }

    /// Tells when a descriptor of the owner's can be written to.
    pub fn watch_for_room(&self, fd: BorrowedFd, number: u32) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLOUT, Token::Owner(number).data()))
    }

    /// No more.
    pub fn unwatch(&self, fd: BorrowedFd) {
        let _ = self.epoll.delete(fd);
    }

    /// A rank that comes with its letter and descriptors.
    pub fn admit(&mut self, letter: Request, mut descriptors: Vec<OwnedFd>, pid: i32) -> Result<(), String> {
        let Request::Join { rank, pmi, must_know, host, .. } = letter else {
            return Err("a rank is to say which it is".to_owned());
        };
        descriptors.reverse();
        let lifeline = descriptors.pop().ok_or("a rank is to bring its lifeline")?;
        let stderr = descriptors.pop().ok_or("a rank is to bring its standard error")?;
        let pmi = if pmi { descriptors.pop() } else { None };
        let host = match host {
            letters::Host::None => None,
            letters::Host::Descriptor => descriptors.pop().map(|fd| (Some(fd), Host::Open)),
            letters::Host::At(address) => Some((None, Host::At(address))),
        };
        self.join(rank, pid, (lifeline, stderr), pmi, host, must_know)
    }

    /// What a rank is told when its program may start.
    pub fn welcome(&self, rank: u32) -> Reply {
        let job = self.node.job();
        let local = job.and_then(|job| {
            let local = job.local();
            let place = local.iter().position(|r| *r == rank)?;
            Some((place as u32, local.len() as u32))
        });
        Reply::Welcome {
            nspace: self.node.nspace().map(str::to_owned),
            address: self.address().unwrap_or_default(),
            size: job.map(Job::size),
            local,
        }
    }

    /// A rank: its process, the pipe whose end is its end, its PMI connection, that to the launcher; `must_know`: it
    /// is welcome only when the job is known.
    fn join(
        &mut self,
        rank: u32,
        pid: i32,
        (lifeline, stderr): (OwnedFd, OwnedFd),
        pmi: Option<OwnedFd>,
        host: Option<(Option<OwnedFd>, Host)>,
        must_know: bool,
    ) -> Result<(), String> {
        let failed = |what: &str, e: Errno| format!("{what} of rank {rank}: {e}");
        let pidfd = calls::pidfd(pid).map_err(|e| failed("watching the process", e))?;
        let pmi = match pmi {
            Some(fd) => Some(self.add(fd, true).map_err(|e| failed("watching the connection", e))?),
            None => None,
        };
        let host = match host {
            Some((Some(fd), host)) => {
                let link =
                    self.add(fd, false).map_err(|e| failed("watching the launcher's connection", e))?;
                Some((link, host))
            }
            Some((None, host)) => Some((self.number(), host)),
            None => None,
        };
        if let Err(why) = self.node.join(rank, pmi, host.clone(), must_know) {
            for link in pmi.into_iter().chain(host.map(|(link, _)| link)) {
                // Kept open: launchers end a job whose rank closes its connection before they pass its words on.
                self.refused.extend(self.streams.remove(&link).map(|stream| stream.fd));
            }
            return Err(why);
        }
        let ended = EpollEvent::new(EpollFlags::EPOLLIN, Token::Rank(rank).data());
        self.epoll.add(&pidfd, ended).map_err(|e| failed("watching the process", e))?;
        let is_kept = self.ranks.values().filter(|p| p.stderr.is_some()).count() < VOICES;
        let stderr = Some(stderr).filter(|_| is_kept);
        self.ranks.insert(rank, Process { pid, pidfd, _lifeline: lifeline, stderr });
        self.settle();
        Ok(())
    }

    fn number(&mut self) -> Link {
        self.next += 1;
        self.next
    }

    fn add(&mut self, fd: OwnedFd, inside: bool) -> nix::Result<Link> {
        let link = self.number();
        self.open(link, fd, inside)?;
        Ok(link)
    }

    fn open(&mut self, link: Link, fd: OwnedFd, inside: bool) -> nix::Result<()> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let interest = EpollFlags::EPOLLIN;
        self.epoll.add(&fd, EpollEvent::new(interest, Token::Stream(link).data()))?;
        self.streams.insert(link, Stream { fd, unwritten: Vec::new(), closing: false, interest, inside });
        Ok(())
    }

    /// Ranks whose processes live, with their process numbers.
    pub fn living(&self) -> impl Iterator<Item = (u32, i32)> {
        self.ranks.iter().map(|(rank, process)| (*rank, process.pid))
    }

    /// Says something by the standard error of a rank that lives.
    pub fn say(&self, text: &str) {
        let line = format!("hpc-launch: {text}\n");
        let mut voices = self.ranks.values().filter_map(|p| p.stderr.as_ref());
        voices.find(|voice| nix::unistd::write(voice, line.as_bytes()).is_ok());
    }

    /// Whether something is still to be written.
    pub fn is_unwritten(&self) -> bool {
        self.streams.values().any(|s| !s.unwritten.is_empty())
    }

    /// A signal for every living rank, and for its process group if it leads one.
    pub fn signal(&self, what: Signal) {
        for process in self.ranks.values() {
            self.signal_one(process, what);
        }
    }

    fn signal_one(&self, process: &Process, what: Signal) {
        let pid = nix::unistd::Pid::from_raw(process.pid);
        // The process is there still, if only as a zombie, or the signal fails: the number is not another's.
        if calls::signal(&process.pidfd, what).is_ok() && nix::unistd::getpgid(Some(pid)) == Ok(pid) {
            let _ = nix::sys::signal::killpg(pid, what);
        }
    }

    /// The job is to end for this reason.
    pub fn abort(&mut self, rank: u32, status: i32, message: String) {
        self.node.abort(rank, status, message);
        self.settle();
    }

    /// Waits at most so long, and answers what has happened.
    pub fn wait(&mut self, most: Option<Duration>) -> std::io::Result<Vec<Event>> {
        if self.events.is_empty() {
            let timeout = match most {
                None => EpollTimeout::NONE,
                Some(most) => {
                    EpollTimeout::try_from(most + Duration::from_micros(999)).unwrap_or(EpollTimeout::MAX)
                }
            };
            let mut batch = [EpollEvent::empty(); BATCH];
            let count = match self.epoll.wait(&mut batch, timeout) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &batch[..count] {
                match Token::of(event.data()) {
                    Token::Stream(link) => self.stream(link, event.events()),
                    Token::Rank(rank) => self.ended(rank),
                    Token::Caller => self.accept(),
                    Token::Owner(number) => self.events.push(Event::Ready(number)),
                }
            }
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn accept(&mut self) {
        for _ in 0..BATCH {
            let Ok((stream, _)) = self.listener.accept() else { return };
            // The port is open to everybody on this host.
            if peer::owner(&stream) != Some(self.uid) {
                continue;
            }
            let _ = stream.set_nodelay(true);
            if let Ok(link) = self.add(stream.into(), true) {
                self.node.accepted(link);
            }
        }
    }

    fn ended(&mut self, rank: u32) {
        if self.ranks.contains_key(&rank) {
            let stage = self.finish(rank);
            self.events.push(Event::Ended(rank, stage));
        }
    }

    /// A rank's process has ended, as its parent knows: how far it was.
    pub fn finish(&mut self, rank: u32) -> Stage {
        let Some(process) = self.ranks.remove(&rank) else { return Stage::Silent };
        let _ = self.epoll.delete(&process.pidfd);
        // What it wrote before is to be read first: a finalize, an abort.
        for link in self.node.links_of(rank) {
            let mut rounds = 0;
            while self.read(link) && rounds < LAST_WORDS {
                rounds += 1;
            }
        }
        let stage = self.node.ended(rank);
        self.settle();
        stage
    }

    fn stream(&mut self, link: Link, what: EpollFlags) {
        if what.contains(EpollFlags::EPOLLOUT) {
            self.flush(link);
        }
        if what.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.read(link);
            self.settle();
        }
    }

    /// Answers whether there was something.
    fn read(&mut self, link: Link) -> bool {
        let mut bytes = [0; 32768];
        let Some(stream) = self.streams.get(&link) else { return false };
        match nix::unistd::read(&stream.fd, &mut bytes) {
            Ok(count @ 1..) => {
                self.node.receive(link, &bytes[..count]);
                return true;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(_) | Err(_) => {
                self.remove(link);
                self.node.closed(link);
            }
        }
        false
    }

    fn remove(&mut self, link: Link) {
        if let Some(stream) = self.streams.remove(&link) {
            let _ = self.epoll.delete(&stream.fd);
        }
    }

    /// Does what the node wants done.
    fn settle(&mut self) {
        loop {
            let todo = self.node.take();
            if todo.is_empty() {
                return;
            }
            for one in todo {
                match one {
                    Do::Connect(link, address) => self.connect(link, &address),
                    Do::Send(link, bytes) => self.send(link, &bytes),
                    Do::Close(link) => self.close(link),
                    Do::Welcome(rank) => self.events.push(Event::Welcome(rank)),
                    Do::Abort { rank, status, message } => {
                        self.events.push(Event::Abort { rank, status, message });
                    }
                    Do::Remove(paths) => leftovers::remove(&paths, self.uid),
                    Do::Say(what) => self.say(&what),
                    Do::Fail(why) => self.events.push(Event::Fail(why)),
                }
            }
        }
    }

    fn connect(&mut self, link: Link, address: &str) {
        let connected = address.to_socket_addrs().and_then(|mut all| {
            let one = all.next().ok_or(std::io::ErrorKind::NotFound)?;
            TcpStream::connect_timeout(&one, CONNECTING)
        });
        let opened = connected.and_then(|stream| {
            let _ = stream.set_nodelay(true);
            Ok(self.open(link, stream.into(), false)?)
        });
        if let Err(e) = opened {
            self.events.push(Event::Fail(format!("connecting to the launcher's PMI at {address}: {e}")));
        }
    }

    fn send(&mut self, link: Link, bytes: &[u8]) {
        let Some(stream) = self.streams.get_mut(&link).filter(|s| !s.closing) else { return };
        stream.unwritten.extend_from_slice(bytes);
        self.flush(link);
    }

    fn flush(&mut self, link: Link) {
        let Some(stream) = self.streams.get_mut(&link) else { return };
        let mut written = 0;
        while written < stream.unwritten.len() {
            // MSG_NOSIGNAL: a peer that is gone is no reason to die. All these are sockets.
            match send(stream.fd.as_raw_fd(), &stream.unwritten[written..], MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // That it is gone is seen when it is read from.
                Err(_) => written = stream.unwritten.len(),
            }
        }
        stream.unwritten.drain(..written);
        if stream.closing && stream.unwritten.is_empty() {
            return self.remove(link);
        }
        let mut interest = EpollFlags::empty();
        if !(stream.inside && stream.unwritten.len() > MAX_UNREAD) {
            interest |= EpollFlags::EPOLLIN;
        }
        if !stream.unwritten.is_empty() {
            interest |= EpollFlags::EPOLLOUT;
        }
        if interest != stream.interest {
            stream.interest = interest;
            let mut event = EpollEvent::new(interest, Token::Stream(link).data());
            let _ = self.epoll.modify(&stream.fd, &mut event);
        }
    }

    fn close(&mut self, link: Link) {
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.closing = true;
            self.flush(link);
        }
    }
}

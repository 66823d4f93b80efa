//! `hpc-launch -n N IMAGE COMMAND`: a job of one node, without any launcher. This process starts the ranks, is
//! their PMI server, passes signals on, and ends with the status of the first rank that fails.
//!
//! Each rank is a fork of this process that takes the way of any rank ([`crate::rank`]) and becomes its program.

pub mod apps;
pub mod child;
mod input;
mod output;
pub mod topology;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal, killpg, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid};
use pmi_shim::job::Job;
use pmi_shim::launcher::{Launcher, Offer, Rank};
use pmi_shim::node::{Node, Stage};

use self::apps::App;
use self::child::{Ends, Inherited, become_rank, fork};
use self::input::{Input, Next};
use self::output::{Kind, Read, Sink, Tagged};
use self::topology::Topology;
use crate::bridge::{Ending, Event, Events, alone, directories, host_name, letters, scrub};
use crate::cli::{Cli, JobOptions};
use crate::config::Config;
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::host::allowed_processors;
use crate::job::JobStep;
use crate::rank::Request;

/// As timeout(1) ends.
const EXIT_TIMEOUT: u8 = 124;
/// How long what ranks have written is waited for when they have ended: something else may hold the pipe.
const LAST_OUTPUT: Duration = Duration::from_millis(200);
/// What ranks have left behind may itself leave something.
const ORPHAN_ROUNDS: usize = 16;
/// Passed on to every rank.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Numbers of what is watched: signals, standard input, rank 0's, our outputs, then control sockets, then pipes.
const SIGNALS: u32 = 0;
const STDIN: u32 = 1;
const RANK_0: u32 = 2;
const OUTPUTS: u32 = 3;
const CONTROLS: u32 = 1 << 8;
const PIPES: u32 = 1 << 20;

/// A rank's process.
struct Child {
    pid: Pid,
    /// By which it asks for its PMI server.
    control: Option<OwnedFd>,
    /// The pipe whose end is its end.
    _lifeline: OwnedFd,
}

/// The job while it runs.
struct Running {
    events: Events,
    signals: SignalFd,
    inherited: Inherited,
    children: BTreeMap<u32, Child>,
    /// How far those were that have ended and were not waited for.
    stages: BTreeMap<u32, Stage>,
    pipes: BTreeMap<u32, Tagged>,
    /// Where what comes out of the pipes goes, and whether room is waited for there.
    sinks: [(Sink, bool); 2],
    /// To rank 0, where we must pass it on.
    input: Option<Input>,
    ending: Ending,
    status: Option<u8>,
    interrupted: bool,
    /// Nobody waits for the last output any more.
    hurried: bool,
    began: Instant,
    limit: Option<Duration>,
}

/// Runs the job and answers its exit status.
pub fn run(cli: Cli, environ: Environ, outer: Option<&JobStep>) -> Result<u8> {
    let options = JobOptions { ranks: cli.job.ranks, ..cli.job.clone() };
    let apps = apps::apps(cli)?;
    let total: u32 = apps.iter().map(|app| app.ranks).sum();
    if let Some(outer) = outer
        && outer.rank.local_rank.unwrap_or(0) == 0
    {
        eprintln!(
            "hpc-launch: -n {total} starts a job of its own inside a rank of {}; to be a rank of that, leave out -n",
            outer.rank.launcher.name()
        );
    }
    let topology = Topology::read(Path::new("/sys"), &allowed_processors());
    let slots = topology.slots();
    if total as usize > slots && !options.oversubscribe {
        return Err(Error::new(
            Code::TooManyRanks,
            format!("{total} ranks were asked for, and there are {slots} cores that this process may use"),
            "--oversubscribe starts them all the same, not bound to cores; else ask for fewer",
        ));
    }
    let requests = requests(apps, environ, total)?;
    let mut job = alone(total, &host_name(), total as usize > slots);
    for (rank, (appnum, _)) in requests.iter().enumerate() {
        job.appnum[rank] = *appnum;
    }
    let mut running = Running::new(job, &options)?;
    running.start(&requests, &options, &topology)?;
    running.until_its_end()
}

/// One request for each rank, with the number of its application. Settings are read before anything starts.
fn requests(apps: Vec<App>, mut environ: Environ, total: u32) -> Result<Vec<(u32, Rc<Request>)>> {
    let mut configs = Vec::new();
    for app in &apps {
        configs.push(Config::load(&environ, Some(&app.run.options))?);
    }
    environ.set("HPC_LAUNCH_SIZE", total.to_string());
    let mut out = Vec::new();
    for (appnum, (app, config)) in (0..).zip(apps.into_iter().zip(configs)) {
        let mut environ = environ.clone();
        // What an outer launcher has set is not about this job.
        scrub(&mut environ, &config);
        environ = environ.without(&["OMPI_COMM_WORLD_", "OMPI_UNIVERSE_SIZE"]);
        let (image, command) = (app.run.image, app.run.command);
        let request = Rc::new(Request {
            image,
            command,
            config,
            environ,
            job: None,
            door: None,
            entry: OnceCell::new(),
        });
        out.extend((0..app.ranks).map(|_| (appnum, Rc::clone(&request))));
    }
    Ok(out)
}

/// The job step of a rank that we start.
pub fn step_of(step: Option<String>, rank: u32, total: u32, daemon: i32) -> JobStep {
    let place = Rank {
        launcher: Launcher::Own,
        offers: Offer::Any,
        step,
        rank: Some(rank),
        size: Some(total),
        local_rank: Some(rank),
        local_size: Some(total),
        identity: Vec::new(),
    };
    JobStep { rank: place, daemon, outer: None }
}

impl Running {
    fn new(job: Job, options: &JobOptions) -> Result<Running> {
        let failed = |e: std::io::Error| Error::step("getting ready to start ranks", e);
        let mut mask = SigSet::empty();
        mask.extend(FORWARDED.into_iter().chain([Signal::SIGCHLD, Signal::SIGTSTP, Signal::SIGCONT]));
        let mut blocked = mask;
        // A rank that does not read, or a reader of ours that is gone, is no reason to die.
        blocked.add(Signal::SIGPIPE);
        let inherited = Inherited::take(&blocked).map_err(|e| failed(e.into()))?;
        // What ranks leave behind becomes ours, and is found when the job has to end.
        nix::sys::prctl::set_child_subreaper(true).map_err(|e| failed(e.into()))?;
        let events = Events::new(Node::alone(job, directories())).map_err(failed)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|e| failed(e.into()))?;
        events.watch(signals.as_fd(), SIGNALS).map_err(|e| failed(e.into()))?;
        Ok(Running {
            events,
            signals,
            inherited,
            children: BTreeMap::new(),
            stages: BTreeMap::new(),
            pipes: BTreeMap::new(),
            sinks: [Kind::Out, Kind::Err].map(|kind| (Sink::new(kind), false)),
            input: None,
            ending: Ending::default(),
            status: None,
            interrupted: false,
            hurried: false,
            began: Instant::now(),
            limit: options.timeout.map(Duration::from_secs),
        })
    }

    /// Starts all ranks.
    fn start(
        &mut self,
        requests: &[(u32, Rc<Request>)],
        options: &JobOptions,
        topology: &Topology,
    ) -> Result<()> {
        let step = self.events.node.job().map(|job| job.id.clone());
        let total = requests.len();
        let daemon = std::process::id() as i32;
        for (rank, (_, request)) in (0u32..).zip(requests) {
            let outputs = self.outputs(rank, options)?;
            let input = self.input_of(rank)?;
            let failed = |e: Errno| Error::step(format_args!("starting rank {rank}"), e);
            let flags = SockFlag::SOCK_CLOEXEC;
            let (ours, its) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(failed)?;
            let (lifeline, held) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
            let processors =
                topology.processors(options.bind_to.unwrap_or(topology::BindTo::Core), rank as usize, total);
            match fork().map_err(failed)? {
                ForkResult::Child => {
                    let job = step_of(step.clone(), rank, total as u32, daemon);
                    drop(held);
                    let ends = Ends { lifeline, door: its, input, outputs };
                    become_rank(request, job, ends, processors.as_deref(), &self.inherited)
                }
                ForkResult::Parent { child } => {
                    // Both sides do it: whoever comes first, it is done before anything is sent to the group.
                    let _ = nix::unistd::setpgid(child, child);
                    self.events.watch(ours.as_fd(), CONTROLS + rank).map_err(failed)?;
                    self.children.insert(rank, Child { pid: child, control: Some(ours), _lifeline: held });
                }
            }
        }
        Ok(())
    }

    /// Where a rank writes; none: where we do.
    fn outputs(&mut self, rank: u32, options: &JobOptions) -> Result<[Option<OwnedFd>; 2]> {
        let mut out = [None, None];
        for (place, (number, kind)) in out.iter_mut().zip([(0, Kind::Out), (1, Kind::Err)]) {
            if let Some(directory) = &options.output_dir {
                *place = Some(output::file(directory, rank, kind)?.into());
            } else if options.tag_output {
                let failed = |e: Errno| Error::step("making a pipe for a rank's output", e);
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
                let number = PIPES + 2 * rank + number;
                let tagged = Tagged::new(read, rank, kind);
                self.events.watch(tagged.pipe(), number).map_err(failed)?;
                self.pipes.insert(number, tagged);
                *place = Some(write);
            }
        }
        Ok(out)
    }

    /// What a rank reads: rank 0 what we would, the others nothing; none: as it is.
    fn input_of(&mut self, rank: u32) -> Result<Option<OwnedFd>> {
        let failed = |e: std::io::Error| Error::step("arranging the ranks' standard input", e);
        if rank > 0 {
            return Ok(Some(std::fs::File::open("/dev/null").map_err(failed)?.into()));
        }
        if !Input::is_needed() {
            return Ok(None);
        }
        let (input, read) = Input::new().map_err(|e| failed(e.into()))?;
        if input.is_some() {
            self.events.watch(std::io::stdin().as_fd(), STDIN).map_err(|e| failed(e.into()))?;
        }
        self.input = input;
        Ok(Some(read))
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn until_its_end(mut self) -> Result<u8> {
        while !self.children.is_empty() {
            let now = self.now();
            let limit = self.limit.map(|limit| limit.as_millis() as u64);
            let due = [self.ending.next(), limit.filter(|_| !self.ending.has_begun())];
            let wait = due.into_iter().flatten().min();
            let wait = wait.map(|at| Duration::from_millis(at.saturating_sub(now)));
            let happened = self.events.wait(wait).map_err(|e| Error::step("waiting for the ranks", e))?;
            for event in happened {
                self.handle(event);
            }
            let now = self.now();
            if let Some(limit) = limit.filter(|limit| now >= *limit && !self.ending.has_begun()) {
                self.end(
                    EXIT_TIMEOUT,
                    &format!("--timeout: the job has run for {} s and is ended", limit / 1000),
                );
            }
            if let Some(signal) = self.ending.due(now) {
                self.signal(signal);
                self.signal(Signal::SIGCONT);
            }
        }
        if self.ending.has_begun() {
            end_orphans();
        }
        self.last_output();
        Ok(self.status.unwrap_or(0))
    }

    /// What ranks have written before their end is passed on, however long its reader takes. Who else holds a pipe
    /// of theirs is not waited for.
    fn last_output(&mut self) {
        let mut quiet = Instant::now();
        loop {
            let mut some = false;
            let numbers: Vec<u32> = self.pipes.keys().copied().collect();
            for number in numbers {
                some |= self.pump(number);
            }
            if some {
                quiet = Instant::now();
            }
            let is_held = self.sinks.iter().any(|(sink, _)| sink.is_holding());
            let is_over = self.pipes.is_empty() || quiet.elapsed() >= LAST_OUTPUT;
            if self.hurried || !is_held && is_over {
                return;
            }
            let wait = if is_over { None } else { Some(LAST_OUTPUT.saturating_sub(quiet.elapsed())) };
            for event in self.events.wait(wait).unwrap_or_default() {
                self.handle(event);
            }
        }
    }

    /// The job ends with this status, if nothing has decided it before.
    fn end(&mut self, status: u8, why: &str) {
        if self.status.is_none() {
            self.status = Some(status);
            if !why.is_empty() {
                eprintln!("hpc-launch: {why}");
            }
        }
        let now = self.now();
        self.ending.begin(now, false);
    }

    /// Every rank's process group, of those that were not waited for: their numbers are theirs still.
    fn signal(&self, signal: Signal) {
        for child in self.children.values() {
            let _ = killpg(child.pid, signal);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Ready(SIGNALS) => self.signals(),
            Event::Ready(number @ (STDIN | RANK_0)) => self.pass_input_on(number),
            Event::Ready(number @ OUTPUTS..CONTROLS) => self.flush((number - OUTPUTS) as usize),
            Event::Ready(number) if number >= PIPES => drop(self.pump(number)),
            Event::Ready(control) => self.letter(control - CONTROLS),
            Event::Welcome(rank) => self.welcome(rank),
            // Its status tells more: it is waited for.
            Event::Ended(rank, stage) => drop(self.stages.insert(rank, stage)),
            Event::Abort { rank, status, message } => {
                let mut why = format!("rank {rank} called MPI_Abort with status {status}");
                let message = message.trim();
                // Open MPI says that there is nothing to say, MPICH what stands here already.
                if !message.is_empty() && message != "N/A" && !message.contains("MPI_Abort") {
                    let _ = write!(why, ": {message}");
                }
                self.end(u8::try_from(status & 0xff).ok().filter(|s| *s != 0).unwrap_or(1), &why);
            }
            Event::Fail(why) => self.end(1, &why),
        }
    }

    /// Reads from a rank's pipe, unless its reader has too much to do; answers whether there was something.
    fn pump(&mut self, number: u32) -> bool {
        let Some(pipe) = self.pipes.get_mut(&number) else { return false };
        let place = pipe.kind() as usize;
        if self.sinks[place].0.is_full() {
            return false;
        }
        let read = pipe.pump(&mut self.sinks[place].0);
        if read == Read::End
            && let Some(pipe) = self.pipes.remove(&number)
        {
            self.events.unwatch(pipe.pipe());
        }
        self.flush(place);
        read == Read::Some
    }

    /// Writes what the reader of one of our streams takes, and waits for the rest there alone: a stream that is full
    /// is not read for.
    fn flush(&mut self, place: usize) {
        let was_full = self.sinks[place].0.is_full();
        let (sink, is_watched) = &mut self.sinks[place];
        sink.flush();
        if sink.is_holding() != *is_watched {
            let number = OUTPUTS + place as u32;
            match *is_watched {
                true => sink.with_fd(|fd| self.events.unwatch(fd)),
                // A file cannot be waited for, and takes everything at once.
                false => drop(sink.with_fd(|fd| self.events.watch_for_room(fd, number))),
            }
            *is_watched = !*is_watched;
        }
        let is_full = sink.is_full();
        if was_full != is_full || is_full {
            self.read_or_not(place, !is_full);
        }
    }

    /// Whether ranks' pipes of this kind are read from.
    fn read_or_not(&self, place: usize, read: bool) {
        for (number, pipe) in self.pipes.iter().filter(|(_, pipe)| pipe.kind() as usize == place) {
            match read {
                // Watched already: so be it.
                true => drop(self.events.watch(pipe.pipe(), *number)),
                false => self.events.unwatch(pipe.pipe()),
            }
        }
    }

    fn signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(Signal::SIGTSTP) => {
                    self.signal(Signal::SIGTSTP);
                    let _ = raise(Signal::SIGSTOP);
                }
                Ok(signal @ (Signal::SIGINT | Signal::SIGTERM)) if self.interrupted => {
                    // Who asks twice means it.
                    self.end(128 + signal as u8, "");
                    self.signal(Signal::SIGKILL);
                    self.hurried = true;
                }
                Ok(signal) => {
                    let is_request = matches!(signal, Signal::SIGINT | Signal::SIGTERM);
                    self.interrupted |= is_request;
                    // Where no rank is left there is only its output to wait for.
                    self.hurried |= is_request && self.children.is_empty();
                    self.signal(signal);
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for every child that has ended: ranks, and what they have left behind.
    fn reap(&mut self) {
        // Looked at first, so that the number stays its own while its process group is ended.
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) = waitid(Id::All, peek) {
            let Some(pid) = status.pid() else { return };
            let rank = self.children.iter().find(|(_, c)| c.pid == pid).map(|(rank, _)| *rank);
            if let Some(rank) = rank {
                self.ended(rank, status);
            }
            let _ = waitpid(pid, None);
        }
    }

    fn ended(&mut self, rank: u32, status: WaitStatus) {
        let stage = match self.stages.remove(&rank) {
            Some(stage) => stage,
            None => self.events.finish(rank),
        };
        let Some(child) = self.children.remove(&rank) else { return };
        if let Some(control) = &child.control {
            self.events.unwatch(control.as_fd());
        }
        let mut says_why = false;
        let (code, mut why) = match status {
            WaitStatus::Signaled(_, signal, _) => (
                128 + signal as u8,
                format!("rank {rank} was killed by {} ({})", signal.as_str(), signal as i32),
            ),
            WaitStatus::Exited(_, code @ 1..) => {
                says_why = true;
                (code as u8, format!("rank {rank} ended with status {code}"))
            }
            _ if stage == Stage::Active => (1, format!("rank {rank} ended without MPI_Finalize")),
            _ => {
                if self.ending.has_begun() {
                    let _ = killpg(child.pid, Signal::SIGKILL);
                }
                return;
            }
        };
        let _ = killpg(child.pid, Signal::SIGKILL);
        match self.children.is_empty() {
            // Its own words and status are all there is to know.
            true if says_why => why.clear(),
            true => {}
            false => why.push_str(": the job is ended"),
        }
        if self.interrupted {
            why.clear();
        }
        self.end(code, &why);
    }

    fn letter(&mut self, rank: u32) {
        let Some(child) = self.children.get_mut(&rank) else { return };
        let Some(control) = &child.control else { return };
        let pid = child.pid.as_raw();
        match letters::receive::<letters::Request>(control) {
            Ok(Some((letter, descriptors))) => {
                let joined = self.events.admit(letter, descriptors, pid);
                if let Err(why) = joined {
                    let _ = letters::send(control, &letters::Reply::Refused(why), &[]);
                }
            }
            // Its program has started, and does not want any of it.
            _ => {
                self.events.unwatch(control.as_fd());
                child.control = None;
            }
        }
    }

    fn welcome(&mut self, rank: u32) {
        if let Some(control) = self.children.get(&rank).and_then(|c| c.control.as_ref()) {
            let _ = letters::send(control, &self.events.welcome(rank), &[]);
        }
    }

    /// Something was typed, or rank 0 takes more of it: only one of both is waited for.
    fn pass_input_on(&mut self, number: u32) {
        let Some(input) = &mut self.input else { return };
        let next = if number == STDIN { input.read() } else { input.pass_on() };
        let stdin = std::io::stdin();
        match (number, next) {
            (STDIN, Next::Typed) | (RANK_0, Next::Room) => {}
            (STDIN, Next::Room) => {
                self.events.unwatch(stdin.as_fd());
                let _ = self.events.watch_for_room(input.pipe(), RANK_0);
            }
            (_, Next::Typed) => {
                self.events.unwatch(input.pipe());
                let _ = self.events.watch(stdin.as_fd(), STDIN);
            }
            (_, Next::Room | Next::Over) => {
                self.events.unwatch(stdin.as_fd());
                self.events.unwatch(input.pipe());
                self.input = None;
            }
        }
    }
}

/// Ends what ranks have left behind when the job has to end: it has become ours (prctl(2), PR_SET_CHILD_SUBREAPER).
fn end_orphans() {
    let me = std::process::id();
    for _ in 0..ORPHAN_ROUNDS {
        let text = std::fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap_or_default();
        let children: Vec<Pid> =
            text.split_whitespace().filter_map(|n| n.parse().ok()).map(Pid::from_raw).collect();
        if children.is_empty() {
            return;
        }
        for child in children {
            let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
        }
    }
}

//! `hpc-launch -n N IMAGE COMMAND`: a job of one node, without any launcher. This process starts the ranks, is
//! their PMI server, passes signals on, and ends with the status of the first rank that fails.
//!
//! Each rank is a fork of this process that takes the way of any rank ([`crate::rank`]) and becomes its program.

pub mod apps;
mod output;
pub mod topology;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CpuSet;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid};
use pmi_shim::job::Job;
use pmi_shim::launcher::{Launcher, Offer, Rank};
use pmi_shim::node::{Node, Stage};

use self::apps::App;
use self::output::{Kind, Tagged};
use self::topology::Topology;
use crate::bridge::{Ending, Event, Events, alone, directories, host_name, letters, raise_limit, scrub};
use crate::cli::{Cli, JobOptions};
use crate::config::Config;
use crate::environ::Environ;
use crate::error::{Code, EXIT_REFUSED, Error, Result};
use crate::job::JobStep;
use crate::rank::Request;

/// As timeout(1) ends.
const EXIT_TIMEOUT: u8 = 124;
/// How long what ranks have written is waited for when they have ended: something else may hold the pipe.
const LAST_OUTPUT: Duration = Duration::from_millis(200);
/// Passed on to every rank.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Numbers of what is watched: signals, standard input, then control sockets, then pipes.
const SIGNALS: u32 = 0;
const STDIN: u32 = 1;
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
    /// The signals that were blocked when we came.
    before: SigSet,
    children: BTreeMap<u32, Child>,
    /// How far those were that have ended and were not waited for.
    stages: BTreeMap<u32, Stage>,
    pipes: BTreeMap<u32, Tagged>,
    /// Standard input, and rank 0's end of it, where it must be passed on.
    input: Option<OwnedFd>,
    ending: Ending,
    status: Option<u8>,
    interrupted: bool,
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
    let topology = Topology::read(Path::new("/sys"), &allowed());
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

/// Processors that this process may use.
fn allowed() -> Vec<usize> {
    match nix::sched::sched_getaffinity(Pid::from_raw(0)) {
        Ok(set) => (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
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
        let request = Rc::new(Request { image, command, config, environ, job: None, door: None });
        out.extend((0..app.ranks).map(|_| (appnum, Rc::clone(&request))));
    }
    Ok(out)
}

impl Running {
    fn new(job: Job, options: &JobOptions) -> Result<Running> {
        let failed = |e: std::io::Error| Error::step("getting ready to start ranks", e);
        raise_limit();
        let events = Events::new(Node::alone(job, directories())).map_err(failed)?;
        let mut mask = SigSet::empty();
        mask.extend(FORWARDED.into_iter().chain([Signal::SIGCHLD, Signal::SIGTSTP, Signal::SIGCONT]));
        let mut blocked = mask;
        // A rank that does not read, or a reader of ours that is gone, is no reason to die.
        blocked.add(Signal::SIGPIPE);
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before))
            .map_err(|e| failed(e.into()))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|e| failed(e.into()))?;
        events.watch(signals.as_fd(), SIGNALS).map_err(|e| failed(e.into()))?;
        Ok(Running {
            events,
            signals,
            before,
            children: BTreeMap::new(),
            stages: BTreeMap::new(),
            pipes: BTreeMap::new(),
            input: None,
            ending: Ending::default(),
            status: None,
            interrupted: false,
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
                    let place = Rank {
                        launcher: Launcher::Own,
                        offers: Offer::Any,
                        step: step.clone(),
                        rank: Some(rank),
                        size: Some(total as u32),
                        local_rank: Some(rank),
                        local_size: Some(total as u32),
                        identity: Vec::new(),
                    };
                    let job = JobStep { rank: place, daemon, outer: None };
                    drop(held);
                    let ends = Ends { lifeline, door: its, input, outputs };
                    become_rank(request, job, ends, processors.as_deref(), &self.before)
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

    /// What a rank reads: rank 0 what we would, the others nothing; none: as it is. A terminal is read by us and
    /// passed on: a process group in the background must not read it.
    fn input_of(&mut self, rank: u32) -> Result<Option<OwnedFd>> {
        let failed = |e: std::io::Error| Error::step("arranging the ranks' standard input", e);
        if rank > 0 {
            return Ok(Some(std::fs::File::open("/dev/null").map_err(failed)?.into()));
        }
        let stdin = std::io::stdin();
        if !std::io::IsTerminal::is_terminal(&stdin) {
            return Ok(None);
        }
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| failed(e.into()))?;
        if nix::unistd::tcgetpgrp(&stdin) == Ok(nix::unistd::getpgrp()) {
            self.events.watch(stdin.as_fd(), STDIN).map_err(|e| failed(e.into()))?;
            self.input = Some(write);
        }
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
        let end = Instant::now() + LAST_OUTPUT;
        while !self.pipes.is_empty() && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            for event in self.events.wait(Some(left)).unwrap_or_default() {
                self.handle(event);
            }
        }
        Ok(self.status.unwrap_or(0))
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
            Event::Ready(STDIN) => self.pass_input_on(),
            Event::Ready(number) if number >= PIPES => {
                let over = self.pipes.get_mut(&number).is_some_and(|pipe| !pipe.pump());
                if over && let Some(pipe) = self.pipes.remove(&number) {
                    self.events.unwatch(pipe.pipe());
                }
            }
            Event::Ready(control) => self.letter(control - CONTROLS),
            Event::Welcome(rank) => self.welcome(rank),
            // Its status tells more: it is waited for.
            Event::Ended(rank, stage) => drop(self.stages.insert(rank, stage)),
            Event::Abort { rank, status, message } => {
                let status = u8::try_from(status & 0xff).ok().filter(|s| *s != 0).unwrap_or(1);
                let mut why = format!("rank {rank} called MPI_Abort with status {status}");
                if !message.trim().is_empty() {
                    let _ = write!(why, ": {}", message.trim());
                }
                self.end(status, &why);
            }
            Event::Fail(why) => self.end(1, &why),
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
                }
                Ok(signal) => {
                    self.interrupted |= matches!(signal, Signal::SIGINT | Signal::SIGTERM);
                    self.signal(signal);
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for every child that has ended.
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
        let (code, why) = match status {
            WaitStatus::Signaled(_, signal, _) => (
                128 + signal as u8,
                format!("rank {rank} was killed by {} ({})", signal.as_str(), signal as i32),
            ),
            // The rank has said why.
            WaitStatus::Exited(_, code @ 1..) => {
                (code as u8, format!("rank {rank} ended with status {code}"))
            }
            _ if stage == Stage::Active => (1, format!("rank {rank} ended without MPI_Finalize")),
            _ => return,
        };
        let _ = killpg(child.pid, Signal::SIGKILL);
        let why = if self.interrupted || self.children.is_empty() {
            String::new()
        } else {
            why + ": the job is ended"
        };
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

    fn pass_input_on(&mut self) {
        let mut bytes = [0; 4096];
        let stdin = std::io::stdin();
        let count = nix::unistd::read(&stdin, &mut bytes).unwrap_or(0);
        let written = match &self.input {
            Some(pipe) if count > 0 => nix::unistd::write(pipe, &bytes[..count]).is_ok(),
            _ => false,
        };
        if !written {
            self.events.unwatch(stdin.as_fd());
            self.input = None;
        }
    }
}

#[allow(unsafe_code)]
fn fork() -> nix::Result<ForkResult> {
    // SAFETY: this process has one thread, so the child may go on like any program.
    unsafe { nix::unistd::fork() }
}

/// A rank's ends of what connects it with us.
struct Ends {
    lifeline: OwnedFd,
    door: OwnedFd,
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

/// In the child: never returns.
fn become_rank(
    request: &Request,
    job: JobStep,
    ends: Ends,
    processors: Option<&[usize]>,
    mask: &SigSet,
) -> ! {
    let Ends { lifeline, door, input, outputs: [out, err] } = ends;
    // Whatever becomes of this process, it does not outlive the job.
    if crate::bridge::die_with(&lifeline).is_err() {
        crate::bridge::exit_now(EXIT_REFUSED.into());
    }
    std::mem::forget(lifeline);
    let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
    let place = |fd: Option<OwnedFd>, at: BorrowedFd| {
        if let Some(fd) = fd {
            let _ = crate::bridge::replace(&fd, at.as_raw_fd());
        }
    };
    place(input, std::io::stdin().as_fd());
    place(out, std::io::stdout().as_fd());
    place(err, std::io::stderr().as_fd());
    if let Some(processors) = processors {
        let mut set = CpuSet::new();
        for cpu in processors {
            let _ = set.set(*cpu);
        }
        let _ = nix::sched::sched_setaffinity(Pid::from_raw(0), &set);
    }
    let rank = job.rank.rank.unwrap_or_default().to_string();
    let mut request = request.for_rank(job, door);
    request.environ.set("HPC_LAUNCH_RANK", rank);
    let status = match request.run() {
        Ok(never) => match never {},
        Err(e) => {
            crate::report_once(request.job.as_ref(), &e);
            e.code.exit()
        }
    };
    // Nothing of the parent's is to be undone here.
    crate::bridge::exit_now(status.into())
}

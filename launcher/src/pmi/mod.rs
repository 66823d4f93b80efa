//! `hpc-launch pmi`: speaks the launcher's PMI itself, without any MPI, to see what it offers and whether it works.

mod pmix;
mod simple;

use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use pmi_shim::launcher::{Launcher, Offer, Rank, VARIABLES};
use serde::Serialize;

use crate::bridge;
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::job::JobStep;

/// How long an answer may take: a fence waits for every rank of the job.
const PATIENCE_SECONDS: i64 = 120;
/// How long a launcher that was told to end the job may take to end this rank.
const ENDING: Duration = Duration::from_secs(5);

/// What to do with it.
#[derive(Subcommand, Debug)]
pub enum Action {
    /// Print what the launcher offers: by the environment, and by asking it
    Info {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Which protocol.
        #[command(flatten)]
        wire: Wire,
    },
    /// Every rank puts a value, and gets those of others: run it with several ranks
    Exchange {
        /// Bytes of each value
        #[arg(long, value_name = "BYTES", default_value_t = 64)]
        size: usize,
        /// Get the values of all ranks, not of some
        #[arg(long)]
        all: bool,
        /// Which protocol.
        #[command(flatten)]
        wire: Wire,
    },
    /// Waits for all ranks, N times
    Barrier {
        /// How often
        #[arg(default_value_t = 1, value_name = "N")]
        count: u32,
        /// Which protocol.
        #[command(flatten)]
        wire: Wire,
    },
    /// End the job, as MPI_Abort does
    Abort {
        /// The job's exit status
        #[arg(default_value_t = 1)]
        status: i32,
        /// Which protocol.
        #[command(flatten)]
        wire: Wire,
    },
}

/// Which protocol to speak.
#[derive(Args, Debug)]
pub struct Wire {
    /// Which protocol [default: what the launcher offers]
    #[arg(long, value_enum)]
    pub protocol: Option<Protocol>,
}

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// PMI-1
    Pmi1,
    /// PMI-2
    Pmi2,
    /// PMIx
    Pmix,
}

/// What a launcher tells when it is asked.
#[derive(Debug, Default, Serialize)]
struct Told {
    protocol: String,
    job: String,
    rank: u32,
    size: u32,
    appnum: Option<u32>,
    universe: Option<u32>,
    /// PMI_process_mapping, or the hosts with their ranks.
    places: Option<String>,
    value_max: Option<usize>,
    /// Keys of the job's data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<String>,
}

/// One rank's connection.
trait Client {
    fn told(&self) -> &Told;
    fn put(&mut self, key: &str, value: &[u8]) -> Result<()>;
    fn fence(&mut self) -> Result<()>;
    fn get(&mut self, rank: u32, key: &str) -> Result<Vec<u8>>;
    fn finalize(&mut self) -> Result<()>;
    fn abort(&mut self, status: i32) -> Result<()>;
    /// Waits until the launcher has closed the connection, for so long at most.
    fn until_closed(&self, limit: Duration);
}

/// Runs it; answers the exit status.
pub fn run(action: &Action, environ: &Environ, job: Option<&JobStep>) -> Result<u8> {
    let rank = job.map(|job| &job.rank);
    match action {
        Action::Info { json, wire } => info(*json, wire, environ, rank),
        Action::Exchange { size, all, wire } => {
            exchange(&mut *connect(wire, environ, rank)?, *size, *all).map(|()| 0)
        }
        Action::Barrier { count, wire } => {
            let mut client = connect(wire, environ, rank)?;
            let began = Instant::now();
            for _ in 0..*count {
                client.fence()?;
            }
            let each = began.elapsed() / (*count).max(1);
            if client.told().rank == 0 {
                let (size, protocol) = (client.told().size, client.told().protocol.clone());
                say(&format!("{count} barriers of {size} ranks over {protocol}: {each:.1?} each\n"))?;
            }
            client.finalize().map(|()| 0)
        }
        Action::Abort { status, wire } => {
            let mut client = connect(wire, environ, rank)?;
            client.abort(*status)?;
            // The launcher ends us. Our connection stays until then: mpirun 4.1 may hang or crash in its own end
            // while ranks leave by themselves. Where it goes without us, this is the status that a program would
            // leave with.
            client.until_closed(ENDING);
            Ok(u8::try_from(status & 0xff).unwrap_or(1))
        }
    }
}

fn connect(wire: &Wire, environ: &Environ, rank: Option<&Rank>) -> Result<Box<dyn Client>> {
    let none = || {
        Error::new(
            Code::PmiUnusable,
            "no launcher offers a PMI here: there is neither PMI_FD nor PMI_PORT nor PMIX_NAMESPACE",
            "put it behind a launcher: mpirun -n 2 hpc-launch pmi …",
        )
    };
    let rank = rank.ok_or_else(none)?;
    match (wire.protocol, rank.offers) {
        (Some(Protocol::Pmix), _) | (None, Offer::Pmix) => {
            let rank = Rank { offers: Offer::Pmix, ..rank.clone() };
            Ok(Box::new(pmix::Rank::connect(&rank, environ)?))
        }
        (_, Offer::Nothing | Offer::Any) => Err(none()),
        (protocol, _) => {
            let rank = Rank { offers: Offer::Simple, ..rank.clone() };
            let two = protocol == Some(Protocol::Pmi2);
            Ok(Box::new(simple::Rank::connect(&rank, environ, two)?))
        }
    }
}

/// What the environment says, and what the launcher itself does.
#[derive(Serialize)]
struct Info {
    launcher: Option<&'static str>,
    offers: Option<&'static str>,
    variables: Vec<(String, String)>,
    told: Option<Told>,
    failed: Option<String>,
}

fn info(json: bool, wire: &Wire, environ: &Environ, rank: Option<&Rank>) -> Result<u8> {
    let is_its = |name: &str| VARIABLES.iter().any(|prefix| name.starts_with(prefix));
    let pairs = environ.iter().filter_map(|(n, v)| Some((n.to_str()?, v.to_string_lossy())));
    let variables = pairs.filter(|(n, _)| is_its(n)).map(|(n, v)| (n.to_owned(), v.into_owned())).collect();
    let (told, failed) = match connect(wire, environ, rank) {
        Ok(mut client) => {
            let failed = client.finalize().err();
            let Told { protocol, job, places, keys, .. } = client.told();
            let told = Told {
                protocol: protocol.clone(),
                job: job.clone(),
                places: places.clone(),
                keys: keys.clone(),
                ..*client.told()
            };
            (Some(told), failed)
        }
        Err(e) => (None, Some(e)),
    };
    let is_good = failed.is_none();
    let info = Info {
        launcher: rank.map(|r| r.launcher.name()),
        offers: rank.map(|r| r.offers.name()),
        variables,
        told,
        failed: failed.map(|e| e.to_string()),
    };
    let status = if is_good { 0 } else { Code::PmiUnusable.exit() };
    if json {
        let text = serde_json::to_string(&info)
            .map_err(|e| Error::step("writing JSON", std::io::Error::other(e)))?;
        return say(&(text + "\n")).map(|()| status);
    }
    let number = rank.and_then(|r| r.rank).map_or("?".to_owned(), |n| n.to_string());
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "rank {number}: {text}");
    };
    match (info.launcher, info.offers) {
        (Some(launcher), Some(offers)) => line(format!("started by {launcher}, which offers {offers}")),
        _ => line("started by no launcher that we know".to_owned()),
    }
    for (name, value) in &info.variables {
        line(format!("  {name}={value}"));
    }
    if let Some(told) = &info.told {
        let or_none = |n: Option<u32>| n.map_or("not said".to_owned(), |n| n.to_string());
        line(format!("answers {}: rank {} of {}, job {}", told.protocol, told.rank, told.size, told.job));
        line(format!("  application {}, universe {}", or_none(told.appnum), or_none(told.universe)));
        line(format!("  places {}", told.places.as_deref().unwrap_or("not said")));
        if let Some(most) = told.value_max {
            line(format!("  values of at most {most} bytes"));
        }
        if !told.keys.is_empty() {
            line(format!("  keys {}", told.keys.join(" ")));
        }
    }
    if let Some(failed) = &info.failed {
        line(failed.clone());
    }
    say(&out)?;
    Ok(status)
}

/// What rank `rank` puts: others know what to expect.
fn value_of(rank: u32, size: usize) -> Vec<u8> {
    (0..size).map(|i| b'a' + ((rank as usize + i) % 26) as u8).collect()
}

fn exchange(client: &mut dyn Client, size: usize, all: bool) -> Result<()> {
    let (rank, ranks) = (client.told().rank, client.told().size);
    let began = Instant::now();
    client.put(&key(rank), &value_of(rank, size))?;
    let put = began.elapsed();
    client.fence()?;
    let fenced = began.elapsed();
    let others: Vec<u32> = match all {
        true => (0..ranks).collect(),
        // A number that grows slowly, and every rank is somebody's.
        false => (0..32)
            .map(|i| 1u64 << i)
            .take_while(|step| *step < ranks.into())
            .map(|step| ((u64::from(rank) + step) % u64::from(ranks)) as u32)
            .collect(),
    };
    for other in &others {
        let got = client.get(*other, &key(*other))?;
        if got != value_of(*other, size) {
            return Err(Error::new(
                Code::PmiUnusable,
                format!(
                    "rank {rank} got {} bytes of rank {other}, not the {size} that it put: \"{}\"",
                    got.len(),
                    got[..got.len().min(40)].escape_ascii()
                ),
                "the launcher's PMI loses data: a smaller --size may show where its limit is",
            ));
        }
    }
    let gotten = began.elapsed();
    // Nobody leaves before all have got theirs.
    client.fence()?;
    if rank == 0 {
        let each = (gotten - fenced) / u32::try_from(others.len()).unwrap_or(1).max(1);
        say(&format!(
            "exchange of {ranks} ranks, {size} bytes each, over {}: correct; put {put:.1?}, fence {:.1?}, {} gets of \
             {each:.1?}\n",
            client.told().protocol,
            fenced - put,
            others.len(),
        ))?;
    }
    client.finalize()
}

fn key(rank: u32) -> String {
    format!("hpcl-{rank}")
}

fn say(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::step("writing to standard output", e))
}

/// A socket that is waited for.
struct Socket(OwnedFd);

impl Socket {
    /// That of this rank's launcher.
    fn of_launcher(rank: &Rank, environ: &Environ) -> Result<(bridge::letters::Speaks, Socket)> {
        use std::net::{TcpStream, ToSocketAddrs};
        let (speaks, host, fd) = bridge::launcher(rank, environ)?;
        let fd = match (fd, host) {
            (Some(fd), _) => fd,
            (None, bridge::letters::Host::At(address)) => {
                let failed = |e: std::io::Error| lost(rank.launcher, format!("connecting to {address}: {e}"));
                let mut all = address.to_socket_addrs().map_err(failed)?;
                let one = all.next().ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
                let stream = TcpStream::connect(one).map_err(failed)?;
                let _ = stream.set_nodelay(true);
                stream.into()
            }
            (None, _) => return Err(lost(rank.launcher, "it has no PMI".to_owned())),
        };
        let patience = TimeVal::new(PATIENCE_SECONDS, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience).map_err(|e| Error::step("limiting a wait", e))?;
        Ok((speaks, Socket(fd)))
    }

    fn send(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EINTR) => {}
                Err(e) => return Err(lost_by(e)),
            }
        }
        Ok(())
    }

    /// Waits for its end, whatever comes before.
    fn until_closed(&self, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let timeout = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                Ok(1..) if matches!(nix::unistd::read(&self.0, &mut [0; 4096]), Ok(1..)) => {}
                _ => return,
            }
        }
    }

    /// Something, at least a byte.
    fn receive(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; 16384];
        loop {
            match nix::unistd::read(&self.0, &mut bytes) {
                Ok(0) => return Err(lost_by(Errno::ECONNRESET)),
                Ok(count) => {
                    bytes.truncate(count);
                    return Ok(bytes);
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(lost_by(e)),
            }
        }
    }
}

fn lost(launcher: Launcher, why: String) -> Error {
    Error::new(Code::PmiUnusable, format!("the PMI of {}: {why}", launcher.name()), "start the job again")
}

fn lost_by(e: Errno) -> Error {
    let why = match e {
        Errno::EAGAIN => format!("no answer for {PATIENCE_SECONDS} s"),
        e => e.to_string(),
    };
    Error::new(
        Code::PmiUnusable,
        format!("the launcher's PMI: {why}"),
        "did another rank end, or did one never start? see its message",
    )
}

fn refused(what: String) -> Error {
    Error::new(Code::PmiUnusable, what, "see `hpc-launch pmi info` for what the launcher offers")
}

//! Between the program's MPI and a launcher that speaks another PMI, or none.
//!
//! The rank that builds the first sandbox of a step starts the [`helper`] and opens its door: a socket in the
//! sandbox's own /run, which only processes of this user in this sandbox can reach. Every rank hands the helper
//! its connection to the launcher and one end of its own PMI connection, is told where its server is, and
//! becomes its program: no parent stays behind.

mod calls;
mod ending;
mod events;
mod helper;
mod leftovers;
pub mod letters;
mod peer;

pub use self::calls::{die_with, die_with_group, exit_now, replace};
pub use self::ending::Ending;
pub use self::events::{Event, Events};

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, setsockopt, socket, socketpair, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::TimeVal;
use pmi_shim::downlink::{Downlink, Place, SCRUBBED, Wiring, variables};
use pmi_shim::job::{Job, safe_name};
use pmi_shim::launcher::{Offer, Rank};
use pmi_shim::pmix::job::Directories;

use self::letters::{Host, Reply, Request, Speaks};
use crate::config::Config;
use crate::detached;
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::job::siblings::MARK_DIRECTORY;
use crate::job::{JobStep, Mark, siblings};
use crate::plan::Change;

/// The helper's door, in the sandbox's own directory.
const DOOR: &str = "pmi";
/// Where MPI may keep files: in memory, gone with the sandbox.
const SESSION: &str = "/run/hpc-launch/session";
const SESSION_NAME: &str = "session";
/// How long a rank waits for its welcome. All ranks of the job must have come where the launcher is asked first.
const PATIENCE_SECONDS: i64 = 60;

/// A helper that serves this step, before its door in this sandbox is open.
pub struct Helper {
    socket: OwnedFd,
}

fn seqpacket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

impl Helper {
    /// Finds the step's helper, or starts it. To be called before the sandbox is built; `covered`: where the image
    /// is attached.
    pub fn of_step(job: &JobStep, mark: Option<&Mark>, covered: &Path) -> Result<Helper> {
        let failed =
            |e: Errno| Error::step("starting the helper between the launcher and the program's MPI", e);
        if let Some(door) = mark.and_then(|mark| siblings::find_door(job, mark, DOOR)) {
            let socket = seqpacket().map_err(failed)?;
            let door = format!("/proc/self/fd/{}/{DOOR}", door.as_raw_fd());
            // Dead, or of another sandbox that is ending: then a new one.
            if UnixAddr::new(door.as_str()).and_then(|address| connect(socket.as_raw_fd(), &address)).is_ok()
            {
                return Ok(Helper { socket });
            }
        }
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, its) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(failed)?;
        let daemon = calls::pidfd(job.daemon).map_err(failed)?;
        let covered = covered.to_owned();
        let left = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(failed)?;
        detached::spawn([its.as_fd(), daemon.as_fd(), left.1.as_fd()], |[its, daemon, left]| {
            if helper::leave_sandbox(&covered).is_ok() {
                let _ = nix::unistd::write(left, &[1]);
                // The other end tells that we are out; nothing else is said there.
                let _ = nix::unistd::close(left.as_raw_fd());
                helper::live(its, daemon);
            }
        })
        .map_err(failed)?;
        drop((its, left.1));
        // Only then may the sandbox be built: both are in one mount namespace until then.
        match nix::unistd::read(&left.0, &mut [0]) {
            Ok(1) => Ok(Helper { socket: ours }),
            Ok(_) => Err(failed(Errno::EPERM)),
            Err(e) => Err(failed(e)),
        }
    }

    /// Opens the helper's door in the own directory of a sandbox.
    fn open_door(&self, own: &OwnedFd) -> Result<()> {
        let failed = |e: Errno| Error::step("opening the helper's door in the sandbox", e);
        let door = seqpacket().map_err(failed)?;
        let path = format!("/proc/self/fd/{}/{DOOR}", own.as_raw_fd());
        bind(door.as_raw_fd(), &UnixAddr::new(path.as_str()).map_err(failed)?).map_err(failed)?;
        calls::listen(&door).map_err(failed)?;
        letters::send(&self.socket, &Request::Listen, &[door.as_raw_fd()]).map_err(failed)
    }
}

/// Where the helper is found, inside.
pub fn door() -> PathBuf {
    Path::new(MARK_DIRECTORY).join(DOOR)
}

/// Whether a variable of the launcher's must not be seen by a program that is bridged.
pub fn is_scrubbed(name: &str) -> bool {
    SCRUBBED.iter().any(|(pattern, _)| pmi_shim::glob::matches(pattern, name))
}

/// Removes them, but for those that the user has set for the program.
pub fn scrub(environ: &mut Environ, config: &Config) -> Vec<Change> {
    let names: Vec<String> = environ.iter().filter_map(|(n, _)| n.to_str().map(str::to_owned)).collect();
    let mut changes = Vec::new();
    for name in names {
        if config.env.iter().any(|pair| pair.value.0 == name) {
            continue;
        }
        let row = SCRUBBED.iter().find(|(pattern, _)| pmi_shim::glob::matches(pattern, &name));
        if let Some((_, why)) = row {
            environ.remove(std::ffi::OsStr::new(&name));
            changes.push(Change { name, value: None, why: format!("bridged: {why}") });
        }
    }
    changes
}

/// A rank needs four descriptors; the usual limit is 1024. Answers what it was, if it was raised.
pub fn raise_limit() -> Option<(rlim_t, rlim_t)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let is_raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 20), hard).is_ok();
    is_raised.then_some((soft, hard))
}

/// How many processors this host has; this process may be bound to one of them.
fn processors() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let known = count(&list).filter(|n| *n > 0);
    known.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Of "0-3,8".
fn count(list: &str) -> Option<usize> {
    list.trim()
        .split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
        })
        .sum()
}

/// This host's name.
pub fn host_name() -> String {
    nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Where a server's ranks may keep files.
pub fn directories() -> Option<Directories> {
    Some(Directories { job: SESSION.to_owned(), ranks: true })
}

/// A job that is on this node only and has no launcher to name it.
pub fn alone(size: u32, host: &str, oversubscribed: bool) -> Job {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let name = format!("{host}.{}.{:x}", std::process::id(), time.as_nanos());
    Job {
        id: safe_name(&name),
        node_of: vec![0; size as usize],
        hosts: vec![host.to_owned()],
        node: 0,
        appnum: vec![0; size as usize],
        universe: None,
        oversubscribed,
    }
}

/// What a bridged program needs in the own directory of its sandbox.
pub fn furnish(own: &OwnedFd, helper: Option<&Helper>) -> Result<()> {
    nix::sys::stat::mkdirat(own, SESSION_NAME, Mode::S_IRWXU)
        .map_err(|e| Error::step("making a directory for MPI's files", e))?;
    helper.map_or(Ok(()), |helper| helper.open_door(own))
}

/// One that is there already is as good.
fn make_directory(path: &Path) -> nix::Result<()> {
    match nix::unistd::mkdir(path, Mode::S_IRWXU) {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// This rank comes to the helper and learns where its server is, which goes into `environ`. To be called inside,
/// just before the exec. `outside`: the launcher's environment; `door`: a connection to the helper, where there is
/// one already.
pub fn join(
    job: &JobStep,
    door: Option<&OwnedFd>,
    wiring: &Wiring,
    outside: &Environ,
    environ: &mut Environ,
) -> Result<()> {
    let rank = &job.rank;
    let number = rank.rank.ok_or_else(|| {
        let what = format!("{} does not say which rank this process is", rank.launcher.name());
        Error::new(Code::PmiUnusable, what, "start it with another launcher, or with hpc-launch -n")
    })?;
    let failed = |what: &'static str| move |e: Errno| Error::step(what, e);
    let (speaks, host, descriptor) = launcher(rank, outside)?;
    let (lifeline, held) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed("making a pipe"))?;
    let pmi = match wiring.downlink {
        Downlink::Descriptor => {
            let flags = SockFlag::SOCK_CLOEXEC;
            let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, flags);
            Some(pair.map_err(failed("making the rank's PMI connection"))?)
        }
        Downlink::Port | Downlink::Pmix => None,
    };
    let must_know = wiring.downlink != Downlink::Descriptor || rank.size.is_none();
    let letter = Request::Join {
        rank: number,
        size: rank.size,
        local_size: rank.local_size,
        pmi: pmi.is_some(),
        must_know,
        speaks,
        host,
    };
    // Where the helper may say what goes wrong; somebody may have closed it.
    let nowhere = || std::fs::File::open("/dev/null").map(OwnedFd::from);
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().or_else(|_| nowhere());
    let stderr = stderr.map_err(|e| Error::step("keeping standard error", e))?;
    let pmi_end = pmi.as_ref().map(|(_, its)| its);
    let descriptors: Vec<RawFd> = [Some(&held), Some(&stderr), pmi_end, descriptor.as_ref()]
        .into_iter()
        .flatten()
        .map(AsRawFd::as_raw_fd)
        .collect();
    let gone = |e: Errno| {
        Error::new(
            Code::HelperLost,
            format!("the helper between the launcher and the program's MPI does not answer: {e}"),
            "another rank's message may say why; else start the job again",
        )
    };
    let socket = match door {
        Some(door) => door.try_clone().map_err(|e| Error::step("keeping the helper's connection", e))?,
        None => {
            let socket = seqpacket().map_err(failed("making a socket"))?;
            let address = UnixAddr::new(&self::door()).map_err(gone)?;
            connect(socket.as_raw_fd(), &address).map_err(gone)?;
            socket
        }
    };
    let patience = TimeVal::new(PATIENCE_SECONDS, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)
        .map_err(failed("limiting the wait for the helper"))?;
    letters::send(&socket, &letter, &descriptors).map_err(gone)?;
    // Its copies are the only ones: whoever is at their other ends sees its end.
    drop((held, stderr, descriptor));
    let ours = pmi.map(|(ours, _)| ours);
    let reply = letters::receive::<Reply>(&socket).map_err(gone)?;
    let (nspace, address, size, local) = match reply {
        Some((Reply::Welcome { nspace, address, size, local }, _)) => (nspace, address, size, local),
        Some((Reply::Refused(why), _)) => {
            return Err(Error::new(
                Code::PmiUnusable,
                format!("rank {number} cannot be joined to its job: {why}"),
                "see `hpc-launch pmi info` under the same launcher for what it offers",
            ));
        }
        _ => return Err(gone(Errno::ECONNRESET)),
    };
    // Not before: who is refused says why.
    die_with(&lifeline).map_err(gone)?;
    if let Some(ours) = &ours {
        calls::inherit(ours).map_err(failed("keeping the rank's PMI connection"))?;
    }
    let _ = make_directory(&Path::new(SESSION).join(number.to_string()));
    let host_name = host_name();
    let (local_rank, local_size) = match local {
        Some((rank, size)) => (Some(rank), Some(size)),
        None => (rank.local_rank, rank.local_size),
    };
    let place = Place {
        rank: number,
        size: size.or(rank.size),
        local_rank,
        local_size,
        descriptor: ours.as_ref().map(AsRawFd::as_raw_fd),
        address: &address,
        nspace: nspace.as_deref().unwrap_or_default(),
        directory: SESSION,
        host_name: &host_name,
        oversubscribed: local_size.is_some_and(|n| n as usize > processors()),
    };
    for (name, value) in variables(wiring, &place) {
        environ.set(name, value);
    }
    // The program inherits both.
    std::mem::forget((lifeline, ours));
    Ok(())
}

/// What this rank's launcher speaks, and where.
pub fn launcher(rank: &Rank, environ: &Environ) -> Result<(Speaks, Host, Option<OwnedFd>)> {
    let unusable = |what: String, cure: &str| Err(Error::new(Code::PmiUnusable, what, cure));
    let name = rank.launcher.name();
    match rank.offers {
        Offer::Nothing | Offer::Any => Ok((Speaks::Nothing, Host::None, None)),
        Offer::Simple => {
            if let Some(text) = environ.get("PMI_FD") {
                let Ok(number) = text.parse::<RawFd>() else {
                    return unusable(
                        format!("{name} set PMI_FD={text}, which is no descriptor"),
                        "start it again",
                    );
                };
                let closed = "something between the launcher and hpc-launch closes descriptors: start hpc-launch \
                              itself, without it";
                let Ok(fd) = calls::take(number) else {
                    return unusable(format!("PMI_FD={number} of {name} is closed"), closed);
                };
                let is_socket =
                    nix::sys::stat::fstat(&fd).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFSOCK);
                if !is_socket {
                    return unusable(format!("PMI_FD={number} of {name} is no socket"), closed);
                }
                return Ok((Speaks::Simple, Host::Descriptor, Some(fd)));
            }
            match environ.get("PMI_PORT") {
                Some(address) => Ok((Speaks::Simple, Host::At(address), None)),
                None => unusable(format!("{name} set neither PMI_FD nor PMI_PORT"), "start it again"),
            }
        }
        Offer::Pmix => {
            let modes = environ.get("PMIX_SECURITY_MODE").unwrap_or_default();
            if !modes.is_empty() && !modes.split(',').any(|m| m.trim() == "native" || m.trim() == "none") {
                return unusable(
                    format!(
                        "the PMIx server of {name} takes credentials of kind {modes:?} only; spoken is \"native\""
                    ),
                    "let the administrator allow native credentials (PMIX_MCA_psec=native for the launcher), or use \
                     an image whose MPI speaks PMIx itself",
                );
            }
            let nspace = environ.get("PMIX_NAMESPACE").unwrap_or_default();
            for (variable, bfrops) in [("PMIX_SERVER_URI3", "v3"), ("PMIX_SERVER_URI21", "v21")] {
                let Some(uri) = environ.get(variable) else { continue };
                let address = uri.split(';').skip(1).find_map(pmi_shim::uplink::address);
                let Some(address) = address else {
                    return unusable(
                        format!("{name} set {variable}={uri}, in which there is no address of TCP"),
                        "start it with another launcher",
                    );
                };
                let bfrops = bfrops.to_owned();
                return Ok((Speaks::Pmix { nspace, bfrops }, Host::At(address), None));
            }
            unusable(
                format!(
                    "the PMIx server of {name} offers none of the dialects that are spoken (PMIX_SERVER_URI3, \
                     PMIX_SERVER_URI21)"
                ),
                "use a launcher with PMIx 2.1 or later",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!((count("0-1\n"), count("0-3,8,10-11"), count("5")), (Some(2), Some(7), Some(1)));
        assert_eq!((count(""), count("3-1"), count("x")), (None, None, None));
    }
}

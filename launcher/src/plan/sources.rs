//! What of the host a sandbox shows: the tables' rows, the job's directories, and what was asked for.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use abi_probe::rootfs::Kind;
use pmi_shim::launcher::{Launcher, Offer, Rank};
use pmi_shim::slurm;

use super::table::{self, Need};
use crate::config::{Config, Sourced};
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::image::{Image, open_path};

/// Facts about this process and host that the plan depends on.
pub struct Facts<'a> {
    /// The user.
    pub uid: u32,
    /// The working directory outside, if it has a path.
    pub cwd: Option<PathBuf>,
    /// The environment outside.
    pub environ: &'a Environ,
    /// The rank's place, if a launcher started it.
    pub rank: Option<&'a Rank>,
}

/// Shown with /dev, but where it is a link.
const SHM: &str = "/dev/shm";

/// How seriously something is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weight {
    /// The user or the site asked for it: problems are errors.
    Asked(String),
    /// No sandbox without it.
    Required,
    /// Left out, with a note, when it cannot be.
    IfPossible,
    /// The proof that the host's libraries work rests on it.
    Injected,
}

/// Something of the host that should be visible inside.
#[derive(Clone, Debug)]
pub struct Want {
    /// On the host.
    pub source: PathBuf,
    /// Inside, as it was asked for.
    pub at: PathBuf,
    /// May not be written to.
    pub read_only: bool,
    /// Why.
    pub why: String,
    /// How seriously.
    pub weight: Weight,
}

/// The host's objects that will be bound.
#[derive(Default)]
pub struct Sources {
    /// Devices and inodes, by the handles of [`Step::Bind`].
    pub ids: Vec<(u64, u64)>,
    /// What they are for, and whether each is a directory or a file.
    pub wanted: Vec<(Want, Kind)>,
    /// Opened, where something will be mounted over the host's own directories.
    held: Vec<OwnedFd>,
    /// The host's /tmp, where something is mounted over that already.
    pub tmp: Option<Rc<OwnedFd>>,
}

/// Collects what is wanted.
fn wants(config: &Config, facts: &Facts, devices: &[Want]) -> Result<Vec<Want>> {
    let mut wants = Vec::new();
    let mut same = |path: PathBuf, why: &str, weight: Weight| {
        // Bytes: every path here is plain, and std's comparison takes paths apart from behind.
        if wants.iter().any(|want: &Want| want.at.as_os_str() == path.as_os_str()) {
            return;
        }
        wants.push(Want { source: path.clone(), at: path, read_only: false, why: why.to_owned(), weight });
    };
    let row = |row: &table::Row| match row.need {
        Need::Required => Weight::Required,
        Need::IfThere => Weight::IfPossible,
    };
    for r in table::DIRECTORIES.iter().chain(table::RUNTIME) {
        same(r.path.into(), r.why, row(r));
    }
    same(format!("/run/user/{}", facts.uid).into(), "the user's runtime directory", Weight::IfPossible);
    for (path, variable, why) in of_the_job(facts.environ) {
        same(plain(&path), &format!("{why} ({variable})"), Weight::IfPossible);
    }
    if let Some((path, file)) = of_slurm(facts) {
        same(plain(&path), &format!("Slurm's directory for the step ({file})"), Weight::IfPossible);
    }
    if config.home.value
        && let Some(home) = facts.environ.get_os("HOME").map(PathBuf::from)
        && home.is_absolute()
        && home != Path::new("/")
    {
        same(plain(&home), "the home directory", Weight::IfPossible);
    }
    if let Some(cwd) = &facts.cwd
        && cwd != Path::new("/")
        && !table::OF_THE_IMAGE.iter().any(|d| cwd.starts_with(d))
    {
        same(plain(cwd), "the working directory", Weight::IfPossible);
    }
    for r in table::FILES {
        same(r.path.into(), r.why, row(r));
    }
    wants.extend(devices.iter().cloned());
    for bind in &config.binds {
        wants.push(parse_bind(bind)?);
    }
    Ok(wants)
}

/// Without `.`, doubled slashes and one at the end.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Directories that variables of the job name, with these and the reason.
fn of_the_job(environ: &Environ) -> impl Iterator<Item = (PathBuf, &'static str, &'static str)> {
    pmi_shim::passthrough::DIRECTORIES.iter().filter_map(|(variable, why)| {
        let path = environ.get_os(variable).map(PathBuf::from).filter(|p| p.is_absolute())?;
        Some((path, *variable, *why))
    })
}

/// Those that make a sandbox another one. What every sandbox shows makes no difference: slurmstepd
/// gives the first task of a node alone a TMPDIR, /tmp, when the user has none.
pub fn that_distinguish(environ: &Environ) -> Vec<PathBuf> {
    let shown = |path: &PathBuf| table::DIRECTORIES.iter().any(|row| path.starts_with(row.path));
    of_the_job(environ).map(|(path, ..)| path).filter(|path| !shown(path)).collect()
}

/// The directory of a PMIx step of Slurm, which no variable names, and the file that does.
fn of_slurm(facts: &Facts) -> Option<(PathBuf, String)> {
    facts.rank.filter(|r| r.launcher == Launcher::Slurm && r.offers == Offer::Pmix)?;
    let conf = facts.environ.get_os("SLURM_CONF").unwrap_or("/etc/slurm/slurm.conf".as_ref());
    let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let node = facts.environ.get("SLURMD_NODENAME").unwrap_or_else(|| host.clone());
    slurm::SETTINGS.iter().find_map(|(name, key)| {
        let file = Path::new(conf).with_file_name(name);
        let text = read_bounded(&file)?;
        let path = PathBuf::from(slurm::directory(&text, key, &node, &host)?);
        path.is_absolute().then(|| (path, format!("{key} in {}", file.display())))
    })
}

/// A regular file, up to more than any configuration has.
fn read_bounded(path: &Path) -> Option<String> {
    let file = std::fs::metadata(path).ok().filter(Metadata::is_file).and_then(|_| File::open(path).ok())?;
    let mut text = String::new();
    file.take(1 << 20).read_to_string(&mut text).ok()?;
    Some(text)
}

/// `SRC[:DST[:ro]]`.
fn parse_bind(bind: &Sourced<String>) -> Result<Want> {
    let bad = |why: &str| {
        Error::new(
            Code::Usage,
            format!("bind {:?} ({}): {why}", bind.value, bind.origin),
            "write SRC, SRC:DST or SRC:DST:ro, with an absolute DST",
        )
    };
    let mut parts = bind.value.split(':');
    let source = parts.next().filter(|s| !s.is_empty()).ok_or_else(|| bad("SRC is empty"))?;
    let target = parts.next().filter(|s| !s.is_empty());
    let read_only = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(bad(&format!("{other:?} is neither ro nor rw"))),
    };
    if parts.next().is_some() {
        return Err(bad("more than three parts"));
    }
    let source = std::path::absolute(source).map_err(|e| bad(&e.to_string()))?;
    let at = target.map_or_else(|| source.clone(), PathBuf::from);
    if !at.is_absolute() {
        return Err(bad("DST is not absolute"));
    }
    let why = format!("asked for ({})", bind.origin);
    Ok(Want { source, at, read_only, weight: Weight::Asked(bind.origin.to_string()), why })
}

impl Sources {
    /// Finds everything that is wanted and there. `devices`: what those that were asked for need.
    pub fn find(config: &Config, facts: &Facts, devices: &[Want]) -> Result<Sources> {
        let mut sources = Sources::default();
        for want in wants(config, facts, devices)? {
            if want.source == Path::new(SHM) && std::fs::symlink_metadata(SHM).is_ok_and(|m| m.is_dir()) {
                continue;
            }
            let meta = match (std::fs::metadata(&want.source), &want.weight) {
                (Ok(meta), _) => meta,
                (Err(_), Weight::IfPossible) => continue,
                (Err(e), _) => return Err(want.no_source(e)),
            };
            let kind = if meta.is_dir() { Kind::Directory } else { Kind::File };
            sources.ids.push((meta.dev(), meta.ino()));
            sources.wanted.push((want, kind));
        }
        Ok(sources)
    }

    /// One more; answers its handle.
    pub fn add(&mut self, want: Want) -> Result<(usize, Kind)> {
        let source = self.reachable(&want.source);
        let meta = std::fs::metadata(&source).map_err(|e| want.no_source(e))?;
        let kind = if meta.is_dir() { Kind::Directory } else { Kind::File };
        if !self.held.is_empty() || source != want.source {
            // All are held, then.
            self.hold()?;
            self.held.push(open_path(&source).map_err(|e| want.no_source(e))?);
        }
        self.ids.push((meta.dev(), meta.ino()));
        self.wanted.push((want, kind));
        Ok((self.wanted.len() - 1, kind))
    }

    /// A path by which something of the host can be reached now.
    fn reachable(&self, path: &Path) -> PathBuf {
        match (&self.tmp, path.strip_prefix("/tmp")) {
            (Some(tmp), Ok(rest)) => PathBuf::from(format!("/proc/self/fd/{}", tmp.as_raw_fd())).join(rest),
            _ => path.to_owned(),
        }
    }

    /// Opens them, in the mount namespace in which the binds will be made (the kernel binds only what
    /// lies in it), before something is mounted over the paths that lead to them.
    pub fn hold(&mut self) -> Result<()> {
        if self.held.is_empty() {
            let open = |want: &Want| open_path(&want.source).map_err(|e| want.no_source(e));
            self.held = self.wanted.iter().map(|(want, _)| open(want)).collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// Whether one of them lies in the image's own directory, over which the new root is mounted.
    pub fn lie_in(&self, image: &Image) -> bool {
        // Bytes first where the path is plain: see `wants`.
        let lies = |source: &Path| {
            let (bytes, image_bytes) = (source.as_os_str().as_bytes(), image.path.as_os_str().as_bytes());
            let is_odd = bytes.windows(2).any(|pair| matches!(pair, b"//" | b"/."));
            (is_odd || bytes.starts_with(image_bytes)) && source.starts_with(&image.path)
        };
        self.wanted.iter().any(|(want, _)| {
            lies(&want.source)
                || matches!(want.weight, Weight::Asked(_))
                    && std::fs::canonicalize(&want.source).is_ok_and(|source| lies(&source))
        })
    }

    /// The opened source, if all are held.
    pub fn held(&self, handle: usize) -> Option<&OwnedFd> {
        self.held.get(handle)
    }
}

impl Want {
    /// Why it cannot be shown: the host has none, or none to read.
    pub fn no_source(&self, e: std::io::Error) -> Error {
        let (origin, cure) = match &self.weight {
            Weight::Asked(origin) => (
                format!(" ({origin})"),
                "correct the path, or make it on this node; every node of the job needs it",
            ),
            _ => (String::new(), "this host is set up unusually: every sandbox shows it"),
        };
        Error::new(Code::BindSource, format!("cannot bind {}{origin}: {e}", self.source.display()), cure)
    }
}

//! Lays directories and files over the image, and takes writes into one of them: overlayfs.
//!
//! Where writes are kept it is mounted twice: first of layers that are only read, what was written before among them, for
//! the plan must see what the program will; and again when the missing mount points are known. These lie in a layer beneath
//! all others, so that what is kept has none of them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::build::{Building, STAGE, make_skeleton};
use super::calls::{make_at, mkdir, path_of, user_xattr};
use super::ext;
use super::squashfs::{self, Server};
use crate::error::{Code, Error, Result};
use crate::image::open_path;
use crate::overlay::{By, Layer, Overlays, UPPER, Upper, WORK};
use crate::plan::Make;

/// How long others may take to mount theirs there.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);
/// How long another sandbox that writes there may take to go: its last rank may just have ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// Layers opened by their paths, before something is mounted over these.
pub struct Held {
    layers: Vec<Holding>,
    upper: Option<OwnedFd>,
}

enum Holding {
    Directory(OwnedFd),
    File(File),
    Served(Server),
}

/// What the image was covered with.
#[derive(Default)]
pub struct Laid {
    /// From the topmost to the image.
    layers: Vec<Rc<OwnedFd>>,
    /// The directory in which `upper` is, or its parent.
    upper: Option<Rc<OwnedFd>>,
    /// The file that it is in.
    file: Option<File>,
}

/// Starts what serves files, waiting. To be called as [`squashfs::start_server`].
pub fn serve(over: &Overlays) -> Result<Vec<Option<Server>>> {
    let server = |layer: &Layer| match &layer.by {
        By::Squashfuse(program) => squashfs::start_server(&layer.path, 0, None, program.clone()).map(Some),
        By::Fuse2fs(program) => ext::start_server(&layer.path, program.clone()).map(Some),
        By::Directory | By::KernelSquashfs | By::KernelExt => Ok(None),
    };
    over.layers.iter().map(server).collect()
}

/// Opens the others, in the sandbox's mount namespace: the kernel takes layers of that only.
pub fn hold(over: &Overlays, servers: Vec<Option<Server>>) -> Result<Held> {
    let failed = |path: &Path| {
        let what = format!("opening {}", path.display());
        move |e: std::io::Error| Error::step(what, e)
    };
    let holding = |(layer, server): (&Layer, Option<Server>)| {
        let failed = failed(&layer.path);
        Ok(match (server, &layer.by) {
            (Some(server), _) => Holding::Served(server),
            (None, By::Directory) => Holding::Directory(open_path(&layer.path).map_err(failed)?),
            (None, _) => Holding::File(File::open(&layer.path).map_err(failed)?),
        })
    };
    let layers = over.layers.iter().zip(servers).map(holding).collect::<Result<_>>()?;
    let open = |upper: &Upper| match upper.by {
        By::Directory => open_path(&upper.given),
        _ => File::options().read(true).write(true).open(&upper.given).map(OwnedFd::from),
    };
    let upper = over.upper.as_ref().map(|u| open(u).map_err(failed(&u.given))).transpose()?;
    Ok(Held { layers, upper })
}

/// A directory in an open one, which is no link.
fn below(directory: impl AsFd, name: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

impl Building {
    /// Covers the image with the layers, all of them read-only.
    pub fn lay_over(
        &mut self,
        over: &Overlays,
        held: Held,
        (uid, gid): (u32, u32),
        privileged: bool,
    ) -> Result<()> {
        let image = self.open(Path::new("/"))?;
        self.stage()?;
        let mut laid = Laid { layers: vec![image], ..Laid::default() };
        for (i, (layer, holding)) in over.layers.iter().zip(held.layers).enumerate() {
            let at = Path::new(STAGE).join(format!("layer{i}"));
            match holding {
                Holding::Directory(directory) => {
                    laid.layers.insert(0, Rc::new(directory));
                    continue;
                }
                Holding::Served(server) => {
                    mkdir(&at)?;
                    server.mount(&layer.path, &at, uid, gid)?;
                }
                Holding::File(file) => {
                    mkdir(&at)?;
                    match layer.by {
                        By::KernelExt => ext::mount_by_kernel(&file, &layer.path, false, &at)?,
                        _ => squashfs::mount_by_kernel(&path_of(&file.into()), 0, &at)?,
                    }
                }
            }
            laid.layers.insert(0, Rc::new(top_of(&at)?));
        }
        let mut layers = laid.layers.clone();
        if let (Some(upper), Some(fd)) = (&over.upper, held.upper) {
            let directory = match upper.by {
                By::Directory => fd,
                _ => {
                    let (at, file) = (kept(), File::from(fd));
                    mkdir(&at)?;
                    // To be looked at; for writing it is mounted anew, when nobody else does.
                    ext::mount_by_kernel(&file, &upper.path, false, &at)?;
                    laid.file = Some(file);
                    open_path(&at).map_err(|e| Error::step(format_args!("opening {}", at.display()), e))?
                }
            };
            // What was written before, if there is any yet.
            let own = upper.path.strip_prefix(&upper.given).unwrap_or(Path::new(""));
            if let Ok(before) = below(&directory, &own.join(UPPER)) {
                layers.insert(0, Rc::new(before));
            }
            laid.upper = Some(Rc::new(directory));
        }
        if layers.len() > 1 {
            let merged = Path::new(STAGE).join("layered");
            mkdir(&merged)?;
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let options = format!("lowerdir={}{}", listed(&layers), user_xattr(privileged));
            mount(Some("hpc-launch"), &merged, Some("overlay"), flags, Some(options.as_str())).map_err(|e| {
                refused(
                    e,
                    "laying what was asked for over the image",
                    "one of the layers is on a file system that cannot be one, or something is mounted below it",
                    "try them one by one; copy the one that fails to another file system",
                )
            })?;
            self.move_root(merged);
        }
        self.laid = laid;
        self.based()
    }

    /// The root that takes writes, with these mount points beneath.
    pub(super) fn keep_writes(&mut self, upper: &Upper, make: &[&Make], privileged: bool) -> Result<()> {
        let Some(directory) = self.laid.upper.clone() else { return Ok(()) };
        let shown = upper.path.join(UPPER);
        let failed = |e: Errno| {
            let what = format!("overlay: making {} and what is beside it: {e}", shown.display());
            let cure =
                "its file system may be full (`df`, `df -i`, `quota`), or not be writable for this user";
            Error::new(Code::OverlayUnusable, what, cure)
        };
        let mut made = Made::default();
        let make_directory = |in_what: &Rc<OwnedFd>, name: &Path, made: &mut Made| {
            match mkdirat(&**in_what, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) => made.0.push((Rc::clone(in_what), name.to_owned())),
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
            }
            below(&**in_what, name).map(Rc::new)
        };
        let identity = |e: std::io::Error| failed(Errno::from_raw(e.raw_os_error().unwrap_or_default()));
        let named = |meta: std::fs::Metadata| format!("hpc-launch.{:x}.{}", meta.dev(), meta.ino());
        // Until it is mounted, and seen by the others.
        let (own, name, _lock) = match &self.laid.file {
            Some(file) => {
                let name = named(file.metadata().map_err(identity)?);
                let lock = locked(file.try_clone().map_err(identity)?, &upper.path)?;
                wait_for_its_end(&name, &shown)?;
                // Who wrote to it before us may not have ended well.
                ext::still_good(file, &upper.path)?;
                let at = Path::new(STAGE).join("kept-for-writing");
                mkdir(&at)?;
                ext::mount_by_kernel(file, &upper.path, true, &at)?;
                let own =
                    open_path(&at).map_err(|e| Error::step(format_args!("opening {}", at.display()), e))?;
                (Rc::new(own), name, lock)
            }
            None => {
                let own = match upper.path.strip_prefix(&upper.given) {
                    Ok(own) if own != Path::new("") => {
                        make_directory(&directory, own, &mut made).map_err(failed)?
                    }
                    _ => directory,
                };
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let directory = openat(&*own, ".", flags, Mode::empty()).map(File::from).map_err(failed)?;
                let lock = locked(directory, &upper.path)?;
                let top = make_directory(&own, Path::new(UPPER), &mut made).map_err(failed)?;
                let top = File::from(top.try_clone().map_err(|_| failed(Errno::EMFILE))?);
                let name = named(top.metadata().map_err(identity)?);
                wait_for_its_end(&name, &shown)?;
                (own, name, lock)
            }
        };
        let [top, work] = [UPPER, WORK].map(|name| make_directory(&own, Path::new(name), &mut made));
        let (top, work) = (top.map_err(failed)?, work.map_err(failed)?);

        let stage = Path::new(STAGE);
        let (skeleton, written) = (stage.join("skeleton"), stage.join("written"));
        mkdir(&skeleton)?;
        mkdir(&written)?;
        make_skeleton(&skeleton, Path::new("/"), make.iter().copied())?;
        let options = format!(
            "lowerdir={}:{},upperdir={},workdir={}{}",
            listed(&self.laid.layers),
            skeleton.display(),
            path_of(&top).display(),
            path_of(&work).display(),
            user_xattr(privileged)
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(name.as_str()), &written, Some("overlay"), flags, Some(options.as_str())).map_err(|e| {
            if e != Errno::EBUSY {
                made.undo();
            }
            refused(
                e,
                // Each rank's own has the same to say: it is said once.
                &format!("taking writes into {}", upper.given.display()),
                &format!(
                    "it is on {}, of which the kernel takes no overlay's writes (as on NFS, Lustre and other overlays)",
                    upper.file_system
                ),
                "choose a directory on a disk of the node (ext4, xfs, btrfs, tmpfs), --writable-tmpfs, or PATH:ro",
            )
        })?;
        // The kernel's own directory there has mode 0, and things in it: its owner could not remove it.
        let _ = fchmodat(&work, "work", Mode::S_IRWXU, FchmodatFlags::FollowSymlink);
        self.move_root(written);
        let root = self.open(Path::new("/"))?;
        let is_read_only = fstatvfs(&root).is_ok_and(|s| s.flags().contains(FsFlags::ST_RDONLY));
        if is_read_only {
            let work = upper.path.join(WORK);
            return Err(Error::new(
                Code::OverlayUnusable,
                format!(
                    "the kernel takes no writes into {}: it cannot use {}",
                    shown.display(),
                    work.display()
                ),
                format!("remove {}, in which nothing is kept (or have its owner do so)", work.display()),
            ));
        }
        self.make_again(make)
    }

    /// Mount points that were removed in an overlay, which hides those beneath.
    fn make_again(&self, make: &[&Make]) -> Result<()> {
        for m in make {
            let (Some(parent), Some(name)) = (m.at.parent(), m.at.file_name()) else { continue };
            if self.open(&m.at).is_ok() {
                continue;
            }
            make_at(&*self.open(parent)?, Path::new(name), m.directory).map_err(|e| {
                Error::new(
                    Code::OverlayUnusable,
                    format!(
                        "{} was removed in the overlay; something must be mounted there, and it cannot be made again: {e}",
                        m.at.display()
                    ),
                    "use another overlay, or make it there",
                )
            })?;
        }
        Ok(())
    }
}

/// Directories that were made, each in the one before it or beside.
#[derive(Default)]
struct Made(Vec<(Rc<OwnedFd>, PathBuf)>);

impl Made {
    /// Removes those that are still empty.
    fn undo(&self) {
        for (directory, name) in self.0.iter().rev() {
            // The kernel's own in it.
            if name == Path::new(WORK) {
                let _ = unlinkat(&**directory, "work/work", UnlinkatFlags::RemoveDir);
            }
            let _ = unlinkat(&**directory, name.as_path(), UnlinkatFlags::RemoveDir);
        }
    }
}

/// One at a time. Where there are no locks we are on our own.
fn locked(file: File, shown: &Path) -> Result<Option<Flock<File>>> {
    let (start, mut file) = (Instant::now(), file);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((again, Errno::EWOULDBLOCK | Errno::EINTR)) if start.elapsed() < LOCK_PATIENCE => {
                file = again
            }
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                return Err(Error::new(
                    Code::OverlayBusy,
                    format!(
                        "somebody holds a lock on {} for more than {} s (`lslocks` says who)",
                        shown.display(),
                        LOCK_PATIENCE.as_secs()
                    ),
                    "wait for its end, or give this job another directory",
                ));
            }
            Err(_) => return Ok(None),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where the file system is mounted that takes the writes.
fn kept() -> PathBuf {
    Path::new(STAGE).join("kept")
}

/// The layer in a file system: its `upper` if it has one, or all of it.
fn top_of(at: &Path) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::step(format_args!("opening {}", at.display()), e);
    let root = File::open(at).map(OwnedFd::from);
    let root = root.map_err(|e| Error::step(format_args!("opening {}", at.display()), e))?;
    below(&root, Path::new(UPPER)).or_else(|_| below(&root, Path::new("."))).map_err(failed)
}

/// As mount(2) wants them.
fn listed(layers: &[Rc<OwnedFd>]) -> String {
    layers.iter().map(|fd| path_of(fd).display().to_string()).collect::<Vec<_>>().join(":")
}

/// Why the kernel takes no such overlay.
fn refused(e: Errno, what: &str, invalid: &str, cure: &str) -> Error {
    let (why, cure) = match e {
        Errno::EINVAL => (invalid, cure),
        Errno::ELOOP => ("layers lie one in the other", "choose another directory"),
        Errno::EBUSY => ("another overlay writes there", "use another directory, or wait for its end"),
        Errno::ENODEV => {
            ("this kernel has no overlay file system", "ask the administrator: modprobe overlay")
        }
        _ => return Error::step(what, e),
    };
    Error::new(Code::OverlayUnusable, format!("{what}: {e}: {why}"), cure)
}

/// Waits until no sandbox of this node writes there: the kernel leaves undefined what two would do. Overlays have the
/// name of what they write to.
fn wait_for_its_end(name: &str, shown: &Path) -> Result<()> {
    let start = Instant::now();
    while let Some(pid) = user_of(name) {
        if start.elapsed() > PATIENCE {
            return Err(Error::new(
                Code::OverlayBusy,
                format!("process {pid} of another sandbox on this node writes to {}", shown.display()),
                "wait for its end, give this job another directory, or each rank its own: rank:DIR (programs of one job \
                 have sandboxes of their own too)",
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A process in whose mount namespace there is an overlay of this name.
fn user_of(name: &str) -> Option<i32> {
    let wanted = format!(" - overlay {name} ");
    let mut seen = std::collections::BTreeSet::new();
    let pids =
        std::fs::read_dir("/proc").ok()?.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids {
        // Of many processes in few namespaces one each is asked.
        if std::fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|namespace| !seen.insert(namespace)) {
            continue;
        }
        let table = std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if table.windows(wanted.len()).any(|part| part == wanted.as_bytes()) {
            return Some(pid);
        }
    }
    None
}

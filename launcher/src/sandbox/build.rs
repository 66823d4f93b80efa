//! Carries out the steps of a plan, in its order.
//!
//! Every mount point is opened inside the new root, component by component, and mounted on through its
//! descriptor: a path that became a link meanwhile is refused, not followed.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use abi_probe::inject::Link;
use abi_probe::rootfs::{Entry, View};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{chdir, chroot, symlinkat};

use super::calls::{
    do_mount, make_at, make_file, mkdir, mount_point, none, path_of, remount, unescape, user_xattr,
};
use super::overlay::Laid;
use super::squashfs::{self, How, Server};
use crate::error::{Error, Result};
use crate::image::{Image, Kind as ImageKind};
use crate::job::siblings::{MARK_DIRECTORY, MARK_LINK};
use crate::plan::sources::Sources;
use crate::plan::{Make, Relay, Step};

/// Covered, in the sandbox only, while it is built: what is assembled there becomes the root.
pub(super) const STAGE: &str = "/tmp";
/// For skeletons, notes and what programs may keep in /run: Open MPI's session directory may hold shared memory of a
/// hundred MiB (btl/smcuda), so it has the room that /dev/shm has.
const TMPFS_OPTIONS: &str = "mode=0755,nr_inodes=16384";

fn real(entry: Entry) -> Result<Rc<OwnedFd>> {
    let path = entry.path.clone();
    entry.into_fd().ok_or_else(|| {
        let why = std::io::Error::other("it is not real");
        Error::step(format_args!("opening {} of the sandbox", path.display()), why)
    })
}

/// What is put into the sandbox's own directory before any other rank can see that: who finds a mark finds the rest.
#[derive(Default)]
pub struct Furniture<'a> {
    /// Whose the sandbox is.
    pub mark: Option<&'a str>,
    /// Files with their contents.
    pub notes: Vec<(&'static str, Vec<u8>)>,
    /// Anything else.
    pub more: Option<&'a Furnish<'a>>,
}

/// Puts something into an open directory.
type Furnish<'a> = dyn Fn(&OwnedFd) -> Result<()> + 'a;

impl Furniture<'_> {
    fn put(&self, run: &OwnedFd, own: &Path) -> Result<()> {
        if self.notes.is_empty() && self.more.is_none() {
            return Ok(());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let failed = |e: std::io::Error| Error::step("writing into the sandbox's own directory", e);
        let directory = openat(run, own, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        for (name, text) in &self.notes {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            let file = openat(&directory, *name, flags, mode).map_err(|e| failed(e.into()))?;
            std::io::Write::write_all(&mut File::from(file), text).map_err(failed)?;
        }
        self.more.map_or(Ok(()), |more| more(&directory))
    }
}

/// A sandbox under construction, in its own mount namespace.
pub struct Building {
    /// Where the image is attached.
    root: PathBuf,
    /// Whether something is assembled on the stage.
    staged: bool,
    /// The mount of the image itself.
    base: Option<Rc<OwnedFd>>,
    /// Whether recursive binds pass over the new root.
    apart: bool,
    /// The root as last opened; forgotten when something else is mounted there.
    opened: RefCell<Option<View>>,
    /// /run, in memory, once it is there.
    run: Option<Rc<OwnedFd>>,
    /// What lies over the image.
    pub(super) laid: Laid,
}

impl Building {
    /// Attaches the image. The sources of all binds must have been opened before.
    pub fn attach(
        image: &Image,
        how: Option<&How>,
        server: Option<Server>,
        uid: u32,
        gid: u32,
    ) -> Result<Building> {
        match (image.kind, how) {
            (ImageKind::Directory, _) | (_, None) => {
                do_mount(
                    "binding the image",
                    Some(&image.path),
                    &image.path,
                    None,
                    MsFlags::MS_BIND | MsFlags::MS_REC,
                    None,
                )?;
                let mut building = Building::at(image.path.clone());
                building.based()?;
                Ok(building)
            }
            (ImageKind::Squashfs, Some(how)) => {
                // The image file may lie below the stage: hold it.
                let opened = match &image.held {
                    Some(file) => file.try_clone(),
                    None => File::options().read(true).custom_flags(libc::O_CLOEXEC).open(&image.path),
                };
                let file =
                    opened.map_err(|e| Error::step(format_args!("opening {}", image.path.display()), e))?;
                let mut building = Building::at(PathBuf::new());
                building.stage()?;
                let root = Path::new(STAGE).join("root");
                mkdir(&root)?;
                match (how, server) {
                    (How::Squashfuse(_), Some(server)) => server.mount(&image.path, &root, uid, gid)?,
                    _ => squashfs::mount_by_kernel(&path_of(&file.into()), image.offset, &root)?,
                }
                building.move_root(root);
                building.based()?;
                Ok(building)
            }
        }
    }

    fn at(root: PathBuf) -> Building {
        Building {
            root,
            staged: false,
            base: None,
            apart: false,
            opened: RefCell::new(None),
            run: None,
            laid: Laid::default(),
        }
    }

    pub(super) fn move_root(&mut self, root: PathBuf) {
        self.root = root;
        self.opened.replace(None);
    }

    /// What of the host the image covers where it is attached.
    pub fn covered(&self) -> &Path {
        if self.staged { Path::new(STAGE) } else { &self.root }
    }

    /// The image's root, to be looked at.
    pub fn view(&self) -> Result<View> {
        View::open(&self.root)
            .map_err(|e| Error::step("opening the image", std::io::Error::other(e.to_string())))
    }

    /// What is attached is what the sandbox is built on.
    pub(super) fn based(&mut self) -> Result<()> {
        self.base = Some(self.open(Path::new("/"))?);
        Ok(())
    }

    /// Recursive binds leave out what is unbindable, with all below it: the host's directories must not
    /// show the sandbox that is being built inside of them. (Not earlier: nothing of an unbindable mount
    /// can be bound or overlaid, which relays do.)
    fn set_apart(&self, how: MsFlags) -> Result<()> {
        if self.staged {
            do_mount("setting the new root apart", none(), Path::new(STAGE), None, how, None)?;
        } else if let Some(base) = &self.base {
            do_mount("setting the new root apart", none(), &path_of(base), None, how, None)?;
        }
        Ok(())
    }

    /// Whether a directory that will be bound has the new root somewhere below it, by whatever path.
    fn would_show(&self, sources: &Sources) -> bool {
        let shown = |above: &Path| {
            std::fs::metadata(above).map_or(true, |m| sources.ids.contains(&(m.dev(), m.ino())))
        };
        // The stage covers a directory of the host that every sandbox shows.
        self.staged || self.root.ancestors().any(shown)
    }

    pub(super) fn stage(&mut self) -> Result<()> {
        if !self.staged {
            // An image below the stage would be hidden: it moves onto it.
            let hidden = match self.root.starts_with(STAGE) && !self.root.as_os_str().is_empty() {
                true => Some(self.open(Path::new("/"))?),
                false => None,
            };
            do_mount(
                "making room",
                Some(Path::new("hpc-launch")),
                Path::new(STAGE),
                Some("tmpfs"),
                MsFlags::empty(),
                Some("mode=0700"),
            )?;
            self.staged = true;
            if let Some(old) = hidden {
                let root = Path::new(STAGE).join("root");
                mkdir(&root)?;
                do_mount("moving the image", Some(&path_of(&old)), &root, None, MsFlags::MS_MOVE, None)?;
                self.move_root(root);
            }
        }
        Ok(())
    }

    /// Carries out everything up to the new root's being `/`.
    pub fn carry_out(
        mut self,
        steps: &[Step],
        mut sources: Sources,
        own: &Furniture,
        privileged: bool,
    ) -> Result<()> {
        let mut relays = 0;
        let stages = |step: &Step| {
            matches!(step, Step::Root { writable: true, .. } | Step::Relay { by: Relay::Overlay, .. })
        };
        if steps.iter().any(stages) {
            sources.hold()?;
        }
        let first_bind = steps.iter().position(|s| matches!(s, Step::Bind { .. }));
        for (i, step) in steps.iter().enumerate() {
            if Some(i) == first_bind && self.would_show(&sources) {
                self.set_apart(MsFlags::MS_UNBINDABLE)?;
                self.apart = true;
            }
            match step {
                // Started before, since it must not be in here.
                Step::UserNamespace { .. } | Step::MountNamespace | Step::Helper { .. } => {}
                Step::Root { writable: true, .. } => {
                    self.writable_root(&made_beneath(&steps[i..]), privileged)?
                }
                Step::Root { writable: false, .. } => {
                    let root = self.open(Path::new("/"))?;
                    let extra = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                    remount(&root, extra, "making the root read-only")?;
                }
                Step::Overlay { upper: None, .. } => {}
                Step::Overlay { upper: Some(upper), .. } => {
                    self.keep_writes(upper, &made_beneath(&steps[i..]), privileged)?
                }
                Step::Relay { at, by: Relay::Tmpfs, make, entries, directory } => {
                    relays += 1;
                    let old = match directory {
                        Some(directory) if !self.staged => Rc::clone(directory),
                        _ => self.open(at)?,
                    };
                    let new = self.cover(at, relays)?;
                    self.lay_out(at, &old, &new, entries, &covered(&steps[i..]))?;
                    self.make_all(at, &new, make)?;
                    remount(&new, MsFlags::MS_RDONLY, "closing a directory that was laid out anew")?;
                }
                Step::Relay { at, by: Relay::Overlay, make, .. } => {
                    relays += 1;
                    self.relay_by_overlay(at, make, relays, privileged)?;
                }
                // Made already, below the writable layer.
                Step::Relay { by: Relay::Writable | Relay::Beneath, .. } => {}
                Step::Tmpfs { at, make, .. } => self.tmpfs(at, make, own)?,
                Step::Bind { at, read_only, handle, source, point, directory, alone, .. } => {
                    // The image's own mount was attached before the plan was made, and is still there.
                    let target = match point {
                        Some(point) if !self.staged => Rc::clone(point),
                        _ => self.open(at)?,
                    };
                    let point = match directory {
                        true => mount_point(&target),
                        false => path_of(&target),
                    };
                    let held = sources.held(*handle).map(path_of);
                    let from = held.as_ref().unwrap_or(source);
                    let bind = |flags| mount(Some(from), &point, none(), MsFlags::MS_BIND | flags, none());
                    // What is mounted below cannot be left out in a user namespace (has_locked_children, EINVAL).
                    let is_alone = *alone && bind(MsFlags::empty()).is_ok();
                    if !is_alone {
                        bind(MsFlags::MS_REC).map_err(|e| {
                            Error::step(format_args!("binding {} at {}", source.display(), at.display()), e)
                        })?;
                    }
                    match (*read_only, is_alone) {
                        (false, _) => {}
                        (true, true) => {
                            let bound = self.open(at)?;
                            remount(&bound, MsFlags::MS_RDONLY, "making a bind read-only")?;
                        }
                        (true, false) => self.read_only_below(at)?,
                    }
                }
                Step::Links { at, links } => {
                    let directory = self.open(at)?;
                    for Link { name, target, .. } in links {
                        symlinkat(target.as_path(), &directory, Path::new(name)).map_err(|e| {
                            Error::step(format_args!("linking {name} in {}", at.display()), e)
                        })?;
                    }
                }
                Step::Enter => self.enter()?,
                Step::NoNewPrivileges => nix::sys::prctl::set_no_new_privs()
                    .map_err(|e| Error::step("prctl(PR_SET_NO_NEW_PRIVS)", e))?,
            }
        }
        // Closed by the exec that follows, all at once.
        std::mem::forget(sources);
        Ok(())
    }

    /// Opens a link-free path of the new root.
    pub(super) fn open(&self, at: &Path) -> Result<Rc<OwnedFd>> {
        real(self.entry(at)?)
    }

    fn entry(&self, at: &Path) -> Result<Entry> {
        let changed = |why: String| {
            Error::step(format_args!("opening {} of the sandbox", at.display()), std::io::Error::other(why))
        };
        let mut opened = self.opened.borrow_mut();
        let view = match &mut *opened {
            Some(view) => view,
            none => none.insert(View::open(&self.root).map_err(|e| changed(e.to_string()))?),
        };
        let entry = view.find(at).map_err(|e| changed(e.to_string()))?;
        let entry = entry.ok_or_else(|| changed("it vanished while the sandbox was built".into()))?;
        if entry.path != at {
            return Err(changed(format!(
                "it became a link to {} while the sandbox was built",
                entry.path.display()
            )));
        }
        Ok(entry)
    }

    fn writable_root(&mut self, make: &[&Make], privileged: bool) -> Result<()> {
        let lower = self.open(Path::new("/"))?;
        self.stage()?;
        let stage = Path::new(STAGE);
        for name in ["upper", "work", "merged", "skeleton"] {
            mkdir(&stage.join(name))?;
        }
        // In a layer of their own: the user may not write to directories of root's in the image.
        make_skeleton(&stage.join("skeleton"), Path::new("/"), make.iter().copied())?;
        let merged = stage.join("merged");
        let options = format!(
            "lowerdir={STAGE}/skeleton:{},upperdir={STAGE}/upper,workdir={STAGE}/work{}",
            path_of(&lower).display(),
            user_xattr(privileged)
        );
        do_mount(
            "overlaying the root",
            Some(Path::new("hpc-launch")),
            &merged,
            Some("overlay"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(&options),
        )?;
        self.move_root(merged);
        Ok(())
    }

    /// Covers a directory with an empty one in memory; answers that. One of /run's tmpfs, if that is there:
    /// to mount and end another tmpfs costs the kernel five times what a bind does.
    fn cover(&mut self, at: &Path, number: usize) -> Result<Rc<OwnedFd>> {
        let what = format!("laying out {} in memory", at.display());
        let failed = |e: Errno| Error::step(&what, e);
        let Some(run) = self.run.clone() else { return self.tmpfs_over(at) };
        let part = own_directory().join(format!("relay.{number}"));
        make_at(&run, &part, true).map_err(failed)?;
        let over = self.open(at)?;
        nix::unistd::fchdir(&run).map_err(failed)?;
        mount(Some(&part), &path_of(&over), none(), MsFlags::MS_BIND, none()).map_err(failed)?;
        self.open(at)
    }

    fn tmpfs_over(&mut self, at: &Path) -> Result<Rc<OwnedFd>> {
        let is_root = at == Path::new("/");
        let over = self.open(at)?;
        let point = if is_root { self.root.clone() } else { mount_point(&over) };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let name = Some(Path::new("hpc-launch"));
        mount(name, &point, Some("tmpfs"), flags, Some(TMPFS_OPTIONS))
            .map_err(|e| Error::step(format_args!("mounting a tmpfs ({})", at.display()), e))?;
        if is_root {
            self.move_root(self.root.clone());
        }
        self.open(at)
    }

    /// Every entry of the old directory is bound into the new one; links are copied.
    fn lay_out(
        &self,
        at: &Path,
        old: &OwnedFd,
        new: &OwnedFd,
        entries: &[OsString],
        covered: &[&Path],
    ) -> Result<()> {
        for name in entries {
            let failed =
                |e: Errno| Error::step(format_args!("laying out {} anew", at.join(name).display()), e);
            // The entry itself, whatever it was when it was listed: a link is never followed here.
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let source = openat(old, name.as_os_str(), flags, Mode::empty()).map_err(failed)?;
            let kind =
                SFlag::from_bits_truncate(fstat(&source).map_err(failed)?.st_mode & SFlag::S_IFMT.bits());
            if kind == SFlag::S_IFLNK {
                let target = readlinkat(&source, "").map_err(failed)?;
                symlinkat(target.as_os_str(), new, name.as_os_str()).map_err(failed)?;
                continue;
            }
            make_at(new, Path::new(name), kind == SFlag::S_IFDIR).map_err(failed)?;
            if covered.contains(&at.join(name).as_path()) {
                continue;
            }
            let point = path_of(new).join(name);
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(&path_of(&source)), &point, none(), flags, none()).map_err(failed)?;
        }
        Ok(())
    }

    /// A skeleton of what is missing, merged over the directory.
    fn relay_by_overlay(&mut self, at: &Path, make: &[Make], number: usize, privileged: bool) -> Result<()> {
        let lower = self.open(at)?;
        self.stage()?;
        let skeleton = Path::new(STAGE).join(format!("skeleton{number}"));
        mkdir(&skeleton)?;
        make_skeleton(&skeleton, at, make.iter())?;
        let lower = path_of(&lower);
        let options =
            format!("lowerdir={}:{}{}", skeleton.display(), lower.display(), user_xattr(privileged));
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        do_mount(
            "overlaying a directory",
            Some(Path::new("hpc-launch")),
            &lower,
            Some("overlay"),
            flags,
            Some(&options),
        )?;
        if at == Path::new("/") {
            self.move_root(self.root.clone());
        }
        Ok(())
    }

    /// /run, with a directory of our own in it.
    fn tmpfs(&mut self, at: &Path, make: &[Make], furniture: &Furniture) -> Result<()> {
        let run = self.tmpfs_over(at)?;
        let own = own_directory();
        let failed = |e: Errno| Error::step("marking the sandbox", e);
        make_at(&run, own, true).map_err(failed)?;
        furniture.put(&run, own)?;
        if let Some(mark) = furniture.mark {
            symlinkat(mark, &run, &own.join(MARK_LINK)).map_err(failed)?;
        }
        let others: Vec<Make> = make.iter().filter(|m| m.at != at.join(own)).cloned().collect();
        self.make_all(at, &run, &others)?;
        self.run = Some(run);
        Ok(())
    }

    /// Makes what is missing below `at`, which is open already.
    fn make_all(&self, at: &Path, open: &Rc<OwnedFd>, make: &[Make]) -> Result<()> {
        for m in make {
            let (Some(parent), Some(name)) = (m.at.parent(), m.at.file_name()) else { continue };
            let parent = if parent == at { Rc::clone(open) } else { self.open(parent)? };
            match make_at(&parent, Path::new(name), m.directory) {
                Ok(()) => {}
                // What exists already is not what was planned: the image is being changed.
                Err(e) => return Err(Error::step(format_args!("making {}", m.at.display()), e)),
            }
        }
        Ok(())
    }

    /// Read-only, with everything that is mounted below: a bind's flags are each mount's own.
    fn read_only_below(&self, at: &Path) -> Result<()> {
        let top = self.open(at)?;
        remount(&top, MsFlags::MS_RDONLY, "making a bind read-only")?;
        let prefix = self.root.join(at.strip_prefix("/").unwrap_or(at));
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Error::step("reading /proc/self/mountinfo", e))?;
        for line in table.lines() {
            let Some(point) = line.split(' ').nth(4).map(unescape) else { continue };
            if point != prefix && point.starts_with(&prefix) {
                let inside = Path::new("/").join(point.strip_prefix(&self.root).unwrap_or(&point));
                let below = self.open(&inside)?;
                remount(&below, MsFlags::MS_RDONLY, "making a bind read-only")?;
            }
        }
        Ok(())
    }

    fn enter(&self) -> Result<()> {
        if self.apart {
            // Nested containers of the user may want to bind the root again.
            self.set_apart(MsFlags::MS_PRIVATE)?;
        }
        // Not pivot_root and a detached unmount: that waits for every CPU (synchronize_rcu_expedited in
        // namespace_unlock), 17 ms for each of 64 ranks at once, and an initramfs cannot be pivoted away.
        // A sibling's setns ends on the topmost mount of `/` all the same (mntns_install, LOOKUP_DOWN),
        // and what lies below ends with the namespace.
        chdir(&self.root).map_err(|e| Error::step("entering the new root", e))?;
        do_mount(
            "moving the new root over the old",
            Some(Path::new(".")),
            Path::new("/"),
            None,
            MsFlags::MS_MOVE,
            None,
        )?;
        chroot(".").map_err(|e| Error::step("chroot", e))?;
        chdir("/").map_err(|e| Error::step("entering the new root", e))
    }
}

/// [`MARK_DIRECTORY`] within /run.
fn own_directory() -> &'static Path {
    Path::new(MARK_DIRECTORY.rsplit('/').next().unwrap_or_default())
}

/// What is to be made in a root that takes writes.
fn made_beneath(steps: &[Step]) -> Vec<&Make> {
    let make = |step| match step {
        &Step::Relay { by: Relay::Writable | Relay::Beneath, ref make, .. } => make.as_slice(),
        _ => &[],
    };
    steps.iter().flat_map(make).collect()
}

/// Makes what is missing below `at` in a directory that will be merged with it.
pub(super) fn make_skeleton<'a>(
    skeleton: &Path,
    at: &Path,
    make: impl Iterator<Item = &'a Make>,
) -> Result<()> {
    for m in make {
        let Ok(rest) = m.at.strip_prefix(at) else { continue };
        let mut path = skeleton.to_owned();
        let mut names = rest.iter().peekable();
        while let Some(name) = names.next() {
            path.push(name);
            match names.peek() {
                None if !m.directory => make_file(&path)?,
                // A directory above it may exist in the image: here it is made to be merged.
                _ if path.is_dir() => {}
                _ => mkdir(&path)?,
            }
        }
    }
    Ok(())
}

/// Where something else will be mounted anyway.
fn covered(steps: &[Step]) -> Vec<&Path> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::Bind { at, .. } | Step::Tmpfs { at, .. } => Some(at.as_path()),
            _ => None,
        })
        .collect()
}

//! Paths as the container will see them: an image's root with other trees laid over it, resolved
//! inside and never outside.
//!
//! A [`View`] is the mount table of a sandbox that need not exist yet: layer 0 is the image, the
//! others are what will be bound over it. Symbolic links are followed by hand, one component at a
//! time, each opened `O_PATH|O_NOFOLLOW` relative to the directory before it, so that neither an
//! absolute link, nor `..`, nor a file swapped meanwhile leads out (a link that names a magic link
//! of /proc is read as text, like any other). Where openat2(2) exists, a path without links costs
//! one call.

mod entry;
mod record;

use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, fstat, fstatat};

pub use self::entry::{Entry, Kind};
use self::entry::{entry, fd_path, read_link};
pub use self::record::{Again, Record, Side, Stamp};
use crate::error::{Error, Result};

/// As in the kernel (include/linux/namei.h, MAXSYMLINKS).
const MAX_LINKS: usize = 40;
/// As in the kernel (include/uapi/linux/limits.h).
const PATH_MAX: usize = 4096;

/// The answer to a look-up.
#[derive(Debug)]
pub enum Lookup {
    /// It is there.
    Exists(Entry),
    /// It is not: `parent` is, and `rest` below it would have to be made.
    Missing {
        /// The deepest existing directory, without links.
        parent: Entry,
        /// What is missing below it, one component or more.
        rest: PathBuf,
    },
}

#[derive(Clone, Debug)]
enum Source {
    Tree(Rc<OwnedFd>),
    /// A path of the host, opened when something is looked for in it.
    Path(PathBuf, OnceCell<Rc<OwnedFd>>),
    /// A directory that will be made, with nothing in it (a fresh tmpfs).
    Empty,
}

/// What one call to openat2 can tell.
enum Direct {
    Exists(Entry),
    /// It is not there, and no link is on the way as far as the way goes.
    Missing,
    /// There are links, or openat2 is not to be had: walk.
    Unknown,
}

impl Source {
    /// The tree's root; none for what is empty.
    fn tree(&self) -> Result<Option<&Rc<OwnedFd>>> {
        match self {
            Source::Tree(fd) => Ok(Some(fd)),
            Source::Path(path, opened) => {
                if opened.get().is_none() {
                    let fd = openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                        .map_err(|e| Error::io("open", path, e))?;
                    let _ = opened.set(Rc::new(fd));
                }
                Ok(opened.get())
            }
            Source::Empty => Ok(None),
        }
    }
}

#[derive(Clone, Debug)]
struct Layer {
    at: PathBuf,
    source: Source,
    /// Where the source lies, for the record.
    origin: (Side, PathBuf),
}

/// An image root and what is laid over it.
#[derive(Debug)]
pub struct View {
    layers: Vec<Layer>,
    openat2: Cell<bool>,
    /// What was found to be a link, and where it leads, or to be none; forgotten when a layer is added.
    links: RefCell<BTreeMap<PathBuf, Option<PathBuf>>>,
    /// Where what is looked at is written down.
    record: Option<Rc<RefCell<Record>>>,
}

impl View {
    /// A view of the directory `root` of the host, alone: an image's.
    pub fn open(root: &Path) -> Result<View> {
        View::of(root, (Side::Image, PathBuf::from("/")))
    }

    /// The host's own root.
    pub fn host() -> Result<View> {
        View::of(Path::new("/"), (Side::Host, PathBuf::from("/")))
    }

    fn of(root: &Path, origin: (Side, PathBuf)) -> Result<View> {
        let fd = openat(AT_FDCWD, root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|e| Error::io("open", root, e))?;
        let layers = vec![Layer { at: PathBuf::from("/"), source: Source::Tree(Rc::new(fd)), origin }];
        Ok(View { layers, openat2: Cell::new(true), links: RefCell::default(), record: None })
    }

    /// The image's root, or the host's.
    pub fn root(&self) -> Result<Rc<OwnedFd>> {
        let root = self.layers[0].source.tree()?;
        Ok(Rc::clone(root.expect("a view begins with a tree")))
    }

    /// From now on everything that is looked at is written down there.
    pub fn record(&mut self, record: &Rc<RefCell<Record>>) {
        self.record = Some(Rc::clone(record));
    }

    /// The image alone, without what is laid over it.
    pub fn base(&self) -> View {
        View {
            layers: self.layers[..1].to_vec(),
            openat2: self.openat2.clone(),
            links: RefCell::default(),
            record: self.record.clone(),
        }
    }

    /// The same view, over which more can be laid.
    pub fn fork(&self) -> View {
        View {
            layers: self.layers.clone(),
            openat2: self.openat2.clone(),
            links: RefCell::new(self.links.borrow().clone()),
            record: self.record.clone(),
        }
    }

    fn add_layer(&mut self, at: &Path, source: Source, origin: PathBuf) {
        self.layers.push(Layer { at: at.to_owned(), source, origin: (Side::Host, origin) });
        self.links.borrow_mut().clear();
    }

    /// Lays an opened file or directory of the host (O_PATH will do), whose path is `origin`, over `at`, which
    /// must be a link-free path of this view (from [`View::lookup`]).
    pub fn lay(&mut self, at: &Path, source: Rc<OwnedFd>, origin: &Path) {
        self.add_layer(at, Source::Tree(source), origin.to_owned());
    }

    /// As [`View::lay`], with an absolute path of the host, which is opened only if something below it is
    /// looked for.
    pub fn lay_path(&mut self, at: &Path, source: &Path) {
        self.add_layer(at, Source::Path(source.to_owned(), OnceCell::new()), source.to_owned());
    }

    /// Lays an empty directory over `at` (a fresh tmpfs).
    pub fn lay_empty(&mut self, at: &Path) {
        self.add_layer(at, Source::Empty, PathBuf::new());
    }

    /// Writes down an object.
    fn note(&self, entry: &Entry) {
        let (Some(record), Some(stamp)) = (&self.record, entry.stamp) else { return };
        let (side, path) = self.origin(entry.layer, &entry.path);
        record.borrow_mut().add(side, path, stamp);
    }

    /// Where something lies.
    fn origin(&self, layer: usize, path: &Path) -> (Side, PathBuf) {
        let Layer { at, origin: (side, origin), .. } = &self.layers[layer];
        let rest = path.strip_prefix(at).unwrap_or(path);
        (*side, if rest.as_os_str().is_empty() { origin.clone() } else { origin.join(rest) })
    }

    /// Writes down that something is missing.
    fn note_missing(&self, parent: &Entry, rest: &Path) {
        let (Some(record), Some(stamp)) = (&self.record, parent.stamp) else { return };
        let directory = self.origin(parent.layer, &parent.path);
        record.borrow_mut().add_name(directory, stamp, rest, None);
    }

    /// Writes down a link, by its link-free path.
    fn note_link(&self, layer: usize, path: &Path) {
        let Some(record) = &self.record else { return };
        let (side, path) = self.origin(layer, path);
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return };
        let root = &self.layers[layer];
        // The same layer holds both: where a layer begins there is no link.
        let look = |path: &Path| {
            let (side_of_root, origin) = &root.origin;
            debug_assert_eq!(*side_of_root, side);
            let rest = path.strip_prefix(origin).ok()?;
            let fd = root.source.tree().ok()??;
            let stat = match rest.as_os_str().is_empty() {
                true => fstat(&**fd),
                false => fstatat(&**fd, rest, AtFlags::AT_SYMLINK_NOFOLLOW),
            };
            stat.ok().map(|stat| Stamp::of(&stat))
        };
        if let (Some(stamp), Some(link)) = (look(directory), look(&path)) {
            record.borrow_mut().add_name((side, directory.to_owned()), stamp, Path::new(name), Some(link));
        }
    }

    fn note_lookup(&self, found: &Lookup) {
        match found {
            Lookup::Exists(entry) => self.note(entry),
            Lookup::Missing { parent, rest } => self.note_missing(parent, rest),
        }
    }

    /// The layer that answers for `path`, and the path below it. Later layers cover earlier ones.
    fn layer_of<'p>(&self, path: &'p Path) -> (usize, &'p Path) {
        let bytes = path.as_os_str().as_bytes();
        let mut best = 0;
        let mut depth = 0;
        // Bytes, not components: this is asked for every look-up and every layer.
        for (i, layer) in self.layers.iter().enumerate().skip(1) {
            let at = layer.at.as_os_str().as_bytes();
            let below = bytes.starts_with(at) && matches!(bytes.get(at.len()), None | Some(b'/'));
            if below && at.len() >= depth {
                (best, depth) = (i, at.len());
            }
        }
        let rest = &bytes[depth..];
        (best, Path::new(OsStr::from_bytes(rest.strip_prefix(b"/").unwrap_or(rest))))
    }

    /// Finds `path` (taken from `/` when relative), following every link inside the view.
    pub fn lookup(&self, path: &Path) -> Result<Lookup> {
        let found = self.walk(path, true)?;
        self.note_lookup(&found);
        Ok(found)
    }

    /// As [`View::lookup`], but a link in the last place is itself the answer.
    pub fn lookup_nofollow(&self, path: &Path) -> Result<Lookup> {
        let found = self.walk(path, false)?;
        self.note_lookup(&found);
        Ok(found)
    }

    /// The entry, or `None` when it is missing or its path leads through something that is no directory.
    pub fn find(&self, path: &Path) -> Result<Option<Entry>> {
        let found = self.seek(path)?;
        match &found {
            Some(entry) => self.note(entry),
            // What answered may not have said where the way ended.
            None if self.record.is_some() => match self.walk(path, true) {
                Ok(missing) => self.note_lookup(&missing),
                Err(Error::NotADirectory { path }) => {
                    if let Ok(Some(entry)) = self.seek(&path) {
                        self.note(&entry);
                    }
                }
                Err(_) => {}
            },
            None => {}
        }
        Ok(found)
    }

    fn seek(&self, path: &Path) -> Result<Option<Entry>> {
        if path.as_os_str().len() <= PATH_MAX {
            match self.direct(&plain(path))? {
                Direct::Exists(entry) => return Ok(Some(entry)),
                Direct::Missing => return Ok(None),
                Direct::Unknown => {}
            }
        }
        match self.walk(path, true) {
            Ok(Lookup::Exists(e)) => Ok(Some(e)),
            Ok(Lookup::Missing { .. }) | Err(Error::NotADirectory { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn walk(&self, path: &Path, follow_last: bool) -> Result<Lookup> {
        if path.as_os_str().len() > PATH_MAX {
            return Err(Error::TooLong { path: path.to_owned() });
        }
        let path = &*plain(path);
        match self.direct(path)? {
            Direct::Exists(entry) => return Ok(Lookup::Exists(entry)),
            // No link on the way, so the parents have none either: the deepest one that exists is near.
            Direct::Missing => {
                for parent in path.ancestors().skip(1) {
                    if let Direct::Exists(parent) = self.direct(parent)? {
                        let rest = path.strip_prefix(&parent.path).unwrap_or(path).to_owned();
                        return match parent.kind {
                            Kind::Directory => Ok(Lookup::Missing { parent, rest }),
                            _ => Err(Error::NotADirectory { path: parent.path }),
                        };
                    }
                }
            }
            Direct::Unknown => {}
        }
        match self.through_links(path, follow_last)? {
            Some(found) => Ok(found),
            None => self.walk_by_hand(path, follow_last),
        }
    }

    /// Follows links without opening what lies between: each is read where it stands, put in its place, and
    /// openat2 judges the whole path again. `None`: this path needs the walk.
    fn through_links(&self, path: &Path, follow_last: bool) -> Result<Option<Lookup>> {
        if !self.openat2.get() || !follow_last {
            return Ok(None);
        }
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Some(next) = self.substitute(&path) else { return Ok(None) };
            if next.as_os_str().len() > PATH_MAX || has_parent_references(&next) {
                return Ok(None);
            }
            path = next;
            match self.direct(&path)? {
                Direct::Exists(entry) => return Ok(Some(Lookup::Exists(entry))),
                Direct::Missing => return Ok(None),
                Direct::Unknown => {}
            }
        }
        Err(Error::LinkLoop { path })
    }

    /// The path with its first link replaced by what the link says.
    fn substitute(&self, path: &Path) -> Option<PathBuf> {
        let mut here = PathBuf::from("/");
        let mut rest = path.components().skip(1);
        while let Some(name) = rest.next() {
            here.push(name);
            if let Some(known) = self.links.borrow().get(&here) {
                match known {
                    Some(target) => return Some(target.components().chain(rest).collect()),
                    None => continue,
                }
            }
            let (index, below) = self.layer_of(&here);
            let root = self.layers[index].source.tree().ok()?;
            let target = match root.filter(|_| !below.as_os_str().is_empty()) {
                // Where a layer begins, or nothing is, there is no link.
                None => None,
                Some(root) => match readlinkat(&**root, below) {
                    Ok(text) => {
                        let text = PathBuf::from(text);
                        Some(plain(&here.parent().unwrap_or(Path::new("/")).join(text)).into_owned())
                    }
                    Err(Errno::EINVAL) => None,
                    Err(_) => return None,
                },
            };
            self.links.borrow_mut().insert(here.clone(), target.clone());
            if target.is_some() {
                self.note_link(index, &here);
            }
            if let Some(target) = target {
                return Some(target.components().chain(rest).collect());
            }
        }
        None
    }

    fn walk_by_hand(&self, path: &Path, follow_last: bool) -> Result<Lookup> {
        let mut pending: VecDeque<OsString> = components(path);
        let mut here = vec![self.layer_root(Path::new("/"), 0)?];
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                if here.len() > 1 {
                    here.pop();
                }
                continue;
            }
            let parent = here.last().expect("the root is never popped");
            if parent.kind != Kind::Directory {
                return Err(Error::NotADirectory { path: parent.path.clone() });
            }
            let full = parent.path.join(&name);
            let next = match self.layers.iter().rposition(|l| l.at == full) {
                Some(layer) => Some(self.layer_root(&full, layer)?),
                None => self.child(parent, &name, full)?,
            };
            let Some(next) = next else {
                let parent = here.pop().expect("the root is never popped");
                // Below something that is missing there are no links to follow; `..` is arithmetic.
                let mut rest = vec![name];
                for name in pending {
                    if name == ".." {
                        rest.pop();
                    } else {
                        rest.push(name);
                    }
                }
                if rest.is_empty() {
                    return Ok(Lookup::Exists(parent));
                }
                return Ok(Lookup::Missing { parent, rest: rest.iter().collect() });
            };
            if next.kind == Kind::Symlink && (follow_last || !pending.is_empty()) {
                self.note_link(next.layer, &next.path);
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::LinkLoop { path: path.to_owned() });
                }
                let target = read_link(&next)?;
                if target.is_absolute() {
                    here.truncate(1);
                }
                for name in components(&target).into_iter().rev() {
                    pending.push_front(name);
                }
                if pending.iter().map(|n| n.len() + 1).sum::<usize>() > PATH_MAX {
                    return Err(Error::TooLong { path: path.to_owned() });
                }
                continue;
            }
            here.push(next);
        }
        Ok(Lookup::Exists(here.pop().expect("the root is never popped")))
    }

    /// A path without any link in one system call.
    fn direct(&self, path: &Path) -> Result<Direct> {
        if !self.openat2.get() || has_parent_references(path) {
            return Ok(Direct::Unknown);
        }
        let (index, rest) = self.layer_of(path);
        let Some(root) = self.layers[index].source.tree()? else {
            return match rest.as_os_str().is_empty() {
                true => self.layer_root(path, index).map(Direct::Exists),
                false => Ok(Direct::Missing),
            };
        };
        if rest.as_os_str().is_empty() {
            return self.layer_root(path, index).map(Direct::Exists);
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
        match openat2(&**root, rest, how) {
            Ok(fd) => entry(Rc::new(fd), path.to_owned(), index).map(Direct::Exists),
            Err(Errno::ENOENT) => Ok(Direct::Missing),
            Err(Errno::ENOSYS) | Err(Errno::EPERM) => {
                self.openat2.set(false);
                Ok(Direct::Unknown)
            }
            Err(_) => Ok(Direct::Unknown),
        }
    }

    /// Whether a path leads somewhere in the base or in the view, links followed. The base is asked first,
    /// in one system call: what is there may still be covered by another layer, which the caller finds
    /// out when it uses it.
    pub fn exists(&self, path: &Path) -> Result<bool> {
        if self.openat2.get()
            && self.record.is_none()
            && let Some(root) = self.layers[0].source.tree()?
        {
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            if openat2(&**root, path, how).is_ok() {
                return Ok(true);
            }
        }
        Ok(self.find(path)?.is_some())
    }

    fn layer_root(&self, at: &Path, layer: usize) -> Result<Entry> {
        match self.layers[layer].source.tree()? {
            None => Ok(Entry {
                path: at.to_owned(),
                kind: Kind::Directory,
                mode: 0o755,
                id: (0, 0),
                size: 0,
                layer,
                stamp: None,
                fd: None,
            }),
            Some(fd) => entry(Rc::clone(fd), at.to_owned(), layer),
        }
    }

    fn child(&self, parent: &Entry, name: &OsStr, full: PathBuf) -> Result<Option<Entry>> {
        let Some(dir) = &parent.fd else { return Ok(None) };
        match openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => entry(Rc::new(fd), full, parent.layer).map(Some),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(Error::io("look up", &full, e)),
        }
    }

    /// Opens a regular file for reading. Devices, FIFOs and sockets of an image are never opened.
    pub fn open_file(&self, entry: &Entry) -> Result<File> {
        let (Some(fd), Kind::File) = (&entry.fd, entry.kind) else {
            return Err(Error::NotAFile { path: entry.path.clone(), is: entry.kind.article() });
        };
        if let Some(file) = self.open_again(entry) {
            return Ok(file);
        }
        File::open(fd_path(fd)).map_err(|e| Error::io("read", &entry.path, e))
    }

    /// By its path, which spares the kernel an entry in /proc/self/fd; `None` if that leads to another
    /// file by now. (Who swaps it for a FIFO keeps nobody waiting.)
    fn open_again(&self, entry: &Entry) -> Option<File> {
        let (layer, rest) = self.layer_of(&entry.path);
        if !self.openat2.get() || rest.as_os_str().is_empty() || layer != entry.layer {
            return None;
        }
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
        let fd = openat2(&**self.layers[layer].source.tree().ok()??, rest, how).ok()?;
        let stat = fstat(&fd).ok()?;
        ((stat.st_dev, stat.st_ino) == entry.id).then(|| fd.into())
    }

    /// The first `limit` bytes of a regular file, or `None` if there is no such file.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(entry) = self.find(path)? else { return Ok(None) };
        // One more than its size, so that the end is found in the same call.
        let mut bytes = Vec::with_capacity(entry.size.min(limit) as usize + 1);
        self.open_file(&entry)?
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", &entry.path, e))?;
        Ok(Some(bytes))
    }
}

/// From the root, without `.` and doubled slashes.
fn plain(path: &Path) -> Cow<'_, Path> {
    let bytes = path.as_os_str().as_bytes();
    let odd = |pair: &[u8]| pair[0] == b'/' && matches!(pair[1], b'/' | b'.');
    if bytes.len() > 1 && bytes[0] == b'/' && !bytes.ends_with(b"/") && !bytes.windows(2).any(odd) {
        return Cow::Borrowed(path);
    }
    let mut whole = PathBuf::from("/");
    whole.extend(path.components().filter(|c| !matches!(c, Component::RootDir | Component::CurDir)));
    Cow::Owned(whole)
}

fn has_parent_references(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.windows(2).any(|pair| pair == b"..") && path.components().any(|c| c == Component::ParentDir)
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.as_os_str()
        .as_bytes()
        .split(|b| *b == b'/')
        .filter(|c| !c.is_empty() && *c != b".")
        .map(|c| OsStr::from_bytes(c).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Image(tempfile::TempDir);

    impl Image {
        fn new() -> Image {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
            std::fs::write(dir.path().join("usr/lib/x"), b"image").unwrap();
            Image(dir)
        }
        fn link(&self, target: &str, name: &str) -> &Image {
            symlink(target, self.0.path().join(name)).unwrap();
            self
        }
        fn view(&self) -> View {
            View::open(self.0.path()).unwrap()
        }
    }

    fn path_of(view: &View, path: &str) -> String {
        match view.lookup(Path::new(path)).unwrap() {
            Lookup::Exists(e) => e.path.display().to_string(),
            Lookup::Missing { parent, rest } => format!("{} + {}", parent.path.display(), rest.display()),
        }
    }

    #[test]
    fn links_stay_inside_whatever_they_say() {
        let image = Image::new();
        image.link("usr/lib", "lib").link("/usr/lib", "lib64").link("../../../../../usr", "up");
        image.link("/proc/self/root", "etc").link("/", "loop");
        let view = image.view();
        assert_eq!(path_of(&view, "/lib/x"), "/usr/lib/x");
        assert_eq!(path_of(&view, "/lib64/x"), "/usr/lib/x");
        assert_eq!(path_of(&view, "/up/lib/x"), "/usr/lib/x");
        assert_eq!(path_of(&view, "/loop/loop/loop/usr/../usr/lib/x"), "/usr/lib/x");
        // the image has no /proc of its own: nothing of the host answers
        assert_eq!(path_of(&view, "/etc/passwd"), "/ + proc/self/root/passwd");
        assert_eq!(path_of(&view, "/../../../usr/lib/../lib/x"), "/usr/lib/x");
    }

    #[test]
    fn openat2_and_the_walk_by_hand_agree() {
        let image = Image::new();
        image.link("usr/lib", "lib").link("x", "usr/lib/y").link("../nowhere/z", "usr/dangling");
        let fast = image.view();
        let slow = image.view();
        slow.openat2.set(false);
        for path in
            ["/", "/usr", "/lib/x", "/lib/y", "/usr/lib/x", "/no", "/usr/no/deeper", "/usr/dangling", "usr"]
        {
            assert_eq!(path_of(&fast, path), path_of(&slow, path), "{path}");
        }
        assert_eq!(path_of(&fast, "/usr/dangling"), "/ + nowhere/z");
    }

    #[test]
    fn loops_and_files_in_the_middle_are_errors_that_name_the_path() {
        let image = Image::new();
        image.link("b", "a").link("a", "b");
        let view = image.view();
        let e = view.lookup(Path::new("/a/x")).unwrap_err();
        assert!(e.to_string().contains("go round in circles"), "{e}");
        let e = view.lookup(Path::new("/usr/lib/x/y")).unwrap_err();
        assert_eq!(e.to_string(), "/usr/lib/x is not a directory");
    }

    #[test]
    fn a_layer_covers_and_links_cross_layers() {
        let image = Image::new();
        image.link("/home/u/data", "data");
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("data")).unwrap();
        std::fs::write(host.path().join("data/f"), b"host").unwrap();
        symlink("/usr/lib/x", host.path().join("data/back")).unwrap();
        let mut view = image.view();
        view.lay_empty(Path::new("/home"));
        let source = File::open(host.path()).unwrap();
        view.lay(Path::new("/home/u"), Rc::new(source.into()), host.path());
        assert_eq!(path_of(&view, "/data/f"), "/home/u/data/f");
        assert_eq!(view.read(Path::new("/data/f"), 100).unwrap().unwrap(), b"host");
        assert_eq!(view.read(Path::new("/data/back"), 100).unwrap().unwrap(), b"image");
        assert_eq!(path_of(&view, "/home/v"), "/home + v");
        assert_eq!(path_of(&view, "/home/u/../../usr/lib/x"), "/usr/lib/x");
    }

    #[test]
    fn odd_spellings_of_a_path_are_one_path() {
        for (odd, whole) in [
            ("/", "/"),
            ("", "/"),
            ("//", "/"),
            ("a", "/a"),
            ("./a/./b", "/a/b"),
            ("/a//b/", "/a/b"),
            ("/.a/b.c", "/.a/b.c"),
            ("/a/..", "/a/.."),
            ("/..a", "/..a"),
        ] {
            assert_eq!(&*plain(Path::new(odd)), Path::new(whole), "{odd}");
        }
        assert!(
            has_parent_references(Path::new("/a/../b")) && !has_parent_references(Path::new("/a/..b/c.."))
        );
    }

    #[test]
    fn special_files_are_not_opened() {
        let image = Image::new();
        nix::unistd::mkfifo(&image.0.path().join("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
        let e = image.view().read(Path::new("/fifo"), 10).unwrap_err();
        assert_eq!(e.to_string(), "/fifo is a device, FIFO or socket, not a regular file");
    }

    #[test]
    fn listing_is_bounded() {
        let image = Image::new();
        for i in 0..20 {
            std::fs::write(image.0.path().join(format!("usr/{i}")), b"").unwrap();
        }
        let view = image.view();
        let Lookup::Exists(usr) = view.lookup(Path::new("/usr")).unwrap() else { panic!() };
        let (names, more) = usr.list(5).unwrap();
        assert_eq!((names.len(), more), (5, true));
        let (names, more) = usr.list(100).unwrap();
        assert_eq!((names.len(), more), (21, false));
    }
}

//! From what is wanted to the steps that lead there. Looks, and changes nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use abi_probe::inject::Injection;
use abi_probe::rootfs::{Entry, Kind, Lookup, View};

use super::sources::{Sources, Want, Weight};
use super::{Make, Relay, Step, table};
use crate::error::{Code, Error, Result, in_image};
use crate::image::Image;

/// Up to so many entries of a directory are bound one by one: each costs about 17 µs with its end, an
/// overlay 70 µs.
const FEW_ENTRIES: usize = 4;
/// At the root more: an overlay there would lie under every file that the program opens.
const FEW_AT_THE_ROOT: usize = 64;
/// Where overlays are not to be had, up to so many are.
const MANY_ENTRIES: usize = 4096;

/// Steps and what a person should know about them.
#[derive(Default)]
pub struct Layout {
    /// Relays, tmpfs and binds, in order.
    pub steps: Vec<Step>,
    /// What was left out.
    pub notes: Vec<String>,
}

/// Who will make the entries of a directory that does not exist yet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Maker {
    Relay(PathBuf),
    Run,
}

/// A mount point: its path, and the object if it exists in the image.
type Target = (PathBuf, Option<Rc<OwnedFd>>);

/// A plan in the making.
pub struct Planner<'a> {
    view: &'a mut View,
    image: &'a Image,
    /// Made directories, and who makes them.
    made: Vec<(PathBuf, Maker)>,
    makes: BTreeMap<Maker, Vec<Make>>,
    run: PathBuf,
    binds: Vec<Step>,
    links: Option<Step>,
    /// How seriously each of the binds is wanted.
    weights: Vec<Weight>,
    notes: Vec<String>,
}

impl<'a> Planner<'a> {
    /// Plans the sandbox's inside. `view` is the image alone; afterwards it is what the program will see.
    pub fn new(view: &'a mut View, image: &'a Image, sources: &Sources) -> Result<Planner<'a>> {
        let mut planner = Planner {
            view,
            image,
            made: Vec::new(),
            makes: BTreeMap::new(),
            run: PathBuf::new(),
            binds: Vec::new(),
            links: None,
            weights: Vec::new(),
            notes: Vec::new(),
        };
        planner.run_directory()?;
        for (handle, (want, kind)) in sources.wanted.iter().enumerate() {
            planner.bind(want, handle, *kind, sources)?;
        }
        Ok(planner)
    }

    /// What the program will see, so far.
    pub fn view(&self) -> &View {
        self.view
    }

    /// The sandbox's own directory, without links.
    pub fn private(&self) -> PathBuf {
        self.run.join("hpc-launch")
    }

    /// Something more of the host.
    pub fn show(&mut self, want: &Want, sources: &mut Sources) -> Result<()> {
        let (handle, kind) = sources.add(want.clone())?;
        self.bind(want, handle, kind, sources)
    }

    /// The host's libraries, where their proof wants them.
    pub fn inject(&mut self, injection: &Injection, sources: &mut Sources) -> Result<()> {
        for shown in &injection.shown {
            let want = Want {
                source: shown.source.clone(),
                at: shown.at.clone(),
                // Root's writes to what looks like the image's would reach the host.
                read_only: true,
                why: shown.why.clone(),
                weight: Weight::Injected,
            };
            self.show(&want, sources)?;
        }
        let at = &injection.library_path;
        if let Lookup::Missing { parent, rest } = self.view.lookup(at).map_err(in_image(&self.image.given))? {
            self.make(&parent, &rest, true);
        }
        self.links = Some(Step::Links { at: at.clone(), links: injection.links.clone() });
        Ok(())
    }

    fn run_directory(&mut self) -> Result<()> {
        let entry = match self.view.lookup(Path::new(table::RUN)).map_err(in_image(&self.image.given))? {
            Lookup::Exists(entry) => {
                if entry.kind != Kind::Directory || entry.path == Path::new("/") {
                    return Err(self.bad_layout(&format!(
                        "{} leads to {}, which is {}",
                        table::RUN,
                        entry.path.display(),
                        if entry.kind == Kind::Directory { "the root itself" } else { entry.kind.article() },
                    )));
                }
                entry.path
            }
            Lookup::Missing { parent, rest } => {
                self.make(&parent, &rest, true).ok_or_else(|| self.bad_layout("/run cannot be made"))?
            }
        };
        self.view.lay_empty(&entry);
        self.made.push((entry.clone(), Maker::Run));
        self.run = entry;
        self.makes.entry(Maker::Run).or_default();
        Ok(())
    }

    fn bad_layout(&self, why: &str) -> Error {
        Error::new(
            Code::ImageLayout,
            format!("in the image {}: {why}", self.image.given.display()),
            "repair the image: hpc-launch needs /run, /dev, /proc, /sys and /tmp to be directories, or to be missing",
        )
    }

    fn bind(&mut self, want: &Want, handle: usize, kind: Kind, sources: &Sources) -> Result<()> {
        let (at, point) = match self.target(want, kind, sources.ids[handle]) {
            Ok(Some(target)) => target,
            Ok(None) => return Ok(()),
            Err(why) => {
                let what =
                    format!("{} cannot be shown at {}: {why}", want.source.display(), want.at.display());
                return match &want.weight {
                    Weight::Asked(origin) => Err(Error::new(
                        Code::BindTarget,
                        format!("{what} ({origin})"),
                        "choose another place inside: --bind SRC:DST",
                    )),
                    Weight::Required => Err(self.bad_layout(&what)),
                    Weight::Injected => Err(Error::new(
                        Code::ImageLayout,
                        format!(
                            "in the image {}: for the host's libraries, {what}",
                            self.image.given.display()
                        ),
                        "repair the image, or keep the host's libraries out: --mpi=image --fabric=image",
                    )),
                    Weight::IfPossible => {
                        self.notes.push(what);
                        Ok(())
                    }
                };
            }
        };
        match sources.held(handle) {
            Some(fd) => {
                let fd = fd.try_clone().map_err(|e| want.no_source(e))?;
                self.view.lay(&at, Rc::new(fd), &want.source);
            }
            None => self.view.lay_path(&at, &want.source),
        }
        self.weights.push(want.weight.clone());
        self.binds.push(Step::Bind {
            source: want.source.clone(),
            at,
            read_only: want.read_only,
            why: want.why.clone(),
            handle,
            point,
            directory: kind == Kind::Directory,
            alone: want.weight == Weight::Injected,
        });
        Ok(())
    }

    /// The link-free path to bind at, and the object there if it is the image's; `None` when the very
    /// source is visible there already.
    fn target(
        &mut self,
        want: &Want,
        kind: Kind,
        id: (u64, u64),
    ) -> std::result::Result<Option<Target>, String> {
        match self.view.lookup(&want.at).map_err(|e| format!("inside, {e}"))? {
            Lookup::Exists(entry) => {
                if entry.id == id && (!want.read_only || want.weight == Weight::Injected) {
                    return Ok(None);
                }
                if entry.path == Path::new("/") {
                    return Err("it leads to the root itself".to_owned());
                }
                if (entry.kind == Kind::Directory) != (kind == Kind::Directory) {
                    return Err(format!("{} is {} inside", entry.path.display(), entry.kind.article()));
                }
                let of_host = entry.layer != 0 && entry.fd().is_some();
                if of_host && !matches!(want.weight, Weight::Asked(_) | Weight::Injected) {
                    return Err(format!(
                        "inside, {} is the host's already, by a link of the image",
                        entry.path.display()
                    ));
                }
                let path = entry.path.clone();
                let point = (entry.layer == 0).then(|| entry.into_fd()).flatten();
                Ok(Some((path, point)))
            }
            Lookup::Missing { parent, rest } => match self.make(&parent, &rest, kind == Kind::Directory) {
                Some(at) => Ok(Some((at, None))),
                None => {
                    Err(format!("it would have to be made in {}, which is the host's", parent.path.display()))
                }
            },
        }
    }

    /// Plans the missing part of a path; `None` when it would have to be made on the host.
    fn make(&mut self, parent: &Entry, rest: &Path, directory: bool) -> Option<PathBuf> {
        let maker = if parent.layer == 0 {
            Maker::Relay(parent.path.clone())
        } else if parent.fd().is_none() {
            let owner = |(at, _): &&(PathBuf, Maker)| parent.path.starts_with(at);
            self.made.iter().filter(owner).max_by_key(|(at, _)| at.as_os_str().len())?.1.clone()
        } else {
            return None;
        };
        let mut at = parent.path.clone();
        let mut names = rest.iter().peekable();
        while let Some(name) = names.next() {
            at.push(name);
            let is_directory = directory || names.peek().is_some();
            self.makes
                .entry(maker.clone())
                .or_default()
                .push(Make { at: at.clone(), directory: is_directory });
            if is_directory {
                self.view.lay_empty(&at);
                self.made.push((at.clone(), maker.clone()));
            }
        }
        Some(at)
    }

    /// A link of the image may lead a mount point below a path that is covered later: what should be
    /// there would be missing in silence.
    fn refuse_hidden(&self) -> Result<()> {
        fn at(step: &Step) -> &Path {
            match step {
                Step::Bind { at, .. } => at,
                _ => Path::new(""),
            }
        }
        // Bytes first: of two paths without links most differ in their first component.
        let is_below = |path: &Path, above: &Path| {
            path.as_os_str().as_bytes().starts_with(above.as_os_str().as_bytes()) && path.starts_with(above)
        };
        for (i, hidden) in self.binds.iter().enumerate() {
            for (j, cover) in self.binds.iter().enumerate().skip(i + 1) {
                // Who asks for a bind over one of ours wants it so.
                let meant =
                    matches!(self.weights[j], Weight::Asked(_)) || self.weights[i] == Weight::IfPossible;
                if !meant && is_below(at(hidden), at(cover)) {
                    return Err(self.bad_layout(&format!(
                        "by links of the image, what belongs at {} would be covered by what belongs at {}",
                        source_of(hidden),
                        source_of(cover),
                    )));
                }
            }
        }
        Ok(())
    }

    /// The steps.
    /// `writable`: how directories of a root that takes writes get their entries.
    pub fn finish(mut self, writable: Option<Relay>, overlays: fn() -> bool) -> Result<Layout> {
        self.refuse_hidden()?;
        let mut steps = Vec::new();
        let relaid: Vec<PathBuf> = self
            .makes
            .keys()
            .filter_map(|maker| match maker {
                Maker::Relay(at) => Some(at.clone()),
                Maker::Run => None,
            })
            .collect();
        for bind in &mut self.binds {
            if let Step::Bind { at, point, .. } = bind
                && (writable.is_some() || relaid.iter().any(|r| at.starts_with(r)))
            {
                *point = None;
            }
        }
        let run = self.makes.remove(&Maker::Run).unwrap_or_default();
        for (maker, make) in std::mem::take(&mut self.makes) {
            let Maker::Relay(at) = maker else { continue };
            let (by, entries, directory) = match writable {
                Some(by) => (by, Vec::new(), None),
                None => self.relay(&at, overlays)?,
            };
            steps.push(Step::Relay { at, by, make, entries, directory });
        }
        // As early as can be, that relays may share its memory: after those that would cover it.
        let covers = |step: &Step| matches!(step, Step::Relay { at, .. } if self.run.starts_with(at));
        let place = steps.iter().rposition(covers).map_or(0, |last| last + 1);
        steps.insert(place, Step::Tmpfs { at: self.run.clone(), why: table::RUN_WHY.to_owned(), make: run });
        steps.append(&mut self.binds);
        steps.extend(self.links.take());
        Ok(Layout { steps, notes: self.notes })
    }

    /// The means for a directory of the image, what is in it, and itself.
    fn relay(
        &self,
        at: &Path,
        overlays: fn() -> bool,
    ) -> Result<(Relay, Vec<OsString>, Option<Rc<OwnedFd>>)> {
        let image = self.view.base();
        let Some(entry) = image.find(at).map_err(in_image(&self.image.given))? else {
            return Ok((Relay::Tmpfs, Vec::new(), None));
        };
        let few = if at == Path::new("/") { FEW_AT_THE_ROOT } else { FEW_ENTRIES };
        let list = |limit| entry.list(limit).map_err(in_image(&self.image.given));
        match list(few)? {
            (names, false) => return Ok((Relay::Tmpfs, names, entry.into_fd())),
            (_, true) if overlays() => return Ok((Relay::Overlay, Vec::new(), None)),
            (_, true) => {}
        }
        match list(MANY_ENTRIES)? {
            (names, false) => Ok((Relay::Tmpfs, names, entry.into_fd())),
            (_, true) => Err(Error::new(
                Code::DirectoryTooWide,
                format!(
                    "mount points are missing in {} of the image {}, which has more than {MANY_ENTRIES} entries",
                    at.display(),
                    self.image.given.display()
                ),
                "make the missing directories in the image, or use a kernel of 5.11 or later, which can overlay it",
            )),
        }
    }
}

fn source_of(step: &Step) -> String {
    match step {
        Step::Bind { source, .. } => source.display().to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Options;
    use crate::config::Config;
    use crate::environ::Environ;
    use crate::plan::sources::Facts;
    use std::os::unix::fs::symlink;

    struct Case {
        dir: tempfile::TempDir,
    }

    impl Case {
        fn new(dirs: &[&str]) -> Case {
            let dir = tempfile::tempdir().unwrap();
            for d in dirs {
                std::fs::create_dir_all(dir.path().join(d)).unwrap();
            }
            Case { dir }
        }

        fn plan(&self, environ: &[(&str, &str)], binds: &[&str]) -> Result<Layout> {
            let environ = Environ::from_pairs(environ);
            let options = Options { bind: binds.iter().map(Into::into).collect(), ..Options::default() };
            let config = Config::load(&Environ::default(), Some(&options)).unwrap();
            let facts = Facts { uid: 4_000_000, cwd: None, environ: &environ, rank: None };
            let image = Image::open(self.dir.path()).unwrap();
            let sources = Sources::find(&config, &facts, &[])?;
            let mut view = View::open(self.dir.path()).unwrap();
            Planner::new(&mut view, &image, &sources)?.finish(None, || true)
        }
    }

    const USUAL: &[&str] = &["dev", "proc", "sys", "tmp", "run", "etc", "usr/bin"];

    fn binds(layout: &Layout) -> Vec<String> {
        layout
            .steps
            .iter()
            .filter_map(|s| match s {
                Step::Bind { at, .. } => Some(at.display().to_string()),
                _ => None,
            })
            .collect()
    }

    fn relays(layout: &Layout) -> Vec<(String, Vec<String>)> {
        layout
            .steps
            .iter()
            .filter_map(|s| match s {
                Step::Relay { at, make, .. } => Some((
                    at.display().to_string(),
                    make.iter().map(|m| m.at.display().to_string()).collect(),
                )),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn an_ordinary_image_needs_no_relay_of_its_root() {
        let layout = Case::new(USUAL).plan(&[], &[]).unwrap();
        assert!(binds(&layout).starts_with(&["/dev".into(), "/proc".into(), "/sys".into(), "/tmp".into()]));
        let relays = relays(&layout);
        assert_eq!(relays.len(), 1, "{relays:?}");
        assert_eq!(relays[0].0, "/etc");
        assert!(relays[0].1.contains(&"/etc/hosts".to_owned()));
    }

    #[test]
    fn missing_targets_are_made_together_in_the_nearest_parent() {
        let host = tempfile::tempdir().unwrap();
        let source = host.path().display();
        let bind = [format!("{source}:/data/a/b"), format!("{source}:/data/c"), format!("{source}:/usr/x")];
        let bind: Vec<&str> = bind.iter().map(String::as_str).collect();
        let layout = Case::new(USUAL).plan(&[], &bind).unwrap();
        let relays = relays(&layout);
        let of = |at: &str| relays.iter().find(|(a, _)| a == at).unwrap().1.clone();
        assert_eq!(of("/"), ["/data", "/data/a", "/data/a/b", "/data/c"]);
        assert_eq!(of("/usr"), ["/usr/x"]);
    }

    #[test]
    fn what_is_visible_already_is_not_bound_again() {
        let home = tempfile::tempdir_in("/tmp").unwrap();
        let layout = Case::new(USUAL).plan(&[("HOME", home.path().to_str().unwrap())], &[]).unwrap();
        assert!(!binds(&layout).contains(&home.path().display().to_string()));
    }

    #[test]
    fn links_of_the_image_lead_to_no_mount_over_the_host() {
        let case = Case::new(&["dev", "proc", "sys", "tmp", "run"]);
        symlink("/tmp", case.dir.path().join("etc")).unwrap();
        let layout = case.plan(&[], &[]).unwrap();
        assert!(
            binds(&layout).iter().all(|b| !b.starts_with("/tmp/") && !b.starts_with("/etc")),
            "{:?}",
            binds(&layout)
        );
        assert!(
            layout.notes.iter().any(|n| n.contains("/etc/hosts") && n.contains("which is the host's")),
            "{:?}",
            layout.notes
        );
    }

    #[test]
    fn bad_trees_and_bad_binds_are_errors_with_their_path() {
        let case = Case::new(&["dev", "proc", "sys", "tmp"]);
        std::fs::write(case.dir.path().join("run"), "").unwrap();
        let e = case.plan(&[], &[]).err().unwrap();
        assert_eq!(e.code, Code::ImageLayout);
        assert!(e.what.contains("/run leads to /run, which is a regular file"), "{}", e.what);

        let usual = Case::new(USUAL);
        for (bind, code, text) in [
            ("/nonexistent/x", Code::BindSource, "cannot bind /nonexistent/x (--bind)"),
            ("/tmp:/", Code::BindTarget, "leads to the root itself"),
            ("/tmp:/proc/self/nope/x", Code::BindTarget, "which is the host's"),
            ("/etc/hosts:/usr", Code::BindTarget, "/usr is a directory inside"),
            ("/tmp:rel", Code::Usage, "DST is not absolute"),
            ("/tmp:/x:rx", Code::Usage, "\"rx\" is neither ro nor rw"),
        ] {
            let e = usual.plan(&[], &[bind]).err().unwrap();
            assert_eq!(e.code, code, "{bind}: {}", e.what);
            assert!(e.what.contains(text), "{bind}: {}", e.what);
        }
    }

    #[test]
    fn a_wide_directory_is_overlaid() {
        let case = Case::new(USUAL);
        for i in 0..100 {
            std::fs::write(case.dir.path().join(format!("etc/{i}")), "").unwrap();
        }
        let layout = case.plan(&[], &[]).unwrap();
        assert!(matches!(layout.steps[1], Step::Relay { by: Relay::Overlay, .. }));
    }
}

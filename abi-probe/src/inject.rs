//! Proves that the host's MPI can replace the image's: lays it over the image, simulates the loader on the
//! result, and binds every symbol. What comes out is where each file must be for the program to load it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::bind::bind_all;
use crate::error::Result;
use crate::install::{Directory, Installation};
use crate::ldso::Loader;
use crate::linkmap::{Circumstances, LinkMap, Linked};
use crate::merge::{self, Merged, Preference, Reason};
use crate::mpi::{self, Detail, Mpi};
use crate::obstacle::{Obstacle, of_binding};
use crate::parts::{self, Role};
use crate::prober::{Probed, Prober};
use crate::rootfs::{Entry, Kind, Lookup, View};

/// Covering one of the image's copies may bring another to light; no real program needs more rounds.
const MAX_ROUNDS: usize = 8;

/// A directory or file of the host, to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// On the host, without links.
    pub source: PathBuf,
    /// Inside.
    pub at: PathBuf,
    /// Why.
    pub why: String,
    /// It covers a file of the image.
    pub covers: bool,
    /// A directory, else a file.
    pub directory: bool,
}

/// A name in the private directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// As libraries ask for it.
    pub name: String,
    /// Where it leads, inside.
    pub target: PathBuf,
    /// The same on the host.
    pub source: PathBuf,
    /// Why.
    pub why: String,
}

/// Where everything must be for the host's MPI to be loaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Injection {
    /// The host's MPI.
    pub mpi: Mpi,
    /// The image's, which it replaces.
    pub replaces: Option<Mpi>,
    /// Directories and files of the host.
    pub shown: Vec<Shown>,
    /// Names in the private directory.
    pub links: Vec<Link>,
    /// The private directory, first in LD_LIBRARY_PATH.
    pub library_path: PathBuf,
    /// The tree that an MPI which was moved must be told of.
    pub prefix: Option<PathBuf>,
    /// The C library is the host's, and why.
    pub libc: Option<String>,
    /// What a person should know.
    pub remarks: Vec<String>,
}

/// The answer.
#[derive(Debug)]
pub struct Outcome {
    /// What would be done.
    pub injection: Injection,
    /// Why it should not.
    pub obstacles: Vec<Obstacle>,
    /// The link map of the mixed process.
    pub map: LinkMap,
}

/// What is to be proved.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// As the program will see it.
    pub view: &'a View,
    /// The program.
    pub program: &'a Entry,
    /// How it is started; what it opens belongs to it.
    pub how: &'a Circumstances<'a>,
    /// A directory of the sandbox's own, without links, in which nothing is yet.
    pub private: &'a Path,
    /// The host.
    pub host: &'a Prober<'a>,
    /// The host's LD_LIBRARY_PATH.
    pub host_library_path: Option<&'a str>,
}

/// Proves it, or says why not. `None`: the program cannot be started at all.
pub fn prove(question: &Question, installation: &Installation) -> Result<Option<Outcome>> {
    let image = Prober::new(question.view);
    let names = installation.libraries.keys().chain(installation.parts.keys()).map(String::as_str);
    let mut opens: Vec<String> = question.how.opens.to_vec();
    opens.extend(names.chain(parts::LIBC.iter().copied()).map(String::from));
    let how = Circumstances { opens: &opens, global: question.how.opens.len(), ..*question.how };
    let Ok(mut base) = image.program(question.program, &how)? else { return Ok(None) };
    let mut found: BTreeMap<String, Rc<Probed>> = BTreeMap::new();
    for name in &opens {
        if let Some(file) = base.answer(name) {
            found.insert(name.clone(), Rc::clone(file));
        }
    }
    // The loader, which libraries may need too.
    if let (Some(interp), Some(arch)) = (&base.interp, base.arch)
        && let Some(name) = interp.file_name().and_then(|n| n.to_str())
        && let Some(file) = image.file(interp, arch)
    {
        found.entry(name.to_owned()).or_insert(file);
    }
    // What we asked for ourselves is not the program's.
    base.opened.truncate(question.how.opens.len());
    let replaces = mpi::in_map(&image, &base, Detail::Version)?;
    let mut first = None;
    for preference in [Preference::Newest, Preference::Host, Preference::Image] {
        let merged = merge::choose(&image, &found, &base, question.host, installation, preference)?;
        let attempt = Attempt { question, installation, image: &image, base: &base, merged: &merged };
        let mut outcome = attempt.prove(replaces.clone())?;
        if outcome.obstacles.iter().all(Obstacle::is_latent) {
            return Ok(Some(outcome));
        }
        outcome.obstacles.sort_by_key(Obstacle::is_latent);
        first.get_or_insert(outcome);
        // Another choice among the libraries changes neither of these.
        if first.as_ref().is_some_and(|o| o.obstacles.iter().any(is_final)) {
            break;
        }
    }
    Ok(first)
}

fn is_final(obstacle: &Obstacle) -> bool {
    matches!(obstacle, Obstacle::Static { .. } | Obstacle::Musl { .. } | Obstacle::Libc { .. })
}

/// One choice, tried.
struct Attempt<'a> {
    question: &'a Question<'a>,
    installation: &'a Installation,
    image: &'a Prober<'a>,
    /// The program as it is, without the host's MPI.
    base: &'a LinkMap,
    merged: &'a Merged,
}

/// Trees of the host, and where they are shown.
struct Trees {
    shown: Vec<Shown>,
}

impl Trees {
    /// Inside, the path of a file of the host.
    fn inside(&self, path: &Path) -> PathBuf {
        let holds = |s: &&Shown| s.directory && path.starts_with(&s.source);
        match self.shown.iter().filter(holds).max_by_key(|s| s.source.as_os_str().len()) {
            Some(s) => s.at.join(path.strip_prefix(&s.source).unwrap_or(path)),
            None => path.to_owned(),
        }
    }
}

impl Attempt<'_> {
    fn prove(&self, replaces: Option<Mpi>) -> Result<Outcome> {
        let library_path = self.question.private.join("lib");
        let trees = self.trees();
        let mut injection = Injection {
            mpi: self.installation.mpi.clone(),
            replaces,
            links: self.links(&trees),
            shown: trees.shown,
            library_path,
            prefix: self.installation.prefix.clone().filter(|_| self.installation.relocated),
            libc: self
                .merged
                .libc_needed
                .as_ref()
                .filter(|_| !self.merged.libc.is_empty())
                .map(|(version, by)| format!("{by} needs {version}, which the image's lacks")),
            remarks: Vec::new(),
        };
        let mut obstacles = Vec::new();
        if let Some(obstacle) = self.out_of_question() {
            return Ok(Outcome { injection, obstacles: vec![obstacle], map: self.base.clone() });
        }
        self.show_directories(&mut injection)?;
        self.cover(&mut injection)?;
        let list = self.question.how.library_path.filter(|list| !list.is_empty());
        let list = match list {
            Some(list) => format!("{}:{list}", injection.library_path.display()),
            None => injection.library_path.display().to_string(),
        };
        let mut opens = self.question.how.opens.to_vec();
        opens.extend(self.plugins(&injection));
        let global = self.question.how.opens.len();
        let how = Circumstances { library_path: Some(&list), opens: &opens, global, ..*self.question.how };
        for _ in 0..MAX_ROUNDS {
            let view = self.lay(&injection)?;
            let prober = Prober::new(&view);
            let Ok(map) = prober.program(self.question.program, &how)? else { break };
            let more = self.still_the_images(&map);
            let known = injection.shown.len();
            for shown in more {
                if !injection.shown.iter().any(|s| s.at == shown.at) {
                    injection.shown.push(shown);
                }
            }
            if injection.shown.len() > known {
                continue;
            }
            self.judge(&prober, &map, &mut obstacles, &mut injection)?;
            return Ok(Outcome { injection, obstacles, map });
        }
        obstacles.push(Obstacle::Missing {
            name: "the host's MPI".to_owned(),
            needed_by: self.base.program.display().to_string(),
        });
        Ok(Outcome { injection, obstacles, map: self.base.clone() })
    }

    fn out_of_question(&self) -> Option<Obstacle> {
        let Some(interp) = &self.base.interp else {
            return Some(Obstacle::Static { program: self.base.program.clone() });
        };
        if Loader::of(&interp.display().to_string()) == Loader::Musl {
            return Some(Obstacle::Musl { interp: interp.clone() });
        }
        let (needs, needed_by) = self.merged.libc_needed.clone()?;
        let lacks = self.merged.libc_lacks.clone()?;
        Some(Obstacle::Libc { lacks, needs, needed_by })
    }

    /// The MPI's own tree where it has one, at its own path; of all other libraries the directories, out of
    /// the image's way.
    fn trees(&self) -> Trees {
        let mut shown = Vec::new();
        if let Some(prefix) = &self.installation.prefix {
            shown.push(Shown {
                source: prefix.clone(),
                at: prefix.clone(),
                why: format!("the tree of {}", self.installation.mpi.describe()),
                covers: false,
                directory: true,
            });
        }
        let in_prefix = |path: &Path| shown.first().is_some_and(|s: &Shown| path.starts_with(&s.source));
        let mut directories: BTreeSet<&Path> = BTreeSet::new();
        for path in self.host_files() {
            if let Some(directory) = path.parent().filter(|d| !in_prefix(d)) {
                directories.insert(directory);
            }
        }
        let all = directories.clone();
        directories.retain(|d| !all.iter().any(|o| o != d && d.starts_with(o)));
        for (number, directory) in directories.into_iter().enumerate() {
            shown.push(Shown {
                source: directory.to_owned(),
                at: self.question.private.join("host").join(number.to_string()),
                why: "libraries of the host".to_owned(),
                covers: false,
                directory: true,
            });
        }
        Trees { shown }
    }

    fn host_files(&self) -> impl Iterator<Item = &Path> {
        self.merged
            .taken
            .iter()
            .map(|taken| taken.file.path.as_path())
            .chain(self.installation.directories.iter().filter(|d| is_by_name(d)).map(|d| d.path.as_path()))
    }

    fn links(&self, trees: &Trees) -> Vec<Link> {
        let mut links: Vec<Link> = self
            .merged
            .taken
            .iter()
            .map(|taken| Link {
                name: taken.name.clone(),
                target: trees.inside(&taken.file.path),
                source: taken.file.path.clone(),
                why: format!("{}; for {}", taken.reason.text(), taken.needed_by),
            })
            .collect();
        for directory in &self.installation.directories {
            // UCX looks for its modules beside itself.
            if directory.path.file_name().is_some_and(|n| n == "ucx") {
                links.push(Link {
                    name: "ucx".to_owned(),
                    target: trees.inside(&directory.path),
                    source: directory.path.clone(),
                    why: format!("modules of {}", directory.of),
                });
            } else if is_by_name(directory) {
                for plugin in &directory.plugins {
                    let Some(name) = plugin.file_name() else { continue };
                    links.push(Link {
                        name: name.to_string_lossy().into_owned(),
                        target: trees.inside(&directory.path).join(name),
                        source: directory.path.join(name),
                        why: format!("a provider of {}", directory.of),
                    });
                }
            }
        }
        links
    }

    /// Directories of plugins and texts, where the libraries look for them.
    fn show_directories(&self, injection: &mut Injection) -> Result<()> {
        for directory in self.installation.outermost() {
            let in_prefix = self.installation.prefix.as_ref().is_some_and(|p| directory.path.starts_with(p));
            let is_ucx = directory.path.file_name().is_some_and(|n| n == "ucx");
            let (at, is_there) = match self.question.view.lookup(&directory.at)? {
                Lookup::Exists(entry) => (entry.path, true),
                Lookup::Missing { parent, rest } => (parent.path.join(rest), false),
            };
            if in_prefix || is_ucx || is_by_name(directory) && !is_there {
                continue;
            }
            injection.shown.push(Shown {
                source: directory.path.clone(),
                at,
                why: format!("{} looks there", directory.of),
                covers: false,
                directory: true,
            });
        }
        Ok(())
    }

    /// The image's own copies: of the C library if it must be the host's, and of the MPI, which nobody shall
    /// load by another way.
    fn cover(&self, injection: &mut Injection) -> Result<()> {
        let cover = |at: &Path, file: &Rc<Probed>, why: String| Shown {
            source: file.path.clone(),
            at: at.to_owned(),
            why,
            covers: true,
            directory: false,
        };
        for covered in &self.merged.libc {
            injection.shown.push(cover(&covered.at, &covered.file, covered.reason.text()));
        }
        if let (Some(first), Some(interp)) = (self.merged.libc.first(), &self.base.interp) {
            if let Some(entry) = self.question.view.find(interp)? {
                injection.shown.push(cover(&entry.path, &self.installation.loader, Reason::Libc.text()));
            }
            let [ours, theirs] = [&first.file.path, &first.at].map(|p| p.with_file_name("gconv"));
            let is_directory = |entry: Option<Entry>| entry.is_some_and(|e| e.kind == Kind::Directory);
            if is_directory(self.question.view.find(&theirs)?)
                && is_directory(self.question.host.view.find(&ours)?)
            {
                injection.shown.push(Shown {
                    source: ours,
                    at: theirs,
                    why: Reason::Libc.text(),
                    covers: true,
                    directory: true,
                });
            }
        }
        for linked in self.base.objects.iter().chain(opened(self.base)) {
            let (Some(theirs), Some(ours)) = (&linked.file, self.installation.part(&linked.name)) else {
                continue;
            };
            // What lies in a directory of plugins is covered with that.
            if theirs.entry.layer == 0 && !injection.shown.iter().any(|s| theirs.path.starts_with(&s.at)) {
                injection.shown.push(cover(&theirs.path, ours, "in the place of the image's".to_owned()));
            }
        }
        Ok(())
    }

    /// Parts of the MPI that would still be the image's, as by an RPATH.
    fn still_the_images(&self, map: &LinkMap) -> Vec<Shown> {
        let mut found = Vec::new();
        for linked in map.objects.iter().chain(opened(map)) {
            let (Some(theirs), Some(ours)) = (&linked.file, self.installation.part(&linked.name)) else {
                continue;
            };
            if theirs.entry.id != ours.entry.id {
                found.push(Shown {
                    source: ours.path.clone(),
                    at: theirs.path.clone(),
                    why: format!("the program loads {} from there", linked.name),
                    covers: true,
                    directory: false,
                });
            }
        }
        found
    }

    /// Plugins by their paths inside.
    fn plugins(&self, injection: &Injection) -> Vec<String> {
        let mut found = Vec::new();
        for directory in &self.installation.directories {
            let is_ucx = directory.path.file_name().is_some_and(|n| n == "ucx");
            for plugin in &directory.plugins {
                let Some(name) = plugin.file_name() else { continue };
                let path = match (is_ucx, is_by_name(directory)) {
                    (true, _) => injection.library_path.join("ucx").join(name),
                    (_, true) => injection.library_path.join(name),
                    _ => directory.at.join(name),
                };
                found.push(path.display().to_string());
            }
        }
        found
    }

    /// The view with all of it.
    fn lay(&self, injection: &Injection) -> Result<View> {
        let mut view = self.question.view.fork();
        let host = self.question.host.view;
        view.lay_empty(self.question.private);
        view.lay_empty(&self.question.private.join("host"));
        for shown in &injection.shown {
            let at = match view.lookup(&shown.at)? {
                Lookup::Exists(entry) => entry.path,
                Lookup::Missing { parent, rest } => parent.path.join(rest),
            };
            lay(&mut view, &at, host.find(&shown.source)?);
        }
        view.lay_empty(&injection.library_path);
        for link in &injection.links {
            lay(&mut view, &injection.library_path.join(&link.name), host.find(&link.source)?);
        }
        Ok(view)
    }

    /// What is wrong with the mixed process that is not wrong with either side alone.
    fn judge(
        &self,
        prober: &Prober,
        map: &LinkMap,
        obstacles: &mut Vec<Obstacle>,
        injection: &mut Injection,
    ) -> Result<()> {
        let of_program = self.question.how.opens.len();
        let (own, opened_bindings) = bind_all(prober, map)?;
        let mut found = Vec::new();
        missing(&map.objects, &map.program, &mut found);
        found.extend(map.problems.iter().cloned().map(Obstacle::Bad));
        of_binding(&own, &mut found);
        for (one, binding) in map.opened.iter().zip(&opened_bindings).take(of_program) {
            let linked: Vec<Linked> = one.objects.iter().map(|o| o.linked.clone()).collect();
            missing(&linked, Path::new(&one.name), &mut found);
            found.extend(one.problems.iter().cloned().map(Obstacle::Bad));
            of_binding(binding, &mut found);
        }
        let mut plugins = Vec::new();
        for (one, binding) in map.opened.iter().zip(&opened_bindings).skip(of_program) {
            let linked: Vec<Linked> = one.objects.iter().map(|o| o.linked.clone()).collect();
            let mut wrong = Vec::new();
            missing(&linked, Path::new(&one.name), &mut wrong);
            wrong.extend(one.problems.iter().cloned().map(Obstacle::Bad));
            of_binding(binding, &mut wrong);
            wrong.retain(|o| !o.is_latent());
            if let Some(first) = wrong.first() {
                plugins.push((one.name.clone(), first.what()));
            }
        }
        if !found.is_empty() {
            self.forget_known(&mut found)?;
        }
        if !plugins.is_empty() || found.iter().any(|o| matches!(o, Obstacle::Symbol(_))) {
            let faults = self.installation.faults(self.question.host, self.question.host_library_path)?;
            let broken: BTreeSet<&str> =
                faults.broken.iter().filter_map(|p| p.file_name()?.to_str()).collect();
            plugins.retain(|(plugin, _)| !broken.contains(parts::file_name(plugin)));
            found.retain(|o| match o {
                Obstacle::Symbol(u) => {
                    let key = (parts::file_name(&u.object).to_owned(), u.symbol.clone());
                    !faults.missing.contains(&key)
                }
                _ => true,
            });
        }
        self.name_parts(map, &mut found, injection);
        obstacles.extend(found);
        obstacles.extend(plugins.into_iter().map(|(plugin, why)| Obstacle::Plugin { plugin, why }));
        Ok(())
    }

    /// What the program lacks by itself is no fault of ours.
    fn forget_known(&self, found: &mut Vec<Obstacle>) -> Result<()> {
        let (own, opened_bindings) = bind_all(self.image, self.base)?;
        let mut known = Vec::new();
        missing(&self.base.objects, &self.base.program, &mut known);
        known.extend(self.base.problems.iter().cloned().map(Obstacle::Bad));
        for binding in opened_bindings.iter().chain([&own]) {
            of_binding(binding, &mut known);
        }
        // An object may have moved: its name and the symbol tell.
        let key = |o: &Obstacle| match o {
            Obstacle::Symbol(u) => (parts::file_name(&u.object).to_owned(), u.symbol.clone()),
            Obstacle::Resized { symbol, library, .. } => (symbol.clone(), library.to_string()),
            other => (String::new(), other.what()),
        };
        let known: BTreeSet<_> = known.iter().map(key).collect();
        found.retain(|o| !known.contains(&key(o)));
        Ok(())
    }

    /// Bindings that the host's MPI lacks: the image's may go with it, or be what fails.
    fn name_parts(&self, map: &LinkMap, found: &mut Vec<Obstacle>, injection: &mut Injection) {
        for linked in map.objects.iter().chain(opened(map)) {
            let Some((role, _)) = parts::part(&linked.name).filter(|(role, _)| *role != Role::Internal)
            else {
                continue;
            };
            if self.installation.part(&linked.name).is_some() {
                continue;
            }
            let needed_by = self.base.program.display().to_string();
            let shown = linked.path.as_ref().map_or_else(|| linked.name.clone(), |p| p.display().to_string());
            let fails = |o: &Obstacle| match o {
                Obstacle::Symbol(u) => u.object == shown,
                Obstacle::Missing { name, .. } => *name == linked.name,
                Obstacle::Version { needed_by, .. } => *needed_by == shown,
                _ => false,
            };
            let failing: Vec<bool> = found.iter().filter(|o| fails(o)).map(Obstacle::is_latent).collect();
            if !failing.is_empty() {
                found.insert(
                    0,
                    Obstacle::NoPart {
                        name: linked.name.clone(),
                        what: role.name(),
                        needed_by,
                        host: self.installation.mpi.describe(),
                        is_latent: failing.iter().all(|latent| *latent),
                    },
                );
            } else if linked.file.is_some() {
                injection.remarks.push(format!(
                    "{} is the image's own: the host's MPI comes without, and every symbol binds",
                    linked.name
                ));
            }
        }
    }
}

/// Providers of verbs are asked for by name, where their directory does not have them
/// (libibverbs/dynamic_driver.c, load_driver), and lead out of that directory.
fn is_by_name(directory: &Directory) -> bool {
    directory.plugins.iter().any(|p| p.to_string_lossy().contains("-rdmav"))
}

/// Lays something of the host over a path.
fn lay(view: &mut View, at: &Path, entry: Option<Entry>) {
    if let Some(entry) = entry {
        let origin = entry.path.clone();
        if let Some(fd) = entry.into_fd() {
            view.lay(at, fd, &origin);
        }
    }
}

fn opened(map: &LinkMap) -> impl Iterator<Item = &Linked> {
    map.opened.iter().flat_map(|o| o.objects.iter().map(|o| &o.linked))
}

fn missing(objects: &[Linked], by: &Path, found: &mut Vec<Obstacle>) {
    for linked in objects.iter().filter(|o| o.path.is_none()) {
        let needed_by = linked.needed_by.and_then(|i| objects.get(i)?.path.as_deref()).unwrap_or(by);
        let obstacle =
            Obstacle::Missing { name: linked.name.clone(), needed_by: needed_by.display().to_string() };
        if !found.contains(&obstacle) {
            found.push(obstacle);
        }
    }
}

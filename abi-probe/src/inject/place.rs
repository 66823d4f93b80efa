//! Where everything of the host must be inside, and the view with it there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{Attempt, Injection, Link, Shown, opened};
use crate::error::Result;
use crate::install::Directory;
use crate::linkmap::LinkMap;
use crate::merge::Reason;
use crate::prober::Probed;
use crate::rootfs::{Entry, Kind, Lookup, View};

/// Trees of the host, and where they are shown.
pub(super) struct Trees {
    pub(super) shown: Vec<Shown>,
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
    /// The MPI's own tree where it has one, at its own path; of all other libraries the directories, out of
    /// the image's way.
    pub(super) fn trees(&self) -> Trees {
        let mut shown = Vec::new();
        if let Some(prefix) = &self.installation.prefix {
            shown.push(Shown {
                source: prefix.clone(),
                at: prefix.clone(),
                why: format!("the tree of {}", self.installation.name),
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

    pub(super) fn links(&self, trees: &Trees) -> Vec<Link> {
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
            if is_beside(directory) {
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
    pub(super) fn show_directories(&self, injection: &mut Injection) -> Result<()> {
        for directory in self.installation.outermost() {
            let in_prefix = self.installation.prefix.as_ref().is_some_and(|p| directory.path.starts_with(p));
            let (at, is_there) = match self.question.view.lookup(&directory.at)? {
                Lookup::Exists(entry) => (entry.path, true),
                Lookup::Missing { parent, rest } => (parent.path.join(rest), false),
            };
            if in_prefix || is_beside(directory) || is_by_name(directory) && !is_there {
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
    pub(super) fn cover(&self, injection: &mut Injection) -> Result<()> {
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
            self.cover_modules(theirs, injection)?;
        }
        Ok(())
    }

    /// What a library of the image has beside it: whoever loads the covered one by its path looks there.
    fn cover_modules(&self, theirs: &Probed, injection: &mut Injection) -> Result<()> {
        for directory in self.installation.directories.iter().filter(|d| is_beside(d)) {
            let name = directory.path.file_name().unwrap_or_default();
            let Some(entry) = self.question.view.find(&theirs.path.with_file_name(name))? else { continue };
            let is_known = injection.shown.iter().any(|s| s.at == entry.path);
            if entry.kind == Kind::Directory && entry.layer == 0 && !is_known {
                injection.shown.push(Shown {
                    source: directory.path.clone(),
                    at: entry.path,
                    why: format!("modules of {}, in the place of the image's", directory.of),
                    covers: true,
                    directory: true,
                });
            }
        }
        Ok(())
    }

    /// Parts of the MPI that would still be the image's, as by an RPATH.
    pub(super) fn still_the_images(&self, map: &LinkMap) -> Vec<Shown> {
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
    pub(super) fn plugins(&self, injection: &Injection) -> Vec<String> {
        let mut found = Vec::new();
        for directory in &self.installation.directories {
            for plugin in &directory.plugins {
                let Some(name) = plugin.file_name() else { continue };
                let path = match (is_beside(directory), is_by_name(directory)) {
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
    pub(super) fn lay(&self, injection: &Injection) -> Result<View> {
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
}

/// UCX looks for its modules beside itself (ucs/sys/module.c).
fn is_beside(directory: &Directory) -> bool {
    directory.path.file_name().is_some_and(|name| name == "ucx")
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

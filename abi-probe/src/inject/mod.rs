//! Proves that the host's MPI, or its fabrics, can replace the image's: lays them over the image, simulates the loader
//! on the result, and binds every symbol. What comes out is where each file must be for the program to load it.

mod judge;
mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::fabric::Fabric;
use crate::install::Installation;
use crate::ldso::Loader;
use crate::linkmap::{Circumstances, LinkMap, Linked};
use crate::merge::{self, Merged, Preference};
use crate::mpi::{self, Detail, Mpi};
use crate::obstacle::Obstacle;
use crate::parts;
use crate::prober::{Probed, Prober};
use crate::rootfs::{Entry, View};

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

/// Where everything must be for the host's libraries to be loaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Injection {
    /// The host's MPI; none: fabrics alone, beneath the image's own.
    pub mpi: Option<Mpi>,
    /// The image's, which it replaces.
    pub replaces: Option<Mpi>,
    /// The host's fabrics in the place of the image's, where it is they that are injected.
    #[serde(default)]
    pub fabrics: Vec<Fabric>,
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
    let replaces = match installation.mpi {
        Some(_) => mpi::in_map(&image, &base, Detail::Version)?,
        None => None,
    };
    let mut best: Option<Outcome> = None;
    for preference in [Preference::Newest, Preference::Host, Preference::Image] {
        let merged = merge::choose(&image, &found, &base, question.host, installation, preference)?;
        let attempt = Attempt { question, installation, image: &image, base: &base, merged: &merged };
        let mut outcome = attempt.prove(replaces.clone())?;
        if outcome.obstacles.is_empty() {
            return Ok(Some(outcome));
        }
        outcome.obstacles.sort_by_key(Obstacle::is_latent);
        // Another choice among the libraries changes neither of these.
        let is_final = outcome.obstacles.iter().any(is_final);
        let is_latent = |o: &Outcome| o.obstacles.iter().all(Obstacle::is_latent);
        if best.as_ref().is_none_or(|best| is_latent(&outcome) && !is_latent(best)) {
            best = Some(outcome);
        }
        if is_final {
            break;
        }
    }
    Ok(best)
}

fn is_final(obstacle: &Obstacle) -> bool {
    matches!(obstacle, Obstacle::Static { .. } | Obstacle::Musl { .. } | Obstacle::Libc { .. })
}

/// One choice, tried.
struct Attempt<'a> {
    question: &'a Question<'a>,
    installation: &'a Installation,
    image: &'a Prober<'a>,
    /// The program as it is, without the host's libraries.
    base: &'a LinkMap,
    merged: &'a Merged,
}

impl Attempt<'_> {
    fn prove(&self, replaces: Option<Mpi>) -> Result<Outcome> {
        let library_path = self.question.private.join("lib");
        let trees = self.trees();
        let mut injection = Injection {
            mpi: self.installation.mpi.clone(),
            replaces,
            fabrics: Vec::new(),
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
            name: format!("the host's {}", self.installation.name),
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
}

fn opened(map: &LinkMap) -> impl Iterator<Item = &Linked> {
    map.opened.iter().flat_map(|o| o.objects.iter().map(|o| &o.linked))
}

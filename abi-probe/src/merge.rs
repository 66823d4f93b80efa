//! Which side's copy of each library a mixed process takes: the host's MPI, or its fabrics, in an image's program.
//!
//! What belongs together comes from one side: an MPI with its internal libraries, a fabric stack, the C library
//! with its loader. Of the rest the newer copy wins, the one whose versions, or symbols, include the other's;
//! of two equals the image's stays, or, where nothing tells versions apart, the host's, which the host's libraries
//! were built with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

use serde::Serialize;

use crate::error::Result;
use crate::install::Installation;
use crate::linkmap::LinkMap;
use crate::parts;
use crate::prober::{Probed, Prober};

/// Why one side's copy is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It belongs to the MPI.
    OfTheMpi,
    /// The image has none.
    NotInImage,
    /// It belongs to a fabric stack, which stays whole.
    Stack(&'static str),
    /// It defines what the other does, and more.
    Newer,
    /// Neither includes the other; the host's libraries were built with this one.
    BuiltWith,
    /// It belongs to the C library, which stays whole.
    Libc,
}

impl Reason {
    /// For people.
    pub fn text(&self) -> String {
        match self {
            Reason::OfTheMpi => "of the host's MPI".to_owned(),
            Reason::NotInImage => "the host's libraries need it, the image has none".to_owned(),
            Reason::Stack(name) => format!("the host's {name}, which stays whole"),
            Reason::Newer => "newer than the image's".to_owned(),
            Reason::BuiltWith => "the host's libraries were built with it".to_owned(),
            Reason::Libc => "the host's C library, which stays whole".to_owned(),
        }
    }
}

/// The host's copy of a library, taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The name by which it is asked for.
    pub name: String,
    /// The file on the host.
    pub file: Rc<Probed>,
    /// Why.
    pub reason: Reason,
    /// Who needs it.
    pub needed_by: String,
}

/// A file of the image that the host's covers.
#[derive(Clone, Debug)]
pub struct Covered {
    /// Inside, without links.
    pub at: PathBuf,
    /// The file on the host.
    pub file: Rc<Probed>,
    /// Why.
    pub reason: Reason,
}

/// The choice.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    /// The host's libraries.
    pub taken: Vec<Taken>,
    /// The image's files of the C library, if it must be the host's.
    pub libc: Vec<Covered>,
    /// Why the C library must be the host's: a version that the image's lacks, and who needs it.
    pub libc_needed: Option<(String, String)>,
    /// The host's C library is needed, and lacks versions that the image's has: the first of them.
    pub libc_lacks: Option<String>,
}

/// How undecided cases are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// By what the copies define.
    Newest,
    /// The host's.
    Host,
    /// The image's.
    Image,
}

/// Chooses. `found` is what the image's program and loader find for each name, where they find something.
pub fn choose(
    image: &Prober,
    found: &BTreeMap<String, Rc<Probed>>,
    map: &LinkMap,
    host: &Prober,
    installation: &Installation,
    preference: Preference,
) -> Result<Merged> {
    let mut merged = Merged::default();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let take = |name: &str, file: &Rc<Probed>, reason: Reason, needed_by: &str, taken: &mut Vec<Taken>| {
        taken.push(Taken {
            name: name.to_owned(),
            file: Rc::clone(file),
            reason,
            needed_by: needed_by.to_owned(),
        });
    };
    // The names by which the program asks for the MPI, and those that the MPI has itself: a program started by
    // the program may ask for others.
    let asked = map.objects.iter().map(|o| o.name.as_str());
    let opened = map.opened.iter().flat_map(|o| o.objects.iter().map(|o| o.linked.name.as_str()));
    for name in asked.chain(opened).filter(|name| !name.contains('/')) {
        if let Some(file) = installation.part(name)
            && names.insert(name)
        {
            let reason = parts::stack(name).map_or(Reason::OfTheMpi, Reason::Stack);
            take(name, file, reason, "the program", &mut merged.taken);
        }
    }
    for (name, file) in &installation.parts {
        if names.insert(name) {
            take(name, file, Reason::OfTheMpi, "programs", &mut merged.taken);
        }
    }
    for (name, library) in &installation.libraries {
        if !names.insert(name) {
            continue;
        }
        let reason = if parts::part(name).is_some() {
            Some(Reason::OfTheMpi)
        } else if let Some(stack) = parts::stack(name) {
            Some(Reason::Stack(stack))
        } else {
            match found.get(name) {
                None => Some(Reason::NotInImage),
                Some(theirs) => compare((host, &library.file), (image, theirs), preference)?,
            }
        };
        if let Some(reason) = reason {
            take(name, &library.file, reason, &library.needed_by, &mut merged.taken);
        }
    }
    decide_libc(image, found, host, installation, &mut merged)?;
    Ok(merged)
}

/// Why the host's copy is taken, if it is.
fn compare(
    (host, ours): (&Prober, &Rc<Probed>),
    (image, theirs): (&Prober, &Rc<Probed>),
    preference: Preference,
) -> Result<Option<Reason>> {
    match preference {
        Preference::Host => return Ok(Some(Reason::BuiltWith)),
        Preference::Image => return Ok(None),
        Preference::Newest => {}
    }
    let (ours, theirs) = (host.symbols(ours)?, image.symbols(theirs)?);
    let versions = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    let (our, their) = (versions(ours.defined_versions()), versions(theirs.defined_versions()));
    if our.len() > 1 && their.len() > 1 {
        return Ok(match (our.is_superset(&their), their.is_superset(&our)) {
            (_, true) => None,
            (true, false) => Some(Reason::Newer),
            (false, false) => Some(Reason::BuiltWith),
        });
    }
    let names = |symbols: &crate::symbols::Symbols| {
        symbols.exports().map(std::borrow::Cow::into_owned).collect::<BTreeSet<_>>()
    };
    let (our, their) = (names(&ours), names(&theirs));
    Ok(match (our.is_superset(&their), their.is_superset(&our)) {
        (true, true) | (false, false) => Some(Reason::BuiltWith),
        (true, false) => Some(Reason::Newer),
        (false, true) => None,
    })
}

/// The C library is the host's only where something of the host's needs a version that the image's lacks.
fn decide_libc(
    image: &Prober,
    found: &BTreeMap<String, Rc<Probed>>,
    host: &Prober,
    installation: &Installation,
    merged: &mut Merged,
) -> Result<()> {
    let mut defined: BTreeMap<&str, Rc<crate::symbols::Symbols>> = BTreeMap::new();
    for (name, file) in found.iter().filter(|(name, _)| parts::is_libc(name)) {
        defined.insert(name, image.symbols(file)?);
    }
    for taken in &merged.taken {
        for need in host.symbols(&taken.file)?.needed_versions() {
            if !parts::is_libc(&need.file) || need.weak || merged.libc_needed.is_some() {
                continue;
            }
            let has =
                |symbols: &Rc<crate::symbols::Symbols>| symbols.defines_version(&need.version) == Some(true);
            if !defined.get(need.file.as_str()).is_some_and(has) {
                let by = taken.file.path.display().to_string();
                merged.libc_needed = Some((need.version.clone(), by));
            }
        }
    }
    let (Some(_), Some(libc)) = (&merged.libc_needed, &installation.libc) else { return Ok(()) };
    let host_versions = host.symbols(libc)?;
    if let Some(theirs) = defined.get("libc.so.6") {
        let lacks = |v: &&String| host_versions.defines_version(v) != Some(true) && *v != "GLIBC_PRIVATE";
        merged.libc_lacks = theirs.defined_versions().iter().find(lacks).cloned();
    }
    let directory = libc.path.parent().unwrap_or(&libc.path);
    for (name, theirs) in found.iter().filter(|(name, _)| parts::LIBC.contains(&name.as_str())) {
        if let Some(file) = host.file(&directory.join(name), theirs.object.arch) {
            merged.libc.push(Covered { at: theirs.path.clone(), file, reason: Reason::Libc });
        }
    }
    // What the image has none of goes with the rest.
    for name in parts::LIBC.iter().filter(|name| !found.contains_key(**name)) {
        if let Some(file) = host.file(&directory.join(name), libc.object.arch) {
            merged.taken.push(Taken {
                name: (*name).to_owned(),
                file,
                reason: Reason::Libc,
                needed_by: "the host's libraries".to_owned(),
            });
        }
    }
    Ok(())
}

//! Which symbol binds where: what the loader would do with a link map's relocations, and what it would miss.
//!
//! Sources: glibc elf/dl-lookup.c (`_dl_lookup_symbol_x`), elf/dl-version.c (`_dl_check_map_versions`).

use std::rc::Rc;

use serde::Serialize;

use crate::error::Result;
use crate::linkmap::LinkMap;
use crate::prober::{Probed, Prober};
use crate::symbols::{Class, Lookup, Reference, Symbols};

/// A reference that finds no definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unresolved {
    /// The object that needs it: its path as the loader has it.
    pub object: String,
    /// The symbol.
    pub symbol: String,
    /// The version it was linked with.
    pub version: Option<String>,
    /// Fails before main: bound eagerly, or the program's own. The others fail when, and if, they are called.
    pub hard: bool,
}

/// A version that a file does not define.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingVersion {
    /// The file that should define it.
    pub file: String,
    /// The version.
    pub version: String,
    /// Who needs it.
    pub needed_by: String,
    /// Nobody minds, or the file knows no versions at all: said aloud, no error.
    pub harmless: bool,
}

/// A variable whose copy in the program has another size than the original.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resized {
    /// The variable.
    pub symbol: String,
    /// Its size in bytes, as the program knows it.
    pub program: u64,
    /// Its size in the library.
    pub library: u64,
    /// The library.
    pub object: String,
}

/// A library without any versions in the place of one whose versions a reference was linked with: glibc takes
/// that for its own mistake and aborts (dl-lookup.c, the assertion of `check_match`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Abort {
    /// The library.
    pub file: String,
    /// Who refers to it.
    pub object: String,
    /// The first such symbol, and its version.
    pub symbol: String,
    /// As in [`Unresolved`].
    pub hard: bool,
}

/// What a link map lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// References without definition.
    pub unresolved: Vec<Unresolved>,
    /// Versions without definition.
    pub versions: Vec<MissingVersion>,
    /// Copies of the wrong size.
    pub resized: Vec<Resized>,
    /// Look-ups at which the loader would abort; one for each pair of objects.
    pub aborts: Vec<Abort>,
}

/// An object in the global scope.
struct Member {
    shown: String,
    names: Vec<String>,
    file: Rc<Probed>,
    symbols: Rc<Symbols>,
    is_loader: bool,
}

/// Binds every symbol of a link map.
pub fn bind(prober: &Prober, map: &LinkMap) -> Result<Binding> {
    let mut scope = Vec::new();
    if let Some(main) = &map.main {
        let shown = main.path.display().to_string();
        scope.push(Member {
            names: vec![shown.clone()],
            shown,
            symbols: prober.symbols(main)?,
            file: Rc::clone(main),
            is_loader: false,
        });
    }
    for linked in &map.objects {
        let (Some(file), Some(path)) = (&linked.file, &linked.path) else { continue };
        scope.push(Member {
            shown: path.display().to_string(),
            names: linked.names.clone(),
            symbols: prober.symbols(file)?,
            file: Rc::clone(file),
            is_loader: linked.is_loader,
        });
    }
    let mut binding = Binding::default();
    for (index, member) in scope.iter().enumerate().filter(|(_, m)| !m.is_loader) {
        check_versions(&scope, member, &mut binding);
        for reference in prober.references(&member.file)? {
            bind_one(&scope, index, &reference, &mut binding);
        }
    }
    Ok(binding)
}

impl Member {
    fn goes_by(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name) || self.file.object.soname.as_deref() == Some(name)
    }
}

fn check_versions(scope: &[Member], member: &Member, binding: &mut Binding) {
    for need in member.symbols.needed_versions() {
        // A file that is missing altogether is the link map's business.
        let Some(provider) = scope.iter().find(|m| m.goes_by(&need.file)) else { continue };
        let harmless = match provider.symbols.defines_version(&need.version) {
            Some(true) => continue,
            Some(false) => need.weak,
            None => true,
        };
        binding.versions.push(MissingVersion {
            file: provider.shown.clone(),
            version: need.version.clone(),
            needed_by: member.shown.clone(),
            harmless,
        });
    }
}

fn bind_one(scope: &[Member], index: usize, reference: &Reference, binding: &mut Binding) {
    let me = &scope[index];
    let hard = index == 0 || reference.eager || me.file.object.bind_now;
    // Its own symbols first for an object linked with -Bsymbolic; the program's not for its own copies.
    let own = me.file.object.symbolic.then_some(index);
    let others = (0..scope.len()).filter(|i| reference.class != Class::Copy || *i != 0);
    // Since glibc 2.30 the file that is named with the version is of no account: symbols move between files.
    for member in own.into_iter().chain(others).map(|i| &scope[i]) {
        let Lookup::Found(size) = member.symbols.lookup(reference) else { continue };
        let linked_from = reference.version.as_ref().and_then(|v| v.file.as_deref());
        if !member.symbols.knows_versions() && linked_from.is_some_and(|file| member.goes_by(file)) {
            let known = |a: &Abort| a.file == member.shown && a.object == me.shown;
            if !binding.aborts.iter().any(known) {
                let version = reference.version.as_ref().map_or("", |v| &v.name);
                binding.aborts.push(Abort {
                    file: member.shown.clone(),
                    object: me.shown.clone(),
                    symbol: format!("{}@{version}", reference.name),
                    hard,
                });
            }
            return;
        }
        if reference.class == Class::Copy && size != reference.size {
            binding.resized.push(Resized {
                symbol: reference.name.clone(),
                program: reference.size,
                library: size,
                object: member.shown.clone(),
            });
        }
        return;
    }
    if reference.weak {
        return;
    }
    binding.unresolved.push(Unresolved {
        object: me.shown.clone(),
        symbol: reference.name.clone(),
        version: reference.version.as_ref().map(|v| v.name.clone()),
        hard,
    });
}

//! Which symbol binds where: what the loader would do with a link map's relocations, and what it would miss.
//!
//! Sources: glibc elf/dl-lookup.c (`_dl_lookup_symbol_x`), elf/dl-version.c (`_dl_check_map_versions`).

use std::rc::Rc;

use serde::Serialize;

use crate::error::Result;
use crate::linkmap::{LinkMap, Linked, OpenedObject};
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

/// An object in a scope.
struct Member {
    shown: String,
    names: Vec<String>,
    file: Rc<Probed>,
    symbols: Rc<Symbols>,
    is_loader: bool,
    /// The program itself: its copies are not copied from, and all its references are needed at once.
    is_program: bool,
}

/// Binds every symbol of what a program links.
pub fn bind(prober: &Prober, map: &LinkMap) -> Result<Binding> {
    bind_members(prober, &global(prober, map)?)
}

/// The same for each of [`LinkMap::opened`], which see the program's objects and then their own; the program's
/// own binding comes first.
pub fn bind_all(prober: &Prober, map: &LinkMap) -> Result<(Binding, Vec<Binding>)> {
    let mut scope = global(prober, map)?;
    let own = bind_members(prober, &scope)?;
    let mut opened = Vec::new();
    for one in &map.opened {
        let linked = scope.len();
        let found: Vec<&OpenedObject> = one.objects.iter().filter(|o| o.linked.file.is_some()).collect();
        for object in &found {
            scope.extend(member(prober, &object.linked)?);
        }
        let mut binding = Binding::default();
        for (index, _) in found.iter().enumerate().filter(|(_, object)| object.is_new) {
            bind_member(prober, &scope, linked + index, &mut binding)?;
        }
        opened.push(binding);
        if !one.is_global {
            scope.truncate(linked);
        }
    }
    Ok((own, opened))
}

/// The objects that the program links, itself first.
fn global(prober: &Prober, map: &LinkMap) -> Result<Vec<Member>> {
    let mut scope = Vec::new();
    if let Some(main) = &map.main {
        let shown = main.path.display().to_string();
        scope.push(Member {
            names: vec![shown.clone()],
            shown,
            symbols: prober.symbols(main)?,
            file: Rc::clone(main),
            is_loader: false,
            is_program: true,
        });
    }
    for linked in &map.objects {
        scope.extend(member(prober, linked)?);
    }
    Ok(scope)
}

fn member(prober: &Prober, linked: &Linked) -> Result<Option<Member>> {
    let (Some(file), Some(path)) = (&linked.file, &linked.path) else { return Ok(None) };
    Ok(Some(Member {
        shown: path.display().to_string(),
        names: linked.names.clone(),
        symbols: prober.symbols(file)?,
        file: Rc::clone(file),
        is_loader: linked.is_loader,
        is_program: false,
    }))
}

fn bind_members(prober: &Prober, scope: &[Member]) -> Result<Binding> {
    let mut binding = Binding::default();
    for index in 0..scope.len() {
        bind_member(prober, scope, index, &mut binding)?;
    }
    Ok(binding)
}

fn bind_member(prober: &Prober, scope: &[Member], index: usize, binding: &mut Binding) -> Result<()> {
    let member = &scope[index];
    if member.is_loader {
        return Ok(());
    }
    check_versions(scope, member, binding);
    for reference in prober.references(&member.file)? {
        bind_one(scope, index, &reference, binding);
    }
    Ok(())
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
    let hard = me.is_program || reference.eager || me.file.object.bind_now;
    // Its own symbols first for an object linked with -Bsymbolic; the program's not for its own copies.
    let own = me.file.object.symbolic.then_some(index);
    let others = (0..scope.len()).filter(|i| reference.class != Class::Copy || !scope[*i].is_program);
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

//! What is wrong with the mixed process that is not wrong with either side alone.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Attempt, Injection, opened};
use crate::bind::bind_all;
use crate::error::Result;
use crate::linkmap::{LinkMap, Linked};
use crate::obstacle::{Obstacle, of_binding};
use crate::parts::{self, Role};
use crate::prober::Prober;

impl Attempt<'_> {
    /// What is wrong with the mixed process that is not wrong with either side alone.
    pub(super) fn judge(
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
        let Some(mpi) = &self.installation.mpi else { return };
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
                        host: mpi.describe(),
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

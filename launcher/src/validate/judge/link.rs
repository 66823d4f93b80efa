//! What loads, and that each stack is of one side.

use std::collections::BTreeSet;

use super::{Around, broken, cure_of, is_absent};
use crate::validate::Area;
use crate::validate::child::Outcome;
use crate::validate::facts::Facts;
use crate::validate::table::Table;

/// More libraries than these are counted, not listed.
const MAX_LISTED: usize = 12;

/// Libraries of one stack, which work only together: the beginnings of their names.
const STACKS: &[(&str, Area, &[&str])] = &[
    ("UCX", Area::Ucx, &["libucp.so", "libuct.so", "libucs.so", "libucm.so", "libuct_"]),
    ("libfabric", Area::Libfabric, &["libfabric.so"]),
    ("verbs", Area::Verbs, &["libibverbs.so", "librdmacm.so", "libmlx5.so", "libmlx4.so", "libefa.so"]),
    ("CUDA's driver", Area::Cuda, &["libcuda.so", "libnvidia-ptxjitcompiler.so", "libnvidia-ml.so"]),
];

/// Libraries and plugins, one after the other.
pub fn load(table: &mut Table, outcome: &Outcome, around: &Around) {
    let facts = Facts::of(&outcome.out);
    let (mut good, mut bad) = (Vec::new(), 0);
    for fact in facts.all("library") {
        let error = fact.text("error");
        if error.is_empty() {
            good.push(fact.text("name"));
        } else if !is_absent(fact) || fact.text("name").starts_with('/') {
            bad += 1;
            table.fail(
                Area::Link,
                format!("{} cannot be loaded: {error}", fact.text("name")),
                cure_of(error, around),
            );
        }
    }
    if broken(table, Area::Link, outcome, &facts) || bad > 0 {
        return;
    }
    if good.is_empty() {
        table.skip(Area::Link, "no library of an MPI, a fabric or a GPU to load");
    } else {
        let mut shown = good[..good.len().min(MAX_LISTED)].join(", ");
        if good.len() > MAX_LISTED {
            shown += &format!(" and {} more", good.len() - MAX_LISTED);
        }
        table.pass(Area::Link, format!("{} libraries load, with every symbol bound: {shown}", good.len()));
    }
    whole(table, &facts, around);
}

/// Each stack is of one side.
pub fn whole(table: &mut Table, facts: &Facts, around: &Around) {
    let paths: BTreeSet<&str> = facts.all("object").map(|fact| fact.text("path")).collect();
    for (name, area, beginnings) in STACKS {
        let file = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let is_its = |path: &&&str| beginnings.iter().any(|b| file(path).starts_with(b));
        let its: Vec<&&str> = paths.iter().filter(is_its).collect();
        let Some(first) = its.first() else { continue };
        let other = its.iter().find(|path| around.whose(path) != around.whose(first));
        match other {
            Some(other) => table.fail(
                *area,
                format!(
                    "{name} is of two worlds: {first} is {}, {other} is {}",
                    around.whose(first),
                    around.whose(other)
                ),
                "undo what brings single files of it (--bind, LD_LIBRARY_PATH): all of one side, or nothing",
            ),
            None => {
                let files: Vec<String> = its.iter().map(|path| file(path)).collect();
                table.pass(
                    Area::Link,
                    format!("{name} is {}, all of it: {}", around.whose(first), files.join(", ")),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::validate::table::Status;

    #[test]
    fn one_stack_of_two_worlds() {
        let facts =
            Facts::of("object\tpath=/run/hpc-launch/lib/libucp.so.0\nobject\tpath=/usr/lib/libuct.so.0\n");
        let of_host = [PathBuf::from("/run/hpc-launch")];
        let mut table = Table::default();
        whole(&mut table, &facts, &Around { adapters: &[], of_host: &of_host });
        assert_eq!(table.lines[0].status, Status::Fail);
        assert!(
            table.lines[0]
                .evidence
                .contains("UCX is of two worlds: /run/hpc-launch/lib/libucp.so.0 is the host's")
        );
    }
}

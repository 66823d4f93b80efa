//! What the probe's facts mean: lines with evidence and cure. Pure.

mod cuda;
mod fabric;
mod job;
mod link;

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Area;
use super::child::{End, Outcome};
use super::facts::{Fact, Facts};
use super::table::Table;
use crate::host::fabric::Adapter;

pub use self::cuda::{cuda, nvml};
pub use self::fabric::{libfabric, providers, ucx, verbs};
pub use self::job::{mpi, ranks};
pub use self::link::{load, whole};

/// What is known around a probe.
pub struct Around<'a> {
    /// The host's adapters.
    pub adapters: &'a [Adapter],
    /// Where the host's files lie inside.
    pub of_host: &'a [PathBuf],
}

impl Around<'_> {
    fn active_ports(&self) -> Vec<String> {
        let active = |adapter: &Adapter| {
            let ports = adapter.ports.iter().filter(|port| port.is_active());
            ports.map(|port| format!("{}:{}", adapter.name, port.number)).collect::<Vec<_>>()
        };
        self.adapters.iter().filter(|a| a.class == "infiniband").flat_map(active).collect()
    }

    fn whose(&self, path: &str) -> &'static str {
        if self.of_host.iter().any(|above| Path::new(path).starts_with(above)) {
            "the host's"
        } else {
            "the image's"
        }
    }

    /// Why a fabric library finds no device that the host has: which of the three it is.
    fn missing(&self) -> &'static str {
        let has = |what: fn(&Adapter) -> bool| self.adapters.iter().any(what);
        if !has(|a| a.node.is_some()) {
            "no adapter has a file by which programs reach it (/dev/infiniband/uverbsN)"
        } else if !has(|a| a.ports.iter().any(|port| port.is_active())) {
            "no port is active"
        } else {
            "the adapter is there and its port is active: the library's provider for it is missing, or too old for it"
        }
    }
}

/// A library that is nowhere is no failure: not every image has all.
fn is_absent(fact: &Fact) -> bool {
    let name = fact.text("name");
    fact.text("error").starts_with(&format!("{name}: cannot open shared object file"))
        || fact.text("error").starts_with(&format!("Error loading shared library {name}: No such file"))
}

/// Whether a probe did not come to its end, which is a line then.
fn broken(table: &mut Table, area: Area, outcome: &Outcome, facts: &Facts) -> bool {
    if facts.are_whole() && matches!(outcome.end, End::Exit(0)) {
        return false;
    }
    let doing = match facts.last() {
        Some(fact) if fact.kind == "opening" => format!("while {} was loaded", fact.text("name")),
        Some(fact) if fact.kind == "initialising" => "while the library was initialised".to_owned(),
        Some(fact) if fact.kind == "device" => format!("while {} was opened", fact.text("name")),
        Some(fact) => format!("after \"{}\"", fact.kind),
        None => "before it began".to_owned(),
    };
    let said = outcome.said();
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    table.fail(
        area,
        format!("the probe {} {doing}{said}", outcome.how()),
        "programs will end so too; hpc-launch plan shows which files are involved",
    );
    true
}

/// Whether a library was opened; the line, where it could not be.
fn opened(table: &mut Table, area: Area, facts: &Facts, around: &Around) -> bool {
    let Some(fact) = facts.one("library") else { return false };
    let (name, error) = (fact.text("name"), fact.text("error"));
    if error.is_empty() {
        return true;
    }
    if is_absent(fact) {
        table.skip(area, format!("{name} is neither in the image nor brought by the host"));
    } else {
        table.fail(area, format!("{name} cannot be loaded: {error}"), cure_of(error, around));
    }
    false
}

/// What to do about a loader's message.
fn cure_of(error: &str, around: &Around) -> &'static str {
    if error.contains("IBVERBS_PRIVATE") || error.contains("ibv_cmd_") {
        "libibverbs and its provider are of two releases: take all of one side, with --fabric=host or --fabric=image"
    } else if ["libopen-pal.so", "libopen-rte.so", "ompi_", "opal_", "MPI_", "MPIR_"]
        .iter()
        .any(|n| error.contains(n))
    {
        "the MPI's core and its bindings are of two releases: undo what brings single files of one (--bind, \
         LD_LIBRARY_PATH); hpc-launch takes all of one side"
    } else if error.contains("GLIBC_PRIVATE") {
        "one half of a C library is the image's, the other the host's: undo the bind that does this"
    } else if error.contains("GLIBC_") || error.contains("GLIBCXX_") {
        "the library is built for a newer C library than the image has: let hpc-launch bring the host's \
         (--fabric=host, --mpi=host) instead of binding single files"
    } else if around.of_host.is_empty() {
        "install what is missing in the image"
    } else {
        "install what is missing, in the image or on the host; --mpi=image --fabric=image keeps the host's away"
    }
}

fn error_text(errno: i64) -> String {
    Errno::from_raw(i32::try_from(errno.abs()).unwrap_or(0)).to_string()
}

/// For the tests of what is below.
#[cfg(test)]
mod samples {
    use super::*;

    pub fn outcome(end: End, out: &str, err: &str) -> Outcome {
        Outcome { end, out: out.to_owned(), err: err.to_owned() }
    }

    pub fn around() -> Around<'static> {
        Around { adapters: &[], of_host: &[] }
    }
}

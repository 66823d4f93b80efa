//! `hpc-launch validate`: proves, step by step, that programs of an image reach this host's fabrics and GPUs, and each
//! other. Whatever is loaded is loaded in a child, by the image's own loader, in the sandbox that a rank would have.
//!
//! Under a launcher every rank is one of the job that is tried; the first of each node looks at that node, and rank 0
//! prints one table for all.

mod child;
mod facts;
mod host;
mod inside;
mod judge;
mod table;
mod tool;
mod topology;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use self::child::Watch;
use self::inside::Inside;
use self::table::{Report, Table};
use crate::bridge::host_name;
use crate::cli::ValidateArgs;
use crate::config::Config;
use crate::environ::Environ;
use crate::error::Result;
use crate::job::JobStep;

/// Something failed.
const EXIT_FAILED: u8 = 1;

/// What lines are about, and what may be required.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// Namespaces, mounts and the image
    Sandbox,
    /// Shared and locked memory
    Memory,
    /// Libraries and plugins load, each stack whole
    Link,
    /// Ranks of a node share what they must
    Ranks,
    /// InfiniBand and RoCE
    Verbs,
    /// UCX
    Ucx,
    /// libfabric
    Libfabric,
    /// GPUs
    Cuda,
    /// Descriptions of devices
    Cdi,
    /// MPI
    Mpi,
}

impl Area {
    fn name(self) -> &'static str {
        match self {
            Area::Sandbox => "sandbox",
            Area::Memory => "memory",
            Area::Link => "link",
            Area::Ranks => "ranks",
            Area::Verbs => "verbs",
            Area::Ucx => "ucx",
            Area::Libfabric => "libfabric",
            Area::Cuda => "cuda",
            Area::Cdi => "cdi",
            Area::Mpi => "mpi",
        }
    }
}

/// Validates, prints, and answers the exit status.
pub fn run(args: ValidateArgs, environ: Environ, job: Option<JobStep>) -> Result<u8> {
    let config = Config::load(&environ, Some(&args.options))?;
    let place = job.as_ref().map(|job| &job.rank);
    let is_lead = place.and_then(|rank| rank.local_rank).unwrap_or(0) == 0;
    let is_first = place.and_then(|rank| rank.rank).unwrap_or(0) == 0;
    let ranks = match place {
        Some(rank) => rank.local_size.unwrap_or(1),
        None => args.ranks,
    };
    let mut table = Table { host: host_name(), lines: Vec::new() };
    if is_lead {
        host::look(&mut table, &config, ranks);
    }
    let (json, required) = (args.json, args.require.clone());
    let mut tables = Vec::new();
    // What others have told by way of MPI; none: there was no MPI to tell by.
    let told = match args.image.clone() {
        None => None,
        Some(image) => {
            let watch = Watch::begin()?;
            let inside = Inside::new(args, image, &config, (environ, job.clone()), ranks)?;
            let told = inside.validate(&watch, &mut table, is_lead);
            // A launcher ends the job where MPI gives up in one of its ranks: what was seen so far tells why.
            if let (Err(e), true) = (&told, is_lead && job.is_some()) {
                table.fail(Area::Mpi, format!("the job was ended: {}", e.what), "see what its ranks said");
                table.require(&required);
                let report = Report::new(std::slice::from_ref(&table));
                crate::print(&if json { crate::to_json(&report)? } else { report.text() })?;
            }
            told?
        }
    };
    let is_silent = if told.is_some() { !is_first } else { !is_lead };
    if is_silent {
        return Ok(0);
    }
    table.require(&required);
    tables.push(table);
    for mut other in told.unwrap_or_default() {
        other.require(&required);
        tables.push(other);
    }
    let report = Report::new(&tables);
    crate::print(&if json { crate::to_json(&report)? } else { report.text() })?;
    Ok(if report.is_good() { 0 } else { EXIT_FAILED })
}

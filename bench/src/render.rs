//! `hpc-bench report`: page and CSV of a kept measurement, made again.

use crate::error::Error;
use crate::publish::publish;
use crate::{csv, page, saved};
use std::path::PathBuf;

/// Options of `hpc-bench report`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").args(["html", "csv"]).required(true).multiple(true)))]
pub struct Args {
    /// What a bench wrote with --json
    #[arg(value_name = "FILE.json")]
    file: PathBuf,
    /// Write one self-contained page to this file
    #[arg(long, value_name = "OUT")]
    html: Option<PathBuf>,
    /// Write the tables to this file, one line per row
    #[arg(long, value_name = "OUT")]
    csv: Option<PathBuf>,
}

/// Reads, then writes what was asked for.
pub fn run(args: &Args) -> Result<bool, Error> {
    let document = saved::read(&args.file)?;
    if let Some(path) = &args.html {
        publish(path, page::html(&document).as_bytes(), "--html")?;
    }
    if let Some(path) = &args.csv {
        publish(path, csv::csv(&document).as_bytes(), "--csv")?;
    }
    Ok(true)
}

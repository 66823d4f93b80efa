//! `hpc-launch cdi generate`: descriptions of what this host has, for us and for others.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::spec::Spec;
use super::{fabric, nvidia};
use crate::error::{Code, Error, Result};
use crate::host;

/// What may be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// NVIDIA's GPUs, with the driver's libraries (nvidia.com/gpu)
    Gpu,
    /// Adapters of InfiniBand and RoCE (hpc-launch/verbs)
    Verbs,
    /// Adapters of Slingshot (hpc-launch/cxi)
    Cxi,
    /// GDRCopy (hpc-launch/gdrcopy)
    Gdrcopy,
    /// XPMEM (hpc-launch/xpmem)
    Xpmem,
}

impl What {
    const ALL: [What; 5] = [What::Gpu, What::Verbs, What::Cxi, What::Gdrcopy, What::Xpmem];

    /// In messages and file names.
    fn name(self) -> &'static str {
        match self {
            What::Gpu => "gpu",
            What::Verbs => "verbs",
            What::Cxi => "cxi",
            What::Gdrcopy => "gdrcopy",
            What::Xpmem => "xpmem",
        }
    }

    /// What it is known by, if it is there.
    fn sought(self) -> &'static str {
        match self {
            What::Gpu => {
                "no driver of NVIDIA's is loaded on this host, or it knows no GPU (/sys/module/nvidia/version)"
            }
            What::Verbs => "no adapter in /sys/class/infiniband that has a file in /dev/infiniband",
            What::Cxi => "no adapter in /sys/class/cxi that has a file in /dev",
            What::Gdrcopy => "no /dev/gdrdrv",
            What::Xpmem => "no /dev/xpmem",
        }
    }

    fn describe(self) -> Option<Spec> {
        let adapters = host::fabric::adapters;
        match self {
            What::Gpu => {
                let driver = host::gpu::nvidia().filter(|driver| !driver.gpus.is_empty())?;
                Some(nvidia::describe(&driver, None))
            }
            What::Verbs => fabric::verbs(&adapters()),
            What::Cxi => fabric::cxi(&adapters()),
            What::Gdrcopy => fabric::single("gdrcopy", "/dev/gdrdrv"),
            What::Xpmem => fabric::single("xpmem", "/dev/xpmem"),
        }
    }
}

/// Describes all that there is, or what was asked for, to standard output, into a file, or into files of a directory.
pub fn run(asked: &[What], output: Option<&Path>) -> Result<()> {
    let wanted = if asked.is_empty() { &What::ALL[..] } else { asked };
    let found: Vec<(What, Spec)> = wanted.iter().filter_map(|what| Some((*what, what.describe()?))).collect();
    let missing = wanted.iter().find(|what| found.iter().all(|(known, _)| known != *what));
    if let Some(what) = missing.filter(|_| !asked.is_empty() || found.is_empty()) {
        let sought: Vec<&str> = if asked.is_empty() {
            wanted.iter().map(|what| what.sought()).collect()
        } else {
            vec![what.sought()]
        };
        return Err(Error::new(
            Code::DeviceMissing,
            format!("there is nothing to describe: {}", sought.join("; ")),
            "run on a node with such devices, with their drivers loaded",
        ));
    }
    match output {
        Some(path) if path.is_dir() => found.iter().try_for_each(|(what, spec)| {
            write(&path.join(format!("hpc-launch-{}.json", what.name())), &crate::to_json(spec)?)
        }),
        _ => {
            let [(_, spec)] = found.as_slice() else {
                let names: Vec<&str> = found.iter().map(|(what, _)| what.name()).collect();
                return Err(Error::new(
                    Code::Usage,
                    format!("each kind of device has a file of its own, and there are {}", names.join(", ")),
                    "name one of them, or a directory: hpc-launch cdi generate --output /etc/cdi",
                ));
            };
            let text = crate::to_json(spec)?;
            output.map_or_else(|| crate::print(&text), |path| write(path, &text))
        }
    }
}

/// Whole or not at all: programs may read it at any moment. Others must not write to it.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&unfinished);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    let placed = written.and_then(|()| std::fs::rename(&unfinished, path));
    placed.map_err(|e| {
        let _ = std::fs::remove_file(&unfinished);
        let what = format!("cannot write {}: {e}", path.display());
        Error::new(
            Code::Usage,
            what,
            "name a file of a directory that can be written to, as /etc/cdi/nvidia.json",
        )
    })
}

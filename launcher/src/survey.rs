//! `hpc-launch survey`: what this host has that programs in containers may need, and how that is known.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use abi_probe::elf::Arch;
use abi_probe::fabric::{self, Copy};
use abi_probe::install;
use abi_probe::mpi::{Detail, Mpi};
use abi_probe::parts;
use abi_probe::prober::{Probed, Prober};
use abi_probe::rootfs::View;
use serde::Serialize;

use crate::config::Config;
use crate::environ::Environ;
use crate::error::{Error, Result};
use crate::host::fabric::{Adapter, adapters};
use crate::host::gpu::{self, Driver};
use crate::host::mpi::{Surroundings, candidates, identify};

/// Other devices that make messages faster: by which file, and what it is.
const HELPERS: &[(&str, &str)] = &[
    ("/dev/xpmem", "XPMEM: messages between processes without a copy"),
    ("/dev/knem", "KNEM: messages between processes with one copy"),
    ("/dev/gdrdrv", "GDRCopy: the processor reads a GPU's memory"),
    ("/dev/kfd", "ROCm: GPUs of AMD; their libraries are the image's own"),
];

/// The layout's version.
const VERSION: u32 = 2;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Survey {
    version: u32,
    mpis: Vec<FoundMpi>,
    adapters: Vec<Adapter>,
    fabric_libraries: Vec<FoundStack>,
    nvidia: Option<Driver>,
    helpers: Vec<FoundHelper>,
}

#[derive(Debug, Serialize)]
struct FoundMpi {
    mpi: Mpi,
    why: String,
}

#[derive(Debug, Serialize)]
struct FoundStack {
    stack: &'static str,
    #[serde(flatten)]
    copy: Copy,
    /// Files that it opens: UCX's modules, libfabric's and verbs' providers.
    plugins: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct FoundHelper {
    path: PathBuf,
    what: &'static str,
}

/// What a stack's own libraries open; what cannot be looked at opens nothing.
fn plugins(
    host: &Prober,
    stack: &str,
    heads: &BTreeMap<String, Rc<Probed>>,
    library_path: Option<&str>,
) -> Vec<PathBuf> {
    let found = install::look_at_fabric(host, heads, stack.to_owned(), library_path).ok().flatten();
    let directories = found.into_iter().flat_map(|found| found.directories);
    let own = directories.filter(|directory| parts::stack(&directory.of) == Some(stack));
    own.flat_map(|directory| directory.plugins).collect()
}

/// `libuct_ib.so.0`, `libmlx5-rdmav34.so`, `libefa-fi.so`: the part that people know.
fn short(plugin: &Path) -> String {
    let file = plugin.file_name().unwrap_or_default().to_string_lossy();
    let stem = file.split(".so").next().unwrap_or_default();
    let stem = ["libuct_", "lib"].iter().find_map(|prefix| stem.strip_prefix(prefix)).unwrap_or(stem);
    stem.split("-rdmav").next().unwrap_or(stem).trim_end_matches("-fi").to_owned()
}

impl Survey {
    /// Looks. `daemon`: the launcher's, if there is one.
    pub fn of_host(config: &Config, environ: &Environ, daemon: Option<i32>) -> Result<Survey> {
        let failed =
            |e: abi_probe::Error| Error::step("looking at the host", std::io::Error::other(e.to_string()));
        let around = Surroundings::of(daemon);
        let view = View::host().map_err(failed)?;
        let host = Prober::new(&view);
        let mut mpis = Vec::new();
        for candidate in candidates(&host, config, environ, &around)? {
            if let Some(mpi) = identify(&host, &candidate, Detail::Version)? {
                mpis.push(FoundMpi { mpi, why: candidate.why });
            }
        }
        let library_path = environ.get("LD_LIBRARY_PATH");
        let mut fabric_libraries = Vec::new();
        for stack in fabric::STACKS {
            let path = crate::host::fabric::library(&host, library_path.as_deref(), stack.soname);
            let Some(file) = path.and_then(|path| host.file(&path, Arch::NATIVE)) else { continue };
            let heads = BTreeMap::from([(stack.soname.to_owned(), file)]);
            if let Some(copy) = fabric::copy(&host, stack, &heads).map_err(failed)? {
                let plugins = plugins(&host, stack.name, &heads, library_path.as_deref());
                fabric_libraries.push(FoundStack { stack: stack.name, copy, plugins });
            }
        }
        let helpers = HELPERS.iter().filter(|(path, _)| Path::new(path).exists());
        let helpers = helpers.map(|(path, what)| FoundHelper { path: path.into(), what }).collect();
        Ok(Survey {
            version: VERSION,
            mpis,
            adapters: adapters(),
            fabric_libraries,
            nvidia: gpu::nvidia(),
            helpers,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, text: String| {
            let _ = writeln!(out, "{name:<14} {text}");
        };
        for FoundMpi { mpi, why } in &self.mpis {
            line("MPI", format!("{}: {why}", mpi.describe()));
        }
        if self.mpis.is_empty() {
            line("MPI", "none".to_owned());
        }
        if self.adapters.is_empty() {
            line("fabric", "none: nothing in /sys/class/infiniband or /sys/class/cxi*".to_owned());
        }
        for Adapter { class, name, node, ports, place } in &self.adapters {
            let ports: Vec<String> = ports
                .iter()
                .map(|port| format!("port {} {} ({})", port.number, port.state, port.layer))
                .collect();
            let node =
                node.as_ref().map_or("no file to reach it by".to_owned(), |node| node.display().to_string());
            let numa = place.numa.map(|node| format!("memory node {node}"));
            let all: Vec<String> = [node].into_iter().chain(ports).chain(numa).collect();
            line("fabric", format!("{name} (/sys/class/{class}): {}", all.join(", ")));
        }
        for FoundStack { stack, copy, plugins } in &self.fabric_libraries {
            let mut names: Vec<String> = plugins.iter().map(|path| short(path)).collect();
            // Of UCX's tool for measurements.
            names.retain(|name| !name.contains("perftest"));
            let opens = if names.is_empty() { String::new() } else { format!(", with {}", names.join(" ")) };
            line("", copy.describe(stack) + &opens);
        }
        match &self.nvidia {
            None => line("GPUs", format!("none: no driver of NVIDIA's is loaded ({})", gpu::VERSION)),
            Some(driver) => {
                let where_ = match driver.libraries.first().and_then(|path| path.parent()) {
                    Some(directory) => {
                        format!("{} libraries in {}", driver.libraries.len(), directory.display())
                    }
                    None => format!("no libcuda.so.{}", driver.version),
                };
                line("GPUs", format!("NVIDIA's driver {} ({}), {where_}", driver.version, gpu::VERSION));
                for (n, one) in driver.gpus.iter().enumerate() {
                    let numa = one.place.numa.map(|node| format!(", memory node {node}")).unwrap_or_default();
                    let text =
                        format!("{}, {}, {}, /dev/nvidia{}{numa}", one.model, one.uuid, one.bus, one.minor);
                    line(&format!("GPU {n}"), text);
                }
            }
        }
        for FoundHelper { path, what } in &self.helpers {
            line("", format!("{} ({})", what, path.display()));
        }
        out
    }
}

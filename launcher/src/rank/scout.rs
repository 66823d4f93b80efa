//! What an image has, before any program of it is named: its loader, and its MPIs.

use std::path::Path;

use abi_probe::elf::Arch;
use abi_probe::ldso::Cpu;
use abi_probe::linkmap::Circumstances;
use abi_probe::mpi::{self, Detail, Mpi};
use abi_probe::prober::Prober;
use abi_probe::rootfs::View;
use serde::{Deserialize, Serialize};

use super::{Entered, Myself, Request};
use crate::error::Result;
use crate::host::fabric::{is_provider, provider_directories};
use crate::host::mpi::CORES;

/// Programs that images have, whose loader is the image's.
const PROGRAMS: &[&str] = &["/bin/sh", "/usr/bin/env", "/bin/busybox", "/usr/bin/python3"];
/// Loaders of the machines that this program is built for.
const LOADERS: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];
/// Where MPIs are installed that no loader's cache knows of.
const DIRECTORIES: &[&str] = &[
    "/usr/local/lib",
    "/usr/lib64/openmpi/lib",
    "/usr/lib64/mpich/lib",
    "/opt/openmpi/lib",
    "/opt/mpich/lib",
    "/opt/mvapich2/lib",
    "/opt/hpcx/ompi/lib",
    "/usr/lib64",
    "/usr/lib",
    "/lib",
];

/// Bindings of an MPI, which must be of the same release as its core.
const BINDINGS: &[&str] = &[
    "libmpi_mpifh.so.40",
    "libmpi_usempif08.so.40",
    "libmpi_usempi_ignore_tkr.so.40",
    "libmpi_cxx.so.40",
    "libmpifort.so.12",
    "libmpichfort.so.12",
    "libmpicxx.so.12",
    "libmpichcxx.so.12",
];

const LIBDL: &str = "libdl.so.2";
/// More entries than such a directory has.
const MAX_ENTRIES: usize = 1024;

/// What was found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Scouted {
    /// The loader of its programs; none: all are static.
    pub loader: Option<String>,
    /// Its MPIs, the first of which its programs would most likely use.
    pub mpis: Vec<Mpi>,
    /// Names of the bindings beside the first.
    pub bindings: Vec<String>,
    /// Files of providers of verbs.
    pub providers: Vec<String>,
    /// It has a libdl.so.2, as glibc needs before 2.34 and minimal images lack since.
    pub has_libdl: bool,
}

impl Request {
    /// Looks. To be called in a process that ends afterwards: it is in namespaces of its own.
    pub fn scout(&self) -> Result<Scouted> {
        let image = self.find_image(None)?;
        let myself = Myself::now();
        let entered = Entered::new(&self.config, &myself, None, None)?;
        let attached = self.attach(&image, &myself, &entered)?;
        let view = attached.building.view()?;
        let prober = Prober::new(&view);
        let mut mpis: Vec<Mpi> = Vec::new();
        let named = self.config.mpi_library.value.as_deref().map(|path| path.display().to_string());
        let cached = CORES.iter().filter_map(|name| prober.cached(name, Arch::NATIVE, Cpu::this(), || true));
        let elsewhere = DIRECTORIES.iter().flat_map(|d| CORES.iter().map(move |name| format!("{d}/{name}")));
        let paths: Vec<String> = match named {
            Some(path) => vec![path],
            None => cached.chain(elsewhere).collect(),
        };
        for path in paths {
            let Some(file) = prober.file(Path::new(&path), Arch::NATIVE) else { continue };
            if let Ok(Some(found)) = mpi::identify(&prober, &file, Detail::Version)
                && !mpis.iter().any(|known| known.library == found.library)
            {
                mpis.push(found);
            }
        }
        let beside = mpis.first().and_then(|mpi| mpi.library.parent()).map(Path::to_owned);
        let is_beside = |name: &&&str| {
            beside.as_ref().is_some_and(|d| prober.file(&d.join(name), Arch::NATIVE).is_some())
        };
        let bindings = BINDINGS.iter().filter(is_beside).map(ToString::to_string).collect();
        let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
        let directories = ["/lib", "/usr/lib"].map(|lib| format!("{lib}/{triple}")).into_iter();
        let directories = directories.chain(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(String::from));
        let is_there = |path: String| prober.file(Path::new(&path), Arch::NATIVE).is_some();
        let has_libdl = directories.map(|d| format!("{d}/{LIBDL}")).any(is_there)
            || prober.cached(LIBDL, Arch::NATIVE, Cpu::this(), || true).is_some();
        let (loader, providers) = (loader(&view, &prober), providers(&view));
        Ok(Scouted { loader, mpis, bindings, providers, has_libdl })
    }
}

fn providers(view: &View) -> Vec<String> {
    let mut all = Vec::new();
    for directory in provider_directories() {
        let Ok(Some(entry)) = view.find(&directory) else { continue };
        let Ok((names, _)) = entry.list(MAX_ENTRIES) else { continue };
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        all.extend(names.filter(|n| is_provider(n)).map(|name| format!("{}/{name}", directory.display())));
    }
    all
}

/// The loader of the image's own programs, by the name by which they ask for it.
fn loader(view: &View, prober: &Prober) -> Option<String> {
    let of_program = |path: &&str| {
        let entry = view.find(Path::new(path)).ok()??;
        let map = prober.program(&entry, &Circumstances::default()).ok()?.ok()?;
        let main = map.main?;
        main.object.interp.clone().filter(|interp| interp.starts_with('/'))
    };
    let exists = |path: &String| prober.file(Path::new(path), Arch::NATIVE).is_some();
    PROGRAMS
        .iter()
        .find_map(of_program)
        .filter(exists)
        .or_else(|| LOADERS.iter().map(|path| (*path).to_owned()).find(exists))
}

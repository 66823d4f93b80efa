//! The host's fabrics: whether it has devices of any, and where its libraries are.

use std::path::{Path, PathBuf};

use abi_probe::elf::Arch;
use abi_probe::ldso::Cpu;
use abi_probe::prober::Prober;

use super::names;

/// Where the kernel lists devices by class. InfiniBand, RoCE, iWARP, EFA and Omni-Path are all `infiniband`
/// (drivers/infiniband/core/device.c, ib_class); Slingshot's are `cxi` and `cxi_user`.
const CLASSES: &str = "/sys/class";

/// Names of the fabric devices, as `infiniband/mlx5_0`: none on most machines, which costs one look.
pub fn devices() -> Vec<String> {
    let classes = names(Path::new(CLASSES)).into_iter();
    let fabrics = classes.filter(|class| class == "infiniband" || class.starts_with("cxi"));
    let devices = |class: String| {
        let devices = names(&Path::new(CLASSES).join(&class)).into_iter();
        devices.map(move |device| format!("{class}/{device}"))
    };
    fabrics.flat_map(devices).collect()
}

/// Where a program of the host would find a library: in LD_LIBRARY_PATH, then by the loader's cache.
pub fn library(host: &Prober, library_path: Option<&str>, name: &str) -> Option<PathBuf> {
    let listed = library_path.unwrap_or_default().split(':').filter(|d| d.starts_with('/'));
    let mut paths = listed.map(|directory| Path::new(directory).join(name));
    let is_library = |path: &PathBuf| host.file(path, Arch::NATIVE).is_some();
    paths.find(is_library).or_else(|| {
        let cached = host.cached(name, Arch::NATIVE, Cpu::this(), || true);
        cached.map(PathBuf::from).filter(is_library)
    })
}

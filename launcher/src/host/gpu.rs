//! The host's GPUs: the driver that is loaded, its files, and where each GPU is. By what the kernel says, without any
//! library of the driver's: that must work where the driver is broken, and in a program that loads no libraries.
//!
//! Sources: the driver's README (chapter "The proc file system interface"), nvidia-container-toolkit's list of
//! libraries, Documentation/ABI/testing/sysfs-bus-pci.

use std::path::{Path, PathBuf};

use abi_probe::elf::Arch;
use abi_probe::ldso::Cpu;
use abi_probe::prober::Prober;
use abi_probe::rootfs::View;
use serde::{Deserialize, Serialize};

use super::names;

/// The version of the loaded driver.
pub const VERSION: &str = "/sys/module/nvidia/version";
/// A directory for each GPU, named by its place on the bus.
const GPUS: &str = "/proc/driver/nvidia/gpus";
/// What every program of CUDA opens, and what some do. (`nvidia-uvm`: unified memory, without which cuInit fails.)
const NODES: &[&str] = &["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
/// Directories of device files, for parts of GPUs and for memory of other nodes, and how files of switches begin.
const NODE_DIRECTORIES: &[&str] = &["nvidia-caps", "nvidia-caps-imex-channels"];
const SWITCHES: &str = "nvidia-nvswitch";
/// Where drivers are installed that no loader's cache knows of.
const DIRECTORIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/local/nvidia/lib64",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
    "/run/opengl-driver/lib",
    "/usr/lib/wsl/lib",
];
/// Its compiler has a version of its own.
const ALSO: &[&str] = &["libnvidia-nvvm.so.4", "libnvidia-nvvm70.so.4"];
/// For graphics: they speak to libraries of the display, which are the image's.
const GRAPHICS: &[&str] = &[
    "libEGL",
    "libGL",
    "libnvidia-api",
    "libnvidia-egl",
    "libnvidia-eglcore",
    "libnvidia-fbc",
    "libnvidia-gl",
    "libnvidia-gtk",
    "libnvidia-ngx",
    "libnvidia-rtcore",
    "libnvidia-tls",
    "libnvidia-vulkan",
    "libnvidia-wayland",
    "libnvidia-xcb",
    "libnvoptix",
    "libvdpau",
];
/// Its services, by their sockets.
pub const SOCKETS: &[&str] =
    &["/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket", "/run/nvidia-topologyd/socket"];
/// A GPU's description has a dozen lines.
const MAX_TEXT: usize = 4096;

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// `GPU-…`.
    pub uuid: String,
    /// As NVIDIA calls it.
    pub model: String,
    /// Its place on the bus, `0000:17:00.0`.
    pub bus: String,
    /// Its file is `/dev/nvidiaMINOR`.
    pub minor: u32,
    /// The memory node that it is next to; none: the machine has only one, or does not say.
    pub numa: Option<u32>,
}

/// A driver that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// As the kernel's part says.
    pub version: String,
    /// In the order of their places on the bus, in which CUDA counts them when it is told so.
    pub gpus: Vec<Gpu>,
    /// Files of devices that are not one GPU's.
    pub nodes: Vec<PathBuf>,
    /// Its libraries of this very version, but for graphics; none: they were not found.
    pub libraries: Vec<PathBuf>,
    /// Where they were looked for.
    #[serde(skip)]
    pub searched: Vec<PathBuf>,
}

/// The version of the driver that is loaded.
pub fn version() -> Option<String> {
    Some(std::fs::read_to_string(VERSION).ok()?.trim().to_owned())
}

/// NVIDIA's driver. Where none is loaded that costs one look.
pub fn nvidia() -> Option<Driver> {
    let version = version()?;
    let mut gpus: Vec<Gpu> = names(Path::new(GPUS))
        .into_iter()
        .filter_map(|bus| {
            let text = std::fs::read_to_string(Path::new(GPUS).join(&bus).join("information")).ok()?;
            let numa =
                std::fs::read_to_string(format!("/sys/bus/pci/devices/{}/numa_node", bus.to_lowercase()));
            // -1: nobody knows.
            let numa = numa.ok().and_then(|text| text.trim().parse().ok());
            information(&text, &bus, numa)
        })
        .collect();
    gpus.sort_by(|a, b| a.bus.cmp(&b.bus));
    let dev = Path::new("/dev");
    let mut nodes: Vec<PathBuf> =
        NODES.iter().map(|name| dev.join(name)).filter(|path| path.exists()).collect();
    nodes.extend(names(dev).into_iter().filter(|name| name.starts_with(SWITCHES)).map(|name| dev.join(name)));
    for directory in NODE_DIRECTORIES.iter().map(|name| dev.join(name)) {
        nodes.extend(names(&directory).into_iter().map(|name| directory.join(name)));
    }
    let (libraries, searched) = libraries(&version);
    Some(Driver { version, gpus, nodes, libraries, searched })
}

/// `NAME: VALUE` lines.
fn information(text: &str, bus: &str, numa: Option<u32>) -> Option<Gpu> {
    let text = text.get(..MAX_TEXT).unwrap_or(text);
    let value = |name: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.find(|(known, _)| known.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    let uuid = value("GPU UUID").filter(|uuid| uuid.starts_with("GPU-") && !uuid.contains('?'))?;
    let minor = value("Device Minor")?.parse().ok()?;
    Some(Gpu { uuid, model: value("Model").unwrap_or_default(), bus: bus.to_owned(), minor, numa })
}

/// The first directory that has the driver's libcuda, with all that belongs to it; and every directory looked into.
fn libraries(version: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let cached = View::host().ok().and_then(|view| {
        let path = Prober::new(&view).cached("libcuda.so.1", Arch::NATIVE, Cpu::this(), || true)?;
        std::fs::canonicalize(path).ok()?.parent().map(Path::to_owned)
    });
    let mut searched = Vec::new();
    for directory in cached.into_iter().chain(DIRECTORIES.iter().map(PathBuf::from)) {
        if !directory.is_dir() || searched.contains(&directory) {
            continue;
        }
        if directory.join(format!("libcuda.so.{version}")).is_file() {
            let is_its = |name: &String| is_library(name, version);
            let found =
                names(&directory).into_iter().filter(is_its).map(|name| directory.join(name)).collect();
            searched.push(directory);
            return (found, searched);
        }
        searched.push(directory);
    }
    (Vec::new(), searched)
}

/// Whether a file is one of the driver's of this version, not for graphics.
fn is_library(name: &str, version: &str) -> bool {
    if ALSO.contains(&name) {
        return true;
    }
    let Some(stem) = name.strip_suffix(version).and_then(|rest| rest.strip_suffix(".so.")) else {
        return false;
    };
    stem.starts_with("lib") && !GRAPHICS.iter().any(|prefix| stem.starts_with(prefix))
}

/// Memory nodes that are next to these processors, and how far each node is from them: the least distance to any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distances(Vec<(u32, u32)>);

impl Distances {
    /// For these processors, by what `sys` (`/sys`) says of its nodes.
    pub fn of(sys: &Path, processors: &[usize]) -> Distances {
        let nodes = sys.join("devices/system/node");
        let mut numbers: Vec<u32> =
            names(&nodes).iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
        // By number: rows of distances are in that order.
        numbers.sort_unstable();
        let text = |node: u32, name: &str| {
            std::fs::read_to_string(nodes.join(format!("node{node}/{name}"))).unwrap_or_default()
        };
        let mut least: Vec<(u32, u32)> = numbers.iter().map(|node| (*node, u32::MAX)).collect();
        for node in &numbers {
            let has = ranges(&text(*node, "cpulist"));
            if !processors.iter().any(|cpu| has.iter().any(|(first, last)| (first..=last).contains(&cpu))) {
                continue;
            }
            let row = text(*node, "distance");
            for ((_, known), distance) in least.iter_mut().zip(row.split_ascii_whitespace()) {
                *known = (*known).min(distance.parse().unwrap_or(u32::MAX));
            }
        }
        Distances(least)
    }

    /// To a node; what nobody knows is next to everything.
    fn to(&self, node: Option<u32>) -> u32 {
        let known = node.and_then(|node| self.0.iter().find(|(n, _)| *n == node));
        known.map_or(0, |(_, distance)| *distance)
    }

    /// The GPU for the rank of this number on its node: of those that are closest, the next one.
    pub fn closest<'a>(&self, gpus: &'a [Gpu], local_rank: u32) -> Option<&'a Gpu> {
        let least = gpus.iter().map(|gpu| self.to(gpu.numa)).min()?;
        let near: Vec<&Gpu> = gpus.iter().filter(|gpu| self.to(gpu.numa) == least).collect();
        near.get(local_rank as usize % near.len()).copied()
    }
}

/// `0-3,8,10-11`.
fn ranges(text: &str) -> Vec<(usize, usize)> {
    let one = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.trim().split(',').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(minor: u32, numa: Option<u32>) -> Gpu {
        let (uuid, bus) = (format!("GPU-{minor}"), format!("0000:{minor:02x}:00.0"));
        Gpu { uuid, model: String::new(), bus, minor, numa }
    }

    #[test]
    fn a_gpu_as_the_driver_describes_it() {
        let text = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 182\nGPU UUID: \t GPU-5a1f0b1c-1111-2222-3333-444455556666\n\
                    Video BIOS: \t ??.??.??.??.??\nBus Type: \t PCIe\nBus Location: \t 0000:17:00.0\nDevice Minor: \t 3\n";
        let found = information(text, "0000:17:00.0", Some(1)).unwrap();
        assert_eq!(found.uuid, "GPU-5a1f0b1c-1111-2222-3333-444455556666");
        assert_eq!((found.model.as_str(), found.minor, found.numa), ("NVIDIA H100 80GB HBM3", 3, Some(1)));
        // Before anybody has opened it the driver does not know its name.
        let unknown =
            text.replace("5a1f0b1c-1111-2222-3333-444455556666", "????????-????-????-????-????????????");
        assert_eq!(information(&unknown, "0000:17:00.0", None), None);
        assert_eq!(information("", "0000:17:00.0", None), None);
    }

    #[test]
    fn libraries_of_this_version_that_are_not_for_graphics() {
        let is = |name| is_library(name, "550.54.14");
        for yes in ["libcuda.so.550.54.14", "libnvidia-ml.so.550.54.14", "libnvidia-nvvm.so.4"] {
            assert!(is(yes), "{yes}");
        }
        for no in
            ["libcuda.so.535.1", "libcuda.so.1", "libGLX_nvidia.so.550.54.14", "x.so.550.54.14", "libc.so.6"]
        {
            assert!(!is(no), "{no}");
        }
    }

    #[test]
    fn ranks_get_the_next_of_the_closest() {
        let sys = tempfile::tempdir().unwrap();
        for (node, cpus, row) in [(0, "0-3,8", "10 21"), (1, "4-7", "21 10")] {
            let at = sys.path().join(format!("devices/system/node/node{node}"));
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join("cpulist"), cpus).unwrap();
            std::fs::write(at.join("distance"), row).unwrap();
        }
        let gpus = [gpu(0, Some(0)), gpu(1, Some(0)), gpu(2, Some(1)), gpu(3, Some(1))];
        let closest =
            |cpus: &[usize], rank| Distances::of(sys.path(), cpus).closest(&gpus, rank).unwrap().minor;
        assert_eq!([closest(&[1], 0), closest(&[8], 1), closest(&[0], 2)], [0, 1, 0]);
        assert_eq!([closest(&[5], 0), closest(&[6, 7], 1)], [2, 3]);
        // Bound to both, to none that is known, or without a word on memory: one after the other.
        assert_eq!([closest(&[0, 5], 2), closest(&[0, 5], 3)], [2, 3]);
        let flat = Distances::of(Path::new("/nonexistent"), &[0]);
        assert_eq!(flat.closest(&gpus, 5).unwrap().minor, 1);
        assert_eq!(flat.closest(&[], 0), None);
    }
}

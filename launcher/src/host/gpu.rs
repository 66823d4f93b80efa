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
use super::place::Place;

/// The version of the loaded driver.
pub const VERSION: &str = "/sys/module/nvidia/version";
/// A directory for each GPU, named by its place on the bus.
const GPUS: &str = "/proc/driver/nvidia/gpus";
/// What the driver grants by files, and what it says of itself.
const CAPABILITIES: &str = "/proc/driver/nvidia/capabilities";
const MODULES: &str = "/proc/driver/nvidia/version";
const PEER_MEMORY: &str = "/sys/module/nvidia_peermem";
/// Where the kernel has every device of the bus.
const BUS: &str = "/sys/bus/pci/devices";
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
/// Its programs, which are of its version too.
const TOOLS: &[&str] =
    &["nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"];
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
    /// Next to which memory, and behind which bridges.
    #[serde(flatten)]
    pub place: Place,
}

impl Gpu {
    /// Its file.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/nvidia{}", self.minor))
    }
}

/// A driver that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// As the kernel's part says.
    pub version: String,
    /// In the order of their places on the bus, in which CUDA counts them when it is told so.
    pub gpus: Vec<Gpu>,
    /// Files of devices by which programs reach the driver.
    pub nodes: Vec<PathBuf>,
    /// Files of parts of GPUs, of switches, and of memory of other nodes' GPUs: for those who may open them.
    pub others: Vec<PathBuf>,
    /// Its libraries of this very version, but for graphics; none: they were not found.
    pub libraries: Vec<PathBuf>,
    /// Its programs, as `nvidia-smi`.
    pub tools: Vec<PathBuf>,
    /// How fabric adapters reach the GPUs' memory; none: they do not.
    pub direct: Option<Direct>,
    /// Where the libraries were looked for.
    #[serde(skip)]
    pub searched: Vec<PathBuf>,
}

/// GPUDirect RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direct {
    /// The module `nvidia_peermem`.
    PeerMemory,
    /// The kernel's own way, for which the driver's open modules are needed.
    DmaBuf,
}

/// Part of a GPU (MIG), of which the driver lets in who may open its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The minor number of its GPU's file.
    pub gpu: u32,
    /// `gi1`, `gi1/ci0`.
    pub name: String,
    /// Of `/dev/nvidia-caps`.
    minor: u32,
}

impl Part {
    /// Its file.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(NODE_DIRECTORIES[0]).join(format!("nvidia-cap{}", self.minor))
    }
}

/// All parts of GPUs, by the driver's list of what it grants by files.
pub fn parts() -> Vec<Part> {
    let mut all = Vec::new();
    let starts = |directory: &Path, prefix: &'static str| {
        names(directory).into_iter().filter(move |name| name.starts_with(prefix))
    };
    for gpu in starts(Path::new(CAPABILITIES), "gpu") {
        let Ok(number) = gpu["gpu".len()..].parse() else { continue };
        let mig = Path::new(CAPABILITIES).join(&gpu).join("mig");
        let mut add = |name: String| {
            let text = std::fs::read_to_string(mig.join(&name).join("access")).unwrap_or_default();
            let minor = value(&text, "DeviceFileMinor").and_then(|text| text.parse().ok());
            all.extend(minor.map(|minor| Part { gpu: number, name, minor }));
        };
        for instance in starts(&mig, "gi") {
            for compute in starts(&mig.join(&instance), "ci") {
                add(format!("{instance}/{compute}"));
            }
            add(instance);
        }
    }
    all
}

/// How adapters reach the GPUs' memory. The first line of the driver's own account says which kernel modules these are.
fn direct() -> Option<Direct> {
    if Path::new(PEER_MEMORY).exists() {
        return Some(Direct::PeerMemory);
    }
    let text = std::fs::read_to_string(MODULES).ok()?;
    text.lines().next()?.contains("Open Kernel Module").then_some(Direct::DmaBuf)
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
            let place = Place::of(&Path::new(BUS).join(bus.to_lowercase()));
            information(&text, &bus, place)
        })
        .collect();
    gpus.sort_by(|a, b| a.bus.cmp(&b.bus));
    let dev = Path::new("/dev");
    let nodes = NODES.iter().map(|name| dev.join(name)).filter(|path| path.exists()).collect();
    let mut others: Vec<PathBuf> = Vec::new();
    others
        .extend(names(dev).into_iter().filter(|name| name.starts_with(SWITCHES)).map(|name| dev.join(name)));
    for directory in NODE_DIRECTORIES.iter().map(|name| dev.join(name)) {
        others.extend(names(&directory).into_iter().map(|name| directory.join(name)));
    }
    let (libraries, searched) = libraries(&version);
    let tools = tools(libraries.first().and_then(|library| library.parent()));
    Some(Driver { version, gpus, nodes, others, libraries, tools, direct: direct(), searched })
}

/// Of `NAME: VALUE` lines.
fn value(text: &str, name: &str) -> Option<String> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(known, _)| known.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// A GPU's description.
fn information(text: &str, bus: &str, place: Place) -> Option<Gpu> {
    let text = text.get(..MAX_TEXT).unwrap_or(text);
    let value = |name| value(text, name);
    let uuid = value("GPU UUID").filter(|uuid| uuid.starts_with("GPU-") && !uuid.contains('?'))?;
    let minor = value("Device Minor")?.parse().ok()?;
    Some(Gpu { uuid, model: value("Model").unwrap_or_default(), bus: bus.to_owned(), minor, place })
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

/// Programs of the driver's: beside its libraries where it has a tree of its own, else where programs are.
fn tools(libraries: Option<&Path>) -> Vec<PathBuf> {
    let own = libraries
        .and_then(Path::parent)
        .filter(|tree| *tree != Path::new("/usr"))
        .map(|tree| tree.join("bin"));
    let directories = [own, Some(PathBuf::from("/usr/bin"))];
    let find = |name: &&str| {
        let paths = directories.iter().flatten().map(|directory| directory.join(name));
        paths.into_iter().find(|path| path.is_file())
    };
    TOOLS.iter().filter_map(find).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_as_the_driver_describes_it() {
        let text = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 182\nGPU UUID: \t GPU-5a1f0b1c-1111-2222-3333-444455556666\n\
                    Video BIOS: \t ??.??.??.??.??\nBus Type: \t PCIe\nBus Location: \t 0000:17:00.0\nDevice Minor: \t 3\n";
        let found = information(text, "0000:17:00.0", Place { numa: Some(1), bridges: Vec::new() }).unwrap();
        assert_eq!(found.uuid, "GPU-5a1f0b1c-1111-2222-3333-444455556666");
        assert_eq!(
            (found.model.as_str(), found.minor, found.place.numa),
            ("NVIDIA H100 80GB HBM3", 3, Some(1))
        );
        // Before anybody has opened it the driver does not know its name.
        let unknown =
            text.replace("5a1f0b1c-1111-2222-3333-444455556666", "????????-????-????-????-????????????");
        assert_eq!(information(&unknown, "0000:17:00.0", Place::default()), None);
        assert_eq!(information("", "0000:17:00.0", Place::default()), None);
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
}

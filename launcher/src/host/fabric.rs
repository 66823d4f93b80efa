//! The host's fabrics: whether it has devices of any, and where its libraries are.

use std::path::{Path, PathBuf};

use abi_probe::elf::Arch;
use abi_probe::ldso::Cpu;
use abi_probe::prober::Prober;

use serde::Serialize;

use super::names;

/// Where the kernel lists devices by class. InfiniBand, RoCE, iWARP, EFA and Omni-Path are all `infiniband`
/// (drivers/infiniband/core/device.c, ib_class); Slingshot's are `cxi` and `cxi_user`.
const CLASSES: &str = "/sys/class";

/// A fabric's adapter, as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Adapter {
    /// Its class: `infiniband`, `cxi`.
    pub class: String,
    /// Its name: `mlx5_0`.
    pub name: String,
    /// The file by which programs reach it; none: there is none.
    pub node: Option<PathBuf>,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// From 1.
    pub number: u32,
    /// `ACTIVE`, `DOWN`, `INIT`…
    pub state: String,
    /// `LinkUp`, `Disabled`, `Polling`…
    pub physical: String,
    /// `InfiniBand`, `Ethernet`.
    pub layer: String,
}

impl Adapter {
    /// The file by which programs would reach it.
    pub fn wanted_node(&self) -> String {
        match self.class.as_str() {
            "infiniband" => format!("/dev/infiniband/uverbsN of {}", self.name),
            _ => format!("/dev/{}", self.name),
        }
    }
}

/// All adapters that the kernel knows below `root`.
///
/// Sources: Documentation/ABI/stable/sysfs-class-infiniband; drivers/infiniband/core/uverbs_main.c (`ibdev`).
pub fn adapters(root: &Path) -> Vec<Adapter> {
    let class = |name: &str| root.join("sys/class").join(name);
    let text = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let verbs = class("infiniband_verbs");
    let uverbs: Vec<(String, String)> = names(&verbs)
        .into_iter()
        .filter(|node| node.starts_with("uverbs"))
        .map(|node| (text(verbs.join(&node).join("ibdev")), node))
        .collect();
    devices_of(&root.join("sys/class"))
        .into_iter()
        .map(|(class_name, name)| {
            let ports = class(&class_name).join(&name).join("ports");
            // "4: ACTIVE".
            let word = |text: String| text.split_once(": ").map(|(_, word)| word.to_owned()).unwrap_or(text);
            let ports_ = names(&ports).into_iter().filter_map(|number| {
                let at = |file: &str| text(ports.join(&number).join(file));
                Some(Port {
                    state: word(at("state")),
                    physical: word(at("phys_state")),
                    layer: at("link_layer"),
                    number: number.parse().ok()?,
                })
            });
            let node = match class_name.as_str() {
                "infiniband" => {
                    let node = uverbs.iter().find(|(device, _)| *device == name);
                    node.map(|(_, node)| root.join("dev/infiniband").join(node))
                }
                _ => Some(root.join("dev").join(&name)),
            };
            let node = node.filter(|node| node.exists());
            Adapter { ports: ports_.collect(), class: class_name, name, node }
        })
        .collect()
}

/// Bytes that each port has sent so far, as far as its counters tell: `port_xmit_data` counts words of four bytes
/// (InfiniBand Architecture, 16.1.3.5); Soft-RoCE counts packets only, which are of a KiB by default.
pub fn sent_bytes() -> Vec<(String, u64)> {
    let base = Path::new(CLASSES).join("infiniband");
    let mut all = Vec::new();
    for device in names(&base) {
        let ports = base.join(&device).join("ports");
        for port in names(&ports) {
            let counter = |file: &str| {
                let text = std::fs::read_to_string(ports.join(&port).join(file)).ok()?;
                text.trim().parse::<u64>().ok()
            };
            let words = counter("counters/port_xmit_data").map(|words| words.saturating_mul(4));
            let packets = || counter("hw_counters/sent_pkts").map(|packets| packets.saturating_mul(1024));
            all.push((format!("{device}:{port}"), words.or_else(packets).unwrap_or(0)));
        }
    }
    all
}

/// Files of providers of verbs that lead to nothing, and where.
pub fn dangling_providers() -> Vec<(PathBuf, PathBuf)> {
    let triple = format!("/usr/lib/{}-linux-gnu/libibverbs", std::env::consts::ARCH);
    let directories = [triple.as_str(), "/usr/lib64/libibverbs", "/usr/lib/libibverbs"].map(Path::new);
    let files = directories.into_iter().flat_map(|directory| {
        names(directory)
            .into_iter()
            .filter(|name| name.contains("-rdmav"))
            .map(move |name| directory.join(name))
    });
    files
        .filter(|file| !file.exists())
        .map(|file| (file.clone(), file.read_link().unwrap_or_default()))
        .collect()
}

/// Names of the fabric devices, as `infiniband/mlx5_0`: none on most machines, which costs one look.
pub fn devices() -> Vec<String> {
    devices_of(Path::new(CLASSES)).into_iter().map(|(class, name)| format!("{class}/{name}")).collect()
}

/// The same, as class and name.
fn devices_of(classes: &Path) -> Vec<(String, String)> {
    let fabrics =
        names(classes).into_iter().filter(|class| class == "infiniband" || class.starts_with("cxi"));
    let devices = |class: String| {
        names(&classes.join(&class))
            .into_iter()
            .map(move |device| (class.clone(), device))
            .collect::<Vec<_>>()
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

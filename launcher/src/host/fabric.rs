//! The host's fabrics: whether it has devices of any, and where its libraries are.

use std::path::{Path, PathBuf};

use abi_probe::elf::Arch;
use abi_probe::ldso::Cpu;
use abi_probe::prober::Prober;

use serde::{Deserialize, Serialize};

use super::names;
use super::place::Place;

/// Where the kernel lists devices by class.
const CLASSES: &str = "/sys/class";

/// Classes of fabrics' devices, sorted. InfiniBand, RoCE, iWARP, EFA and Omni-Path are all `infiniband`
/// (drivers/infiniband/core/device.c, ib_class); Slingshot's are `cxi` and `cxi_user`. Asked for by name: to list all
/// classes costs each first rank as much as three mounts.
const FABRICS: &[&str] = &["cxi", "cxi_user", "infiniband"];

/// A fabric's adapter, as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// Its class: `infiniband`, `cxi`.
    pub class: String,
    /// Its name: `mlx5_0`.
    pub name: String,
    /// The file by which programs reach it; none: there is none.
    pub node: Option<PathBuf>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Next to which memory, and behind which bridges.
    #[serde(flatten)]
    pub place: Place,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl Port {
    /// Whether it carries messages.
    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }
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

/// All adapters that the kernel knows.
///
/// Sources: Documentation/ABI/stable/sysfs-class-infiniband; drivers/infiniband/core/uverbs_main.c (`ibdev`).
pub fn adapters() -> Vec<Adapter> {
    let (classes, dev) = (Path::new(CLASSES), Path::new("/dev"));
    let text = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let verbs = classes.join("infiniband_verbs");
    let uverbs: Vec<(String, String)> = names(&verbs)
        .into_iter()
        .filter(|node| node.starts_with("uverbs"))
        .map(|node| (text(verbs.join(&node).join("ibdev")), node))
        .collect();
    let adapter = |(class, name): (String, String)| {
        let directory = classes.join(&class).join(&name).join("ports");
        // "4: ACTIVE".
        let word = |text: String| text.split_once(": ").map(|(_, word)| word.to_owned()).unwrap_or(text);
        let ports = names(&directory).into_iter().filter_map(|number| {
            let at = |file: &str| text(directory.join(&number).join(file));
            Some(Port {
                state: word(at("state")),
                physical: word(at("phys_state")),
                layer: at("link_layer"),
                number: number.parse().ok()?,
            })
        });
        let ports = ports.collect();
        let node = match class.as_str() {
            "infiniband" => {
                let node = uverbs.iter().find(|(device, _)| *device == name);
                node.map(|(_, node)| dev.join("infiniband").join(node))
            }
            _ => Some(dev.join(&name)),
        };
        let place = Place::of(&classes.join(&class).join(&name).join("device"));
        Adapter { class, name, node: node.filter(|node| node.exists()), ports, place }
    };
    devices_of_classes().into_iter().map(adapter).collect()
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

/// Where distributions have providers of verbs, on the host or in an image.
pub fn provider_directories() -> [PathBuf; 3] {
    let triple = format!("/usr/lib/{}-linux-gnu/libibverbs", std::env::consts::ARCH);
    [triple.into(), "/usr/lib64/libibverbs".into(), "/usr/lib/libibverbs".into()]
}

/// Whether a file there is a provider: `libmlx5-rdmav34.so`.
pub fn is_provider(name: &str) -> bool {
    name.contains("-rdmav")
}

/// Files of providers of verbs that lead to nothing, and where.
pub fn dangling_providers() -> Vec<(PathBuf, PathBuf)> {
    let files = provider_directories().into_iter().flat_map(|directory| {
        let providers = names(&directory).into_iter().filter(|name| is_provider(name));
        providers.map(move |name| directory.join(name))
    });
    let dangling = files.filter(|file| !file.exists());
    dangling.map(|file| (file.clone(), file.read_link().unwrap_or_default())).collect()
}

/// Names of the fabric devices, as `infiniband/mlx5_0`: none on most machines, which costs one look.
pub fn devices() -> Vec<String> {
    devices_of_classes().into_iter().map(|(class, name)| format!("{class}/{name}")).collect()
}

/// The same, as class and name.
fn devices_of_classes() -> Vec<(String, String)> {
    let devices = |class: &&str| {
        let devices = names(&Path::new(CLASSES).join(class)).into_iter();
        let class = (*class).to_owned();
        devices.map(move |device| (class.clone(), device))
    };
    FABRICS.iter().flat_map(devices).collect()
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

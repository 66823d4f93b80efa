//! What of a node is next to which of its processors: for where ranks are, and which GPU is theirs. Pure, but for a look.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::fabric::Adapter;
use crate::host::gpu::Driver;
use crate::host::place::{Distances, Node, Place, nodes, ranges};

/// A node's memory and devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    nodes: Vec<Node>,
    devices: Vec<Device>,
}

/// A GPU or an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// `GPU 0`, `mlx5_0`.
    pub name: String,
    /// A GPU's UUID.
    uuid: Option<String>,
    place: Place,
}

impl Topology {
    /// Of this host.
    pub fn of_host(driver: Option<&Driver>, adapters: &[Adapter]) -> Topology {
        let gpu = |(n, gpu): (usize, &crate::host::gpu::Gpu)| Device {
            name: format!("GPU {n}"),
            uuid: Some(gpu.uuid.clone()),
            place: gpu.place.clone(),
        };
        let gpus = driver.into_iter().flat_map(|driver| driver.gpus.iter().enumerate().map(gpu));
        let adapter = |one: &Adapter| Device { name: one.name.clone(), uuid: None, place: one.place.clone() };
        let devices: Vec<Device> = gpus.chain(adapters.iter().map(adapter)).collect();
        let nodes = if devices.is_empty() { Vec::new() } else { nodes(Path::new("/sys")) };
        Topology { nodes, devices }
    }

    /// The devices that are next to these processors; nothing, where all are.
    pub fn close_to(&self, cpus: &str) -> Vec<&Device> {
        let from = self.from(cpus);
        let is_close = |one: &&Device| from.to(one.place.numa) <= from.least();
        let close: Vec<&Device> = self.devices.iter().filter(is_close).collect();
        if close.len() < self.devices.len() { close } else { Vec::new() }
    }

    /// The GPU that a rank there was given, if others are closer, and those.
    pub fn farther(&self, cpus: &str, visible: &str) -> Option<(&Device, Vec<&Device>)> {
        let from = self.from(cpus);
        let distance = |one: &Device| from.to(one.place.numa);
        let given = self.devices.iter().find(|one| one.uuid.as_deref() == Some(visible))?;
        let better = |one: &&Device| one.uuid.is_some() && distance(one) < distance(given);
        let closer: Vec<&Device> = self.devices.iter().filter(better).collect();
        (!closer.is_empty()).then_some((given, closer))
    }

    fn from(&self, cpus: &str) -> Distances {
        Distances::of_processors(&self.nodes, &ranges(cpus))
    }
}

#[cfg(test)]
impl Topology {
    /// Two memory nodes with four processors each, and these devices, by name, UUID and node.
    pub fn sample(devices: &[(&str, &str, u32)]) -> Topology {
        let json = r#"[{"number":0,"cpus":"0-3","distances":[10,21]},{"number":1,"cpus":"4-7","distances":[21,10]}]"#;
        let device = |(name, uuid, numa): &(&str, &str, u32)| Device {
            name: (*name).to_owned(),
            uuid: (!uuid.is_empty()).then(|| (*uuid).to_owned()),
            place: Place { numa: Some(*numa), bridges: Vec::new() },
        };
        Topology { nodes: serde_json::from_str(json).unwrap(), devices: devices.iter().map(device).collect() }
    }
}

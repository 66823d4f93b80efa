//! Adapters, and what copies between processes and from GPUs, as they would be described: their files only. Their
//! libraries are the image's, or the host's by way of `--fabric`, which other runtimes have no equal of.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::nvidia::ALL;
use super::spec::{Device, DeviceNode, Edits, Spec};
use crate::host::fabric::Adapter;

/// The vendor of what is nobody's: we describe it.
const VENDOR: &str = "hpc-launch";
/// By which librdmacm, and libfabric's provider for verbs, find their way.
const CONNECTIONS: &str = "/dev/infiniband/rdma_cm";

/// A device's file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    path: PathBuf,
    /// The group that may open it, where not everybody may.
    group: Option<u32>,
}

impl Node {
    /// `None`: it is not there, or no device's.
    fn of(path: &Path) -> Option<Node> {
        let meta = std::fs::metadata(path).ok().filter(|meta| meta.file_type().is_char_device())?;
        let only_group = meta.mode() & 0o006 != 0o006 && meta.mode() & 0o060 == 0o060;
        Some(Node { path: path.to_owned(), group: only_group.then(|| meta.gid()) })
    }
}

/// Adapters of verbs.
pub fn verbs(adapters: &[Adapter]) -> Option<Spec> {
    let connections = Node::of(Path::new(CONNECTIONS));
    describe("verbs", of_class(adapters, "infiniband"), connections.into_iter().collect())
}

/// Slingshot.
pub fn cxi(adapters: &[Adapter]) -> Option<Spec> {
    describe("cxi", of_class(adapters, "cxi"), Vec::new())
}

/// What has one file.
pub fn single(class: &str, path: &str) -> Option<Spec> {
    let node = Node::of(Path::new(path))?;
    describe(class, vec![(ALL.to_owned(), node)], Vec::new())
}

fn of_class(adapters: &[Adapter], class: &str) -> Vec<(String, Node)> {
    let its = adapters.iter().filter(|adapter| adapter.class == class);
    its.filter_map(|adapter| Some((adapter.name.clone(), Node::of(adapter.node.as_deref()?)?))).collect()
}

/// `None` where there is nothing.
fn describe(class: &str, devices: Vec<(String, Node)>, common: Vec<Node>) -> Option<Spec> {
    let edits = |nodes: &[&Node]| {
        let mut groups: Vec<u32> =
            nodes.iter().filter_map(|node| node.group).filter(|gid| *gid != 0).collect();
        groups.sort_unstable();
        groups.dedup();
        let node =
            |node: &&Node| DeviceNode { path: node.path.display().to_string(), ..DeviceNode::default() };
        Edits { device_nodes: nodes.iter().map(node).collect(), additional_gids: groups, ..Edits::default() }
    };
    let device = |name: &str, nodes: &[&Node]| Device {
        name: name.to_owned(),
        annotations: Default::default(),
        container_edits: edits(nodes),
    };
    let mut described: Vec<Device> = devices.iter().map(|(name, node)| device(name, &[node])).collect();
    if described.is_empty() {
        return None;
    }
    if devices.iter().all(|(name, _)| name != ALL) {
        let all: Vec<&Node> = devices.iter().map(|(_, node)| node).collect();
        described.push(device(ALL, &all));
    }
    let container_edits = edits(&common.iter().collect::<Vec<_>>());
    let has_groups = described.iter().map(|d| &d.container_edits).chain([&container_edits]);
    // additionalGids came with 0.7.0.
    let needs = has_groups.into_iter().any(|edits| !edits.additional_gids.is_empty());
    Some(Spec {
        cdi_version: if needs { "0.7.0" } else { "0.5.0" }.to_owned(),
        kind: format!("{VENDOR}/{class}"),
        annotations: Default::default(),
        devices: described,
        container_edits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_adapter_has_its_name_and_all_have_one() {
        let node = |path: &str, group| Node { path: path.into(), group };
        let devices = vec![
            ("mlx5_0".to_owned(), node("/dev/infiniband/uverbs0", None)),
            ("mlx5_1".to_owned(), node("/dev/infiniband/uverbs1", Some(112))),
        ];
        let spec = describe("verbs", devices, vec![node(CONNECTIONS, None)]).unwrap();
        spec.judge().unwrap();
        assert_eq!((spec.kind.as_str(), spec.cdi_version.as_str()), ("hpc-launch/verbs", "0.7.0"));
        let names: Vec<&str> = spec.devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["mlx5_0", "mlx5_1", "all"]);
        let all = &spec.devices[2].container_edits;
        assert_eq!((all.device_nodes.len(), all.additional_gids.as_slice()), (2, &[112][..]));
        assert_eq!(spec.container_edits.device_nodes[0].path, CONNECTIONS);
        assert_eq!(describe("verbs", Vec::new(), vec![node(CONNECTIONS, None)]), None);
        let one = describe("xpmem", vec![(ALL.into(), node("/dev/xpmem", None))], Vec::new()).unwrap();
        assert_eq!((one.devices.len(), one.cdi_version.as_str()), (1, "0.5.0"));
    }

    #[test]
    fn only_devices_are_described() {
        assert_eq!(Node::of(Path::new("/dev/null")), Some(Node { path: "/dev/null".into(), group: None }));
        assert_eq!(Node::of(Path::new("/etc/passwd")), None);
        assert_eq!(single("xpmem", "/nonexistent"), None);
    }
}

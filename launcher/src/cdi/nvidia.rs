//! NVIDIA's driver as it would be described, from what the kernel and its directory of libraries say.

use std::path::{Path, PathBuf};

use super::spec::{Device, DeviceNode, Edits, Hook, Mount, Spec};
use crate::host::gpu::{Driver, SOCKETS};

/// As `nvidia-ctk` calls them.
pub const KIND: &str = "nvidia.com/gpu";
/// The device that stands for all of them.
pub const ALL: &str = "all";
/// Below the place of its libraries, where its programs are shown.
pub const TOOLS: &str = "bin";
/// Where the toolkit's program for hooks is installed; other runtimes run it, we do not.
const HOOK: &str = "/usr/bin/nvidia-cdi-hook";

/// Describes a driver. `at`: where its libraries and programs are shown; none: where they are on the host.
pub fn describe(driver: &Driver, at: Option<&Path>) -> Spec {
    let text = |path: &Path| path.display().to_string();
    let below = |directory: &str, path: &Path| match at {
        Some(at) => at.join(directory).join(path.file_name().unwrap_or_default()),
        None => path.to_owned(),
    };
    let inside = |path: &Path| below("", path);
    let bind = |source: &Path, target: &Path, read_only: bool| {
        let mut options: Vec<String> = ["nosuid", "nodev", "rbind", "rprivate"].map(String::from).to_vec();
        if read_only {
            options.insert(0, "ro".to_owned());
        }
        Mount { host_path: text(source), container_path: text(target), options, kind: None }
    };
    let hook = |args: &[&str]| Hook {
        hook_name: "createContainer".to_owned(),
        path: HOOK.to_owned(),
        args: std::iter::once("nvidia-cdi-hook").chain(args.iter().copied()).map(String::from).collect(),
        env: Vec::new(),
        timeout: None,
    };
    let node = |path: &Path| DeviceNode { path: text(path), ..DeviceNode::default() };
    let mut hooks = vec![hook(&["enable-cuda-compat", &format!("--host-driver-version={}", driver.version)])];
    let mut folders: Vec<PathBuf> =
        driver.libraries.iter().filter_map(|path| inside(path).parent().map(Path::to_owned)).collect();
    folders.dedup();
    if let Some(folder) = folders.first() {
        // Programs that look for the name without any number, as Numba does.
        let link = format!("libcuda.so.1::{}", folder.join("libcuda.so").display());
        hooks.push(hook(&["create-symlinks", "--link", &link]));
        hooks.push(hook(&["update-ldcache", "--folder", &text(folder)]));
    }
    let sockets = SOCKETS.iter().map(Path::new).filter(|path| path.exists());
    let container_edits = Edits {
        // A runtime with NVIDIA's own hook would do all of it again.
        env: vec!["NVIDIA_VISIBLE_DEVICES=void".to_owned()],
        device_nodes: driver.nodes.iter().map(|path| node(path)).collect(),
        hooks,
        mounts: driver
            .libraries
            .iter()
            .map(|path| bind(path, &inside(path), true))
            .chain(driver.tools.iter().map(|path| bind(path, &below(TOOLS, path), true)))
            .chain(sockets.map(|path| bind(path, path, false)))
            .collect(),
        ..Edits::default()
    };
    let gpu = |minor: u32| node(Path::new(&format!("/dev/nvidia{minor}")));
    let device = |name: String, minors: &[u32]| Device {
        name,
        annotations: Default::default(),
        container_edits: Edits {
            device_nodes: minors.iter().map(|minor| gpu(*minor)).collect(),
            ..Edits::default()
        },
    };
    let mut devices: Vec<Device> = Vec::new();
    for (index, one) in driver.gpus.iter().enumerate() {
        devices.push(device(index.to_string(), &[one.minor]));
        devices.push(device(one.uuid.clone(), &[one.minor]));
    }
    let all: Vec<u32> = driver.gpus.iter().map(|gpu| gpu.minor).collect();
    if !all.is_empty() {
        devices.push(device(ALL.to_owned(), &all));
    }
    Spec {
        cdi_version: "0.5.0".to_owned(),
        kind: KIND.to_owned(),
        annotations: Default::default(),
        devices,
        container_edits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::gpu::Gpu;

    fn driver() -> Driver {
        let gpu = |minor: u32| Gpu {
            uuid: format!("GPU-{minor}"),
            model: "NVIDIA T".into(),
            bus: format!("0000:0{minor}:00.0"),
            minor,
            place: Default::default(),
        };
        let path = |name: &str| PathBuf::from(name);
        Driver {
            version: "550.1".into(),
            gpus: vec![gpu(1), gpu(0)],
            nodes: vec![path("/dev/nvidiactl"), path("/dev/nvidia-uvm")],
            others: vec![path("/dev/nvidia-caps/nvidia-cap1")],
            libraries: vec![path("/usr/lib64/libcuda.so.550.1"), path("/usr/lib64/libnvidia-ml.so.550.1")],
            tools: vec![path("/usr/bin/nvidia-smi")],
            direct: None,
            searched: Vec::new(),
        }
    }

    #[test]
    fn every_gpu_has_two_names_and_all_have_one() {
        let spec = describe(&driver(), None);
        spec.judge().unwrap();
        let names: Vec<&str> = spec.devices.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["0", "GPU-1", "1", "GPU-0", "all"]);
        // The first on the bus is not the one of the first file.
        assert_eq!(spec.devices[0].container_edits.device_nodes[0].path, "/dev/nvidia1");
        assert_eq!(spec.container_edits.mounts[0].container_path, "/usr/lib64/libcuda.so.550.1");
        let moved = describe(&driver(), Some(Path::new("/run/x")));
        assert_eq!(moved.container_edits.mounts[0].host_path, "/usr/lib64/libcuda.so.550.1");
        assert_eq!(moved.container_edits.mounts[0].container_path, "/run/x/libcuda.so.550.1");
        assert!(
            moved
                .container_edits
                .hooks
                .iter()
                .any(|h| h.args.contains(&"libcuda.so.1::/run/x/libcuda.so".into()))
        );
    }
}

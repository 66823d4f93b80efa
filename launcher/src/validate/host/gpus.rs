//! GPUs, as the kernel's driver shows them: files of their parts, switches, other nodes' memory, and how adapters reach
//! theirs.

use std::path::{Path, PathBuf};

use crate::cdi::not_permitted;
use crate::config::Config;
use crate::gpu;
use crate::host::fabric::Adapter;
use crate::host::gpu::{Direct, Driver, Part, SOCKETS, nvidia, parts};
use crate::host::place::nearest;
use crate::validate::Area;
use crate::validate::table::Table;

const AREA: Area = Area::Cuda;
/// ROCm's; its libraries are the image's own.
const KFD: &str = "/dev/kfd";
/// GDRCopy's.
const GDRDRV: &str = "/dev/gdrdrv";

/// Adds the lines.
pub fn look(table: &mut Table, config: &Config, adapters: &[Adapter]) {
    let rocm = Path::new(KFD);
    match not_permitted(rocm).filter(|_| rocm.exists()) {
        Some((why, cure)) => table.fail(AREA, format!("ROCm: {why}"), cure),
        None if rocm.exists() => {
            table.pass(AREA, format!("ROCm: {KFD} may be opened, libraries are the image's own"))
        }
        None => {}
    }
    match gpu::state(config) {
        gpu::State::NotLoaded => {
            let version = crate::host::gpu::VERSION;
            return table.skip(AREA, format!("no driver of NVIDIA's is loaded ({version})"));
        }
        gpu::State::NotWanted => {
            return table.skip(AREA, "GPUs are kept away: --gpu=none, or a device by its name");
        }
        gpu::State::Broken { error } => table.fail(AREA, error.what, error.cure),
        gpu::State::Good { version, gpus, closed, libraries } => {
            let of = if closed.is_empty() { String::new() } else { format!(" of {}", gpus + closed.len()) };
            table.pass(
                AREA,
                format!(
                    "NVIDIA's driver {version}: {gpus}{of} GPUs may be opened, {libraries} libraries of this version"
                ),
            );
            for (why, cure) in closed {
                table.skip(AREA, format!("{why} ({cure})"));
            }
        }
    }
    let Some(driver) = nvidia() else { return };
    of_parts(table, &parts());
    switches(table, &driver);
    channels(table, &driver);
    let fabrics: Vec<&Adapter> = adapters.iter().filter(|adapter| adapter.class == "infiniband").collect();
    if !fabrics.is_empty() {
        direct(table, &driver);
        near(table, &driver, &fabrics);
    }
}

/// MIG: who may not open the file of a part may not use it.
fn of_parts(table: &mut Table, parts: &[Part]) {
    let refused: Vec<(&Part, (String, String))> =
        parts.iter().filter_map(|part| Some((part, not_permitted(&part.node())?))).collect();
    for (part, (why, cure)) in &refused {
        table.warn(AREA, format!("{} of GPU {} (MIG): {why}", part.name, part.gpu), cure);
    }
    let open = parts.len() - refused.len();
    if open > 0 {
        table.pass(AREA, format!("{open} instances of parts of GPUs (MIG) may be opened"));
    }
}

fn switches(table: &mut Table, driver: &Driver) {
    let switch = |node: &&PathBuf| {
        let name = node.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("nvidia-nvswitch").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let count = driver.others.iter().filter(switch).count();
    if count == 0 {
        return;
    }
    let manager = SOCKETS.iter().find(|path| path.contains("fabricmanager"));
    if manager.is_some_and(|path| Path::new(path).exists()) {
        table.pass(AREA, format!("{count} NVSwitches, and nvidia-fabricmanager runs"));
    } else {
        table.warn(
            AREA,
            format!("{count} NVSwitches, and no socket of nvidia-fabricmanager's"),
            "if CUDA answers CUDA_ERROR_SYSTEM_NOT_READY, let the administrator start nvidia-fabricmanager",
        );
    }
}

/// IMEX: memory of GPUs of other nodes, for who may open a channel.
fn channels(table: &mut Table, driver: &Driver) {
    let is_channel =
        |node: &&PathBuf| node.parent().is_some_and(|above| above.ends_with("nvidia-caps-imex-channels"));
    let all: Vec<&PathBuf> = driver.others.iter().filter(is_channel).collect();
    let Some(first) = all.first() else { return };
    let open = all.iter().filter(|node| not_permitted(node).is_none()).count();
    match (open, not_permitted(first)) {
        (0, Some((why, cure))) => {
            table.warn(AREA, format!("memory of other nodes' GPUs (IMEX) cannot be shared: {why}"), cure);
        }
        _ => table.pass(AREA, format!("{open} channels to memory of other nodes' GPUs (IMEX) may be opened")),
    }
}

/// How adapters reach the GPUs' memory.
fn direct(table: &mut Table, driver: &Driver) {
    match driver.direct {
        Some(Direct::PeerMemory) => {
            table.pass(AREA, "GPUDirect RDMA: adapters reach GPUs' memory, by nvidia_peermem");
        }
        Some(Direct::DmaBuf) => table.pass(
            AREA,
            "GPUDirect RDMA: adapters reach GPUs' memory, by dma-buf (the open kernel modules; libraries must know it: UCX \
             1.14, libfabric 1.16)",
        ),
        None => table.warn(
            AREA,
            "no GPUDirect RDMA: nvidia_peermem is not loaded, and these kernel modules give no dma-buf",
            "messages of GPUs' memory go by the host's: modprobe nvidia-peermem, or install the open kernel modules",
        ),
    }
    let gdrcopy = Path::new(GDRDRV);
    match (gdrcopy.exists(), not_permitted(gdrcopy)) {
        (false, _) => table.skip(AREA, format!("no GDRCopy: {GDRDRV} does not exist")),
        (true, Some((why, cure))) => table.warn(AREA, format!("GDRCopy: {why}"), cure),
        (true, None) => table.pass(AREA, format!("GDRCopy: {GDRDRV} may be opened")),
    }
}

/// Which adapters are behind the same bridges as which GPU.
fn near(table: &mut Table, driver: &Driver, adapters: &[&Adapter]) {
    for (n, gpu) in driver.gpus.iter().enumerate() {
        let closest = nearest(adapters, |one| usize::MAX - gpu.place.shared(&one.place));
        let shared = closest.first().map_or(0, |one| gpu.place.shared(&one.place));
        if shared == 0 || closest.len() == adapters.len() && adapters.len() > 1 {
            continue;
        }
        let names: Vec<&str> = closest.iter().map(|one| one.name.as_str()).collect();
        table.pass(AREA, format!("GPU {n} is closest to {}: {shared} bridges in common", names.join(", ")));
    }
}

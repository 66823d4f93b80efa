//! What a driver of GPUs does: by CUDA, and by its management library.

use super::{Around, broken, opened};
use crate::validate::Area;
use crate::validate::child::Outcome;
use crate::validate::facts::{Fact, Facts};
use crate::validate::table::{Status, Table};

/// What CUDA's errors mean, by their names.
const CUDA_CURES: &[(&str, &str)] = &[
    (
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "libcuda and the kernel's driver are of two versions: a libcuda of the image's was chosen (LD_LIBRARY_PATH, \
         /usr/local/cuda/compat); remove that, hpc-launch brings the right one",
    ),
    (
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "CUDA's forward compatibility works on data centre GPUs only: use an image of a CUDA that this driver has, or a \
         newer driver",
    ),
    (
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "the driver is older than the image's CUDA: use an older image or a newer driver",
    ),
    ("CUDA_ERROR_INSUFFICIENT_DRIVER", "the driver is older than the image's CUDA: use a newer driver"),
    ("CUDA_ERROR_NO_DEVICE", "look at CUDA_VISIBLE_DEVICES, and at what the batch system lets this job see"),
    (
        "CUDA_ERROR_UNKNOWN",
        "nvidia-uvm may not be loaded, or the driver was updated and not loaded anew: nvidia-modprobe -u -c0",
    ),
    (
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "nvidia-fabricmanager does not run: start it (machines with NVSwitch need it)",
    ),
    (
        "CUDA_ERROR_STUB_LIBRARY",
        "the stub of the CUDA toolkit was loaded (…/stubs/libcuda.so): take it out of LD_LIBRARY_PATH",
    ),
];

/// What NVML's errors mean, by the numbers of nvml.h.
const NVML_CURES: &[(i64, &str)] = &[
    (3, "this host's driver has no NVML: look for libnvidia-ml.so of its version"),
    (4, "the files of the devices may not be opened: see the line on the driver"),
    (9, "the driver is not loaded, or no GPU is its: see the kernel's log for NVRM"),
    (15, "a GPU has fallen off the bus: the node must be started anew"),
    (
        18,
        "libnvidia-ml and the kernel's driver are of two versions: the driver was updated and not loaded anew, or a \
         library of the image's was chosen; remove that, hpc-launch brings the right one",
    ),
];
/// nvml.h: NVML_COMPUTEMODE_…
const PROHIBITED: i64 = 2;
const EXCLUSIVE_PROCESS: i64 = 3;
/// nvml.h: NVML_GPU_FABRIC_STATE_…
const FABRIC_STATES: &[&str] = &["not supported", "not started", "in progress", "completed"];

/// NVML. `known`: the GPUs that the kernel's driver knows, `version`: its version, `ranks`: of this node.
pub fn nvml(
    table: &mut Table,
    outcome: &Outcome,
    around: &Around,
    (known, version): (&[String], &str),
    ranks: u32,
) {
    let (area, facts) = (Area::Cuda, Facts::of(&outcome.out));
    if broken(table, area, outcome, &facts) || !opened(table, area, &facts, around) {
        return;
    }
    for fact in facts.all("failed") {
        let number = fact.number("result").unwrap_or(0);
        let cure = NVML_CURES.iter().find(|(known, _)| *known == number);
        table.fail(
            area,
            format!("{} answers {} ({number})", fact.text("call"), fact.text("error")),
            cure.map_or("see what nvidia-smi says on the host", |(_, cure)| cure),
        );
    }
    let (Some(library), Some(driver)) = (facts.one("library"), facts.one("driver")) else { return };
    let (path, of) = (library.text("path"), driver.text("version"));
    let evidence = format!("libnvidia-ml: {path} ({}), driver {of}", around.whose(path));
    if of == version {
        table.pass(area, evidence);
    } else {
        let cure = "the driver was updated and not loaded anew, or a library of the image's was chosen";
        table.fail(area, format!("{evidence}; the kernel has loaded {version}"), cure);
    }
    for fact in facts.all("gpu") {
        gpu(table, fact, &facts, known, ranks);
    }
}

/// One GPU, as NVML has it.
fn gpu(table: &mut Table, fact: &Fact, facts: &Facts, known: &[String], ranks: u32) {
    let area = Area::Cuda;
    let (number, uuid) = (fact.text("gpu"), fact.text("uuid"));
    if !known.iter().any(|k| k == uuid) {
        let all = known.join(", ");
        let text = format!("NVML's GPU {number} is {uuid}, which the kernel's driver does not know ({all})");
        table.fail(area, text, "the driver's library is none of this driver: see its path");
    }
    match fact.number("mode") {
        Some(PROHIBITED) => table.fail(
            area,
            format!("GPU {number} lets no program in (compute mode PROHIBITED)"),
            format!("let the administrator open it: nvidia-smi -i {uuid} -c DEFAULT"),
        ),
        Some(EXCLUSIVE_PROCESS) if ranks > 1 => table.warn(
            area,
            format!("GPU {number} lets one process in at a time (compute mode EXCLUSIVE_PROCESS)"),
            "ranks that share it end with CUDA_ERROR_DEVICE_UNAVAILABLE: give each its own (--gpu-bind), or start MPS \
             (nvidia-cuda-mps-control -d)",
        ),
        _ => {}
    }
    if let Some(state @ 1..=2) = fact.number("fabric") {
        table.fail(
            area,
            format!("GPU {number} has not joined its NVLink fabric: {}", FABRIC_STATES[state as usize]),
            "CUDA answers CUDA_ERROR_SYSTEM_NOT_READY: let the administrator start nvidia-fabricmanager (with NVLink \
             between nodes, nvidia-imex too) and look at its log",
        );
    } else if fact.number("fabric") == Some(3) && fact.number("status").unwrap_or(0) != 0 {
        table.fail(
            area,
            format!("GPU {number} could not join its NVLink fabric: error {}", fact.text("status")),
            "see the log of nvidia-fabricmanager",
        );
    }
    if !fact.is_set("mig") {
        return;
    }
    let parts: Vec<&str> =
        facts.all("part").filter(|part| part.text("gpu") == number).map(|part| part.text("uuid")).collect();
    if parts.is_empty() {
        table.fail(
            area,
            format!("GPU {number} is to be used in parts (MIG), and has none: CUDA finds no GPU"),
            "let the administrator make some: nvidia-smi mig -cgi …  -C, or turn it off: nvidia-smi -mig 0",
        );
    } else {
        let text = format!("GPU {number} is used in parts (MIG): {}", parts.join(", "));
        table.pass(area, format!("{text}; a program uses one of them, --gpu=UUID names it"));
    }
}

/// CUDA. `known`: the UUIDs that the kernel's driver knows, `open`: how many of these GPUs may be opened.
pub fn cuda(table: &mut Table, outcome: &Outcome, around: &Around, (known, open): (&[String], usize)) {
    let (area, facts) = (Area::Cuda, Facts::of(&outcome.out));
    if broken(table, area, outcome, &facts) || !opened(table, area, &facts, around) {
        return;
    }
    if let Some(path) = facts.one("library").map(|fact| fact.text("path")) {
        let version = facts.one("version").and_then(|fact| fact.number("number")).unwrap_or(0);
        let (major, minor) = (version / 1000, version % 1000 / 10);
        table.pass(area, format!("libcuda: {path} ({}), CUDA {major}.{minor}", around.whose(path)));
    }
    for fact in facts.all("missing") {
        let name = fact.text("name");
        table.fail(area, format!("libcuda has no {name}"), "it is older than CUDA 11: use a newer driver");
    }
    for fact in facts.all("failed") {
        let (call, error) = (fact.text("call"), fact.text("error"));
        let name = if error.is_empty() { format!("error {}", fact.text("result")) } else { error.to_owned() };
        let gpu = match fact.number("gpu") {
            Some(gpu) if gpu >= 0 => format!("GPU {gpu}: "),
            _ => String::new(),
        };
        let cure = CUDA_CURES.iter().find(|(known, _)| *known == error).map_or(
            "see what the kernel's log says of NVRM, and whether the same works outside of a container",
            |(_, cure)| cure,
        );
        table.fail(area, format!("{gpu}{call} answers {name}"), cure);
    }
    if let Some(count) = facts.one("gpus").and_then(|fact| fact.number("count")) {
        match usize::try_from(count).unwrap_or(0) {
            0 => table.fail(area, "CUDA sees no GPU", "look at CUDA_VISIBLE_DEVICES"),
            count if count < open => table.warn(
                area,
                format!("CUDA sees {count} of the {open} GPUs that may be opened"),
                "if that is not meant so, look at CUDA_VISIBLE_DEVICES and at the batch system",
            ),
            _ => {}
        }
    }
    for fact in facts.all("gpu") {
        let (number, uuid) = (fact.text("gpu"), fact.text("uuid"));
        let about =
            |kind: &str| facts.all(kind).filter(|other| other.text("gpu") == number).collect::<Vec<_>>();
        let capability = format!("{}.{}", fact.text("major"), fact.text("minor"));
        let mut done =
            vec![format!("GPU {number} ({}, {uuid}, compute capability {capability})", fact.text("model"))];
        let mut status = Status::Pass;
        let mut say = |text: String, good: bool| {
            done.push(if good { text } else { format!("{text}: other bytes") });
            if !good {
                status = Status::Fail;
            }
        };
        about("copied")
            .iter()
            .for_each(|f| say(format!("{} bytes there and back", f.text("bytes")), f.is_set("equal")));
        about("kernel").iter().for_each(|f| say("a kernel compiled from PTX".to_owned(), f.is_set("equal")));
        let peers: Vec<&str> =
            about("peer").iter().filter(|f| f.is_set("can")).map(|f| f.text("other")).collect();
        if !peers.is_empty() {
            done.push(format!("reaches the memory of {}", peers.join(", ")));
        }
        let ways = [("direct", "GPUDirect RDMA"), ("dmabuf", "dma-buf")];
        let ways: Vec<&str> =
            ways.iter().filter(|(name, _)| fact.is_set(name)).map(|(_, way)| *way).collect();
        if around.adapters.iter().any(|one| one.class == "infiniband") && !ways.is_empty() {
            done.push(format!("adapters may reach its memory ({})", ways.join(", ")));
        }
        if !known.is_empty() && !known.iter().any(|k| k == uuid) {
            status = Status::Fail;
            done.push(format!("the kernel's driver knows no such GPU (it knows {})", known.join(", ")));
        }
        let cure =
            if status == Status::Pass { "" } else { "the GPU or its driver is broken: see the kernel's log" };
        table.add(area, status, done.join(", "), cure);
    }
}

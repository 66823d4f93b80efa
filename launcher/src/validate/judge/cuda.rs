//! What a driver of GPUs does.

use super::{Around, broken, opened};
use crate::validate::Area;
use crate::validate::child::Outcome;
use crate::validate::facts::Facts;
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

/// CUDA. `known`: the UUIDs that the kernel's driver knows.
pub fn cuda(table: &mut Table, outcome: &Outcome, around: &Around, known: &[String]) {
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
            count if count < known.len() => table.warn(
                area,
                format!("CUDA sees {count} of the {} GPUs that the driver knows", known.len()),
                "if that is not meant so, look at CUDA_VISIBLE_DEVICES and at the batch system",
            ),
            _ => {}
        }
    }
    for fact in facts.all("gpu") {
        let (number, uuid) = (fact.text("gpu"), fact.text("uuid"));
        let about =
            |kind: &str| facts.all(kind).filter(|other| other.text("gpu") == number).collect::<Vec<_>>();
        let mut done = vec![format!("GPU {number} ({}, {uuid})", fact.text("model"))];
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
        if !known.is_empty() && !known.iter().any(|k| k == uuid) {
            status = Status::Fail;
            done.push(format!("the kernel's driver knows no such GPU (it knows {})", known.join(", ")));
        }
        let cure =
            if status == Status::Pass { "" } else { "the GPU or its driver is broken: see the kernel's log" };
        table.add(area, status, done.join(", "), cure);
    }
}

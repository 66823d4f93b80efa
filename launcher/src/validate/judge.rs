//! What the probe's facts mean: lines with evidence and cure. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Area;
use super::child::{End, Outcome};
use super::facts::{Fact, Facts};
use super::table::{Status, Table};
use crate::host::fabric::Adapter;

/// EPERM.
const NOT_PERMITTED: i64 = 1;
/// ENOMEM.
const NO_MEMORY: i64 = 12;
/// FI_ENODATA.
const NO_DATA: i64 = -61;
/// More libraries than these are counted, not listed.
const MAX_LISTED: usize = 12;

/// Libraries of one stack, which work only together: the beginnings of their names.
const STACKS: &[(&str, Area, &[&str])] = &[
    ("UCX", Area::Ucx, &["libucp.so", "libuct.so", "libucs.so", "libucm.so", "libuct_"]),
    ("libfabric", Area::Libfabric, &["libfabric.so"]),
    ("verbs", Area::Verbs, &["libibverbs.so", "librdmacm.so", "libmlx5.so", "libmlx4.so", "libefa.so"]),
    ("CUDA's driver", Area::Cuda, &["libcuda.so", "libnvidia-ptxjitcompiler.so", "libnvidia-ml.so"]),
];

/// What is known around a probe.
pub struct Around<'a> {
    /// The host's adapters.
    pub adapters: &'a [Adapter],
    /// Where the host's files lie inside.
    pub of_host: &'a [PathBuf],
}

impl Around<'_> {
    fn active_ports(&self) -> Vec<String> {
        let active = |adapter: &Adapter| {
            let ports = adapter.ports.iter().filter(|port| port.state == "ACTIVE");
            ports.map(|port| format!("{}:{}", adapter.name, port.number)).collect::<Vec<_>>()
        };
        self.adapters.iter().filter(|a| a.class == "infiniband").flat_map(active).collect()
    }

    fn whose(&self, path: &str) -> &'static str {
        if self.of_host.iter().any(|above| Path::new(path).starts_with(above)) {
            "the host's"
        } else {
            "the image's"
        }
    }

    /// Why a fabric library finds no device that the host has: which of the three it is.
    fn missing(&self) -> &'static str {
        let has = |what: fn(&Adapter) -> bool| self.adapters.iter().any(what);
        if !has(|a| a.node.is_some()) {
            "no adapter has a file by which programs reach it (/dev/infiniband/uverbsN)"
        } else if !has(|a| a.ports.iter().any(|port| port.state == "ACTIVE")) {
            "no port is active"
        } else {
            "the adapter is there and its port is active: the library's provider for it is missing, or too old for it"
        }
    }
}

/// A library that is nowhere is no failure: not every image has all.
fn is_absent(fact: &Fact) -> bool {
    let name = fact.text("name");
    fact.text("error").starts_with(&format!("{name}: cannot open shared object file"))
        || fact.text("error").starts_with(&format!("Error loading shared library {name}: No such file"))
}

/// The line for a probe that did not come to its end; `None`: it did.
fn broken(table: &mut Table, area: Area, outcome: &Outcome, facts: &Facts) -> bool {
    if facts.are_whole() && matches!(outcome.end, End::Exit(0)) {
        return false;
    }
    let doing = match facts.last() {
        Some(fact) if fact.kind == "opening" => format!("while {} was loaded", fact.text("name")),
        Some(fact) if fact.kind == "initialising" => "while the library was initialised".to_owned(),
        Some(fact) if fact.kind == "device" => format!("while {} was opened", fact.text("name")),
        Some(fact) => format!("after \"{}\"", fact.kind),
        None => "before it began".to_owned(),
    };
    let said = outcome.said();
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    table.fail(
        area,
        format!("the probe {} {doing}{said}", outcome.how()),
        "programs will end so too; hpc-launch plan shows which files are involved",
    );
    true
}

/// Whether a library was opened; the line, where it could not be.
fn opened(table: &mut Table, area: Area, facts: &Facts, around: &Around) -> bool {
    let Some(fact) = facts.one("library") else { return false };
    let (name, error) = (fact.text("name"), fact.text("error"));
    if error.is_empty() {
        return true;
    }
    if is_absent(fact) {
        table.skip(area, format!("{name} is neither in the image nor brought by the host"));
    } else {
        table.fail(area, format!("{name} cannot be loaded: {error}"), cure_of(error, around));
    }
    false
}

/// What to do about a loader's message.
fn cure_of(error: &str, around: &Around) -> &'static str {
    if error.contains("IBVERBS_PRIVATE") || error.contains("ibv_cmd_") {
        "libibverbs and its provider are of two releases: take all of one side, with --fabric=host or --fabric=image"
    } else if ["libopen-pal.so", "libopen-rte.so", "ompi_", "opal_", "MPI_", "MPIR_"]
        .iter()
        .any(|n| error.contains(n))
    {
        "the MPI's core and its bindings are of two releases: undo what brings single files of one (--bind, \
         LD_LIBRARY_PATH); hpc-launch takes all of one side"
    } else if error.contains("GLIBC_PRIVATE") {
        "one half of a C library is the image's, the other the host's: undo the bind that does this"
    } else if error.contains("GLIBC_") || error.contains("GLIBCXX_") {
        "the library is built for a newer C library than the image has: let hpc-launch bring the host's \
         (--fabric=host, --mpi=host) instead of binding single files"
    } else if around.of_host.is_empty() {
        "install what is missing in the image"
    } else {
        "install what is missing, in the image or on the host; --mpi=image --fabric=image keeps the host's away"
    }
}

/// Libraries and plugins, one after the other.
pub fn load(table: &mut Table, outcome: &Outcome, around: &Around) {
    let facts = Facts::of(&outcome.out);
    let (mut good, mut bad) = (Vec::new(), 0);
    for fact in facts.all("library") {
        let error = fact.text("error");
        if error.is_empty() {
            good.push(fact.text("name"));
        } else if !is_absent(fact) || fact.text("name").starts_with('/') {
            bad += 1;
            table.fail(
                Area::Link,
                format!("{} cannot be loaded: {error}", fact.text("name")),
                cure_of(error, around),
            );
        }
    }
    if broken(table, Area::Link, outcome, &facts) || bad > 0 {
        return;
    }
    if good.is_empty() {
        table.skip(Area::Link, "no library of an MPI, a fabric or a GPU to load");
    } else {
        let mut shown = good[..good.len().min(MAX_LISTED)].join(", ");
        if good.len() > MAX_LISTED {
            shown += &format!(" and {} more", good.len() - MAX_LISTED);
        }
        table.pass(Area::Link, format!("{} libraries load, with every symbol bound: {shown}", good.len()));
    }
    whole(table, &facts, around);
}

/// Each stack is of one side.
pub fn whole(table: &mut Table, facts: &Facts, around: &Around) {
    let paths: BTreeSet<&str> = facts.all("object").map(|fact| fact.text("path")).collect();
    for (name, area, beginnings) in STACKS {
        let file = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let is_its = |path: &&&str| beginnings.iter().any(|b| file(path).starts_with(b));
        let its: Vec<&&str> = paths.iter().filter(is_its).collect();
        let Some(first) = its.first() else { continue };
        let other = its.iter().find(|path| around.whose(path) != around.whose(first));
        match other {
            Some(other) => table.fail(
                *area,
                format!(
                    "{name} is of two worlds: {first} is {}, {other} is {}",
                    around.whose(first),
                    around.whose(other)
                ),
                "undo what brings single files of it (--bind, LD_LIBRARY_PATH): all of one side, or nothing",
            ),
            None => {
                let files: Vec<String> = its.iter().map(|path| file(path)).collect();
                table.pass(
                    Area::Link,
                    format!("{name} is {}, all of it: {}", around.whose(first), files.join(", ")),
                );
            }
        }
    }
}

/// Verbs; answers whether the library finds fewer devices than there are.
pub fn verbs(table: &mut Table, outcome: &Outcome, around: &Around) -> bool {
    let (area, facts) = (Area::Verbs, Facts::of(&outcome.out));
    if broken(table, area, outcome, &facts) || !opened(table, area, &facts, around) {
        return false;
    }
    let expected = around.adapters.iter().filter(|a| a.class == "infiniband").count() as i64;
    let count = facts.one("devices").and_then(|fact| fact.number("count")).unwrap_or(0);
    if expected == 0 && count == 0 {
        table.skip(area, "the library works and finds no device, as this host has none");
        return false;
    }
    if count < expected {
        let why = complaint(&outcome.err).unwrap_or_else(|| around.missing().to_owned());
        table.fail(
            area,
            format!("libibverbs inside finds {count} of {expected} devices: {why}"),
            "its provider is missing or does not fit: --fabric=host takes the host's set, which fits the host's driver",
        );
    }
    for fact in facts.all("opened") {
        let (name, errno) = (fact.text("name"), fact.number("errno").unwrap_or(0));
        if errno != 0 {
            let why = complaint(&outcome.err).map(|why| format!("; {why}")).unwrap_or_default();
            table.fail(
                area,
                format!("{name} cannot be opened: {}{why}", error_text(errno)),
                "the provider may be older than the kernel's driver: --fabric=host takes the host's",
            );
        }
    }
    for fact in facts.all("port").filter(|fact| fact.number("state") != Some(4)) {
        let (name, port) = (fact.text("name"), fact.text("port"));
        table.fail(
            area,
            format!("{name} port {port} is not active, seen inside"),
            "see the host's lines on this port",
        );
    }
    for fact in facts.all("write") {
        let place = format!("{} port {}", fact.text("name"), fact.text("port"));
        if let Some(bytes) = fact.number("bytes") {
            let (took, good) = (fact.text("microseconds"), fact.is_set("equal"));
            let evidence = format!("{place}: an RC queue pair wrote {bytes} bytes to itself in {took} µs");
            match good {
                true => table.pass(area, evidence),
                false => table.fail(
                    area,
                    evidence + ", and other bytes arrived",
                    "the adapter or its driver is broken",
                ),
            }
        } else if let Some(status) = fact.number("completion") {
            table.fail(
                area,
                format!("{place}: the write completed with status {status} (ibv_wc_status)"),
                "12 is a time-out: nothing comes back on this port; look at the link, the address (GID) and the switch",
            );
        } else {
            let errno = fact.number("errno").unwrap_or(0);
            let cure = match errno {
                NO_MEMORY => "the limit of locked memory is too low: see the line on memory",
                _ => "see the kernel's log; the provider may be older than the kernel's driver",
            };
            let failed = fact.text("failed");
            let text = if errno == 0 { String::new() } else { format!(": {}", error_text(errno)) };
            table.fail(area, format!("{place}: {failed}{text}"), cure);
        }
    }
    count < expected
}

/// Why providers do not load: libibverbs keeps that to itself (libibverbs/init.c, load_driver, looks for another file
/// then, and complains that this is missing).
pub fn providers(table: &mut Table, outcome: &Outcome, around: &Around) {
    let facts = Facts::of(&outcome.out);
    for fact in facts.all("library").filter(|fact| !fact.text("error").is_empty() && !is_absent(fact)) {
        let (name, error) = (fact.text("name"), fact.text("error"));
        table.fail(
            Area::Verbs,
            format!("the provider {name} cannot be loaded: {error}"),
            cure_of(error, around),
        );
    }
}

/// What libibverbs complains about where it was asked to.
fn complaint(err: &str) -> Option<String> {
    let line = err.lines().find(|line| line.starts_with("libibverbs:"))?;
    Some(line.chars().filter(|c| !c.is_control()).take(300).collect())
}

fn error_text(errno: i64) -> String {
    Errno::from_raw(i32::try_from(errno.abs()).unwrap_or(0)).to_string()
}

/// UCX; answers whether it works.
pub fn ucx(table: &mut Table, outcome: &Outcome, around: &Around) -> bool {
    let (area, facts) = (Area::Ucx, Facts::of(&outcome.out));
    if broken(table, area, outcome, &facts) || !opened(table, area, &facts, around) {
        return false;
    }
    let version = facts.one("version").map_or("", |fact| fact.text("text"));
    match facts.one("initialised").and_then(|fact| fact.number("status")) {
        Some(0) => {}
        status => {
            let status = status.map_or("unknown".to_owned(), |s| s.to_string());
            let said = outcome.said();
            let cure =
                "look at UCX_TLS and UCX_NET_DEVICES (hpc-launch passes them on), and at what UCX says above";
            table.fail(area, format!("UCX {version} does not start: status {status}; {said}"), cure);
            return false;
        }
    }
    let transports: Vec<&str> = facts
        .others
        .iter()
        .filter(|line| line.contains("resource "))
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let is_rdma = |name: &&&str| ["rc", "dc", "ud"].iter().any(|t| name.starts_with(t)) && name.contains('/');
    let ports = around.active_ports();
    let shown = transports.join(" ");
    let whose = facts.one("library").map_or("", |fact| around.whose(fact.text("path")));
    if !ports.is_empty() && !transports.iter().any(|name| is_rdma(&name)) {
        table.fail(
            area,
            format!("UCX {version} ({whose}) uses none of the active ports {}: it has {shown}", ports.join(", ")),
            "jobs would run over TCP at a fraction of the speed: --fabric=host takes the host's UCX, with its module for \
             InfiniBand; see also UCX_TLS and UCX_NET_DEVICES",
        );
    } else {
        table.pass(area, format!("UCX {version} ({whose}): {shown}"));
        return true;
    }
    false
}

/// libfabric; answers whether it works.
pub fn libfabric(table: &mut Table, outcome: &Outcome, around: &Around) -> bool {
    let (area, facts) = (Area::Libfabric, Facts::of(&outcome.out));
    if broken(table, area, outcome, &facts) || !opened(table, area, &facts, around) {
        return false;
    }
    let version =
        facts.one("version").map_or(String::new(), |f| format!("{}.{}", f.text("major"), f.text("minor")));
    let whose = facts.one("library").map_or("", |fact| around.whose(fact.text("path")));
    let status = facts.one("information").and_then(|fact| fact.number("status")).unwrap_or(0);
    let mut providers: Vec<&str> = facts.all("provider").map(|fact| fact.text("name")).collect();
    providers.sort_unstable();
    providers.dedup();
    let ports = around.active_ports();
    let has_cxi = around.adapters.iter().any(|a| a.class.starts_with("cxi"));
    if status != 0 {
        let why =
            if status == NO_DATA { around.missing() } else { "see what it says with FI_LOG_LEVEL=warn" };
        table.fail(
            area,
            format!("libfabric {version} ({whose}): fi_getinfo answers {status} ({})", error_text(status)),
            format!("{why}; look at FI_PROVIDER and FI_PROVIDER_PATH, or take the host's with --fabric=host"),
        );
    } else if (!ports.is_empty() && !providers.iter().any(|p| p.starts_with("verbs") || p.starts_with("efa")))
        || (has_cxi && !providers.iter().any(|p| p.contains("cxi")))
    {
        let wanted = if has_cxi { "cxi" } else { "verbs" };
        table.fail(
            area,
            format!("libfabric {version} ({whose}) has no provider {wanted}: it has {}", providers.join(" ")),
            format!("{}; --fabric=host takes the host's libfabric with its providers", around.missing()),
        );
    } else {
        table.pass(area, format!("libfabric {version} ({whose}): {}", providers.join(" ")));
        return true;
    }
    false
}

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

/// What ranks of one node said of each other.
pub fn ranks(table: &mut Table, facts: &Facts, expected: usize, yama: Option<&str>) {
    let area = Area::Ranks;
    if let Some(fact) = facts.one("shared") {
        let errno = fact.number("errno").unwrap_or(0);
        return table.fail(
            area,
            format!("/dev/shm cannot be used: {}", error_text(errno)),
            "see the line on memory",
        );
    }
    if let Some(fact) = facts.one("alone") {
        return table.fail(
            area,
            format!("{} of {expected} ranks did not come to the same /dev/shm", fact.text("missing")),
            "they did not start (see what they said), or see another /dev/shm",
        );
    }
    let seen: Vec<&Fact> = facts.all("rank").collect();
    if seen.is_empty() {
        return table.fail(area, "ranks did not find each other", "see what they said");
    }
    for name in ["user", "pid"] {
        let all: BTreeSet<&str> = seen.iter().map(|fact| fact.text(name)).collect();
        let all: Vec<&str> = all.into_iter().collect();
        match all.as_slice() {
            [one] => table.pass(area, format!("{} ranks are in one {name} namespace, {one}", seen.len())),
            several => table.fail(
                area,
                format!("ranks are in different {name} namespaces: {}", several.join(", ")),
                "shared memory between them fails: start all of a node's ranks by one launcher",
            ),
        }
    }
    match seen.iter().find(|fact| !fact.is_set("equal")) {
        Some(fact) => {
            let errno = fact.number("errno").unwrap_or(0);
            let yama = yama.map(|y| format!(" (kernel.yama.ptrace_scope is {y})")).unwrap_or_default();
            let text = format!(
                "rank {} cannot read rank {}'s memory (process_vm_readv): {}{yama}",
                fact.text("local"),
                fact.text("of"),
                error_text(errno)
            );
            let cure = match errno {
                NOT_PERMITTED => {
                    "large messages on a node will hang or be copied twice: kernel.yama.ptrace_scope must be 0 or 1, and a \
                     seccomp filter of the batch system must allow it"
                }
                _ => "see process_vm_readv(2)",
            };
            table.fail(area, text, cure);
        }
        None => table.pass(area, format!("{} ranks read each other's memory (process_vm_readv)", seen.len())),
    }
    let places: Vec<String> = seen
        .iter()
        .filter(|f| !f.text("cpus").is_empty())
        .map(|f| format!("{}: {}", f.text("local"), f.text("cpus")))
        .collect();
    let single: Vec<&str> =
        seen.iter().map(|f| f.text("cpus")).filter(|c| c.bytes().all(|b| b.is_ascii_digit())).collect();
    let distinct: BTreeSet<&str> = single.iter().copied().collect();
    if distinct.len() < single.len() {
        table.warn(
            area,
            format!("several ranks are bound to one processor: {}", places.join("; ")),
            "give the launcher more processors, or another binding (mpirun --bind-to, srun --cpu-bind)",
        );
    } else if !places.is_empty() {
        table.pass(area, format!("processors of ranks {}", places.join("; ")));
    }
    for fact in facts.all("ipc") {
        let text =
            format!("rank {} read rank {}'s memory on the GPU (IPC)", fact.text("local"), fact.text("of"));
        match fact.is_set("equal") {
            true => table.pass(Area::Cuda, text),
            false => table.fail(Area::Cuda, text + ": other bytes", "the GPU's driver is broken"),
        }
    }
    for fact in facts.all("failed").filter(|fact| fact.text("call").starts_with("cuIpc")) {
        table.fail(
            Area::Cuda,
            format!("{} answers {}", fact.text("call"), fact.text("error")),
            "ranks exchange GPU memory through the host: each must see all GPUs (no CUDA_VISIBLE_DEVICES by cgroup)",
        );
    }
}

/// What MPIs say when they end, and what to do about it (failures of users, as they are reported).
const KNOWN: &[(&str, &str)] = &[
    (
        "GTL library is not linked",
        "Cray MPICH was asked for GPUs (MPICH_GPU_SUPPORT_ENABLED=1) without its library for them: link the program with \
         libmpi_gtl_cuda or libmpi_gtl_hsa, or preload it (--env LD_PRELOAD=…/libmpi_gtl_cuda.so), or unset the variable",
    ),
    ("max locked memory", "the limit of locked memory is too low: see the line on memory"),
    ("Couldn't register MR", "the limit of locked memory is too low: see the line on memory"),
    ("fi_getinfo() failed", "libfabric has no provider for what this host has: see the line on libfabric"),
    ("No PMIx server was reachable", "the launcher's PMIx is none that this MPI understands: --mpi=bridge"),
    ("invalid PMI1 init command", "the launcher's PMI is none that this MPI understands: --mpi=bridge"),
    ("Non-existant physical address", "/dev/shm is full: see the line on memory"),
    (
        "CUDA driver version is insufficient",
        "the driver is older than the image's CUDA: see the lines on cuda",
    ),
];

/// What MPI did, and by which way. `sent`: bytes that the adapters' ports counted meanwhile, by port.
pub fn mpi(
    table: &mut Table,
    outcome: &Outcome,
    expected: usize,
    around: &Around,
    sent: &[(String, u64)],
    forced: bool,
) {
    let (area, facts) = (Area::Mpi, Facts::of(&outcome.out));
    let Some(began) = facts.one("mpi") else {
        let said = outcome.said();
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let what = match facts.all("library").last() {
            Some(fact) if !fact.text("error").is_empty() => {
                format!("the MPI cannot be loaded: {}", fact.text("error"))
            }
            Some(_) => format!("MPI_Init did not return: the job {}{said}", outcome.how()),
            None => format!("the job {} before MPI{said}", outcome.how()),
        };
        let cure = KNOWN.iter().find(|(text, _)| outcome.err.contains(text) || outcome.out.contains(text));
        let usual = "hpc-launch check --launcher=… shows the verdict for this launcher, with its reasons";
        return table.fail(area, what, cure.map_or(usual, |(_, cure)| cure));
    };
    let size = began.number("size").unwrap_or(0);
    if size != expected as i64 {
        return table.fail(
            area,
            format!("MPI has {size} ranks, {expected} were started: every rank is a job of its own"),
            "the MPI does not talk to the launcher: use --mpi=bridge",
        );
    }
    let exchanges: Vec<&Fact> = facts.all("exchange").collect();
    let ours: Vec<&&Fact> = exchanges.iter().filter(|fact| fact.number("rank") == Some(0)).collect();
    if let Some(fact) = exchanges.iter().find(|fact| !fact.is_set("equal")) {
        return table.fail(
            area,
            format!(
                "between ranks {} and {} other bytes arrived than were sent",
                fact.text("rank"),
                fact.text("with")
            ),
            "do not run jobs here: the transport loses data",
        );
    }
    let finalized = facts.all("finalized").chain(facts.all("unfinalized")).count();
    if let Some(fact) = facts.one("unfinalized") {
        table.warn(
            area,
            format!("MPI_Finalize did not return within {} s", fact.text("seconds")),
            "jobs may hang at their end; MPICH over UCX and TCP between nodes is known for it: use its libfabric, or a fabric",
        );
    }
    if finalized == 0 || !matches!(outcome.end, End::Exit(0)) {
        let said = outcome.said();
        let done = if ours.is_empty() { "nothing was exchanged" } else { "messages were exchanged" };
        table.fail(area, format!("{done}, and the job {}: {said}", outcome.how()), "see what it says");
        return;
    }
    match (facts.one("aware"), facts.one("device")) {
        (_, Some(fact)) if fact.is_set("equal") => {
            table.pass(Area::Cuda, format!("MPI sent {} bytes of a GPU's memory, there and back", fact.text("bytes")));
        }
        (_, Some(_)) => table.fail(
            Area::Cuda,
            "MPI sent a GPU's memory, and other bytes arrived",
            "do not give this MPI device buffers",
        ),
        (Some(fact), None) if !fact.is_set("cuda") => table.skip(
            Area::Cuda,
            "this MPI is not made for GPUs' memory (MPIX_Query_cuda_support): programs must copy it to the host's first",
        ),
        _ => {}
    }
    let bytes: i64 = ours.iter().filter_map(|fact| fact.number("bytes")).sum();
    let tcp: i64 = ours.iter().filter_map(|fact| fact.number("tcp")).sum();
    let took: i64 = ours.iter().filter_map(|fact| fact.number("microseconds")).sum::<i64>().max(1);
    let rate = bytes / took;
    let ports = around.active_ports();
    let carried: Vec<String> = sent
        .iter()
        .filter(|(_, count)| *count as i64 * 4 >= bytes && *count > 0)
        .map(|(port, count)| format!("port {port} sent {:.1} MB", *count as f64 / 1e6))
        .collect();
    let way = if !carried.is_empty() {
        format!("by RDMA: {}", carried.join(", "))
    } else if tcp * 2 > bytes {
        format!("by TCP: {:.1} MB of it", tcp as f64 / 1e6)
    } else {
        "by shared memory: neither TCP nor an adapter carried it".to_owned()
    };
    let evidence = format!(
        "{size} ranks: rank 0 exchanged {:.1} MB with {} others at {rate} MB/s, {way} (TCP {:.1} MB){}",
        bytes as f64 / 1e6,
        ours.len(),
        tcp as f64 / 1e6,
        if forced { ", as it was told to use the adapter" } else { "" }
    );
    if forced && carried.is_empty() {
        table.fail(
            area,
            evidence,
            "told to use RDMA, it did not: see the lines on verbs, UCX and libfabric; --fabric=host takes the host's",
        );
    } else if tcp * 2 > bytes && !ports.is_empty() {
        table.fail(
            area,
            format!("{evidence}; ports {} are active", ports.join(", ")),
            "the fabric's libraries are missing or unused inside: --fabric=host, and see the lines on UCX and libfabric",
        );
    } else if size == 1 {
        table.skip(area, format!("{size} rank: nothing to exchange; --np 2 or more"));
    } else {
        table.pass(area, evidence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn outcome(end: End, out: &str, err: &str) -> Outcome {
        Outcome { end, out: out.to_owned(), err: err.to_owned() }
    }

    fn around() -> Around<'static> {
        Around { adapters: &[], of_host: &[] }
    }

    #[test]
    fn an_mpi_that_ends_is_understood_by_what_it_says() {
        let opened = "opening\tname=libmpi.so\nlibrary\tname=libmpi.so\tpath=/x/libmpi.so\ninitialising\n";
        for (said, cure) in [
            (
                "MPICH ERROR: GPU_SUPPORT_ENABLED is requested, but GTL library is not linked",
                "libmpi_gtl_cuda",
            ),
            (
                "Please set max locked memory (ulimit -l) to 'unlimited'",
                "the limit of locked memory is too low",
            ),
            ("OFI fi_getinfo() failed (ofi_init.c:1): No data available", "see the line on libfabric"),
            ("something else", "hpc-launch check"),
        ] {
            let mut table = Table::default();
            mpi(&mut table, &outcome(End::Exit(1), opened, said), 2, &around(), &[], false);
            let line = &table.lines[0];
            assert_eq!((line.status, line.area), (Status::Fail, Area::Mpi));
            assert!(
                line.evidence.contains("MPI_Init did not return") && line.evidence.contains(said),
                "{line:?}"
            );
            assert!(line.cure.contains(cure), "{line:?}");
        }
    }

    #[test]
    fn singletons_are_a_failure() {
        let out = "library\tname=m\tpath=/m\nmpi\tstatus=0\trank=0\tsize=1\nfinalized\trank=0\nend\n";
        let mut table = Table::default();
        mpi(&mut table, &outcome(End::Exit(0), out, ""), 4, &around(), &[], false);
        assert_eq!(table.lines[0].status, Status::Fail);
        assert!(table.lines[0].evidence.contains("MPI has 1 ranks, 4 were started"), "{:?}", table.lines);
    }

    fn exchanged(tcp: u64, sent: &[(String, u64)], forced: bool) -> (Status, String) {
        let out = format!(
            "library\tname=m\tpath=/m\nmpi\tstatus=0\trank=0\tsize=2\nexchange\trank=0\twith=1\tbytes=16000000\t\
             microseconds=10000\ttcp={tcp}\tequal=1\nfinalized\trank=0\nend\n"
        );
        let mut table = Table::default();
        mpi(&mut table, &outcome(End::Exit(0), &out, ""), 2, &around(), sent, forced);
        let line = table.lines.remove(0);
        (line.status, line.evidence)
    }

    #[test]
    fn the_way_is_told_by_what_the_kernel_counts() {
        let port = |bytes| vec![("mlx5_0:1".to_owned(), bytes)];
        assert!(exchanged(0, &port(0), false).1.contains("at 1600 MB/s, by shared memory"));
        assert!(exchanged(16_000_000, &port(0), false).1.contains("by TCP: 16.0 MB of it"));
        assert!(exchanged(64, &port(9_000_000), false).1.contains("by RDMA: port mlx5_0:1 sent 9.0 MB"));
        assert_eq!(exchanged(0, &port(9_000_000), true).0, Status::Pass);
        // Told to use the adapter, and it did not.
        assert_eq!(exchanged(0, &port(0), true).0, Status::Fail);
    }

    #[test]
    fn a_probe_that_dies_says_where() {
        let mut table = Table::default();
        let died = outcome(End::Signal(nix::sys::signal::Signal::SIGBUS), "opening\tname=libucp.so.0\n", "");
        assert!(!ucx(&mut table, &died, &around()));
        assert!(
            table.lines[0].evidence.contains("was killed by SIGBUS (7) while libucp.so.0 was loaded"),
            "{:?}",
            table.lines
        );
        let hung = outcome(End::TimeOut(Duration::from_secs(9)), "", "");
        verbs(&mut table, &hung, &around());
        assert!(
            table.lines[1].evidence.contains("did not end within 9 s before it began"),
            "{:?}",
            table.lines
        );
    }

    #[test]
    fn one_stack_of_two_worlds() {
        let facts =
            Facts::of("object\tpath=/run/hpc-launch/lib/libucp.so.0\nobject\tpath=/usr/lib/libuct.so.0\n");
        let of_host = [PathBuf::from("/run/hpc-launch")];
        let mut table = Table::default();
        whole(&mut table, &facts, &Around { adapters: &[], of_host: &of_host });
        assert_eq!(table.lines[0].status, Status::Fail);
        assert!(
            table.lines[0]
                .evidence
                .contains("UCX is of two worlds: /run/hpc-launch/lib/libucp.so.0 is the host's")
        );
    }

    #[test]
    fn ranks_that_cannot_read_each_other() {
        let rank = |n: u32, user: u32, errno: i32| {
            format!(
                "rank\tlocal={n}\tuser={user}\tpid=2\tof={}\terrno={errno}\tequal={}\tcpus=3\n",
                1 - n,
                u8::from(errno == 0)
            )
        };
        let mut table = Table::default();
        ranks(&mut table, &Facts::of(&(rank(0, 1, 1) + &rank(1, 9, 0))), 2, Some("2"));
        let all: Vec<(Status, &str)> = table.lines.iter().map(|l| (l.status, l.evidence.as_str())).collect();
        assert_eq!(all[0], (Status::Fail, "ranks are in different user namespaces: 1, 9"));
        assert_eq!(all[1], (Status::Pass, "2 ranks are in one pid namespace, 2"));
        let read = "rank 0 cannot read rank 1's memory (process_vm_readv): EPERM: Operation not permitted \
                    (kernel.yama.ptrace_scope is 2)";
        assert_eq!(all[2], (Status::Fail, read));
        assert_eq!(all[3], (Status::Warn, "several ranks are bound to one processor: 0: 3; 1: 3"));
    }
}

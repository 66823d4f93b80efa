//! What ranks share, and what MPI does between them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Around, error_text};
use crate::validate::Area;
use crate::validate::child::{End, Outcome};
use crate::validate::facts::{Fact, Facts};
use crate::validate::table::Table;
use crate::validate::topology::{Device, Topology};

/// EPERM.
const NOT_PERMITTED: i64 = 1;

/// What ranks of one node said of each other.
pub fn ranks(table: &mut Table, facts: &Facts, expected: usize, yama: Option<&str>, topology: &Topology) {
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
    affinity(table, &seen, topology);
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

/// Which devices are close to which ranks, and who was given another GPU than that.
fn affinity(table: &mut Table, seen: &[&Fact], topology: &Topology) {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for fact in seen {
        let (rank, cpus, visible) = (fact.text("local"), fact.text("cpus"), fact.text("visible"));
        let names =
            |devices: &[&Device]| devices.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
        let close = names(&topology.close_to(cpus));
        if !close.is_empty() {
            groups.entry(close).or_default().push(rank);
        }
        if let Some((given, closer)) = topology.farther(cpus, visible) {
            table.warn(
                Area::Ranks,
                format!(
                    "rank {rank} was given {}, and {} is closer to its processors ({cpus})",
                    given.name,
                    names(&closer)
                ),
                "--gpu-bind closest gives each rank one of the closest, or let the launcher bind ranks otherwise",
            );
        }
    }
    for (close, ranks) in groups {
        table.pass(Area::Ranks, format!("close to ranks {}: {close}", ranks.join(", ")));
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
    use super::super::samples::{around, outcome};
    use super::*;
    use crate::validate::table::Status;

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
    fn ranks_that_cannot_read_each_other() {
        let rank = |n: u32, user: u32, errno: i32| {
            format!(
                "rank\tlocal={n}\tuser={user}\tpid=2\tof={}\terrno={errno}\tequal={}\tcpus=3\n",
                1 - n,
                u8::from(errno == 0)
            )
        };
        let mut table = Table::default();
        ranks(&mut table, &Facts::of(&(rank(0, 1, 1) + &rank(1, 9, 0))), 2, Some("2"), &Topology::default());
        let all: Vec<(Status, &str)> = table.lines.iter().map(|l| (l.status, l.evidence.as_str())).collect();
        assert_eq!(all[0], (Status::Fail, "ranks are in different user namespaces: 1, 9"));
        assert_eq!(all[1], (Status::Pass, "2 ranks are in one pid namespace, 2"));
        let read = "rank 0 cannot read rank 1's memory (process_vm_readv): EPERM: Operation not permitted \
                    (kernel.yama.ptrace_scope is 2)";
        assert_eq!(all[2], (Status::Fail, read));
        assert_eq!(all[3], (Status::Warn, "several ranks are bound to one processor: 0: 3; 1: 3"));
    }

    #[test]
    fn devices_are_close_to_some_ranks() {
        let topology = Topology::sample(&[("GPU 0", "GPU-a", 0), ("GPU 1", "GPU-b", 1), ("mlx5_0", "", 1)]);
        let rank = |n: u32, cpus: &str, visible: &str| {
            format!("rank\tlocal={n}\tuser=1\tpid=2\tof={}\tequal=1\tcpus={cpus}\tvisible={visible}\n", 1 - n)
        };
        let lines = |facts: String| {
            let mut table = Table::default();
            ranks(&mut table, &Facts::of(&facts), 2, None, &topology);
            table.lines.into_iter().map(|line| (line.status, line.evidence)).collect::<Vec<_>>()
        };
        let all = lines(rank(0, "0-1", "GPU-a") + &rank(1, "4-7", "GPU-a"));
        let warned = "rank 1 was given GPU 0, and GPU 1 is closer to its processors (4-7)";
        assert!(all.contains(&(Status::Warn, warned.to_owned())), "{all:?}");
        for close in ["close to ranks 0: GPU 0", "close to ranks 1: GPU 1, mlx5_0"] {
            assert!(all.contains(&(Status::Pass, close.to_owned())), "{all:?}");
        }
        // Who may use all processors is close to all.
        let all = lines(rank(0, "0-7", "") + &rank(1, "0-7", "GPU-b"));
        assert!(!all.iter().any(|(status, text)| *status == Status::Warn || text.contains("GPU")), "{all:?}");
    }
}

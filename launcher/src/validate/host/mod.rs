//! What can be said of the host without any program: shared memory, limits, adapters, GPUs, descriptions of devices.

mod gpus;

use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::Area;
use super::table::Table;
use crate::cdi::registry::Registry;
use crate::cdi::{not_permitted, other_version};
use crate::config::Config;
use crate::host::fabric::{Adapter, Port, adapters, dangling_providers};

const MIB: u64 = 1 << 20;
/// What MPIs take of shared memory for each rank, about (Open MPI's and MPICH's defaults).
const SHM_PER_RANK: u64 = 16 * MIB;
/// UCX registers 38 MiB for the receive queue of one interface (rc_verbs, defaults); MPIs have several.
const LEAST_MEMLOCK: u64 = 64 * MIB;

/// Adds the lines. `ranks`: of one node.
pub fn look(table: &mut Table, config: &Config, ranks: u32) {
    shared_memory(table, ranks);
    let adapters = adapters();
    fabrics(table, &adapters);
    memlock(table, !adapters.is_empty());
    gpus::look(table, config, &adapters);
    descriptions(table, config);
}

fn shared_memory(table: &mut Table, ranks: u32) {
    let path = "/dev/shm";
    match statvfs(path) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let wanted = SHM_PER_RANK * u64::from(ranks);
            let evidence = format!("{path} has {} MiB free", free / MIB);
            if free < wanted {
                let cure = format!(
                    "{ranks} ranks take about {} MiB there, and end with SIGBUS where it is full: remove what jobs have \
                     left, or enlarge it (mount -o remount,size=… {path})",
                    wanted / MIB
                );
                table.fail(Area::Memory, evidence, cure);
            } else {
                table.pass(Area::Memory, evidence);
            }
        }
        Err(e) => table.fail(Area::Memory, format!("{path}: {e}"), "mount a tmpfs there"),
    }
}

fn memlock(table: &mut Table, is_needed: bool) {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) {
        memlock_of(table, is_needed, soft, hard);
    }
}

fn memlock_of(table: &mut Table, is_needed: bool, soft: u64, hard: u64) {
    let shown = |limit: u64| match limit {
        RLIM_INFINITY => "unlimited".to_owned(),
        limit => format!("{} KiB", limit / 1024),
    };
    let evidence = format!("locked memory: {}", shown(soft));
    let here = match hard {
        RLIM_INFINITY => "`ulimit -l unlimited` is allowed here".to_owned(),
        hard => format!("the hard limit is {}, let the administrator raise it", shown(hard)),
    };
    let cure = format!(
        "adapters read and write locked memory only (being root in a user namespace does not help): {here}; for all, \
         `* - memlock unlimited` in /etc/security/limits.conf, LimitMEMLOCK=infinity for systemd, \
         PropagateResourceLimitsExcept=MEMLOCK for Slurm"
    );
    match soft {
        RLIM_INFINITY => table.pass(Area::Memory, evidence),
        _ if !is_needed => table.skip(Area::Memory, format!("{evidence}: no fabric device here needs more")),
        soft if soft < LEAST_MEMLOCK => table.fail(Area::Memory, evidence, cure),
        _ => table.warn(Area::Memory, evidence, cure),
    }
}

fn fabrics(table: &mut Table, adapters: &[Adapter]) {
    if adapters.is_empty() {
        table.skip(Area::Verbs, "no fabric device: nothing in /sys/class/infiniband or /sys/class/cxi*");
        return;
    }
    for adapter in adapters {
        let area = if adapter.class == "infiniband" { Area::Verbs } else { Area::Libfabric };
        let name = &adapter.name;
        match &adapter.node {
            None => table.fail(
                area,
                format!("{name}: no program can reach it, {} is missing", adapter.wanted_node()),
                "let the administrator load the module that makes it: modprobe ib_uverbs (for cxi: cxi_user)",
            ),
            Some(node) => match not_permitted(node) {
                Some((why, cure)) => table.fail(area, format!("{name}: {why}"), cure),
                None => table.pass(area, format!("{name}: {} may be opened", node.display())),
            },
        }
        for port in &adapter.ports {
            let Port { number, state, physical, layer } = port;
            let evidence = format!("{name} port {number}: {state}, {physical} ({layer})");
            if port.is_active() {
                table.pass(area, evidence);
            } else {
                let cure = match (physical.as_str(), layer.as_str()) {
                    (_, "Ethernet") => "bring its network interface up: ip link set … up; see `rdma link`",
                    ("LinkUp", _) => {
                        "the cable is good and no subnet manager has configured the port: start opensm"
                    }
                    _ => "look for the cable and the switch: ibstat, iblinkinfo",
                };
                table.fail(area, evidence, cure);
            }
        }
    }
    if adapters.iter().any(|a| a.class == "infiniband") {
        let manager = Path::new("/dev/infiniband/rdma_cm");
        match (manager.exists(), not_permitted(manager)) {
            (false, _) => table.warn(
                Area::Verbs,
                format!(
                    "{} is missing: librdmacm, and libfabric's verbs provider with it, find no device",
                    manager.display()
                ),
                "modprobe rdma_ucm",
            ),
            (true, Some((why, cure))) => table.warn(Area::Verbs, why, cure),
            (true, None) => {}
        }
        for (file, target) in dangling_providers() {
            table.fail(
                Area::Verbs,
                format!("the provider {} leads to {}, which is not there", file.display(), target.display()),
                "install the host's rdma-core anew (Debian: ibverbs-providers)",
            );
        }
    }
}

/// A file of another driver than the one that is loaded.
struct Stale {
    path: PathBuf,
    described: String,
    loaded: String,
}

fn descriptions(table: &mut Table, config: &Config) {
    let registry = Registry::read(&config.cdi_directories.value, nix::unistd::geteuid().as_raw());
    for fault in &registry.faults {
        table.fail(
            Area::Cdi,
            format!("{}: {}", fault.path.display(), fault.why),
            "correct the file, or remove it: it does not count",
        );
    }
    let mut files: Vec<(&Path, Option<Stale>)> = Vec::new();
    for described in registry.devices.values() {
        let source = &described.source;
        if files.iter().any(|(path, _)| *path == source.path) {
            continue;
        }
        let of_device = &described.device().container_edits.mounts;
        let mounts = source.spec.container_edits.mounts.iter().chain(of_device);
        let stale = mounts.map(|mount| PathBuf::from(&mount.host_path)).find_map(|path| {
            let (described, loaded) = other_version(&path)?;
            Some(Stale { path, described, loaded })
        });
        files.push((&source.path, stale));
    }
    for (file, stale) in &files {
        match stale {
            Some(Stale { path, described, loaded }) => table.fail(
                Area::Cdi,
                format!(
                    "{} is staler than the driver: it names {} (driver {described}), and {loaded} is loaded",
                    file.display(),
                    path.display()
                ),
                format!("write it anew: hpc-launch cdi generate --output {}", file.display()),
            ),
            None => {
                let of = |d: &&crate::cdi::registry::Described| d.source.path == *file;
                let count = registry.devices.values().filter(of).count();
                table.pass(Area::Cdi, format!("{}: {count} devices", file.display()));
            }
        }
    }
    if files.is_empty() && registry.faults.is_empty() {
        let searched: Vec<String> =
            config.cdi_directories.value.iter().map(|d| d.display().to_string()).collect();
        table.skip(Area::Cdi, format!("no device is described in {}", searched.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::table::Status;

    #[test]
    fn the_limit_of_locked_memory_matters_where_there_is_an_adapter() {
        let line = |is_needed, soft, hard| {
            let mut table = Table::default();
            memlock_of(&mut table, is_needed, soft, hard);
            table.lines.remove(0)
        };
        let few = line(true, 65536, 8 * MIB);
        assert_eq!((few.status, few.evidence.as_str()), (Status::Fail, "locked memory: 64 KiB"));
        assert!(
            few.cure.contains("the hard limit is 8192 KiB") && few.cure.contains("limits.conf"),
            "{}",
            few.cure
        );
        let more = line(true, 1024 * MIB, RLIM_INFINITY);
        assert_eq!(more.status, Status::Warn);
        assert!(more.cure.contains("`ulimit -l unlimited` is allowed here"), "{}", more.cure);
        assert_eq!(line(true, RLIM_INFINITY, RLIM_INFINITY).status, Status::Pass);
        assert_eq!(line(false, 65536, 65536).status, Status::Skip);
    }
}

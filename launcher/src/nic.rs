//! Which adapter each rank is told to use: only where somebody asks for it. Libraries choose well among the adapters of
//! most machines, and use several of them for one message; a rank that is told of one uses no other.

use std::path::Path;

use pmi_shim::launcher::Rank;

use crate::config::Config;
use crate::environ::Environ;
use crate::host::fabric::Adapter;
use crate::host::gpu::Gpu;
use crate::host::place::{Bind, Distances, nearest, next_of, nodes};
use crate::plan::Change;

/// By which UCX knows its devices: `mlx5_0:1`.
const UCX: &str = "UCX_NET_DEVICES";

/// Adapters that have something to send by, if anybody asks for them.
pub fn offered(config: &Config) -> Vec<Adapter> {
    match config.nic_bind.value {
        Bind::None => Vec::new(),
        _ => crate::host::fabric::adapters().into_iter().filter(is_usable).collect(),
    }
}

/// Slingshot's have no ports.
fn is_usable(adapter: &Adapter) -> bool {
    adapter.class != "infiniband" || adapter.ports.iter().any(|port| port.is_active())
}

/// Variables that name it to the libraries that use it: UCX (ucx_info -f); PSM2 (`HFI_UNIT`) and libfabric's OPX for
/// Omni-Path; libfabric's provider for Slingshot (fi_cxi(7)).
fn variables(adapter: &Adapter) -> Vec<(&'static str, String)> {
    let name = &adapter.name;
    if let Some(number) = name.strip_prefix("hfi1_") {
        return vec![("HFI_UNIT", number.to_owned()), ("FI_OPX_HFI_SELECT", number.to_owned())];
    }
    if adapter.class != "infiniband" {
        return vec![("FI_CXI_DEVICE_NAME", name.clone())];
    }
    let active = adapter.ports.iter().filter(|port| port.is_active());
    let ports: Vec<String> = active.map(|port| format!("{name}:{}", port.number)).collect();
    vec![(UCX, ports.join(","))]
}

/// Tells a program which adapter is its rank's. What is set already stays.
pub fn select(
    adapters: &[Adapter],
    gpu: Option<&Gpu>,
    config: &Config,
    outside: &Environ,
    rank: Option<&Rank>,
    environ: &mut Environ,
) -> Vec<Change> {
    let Some(local) = rank.and_then(|rank| rank.local_rank) else { return Vec::new() };
    let bind = &config.nic_bind;
    let (one, close) = match bind.value {
        Bind::None => return Vec::new(),
        Bind::RoundRobin => (next_of(&adapters.iter().collect::<Vec<_>>(), local), ""),
        Bind::Closest => {
            let nodes = nodes(Path::new("/sys"));
            match gpu {
                Some(gpu) => {
                    let from = gpu.place.numa.map(|node| Distances::of_node(&nodes, node));
                    let near = nearest(adapters, |one| {
                        let far = from.as_ref().map_or(0, |from| from.to(one.place.numa));
                        (usize::MAX - gpu.place.shared(&one.place), far)
                    });
                    (next_of(&near, local), ", close to its GPU")
                }
                None => {
                    let from = Distances::from_here(&nodes);
                    (from.closest(adapters, |one| &one.place, local), ", close to its processors")
                }
            }
        }
    };
    let Some(one) = one else { return Vec::new() };
    let why = format!("the adapter of local rank {local}{close} ({})", bind.origin);
    let is_set =
        |name: &str| outside.get_os(name).is_some() || config.env.iter().any(|pair| pair.value.0 == name);
    let told = variables(one).into_iter().filter(|(name, _)| !is_set(name));
    told.map(|(name, value)| {
        environ.set(name, &value);
        Change { name: name.to_owned(), value: Some(value), why: why.clone() }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fabric::Port;
    use crate::host::place::Place;

    fn adapter(class: &str, name: &str, states: &[&str]) -> Adapter {
        let port = |(n, state): (usize, &&str)| Port {
            number: n as u32 + 1,
            state: (*state).to_owned(),
            physical: String::new(),
            layer: String::new(),
        };
        Adapter {
            class: class.to_owned(),
            name: name.to_owned(),
            node: None,
            ports: states.iter().enumerate().map(port).collect(),
            place: Place::default(),
        }
    }

    #[test]
    fn every_library_knows_adapters_by_names_of_its_own() {
        let told = |class, name, states: &[&str]| {
            let all = variables(&adapter(class, name, states));
            all.into_iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            told("infiniband", "mlx5_0", &["ACTIVE", "DOWN", "ACTIVE"]),
            "UCX_NET_DEVICES=mlx5_0:1,mlx5_0:3"
        );
        assert_eq!(told("infiniband", "hfi1_1", &["ACTIVE"]), "HFI_UNIT=1 FI_OPX_HFI_SELECT=1");
        assert_eq!(told("cxi", "cxi2", &[]), "FI_CXI_DEVICE_NAME=cxi2");
        assert!(!is_usable(&adapter("infiniband", "mlx5_0", &["DOWN"])));
        assert!(is_usable(&adapter("cxi", "cxi0", &[])));
    }
}

//! Where devices are: next to which memory, and behind which bridges; and what is closest to what.
//!
//! Sources: Documentation/ABI/testing/sysfs-bus-pci (`numa_node`), Documentation/ABI/stable/sysfs-devices-node.

use std::path::{Component, Path};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{allowed_processors, names};

/// More bridges than there are between a processor and a device.
const MAX_BRIDGES: usize = 16;

/// Which device of a node each of its ranks is told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bind {
    /// One of those that are closest: GPUs to its processors, adapters to its GPU or else to its processors
    Closest,
    /// One after the other
    RoundRobin,
    /// No rank is told
    None,
}

/// Where a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The memory node that it is next to; none: the machine has only one, or does not say.
    pub numa: Option<u32>,
    /// The bus, the bridges, and the device itself: `pci0000:16`, `0000:16:01.0`, `0000:17:00.0`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<String>,
}

impl Place {
    /// Of a device, by its directory in /sys (or a link to it).
    pub fn of(device: &Path) -> Place {
        let numa = std::fs::read_to_string(device.join("numa_node")).ok();
        // -1: nobody knows.
        let numa = numa.and_then(|text| text.trim().parse().ok());
        let path = std::fs::canonicalize(device).unwrap_or_default();
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => name.to_str().map(String::from),
            _ => None,
        });
        let bridges = names.skip_while(|name| !name.starts_with("pci")).take(MAX_BRIDGES).collect();
        Place { numa, bridges }
    }

    /// How many bridges two devices have in common: none if they are of two buses.
    pub fn shared(&self, other: &Place) -> usize {
        self.bridges.iter().zip(&other.bridges).take_while(|(a, b)| a == b).count()
    }
}

/// A memory node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    number: u32,
    /// Its processors, `0-3,8`.
    cpus: String,
    /// To the others, in the order of their numbers.
    distances: Vec<u32>,
}

/// All memory nodes, by number.
pub fn nodes(sys: &Path) -> Vec<Node> {
    let directory = sys.join("devices/system/node");
    let mut numbers: Vec<u32> =
        names(&directory).iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
    // Rows of distances are in that order.
    numbers.sort_unstable();
    let text = |node: u32, name: &str| {
        std::fs::read_to_string(directory.join(format!("node{node}/{name}"))).unwrap_or_default()
    };
    let node = |number| Node {
        number,
        cpus: text(number, "cpulist").trim().to_owned(),
        distances: text(number, "distance").split_ascii_whitespace().flat_map(str::parse).collect(),
    };
    numbers.into_iter().map(node).collect()
}

/// How far each memory node is: the least distance to any of some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distances(Vec<(u32, u32)>);

impl Distances {
    /// From these processors.
    pub fn of_processors(nodes: &[Node], processors: &[(usize, usize)]) -> Distances {
        let has = |node: &Node| {
            let own = ranges(&node.cpus);
            own.iter().any(|(a, b)| processors.iter().any(|(first, last)| a <= last && first <= b))
        };
        Distances::of(nodes, has)
    }

    /// From the processors that this process may use.
    pub fn from_here(nodes: &[Node]) -> Distances {
        let each: Vec<(usize, usize)> = allowed_processors().into_iter().map(|cpu| (cpu, cpu)).collect();
        Distances::of_processors(nodes, &each)
    }

    /// From this memory node.
    pub fn of_node(nodes: &[Node], number: u32) -> Distances {
        Distances::of(nodes, |node| node.number == number)
    }

    fn of(nodes: &[Node], is_here: impl Fn(&Node) -> bool) -> Distances {
        let mut least: Vec<(u32, u32)> = nodes.iter().map(|node| (node.number, u32::MAX)).collect();
        for node in nodes.iter().filter(|node| is_here(node)) {
            for ((_, known), distance) in least.iter_mut().zip(&node.distances) {
                *known = (*known).min(*distance);
            }
        }
        Distances(least)
    }

    /// To a node; what nobody knows is next to everything.
    pub fn to(&self, node: Option<u32>) -> u32 {
        let known = node.and_then(|node| self.0.iter().find(|(n, _)| *n == node));
        known.map_or(0, |(_, distance)| *distance)
    }

    /// To the closest node.
    pub fn least(&self) -> u32 {
        self.0.iter().map(|(_, distance)| *distance).min().unwrap_or(0)
    }

    /// The one for the rank of this number on its node: of those that are closest, the next.
    pub fn closest<'a, T>(
        &self,
        all: &'a [T],
        place: impl Fn(&T) -> &Place,
        local_rank: u32,
    ) -> Option<&'a T> {
        next_of(&nearest(all, |one| self.to(place(one).numa)), local_rank)
    }
}

/// Those with the least.
pub fn nearest<T, K: Ord>(all: &[T], key: impl Fn(&T) -> K) -> Vec<&T> {
    let least = all.iter().map(&key).min();
    all.iter().filter(|one| Some(key(one)) == least).collect()
}

/// One after the other.
pub fn next_of<'a, T>(all: &[&'a T], local_rank: u32) -> Option<&'a T> {
    all.get((local_rank as usize).checked_rem(all.len())?).copied()
}

/// `0-3,8,10-11`.
pub fn ranges(text: &str) -> Vec<(usize, usize)> {
    let one = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.trim().split(',').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(numa: Option<u32>, bridges: &[&str]) -> Place {
        Place { numa, bridges: bridges.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn ranks_get_the_next_of_the_closest() {
        let sys = tempfile::tempdir().unwrap();
        for (node, cpus, row) in [(0, "0-3,8", "10 21"), (1, "4-7", "21 10")] {
            let at = sys.path().join(format!("devices/system/node/node{node}"));
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join("cpulist"), cpus).unwrap();
            std::fs::write(at.join("distance"), row).unwrap();
        }
        let nodes = nodes(sys.path());
        let devices = [0, 0, 1, 1].map(|node| at(Some(node), &[]));
        let closest = |cpus: &str, rank| {
            let distances = Distances::of_processors(&nodes, &ranges(cpus));
            let found = distances.closest(&devices, |place| place, rank).unwrap();
            devices.iter().position(|one| std::ptr::eq(one, found)).unwrap()
        };
        assert_eq!([closest("1", 0), closest("8", 1), closest("0", 2)], [0, 1, 0]);
        assert_eq!([closest("5", 0), closest("6-7", 1)], [2, 3]);
        // Bound to both, or to none that is known: one after the other.
        assert_eq!([closest("0,5", 2), closest("0-7", 3), closest("99", 1)], [2, 3, 1]);
        let from = Distances::of_node(&nodes, 1);
        assert_eq!((from.to(Some(0)), from.to(Some(1)), from.least()), (21, 10, 10));
        // Without a word on memory.
        let flat = Distances::of_processors(&[], &[(0, 0)]);
        assert_eq!(flat.closest(&devices, |place| place, 5), Some(&devices[1]));
        assert_eq!(flat.closest(&[], |place: &Place| place, 0), None);
    }

    #[test]
    fn what_is_behind_the_same_bridges() {
        let sys = tempfile::tempdir().unwrap();
        let real = sys.path().join("devices/pci0000:16/0000:16:01.0/0000:17:00.0");
        std::fs::create_dir_all(&real).unwrap();
        std::fs::write(real.join("numa_node"), "-1\n").unwrap();
        let link = sys.path().join("0000:17:00.0");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let gpu = Place::of(&link);
        assert_eq!(gpu, at(None, &["pci0000:16", "0000:16:01.0", "0000:17:00.0"]));
        assert_eq!(gpu.shared(&at(None, &["pci0000:16", "0000:16:01.0", "0000:18:00.0"])), 2);
        assert_eq!(gpu.shared(&at(None, &["pci0000:97", "0000:16:01.0"])), 0);
        assert_eq!(Place::of(Path::new("/nonexistent")), Place::default());
    }
}

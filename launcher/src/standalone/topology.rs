//! Cores and sockets of this machine, from /sys, and where each rank is bound. Pure but for reading /sys.

use std::collections::BTreeMap;
use std::path::Path;

use clap::ValueEnum;

/// To what ranks are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BindTo {
    /// Each to a core, as long as there is one for each
    Core,
    /// Each to the socket that its core is in
    Socket,
    /// To nothing: they run where this program may
    None,
}

/// A processor's place: its package and its core there (Documentation/admin-guide/cputopology.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    package: u32,
    core: u32,
}

/// The cores that this process may use, each with its processors, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    cores: BTreeMap<Place, Vec<usize>>,
}

impl Topology {
    /// Of these processors, by what `/sys` says of each.
    pub fn read(sys: &Path, allowed: &[usize]) -> Topology {
        let number = |cpu: usize, name: &str| -> Option<u32> {
            let path = sys.join(format!("devices/system/cpu/cpu{cpu}/topology/{name}"));
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        let mut cores: BTreeMap<Place, Vec<usize>> = BTreeMap::new();
        for cpu in allowed {
            // Where nothing is said each processor is a core. Some firmware says -1 for the package.
            let place = Place {
                package: number(*cpu, "physical_package_id").unwrap_or(0),
                core: number(*cpu, "core_id").unwrap_or(*cpu as u32),
            };
            cores.entry(place).or_default().push(*cpu);
        }
        Topology { cores }
    }

    /// How many ranks there is room for: one for each core.
    pub fn slots(&self) -> usize {
        self.cores.len().max(1)
    }

    /// The processors for a rank; none: wherever.
    pub fn processors(&self, bind: BindTo, rank: usize, ranks: usize) -> Option<Vec<usize>> {
        if ranks > self.slots() {
            return None;
        }
        let (place, of_core) = self.cores.iter().nth(rank)?;
        match bind {
            BindTo::None => None,
            BindTo::Core => Some(of_core.clone()),
            BindTo::Socket => {
                let of_package = self.cores.iter().filter(|(other, _)| other.package == place.package);
                Some(of_package.flat_map(|(_, cpus)| cpus.clone()).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(places: &[(usize, u32, u32)]) -> (tempfile::TempDir, Vec<usize>) {
        let sys = tempfile::tempdir().unwrap();
        for (cpu, package, core) in places {
            let dir = sys.path().join(format!("devices/system/cpu/cpu{cpu}/topology"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("physical_package_id"), format!("{package}\n")).unwrap();
            std::fs::write(dir.join("core_id"), format!("{core}\n")).unwrap();
        }
        (sys, places.iter().map(|(cpu, ..)| *cpu).collect())
    }

    #[test]
    fn cores_with_two_threads_on_two_sockets() {
        let places = [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 0, 0), (5, 0, 1), (6, 1, 0), (7, 1, 1)];
        let (sys, all) = machine(&places);
        let topology = Topology::read(sys.path(), &all);
        assert_eq!(topology.slots(), 4);
        assert_eq!(topology.processors(BindTo::Core, 0, 4), Some(vec![0, 4]));
        assert_eq!(topology.processors(BindTo::Core, 2, 4), Some(vec![2, 6]));
        assert_eq!(topology.processors(BindTo::Socket, 3, 4), Some(vec![2, 6, 3, 7]));
        assert_eq!(topology.processors(BindTo::None, 0, 4), None);
        assert_eq!(topology.processors(BindTo::Core, 0, 5), None, "oversubscribed");
        let part = Topology::read(sys.path(), &[5, 6]);
        assert_eq!((part.slots(), part.processors(BindTo::Core, 1, 2)), (2, Some(vec![6])));
    }

    #[test]
    fn without_any_word_of_it_each_processor_is_a_core() {
        let topology = Topology::read(Path::new("/nonexistent"), &[0, 1, 2]);
        assert_eq!((topology.slots(), topology.processors(BindTo::Core, 2, 3)), (3, Some(vec![2])));
    }
}

//! The machine that was measured, and what else it was doing: numbers mean nothing without it.

use crate::contender::{Setup, find_program};
use crate::document::{Machine, Noise};
use crate::run::Runner;
use std::fs;
use std::path::Path;

/// Where the kernel tells of the clock rate and what changes it.
const CPUFREQ: &str = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";

/// To be taken before the first sample.
pub fn survey() -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let value = cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.split_once(": "));
        value.map(|(_, value)| value.to_owned())
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    Machine {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
        system: name.unwrap_or("unknown").trim_matches('"').into(),
        cpu: field("model name").unwrap_or_else(|| "unknown".into()),
        cpus: cpus(),
        virtual_machine: field("flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor")),
        memory: kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
        mounts: fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().count(),
        user: crate::user::name().unwrap_or_else(|_| "unknown".into()),
        governor: fs::read_to_string(CPUFREQ).ok().map(|text| text.trim().to_owned()),
        versions: [("hpc-bench".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
    }
}

/// CPUs that this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The version of hpc-launch and of each of `programs` that is here.
pub fn versions(setup: &Setup, runner: &mut Runner, programs: &[&str]) -> Vec<(String, String)> {
    let mut versions = Vec::new();
    for name in programs {
        let Ok(path) = find_program(name, "") else { continue };
        versions.push(((*name).into(), version(setup, runner, &path)));
    }
    if let Ok(path) = &setup.launcher {
        versions.push(("hpc-launch".into(), version(setup, runner, path)));
    }
    versions
}

/// The first line of `--version`; ch-run writes it to stderr, hydra a whole page with a line for it.
fn version(setup: &Setup, runner: &mut Runner, program: &Path) -> String {
    let Ok(said) = runner.both(&setup.line(program, &["--version"])) else { return "does not say".into() };
    let line = said.lines().find(|line| line.trim_start().starts_with("Version:")).or(said.lines().next());
    line.map_or("does not say", str::trim).into()
}

/// What goes on besides the measurement, between two points in time.
#[derive(Debug)]
pub struct Watch {
    load: f64,
    clock: Option<f64>,
    stolen: Option<Ticks>,
}

/// Of all processors, in ticks.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Watch {
    /// Before the first sample; `load` is what the machine did before the measurement began.
    pub fn start(load: f64) -> Self {
        Watch { load, clock: clock(), stolen: ticks() }
    }

    /// After the last.
    pub fn finish(self) -> Noise {
        let stolen = self.stolen.zip(ticks()).and_then(|(before, after)| {
            let all = after.all.checked_sub(before.all).filter(|all| *all > 0)?;
            Some(after.stolen.saturating_sub(before.stolen) as f64 / all as f64)
        });
        Noise {
            load_before: self.load,
            load_after: load(),
            stolen,
            clock: self.clock.zip(clock()),
            cpus: cpus(),
        }
    }
}

/// The one-minute load average.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// The mean of what the kernel says of each processor now.
fn clock() -> Option<f64> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let rates: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("cpu MHz")?.split_once(": ")?.1.trim().parse().ok())
        .collect();
    (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64)
}

/// The first line of /proc/stat: user nice system idle iowait irq softirq steal (proc_stat(5)); guest time, which
/// follows, is in user's already.
fn ticks() -> Option<Ticks> {
    ticks_of(&fs::read_to_string("/proc/stat").ok()?)
}

fn ticks_of(text: &str) -> Option<Ticks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|word| word.parse().ok()).collect();
    Some(Ticks { all: ticks.iter().sum(), stolen: *ticks.get(7)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_eighth_number() {
        let ticks = ticks_of("cpu  10 1 5 100 2 0 1 7 3 0\ncpu0 1 2\n").unwrap();
        assert_eq!((ticks.all, ticks.stolen), (126, 7));
        assert!(ticks_of("cpu  10 1 5").is_none());
    }

    #[test]
    fn this_machine_says_what_it_is() {
        let machine = survey();
        assert!(machine.memory > 0 && machine.cpus > 0 && !machine.kernel.is_empty(), "{machine:?}");
        let noise = Watch::start(load()).finish();
        assert_eq!(noise.cpus, machine.cpus);
    }
}

//! The machine that was measured, and what else it was doing: numbers mean nothing without it.

use crate::run::Runner;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::contender::{Setup, find_program};

/// What a reader needs to compare two reports.
#[derive(Debug, Serialize)]
pub struct Machine {
    kernel: String,
    cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// The cost of a mount namespace grows with the mounts that exist.
    mounts: usize,
    user: String,
    versions: BTreeMap<String, String>,
    /// One-minute load average before the first sample.
    pub load_before: f64,
    /// … and after the last.
    pub load_after: f64,
}

impl Machine {
    /// To be taken before the first sample. `programs` are asked for their version.
    pub fn survey(setup: &Setup, runner: &mut Runner, programs: &[&str]) -> Self {
        let mut versions = BTreeMap::new();
        for name in programs {
            let Ok(path) = find_program(name, "") else { continue };
            versions.insert((*name).into(), version(setup, runner, &path));
        }
        if let Ok(path) = &setup.launcher {
            versions.insert("hpc-launch".into(), version(setup, runner, path));
        }
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
            cpu: cpu.map_or("unknown", |(_, model)| model).into(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            mounts: fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().count(),
            user: crate::user::name().unwrap_or_else(|_| "unknown".into()),
            versions,
            load_before: load(),
            load_after: 0.0,
        }
    }

    /// To be called after the last sample.
    pub fn finish(&mut self) {
        self.load_after = load();
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// The first line of `--version`; ch-run writes it to stderr, so a program may also have none.
fn version(setup: &Setup, runner: &mut Runner, program: &Path) -> String {
    let said = runner.output(&setup.line(program, &["--version"])).unwrap_or_default();
    said.lines().next().unwrap_or("does not say").trim().into()
}

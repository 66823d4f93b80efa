//! What a job could leave behind on the host besides processes (for which [`crate::run`] looks itself).

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long the kernel may take to let go.
const GRACE: Duration = Duration::from_secs(2);

/// The host's state, as far as hpc-launch could change it.
#[derive(Clone, Debug)]
pub struct Host {
    process: String,
    mounts: BTreeSet<String>,
    sockets: BTreeSet<String>,
    loops: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Host {
    /// As it is now.
    pub fn now() -> Host {
        Host::seen_by("self")
    }

    /// As a process sees it that may have other namespaces.
    pub fn seen_by(process: &str) -> Host {
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
        let named =
            |text: String| text.lines().filter(|l| l.contains("hpc-launch")).map(String::from).collect();
        let sockets: BTreeSet<String> = named(read("net/unix"));
        let here = |dir: &str| list(&format!("/proc/{process}/root{dir}"));
        Host {
            process: process.to_owned(),
            mounts: read("mountinfo").lines().map(String::from).collect(),
            sockets: sockets.iter().filter_map(|l| l.split_whitespace().last()).map(String::from).collect(),
            loops: list("/sys/block")
                .filter_map(|l| std::fs::read_to_string(format!("/sys/block/{l}/loop/backing_file")).ok())
                .filter(|file| file.contains("hpc-launch") || file.contains(".sqfs"))
                .collect(),
            files: ["/tmp", "/dev/shm", "/run", "/var/tmp", "/var/run/user"]
                .iter()
                .flat_map(|dir| here(dir).map(move |name| format!("{dir}/{name}")))
                .filter(|path| path.contains("hpc-launch"))
                .collect(),
        }
    }

    /// Asserts that nothing is there that was not before, soon. (What was there may have gone: others run too.)
    #[track_caller]
    pub fn is_as_before(&self, after: &str) {
        let start = Instant::now();
        loop {
            let now = Host::seen_by(&self.process);
            let new: Vec<&String> = [
                now.mounts.difference(&self.mounts),
                now.sockets.difference(&self.sockets),
                now.loops.difference(&self.loops),
                now.files.difference(&self.files),
            ]
            .into_iter()
            .flatten()
            .collect();
            if new.is_empty() {
                return;
            }
            assert!(start.elapsed() < GRACE, "left behind after {after}: {new:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn list(dir: &str) -> impl Iterator<Item = String> + use<> {
    std::fs::read_dir(Path::new(dir))
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
}

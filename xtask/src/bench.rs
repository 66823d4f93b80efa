//! `cargo xtask bench`: from a bare Debian machine to a report that compares containers with bare metal.

use crate::layout::{Layout, is_root};
use crate::setup::{self, Set};
use crate::user::{PlainUser, Stage};
use crate::{images, programs, release, run};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One image for each of Debian's MPIs, and the launcher of that MPI.
const IMAGES: [(&str, &str); 2] =
    [("bookworm-openmpi", "mpirun.openmpi"), ("bookworm-mpich", "mpiexec.hydra")];
/// With which the benchmark programs of either are found.
const FAMILIES: [&str; 2] = ["openmpi", "mpich"];

/// Measures for about so long, into target/bench or `out`.
pub fn bench(layout: &Layout, minutes: f64, out: Option<PathBuf>, again: bool) -> Result<()> {
    setup::install(layout, Set::Test)?;
    let launcher = release::build(layout)?;
    let bench = release::bench(layout)?;
    images::make(layout, &IMAGES.map(|(name, _)| name.to_string()), true)?;
    let programs = programs::make(layout, &[])?;
    let user = PlainUser::get()?;
    let stage = Stage::prepare(layout, &user, &launcher)?;
    let bench = stage.program(&user, &bench)?;
    for family in FAMILIES {
        let from = programs.join(family).join(programs::NAME);
        stage.program_below(&user, &from, &Path::new("bench-programs").join(family))?;
    }
    let out = out.unwrap_or_else(|| layout.target.join("bench"));
    let scale = out.with_extension("scale.json");

    let line = |words: &[&str]| {
        let mut command = Command::new(&bench);
        command.args(words).args(user.account().map(|name| ["--user", name]).into_iter().flatten());
        command.arg("--launcher-bin").arg(&stage.launcher).current_dir("/");
        command
    };
    let image = |at: usize| stage.image(&user, IMAGES[at].0);
    let mut suite = line(&["suite", "--podman", "--minutes", &minutes.to_string()]);
    suite.arg("--image").arg(image(0)?).arg("--out").arg(&out);
    suite.arg("--also").arg(format!("{}={}", image(1)?.display(), IMAGES[1].1));
    if again {
        suite.arg("--again");
        let _ = fs::remove_file(&scale);
    }
    // Hosts start programs as other users, which needs root; who is none gets a report without them.
    if is_root() {
        if !scale.exists() {
            fs::create_dir_all(out.parent().context("a directory above the report")?)?;
            let squashfs = stage.images().join(format!("{}.sqfs", IMAGES[0].0));
            let mut command = line(&["scale", "--runs", "4"]);
            command.arg("--image").arg(image(0)?).arg("--squashfs").arg(squashfs).arg("--json").arg(&scale);
            run::shown(&mut command)?;
        }
        suite.arg("--include").arg(&scale);
    } else {
        eprintln!("    simulated hosts need root: the report will lack what a launch costs on many hosts");
    }
    run::shown(&mut suite)?;
    println!("\nthe report: {}", out.join("report.html").display());
    Ok(())
}

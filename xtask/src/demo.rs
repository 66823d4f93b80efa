//! `cargo xtask demo`: from a bare Debian machine to a ring of four ranks in a container.

use crate::layout::Layout;
use crate::recipe::{DEMO, Mpi};
use crate::setup::{self, Set};
use crate::user::{PlainUser, Stage};
use crate::{images, release, run};
use anyhow::{Context, Result, bail};
use std::path::Path;

/// Installs, builds, runs, and tells what to try next.
pub fn demo(layout: &Layout) -> Result<()> {
    setup::install(layout, Set::Demo)?;
    let launcher = release::build(layout)?;
    images::make(layout, &[DEMO.to_string()], false)?;
    let user = PlainUser::get()?;
    let stage = Stage::prepare(layout, &user, &launcher)?;
    stage.image(&user, DEMO)?;

    let launcher = stage.launcher.strip_prefix(&stage.dir).unwrap_or(&stage.launcher);
    // mpirun looks a bare name up in PATH.
    let launcher = Path::new(".").join(launcher);
    let image = Path::new("target/images").join(DEMO);
    let mpirun = match images::host_mpi() {
        // More ranks than cores need saying so to Open MPI, not to MPICH.
        Mpi::OpenMpi => vec!["-n", "4", "--oversubscribe"],
        Mpi::Mpich | Mpi::Tree(_) => vec!["-n", "4"],
    };
    let line = |solver: &str| {
        let (launcher, image) = (launcher.display(), image.display());
        format!("mpirun {} {launcher} {image} /opt/examples/{solver}", mpirun.join(" "))
    };

    let who = user.account().map_or("you".into(), |name| format!("the plain user {name}"));
    eprintln!("==> as {who}, in {}", stage.dir.display());
    // What each has to say somewhere, so that a launcher that runs nothing, or four singletons, fails.
    for (solver, expected) in [("hello", "rank 3 of 4 "), ("ring", "ring of 4 ranks: sum 6 correct")] {
        println!("$ {}", line(solver));
        let mut command = user.command("mpirun", &stage.dir);
        command.args(&mpirun).arg(&launcher).arg(&image).arg(format!("/opt/examples/{solver}"));
        let said = run::watched(&mut command).with_context(|| format!("the demo failed at {solver}"))?;
        if !said.contains(expected) {
            bail!("the demo failed at {solver}: '{expected}' was expected and is not in what it printed");
        }
    }

    println!("\nFour ranks found each other inside {}, a Debian tree, started by this", image.display());
    println!("machine's mpirun and running on its MPI, which was proved to fit. To try next:");
    println!("  cd {}", stage.dir.display());
    println!("  {}", line("pingpong"));
    println!("  {}", line("cma"));
    println!("  {} check -v --launcher openmpi {} /opt/examples/ring", launcher.display(), image.display());
    println!("  {} plan {} /opt/examples/ring", launcher.display(), image.display());
    println!("  cargo xtask images trixie-mpich     # an image of another release and MPI");
    println!("  cargo xtask test                    # everything");
    if let Some(name) = user.account() {
        println!("as a plain user: runuser -u {name} -- COMMAND");
    }
    Ok(())
}

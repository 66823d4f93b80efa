//! Every launcher with every image: the program comes out right, however that is done. For contrast, the same with a
//! container that only passes the environment through.

use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use hpc_launch_tests::host::{self, MPI_IMAGES, Who, everyone, is_root, launcher};
use hpc_launch_tests::host_mpi::{self, HostMpi};
use hpc_launch_tests::run::{Outcome, Run};
use hpc_launch_tests::slurm::Slurm;

const SIZES: [u32; 4] = [1, 2, 7, 16];
const PROGRAM: &str = "/opt/examples/wireup";

/// A launcher, and its name in the table.
enum Launcher {
    Mpi(Box<HostMpi>),
    Srun(&'static str),
    Standalone,
}

impl Launcher {
    fn all(slurm: bool) -> Vec<Launcher> {
        let mut all: Vec<Launcher> =
            host_mpi::all().into_iter().map(|m| Launcher::Mpi(Box::new(m))).collect();
        if slurm {
            all.extend(["pmi2", "pmix", "none"].map(Launcher::Srun));
        }
        all.push(Launcher::Standalone);
        all
    }

    fn name(&self) -> String {
        match self {
            Launcher::Mpi(mpi) => mpi.name.to_owned(),
            Launcher::Srun(offer) => format!("srun --mpi={offer}"),
            Launcher::Standalone => "hpc-launch -n".to_owned(),
        }
    }

    /// So many ranks of any command, `[image, program]` behind hpc-launch for the one that is a launcher itself.
    fn run(&self, slurm: Option<&Slurm>, who: Who, ranks: u32, command: &[&str]) -> Run {
        let run = match (self, slurm) {
            (Launcher::Mpi(mpi), _) => mpi.job(who, ranks, command),
            (Launcher::Srun(offer), Some(slurm)) => slurm.srun(who, offer, ranks, command),
            _ => {
                let ranks = ranks.to_string();
                Run::command(who, &command[..1]).args(["-n", &ranks, "--oversubscribe"]).args(&command[1..])
            }
        };
        run.env("WIREUP_LOCAL", ranks.to_string()).env("HPC_LAUNCH_DECISIONS", "none")
    }
}

fn is_right(outcome: &Outcome, ranks: u32) -> bool {
    let line = format!("wireup of {ranks} ranks: ring allreduce shared split put correct");
    outcome.status.success() && outcome.out().lines().any(|l| l == line)
}

/// How hpc-launch will do it.
fn way(launcher: &Launcher, slurm: Option<&Slurm>, image: &str) -> &'static str {
    if matches!(launcher, Launcher::Standalone) {
        return "own server";
    }
    let program = host::launcher().display().to_string();
    // One of the two speaks.
    let line = format!(
        "told=$({program} check --json {image} {PROGRAM}); \
         if [ ${{PMI_RANK:-${{PMIX_RANK:-$SLURM_PROCID}}}} = 0 ]; then echo \"$told\"; fi"
    );
    let text = launcher.run(slurm, Who::User, 2, &["sh", "-c", &line]).run().out();
    let told: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let verdict = told.and_then(|t| t["verdict"].as_str().map(str::to_owned));
    match verdict.as_deref() {
        Some("inject") => "injected",
        Some("own") => "own",
        Some("bridge") => "bridged",
        _ => panic!("{} {image}: {text}", launcher.name()),
    }
}

/// What becomes of two ranks when the container only passes everything through.
fn contrast(launcher: &Launcher, slurm: Option<&Slurm>, image: &str) -> &'static str {
    if matches!(launcher, Launcher::Standalone) {
        return "–";
    }
    let bwrap = ["bwrap", "--ro-bind", image, "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc"];
    let more =
        ["--bind", "/tmp", "/tmp", "--ro-bind", "/sys", "/sys", "--ro-bind", "/etc/hosts", "/etc/hosts"];
    let program = ["timeout", "-k", "1", "8", PROGRAM];
    let command: Vec<&str> = bwrap.iter().chain(&more).chain(&program).copied().collect();
    let outcome = launcher.run(slurm, Who::User, 2, &command).limit(Duration::from_secs(60)).run();
    let singles = outcome.out().matches("wireup of 1 ranks").count();
    match () {
        () if is_right(&outcome, 2) => "right",
        () if singles == 2 => "2 jobs of one, status 0",
        () if outcome.wall > Duration::from_secs(7) => "hangs",
        () => "fails",
    }
}

#[test]
fn matrix() {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let slurm = is_root().then(Slurm::start);
    let launchers = Launcher::all(slurm.is_some());
    let program = launcher().display().to_string();
    let is_written = std::env::var_os("HPC_LAUNCH_MATRIX");
    let mut table = String::from(HEADER);
    let names: Vec<String> = launchers.iter().map(Launcher::name).collect();
    let _ = write!(table, "\n| image | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    let mut wrong = Vec::new();
    let mut cells = 0;
    for (i, name) in MPI_IMAGES.iter().enumerate() {
        let image = host::image(name).display().to_string();
        let mut row = format!("| {name} |");
        for (l, launcher) in launchers.iter().enumerate() {
            for (s, ranks) in SIZES.into_iter().enumerate() {
                // A sample: each pair once, with fewer ranks.
                let sampled = s == (i + l) % 3;
                if !host::full() && !sampled {
                    continue;
                }
                cells += 1;
                let who = everyone()[(i + l + s) % everyone().len()];
                let run = launcher.run(slurm.as_ref(), who, ranks, &[&program, &image, PROGRAM]);
                let outcome = run.limit(Duration::from_secs(120)).run();
                if !is_right(&outcome, ranks) {
                    wrong.push(format!("{name} under {}, {ranks} ranks: {outcome}", launcher.name()));
                }
            }
            if is_written.is_some() {
                let (way, other) =
                    (way(launcher, slurm.as_ref(), &image), contrast(launcher, slurm.as_ref(), &image));
                let _ = write!(row, " {way}; {other} |");
            }
        }
        table.push_str(&row);
        table.push('\n');
    }
    println!("{cells} cells, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{} of {cells} wrong:\n{}", wrong.len(), wrong.join("\n"));
    if let Some(docs) = is_written {
        println!("{table}");
        std::fs::write(Path::new(&docs).join("matrix.md"), table).expect("the table is written");
    }
}

const HEADER: &str = "# Images and launchers

Made by `cargo xtask matrix`. Each cell: how `hpc-launch IMAGE PROGRAM` gave the program its MPI, and behind the
semicolon what becomes of the same two ranks in a container that passes everything through (bwrap with the host's
/dev, /proc, /tmp and environment). Every cell ran 1, 2, 7 and 16 ranks, as root and as an ordinary user by turns, of
a program that checks a ring of messages, an allreduce over 1 MiB, the ranks that share a node, communicators made of
others, puts into a neighbour's memory and an exchange between all; all of them were right.

- `injected`: the host's MPI in the place of the image's ([matrix-hosts.md](matrix-hosts.md));
- `own`: the image's MPI, which can talk to the launcher;
- `bridged`: the image's MPI, with a helper between it and the launcher;
- `own server`: the image's MPI, with hpc-launch as its launcher.
";

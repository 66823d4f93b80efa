//! Real MPI programs in real images, under the launcher that they fit, and under the one that they do not.

use std::collections::BTreeSet;
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone};
use hpc_launch_tests::run::{Outcome, Run};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mpi {
    OpenMpi,
    Mpich,
}

const SUITES: [&str; 3] = ["bullseye", "bookworm", "trixie"];
const PROGRAMS: [&str; 5] = ["hello", "ring", "allreduce", "pingpong", "cma"];
const SIZES: [u32; 4] = [1, 2, 4, 16];

/// A singleton of Open MPI 4 starts an orted of its own, which the images lack, unless told otherwise.
const ISOLATED: (&str, &str) = ("OMPI_MCA_ess_singleton_isolated", "1");

impl Mpi {
    fn image(self, suite: &str) -> std::path::PathBuf {
        host::image(&match self {
            Mpi::OpenMpi => format!("{suite}-openmpi"),
            Mpi::Mpich => format!("{suite}-mpich"),
        })
    }

    /// Under the launcher of this MPI.
    fn launch(self, who: Who, ranks: u32, arguments: &[&str]) -> Run {
        let run = match self {
            Mpi::OpenMpi => Run::mpirun(who, ranks, arguments),
            Mpi::Mpich => Run::hydra(who, ranks, arguments),
        };
        // 16 ranks on two cores, with whatever else runs there.
        run.limit(Duration::from_secs(120))
    }
}

/// One program in one image, its result checked: with the image's own MPI, and with whatever is best, which is
/// the host's. In a sample root has the one and the user the other.
fn check(mpi: Mpi, suite: &str, program: &str, ranks: u32, who: Who) {
    for mode in ["--mpi=image", "--mpi=auto"] {
        if host::full() || !host::is_root() || (who == Who::Root) == (mode == "--mpi=image") {
            check_with(mode, mpi, suite, program, ranks, who);
        }
    }
}

fn check_with(mode: &str, mpi: Mpi, suite: &str, program: &str, ranks: u32, who: Who) {
    let image = mpi.image(suite);
    let path = format!("/opt/examples/{program}");
    let mut arguments = vec![mode, image.to_str().expect("UTF-8"), path.as_str()];
    if program == "pingpong" {
        arguments.extend(["20", "8", "4194304"]);
    }
    let outcome = mpi.launch(who, ranks, &arguments).run().good();
    let expected = match program {
        "hello" => return check_hello(&outcome, mpi, ranks),
        "pingpong" => return check_pingpong(&outcome, ranks),
        "allreduce" => format!("allreduce over {ranks} ranks: correct"),
        "cma" => format!("cma: {ranks} of {ranks} reads correct"),
        _ => format!("ring of {ranks} ranks: sum {} correct", ranks * (ranks - 1) / 2),
    };
    assert_eq!(results(&outcome), [expected], "{outcome}");
}

/// The program's own lines. UCX 1.10 (bullseye) says on standard output, on a bare host too, that
/// there is no RDMA here.
fn results(outcome: &Outcome) -> Vec<String> {
    let own = |line: &&str| !line.contains(" UCX  ERROR ") && !line.starts_with("maps: ");
    outcome.out().lines().filter(own).map(String::from).collect()
}

/// Every rank from 0 on exactly once, each of the whole job, with the image's MPI.
fn check_hello(outcome: &Outcome, mpi: Mpi, ranks: u32) {
    let library = match mpi {
        Mpi::OpenMpi => "Open MPI v",
        Mpi::Mpich => "MPICH Version:",
    };
    let lines = results(outcome);
    assert_eq!(lines.len(), ranks as usize, "{outcome}");
    let seen: BTreeSet<u32> = lines
        .iter()
        .map(|line| {
            assert!(
                line.contains(&format!(" of {ranks} on ")) && line.contains(library),
                "{line}\n{outcome}"
            );
            let rank = line.strip_prefix("rank ").and_then(|l| l.split(' ').next()?.parse().ok());
            rank.unwrap_or_else(|| panic!("no rank in {line}\n{outcome}"))
        })
        .collect();
    assert_eq!(seen, (0..ranks).collect(), "{outcome}");
}

fn check_pingpong(outcome: &Outcome, ranks: u32) {
    let out = outcome.out();
    if ranks == 1 {
        assert!(out.contains("nothing measured"), "{outcome}");
        return;
    }
    assert!(!out.contains("WRONG"), "{outcome}");
    let lines = results(outcome);
    assert_eq!(lines.len(), 2, "{outcome}");
    for (line, size) in lines.iter().zip(["8 B", "4194304 B"]) {
        let numbers: Vec<f64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        assert!(line.starts_with(size) && numbers.len() == 3 && numbers[1] > 0.0, "{line}\n{outcome}");
    }
}

/// The whole table, or a sample in which every image meets every program, every size and everyone.
fn table(mpi: Mpi, suite: usize) {
    for who in everyone() {
        for (p, program) in PROGRAMS.into_iter().enumerate() {
            for (s, size) in SIZES.into_iter().enumerate() {
                // Root and the user take different squares, and so do the three images.
                let turn = suite + usize::from(*who == Who::User) * 2;
                if host::full() || s == (p + turn) % SIZES.len() {
                    check(mpi, SUITES[suite], program, size, *who);
                }
            }
        }
    }
}

#[test]
fn bullseye_openmpi_under_mpirun() {
    table(Mpi::OpenMpi, 0);
}

#[test]
fn bookworm_openmpi_under_mpirun() {
    table(Mpi::OpenMpi, 1);
}

#[test]
fn trixie_openmpi_under_mpirun() {
    table(Mpi::OpenMpi, 2);
}

#[test]
fn bullseye_mpich_under_hydra() {
    table(Mpi::Mpich, 0);
}

#[test]
fn bookworm_mpich_under_hydra() {
    table(Mpi::Mpich, 1);
}

#[test]
fn trixie_mpich_under_hydra() {
    table(Mpi::Mpich, 2);
}

#[test]
fn the_ring_in_fortran() {
    for suite in SUITES {
        for mpi in [Mpi::OpenMpi, Mpi::Mpich] {
            let all = if host::full() { everyone() } else { &[Who::User] };
            for who in all {
                check(mpi, suite, "ring_f", 4, *who);
            }
        }
    }
}

/// The ring that Rust's MPI binding makes, built on the host, bound into the image.
#[test]
fn the_ring_in_rust() {
    let Some(ring) = std::env::var_os("HPC_LAUNCH_RUST_RING") else {
        eprintln!("HPC_LAUNCH_RUST_RING is not set: not run");
        return;
    };
    // The program is dynamically linked to the host's glibc: the image must not be older.
    let image = Mpi::OpenMpi.image("bookworm");
    for who in everyone() {
        // Where it was built may be closed to the user.
        let beside = hpc_launch_tests::image::directory("/var/tmp");
        let copy = beside.path().join("ring-rs");
        std::fs::copy(&ring, &copy).unwrap();
        let bind = format!("{}:/opt/ring-rs:ro", copy.display());
        let arguments = ["--bind", &bind, image.to_str().unwrap(), "/opt/ring-rs"];
        let outcome = Run::mpirun(*who, 4, arguments).limit(Duration::from_secs(120)).run();
        outcome.prints("ring of 4 ranks: sum 6 correct");
    }
}

/// N ranks that cannot hear their launcher would run as N jobs of one, with exit status 0: they are bridged.
#[test]
fn an_image_that_does_not_fit_the_launcher_is_bridged() {
    for who in everyone() {
        for suite in SUITES {
            for (mpi, other) in [(Mpi::Mpich, Mpi::OpenMpi), (Mpi::OpenMpi, Mpi::Mpich)] {
                let image = mpi.image(suite);
                let arguments = [image.to_str().unwrap(), "/opt/examples/hello"];
                let outcome = other.launch(*who, 4, &arguments).run().good();
                check_hello(&outcome, mpi, 4);
            }
        }
    }
}

#[test]
fn who_insists_on_the_images_mpi_gets_it_and_is_told() {
    let image = Mpi::OpenMpi.image("bookworm");
    for who in everyone() {
        let arguments = ["--mpi=image", image.to_str().unwrap(), "/opt/examples/hello"];
        let outcome = Run::hydra(*who, 4, arguments).env(ISOLATED.0, ISOLATED.1).run().good();
        let text = outcome.err() + &outcome.out();
        assert_eq!(text.matches("hpc-launch: --mpi=image overrides: hydra").count(), 1, "{outcome}");
        assert!(text.contains("speaks only PMIx"), "{outcome}");
        assert_eq!(outcome.out().matches("rank 0 of 1 on ").count(), 4, "{outcome}");
    }
}

/// One rank alone, without any launcher: MPI starts as a singleton, as it does on the bare host.
#[test]
fn without_a_launcher_a_program_is_a_job_of_one() {
    for who in everyone() {
        for mpi in [Mpi::OpenMpi, Mpi::Mpich] {
            let image = mpi.image("bookworm");
            let arguments = [image.to_str().unwrap(), "/opt/examples/hello"];
            let outcome = Run::launch(*who, arguments).env(ISOLATED.0, ISOLATED.1).run().good();
            check_hello(&outcome, mpi, 1);
        }
    }
}

/// A wrapper script between launcher and hpc-launch must not split the job.
#[test]
fn a_wrapper_script_around_hpc_launch_changes_nothing() {
    for who in everyone() {
        for mpi in [Mpi::OpenMpi, Mpi::Mpich] {
            let image = mpi.image("bookworm");
            let launcher = host::launcher().display().to_string();
            let line = format!("{launcher} {} /opt/examples/cma; exit $?", image.display());
            let base: Vec<&str> = match mpi {
                Mpi::OpenMpi => vec!["mpirun.openmpi", "--oversubscribe", "-n", "4"],
                Mpi::Mpich => vec!["mpiexec.hydra", "-n", "4"],
            };
            let run = Run::command(*who, base).args(["sh", "-c", &line]);
            let run = run.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            run.run().prints("cma: 4 of 4 reads correct");
        }
    }
}

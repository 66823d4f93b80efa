//! The programs that hpc-bench measures with: they measure, bare and inside, and refuse what is no job.

use hpc_launch_tests::host::{self, Who, everyone};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::run::{Outcome, Run};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Where the program is inside.
const INSIDE: &str = "/opt/hpc-bench-mpi";
/// Ranks that poll share two cores here.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mpi {
    OpenMpi,
    Mpich,
}

impl Mpi {
    fn name(self) -> &'static str {
        match self {
            Mpi::OpenMpi => "openmpi",
            Mpi::Mpich => "mpich",
        }
    }

    fn image(self) -> PathBuf {
        host::image(&format!("bookworm-{}", self.name()))
    }

    /// How its library describes itself.
    fn says(self) -> &'static str {
        match self {
            Mpi::OpenMpi => " mpi Open MPI v",
            Mpi::Mpich => " mpi MPICH Version: ",
        }
    }

    /// Its launcher, with so many ranks of what follows.
    fn ranks(self, who: Who, ranks: u32) -> Run {
        let ranks = ranks.to_string();
        let run = match self {
            Mpi::OpenMpi => Run::command(who, ["mpirun.openmpi", "--oversubscribe", "-n", &ranks])
                .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
                .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            Mpi::Mpich => Run::command(who, ["mpiexec.hydra", "-n", &ranks]),
        };
        run.limit(LIMIT)
    }
}

/// A copy of the program that every user can read, or `None` where none was built.
struct Program {
    mpi: Mpi,
    path: PathBuf,
    _beside: TempDir,
}

impl Program {
    fn of(mpi: Mpi) -> Option<Program> {
        let Some(programs) = std::env::var_os("HPC_LAUNCH_BENCH_PROGRAMS") else {
            eprintln!("HPC_LAUNCH_BENCH_PROGRAMS is not set: not run");
            return None;
        };
        // Where it was built may be closed to the user.
        let beside = directory("/var/tmp");
        let path = beside.path().join("hpc-bench-mpi");
        let built = Path::new(&programs).join(mpi.name()).join("hpc-bench-mpi");
        std::fs::copy(&built, &path).unwrap_or_else(|e| panic!("{}: {e}", built.display()));
        Some(Program { mpi, path, _beside: beside })
    }

    /// The command line, bare or inside.
    fn command(&self, inside: bool) -> Vec<OsString> {
        if !inside {
            return vec![self.path.clone().into()];
        }
        let bind = format!("{}:{INSIDE}:ro", self.path.display());
        let image = self.mpi.image();
        let words = [host::launcher().as_os_str(), "--bind".as_ref(), bind.as_ref(), image.as_os_str()];
        words.into_iter().map(OsString::from).chain([INSIDE.into()]).collect()
    }

    fn run(&self, who: Who, ranks: u32, inside: bool, words: &str) -> Outcome {
        self.mpi.ranks(who, ranks).args(self.command(inside)).args(words.split(' ')).run()
    }
}

/// Every result, having checked that the output is whole.
fn results(outcome: &Outcome, mpi: Mpi, program: &str, ranks: u32) -> Vec<(String, usize, f64)> {
    let out = outcome.out();
    let mut lines = out.lines();
    let first = lines.next().unwrap_or_default();
    assert!(first.starts_with(&format!("hpc-bench-mpi 1 {program} ranks {ranks} counts ")), "{outcome}");
    assert!(first.contains(mpi.says()), "{outcome}");
    assert_eq!(out.lines().last(), Some("END"), "{outcome}");
    let lines = lines.filter(|line| *line != "END");
    lines
        .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            ["RESULT", name, size, value, _unit] => {
                let value: f64 = value.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
                assert!(value.is_finite(), "{line}");
                (name.to_owned(), size.parse().expect("a size is a number"), value)
            }
            _ => panic!("{line}: {outcome}"),
        })
        .collect()
}

fn messages(mpi: Mpi) {
    let Some(program) = Program::of(mpi) else { return };
    for who in everyone() {
        for (ranks, inside) in [(2, false), (2, true), (4, true)] {
            let words = "pt2pt --sizes 8,64K --scale 0.01 --expect-ranks";
            let outcome = program.run(*who, ranks, inside, &format!("{words} {ranks}")).good();
            let results = results(&outcome, mpi, "pt2pt", ranks);
            let names: Vec<(&str, usize)> = results.iter().map(|(name, size, _)| (&**name, *size)).collect();
            let expected = ["latency", "bw", "bibw"].map(|name| [(name, 8), (name, 65536)]).concat();
            assert_eq!(names, expected, "{outcome}");
            assert!(results.iter().all(|(_, _, value)| *value > 0.0), "{outcome}");
        }
    }
}

fn solves(mpi: Mpi) {
    let Some(program) = Program::of(mpi) else { return };
    for who in everyone() {
        for (ranks, inside) in [(2, false), (2, true), (4, false), (4, true)] {
            let outcome = program.run(*who, ranks, inside, "cg --global 12x10x8").good();
            let results = results(&outcome, mpi, "cg", ranks);
            let value = |wanted: &str| {
                let found = results.iter().find(|(name, size, _)| name == wanted && *size == 960);
                found.unwrap_or_else(|| panic!("no {wanted}: {outcome}")).2
            };
            // However the box is cut, it is the same matrix and nearly the same iteration.
            assert!((20.0..30.0).contains(&value("cg.iterations")), "{outcome}");
            assert!(value("cg.residual") <= 1e-9 && value("cg.error") < 1e-8, "{outcome}");
        }
    }
}

#[test]
fn messages_with_open_mpi() {
    messages(Mpi::OpenMpi);
}

#[test]
fn messages_with_mpich() {
    messages(Mpi::Mpich);
}

#[test]
fn a_solver_with_open_mpi() {
    solves(Mpi::OpenMpi);
}

#[test]
fn a_solver_with_mpich() {
    solves(Mpi::Mpich);
}

#[test]
fn every_other_measurement() {
    for mpi in [Mpi::OpenMpi, Mpi::Mpich] {
        let Some(program) = Program::of(mpi) else { return };
        let run = |words: &str| program.run(Who::User, 2, true, words).good();
        let results = |name: &str, words: &str| results(&run(words), mpi, name, 2);
        let multi = results("multi", "multi --sizes 8,16K --iterations 3");
        assert_eq!(multi.len(), 4, "{multi:?}");
        let coll =
            "coll --sizes 2,8 --iterations 5 --benchmarks allreduce,allreduce-double,bcast,alltoall,barrier";
        let coll = results("coll", coll);
        // Three lines each; 2 B hold no float, and a barrier has no size.
        assert_eq!(coll.len(), 3 * (1 + 1 + 2 + 2 + 1), "{coll:?}");
        let init = results("init", "init");
        let value = |name: &str| init.iter().find(|(found, ..)| found == name).unwrap().2;
        assert!(value("init.min") <= value("init.avg") && value("init.avg") <= value("init.max"), "{init:?}");
        assert!(value("init.max") > 0.0 && value("init.job") >= value("init.max") * 0.99, "{init:?}");
    }
}

#[test]
fn what_is_wrong_is_said_and_fails() {
    for mpi in [Mpi::OpenMpi, Mpi::Mpich] {
        let Some(program) = Program::of(mpi) else { return };
        for (words, wrong) in [
            ("pt2pt --sizes 8 --iterations 2", "WRONG latency 8 rank "),
            ("multi --sizes 8 --iterations 2", "WRONG mbw 8 rank "),
            ("coll --sizes 8 --iterations 2", "WRONG allreduce 8 rank "),
            ("cg --local 4x4x4", "WRONG cg 128 rank "),
        ] {
            let outcome = program.run(Who::User, 2, true, &format!("{words} --spoil"));
            assert_eq!(outcome.code(), Some(1), "{outcome}");
            assert!(outcome.out().contains(wrong) && !outcome.out().contains("END"), "{outcome}");
        }
    }
}

/// Ranks whose MPI does not understand the launcher are each a job of one: no number may come of it.
#[test]
fn ranks_that_are_each_alone_are_no_job() {
    let Some(program) = Program::of(Mpi::OpenMpi) else { return };
    for (words, refusal) in [
        ("pt2pt --sizes 8", "pt2pt needs 2 ranks and this job has 1: nothing measured"),
        ("cg --expect-ranks 2", "2 ranks were expected and this job has 1: nothing measured"),
    ] {
        let run = Mpi::Mpich.ranks(Who::User, 2).args(program.command(false)).args(words.split(' '));
        // A singleton of Open MPI's starts a daemon of its own, unless it is told not to.
        let outcome = run.env("OMPI_MCA_ess_singleton_isolated", "1").run();
        assert_eq!((outcome.code(), outcome.out()), (Some(2), String::new()), "{outcome}");
        assert!(outcome.err().contains(refusal), "{outcome}");
    }
}

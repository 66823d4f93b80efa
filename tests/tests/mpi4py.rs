//! mpi4py's own tests: the same results, test by test, with the MPI's own launcher, with none, and through the
//! bridge with a launcher of the other kind.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone, launcher};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::run::{Outcome, Run};

const RANKS: usize = 2;
const PYTHON: &str = "/opt/venv/bin/python3";
const SUITE: &str = "/opt/mpi4py-test/main.py";
/// All of it but for what starts further processes, which is refused; in a sample, what leans most on the server:
/// names, connections, windows, sessions, files.
const ALL: [&str; 2] = ["-e", "spawn"];
const SAMPLE: [&str; 14] = [
    "-i",
    "test_dynproc",
    "-i",
    "test_comm",
    "-i",
    "test_session",
    "-i",
    "test_win",
    "-i",
    "test_rma.py",
    "-i",
    "test_p2p_obj",
    "-i",
    "test_cco_obj",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Mpirun,
    Hydra,
    /// `hpc-launch -n`.
    Us,
}

impl By {
    /// What starts two ranks of `hpc-launch`, each with its standard error in a file of `dir`. The image's MPI is
    /// asked for: the host's has other faults.
    fn run(self, who: Who, mpi: &str, dir: &Path, rest: &[&str]) -> Run {
        let (ranks, dir) = (RANKS.to_string(), dir.display().to_string());
        let pattern = format!("{dir}/%r");
        let command: &[&str] = match self {
            By::Mpirun => &["mpirun.openmpi", "--oversubscribe", "--output-filename", &dir, "-n", &ranks],
            By::Hydra => &["mpiexec.hydra", "-errfile-pattern", &pattern, "-n", &ranks],
            By::Us => &[],
        };
        let run = Run::command(who, command).args([launcher()]);
        let ours: &[&str] = match self {
            By::Us => &["--oversubscribe", "--output-dir", &dir, "-n", &ranks],
            _ => &[],
        };
        let run = run.args(ours).args([mpi]).args(rest);
        run.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    }

    /// Where a rank's standard error is then.
    fn file(self, dir: &Path, rank: usize) -> PathBuf {
        match self {
            By::Mpirun => dir.join(format!("1/rank.{rank}/stderr")),
            By::Hydra => dir.join(rank.to_string()),
            By::Us => dir.join(format!("rank.{rank}/stderr")),
        }
    }
}

/// What became of each test: `ok`, or `skipped` with the reason, or `FAIL`, or nothing of it is known.
type Results = BTreeMap<String, String>;

/// From lines like `testX (test_y.TestZ.testX) ... ok`. What a test itself writes may come between.
fn results(text: &str) -> Results {
    let mut all = Results::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        if line.starts_with("-----") || line.starts_with("=====") {
            // What follows is about the tests that failed, or about all.
            current = None;
        }
        let named = line.strip_prefix("test").and_then(|rest| rest.split_once(" (")?.1.split_once(')'));
        if let Some((name, _)) = named.filter(|(name, _)| name.starts_with("test_")) {
            current = Some(name.to_owned());
            all.insert(name.to_owned(), "no result".to_owned());
        }
        let Some(name) = &current else { continue };
        let end = ["ok", "FAIL", "ERROR", "expected failure", "unexpected success"];
        let result = match line.rfind("skipped ") {
            Some(at) => Some(&line[at..]),
            None => end.into_iter().find(|end| line.ends_with(end)),
        };
        if let Some(result) = result {
            all.insert(name.clone(), result.to_owned());
        }
    }
    all
}

/// Runs the suite, and answers what it came to on each rank.
fn suite(by: By, mpi: &str, image: &str) -> (Outcome, Vec<Results>) {
    let dir = directory("/tmp");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let image = host::image(image).display().to_string();
    let (tests, limit) = if host::full() { (&ALL[..], 400) } else { (&SAMPLE[..], 120) };
    let line = [&[image.as_str(), PYTHON, SUITE, "-v"][..], tests].concat();
    let run = by.run(Who::User, mpi, dir.path(), &line).limit(Duration::from_secs(limit));
    let outcome = run.run();
    let text = |rank| fs::read_to_string(by.file(dir.path(), rank)).unwrap_or_default();
    let results = (0..RANKS).map(|rank| results(&text(rank))).collect();
    (outcome, results)
}

/// With its own launcher, without any, and with another.
fn everywhere(image: &str, own: By, other: By) {
    let (outcome, expected) = suite(own, "--mpi=image", image);
    let outcome = outcome.good();
    let least = if host::full() { 2000 } else { 300 };
    for results in &expected {
        let passed = results.values().filter(|r| *r == "ok").count();
        assert!(results.len() > least && passed > least / 2, "{passed} of {}\n{outcome}", results.len());
        let bad = results.iter().filter(|(_, r)| *r != "ok" && !r.starts_with("skipped "));
        assert_eq!(bad.collect::<Vec<_>>(), [], "{outcome}");
    }
    for (by, mpi) in [(By::Us, "--mpi=image"), (other, "--mpi=bridge")] {
        let (outcome, found) = suite(by, mpi, image);
        let mut differences = Vec::new();
        for (rank, (expected, found)) in expected.iter().zip(&found).enumerate() {
            for name in expected.keys().chain(found.keys().filter(|name| !expected.contains_key(*name))) {
                if expected.get(name) != found.get(name) {
                    differences.push((rank, name, expected.get(name), found.get(name)));
                }
            }
        }
        assert!(differences.is_empty(), "{by:?}: {differences:#?}\n{outcome}");
        let outcome = outcome.good();
        assert!(!outcome.err().contains("hpc-launch: "), "{outcome}");
    }
}

#[test]
fn open_mpi() {
    everywhere("bookworm-python", By::Mpirun, By::Hydra);
}

#[test]
fn mpich() {
    everywhere("bookworm-python-mpich", By::Hydra, By::Mpirun);
}

/// Further processes are refused in a way that a program may survive. (Open MPI's ranks survive that of a rank of
/// its own only: of several, those that did not ask wait for ever.)
#[test]
fn a_spawn_is_refused_and_the_job_goes_on() {
    let script = "import sys; from mpi4py import MPI; w = MPI.COMM_WORLD; several = sys.argv[1] == 'several'; \
        c = w if sys.argv[2] == 'all' else MPI.COMM_SELF\n\
        try:\n\
        \x20   c.Spawn_multiple(['true', 'true'], maxprocs=[1, 1]) if several else c.Spawn('true')\n\
        except MPI.Exception:\n\
        \x20   print('refused')\n\
        print('sum', w.allreduce(w.rank)); w.Barrier()";
    let [openmpi, mpich] =
        ["bookworm-python", "bookworm-python-mpich"].map(|n| host::image(n).display().to_string());
    for who in everyone() {
        for (by, mpi, image, ways) in [
            (By::Us, "--mpi=image", &openmpi, &["one self", "several self"][..]),
            (By::Hydra, "--mpi=bridge", &openmpi, &["one self", "several self"]),
            (By::Us, "--mpi=image", &mpich, &["one self", "several self", "one all", "several all"]),
            (By::Mpirun, "--mpi=bridge", &mpich, &["one self", "several self", "one all", "several all"]),
        ] {
            for way in ways {
                let dir = directory("/tmp");
                fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
                let line = [&[image.as_str(), PYTHON, "-c", script][..], &way.split(' ').collect::<Vec<_>>()]
                    .concat();
                let run = by.run(*who, mpi, dir.path(), &line).limit(Duration::from_secs(30));
                let outcome = run.run();
                let text = match by {
                    By::Us => (0..RANKS)
                        .map(|r| fs::read_to_string(dir.path().join(format!("rank.{r}/stdout"))).unwrap())
                        .collect(),
                    _ => outcome.out(),
                };
                let outcome = outcome.good();
                for word in ["refused\n", "sum 1\n"] {
                    assert_eq!(text.matches(word).count(), RANKS, "{way}: {text}\n{outcome}");
                }
            }
        }
    }
}

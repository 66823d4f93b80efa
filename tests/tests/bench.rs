//! hpc-bench: what it measures and keeps, and what becomes of it when something goes wrong.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hpc_launch_tests::host::{Who, bench, everyone, image, is_root, launcher};
use hpc_launch_tests::run::{Outcome, Run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, chown};
use serde_json::Value;
use tempfile::TempDir;

/// One of its benches, with an image and the launcher under test.
fn run<A: AsRef<OsStr>>(who: Who, bench_name: &str, arguments: impl IntoIterator<Item = A>) -> Run {
    Run::command(who, [bench()])
        .args([bench_name, "--image"])
        .args([image("bookworm-openmpi")])
        .args([OsStr::new("--launcher-bin"), launcher().as_os_str()])
        .args(arguments)
        .limit(Duration::from_secs(120))
}

/// A directory that this one may write to, with a path of its own.
fn directory(who: Who) -> TempDir {
    let dir = hpc_launch_tests::image::directory("/var/tmp");
    let account = who.account();
    chown(dir.path(), Some(account.uid.into()), Some(account.gid.into())).expect("chown");
    dir
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// The rows of a document's table.
fn rows<'a>(document: &'a Value, key: &str) -> &'a Vec<Value> {
    let groups = document["reports"]
        .as_array()
        .expect("an array")
        .iter()
        .flat_map(|r| r["groups"].as_array().expect("an array"));
    let mut keys = Vec::new();
    for group in groups {
        if group["key"] == key {
            return group["rows"].as_array().expect("an array");
        }
        keys.push(group["key"].to_string());
    }
    panic!("no table {key} among {keys:?}")
}

fn row<'a>(rows: &'a [Value], name: &str) -> &'a Value {
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name}"))
}

/// A program of a few words.
fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
    path
}

#[test]
fn a_start_is_measured_and_everything_is_kept() {
    for who in everyone() {
        let dir = directory(*who);
        let json = dir.path().join("start.json");
        let outcome = run(*who, "start", ["--runs", "4", "--json"]).args([&json]).run().good();
        let text = outcome.out();
        assert!(text.contains("verified: the joining rank is in its leader's mnt:["), "{text}");
        assert!(text.contains("noise: bare against bare ") && text.contains("budget: first rank"), "{text}");

        let document = read(&json);
        assert_eq!((&document["format"], &document["version"]), (&"hpc-bench".into(), &1.into()));
        assert_eq!(document["machine"]["user"], who.account().name.as_str());
        assert_eq!(document["images"][0]["kind"], "directory");
        assert!(document["images"][0]["digest"].as_str().unwrap().starts_with("tree-sha256:"));
        let version = document["machine"]["versions"]["hpc-launch"].as_str().unwrap();
        assert!(version.starts_with("hpc-launch "), "{version}");
        assert!(document["plans"][0]["plan"]["steps"].is_array(), "{}", document["plans"][0]);

        let rows = rows(&document, "start/time");
        for name in
            ["bare", "bare, again", "hpc-launch, first rank", "hpc-launch, joining rank", "ch-run", "bwrap"]
        {
            let row = row(rows, name);
            assert_eq!(row["samples"].as_array().unwrap().len(), 4, "{row}");
            assert!(row["samples"].as_array().unwrap().iter().all(Value::is_f64), "{row}");
            assert!(row["failures"].as_array().unwrap().is_empty(), "{row}");
        }
        assert!(row(rows, "ch-run")["ratios"]["bare"]["value"].as_f64().unwrap() > 1.0);
        let podman = row(rows, "podman");
        assert!(podman["not_run"].as_str().unwrap().contains("--podman"), "{podman}");
        // What only counts is exact: a rank that joins touches less than one that builds.
        let faults = self::rows(&document, "start/faults");
        let of = |name: &str| row(faults, name)["median"]["value"].as_f64().unwrap();
        assert!(of("bare") < of("hpc-launch, joining rank"));
        assert!(of("hpc-launch, joining rank") < of("hpc-launch, first rank"));
    }
}

#[test]
fn a_runtime_that_hangs_is_a_row_that_says_so() {
    let dir = directory(Who::User);
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let hang = script(dir.path(), "hang", "echo waits for ever >&2; exec sleep 1000");
    let json = dir.path().join("app.json");
    let peer = format!("hang={}", hang.display());
    let arguments =
        ["--runs", "5", "--timeout", "2", "-n", "1", "--mpirun", "mpiexec.hydra", "--peer", &peer];
    let line = run(Who::User, "app", arguments).args(["--json"]).args([&json]);
    let text = line.clone().args(["--", "/bin/true"]).run().good().out();
    assert!(text.contains("hang: 4 of 5 runs: not tried again after 2 runs that took too long"), "{text}");
    let document = read(&json);
    let key = "app/hydra/1//bin/true";
    let row_of_hang = row(rows(&document, key), "hang");
    // One while warming up, one that counts; then it was left alone.
    assert_eq!(row_of_hang["failures"][0]["status"], "timed out after 2 s");
    assert_eq!(
        (&row_of_hang["failures"][0]["runs"], &row_of_hang["failures"][1]["runs"]),
        (&1.into(), &4.into())
    );
    assert!(row_of_hang["failures"][0]["stderr"].as_str().unwrap().contains("waits for ever"));
    assert!(row_of_hang["median"].is_null());
    assert!(row(rows(&document, key), "bare")["median"]["value"].as_f64().unwrap() > 0.0);
    // --check makes it count.
    let outcome = line.args(["--check", "--", "/bin/true"]).run();
    assert_eq!(outcome.code(), Some(1), "{outcome}");
}

#[test]
fn a_figure_of_merit_and_its_absence() {
    let dir = directory(Who::User);
    let json = dir.path().join("app.json");
    let common =
        ["--runs", "3", "-n", "1", "--mpirun", "mpiexec.hydra", "--unit", "GF", "--higher", "--json"];
    let line = run(Who::User, "app", common).args([&json]).args(["--figure"]);
    line.clone().args(["rate ([0-9.]+)", "--", "/bin/echo", "rate 12.5"]).run().good();
    let document = read(&json);
    let rows = rows(&document, "app/hydra/1//bin/echo rate 12.5");
    assert_eq!(row(rows, "bare")["median"]["value"], 12.5);
    assert_eq!(row(rows, "hpc-launch")["ratios"]["bare"]["value"], 1.0);

    let outcome = line.args(["speed ([0-9.]+)", "--", "/bin/echo", "rate 12.5"]).run().good();
    let text = outcome.out();
    for part in
        ["bare: 3 of 3 runs: exit 0, but nothing in its output matches speed ([0-9.]+)", "| rate 12.5"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn an_interrupted_measurement_keeps_what_it_has_and_goes_on() {
    let dir = directory(Who::User);
    let out = dir.path().join("out");
    let line = |runs: &str| {
        run(Who::User, "itself", ["--repeat", "2", "--runs", runs, "--out"])
            .args([&out])
            .args(["--", "sleep", "0.02"])
    };
    let samples = out.join("samples.jsonl");
    let mut running = line("60").start();
    running.wait_until("some samples are there", |_| lines(&samples).len() > 20);
    kill(Pid::from_raw(running.pid()), Signal::SIGINT).unwrap();
    let outcome = running.finish();
    assert_eq!(outcome.code(), Some(130), "{outcome}");
    assert!(outcome.out().contains("interrupted: these are the rounds that there are"), "{outcome}");
    let report = out.join("report.json");
    assert_eq!(read(&report)["interrupted"], true);
    let kept = lines(&samples);
    let n = rows(&read(&report), "itself/1")[0]["samples"].as_array().unwrap().len();
    assert!((5..60).contains(&n), "{n} rounds");

    // Another command is not this one's second half.
    let outcome = line("61").run();
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    outcome.says(&["cannot go on with the samples in", "--runs 60", "--again"]);

    let outcome = line("60").run().good();
    outcome.says(&["going on after "]);
    let after = lines(&samples);
    assert_eq!(after[..kept.len()], kept, "what was kept has changed");
    let document = read(&report);
    assert_eq!(document["interrupted"], false);
    for key in ["itself/1", "itself/2"] {
        assert_eq!(rows(&document, key)[1]["samples"].as_array().unwrap().len(), 60);
    }
    let first: Value = serde_json::from_str(&kept[0]).unwrap();
    assert_eq!(document["began"], first["began"]);

    let outcome = line("60").run();
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    outcome.says(&["it holds a finished measurement", "--again"]);
    let outcome = line("3").args::<&str>([]).run();
    assert_eq!(outcome.code(), Some(125), "{outcome}");
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn a_full_disk_keeps_the_earlier_results() {
    if !is_root() {
        eprintln!("only root can mount a small file system: not run");
        return;
    }
    let dir = directory(Who::Root);
    let out = dir.path().display();
    // The file system goes with the run: what is in it is looked at before.
    let look = format!("cp {out}/samples.jsonl {out}.kept");
    let kept = PathBuf::from(format!("{out}.kept"));
    let line = format!("\"$@\"; status=$?; {look}; exit $status");
    let outcome = Run::command(Who::Root, ["sh", "-c", &line, "sh"])
        .args([bench()])
        .args(["itself", "--image"])
        .args([image("libc")])
        .args([OsStr::new("--launcher-bin"), launcher().as_os_str()])
        .args(["--repeat", "2", "--runs", "400", "--out", &out.to_string(), "--", "/bin/true"])
        .prelude(format!("mount -t tmpfs -o size=24k none {out}"))
        .limit(Duration::from_secs(120))
        .run();
    let samples = lines(&kept);
    let _ = fs::remove_file(&kept);
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    // The table is shown all the same, with every sample.
    assert!(outcome.out().contains("measurement 2"), "{outcome}");
    outcome.says(&["No space left on device", "make room there"]);
    assert!(samples.len() > 50, "{} lines", samples.len());
    for line in samples {
        serde_json::from_str::<Value>(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
}

#[test]
fn what_cannot_be_measured_is_said_with_a_cure() {
    let who = everyone()[0];
    let refused = |outcome: Outcome, parts: &[&str]| {
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        outcome.says(parts);
    };
    // No MPI: only what the look-up of users needs.
    let dir = hpc_launch_tests::image::directory("/tmp");
    symlink("/usr/bin/getent", dir.path().join("getent")).unwrap();
    let path = dir.path().display().to_string();
    let bare = run(who, "micro", ["--runs", "1"]).env("PATH", &path);
    let looked = format!("mpirun.openmpi was not found in {path}: apt-get install openmpi-bin or mpich");
    refused(
        bare.run(),
        &["cannot use the launcher \"mpirun.openmpi\"", &looked, "without any MPI here, only"],
    );
    let outcome = Run::command(who, [bench()]).args(["start", "--image", "/no/such/image"]).run();
    refused(outcome, &["cannot use the image /no/such/image: No such file or directory", "--image"]);
    let rank = run(who, "start", ["--runs", "1"]).env("PMI_RANK", "0");
    refused(rank.run(), &["PMI_RANK is set", "not under mpirun"]);
    // Where the report is to be is looked at first, not after ten minutes.
    let outcome = run(who, "start", ["--runs", "1", "--json", "/no/such/dir/x.json"]).run();
    refused(outcome, &["cannot write /no/such/dir/x.json: No such file or directory"]);
    // One core: it goes on, and says what the numbers are not.
    let one = Run::command(who, ["taskset", "-c", "0"]).args([bench()]);
    let outcome =
        one.args(["itself", "--image"]).args([image("libc")]).args(["--repeat", "1", "--runs", "3"]);
    let outcome = outcome.args([OsStr::new("--launcher-bin"), launcher().as_os_str()]).run().good();
    assert!(outcome.out().contains("there is one CPU"), "{outcome}");
}

#[test]
fn hpc_launch_bench_is_hpc_bench() {
    let dir = hpc_launch_tests::image::directory("/tmp");
    let own = dir.path().join("hpc-launch");
    fs::copy(launcher(), &own).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    for who in everyone() {
        Run::command(*who, [&own]).args(["bench", "start"]).run().refused(
            "bench-missing",
            &["hpc-bench is neither in", &dir.path().display().to_string(), "cargo install --path bench"],
        );
    }
    symlink(bench(), dir.path().join("hpc-bench")).unwrap();
    for who in everyone() {
        let outcome = Run::command(*who, [&own]).args(["bench", "jobs", "--help"]).run().good();
        assert!(outcome.out().contains("Ranks, of one job after the other"), "{outcome}");
        let outcome = Run::command(*who, [&own]).args(["bench", "start", "--image", "/no/such"]).run();
        assert_eq!(outcome.code(), Some(125), "{outcome}");
    }
}

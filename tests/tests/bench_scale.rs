//! `hpc-bench scale`: launches on simulated hosts, which the bench starts by itself and which are gone afterwards.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use hpc_launch_tests::host::{Who, bench, image, is_root, launcher};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::run::Run;
use serde_json::Value;

/// A bench of `launcher` on the image; its ranks are the plain user's.
fn scale(launcher: &Path, image: &Path, options: &[&str]) -> Run {
    let paths = [("--image", image), ("--launcher-bin", launcher)];
    Run::command(Who::Root, [bench().as_os_str(), "scale".as_ref()])
        .args(paths.into_iter().flat_map(|(option, path)| [option.as_ref(), path.as_os_str()]))
        .args(["--user", &Who::User.account().name])
        .args(options)
        .limit(Duration::from_secs(120))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the JSON was written")).expect("it is JSON")
}

fn group<'a>(document: &'a Value, key: &str) -> &'a Value {
    let groups = document["reports"][0]["groups"].as_array().expect("groups");
    groups.iter().find(|group| group["key"] == key).unwrap_or_else(|| panic!("no {key} in {groups:#?}"))
}

fn row<'a>(document: &'a Value, key: &str, name: &str) -> &'a Value {
    let rows = group(document, key)["rows"].as_array().expect("rows");
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name} in {rows:#?}"))
}

fn needs_root() -> bool {
    if !is_root() {
        eprintln!("not run: hosts need root");
    }
    is_root()
}

/// All rows at all sizes, and what ranks ask of the file system that the image is on.
#[test]
fn two_hosts_by_two_ranks() {
    if !needs_root() {
        return;
    }
    let dir = directory("/tmp");
    let throwaway = Throwaway::new();
    let squashfs = throwaway.squash().display().to_string();
    let file = dir.path().join("scale.json");
    let to = file.display().to_string();
    let options = ["--hosts", "2,1", "--ranks", "1,2", "--runs", "2", "--squashfs", &squashfs, "--json", &to];
    let outcome = scale(launcher(), &throwaway.root(), &options).run().good();
    assert!(outcome.out().contains("verified: two ranks on each of 2 hosts"), "{outcome}");

    let document = json(&file);
    assert_eq!(document["machine"]["user"], Who::User.account().name.as_str());
    for key in ["scale/1x1", "scale/1x2", "scale/2x1", "scale/2x2"] {
        for name in ["bare", "bare, again", "unshare", "hpc-launch"] {
            let row = row(&document, key, name);
            assert_eq!((row["failures"].as_array().map(Vec::len), &row["not_run"]), (Some(0), &Value::Null));
            let samples = row["samples"].as_array().expect("samples");
            assert!(samples.len() == 2 && samples.iter().all(|ms| ms.as_f64().is_some_and(|ms| ms > 0.0)));
        }
    }
    let budgets = document["reports"][0]["budgets"].as_array().expect("budgets");
    assert_eq!(budgets[0]["what"], "launch of 2 hosts × 2 ranks against bare");
    let count = |image: &str, who: &str| {
        row(&document, &format!("scale/operations/{image}"), who)["samples"][0].as_f64().expect("a count")
    };
    for image in ["directory", "file"] {
        assert!(count(image, "first rank") > 0.0);
        assert_eq!(count(image, "joining rank"), 0.0, "ranks that join ask nothing");
    }
    // Its libraries are files of the one, and in the other.
    assert!(count("directory", "program") > 1.0);
    assert_eq!(count("file", "program"), 0.0);
    assert!(count("directory", "first rank") > 5.0 * count("file", "first rank"));

    // The hosts are gone with the bench.
    let command = row(&document, "scale/2x2", "bare")["command"].as_str().expect("a command").to_owned();
    let rsh = command.split(' ').find(|word| word.ends_with("/rsh")).expect("a remote shell");
    assert!(rsh.starts_with("/var/tmp/") && !Path::new(rsh).exists(), "{command}");
}

/// A launcher that fails is a row that says so; the others are measured.
#[test]
fn a_launcher_that_fails() {
    if !needs_root() {
        return;
    }
    let dir = directory("/tmp");
    let file = dir.path().join("scale.json");
    let to = file.display().to_string();
    let options = ["--hosts", "1", "--ranks", "1", "--runs", "2", "--json", &to];
    let image = image("bookworm-mpich");
    let outcome = scale(Path::new("/bin/false"), &image, &options).run().good();
    assert!(outcome.out().contains("hpc-launch: 2 of 2 runs: exit 1"), "{outcome}");
    assert!(outcome.out().contains("system calls were not counted: "), "{outcome}");
    let document = json(&file);
    assert!(row(&document, "scale/1x1", "hpc-launch")["median"].is_null());
    assert!(row(&document, "scale/1x1", "bare")["median"]["value"].is_number());
    let outcome = scale(Path::new("/bin/false"), &image, &[&options[..], &["--check"]].concat()).run();
    assert_eq!(outcome.code(), Some(1), "{outcome}");
}

/// A launcher that hangs is ended on its hosts with all that it started, before the next run begins: hydra ends only
/// what is in its processes' groups.
#[test]
fn a_launcher_that_hangs() {
    if !needs_root() {
        return;
    }
    let dir = directory("/tmp");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("chmod");
    let (program, seen) = (dir.path().join("hangs"), dir.path().join("seen"));
    let line = "ps -e -o args= | grep -c '^sleep 71.25'";
    let script = format!(
        "#!/bin/sh\n[ \"$(uname -n)\" != h1 ] || {line} >> {}\nsetsid sleep 71.25 &\nexec sleep 70\n",
        seen.display()
    );
    fs::write(&program, script).expect("a file");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("chmod");
    let options = ["--hosts", "1", "--ranks", "1", "--runs", "2", "--timeout", "1"];
    let outcome = scale(&program, &image("bookworm-mpich"), &options).run().good();
    assert!(outcome.out().contains("timed out after 1 s"), "{outcome}");
    let seen = fs::read_to_string(seen).expect("it was started on h1");
    assert!(seen.lines().count() >= 2 && seen.lines().all(|line| line == "0"), "left from before: {seen}");
}

/// Simulated hosts need root, which is said before anything is done.
#[test]
fn a_plain_user_is_told() {
    let words = [bench().as_os_str(), "scale".as_ref(), "--image".as_ref(), "/".as_ref()];
    let outcome = Run::command(Who::User, words).run();
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    assert!(outcome.err().contains("cannot start simulated hosts: "), "{outcome}");
    assert!(outcome.err().contains("needs root\n  to do: start hpc-bench scale as root"), "{outcome}");
}

//! `hpc-launch cdi generate`, and others that read the same descriptions: the published schema, and Podman.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::machine::{Adapter, Gpus, VERSION, sh, skipped, text};
use hpc_launch_tests::run::{Outcome, Run};
use serde_json::Value;

/// The format's own directory, of Debian's package of its library.
fn upstream() -> PathBuf {
    let sources = Path::new("/usr/share/gocode/src/github.com/container-orchestrated-devices");
    sources.join("container-device-interface/schema")
}

/// Two devices more than an adapter.
const MORE: &str =
    "cp -a /dev/null /dev/gdrdrv; cp -a /dev/null /dev/xpmem; chmod 0660 /dev/xpmem; chgrp games /dev/xpmem";

#[track_caller]
fn parse(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{e}: {outcome}"))
}

#[test]
fn what_there_is_gets_described() {
    if skipped() {
        return;
    }
    let machine = Adapter::new();
    let generate = |who: Who, prelude: String, words: &[&str]| {
        let line = ["cdi", "generate"].iter().chain(words).copied();
        Run::launch(who, line).prelude(prelude).run()
    };
    for who in everyone() {
        let verbs = parse(&generate(*who, machine.prelude(), &[]).good());
        assert_eq!(
            (verbs["kind"].as_str(), verbs["cdiVersion"].as_str()),
            (Some("hpc-launch/verbs"), Some("0.5.0"))
        );
        let names: Vec<&str> =
            verbs["devices"].as_array().expect("a list").iter().filter_map(|d| d["name"].as_str()).collect();
        assert_eq!(names, ["mlx5_0", "all"]);
        assert_eq!(verbs["containerEdits"]["deviceNodes"][0]["path"], "/dev/infiniband/rdma_cm");
        let xpmem = parse(&generate(*who, machine.but(MORE), &["xpmem"]).good());
        assert_eq!(xpmem["devices"][0]["containerEdits"]["deviceNodes"][0]["path"], "/dev/xpmem");
        // Its group is asked for, which is new in 0.7.0.
        assert_eq!(
            (
                xpmem["cdiVersion"].as_str(),
                xpmem["devices"][0]["containerEdits"]["additionalGids"][0].as_u64()
            ),
            (Some("0.7.0"), Some(60))
        );
        let several = generate(*who, machine.but(MORE), &[]);
        several.refused("usage", &["there are verbs, gdrcopy, xpmem", "--output /etc/cdi"]);
        generate(*who, machine.prelude(), &["cxi"])
            .refused("device-missing", &["no adapter in /sys/class/cxi"]);
    }
    Run::launch(Who::User, ["cdi", "generate"]).run().refused(
        "device-missing",
        &["no driver of NVIDIA's", "no adapter in /sys/class/infiniband", "no /dev/xpmem"],
    );
}

/// A directory gets a file for each kind; all of them keep to the published schema, and are listed by us.
#[test]
fn descriptions_keep_to_the_published_schema() {
    if skipped() {
        return;
    }
    let (machine, gpus, dir) = (Adapter::new(), Gpus::new(), directory("/var/tmp"));
    let out = text(dir.path());
    for prelude in [machine.but(MORE), gpus.prelude()] {
        Run::launch(Who::Root, ["cdi", "generate", "--output", out]).prelude(prelude).run().good();
    }
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .expect("there")
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    let expected = ["gdrcopy", "gpu", "verbs", "xpmem"].map(|name| format!("hpc-launch-{name}.json"));
    assert_eq!(names, expected);
    let check = "import json, sys, jsonschema, pathlib
schema = pathlib.Path(sys.argv[1])
resolver = jsonschema.RefResolver(schema.as_uri() + '/', {})
for name in sys.argv[2:]:
    jsonschema.Draft7Validator(json.load(open(schema / 'schema.json')), resolver=resolver).validate(json.load(open(name)))
    print('good')
";
    let files = names.iter().map(|name| text(dir.path()).to_owned() + "/" + name);
    let schema = upstream();
    let arguments = ["python3", "-c", check, text(&schema)].map(String::from).into_iter().chain(files);
    let outcome = Run::command(Who::User, arguments).run().good();
    assert_eq!(outcome.out().matches("good").count(), 4, "{outcome}");
    let listed =
        Run::launch(Who::Root, ["cdi", "list"]).env("HPC_LAUNCH_CDI_DIRECTORIES", dir.path()).run().good();
    for name in
        ["hpc-launch/verbs=mlx5_0", "hpc-launch/gdrcopy=all", "hpc-launch/xpmem=all", "nvidia.com/gpu=1"]
    {
        assert!(listed.out().contains(name), "{listed}");
    }
}

/// The format's own examples are read, or not, as they are meant.
#[test]
fn the_formats_own_examples() {
    let examples = upstream().join("testdata");
    let read = |name: &str| {
        let dir = directory("/var/tmp");
        let copied = Run::command(Who::Root, ["sh", "-c", "cp $0 $1; chmod 0644 $1/*"])
            .args([examples.join(name), dir.path().to_owned()]);
        if is_root() {
            copied.run().good();
        } else {
            fs::copy(examples.join(name), dir.path().join("example.json")).expect("copied");
        }
        Run::launch(Who::User, ["cdi", "list"]).env("HPC_LAUNCH_CDI_DIRECTORIES", dir.path()).run()
    };
    for (name, device) in
        [("good/minimal.json", "vendor.com/device="), ("good/spec-example.json", "vendor.com/device=")]
    {
        let outcome = read(name).good();
        assert!(outcome.out().contains(device), "{name}\n{outcome}");
    }
    for name in ["bad/empty.json", "bad/explicit-empty.json"] {
        let outcome = read(name);
        assert_eq!((outcome.code(), outcome.out().as_str()), (Some(1), ""), "{outcome}");
    }
}

/// What a container has of a device: its files of devices, what is bound, and variables.
const LOOK: &str = "for f in $LOOK; do stat -L -c '%n %F %t:%T' $f 2>&1; done; sha256sum $SUM 2>&1; echo $NVIDIA_VISIBLE_DEVICES";

/// One description, two readers, the same result.
#[test]
fn podman_makes_the_same_of_them() {
    if skipped() {
        return;
    }
    let (machine, gpus) = (Adapter::new(), Gpus::new());
    let image = host::image("bookworm-openmpi");
    let library = format!("/usr/local/nvidia/lib64/libcuda.so.{VERSION}");
    let cases = [
        (
            "verbs",
            machine.prelude(),
            "hpc-launch/verbs=mlx5_0",
            "/dev/infiniband/uverbs0 /dev/infiniband/rdma_cm",
            "/dev/null",
        ),
        (
            "gpu",
            gpus.prelude(),
            "nvidia.com/gpu=all",
            "/dev/nvidiactl /dev/nvidia-uvm /dev/nvidia0 /dev/nvidia1",
            library.as_str(),
        ),
    ];
    for (what, prelude, device, nodes, sum) in cases {
        let dir = directory("/var/tmp");
        let file = dir.path().join("it.json");
        let made = Run::launch(Who::Root, ["cdi", "generate", what]).prelude(prelude.clone()).run().good();
        let mut described = parse(&made);
        if let Some(edits) = described["containerEdits"].as_object_mut() {
            // Podman runs them, from a package that Debian has not; we never do.
            edits.remove("hooks");
        }
        fs::write(&file, described.to_string()).expect("written");
        sh(dir.path(), "chmod -R a+rX,go-w .");
        let look = [("LOOK", nodes), ("SUM", sum)];
        let mut run = Run::launch(Who::Root, ["--device", device, text(&image), "sh", "-c", LOOK]);
        run = run.env("HPC_LAUNCH_CDI_DIRECTORIES", dir.path());
        for (name, value) in look {
            run = run.env(name, value);
        }
        let ours = run.prelude(prelude.clone()).run().good();
        let place = dir.path().join("podman");
        let place = text(&place);
        let script = format!(
            "podman --runtime runc --cgroup-manager cgroupfs --storage-driver vfs --root {place}/root --runroot {place}/run run --rm \
             --network none --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --security-opt seccomp=unconfined \
             --device {device} -e LOOK='{nodes}' -e SUM='{sum}' --rootfs {}:O sh -c \"$SCRIPT\"",
            fs::canonicalize(&image).expect("there").display()
        );
        // Where it looks for descriptions: in a /run of its own.
        let there =
            format!("{prelude}; mount -t tmpfs none /run && mkdir /run/cdi && cp {} /run/cdi/", text(&file));
        let theirs = Run::command(Who::Root, ["sh", "-c", &script])
            .env("SCRIPT", LOOK)
            .limit(Duration::from_secs(120));
        let theirs = theirs.prelude(there).run().good();
        assert!(ours.out().contains("character special file") && !ours.out().contains("cannot"), "{ours}");
        assert_eq!(ours.out(), theirs.out(), "{ours}\n{theirs}");
    }
}

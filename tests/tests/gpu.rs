//! GPUs: a machine is made to look as if NVIDIA's driver were loaded, with files of devices and libraries of stub.

use std::fs;

use hpc_launch_tests::host::{self, Who, everyone};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::machine::{Adapter, Gpus as Machine, VERSION, sh, skipped, text, uuid};
use hpc_launch_tests::run::Run;
use serde_json::Value;

/// An image that says that it is made for CUDA, or not.
fn image(is_for_cuda: bool) -> Throwaway {
    let image = Throwaway::new();
    if is_for_cuda {
        image.directory("ch").file("ch/environment", "CUDA_VERSION=12.4.1\nNVIDIA_VISIBLE_DEVICES=all\n");
    }
    image
}

/// What a rank sees of it.
const LOOK: &str = "for f in /run/hpc-launch/devices/*; do [ -e $f ] && echo ${f##*/}; done; echo path=$LD_LIBRARY_PATH visible=$CUDA_VISIBLE_DEVICES";

#[test]
fn images_and_programs_for_cuda_get_the_driver() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    for who in everyone() {
        let made = image(true);
        let outcome = machine.run(*who, &[text(&made.root()), "sh", "-c", LOOK]).good();
        let said = outcome.out();
        for name in
            ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.550.54.14"]
        {
            assert!(said.lines().any(|line| line == name), "{name}\n{outcome}");
        }
        assert!(!said.contains("GLX") && !said.contains("535.1"), "{outcome}");
        assert!(said.ends_with("path=/run/hpc-launch/devices visible=\n"), "{outcome}");
        // Without any GPU that is told, once for all ranks.
        let outcome =
            Run::launch(*who, ["-n", "2", "--oversubscribe", text(&made.root()), "true"]).run().good();
        let said = "warning: the image has NVIDIA_VISIBLE_DEVICES=all, and no driver of NVIDIA's is loaded";
        assert_eq!(outcome.err().matches(said).count(), 1, "{outcome}");
        // Silently nothing for others, and for who does not want it.
        let plain = image(false);
        let nothing = "path= visible=\n";
        machine.run(*who, &[text(&plain.root()), "sh", "-c", LOOK]).prints(nothing);
        machine.run(*who, &["--gpu=none", text(&made.root()), "sh", "-c", LOOK]).prints(nothing);
        plain.directory("usr").directory("usr/local").directory("usr/local/cuda");
        assert!(
            machine.run(*who, &[text(&plain.root()), "sh", "-c", LOOK]).good().out().contains("libcuda.so.1")
        );
        let void = image(false);
        void.directory("ch").file("ch/environment", "NVIDIA_VISIBLE_DEVICES=void\nCUDA_VERSION=12\n");
        machine.run(*who, &[text(&void.root()), "sh", "-c", LOOK]).prints(nothing);
        assert!(
            machine
                .run(*who, &["--gpu=all", text(&void.root()), "sh", "-c", LOOK])
                .good()
                .out()
                .contains("libcuda")
        );
    }
}

/// A program that needs libcuda, in an image that knows nothing of CUDA.
#[test]
fn a_program_that_needs_the_driver_finds_it() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    let app = directory("/var/tmp");
    let script = format!(
        "cp {0}/lib/libcuda.so.{VERSION} libcuda.so.1; echo '#include <stdio.h>
         const char *of_the_driver(void); int main(void) {{ puts(of_the_driver()); return 0; }}' |
         cc -xc - -o app -L. -l:libcuda.so.1; rm libcuda.so.1; chmod -R a+rX .",
        text(machine.path())
    );
    sh(app.path(), &script);
    let bind = format!("{}:/opt/app:ro", text(app.path()));
    let image = host::image("libc");
    for who in everyone() {
        let arguments = ["--bind", &bind, text(&image), "/opt/app/app"];
        machine.run(*who, &arguments).prints(&format!("cuda {VERSION}"));
        let plan = machine.run(*who, &[&["plan"][..], &arguments].concat()).good().out();
        let why = format!(
            "bind /usr/local/nvidia/lib64/libcuda.so.{VERSION} at /run/hpc-launch/devices/libcuda.so.1"
        );
        assert!(plan.contains(&why), "{plan}");
        // On a machine without any: said, and it fails as it does bare.
        let outcome = Run::launch(*who, arguments).run();
        let outcome = outcome.says(&["the program needs libcuda.so.1, and no driver of NVIDIA's is loaded"]);
        assert_eq!(outcome.code(), Some(127), "{outcome}");
        Run::launch(*who, [&["--gpu=all"][..], &arguments].concat())
            .run()
            .refused("device-missing", &["--gpu=all (--gpu): no driver of NVIDIA's is loaded on this host"]);
    }
}

#[test]
fn ranks_get_their_gpus() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    let image = image(true);
    let (root, script) = (image.root(), "echo $CUDA_VISIBLE_DEVICES");
    for who in everyone() {
        let visible = |options: &[&str], variables: &[(&str, &str)]| {
            let options = ["-n", "4", "--oversubscribe", "--bind-to", "none"].iter().chain(options).copied();
            let mut run = Run::launch(*who, options.chain([text(&root), "sh", "-c", script]));
            for (name, value) in variables {
                run = run.env(name, value);
            }
            let outcome = run.prelude(machine.prelude()).run().good();
            let mut lines: Vec<String> = outcome.out().lines().map(String::from).collect();
            lines.sort();
            lines
        };
        assert_eq!(visible(&[], &[]), ["", "", "", ""]);
        let both = [uuid(0), uuid(0), uuid(1), uuid(1)];
        assert_eq!(visible(&["--gpu-bind=round-robin"], &[]), both);
        assert_eq!(visible(&["--gpu-bind=closest"], &[]), both);
        // The batch system knows better, and a user who sets it knows best.
        assert_eq!(
            visible(&["--gpu-bind=round-robin"], &[("CUDA_VISIBLE_DEVICES", "1")]),
            ["1", "1", "1", "1"]
        );
        let mine = ["--gpu-bind=round-robin", "--env", "CUDA_VISIBLE_DEVICES=7"];
        assert_eq!(visible(&mine, &[]), ["7", "7", "7", "7"]);
        assert_eq!(
            visible(&["--gpu=1"], &[("CUDA_VISIBLE_DEVICES", "0")]),
            [uuid(1), uuid(1), uuid(1), uuid(1)]
        );
        let named = format!("--gpu={},0", uuid(1));
        assert_eq!(visible(&[&named, "--gpu-bind=round-robin"], &[]), both);
        let all = format!("{},{}", uuid(1), uuid(0));
        assert_eq!(visible(&[&named], &[]), [&all, &all, &all, &all].map(String::from));
    }
}

/// What is wrong with a driver: said aloud where an image wants it, refused where somebody insists.
#[test]
fn a_broken_driver_is_named_with_its_cure() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    let image = image(true);
    let root = image.root();
    let table: &[(&str, &str, &[&str])] = &[
        (
            "rm /usr/local/nvidia/lib64/libcuda.so.550*",
            "device-missing",
            &[
                "NVIDIA's driver 550.54.14 is loaded",
                "libcuda.so.550.54.14 is in none of",
                "/usr/local/nvidia/lib64",
            ],
        ),
        (
            "rm /dev/nvidia-uvm",
            "device-missing",
            &["/dev/nvidia-uvm does not exist", "nvidia-modprobe -u -c0"],
        ),
        ("rm /dev/nvidiactl", "device-missing", &["/dev/nvidiactl does not exist"]),
        ("rm /dev/nvidia1", "device-missing", &["/dev/nvidia1 cannot be looked at"]),
        ("rm -r /proc/driver/nvidia/gpus/*", "device-missing", &["and knows no GPU", "NVRM"]),
        (
            "chmod 0660 /dev/nvidia0",
            "device-denied",
            &["/dev/nvidia0 may not be used", "root:root with mode 0660", "your groups are"],
        ),
    ];
    for (change, code, said) in table {
        // Root may open everything.
        let users: &[Who] = if *code == "device-denied" { &[Who::User] } else { everyone() };
        for who in users {
            let run = |options: &[&str], script: &str| {
                let arguments = options.iter().copied().chain([text(&root), "sh", "-c", script]);
                Run::launch(*who, arguments).prelude(machine.but(change)).run()
            };
            run(&["--gpu=all"], "true").refused(code, said);
            let outcome =
                run(&[], "echo ran").good().says(&["warning: the image has NVIDIA_VISIBLE_DEVICES=all"]);
            outcome.says(said).prints("ran");
        }
    }
    for (which, said) in [("7", "this host has no GPU 7"), ("GPU-x", "this host has no GPU GPU-x")] {
        let outcome = machine.run(Who::User, &["--gpu", which, text(&root), "true"]);
        outcome.refused("device-unknown", &[said, &uuid(0), "NVIDIA T1"]);
    }
    let outcome = Run::launch(Who::User, [text(&root), "true"]).env("HPC_LAUNCH_GPU", "fast").run();
    outcome.refused("config-invalid", &["HPC_LAUNCH_GPU", "\"fast\" is neither auto, none, all"]);
}

/// What is written is what is read, and gives the same as no description at all.
#[test]
fn descriptions_for_others() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    let image = image(true);
    let root = image.root();
    let outcome = machine.run(Who::User, &["cdi", "generate"]).good();
    let spec: Value = serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{e}: {outcome}"));
    assert_eq!((spec["kind"].as_str(), spec["cdiVersion"].as_str()), (Some("nvidia.com/gpu"), Some("0.5.0")));
    let names: Vec<&str> =
        spec["devices"].as_array().expect("a list").iter().filter_map(|d| d["name"].as_str()).collect();
    assert_eq!(names, ["0", &uuid(0), "1", &uuid(1), "all"]);
    let file = machine.path().join("etc/nvidia.json");
    fs::create_dir(file.parent().expect("a parent")).expect("a directory");
    fs::write(&file, outcome.out()).expect("written");
    let run = |arguments: &[&str]| {
        let run = Run::launch(Who::Root, arguments)
            .env("HPC_LAUNCH_CDI_DIRECTORIES", file.parent().expect("a parent"));
        run.prelude(machine.prelude()).run()
    };
    let listed = run(&["cdi", "list"]).good();
    assert_eq!(listed.out().lines().count(), 5, "{listed}");
    let by_name = run(&["--device=nvidia.com/gpu=all", text(&root), "sh", "-c", LOOK]).good();
    let by_itself = machine.run(Who::Root, &[text(&root), "sh", "-c", LOOK]).good();
    assert!(by_name.out().contains("libcuda.so.1\n") && by_itself.out().contains("libcuda.so.1\n"));
    // Without a driver there is nothing to describe.
    let none = Run::launch(Who::User, ["cdi", "generate"]).run();
    none.refused("device-missing", &["no driver of NVIDIA's is loaded on this host"]);
}

#[test]
fn the_survey_says_what_is_there_and_where_it_knows_it_from() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    for who in everyone() {
        let outcome = machine.run(*who, &["survey", "--json"]).good();
        let survey: Value = serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{e}: {outcome}"));
        let driver = &survey["nvidia"];
        assert_eq!(driver["version"].as_str(), Some(VERSION), "{survey}");
        assert_eq!(driver["gpus"][1]["model"].as_str(), Some("NVIDIA T1"), "{survey}");
        let text = machine.run(*who, &["survey"]).good().out();
        for part in [
            &format!("NVIDIA's driver {VERSION}") as &str,
            &format!("GPU 0          NVIDIA T0, {}", uuid(0)),
            "Open MPI 4.1.4",
            "UCX 1.13.1",
            "libfabric 1.17.0",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let adapter = Adapter::new();
        let seen = Run::launch(*who, ["survey"]).prelude(adapter.prelude()).run().good().out();
        let line = "fabric         mlx5_0 (/sys/class/infiniband): /dev/infiniband/uverbs0, port 1 ACTIVE (InfiniBand)";
        assert!(seen.contains(line), "{seen}");
        let bare = Run::launch(*who, ["survey"]).run().good().out();
        assert!(bare.contains("GPUs           none: no driver of NVIDIA's is loaded"), "{bare}");
    }
}

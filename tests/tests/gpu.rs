//! GPUs: a machine is made to look as if NVIDIA's driver were loaded, with files of devices and libraries of stub.

use std::fs;
use std::path::Path;

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
        let outcome = Run::launch(*who, ["-n", "2", "--oversubscribe", text(&made.root()), "sleep", "0.5"])
            .run()
            .good();
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

/// GPUs of others are none of this rank's business, whether a mode or a device cgroup keeps them away.
#[test]
fn gpus_that_may_not_be_opened_are_passed_over() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    let image = image(true);
    let root = image.root();
    let run = |options: &[&str], change: &str| {
        let script = "echo ${LD_LIBRARY_PATH##*/} $CUDA_VISIBLE_DEVICES";
        let arguments = options.iter().copied().chain([text(&root), "sh", "-c", script]);
        Run::launch(Who::User, arguments).prelude(machine.but(change)).run()
    };
    // The first on the bus is nvidia1; files that only administrators or profilers open do not matter.
    let closed =
        "chmod 0600 /dev/nvidia1; cp -a /dev/null /dev/nvidia-uvm-tools; chmod 0600 /dev/nvidia-uvm-tools";
    run(&["--gpu=all"], closed).prints("devices");
    run(&["--gpu=0"], closed).prints(&format!("devices {}", uuid(1)));
    let each = ["-n", "2", "--oversubscribe", "--bind-to=none", "--gpu-bind=round-robin"];
    let outcome = run(&each, closed).good();
    assert_eq!(outcome.out(), format!("devices {0}\ndevices {0}\n", uuid(1)), "{outcome}");
    let named = format!("--gpu={}", uuid(0));
    run(&[&named], closed).refused("device-denied", &["/dev/nvidia1 may not be used: EACCES", "mode 0600"]);
    // As Slurm does it (ConstrainDevices), where this machine lets a test do it.
    let devices = Path::new("/sys/fs/cgroup/devices");
    if !devices.join("devices.deny").exists() {
        eprintln!("skipped in part: no device cgroup (version 1) is mounted");
        return;
    }
    let group = devices.join(format!("hpc-launch-test-{}", std::process::id()));
    fs::create_dir(&group).expect("a cgroup");
    let kept = format!(
        "rm /dev/nvidia1; mknod -m 0666 /dev/nvidia1 c 195 1; echo c 195:1 rwm > {0}/devices.deny; echo $$ > {0}/tasks",
        text(&group)
    );
    let named = run(&[&named], &kept);
    let all = run(&["--gpu=0"], &kept);
    fs::remove_dir(&group).expect("an empty cgroup");
    all.prints(&format!("devices {}", uuid(1)));
    named.refused(
        "device-denied",
        &["/dev/nvidia1 is kept from this job by its device cgroup: EPERM", "--gpus"],
    );
}

/// Images do not have them.
#[test]
fn the_drivers_programs_are_found_inside() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    let (plain, for_cuda) = (image(false), image(true));
    let said = "GPU 0: of the driver";
    for who in everyone() {
        machine.run(*who, &[text(&plain.root()), "nvidia-smi"]).prints(said);
        machine.run(*who, &[text(&for_cuda.root()), "sh", "-c", "nvidia-smi"]).prints(said);
        let root = plain.root();
        let joined = ["-n", "3", "--oversubscribe", text(&root), "nvidia-smi"];
        let outcome = machine.run(*who, &joined).good();
        assert_eq!(outcome.out().lines().filter(|line| *line == said).count(), 3, "{outcome}");
        let plan = machine.run(*who, &["plan", text(&plain.root()), "nvidia-smi"]).good().out();
        assert!(
            plan.contains("bind /usr/local/nvidia/bin/nvidia-smi at /run/hpc-launch/devices/bin/nvidia-smi"),
            "{plan}"
        );
        // Nothing of it for others, and not where it is not wanted.
        machine
            .run(*who, &[text(&plain.root()), "sh", "-c", "command -v nvidia-smi || echo none"])
            .prints("none");
        for run in [
            machine.run(*who, &["--gpu=none", text(&plain.root()), "nvidia-smi"]),
            Run::launch(*who, [text(&plain.root()), "nvidia-smi"]).run(),
        ] {
            run.refused("program-not-found", &["nvidia-smi is in no directory of the container's PATH"]);
        }
    }
}

/// The host's MPI is no better than the image's where only the image's sends what lies in a GPU.
#[test]
fn an_mpi_that_knows_gpus_is_not_replaced_by_one_that_does_not() {
    if skipped() {
        return;
    }
    let machine = Machine::new();
    // What a build for CUDA has besides.
    let copy = directory("/var/tmp");
    let script = format!(
        "cp -al $(readlink -f {}) image; cd image/usr/lib/x86_64-linux-gnu/openmpi/lib/openmpi3; cp mca_coll_basic.so mca_coll_cuda.so",
        text(&host::image("bookworm-openmpi"))
    );
    sh(copy.path(), &script);
    sh(copy.path(), "chmod 0755 .");
    let image = copy.path().join("image");
    let program = [text(&image), "/opt/examples/ring"];
    for who in everyone() {
        let plan = |options: &[&str], machine: Option<&Machine>| {
            let run = Run::mpirun(*who, 1, [&["plan"][..], options, &program].concat());
            machine.map_or(run.clone(), |machine| run.prelude(machine.prelude())).run()
        };
        let kept = plan(&["--gpu=all"], Some(&machine)).good();
        for said in [
            "MPI        the image's own: Open MPI 4.1.4",
            "the host's MPI is not used: with the host's Open MPI 4.1.4",
            "(mca_coll_cuda.so) sends GPUs' memory, and nothing shows that the host's Open MPI 4.1.4",
        ] {
            assert!(kept.out().contains(said), "{said}\n{kept}");
        }
        // A program that gets no GPU gets the host's MPI, as ever, and so does who insists.
        for (options, machine) in [(&["--gpu=none"][..], Some(&machine)), (&[], Some(&machine)), (&[], None)]
        {
            let replaced = plan(options, machine).good();
            assert!(replaced.out().contains("MPI        the host's: Open MPI 4.1.4"), "{replaced}");
            assert!(!replaced.out().contains("GPUs' memory"), "{replaced}");
        }
        let forced = plan(&["--gpu=all", "--mpi=host"], Some(&machine)).good();
        assert!(forced.out().contains("a program that hands such memory to MPI crashes"), "{forced}");
    }
}

/// Each rank's adapter, where somebody asks for it.
#[test]
fn ranks_get_their_adapters() {
    if skipped() {
        return;
    }
    let adapter = Adapter::new();
    let second = "cd $M/class/infiniband; cp -r mlx5_0 mlx5_1; cp -r mlx5_0 mlx5_2; echo '1: DOWN' > mlx5_2/ports/1/state
        for n in 0 1; do echo $n > mlx5_$n/device/numa_node; done; cd /
        mount -t tmpfs none /sys/devices/system/node; cd /sys/devices/system/node; mkdir node0 node1
        echo 0 > node0/cpulist; echo 1 > node1/cpulist; echo 10 21 > node0/distance; echo 21 10 > node1/distance; cd /";
    let image = image(false);
    let root = image.root();
    for who in everyone() {
        let told = |options: &[&str], variables: &[(&str, &str)]| {
            let script = "echo $HPC_LAUNCH_RANK $UCX_NET_DEVICES";
            let options = ["-n", "4", "--oversubscribe"].iter().chain(options).copied();
            let mut run = Run::launch(*who, options.chain([text(&root), "sh", "-c", script]));
            for (name, value) in variables {
                run = run.env(name, value);
            }
            let outcome = run.prelude(adapter.but(second)).run().good();
            let mut lines: Vec<String> = outcome.out().lines().map(|l| l[1..].trim().to_owned()).collect();
            lines.sort();
            lines.join(" ")
        };
        assert_eq!(told(&[], &[]), "   ");
        let both = "mlx5_0:1 mlx5_0:1 mlx5_1:1 mlx5_1:1";
        assert_eq!(told(&["--nic-bind=round-robin", "--bind-to=none"], &[]), both);
        assert_eq!(told(&["--nic-bind=closest", "--bind-to=core"], &[]), both);
        assert_eq!(told(&["--nic-bind=closest"], &[("UCX_NET_DEVICES", "all")]), "all all all all");
        assert_eq!(told(&["--nic-bind=closest", "--env", "UCX_NET_DEVICES=x"], &[]), "x x x x");
    }
    let plan = ["plan", "--nic-bind=closest", text(&root), "true"];
    let outcome = Run::mpirun(Who::User, 1, plan).prelude(adapter.but(second)).run().good();
    let said = "UCX_NET_DEVICES=mlx5_0:1 — the adapter of local rank 0, close to its processors (--nic-bind)";
    assert!(outcome.out().contains(said), "{outcome}");
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
        ("rm /dev/nvidia0 /dev/nvidia1", "device-denied", &["/dev/nvidia1 cannot be looked at"]),
        ("rm -r /proc/driver/nvidia/gpus/*", "device-missing", &["and knows no GPU", "NVRM"]),
        (
            "chmod 0660 /dev/nvidia?",
            "device-denied",
            &[
                "no GPU may be used: /dev/nvidia1 may not be used",
                "root:root with mode 0660",
                "your groups are",
            ],
        ),
    ];
    for (change, code, said) in table {
        // Root may open everything.
        let users: &[Who] = if change.starts_with("chmod") { &[Who::User] } else { everyone() };
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
            "UCX 1.13.1 (/usr/lib/x86_64-linux-gnu/libucp.so.0.0.0), with cma ib rdmacm",
            "mana mlx4 mlx5",
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

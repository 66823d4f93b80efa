//! `hpc-launch validate`: what it proves, and what it says of everything that is wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone};
use hpc_launch_tests::hosts::{By, HEAD, Hosts};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::leaks::Host;
use hpc_launch_tests::machine::{Adapter, sh, skipped, text};
use hpc_launch_tests::run::{Outcome, Run};
use hpc_launch_tests::validate::{has, validate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The tables, by JSON.
fn lines(outcome: &Outcome) -> Vec<(String, String, String, String)> {
    let report: Value = serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{e}: {outcome}"));
    assert_eq!(report["version"], 1);
    let nodes = report["nodes"].as_array().expect("nodes");
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let all = nodes.iter().flat_map(|node| node["lines"].as_array().expect("lines"));
    all.map(|l| (text(l, "status"), text(l, "area"), text(l, "evidence"), text(l, "cure"))).collect()
}

#[track_caller]
fn keeps_to_the_schema(outcome: &Outcome) {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs").join("validate.schema.json");
    let script =
        "import json, sys, jsonschema; jsonschema.validate(json.load(sys.stdin), json.loads(sys.argv[1]))";
    let schema = fs::read_to_string(schema).expect("the schema");
    Run::command(Who::Root, ["python3", "-c", script, &schema]).stdin(outcome.out()).run().good();
}

#[test]
fn what_works_is_shown_with_its_evidence() {
    for who in everyone() {
        let place = directory("/tmp");
        fs::set_permissions(place.path(), Permissions::from_mode(0o777)).expect("a mode");
        for image in ["bullseye-openmpi", "bookworm-mpich", "trixie-openmpi"] {
            for mode in ["--mpi=auto", "--mpi=bridge"] {
                let run = validate(*who, &[mode], &host::image(image)).env("TMPDIR", place.path());
                let outcome = run.run().good();
                has(
                    &outcome,
                    &[
                        "PASS memory     /dev/shm has ",
                        "SKIP verbs      no fabric device: nothing in /sys/class/infiniband",
                        "SKIP cuda       no driver of NVIDIA's is loaded (/sys/module/nvidia/version)",
                        "PASS ucx        UCX 1.",
                        "PASS ranks      2 ranks are in one user namespace, ",
                        "PASS ranks      2 ranks read each other's memory (process_vm_readv)",
                        "PASS mpi        2 ranks: rank 0 exchanged 16.8 MB with 1 others at ",
                        " 0 failed, ",
                    ],
                );
                // MPICH over UCX takes TCP within a node as soon as it must.
                has(&outcome, &["by shared memory: neither TCP nor an adapter carried it"]);
                let whose = if mode == "--mpi=auto" { "PASS mpi        the host's " } else { "bridged" };
                has(&outcome, &[whose]);
            }
        }
        // The MPIs leave directories of sessions there.
        let left = fs::read_dir(place.path()).expect("a directory").flatten();
        let left: Vec<_> =
            left.map(|e| e.file_name()).filter(|n| n.to_string_lossy().contains("hpc-launch")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn the_host_alone() {
    for who in everyone() {
        let outcome = Run::launch(*who, ["validate", "--json"]).run().good();
        keeps_to_the_schema(&outcome);
        let lines = lines(&outcome);
        assert!(
            lines.iter().any(|(status, area, ..)| (status.as_str(), area.as_str()) == ("PASS", "memory"))
        );
        assert!(
            lines.iter().all(|(_, area, ..)| !["sandbox", "mpi", "link", "ranks"].contains(&area.as_str()))
        );
    }
}

#[test]
fn images_of_other_kinds() {
    for who in everyone() {
        // A SquashFS file; no MPI; no loader at all; nothing.
        let squashfs = host::image("bookworm-mpich").with_extension("sqfs");
        has(&validate(*who, &["--mpi=bridge"], &squashfs).run().good(), &["PASS mpi        2 ranks: "]);
        let outcome = validate(*who, &[], &host::image("libc")).run().good();
        has(
            &outcome,
            &["SKIP mpi        the image has no MPI where MPIs usually are; --mpi-library names one"],
        );
        has(&outcome, &["SKIP ucx        libucp.so.0 is neither in the image nor brought by the host"]);
        let empty = Throwaway::empty();
        for name in ["dev", "proc", "sys", "tmp"] {
            empty.directory(name);
        }
        let outcome = validate(*who, &[], &empty.root()).run().good();
        has(&outcome, &["SKIP link       the image has no dynamic loader: its programs are static"]);
        let outcome = validate(*who, &[], Path::new("/nonexistent")).run();
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        has(&outcome, &["FAIL sandbox    [image-missing] ", "/nonexistent"]);
    }
}

/// Another C library: musl takes the probe's libraries for itself.
#[test]
fn an_image_of_musl() {
    let image = Throwaway::new();
    let script = "echo 'int main(void) { return 0; }' > m.c && musl-gcc m.c -o bin/sh.musl && mv bin/sh.musl bin/sh \
                  && cp -L /lib/ld-musl-*.so.1 lib/ && rm -r m.c lib64";
    sh(&image.root(), script);
    for who in everyone() {
        let outcome = validate(*who, &[], &image.root()).run().good();
        has(
            &outcome,
            &["PASS ranks      2 ranks read each other's memory", "SKIP link       no library of an MPI"],
        );
    }
}

#[test]
fn what_is_required_must_be_there() {
    for who in everyone() {
        let image = host::image("bookworm-openmpi");
        let outcome = validate(*who, &["--require=verbs,cuda,mpi", "--mpi=bridge"], &image).run();
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        has(
            &outcome,
            &[
                "FAIL verbs      no fabric device",
                "-> --require verbs: it was asked for",
                "FAIL cuda       no driver of NVIDIA's is loaded",
                "PASS mpi        2 ranks",
            ],
        );
        validate(*who, &["--require=luck"], &image).run().says(&["invalid value 'luck'", "libfabric"]);
    }
}

/// One table for a job, by whichever launcher.
#[test]
fn under_launchers() {
    for (who, image) in everyone().iter().flat_map(|who| [(who, "bookworm-openmpi"), (who, "trixie-mpich")]) {
        let image = host::image(image);
        for mode in ["--mpi=auto", "--mpi=bridge"] {
            let arguments = ["validate", mode, text(&image)];
            for run in [Run::mpirun(*who, 3, arguments), Run::hydra(*who, 3, arguments)] {
                let outcome = run.limit(Duration::from_secs(120)).run().good();
                assert_eq!(outcome.out().matches(" skipped\n").count(), 1, "{outcome}");
                has(
                    &outcome,
                    &[
                        "PASS ranks      3 ranks are in one user namespace",
                        "PASS ranks      3 ranks read each other's memory",
                        "PASS mpi        3 ranks: rank 0 exchanged 33.6 MB with 2 others",
                    ],
                );
            }
        }
    }
}

/// One table of several nodes.
#[test]
fn over_several_hosts() {
    if skipped() {
        return;
    }
    let bed = Hosts::with_slurm(2);
    for (by, image, mode) in [
        (By::Mpirun, "bookworm-openmpi", "--mpi=auto"),
        (By::Hydra, "bookworm-openmpi", "--mpi=bridge"),
        (By::Srun("pmi2"), "trixie-openmpi", "--mpi=auto"),
        (By::Srun("pmix"), "bookworm-openmpi", "--mpi=auto"),
    ] {
        let before: Vec<Host> = bed.names().iter().map(|name| bed.on(name).state()).collect();
        let image = host::image(image);
        let run = bed.on(HEAD).launch(by, Who::User, 2, ["validate", "--json", mode, text(&image)]);
        let outcome = run.limit(Duration::from_secs(120)).run().good();
        keeps_to_the_schema(&outcome);
        let report: Value = serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{e}: {outcome}"));
        let nodes = report["nodes"].as_array().expect("nodes");
        let mut names: Vec<&str> = nodes.iter().filter_map(|node| node["host"].as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["h1", "h2"], "{outcome}");
        for node in nodes {
            let lines = node["lines"].to_string();
            assert!(lines.contains("2 ranks read each other's memory"), "{lines}");
        }
        // Between hosts there is nothing but TCP here.
        assert!(
            nodes[0]["lines"].to_string().contains("4 ranks: rank 0 exchanged 50.3 MB with 3 others"),
            "{outcome}"
        );
        for (host, name) in before.iter().zip(bed.names()) {
            host.is_as_before(&format!("validate under {by:?} on {name}"));
        }
    }
}

/// libfabric and UCX over what every machine has, the host's beneath the image's MPI: which of them ran is proved.
#[test]
fn which_way_was_taken() {
    let ucx = [
        ("OMPI_MCA_pml", "ucx"),
        ("OMPI_MCA_osc", "^ucx"),
        ("OMPI_MCA_pml_ucx_tls", "any"),
        ("OMPI_MCA_pml_ucx_devices", "any"),
    ];
    let tcp = [("UCX_TLS", "self,tcp"), ("UCX_NET_DEVICES", "lo")];
    let memory = [("UCX_TLS", "self,posix,cma,tcp")];
    let libfabric = [("OMPI_MCA_pml", "cm"), ("OMPI_MCA_mtl", "ofi")];
    let provider = |name| [("OMPI_MCA_mtl_ofi_provider_include", name)];
    let cases = [
        ("UCX", [&ucx[..], &tcp].concat(), "libucp.so.0", "by TCP: "),
        ("UCX", [&ucx[..], &memory].concat(), "libucp.so.0", "by shared memory"),
        ("libfabric", [&libfabric[..], &provider("tcp")].concat(), "libfabric.so.1", "by TCP: "),
    ];
    for (image, fabric, whose) in [
        ("bullseye-openmpi", "--fabric=host", "the host's"),
        ("trixie-openmpi", "--fabric=image", "the image's"),
    ] {
        for (stack, variables, library, way) in &cases {
            let mut run = validate(Who::User, &["--mpi=bridge", fabric], &host::image(image));
            // Without it libfabric 1 takes an interface that may have no address; 2 (trixie's) does not take this one.
            if *stack == "libfabric" && image.starts_with("bullseye") {
                run = run.env("FI_TCP_IFACE", "lo");
            }
            for (name, value) in variables {
                run = run.env(name, value);
            }
            let outcome = run.run().good();
            has(&outcome, &[way, &format!("PASS link       {stack} is {whose}, all of it: "), library]);
        }
    }
    // Open MPI asks libfabric for other nodes too, which its shared memory cannot reach; Intel MPI does not.
    for (provider, way) in [("shm", "by shared memory"), ("tcp", "by TCP: ")] {
        let run = validate(Who::User, &["--mpi=bridge"], &host::image("bookworm-intel"));
        let outcome = run.env("I_MPI_FABRICS", "ofi").env("FI_PROVIDER", provider).run().good();
        has(&outcome, &[way, "PASS mpi        the image's own Intel MPI"]);
    }
}

#[test]
fn shared_and_locked_memory() {
    if skipped() {
        return;
    }
    let image = host::image("libc");
    let outcome =
        validate(Who::User, &["--np=4"], &image).prelude("mount -t tmpfs -o size=20m none /dev/shm").run();
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    has(
        &outcome,
        &["FAIL memory     /dev/shm has 20 MiB free", "4 ranks take about 64 MiB there, and end with SIGBUS"],
    );
    let machine = Adapter::new();
    let outcome = validate(Who::User, &[], &image).prelude(machine.but("ulimit -l 64")).run();
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    has(
        &outcome,
        &["FAIL memory     locked memory: 64 KiB", "`* - memlock unlimited` in /etc/security/limits.conf"],
    );
}

/// What is wrong with an adapter, as far as it can be told without one: host's lines, then what is seen inside.
#[test]
fn adapters_that_cannot_be_used() {
    if skipped() {
        return;
    }
    let machine = Adapter::new();
    let image = host::image("bookworm-openmpi");
    let triple = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let table: &[(&str, &[&str])] = &[
        (
            "true",
            &[
                "PASS verbs      mlx5_0: /dev/infiniband/uverbs0 may be opened",
                "PASS verbs      mlx5_0 port 1: ACTIVE, LinkUp (InfiniBand)",
                "FAIL verbs      mlx5_0 cannot be opened: ",
                "the provider may be older than the kernel's driver: --fabric=host",
                "FAIL ucx        UCX 1.13.1 (the host's) uses none of the active ports mlx5_0:1",
                "FAIL libfabric  libfabric 1.17 (the host's) has no provider verbs",
            ],
        ),
        (
            "echo '1: DOWN' > $M/class/infiniband/mlx5_0/ports/1/state; echo '2: Polling' > $M/class/infiniband/mlx5_0/ports/1/phys_state",
            &[
                "FAIL verbs      mlx5_0 port 1: DOWN, Polling (InfiniBand)",
                "look for the cable and the switch",
            ],
        ),
        (
            "echo '2: INIT' > $M/class/infiniband/mlx5_0/ports/1/state; echo '5: LinkUp' > $M/class/infiniband/mlx5_0/ports/1/phys_state",
            &[
                "FAIL verbs      mlx5_0 port 1: INIT, LinkUp (InfiniBand)",
                "no subnet manager has configured the port: start opensm",
            ],
        ),
        (
            "rm /dev/infiniband/uverbs0",
            &[
                "FAIL verbs      mlx5_0: no program can reach it, /dev/infiniband/uverbsN of mlx5_0 is missing",
                "modprobe ib_uverbs",
                "FAIL verbs      libibverbs inside finds 0 of 1 devices: no adapter has a file by which programs reach it",
            ],
        ),
        (
            "chmod 0600 /dev/infiniband/uverbs0",
            &[
                "FAIL verbs      mlx5_0: /dev/infiniband/uverbs0 may not be used: EACCES",
                "root:root with mode 0600",
                "your groups are",
            ],
        ),
        (
            "rm /dev/infiniband/rdma_cm",
            &["WARN verbs      /dev/infiniband/rdma_cm is missing", "modprobe rdma_ucm"],
        ),
        // The kernel's driver is newer than the provider.
        (
            "echo 99 > $M/class/infiniband_verbs/uverbs0/abi_version",
            &[
                "FAIL verbs      libibverbs inside finds 0 of 1 devices: libibverbs: Warning: Driver mlx5 does not support the kernel ABI of 99",
            ],
        ),
    ];
    for (change, said) in table {
        let fresh = "echo '4: ACTIVE' > $M/class/infiniband/mlx5_0/ports/1/state; echo 1 > $M/class/infiniband_verbs/uverbs0/abi_version";
        let prelude = machine.but(&format!("{fresh}; {change}"));
        let outcome = validate(Who::User, &["--np=1"], &image).prelude(prelude).run();
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        has(&outcome, said);
    }
    // A provider that leads to nothing.
    let dangling = format!(
        "mount -t tmpfs none {triple}/libibverbs && ln -s ../libmlx5.so.1.99.99 {triple}/libibverbs/libmlx5-rdmav34.so"
    );
    let outcome = validate(Who::User, &["--np=1"], &image).prelude(machine.but(&dangling)).run();
    has(
        &outcome,
        &[
            "FAIL verbs      the provider ",
            "libmlx5-rdmav34.so leads to ../libmlx5.so.1.99.99",
            "ibverbs-providers",
        ],
    );
}

/// The provider of another release, put beside the core by hand: what libibverbs swallows is said.
#[test]
fn a_provider_of_another_world() {
    if skipped() {
        return;
    }
    let machine = Adapter::new();
    let triple = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let (old, new) = (host::image("bullseye-openmpi"), host::image("trixie-openmpi"));
    let real = |image: &Path| fs::canonicalize(image.join(&triple).join("libmlx5.so.1")).expect("there");
    let at = Path::new("/").join(&triple).join(real(&new).file_name().expect("a name"));
    let bind = format!("{}:{}:ro", real(&old).display(), at.display());
    let options = ["--np=1", "--mpi=bridge", "--fabric=image", "--bind", &bind];
    let outcome = validate(Who::User, &options, &new).prelude(machine.prelude()).run();
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    has(
        &outcome,
        &[
            "FAIL verbs      libibverbs inside finds 0 of 1 devices: libibverbs: Warning: couldn't load driver 'libmlx5-rdmav",
            "FAIL verbs      the provider ",
            "cannot be loaded: ",
            "version `IBVERBS_PRIVATE_33' not found",
            "libibverbs and its provider are of two releases",
        ],
    );
    // As it would have been without the bind by hand.
    let outcome = validate(Who::User, &["--np=1", "--mpi=bridge"], &new).prelude(machine.prelude()).run();
    assert!(!outcome.out().contains("couldn't load driver"), "{outcome}");
}

/// An active port, and messages that go over TCP all the same.
#[test]
fn tcp_beside_an_active_port_is_a_failure() {
    if skipped() {
        return;
    }
    let machine = Adapter::new();
    let run = validate(Who::User, &["--mpi=bridge"], &host::image("bookworm-openmpi"));
    let run = run
        .env("OMPI_MCA_pml", "ob1")
        .env("OMPI_MCA_btl", "tcp,self")
        .env("OMPI_MCA_btl_tcp_if_include", "lo");
    let outcome = run.prelude(machine.prelude()).run();
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    has(
        &outcome,
        &[
            "FAIL mpi        2 ranks: rank 0 exchanged 16.8 MB",
            "by TCP: 16.8 MB of it",
            "ports mlx5_0:1 are active",
            "--fabric=host",
        ],
    );
}

/// libfabric that has nothing to offer, and one half of an MPI of another release.
#[test]
fn libraries_that_do_not_work() {
    let image = host::image("bookworm-openmpi");
    for who in everyone() {
        let outcome =
            validate(*who, &["--mpi=bridge", "--np=1"], &image).env("FI_PROVIDER", "none-such").run();
        has(
            &outcome,
            &[
                "FAIL libfabric  libfabric 1.17 (the image's): fi_getinfo answers -61",
                "look at FI_PROVIDER and FI_PROVIDER_PATH",
            ],
        );
        let triple = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let (old, new) = (host::image("bookworm-openmpi"), host::image("trixie-openmpi"));
        let real =
            |image: &Path| fs::canonicalize(image.join(&triple).join("libmpi_mpifh.so.40")).expect("there");
        let at = Path::new("/").join(&triple).join(real(&old).file_name().expect("a name"));
        let bind = format!("{}:{}:ro", real(&new).display(), at.display());
        let outcome = validate(*who, &["--mpi=bridge", "--np=1", "--bind", &bind], &image).run();
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        has(
            &outcome,
            &[
                "FAIL link       ",
                "libmpi_mpifh.so.40",
                "libopen-pal.so.80",
                "core and its bindings are of two releases",
            ],
        );
    }
}

/// An image whose library says what it likes: it is shown, and commands nothing.
#[test]
fn a_library_that_lies() {
    let image = Throwaway::new();
    let triple = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    let source = "#include <stdio.h>\nunsigned fi_version(void) { return 1 << 16 | 99; }\n\
         int fi_getinfo(unsigned v, void *n, void *s, long f, void *h, void **i) {\n\
         *i = 0; puts(\"provider\\tname=\\033[2Jevil\"); puts(\"end\"); fflush(stdout); return 0; }\n";
    fs::write(image.at("fi.c"), source).expect("written");
    sh(
        &image.root(),
        &format!("cc -shared -fPIC fi.c -o {triple}/libfabric.so.1 -Wl,-soname,libfabric.so.1 && rm fi.c"),
    );
    for who in everyone() {
        let outcome = validate(*who, &["--np=1"], &image.root()).run().good();
        has(&outcome, &["PASS libfabric  libfabric 1.99 (the image's): ?[2Jevil"]);
        assert!(!outcome.out().contains('\u{1b}'), "{outcome}");
    }
}

/// Nothing is left of one that is interrupted.
#[test]
fn an_interrupted_one_leaves_nothing() {
    let place = directory("/tmp");
    fs::set_permissions(place.path(), Permissions::from_mode(0o777)).expect("a mode");
    for who in everyone() {
        // Its ranks wait for each other, and one never comes: hence there is time.
        let run =
            validate(*who, &["--mpi=bridge"], &host::image("bookworm-openmpi")).env("TMPDIR", place.path());
        let mut running = run.env("OMPI_MCA_pml", "ob1").start();
        running.wait_until("the probe is there", |_| {
            fs::read_dir(place.path()).is_ok_and(|mut d| d.next().is_some())
        });
        kill(Pid::from_raw(running.pid()), Signal::SIGTERM).expect("it runs");
        let outcome = running.finish();
        outcome.says(&["[interrupted] ended by signal 15"]);
        let left: Vec<_> =
            fs::read_dir(place.path()).expect("there").flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("hpc-launch")), "{left:?}");
    }
}

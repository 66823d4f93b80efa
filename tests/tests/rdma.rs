//! RDMA for real: Soft-RoCE, in the virtual machine that `cargo xtask test-rdma` boots. Anywhere else these are skipped.

use std::fs;
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone};
use hpc_launch_tests::run::{Outcome, Run};

const DEVICE: &str = "rxe0";
/// Everything is emulated there.
const LIMIT: Duration = Duration::from_secs(240);
/// Their rdma-core is older and newer than the host's.
const IMAGES: [&str; 2] = ["bullseye-openmpi", "trixie-openmpi"];

fn skipped() -> bool {
    let is_there = std::env::var_os("HPC_LAUNCH_RDMA").is_some();
    if !is_there {
        eprintln!("skipped: there is no adapter here; see cargo xtask test-rdma");
    }
    !is_there
}

fn launch(who: Who, image: &str, arguments: &[&str]) -> Run {
    let image = host::image(image);
    let image = image.to_str().expect("UTF-8");
    let (options, command) = arguments.split_at(arguments.iter().position(|a| *a == "IMAGE").unwrap_or(0));
    let arguments = options.iter().copied().chain([image]).chain(command.iter().skip(1).copied());
    Run::launch(who, arguments).limit(LIMIT)
}

/// Packets that the adapter has sent.
fn sent() -> u64 {
    let counter = format!("/sys/class/infiniband/{DEVICE}/ports/1/hw_counters/sent_pkts");
    fs::read_to_string(counter).expect("a counter").trim().parse().expect("a number")
}

#[test]
fn programs_of_older_and_newer_images_use_the_adapter() {
    if skipped() {
        return;
    }
    for image in IMAGES {
        for who in everyone() {
            let outcome = launch(*who, image, &["IMAGE", "ibv_devinfo"]).run().good();
            assert!(outcome.out().contains(DEVICE) && outcome.out().contains("PORT_ACTIVE"), "{outcome}");
        }
        // Between two ranks: they find each other over TCP, and speak RC.
        let script = format!(
            "if [ $HPC_LAUNCH_RANK = 1 ]; then sleep 3; set -- 127.0.0.1; fi; ibv_rc_pingpong -d {DEVICE} -g 0 -n 100 -c $@"
        );
        let before = sent();
        let options = ["-n", "2", "--bind-to=none", "IMAGE", "bash", "-c", &script];
        let outcome = launch(Who::User, image, &options).run().good();
        assert_eq!(outcome.out().matches("100 iters in").count(), 2, "{outcome}");
        // 100 messages of 4 KiB, each way.
        assert!(sent() - before >= 800, "{} packets\n{outcome}", sent() - before);
    }
}

/// The image's own MPI: over its own UCX where that is newer than the host's, over the host's beneath it where that is.
/// (UCX 1.10 alone does not work with this adapter: it asks for completion queues that the driver refuses.)
#[test]
fn mpi_goes_over_the_adapter() {
    if skipped() {
        return;
    }
    for (image, fabric) in [("bullseye-openmpi", "--fabric=auto"), ("trixie-openmpi", "--fabric=image")] {
        let before = sent();
        let size = (1 << 20).to_string();
        let program = ["IMAGE", "/opt/examples/pingpong", "5", &size];
        let options = [&["-n", "2", "--bind-to=none", "--mpi=bridge", fabric][..], &program].concat();
        let run = launch(Who::User, image, &options).env("UCX_TLS", "self,rc,ud").env("OMPI_MCA_pml", "ucx");
        let outcome = run.run().good();
        assert!(outcome.out().contains("1048576 B"), "{outcome}");
        let packets = sent() - before;
        assert!(packets >= 8 * 1024, "{image} {fabric}: only {packets} packets\n{outcome}");
    }
}

fn validate(image: &str, prelude: &str, options: &[&str]) -> Outcome {
    let options = [&["validate", "--timeout=200"][..], options, &["IMAGE"]].concat();
    let run = launch(Who::User, image, &options);
    if prelude.is_empty() { run.run() } else { run.prelude(prelude).run() }
}

#[test]
fn validate_proves_that_rdma_ran() {
    if skipped() {
        return;
    }
    for (image, options) in [
        ("bullseye-openmpi", &["--mpi=bridge"][..]),
        ("trixie-openmpi", &["--mpi=bridge", "--fabric=image"]),
        ("bullseye-openmpi", &[]),
    ] {
        let required = [options, &["--require=verbs,ucx,libfabric,mpi,ranks"]].concat();
        let outcome = validate(image, "", &required).good();
        for said in [
            "PASS verbs      rxe0 port 1: ACTIVE, LinkUp (Ethernet)",
            "PASS verbs      rxe0 port 1: an RC queue pair wrote 1048576 bytes to itself",
            "rc_verbs/rxe0:1",
            "by RDMA: port rxe0:1 sent",
            "(TCP 0.0 MB), as it was told to use the adapter",
            " 0 failed, 0 warnings,",
        ] {
            assert!(outcome.out().contains(said), "{said}\n{outcome}");
        }
    }
}

/// For comparison: nothing goes over the adapter.
#[test]
fn none_keeps_away_from_it() {
    if skipped() {
        return;
    }
    let before = sent();
    let outcome = validate("trixie-openmpi", "", &["--mpi=bridge", "--fabric=none"]).good();
    assert!(
        outcome.out().contains("PASS ucx        UCX 1.18.1 (the image's): ")
            && !outcome.out().contains("rc_verbs"),
        "{outcome}"
    );
    assert!(outcome.out().contains("by shared memory"), "{outcome}");
    // The probe's own write only.
    assert!(sent() - before < 3000, "{} packets", sent() - before);
}

#[test]
fn what_is_wrong_with_an_adapter_is_named_with_its_cure() {
    if skipped() {
        return;
    }
    let table: [(&str, &[&str]); 4] = [
        (
            // 64 KiB: not even the queue pair's buffers.
            "ulimit -l 64",
            &[
                "FAIL memory     locked memory: 64 KiB",
                "the hard limit is 64 KiB, let the administrator raise it",
                "`* - memlock unlimited` in /etc/security/limits.conf",
                "FAIL verbs      rxe0 port 1: ibv_reg_mr: ENOMEM: Out of memory",
            ],
        ),
        (
            "chmod 0600 /dev/infiniband/uverbs0",
            &[
                "FAIL verbs      rxe0: /dev/infiniband/uverbs0 may not be used",
                "root:root with mode 0600",
                "your groups are",
                "ask the administrator to add you to the group root",
            ],
        ),
        (
            "mount -t tmpfs none /dev/infiniband",
            &[
                "FAIL verbs      rxe0: no program can reach it, /dev/infiniband/uverbsN of rxe0 is missing",
                "modprobe ib_uverbs",
                "no adapter has a file by which programs reach it",
            ],
        ),
        (
            "ip link set e1 down",
            &[
                "FAIL verbs      rxe0 port 1: DOWN",
                "bring its network interface up",
                "rxe0 port 1 is not active, seen inside",
            ],
        ),
    ];
    for (prelude, said) in table {
        let outcome = validate("trixie-openmpi", prelude, &["--mpi=bridge", "--np=1"]);
        for part in said {
            assert!(outcome.out().contains(part), "{prelude}: {part}\n{outcome}");
        }
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        let undone = Run::command(
            Who::Root,
            ["sh", "-c", "chmod 0666 /dev/infiniband/uverbs0; ip link set e1 up; sleep 2"],
        );
        undone.run().good();
    }
}

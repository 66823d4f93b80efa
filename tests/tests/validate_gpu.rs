//! `hpc-launch validate` on machines with GPUs: what it says of a driver, its libraries and its files.

use std::fs;

use hpc_launch_tests::host::{self, Who, everyone};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::machine::{Adapter, Gpus, VERSION, sh, skipped, uuid};
use hpc_launch_tests::run::Run;
use hpc_launch_tests::validate::{has, validate};

/// A driver that works, or does not, in every way that its library can tell.
#[test]
fn gpus() {
    if skipped() {
        return;
    }
    let machine = Gpus::new();
    // It knows nothing of CUDA.
    let image = host::image("bookworm-openmpi");
    for who in everyone() {
        let outcome = validate(*who, &["--mpi=bridge", "--require=cuda"], &image)
            .prelude(machine.prelude())
            .run()
            .good();
        has(
            &outcome,
            &[
                &format!("PASS cuda       NVIDIA's driver {VERSION}: 2 GPUs may be opened, "),
                &format!(
                    "PASS cuda       libnvidia-ml: /run/hpc-launch/devices/libnvidia-ml.so.1 (the host's), driver {VERSION}"
                ),
                "PASS cuda       libcuda: /run/hpc-launch/devices/libcuda.so.1 (the host's), CUDA 12.4",
                &format!(
                    "PASS cuda       GPU 1 (NVIDIA T1, {}, compute capability 9.0), 1048576 bytes there and back, a kernel compiled from PTX, reaches the memory of 0",
                    uuid(1)
                ),
                "SKIP cuda       this MPI is not made for GPUs' memory (MPIX_Query_cuda_support)",
                "PASS cuda       rank 0 read rank 1's memory on the GPU (IPC)",
                "PASS cuda       rank 1 read rank 0's memory on the GPU (IPC)",
            ],
        );
    }
    let table: &[(&str, &[&str])] = &[
        (
            "mismatch",
            &[
                "FAIL cuda       cuInit answers CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
                "a libcuda of the image's was chosen",
            ],
        ),
        ("no-device", &["FAIL cuda       cuInit answers CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"]),
        (
            "crash",
            &["FAIL cuda       the probe was killed by SIGSEGV (11) while the library was initialised"],
        ),
        ("hang", &["FAIL cuda       the probe did not end within 5 s while the library was initialised"]),
        ("bad-copy", &["FAIL cuda       GPU 0 (NVIDIA T0", "1048576 bytes there and back: other bytes"]),
        (
            "old-ptx",
            &[
                "FAIL cuda       GPU 0: cuModuleLoadData answers CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
                "a newer driver",
            ],
        ),
        (
            "other-gpu",
            &["FAIL cuda       GPU 0 (NVIDIA T0, GPU-01000000-", "the kernel's driver knows no such GPU"],
        ),
        ("one-gpu", &["WARN cuda       CUDA sees 1 of the 2 GPUs that may be opened"]),
        (
            "no-ipc",
            &[
                "FAIL cuda       cuIpcOpenMemHandle answers CUDA_ERROR_INVALID_CONTEXT",
                "each must see all GPUs",
            ],
        ),
    ];
    for (wrong, said) in table {
        let run = validate(Who::User, &["--mpi=bridge", "--timeout=5"], &image).env("STUB_CUDA", wrong);
        let outcome = run.prelude(machine.prelude()).run();
        assert_eq!(outcome.code(), Some(if *wrong == "one-gpu" { 0 } else { 1 }), "{wrong}\n{outcome}");
        has(&outcome, said);
    }
    // The host's own lines.
    for (change, said) in [
        (
            "rm /dev/nvidia-uvm",
            "FAIL cuda       NVIDIA's driver 550.54.14 is loaded (--gpu=auto, built-in), and /dev/nvidia-uvm does not exist",
        ),
        ("chmod 0660 /dev/nvidia?", "and no GPU may be used: /dev/nvidia1 may not be used: EACCES"),
        ("rm /usr/local/nvidia/lib64/libcuda.so.550*", "libcuda.so.550.54.14 is in none of"),
    ] {
        let outcome =
            validate(Who::User, &["--mpi=bridge", "--np=1"], &image).prelude(machine.but(change)).run();
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        has(&outcome, &[said]);
    }
}

/// What the driver's management library tells, which CUDA does not.
#[test]
fn what_nvml_tells() {
    if skipped() {
        return;
    }
    let machine = Gpus::new();
    let image = host::image("bookworm-openmpi");
    let table: &[(&str, i32, &[&str])] = &[
        (
            "mismatch",
            1,
            &["FAIL cuda       nvmlInit answers Driver/library version mismatch (18)", "not loaded anew"],
        ),
        (
            "other-driver",
            1,
            &["FAIL cuda       libnvidia-ml: ", "driver 535.1; the kernel has loaded 550.54.14"],
        ),
        (
            "crash",
            1,
            &["FAIL cuda       the probe was killed by SIGSEGV (11) while the library was initialised"],
        ),
        (
            "prohibited",
            1,
            &["FAIL cuda       GPU 0 lets no program in (compute mode PROHIBITED)", "-c DEFAULT"],
        ),
        (
            "exclusive",
            0,
            &[
                "WARN cuda       GPU 1 lets one process in at a time (compute mode EXCLUSIVE_PROCESS)",
                "start MPS",
            ],
        ),
        (
            "fabric",
            1,
            &["FAIL cuda       GPU 0 has not joined its NVLink fabric: in progress", "nvidia-fabricmanager"],
        ),
        (
            "mig",
            0,
            &["PASS cuda       GPU 0 is used in parts (MIG): MIG-90000000-1111-2222-3333-444455556666; "],
        ),
        (
            "mig-empty",
            1,
            &["FAIL cuda       GPU 0 is to be used in parts (MIG), and has none", "nvidia-smi mig -cgi"],
        ),
    ];
    for (wrong, code, said) in table {
        let run = validate(Who::User, &["--mpi=bridge"], &image).env("STUB_NVML", wrong);
        let outcome = run.prelude(machine.prelude()).run();
        assert_eq!(outcome.code(), Some(*code), "{wrong}\n{outcome}");
        has(&outcome, said);
    }
}

/// Parts, switches and channels, by their files.
#[test]
fn what_the_drivers_files_tell() {
    if skipped() {
        return;
    }
    let machine = Gpus::new();
    let run = |change: &str| Run::launch(Who::User, ["validate"]).prelude(machine.but(change)).run();
    has(&run("cp -a /dev/null /dev/kfd").good(), &["PASS cuda       ROCm: /dev/kfd may be opened"]);
    let outcome = run("cp -a /dev/null /dev/kfd; chown root:video /dev/kfd; chmod 0660 /dev/kfd");
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    has(
        &outcome,
        &[
            "FAIL cuda       ROCm: /dev/kfd may not be used: EACCES",
            "root:video with mode 0660",
            "to the group video",
        ],
    );
    // What is only for administrators is no hindrance, and one GPU of two is enough.
    let outcome = run("chmod 0600 /dev/nvidia0").good();
    has(
        &outcome,
        &[
            "PASS cuda       NVIDIA's driver 550.54.14: 1 of 2 GPUs may be opened",
            "SKIP cuda       /dev/nvidia0 may not be used: EACCES",
        ],
    );
    let parts = "c=/proc/driver/nvidia/capabilities/gpu0/mig/gi1; mkdir -p $c/ci0
        echo DeviceFileMinor: 21 > $c/access; echo DeviceFileMinor: 22 > $c/ci0/access";
    let node =
        |minor: u32, mode: &str| format!("mknod -m {mode} /dev/nvidia-caps/nvidia-cap{minor} c 241 {minor}");
    let outcome = run(&format!("{parts}; {}; {}", node(21, "0666"), node(22, "0666"))).good();
    has(&outcome, &["PASS cuda       2 instances of parts of GPUs (MIG) may be opened"]);
    let outcome = run(&format!("{parts}; {}", node(21, "0400"))).good();
    has(
        &outcome,
        &[
            "WARN cuda       gi1 of GPU 0 (MIG): /dev/nvidia-caps/nvidia-cap21 may not be used: EACCES",
            "WARN cuda       gi1/ci0 of GPU 0 (MIG): /dev/nvidia-caps/nvidia-cap22 cannot be looked at",
        ],
    );
    let switch =
        "mknod -m 0666 /dev/nvidia-nvswitch0 c 239 0; mknod -m 0666 /dev/nvidia-nvswitchctl c 239 255";
    has(&run(switch).good(), &["WARN cuda       1 NVSwitches, and no socket of nvidia-fabricmanager's"]);
    let channel = |mode: &str| {
        format!("d=/dev/nvidia-caps-imex-channels; mkdir $d; mknod -m {mode} $d/channel0 c 242 0")
    };
    let outcome = run(&channel("0666")).good();
    has(&outcome, &["PASS cuda       1 channels to memory of other nodes' GPUs (IMEX) may be opened"]);
    let outcome = run(&channel("0600")).good();
    has(
        &outcome,
        &[
            "WARN cuda       memory of other nodes' GPUs (IMEX) cannot be shared: ",
            "channel0 may not be used",
        ],
    );
}

/// GPUs and adapters of one machine.
#[test]
fn how_adapters_reach_gpus() {
    if skipped() {
        return;
    }
    let (machine, adapter) = (Gpus::new(), Adapter::new());
    // The second machine's /dev lies over the first's, and gets its files.
    let both = format!("{}; G=$M; {}; cp -a $G/dev/nvidia* /dev/", machine.prelude(), adapter.prelude());
    let run = |change: &str| Run::launch(Who::User, ["validate"]).prelude(format!("{both}; {change}")).run();
    let none = "WARN cuda       no GPUDirect RDMA: nvidia_peermem is not loaded";
    has(&run("true"), &[none, "SKIP cuda       no GDRCopy: /dev/gdrdrv does not exist"]);
    let open =
        "echo 'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.1' > /proc/driver/nvidia/version";
    has(&run(open), &["PASS cuda       GPUDirect RDMA: adapters reach GPUs' memory, by dma-buf"]);
    let more = "mkdir /sys/module/nvidia_peermem; cp -a /dev/null /dev/gdrdrv";
    has(
        &run(more),
        &[
            "PASS cuda       GPUDirect RDMA: adapters reach GPUs' memory, by nvidia_peermem",
            "PASS cuda       GDRCopy: /dev/gdrdrv may be opened",
        ],
    );
}

#[test]
fn descriptions_of_devices() {
    if skipped() {
        return;
    }
    let machine = Gpus::new();
    let dir = directory("/var/tmp");
    let cdi = dir.path().join("cdi");
    fs::create_dir(&cdi).expect("a directory");
    let described = machine.run(Who::Root, &["cdi", "generate"]).good().out();
    let run = |name: &str, contents: &str| {
        fs::write(cdi.join(name), contents).expect("written");
        sh(dir.path(), "chmod -R a+rX,go-w .");
        let run = Run::launch(Who::User, ["validate"]).env("HPC_LAUNCH_CDI_DIRECTORIES", &cdi);
        run.prelude(machine.prelude()).run()
    };
    let outcome = run("nvidia.json", &described).good();
    has(&outcome, &["PASS cdi        ", "nvidia.json: 5 devices"]);
    let outcome = run("nvidia.json", &described.replace(VERSION, "535.1"));
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    has(
        &outcome,
        &[
            "nvidia.json is staler than the driver: it names /usr/local/nvidia/lib64/libcuda.so.535.1 (driver 535.1), and 550.54.14 is loaded",
            "write it anew: hpc-launch cdi generate --output ",
        ],
    );
    let outcome = run("other.json", "{");
    has(&outcome, &["FAIL cdi        ", "other.json: "]);
}

//! Images in a file: mounted by the kernel for root, by one squashfuse per node for users.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpc_launch_tests::canary::{assert_same, record};
use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::image::{Throwaway, directory, squash};
use hpc_launch_tests::run::{Run, command_line};

/// The ring and cross-memory attach, in every image, under the launcher that it fits.
fn from_file(mpi: &str) {
    for (suite, program, expected) in [
        ("bullseye", "ring", "ring of 4 ranks: sum 6 correct"),
        ("bookworm", "cma", "cma: 4 of 4 reads correct"),
        ("trixie", "allreduce", "allreduce over 4 ranks: correct"),
    ] {
        let image = host::image(&format!("{suite}-{mpi}.sqfs"));
        for who in everyone() {
            let arguments = [image.to_str().unwrap(), &format!("/opt/examples/{program}")];
            let run = match mpi {
                "openmpi" => Run::mpirun(*who, 4, arguments),
                _ => Run::hydra(*who, 4, arguments),
            };
            let outcome = run.limit(Duration::from_secs(120)).run().good();
            assert!(outcome.out().lines().any(|line| line == expected), "{outcome}");
        }
    }
}

#[test]
fn openmpi_images_in_files_run_under_mpirun() {
    from_file("openmpi");
}

#[test]
fn mpich_images_in_files_run_under_hydra() {
    from_file("mpich");
}

/// Every process of this machine that serves this very file.
fn servers(image: &Path) -> Vec<String> {
    let path = image.display().to_string();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.map(command_line).filter(|line| line.contains(&path) && line.contains("/dev/fd/")).collect()
}

/// Loop devices that hold this file.
fn loops(image: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").unwrap().filter_map(|e| Some(e.ok()?.path()));
    let holds = |device: &PathBuf| {
        let file = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim_end()) == image
    };
    devices.filter(holds).collect()
}

fn vanishes(what: &str, look: impl Fn() -> usize) {
    let start = Instant::now();
    while look() > 0 {
        assert!(start.elapsed() < Duration::from_secs(2), "{what}: {} left after 2 s", look());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sixteen(run: impl Fn(Who, u32, [String; 3]) -> Run) {
    let image = Throwaway::new();
    let file = image.squash();
    for who in everyone() {
        let arguments = [file.display().to_string(), "sleep".into(), "3".into()];
        let running = run(*who, 16, arguments).start();
        let start = Instant::now();
        loop {
            let ranks = running.processes().iter().filter(|(_, line)| line == "sleep 3").count();
            if ranks == 16 {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{:#?}", running.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
        let serving = servers(&file);
        let (processes, devices) = if *who == Who::User { (1, 0) } else { (0, 1) };
        assert_eq!(serving.len(), processes, "as {who:?}: {serving:#?}");
        assert_eq!(loops(&file).len(), devices, "as {who:?}");
        running.finish().good();
        vanishes("squashfuse", || servers(&file).len());
        vanishes("loop devices", || loops(&file).len());
    }
}

#[test]
fn one_server_for_sixteen_ranks_of_mpirun_and_none_afterwards() {
    sixteen(Run::mpirun);
}

#[test]
fn one_server_for_sixteen_ranks_of_hydra_and_none_afterwards() {
    sixteen(Run::hydra);
}

#[test]
fn root_is_served_by_the_kernel_and_users_by_squashfuse() {
    let image = Throwaway::new();
    let file = image.squash();
    let file = file.to_str().unwrap();
    for who in everyone() {
        let outcome = Run::launch(*who, [file, "cat", "/proc/self/mountinfo"]).run().good();
        let root = outcome.out().lines().find(|l| l.split(' ').nth(4) == Some("/")).unwrap().to_owned();
        let (kind, how) = match who {
            Who::Root => (" - squashfs /dev/loop", "mounted by the kernel"),
            Who::User => (" - fuse.squashfuse ", "/squashfuse"),
        };
        assert!(root.contains(kind), "{root}");
        for flag in ["ro", "nosuid", "nodev"] {
            assert!(root.split(' ').nth(5).unwrap().split(',').any(|f| f == flag), "no {flag}: {root}");
        }
        let outcome = Run::launch(*who, ["plan", file, "true"]).run().good();
        assert!(outcome.out().contains(how) && outcome.out().contains("(SquashFS file)"), "{outcome}");
    }
}

#[test]
fn a_file_may_lie_anywhere_and_have_any_name() {
    let image = Throwaway::new();
    let packed = image.squash();
    for parent in ["/var/tmp", "/tmp", "/dev/shm"] {
        let dir = directory(parent);
        for name in ["i.sqfs", "no ending", "a,b=c:d.sqfs", "qu'ote \"d\" \\ back", "line\nfeed", "-dash"] {
            let file = dir.path().join(name);
            fs::copy(&packed, &file).unwrap();
            for who in everyone() {
                let outcome = Run::launch(
                    *who,
                    [file.as_os_str(), "sh".as_ref(), "-c".as_ref(), "echo $((6*7))".as_ref()],
                );
                outcome.run().prints("42");
            }
            fs::remove_file(file).unwrap();
        }
        // By a relative path, from its own directory.
        fs::copy(&packed, dir.path().join("i")).unwrap();
        for who in everyone() {
            Run::launch(*who, ["i", "sh", "-c", "pwd"])
                .cwd(dir.path())
                .run()
                .prints(&dir.path().display().to_string());
        }
    }
}

#[test]
fn what_is_missing_in_a_file_is_made_and_what_is_written_vanishes() {
    let image = Throwaway::new();
    image.remove("etc").remove("home").file("data", "of the image");
    let file = image.squash();
    let host = directory("/var/tmp");
    fs::write(host.path().join("here"), "of the host").unwrap();
    let bind = format!("{}:/opt/very/deep", host.path().display());
    let file = file.to_str().unwrap();
    for who in everyone() {
        // Permissions are those of the image: root's files stay root's.
        image.owned_by(*who).squash();
        let before = record(image.beside());
        let script =
            "cat /opt/very/deep/here; echo; cat /data; echo; wc -l </etc/passwd >/dev/null && echo etc";
        let outcome = Run::launch(*who, ["--bind", &bind, file, "sh", "-c", script]).run();
        outcome.prints("of the host\nof the image\netc");

        let script = "echo new >/data && cat /data && touch /made && test -e /made && echo made";
        let outcome = Run::launch(*who, ["--writable-tmpfs", file, "sh", "-c", script]).run();
        outcome.prints("new\nmade");
        Run::launch(*who, [file, "sh", "-c", "cat /data; test -e /made || echo gone"])
            .run()
            .prints("of the imagegone");
        let outcome = Run::launch(*who, [file, "sh", "-c", "echo new >/data"]).run();
        assert!(outcome.code() == Some(2), "{outcome}");
        outcome.says(&["Read-only file system"]);
        assert_same(&before, &record(image.beside()), "writing in the sandbox");
    }
}

#[test]
fn a_closed_dev_fuse_is_named_with_the_cure() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    let file = image.squash();
    let file = file.to_str().unwrap();
    let node = image.beside().join("fuse");
    let made = Run::command(Who::Root, ["mknod", "-m", "0600", node.to_str().unwrap(), "c", "10", "229"]);
    made.run().good();
    let prelude = format!("mount --bind {} /dev/fuse", node.display());
    let closed = |who| Run::launch(who, [file, "sh", "-c", "echo ran"]).prelude(&prelude).run();
    closed(Who::User).refused(
        "fuse-closed",
        &["cannot open /dev/fuse", "Permission denied", file, "0666", "unsquashfs -d DIR FILE"],
    );
    closed(Who::Root).prints("ran");
    // Where there is no such device at all.
    let prelude = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";
    let outcome = Run::launch(Who::User, [file, "true"]).prelude(prelude).run();
    outcome.refused("fuse-closed", &["/dev/fuse", "No such file", "modprobe fuse"]);
    // Under a launcher, once.
    let run = Run::hydra(Who::User, 4, [file, "true"])
        .prelude(format!("mount --bind {} /dev/fuse", node.display()));
    let outcome = run.run();
    assert_eq!(outcome.code(), Some(125), "{outcome}");
    assert_eq!((outcome.err() + &outcome.out()).matches("[fuse-closed]").count(), 1, "{outcome}");
}

#[test]
fn a_missing_squashfuse_is_named_with_the_cure() {
    let image = Throwaway::new();
    let file = image.squash();
    let file = file.to_str().unwrap();
    let run =
        |who| Run::launch(who, [file, "sh", "-c", "echo ran"]).env("HPC_LAUNCH_SQUASHFUSE", "/nonexistent");
    run(Who::User)
        .run()
        .refused("squashfuse-missing", &["squashfuse = /nonexistent", "No such file", "hpc-launch config"]);
    if is_root() {
        run(Who::Root).run().prints("ran");
        // As on a machine where it is not installed.
        let empty = directory("/var/tmp");
        fs::set_permissions(empty.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let prelude = "for f in squashfuse squashfuse_ll; do for d in /usr/bin /usr/local/bin; do \
                       test ! -e $d/$f || mount --bind /dev/null $d/$f; done; done";
        let outcome = Run::launch(Who::User, [file, "true"]).prelude(prelude).run();
        outcome.refused(
            "squashfuse-missing",
            &["neither squashfuse_ll nor", "package squashfuse", "unsquashfs -d"],
        );
    }
    // One that does not work.
    let outcome = run(Who::User).env("HPC_LAUNCH_SQUASHFUSE", "/bin/false").run();
    outcome.refused("squashfs-mount", &["/bin/false does not serve", file]);
}

/// What a cut or damaged file may lead to: a refusal, or a program that the damage did not reach, or
/// one that met it. Never a hang, nor a success with wrong contents.
fn survives(file: &Path, what: &str) {
    for who in everyone() {
        let arguments = [file.to_str().unwrap(), "cat", "/payload"];
        let outcome = Run::launch(*who, arguments).limit(Duration::from_secs(30)).run();
        match outcome.code() {
            Some(0) => assert_eq!(outcome.stdout, payload(), "{what}: {outcome}"),
            Some(125..=127) => {
                let code = outcome.refusal().unwrap_or_else(|| panic!("{what}: no reason\n{outcome}"));
                let fitting = [
                    "image-damaged",
                    "image-unknown",
                    "squashfs-mount",
                    "image-layout",
                    "mount",
                    "exec",
                    "program-not-found",
                    "program-not-executable",
                    "interpreter-missing",
                    "wrong-architecture",
                ];
                assert!(fitting.contains(&code.as_str()), "{what}: {outcome}");
                assert!(outcome.err().contains("what to do: "), "{what}: {outcome}");
            }
            // The program's own end: an I/O error, or a signal at a page that cannot be read.
            Some(1) => drop(outcome.says(&["error"])),
            Some(other) => panic!("{what}: status {other}\n{outcome}"),
            None => assert!([Some(4), Some(7), Some(11)].contains(&outcome.signal()), "{what}: {outcome}"),
        }
    }
}

/// Does not compress, so that it spans blocks of its own.
fn payload() -> Vec<u8> {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..1_000_000).map(step).collect()
}

fn packed_payload() -> (Throwaway, PathBuf, Vec<u8>) {
    let image = Throwaway::new();
    image.file("payload", payload());
    let file = image.squash();
    let bytes = fs::read(&file).unwrap();
    (image, file, bytes)
}

#[test]
fn a_cut_file_is_refused_before_anything_starts() {
    let (_image, file, bytes) = packed_payload();
    let used = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    for length in [4, 50, 95, 96, 1000, bytes.len() / 4, bytes.len() / 2, used - 1] {
        fs::write(&file, &bytes[..length]).unwrap();
        for who in everyone() {
            let outcome = Run::launch(*who, [file.to_str().unwrap(), "true"]).run();
            outcome.refused(
                "image-damaged",
                &[file.to_str().unwrap(), &length.to_string(), "copy or build it again"],
            );
        }
    }
    fs::write(&file, b"").unwrap();
    for who in everyone() {
        Run::launch(*who, [file.to_str().unwrap(), "true"]).run().refused("image-unknown", &["it is empty"]);
    }
    // What pads the file to 4 KiB may be missing.
    fs::write(&file, &bytes[..used]).unwrap();
    survives(&file, "without padding");
}

#[test]
fn a_superblock_with_any_byte_flipped_does_no_harm() {
    let (_image, file, bytes) = packed_payload();
    let step = if host::full() { 1 } else { 7 };
    for at in (0..96).step_by(step) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0xff;
        fs::write(&file, &flipped).unwrap();
        survives(&file, &format!("superblock byte {at} flipped"));
    }
}

#[test]
fn flipped_bits_in_tables_and_data_do_no_harm() {
    let (_image, file, bytes) = packed_payload();
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    // squashfs_fs.h: inode, directory and fragment table, table of ids.
    let (inodes, directories, fragments, ids) = (u64_at(64), u64_at(72), u64_at(80), u64_at(48));
    let tables = [
        inodes,
        inodes + 1,
        inodes + 40,
        directories,
        directories + 9,
        fragments,
        fragments + 3,
        ids,
        ids + 2,
    ];
    let data = [96, 5000, inodes / 2, inodes - 1];
    for at in tables.into_iter().chain(data) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x55;
        fs::write(&file, &flipped).unwrap();
        // A flip in stored data is not noticed by anybody: SquashFS has no checksums.
        if data.contains(&at) {
            for who in everyone() {
                let outcome = Run::launch(*who, [file.to_str().unwrap(), "true"]);
                let outcome = outcome.limit(Duration::from_secs(30)).run();
                assert!(outcome.code() != Some(125) || outcome.refusal().is_some(), "{outcome}");
            }
        } else {
            survives(&file, &format!("byte {at} flipped"));
        }
    }
}

/// A root of the file that has hostile links is followed inside the file only.
#[test]
fn links_in_a_file_lead_nowhere_outside() {
    let image = Throwaway::new();
    image.link("/proc/self/root/etc", "etc").link("../../../..", "home").link("/var/tmp", "mnt");
    let file = image.squash();
    for who in everyone() {
        let outcome = Run::launch(*who, [file.to_str().unwrap(), "sh", "-c", "echo ran"]).run();
        assert!(outcome.code() == Some(0) || outcome.refusal().is_some(), "{outcome}");
    }
    let again = image.beside().join("again.sqfs");
    squash(&image.root(), &again, &["-noI", "-noD", "-noF", "-noX"]);
    Run::launch(Who::User, [again.to_str().unwrap(), "true"]).run().good();
}

//! `--overlay`: what lies over an image, who sees it, and what of it stays.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hpc_launch_tests::canary::{assert_same, record};
use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::hosts::{By, HEAD, Hosts};
use hpc_launch_tests::image::{Throwaway, directory, squash};
use hpc_launch_tests::leaks;
use hpc_launch_tests::run::{Outcome, Run};
use tempfile::TempDir;

/// A directory of somebody's own.
fn own(who: Who) -> TempDir {
    own_in("/var/tmp", who)
}

fn own_in(parent: &str, who: Who) -> TempDir {
    let dir = directory(parent);
    if is_root() {
        let account = who.account();
        std::os::unix::fs::chown(dir.path(), Some(account.uid), Some(account.gid)).unwrap();
    }
    dir
}

/// An image in which somebody may change everything, and can remove what he will.
fn image_of(who: Who) -> Throwaway {
    let image = Throwaway::new();
    image.program("bin/rm", fs::read(host::image("bookworm-openmpi").join("usr/bin/rm")).unwrap());
    image.file("data", "image").file("etc/old", "image").directory("opt/d").file("opt/d/f", "image");
    image.owned_by(who);
    image
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A line of shell in an image.
fn shell(who: Who, image: &Path, overlays: &[&str], line: &str) -> Run {
    let options = overlays.iter().flat_map(|overlay| ["--overlay", overlay]);
    Run::launch(who, options).args([text(image), "sh", "-c", line])
}

fn node() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn lines(outcome: &Outcome) -> Vec<String> {
    let mut lines: Vec<String> = outcome.out().lines().map(String::from).collect();
    lines.sort();
    lines
}

#[test]
fn a_directory_keeps_what_one_process_writes() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        let (before, host) = (record(image.beside()), leaks::Host::now());
        let over = text(dir.path());
        let write =
            "echo new >/data; echo made >/made; rm /etc/old; rm -r /opt/d; echo x >/usr/x; echo /etc/*";
        let outcome = shell(*who, &image.root(), &[over], write).run().good();
        assert!(!outcome.out().contains("old"), "{outcome}");
        let read =
            "cat /data /made /usr/x; test -e /etc/old || test -e /opt/d || echo gone; echo more >>/made";
        shell(*who, &image.root(), &[over], read).run().prints("new\nmade\nx\ngone");
        shell(*who, &image.root(), &[over], "cat /made").run().prints("made\nmore");
        // Read-only, and for several: the same, by Apptainer's layout.
        let only_read = format!("{over}:ro");
        let outcome = shell(*who, &image.root(), &[&only_read], "cat /made; echo no >/made").run();
        assert_eq!((outcome.code(), outcome.out().trim()), (Some(2), "made\nmore"), "{outcome}");
        outcome.says(&["Read-only file system"]);
        // Not a word of it without.
        shell(*who, &image.root(), &[], "cat /data /etc/old; test -e /made || echo none")
            .run()
            .prints("imageimagenone");
        assert_eq!(names(dir.path()), ["upper", "work"]);
        // Nothing of the sandbox's own in it: what was missing in the image, such as /etc/hosts, lies elsewhere.
        assert_eq!(names(&dir.path().join("upper")), ["data", "etc", "made", "opt", "usr"]);
        assert_eq!(names(&dir.path().join("upper/etc")), ["old"]);
        assert_same(&before, &record(image.beside()), "writing to an overlay");
        host.is_as_before("overlays");
        // Its owner can remove it with usual means.
        Run::command(*who, ["rm", "-rf"])
            .args([dir.path().join("upper"), dir.path().join("work")])
            .run()
            .good();
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn mount_points_that_are_missing_are_found_in_an_overlay_too() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        for name in ["run", "dev", "sys", "etc", "home"] {
            image.remove(name);
        }
        fs::write(image.beside().join("file"), "host").unwrap();
        let bind = format!("{}:/opt/very/deep", image.beside().display());
        let over = text(dir.path());
        let script = "cat /opt/very/deep/file; test -c /dev/null && wc -l </etc/passwd >/dev/null && echo x >/opt/x; echo y";
        let run = |script| shell(*who, &image.root(), &[over], script).env("HPC_LAUNCH_BINDS", &bind).run();
        run(script).prints("hosty");
        assert_eq!(names(&dir.path().join("upper")), ["opt"]);
        assert_eq!(names(&dir.path().join("upper/opt")), ["x"]);
        // What hides one is overcome.
        shell(*who, &image.root(), &[over], "rm -r /opt; echo file >/opt").run().good();
        let outcome = run(script);
        outcome.refused("bind-target", &["/opt/very/deep", "/opt is not a directory"]);
        shell(*who, &image.root(), &[over], "rm /opt").run().good();
        run(script).prints("hosty");
    }
}

/// Each rank writes, and waits for the others.
const TOGETHER: &str = "r=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; echo $r >/w.$r
    i=0; while test $i -lt 1000; do
        test -s /w.0 && test -s /w.1 && test -s /w.2 && test -s /w.3 && break; sleep 0.01; i=$((i+1)); done
    read a </w.0; read b </w.1; read c </w.2; read d </w.3; echo $a$b$c$d";

fn node_is_shared(run: impl Fn(Who, u32, Vec<String>) -> Run) {
    for who in everyone() {
        let (image, dir, host) = (image_of(*who), own(*who), leaks::Host::now());
        let over = format!("node:{}", dir.path().display());
        let arguments = |line: &str| {
            ["--overlay", &over, text(&image.root()), "sh", "-c", line].map(String::from).to_vec()
        };
        let outcome = run(*who, 4, arguments(TOGETHER)).run().good();
        assert_eq!(lines(&outcome), ["0123"; 4], "{outcome}");
        assert_eq!(names(dir.path()), [node()]);
        assert_eq!(names(&dir.path().join(node()).join("upper")), ["w.0", "w.1", "w.2", "w.3"]);
        // The next job sees it, and ranks that end at once do not stand in each other's way.
        let outcome = run(*who, 8, arguments("read a </w.3; echo $a")).run().good();
        assert_eq!(lines(&outcome), ["3"; 8], "{outcome}");
        host.is_as_before("a job with an overlay");
    }
}

#[test]
fn ranks_of_a_node_share_one_under_mpirun() {
    node_is_shared(Run::mpirun);
}

#[test]
fn ranks_of_a_node_share_one_under_hydra() {
    node_is_shared(Run::hydra);
}

fn ranks_are_apart(mpi: &str, run: impl Fn(Who, u32, Vec<String>) -> Run) {
    let host_image = host::image(&format!("bookworm-{mpi}"));
    for who in everyone() {
        let (image, dir, host) = (image_of(*who), own(*who), leaks::Host::now());
        let over = format!("rank:{}", dir.path().display());
        let arguments = |image: &Path, command: &[&str]| {
            let mut all = ["--overlay", &over, text(image)].map(String::from).to_vec();
            all.extend(command.iter().map(ToString::to_string));
            all
        };
        let write = "r=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; echo $r >/mine; sleep 0.5; cat /mine; readlink /proc/self/ns/user";
        let outcome = run(*who, 4, arguments(&image.root(), &["sh", "-c", write])).run().good();
        let said = lines(&outcome);
        assert_eq!(said[..4], ["0", "1", "2", "3"], "{outcome}");
        assert_eq!(said[4..], vec![said[4].clone(); 4], "another user namespace\n{outcome}");
        let ranks: Vec<String> = (0..4).map(|rank| format!("rank-{rank}")).collect();
        assert_eq!(names(dir.path()), ranks);
        for (rank, name) in ranks.iter().enumerate() {
            let kept = fs::read_to_string(dir.path().join(name).join("upper/mine")).unwrap();
            assert_eq!(kept, format!("{rank}\n"));
        }
        let read = "r=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; read m </mine; test $r = $m && echo same";
        let outcome = run(*who, 4, arguments(&image.root(), &["sh", "-c", read])).run().good();
        assert_eq!(lines(&outcome), ["same"; 4], "{outcome}");
        // They read each other's memory all the same.
        for (program, said) in
            [("cma", "cma: 4 of 4 reads correct"), ("ring", "ring of 4 ranks: sum 6 correct")]
        {
            let program = format!("/opt/examples/{program}");
            let outcome = run(*who, 4, arguments(&host_image, &[&program])).run().good();
            assert!(outcome.out().lines().any(|line| line == said), "{outcome}");
        }
        // Bridged, with one helper for all of them.
        let other = host::image(if mpi == "openmpi" { "bookworm-mpich" } else { "bookworm-openmpi" });
        let outcome = run(*who, 4, arguments(&other, &["/opt/examples/ring"])).run().good();
        assert!(outcome.out().contains("ring of 4 ranks: sum 6 correct"), "{outcome}");
        host.is_as_before("ranks with overlays of their own");
    }
}

#[test]
fn ranks_have_their_own_under_mpirun() {
    ranks_are_apart("openmpi", Run::mpirun);
}

#[test]
fn ranks_have_their_own_under_hydra() {
    ranks_are_apart("mpich", Run::hydra);
}

#[test]
fn ranks_without_a_launcher_have_overlays_too() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        for (whose, made) in [("node", node()), ("rank", "rank-1".to_owned())] {
            let over = format!("{whose}:{}", dir.path().display());
            let options = ["-n", "2", "--oversubscribe", "--overlay", &over];
            let line = [text(&image.root()), "sh", "-c", "echo x >/w.$HPC_LAUNCH_RANK"].map(String::from);
            Run::launch(*who, options).args(line).run().good();
            assert!(dir.path().join(&made).join("upper/w.1").exists(), "{whose}");
        }
    }
}

#[test]
fn images_in_files_take_overlays_too() {
    let file = host::image("bookworm-openmpi.sqfs");
    for who in everyone() {
        let (dir, host) = (own(*who), leaks::Host::now());
        let over = format!("rank:{}", dir.path().display());
        for line in [["sh", "-c", "echo x >/made"], ["sh", "-c", "read x </made; echo $x"]] {
            Run::mpirun(*who, 2, ["--overlay", &over, text(&file)]).args(line).run().good();
        }
        let outcome = Run::mpirun(*who, 4, ["--overlay", &over, text(&file), "/opt/examples/cma"]).run();
        assert!(outcome.good().out().contains("cma: 4 of 4 reads correct"));
        assert_eq!(names(&dir.path().join("rank-1/upper")), ["made"]);
        host.is_as_before("overlays over files");
    }
}

/// A layer of one file in a directory.
fn layer(dir: &Path, name: &str, path: &str, contents: &str) -> PathBuf {
    let layer = dir.join(name);
    fs::create_dir_all(layer.join(path).parent().unwrap()).unwrap();
    fs::write(layer.join(path), contents).unwrap();
    layer
}

/// mke2fs, of a directory.
fn ext(of: &Path, kind: &str) -> PathBuf {
    let file = of.with_extension(format!("hpc-launch.{kind}"));
    let mut command = Command::new("mke2fs");
    let output = command.args(["-q", "-t", kind, "-d"]).args([of, &file]).arg("16M").output().unwrap();
    assert!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr));
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    file
}

/// A fuse2fs that can be handed a mount, for the user: HPC_LAUNCH_TEST_FUSE2FS names it.
fn fuse2fs() -> Option<PathBuf> {
    std::env::var_os("HPC_LAUNCH_TEST_FUSE2FS").map(PathBuf::from)
}

#[test]
fn layers_of_every_kind_lie_over_the_image_and_on_each_other() {
    let image = Throwaway::new();
    image.file("opt", "").remove("opt").file("data", "image");
    let dir = directory("/var/tmp");
    let plain = layer(dir.path(), "plain", "opt/f", "plain");
    let laid_out = layer(dir.path(), "laid-out", "upper/opt/f", "laid out");
    fs::create_dir(laid_out.join("work")).unwrap();
    let packed = dir.path().join("hpc-launch.sqfs");
    squash(&layer(dir.path(), "packed", "opt/f", "packed"), &packed, &[]);
    let squashed = dir.path().join("laid-out.hpc-launch.sqfs");
    squash(&laid_out, &squashed, &[]);
    let mut all =
        vec![(plain, "plain"), (laid_out.clone(), "laid out"), (packed, "packed"), (squashed, "laid out")];
    for kind in ["ext2", "ext3", "ext4"] {
        all.push((ext(&laid_out, kind), "laid out"));
    }
    let before = record(dir.path());
    for who in everyone() {
        let host = leaks::Host::now();
        for (i, (layer, said)) in all.iter().enumerate() {
            let is_ext = layer.extension().is_some_and(|e| e.as_encoded_bytes().starts_with(b"ext"));
            let mut run = shell(*who, &image.root(), &[&format!("{}:ro", layer.display())], "cat /opt/f");
            if is_ext && *who == Who::User {
                let Some(fuse2fs) = fuse2fs() else {
                    eprintln!("not run: as a user an ext file needs HPC_LAUNCH_TEST_FUSE2FS");
                    continue;
                };
                run = run.env("HPC_LAUNCH_FUSE2FS", fuse2fs);
            }
            run.run().prints(said);
            // The last is the topmost.
            let (other, other_said) = &all[(i + 1) % 3];
            if layer != other {
                let both = [layer, other].map(|l| format!("{}:ro", l.display()));
                let run = |over: [&str; 2]| {
                    let run = shell(*who, &image.root(), &over, "cat /opt/f");
                    run.env("HPC_LAUNCH_FUSE2FS", fuse2fs().unwrap_or_default()).run()
                };
                run([&both[0], &both[1]]).prints(other_said);
                run([&both[1], &both[0]]).prints(said);
            }
        }
        // Beneath what is written, in memory or for good.
        let only_read = format!("{}:ro", all[0].0.display());
        let script = "cat /opt/f; echo 1 >/tmp/../new && cat /new";
        let run = shell(*who, &image.root(), &[&only_read], script).env("HPC_LAUNCH_WRITABLE_TMPFS", "1");
        run.run().prints("plain1");
        let kept = own(*who);
        shell(*who, &image.root(), &[&only_read, text(kept.path())], script).run().prints("plain1");
        assert_eq!(names(&kept.path().join("upper")), ["new"]);
        host.is_as_before("layers");
    }
    assert_same(&before, &record(dir.path()), "layers that are only read");
}

#[test]
fn a_layer_takes_away_what_it_was_made_to() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    image.file("data", "image");
    let dir = directory("/var/tmp");
    let layer = layer(dir.path(), "layer", "other", "layer");
    let hole = layer.join("data");
    Run::command(Who::Root, ["mknod", text(&hole), "c", "0", "0"]).run().good();
    let packed = dir.path().join("layer.sqfs");
    squash(&layer, &packed, &[]);
    for who in everyone() {
        for layer in [&layer, &packed] {
            let over = format!("{}:ro", layer.display());
            shell(*who, &image.root(), &[&over], "cat /other; test -e /data || echo gone")
                .run()
                .prints("layergone");
        }
    }
}

#[test]
fn a_file_of_ext3_keeps_what_root_writes() {
    let image = Throwaway::new();
    let dir = directory("/var/tmp");
    let laid_out = layer(dir.path(), "e", "upper/opt/f", "before\n");
    let file = ext(&laid_out, "ext3");
    let file = text(&file);
    if is_root() {
        let host = leaks::Host::now();
        let run = |line| shell(Who::Root, &image.root(), &[file], line).run();
        run("cat /opt/f; echo after >/opt/g").prints("before");
        run("cat /opt/f /opt/g").prints("before\nafter");
        let only_read = format!("{file}:ro");
        shell(Who::Root, &image.root(), &[&only_read], "cat /opt/g").run().prints("after");
        host.is_as_before("a file that takes writes");
        let running = shell(Who::Root, &image.root(), &[file], "echo in; sleep 3");
        let mut running = running.start();
        running.wait_until("it is in", |r| r.out().contains("in"));
        for over in [file, &only_read] {
            let outcome = shell(Who::Root, &image.root(), &[over], "true").run();
            outcome.refused("overlay-unusable", &["was not closed: somebody writes to it now", "e2fsck -p"]);
        }
        running.finish().good();
        for whose in ["node", "rank"] {
            let over = format!("{whose}:{file}");
            let outcome = Run::mpirun(Who::Root, 2, ["--overlay", &over, text(&image.root()), "true"]).run();
            outcome.says(&["[overlay-unusable]", "only one process may write to", "give a directory, or"]);
        }
    }
    let outcome = shell(Who::User, &image.root(), &[file], "true").run();
    outcome.refused(
        "overlay-unusable",
        &[file, "only root's can take", "RENAME_WHITEOUT", &format!("{file}:ro")],
    );
}

#[test]
fn a_fuse2fs_that_is_missing_or_fails_is_named_with_the_cure() {
    let image = Throwaway::new();
    let dir = directory("/var/tmp");
    let file = ext(&layer(dir.path(), "e", "opt/f", "x"), "ext3");
    let over = format!("{}:ro", file.display());
    let run = |program: &str| {
        shell(Who::User, &image.root(), &[&over], "true").env("HPC_LAUNCH_FUSE2FS", program).run()
    };
    run("/nonexistent")
        .refused("fuse2fs-missing", &["fuse2fs = /nonexistent", "No such file", "hpc-launch config"]);
    run("/bin/false")
        .refused("ext-mount", &["/bin/false does not serve", text(&file), "libfuse 3", "e2fsck -fn"]);
    if is_root() {
        let empty = directory("/var/tmp");
        let path = format!("PATH={}", empty.path().display());
        let line = ["/usr/bin/env", &path, text(host::launcher()), "--overlay", &over];
        let run = Run::command(Who::User, line).args([text(&image.root()), "true"]);
        let hide = "for f in /usr/bin/fuse2fs /usr/sbin/fuse2fs /usr/libexec/apptainer/bin/fuse2fs; do \
                    test ! -e $f || mount -t tmpfs none ${f%/*}; done";
        if !["/usr/bin/fuse2fs", "/usr/sbin/fuse2fs"].iter().any(|f| Path::new(f).exists()) {
            run.prelude(hide)
                .run()
                .refused("fuse2fs-missing", &["not on PATH", "package fuse2fs", "debugfs -R"]);
        }
    }
}

/// A program, its loader and a whole MPI that only a layer has.
#[test]
fn programs_and_their_mpi_may_lie_in_a_layer() {
    let image = Throwaway::empty();
    for name in ["dev", "proc", "sys", "tmp", "run", "etc"] {
        image.directory(name);
    }
    for who in everyone() {
        for (mpi, family) in [("openmpi", "Open MPI"), ("mpich", "MPICH")] {
            let over = format!("{}:ro", host::image(&format!("bookworm-{mpi}")).display());
            let root = image.root();
            let arguments = ["--overlay", &over, text(&root), "/opt/examples/ring"];
            let run = match mpi {
                "openmpi" => Run::mpirun(*who, 4, arguments),
                _ => Run::hydra(*who, 4, arguments),
            };
            let outcome = run.run().good();
            assert!(outcome.out().contains("ring of 4 ranks: sum 6 correct"), "{outcome}");
            let outcome = Run::launch(*who, ["check", "--launcher", "hydra"]).args(arguments).run().good();
            assert!(outcome.out().contains(family), "{outcome}");
            let outcome = Run::launch(*who, ["plan", "--json"]).args(arguments).run().good();
            let plan: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
            let steps = plan["steps"].as_array().unwrap();
            let step = steps.iter().find(|s| s["do"] == "overlay").unwrap_or_else(|| panic!("{outcome}"));
            assert_eq!(step["layers"][0]["by"], "directory", "{outcome}");
            let path = Path::new(step["layers"][0]["path"].as_str().unwrap());
            assert!(path.is_absolute() && path.join("opt/examples/ring").exists(), "{outcome}");
            let outcome = Run::launch(*who, ["plan"]).args(arguments).run().good();
            assert!(outcome.out().contains(&format!("over it {}, read-only", path.display())), "{outcome}");
        }
        let outcome = Run::launch(*who, [text(&image.root()), "/opt/examples/ring"]).run();
        outcome.refused("program-not-found", &["/opt/examples/ring"]);
    }
}

#[test]
fn a_library_of_a_layer_is_the_one_that_is_judged() {
    let image = Throwaway::new();
    let dir = directory("/var/tmp");
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let broken = layer(dir.path(), "broken", &format!("lib/{triple}/libc.so.6"), "no library");
    for who in everyone() {
        let over = format!("{}:ro", broken.display());
        let outcome =
            Run::launch(*who, ["check", "--overlay", &over, text(&image.root()), "cat", "/data"]).run();
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert!((outcome.out() + &outcome.err()).contains("[library-damaged]"), "{outcome}");
        Run::launch(*who, ["check", text(&image.root()), "cat", "/data"]).run().good();
    }
}

/// What is decided on an overlay is not kept: its files cannot be told again.
#[test]
fn a_changed_overlay_is_judged_anew() {
    let image = host::image("bookworm-openmpi");
    for who in everyone() {
        let (dir, kept) = (directory("/var/tmp"), own(*who));
        fs::set_permissions(kept.path(), Permissions::from_mode(0o700)).unwrap();
        let program = layer(dir.path(), "l", "opt/p", "").join("opt/p");
        let over = format!("{}:ro", dir.path().join("l").display());
        for (of, said) in [("ring", "ring of 2 ranks"), ("allreduce", "allreduce over 2 ranks")] {
            fs::copy(image.join("opt/examples").join(of), &program).unwrap();
            let run = Run::mpirun(*who, 2, ["--overlay", &over, text(&image), "/opt/p"]);
            let outcome = run.env("HPC_LAUNCH_DECISIONS", kept.path()).run().good();
            assert!(outcome.out().contains(said), "{outcome}");
        }
        assert!(names(kept.path()).is_empty());
        let run = Run::mpirun(*who, 2, [text(&image), "/opt/examples/ring"]);
        run.env("HPC_LAUNCH_DECISIONS", kept.path()).run().good();
        assert_eq!(names(kept.path()).len(), 1);
    }
}

#[test]
fn ranks_with_other_overlays_have_another_sandbox() {
    let image = Throwaway::new();
    let dir = directory("/var/tmp");
    let (a, b) = (layer(dir.path(), "a", "f", "of a\n"), layer(dir.path(), "b", "f", "of b\n"));
    for who in everyone() {
        let line = |l: &Path| {
            let over = format!("{}:ro", l.display());
            [text(host::launcher()), "--overlay", &over, text(&image.root()), "sh", "-c", "sleep 0.3; cat /f"]
                .map(String::from)
        };
        let run = Run::command(*who, ["mpirun.openmpi", "--oversubscribe", "-n", "2"]).args(line(&a));
        let run = run.args([":", "-n", "2"]).args(line(&b));
        let run = run.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        let outcome = run.run().good();
        assert_eq!(lines(&outcome), ["of a", "of a", "of b", "of b"], "{outcome}");
    }
}

#[test]
fn two_jobs_do_not_write_to_one() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        let over = text(dir.path());
        let mut running = shell(*who, &image.root(), &[over], "echo in; sleep 4").start();
        running.wait_until("it is in", |r| r.out().contains("in"));
        let outcome = shell(*who, &image.root(), &[over], "true").run();
        outcome.refused("overlay-busy", &["of another sandbox", text(&dir.path().join("upper")), "rank:DIR"]);
        // A look at the plan harms nobody.
        Run::launch(*who, ["plan", "--overlay", over, text(&image.root()), "true"]).run().good();
        running.finish().good();
        shell(*who, &image.root(), &[over], "echo free").run().prints("free");
    }
}

#[test]
fn hosts_that_share_a_directory_write_apart() {
    if !is_root() {
        eprintln!("not run: hosts need root");
        return;
    }
    let bed = Hosts::new(2);
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        let over = format!("node:{}", dir.path().display());
        let write = "r=${PMI_RANK:-$OMPI_COMM_WORLD_RANK}; echo $r >/w.$r; sleep 1; echo /w.*";
        let root = image.root();
        let line = ["--overlay", &over, text(&root), "sh", "-c", write];
        for by in [By::Mpirun, By::Hydra] {
            let outcome = bed.on(HEAD).launch(by, *who, 2, line).limit(Duration::from_secs(60)).run().good();
            let said = lines(&outcome);
            let (first, last) = (said[0].clone(), said[3].clone());
            assert!(said[1] == first && said[2] == last && first != last, "{outcome}");
            let both = [first, last].map(|l| l.split(' ').count());
            assert_eq!(both, [2, 2], "{outcome}");
        }
        assert_eq!(names(dir.path()), ["h1", "h2"]);
        let written: Vec<usize> = ["h1", "h2"].map(|h| names(&dir.path().join(h).join("upper")).len()).into();
        assert_eq!(written.iter().sum::<usize>(), 4);
        // A plan makes nothing.
        let other = own(*who);
        let over = format!("node:{}", other.path().display());
        Run::launch(*who, ["plan", "--overlay", &over, text(&image.root()), "true"]).run().good();
        assert!(names(other.path()).is_empty());
    }
}

#[test]
fn directories_may_lie_anywhere() {
    for who in everyone() {
        for parent in ["/tmp", "/dev/shm", "/var/tmp"] {
            let (image, dir) = (image_of(*who), own_in(parent, *who));
            for name in ["plain", "a,b=c:d", "line\nfeed", "qu'ote \"d\" \\ back"] {
                let path = dir.path().join(name);
                Run::command(*who, ["mkdir", text(&path)]).run().good();
                shell(*who, &image.root(), &[text(&path)], "echo x >/x").run().good();
                let only_read = format!("{}:ro", path.display());
                shell(*who, &image.root(), &[&only_read], "cat /x").run().prints("x");
            }
            // By a relative path, through a link, and from the configuration.
            Run::command(*who, ["ln", "-s", "plain", text(&dir.path().join("link"))]).run().good();
            for path in ["plain", "link", "./link/"] {
                shell(*who, &image.root(), &[path], "cat /x").cwd(dir.path()).run().prints("x");
            }
            let run = shell(*who, &image.root(), &[], "cat /x").cwd(dir.path());
            run.env("HPC_LAUNCH_OVERLAYS", "plain:ro").run().prints("x");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    for who in everyone() {
        let (image, dir) = (image_of(*who), own(*who));
        let (root, over) = (image.root(), text(dir.path()).to_owned());
        let refused = |overlays: &[&str], code: &str, parts: &[&str]| {
            shell(*who, &root, overlays, "echo ran").run().refused(code, parts);
        };
        refused(
            &["/nonexistent/d"],
            "overlay-unusable",
            &["cannot open /nonexistent/d: No such file", "every node"],
        );
        refused(&[""], "usage", &["there is no path in it", "PATH:ro"]);
        refused(&[&format!("node:{over}:ro")], "usage", &["what is only read belongs to all"]);
        refused(
            &[&over, &format!("rank:{over}")],
            "usage",
            &["takes the writes already", "one layer takes writes"],
        );
        refused(&[&format!("{over}:ro"), &format!("{over}:ro")], "overlay-unusable", &["are the same"]);
        refused(&["/dev/null:ro"], "overlay-unusable", &["/dev/null is a device, FIFO or socket"]);
        let file = image.beside().join("file");
        fs::write(&file, "plain text").unwrap();
        refused(&[&format!("{}:ro", file.display())], "overlay-unusable", &["neither SquashFS nor ext2"]);
        let packed = image.squash();
        refused(&[text(&packed)], "overlay-unusable", &["is SquashFS, which is read-only", "image.sqfs:ro"]);
        // In and around the image.
        fs::create_dir(root.join("sub")).unwrap();
        image.owned_by(*who);
        let around = format!("{}:ro", image.beside().display());
        for bad in [&around, &format!("{}:ro", root.join("sub").display()), text(&root.join("sub"))] {
            refused(&[bad], "overlay-unusable", &["lie one in the other", "choose another directory"]);
        }
        // Two ways to write.
        let run = shell(*who, &root, &[&over], "echo ran").env("HPC_LAUNCH_WRITABLE_TMPFS", "1");
        run.run().refused("usage", &["go to memory already (HPC_LAUNCH_WRITABLE_TMPFS)", "PATH:ro"]);
        // Whose?
        for launch in [Run::mpirun, Run::hydra] {
            let outcome = launch(*who, 3, ["--overlay", &over, text(&root), "true"]).run();
            assert_eq!(outcome.code(), Some(125), "{outcome}");
            let said = outcome.err() + &outcome.out();
            assert_eq!(said.matches("hpc-launch: [usage]").count(), 1, "{outcome}");
            for whose in [format!("node:{over} "), format!("rank:{over} "), format!("{over}:ro")] {
                assert!(said.contains(&whose), "{outcome}");
            }
            launch(*who, 1, ["--overlay", &over, text(&root), "true"]).run().good();
        }
        // Files that were cut.
        let cut = dir.path().join("cut.ext3");
        fs::copy(ext(&layer(image.beside(), "e", "f", ""), "ext3"), &cut).unwrap();
        fs::File::options().write(true).open(&cut).unwrap().set_len(1 << 20).unwrap();
        let what = &["is damaged: it says 16777216 bytes, the file has 1048576", "e2fsck -f"];
        refused(&[&format!("{}:ro", cut.display())], "overlay-unusable", what);
        let bytes = fs::read(&packed).unwrap();
        fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        refused(&[&format!("{}:ro", cut.display())], "image-damaged", &[text(&cut)]);
    }
}

#[test]
fn directories_that_cannot_take_writes_are_named() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    let dir = own(Who::User);
    let over = text(dir.path());
    // Somebody else's.
    let roots = directory("/var/tmp");
    let outcome = shell(Who::User, &image.root(), &[text(roots.path())], "true").run();
    outcome.refused("overlay-unusable", &["this user cannot write to", "Permission denied", "of your own"]);
    // What another user's sandbox left in it.
    fs::create_dir_all(dir.path().join("work/work")).unwrap();
    fs::set_permissions(dir.path().join("work"), Permissions::from_mode(0o777)).unwrap();
    let outcome = shell(Who::User, &image.root(), &[over], "true").run();
    outcome.refused("overlay-unusable", &["work/work was left there by another user", "remove"]);
    fs::remove_dir_all(dir.path().join("work")).unwrap();
    // A link that leads elsewhere.
    std::os::unix::fs::symlink("/etc", dir.path().join("upper")).unwrap();
    let outcome = shell(Who::Root, &image.root(), &[over], "true").run();
    outcome.refused("overlay-unusable", &["upper is no directory"]);
    fs::remove_file(dir.path().join("upper")).unwrap();
    for who in everyone() {
        // A file system that cannot: another overlay.
        let prelude = format!(
            "mkdir -p {0}/l {0}/u {0}/w {0}/m && mount -t overlay none -o lowerdir={0}/l,upperdir={0}/u,workdir={0}/w {0}/m \
             && chmod 777 {0}/m",
            roots.path().display()
        );
        let on_overlay = roots.path().join("m");
        let run = shell(*who, &image.root(), &[text(&on_overlay)], "echo ran").prelude(&prelude);
        let cure = "choose a directory on a disk of the node";
        run.run()
            .refused("overlay-unusable", &["it is on overlay, of which", "Lustre", cure, "--writable-tmpfs"]);
        assert!(names(&roots.path().join("u")).is_empty(), "a refusal leaves something behind");
        // A read-only one.
        let prelude = format!("mount --bind {over} {over} && mount -o remount,bind,ro {over}");
        let run = shell(*who, &image.root(), &[over], "echo ran").prelude(&prelude);
        run.run().refused("overlay-unusable", &["Read-only file system", "PATH:ro"]);
    }
    // A kernel that lets only root.
    let old = ["setarch", "x86_64", "--uname-2.6", text(host::launcher()), "--overlay", over];
    let old = |who| Run::command(who, old).args([text(&image.root()), "sh", "-c", "echo ran"]).run();
    old(Who::User).refused("overlay-unusable", &["this kernel, 2.6.", "Linux 5.11", "--bind"]);
    old(Who::Root).prints("ran");
}

/// A layer is bytes of an image: its links lead nowhere but into the root.
#[test]
fn links_of_a_layer_stay_inside() {
    let image = Throwaway::new();
    let dir = directory("/var/tmp");
    let outside = dir.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    let evil = layer(dir.path(), "evil", "f", "");
    std::os::unix::fs::symlink(&outside, evil.join("opt")).unwrap();
    let hops = "../".repeat(20) + text(&outside).trim_start_matches('/');
    std::os::unix::fs::symlink(&hops, evil.join("up")).unwrap();
    // A root that is no directory of the layer's own, and a mount point that is a link to the host's.
    let linked = dir.path().join("linked");
    fs::create_dir(&linked).unwrap();
    std::os::unix::fs::symlink("/etc", linked.join("upper")).unwrap();
    let packed = dir.path().join("linked.sqfs");
    squash(&linked, &packed, &[]);
    std::os::unix::fs::symlink("/tmp", evil.join("mnt")).unwrap();
    for who in everyone() {
        let over = format!("{}:ro", evil.display());
        let script = "test -e /opt || test -e /up || echo nothing";
        shell(*who, &image.root(), &[&over], script).run().prints("nothing");
        let bind = format!("{}:/mnt/x", dir.path().display());
        let run = shell(*who, &image.root(), &[&over], "true").env("HPC_LAUNCH_BINDS", bind);
        run.run().refused("bind-target", &["/tmp, which is the host's"]);
        for layer in [&linked, &packed] {
            let over = format!("{}:ro", layer.display());
            let script = "readlink /upper; test -e /etc/passwd && echo root";
            shell(*who, &image.root(), &[&over], script).run().prints("/etc\nroot");
        }
    }
}

/// Ranks that join look at nothing that is laid over the image.
#[test]
fn joining_ranks_look_at_no_overlay() {
    let (image, who) = (Throwaway::new(), everyone()[0]);
    let (dir, trace) = (own(who), own(who));
    image.owned_by(who);
    let only_read = layer(dir.path(), "layer", "opt/f", "");
    let packed = dir.path().join("layer.sqfs");
    squash(&only_read, &packed, &[]);
    let root = image.root();
    for overlays in [
        vec![format!("{}:ro", only_read.display()), format!("{}:ro", packed.display())],
        vec![format!("{}:ro", only_read.display()), format!("node:{}", dir.path().join("node").display())],
    ] {
        let traces = trace.path().join(overlays[1].rsplit('/').next().unwrap());
        for made in [&traces, &dir.path().join("node")] {
            Run::command(who, ["mkdir", "-p", text(made)]).run().good();
        }
        let prefix = traces.join("t").display().to_string();
        let strace = ["strace", "-ff", "-o", &prefix, "-e", "trace=%file,%desc,execve,setns"];
        let run = Run::command(who, strace).args([host::launcher()]).args(["-n", "8", "--oversubscribe"]);
        let run = overlays.iter().fold(run, |run, overlay| run.args(["--overlay", overlay]));
        run.args([text(&root), "sleep", "2"]).limit(Duration::from_secs(120)).run().good();
        let mut joined = 0;
        for name in names(&traces) {
            let trace = fs::read_to_string(traces.join(name)).unwrap();
            let lines: Vec<&str> = trace.lines().collect();
            let is_start = |l: &&str| l.starts_with("execve(") && l.contains("sleep\"") && l.ends_with("= 0");
            let entered = lines.iter().position(|l| l.starts_with("setns("));
            let (Some(entered), Some(start)) = (entered, lines.iter().position(is_start)) else { continue };
            joined += 1;
            let at_it = |l: &&&str| l.contains(text(dir.path())) && !l.starts_with("execve(");
            let outside: Vec<_> = lines[..entered].iter().filter(at_it).collect();
            assert!(outside.is_empty(), "{overlays:?}: {outside:#?}");
            let is_open = |l: &&&str| {
                l.starts_with("open")
                    && !l.contains(" = -1 ")
                    && !l.contains("\"/run/hpc-launch")
                    && !l.contains("\"/proc/")
            };
            let inside: Vec<_> = lines[entered..start].iter().filter(is_open).collect();
            assert!(inside.is_empty(), "{overlays:?}: {inside:#?}");
        }
        assert_eq!(joined, 7, "{overlays:?}");
    }
}

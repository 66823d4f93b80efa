//! Layers of `--overlay`: of every kind, on each other, judged as what the program will see; and what is refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hpc_launch_tests::canary::{assert_same, record};
use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::image::{Throwaway, directory, squash};
use hpc_launch_tests::leaks;
use hpc_launch_tests::overlay::{ext, fuse2fs, image_of, layer, names, own, shell, text};
use hpc_launch_tests::run::Run;

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
    // What is mounted below a layer cannot be left out for a user.
    let prelude = format!("mkdir -p {over}/below && mount -t tmpfs none {over}/below");
    let only_read = format!("{over}:ro");
    let run = |who| shell(who, &image.root(), &[&only_read], "echo ran").prelude(&prelude).run();
    run(Who::User).refused("overlay-unusable", &["something is mounted below it", "one by one"]);
    run(Who::Root).prints("ran");
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

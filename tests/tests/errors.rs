//! Bad input: each kind is refused with its code, path, reason, cure and exit status.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::image::{Throwaway, directory, foreign_elf};
use hpc_launch_tests::run::{Outcome, Run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everyone is refused alike.
fn refused(arguments: &[&str], code: &str, parts: &[&str]) {
    for who in everyone() {
        Run::launch(*who, arguments).run().refused(code, parts);
    }
}

#[test]
fn no_such_image() {
    refused(
        &["/nonexistent/image", "true"],
        "image-missing",
        &["/nonexistent/image", "No such file", "check the path"],
    );
    refused(&["image.sqfs", "true"], "image-missing", &["a relative one is taken from /"]);
    refused(&["/etc/passwd/x", "true"], "image-missing", &["Not a directory"]);
}

#[test]
fn what_is_no_image_is_named_by_its_content() {
    let dir = directory("/var/tmp");
    let at = |offset: usize, magic: &[u8]| {
        let mut bytes = vec![0u8; 2048];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        bytes
    };
    let table: &[(Vec<u8>, &str, &str)] = &[
        (at(1080, b"\x53\xef"), "an ext2/3/4 image", "mount it"),
        (at(0, b"\x7fELF\x02"), "an ELF program", "the image comes first"),
        (at(0, b"#!/bin/sh"), "a script", "the image comes first"),
        (at(0, b"shsq"), "a SquashFS 3", "mksquashfs 4"),
        (at(0, b"QFI\xfb"), "begins with \"QFI\\xfb", "give a directory with a root"),
        (b"tiny".to_vec(), "begins with \"tiny\"", "a tarball"),
        (Vec::new(), "it is empty", "a SquashFS, EROFS or SIF file"),
    ];
    let file = dir.path().join("file.sqfs");
    for (bytes, what, cure) in table {
        fs::write(&file, bytes).unwrap();
        refused(&[text(&file), "true"], "image-unknown", &[text(&file), what, cure]);
    }
    // Archives are images, if they are whole.
    for (bytes, why) in [
        (at(32, b"SIF_MAGIC\0"), "is SIF of version"),
        (at(1024, b"\xe2\xe1\xf5\xe0"), "its blocks have 2^0 bytes"),
        (at(0, b"\x1f\x8b\x08"), "damaged"),
        (at(0, b"\x28\xb5\x2f\xfd"), "damaged"),
        (at(257, b"ustar"), "a header whose checksum is wrong"),
    ] {
        fs::write(&file, bytes).unwrap();
        let code = if why.contains("SIF") { "image-unsupported" } else { "image-damaged" };
        refused(&[text(&file), "true"], code, &[text(&file), why]);
    }
    for device in ["/dev/null", "/dev/zero"] {
        refused(&[device, "true"], "image-unknown", &[device, "is a device, FIFO or socket"]);
    }
    let image = Throwaway::empty();
    image.fifo("fifo");
    refused(&[text(&image.at("fifo")), "true"], "image-unknown", &["is a device, FIFO or socket"]);
}

#[test]
fn an_image_that_may_not_be_read() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    let file = image.squash();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let refused = |path: &Path| Run::launch(Who::User, [text(path), "true"]).run();
    refused(&file).refused("image-unreadable", &[text(&file), "Permission denied", "ask its owner"]);
    image.mode("", 0o700);
    refused(&image.root()).refused("image-unreadable", &[text(&image.root()), "Permission denied"]);
    image.mode("", 0o755);
    fs::set_permissions(image.beside(), Permissions::from_mode(0o700)).unwrap();
    refused(&image.root()).refused("image-unreadable", &["Permission denied", "every directory above"]);
}

#[test]
fn a_program_for_another_machine() {
    let image = Throwaway::new();
    image.program("bin/foreign", foreign_elf(&image.at("bin/true")));
    image.program("bin/script", "#!/bin/foreign\n");
    let parts = ["/bin/foreign is a program for", "this machine is", "architecture"];
    refused(&[text(&image.root()), "foreign"], "wrong-architecture", &parts);
    refused(&[text(&image.root()), "/bin/script"], "wrong-architecture", &parts);
}

#[test]
fn a_program_that_is_not_there() {
    let image = Throwaway::new();
    image.link("/nowhere", "bin/dangling").file("bin/file", "");
    let root = image.root();
    let root = text(&root);
    refused(
        &[root, "nope"],
        "program-not-found",
        &["nope is in no directory", "PATH (/usr/local/sbin:", "--env PATH="],
    );
    refused(
        &[root, "/opt/nope"],
        "program-not-found",
        &["/opt/nope does not exist inside", "check the path"],
    );
    refused(&[root, "./nope"], "program-not-found", &["/./nope does not exist inside"]);
    refused(&[root, "/bin/dangling"], "program-not-found", &["/bin/dangling"]);
    refused(&[root, "/bin/true/x"], "program-not-found", &["/bin/true"]);
    refused(&[root, ""], "program-not-found", &["the command is empty"]);
    // The host's programs are not the container's.
    let outside = format!("{}/nope", image.beside().display());
    refused(&[root, &outside], "program-not-found", &[&outside]);
}

#[test]
fn a_program_that_cannot_be_executed() {
    let image = Throwaway::new();
    image
        .file("bin/plain", "#!/bin/sh\n")
        .program("bin/text", "echo text\n")
        .program("bin/none", "")
        .fifo("bin/fifo");
    let root = image.root();
    let root = text(&root);
    let code = "program-not-executable";
    refused(
        &[root, "/bin/plain"],
        code,
        &["/bin/plain", "its mode is 644, without execute permission", "chmod +x"],
    );
    refused(&[root, "plain"], code, &["/bin/plain", "its mode is 644"]);
    refused(&[root, "/bin"], code, &["/bin", "it is a directory"]);
    refused(&[root, "/"], code, &["it is a directory"]);
    refused(&[root, "/bin/fifo"], code, &["it is a device, FIFO or socket"]);
    refused(
        &[root, "text"],
        code,
        &["/bin/text is neither an ELF program nor a script", "begins with \"echo\"", "#!/bin/sh"],
    );
    refused(&[root, "/bin/none"], code, &["/bin/none"]);
}

#[test]
fn an_interpreter_that_is_not_there() {
    let image = Throwaway::new();
    image.program("bin/script", "#!/opt/bin/python3 -u\n").program("bin/again", "#!/bin/again\n");
    image.directory("opt/bin");
    let root = image.root();
    let code = "interpreter-missing";
    let parts =
        ["/bin/script needs /opt/bin/python3, which does not exist inside", "install it in the image"];
    refused(&[text(&root), "script"], code, &parts);
    refused(&[text(&root), "/bin/again"], code, &["script to script"]);
    image.remove("lib64").directory("lib64");
    refused(&[text(&root), "/bin/true"], code, &["/bin/true needs /lib", "ld-linux", "same loader"]);
}

/// In a user namespace of the test's own, whose limit it may set: the host's is not touched.
#[test]
fn user_namespaces_forbidden() {
    let image = Throwaway::new();
    let root = image.root();
    for who in everyone() {
        let script =
            "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -sys_admin \"$@\"";
        let forbidden =
            ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", text(host::launcher())];
        let outcome = Run::command(*who, forbidden).args([text(&root), "true"]).run();
        outcome.refused(
            "user-namespace",
            &[
                "unshare(CLONE_NEWUSER)",
                "/proc/sys/user/max_user_namespaces is 0",
                "ask the administrator for: sysctl user.max_user_namespaces=15000",
            ],
        );
    }
}

#[test]
fn binds_that_cannot_be() {
    let image = Throwaway::new();
    let root = image.root();
    let root = text(&root);
    let refused =
        |bind: &str, code: &str, parts: &[&str]| refused(&["--bind", bind, root, "true"], code, parts);
    refused(
        "/nonexistent/x",
        "bind-source",
        &["cannot bind /nonexistent/x (--bind)", "No such file", "every node"],
    );
    refused("/etc/passwd/x:/x", "bind-source", &["Not a directory"]);
    refused("/etc:/", "bind-target", &["leads to the root itself", "--bind SRC:DST"]);
    refused("/etc:/..", "bind-target", &["leads to the root itself"]);
    refused("/etc:/proc/nope/x", "bind-target", &["would have to be made in /proc, which is the host's"]);
    refused("/etc:/tmp/hpcl-nope", "bind-target", &["would have to be made in /tmp, which is the host's"]);
    refused("/etc/hosts:/usr", "bind-target", &["/usr is a directory inside"]);
    refused("/etc:/bin/true", "bind-target", &["/bin/true is a regular file inside"]);
    refused("/etc:relative", "usage", &["DST is not absolute", "SRC:DST:ro"]);
    refused("/etc:/x:rx", "usage", &["\"rx\" is neither ro nor rw"]);
    refused("/etc:/x:ro:y", "usage", &["more than three parts"]);
    refused(":/x", "usage", &["SRC is empty"]);
    refused("", "usage", &["SRC is empty"]);
    assert!(!Path::new("/tmp/hpcl-nope").exists());
    for who in everyone() {
        let outcome = Run::launch(*who, [root, "true"]).env("HPC_LAUNCH_BINDS", "/nope:/x").run();
        outcome.refused("bind-source", &["/nope (HPC_LAUNCH_BINDS)"]);
    }
}

/// Runs `true` with a user's configuration file of these contents.
fn with_config(who: Who, contents: &str, arguments: &[&str]) -> Outcome {
    let home = directory("/var/tmp");
    let dir = home.path().join(".config/hpc-launch");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.toml"), contents).unwrap();
    Run::launch(who, arguments).env("HOME", home.path()).run()
}

#[test]
fn a_configuration_with_a_mistake_is_named_with_line_and_column() {
    for who in everyone() {
        for (contents, parts) in [
            ("home = true\nbinds = 7\n", &["config.toml: line 2, column 9: "][..]),
            ("\n\n  hom = true\n", &["line 3, column 3: ", "hom", "keys are: binds, "]),
            ("home = ", &["line 1, column 8: "]),
            ("mpi = 'hosts'\n", &["line 1, column 7: ", "hosts"]),
            ("home = true\nhome = true\n", &["line 2, column 1: ", "home"]),
            ("locked = ['mpi']\n", &["only the site's file may lock keys"]),
        ] {
            for arguments in [&["/", "true"][..], &["config"], &["plan", "/", "true"]] {
                with_config(*who, contents, arguments).refused("config-invalid", parts);
            }
        }
        let outcome = Run::launch(*who, ["/", "true"]).env("HPC_LAUNCH_HOME", "maybe").run();
        outcome.refused("config-invalid", &["HPC_LAUNCH_HOME: \"maybe\" is neither true (1) nor false (0)"]);
        let outcome = Run::launch(*who, ["/", "true"]).env("HPC_LAUNCH_MPI", "hosts").run();
        outcome.refused(
            "config-invalid",
            &["HPC_LAUNCH_MPI: \"hosts\" is none of auto, host, image and bridge"],
        );
    }
}

#[test]
fn a_configuration_that_cannot_be_read() {
    let home = directory("/var/tmp");
    let file = home.path().join("hpc-launch/config.toml");
    fs::create_dir_all(&file).unwrap();
    let unreadable = |who| {
        let outcome = Run::launch(who, ["/", "true"]).env("XDG_CONFIG_HOME", home.path()).run();
        outcome.refused("config-unreadable", &[text(&file), "make the file readable, or remove it"])
    };
    for who in everyone() {
        unreadable(*who).says(&["Is a directory"]);
    }
    fs::remove_dir(&file).unwrap();
    fs::write(&file, [0xff, 0xfe]).unwrap();
    for who in everyone() {
        unreadable(*who).says(&["UTF-8"]);
    }
    if is_root() {
        fs::set_permissions(&file, Permissions::from_mode(0o000)).unwrap();
        unreadable(Who::User).says(&["Permission denied"]);
    }
}

/// The site's file, in mounts of the test's own.
fn site(file: &str) -> (tempfile::TempDir, String) {
    let dir = directory("/var/tmp");
    fs::create_dir(dir.path().join("hpc-launch")).unwrap();
    fs::write(dir.path().join("hpc-launch/config.toml"), file).unwrap();
    let prelude = format!("mount -t overlay -o lowerdir={}:/etc none /etc", dir.path().display());
    (dir, prelude)
}

#[test]
fn what_the_site_locks_stays_as_it_is() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    let root = image.root();
    let root = text(&root);
    let (_dir, prelude) = site(
        "mpi = 'auto'\nhome = false\nbinds = ['/usr/share:/mnt/site']\nlocked = ['mpi', 'home', 'binds', 'env']\n",
    );
    for who in everyone() {
        let run = |arguments: &[&str]| Run::launch(*who, arguments).prelude(&prelude);
        let cure = "leave mpi as the site sets it (`hpc-launch config` shows it), or ask its administrator";
        let parts = ["--mpi sets mpi, which /etc/hpc-launch/config.toml locks", cure];
        run(&["--mpi=image", root, "true"]).run().refused("config-locked", &parts);
        run(&["--bind", "/etc", root, "true"]).run().refused("config-locked", &["--bind sets binds"]);
        run(&["--env", "A=1", root, "true"]).run().refused("config-locked", &["--env sets env"]);
        let outcome = run(&[root, "true"]).env("HPC_LAUNCH_HOME", "1").run();
        outcome.refused("config-locked", &["HPC_LAUNCH_HOME sets home"]);
        // What changes nothing is no offence, and the site's own binds are there.
        run(&["--mpi=auto", "--no-home", root, "sh", "-c", "test -d /mnt/site/doc && echo there"])
            .run()
            .prints("there");
        let outcome = run(&["config"]).run().good();
        let out = outcome.out();
        for line in ["/usr/share:/mnt/site", "locked "] {
            let found = out.lines().find(|l| l.contains(line)).unwrap_or_else(|| panic!("{outcome}"));
            assert!(found.ends_with("# /etc/hpc-launch/config.toml"), "{found}");
        }
    }
    let (_dir, prelude) = site("locked = ['hoem']\n");
    let outcome = Run::launch(Who::User, [root, "true"]).prelude(prelude).run();
    outcome.refused("config-invalid", &["/etc/hpc-launch/config.toml: locked: there is no key \"hoem\""]);
}

#[test]
fn bad_command_lines() {
    for who in everyone() {
        for (arguments, part) in [
            (&[][..], "Usage: "),
            (&["/"], "is the host's own root"),
            (&["", "true"], "<IMAGE>"),
            (&["--nope", "/", "true"], "--nope"),
            (&["--bind"], "--bind"),
            (&["--mpi=hosts", "/", "true"], "[possible values: auto, host, image, bridge]"),
            (&["plan"], "<IMAGE>"),
            (&["plan", "/"], "is the host's own root"),
            (&["config", "extra"], "extra"),
            (&["--workdir"], "--workdir"),
            (&["--tag-output", "/", "true"], "--np <N>"),
            (&["-n", "x", "/", "true"], "invalid value 'x' for '--np <N>'"),
            (&["--no-home=1", "/", "true"], "--no-home"),
        ] {
            let outcome = Run::launch(*who, arguments).run();
            assert_eq!(outcome.code(), Some(125), "{outcome}");
            assert!(outcome.stdout.is_empty(), "{outcome}");
            outcome.says(&[part]);
        }
        Run::launch(*who, ["--env", "A", "/", "true"]).run().refused("usage", &["there is no NAME=VALUE"]);
        Run::launch(*who, ["-n", "0", "/", "true"])
            .run()
            .refused("usage", &["-n 0: a job has at least one rank"]);
        Run::launch(*who, ["--env", "=A", "/", "true"]).run().refused("usage", &["there is no NAME=VALUE"]);
        let help = Run::launch(*who, ["--help"]).run().good();
        for part in ["mpirun -n 64 hpc-launch IMAGE ./solver", "--bind", "125", "126", "127", "./NAME"] {
            assert!(help.out().contains(part), "{part}\n{help}");
        }
        let version = Run::launch(*who, ["--version"]).run().good();
        assert!(version.out().starts_with("hpc-launch "), "{version}");
    }
}

#[test]
fn a_working_directory_that_is_not_there() {
    let image = Throwaway::new();
    let root = image.root();
    for dir in ["/nope", "relative", "/bin/true"] {
        let parts = [dir, "(--workdir)", "is no directory inside the container", "absolute path"];
        refused(&["--workdir", dir, text(&root), "true"], "usage", &parts);
    }
}

/// What all ranks of a node say, one of them says.
#[test]
fn an_error_of_all_ranks_is_said_once() {
    let image = Throwaway::new();
    for who in everyone() {
        for (arguments, code, status) in [
            (["/nonexistent".to_owned(), "true".to_owned()], "[image-missing]", 125),
            ([image.root().display().to_string(), "nope".to_owned()], "[program-not-found]", 127),
        ] {
            for run in [Run::mpirun(*who, 8, &arguments), Run::hydra(*who, 8, &arguments)] {
                let outcome = run.run();
                assert_eq!(outcome.code(), Some(status), "{outcome}");
                assert_eq!((outcome.err() + &outcome.out()).matches(code).count(), 1, "{outcome}");
            }
        }
    }
}

#[test]
fn long_arguments_pass() {
    let image = Throwaway::new();
    let long = "x".repeat(120_000);
    for who in everyone() {
        let outcome = Run::launch(*who, [text(&image.root()), "sh", "-c", "echo ${#0}", &long]).run();
        outcome.prints("120000");
    }
}

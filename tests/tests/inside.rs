//! What the program finds: files, environment, working directory, and its own process as it was before.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hpc_launch_tests::canary::{assert_same, mounts, record};
use hpc_launch_tests::host::{Who, everyone, is_root, launcher};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::run::{Outcome, Run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A line of shell in an image.
fn shell(who: Who, image: &Throwaway, options: &[&str], script: &str) -> Run {
    Run::launch(who, options).args([text(&image.root()), "sh", "-c", script])
}

/// The environment that `env` prints.
fn variables(outcome: &Outcome) -> BTreeMap<String, String> {
    let pair = |line: &str| line.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()));
    outcome.out().lines().filter_map(pair).collect()
}

#[test]
fn exit_statuses_and_signals_are_the_programs_own() {
    let image = Throwaway::new();
    for who in everyone() {
        for status in 0..=255 {
            let outcome = shell(*who, &image, &[], &format!("exit {status}")).run();
            assert_eq!(outcome.code(), Some(status), "{outcome}");
            assert!(outcome.stderr.is_empty(), "{outcome}");
        }
        // None that whoever runs the tests may have set to be ignored (nohup, a shell in the background).
        for signal in [6, 8, 9, 10, 11, 15] {
            let outcome = shell(*who, &image, &[], &format!("ulimit -c 0; kill -{signal} $$")).run();
            assert_eq!((outcome.code(), outcome.signal()), (None, Some(signal)), "{outcome}");
        }
    }
}

#[test]
fn the_program_is_the_process_that_was_started() {
    let image = Throwaway::new();
    for who in everyone() {
        let outcome = shell(*who, &image, &[], "echo $$").run().good();
        assert_eq!(outcome.out().trim(), outcome.pid.to_string(), "{outcome}");
        // … and has no child that it did not make.
        let outcome =
            shell(*who, &image, &[], "read children </proc/$$/task/$$/children; echo \"[$children]\"").run();
        outcome.prints("[]");
    }
    let file = image.squash();
    for who in everyone() {
        let script = "read c </proc/$$/task/$$/children; echo $$ \"[$c]\"";
        let outcome = Run::launch(*who, [text(&file), "sh", "-c", script]).run().good();
        assert_eq!(outcome.out().trim(), format!("{} []", outcome.pid), "{outcome}");
    }
}

#[test]
fn standard_input_passes_whole() {
    let image = Throwaway::new();
    let input: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    for who in everyone() {
        let outcome = Run::launch(*who, [text(&image.root()), "cat"]).stdin(input.clone()).run().good();
        assert!(outcome.stdout == input, "{} bytes of {}", outcome.stdout.len(), input.len());
    }
}

#[test]
fn descriptors_are_inherited_and_none_is_added() {
    let image = Throwaway::new();
    let file = image.squash();
    for who in everyone() {
        for root in [image.root(), file.clone()] {
            let script = "exec 9<<X 33>/dev/null\nthrough nine\nX\nexec \"$@\"";
            let inside = "cat <&9; for f in /proc/$$/fd/*; do echo ${f##*/}; done";
            let wrapped = Run::command(*who, ["bash", "-c", script, "sh"]);
            let bare = wrapped.clone().args(["sh", "-c", inside]).run().good();
            let run = wrapped.args([text(launcher()), text(&root), "sh", "-c", inside]);
            let outcome = run.run().good();
            // The tests' own caller may have left us some more.
            assert_eq!(outcome.out(), bare.out(), "{outcome}");
            assert!(
                outcome.out().starts_with("through nine\n") && outcome.out().contains("\n33\n"),
                "{outcome}"
            );
        }
    }
}

/// Signals, limits, mask, priority, CPUs, groups: as on the bare host, but for no_new_privs.
#[test]
fn the_process_keeps_what_it_was_given() {
    let image = Throwaway::new();
    let look = "umask; ulimit -n; ulimit -s; ulimit -c; ulimit -l; \
                while read k v; do case $k in Sig*|Shd*|Groups:|Uid:|Gid:|Cpus_allowed:|Mems_allowed:|NoNewPrivs:|NSpid:|TracerPid:) \
                echo \"$k $v\";; esac; done </proc/self/status; \
                for n in net pid ipc uts cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/oom_score_adj /proc/self/cgroup";
    let around = "umask 027; ulimit -n 77; ulimit -c 0; trap '' HUP USR2; exec nice -n 3 taskset 1 \"$@\"";
    for who in everyone() {
        let wrap = ["sh", "-c", around, "sh"];
        let bare = Run::command(*who, wrap).args(["sh", "-c", look]).run().good();
        let run = Run::command(*who, wrap).args([text(launcher()), text(&image.root()), "sh", "-c", look]);
        let inside = run.run().good();
        let own = |o: &Outcome| {
            o.out().lines().filter(|l| !l.starts_with("NSpid:")).map(String::from).collect::<Vec<_>>()
        };
        let expected: Vec<String> = own(&bare)
            .into_iter()
            .map(|l| if l == "NoNewPrivs: 0" { "NoNewPrivs: 1".into() } else { l })
            .collect();
        assert_eq!(own(&inside), expected, "bare: {bare}\ninside: {inside}");
    }
}

#[test]
fn the_working_directory_stays() {
    let image = Throwaway::new();
    let dir = directory("/var/tmp");
    let odd = dir.path().join("with blank, comma:colon\\");
    fs::create_dir(&odd).unwrap();
    for who in everyone() {
        for cwd in [dir.path(), odd.as_path(), Path::new("/"), Path::new("/tmp"), Path::new("/proc")] {
            let outcome = shell(*who, &image, &[], "readlink /proc/$$/cwd; pwd").cwd(cwd).run();
            assert!(outcome.stderr.is_empty(), "{outcome}");
            outcome.prints(&format!("{0}\n{0}", cwd.display()));
        }
        // What the image has under that name is the image's.
        Run::launch(*who, [text(&image.root()), "sh", "-c", "pwd"]).cwd("/usr/bin").run().prints("/usr/bin");
        // What does not exist inside is said, once.
        let outcome = shell(*who, &image, &[], "pwd")
            .cwd("/usr/share")
            .run()
            .says(&["hpc-launch: /usr/share does not exist inside: starting in /"]);
        outcome.prints("/");
        let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"";
        let place = directory("/tmp");
        fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let run = Run::command(*who, ["sh", "-c", script, "sh", text(launcher())]).cwd(place.path());
        let outcome = run.args([text(&image.root()), "sh", "-c", "pwd"]).run();
        outcome.says(&["the working directory was removed: starting in /"]).prints("/");
        shell(*who, &image, &["--workdir", "/usr/bin"], "pwd; echo $PWD")
            .env("PWD", "/")
            .run()
            .prints("/usr/bin\n/usr/bin");
        shell(*who, &image, &["--workdir", "/bin/../tmp"], "readlink /proc/$$/cwd").run().prints("/tmp");
    }
}

#[test]
fn binds_show_the_hosts_files() {
    let image = Throwaway::new();
    image.file("etc/release", "image");
    let host = directory("/var/tmp");
    fs::write(host.path().join("file"), "host").unwrap();
    let path = text(host.path());
    let before = record(image.beside());
    let mounts_before = mounts();
    for who in everyone() {
        let show = |bind: &str, script: &str| shell(*who, &image, &["--bind", bind], script).run();
        show(path, &format!("cat {path}/file")).prints("host");
        show(&format!("{path}:/mnt/a/b"), "cat /mnt/a/b/file").prints("host");
        show(&format!("{path}/file:/etc/release"), "cat /etc/release").prints("host");
        show(&format!("{path}/file:/etc/other:ro"), "cat /etc/other /etc/release").prints("hostimage");
        show(&format!("{path}:/usr"), "cat /usr/file").prints("host");
        show(&format!("{path}:/bin/../opt/./x"), "cat /opt/x/file").prints("host");
        let outcome = show(&format!("{path}:/mnt:ro"), "echo new >/mnt/file");
        assert_eq!(outcome.code(), Some(2), "{outcome}");
        outcome.says(&["Read-only file system"]);
        // Read-only with all that is mounted below.
        let outcome = show("/:/mnt:ro", "echo >/mnt/dev/shm/hpcl-nope");
        assert_eq!(outcome.code(), Some(2), "{outcome}");
        // Twice, the later over the earlier; and from the environment.
        let options = ["--bind", &format!("{path}:/mnt/x"), "--bind", &format!("{path}:/mnt/y")];
        shell(*who, &image, &options, "cat /mnt/x/file /mnt/y/file").run().prints("hosthost");
        let run = shell(*who, &image, &[], "cat /mnt/x/file /mnt/y")
            .env("HPC_LAUNCH_BINDS", format!("{path}:/mnt/x,{path}/file:/mnt/y"));
        run.run().prints("hosthost");
    }
    // Writable where the host's permissions say so.
    fs::set_permissions(host.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for who in everyone() {
        let bind = format!("{path}:/mnt");
        shell(*who, &image, &["--bind", &bind], "echo new >/mnt/made").run().prints("");
        assert_eq!(fs::read_to_string(host.path().join("made")).unwrap(), "new\n");
        fs::remove_file(host.path().join("made")).unwrap();
    }
    assert_same(&before, &record(image.beside()), "binds");
    assert_eq!(mounts_before, mounts());
}

#[test]
fn home_is_shown_unless_it_is_not_wanted() {
    let image = Throwaway::new();
    let home = directory("/var/tmp");
    fs::write(home.path().join("mine"), "mine").unwrap();
    for who in everyone() {
        let run = |options: &[&str]| {
            shell(*who, &image, options, "cat $HOME/mine || echo none").env("HOME", home.path()).run()
        };
        run(&[]).prints("mine");
        run(&["--no-home"]).prints("none");
        // The working directory is wanted all the same.
        let run = shell(*who, &image, &["--no-home"], "cat mine").env("HOME", home.path());
        run.cwd(home.path()).run().prints("mine");
    }
}

#[test]
fn writes_to_a_writable_root_vanish() {
    let image = Throwaway::new();
    image.file("data", "image").directory("opt/d").file("opt/d/f", "x");
    let script = "echo new >/data && cat /data && echo more >/opt/d/g && cat /opt/d/g && touch /bin/t && test -e /bin/t && echo made";
    for who in everyone() {
        image.owned_by(*who);
        let before = record(image.beside());
        shell(*who, &image, &["--writable-tmpfs"], script).run().prints("new\nmore\nmade");
        shell(*who, &image, &["--writable-tmpfs"], "cat /data; test -e /opt/d/g || echo gone")
            .run()
            .prints("imagegone");
        let outcome = shell(*who, &image, &[], "touch /opt/d/f").run();
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        outcome.says(&["Read-only file system"]);
        for (path, code) in [("/run/new", Some(0)), ("/etc/new", None), ("/dev/shm/hpcl-test-new", Some(0))] {
            let outcome = shell(*who, &image, &[], &format!("echo x >{path} && cat {path}")).run();
            let writable = outcome.code() == Some(0);
            // /run belongs to root in the sandbox: users may not write to it.
            if *who == Who::Root || !path.starts_with("/run") {
                assert_eq!(writable, code == Some(0), "{path}: {outcome}");
            }
            let _ = fs::remove_file("/dev/shm/hpcl-test-new");
        }
        assert_same(&before, &record(image.beside()), "writes inside");
    }
    assert!(!Path::new("/run/new").exists() && !Path::new("/etc/new").exists());
}

/// Mount points are missing everywhere, nothing of the image may change.
#[test]
fn an_image_without_any_mount_point_works_untouched() {
    let image = Throwaway::new();
    for name in ["dev", "proc", "sys", "tmp", "run", "etc", "home", "var"] {
        image.remove(name);
    }
    let before = record(image.beside());
    for who in everyone() {
        let script = "test -c /dev/null && test -d /proc/self && test -d /sys/kernel && test -d /tmp && wc -l </etc/passwd >/dev/null && test -e /etc/hosts && echo all";
        shell(*who, &image, &[], script).run().prints("all");
    }
    assert_same(&before, &record(image.beside()), "missing mount points");
}

/// Mount points are reached by descriptor: an image's owner may have closed its directories to others.
#[test]
fn directories_that_the_user_may_not_enter_are_mounted_on() {
    let image = Throwaway::new();
    for name in ["run", "tmp", "dev"] {
        image.mode(name, 0o700);
    }
    for who in everyone() {
        let script = "test -d /run/hpc-launch && test -w /tmp && test -c /dev/null && echo all there";
        let outcome = shell(*who, &image, &["--bind", "/etc:/mnt/etc"], script).run();
        outcome.prints("all there");
    }
}

/// A program of several names looks at the one by which it was started; a script sees it as $0.
#[test]
fn programs_are_executed_by_the_name_that_was_found() {
    let image = Throwaway::new();
    image
        .directory("opt")
        .program("opt/real.sh", "#!/bin/sh\nread comm </proc/self/comm; echo \"$0 $comm\"\n");
    image.link("/opt/real.sh", "bin/alias");
    for who in everyone() {
        let root = image.root();
        for (command, said) in [("alias", "/bin/alias alias"), ("/bin/alias", "/bin/alias alias")] {
            let outcome = Run::launch(*who, ["--env", "PATH=/bin", text(&root), command]).run();
            outcome.prints(said);
        }
        let relative = Run::launch(*who, ["--workdir", "/opt", text(&root), "./real.sh"]).run();
        relative.prints("./real.sh real.sh");
    }
}

#[test]
fn variables_are_set_removed_and_kept() {
    let image = Throwaway::new();
    for who in everyone() {
        let env = |options: &[&str]| {
            let run = Run::launch(*who, options).args([text(&image.root()), "env"]);
            let run = run.env("EDITOR", "vi").env("FOO_A", "1").env("FOO_B", "2").env("PMI_X", "9");
            let run =
                run.env("LD_LIBRARY_PATH", "/host").env("LD_PRELOAD", "/host.so").env("SLURM_JOB_ID", "7");
            variables(&run.run().good())
        };
        let found = env(&[]);
        assert_eq!(found["EDITOR"], "vi");
        assert_eq!(found["PATH"], "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        assert!(!found.contains_key("LD_LIBRARY_PATH") && !found.contains_key("LD_PRELOAD"), "{found:?}");
        let found =
            env(&["--env", "EDITOR=ed", "--env", "NEW=a=b c", "--unset-env", "FOO_*", "--env=FOO_C=3"]);
        assert_eq!((found["EDITOR"].as_str(), found["NEW"].as_str()), ("ed", "a=b c"));
        assert_eq!((found.get("FOO_A"), found.get("FOO_B"), found["FOO_C"].as_str()), (None, None, "3"));
        let found = env(&["--clean-env", "--env", "KEPT=1"]);
        assert_eq!((found.get("EDITOR"), found.get("FOO_A"), found["KEPT"].as_str()), (None, None, "1"));
        assert_eq!((found["PMI_X"].as_str(), found["SLURM_JOB_ID"].as_str()), ("9", "7"));
        assert_eq!(found["HOME"], who.account().home.to_str().unwrap());
    }
}

#[test]
fn the_images_environment_lies_under_the_users() {
    let image = Throwaway::new();
    image.directory(".singularity.d/env").directory("ch");
    let scripts = [
        (
            "10-docker.sh",
            "export PATH=\"/opt/bin:$PATH\"\nexport A=\"${A:-\"apptainer\"}\"\nexport PMI_RANK=5\n",
        ),
        ("90-late.sh", "B='late $HOME'\nexport B\nexport X=$(id)\n"),
    ];
    for (name, contents) in scripts {
        image.file(format!(".singularity.d/env/{name}"), contents);
    }
    image.file("ch/environment", "C=charlie\nB=early\nD='quoted one'\n");
    let config = r#"{"config":{"Env":["A=oci","E=oci"],"WorkingDir":"/opt"}}"#;
    fs::write(image.beside().join("config.json"), config).unwrap();
    image.directory("opt");
    for who in everyone() {
        let env = |options: &[&str]| {
            let run = Run::launch(*who, options).args([text(&image.root()), "env"]).env("PMI_RANK", "0");
            variables(&run.env("C", "host").run().good())
        };
        let found = env(&[]);
        let of = |name: &str| found.get(name).map_or("-", String::as_str);
        assert_eq!(
            (of("A"), of("B"), of("C"), of("D"), of("E")),
            ("oci", "late $HOME", "charlie", "quoted one", "oci"),
            "{found:?}"
        );
        assert_eq!((of("PMI_RANK"), of("X")), ("0", "-"));
        assert!(of("PATH").starts_with("/opt/bin:"), "{found:?}");
        let found = env(&["--env", "A=user", "--unset-env", "E"]);
        assert_eq!((found["A"].as_str(), found.get("E")), ("user", None));
        // Its working directory counts where ours does not exist.
        let outcome = shell(*who, &image, &[], "pwd").cwd("/usr/share").run();
        outcome.says(&["/usr/share does not exist inside: starting in /opt"]).prints("/opt");
        // What was not understood is said by the plan.
        let outcome = Run::launch(*who, ["plan", text(&image.root()), "true"]).run().good();
        assert!(outcome.out().contains("90-late.sh: not understood: export X=$(id)"), "{outcome}");
    }
}

/// A variable that is not UTF-8, and one without a name, go through or are left; nothing fails.
#[test]
fn odd_variables_do_not_stop_anything() {
    use std::os::unix::ffi::OsStrExt;
    let image = Throwaway::new();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe=\n");
    for who in everyone() {
        let run = Run::launch(*who, [text(&image.root()), "sh", "-c", "printf %s \"$ODD\""]).env("ODD", odd);
        let outcome = run.env(odd, "x").run().good();
        assert_eq!(outcome.stdout, odd.as_bytes(), "{outcome}");
    }
}

#[test]
fn a_plan_says_everything_and_does_nothing() {
    let image = Throwaway::new();
    image.remove("etc").program("bin/solver", "#!/bin/sh\necho ran\ntouch /tmp/hpcl-plan-ran\n");
    let host = directory("/var/tmp");
    let before = (record(image.beside()), record(host.path()), mounts());
    let bind = format!("{}:/mnt/new:ro", host.path().display());
    for who in everyone() {
        let root = image.root();
        let arguments = ["plan", "--bind", &bind, "--env", "A=1", text(&root), "solver", "in.dat"];
        let outcome = Run::launch(*who, arguments).run().good();
        let out = outcome.out();
        for part in [
            &format!("image      {} (directory)", root.display()) as &str,
            "launcher   none",
            "MPI        the program links none",
            "do         mount namespace",
            "do         the root becomes /",
            "do         no new privileges",
            &format!("do         bind {} at /mnt/new, read-only — asked for (--bind)", host.path().display()),
            "/etc/passwd",
            "set        A=1 — --env",
            "directory  /",
            "exec       /bin/solver in.dat",
        ] {
            assert!(out.contains(part), "{part:?} is missing\n{outcome}");
        }
        assert_eq!(out.contains("do         user namespace"), *who == Who::User, "{outcome}");
        for arguments in
            [&["plan", "--json", text(&root), "solver"][..], &["plan", text(&root), "solver", "--json"]]
        {
            let outcome = Run::launch(*who, arguments).run().good();
            let plan: serde_json::Value =
                serde_json::from_slice(&outcome.stdout).unwrap_or_else(|e| panic!("{e}\n{outcome}"));
            let steps = plan["steps"].as_array().unwrap();
            let verbs: Vec<&str> = steps.iter().map(|s| s["do"].as_str().unwrap()).collect();
            for verb in ["mount-namespace", "root", "tmpfs", "bind", "no-new-privileges"] {
                assert!(verbs.contains(&verb), "{verb}: {verbs:?}");
            }
            let target = |at: &str| {
                steps.iter().any(|s| {
                    s["do"] == "bind" && s["at"] == at && s["why"].as_str().is_some_and(|w| !w.is_empty())
                })
            };
            for at in ["/dev", "/proc", "/sys", "/tmp"] {
                assert!(target(at), "{at}: {outcome}");
            }
            assert_eq!((plan["program"].as_str(), plan["version"].as_u64()), (Some("/bin/solver"), Some(1)));
            assert_eq!(plan["arguments"], serde_json::json!([]));
        }
        // A --json of the command's own.
        let outcome =
            Run::launch(*who, ["plan", "--json", text(&root), "solver", "x", "--json"]).run().good();
        let plan: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert_eq!(plan["arguments"], serde_json::json!(["x", "--json"]));
        // What would be refused is refused in the plan.
        Run::launch(*who, ["plan", text(&root), "nope"]).run().refused("program-not-found", &["nope"]);
    }
    assert!(!Path::new("/tmp/hpcl-plan-ran").exists());
    let after = (record(image.beside()), record(host.path()), mounts());
    assert_same(&before.0, &after.0, "plan");
    assert_same(&before.1, &after.1, "plan");
    assert_eq!(before.2, after.2);
}

#[test]
fn verbose_says_the_plan_and_runs() {
    let image = Throwaway::new();
    for who in everyone() {
        let outcome = shell(*who, &image, &["--verbose"], "echo ran").run();
        outcome
            .says(&["hpc-launch: image ", "hpc-launch: do         bind /dev", "hpc-launch: exec       /bin/"])
            .prints("ran");
    }
}

#[test]
fn the_configuration_knows_where_each_value_comes_from() {
    let home = directory("/var/tmp");
    let dir = home.path().join(".config/hpc-launch");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("config.toml");
    fs::write(&file, "clean_env = true\nbinds = ['/mnt:/a']\n[env]\nK = 'v'\n").unwrap();
    for who in everyone() {
        let run = |arguments: &[&str]| {
            let run = Run::launch(*who, arguments).env("HOME", home.path());
            run.env("HPC_LAUNCH_MPI", "image").env("HPC_LAUNCH_BINDS", "/tmp:/b").run().good()
        };
        let outcome = run(&["config"]);
        for (key, value, origin) in [
            ("clean_env", "true", text(&file)),
            ("binds", "/mnt:/a", text(&file)),
            ("binds", "/tmp:/b", "HPC_LAUNCH_BINDS"),
            ("env", "K=v", text(&file)),
            ("mpi", "image", "HPC_LAUNCH_MPI"),
            ("home", "true", "built-in"),
            ("writable_tmpfs", "false", "built-in"),
        ] {
            let fits = |l: &str| {
                l.starts_with(&format!("{key} ")) && l.contains(value) && l.ends_with(&format!("# {origin}"))
            };
            assert!(outcome.out().lines().any(fits), "{key} {value} {origin}\n{outcome}");
        }
        let json: serde_json::Value = serde_json::from_slice(&run(&["config", "--json"]).stdout).unwrap();
        assert_eq!(json["clean_env"]["value"], true);
        assert_eq!(json["clean_env"]["origin"]["file"], text(&file));
        assert_eq!(json["home"]["origin"], "built-in");
    }
}

#[test]
fn images_with_the_names_of_subcommands_are_reached_by_their_path() {
    let image = Throwaway::new();
    for name in ["plan", "config"] {
        fs::rename(image.root(), image.beside().join(name)).unwrap();
        for who in everyone() {
            let outcome =
                Run::launch(*who, [&format!("./{name}"), "sh", "-c", "echo ran"]).cwd(image.beside()).run();
            outcome.prints("ran");
        }
        fs::rename(image.beside().join(name), image.root()).unwrap();
    }
}

/// Files of the host that every program needs are the host's, whatever the image has.
#[test]
fn the_hosts_user_database_and_names_are_seen() {
    let image = Throwaway::new();
    image.file("etc/passwd", "image").file("etc/hosts", "image").link("/etc/hosts", "etc/resolv.conf");
    for who in everyone() {
        let outcome = shell(*who, &image, &[], "cat /etc/passwd").run().good();
        assert_eq!(outcome.out(), fs::read_to_string("/etc/passwd").unwrap());
        let outcome = shell(*who, &image, &[], "cat /etc/hosts").run().good();
        assert_eq!(outcome.out(), fs::read_to_string("/etc/hosts").unwrap());
    }
}

/// Mounts of the host keep nosuid, nodev and noexec inside; the root has the first two.
#[test]
fn mount_flags_are_kept() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    let place = directory("/var/tmp");
    let prelude = format!(
        "mount -t tmpfs -o nosuid,nodev,noexec,noatime none {0}; cp /bin/true {0}/t",
        place.path().display()
    );
    for who in everyone() {
        let bind = format!("{}:/mnt", place.path().display());
        let script = "while read a b c d e f g; do case $e in /mnt|/) echo \"$e $f\";; esac; done </proc/self/mountinfo; /mnt/t";
        let outcome = shell(*who, &image, &["--bind", &bind], script).prelude(&prelude).run();
        assert_eq!(outcome.code(), Some(126), "{outcome}");
        for (at, flags) in
            [("/mnt", &["rw", "nosuid", "nodev", "noexec", "noatime"][..]), ("/", &["ro", "nosuid", "nodev"])]
        {
            let out = outcome.out();
            let line =
                out.lines().find(|l| l.split(' ').next() == Some(at)).unwrap_or_else(|| panic!("{outcome}"));
            let has: Vec<&str> = line.split(' ').nth(1).unwrap().split(',').collect();
            assert!(flags.iter().all(|f| has.contains(f)), "{line}");
        }
    }
}

/// However the root is made, the host's /tmp, /dev and /proc are the very ones, and the scaffolding
/// is nowhere to be seen.
#[test]
fn the_hosts_directories_are_shown_and_nothing_of_ours() {
    let plain = Throwaway::new();
    let wide = Throwaway::new();
    for i in 0..200 {
        wide.file(format!("etc/{i}"), "").file(format!("{i}"), "");
    }
    wide.remove("home").remove("root");
    let bare = Throwaway::new();
    for name in ["dev", "proc", "sys", "tmp", "run", "etc", "home", "root", "var"] {
        bare.remove(name);
    }
    let in_tmp = Throwaway::new_in("/tmp");
    let below = |table: &str, dir: &str| {
        let mut found: Vec<String> = table
            .lines()
            .filter_map(|l| l.split(' ').nth(4).map(String::from))
            .filter(|p| Path::new(p).starts_with(dir) && p != dir)
            .collect();
        found.sort();
        found
    };
    let token = directory("/tmp");
    fs::write(token.path().join("token"), "of the host").unwrap();
    let script = "cat $0/token; echo; cat /proc/self/mountinfo";
    for image in [&plain, &wide, &bare, &in_tmp] {
        let file = image.squash();
        for root in [image.root(), file] {
            for who in everyone() {
                for options in [&[][..], &["--writable-tmpfs"]] {
                    let run = Run::launch(*who, options).args([
                        text(&root),
                        "sh",
                        "-c",
                        script,
                        text(token.path()),
                    ]);
                    // From below /tmp, where most people's jobs do not start, but some do.
                    let outcome = run.cwd(token.path()).run().good();
                    let out = outcome.out();
                    assert_eq!(out.lines().next(), Some("of the host"), "{outcome}");
                    for dir in ["/tmp", "/dev", "/proc", "/sys"] {
                        assert_eq!(below(&out, dir), below(&mounts(), dir), "{dir}: {outcome}");
                    }
                }
            }
        }
    }
}

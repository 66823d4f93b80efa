//! `hpc-launch -n N IMAGE COMMAND`: a job of one node without any launcher.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;

use hpc_launch_tests::host::{self, everyone, launcher};
use hpc_launch_tests::leaks::Host;
use hpc_launch_tests::run::Run;
use hpc_launch_tests::standalone::{
    FAMILIES, allowed, alone, cores, image, job, named, processors, send, shared, shell, sorted, wired_up,
};
use nix::sys::signal::Signal::SIGTERM;

#[test]
fn every_image_and_every_number_of_ranks() {
    let _alone = alone();
    let before = Host::now();
    for (i, name) in host::MPI_IMAGES.iter().enumerate() {
        for (s, ranks) in [1u32, 2, 5].into_iter().enumerate() {
            for (w, who) in everyone().iter().enumerate() {
                // Each image and each user with one of the numbers.
                if !host::full() && s != (i + w) % 3 {
                    continue;
                }
                // Where the host's MPI is better for the program, it has that.
                for mpi in ["--mpi=image", "--mpi=auto"] {
                    let run = job(*who, ranks, [mpi, &image(*who, name), "/opt/examples/wireup"]);
                    wired_up(&run.env("WIREUP_LOCAL", ranks.to_string()), ranks);
                }
            }
        }
    }
    before.is_as_before("jobs of every image");
}

/// No launcher can be found, and the only processes are the ranks, which are our children.
#[test]
fn no_launcher_is_needed() {
    let _alone = alone();
    for who in everyone() {
        for name in FAMILIES {
            let image = host::image(name).display().to_string();
            let run = Run::command(*who, ["env", "PATH=/nonexistent"]).args([launcher()]);
            wired_up(&run.args(["-n", "2", "--oversubscribe", &image, "/opt/examples/wireup"]), 2);
            let line = [image.as_str(), "/opt/examples/exitcode", "9", "signal", "9", "60"];
            let mut running = job(*who, 2, line).start();
            running.wait_until("both ranks run", |r| named(r, "exitcode").len() == 2);
            let parent = |pid: &i32| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                status.lines().find_map(|l| l.strip_prefix("PPid:")?.trim().parse().ok())
            };
            let ranks = named(&running, "exitcode");
            assert!(ranks.iter().all(|pid| parent(pid) == Some(running.pid())), "{ranks:?}");
            assert_eq!(running.processes().len(), 3, "{:#?}", running.processes());
            send(&running, SIGTERM);
            assert_eq!(running.finish().code(), Some(143));
        }
    }
}

#[test]
fn programs_without_mpi_know_their_place() {
    let _alone = alone();
    let outside = fs::read_link("/proc/self/ns/mnt").unwrap().display().to_string();
    for who in everyone() {
        // All of them live until the last is there: else one sandbox might follow another.
        let dir = shared();
        let wait = format!(
            "cd {}; : > $HPC_LAUNCH_RANK; until [ -e 0 -a -e 1 -a -e 2 ]; do sleep 0.01; done;",
            dir.path().display()
        );
        let script =
            format!("{wait} echo \"$HPC_LAUNCH_RANK of $HPC_LAUNCH_SIZE in $(readlink /proc/self/ns/mnt)\"");
        let outcome = shell(*who, 3, &[], &script).run().good();
        let lines = sorted(&outcome.out());
        let inside = lines[0].split_once(" in ").unwrap().1.to_owned();
        let expected: Vec<String> = (0..3).map(|r| format!("{r} of 3 in {inside}")).collect();
        assert_eq!(lines, expected, "{outcome}");
        assert_ne!(inside, outside, "{outcome}");
        assert!(inside.starts_with("mnt:["), "{outcome}");
    }
}

/// What a rank inherits is what it would have inherited without us.
#[test]
fn ranks_inherit_what_we_did() {
    let _alone = alone();
    let around = "umask 0027; ulimit -S -n 777; trap '' USR2; exec 9</dev/null nice -n 5 \"$@\"";
    let look = "umask; ulimit -S -n; nice; pwd; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/$$/fd";
    for who in everyone() {
        let run = |launcher: &[&str]| {
            let run = Run::command(*who, ["sh", "-c", around, "sh"]).args(launcher).cwd("/tmp");
            run.args(["/bin/sh", "-c", look]).run().good()
        };
        let bare = run(&[]);
        let line = [launcher().to_str().unwrap(), "-n", "1", &image(*who, FAMILIES[0])];
        let inside = run(&line);
        // By one descriptor more it knows that we live.
        let (bare, inside) = (sorted(&bare.out()), sorted(&inside.out()));
        let more: Vec<&String> = inside.iter().filter(|l| !bare.contains(l)).collect();
        let less: Vec<&String> = bare.iter().filter(|l| !inside.contains(l)).collect();
        assert!(more.len() <= 1 && more.iter().all(|l| l.parse::<u32>().is_ok_and(|n| n < 777)), "{more:?}");
        assert!(less.is_empty(), "{less:?} became {more:?}");
    }
}

/// Where each rank runs, by rank.
fn places(run: &Run) -> Vec<BTreeSet<usize>> {
    let outcome = run.run().good();
    let lines = sorted(&outcome.out());
    lines.iter().map(|l| processors(l.split_whitespace().nth(2).unwrap())).collect()
}

#[test]
fn ranks_are_bound_to_cores() {
    let _alone = alone();
    let (cores, sockets) = cores();
    if cores.len() < 2 {
        eprintln!("not run: there is one core only");
        return;
    }
    let script = "echo $HPC_LAUNCH_RANK $(grep Cpus_allowed_list: /proc/self/status)";
    let too_many = (cores.len() + 1) as u32;
    for who in everyone() {
        let with = |options: &[&str]| {
            let line = [image(*who, FAMILIES[0]), "/bin/sh".into(), "-c".into(), script.into()];
            Run::launch(*who, ["-n", "2"]).args(options).args(line)
        };
        for options in [&[][..], &["--bind-to", "core"]] {
            let places = places(&with(options));
            assert!(places.iter().all(|place| cores.contains(place)), "{places:?} of {cores:?}");
            assert_ne!(places[0], places[1], "{places:?}");
        }
        assert_eq!(places(&with(&["--bind-to", "none"])), [allowed(), allowed()]);
        let places_in_sockets = places(&with(&["--bind-to=socket"]));
        assert!(places_in_sockets.iter().all(|place| sockets.contains(place)), "{places_in_sockets:?}");
        let places_of_many = places(&shell(*who, too_many, &[], script));
        assert_eq!(places_of_many, vec![allowed(); too_many as usize]);
        // What is allowed to us is what there is.
        let first = allowed().first().unwrap().to_string();
        let line = [launcher().to_str().unwrap(), "-n", "1", &image(*who, FAMILIES[0])];
        let run = Run::command(*who, ["taskset", "-c", &first]).args(line).args(["/bin/sh", "-c", script]);
        run.run().prints(&format!("0 Cpus_allowed_list: {first}"));
    }
}

/// As many ranks as cores, each on its own: MPI must not yield its core at every turn.
#[test]
fn bound_ranks_do_not_share_a_core() {
    let _alone = alone();
    let cores = cores().0.len() as u32;
    if cores < 2 {
        eprintln!("not run: there is one core only");
        return;
    }
    let script = "echo yield ${OMPI_MCA_mpi_yield_when_idle-unset}; exec /opt/examples/ring";
    for who in everyone() {
        for (ranks, yields) in [(2, "unset"), (cores + 1, "1")] {
            let outcome = shell(*who, ranks, &[], script).run().good();
            let count = outcome.out().lines().filter(|l| *l == format!("yield {yields}")).count();
            assert_eq!(count, ranks as usize, "{outcome}");
        }
    }
}

#[test]
fn several_programs_are_one_job() {
    let _alone = alone();
    let before = Host::now();
    for who in everyone() {
        for name in FAMILIES {
            // One image is a directory, the other a file; the other program has another name too.
            let [one, other] =
                [name.to_owned(), format!("{name}.sqfs")].map(|n| host::image(&n).display().to_string());
            let other_name = "/opt/examples/../examples/ring";
            let line = [&one, "/opt/examples/ring", ":", "-n", "1", &other, other_name];
            let outcome = job(*who, 2, line).run().good();
            assert_eq!(outcome.out(), "ring of 3 ranks: sum 3 correct\n", "{outcome}");
            let line =
                [&one, "/opt/examples/wireup", ":", "-n", "3", &one, "/opt/examples/../examples/wireup"];
            wired_up(&job(*who, 1, line).env("WIREUP_LOCAL", "4"), 4);
            // Each with options of its own; those of the job before the first.
            let say = ["/bin/sh", "-c", "echo $HPC_LAUNCH_RANK of $HPC_LAUNCH_SIZE $A"];
            let first = [&["--tag-output", "--env", "A=one", &one][..], &say].concat();
            let second = [&[":", "-n", "2", "--env", "A=two", &other][..], &say].concat();
            let third = [":", "-n", "1", &one, "echo", "three"];
            let line = [&first[..], &second, &third].concat();
            let outcome = job(*who, 1, line).run().good();
            let tags = [(0, "0 of 4 one"), (1, "1 of 4 two"), (2, "2 of 4 two"), (3, "three")];
            assert_eq!(
                sorted(&outcome.out()),
                tags.map(|(r, l)| format!("[1,{r}]<stdout>:{l}")),
                "{outcome}"
            );
        }
        for name in ["bookworm-python", "bookworm-python-mpich"] {
            let image = image(*who, name);
            let script = "from mpi4py import MPI; w = MPI.COMM_WORLD; \
                          print(f'{w.rank} of {w.size} is of program {w.Get_attr(MPI.APPNUM)}')";
            let python = [&image, "/opt/venv/bin/python3", "-c", script];
            let line = python.iter().copied().chain([":", "-n", "2"]).chain(python);
            let outcome = job(*who, 1, line).run().good();
            let expected = ["0 of 3 is of program 0", "1 of 3 is of program 1", "2 of 3 is of program 1"];
            assert_eq!(sorted(&outcome.out()), expected, "{outcome}");
        }
    }
    before.is_as_before("jobs of several programs");
}

/// Of one command by its name, and of two by what they do.
#[test]
fn programs_of_one_name_that_differ() {
    let _alone = alone();
    for who in everyone() {
        for name in FAMILIES {
            let image = image(*who, name);
            let line = [
                &image,
                "sh",
                "-c",
                "sleep 1",
                ":",
                "-n",
                "1",
                &image,
                "sh",
                "-c",
                "exec /opt/examples/hello",
            ];
            let outcome = job(*who, 1, ["--timeout", "5"]).args(line).run();
            // Told that it cannot be, or a job of two, whose other rank never comes: but no job of its own.
            assert!(!outcome.out().contains("of 1 on"), "{outcome}");
        }
    }
}

#[test]
fn command_lines_that_cannot_be() {
    let _alone = alone();
    let image = host::image(FAMILIES[0]).display().to_string();
    let image = image.as_str();
    let cores = cores().0.len();
    let too_many = (cores + 1).to_string();
    for who in everyone() {
        let run = |line: &[&str]| Run::launch(*who, line).run();
        let parts =
            format!("{too_many} ranks were asked for, and there are {cores} cores that this process may use");
        let outcome = run(&["-n", &too_many, image, "true"]);
        outcome.refused("too-many-ranks", &[&parts, "--oversubscribe starts them all the same"]);
        let half = [image, "true", ":", "-n", &too_many, image, "true"];
        let parts = format!("{} ranks were asked for, and there are {cores} cores", cores + 2);
        run(&[&["-n", "1"][..], &half].concat()).refused("too-many-ranks", &[&parts]);
        let first = allowed().first().unwrap().to_string();
        let line = ["taskset", "-c", &first, launcher().to_str().unwrap(), "-n", "2", image, "true"];
        Run::command(*who, line).run().refused("too-many-ranks", &["2 ranks were asked for, and there"]);
        for (line, why) in [
            (&["-n", "0", image, "true"][..], "-n 0: a job has at least one rank"),
            (&["-n", "1", image, "true", ":"], "nothing follows `:`"),
            (&["-n", "1", image, ":", "-n", "1", image, "true"], "no command stands before `:`"),
            (
                &["-n", "1", image, "true", ":", image, "true"],
                "each part of a command line with `:` needs -n and an image",
            ),
            (&["-n", "1", image, "true", ":", "-n", "0", image, "true"], "-n 0: a job has at least one rank"),
            (&["-n", "1", image, "true", ":", "-n", "1", image], "no command was given, and the image"),
            (
                &["-n", "1", image, "true", ":", "-n", "x", image, "true"],
                "behind `:`: invalid value 'x' for '--np <N>'",
            ),
            (
                &["-n", "1", image, "true", ":", "-n", "1", "--nope", image, "true"],
                "behind `:`: unexpected argument '--nope'",
            ),
            (
                &["-n", "1", image, "true", ":", "-n", "1", "--timeout", "3", image, "true"],
                "options of the whole job stand before the first image, not behind `:`",
            ),
            (
                &["-n", "65000", image, "true", ":", "-n", "1000", image, "true"],
                "66000 ranks on one node; at most 65535",
            ),
            (
                &["-n", "1", image, "true", ":", "-n", "1", "--env", "A", image, "true"],
                "there is no NAME=VALUE",
            ),
        ] {
            run(line).refused("usage", &[why]);
        }
        for (line, why) in [
            (&["-n", "x", image, "true"][..], "invalid value 'x' for '--np <N>'"),
            (&["-n", image, "true"], "for '--np <N>'"),
            (
                &["-n", "1", "--timeout", "soon", image, "true"],
                "invalid value 'soon' for '--timeout <SECONDS>'",
            ),
            (&["-n", "1", "--bind-to", "numa", image, "true"], "[possible values: core, socket, none]"),
            (&["-n", "1", image], "no command was given, and the image"),
            (&["-n", "1"], "<IMAGE>"),
            (&["--tag-output", image, "true"], "--np <N>"),
            (&["--oversubscribe", image, "true"], "--np <N>"),
            (&["--bind-to=none", image, "true"], "--np <N>"),
            (&["--output-dir=/tmp", image, "true"], "--np <N>"),
            (&["--timeout=3", image, "true"], "--np <N>"),
        ] {
            let outcome = run(line);
            assert_eq!(outcome.code(), Some(125), "{outcome}");
            assert!(outcome.stdout.is_empty(), "{outcome}");
            outcome.says(&[why]);
        }
    }
}

/// Inside a rank of somebody else's: a job of its own, of which nothing of the outer one's is told.
#[test]
fn inside_a_rank_of_a_launcher() {
    let _alone = alone();
    let before = Host::now();
    for who in everyone() {
        for name in FAMILIES {
            let image = image(*who, name);
            let line = ["-n", "2", "--oversubscribe", &image, "/opt/examples/ring"];
            for (run, by) in [
                (Run::mpirun(*who, 2, line), "Open MPI 4's mpirun"),
                (Run::hydra(*who, 2, line), "hydra (MPICH's mpiexec)"),
            ] {
                let outcome = run.run().good();
                assert_eq!(outcome.out(), "ring of 2 ranks: sum 1 correct\n".repeat(2), "{outcome}");
                let said = format!(
                    "-n 2 starts a job of its own inside a rank of {by}; to be a rank of that, leave out -n"
                );
                // hydra joins what ranks say at the same time.
                assert_eq!(outcome.err().matches(&said).count(), 1, "{outcome}");
            }
        }
    }
    before.is_as_before("jobs inside of jobs");
}

/// Programs tell their place by such variables where they choose a device: the outer rank's place is not theirs.
#[test]
fn nothing_of_an_outer_job_is_told() {
    let _alone = alone();
    let of_a_place = ["PMI", "OMPI_COMM_WORLD_", "MPI_LOCAL"];
    for who in everyone() {
        for name in FAMILIES {
            let image = image(*who, name);
            let line = ["-n", "1", "--oversubscribe", &image, "env"];
            for run in [Run::mpirun(*who, 2, line), Run::hydra(*who, 2, line)] {
                let outcome = run.run().good();
                let out = outcome.out();
                let told: Vec<&str> =
                    out.lines().filter(|l| of_a_place.iter().any(|p| l.starts_with(p))).collect();
                assert!(told.is_empty(), "{told:?}\n{outcome}");
                assert_eq!(out.lines().filter(|l| *l == "HPC_LAUNCH_SIZE=1").count(), 2, "{outcome}");
            }
        }
    }
}

/// More than there are cores by far.
#[test]
fn many_ranks() {
    let _alone = alone();
    let before = Host::now();
    let ranks = if host::full() { 128 } else { 24 };
    for who in everyone() {
        for name in FAMILIES {
            let outcome = job(*who, ranks, [&image(*who, name), "/opt/examples/ring"]).run().good();
            let sum = ranks * (ranks - 1) / 2;
            assert_eq!(outcome.out(), format!("ring of {ranks} ranks: sum {sum} correct\n"), "{outcome}");
        }
        let outcome = shell(*who, 200, &["--tag-output"], "echo here").run().good();
        let expected: BTreeSet<String> = (0..200).map(|r| format!("[1,{r}]<stdout>:here")).collect();
        assert_eq!(outcome.out().lines().map(str::to_owned).collect::<BTreeSet<_>>(), expected, "{outcome}");
    }
    before.is_as_before("many ranks");
}

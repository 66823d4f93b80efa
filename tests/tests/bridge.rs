//! An image's own MPI under a launcher that speaks another PMI, or none: a helper on the node translates.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hpc_launch_tests::host::{self, Who, everyone, launcher};
use hpc_launch_tests::host_mpi::{self, HostMpi};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::run::{Outcome, Run, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Images, and by which way their MPI is served.
const IMAGES: [(&str, &str); 8] = [
    ("bullseye-openmpi", "openmpi"),
    ("bookworm-openmpi", "openmpi"),
    ("trixie-openmpi", "openmpi"),
    ("bullseye-mpich", "mpich"),
    ("bookworm-mpich", "mpich"),
    ("trixie-mpich", "mpich"),
    ("bookworm-mpich-wheel", "mpich"),
    ("bookworm-intel", "mpich"),
];

/// What the communicators program says with these.
const COMMUNICATORS: [(&str, &str); 2] = [
    ("trixie-openmpi", "dup split group session correct"),
    ("bookworm-openmpi", "dup split group correct, this MPI has no session"),
];

fn image(name: &str) -> String {
    host::image(name).display().to_string()
}

/// The launchers of this host.
fn launchers() -> Vec<HostMpi> {
    host_mpi::all()
}

fn launcher_of(family: &str) -> HostMpi {
    launchers().into_iter().find(|l| l.family == family).expect("Debian's")
}

fn other(family: &str) -> &'static str {
    if family == "mpich" { "openmpi" } else { "mpich" }
}

/// The line that the wire-up program ends with.
fn wired_up(ranks: u32) -> String {
    format!("wireup of {ranks} ranks: ring allreduce shared split put correct")
}

/// Open MPI 5 and UCX complain of a machine without a network; the program's own line counts.
fn checked(outcome: Outcome, ranks: u32) {
    let outcome = outcome.good();
    assert!(outcome.out().lines().any(|l| l == wired_up(ranks)), "{outcome}");
    let text = outcome.out() + &outcome.err();
    assert!(!text.contains("hpc-launch:"), "{outcome}");
}

/// Every launcher with every image, bridged whether it is needed or not.
#[test]
fn every_launcher_and_every_image() {
    for (l, launcher) in launchers().iter().enumerate() {
        for (i, (name, _)) in IMAGES.iter().enumerate() {
            for (s, ranks) in [1u32, 2, 5].into_iter().enumerate() {
                // Each pair once, with a number and a user that differ.
                if !host::full() && s != (l + i) % 3 {
                    continue;
                }
                let who = if (l + i) % 4 == 0 { everyone()[0] } else { Who::User };
                let arguments = ["--mpi=bridge", &image(name), "/opt/examples/wireup"];
                let run = launcher.launch(who, ranks, &arguments).env("WIREUP_LOCAL", ranks.to_string());
                checked(run.run(), ranks);
            }
        }
    }
}

/// Communicators of every kind: for those of sessions Open MPI 5 asks its PMIx server.
#[test]
fn communicators_over_a_bridge() {
    let mpich = launcher_of("mpich");
    for (image_name, made) in COMMUNICATORS {
        for who in everyone() {
            for ranks in [1, 2, 5] {
                let arguments = ["--mpi=bridge", &image(image_name), "/opt/examples/communicators"];
                let outcome = mpich.launch(*who, ranks, &arguments).run().good();
                let expected = format!("communicators of {ranks} ranks: {made}");
                assert!(outcome.out().lines().any(|line| line == expected), "{outcome}");
            }
        }
    }
}

/// What MPI a program has is found out, and with it by which way it is served.
#[test]
fn plan_and_verbose_tell_of_the_bridge() {
    for (family, offers, serves) in
        [("mpich", "PMIx", "PMI-1/PMI-2 on a descriptor"), ("openmpi", "PMI-1/PMI-2", "PMIx")]
    {
        let image = image(&format!("bookworm-{family}"));
        let launcher = launcher_of(other(family));
        let outcome = launcher.launch(Who::User, 1, &["plan", &image, "/opt/examples/ring"]).run().good();
        let helper = format!("helper at /run/hpc-launch/pmi: serves {serves} to the ranks, speaks {offers}");
        for part in ["MPI        the image's own, bridged: ", helper.as_str(), "unset      P"] {
            assert!(outcome.out().contains(part), "{part}: {outcome}");
        }
        let outcome =
            launcher.launch(Who::User, 1, &["plan", "--json", &image, "/opt/examples/ring"]).run().good();
        let plan: serde_json::Value = serde_json::from_str(&outcome.out()).expect("JSON");
        assert_eq!(plan["mpi"]["verdict"], "bridge");
        let helper = plan["steps"].as_array().unwrap().iter().find(|s| s["do"] == "helper").unwrap();
        assert_eq!(helper["serves"], plan["wiring"]["downlink"]);
    }
}

/// Our own client through our own server, by each of its ways, under each of the launchers.
#[test]
fn values_pass_by_every_way() {
    let image = image("bookworm-mpich");
    let bind = format!("{}:/opt/hpc-launch:ro", launcher().display());
    for launcher in launchers() {
        for (way, protocol, says) in [
            ("descriptor", "pmi1", "PMI-1"),
            ("descriptor", "pmi2", "PMI-2"),
            ("port", "pmi1", "PMI-1"),
            ("port", "pmi2", "PMI-2"),
            ("pmix", "pmix", "PMIx"),
        ] {
            let arguments = ["--mpi=bridge", "--pmi", way, "--bind", &bind, &image, "/opt/hpc-launch", "pmi"];
            let exchange = ["exchange", "--size=900", "--all", "--protocol", protocol];
            let run = launcher.launch(Who::User, 9, &[&arguments[..], &exchange].concat());
            let outcome = run.run().good();
            let expected = format!("exchange of 9 ranks, 900 bytes each, over {says}: correct; ");
            assert!(outcome.out().starts_with(&expected), "{outcome}");
        }
    }
}

/// hydra 4.0 dies of SIGPIPE in 2 of 60 runs of `true` that have a pipe for standard input.
fn short(launcher: &HostMpi, who: Who, ranks: u32, arguments: &[&str]) -> Outcome {
    let run = launcher.launch(who, ranks, arguments);
    let outcomes = (0..3).map(|_| run.run());
    outcomes.reduce(|a, b| if a.status.success() { a } else { b }).expect("three").good()
}

/// The launcher's PMI without any MPI and any image.
/// Open MPI's session directory may hold as much as /dev/shm does: 128 MiB with CUDA (btl/smcuda).
#[test]
fn the_session_directory_has_room() {
    let script = "dd if=/dev/zero of=/run/hpc-launch/session/pool bs=1M count=64 2> /dev/null && echo room";
    for who in everyone() {
        let arguments = ["-n", "1", "--mpi=bridge", &image("bookworm-openmpi"), "sh", "-c", script];
        Run::launch(*who, arguments).run().prints("room");
    }
}

#[test]
fn pmi_speaks_to_the_launcher_itself() {
    for who in everyone() {
        for launcher in launchers() {
            let (protocols, answers): (&[&str], _) = match launcher.family {
                "openmpi" => (&["pmix"], "answers PMIx: rank 2 of 3, job "),
                _ => (&["pmi1", "pmi2"], "answers PMI-1: rank 2 of 3, job "),
            };
            for protocol in protocols {
                let arguments = ["pmi", "exchange", "--protocol", protocol];
                let outcome = launcher.launch(*who, 5, &arguments).run().good();
                assert!(outcome.out().contains(" of 5 ranks, 64 bytes each, over PMI"), "{outcome}");
                let outcome =
                    launcher.launch(*who, 5, &["pmi", "barrier", "20", "--protocol", protocol]).run().good();
                assert!(outcome.out().starts_with("20 barriers of 5 ranks over PMI"), "{outcome}");
            }
            let outcome = short(&launcher, *who, 3, &["pmi", "info"]);
            assert!(outcome.out().contains(answers), "{outcome}");
            assert!(outcome.out().contains("rank 2: started by "), "{outcome}");
            let outcome = short(&launcher, *who, 1, &["pmi", "info", "--json"]);
            let told: serde_json::Value = serde_json::from_str(outcome.out().trim()).expect("JSON");
            assert_eq!((&told["told"]["size"], &told["failed"]), (&1.into(), &serde_json::Value::Null));
            let outcome = launcher.launch(*who, 3, &["pmi", "abort", "7"]).run();
            assert_eq!(outcome.code(), Some(7), "{outcome}");
        }
        let outcome = Run::launch(*who, ["pmi", "exchange"]).run();
        outcome.refused("pmi-unusable", &["no launcher offers a PMI here"]);
        let outcome = Run::launch(*who, ["pmi", "info"]).run();
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert!(outcome.out().contains("started by no launcher that we know"), "{outcome}");
    }
}

/// hydra's other way: a port instead of a descriptor.
#[test]
fn a_launcher_with_a_port() {
    for (name, _) in [IMAGES[1], IMAGES[4]] {
        let run = Run::command(Who::User, ["mpiexec.hydra", "-pmi-port", "-n", "3"]);
        let run = run.args([launcher()]).args(["--mpi=bridge", &image(name), "/opt/examples/wireup"]);
        checked(run.run(), 3);
    }
}

/// Different images and programs in one job, with one helper on the node: their messages meet in its memory.
#[test]
fn programs_of_one_job_share_a_helper() {
    for (family, images) in [
        ("mpich", ["bullseye-openmpi", "bullseye-openmpi"]),
        ("openmpi", ["bookworm-mpich", "bookworm-mpich"]),
    ] {
        let launcher = launcher_of(family);
        let program = host::launcher().display().to_string();
        let [a, b] = images.map(image);
        // Another name makes another sandbox.
        let arguments = [
            a.as_str(),
            "/opt/examples/ring",
            ":",
            "-n",
            "2",
            &program,
            &b,
            "/opt/examples/../examples/ring",
        ];
        let outcome = launcher.launch(Who::User, 2, &arguments).run();
        let (code, out) = (outcome.code(), outcome.out());
        assert!(out.contains("ring of 4 ranks: sum 6 correct") && code == Some(0), "{outcome}");
    }
}

/// The helper of a job that runs.
fn helper(running: &Running) -> Option<(i32, String)> {
    let program = launcher().display().to_string();
    running.processes().into_iter().find(|(pid, line)| line.starts_with(&program) && is_helper(*pid))
}

/// It has left the ranks' session, and is nobody's child any more.
fn is_helper(pid: i32) -> bool {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|e| fs::read_link(e.path()).ok()).any(|l| l.as_os_str() == "anon_inode:[eventpoll]")
}

fn memory_kib(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|l| l.strip_prefix(field)).expect("such a field");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A job whose ranks wait in MPI for a long time.
fn waiting(launcher: &HostMpi, family: &str, ranks: u32, who: Who) -> Running {
    let arguments = ["--mpi=bridge", &image(&format!("bookworm-{family}")), "/opt/examples/exitcode", "99"];
    let command = [&arguments[..], &["signal", "9", "60"]].concat();
    let mut running = launcher.launch(who, ranks, &command).start();
    running.wait_until("all ranks are in MPI", |r| {
        r.out().contains("all ranks are there") && helper(r).is_some()
    });
    running
}

/// It is small, outside of the sandbox, and has no more of its launcher than it needs.
#[test]
fn the_helper_is_small_and_outside() {
    for (family, of) in [("openmpi", "mpich"), ("mpich", "openmpi")] {
        let running = waiting(&launcher_of(of), family, 8, Who::User);
        let (pid, _) = helper(&running).expect("seen a moment ago");
        // Once the job has begun: it gives back what that took.
        let since = Instant::now();
        while memory_kib(pid, "VmRSS") > 4096 {
            assert!(since.elapsed() < Duration::from_secs(3), "{} KiB", memory_kib(pid, "VmRSS"));
            std::thread::sleep(Duration::from_millis(20));
        }
        let root = fs::read_dir(format!("/proc/{pid}/root/")).expect("its root").flatten();
        let names: BTreeSet<_> = root.map(|e| e.file_name()).collect();
        assert!(!names.contains(std::ffi::OsStr::new("opt-examples")), "{names:?}");
        assert!(
            fs::metadata(format!("/proc/{pid}/root/opt/examples/exitcode")).is_err(),
            "it sees the image"
        );
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten() {
            let to = fs::read_link(descriptor.path()).unwrap_or_default().display().to_string();
            let known = ["socket:", "pipe:", "anon_inode:[eventpoll]", "anon_inode:[pidfd]", "/dev/null"];
            assert!(known.iter().any(|k| to.starts_with(k)), "it holds {to}");
        }
        let outcome = ended(running, |r| kill(Pid::from_raw(r.pid()), Signal::SIGKILL).expect("killed"));
        assert_eq!(outcome.signal(), Some(9), "{outcome}");
    }
}

/// Does something to a job and waits for its end, which must come within five seconds and leave nothing.
fn ended(running: Running, what: impl FnOnce(&Running)) -> Outcome {
    let since = Instant::now();
    what(&running);
    let outcome = running.finish();
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}\n{outcome}", since.elapsed());
    outcome
}

fn rank(running: &Running) -> i32 {
    let ranks = running.processes();
    let is_rank = |(_, line): &&(i32, String)| line.starts_with("/opt/examples/exitcode");
    ranks.iter().filter(is_rank).map(|(pid, _)| *pid).max().expect("a rank")
}

/// Whoever dies, the job ends, with a status that is not 0.
#[test]
fn whoever_is_killed_the_job_ends() {
    let pairs = [("mpich", "openmpi"), ("openmpi", "mpich")];
    for (n, (of, family)) in pairs.into_iter().enumerate() {
        let launcher = launcher_of(of);
        let who = everyone()[n % everyone().len()];
        let die = |pid| kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
        let outcome = ended(waiting(&launcher, family, 3, who), |r| die(rank(r)));
        assert!(outcome.code().is_some_and(|c| c != 0), "{outcome}");
        let outcome = ended(waiting(&launcher, family, 3, who), |r| die(helper(r).expect("a helper").0));
        assert!(outcome.code().is_some_and(|c| c != 0), "{outcome}");
        let outcome = ended(waiting(&launcher, family, 3, who), |r| die(r.pid()));
        assert_eq!(outcome.signal(), Some(9), "{outcome}");
        if of == "mpich" {
            let proxy = |r: &Running| {
                let all = r.processes();
                all.iter().find(|(_, l)| l.contains("hydra_pmi_proxy")).map(|(pid, _)| *pid).expect("a proxy")
            };
            let outcome = ended(waiting(&launcher, family, 3, who), |r| die(proxy(r)));
            assert!(outcome.code().is_some_and(|c| c != 0), "{outcome}");
        }
    }
}

/// Ends as under the MPI's own launcher, but for what the launchers themselves make of it.
#[test]
fn statuses_pass_through() {
    for (family, of) in [("openmpi", "mpich"), ("mpich", "openmpi")] {
        let launcher = launcher_of(of);
        let run = |program: &[&str]| {
            let image = image(&format!("bookworm-{family}"));
            launcher.launch(Who::User, 3, &[&["--mpi=bridge", &image], program].concat()).run()
        };
        let outcome = run(&["/opt/examples/abort"]);
        assert_eq!(outcome.code(), Some(3), "{outcome}");
        let outcome = run(&["/opt/examples/exitcode", "1", "exit", "5"]);
        assert_eq!(outcome.code(), Some(5), "{outcome}");
        for way in [["quit", "3"], ["quit", "0"], ["signal", "11"]] {
            let began = Instant::now();
            let outcome = run(&["/opt/examples/exitcode", "1", way[0], way[1], "30"]);
            // hydra makes a 0 of that in 26 of 40 bare runs.
            let is_hydras = of == "mpich" && way == ["quit", "0"];
            assert!(outcome.code() != Some(0) || is_hydras, "{outcome}");
            assert!(began.elapsed() < Duration::from_secs(10), "{outcome}");
        }
        // What never speaks to the helper is no rank that was lost.
        for status in ["0", "4"] {
            let outcome = run(&["sh", "-c", &format!("exit {status}; exec /opt/examples/ring")]);
            assert_eq!(outcome.code().map(|c| c.to_string()).as_deref(), Some(status), "{outcome}");
        }
    }
}

/// Descriptors that something has closed, or that are no sockets, and what contradicts itself.
#[test]
fn what_a_launcher_set_and_is_not_there() {
    let arguments = ["--mpi=bridge", &image("bookworm-mpich"), "/opt/examples/ring"];
    for who in everyone() {
        let bare = |fd: &str| {
            let run = Run::launch(*who, arguments).env("PMI_RANK", "0").env("PMI_SIZE", "1");
            run.env("PMI_FD", fd).run()
        };
        bare("63").refused("pmi-unusable", &["PMI_FD=63 of hydra", "is closed", "closes descriptors"]);
        bare("1").refused("pmi-unusable", &["PMI_FD=1 of hydra", "is no socket"]);
        bare("many").refused("pmi-unusable", &["PMI_FD=many, which is no descriptor"]);
        let pmix = |name: &str, value: &str| {
            let run = Run::launch(*who, arguments).env("PMIX_NAMESPACE", "j").env("PMIX_RANK", "0");
            run.env("OMPI_COMM_WORLD_SIZE", "1").env(name, value).run()
        };
        pmix("PMIX_SECURITY_MODE", "munge")
            .refused("pmi-unusable", &["credentials of kind \"munge\" only", "\"native\""]);
        pmix("PMIX_SERVER_URI41", "x;tcp4://127.0.0.1:1")
            .refused("pmi-unusable", &["offers none of the dialects", "PMIX_SERVER_URI3"]);
        pmix("PMIX_SERVER_URI3", "x;usock:/tmp/x").refused("pmi-unusable", &["no address of TCP"]);
        // Seen when the program first asks for it.
        let outcome = pmix("PMIX_SERVER_URI3", "x;tcp4://127.0.0.1:1");
        assert_ne!(outcome.code(), Some(0), "{outcome}");
        outcome.says(&["hpc-launch: connecting to the launcher's PMI at 127.0.0.1:1: Connection refused"]);
    }
}

/// A launcher inside another one's rank: the inner one counts, which is said, and its ranks are not the outer one's.
#[test]
fn of_two_launchers_the_inner_one_counts() {
    let program = launcher().display().to_string();
    for (outer, inner, images) in [
        ("openmpi", ["mpiexec.hydra", "-n", "3"], ["bookworm-mpich", "bookworm-openmpi"]),
        ("mpich", ["mpirun.openmpi", "-n", "3"], ["bookworm-openmpi", "bookworm-mpich"]),
    ] {
        for name in images {
            let image = image(name);
            let more: &[&str] = if inner[0].starts_with("mpirun") { &["--oversubscribe"] } else { &[] };
            let line =
                [&inner[..1], more, &inner[1..], &[&program, "--mpi=image", &image, "/opt/examples/ring"]];
            let mut line = line.concat();
            if name != images[0] {
                line[inner.len() + more.len() + 1] = "--mpi=bridge";
            }
            let outcome = launcher_of(outer).job(Who::User, 1, &line).run().good();
            assert!(outcome.out().contains("ring of 3 ranks: sum 3 correct"), "{outcome}");
            let text = outcome.out() + &outcome.err();
            assert_eq!(text.matches(" runs inside a rank of ").count(), 1, "{outcome}");
            assert!(text.contains("to be one of "), "{outcome}");
        }
    }
}

/// Two processes that say that they are one rank.
#[test]
fn a_rank_is_there_once() {
    let image = image("bookworm-mpich");
    let program = launcher().display().to_string();
    let line = ["env", "PMI_RANK=1", &program, "--mpi=bridge", &image, "/opt/examples/ring"];
    let outcome = launcher_of("mpich").job(Who::User, 2, &line).run();
    assert_ne!(outcome.code(), Some(0), "{outcome}");
    let text = outcome.out() + &outcome.err();
    assert!(text.contains("[pmi-unusable] rank 1 cannot be joined to its job"), "{outcome}");
    assert!(text.contains("there is a rank 1 on this node already"), "{outcome}");
}

/// The helper's port takes no strangers: neither other users, nor whoever says what is no rank's.
#[test]
fn strangers_are_turned_away() {
    if !host::is_root() {
        return;
    }
    let running = waiting(&launcher_of("mpich"), "openmpi", 2, Who::User);
    let (pid, _) = helper(&running).expect("a helper");
    let port = port_of(pid);
    // We are root, and it is the user's.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open to all");
    let _ = stream.write_all(b"cmd=initack pmiid=0\n");
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(String::from_utf8_lossy(&answer), "");
    // The same user, but no rank.
    let say = "exec 3<>/dev/tcp/127.0.0.1/$0; printf \"$1\" >&3; cat <&3 | od -An -c | head -3";
    for words in ["GET / HTTP/1.0\\r\\n\\r\\n", "cmd=initack pmiid=77\\n", "cmd=get_maxes\\n"] {
        let port = port.to_string();
        let outcome = Run::command(Who::User, ["bash", "-c", say, &port, words]).run().good();
        assert_eq!(outcome.out(), "", "{words}: {outcome}");
    }
    assert!(helper(&running).is_some(), "it has survived all that");
    ended(running, |r| kill(Pid::from_raw(r.pid()), Signal::SIGKILL).expect("killed"));
}

/// The port on which a process listens.
fn port_of(pid: i32) -> u16 {
    let sockets: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("its descriptors")
        .flatten()
        .filter_map(|e| fs::read_link(e.path()).ok())
        .filter_map(|l| Some(l.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").expect("a table");
    let found = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields[3] == "0A" && sockets.contains(fields[9]);
        listens.then(|| u16::from_str_radix(fields[1].split(':').nth(1)?, 16).ok())?
    });
    found.expect("it listens")
}

/// A client of a dialect that we do not speak is named, with what it asked for, and the job ends.
#[test]
fn a_pmix_client_of_another_dialect_is_named() {
    let launcher = launcher_of("mpich");
    let image = image("bookworm-openmpi");
    let outcome = launcher
        .launch(
            Who::User,
            2,
            &[
                "--mpi=bridge",
                &image,
                "env",
                "PMIX_MCA_psec=none",
                "PMIX_SECURITY_MODE=none",
                "/opt/examples/ring",
            ],
        )
        .run();
    assert_ne!(outcome.code(), Some(0), "{outcome}");
    let text = outcome.out() + &outcome.err();
    let said = "offers credentials of kind \"none\"; only \"native\" is spoken";
    assert!(text.contains("hpc-launch: PMIx 4.2.2") && text.contains(said), "{outcome}");
}

/// A rank that floods, half-closes or speaks nonsense hurts its own job only.
#[test]
fn a_hostile_rank_ends_its_own_job() {
    let dir = directory("/var/tmp");
    let script: PathBuf = dir.path().join("hostile.py");
    let source = "import os,socket,sys,time\n\
        s=socket.socket(fileno=os.dup(int(os.environ['PMI_FD'])))\n\
        what=sys.argv[1]\n\
        s.sendall(b'cmd=init pmi_version=1 pmi_subversion=1\\n'); s.recv(100)\n\
        if what=='long':\n\
        \x20   try:\n\
        \x20       for i in range(1024): s.sendall(b'x'*(1<<20))\n\
        \x20   except OSError: pass\n\
        elif what=='flood':\n\
        \x20   try:\n\
        \x20       for i in range(1<<20): s.sendall(b'cmd=get_maxes\\n'*100)\n\
        \x20   except OSError: pass\n\
        elif what=='half': s.shutdown(socket.SHUT_WR)\n\
        else: s.sendall(b'cmd=dance\\n')\n\
        time.sleep(60)\n";
    fs::write(&script, source).unwrap();
    let script = script.display().to_string();
    let python = image("bookworm-python");
    let launcher = launcher_of("openmpi");
    for (what, said) in [
        ("long", Some("rank 0 broke the protocol: ")),
        ("nonsense", Some("rank 0 broke the protocol: PMI-1: the command \"dance\"")),
        ("flood", None),
        ("half", None),
    ] {
        let arguments = [
            "--mpi=bridge",
            "--pmi=descriptor",
            "--bind",
            &script,
            &python,
            "/usr/bin/python3",
            &script,
            what,
        ];
        let mut running = launcher.launch(Who::User, 1, &arguments).start();
        let outcome = match said {
            Some(_) => running.finish(),
            None => {
                // It does not read what it asks for: it is not listened to, and nothing grows.
                running.wait_until("the helper is there", |r| helper(r).is_some());
                std::thread::sleep(Duration::from_secs(1));
                let (pid, _) = helper(&running).expect("it lives");
                let resident = memory_kib(pid, "VmRSS");
                assert!(resident < 8192, "{what}: {resident} KiB");
                ended(running, |r| kill(Pid::from_raw(r.pid()), Signal::SIGTERM).expect("ended"))
            }
        };
        assert_ne!(outcome.code(), Some(0), "{outcome}");
        let text = outcome.out() + &outcome.err();
        assert!(said.is_none_or(|said| text.contains(said)), "{what}: {outcome}");
    }
}

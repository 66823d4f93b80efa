//! Jobs over several hosts: real launchers start hpc-launch on each, and the ranks find each other over the network.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::hosts::{By, HEAD, Host, Hosts};
use hpc_launch_tests::leaks;
use hpc_launch_tests::run::Outcome;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// On each host.
const RANKS: u32 = 2;

/// `None` for a plain user.
fn bed(make: impl FnOnce() -> Hosts) -> Option<Hosts> {
    if !is_root() {
        eprintln!("not run: hosts need root");
        return None;
    }
    Some(make())
}

/// Which image goes with a launcher, and what its MPI calls itself.
fn image(by: By) -> (&'static str, &'static str) {
    match by {
        By::Mpirun | By::Srun("pmix") => ("bookworm-openmpi", "Open MPI v"),
        // Older ones do not find its PMIx.
        By::Prterun => ("trixie-openmpi", "Open MPI v5"),
        By::Hydra | By::Srun(_) => ("bookworm-mpich", "MPICH Version:"),
    }
}

/// Who the ranks are and where: each of them once, as many as there should be on every host.
#[track_caller]
fn check_hello(outcome: &Outcome, names: &[String], library: &str) {
    let ranks = names.len() * RANKS as usize;
    let mut hosts = BTreeMap::new();
    for rank in 0..ranks {
        let (out, start) = (outcome.out(), format!("rank {rank} of {ranks} on "));
        let lines: Vec<&str> = out.lines().filter_map(|l| l.strip_prefix(&start)).collect();
        let &[line] = lines.as_slice() else { panic!("rank {rank}: {} times\n{outcome}", lines.len()) };
        let (host, version) = line.split_once(": ").unwrap_or_else(|| panic!("no host: {line}"));
        assert!(version.contains(library), "another MPI: {line}\n{outcome}");
        *hosts.entry(host.to_owned()).or_insert(0) += 1;
    }
    let expected: BTreeMap<String, u32> = names.iter().map(|name| (name.clone(), RANKS)).collect();
    assert_eq!(hosts, expected, "{outcome}");
}

/// Who is where, and that messages of all kinds arrive.
#[track_caller]
fn check(from: Host, names: &[String], by: By, who: Who, mode: &str) {
    check_image(from, names, by, who, mode, image(by));
}

#[track_caller]
fn check_image(from: Host, names: &[String], by: By, who: Who, mode: &str, (image, library): (&str, &str)) {
    let image = host::image(image).display().to_string();
    let outcome = from.launch(by, who, RANKS, [mode, &image, "/opt/examples/hello"]).run().good();
    check_hello(&outcome, names, library);
    let local = format!("WIREUP_LOCAL={RANKS}");
    let line = [mode, "--env", &local, &image, "/opt/examples/wireup", "200"];
    let outcome = from.launch(by, who, RANKS, line).run().good();
    let ranks = names.len() * RANKS as usize;
    let expected = format!("wireup of {ranks} ranks: ring allreduce shared split put correct");
    assert!(outcome.out().lines().any(|line| line == expected), "{outcome}");
}

/// With the image's MPI and with whatever is best, which is the host's; the launcher on a host without ranks, as from
/// a login node, and on the first of theirs, as from a batch script. In a sample root has the one and the user the
/// other.
fn over(bed: &Hosts, by: By) {
    let before: Vec<leaks::Host> = bed.names().iter().map(|name| bed.on(name).state()).collect();
    for who in everyone() {
        for (from, mode) in
            [(HEAD, "--mpi=image"), ("h1", "--mpi=auto"), (HEAD, "--mpi=auto"), ("h1", "--mpi=image")]
        {
            let root = (from, mode) == (HEAD, "--mpi=image");
            let user = (from, mode) == ("h1", "--mpi=auto");
            if host::full() || root && *who == Who::Root || user && *who == Who::User {
                check(bed.on(from), bed.names(), by, *who, mode);
            }
        }
    }
    for (host, name) in before.iter().zip(bed.names()) {
        host.is_as_before(&format!("{by:?} on {name}"));
    }
}

#[test]
fn two_hosts_under_mpirun() {
    let Some(bed) = bed(|| Hosts::new(2)) else { return };
    over(&bed, By::Mpirun);
}

#[test]
fn two_hosts_under_prterun() {
    let Some(bed) = bed(|| Hosts::new(2)) else { return };
    over(&bed, By::Prterun);
}

#[test]
fn two_hosts_under_hydra() {
    let Some(bed) = bed(|| Hosts::new(2)) else { return };
    over(&bed, By::Hydra);
}

#[test]
fn two_hosts_under_srun_with_pmi2() {
    let Some(bed) = bed(|| Hosts::with_slurm(2)) else { return };
    over(&bed, By::Srun("pmi2"));
}

#[test]
fn two_hosts_under_srun_with_pmix() {
    let Some(bed) = bed(|| Hosts::with_slurm(2)) else { return };
    over(&bed, By::Srun("pmix"));
}

#[test]
fn four_hosts() {
    let Some(bed) = bed(|| Hosts::with_slurm(4)) else { return };
    let all = [By::Hydra, By::Srun("pmix"), By::Mpirun, By::Srun("pmi2"), By::Prterun];
    for by in all.into_iter().take(if host::full() { all.len() } else { 2 }) {
        check(bed.head(), bed.names(), by, Who::User, "--mpi=image");
    }
}

/// An image whose MPI its launcher cannot serve: a helper on each host, which give each other what their ranks put.
fn bridged(bed: &Hosts, by: By, who: Who) {
    let images: &[(&str, &str)] = match by {
        By::Prterun => &[("bookworm-mpich", "MPICH Version:"), ("bookworm-openmpi", "Open MPI v4")],
        By::Mpirun | By::Srun("pmix") => &[("bookworm-mpich", "MPICH Version:")],
        By::Hydra | By::Srun(_) => &[("bookworm-openmpi", "Open MPI v4"), ("trixie-openmpi", "Open MPI v5")],
    };
    for image in images {
        check_image(bed.head(), bed.names(), by, who, "--mpi=bridge", *image);
    }
}

#[test]
fn bridges_over_two_hosts() {
    let Some(bed) = bed(|| Hosts::new(2)) else { return };
    for (n, by) in [By::Mpirun, By::Hydra, By::Prterun].into_iter().enumerate() {
        bridged(&bed, by, everyone()[n % everyone().len()]);
    }
}

#[test]
fn bridges_over_four_hosts_with_slurm() {
    let Some(bed) = bed(|| Hosts::with_slurm(4)) else { return };
    for (n, by) in [By::Srun("pmi2"), By::Srun("pmix"), By::Mpirun, By::Hydra].into_iter().enumerate() {
        if n < 2 || host::full() {
            bridged(&bed, by, everyone()[(n + 1) % everyone().len()]);
        }
    }
}

/// Communicators of all ranks, of those of one host, and of each alone.
fn communicators(bed: &Hosts, by: By, who: Who) {
    for (image, made) in [
        ("trixie-openmpi", "dup split group session correct"),
        ("bookworm-openmpi", "dup split group correct, this MPI has no session"),
    ] {
        let image = host::image(image).display().to_string();
        let line = ["--mpi=bridge", &image, "/opt/examples/communicators"];
        let outcome = bed.head().launch(by, who, RANKS, line).run().good();
        let ranks = bed.names().len() * RANKS as usize;
        let expected = format!("communicators of {ranks} ranks: {made}");
        assert!(outcome.out().lines().any(|line| line == expected), "{outcome}");
        assert!(!outcome.err().contains("hpc-launch:"), "{outcome}");
    }
}

#[test]
fn communicators_over_bridges() {
    let Some(bed) = bed(|| Hosts::with_slurm(2)) else { return };
    for (n, by) in [By::Hydra, By::Srun("pmi2")].into_iter().enumerate() {
        communicators(&bed, by, everyone()[n % everyone().len()]);
    }
}

/// A session's group of some ranks of several hosts would need what launchers do not have: it is refused, and
/// that is said once on each host.
#[test]
fn a_group_of_some_ranks_of_two_hosts_is_refused() {
    let Some(bed) = bed(|| Hosts::new(2)) else { return };
    let image = host::image("trixie-openmpi").display().to_string();
    for who in everyone() {
        let line = ["--mpi=bridge", &image, "/opt/examples/communicators", "ends"];
        let outcome = bed.head().launch(By::Hydra, *who, RANKS, line).run().good();
        assert!(outcome.out().lines().any(|l| l == "communicators of 4 ranks: ends refused"), "{outcome}");
        let said = "of ranks 0, 3 is on several nodes and has not all ranks";
        assert_eq!(outcome.err().matches(said).count(), bed.names().len(), "{outcome}");
        assert!(outcome.err().contains("MPI_Comm_create_group"), "{outcome}");
    }
}

/// Without any PMI ranks of one host can be joined, those of several cannot, which is said once on each.
#[test]
fn srun_without_pmi_over_two_hosts_is_refused() {
    let Some(bed) = bed(|| Hosts::with_slurm(2)) else { return };
    let image = host::image("bookworm-mpich").display().to_string();
    for who in everyone() {
        let run = bed.head().launch(By::Srun("none"), *who, RANKS, [&image, "/opt/examples/hello"]);
        let outcome = run.run();
        let text = outcome.out() + &outcome.err();
        assert_eq!(outcome.code(), Some(125), "{outcome}");
        assert_eq!(text.matches("[pmi-mismatch]").count(), bed.names().len(), "{outcome}");
        assert!(text.contains("the ranks are on several nodes"), "{outcome}");
        assert!(text.contains("srun --mpi=pmi2 or --mpi=pmix"), "{outcome}");
    }
}

/// Values of our own client between helpers, by every way, under every launcher.
#[test]
fn values_pass_between_hosts() {
    let (hosts, ranks) = if host::full() { (16, 16) } else { (4, 3) };
    let Some(bed) = bed(|| Hosts::with_slurm(hosts)) else { return };
    let image = host::image("bookworm-mpich").display().to_string();
    let bind = format!("{}:/opt/hpc-launch:ro", host::launcher().display());
    for by in [By::Mpirun, By::Hydra, By::Srun("pmi2"), By::Srun("pmix")] {
        for (way, protocol) in [("descriptor", "pmi1"), ("port", "pmi2"), ("pmix", "pmix")] {
            let line = ["--mpi=bridge", "--pmi", way, "--bind", &bind, &image, "/opt/hpc-launch", "pmi"];
            let exchange = ["exchange", "--size=700", "--protocol", protocol];
            let arguments: Vec<&str> = line.iter().chain(&exchange).copied().collect();
            let outcome = bed.head().launch(by, Who::User, ranks, arguments).run().good();
            let expected = format!("exchange of {} ranks, 700 bytes each, over PMI", hosts as u32 * ranks);
            assert!(outcome.out().contains(&expected) && outcome.out().contains(": correct;"), "{outcome}");
        }
    }
}

/// What the other tests rely on: that hosts are apart, and that everybody is himself on all of them.
#[test]
fn hosts_are_apart() {
    let Some(bed) = bed(|| Hosts::new(2)) else { return };
    assert_eq!(bed.names(), ["h1", "h2"]);
    for who in everyone() {
        let account = who.account();
        // From the head to the first and on to the second, where nothing of the first is.
        let line = format!(
            "echo $(hostname) $(id -un); touch /tmp/mine /dev/shm/mine {2}/ours.{1}; sleep 50 & \
             {0} -x h2 'echo $(hostname) $(id -un) $PWD; ls /tmp/mine /dev/shm/mine 2> /dev/null; ls {2}; \
             ps -eo args | grep -c [s]leep; exit 7'; status=$?; kill $!; exit $status",
            bed.rsh().display(),
            account.name,
            bed.shared().display()
        );
        let outcome = bed.on("h1").shell(*who, &line).run();
        let (name, home) = (&account.name, account.home.display());
        let expected = format!("h1 {name}\nh2 {name} {home}\nours.{name}\n0\n");
        assert_eq!((outcome.out(), outcome.code()), (expected, Some(7)), "{outcome}");
        bed.on("h1").shell(*who, "rm /tmp/mine /dev/shm/mine").run().good();
        fs::remove_file(bed.shared().join(format!("ours.{name}"))).unwrap();
    }
}

/// Signals go there, and how a program ends comes back.
#[test]
fn a_program_on_a_host_is_as_good_as_one_here() {
    let Some(bed) = bed(|| Hosts::new(1)) else { return };
    for who in everyone() {
        let script = "trap 'echo usr1' USR1; echo up; until [ -e /tmp/end ]; do sleep 0.01; done";
        let mut running = bed.on("h1").shell(*who, script).start();
        running.wait_until("it is up", |r| r.out() == "up\n");
        kill(Pid::from_raw(running.pid()), Signal::SIGUSR1).unwrap();
        running.wait_until("it has the signal", |r| r.out() == "up\nusr1\n");
        let on_h1 = bed.on("h1").processes();
        let shell = on_h1.iter().find(|(_, line)| line.contains("trap")).unwrap();
        assert_eq!((bed.of(shell.0), bed.of(running.pid())), (Some("h1"), None), "{on_h1:#?}");
        kill(Pid::from_raw(running.pid()), Signal::SIGTERM).unwrap();
        assert_eq!(running.finish().signal(), Some(Signal::SIGTERM as i32));

        assert_eq!(bed.head().shell(*who, "kill -KILL $$").run().signal(), Some(9));
        assert_eq!(bed.head().command(*who, ["/nonesuch"]).run().code(), Some(127));
        let cat = bed.head().command(*who, ["cat"]).stdin(vec![b'x'; 1 << 20]).run().good();
        assert_eq!(cat.stdout.len(), 1 << 20);
        let line = "echo $PWD $A";
        bed.on("h1").shell(*who, line).cwd("/var/tmp").env("A", "b c").run().prints("/var/tmp b c");
    }
}

/// A host can die and its wire can be cut, and the others notice or do not, as on a cluster.
#[test]
fn hosts_die() {
    let Some(bed) = bed(|| Hosts::new(2)) else { return };
    let rsh = bed.rsh().display().to_string();
    let mut running = bed.head().shell(Who::User, &format!("{rsh} h2 'echo up; sleep 50'")).start();
    running.wait_until("it is up", |r| r.out() == "up\n");
    bed.on("h2").unplug();
    let reach = |seconds| {
        let line = ["timeout", seconds, "bash", "-c", "exec 3<>/dev/tcp/h2/9"];
        bed.on("h1").command(Who::User, line).run()
    };
    assert_eq!(reach("0.3").code(), Some(124), "the wire is cut");
    bed.on("h2").plug();
    // Nobody listens there, but the host answers.
    reach("10").says(&["Connection refused"]);
    let on_h2 = bed.on("h2").processes();
    assert!(!on_h2.is_empty(), "there should be a shell");
    bed.on("h2").kill();
    assert!(on_h2.iter().all(|(pid, _)| bed.of(*pid).is_none()), "{on_h2:#?}");
    let outcome = running.finish();
    assert_eq!(outcome.code(), Some(255), "{outcome}");
    assert_eq!(bed.on("h2").command(Who::User, ["true"]).run().code(), Some(255));
    bed.on("h1").command(Who::User, ["true"]).run().good();
}

/// Nothing of a bed is there after it: no process, no file, no mount.
#[test]
fn a_bed_leaves_nothing() {
    let Some(bed) = bed(|| Hosts::with_slurm(2)) else { return };
    let (rsh, shared) = (bed.rsh(), bed.shared().to_owned());
    let daemons = [HEAD, "h1", "h2"].map(|name| bed.on(name).processes());
    assert!(daemons.iter().all(|d| !d.is_empty()), "{daemons:#?}");
    let script = format!(
        "setsid sleep 1000 & {} h2 'setsid sleep 1000 < /dev/null > /dev/null 2>&1 &'",
        rsh.display()
    );
    let mut running = bed.on("h1").shell(Who::User, &script).limit(Duration::from_secs(20)).start();
    running
        .wait_until("both sleep", |r| r.processes().iter().filter(|(_, l)| l == "sleep 1000").count() == 2);
    let all = daemons.into_iter().flatten().chain(running.processes());
    let pids: Vec<i32> = all.map(|(pid, _)| pid).filter(|pid| bed.of(*pid).is_some()).collect();
    assert!(pids.len() >= 6, "munged, slurmctld, two slurmd, two sleep: {pids:?}");
    drop(bed);
    let left: Vec<&i32> =
        pids.iter().filter(|pid| fs::exists(format!("/proc/{pid}/ns/pid")).unwrap()).collect();
    assert!(left.is_empty(), "{left:?} of {pids:?}");
    assert!(!rsh.parent().unwrap().exists() && !shared.exists());
    running.finish();
}

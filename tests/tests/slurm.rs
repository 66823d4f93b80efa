//! Under a real Slurm: `srun hpc-launch IMAGE PROGRAM` with each PMI that it offers, and what srun sees of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone, is_root, launcher};
use hpc_launch_tests::host_mpi;
use hpc_launch_tests::image::directory;
use hpc_launch_tests::leaks::Host;
use hpc_launch_tests::run::{Outcome, Run};
use hpc_launch_tests::slurm::{Meeting, Slurm};

const SUITES: [&str; 3] = ["bookworm", "bullseye", "trixie"];
const RANKS: u32 = 4;

/// A Slurm for one test, and the host as it was before: one test at a time, since each looks at the
/// whole host.
struct Bed {
    slurm: Slurm,
    before: Host,
    _alone: MutexGuard<'static, ()>,
}

impl Bed {
    /// `None` for a plain user, who cannot start Slurm.
    fn new() -> Option<Bed> {
        Bed::with(None)
    }

    fn with(tmpfs: Option<&Path>) -> Option<Bed> {
        static ONE: Mutex<()> = Mutex::new(());
        if !is_root() {
            eprintln!("not run: Slurm's daemons need root");
            return None;
        }
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Bed { slurm: Slurm::start_with(tmpfs), before: Host::now(), _alone: alone })
    }

    /// Asserts that neither we nor Slurm left anything behind.
    #[track_caller]
    fn is_clean(&self, after: &str) {
        self.slurm.is_clean(after);
        self.before.is_as_before(after);
    }
}

fn image(suite: &str, mpi: &str) -> String {
    host::image(&format!("{suite}-{mpi}")).to_str().expect("UTF-8").to_owned()
}

/// One example program in one image, its result checked.
#[track_caller]
fn check(run: &Run, program: &str, library: &str) {
    let outcome = run.run().good();
    // UCX 1.10 (bullseye) says on standard output, on a bare host too, that there is no RDMA here.
    let lines: Vec<String> =
        outcome.out().lines().filter(|l| !l.contains(" UCX  ERROR ")).map(String::from).collect();
    let expected = match program {
        "hello" => return check_hello(&lines, library, &outcome),
        "ring" => "ring of 4 ranks: sum 6 correct",
        "allreduce" => "allreduce over 4 ranks: correct",
        "cma" => "cma: 4 of 4 reads correct",
        _ => panic!("no such program: {program}"),
    };
    assert_eq!(lines, [expected], "{outcome}");
}

/// Every rank exactly once, each of the whole job, with the image's MPI.
#[track_caller]
fn check_hello(lines: &[String], library: &str, outcome: &Outcome) {
    let mut seen = BTreeSet::new();
    for line in lines {
        let rank = line.strip_prefix("rank ").and_then(|l| l.split_once(&format!(" of {RANKS} on ")));
        let Some((rank, rest)) = rank else { panic!("no rank of {RANKS}: {line}\n{outcome}") };
        assert!(rest.contains(library), "another MPI: {line}\n{outcome}");
        seen.insert(rank.parse::<u32>().expect("a number"));
    }
    assert_eq!(lines.len(), RANKS as usize, "{outcome}");
    assert_eq!(seen, (0..RANKS).collect(), "{outcome}");
}

/// Every program, or a sample: the plain user meets every image and every program, root what differs for it.
fn programs(suite: &str, who: Who) -> &'static [&'static str] {
    match (suite, who) {
        _ if host::full() => &["hello", "ring", "allreduce", "cma"],
        ("bookworm", Who::User) => &["hello", "ring", "allreduce", "cma"],
        ("bookworm", Who::Root) => &["hello", "cma"],
        (_, Who::User) => &["hello"],
        (_, Who::Root) => &[],
    }
}

/// MPICH 3.4 to 4.2 speak PMI-1 on the descriptor that slurmstepd leaves open.
#[test]
fn mpich_under_pmi2() {
    let Some(bed) = Bed::new() else { return };
    for who in everyone() {
        for suite in SUITES {
            for program in programs(suite, *who) {
                let path = format!("/opt/examples/{program}");
                let run = bed.slurm.launch(*who, "pmi2", RANKS, [&image(suite, "mpich"), &path]);
                check(&run, program, "MPICH Version:");
            }
        }
    }
    bed.is_clean("MPICH under srun --mpi=pmi2");
}

/// Slurm's plugin is a PMIx 4 server; the images' Open MPI bring PMIx 3, 4 and 5, and all three work.
#[test]
fn open_mpi_under_pmix() {
    let Some(bed) = Bed::new() else { return };
    for who in everyone() {
        for suite in SUITES {
            for program in programs(suite, *who) {
                let path = format!("/opt/examples/{program}");
                let run = bed.slurm.launch(*who, "pmix", RANKS, [&image(suite, "openmpi"), &path]);
                check(&run, program, "Open MPI v");
            }
        }
    }
    bed.is_clean("Open MPI under srun --mpi=pmix");
}

/// Slurm's daemon has no MPI of its own: the host's is found by PATH and the loader's cache.
#[test]
fn the_hosts_mpi_under_srun() {
    let Some(bed) = Bed::new() else { return };
    for who in everyone() {
        for (host, offer) in host_mpi::all().iter().zip(["pmix", "pmi2"]) {
            for suite in SUITES {
                let image = image(suite, host.family);
                let run = bed.slurm.launch(*who, offer, RANKS, [&image, "/opt/examples/whose"]);
                let outcome = run.run().good();
                let mpis = host_mpi::mapped(&outcome);
                assert!(!mpis.is_empty(), "{outcome}");
                assert!(mpis.iter().all(|(n, _)| *n == host_mpi::inode(&host.library)), "{outcome}");
                assert!(outcome.out().contains(&format!("rank {} of {RANKS}", RANKS - 1)), "{outcome}");
            }
        }
    }
    bed.is_clean("the host's MPI under srun");
}

/// Ranks that cannot hear srun would run as jobs of one, or hang: they are bridged, also where srun offers nothing.
#[test]
fn an_image_that_srun_cannot_wire_up_is_bridged() {
    let Some(bed) = Bed::new() else { return };
    for who in everyone() {
        for suite in SUITES {
            if suite != SUITES[1] && !host::full() {
                continue;
            }
            for (offer, mpi, library) in [
                ("none", "mpich", "MPICH Version:"),
                ("none", "openmpi", "Open MPI v"),
                ("pmi2", "openmpi", "Open MPI v"),
                ("pmix", "mpich", "MPICH Version:"),
            ] {
                for program in ["hello", "ring"] {
                    let path = format!("/opt/examples/{program}");
                    let run = bed.slurm.launch(*who, offer, RANKS, [&image(suite, mpi), &path]);
                    check(&run, program, library);
                }
            }
        }
    }
    bed.is_clean("bridges");
}

/// What needs no MPI needs no PMI, and who insists gets jobs of one, and is told so once.
#[test]
fn without_pmi_other_programs_run_and_mpi_runs_on_request() {
    let Some(bed) = Bed::new() else { return };
    let image = image("bookworm", "mpich");
    for who in everyone() {
        let none = |arguments: &[&str]| bed.slurm.launch(*who, "none", RANKS, arguments).run().good();
        let outcome = none(&[&image, "/bin/true"]);
        // Where the job before has not left yet, srun says that this one waits.
        let said = outcome.err().lines().filter(|l| !l.starts_with("srun: job ")).count();
        assert_eq!((outcome.out(), said), (String::new(), 0), "{outcome}");

        let outcome = none(&[&image, "sh", "-c", "echo $SLURM_PROCID of $SLURM_NTASKS"]);
        let mut lines: Vec<String> = outcome.out().lines().map(String::from).collect();
        lines.sort();
        assert_eq!(lines, ["0 of 4", "1 of 4", "2 of 4", "3 of 4"], "{outcome}");

        let outcome = none(&["--mpi=image", &image, "/opt/examples/hello"]);
        assert_eq!(outcome.out().matches("rank 0 of 1 on ").count(), RANKS as usize, "{outcome}");
        let told =
            outcome.err().matches("hpc-launch: --mpi=image overrides: Slurm's srun offers no PMI").count();
        assert_eq!(told, 1, "to be said once per node\n{outcome}");
    }
    bed.is_clean("programs without PMI");
}

/// Different lines of output.
fn distinct(outcome: &Outcome) -> BTreeSet<String> {
    outcome.out().lines().filter(|l| l.contains(":[")).map(String::from).collect()
}

/// slurmstepd gives only the first task of a node a TMPDIR (=/tmp) when the user has none: that must
/// not give the first rank a sandbox of its own.
#[test]
fn the_ranks_of_a_step_share_one_sandbox() {
    let Some(bed) = Bed::new() else { return };
    let image = image("bookworm", "mpich");
    for who in everyone() {
        for (mpi, tmpdir) in [("none", None), ("pmi2", None), ("pmix", None), ("pmi2", Some("/tmp"))] {
            let meeting = Meeting::new();
            let script = format!("readlink /proc/self/ns/mnt; {}", meeting.wait(RANKS));
            let run = bed.slurm.launch(*who, mpi, RANKS, [&image, "sh", "-c", &script]);
            let run = tmpdir.map_or(run.clone(), |dir| run.env("TMPDIR", dir));
            let outcome = run.run().good();
            assert_eq!(outcome.out().lines().count(), RANKS as usize, "{outcome}");
            assert_eq!(distinct(&outcome).len(), 1, "TMPDIR {tmpdir:?}: several sandboxes\n{outcome}");
        }
    }
    bed.is_clean("steps that share");
}

/// Two steps that run at the same time on the same node are as different as two jobs.
#[test]
fn two_steps_of_a_job_have_different_sandboxes() {
    let Some(bed) = Bed::new() else { return };
    let image = image("bookworm", "mpich");
    let launcher = launcher().display();
    for who in everyone() {
        let meeting = Meeting::new();
        let program = format!("echo $SLURM_STEP_ID $(readlink /proc/self/ns/mnt); {}", meeting.wait(4));
        let step = format!("srun --overlap --mpi=pmi2 -n 2 {launcher} {image} sh -c '{program}'");
        let script = format!("{step} & a=$!; {step} & wait $! && wait $a");
        let outcome = bed.slurm.command(*who, ["salloc", "-n", "4", "sh", "-c", &script]).run().good();
        let of = |step: &str| -> BTreeSet<String> {
            distinct(&outcome).iter().filter_map(|l| l.strip_prefix(step)).map(String::from).collect()
        };
        assert_eq!(outcome.out().lines().count(), 4, "{outcome}");
        assert!(of("0 ").is_disjoint(&of("1 ")), "one sandbox for two steps\n{outcome}");
        assert_eq!((of("0 ").len(), of("1 ").len()), (1, 1), "several sandboxes in a step\n{outcome}");
    }
    bed.is_clean("two steps");
}

/// The usual batch script: one step after the other, and Open MPI's and MPICH's own launchers too. The
/// script itself is no rank: a program in it is a job of one.
#[test]
fn a_batch_script_of_several_steps() {
    let Some(bed) = Bed::new() else { return };
    let (mpich, open_mpi) = (image("bookworm", "mpich"), image("bookworm", "openmpi"));
    let launcher = launcher().display();
    let all = if host::full() { everyone() } else { &[Who::User] };
    for who in all {
        let work = Meeting::new();
        let at = |name: &str| work.path().join(name).display().to_string();
        let script = format!(
            "#!/bin/sh
            exec 2>&1
            srun --mpi=pmi2 {launcher} {mpich} /opt/examples/ring; echo srun pmi2 $?
            srun --mpi=pmix {launcher} {open_mpi} /opt/examples/allreduce; echo srun pmix $?
            mpiexec.hydra -n 4 {launcher} {mpich} /opt/examples/cma; echo hydra $?
            mpirun.openmpi -n 4 {launcher} {open_mpi} /opt/examples/ring; echo mpirun $?
            {launcher} {mpich} /opt/examples/ring; echo alone $?
            : > {}
            ",
            at("end")
        );
        fs::write(at("script"), script).expect("a file");
        // It waits, so that what the job leaves behind is seen as its own.
        let wait = "sbatch -Q -n 4 -o \"$0\" \"$1\" && until [ -e \"$2\" ]; do sleep 0.1; done; cat \"$0\"";
        let line = ["sh", "-c", wait, &at("output"), &at("script"), &at("end")];
        let run = bed.slurm.command(*who, line).env("OMPI_ALLOW_RUN_AS_ROOT", "1");
        let run = run.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        let expected = "ring of 4 ranks: sum 6 correct\nsrun pmi2 0\n\
                        allreduce over 4 ranks: correct\nsrun pmix 0\n\
                        cma: 4 of 4 reads correct\nhydra 0\n\
                        ring of 4 ranks: sum 6 correct\nmpirun 0\n\
                        ring of 1 ranks: sum 0 correct\nalone 0\n";
        let outcome = run.run().good();
        // srun says so itself when the step before has not quite gone: "Job 1 step creation temporarily disabled".
        let said = outcome.out();
        let lines =
            said.lines().filter(|l| !l.starts_with("srun: Job ") && !l.starts_with("srun: Step created"));
        assert_eq!(lines.collect::<Vec<_>>(), expected.lines().collect::<Vec<_>>(), "{outcome}");
    }
    bed.is_clean("batch scripts");
}

/// The line of a rank that fails, without the step's number, which differs.
fn srun_says(outcome: &Outcome) -> BTreeSet<String> {
    let text = outcome.err();
    let lines = text.lines().filter(|l| l.contains("error: ") && l.contains(": task"));
    lines.map(String::from).collect()
}

/// Statuses and signals of a rank reach srun as they would without us.
#[test]
fn how_a_rank_ends_is_told_to_srun() {
    let Some(bed) = Bed::new() else { return };
    let image = image("bookworm", "mpich");
    let ends = [
        ("exit 7", 7, "task 2: Exited with exit code 7"),
        ("kill -TERM $$", 143, "task 2: Terminated"),
        ("kill -KILL $$", 137, "task 2: Killed"),
        ("kill -SEGV $$", 139, "task 2: Segmentation fault"),
    ];
    for who in everyone() {
        for (end, status, says) in ends {
            let script = format!("ulimit -c 0; [ $SLURM_PROCID != 2 ] || {end}");
            let inside = bed.slurm.launch(*who, "pmi2", RANKS, [&image, "sh", "-c", &script]).run();
            let bare = bed.slurm.srun(*who, "pmi2", RANKS, ["sh", "-c", &script]).run();
            assert_eq!(inside.code(), Some(status), "{inside}");
            assert_eq!(inside.code(), bare.code(), "{bare}\n{inside}");
            let inside = inside.says(&[says]);
            assert_eq!(srun_says(&inside), srun_says(&bare), "{bare}\n{inside}");
        }
    }
    bed.is_clean("ranks that fail");
}

/// With `-K` srun ends the job when a rank is killed. The others are in the middle of something.
#[test]
fn a_killed_rank_ends_the_job() {
    let Some(bed) = Bed::new() else { return };
    for who in everyone() {
        for image in [image("bookworm", "mpich"), image("bookworm", "mpich.sqfs")] {
            let meeting = Meeting::new();
            let script =
                format!("{}; [ $SLURM_PROCID != 2 ] || kill -KILL $$; sleep 50", meeting.wait(RANKS));
            let run = bed.slurm.launch(*who, "pmi2", RANKS, [&image, "sh", "-c", &script]);
            let outcome = run.env("SLURM_KILL_BAD_EXIT", "1").run().says(&["task 2: Killed"]);
            assert_ne!(outcome.code(), Some(0), "{outcome}");
            assert!(outcome.wall < Duration::from_secs(30), "the others ran on\n{outcome}");
        }
    }
    bed.is_clean("killed ranks");
}

/// scancel ends ranks with TERM, as it does outside.
#[test]
fn scancel_ends_the_ranks() {
    let Some(bed) = Bed::new() else { return };
    for who in everyone() {
        for image in [image("bookworm", "mpich"), image("bookworm", "mpich.sqfs")] {
            let meeting = Meeting::new();
            // The shell tells what it got, into a file: srun does not wait for the last words.
            let script = format!(
                "trap 'echo TERM > {}/TERM.$SLURM_PROCID; exit 0' TERM; {}; while :; do sleep 0.1; done",
                meeting.path().display(),
                meeting.wait(RANKS)
            );
            let run = bed.slurm.launch(*who, "pmi2", RANKS, [&image, "sh", "-c", &script]);
            let running = run.env("SLURM_JOB_NAME", "to-be-cancelled").start();
            meeting.have_come(RANKS as usize);
            bed.slurm.cancel("to-be-cancelled");
            let outcome = running.finish().says(&["CANCELLED"]);
            meeting.have_come(2 * RANKS as usize);
            assert!(outcome.wall < Duration::from_secs(30), "the ranks ran on\n{outcome}");
        }
    }
    bed.is_clean("scancel");
}

/// What srun binds a rank to, it stays bound to.
#[test]
fn srun_binds_ranks_to_cpus() {
    let Some(bed) = Bed::new() else { return };
    let image = image("bookworm", "mpich");
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).expect("a list").trim();
    let (first, last) = (
        allowed.split([',', '-']).next().expect("a number"),
        allowed.rsplit([',', '-']).next().expect("a number"),
    );
    let script = "while read key value; do [ $key != Cpus_allowed_list: ] || echo $SLURM_PROCID $value; \
                  done < /proc/self/status";
    for who in everyone() {
        let bind = format!("--cpu-bind=map_cpu:{first},{last},{last},{first}");
        let launch = [bind.as_str(), launcher().to_str().expect("UTF-8"), &image, "sh", "-c", script];
        let outcome = bed.slurm.srun(*who, "pmi2", RANKS, launch).run().good();
        let mut lines: Vec<String> = outcome.out().lines().map(String::from).collect();
        lines.sort();
        let expected = [format!("0 {first}"), format!("1 {last}"), format!("2 {last}"), format!("3 {first}")];
        assert_eq!(lines, expected, "{outcome}");
    }
    bed.is_clean("bound ranks");
}

/// One server for all ranks of the node, gone soon after them.
#[test]
fn one_squashfuse_serves_the_step() {
    let Some(bed) = Bed::new() else { return };
    let image = image("bookworm", "mpich.sqfs");
    let meeting = Meeting::new();
    let end = meeting.path().join("end");
    let script = format!("{}; until [ -e {} ]; do sleep 0.05; done", meeting.wait(RANKS), end.display());
    let running = bed.slurm.launch(Who::User, "pmi2", RANKS, [&image, "sh", "-c", &script]).start();
    meeting.have_come(RANKS as usize);
    let mut servers = running.processes();
    servers.retain(|(_, line)| line.contains("squashfuse"));
    fs::write(&end, "").expect("a file");
    // It looks for processes that live on, squashfuse among them.
    running.finish().good();
    assert_eq!(servers.len(), 1, "{servers:#?}");
    bed.is_clean("a step from SquashFS");

    let run = bed.slurm.launch(Who::User, "pmi2", RANKS, [&image, "/opt/examples/allreduce"]);
    check(&run, "allreduce", "MPICH Version:");
    bed.is_clean("MPI from SquashFS");
}

/// Open MPI makes its session directory below one that Slurm makes for the step, where the site says.
/// Ranks are told through PMIx only, not in their environment.
#[test]
fn slurms_directory_for_the_step_is_shown_wherever_it_is() {
    let Some(bed) = Bed::new() else { return };
    let elsewhere = directory("/var/tmp");
    for suite in ["bookworm", "trixie"] {
        let arguments = [&image(suite, "openmpi"), "/opt/examples/hello"];
        let run = bed.slurm.launch(Who::User, "pmix", RANKS, arguments);
        check(&run.env("SLURM_PMIX_TMPDIR", elsewhere.path()), "hello", "Open MPI v");
    }
    bed.is_clean("SLURM_PMIX_TMPDIR");
}

/// The same, where slurm.conf says so.
#[test]
fn slurms_directory_for_the_step_is_shown_wherever_slurm_conf_has_it() {
    let elsewhere = directory("/var/tmp");
    let Some(bed) = Bed::with(Some(elsewhere.path())) else { return };
    let arguments = [&image("bookworm", "openmpi"), "/opt/examples/hello"];
    check(&bed.slurm.launch(Who::User, "pmix", RANKS, arguments), "hello", "Open MPI v");
    bed.is_clean("TmpFS");
}

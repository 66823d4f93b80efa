//! Many jobs of many ranks, some of which die at the worst moment: no failure, nothing left behind.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hpc_launch_tests::host::{self, Who, everyone, full};
use hpc_launch_tests::leaks::Host;
use hpc_launch_tests::run::{Outcome, Run, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One job at a time: the tests look at the whole host.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn images() -> [PathBuf; 2] {
    [host::image("bookworm-mpich"), host::image("bookworm-mpich.sqfs")]
}

/// A launcher of the simplest kind: a shell whose children are the ranks of one PMIx namespace. Unlike
/// the real ones it lets the others run on when a rank dies.
fn shell_launcher(who: Who, image: &std::path::Path, ranks: u32, program: &str) -> Run {
    let script = format!(
        "r=0; while [ $r -lt {ranks} ]; do PMIX_NAMESPACE=stress PMIX_RANK=$r \"$0\" \"$1\" /bin/sh -c '{program}' & \
         r=$((r + 1)); done; wait"
    );
    Run::command(who, ["/bin/sh", "-c", &script])
        .args([host::launcher(), image])
        .limit(Duration::from_secs(20))
}

/// Numbers that are the same in every run of the same seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

fn ranks_of(running: &Running) -> Vec<i32> {
    children(running.pid())
}

fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|p| p.parse().ok()).collect()
}

#[track_caller]
fn nothing_refused(outcome: &Outcome) {
    assert!(!outcome.err().contains("hpc-launch: ["), "{outcome}");
}

fn count(outcome: &Outcome, word: &str) -> usize {
    outcome.out().lines().filter(|l| l.starts_with(word)).count()
}

/// Jobs of 16 ranks that end at once, and jobs whose first rank ends at once.
#[test]
fn short_jobs() {
    let _alone = alone();
    let before = Host::now();
    let jobs = if full() { 200 } else { 6 };
    for who in everyone() {
        for image in images() {
            let image = image.to_str().unwrap();
            for job in 0..jobs {
                let outcome = Run::hydra(*who, 16, [image, "/bin/true"]).run().good();
                nothing_refused(&outcome);
                let program = "[ $PMI_RANK = 0 ] && exit 0; sleep 0.1; echo up";
                let outcome = Run::hydra(*who, 16, [image, "/bin/sh", "-c", program]).run().good();
                nothing_refused(&outcome);
                assert_eq!(count(&outcome, "up"), 15, "job {job}: {outcome}");
            }
            before.is_as_before("jobs of 16 ranks");
        }
        let image = host::image("bookworm-openmpi");
        for _ in 0..jobs {
            let run = Run::mpirun(*who, 16, [image.to_str().unwrap(), "/bin/true"]);
            nothing_refused(&run.env("OMPI_MCA_odls_base_cutoff", "100000").run().good());
        }
        before.is_as_before("jobs of 16 ranks under mpirun");
    }
}

/// A random rank is killed at a random instant of start-up: all others start.
#[test]
fn a_rank_that_is_killed_takes_nobody_along() {
    let _alone = alone();
    let before = Host::now();
    let jobs = if full() { 300 } else { 24 };
    let seed = 0x9e37_79b9_7f4a_7c15;
    println!("seed {seed:#x}, {jobs} jobs");
    let mut random = Random(seed);
    let mut killed = 0;
    for job in 0..jobs {
        let image = &images()[job % 2];
        let who = everyone()[job / 2 % everyone().len()];
        let running = shell_launcher(who, image, 12, "echo up; sleep 0.4").start();
        thread::sleep(Duration::from_micros(random.below(25_000)));
        let ranks = ranks_of(&running);
        if !ranks.is_empty() {
            let victim = ranks[random.below(ranks.len() as u64) as usize];
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
            killed += 1;
        }
        let outcome = running.finish();
        nothing_refused(&outcome);
        let up = count(&outcome, "up");
        assert!(up >= 11, "job {job}: only {up} of 12 ranks started\n{outcome}");
    }
    assert!(killed * 2 > jobs, "only {killed} of {jobs} jobs had a rank to kill");
    before.is_as_before("killed ranks");
}

/// The same under hydra, which then ends the job: nothing hangs, nothing stays.
#[test]
fn a_job_whose_rank_is_killed_ends_as_it_does_bare() {
    let _alone = alone();
    let before = Host::now();
    let jobs = if full() { 100 } else { 8 };
    let mut random = Random(0x0123_4567_89ab_cdef);
    for job in 0..jobs {
        let image = images()[job % 2].clone();
        let run = Run::hydra(Who::User, 16, [image.to_str().unwrap(), "/bin/sleep", "0.3"]);
        let running = run.limit(Duration::from_secs(20)).start();
        thread::sleep(Duration::from_micros(random.below(40_000)));
        let mine = running.processes();
        // The proxy's children, and not what stands beside them: a squashfuse has their command line at first.
        let proxies = mine.iter().filter(|(_, line)| line.contains("hydra_pmi_proxy"));
        let ranks: Vec<i32> = proxies.flat_map(|(pid, _)| children(*pid)).collect();
        if !ranks.is_empty() {
            let victim = ranks[random.below(ranks.len() as u64) as usize];
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        }
        nothing_refused(&running.finish());
    }
    before.is_as_before("killed ranks under hydra");
}

/// A builder that is stopped is waited for, and one that is killed while stopped is replaced.
#[test]
fn a_builder_that_stops() {
    let _alone = alone();
    let before = Host::now();
    let mut random = Random(0xfeed_face_cafe_beef);
    for job in 0..if full() { 60 } else { 10 } {
        let image = &images()[job % 2];
        let running = shell_launcher(Who::User, image, 8, "echo up; sleep 0.2").start();
        let deadline = Instant::now() + Duration::from_secs(2);
        let first = loop {
            if let Some(first) = ranks_of(&running).first() {
                break *first;
            }
            assert!(Instant::now() < deadline, "no rank was started");
        };
        thread::sleep(Duration::from_micros(random.below(3_000)));
        let _ = kill(Pid::from_raw(first), Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(100));
        let dies = job % 3 == 0;
        let _ = kill(Pid::from_raw(first), if dies { Signal::SIGKILL } else { Signal::SIGCONT });
        let outcome = running.finish();
        nothing_refused(&outcome);
        assert!(count(&outcome, "up") >= if dies { 7 } else { 8 }, "{outcome}");
    }
    before.is_as_before("stopped builders");
}

/// All ranks of a job are in one user and one mount namespace, whenever they come and whoever has gone.
#[test]
fn one_sandbox_for_a_job() {
    let _alone = alone();
    let show = "echo $(readlink /proc/self/ns/user) $(readlink /proc/self/ns/mnt); sleep 0.6";
    let same = |outcome: &Outcome, ranks: usize| {
        let text = outcome.out();
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("user:[")).collect();
        assert_eq!(lines.len(), ranks, "{outcome}");
        assert!(lines.iter().all(|l| l == &lines[0]), "{outcome}");
    };
    for who in everyone() {
        for image in images() {
            let image = image.to_str().unwrap();
            same(&Run::hydra(*who, 16, [image, "/bin/sh", "-c", show]).run().good(), 16);
            // The first comes and goes before the last has come; some wrappers do not exec.
            for wrapper in
                ["sleep 0.0$PMI_RANK; exec \"$0\" \"$@\"", "sleep 0.0$PMI_RANK; \"$0\" \"$@\"; true"]
            {
                let program = format!("[ $PMI_RANK = 0 ] && exit 0; {show}");
                let run = Run::command(*who, ["mpiexec.hydra", "-n", "8", "/bin/sh", "-c", wrapper])
                    .args([host::launcher()])
                    .args([image, "/bin/sh", "-c", &program]);
                same(&run.run().good(), 7);
            }
        }
    }
}

/// Each rank has ended before the next one starts: they share a sandbox all the same, for as long as the
/// launcher lives.
#[test]
fn ranks_that_never_meet() {
    let _alone = alone();
    for image in images() {
        for who in everyone() {
            let before = Host::now();
            let script = "r=0; while [ $r -lt 16 ]; do PMIX_NAMESPACE=stress PMIX_RANK=$r OMPI_COMM_WORLD_LOCAL_RANK=$r \
                          \"$0\" \"$1\" stat -c %z /run/hpc-launch; r=$((r + 1)); done";
            let outcome = Run::command(*who, ["/bin/sh", "-c", script])
                .args([host::launcher(), &image])
                .limit(Duration::from_secs(20))
                .run()
                .good();
            let said = outcome.out();
            // By the time at which each was made: numbers of namespaces are used again.
            let sandboxes: BTreeSet<&str> = said.lines().collect();
            assert_eq!(said.lines().count(), 16, "{outcome}");
            // The first rank's, which leaves nobody behind, and the second's.
            assert_eq!(sandboxes.len(), 2, "{who:?} {}: {outcome}", image.display());
            before.is_as_before("16 ranks, one after the other");
        }
    }
}

/// Two images in one job: two mount namespaces, one user namespace, so that memory can be read across.
#[test]
fn two_images_in_one_job() {
    let _alone = alone();
    let [directory, file] = images();
    let launcher = host::launcher().to_str().unwrap().to_owned();
    let (a, b) = (directory.to_str().unwrap(), file.to_str().unwrap());
    for who in everyone() {
        let job = |program: &[&str]| {
            let mut line = vec!["mpiexec.hydra", "-n", "2", &launcher, a];
            line.extend(program);
            line.extend([":", "-n", "2", &launcher, b]);
            line.extend(program);
            Run::command(*who, line).run().good()
        };
        let program = "readlink /proc/self/ns/user /proc/self/ns/mnt; sleep 0.5";
        let text = job(&["/bin/sh", "-c", program]).out();
        let different = |word: &str| {
            let mut lines: Vec<&str> = text.lines().filter(|l| l.starts_with(word)).collect();
            lines.sort_unstable();
            lines.dedup();
            lines.len()
        };
        assert_eq!((different("user:"), different("mnt:")), (1, 2), "{text}");
        let outcome = job(&["/opt/examples/cma"]);
        assert!(outcome.out().contains("cma: 4 of 4 reads correct"), "{outcome}");
    }
}

/// Two jobs of one user at once share nothing.
#[test]
fn two_jobs_at_once() {
    let _alone = alone();
    let image = host::image("bookworm-mpich");
    let program = "readlink /proc/self/ns/mnt; sleep 0.5";
    let start = || Run::hydra(Who::User, 4, [image.to_str().unwrap(), "/bin/sh", "-c", program]).start();
    let (one, other) = (start(), start());
    let (one, other) = (one.finish().good().out(), other.finish().good().out());
    let namespace = |text: &str| text.lines().next().map(String::from);
    assert_ne!(namespace(&one), namespace(&other), "{one}\n{other}");
}

//! Something of a bridged job is killed at some instant, over and over: it ends soon, nothing is left, and its status
//! is not 0.

use std::time::{Duration, Instant};

use hpc_launch_tests::host::{self, Who, everyone, launcher};
use hpc_launch_tests::host_mpi;
use hpc_launch_tests::run::{Run, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Between a death and the end of the job.
const LIMIT: Duration = Duration::from_secs(5);
/// Ranks of the job.
const RANKS: u32 = 3;
/// Seconds that the ranks would live.
const LIFE: &str = "30";

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn job(pair: usize, who: Who) -> Run {
    let image = |name: &str| host::image(name).display().to_string();
    let program = ["/opt/examples/exitcode", "99", "signal", "9", LIFE];
    let debian = |family: &str| host_mpi::all().into_iter().find(|l| l.family == family).expect("Debian's");
    match pair {
        0 => {
            let image = image("bookworm-mpich");
            debian("openmpi").launch(who, RANKS, &[&["--mpi=bridge", &image], &program[..]].concat())
        }
        1 => {
            let image = image("bookworm-openmpi");
            debian("mpich").launch(who, RANKS, &[&["--mpi=bridge", &image], &program[..]].concat())
        }
        _ => {
            let image = image(if pair == 2 { "bookworm-mpich" } else { "bookworm-openmpi" });
            let ranks = RANKS.to_string();
            Run::launch(who, ["-n", &ranks, "--oversubscribe", &image]).args(program)
        }
    }
    .limit(Duration::from_secs(20))
}

/// Kills one of the job's processes; `None`: there was none any more.
fn strike(running: &Running, numbers: &mut Numbers) -> Option<String> {
    let processes = running.processes();
    let (pid, line) = processes.get(numbers.below(processes.len().max(1) as u64) as usize)?;
    kill(Pid::from_raw(*pid), Signal::SIGKILL).ok()?;
    Some(line.clone())
}

#[test]
fn whoever_dies_whenever_the_job_ends() {
    let wanted = if host::full() { 300 } else { 12 };
    let seed = std::env::var("HPC_LAUNCH_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_125);
    let mut numbers = Numbers(seed);
    let mut struck = std::collections::BTreeMap::new();
    let mut slowest = Duration::ZERO;
    for n in 0..wanted {
        let who = everyone()[n % everyone().len()];
        let running = job(n % 4, who).start();
        std::thread::sleep(Duration::from_millis(numbers.below(900)));
        let Some(line) = strike(&running, &mut numbers) else { panic!("the job was over by itself") };
        let since = Instant::now();
        let outcome = running.finish();
        let took = since.elapsed();
        slowest = slowest.max(took);
        assert!(took < LIMIT, "{n}: killed: {line}\n{took:?}\n{outcome}");
        assert_ne!(outcome.code(), Some(0), "{n}: killed: {line}\n{outcome}");
        let program = launcher().display().to_string();
        let of = match line.split(' ').next().unwrap_or_default() {
            "/opt/examples/exitcode" => "a rank",
            name if name == program => "hpc-launch",
            _ => "a launcher's process",
        };
        *struck.entry(of).or_insert(0) += 1;
    }
    println!("{wanted} deaths: {struck:?}; the slowest end {slowest:?}");
}

//! `hpc-bench agree`: whether hpc-bench-mpi measures what others measure: its twin in C, and suites that were
//! written elsewhere, under the same launcher, alternating.

use crate::alternate::Sample;
use crate::contender::{Contender, Measured, Setup};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::launcher::HostLauncher;
use crate::run::{CommandLine, Failure};
use crate::session::Session;
use crate::{Common, Rounds};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ours, the clock read around each round, as OSU 7 and the twin read it.
const OURS: &str = "hpc-bench-mpi";
const AGAIN: &str = "hpc-bench-mpi, again";
/// Ours, the clock read around the loop, as IMB reads it: at 8 B reading it costs some percent.
const OURS_LOOP: &str = "hpc-bench-mpi, clock loop";
const TWIN: &str = "messages, in C";
const OSU: &str = "osu_latency, osu_bw";
const IMB: &str = "IMB-MPI1 PingPong, Uniband";
/// Whom each row is judged by.
const PAIRS: [(&str, &str); 4] = [(AGAIN, OURS), (TWIN, OURS), (OSU, OURS), (IMB, OURS_LOOP)];

/// Bytes. Above 8 KiB the number of rounds is smaller.
const SIZES: [u64; 4] = [8, 64 << 10, 1 << 20, 4 << 20];
const LARGE: u64 = 8192;
/// How far another's number may be away.
const SHARE: f64 = 0.05;

/// Options of `hpc-bench agree`.
#[derive(Debug, clap::Args)]
// Nothing here runs in an image.
#[command(mut_arg("image", |image| image.required(false).default_value("/").hide(true)))]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// hpc-bench-mpi, built for the launcher's MPI (cargo xtask programs)
    #[arg(long, value_name = "PATH")]
    program: PathBuf,
    /// examples/messages.c, compiled for the same MPI
    #[arg(long, value_name = "PATH")]
    twin: PathBuf,
    /// A directory with osu_latency and osu_bw, or with IMB-MPI1, compiled for the same MPI; may be repeated
    #[arg(long, value_name = "DIR")]
    suite: Vec<PathBuf>,
    #[command(flatten)]
    rounds: Rounds,
    /// Of each program's loops
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// The launcher, with options of its own if you like
    #[arg(long, value_name = "CMD", default_value = "mpirun.openmpi")]
    mpirun: String,
    /// A run that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

/// What a run measured: benchmark, size, number.
type Numbers = Vec<(String, u64, f64)>;

impl Sample for Numbers {}

/// Measures, and compares.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let absolute = |path: &Path, cure: &str| {
        path.canonicalize().map_err(|e| Error::new(format!("use {}", path.display()), e, cure))
    };
    let program =
        absolute(&args.program, "cargo xtask programs builds target/bench-programs/*/hpc-bench-mpi")?;
    let twin = absolute(&args.twin, "build one: mpicc -O2 -o /tmp/messages examples/messages.c")?;
    let suites = args.suite.iter().map(|dir| absolute(dir, "give --suite a directory"));
    let suites = suites.collect::<Result<Vec<_>, _>>()?;
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = session.runner(Duration::from_secs(args.timeout))?;
    let launcher = HostLauncher::find(&args.mpirun, &setup, &mut runner)?;
    session.versions(&setup, &mut runner, &[launcher.name()])?;
    let watch = session.watch();

    let scratch = tempfile::tempdir()
        .map_err(|e| Error::new("make a scratch directory", e, "set TMPDIR to a directory you may write"))?;
    let lengths = |name: &str, sizes: &[u64]| {
        let path = scratch.path().join(name);
        let text: String = sizes.iter().map(|size| format!("{size}\n")).collect();
        fs::write(&path, text).map(|()| path.display().to_string()).map_err(|e| {
            Error::new(format!("write {}", path.display()), e, "set TMPDIR to where there is room")
        })
    };
    let (small, large): (Vec<u64>, Vec<u64>) = SIZES.iter().partition(|size| **size <= LARGE);
    let lengths = [(lengths("small", &small)?, small[0]), (lengths("large", &large)?, large[0])];

    let two = |program: &Path, words: &[String]| launcher.ranks(2, &setup.line(program, words));
    let find = |name: &str| {
        let path = suites.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        path.ok_or_else(|| format!("no --suite names a directory with {name}"))
    };
    let contenders = [
        Contender::new(OURS, Ok(two(&program, &ours(args.scale, "round")))),
        Contender::new(AGAIN, Ok(two(&program, &ours(args.scale, "round")))),
        Contender::new(OURS_LOOP, Ok(two(&program, &ours(args.scale, "loop")))),
        Contender::new(TWIN, Ok(two(&twin, &of_twin(args.scale)))),
        Contender::new(
            OSU,
            find("osu_latency").and_then(|latency| Ok((latency, find("osu_bw")?))).map(|(latency, bw)| {
                let of = |program: &Path, kind, size| two(program, &of_osu(kind, size, args.scale));
                let each = SIZES.iter().flat_map(|size| [of(&latency, LATENCY, *size), of(&bw, BW, *size)]);
                one_after_another(&setup, each.collect())
            }),
        ),
        Contender::new(
            IMB,
            find("IMB-MPI1").map(|imb| {
                let each = [LATENCY, BW].into_iter().flat_map(|kind| {
                    let of = |(file, size): &(String, u64)| two(&imb, &of_imb(kind, file, *size, args.scale));
                    lengths.iter().map(of).collect::<Vec<_>>()
                });
                one_after_another(&setup, each.collect())
            }),
        ),
    ];
    let family = launcher.family();
    let key = format!("agree/{family}");
    let measured =
        session.measure(&key, &contenders, &args.rounds.effort(1, 9), |_, line| parse(&runner.output(line)?));
    let noise = watch.finish();

    let mut groups = Vec::new();
    let mut budgets = Vec::new();
    for (kind, unit) in [(LATENCY, "µs"), (BW, "MB/s")] {
        for size in SIZES {
            let rows = pick(&measured, (kind, size));
            let key = format!("agree/{family}/{kind}/{size}");
            let group = Group::new(key, format!("{size} B, {kind}"), unit, &[OURS, OURS_LOOP], &rows);
            let group = if kind == BW { group.higher_is_better() } else { group };
            for (other, by) in PAIRS {
                // A suite that is not here judges nobody; the report says that it did not run.
                if rows.iter().any(|row| row.name == other && row.outcomes.is_ok()) {
                    let what = format!("{size} B {kind}, {other} against {by}");
                    budgets.push(Budget::within(what, SHARE, group.ratio(other, by)));
                }
            }
            groups.push(group);
        }
    }
    let settings = BTreeMap::from([
        ("program".into(), program.display().to_string()),
        ("twin".into(), twin.display().to_string()),
        ("scale".into(), args.scale.to_string()),
        ("mpirun".into(), args.mpirun.clone()),
    ]);
    let notes = vec![
        "latency: half a round trip. bandwidth: windows of 64 messages and an answer to each; MB are 10^6 bytes. \
         The same buffer again and again, in the cache where it fits."
            .into(),
    ];
    let title = format!("our programs and others', under {}", args.mpirun);
    Ok(Report { bench: "agree".into(), title, settings, noise, groups, budgets, notes })
}

/// The names that our own output has for them.
const LATENCY: &str = "latency";
const BW: &str = "bw";

fn ours(scale: f64, clock: &str) -> Vec<String> {
    let sizes = SIZES.map(|size| size.to_string()).join(",");
    format!(
        "pt2pt --expect-ranks 2 --benchmarks {LATENCY},{BW} --sizes {sizes} --scale {scale} --clock {clock}"
    )
    .split(' ')
    .map(str::to_owned)
    .collect()
}

fn of_twin(scale: f64) -> Vec<String> {
    [scale.to_string()].into_iter().chain(SIZES.map(|size| size.to_string())).collect()
}

/// Rounds and warm-up that hpc-bench-mpi and the twin take by themselves.
fn counts(kind: &str, size: u64, scale: f64) -> (u64, u64) {
    let (rounds, warm_up) = match (kind == LATENCY, size > LARGE) {
        (true, false) => (10_000, 100),
        (true, true) => (1000, 10),
        (false, false) => (100, 10),
        (false, true) => (20, 2),
    };
    let scaled = |count: u64| ((count as f64 * scale).round() as u64).max(1);
    (scaled(rounds), scaled(warm_up))
}

/// OSU's own defaults, said aloud because of the scale.
fn of_osu(kind: &str, size: u64, scale: f64) -> Vec<String> {
    let (rounds, warm_up) = counts(kind, size, scale);
    ["-m", &format!("{size}:{size}"), "-i", &rounds.to_string(), "-x", &warm_up.to_string()]
        .map(str::to_owned)
        .to_vec()
}

/// IMB warms up by itself, with a tenth of its rounds and ten at least.
fn of_imb(kind: &str, lengths: &str, size: u64, scale: f64) -> Vec<String> {
    let benchmark = if kind == LATENCY { "PingPong" } else { "Uniband" };
    let rounds = counts(kind, size, scale).0.to_string();
    [benchmark, "-msglen", lengths, "-iter", &rounds, "-iter_policy", "off", "-npmin", "2"]
        .map(str::to_owned)
        .to_vec()
}

/// One command that runs them all, until one fails.
fn one_after_another(setup: &Setup, lines: Vec<CommandLine>) -> CommandLine {
    let script: Vec<String> = lines.iter().map(ToString::to_string).collect();
    setup.line(Path::new("/bin/sh"), &["-c", &script.join(" && ")])
}

/// Reads what any of the programs prints: ours and the twin's RESULT lines, OSU's and IMB's tables.
fn parse(text: &str) -> Result<Numbers, Failure> {
    let mut numbers = Numbers::new();
    // Of the table that we are in: what it measures, and in which column.
    let mut table = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let entry = match words[..] {
            ["WRONG", ..] => return Err(Failure::new("wrong contents", line)),
            ["RESULT", LATENCY, size, value, "us"] => Some((LATENCY, size, value)),
            ["RESULT", BW, size, value, "MB/s"] => Some((BW, size, value)),
            ["#", "OSU", "MPI", "Latency", ..] => {
                table = Some((LATENCY, 1));
                None
            }
            ["#", "OSU", "MPI", "Bandwidth", ..] => {
                table = Some((BW, 1));
                None
            }
            ["#", "Benchmarking", name, ..] => {
                table = match name {
                    "PingPong" => Some((LATENCY, 2)),
                    "Uniband" => Some((BW, 2)),
                    _ => None,
                };
                None
            }
            [size, ..] if size.bytes().all(|byte| byte.is_ascii_digit()) => {
                table.and_then(|(kind, column)| Some((kind, size, *words.get(column)?)))
            }
            _ => None,
        };
        let Some((kind, size, value)) = entry else { continue };
        let (Ok(size), Ok(value)) = (size.parse(), value.parse()) else {
            return Err(Failure::new("a line that cannot be read", line));
        };
        numbers.push((kind.to_owned(), size, value));
    }
    if numbers.is_empty() {
        return Err(Failure::new("exit 0, but no result", text.trim()));
    }
    Ok(numbers)
}

/// One number out of each run.
fn pick(measured: &[Measured<Numbers>], of: (&'static str, u64)) -> Vec<Measured<f64>> {
    let number = |numbers: &Numbers| {
        let found = numbers.iter().find(|(kind, size, _)| kind == of.0 && *size == of.1);
        found.map(|number| number.2).ok_or_else(|| Failure::new(format!("no {} for {} B", of.0, of.1), ""))
    };
    measured.iter().map(|row| row.and_then(number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ours() {
        let numbers = parse(
            "hpc-bench-mpi 1 pt2pt ranks 2\nRESULT latency 8 0.25 us\nRESULT bw 65536 8841.8 MB/s\nEND\n",
        );
        assert_eq!(numbers, Ok(vec![(LATENCY.into(), 8, 0.25), (BW.into(), 65536, 8841.8)]));
    }

    #[test]
    fn tables_of_osu_and_imb() {
        let osu = "# OSU MPI Latency Test v7.4\n# Size    Latency (us)\n8   0.24\n# OSU MPI Bandwidth Test v7.4\n\
                   # Size  Bandwidth (MB/s)\n8    75.5\n";
        assert_eq!(parse(osu), Ok(vec![(LATENCY.into(), 8, 0.24), (BW.into(), 8, 75.5)]));
        let imb = "# Benchmarking PingPong \n# #processes = 2 \n   #bytes #repetitions t[usec] Mbytes/sec\n\
                   65536   20   10.78   6079.05\n# Benchmarking Uniband \n  65536   20   2706.13  41292\n\
                   # Benchmarking Exchange\n 65536 20 1.0 2.0\n";
        assert_eq!(parse(imb), Ok(vec![(LATENCY.into(), 65536, 10.78), (BW.into(), 65536, 2706.13)]));
    }

    #[test]
    fn wrong_contents_and_nothing_are_failures() {
        assert_eq!(parse("WRONG bw 8 byte 1").unwrap_err().status, "wrong contents");
        assert_eq!(parse("8 0.25\n").unwrap_err().status, "exit 0, but no result");
        assert_eq!(parse("RESULT bw x 1 MB/s").unwrap_err().status, "a line that cannot be read");
    }

    #[test]
    fn counts_are_the_programs_own() {
        assert_eq!(counts(LATENCY, 8, 1.0), (10_000, 100));
        assert_eq!(counts(BW, 4 << 20, 0.1), (2, 1));
        assert_eq!(of_osu(BW, 8, 1.0).join(" "), "-m 8:8 -i 100 -x 10");
    }
}

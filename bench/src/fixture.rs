//! A measurement as it might have been, for tests: every kind of group, row, failure and noise that a document can
//! have. tests/data/bench.json is this one, written out.

use crate::contender::{BARE, BARE_AGAIN};
use crate::document::{
    Better, Budget, Document, FORMAT, FailureKind, Group, Image, Machine, Noise, Plan, Point, Report, Row,
    VERSION,
};
use crate::run::Failure;
use crate::stats::{Estimate, Prng, median_estimate, ratio_estimate};
use serde_json::json;
use std::collections::BTreeMap;

const SIZES: [u64; 8] = [8, 64, 512, 4 << 10, 32 << 10, 256 << 10, 1 << 20, 4 << 20];
const ROUNDS: usize = 15;
const OURS_HOST: &str = "hpc-launch, host's MPI";
const OURS_IMAGE: &str = "hpc-launch, image's MPI";

/// One row: its name, and each sample's centre, or why there is none.
type Centre<'a> = (&'a str, Result<f64, &'a str>);

/// As it is kept: read, because making it takes long.
pub fn document() -> Document {
    serde_json::from_str(include_str!("../../tests/data/bench.json")).unwrap()
}

/// Benches of messages, start and applications, interrupted near the end.
fn make() -> Document {
    let mut prng = Prng::new(11);
    Document {
        format: FORMAT.into(),
        version: VERSION,
        began: "2026-11-28T13:54:18Z".into(),
        seconds: 812.4,
        interrupted: true,
        command: "hpc-bench all --image /images/trixie-openmpi --user ann --json bench.json".into(),
        machine: machine(),
        images: vec![
            Image {
                path: "/images/trixie-openmpi".into(),
                kind: "directory".into(),
                digest: "tree-sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
            },
            Image {
                path: "/images/trixie-openmpi.sqfs".into(),
                kind: "SquashFS".into(),
                digest: "sha256:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752".into(),
            },
        ],
        plans: [OURS_HOST, OURS_IMAGE]
            .map(|row| Plan {
                row: row.into(),
                command: "hpc-launch plan --json /images/trixie-openmpi osu_latency".into(),
                plan: json!({"version": 1, "verdict": {"mode": "inject", "why": ["same family <Open MPI>"]},
                             "steps": [{"bind": ["/usr/lib/libmpi.so.40", "/usr/lib/libmpi.so.40"]}]}),
            })
            .into(),
        reports: vec![messages(&mut prng), start(&mut prng), application(&mut prng)],
    }
}

fn machine() -> Machine {
    let versions = [
        ("hpc-launch", "hpc-launch 0.1.0"),
        ("mpirun.openmpi", "mpirun (Open MPI) 4.1.4"),
        ("ch-run", "does not say"),
        ("bwrap", "bubblewrap 0.8.0"),
        ("podman", "podman version 4.3.1"),
    ];
    Machine {
        kernel: "6.12.8-amd64".into(),
        system: "Debian GNU/Linux 12 (bookworm)".into(),
        cpu: "AMD EPYC 7B13 64-Core Processor".into(),
        cpus: 2,
        virtual_machine: true,
        memory: 24_032,
        mounts: 41,
        user: "ann".into(),
        governor: None,
        versions: versions.map(|(name, said)| (name.into(), said.into())).into(),
    }
}

/// Latency and bandwidth by size; without a shared user namespace large messages lose, and one hangs.
fn messages(prng: &mut Prng) -> Report {
    let mut groups = Vec::new();
    for size in SIZES {
        let bare = 0.19 + size as f64 / 9300.0;
        // Two copies instead of one.
        let apart = if size < 8192 { 1.0 } else { 1.0 + 0.55 * (size as f64 / 8192.0).log2().min(4.0) / 4.0 };
        let hung = "timed out after 30 s";
        let rows: [Centre<'_>; 9] = [
            (BARE, Ok(bare)),
            (BARE_AGAIN, Ok(bare)),
            (OURS_HOST, Ok(bare * 1.004)),
            (OURS_IMAGE, Ok(bare * if size < 512 { 1.06 } else { 1.02 })),
            ("ch-run", Ok(bare * apart * 1.03)),
            ("ch-run --join", if size == 32 << 10 { Err("exit 1") } else { Ok(bare * 1.01) }),
            ("bwrap", Ok(bare * apart)),
            ("podman", if size == 4 << 20 { Err(hung) } else { Ok(bare * apart * 1.2) }),
            ("apptainer", Err("-not installed: apt-get install apptainer")),
        ];
        let point = |plot: &str| Some(Point { plot: plot.into(), x: size as f64, x_unit: "B".into() });
        groups.push(Group {
            key: format!("pt2pt/latency/openmpi/{size}"),
            title: format!("latency, Open MPI, {size} B"),
            unit: "µs".into(),
            better: Better::Lower,
            point: point("Latency, Open MPI"),
            rows: measure(prng, &rows, 0.02),
            in_text: true,
        });
        let rows = rows.map(|(name, centre)| (name, centre.map(|time| size as f64 / time)));
        groups.push(Group {
            key: format!("pt2pt/bw/openmpi/{size}"),
            title: format!("bandwidth, Open MPI, {size} B"),
            unit: "MB/s".into(),
            better: Better::Higher,
            point: point("Bandwidth, Open MPI"),
            rows: measure(prng, &rows, 0.02),
            in_text: true,
        });
    }
    let at = |size: u64| groups.iter().find(|g| g.key == format!("pt2pt/bw/openmpi/{size}"));
    let budgets = [64 << 9, 1 << 20, 4 << 20].map(|size| {
        let measured = at(size).and_then(|g| g.rows[2].ratios.get(BARE)).copied();
        budget(&format!("bandwidth at {} KiB against bare", size >> 10), measured, 0.98)
    });
    Report {
        bench: "pt2pt".into(),
        title: "Messages between two ranks".into(),
        settings: settings(&[("mpirun", "mpirun.openmpi"), ("runs", "15"), ("repeats", "1000")]),
        noise: Noise { load_before: 0.31, load_after: 1.84, stolen: Some(0.004), clock: None, cpus: 2 },
        groups,
        budgets: budgets.into(),
        notes: vec!["windows, warm-ups and units are those of OSU 7.4".into()],
    }
}

/// Whole jobs by ranks, one rank alone, and counts.
fn start(prng: &mut Prng) -> Report {
    let mut groups = Vec::new();
    for ranks in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let n = f64::from(ranks);
        let bare = 41.0 + 2.0 * n;
        let rows: [Centre<'_>; 6] = [
            (BARE, Ok(bare)),
            (BARE_AGAIN, Ok(bare)),
            (OURS_HOST, Ok(bare + 1.5 + 0.03 * n)),
            ("ch-run", Ok(bare + 3.0 + 1.3 * n)),
            ("bwrap", Ok(bare + 3.0 + 1.0 * n)),
            ("podman", if ranks > 64 { Err("exit 125") } else { Ok(bare + 130.0 + 52.0 * n) }),
        ];
        groups.push(Group {
            key: format!("start/job/openmpi/{ranks}"),
            title: format!("mpirun -n {ranks} true"),
            unit: "ms".into(),
            better: Better::Lower,
            point: Some(Point { plot: "Wall time of a whole job".into(), x: n, x_unit: "ranks".into() }),
            rows: measure(prng, &rows, 0.03),
            in_text: true,
        });
    }
    let rows: [Centre<'_>; 7] = [
        (BARE, Ok(0.83)),
        (BARE_AGAIN, Ok(0.83)),
        ("hpc-launch, first rank", Ok(1.55)),
        ("hpc-launch, joining rank", Ok(1.3)),
        ("ch-run", Ok(3.05)),
        ("bwrap", Ok(3.5)),
        ("podman", Ok(138.0)),
    ];
    groups.push(Group {
        key: "start/one/true".into(),
        title: "Start of /bin/true, whole process".into(),
        unit: "ms".into(),
        better: Better::Lower,
        point: None,
        rows: measure(prng, &rows, 0.05),
        in_text: true,
    });
    let ratio = groups.last().and_then(|g| g.rows[3].ratios.get("ch-run")).copied();
    Report {
        bench: "start".into(),
        title: "Start".into(),
        settings: settings(&[("mpirun", "mpirun.openmpi"), ("runs", "15")]),
        noise: Noise {
            load_before: 1.4,
            load_after: 2.2,
            stolen: Some(0.031),
            clock: Some((2450.0, 2300.0)),
            cpus: 2,
        },
        groups,
        budgets: vec![Budget {
            what: "joining rank against ch-run".into(),
            limit: "at most 0.5".into(),
            met: ratio.is_some(),
            close: false,
            measured: ratio,
        }],
        notes: vec!["the joining ranks were in the first rank's mount namespace".into()],
    }
}

/// Conjugate gradients: weak scaling, and one program of the user's as bars.
fn application(prng: &mut Prng) -> Report {
    let mut groups = Vec::new();
    for ranks in [1, 2, 4] {
        let bare = 812.0 * f64::from(ranks).min(2.0);
        let rows: [Centre<'_>; 5] = [
            (BARE, Ok(bare)),
            (BARE_AGAIN, Ok(bare)),
            (OURS_HOST, Ok(bare * 0.998)),
            ("ch-run", Ok(bare * 0.97)),
            ("podman", Ok(bare * 0.9)),
        ];
        groups.push(Group {
            key: format!("app/cg/weak/{ranks}"),
            title: format!("conjugate gradients, 48³ per rank, {ranks} ranks"),
            unit: "MFLOP/s".into(),
            better: Better::Higher,
            point: Some(Point {
                plot: "Conjugate gradients, weak scaling".into(),
                x: f64::from(ranks),
                x_unit: "ranks".into(),
            }),
            rows: measure(prng, &rows, 0.012),
            in_text: true,
        });
    }
    let rows: [Centre<'_>; 5] = [
        (BARE, Ok(93.1)),
        (BARE_AGAIN, Ok(93.1)),
        (OURS_HOST, Ok(93.4)),
        ("bwrap", Err("signal 11")),
        ("apptainer", Err("-not installed: apt-get install apptainer")),
    ];
    groups.push(Group {
        key: "app/command/lulesh".into(),
        title: "lulesh2.0 -s 20, elapsed time".into(),
        unit: "s".into(),
        better: Better::Lower,
        point: Some(Point { plot: "lulesh".into(), x: 8.0, x_unit: "ranks".into() }),
        rows: measure(prng, &rows, 0.01),
        in_text: true,
    });
    Report {
        bench: "app".into(),
        title: "Applications".into(),
        settings: settings(&[("runs", "15")]),
        noise: Noise { load_before: 0.2, load_after: 2.0, stolen: None, clock: None, cpus: 2 },
        groups,
        budgets: vec![budget("cg on 8 ranks against bare", None, 0.98)],
        notes: Vec::new(),
    }
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn budget(what: &str, measured: Option<Estimate>, limit: f64) -> Budget {
    Budget {
        what: what.into(),
        limit: format!("at least {limit}"),
        met: measured.is_some_and(|m| m.value >= limit),
        close: measured.is_some_and(|m| m.low < limit && limit <= m.high),
        measured,
    }
}

/// Samples around the centres that share a round's fortune, to three digits as programs print them, and what the
/// statistics make of them. "exit …": every run failed so; "-…": not run.
fn measure(prng: &mut Prng, rows: &[Centre<'_>], spread: f64) -> Vec<Row> {
    let unit = |prng: &mut Prng| prng.below(1 << 20) as f64 / f64::from(1 << 20) - 0.5;
    let rounds: Vec<f64> = (0..ROUNDS).map(|_| 1.0 + spread * unit(prng)).collect();
    let samples: Vec<Vec<Option<f64>>> = rows
        .iter()
        .map(|(_, centre)| match centre {
            Ok(centre) => {
                let mut one = |round: &f64| {
                    let value = centre * round * (1.0 + spread * unit(prng));
                    let digits = 10_f64.powf(3.0 - value.log10().floor());
                    Some((value * digits).round() / digits)
                };
                rounds.iter().map(&mut one).collect()
            }
            Err(why) if why.starts_with('-') => Vec::new(),
            Err(_) => vec![None; ROUNDS],
        })
        .collect();
    let against = |own: usize, other: &str| {
        let other = rows.iter().position(|(name, _)| *name == other).filter(|other| *other != own)?;
        let pairs = samples[own].iter().zip(&samples[other]);
        let pairs: Vec<(f64, f64)> = pairs.filter_map(|(a, b)| a.zip(*b)).collect();
        ratio_estimate(&pairs).map(|ratio| (rows[other].0.to_owned(), ratio))
    };
    let row = |(place, (name, centre)): (usize, &Centre<'_>)| {
        let failed = samples[place].iter().filter(|sample| sample.is_none()).count();
        let not_run = centre.as_ref().err().and_then(|why| why.strip_prefix('-'));
        let first =
            |status: &str| Failure::new(status, "PMIX ERROR: <NO_PERMISSIONS> in file \"dstore_base.c\"");
        Row {
            name: (*name).into(),
            command: not_run.map_or_else(|| format!("mpirun -n 2 {name} osu_latency"), |_| String::new()),
            median: median_estimate(&samples[place].iter().flatten().copied().collect::<Vec<_>>()),
            samples: samples[place].clone(),
            ratios: [BARE, "ch-run"].into_iter().filter_map(|other| against(place, other)).collect(),
            failures: match centre {
                Err(status) if failed > 0 => vec![FailureKind { runs: failed, first: first(status) }],
                _ => Vec::new(),
            },
            not_run: not_run.map(Into::into),
        }
    };
    rows.iter().enumerate().map(row).collect()
}

#[test]
fn the_file_of_the_end_to_end_tests_is_this_document() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/bench.json");
    let mut now = serde_json::to_string(&make()).unwrap();
    now.push('\n');
    if std::fs::read_to_string(path).unwrap_or_default() != now {
        let made = std::env::temp_dir().join("bench.json");
        std::fs::write(&made, now).unwrap();
        panic!("tests/data/bench.json is of another document: look at {} and copy it there", made.display());
    }
}

//! `hpc-bench import`: from an OCI image to one file that can be run, by us and by what others use for it.

use crate::contender::{Contender, Setup, find_program, measure};
use crate::error::Error;
use crate::machine::Machine;
use crate::report::{Budget, Group, Report};
use crate::run::{CommandLine, Runner};
use crate::{Common, Outcome};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, process};

const ZSTD: &str = "hpc-launch image import, zstd";
const LZ4: &str = "hpc-launch image import, lz4";
const AGAIN: &str = "hpc-launch image import, zstd, again";
const UMOCI_ZSTD: &str = "umoci unpack, mksquashfs zstd level 3";
const UMOCI_LZ4: &str = "umoci unpack, mksquashfs lz4";
const UMOCI: &str = "umoci unpack, mksquashfs as it is";
const CH_CONVERT: &str = "umoci unpack, ch-convert";
const PODMAN: &str = "podman load, no file made";

/// Options of `hpc-bench import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Rounds; every round runs each row once
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Leave out what takes long: mksquashfs with its defaults, ch-convert, podman
    #[arg(long)]
    quick: bool,
}

impl Args {
    /// The options that all benches share.
    pub fn common(&self) -> &Common {
        &self.common
    }
}

/// Measures, and compares. The image becomes one gzip layer of an OCI layout first.
pub fn run(args: &Args) -> Result<Outcome, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = Runner::new(Duration::from_secs(600))?;
    let mut machine = Machine::survey(&setup, &mut runner, &["umoci", "mksquashfs", "podman", "ch-convert"]);
    let scratch = std::env::temp_dir().join(format!("hpc-bench-import.{}", process::id()));
    let failed = |e: std::io::Error| {
        Error::new(format!("write {}", scratch.display()), e, "set TMPDIR to where there is room")
    };
    fs::create_dir(&scratch).map_err(failed)?;
    let measured = measure_in(&scratch, args, &setup, &mut runner);
    fs::remove_dir_all(&scratch).map_err(failed)?;
    let measured = measured?;
    machine.finish();

    let title = format!("whole processes, {} alternating rounds", args.runs);
    let group = Group::new(title, "ms", &[ZSTD, UMOCI_ZSTD], &measured);
    let mut budgets = vec![Budget::at_most(
        "import with zstd against umoci and mksquashfs with zstd",
        1.0,
        group.ratio(ZSTD, UMOCI_ZSTD),
    )];
    if !args.quick {
        budgets.push(Budget::at_least(
            "podman load against import with zstd",
            1.0,
            group.ratio(PODMAN, ZSTD),
        ));
    }
    let settings =
        BTreeMap::from([("image", setup.image.display().to_string()), ("runs", args.runs.to_string())]);
    let again = group
        .ratio(AGAIN, ZSTD)
        .map(|r| format!("the same row twice: ratio {:.3} [{:.3}, {:.3}]", r.value, r.low, r.high));
    let notes = again.into_iter().collect();
    Ok(Outcome::from(Report { bench: "import", machine, settings, groups: vec![group], budgets, notes }))
}

fn measure_in(
    scratch: &Path,
    args: &Args,
    setup: &Setup,
    runner: &mut Runner,
) -> Result<Vec<crate::contender::Measured<f64>>, Error> {
    let at = |name: &str| scratch.join(name).display().to_string();
    let layout = at("oci");
    let image = setup.image.display().to_string();
    let shell = Path::new("/bin/sh");
    let make = format!(
        "umoci init --layout {layout} && umoci new --image {layout}:x && umoci insert --image {layout}:x {image} / && \
         skopeo copy -q oci:{layout}:x docker-archive:{}:x:1",
        at("saved.tar")
    );
    let made = runner.time(&setup.line(shell, &["-c", &make]));
    made.map_err(|e| Error::new("make an OCI layout of the image", e, "apt-get install umoci skopeo"))?;
    let (store, root, file) = (at("store"), at("bundle"), at("out.sqfs"));
    let ours = |compression: &str| {
        let source = format!("oci:{layout}:x");
        let words = ["image", "pull", "--store", &store, "--compression", compression, &source, "x"];
        setup.launcher.as_ref().map_err(Clone::clone).map(|path| setup.line(path, &words))
    };
    let theirs = |program: &str, then: &str| {
        let needed = ["umoci", program].into_iter().map(|p| find_program(p, &format!("apt-get install {p}")));
        needed.collect::<Result<Vec<_>, _>>().map(|_| {
            let script = format!("umoci unpack --rootless --image {layout}:x {root} && {then}");
            setup.line(shell, &["-c", &script])
        })
    };
    let squash =
        |options: &str| format!("mksquashfs {root}/rootfs {file} -noappend -quiet -no-progress {options}");
    let mut contenders = vec![
        Contender { name: ZSTD.into(), line: ours("zstd") },
        Contender { name: AGAIN.into(), line: ours("zstd") },
        Contender { name: LZ4.into(), line: ours("lz4") },
        Contender {
            name: UMOCI_ZSTD.into(),
            line: theirs("mksquashfs", &squash("-comp zstd -Xcompression-level 3")),
        },
        Contender { name: UMOCI_LZ4.into(), line: theirs("mksquashfs", &squash("-comp lz4")) },
    ];
    if !args.quick {
        let own =
            ["--root", &at("podman"), "--runroot", &at("podman-run"), "--storage-driver", "vfs"].join(" ");
        let load = format!("podman {own} --cgroup-manager cgroupfs load -q -i {}", at("saved.tar"));
        let podman =
            find_program("podman", "apt-get install podman").map(|_| setup.line(shell, &["-c", &load]));
        contenders.extend([
            Contender { name: UMOCI.into(), line: theirs("mksquashfs", &squash("")) },
            Contender {
                name: CH_CONVERT.into(),
                line: theirs("ch-convert", &format!("ch-convert {root}/rootfs {file}")),
            },
            Contender { name: PODMAN.into(), line: podman },
        ]);
    }
    let mut sample = |_: &str, line: &CommandLine| {
        // Each begins with nothing: what the one before has made goes outside of the timed part.
        let clean =
            format!("chmod -R u+rwX {root} 2>/dev/null; rm -rf {store} {root} {file} {}", at("podman"));
        runner.time(&setup.line(shell, &["-c", &clean]))?;
        runner.time(line).map(|time| time.as_secs_f64() * 1e3)
    };
    Ok(measure(&contenders, 1, args.runs, &mut sample))
}

//! `hpc-bench import`: from an OCI image to one file that can be run, by us and by what others use for it.

use crate::contender::{Contender, Setup, find_program};
use crate::document::{Budget, Group, Report};
use crate::error::Error;
use crate::run::{CommandLine, Runner};
use crate::session::Session;
use crate::{Common, Rounds};
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
    pub common: Common,
    #[command(flatten)]
    rounds: Rounds,
    /// Leave out what takes long: mksquashfs with its defaults, ch-convert, podman
    #[arg(long)]
    quick: bool,
}

/// Measures, and compares. The image becomes one gzip layer of an OCI layout first.
pub fn run(args: &Args, session: &mut Session) -> Result<Report, Error> {
    let setup = Setup::new(&args.common.image, args.common.launcher_bin.as_deref())?;
    let mut runner = session.runner(Duration::from_secs(600))?;
    session.note(&setup, &mut runner, &["umoci", "mksquashfs", "podman", "ch-convert"])?;
    let watch = session.watch();
    let scratch = std::env::temp_dir().join(format!("hpc-bench-import.{}", process::id()));
    let failed = |e: std::io::Error| {
        Error::new(format!("write {}", scratch.display()), e, "set TMPDIR to where there is room")
    };
    fs::create_dir(&scratch).map_err(failed)?;
    let measured = measure_in(&scratch, args, &setup, &mut runner, session);
    fs::remove_dir_all(&scratch).map_err(failed)?;
    let measured = measured?;
    let noise = watch.finish();

    let group = Group::new(
        "import",
        "from an OCI image to a file that can be run",
        "ms",
        &[ZSTD, UMOCI_ZSTD],
        &measured,
    );
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
    let settings = BTreeMap::from([("image".into(), setup.image.display().to_string())]);
    let again = group
        .ratio(AGAIN, ZSTD)
        .map(|r| format!("the same row twice: ratio {:.3} [{:.3}, {:.3}]", r.value, r.low, r.high));
    let notes = again.into_iter().collect();
    Ok(Report {
        bench: "import".into(),
        title: "images from OCI layouts".into(),
        settings,
        noise,
        groups: vec![group],
        budgets,
        notes,
    })
}

fn measure_in(
    scratch: &Path,
    args: &Args,
    setup: &Setup,
    runner: &mut Runner,
    session: &mut Session,
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
    Ok(session.measure("import", &contenders, &args.rounds.effort(1, 5), &mut sample))
}

//! The simulated hosts around a bench: it starts them, and itself once more on their head.

use super::{Args, BED};
use crate::Files;
use crate::error::Error;
use crate::interrupt::Interrupt;
use simulated_hosts::{Bed, HEAD};
use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Starts the hosts and the bench on them, and ends as that does.
pub fn outside(args: &Args, files: &Files) -> Result<ExitCode, Error> {
    if !rustix::process::geteuid().is_root() {
        let why = "hosts are namespaces in which programs are started as other users: that needs root";
        let cure = "start hpc-bench scale as root, with --user NAME to measure as an ordinary user";
        return Err(Error::new("start simulated hosts", why, cure));
    }
    let failed = |e: io::Error| {
        let cure = "it needs unshare and setpriv (util-linux), ip (iproute2), and room in /var/tmp";
        Error::new("start simulated hosts", e, cure)
    };
    // Whoever ends it with a signal ends the bench on the hosts, to which the remote shell passes it on: that one still
    // has something to write.
    let _passed_on = Interrupt::catch()?;
    let this = env::current_exe().map_err(failed)?;
    let count = args.hosts.iter().copied().max().unwrap_or(1);
    let bed = Bed::start(&this, usize::from(count), &shown(args, files, &this)).map_err(failed)?;
    let words: Vec<OsString> = env::args_os().skip(1).collect();
    // As this process was called, and where it finds itself.
    let mut inside = Command::new(bed.rsh());
    inside.args(["--here", HEAD]).arg(&this).args(words).arg(BED).arg(bed.directory());
    let status = inside.status().map_err(failed)?;
    // No code: it was killed, and the remote shell with it.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::from(125), ExitCode::from))
}

/// Directories below the machine's /tmp, of which hosts have their own, that the bench needs there.
fn shown(args: &Args, files: &Files, this: &Path) -> Vec<PathBuf> {
    let common = &args.common;
    let directory = |path: &Path| {
        let path = std::path::absolute(path).ok()?;
        if path.is_dir() { Some(path) } else { path.parent().map(Path::to_owned) }
    };
    let named = [&common.launcher_bin, &args.squashfs, &files.json, &files.out];
    let named = named.into_iter().filter_map(|path| path.as_deref()).chain([this]);
    let named = named.chain([common.image.as_path(), Path::new(".")]);
    let mut shown: Vec<PathBuf> = named
        .flat_map(|path| [directory(path), path.canonicalize().ok().and_then(|path| directory(&path))])
        .flatten()
        .filter(|path| path.starts_with("/tmp"))
        .collect();
    shown.sort_unstable();
    // What lies below another is seen with it.
    shown.dedup_by(|path, before| path.starts_with(before));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
        #[command(flatten)]
        files: Files,
    }

    #[test]
    fn only_what_is_in_tmp_is_shown_and_nothing_twice() {
        let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::create_dir_all(at("a/image")).unwrap();
        std::fs::write(at("a/hpc-launch"), "").unwrap();
        let (image, launcher, json) = (at("a/image"), at("a/hpc-launch"), at("out.json"));
        let words = ["x", "--image", &image, "--launcher-bin", &launcher];
        let shown = |words: &[&str]| {
            let line = <Line as clap::Parser>::parse_from(words);
            shown(&line.args, &line.files, Path::new("/opt/hpc-bench"))
        };
        assert_eq!(shown(&[&words[..], &["--json", &json]].concat()), [dir.path()]);
        let image = dir.path().join("a/image");
        assert_eq!(shown(&words), [image.parent().unwrap()]);
    }
}

//! Directories, files and images for tests of overlays.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::host::{self, Who, is_root};
use crate::image::{Throwaway, directory};
use crate::run::{Outcome, Run};

/// A directory of somebody's own.
pub fn own(who: Who) -> TempDir {
    own_in("/var/tmp", who)
}

/// The same, below `parent`.
pub fn own_in(parent: &str, who: Who) -> TempDir {
    let dir = directory(parent);
    if is_root() {
        let account = who.account();
        std::os::unix::fs::chown(dir.path(), Some(account.uid), Some(account.gid)).unwrap();
    }
    dir
}

/// An image in which somebody may change everything, and can remove what he will.
pub fn image_of(who: Who) -> Throwaway {
    let image = Throwaway::new();
    image.program("bin/rm", fs::read(host::image("bookworm-openmpi").join("usr/bin/rm")).unwrap());
    image.file("data", "image").file("etc/old", "image").directory("opt/d").file("opt/d/f", "image");
    image.owned_by(who);
    image
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A line of shell in an image.
pub fn shell(who: Who, image: &Path, overlays: &[&str], line: &str) -> Run {
    let options = overlays.iter().flat_map(|overlay| ["--overlay", overlay]);
    Run::launch(who, options).args([text(image), "sh", "-c", line])
}

/// What this node is called.
pub fn node() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

/// What is in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What was printed, line by line, sorted.
#[track_caller]
pub fn lines(outcome: &Outcome) -> Vec<String> {
    let mut lines: Vec<String> = outcome.out().lines().map(String::from).collect();
    lines.sort();
    lines
}

/// A layer of one file in a directory.
pub fn layer(dir: &Path, name: &str, path: &str, contents: &str) -> PathBuf {
    let layer = dir.join(name);
    fs::create_dir_all(layer.join(path).parent().unwrap()).unwrap();
    fs::write(layer.join(path), contents).unwrap();
    layer
}

/// mke2fs, of a directory.
pub fn ext(of: &Path, kind: &str) -> PathBuf {
    let file = of.with_extension(format!("hpc-launch.{kind}"));
    let mut command = Command::new("mke2fs");
    let output = command.args(["-q", "-t", kind, "-d"]).args([of, &file]).arg("16M").output().unwrap();
    assert!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr));
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    file
}

/// A fuse2fs that can be handed a mount, for the user: HPC_LAUNCH_TEST_FUSE2FS names it.
pub fn fuse2fs() -> Option<PathBuf> {
    std::env::var_os("HPC_LAUNCH_TEST_FUSE2FS").map(PathBuf::from)
}

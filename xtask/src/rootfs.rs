//! Debian packages unpacked into a directory, as a root file system that programs start in. No
//! package script runs: what they would do that matters here is done by hand.

use crate::layout::is_root;
use crate::run;
use anyhow::{Context, Result, bail};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Not unpacked: nothing reads it in a container, and it is a third of the files.
const UNWANTED: [&str; 6] = [
    "./usr/share/doc/*",
    "./usr/share/man/*",
    "./usr/share/info/*",
    "./usr/share/locale/*",
    "./usr/share/lintian/*",
    "./usr/share/bug/*",
];

/// The directories that are links into /usr in a merged system.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// What each distribution's image has, with its mode, whether or not a package brings it.
const DIRECTORIES: [(&str, u32); 12] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt/examples", 0o755),
    ("proc", 0o755),
    ("root", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

/// Unpacks package files into the new directory `root` and completes it.
pub fn unpack(packages: &[PathBuf], root: &Path, merged_usr: bool) -> Result<()> {
    fs::create_dir_all(root)?;
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    if merged_usr {
        for dir in MERGED {
            fs::create_dir_all(root.join("usr").join(dir))?;
            symlink(format!("usr/{dir}"), root.join(dir))?;
        }
    }
    // base-files may bring those links itself: replacing them must not race with others' files.
    let is_base = |path: &&PathBuf| file_name(path).starts_with("base-files_");
    let (base, others): (Vec<_>, Vec<_>) = packages.iter().partition(is_base);
    for package in base {
        unpack_one(package, root)?;
    }
    unpack_in_parallel(&others, root)?;
    complete(root)
}

/// xz keeps one core busy per package, so as many packages at a time as there are cores.
fn unpack_in_parallel(packages: &[&PathBuf], root: &Path) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(package) = packages.get(next.fetch_add(1, Ordering::Relaxed)) {
            unpack_one(package, root)?;
        }
        Ok(())
    };
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("an unpacking thread panicked"))
    })
}

fn unpack_one(package: &Path, root: &Path) -> Result<()> {
    let context = || format!("cannot unpack {}", package.display());
    let mut source = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(context)?;
    let stream = source.stdout.take().context("no pipe from dpkg-deb")?;
    let unpacked = Command::new("tar")
        .args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--delay-directory-restore"])
        .args(UNWANTED.map(|pattern| format!("--exclude={pattern}")))
        .arg("--directory")
        .arg(root)
        .stdin(stream)
        .status()
        .with_context(context)?;
    if !source.wait()?.success() || !unpacked.success() {
        bail!("{} (damaged? remove it and try again)", context());
    }
    Ok(())
}

/// Does what the packages' scripts would have done.
fn complete(root: &Path) -> Result<()> {
    for (dir, mode) in DIRECTORIES {
        let path = root.join(dir);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    let defaults = [
        ("usr/share/base-passwd/passwd.master", "etc/passwd"),
        ("usr/share/base-passwd/group.master", "etc/group"),
        ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
    ];
    for (default, file) in defaults {
        if root.join(default).exists() && !root.join(file).exists() {
            fs::copy(root.join(default), root.join(file))?;
        }
    }
    if root.join("bin/dash").exists() && fs::symlink_metadata(root.join("bin/sh")).is_err() {
        symlink("dash", root.join("bin/sh"))?;
    }
    // As debootstrap and the builders of OCI images leave them: there, and for the runtime to fill.
    if root.join("bin/sh").exists() {
        for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
            File::create(root.join(file))?;
        }
    }
    provide_psm(root)?;
    // An image without it (the one with nothing but libc) has no cache either: the loader does without.
    if root.join("etc/ld.so.conf").exists() {
        ldconfig(root)?;
    }
    // All may read it, whoever has built it, and its builder may remove it. Set-user-id programs have no
    // use in a container.
    run::output(Command::new("chmod").args(["-R", "a+rX,u+w,ug-s"]).arg(root))?;
    Ok(())
}

/// Writes the loader's cache.
pub fn ldconfig(root: &Path) -> Result<()> {
    run::output(Command::new("/sbin/ldconfig").arg("-r").arg(root)).map(drop)
}

/// The one library among our packages that is found through update-alternatives: without it Open MPI
/// complains about plugins that it cannot open. The links are those that its package would make.
fn provide_psm(root: &Path) -> Result<()> {
    let library = "usr/lib/libpsm1/libpsm_infinipath.so.1.16";
    if !root.join(library).exists() {
        return Ok(());
    }
    let name = "libpsm_infinipath.so.1";
    fs::create_dir_all(root.join("etc/alternatives"))?;
    symlink(format!("/{library}"), root.join("etc/alternatives").join(name))?;
    let dir = root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    symlink(format!("/etc/alternatives/{name}"), dir.join(name))?;
    Ok(())
}

/// A command that runs `script` with the root's own /bin/sh, seeing the host's /dev. Users get
/// the right to do that from a user namespace.
pub fn enter(root: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !is_root() {
        command.arg("--map-root-user");
    }
    let enter = r#"mount --rbind /dev "$1/dev" && exec chroot "$1" /bin/sh -e -c "$2""#;
    command.args(["sh", "-c", enter, "enter"]).arg(root).arg(script);
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("LC_ALL", "C").env_remove("TMPDIR").env_remove("LD_LIBRARY_PATH");
    command
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

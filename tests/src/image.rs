//! Images made for one test, small enough to be made by the dozen.

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::host::{self, Who};

/// Programs of the base image; none needs more than the C library. The shell knows echo, read, kill,
/// printf, pwd, test and trap itself.
const PROGRAMS: &[&str] = &["dash", "cat", "env", "head", "readlink", "sleep", "touch", "true", "wc"];
/// What an ordinary image has.
const DIRECTORIES: &[&str] =
    &["bin", "dev", "etc", "home", "lib", "lib64", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp"];

/// A root file system in a directory of its own, gone with the value.
pub struct Throwaway {
    dir: TempDir,
}

/// A directory that every user can read, below `parent`.
pub fn directory(parent: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix("hpcl-test.").tempdir_in(parent).expect("a directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
    dir
}

impl Throwaway {
    /// A root file system without anything in it.
    pub fn empty() -> Throwaway {
        Throwaway::empty_in("/var/tmp")
    }

    /// The same, below another directory of the host. In /var/tmp it is out of the sandbox's sight.
    pub fn empty_in(parent: &str) -> Throwaway {
        let image = Throwaway { dir: directory(parent) };
        fs::create_dir(image.root()).expect("a directory for the root");
        image
    }

    /// The usual directories, a shell, and a few programs.
    pub fn new() -> Throwaway {
        Throwaway::new_in("/var/tmp")
    }

    /// The same, below another directory of the host.
    pub fn new_in(parent: &str) -> Throwaway {
        let image = Throwaway::empty_in(parent);
        for name in DIRECTORIES {
            image.directory(name);
        }
        let donor = host::image("bookworm-openmpi");
        for program in PROGRAMS {
            copy(&donor.join("usr/bin").join(program), &image.at("bin").join(program));
        }
        image.link("dash", "bin/sh");
        let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
        let libraries = donor.join("usr/lib").join(&triple);
        image.directory(format!("lib/{triple}"));
        copy(&libraries.join("libc.so.6"), &image.at("lib").join(&triple).join("libc.so.6"));
        let loader = match std::env::consts::ARCH {
            "aarch64" => "lib/ld-linux-aarch64.so.1",
            _ => "lib64/ld-linux-x86-64.so.2",
        };
        let name = Path::new(loader).file_name().expect("a file");
        copy(&libraries.join(name), &image.at(loader));
        image
    }

    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// The directory that holds it.
    pub fn beside(&self) -> &Path {
        self.dir.path()
    }

    /// Something in the image.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root().join(path)
    }

    /// Makes a directory, and those above it.
    pub fn directory(&self, path: impl AsRef<Path>) -> &Self {
        fs::create_dir_all(self.at(path)).expect("a directory");
        self
    }

    /// Removes something, whatever it is.
    pub fn remove(&self, path: impl AsRef<Path>) -> &Self {
        let path = self.at(path);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path).expect("removed"),
            Ok(_) => fs::remove_file(&path).expect("removed"),
            Err(_) => {}
        }
        self
    }

    /// A symbolic link, in place of what is there.
    pub fn link(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> &Self {
        self.remove(&path);
        symlink(target, self.at(path)).expect("a link");
        self
    }

    /// A file, in place of what is there.
    pub fn file(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> &Self {
        self.remove(&path);
        fs::write(self.at(&path), contents).expect("a file");
        self
    }

    /// An executable file, in place of what is there.
    pub fn program(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> &Self {
        self.file(&path, contents).mode(path, 0o755)
    }

    /// Sets permissions.
    pub fn mode(&self, path: impl AsRef<Path>, mode: u32) -> &Self {
        fs::set_permissions(self.at(path), Permissions::from_mode(mode)).expect("chmod");
        self
    }

    /// A FIFO, in place of what is there.
    pub fn fifo(&self, path: impl AsRef<Path>) -> &Self {
        self.remove(&path);
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        nix::unistd::mkfifo(&self.at(path), mode).expect("mkfifo");
        self
    }

    /// Gives the image, with all that is in it, to somebody.
    pub fn owned_by(&self, who: Who) -> &Self {
        let account = who.account();
        if host::is_root() {
            let owner = format!("{}:{}", account.uid, account.gid);
            let status = Command::new("chown").args(["-R", "-h", &owner]).arg(self.root()).status();
            assert!(status.expect("chown").success(), "chown {owner}");
        }
        self
    }

    /// Packs the image into `image.sqfs` beside it.
    pub fn squash(&self) -> PathBuf {
        let file = self.beside().join("image.sqfs");
        squash(&self.root(), &file, &[]);
        file
    }
}

impl Default for Throwaway {
    fn default() -> Throwaway {
        Throwaway::new()
    }
}

/// mksquashfs, with a compressor that every squashfuse and kernel knows.
pub fn squash(root: &Path, file: &Path, options: &[&str]) {
    let mut command = Command::new("mksquashfs");
    command.arg(root).arg(file).args(["-noappend", "-no-progress", "-quiet", "-comp", "gzip"]);
    let output = command.args(options).output().expect("mksquashfs is installed");
    assert!(output.status.success(), "mksquashfs: {}", String::from_utf8_lossy(&output.stderr));
    fs::set_permissions(file, Permissions::from_mode(0o644)).expect("chmod");
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|e| panic!("cannot copy {} to {}: {e}", from.display(), to.display()));
}

/// A program of the image's architecture whose ELF header names another machine.
pub fn foreign_elf(of: &Path) -> Vec<u8> {
    let mut bytes = fs::read(of).expect("a program");
    assert!(bytes.starts_with(b"\x7fELF"), "{} is no ELF program", of.display());
    // e_machine, elf(5): 243 is RISC-V.
    bytes[18..20].copy_from_slice(&243u16.to_le_bytes());
    bytes
}

/// Whether a path of the host is below another, both without links.
pub fn is_below(path: &Path, of: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(of.as_os_str().as_bytes())
}

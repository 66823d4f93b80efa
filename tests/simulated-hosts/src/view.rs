//! What a host sees: file systems of its own where a machine has its own, and all else of the machine's.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::unistd::sethostname;

/// The name, and processes: what every namespace here needs. Mounts are private already (unshare(1)).
pub fn own(name: &str) -> io::Result<()> {
    sethostname(name)?;
    fresh("proc", "/proc".as_ref(), "")
}

/// The files: /tmp, in which only what is `shown` is the machine's, and what else hosts do not share.
pub fn files(bed: &Path, shown: &[PathBuf]) -> io::Result<()> {
    // It becomes /tmp when all that comes from the machine's is in it.
    let tmp = bed.join("tmp");
    fresh("tmpfs", &tmp, "mode=1777")?;
    for path in shown {
        let below = path.strip_prefix("/tmp").map_err(io::Error::other)?;
        fs::create_dir_all(tmp.join(below))?;
        bind(path, &tmp.join(below))?;
    }
    mount(Some(&tmp), "/tmp", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    fresh("tmpfs", "/dev/shm".as_ref(), "mode=1777")?;
    fresh("sysfs", "/sys".as_ref(), "")?;
    bind(&bed.join("hosts"), "/etc/hosts".as_ref())
}

fn fresh(kind: &str, at: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), at, Some(kind), flags, Some(options))
        .map_err(|e| io::Error::other(format!("cannot mount {kind} on {}: {e}", at.display())))
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| io::Error::other(format!("cannot bind {}: {e}", from.display())))
}

/// Lines for ip(8), all by one process.
pub fn ip(lines: &str) -> io::Result<()> {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    let mut input = ip.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    input.write_all(lines.as_bytes())?;
    drop(input);
    let status = ip.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip -batch: {status}\n{lines}"))) }
}

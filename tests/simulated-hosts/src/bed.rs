//! A bed of hosts: started, up and connected, and gone with the value, or when the process that holds it ends,
//! however it does: the bed reads from a pipe that only that process holds open.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{NAMESPACES, RSH, name};

/// How long all of it may take to come up, or to go, on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The hosts, up and connected.
#[derive(Debug)]
pub struct Bed {
    names: Vec<String>,
    switch: Child,
    /// The program of the hosts and their sockets: in /var/tmp, which no host hides and no sandbox shows.
    dir: TempDir,
}

impl Bed {
    /// So many hosts, and the head. `program` is one that calls [`crate::main`] when it is named [`RSH`]; of the machine's
    /// /tmp the hosts see the directories `shown`. Needs root.
    pub fn start(program: &Path, count: usize, shown: &[PathBuf]) -> io::Result<Bed> {
        if !nix::unistd::geteuid().is_root() {
            let why = "hosts start programs as other users: that needs root";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let dir = tempfile::Builder::new().prefix("hpcl-hosts.").tempdir_in("/var/tmp")?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        fs::create_dir(dir.path().join("tmp"))?;
        let rsh = dir.path().join(RSH);
        // Where it was built may be below /tmp, or closed to the plain user. Not copied by this process: what its
        // other threads start meanwhile would have it open for writing for a moment, and it could not be run.
        let copied = Command::new("cp").arg(program).arg(&rsh).status()?;
        if !copied.success() {
            return Err(io::Error::other(format!("cp {} {}: {copied}", program.display(), rsh.display())));
        }
        let mut command = Command::new("unshare");
        command.args(NAMESPACES).arg(&rsh).arg("--switch").arg(count.to_string()).args(shown);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.current_dir("/");
        let switch = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let switch = switch.map_err(|e| io::Error::new(e.kind(), format!("unshare (util-linux): {e}")))?;
        let mut bed = Bed { names: (1..=count).map(name).collect(), switch, dir };
        bed.is_ready()?;
        Ok(bed)
    }

    fn is_ready(&mut self) -> io::Result<()> {
        let said = self.switch.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(said).read_line(&mut line);
            let _ = tell.send(line);
        });
        let line = told.recv_timeout(PATIENCE).unwrap_or_else(|_| format!("nothing within {PATIENCE:?}"));
        if line == "ready\n" {
            return Ok(());
        }
        Err(io::Error::other(format!("the hosts do not come up, but said {line:?}: see above")))
    }

    /// The names of the ranks' hosts.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The program that starts another on a host, as rsh and ssh do.
    pub fn rsh(&self) -> PathBuf {
        self.dir.path().join(RSH)
    }

    /// The directory of the bed. What is put there is seen by all hosts and by no sandbox.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // The bed's first process ends, and the kernel ends whatever is in its namespace or one below.
        drop(self.switch.stdin.take());
        let start = Instant::now();
        while matches!(self.switch.try_wait(), Ok(None)) {
            if start.elapsed() > PATIENCE {
                let _ = self.switch.kill();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

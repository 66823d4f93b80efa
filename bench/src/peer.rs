//! The other runtimes: for each the command line that does what hpc-launch does, as its own documentation has it, or
//! why it cannot run here.
//!
//! All of them show the host's /tmp, where the benchmark programs lie, and use the host's network.

use crate::contender::{Contender, Setup, find_program};
use crate::error::Error;
use crate::run::{CommandLine, Runner};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

/// Charliecloud's launcher.
pub const CH_RUN: &str = "ch-run";
/// bubblewrap, with about the mounts that hpc-launch makes.
pub const BWRAP: &str = "bwrap";
/// Podman without root, from its own copy of the image.
pub const PODMAN: &str = "podman";
/// Apptainer.
pub const APPTAINER: &str = "apptainer";
/// NVIDIA's enroot.
pub const ENROOT: &str = "enroot";
/// What is asked for its version.
pub const PROGRAMS: &[&str] = &[CH_RUN, BWRAP, PODMAN, "runc", APPTAINER, ENROOT];

/// Host files that both hpc-launch and the bwrap row put over the image's.
const ETC_FILES: &[&str] = &["passwd", "group", "hosts", "resolv.conf", "hostname", "nsswitch.conf"];
/// MPIs whose ranks have a user namespace each cannot read each other's memory: without these they hang or abort.
const APART: &[(&str, &str)] = &[
    ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
    ("UCX_POSIX_USE_PROC_LINK", "n"),
    ("UCX_TLS", "^cma"),
];

/// What is done in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// One process, or many that do not know of each other.
    Single,
    /// So many ranks, which read each other's memory.
    Ranks(usize),
}

/// A runtime that the user knows how to call: `NAME=COMMAND`, which takes the program as its last words.
#[derive(Debug, Clone)]
pub struct Own {
    name: String,
    words: Vec<String>,
}

impl std::str::FromStr for Own {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, line) =
            text.split_once('=').ok_or("NAME=COMMAND is wanted, as 'sarus=sarus run --mpi x:1'")?;
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        if name.is_empty() || words.is_empty() {
            return Err("neither the name nor the command may be empty".into());
        }
        Ok(Own { name: name.into(), words })
    }
}

/// All peers of one image, with what had to be made for them. What was made goes with the value.
#[derive(Debug)]
pub struct Peers {
    own: Vec<Own>,
    podman: Result<Podman, String>,
}

impl Peers {
    /// Makes what the peers need. Podman takes some seconds and as much room as the image; `none` of them is wanted
    /// where that is too much.
    pub fn prepare(own: &[Own], with_podman: bool, setup: &Setup, runner: &mut Runner) -> Self {
        let podman = if with_podman {
            Podman::prepare(setup, runner)
        } else {
            Err("it was left out: --podman has it copied into a store and run".into())
        };
        Peers { own: own.to_vec(), podman }
    }

    /// Each peer's row. Of what Debian does not have only what is here; its others say how they are installed.
    pub fn rows(&self, words: &[String], job: Job, setup: &Setup) -> Vec<Contender> {
        let mut rows = vec![(CH_RUN.to_owned(), ch_run(setup, &[], words))];
        if let Job::Ranks(count) = job {
            // Open MPI's and Slurm's variables would tell it, hydra's do not.
            let count = format!("--join-ct={count}");
            rows.push(("ch-run --join".into(), ch_run(setup, &["--join", &count], words)));
            rows.push(("ch-run, told to keep apart".into(), ch_run(setup, &[], words).map(apart)));
        }
        rows.push((BWRAP.into(), bwrap(setup, words)));
        if job != Job::Single {
            rows.push(("bwrap, told to keep apart".into(), bwrap(setup, words).map(apart)));
        }
        rows.push((
            PODMAN.into(),
            self.podman.as_ref().map(|podman| podman.line(setup, words)).map_err(Clone::clone),
        ));
        if let Ok(path) = find_program(APPTAINER, "") {
            let image = setup.image.to_string_lossy();
            let exec = |options: &[&str]| {
                let args = [&["exec"], options, &[&image]].concat();
                setup.bare(words).after(&setup.line(&path, &args))
            };
            rows.push((APPTAINER.into(), Ok(exec(&[]))));
            if job != Job::Single {
                rows.push(("apptainer --sharens".into(), Ok(exec(&["--sharens"]))));
            }
        }
        if let Ok(path) = find_program(ENROOT, "") {
            rows.push((ENROOT.into(), enroot(setup, &path, words)));
        }
        for own in &self.own {
            let path = find_program(&own.words[0], "the command of --peer must be there");
            let line = path.map(|path| setup.bare(words).after(&setup.line(&path, &own.words[1..])));
            rows.push((own.name.clone(), line));
        }
        rows.into_iter().map(|(name, line)| Contender { name, line }).collect()
    }
}

fn apart(line: CommandLine) -> CommandLine {
    line.with_env(APART.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

fn directory(setup: &Setup, peer: &str) -> Result<(), String> {
    if setup.image.is_dir() {
        Ok(())
    } else {
        Err(format!("{peer} takes directories here, and the image is a file"))
    }
}

/// `words` in the image, by ch-run with its defaults.
fn ch_run(setup: &Setup, options: &[&str], words: &[String]) -> Result<CommandLine, String> {
    directory(setup, CH_RUN)?;
    let ch_run = find_program(CH_RUN, "apt-get install charliecloud")?;
    let args: Vec<&OsStr> =
        options.iter().map(OsStr::new).chain([setup.image.as_os_str(), OsStr::new("--")]).collect();
    Ok(setup.bare(words).after(&setup.line(&ch_run, &args)))
}

/// `words` in the image, by bwrap with the mounts that hpc-launch makes.
fn bwrap(setup: &Setup, words: &[String]) -> Result<CommandLine, String> {
    directory(setup, BWRAP)?;
    let bwrap = find_program(BWRAP, "apt-get install bubblewrap")?;
    Ok(setup.bare(words).after(&setup.line(&bwrap, &bwrap_mounts(&setup.image, &setup.home))))
}

/// Read-only as hpc-launch's root is, so bwrap cannot make a mount point that the image lacks; such
/// a target is left out.
fn bwrap_mounts(image: &Path, home: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--ro-bind".into(), image.into(), "/".into()];
    let mut bind = |flag: &str, path: &Path| {
        let inside = image.join(path.strip_prefix("/").unwrap_or(path));
        let there = path.exists() && inside.symlink_metadata().is_ok();
        if there {
            args.extend([OsString::from(flag), path.into(), path.into()]);
        }
        there
    };
    bind("--dev-bind", Path::new("/dev"));
    for dir in ["/proc", "/sys", "/tmp"] {
        bind("--bind", Path::new(dir));
    }
    // An image rarely has /home/NAME, but nearly always /home.
    let _ = home.ancestors().filter(|dir| *dir != Path::new("/")).any(|dir| bind("--bind", dir));
    for file in ETC_FILES {
        bind("--ro-bind", &Path::new("/etc").join(file));
    }
    args
}

/// A container of enroot's is a directory below ENROOT_DATA_PATH, which the image's own place can be.
fn enroot(setup: &Setup, enroot: &Path, words: &[String]) -> Result<CommandLine, String> {
    directory(setup, ENROOT)?;
    let (Some(data), Some(name)) = (setup.image.parent(), setup.image.file_name()) else {
        return Err("enroot cannot run the root directory".into());
    };
    let args = [OsStr::new("start"), OsStr::new("--mount"), OsStr::new("/tmp:/tmp"), name];
    let line = setup.bare(words).after(&setup.line(enroot, &args));
    Ok(line.with_env([("ENROOT_DATA_PATH".into(), data.into())]))
}

/// A store with the image in it. Rootless Podman cannot run a tree that another user owns.
#[derive(Debug)]
struct Podman {
    program: PathBuf,
    runtime: PathBuf,
    dir: PathBuf,
}

impl Podman {
    fn prepare(setup: &Setup, runner: &mut Runner) -> Result<Self, String> {
        directory(setup, PODMAN)?;
        let program = find_program(PODMAN, "apt-get install podman runc uidmap")?;
        // crun refuses hosts that have both versions of cgroups.
        let runtime = find_program("runc", "apt-get install runc")?;
        let made = tempfile::Builder::new().prefix("hpc-bench-podman.").tempdir_in("/var/tmp");
        let dir = made.map_err(|e| format!("no directory for its store: {e}"))?.keep();
        // From here on the value's end removes it.
        let podman = Podman { program, runtime, dir };
        for name in ["store", "run", "xdg"] {
            fs::create_dir(podman.dir.join(name)).map_err(|e| format!("no directory for its store: {e}"))?;
        }
        let import = podman.command(setup, &["import", "-q", "-", "bench"]);
        let script = format!("tar -C \"$0\" --exclude=./proc/* -c . | {import}");
        let sh =
            setup.line(Path::new("/bin/sh"), &[OsStr::new("-c"), script.as_ref(), setup.image.as_os_str()]);
        let sh = CommandLine { env: import.env, ..sh };
        runner.time(&sh).map_err(|failure| format!("podman import failed: {failure}"))?;
        Ok(podman)
    }

    fn command(&self, setup: &Setup, args: &[&str]) -> CommandLine {
        let args: Vec<OsString> = self.options().into_iter().chain(args.iter().map(Into::into)).collect();
        setup.line(&self.program, &args).with_env(self.own())
    }

    /// What every call of it has in front.
    fn options(&self) -> Vec<OsString> {
        let own = [("--root", self.dir.join("store")), ("--runroot", self.dir.join("run"))];
        let mut options: Vec<OsString> = Vec::new();
        for (name, path) in own.into_iter().chain([("--runtime", self.runtime.clone())]) {
            options.extend([name.into(), path.into()]);
        }
        options.extend(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"].map(Into::into));
        options
    }

    /// Where it keeps what belongs to a session: not in the user's own.
    fn own(&self) -> [(OsString, OsString); 1] {
        [("XDG_RUNTIME_DIR".into(), self.dir.join("xdg").into())]
    }

    fn line(&self, setup: &Setup, words: &[String]) -> CommandLine {
        let own = ["run", "--rm", "--network", "host", "--pid", "host", "--userns", "keep-id", "--env-host"];
        let shown = ["-v", "/tmp:/tmp", "-v", "/dev/shm:/dev/shm", "bench"];
        setup.bare(words).after(&self.command(setup, &[&own[..], &shown].concat())).with_env(self.own())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Containers of runs that took too long: what starts them is a child of nobody's.
        let _ = std::process::Command::new(&self.program)
            .args(self.options())
            .args(["rm", "--force", "--all", "--time", "0"])
            .envs(self.own())
            .stdin(std::process::Stdio::null())
            .output();
        // What it mounted goes with the process that it leaves behind in its namespaces.
        let pause = fs::read_to_string(self.dir.join("xdg/libpod/tmp/pause.pid"));
        if let Some(pid) = pause.ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        // Its files belong to other numbers of ours, too (subuid(5)), so that it takes such a namespace to remove them.
        let _ = std::process::Command::new("unshare")
            .args(["--map-root-user", "--map-auto", "rm", "-rf"])
            .arg(&self.dir)
            .stderr(std::process::Stdio::null())
            .status();
        if !self.dir.exists() {
            return;
        }
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("hpc-bench: {} could not be removed: {e}", self.dir.display());
        }
    }
}

/// What every bench with peers takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// One more runtime: a row NAME that runs COMMAND with the program as its last words. May be given several times
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    pub peers: Vec<Own>,
    /// Podman too: its own copy of the image is made first
    #[arg(long)]
    pub podman: bool,
}

impl Args {
    /// The peers that were asked for.
    pub fn prepare(&self, setup: &Setup, runner: &mut Runner) -> Result<Peers, Error> {
        Ok(Peers::prepare(&self.peers, self.podman, setup, runner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bwrap_binds_only_what_the_image_can_take() {
        let image = tempfile::tempdir().unwrap();
        for dir in ["proc", "home", "etc"] {
            fs::create_dir(image.path().join(dir)).unwrap();
        }
        fs::write(image.path().join("etc/passwd"), "").unwrap();
        let words = bwrap_mounts(image.path(), Path::new("/home/someone"));
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            words[3..].join(" "),
            "--bind /proc /proc --bind /home /home --ro-bind /etc/passwd /etc/passwd"
        );
    }

    #[test]
    fn a_peer_of_ones_own() {
        let own: Own = "sarus=/opt/sarus/bin/sarus run --mpi x:1".parse().unwrap();
        assert_eq!((own.name.as_str(), own.words.len()), ("sarus", 4));
        assert!("sarus".parse::<Own>().unwrap_err().contains("NAME=COMMAND"));
        assert!("x=".parse::<Own>().is_err());
    }
}

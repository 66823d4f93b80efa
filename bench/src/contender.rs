//! Who runs against whom: the command line of bare metal, hpc-launch and each peer for one program.

use crate::alternate::{Outcomes, alternate};
use crate::error::Error;
use crate::run::{CommandLine, Failure};
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The host's own program, outside of any image.
pub const BARE: &str = "bare";
/// The same once more: how far its ratio is from 1 is the noise of the run.
pub const BARE_AGAIN: &str = "bare, again";
/// The product.
pub const HPC_LAUNCH: &str = "hpc-launch";
/// Charliecloud's launcher.
pub const CH_RUN: &str = "ch-run";
/// bubblewrap, with about the mounts that hpc-launch makes.
pub const BWRAP: &str = "bwrap";

/// Variables of any launcher: with one of them around, the bench would seem to be a rank itself.
const LAUNCHER_VARIABLES: &[&str] = &["PMI_RANK", "PMI_FD", "PMIX_RANK", "PMIX_NAMESPACE", "SLURM_PROCID"];

/// Host files that both hpc-launch and the bwrap row put over the image's.
const ETC_FILES: &[&str] = &["passwd", "group", "hosts", "resolv.conf", "hostname", "nsswitch.conf"];

/// One row: a name and what it runs, or why it cannot run here.
#[derive(Debug, Clone)]
pub struct Contender {
    /// As in the table.
    pub name: String,
    /// `Err` is shown in the row's place: a missing peer is said, not dropped.
    pub line: Result<CommandLine, String>,
}

/// One row's outcomes, or why it has none.
#[derive(Debug)]
pub struct Measured<T> {
    /// As in the table.
    pub name: String,
    /// As one would type it; empty when the row could not run.
    pub command: String,
    /// One per round.
    pub outcomes: Result<Outcomes<T>, String>,
}

/// Samples all rows that can run, alternating; the others come back with their reason.
pub fn measure<T>(
    contenders: &[Contender],
    warm_up: usize,
    runs: usize,
    mut sample: impl FnMut(&str, &CommandLine) -> Result<T, Failure>,
) -> Vec<Measured<T>> {
    let able: Vec<(&str, &CommandLine)> =
        contenders.iter().filter_map(|c| Some((c.name.as_str(), c.line.as_ref().ok()?))).collect();
    let mut outcomes =
        alternate(able.len(), warm_up, runs, |row| sample(able[row].0, able[row].1)).into_iter();
    contenders
        .iter()
        .map(|c| match &c.line {
            Ok(line) => Measured {
                name: c.name.clone(),
                command: line.to_string(),
                outcomes: Ok(outcomes.next().unwrap_or_default()),
            },
            Err(why) => Measured { name: c.name.clone(), command: String::new(), outcomes: Err(why.clone()) },
        })
        .collect()
}

/// What all command lines of one bench share.
#[derive(Debug)]
pub struct Setup {
    /// Absolute path of the image directory.
    pub image: PathBuf,
    /// Absolute path of hpc-launch, or where it was looked for.
    pub launcher: Result<PathBuf, String>,
    env: Vec<(OsString, OsString)>,
    home: PathBuf,
}

impl Setup {
    /// Finds image and launcher, and goes to the home directory: all rows start from the same place, one
    /// that every launcher shows inside anyway.
    pub fn new(image: &Path, launcher: Option<&Path>) -> Result<Self, Error> {
        if let Some(name) = LAUNCHER_VARIABLES.iter().find(|name| env::var_os(name).is_some()) {
            return Err(Error::new(
                "measure",
                format!("{name} is set, so that hpc-bench itself looks like a rank"),
                "start hpc-bench by hand, not under mpirun or srun",
            ));
        }
        let image = image.canonicalize().and_then(|path| path.read_dir().map(|_| path)).map_err(|e| {
            Error::new(
                format!("use the image {}", image.display()),
                e,
                "give --image a directory that holds a root file system (cargo xtask images makes some)",
            )
        })?;
        let launcher = find_launcher(launcher)?;
        let home = env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_dir());
        let home = home.unwrap_or_else(|| "/".into());
        env::set_current_dir(&home).map_err(|e| {
            Error::new(format!("go to {}", home.display()), e, "set HOME to a directory you may enter")
        })?;
        Ok(Setup { image, launcher, env: clean_environment()?, home })
    }

    /// The program with its arguments, and the environment that all rows get.
    pub fn line<S: AsRef<OsStr>>(&self, program: &Path, args: &[S]) -> CommandLine {
        let args = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        CommandLine { program: program.to_owned(), args, env: self.env.clone() }
    }

    /// `words` on the host.
    pub fn bare(&self, words: &[String]) -> CommandLine {
        self.line(Path::new(&words[0]), &words[1..])
    }

    /// `words` in the image, by hpc-launch.
    pub fn hpc_launch(&self, words: &[String]) -> Result<CommandLine, String> {
        self.hpc_launch_with(&[], words)
    }

    /// The same with options.
    pub fn hpc_launch_with(&self, options: &[&str], words: &[String]) -> Result<CommandLine, String> {
        let launcher = self.launcher.as_ref().map_err(Clone::clone)?;
        let image = self.image.as_os_str();
        let args: Vec<&OsStr> = options.iter().map(OsStr::new).chain([image]).collect();
        Ok(self.bare(words).after(&self.line(launcher, &args)))
    }

    /// `words` in the image, by ch-run with its defaults.
    pub fn ch_run(&self, words: &[String]) -> Result<CommandLine, String> {
        let ch_run = find_program("ch-run", "apt-get install charliecloud")?;
        Ok(self.bare(words).after(&self.line(&ch_run, &[self.image.as_os_str(), OsStr::new("--")])))
    }

    /// `words` in the image, by bwrap with the mounts that hpc-launch makes.
    pub fn bwrap(&self, words: &[String]) -> Result<CommandLine, String> {
        let bwrap = find_program("bwrap", "apt-get install bubblewrap")?;
        Ok(self.bare(words).after(&self.line(&bwrap, &self.bwrap_mounts())))
    }

    /// The rows that every bench has, in the order of the table.
    pub fn contenders(&self, words: &[String]) -> Vec<Contender> {
        let row = |name: &str, line| Contender { name: name.into(), line };
        vec![
            row(BARE, Ok(self.bare(words))),
            row(BARE_AGAIN, Ok(self.bare(words))),
            row(HPC_LAUNCH, self.hpc_launch(words)),
            row(CH_RUN, self.ch_run(words)),
            row(BWRAP, self.bwrap(words)),
        ]
    }

    /// Read-only as hpc-launch's root is, so bwrap cannot make a mount point that the image lacks; such
    /// a target is left out.
    fn bwrap_mounts(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--ro-bind".into(), self.image.clone().into(), "/".into()];
        let mut bind = |flag: &str, path: &Path| {
            let inside = self.image.join(path.strip_prefix("/").unwrap_or(path));
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
        let _ = self.home.ancestors().filter(|dir| *dir != Path::new("/")).any(|dir| bind("--bind", dir));
        for file in ETC_FILES {
            bind("--ro-bind", &Path::new("/etc").join(file));
        }
        args
    }
}

/// An absolute path, or a sentence that says where it was looked for and how to get it.
pub fn find_program(name: &str, cure: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut candidates: Vec<PathBuf> = env::split_paths(&path).map(|dir| dir.join(name)).collect();
    if name.contains('/') {
        candidates = vec![name.into()];
    }
    candidates
        .iter()
        .find(|path| is_executable(path))
        .and_then(|path| std::path::absolute(path).ok())
        .ok_or_else(|| format!("{name} was not found in {}: {cure}", path.to_string_lossy()))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The one that was named, or else the one built beside this program, or else the installed one.
fn find_launcher(named: Option<&Path>) -> Result<Result<PathBuf, String>, Error> {
    if let Some(path) = named {
        let found = path.canonicalize().map_err(|e| {
            Error::new(
                format!("use the launcher {}", path.display()),
                e,
                "give --launcher-bin an existing program",
            )
        })?;
        if !is_executable(&found) {
            let why = "it is not an executable file";
            return Err(Error::new(
                format!("use the launcher {}", found.display()),
                why,
                "give --launcher-bin the program hpc-launch itself",
            ));
        }
        return Ok(Ok(found));
    }
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("hpc-launch")));
    match beside {
        Some(path) if is_executable(&path) => Ok(Ok(path)),
        _ => Ok(find_program("hpc-launch", "").map_err(|_| {
            "hpc-launch was found neither beside hpc-bench nor in PATH: cargo build --release builds it, \
             --launcher-bin names it"
                .into()
        })),
    }
}

/// A small environment, alike for all rows and free of what some launcher left. HPC_LAUNCH_* stays:
/// it is how one tries a setting out.
fn clean_environment() -> Result<Vec<(OsString, OsString)>, Error> {
    const KEPT: &[&str] = &["PATH", "HOME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR"];
    let mut env: Vec<(OsString, OsString)> = env::vars_os()
        .filter(|(name, _)| {
            KEPT.iter().any(|kept| name == kept) || name.to_string_lossy().starts_with("HPC_LAUNCH_")
        })
        .collect();
    // ch-run refuses to start without $USER, which is not set in every shell.
    let user = crate::user::name()?;
    env.extend(["USER", "LOGNAME"].map(|name| (name.into(), user.clone().into())));
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(image: &Path) -> Setup {
        Setup {
            image: image.to_owned(),
            launcher: Ok("/opt/hpc-launch".into()),
            env: vec![("A".into(), "b".into())],
            home: "/home/someone".into(),
        }
    }

    #[test]
    fn hpc_launch_takes_image_then_command() {
        let line = setup(Path::new("/img")).hpc_launch(&["/bin/sleep".into(), "1".into()]).unwrap();
        assert_eq!(line.to_string(), "/opt/hpc-launch /img /bin/sleep 1");
        assert_eq!(line.env, [("A".into(), "b".into())]);
    }

    #[test]
    fn bwrap_binds_only_what_the_image_can_take() {
        let image = tempfile::tempdir().unwrap();
        for dir in ["proc", "home", "etc"] {
            std::fs::create_dir(image.path().join(dir)).unwrap();
        }
        std::fs::write(image.path().join("etc/passwd"), "").unwrap();
        let words = setup(image.path()).bwrap_mounts();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            words[3..].join(" "),
            "--bind /proc /proc --bind /home /home --ro-bind /etc/passwd /etc/passwd"
        );
    }

    #[test]
    fn a_row_that_cannot_run_keeps_its_place() {
        let line = CommandLine { program: "/bin/true".into(), args: Vec::new(), env: Vec::new() };
        let rows = [
            Contender { name: "gone".into(), line: Err("not installed".into()) },
            Contender { name: "here".into(), line: Ok(line) },
        ];
        let measured = measure(&rows, 0, 2, |name, _| Ok(name.len()));
        assert_eq!(measured[0].outcomes.as_ref().unwrap_err(), "not installed");
        assert_eq!(measured[1].outcomes.as_ref().unwrap().len(), 2);
    }

    #[test]
    fn a_missing_program_names_the_cure() {
        let why = find_program("no-such-launcher", "apt-get install it").unwrap_err();
        assert!(why.contains("no-such-launcher") && why.ends_with("apt-get install it"), "{why}");
    }
}

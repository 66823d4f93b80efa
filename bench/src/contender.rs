//! Who runs against whom: the command line of bare metal, hpc-launch and each peer for one program.

use crate::alternate::Outcomes;
use crate::error::Error;
use crate::run::{CommandLine, Failure};
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The host's own program, outside of any image.
pub const BARE: &str = "bare";
/// The same once more: how far its ratio is from 1 is the noise of the run.
pub const BARE_AGAIN: &str = "bare, again";
/// The product.
pub const HPC_LAUNCH: &str = "hpc-launch";
/// Variables of any launcher: with one of them around, the bench would seem to be a rank itself.
const LAUNCHER_VARIABLES: &[&str] = &["PMI_RANK", "PMI_FD", "PMIX_RANK", "PMIX_NAMESPACE", "SLURM_PROCID"];

/// One row: a name and what it runs, or why it cannot run here.
#[derive(Debug, Clone)]
pub struct Contender {
    /// As in the table.
    pub name: String,
    /// `Err` is shown in the row's place: a missing peer is said, not dropped.
    pub line: Result<CommandLine, String>,
}

impl Contender {
    /// A row.
    pub fn new(name: impl Into<String>, line: Result<CommandLine, String>) -> Self {
        Contender { name: name.into(), line }
    }
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

impl<T> Measured<T> {
    /// Another look at each outcome.
    pub fn map<U>(&self, look: impl Fn(&T) -> U) -> Measured<U> {
        self.and_then(|sample| Ok(look(sample)))
    }

    /// Another look, which may find nothing.
    pub fn and_then<U>(&self, look: impl Fn(&T) -> Result<U, Failure>) -> Measured<U> {
        let each = |outcome: &Result<T, Failure>| outcome.as_ref().map_err(Clone::clone).and_then(&look);
        Measured {
            name: self.name.clone(),
            command: self.command.clone(),
            outcomes: self.outcomes.as_ref().map(|all| all.iter().map(each).collect()).map_err(Clone::clone),
        }
    }
}

/// What all command lines of one bench share.
#[derive(Debug)]
pub struct Setup {
    /// Absolute path of the image.
    pub image: PathBuf,
    /// Absolute path of hpc-launch, or where it was looked for.
    pub launcher: Result<PathBuf, String>,
    env: Vec<(OsString, OsString)>,
    /// Where all rows start.
    pub home: PathBuf,
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
        let readable = |path: PathBuf| {
            if path.is_dir() { path.read_dir().map(|_| path) } else { File::open(&path).map(|_| path) }
        };
        let image = image.canonicalize().and_then(readable).map_err(|e| {
            Error::new(
                format!("use the image {}", image.display()),
                e,
                "give --image a directory that holds a root file system (cargo xtask images makes some), or a file",
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

    /// Bare metal, and once more, and hpc-launch: the rows that every bench has, in the order of the table.
    pub fn contenders(&self, words: &[String]) -> Vec<Contender> {
        vec![
            Contender::new(BARE, Ok(self.bare(words))),
            Contender::new(BARE_AGAIN, Ok(self.bare(words))),
            Contender::new(HPC_LAUNCH, self.hpc_launch(words)),
        ]
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
    fn a_missing_program_names_the_cure() {
        let why = find_program("no-such-launcher", "apt-get install it").unwrap_err();
        assert!(why.contains("no-such-launcher") && why.ends_with("apt-get install it"), "{why}");
    }
}

//! Can this command run, and can its MPI talk to the launcher? Judged in the view that it will have.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use abi_probe::elf::Arch;
use abi_probe::linkmap::{Circumstances, Scope, Unrunnable};
use abi_probe::mpi::{self, Detail, Family, Mpi, Pmi};
use abi_probe::prober::Prober;
use abi_probe::rootfs::{Entry, Kind, Lookup, View};
use pmi_shim::downlink::Wiring;
use pmi_shim::fit::{self, ImageMpi, Misfit};
use pmi_shim::launcher::Offer;

use crate::cli::MpiMode;
use crate::config::Config;
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::job::JobStep;
use crate::plan::MpiVerdict;
use crate::program::{Looked, Started};

/// Finds the command as the container's execvp would; answers the path by which it would be executed in
/// `workdir`, and what that leads to.
pub fn find_program(
    view: &View,
    command: &OsStr,
    workdir: &Path,
    environ: &Environ,
) -> Result<(PathBuf, Entry)> {
    let shown = command.display();
    let not_found = |what: String, cure: &str| Err(Error::new(Code::ProgramNotFound, what, cure));
    if command.is_empty() {
        return not_found("the command is empty".into(), "name a program");
    }
    let candidates: Vec<PathBuf> = if command.as_bytes().contains(&b'/') {
        vec![PathBuf::from(command)]
    } else {
        let path = environ.get_os("PATH").map(OsStr::to_owned).unwrap_or_default();
        let dirs = path.as_bytes().split(|b| *b == b':').map(|d| Path::new(OsStr::from_bytes(d)));
        dirs.map(|d| d.join(command)).collect()
    };
    let mut refused = None;
    for candidate in &candidates {
        match view.lookup(&workdir.join(candidate)) {
            Ok(Lookup::Exists(entry)) if entry.is_executable() => return Ok((candidate.clone(), entry)),
            Ok(Lookup::Exists(entry)) => {
                let why = match entry.kind {
                    Kind::File => format!("its mode is {:o}, without execute permission", entry.mode),
                    kind => format!("it is {}", kind.article()),
                };
                refused.get_or_insert(Error::new(
                    Code::ProgramNotExecutable,
                    format!(
                        "{} inside the container cannot be executed: {why}",
                        workdir.join(candidate).display()
                    ),
                    "name a program; `chmod +x` makes a file one",
                ));
            }
            Ok(Lookup::Missing { .. }) => {}
            Err(e) if candidates.len() == 1 => {
                return not_found(
                    format!("{shown} cannot be found inside the container: {e}"),
                    "repair the image",
                );
            }
            Err(_) => {}
        }
    }
    if let Some(e) = refused {
        return Err(e);
    }
    if candidates.len() == 1 && command.as_bytes().contains(&b'/') {
        let path = workdir.join(&candidates[0]);
        return not_found(
            format!("{} does not exist inside the container", path.display()),
            "check the path: home, working directory and /tmp are the host's, all else is the image's; --bind shows \
             more of the host",
        );
    }
    let path = environ.get("PATH").unwrap_or_default();
    not_found(
        format!("{shown} is in no directory of the container's PATH ({path})"),
        "give its path inside the image, or set --env PATH=…",
    )
}

/// What went wrong while a program was looked at.
pub fn unreadable(program: &Path) -> impl Fn(abi_probe::Error) -> Error + '_ {
    move |e| {
        Error::new(
            Code::ProgramNotExecutable,
            format!("{} cannot be looked at: {e}", program.display()),
            "the file, or a library of it, is damaged or may not be read: build or copy it again",
        )
    }
}

/// The program, and its own MPI.
pub fn look(prober: &Prober, started: &Started, command: Entry, detail: Detail) -> Result<Looked> {
    let path = command.path.clone();
    let (library_path, preload) = (started.environ.get("LD_LIBRARY_PATH"), started.environ.get("LD_PRELOAD"));
    let how = Circumstances {
        library_path: library_path.as_deref(),
        preload: preload.as_deref(),
        directory: started.workdir,
        scope: Scope::Mpi,
        ..Circumstances::default()
    };
    started.look(prober, command, &how, detail).map_err(unreadable(&path))?.map_err(unrunnable)
}

/// How the program may start with the MPI that it has, and with what help; the error says why it may not.
pub fn own(
    prober: &Prober,
    looked: &Looked,
    environ: &Environ,
    job: Option<&JobStep>,
    config: &Config,
) -> Result<(MpiVerdict, Option<Wiring>)> {
    let failed = unreadable(&looked.map.program);
    let mode = config.mpi.value;
    let Some(job) = job else {
        let verdict = match &looked.mpi {
            Some(mpi) => MpiVerdict::Own { mpi: mpi.clone() },
            None => MpiVerdict::NoneSeen,
        };
        return Ok((verdict, None));
    };
    let mpi = match &looked.mpi {
        Some(mpi) => Some(mpi.clone()),
        None => mpi::inside(prober, &looked.map).map_err(failed)?,
    };
    let asked = config.pmi.value.downlink();
    let Some(mut mpi) = mpi else {
        if mode != MpiMode::Bridge {
            return Ok((MpiVerdict::NoneSeen, None));
        }
        let wiring = fit::wiring(&job.rank, None, asked).map_err(mismatch)?;
        let why = format!("--mpi=bridge ({})", config.mpi.origin);
        return Ok((MpiVerdict::Bridge { mpi: None, why }, Some(wiring)));
    };
    let mut misfit = match fits(&mpi, job, environ) {
        Err(misfit) => misfit,
        Ok(()) if mode == MpiMode::Bridge => {
            Misfit { why: format!("--mpi=bridge ({})", config.mpi.origin), cure: String::new() }
        }
        Ok(()) if job.rank.offers == Offer::Any => {
            Misfit { why: "hpc-launch starts the job itself".to_owned(), cure: String::new() }
        }
        Ok(()) => return Ok((MpiVerdict::Own { mpi }, None)),
    };
    // Now that it will be named: its version too.
    if mpi.version.is_none()
        && let Ok(Some(named)) = mpi::in_map(prober, &looked.map, Detail::Version)
    {
        mpi = named;
        misfit = fits(&mpi, job, environ).err().unwrap_or(misfit);
    }
    if mode == MpiMode::Image && job.rank.offers != Offer::Any {
        return Ok((MpiVerdict::Forced { mpi, why: misfit.why }, None));
    }
    match fit::wiring(&job.rank, Some(&facts(&mpi)), asked) {
        Ok(wiring) => Ok((MpiVerdict::Bridge { mpi: Some(mpi), why: misfit.why }, Some(wiring))),
        Err(none) => {
            misfit.why = format!("{}; {}", misfit.why, none.why);
            misfit.cure = format!("{} (--mpi=image runs it all the same)", none.cure);
            Err(mismatch(misfit))
        }
    }
}

fn mismatch(misfit: Misfit) -> Error {
    Error::new(Code::PmiMismatch, misfit.why, misfit.cure)
}

/// How a host's MPI that is injected is served where we are the launcher.
pub fn wired(mpi: &Mpi, job: Option<&JobStep>, config: &Config) -> Option<Wiring> {
    let job = job.filter(|job| job.rank.offers == Offer::Any)?;
    fit::wiring(&job.rank, Some(&facts(mpi)), config.pmi.value.downlink()).ok()
}

/// Whether an MPI can talk to the launcher.
pub fn fits(mpi: &Mpi, job: &JobStep, environ: &Environ) -> std::result::Result<(), Misfit> {
    fit::judge(&job.rank, &facts(mpi), |name| environ.get(name))
}

fn facts(mpi: &Mpi) -> ImageMpi {
    ImageMpi {
        described: mpi.describe(),
        simple: mpi.pmi.contains(&Pmi::Simple),
        pmix: mpi.pmi.contains(&Pmi::Pmix),
        open_mpi: (mpi.family == Family::OpenMpi).then(|| mpi.major().unwrap_or(4)),
    }
}

fn unrunnable(why: Unrunnable) -> Error {
    match why {
        Unrunnable::InterpreterMissing { file, interpreter } => Error::new(
            Code::InterpreterMissing,
            format!(
                "{} needs {}, which does not exist inside the container",
                file.display(),
                interpreter.display()
            ),
            "install it in the image; a program built on the host needs an image with the same loader",
        ),
        Unrunnable::NoFormat { file, magic } => Error::new(
            Code::ProgramNotExecutable,
            format!(
                "{} is neither an ELF program nor a script with a #! line: it begins with \"{magic}\"",
                file.display()
            ),
            "begin a script with #!/bin/sh, or name its interpreter: hpc-launch IMAGE sh SCRIPT",
        ),
        Unrunnable::WrongArch { file, arch } => Error::new(
            Code::WrongArchitecture,
            format!("{} is a program for {arch}, this machine is {}", file.display(), Arch::NATIVE),
            "use an image for this machine's architecture",
        ),
        Unrunnable::TooManyInterpreters { file } => Error::new(
            Code::InterpreterMissing,
            format!(
                "{}: its #! lines lead from script to script, deeper than the kernel follows",
                file.display()
            ),
            "let the #! line name a program",
        ),
    }
}

/// For messages and JSON: arguments as text.
pub fn lossy(arguments: &[OsString]) -> Vec<String> {
    arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect()
}

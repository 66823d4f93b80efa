//! The last part of a rank's journey: from a sandbox that was built, or joined, to the program.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use abi_probe::mpi::Detail;
use abi_probe::prober::Prober;
use abi_probe::rootfs::View;
use nix::errno::Errno;

use super::{Inside, Myself, Noted, Ready, Request, program_digest};
use crate::bridge;
use crate::environ::Environ;
use crate::error::{Code, Error, Result, in_image};
use crate::plan::environment;
use crate::sandbox::notes;
use crate::verdict;

impl Request {
    /// Becomes the program.
    pub(super) fn execute(&self, myself: &Myself, inside: Inside) -> Result<std::convert::Infallible> {
        let Ready { workdir, program, mut environ, wiring } = match inside {
            Inside::Built(ready) => ready,
            Inside::Joined(noted, judged) => {
                match self.settle(&noted.image).map(|()| self.ready_at_once(myself, &noted, &judged))? {
                    Some(ready) => ready,
                    None => self.ready(myself, &noted, &judged)?,
                }
            }
        };
        nix::unistd::chdir(&workdir)
            .map_err(|e| Error::step(format_args!("entering {} inside", workdir.display()), e))?;
        if let (Some(wiring), Some(job)) = (wiring, &self.job) {
            bridge::join(job, self.door.as_ref(), &wiring, &self.environ, &mut environ)?;
        }
        exec(self.words(), &program, &environ)
    }

    /// For a rank that joined and does what the first rank did: same directory, a program that was judged.
    pub(super) fn ready_at_once(&self, myself: &Myself, noted: &Noted, judged: &str) -> Option<Ready> {
        let workdir = match &self.config.workdir.value {
            Some(_) => return None,
            None => myself.cwd.clone()?,
        };
        nix::unistd::chdir(&workdir).ok()?;
        let command = self.words().first()?;
        let environ = self.environ_inside(noted, &workdir);
        let program = match command.as_bytes().contains(&b'/') {
            true => PathBuf::from(command),
            false => {
                let path = environ.get_os("PATH")?.as_bytes().split(|b| *b == b':');
                let candidate = |dir| Path::new(OsStr::from_bytes(dir)).join(command);
                path.map(candidate).find(|p| std::fs::metadata(p).is_ok_and(|m| m.is_file()))?
            }
        };
        let meta = std::fs::metadata(&program).ok()?;
        let digest = program_digest((meta.dev(), meta.ino()), &environ);
        (digest == judged || notes::is_judged(&digest)).then_some(Ready {
            workdir,
            program,
            environ,
            wiring: noted.wiring.clone(),
        })
    }

    pub(super) fn environ_inside(&self, noted: &Noted, workdir: &Path) -> Environ {
        let (mut environ, _) =
            environment::make(&self.environ, &noted.image, &noted.devices, &self.config, workdir);
        if let Some(injected) = &noted.injected {
            injected.apply(&mut environ);
        }
        self.own_devices(&noted.gpus, &mut environ);
        if noted.wiring.is_some() {
            bridge::scrub(&mut environ, &self.config);
        }
        environ
    }

    /// For a rank that joined, with every check.
    pub(super) fn ready(&self, myself: &Myself, noted: &Noted, judged: &str) -> Result<Ready> {
        let view = View::open(Path::new("/")).map_err(in_image(&self.image))?;
        let (workdir, _) = self.workdir(&view, myself, &noted.image)?;
        let environ = self.environ_inside(noted, &workdir);
        let command = self.words().first().map(OsString::as_os_str).unwrap_or_default();
        let (path, program) = verdict::find_program(&view, command, &workdir, &environ)?;
        let digest = program_digest(program.id, &environ);
        if digest != judged && !notes::is_judged(&digest) {
            let prober = Prober::new(&view);
            let started = self.started(&view, &path, &workdir, &environ);
            let looked = verdict::look(&prober, &started, program, Detail::Quick)?;
            let own = verdict::own(&prober, &looked, &environ, self.job.as_ref(), &self.config);
            // A command that only names a program may do something else with it.
            if looked.remark.is_none() && noted.wiring.is_none() {
                let (_, wiring) = own?;
                if wiring.is_some() {
                    return Err(Error::new(
                        Code::PmiMismatch,
                        format!(
                            "{} needs a bridge, the node's first program of this name did not",
                            path.display()
                        ),
                        "name the programs of one job by different paths, or bridge them all with --mpi=bridge",
                    ));
                }
            }
            notes::judged(&digest);
        }
        Ok(Ready { workdir, program: path, environ, wiring: noted.wiring.clone() })
    }
}

/// argv[0] is what the user typed; `program` is executed as a shell would, with the links in it: scripts
/// see that path, and programs of several names look at it.
fn exec(command: &[OsString], program: &Path, environ: &Environ) -> Result<std::convert::Infallible> {
    let c_string = |s: &OsStr| {
        CString::new(s.as_bytes()).map_err(|e| Error::new(Code::Usage, format!("{}: {e}", s.display()), ""))
    };
    let arguments = command.iter().map(|a| c_string(a)).collect::<Result<Vec<_>>>()?;
    let variables = environ
        .iter()
        .map(|(name, value)| {
            let mut pair = name.to_owned();
            pair.push("=");
            pair.push(value);
            c_string(&pair)
        })
        .collect::<Result<Vec<_>>>()?;
    let Err(e) = nix::unistd::execve(&c_string(program.as_os_str())?, &arguments, &variables);
    let (code, cure) = match e {
        Errno::ENOENT => {
            (Code::InterpreterMissing, "its interpreter or loader is missing inside the container")
        }
        Errno::E2BIG => (Code::Exec, "arguments and environment are too long together: see --clean-env"),
        _ => (Code::Exec, "see execve(2) for what this error means"),
    };
    Err(Error::new(code, format!("cannot execute {}: {e}", program.display()), cure))
}

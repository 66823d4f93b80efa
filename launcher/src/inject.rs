//! Whose MPI the program gets: the host's where abi-probe proves that it works, else the image's own where that
//! can talk to the launcher, on the host's fabrics where these may be, else none.

use std::path::PathBuf;

use abi_probe::gpus;
use abi_probe::inject::{self, Injection, Outcome, Question};
use abi_probe::install::{self, Installation};
use abi_probe::linkmap::{Circumstances, LinkMap, Problem, Scope};
use abi_probe::mpi::{self, Detail, Mpi};
use abi_probe::obstacle::Obstacle;
use abi_probe::prober::Prober;
use abi_probe::rootfs::{Entry, View};

use pmi_shim::downlink::Wiring;

use crate::cli::{FabricMode, MpiMode};
use crate::config::Config;
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::fabric;
use crate::gpu;
use crate::host::mpi::{Candidate, Surroundings, candidates, identify};
use crate::job::JobStep;
use crate::plan::MpiVerdict;
use crate::program::{Looked, Started};
use crate::verdict;

/// Everything that the decision depends on.
pub struct Case<'a> {
    /// The program, as it will be started.
    pub started: Started<'a>,
    /// Settings.
    pub config: &'a Config,
    /// The job step, under a launcher.
    pub job: Option<&'a JobStep>,
    /// The environment outside.
    pub outside: &'a Environ,
    /// The host outside.
    pub around: &'a Surroundings,
    /// The host's root.
    pub host: &'a View,
    /// The sandbox's own directory, without links.
    pub private: PathBuf,
    /// Whether a program gets GPUs, by a library of its that uses one.
    pub gives_gpus: &'a dyn Fn(Option<&str>) -> bool,
}

/// Whose MPI, and what must be done for that.
pub struct Decision {
    /// Whose.
    pub verdict: MpiVerdict,
    /// The host's, proved.
    pub injection: Option<Injection>,
    /// How a helper serves it, where the launcher does not.
    pub wiring: Option<Wiring>,
    /// A library of the program's that uses a GPU.
    pub cuda: Option<String>,
    /// What a person should know.
    pub remarks: Vec<String>,
    /// The program that was judged, where that is not the command.
    pub program: Entry,
    /// The mixed process, where there is one.
    pub mixed: Option<LinkMap>,
}

/// What a remark begins with that is said aloud.
pub const WARNING: &str = "warning: ";

/// Decides. The error holds every reason.
pub fn decide(case: &Case, command: Entry, detail: Detail) -> Result<Decision> {
    let prober = Prober::new(case.started.view);
    let looked = verdict::look(&prober, &case.started, command, detail)?;
    decide_on(case, &prober, looked)
}

/// The same for a program that was looked at.
pub fn decide_on(case: &Case, prober: &Prober, looked: Looked) -> Result<Decision> {
    let mode = case.config.mpi.value;
    let cuda = gpu::needed_by_program(&looked.map);
    let mut tried = Tried::default();
    if mode == MpiMode::Host || mode == MpiMode::Auto && case.job.is_some() {
        tried = case.inject(prober, &looked)?;
    }
    let mut remarks: Vec<String> = looked.remark.iter().cloned().collect();
    if let Some((host_mpi, injection, map, overridden)) = tried.injection {
        remarks.extend(injection.remarks.iter().cloned());
        if case.config.fabric.value == FabricMode::Image {
            remarks.push(format!(
                "{WARNING}--fabric=image ({}) changes nothing: the host's MPI comes with the host's fabric \
                 libraries; --mpi=bridge keeps the image's MPI, and with it the image's",
                case.config.fabric.origin
            ));
        }
        let (mpi, replaces) = (host_mpi, injection.replaces.clone());
        let wiring = verdict::wired(&mpi, case.job, case.config);
        return Ok(Decision {
            wiring,
            verdict: MpiVerdict::Inject { mpi, replaces, overridden },
            injection: Some(injection),
            cuda,
            remarks,
            program: looked.entry,
            mixed: Some(map),
        });
    }
    let refused = |mut errors: Vec<Error>| {
        let mut first = errors.remove(0);
        first.also = errors;
        first
    };
    if mode == MpiMode::Host {
        if tried.why_not.is_empty() {
            tried.why_not.push(Error::new(
                Code::HostMpiMissing,
                format!("--mpi=host: {} links no MPI that we can see", looked.map.program.display()),
                "name the MPI library that it uses: --mpi-library /usr/lib/…/libmpi.so.40",
            ));
        }
        return Err(refused(tried.why_not));
    }
    match verdict::own(prober, &looked, case.started.environ, case.job, case.config) {
        Ok((verdict, wiring)) => {
            remarks.extend(tried.why_not.iter().map(|e| format!("the host's MPI is not used: {}", e.what)));
            let beneath = fabric::beneath(case, prober, &looked, verdict.own())?;
            remarks.extend(beneath.remarks);
            let (injection, mixed) = beneath.injection.unzip();
            Ok(Decision { verdict, injection, wiring, cuda, remarks, program: looked.entry, mixed })
        }
        // The command only names that program, and may do something else with it.
        Err(e) if looked.remark.is_some() => {
            remarks.push(format!("{WARNING}if it starts that program: {}; {}", e.what, e.cure));
            Ok(Decision {
                verdict: MpiVerdict::NoneSeen,
                injection: None,
                wiring: None,
                cuda,
                remarks,
                program: looked.entry,
                mixed: None,
            })
        }
        Err(e) => {
            let mut all = vec![e];
            all.extend(tried.why_not);
            Err(refused(all))
        }
    }
}

/// What came of trying to inject.
#[derive(Default)]
struct Tried {
    injection: Option<(Mpi, Injection, LinkMap, Vec<String>)>,
    why_not: Vec<Error>,
}

impl Case<'_> {
    /// The program as it will be started, all of it, opening these.
    pub fn whole<T>(&self, opens: &[String], ask: impl FnOnce(&Circumstances) -> T) -> T {
        let environ = self.started.environ;
        let (library_path, preload) = (environ.get("LD_LIBRARY_PATH"), environ.get("LD_PRELOAD"));
        ask(&Circumstances {
            library_path: library_path.as_deref(),
            preload: preload.as_deref(),
            directory: self.started.workdir,
            scope: Scope::Whole,
            opens,
            ..Circumstances::default()
        })
    }

    /// The proof that something of the host's may lie under the program, which opens these.
    pub fn lay_under(
        &self,
        looked: &Looked,
        opens: &[String],
        host: &Prober,
        installation: &Installation,
    ) -> Result<Option<Outcome>> {
        let library_path = self.outside.get("LD_LIBRARY_PATH");
        let proof = self.whole(opens, |how| {
            let question = Question {
                view: self.started.view,
                program: &looked.entry,
                how,
                private: &self.private,
                host,
                host_library_path: library_path.as_deref(),
            };
            inject::prove(&question, installation)
        });
        proof.map_err(verdict::unreadable(&looked.map.program))
    }

    fn inject(&self, prober: &Prober, looked: &Looked) -> Result<Tried> {
        let failed = verdict::unreadable(&looked.map.program);
        let mut tried = Tried::default();
        let missing = mpi::wanted(prober, &looked.map).map_err(&failed)?;
        let wanted = match (&looked.mpi, &missing) {
            (Some(mpi), _) => (mpi.describe(), mpi.abi),
            (None, Some((name, abi))) => (format!("{name}, which the image lacks"), *abi),
            // Statically linked? Looked for only when somebody insists: it means to search the whole program.
            (None, None) if self.config.mpi.value != MpiMode::Host => return Ok(tried),
            (None, None) => {
                let inside = mpi::inside(prober, &looked.map).map_err(&failed)?;
                if inside.is_some() {
                    tried.why_not.push(refusal(&Obstacle::Static { program: looked.map.program.clone() }));
                }
                return Ok(tried);
            }
        };
        let image = self.sends_gpus_memory(prober, looked)?;
        let host = Prober::new(self.host);
        let mut others = Vec::new();
        for candidate in candidates(&host, self.config, self.outside, self.around)? {
            let Some(mpi) = identify(&host, &candidate, Detail::Quick)? else { continue };
            if mpi.abi != wanted.1 {
                others.push((candidate, ""));
                continue;
            }
            if let Some(job) = self.job
                && verdict::fits(&mpi, job, self.outside).is_err()
            {
                others.push((candidate, ", which is, but cannot talk to the launcher either"));
                continue;
            }
            self.prove(&host, &candidate, looked, image.as_ref(), &mut tried)?;
            if tried.injection.is_some() {
                return Ok(tried);
            }
        }
        if tried.why_not.is_empty() {
            let mut known = Vec::new();
            for (candidate, but) in &others {
                if let Some(mpi) = identify(&host, candidate, Detail::Version)? {
                    known.push(format!("{} ({}){but}", mpi.describe(), candidate.why));
                }
            }
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            tried.why_not.push(Error::new(
                Code::HostMpiMissing,
                format!(
                    "the program was built for {} (ABI: {}), and no MPI of this host is compatible with that and with the launcher; there are: {known}",
                    wanted.0, wanted.1
                ),
                "install an MPI of the same family on the host, name one with --host-mpi, or use an image with an MPI like the host's",
            ));
        }
        Ok(tried)
    }

    /// For a program that gets GPUs: the image's MPI, if it sends their memory, with what shows it.
    fn sends_gpus_memory(&self, prober: &Prober, looked: &Looked) -> Result<Option<String>> {
        let needed = gpu::needed_by_program(&looked.map);
        let Some(mpi) = looked.mpi.as_ref().filter(|_| (self.gives_gpus)(needed.as_deref())) else {
            return Ok(None);
        };
        let failed = verdict::unreadable(&mpi.library);
        let library_path = self.started.environ.get("LD_LIBRARY_PATH");
        let own = install::look(prober, &mpi.library, library_path.as_deref()).map_err(&failed)?;
        let shown = own.map(|own| gpus::evidence(prober, &own)).transpose().map_err(&failed)?.flatten();
        Ok(shown.map(|shown| format!("{} ({shown})", mpi.describe())))
    }

    /// `image`: its MPI, which sends GPUs' memory.
    fn prove(
        &self,
        host: &Prober,
        candidate: &Candidate,
        looked: &Looked,
        image: Option<&String>,
        tried: &mut Tried,
    ) -> Result<()> {
        let failed = verdict::unreadable(&candidate.library);
        let library_path = self.outside.get("LD_LIBRARY_PATH");
        let found = install::look(host, &candidate.library, library_path.as_deref()).map_err(&failed)?;
        let Some((installation, mpi)) = found.and_then(|i| i.mpi.clone().map(|mpi| (i, mpi))) else {
            return Ok(());
        };
        let Some(mut outcome) = self.lay_under(looked, &looked.opens, host, &installation)? else {
            return Ok(());
        };
        if let Some(image) = image
            && gpus::evidence(host, &installation).map_err(&failed)?.is_none()
        {
            let host = format!("the host's {}", installation.name);
            outcome.obstacles.push(Obstacle::Gpus { image: image.clone(), host });
        }
        let mode = self.config.mpi.value;
        let forced = mode == MpiMode::Host && outcome.obstacles.iter().all(Obstacle::is_latent);
        if outcome.obstacles.is_empty() || forced {
            let overridden = outcome.obstacles.iter().map(Obstacle::what).collect();
            tried.injection = Some((mpi, outcome.injection, outcome.map, overridden));
            return Ok(());
        }
        let name = &installation.name;
        tried.why_not.extend(outcome.obstacles.iter().map(|obstacle| {
            let mut e = refusal(obstacle);
            e.what = format!("with the host's {name}: {}", e.what);
            e
        }));
        Ok(())
    }
}

/// An obstacle as a refusal.
pub fn refusal(obstacle: &Obstacle) -> Error {
    let code = match obstacle {
        Obstacle::Static { .. } | Obstacle::Musl { .. } => Code::NotInjectable,
        Obstacle::Libc { .. } => Code::LibcTooOld,
        Obstacle::Missing { .. } => Code::LibraryMissing,
        Obstacle::Bad(Problem::IsaLevel { .. }) => Code::ProcessorTooOld,
        Obstacle::Bad(_) => Code::LibraryDamaged,
        Obstacle::Version { .. }
        | Obstacle::Symbol(_)
        | Obstacle::Unversioned { .. }
        | Obstacle::Resized { .. } => Code::SymbolMissing,
        Obstacle::Plugin { .. } => Code::PluginUnloadable,
        Obstacle::NoPart { .. } => Code::BindingsMissing,
        Obstacle::Gpus { .. } => Code::HostMpiWithoutGpus,
    };
    Error::new(code, obstacle.what(), obstacle.cure())
}

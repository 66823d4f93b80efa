//! A rank's decision on whose MPI it gets: as it was made before, or anew.

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use abi_probe::ldso::Cpu;
use abi_probe::mpi::{self, Detail};
use abi_probe::prober::Prober;
use abi_probe::rootfs::{Entry, Record, View};

use super::{Entered, Request};
use crate::cache::{Cache, Kept, Roots};
use crate::cli::{FabricMode, MpiMode};
use crate::environ::Environ;
use crate::error::{Result, in_image};
use crate::host::mpi::TREES;
use crate::image::Image;
use crate::image::environment::ImageEnvironment;
use crate::inject::{self, Case, Decision};
use crate::job::digest;
use crate::plan::make::Planner;
use crate::plan::sources::Sources;
use crate::program::Started;
use crate::verdict;

/// What a decision is about.
pub(super) struct Asked<'a> {
    /// The image.
    pub(super) image: &'a Image,
    /// What is known of the host outside.
    pub(super) entered: &'a Entered,
    /// The sandbox, as far as it is planned.
    pub(super) planner: &'a Planner<'a>,
    /// What of the host it shows.
    pub(super) sources: &'a Sources,
    /// The host's root.
    pub(super) host: View,
    /// What the image says of its programs' environment.
    pub(super) told: &'a ImageEnvironment,
}

impl Request {
    /// Whose MPI: as it was decided before, or anew. Who wants to know the reasons gets them anew.
    pub(super) fn decide(
        &self,
        asked: Asked,
        program: Entry,
        (path, workdir, environ): (&Path, &Path, &Environ),
        detail: Detail,
    ) -> Result<Decision> {
        let gives_gpus = |needed: Option<&str>| {
            let offered = asked.entered.gpus.as_ref();
            offered
                .is_some_and(|offered| offered.is_for(&self.config, asked.told, asked.planner.view(), needed))
        };
        let case = |view, host| Case {
            started: self.started(view, path, workdir, environ),
            config: &self.config,
            job: self.job.as_ref(),
            outside: &self.environ,
            around: &asked.entered.around,
            host,
            private: asked.planner.private(),
            gives_gpus: &gives_gpus,
        };
        let uid = nix::unistd::geteuid().as_raw();
        // Without a launcher there is little to decide.
        let is_short = self.job.is_none()
            && self.config.mpi.value != MpiMode::Host
            && self.config.fabric.value != FabricMode::Host
            && asked.entered.around.fabric.is_empty();
        // Nor is one kept on what changes its device with each mount, as overlays do.
        let is_kept = detail == Detail::Quick && !is_short && self.config.overlays.is_empty();
        let directory = self.config.decisions_directory(uid).filter(|_| is_kept);
        let Some(cache) = directory.and_then(|path| Cache::open(&path, uid)) else {
            return inject::decide(&case(asked.planner.view(), &asked.host), program, detail);
        };
        // Another build of this program may decide otherwise. Where the command links its MPI itself, its arguments
        // do not matter.
        let us =
            std::fs::metadata("/proc/self/exe").map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec())).ok();
        let names = [&[][..], self.words().get(1..).unwrap_or_default()].map(|arguments| {
            let gpus = (gives_gpus(None), gives_gpus(Some("")));
            digest(&(us, gpus, self.decision_name(&asked, &program, (path, workdir, environ), arguments)))
        });
        let opened = asked.planner.view().root().and_then(|image| Ok((image, asked.host.root()?)));
        let (image, host) = opened.map_err(in_image(&asked.image.given))?;
        let roots = Roots { image: &image, host: &host, tmp: asked.sources.tmp.as_deref() };
        let different = if names[0] == names[1] { &names[..1] } else { &names[..] };
        let kept = different.iter().find_map(|name| cache.find(name, asked.image, &roots));
        let kept = kept.filter(|kept| kept.level == Cpu::this().level);
        if let Some(Kept { verdict, injection, wiring, cuda, remarks, .. }) = kept {
            return Ok(Decision { verdict, injection, wiring, cuda, remarks, program, mixed: None });
        }
        // Programs without MPI are judged faster than looked up.
        let prober = Prober::new(asked.planner.view());
        let plain = case(asked.planner.view(), &asked.host);
        let looked = verdict::look(&prober, &plain.started, program.clone(), detail)?;
        let wanted = mpi::wanted(&prober, &looked.map).map_err(verdict::unreadable(&program.path))?;
        if looked.mpi.is_none() && wanted.is_none() {
            return inject::decide_on(&plain, &prober, looked);
        }
        let record = Rc::new(RefCell::new(Record::default()));
        let mut view = asked.planner.view().fork();
        view.record(&record);
        let mut host = asked.host.fork();
        host.record(&record);
        let id = program.id;
        let command = view.find(&program.path).ok().flatten().unwrap_or(program);
        let decision = inject::decide(&case(&view, &host), command, detail)?;
        let Decision { verdict, injection, wiring, cuda, remarks, .. } = &decision;
        let (verdict, injection, wiring) = (verdict.clone(), injection.clone(), wiring.clone());
        let (cuda, remarks) = (cuda.clone(), remarks.clone());
        let name = &names[usize::from(decision.program.id != id)];
        let kept = Kept { level: Cpu::this().level, verdict, injection, wiring, cuda, remarks };
        cache.keep(name, asked.image, &record, &kept);
        Ok(decision)
    }

    /// Everything that a decision depends on but for the contents of files.
    fn decision_name(
        &self,
        asked: &Asked,
        program: &Entry,
        (path, workdir, environ): (&Path, &Path, &Environ),
        arguments: &[OsString],
    ) -> String {
        let config = &self.config;
        let named: Vec<_> = config.host_mpis.iter().map(|m| &m.value).collect();
        let inside = ["LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONPATH", "HOME"];
        let outside = TREES.iter().chain(&["LD_LIBRARY_PATH", "PATH"]);
        let rank = self.job.as_ref().map(|job| {
            let told = pmi_shim::fit::VARIABLES.map(|name| self.environ.get_os(name).is_some());
            (
                job.rank.launcher.name(),
                job.rank.offers.name(),
                job.rank.size == Some(1),
                job.rank.is_alone_on_node(),
                told,
            )
        });
        let wanted = asked.sources.wanted.iter().map(|(want, _)| {
            // Not as paths, which are taken apart to be hashed.
            (want.source.as_os_str(), want.at.as_os_str(), want.read_only)
        });
        let settings =
            (config.mpi.value, config.pmi.value, &config.host_mpi.value, &config.mpi_library.value, named);
        let image = (asked.image.path.as_os_str(), asked.image.id.0, asked.image.id.1, asked.image.offset);
        let [path, workdir, program_path] = [path, workdir, &program.path].map(Path::as_os_str);
        let command = (path, workdir, program_path, program.id, arguments);
        digest(&(
            (image, command, settings, rank, &asked.entered.around.launcher),
            (config.fabric.value, &asked.entered.around.fabric),
            inside.map(|name| environ.get_os(name)),
            outside.map(|name| self.environ.get_os(name)).collect::<Vec<_>>(),
            (wanted.collect::<Vec<_>>(), asked.planner.private()),
        ))
    }

    /// The command, as it will be started.
    pub(super) fn started<'a>(
        &'a self,
        view: &'a View,
        command: &'a Path,
        workdir: &'a Path,
        environ: &'a Environ,
    ) -> Started<'a> {
        let arguments = self.words().get(1..).unwrap_or_default();
        let mpi_library = self.config.mpi_library.value.as_deref();
        Started { view, command, workdir, environ, arguments, mpi_library }
    }
}

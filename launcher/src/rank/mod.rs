//! A rank's journey: request → image → job → sandbox (built or joined) → verdict → exec.

mod decide;
mod devices;
mod scout;
mod start;

use std::cell::OnceCell;
use std::ffi::OsString;
use std::hash::Hash;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use abi_probe::mpi::Detail;
use abi_probe::rootfs::{Kind as FileKind, View};
use pmi_shim::downlink::Wiring;
use serde::{Deserialize, Serialize};

use self::decide::Asked;
pub use self::scout::Scouted;
use crate::bridge::{self, Helper};
use crate::cdi::{Devices, Told};
use crate::check::{self, Judged, Links, Report};
use crate::config::Config;
use crate::environ::Environ;
use crate::error::{Code, Error, Result, harmless, in_image};
use crate::gpu;
use crate::host::gpu::Gpu;
use crate::host::mpi::Surroundings;
use crate::image::environment::ImageEnvironment;
use crate::image::{Image, Kind, open_path, signature};
use crate::inject::{Decision, WARNING};
use crate::job::keeper;
use crate::job::meeting::{Lock, Meeting, meet};
use crate::job::siblings::{self, Found};
use crate::job::{JobStep, Mark, digest};
use crate::lock;
use crate::overlay::{self, Overlays};
use crate::plan::environment::Injected;
use crate::plan::make::Planner;
use crate::plan::sources::{self, Facts, Sources};
use crate::plan::{MpiVerdict, Plan, Relay, Step, VERSION, environment};
use crate::program;
use crate::sandbox::build::{Building, Furniture};
use crate::sandbox::calls::user_overlays;
use crate::sandbox::namespace;
use crate::sandbox::notes::{self, Builders};
use crate::sandbox::overlay as layers;
use crate::sandbox::squashfs::{self, How};
use crate::verdict;

/// The image's environment, as the first rank read it.
const ENVIRONMENT_NOTE: &str = "environment.json";

/// What was asked for, and by whom.
pub struct Request {
    /// The image's path as given.
    pub image: PathBuf,
    /// Program and arguments; empty: what the image says.
    pub command: Vec<OsString>,
    /// What the image says, once it has been read.
    pub entry: OnceCell<Vec<OsString>>,
    /// Settings.
    pub config: Config,
    /// The environment outside.
    pub environ: Environ,
    /// The job step, under a launcher.
    pub job: Option<JobStep>,
    /// A connection to the step's PMI server, where we are the launcher.
    pub door: Option<OwnedFd>,
}

/// What is known about this process once it is needed.
struct Myself {
    uid: u32,
    gid: u32,
    cwd: Option<PathBuf>,
}

impl Myself {
    fn now() -> Myself {
        Myself {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            // A working directory that was removed has no path.
            cwd: std::env::current_dir().ok(),
        }
    }
}

/// A sandbox entered.
enum Inside {
    /// Built by this rank, which has everything that the exec needs.
    Built(Ready),
    /// Joined; this is the environment inside, and the digest of the builder's program.
    Joined(Noted, String),
}

/// What the exec needs.
struct Ready {
    workdir: PathBuf,
    program: PathBuf,
    environ: Environ,
    /// How the helper serves the program's MPI.
    wiring: Option<Wiring>,
}

impl Request {
    /// The same for another rank.
    pub fn for_rank(&self, job: JobStep, door: OwnedFd) -> Request {
        Request {
            image: self.image.clone(),
            command: self.command.clone(),
            entry: OnceCell::new(),
            config: self.config.clone(),
            environ: self.environ.clone(),
            job: Some(job),
            door: Some(door),
        }
    }

    /// Runs the command; returns only with an error.
    pub fn run(&self) -> Result<std::convert::Infallible> {
        let myself = Myself::now();
        let mark = self.mark(&myself);
        let inside = match (&self.job, &mark) {
            (Some(job), Some(mark)) => self.shared(&myself, job, mark)?,
            _ => {
                let image = self.find_image(None)?;
                let entered = Entered::new(&self.config, &myself, None, None)?;
                self.build(&image, &myself, entered, None, false)?
            }
        };
        self.execute(&myself, inside)
    }

    /// The image. Those who wait at the lock do so in vain while one is made of an archive: now and then they are sent to
    /// look again, so that only a builder that does nothing makes them give up.
    fn find_image(&self, lock: Option<&Lock>) -> Result<Image> {
        Image::find(&self.image, &self.config, &self.environ, &|| lock.map_or((), Lock::send_away))
    }

    /// Program and arguments: the user's, or else the image's.
    fn words(&self) -> &[OsString] {
        match &self.command[..] {
            [] => self.entry.get().map_or(&[], Vec::as_slice),
            command => command,
        }
    }

    /// Takes the image's own program where the user names none.
    fn settle(&self, environment: &ImageEnvironment) -> Result<()> {
        if !self.command.is_empty() {
            return Ok(());
        }
        if environment.entry.is_empty() {
            return Err(Error::new(
                Code::Usage,
                format!("no command was given, and the image {} says none", self.image.display()),
                "hpc-launch IMAGE COMMAND: name the program to be run",
            ));
        }
        let words = environment.entry.iter().map(OsString::from).collect();
        // Set before only by the same image.
        let _ = self.entry.set(words);
        Ok(())
    }

    /// The part of the command line that tells which program is meant.
    fn telling_words(&self) -> &[OsString] {
        let starts_others = self.command.first().is_some_and(|name| program::starts_others(name));
        &self.command[..if starts_others { self.command.len() } else { self.command.len().min(1) }]
    }

    /// What distinguishes sandboxes of one job step. The image is what was asked for: ranks that join look at nothing of
    /// the file system that it is on.
    fn mark(&self, myself: &Myself) -> Option<Mark> {
        let config = &self.config;
        let directories = sources::that_distinguish(&self.environ);
        let shown = config.binds.iter().chain(&config.devices);
        let shown: (Vec<&String>, _) = (shown.map(|b| &b.value).collect(), &config.cdi_directories.value);
        // Programs of one job may need different libraries: each gets what was proved for it.
        let mpi = (config.mpi.value, config.pmi.value, &config.host_mpi.value, &config.mpi_library.value);
        let libraries = (mpi, config.fabric.value, &config.gpu.value);
        let overlays: Vec<&String> = config.overlays.iter().map(|overlay| &overlay.value).collect();
        let stores: Vec<&PathBuf> = config.store.iter().map(|store| &store.value).collect();
        let signed = signature::asked(config, &self.environ);
        let what = (
            (&self.image, stores, &myself.cwd, shown, self.telling_words(), libraries),
            (config.home.value, self.environ.get_os("HOME"), directories, config.writable_tmpfs.value),
            signed,
            (overlays, overlay::rank_that_distinguishes(config, self.job.as_ref())),
        );
        self.job.as_ref().map(|job| Mark::new(myself.uid, job, &Hashed(what)))
    }

    /// One sandbox per node: join it, or build it while the others wait.
    fn shared(&self, myself: &Myself, job: &JobStep, mark: &Mark) -> Result<Inside> {
        loop {
            let first = job.rank.local_rank == Some(0);
            let kept = || if first { None } else { keeper::find(mark) };
            if let Some(namespaces) = siblings::find_at_once(job, mark).or_else(kept) {
                return self.join(&namespaces);
            }
            match meet(&mark.step, myself.uid)? {
                Meeting::Built(built, namespaces) if built == mark.text() => {
                    return self.join(&namespaces);
                }
                // For another image of this job: its user namespace is found by the next look.
                Meeting::Built(..) => {}
                Meeting::Again => std::thread::sleep(std::time::Duration::from_micros(200)),
                // Under the lock a look at everything: nobody else builds now.
                Meeting::Build(lock) => match siblings::find(job, mark) {
                    Found::Sandbox(namespaces) => {
                        drop(lock);
                        return self.join(&namespaces);
                    }
                    Found::SameStep(namespaces) => {
                        let image = self.find_image(Some(&lock))?;
                        let entered =
                            Entered::new(&self.config, myself, Some(&namespaces.user), Some(job.daemon))?;
                        return self.build(&image, myself, entered, Some((mark, &lock)), false);
                    }
                    Found::None => {
                        if let Some(namespaces) = kept() {
                            drop(lock);
                            return self.join(&namespaces);
                        }
                        let image = self.find_image(Some(&lock))?;
                        // Asked here: from a user namespace the dead look as if they were somebody else's.
                        let late = siblings::some_have_ended(job);
                        let entered = Entered::new(&self.config, myself, None, Some(job.daemon))?;
                        let inside = self.build(&image, myself, entered, Some((mark, &lock)), late)?;
                        // Nobody else would come to a sandbox of this rank alone.
                        if late && overlay::rank_that_distinguishes(&self.config, Some(job)).is_none() {
                            keeper::leave(job, mark);
                        }
                        return Ok(inside);
                    }
                },
            }
        }
    }

    fn join(&self, namespaces: &siblings::Namespaces) -> Result<Inside> {
        namespace::join(namespaces)?;
        nix::sys::prctl::set_no_new_privs().map_err(|e| Error::step("prctl(PR_SET_NO_NEW_PRIVS)", e))?;
        let builders = Builders::read();
        let noted = match &builders {
            Some(Builders { environment: false, .. }) => Some(Noted::default()),
            _ => notes::read(ENVIRONMENT_NOTE).and_then(|n| serde_json::from_slice(&n).ok()),
        };
        let environment = match noted {
            Some(environment) => environment,
            None => {
                let view = View::open(Path::new("/")).map_err(in_image(&self.image))?;
                let image = ImageEnvironment::read(None, &self.image, &view)?;
                Noted { image, ..Noted::default() }
            }
        };
        Ok(Inside::Joined(environment, builders.unwrap_or_default().program))
    }

    /// Plans and builds; on return this process is inside. `late`: ranks of this node have come and gone.
    fn build(
        &self,
        image: &Image,
        myself: &Myself,
        entered: Entered,
        meeting: Option<(&Mark, &Lock)>,
        late: bool,
    ) -> Result<Inside> {
        let mark = meeting.map(|(mark, _)| mark);
        let detail = if self.config.verbose.value { Detail::Version } else { Detail::Quick };
        let Drafted { plan, sources, building, noted, environ, program, .. } =
            self.draft(image, myself, &entered, mark, detail)?;
        let has_environment = noted != Noted::default();
        let text = mark.map(|mark| {
            let builders =
                Builders { program: program_digest(program, &environ), environment: has_environment };
            format!("{}.{}", mark.text(), builders.text())
        });
        let helper = match (&noted.wiring, &self.job) {
            (Some(_), Some(job)) if self.door.is_none() => {
                Some(Helper::of_step(job, mark, building.covered())?)
            }
            _ => None,
        };
        let is_bridged = noted.wiring.is_some();
        let furnish = |own: &OwnedFd| bridge::furnish(own, helper.as_ref());
        let mut own = Furniture { mark: text.as_deref(), ..Furniture::default() };
        if has_environment && meeting.is_some() {
            let text = serde_json::to_vec(&noted);
            let text = text.map_err(|e| Error::step("writing a note", std::io::Error::other(e)))?;
            own.notes.push((ENVIRONMENT_NOTE, text));
        }
        own.more = is_bridged.then_some(&furnish);
        building.carry_out(&plan.steps, sources, &own, !entered.in_user_namespace)?;
        let keeps_writes = |step: &Step| matches!(step, Step::Overlay { upper: Some(_), .. });
        if plan.steps.iter().any(keeps_writes)
            && let Ok(meta) = std::fs::metadata(plan.workdir.join(&plan.program))
        {
            // It was judged in another mount, where its device and inode were others.
            notes::judged(&program_digest((meta.dev(), meta.ino()), &environ));
        }
        if let Some((mark, lock)) = meeting {
            lock.hand_over(&mark.text(), namespace::own)?;
        }
        // They have said it.
        if !late || self.config.verbose.value {
            self.say(&plan);
        }
        let Plan { workdir, program, wiring, steps, .. } = plan;
        // The mount points' descriptors, and the helper's, which knows by it that we have not failed: closed by the
        // exec that follows, all at once.
        std::mem::forget((steps, helper));
        Ok(Inside::Built(Ready { workdir, program, environ, wiring }))
    }

    /// Attaches the image in this process's own namespaces, and finds what of the host will be shown.
    fn attach(&self, image: &Image, myself: &Myself, entered: &Entered) -> Result<Attached> {
        let (how, server) = match image.kind {
            Kind::Directory => (None, None),
            Kind::Squashfs if !entered.in_user_namespace && squashfs::kernel_can() => {
                (Some(How::Kernel), None)
            }
            Kind::Squashfs => {
                let program = squashfs::find_squashfuse(self.config.squashfuse.value.as_deref())?;
                let server = squashfs::start_server(
                    &image.path,
                    image.offset,
                    image.held.as_deref(),
                    program.clone(),
                )?;
                (Some(How::Squashfuse(program)), Some(server))
            }
        };
        let over = Overlays::find(&self.config, self.job.as_ref(), image, entered.in_user_namespace)?;
        let servers = layers::serve(&over)?;
        namespace::new_mount_namespace(entered.in_user_namespace)?;
        let facts = Facts {
            uid: myself.uid,
            cwd: myself.cwd.clone(),
            environ: &self.environ,
            rank: self.job.as_ref().map(|job| &job.rank),
        };
        let mut sources = Sources::find(&self.config, &facts, &entered.devices.wants)?;
        let is_staged = image.kind == Kind::Squashfs || !over.is_empty();
        if is_staged {
            // The stage covers it; the host's MPI may lie there.
            sources.tmp = open_path(Path::new("/tmp")).ok().map(Rc::new);
        }
        if is_staged || sources.lie_in(image) {
            // Something will be mounted over the paths that lead to them.
            sources.hold()?;
        }
        let held = layers::hold(&over, servers)?;
        let mut building = Building::attach(image, how.as_ref(), server, myself.uid, myself.gid)?;
        image.is_still_what_was_signed()?;
        if !over.is_empty() {
            building.lay_over(&over, held, (myself.uid, myself.gid), !entered.in_user_namespace)?;
        }
        Ok(Attached { how, sources, building, over })
    }

    /// Attaches the image in this process's own namespaces, and plans the rest.
    fn draft(
        &self,
        image: &Image,
        myself: &Myself,
        entered: &Entered,
        mark: Option<&Mark>,
        detail: Detail,
    ) -> Result<Drafted> {
        let Attached { how, mut sources, building, over } = self.attach(image, myself, entered)?;
        let mut view = building.view()?;
        let environment = ImageEnvironment::read(Some(image), &image.given, &view)?;
        self.settle(&environment)?;
        let writable = self.config.writable_tmpfs.value;
        let mut planner = Planner::new(&mut view, image, &sources)?;
        let (workdir, note) = self.workdir(planner.view(), myself, &environment)?;
        let (mut told, mut of_devices) = entered.devices.told(planner.view());
        let (mut environ, mut changes) =
            environment::make(&self.environ, &environment, &told, &self.config, &workdir);
        let command = self.words().first().map(OsString::as_os_str).unwrap_or_default();
        let offered = entered.gpus.as_ref();
        let mut found = verdict::find_program(planner.view(), command, &workdir, &environ);
        let is_missing = found.as_ref().is_err_and(|e| e.code == Code::ProgramNotFound);
        let tool =
            offered.filter(|_| is_missing).and_then(|offered| offered.for_tool(command)).transpose()?;
        if let Some(devices) = tool {
            let notes;
            (told, notes) = devices::show(devices, told, &mut planner, &mut sources)?;
            of_devices.extend(notes);
            (environ, changes) =
                environment::make(&self.environ, &environment, &told, &self.config, &workdir);
            found = verdict::find_program(planner.view(), command, &workdir, &environ);
        }
        let (path, program) = found?;
        let id = program.id;
        let host = host_view(&sources)?;
        let asked = Asked { image, entered, planner: &planner, sources: &sources, host, told: &environment };
        let mut decision = self.decide(asked, program, (&path, &workdir, &environ), detail)?;
        let needed = tool.and(command.to_str()).or(decision.cuda.as_deref());
        let given = gpu::give(offered, &self.config, &environment, planner.view(), needed)?;
        decision.remarks.extend(given.remarks);
        if let Some(devices) = given.devices.filter(|_| tool.is_none()) {
            let notes;
            (told, notes) = devices::show(devices, told, &mut planner, &mut sources)?;
            of_devices.extend(notes);
            (environ, changes) =
                environment::make(&self.environ, &environment, &told, &self.config, &workdir);
        }
        let injected = decision.injection.as_ref().map(Injected::of);
        if let Some(injection) = &decision.injection {
            planner.inject(injection, &mut sources)?;
        }
        if let Some(injected) = &injected {
            for change in injected.apply(&mut environ) {
                changes.retain(|c| c.name != change.name);
                changes.push(change);
            }
        }
        for change in self.own_devices(&given.gpus, &mut environ) {
            changes.retain(|c| c.name != change.name);
            changes.push(change);
        }
        let takes_writes = match (writable, &over.upper) {
            (true, _) => Some(Relay::Writable),
            (false, Some(_)) => Some(Relay::Beneath),
            (false, None) => None,
        };
        let mut laid = planner.finish(takes_writes, overlays(entered))?;

        let mut steps = Vec::new();
        if entered.in_user_namespace {
            steps.push(Step::UserNamespace { uid: myself.uid, gid: myself.gid });
        }
        steps.push(Step::MountNamespace);
        steps.push(Step::Root { image: image.path.clone(), offset: image.offset, squashfs: how, writable });
        if !over.is_empty() {
            steps.push(Step::Overlay { layers: over.layers, upper: over.upper });
        }
        steps.append(&mut laid.steps);
        if let (Some(wiring), Some(job)) = (&decision.wiring, &self.job) {
            changes.retain(|c| c.value.is_some() || !bridge::is_scrubbed(&c.name));
            changes.extend(bridge::scrub(&mut environ, &self.config));
            let (serves, launcher) = (wiring.downlink, job.rank.offers.name());
            if self.door.is_none() {
                steps.push(Step::Helper { serves, launcher, at: bridge::door() });
            }
        }
        steps.extend([Step::Enter, Step::NoNewPrivileges]);

        let mut remarks = laid.notes;
        remarks.extend(environment.notes.iter().cloned());
        remarks.extend(of_devices);
        remarks.extend(note);
        if let Some(job) = &self.job
            && let Some(outer) = job.outer
        {
            let (inner, outer) = (job.rank.launcher.name(), outer.name());
            remarks.push(format!(
                "{WARNING}{inner} runs inside a rank of {outer}: this is a rank of {inner}; to be one of {outer}, \
                 unset what {inner} has set (PMI_FD, PMI_PORT, PMIX_NAMESPACE; `hpc-launch pmi info` shows all)"
            ));
        }
        remarks.extend(decision.remarks.iter().cloned());
        let plan = Plan {
            version: VERSION,
            image: image.clone(),
            job: self.job.clone(),
            mark: mark.cloned(),
            steps,
            workdir,
            environment: changes,
            program: path,
            arguments: verdict::lossy(&self.words()[1..]),
            mpi: decision.verdict.clone(),
            fabrics: decision.injection.as_ref().map(|i| i.fabrics.clone()).unwrap_or_default(),
            wiring: decision.wiring.clone(),
            notes: remarks,
        };
        let wiring = decision.wiring.clone();
        let noted = Noted { image: environment, devices: told, gpus: given.gpus, injected, wiring };
        Ok(Drafted { plan, sources, building, view, noted, environ, program: id, decision })
    }

    /// Whether the program would run. To be called in a process that ends afterwards, as [`Request::plan`].
    pub fn check(&self) -> Report {
        let rank = self.job.as_ref().map(|job| &job.rank);
        Report::new(&self.image, rank, self.judge())
    }

    fn judge(&self) -> Result<Judged> {
        let image = self.find_image(None)?;
        let myself = Myself::now();
        let entered = Entered::new(&self.config, &myself, None, self.job.as_ref().map(|job| job.daemon))?;
        let drafted = self.draft(&image, &myself, &entered, None, Detail::Version)?;
        let (plan, decision) = (drafted.plan, drafted.decision);
        let links = match &decision.mixed {
            // Every symbol of it has been bound.
            Some(map) => Links::of(map),
            None => check::links(&drafted.view, &decision.program, &plan.workdir, &drafted.environ)?,
        };
        Ok(Judged {
            program: plan.program,
            mpi: plan.mpi,
            links,
            injection: decision.injection,
            remarks: decision.remarks,
        })
    }

    /// The plan alone. To be called in a process that ends afterwards: it is in namespaces of its own.
    pub fn plan(&self) -> Result<Plan> {
        let image = self.find_image(None)?;
        let myself = Myself::now();
        let mark = self.mark(&myself);
        let entered = Entered::new(&self.config, &myself, None, self.job.as_ref().map(|job| job.daemon))?;
        Ok(self.draft(&image, &myself, &entered, mark.as_ref(), Detail::Version)?.plan)
    }

    /// Every file of the host that the plan would inject. To be called as [`Request::plan`].
    pub fn lock(&self) -> Result<lock::Lock> {
        let image = self.find_image(None)?;
        let myself = Myself::now();
        let entered = Entered::new(&self.config, &myself, None, self.job.as_ref().map(|job| job.daemon))?;
        let drafted = self.draft(&image, &myself, &entered, None, Detail::Version)?;
        let host = host_view(&drafted.sources)?;
        lock::Lock::of(&image.path, &drafted.plan.program, drafted.decision.injection.as_ref(), &host)
    }

    /// The working directory inside, and what to say if it is not the one outside.
    fn workdir(
        &self,
        view: &View,
        myself: &Myself,
        image: &ImageEnvironment,
    ) -> Result<(PathBuf, Option<String>)> {
        let is_directory =
            |path: &Path| matches!(view.find(path), Ok(Some(entry)) if entry.kind == FileKind::Directory);
        if let Some(asked) = &self.config.workdir.value {
            if asked.is_absolute() && is_directory(asked) {
                return Ok((asked.clone(), None));
            }
            return Err(Error::new(
                Code::Usage,
                format!(
                    "the working directory {} ({}) is no directory inside the container",
                    asked.display(),
                    self.config.workdir.origin
                ),
                "give an absolute path inside; --bind shows more of the host",
            ));
        }
        let (cwd, why) = match &myself.cwd {
            Some(cwd) if is_directory(cwd) => return Ok((cwd.clone(), None)),
            Some(cwd) => (cwd.display().to_string(), "does not exist inside"),
            None => ("the working directory".to_owned(), "was removed"),
        };
        let instead = image.workdir.clone().filter(|w| is_directory(w)).unwrap_or_else(|| PathBuf::from("/"));
        let note = format!("{cwd} {why}: starting in {}", instead.display());
        Ok((instead, Some(note)))
    }

    /// What people should know, once per node: the builder speaks.
    fn say(&self, plan: &Plan) {
        if self.config.verbose.value {
            eprint!("{}", crate::report::text(plan));
            return;
        }
        let is_said = |n: &&String| n.contains(": starting in ") || n.starts_with(WARNING);
        for note in plan.notes.iter().filter(is_said) {
            eprintln!("hpc-launch: {}", harmless(note));
        }
        match &plan.mpi {
            MpiVerdict::Forced { why, .. } => eprintln!("hpc-launch: --mpi=image overrides: {why}"),
            MpiVerdict::Inject { overridden, .. } => {
                for what in overridden {
                    eprintln!("hpc-launch: --mpi=host overrides: {what}");
                }
            }
            MpiVerdict::Own { .. } | MpiVerdict::Bridge { .. } | MpiVerdict::NoneSeen => {}
        }
    }
}

/// An image that can be looked at.
struct Attached {
    how: Option<How>,
    sources: Sources,
    building: Building,
    over: Overlays,
}

/// Whether overlays can be mounted (root, or Linux 5.11).
fn overlays(entered: &Entered) -> fn() -> bool {
    if entered.in_user_namespace { user_overlays } else { || true }
}

/// Everything that a draft yields.
struct Drafted {
    plan: Plan,
    sources: Sources,
    building: Building,
    /// As the sandbox will be.
    view: View,
    noted: Noted,
    environ: Environ,
    /// Device and inode of the program.
    program: (u64, u64),
    decision: Decision,
}

/// What ranks that join need not find out again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// What the image says of its programs' environment.
    image: ImageEnvironment,
    /// What the devices that were asked for need there.
    devices: Told,
    /// Of which each rank gets its own.
    gpus: Vec<Gpu>,
    /// What the host's MPI needs there.
    injected: Option<Injected>,
    /// How the helper serves the program's MPI.
    wiring: Option<Wiring>,
}

/// The host's root as it can be seen now.
fn host_view(sources: &Sources) -> Result<View> {
    let mut host = View::host()
        .map_err(|e| Error::step("opening the host's root", std::io::Error::other(e.to_string())))?;
    if let Some(tmp) = &sources.tmp {
        host.lay(Path::new("/tmp"), Rc::clone(tmp), Path::new("/tmp"));
    }
    Ok(host)
}

/// The user namespace in which the sandbox will be.
struct Entered {
    in_user_namespace: bool,
    /// What could be seen before.
    around: Surroundings,
    /// The devices that were asked for. Inside, nobody could tell whose their descriptions are.
    devices: Devices,
    /// The GPUs that programs may want.
    gpus: Option<gpu::Offered>,
}

impl Entered {
    /// Joins the step's user namespace if it has one, or makes one where one is needed.
    fn new(
        config: &Config,
        myself: &Myself,
        of_step: Option<&OwnedFd>,
        daemon: Option<i32>,
    ) -> Result<Entered> {
        let around = Surroundings::of(daemon);
        let devices = Devices::find(config, myself.uid)?;
        let gpus = gpu::offered(config);
        let in_user_namespace = match of_step {
            Some(user) => namespace::join_user_namespace(user)?,
            None => namespace::new_user_namespace(myself.uid, myself.gid)?,
        };
        Ok(Entered { in_user_namespace, around, devices, gpus })
    }
}

/// Hashes any tuple of hashable values.
struct Hashed<T>(T);

impl<T: Hash> Hash for Hashed<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// What the verdict on a program depends on: the file itself, and where its libraries are found.
fn program_digest(program: (u64, u64), environ: &Environ) -> String {
    digest(&(program, environ.get_os("LD_LIBRARY_PATH"), environ.get_os("LD_PRELOAD")))
}

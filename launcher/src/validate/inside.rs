//! The steps that need an image: what is planned for it, what loads in it, and what ranks in it do.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use abi_probe::fabric::Fabric;
use abi_probe::mpi::{Abi, Mpi};
use pmi_shim::launcher::VARIABLES;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Area;
use super::child::{End, Outcome, Watch};
use super::facts::Facts;
use super::judge::{self, Around};
use super::table::Table;
use super::tool::{INSIDE, Tool};
use super::topology::Topology;
use crate::cli::{Cli, Command, FabricMode, JobOptions, MpiMode, Options, PlanArgs, Run, ValidateArgs};
use crate::config::Config;
use crate::environ::Environ;
use crate::error::Result;
use crate::gpu::{self, Gpus};
use crate::host::fabric::{Adapter, adapters, sent_bytes};
use crate::host::gpu::Driver;
use crate::inject::WARNING;
use crate::job::{JobStep, digest};
use crate::rank::{Request, Scouted};
use crate::standalone::{self, topology::BindTo};

/// Foremost libraries of stacks; the loader finds the rest.
const LIBRARIES: &[&str] =
    &["libucp.so.0", "libfabric.so.1", "libibverbs.so.1", "librdmacm.so.1", "libpsm2.so.2"];
/// The same of NVIDIA's driver.
const OF_DRIVER: &[&str] = &["libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1"];
/// More steps than there are before ranks meet, each of which may take all of its time.
const STEPS: u32 = 8;
/// So many libraries are loaded.
const MAX_LIBRARIES: usize = 256;
/// Variables by which an MPI is told to move data by RDMA, with UCX or with libfabric.
const BY_UCX: &[(&str, &str)] =
    &[("UCX_TLS", "self,rc,ud"), ("OMPI_MCA_pml", "ucx"), ("OMPI_MCA_osc", "ucx")];
const BY_LIBFABRIC: &[(&str, &str)] =
    &[("FI_PROVIDER", "verbs;ofi_rxm"), ("OMPI_MCA_pml", "cm"), ("OMPI_MCA_mtl", "ofi")];

/// Which stacks were seen to work.
#[derive(Clone, Copy, Default)]
struct Works {
    ucx: bool,
    libfabric: bool,
}

/// All that the steps share.
pub struct Inside {
    image: PathBuf,
    options: Options,
    environ: Environ,
    /// The same without what the launcher has set: what runs so is no rank.
    quiet: Environ,
    job: Option<JobStep>,
    ranks: u32,
    limit: Duration,
    key: String,
    adapters: Vec<Adapter>,
    /// The host's GPUs, if programs may have them.
    driver: Option<Driver>,
}

impl Inside {
    /// Nothing is done yet.
    pub fn new(
        args: ValidateArgs,
        image: PathBuf,
        config: &Config,
        (environ, job): (Environ, Option<JobStep>),
        ranks: u32,
    ) -> Result<Inside> {
        let mut options = args.options;
        let driver = crate::host::gpu::nvidia().filter(|_| config.gpu.value != Gpus::None);
        if driver.is_some() && config.gpu.value == Gpus::Auto {
            // Would a program get them? That is what is asked here, whatever this image says.
            options.gpu = Some(Gpus::All);
        }
        // Ranks of one job must come to the same name.
        let key = match &job {
            Some(job) => digest(&(job.daemon, &job.rank.step)),
            None => digest(&(std::process::id(), std::time::SystemTime::now())),
        };
        Ok(Inside {
            image,
            options,
            quiet: if job.is_some() { environ.clone().without(VARIABLES) } else { environ.clone() },
            environ,
            job,
            ranks,
            limit: Duration::from_secs(args.timeout),
            key,
            // Who keeps away from them is not to be told that nothing uses them.
            adapters: match config.fabric.value {
                FabricMode::None => Vec::new(),
                _ => adapters(),
            },
            driver,
        })
    }

    /// Every step. Answers what other nodes have told, if there was a job by which they could.
    pub fn validate(mut self, watch: &Watch, table: &mut Table, is_lead: bool) -> Result<Option<Vec<Table>>> {
        let Some(scouted) = self.scout(watch, table)? else { return Ok(None) };
        let Some(loader) = &scouted.loader else {
            table.skip(
                Area::Link,
                "the image has no dynamic loader: its programs are static, and load nothing",
            );
            return Ok(None);
        };
        let tool = Tool::write(&self.key, (loader, scouted.has_libdl), &self.environ)?;
        self.options.bind.push(tool.bind().into());
        let mpi = scouted.mpis.first();
        self.options.mpi_library = mpi.map(|mpi| mpi.library.clone());
        let Some(plan) = self.plan(watch, table)? else { return Ok(None) };
        let of_host = binds(&plan);
        let works = match is_lead {
            true => self.probes(watch, table, &scouted, &plan, &of_host)?,
            false => Works::default(),
        };
        let report = match (is_lead, &self.job) {
            (true, Some(_)) => {
                let told = Told { table: table.clone(), topology: self.topology() };
                let text = serde_json::to_string(&told).unwrap_or_default();
                Some(tool.add(&format!("report.{}", std::process::id()), &text)?)
            }
            // There, and empty: a rank that does not speak for its node.
            (false, Some(_)) => Some("/dev/null".to_owned()),
            _ => None,
        };
        self.job(watch, table, mpi, (&of_host, works), report.as_deref())
    }

    /// A command line of ours, in a child.
    fn command(
        &self,
        watch: &Watch,
        cli: Cli,
        job: Option<JobStep>,
        more: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Outcome> {
        let mut environ = if job.is_some() { self.environ.clone() } else { self.quiet.clone() };
        for (name, value) in more {
            environ.set(*name, *value);
        }
        watch.run(limit, || match crate::dispatch(cli, environ, job) {
            Ok(status) => status,
            Err(e) => {
                eprintln!("{e}");
                e.code.exit()
            }
        })
    }

    fn topology(&self) -> Topology {
        Topology::of_host(self.driver.as_ref(), &self.adapters)
    }

    /// The probe's command line.
    fn words(words: &[&str]) -> Vec<OsString> {
        std::iter::once(format!("{INSIDE}/probe").into()).chain(words.iter().map(OsString::from)).collect()
    }

    /// The probe in a sandbox of its own.
    fn probe(
        &self,
        watch: &Watch,
        options: Options,
        words: &[&str],
        more: &[(&str, &str)],
    ) -> Result<Outcome> {
        let cli = Cli {
            command: None,
            job: JobOptions::default(),
            options,
            image: Some(self.image.clone()),
            command_line: Inside::words(words),
        };
        self.command(watch, cli, None, more, self.limit)
    }

    fn scout(&self, watch: &Watch, table: &mut Table) -> Result<Option<Scouted>> {
        let config = Config::load(&self.quiet, Some(&self.options))?;
        let (image, environ) = (self.image.clone(), self.quiet.clone());
        let request = Request {
            image,
            command: Vec::new(),
            config,
            environ,
            job: None,
            door: None,
            entry: OnceCell::new(),
        };
        let outcome = watch.run(self.limit, || {
            let scouted = request.scout().and_then(|scouted| crate::to_json(&scouted));
            match scouted.and_then(|text| crate::print(&text)) {
                Ok(()) => 0,
                Err(e) => {
                    eprintln!("{e}");
                    e.code.exit()
                }
            }
        })?;
        let found = match outcome.end {
            End::Exit(0) => serde_json::from_str(&outcome.out).ok(),
            _ => None,
        };
        match found {
            Some(_) => table.pass(
                Area::Sandbox,
                format!("{}: namespaces and the image's mount can be made", self.image.display()),
            ),
            None => refused(table, Area::Sandbox, &outcome),
        }
        Ok(found)
    }

    /// What a rank would get.
    fn plan(&self, watch: &Watch, table: &mut Table) -> Result<Option<Value>> {
        let run = Run {
            options: self.options.clone(),
            image: self.image.clone(),
            command: Inside::words(&["load"]),
        };
        let args = PlanArgs { lock: None, diff: None, json: true, run };
        let cli = Cli {
            command: Some(Command::Plan(args)),
            job: JobOptions::default(),
            options: Options::default(),
            image: None,
            command_line: Vec::new(),
        };
        let own = || standalone::step_of(None, 0, self.ranks, std::process::id() as i32);
        let outcome =
            self.command(watch, cli, Some(self.job.clone().unwrap_or_else(own)), &[], self.limit)?;
        let plan: Option<Value> = match outcome.end {
            End::Exit(0) => serde_json::from_str(&outcome.out).ok(),
            _ => None,
        };
        let Some(plan) = plan else {
            let area = if self.options.mpi_library.is_some() { Area::Mpi } else { Area::Sandbox };
            refused(table, area, &outcome);
            return Ok(None);
        };
        match verdict(&plan["mpi"]) {
            Some(text) => table.pass(Area::Mpi, text),
            None => table.skip(
                Area::Mpi,
                "the image has no MPI where MPIs usually are; --mpi-library names one at another place",
            ),
        }
        let fabrics = plan["fabrics"].as_array().into_iter().flatten();
        for fabric in fabrics.filter_map(|fabric| Fabric::deserialize(fabric).ok()) {
            table.pass(Area::Link, format!("the host's {}", fabric.describe()));
        }
        for note in plan["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if let Some(text) = note.strip_prefix(WARNING) {
                table.warn(Area::Sandbox, text, "");
            } else if note.contains("fabric libraries are not used") {
                table.warn(Area::Link, note, "--fabric=host tells more");
            }
        }
        Ok(Some(plan))
    }

    /// Libraries, then each stack by itself.
    fn probes(
        &self,
        watch: &Watch,
        table: &mut Table,
        scouted: &Scouted,
        plan: &Value,
        of_host: &[PathBuf],
    ) -> Result<Works> {
        let around = Around { adapters: &self.adapters, of_host };
        let mut options = self.options.clone();
        // Outside of the job's launcher the same must come out.
        if let Some(verdict) = plan["mpi"]["verdict"].as_str() {
            options.mpi = Some(if verdict == "inject" { MpiMode::Host } else { MpiMode::Image });
            if verdict == "inject" && options.host_mpi.is_none() {
                options.host_mpi = plan["mpi"]["mpi"]["library"].as_str().map(String::from);
            }
        }
        let mpi = scouted.mpis.first();
        let mut names: Vec<String> = mpi.iter().map(|mpi| mpi.library.display().to_string()).collect();
        names.extend(scouted.bindings.iter().cloned());
        names.extend(LIBRARIES.iter().map(ToString::to_string));
        if self.driver.is_some() {
            names.extend(OF_DRIVER.iter().map(ToString::to_string));
        }
        let links = plan["steps"].as_array().into_iter().flatten().flat_map(|step| step["links"].as_array());
        names.extend(links.flatten().filter_map(|link| link["name"].as_str()).map(String::from));
        let mut seen = std::collections::BTreeSet::new();
        // Open MPI's are opened by plugins only, some of which bring the symbols that they need.
        let is_alone = |name: &String| !name.contains("libmca_common_");
        names.retain(|name| name.contains(".so") && is_alone(name) && seen.insert(name.clone()));
        names.truncate(MAX_LIBRARIES);
        let words: Vec<&str> = std::iter::once("load").chain(names.iter().map(String::as_str)).collect();
        judge::load(table, &self.probe(watch, options.clone(), &words, &[])?, &around);
        let outcome = self.probe(watch, options.clone(), &["verbs"], &[("IBV_SHOW_WARNINGS", "1")])?;
        if judge::verbs(table, &outcome, &around) {
            let words = ["load", "libibverbs.so.1"].into_iter();
            let words: Vec<&str> = words.chain(scouted.providers.iter().map(String::as_str)).collect();
            judge::providers(table, &self.probe(watch, options.clone(), &words, &[])?, &around);
        }
        let outcome = self.probe(watch, options.clone(), &["ucx"], &[("UCX_LOG_FILE", "stderr")])?;
        let ucx = judge::ucx(table, &outcome, &around);
        let outcome = self.probe(watch, options.clone(), &["libfabric"], &[])?;
        let libfabric = judge::libfabric(table, &outcome, &around);
        if let Some(driver) = &self.driver {
            let known: Vec<String> = driver.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
            let outcome = self.probe(watch, options.clone(), &["nvml"], &[])?;
            judge::nvml(table, &outcome, &around, (&known, &driver.version), self.ranks);
            let (open, _) = gpu::opened(driver);
            let outcome = self.probe(watch, options, &["cuda"], &[])?;
            judge::cuda(table, &outcome, &around, (&known, open.len()));
        }
        Ok(Works { ucx, libfabric })
    }

    /// The ranks: of this node without a launcher, of the launcher's job with one.
    fn job(
        &self,
        watch: &Watch,
        table: &mut Table,
        mpi: Option<&Mpi>,
        (of_host, works): (&[PathBuf], Works),
        report: Option<&str>,
    ) -> Result<Option<Vec<Table>>> {
        let around = Around { adapters: &self.adapters, of_host };
        let library = mpi.map(|mpi| mpi.library.display().to_string());
        let abi = match mpi.map(|mpi| mpi.abi) {
            Some(Abi::OpenMpi(_)) => "ompi",
            Some(Abi::Mpich) => "mpich",
            _ => "-",
        };
        let place = self.job.as_ref().map(|job| &job.rank);
        // Under a launcher ranks wait for those that look at their nodes first.
        let limit = if place.is_some() { self.limit * STEPS } else { self.limit };
        let patience = limit.as_secs().to_string();
        let (ranks, rank) = (self.ranks.to_string(), place.and_then(|p| p.local_rank).map(|r| r.to_string()));
        let gpu = if self.driver.as_ref().is_none_or(|driver| driver.gpus.is_empty()) { "-" } else { "0" };
        let run = |more: &[(&str, &str)], report: Option<&str>, key: &str| {
            let words = [
                "job",
                key,
                &ranks,
                rank.as_deref().unwrap_or("-"),
                abi,
                library.as_deref().unwrap_or("-"),
                gpu,
                report.unwrap_or("-"),
                &patience,
            ];
            let job = match place {
                Some(_) => JobOptions::default(),
                None => JobOptions {
                    ranks: Some(self.ranks),
                    oversubscribe: true,
                    bind_to: Some(BindTo::None),
                    timeout: Some(self.limit.as_secs()),
                    ..JobOptions::default()
                },
            };
            let cli = Cli {
                command: None,
                job,
                options: self.options.clone(),
                image: Some(self.image.clone()),
                command_line: Inside::words(&words),
            };
            let before = sent_bytes();
            let outcome = self.command(watch, cli, self.job.clone(), more, limit);
            let _ = std::fs::remove_file(format!("/dev/shm/hpc-launch-validate.{key}"));
            let after = sent_bytes().into_iter().zip(before);
            Ok::<_, crate::error::Error>((
                outcome?,
                after.map(|((port, n), (_, m))| (port, n.saturating_sub(m))).collect::<Vec<_>>(),
            ))
        };
        let (outcome, sent) = run(&[], report, &self.key)?;
        let facts = Facts::of(&outcome.out);
        let expected = place.map_or(self.ranks, |p| p.size.unwrap_or(self.ranks)) as usize;
        let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
        let yama = yama.as_deref().map(str::trim);
        if place.is_none_or(|place| place.local_rank.unwrap_or(0) == 0) {
            judge::ranks(table, &facts, self.ranks as usize, yama, &self.topology());
        }
        if abi == "-" {
            if let Some(mpi) = mpi {
                table.skip(Area::Mpi, format!("{} has an ABI that is not known here", mpi.describe()));
            }
            return Ok(None);
        }
        judge::mpi(table, &outcome, expected, &around, &sent, false);
        judge::whole(table, &facts, &around);
        if place.is_none()
            && self.ranks > 1
            && !self.adapters.is_empty()
            && !sent.is_empty()
            && is_through(&facts)
        {
            let has = |name: &str| facts.all("object").any(|fact| fact.text("path").contains(name));
            // Open MPI opens what it is told to use; others are linked with one.
            let may_open = abi == "ompi";
            let told = if has("libucp.so") || may_open && works.ucx {
                BY_UCX
            } else if has("libfabric.so") || may_open && works.libfabric {
                BY_LIBFABRIC
            } else {
                return Ok(None);
            };
            let (outcome, sent) = run(told, None, &format!("{}.rdma", self.key))?;
            judge::mpi(table, &outcome, expected, &around, &sent, true);
        }
        if place.is_none() || !is_through(&facts) {
            return Ok(None);
        }
        let told = facts.all("report").filter_map(|fact| {
            // With what its ranks have said of each other behind it (the probe's `Record`).
            let (text, record) = fact.text("text").split_once('\x1e').unwrap_or((fact.text("text"), ""));
            // It came through processes of the image: it is as hostile as that.
            let told = serde_json::from_str::<Told>(text).ok()?;
            let mut table = told.table.shown();
            let facts = Facts::of(&record.replace('\x1e', "\n").replace('\x1d', "\t"));
            judge::ranks(&mut table, &facts, facts.all("rank").count(), yama, &told.topology);
            Some(table)
        });
        Ok(Some(told.collect()))
    }
}

/// What a node tells the first.
#[derive(Serialize, Deserialize)]
struct Told {
    table: Table,
    topology: Topology,
}

/// Whether the job came to its end, or as good as that.
fn is_through(facts: &Facts) -> bool {
    facts.one("finalized").is_some() || facts.one("unfinalized").is_some()
}

/// Where the host's files lie inside, but for what every sandbox has.
fn binds(plan: &Value) -> Vec<PathBuf> {
    let steps = plan["steps"].as_array().into_iter().flatten();
    let binds = steps.filter(|step| step["do"] == "bind").filter_map(|step| step["at"].as_str());
    let mut all: Vec<PathBuf> = binds.map(PathBuf::from).collect();
    all.push(PathBuf::from("/run/hpc-launch"));
    all
}

/// Whose MPI, as the plan has it.
fn verdict(mpi: &Value) -> Option<String> {
    let of = |mpi: &Value| Mpi::deserialize(mpi).map_or("MPI".to_owned(), |mpi| mpi.describe());
    match mpi["verdict"].as_str()? {
        "inject" if mpi["replaces"].is_null() => Some(format!("the host's {}", of(&mpi["mpi"]))),
        "inject" => Some(format!(
            "the host's {}, in the place of the image's {}",
            of(&mpi["mpi"]),
            of(&mpi["replaces"])
        )),
        "bridge" => Some(format!("the image's own {}, bridged", of(&mpi["mpi"]))),
        "own" | "forced" => Some(format!("the image's own {}", of(&mpi["mpi"]))),
        _ => None,
    }
}

/// A refusal of ours: `[code] what` and `what to do`.
fn refused(table: &mut Table, area: Area, outcome: &Outcome) {
    let text = outcome.err.trim();
    let (what, cure) = text.split_once("\n  what to do: ").unwrap_or((text, ""));
    let what = if what.is_empty() { format!("it {}", outcome.how()) } else { what.replace('\n', "; ") };
    table.fail(area, what, cure.replace("\n  ", "; "));
}

//! `hpc-launch check`: would the program run, and why not? For people, and as JSON.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use abi_probe::bind::{self, Binding};
use abi_probe::fabric::Fabric;
use abi_probe::inject::{Injection, Link};
use abi_probe::linkmap::{Circumstances, LinkMap, Linked, Problem};
use abi_probe::mpi::Mpi;
use abi_probe::prober::Prober;
use abi_probe::rootfs::{Entry, View};
use pmi_shim::launcher::Rank;
use serde::Serialize;

use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::plan::MpiVerdict;

/// The layout's version; docs/check.schema.json describes it.
const VERSION: u32 = 1;
/// What a bridge costs.
const COST: &str = "bridged: the image's own MPI moves the data, at full speed on a node; between nodes over TCP, \
                    unless its libfabric or UCX finds the fabric's libraries in the image (or the host's: --fabric)";
/// More reasons of one kind than these are counted, not listed.
const MAX_REASONS: usize = 8;

/// The answer.
#[derive(Debug, Serialize)]
pub struct Report {
    version: u32,
    verdict: Verdict,
    image: PathBuf,
    program: Option<PathBuf>,
    launcher: Option<Launcher>,
    mpi: Option<Mpi>,
    host_mpi: Option<Mpi>,
    fabrics: Vec<Fabric>,
    injected: Vec<Injected>,
    reasons: Vec<Reason>,
    remarks: Vec<String>,
    links: Vec<Linking>,
}

/// What would happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// It would run, with the host's MPI in the place of the image's.
    Inject,
    /// It would run, with the image's own MPI and a helper between that and the launcher.
    Bridge,
    /// It would run, with the image's own MPI.
    Own,
    /// It would run, with the image's own MPI and against our advice.
    Forced,
    /// It would run; it links no MPI.
    NoMpi,
    /// It would be refused, or fail before main.
    Refuse,
}

#[derive(Debug, Serialize)]
struct Launcher {
    name: &'static str,
    offers: &'static str,
}

/// Something of the host's, in its place inside.
#[derive(Debug, Serialize)]
struct Injected {
    source: PathBuf,
    at: PathBuf,
    why: String,
}

/// Why not.
#[derive(Debug, Serialize)]
struct Reason {
    code: &'static str,
    what: String,
    cure: String,
}

impl From<Error> for Reason {
    fn from(e: Error) -> Reason {
        Reason { code: e.code.name(), what: e.what, cure: e.cure }
    }
}

/// One library.
#[derive(Debug, Serialize)]
struct Linking {
    name: String,
    path: Option<PathBuf>,
    /// Index among the links; none: the program.
    needed_by: Option<usize>,
}

/// What linking the program comes to.
#[derive(Debug, Default)]
pub struct Links {
    links: Vec<Linking>,
    refusals: Vec<Error>,
    remarks: Vec<String>,
}

/// A judged program.
pub struct Judged {
    /// By the path that is executed.
    pub program: PathBuf,
    /// Its MPI.
    pub mpi: MpiVerdict,
    /// Its libraries.
    pub links: Links,
    /// The host's MPI, or its fabrics.
    pub injection: Option<Injection>,
    /// What a person should know.
    pub remarks: Vec<String>,
}

impl Report {
    /// From the judgement, or from what stood in its way.
    pub fn new(image: &Path, rank: Option<&Rank>, judged: Result<Judged>) -> Report {
        let launcher = rank.map(|rank| Launcher { name: rank.launcher.name(), offers: rank.offers.name() });
        let mut report = Report {
            version: VERSION,
            verdict: Verdict::Refuse,
            image: image.to_owned(),
            program: None,
            launcher,
            mpi: None,
            host_mpi: None,
            fabrics: Vec::new(),
            injected: Vec::new(),
            reasons: Vec::new(),
            remarks: Vec::new(),
            links: Vec::new(),
        };
        let judged = match judged {
            Ok(judged) => judged,
            Err(mut e) => {
                let also = std::mem::take(&mut e.also);
                let more = also.len().saturating_sub(MAX_REASONS);
                report.reasons.push(e.into());
                report.reasons.extend(also.into_iter().take(MAX_REASONS).map(Reason::from));
                if more > 0 {
                    report.remarks.push(format!("and {more} more reasons of these kinds"));
                }
                return report;
            }
        };
        report.program = Some(judged.program);
        let Links { links, refusals, remarks } = judged.links;
        (report.links, report.remarks) = (links, remarks);
        report.reasons = refusals.into_iter().map(Reason::from).collect();
        report.remarks.extend(judged.remarks);
        if let Some(injection) = judged.injection {
            let at = |link: &Link| injection.library_path.join(&link.name);
            report.fabrics = injection.fabrics.clone();
            report.injected = injection
                .shown
                .iter()
                .map(|s| Injected { source: s.source.clone(), at: s.at.clone(), why: s.why.clone() })
                .chain(injection.links.iter().map(|l| Injected {
                    source: l.source.clone(),
                    at: at(l),
                    why: l.why.clone(),
                }))
                .collect();
        }
        let (verdict, mpi) = match judged.mpi {
            MpiVerdict::Inject { mpi, replaces, overridden } => {
                report.remarks.extend(overridden.iter().map(|o| format!("--mpi=host overrides: {o}")));
                report.host_mpi = Some(mpi);
                (Verdict::Inject, replaces)
            }
            MpiVerdict::Own { mpi } => (Verdict::Own, Some(mpi)),
            MpiVerdict::Bridge { mpi, why } => {
                report.remarks.push(why);
                if report.fabrics.is_empty() {
                    report.remarks.push(COST.to_owned());
                }
                (Verdict::Bridge, mpi)
            }
            MpiVerdict::Forced { mpi, why } => {
                report.remarks.push(format!("--mpi=image overrides: {why}"));
                (Verdict::Forced, Some(mpi))
            }
            MpiVerdict::NoneSeen => (Verdict::NoMpi, None),
        };
        report.mpi = mpi;
        if report.reasons.is_empty() {
            report.verdict = verdict;
        }
        report
    }

    /// Whether it would run.
    pub fn would_run(&self) -> bool {
        self.verdict != Verdict::Refuse
    }

    /// For people; `verbose` adds who needs what.
    pub fn text(&self, verbose: bool) -> String {
        let mut out = String::new();
        let launcher = match &self.launcher {
            Some(launcher) => format!("under {}, which offers {}", launcher.name, launcher.offers),
            None => "without a launcher".to_owned(),
        };
        let verdict = match (self.verdict, &self.mpi) {
            (Verdict::Refuse, _) => format!("no: it would not run {launcher}"),
            (Verdict::Bridge, mpi) => {
                let whose = match mpi {
                    Some(mpi) => format!("the image's own {}", mpi.describe()),
                    None => "whatever MPI it has".to_owned(),
                };
                format!("yes: it would run {launcher}, with {whose}, bridged by a helper on each node")
            }
            (Verdict::Inject, image) => {
                let host = self.host_mpi.as_ref().map(Mpi::describe).unwrap_or_default();
                let place = match image {
                    Some(mpi) => format!("in the place of the image's {}", mpi.describe()),
                    None => "which the image lacks".to_owned(),
                };
                format!("yes: it would run {launcher}, with the host's {host}, {place}")
            }
            (_, Some(mpi)) => {
                format!("yes: it would run {launcher}, with the image's own {}", mpi.describe())
            }
            (_, None) => format!("yes: it would run {launcher}; it links no MPI"),
        };
        let _ = writeln!(out, "{verdict}");
        for reason in &self.reasons {
            let _ = writeln!(out, "  [{}] {}", reason.code, reason.what);
            if !reason.cure.is_empty() {
                let _ = writeln!(out, "    what to do: {}", reason.cure);
            }
        }
        for fabric in &self.fabrics {
            let _ = writeln!(out, "  fabric: the host's {}", fabric.describe());
        }
        for remark in &self.remarks {
            let _ = writeln!(out, "  note: {remark}");
        }
        if verbose {
            for injected in &self.injected {
                let Injected { source, at, why } = injected;
                let _ = writeln!(out, "  host: {} at {}: {why}", source.display(), at.display());
            }
        }
        if verbose && let Some(program) = &self.program {
            let _ = writeln!(out, "{}", program.display());
            self.tree(None, 1, &mut out);
        }
        out
    }

    fn tree(&self, of: Option<usize>, depth: usize, out: &mut String) {
        for (index, link) in self.links.iter().enumerate().filter(|(_, link)| link.needed_by == of) {
            let found = link.path.as_ref().map_or("not found".to_owned(), |path| path.display().to_string());
            let _ = writeln!(out, "{:indent$}{} => {found}", "", link.name, indent = 2 * depth);
            // Only an earlier object can need it: no circles.
            if link.path.is_some() {
                self.tree(Some(index), depth + 1, out);
            }
        }
    }
}

/// Links the program whole, and binds every symbol.
pub fn links(view: &View, program: &Entry, workdir: &Path, environ: &Environ) -> Result<Links> {
    let failed = |e: abi_probe::Error| {
        Error::new(
            Code::LibraryDamaged,
            e.to_string(),
            "the file is damaged or may not be read: install it again",
        )
    };
    let (library_path, preload) = (environ.get("LD_LIBRARY_PATH"), environ.get("LD_PRELOAD"));
    let how = Circumstances {
        library_path: library_path.as_deref(),
        preload: preload.as_deref(),
        directory: workdir,
        ..Circumstances::default()
    };
    let prober = Prober::new(view);
    // What cannot be started at all has been refused before.
    let Ok(map) = prober.program(program, &how).map_err(failed)? else { return Ok(Links::default()) };
    let binding = bind::bind(&prober, &map).map_err(failed)?;
    let mut found = Links::default();
    found.missing(&map);
    found.problems(&map);
    if found.refusals.is_empty() {
        found.binding(&binding);
    }
    found.links = Links::of(&map).links;
    Ok(found)
}

impl Links {
    /// A map in which nothing is wrong.
    pub fn of(map: &LinkMap) -> Links {
        let one = |o: &Linked| Linking { name: o.name.clone(), path: o.path.clone(), needed_by: o.needed_by };
        Links { links: map.objects.iter().map(one).collect(), ..Links::default() }
    }

    fn missing(&mut self, map: &LinkMap) {
        let mut seen = BTreeSet::new();
        for linked in map.objects.iter().filter(|o| o.path.is_none()) {
            if !seen.insert(&linked.name) {
                continue;
            }
            let by = linked.needed_by.and_then(|i| map.objects[i].path.as_ref()).unwrap_or(&map.program);
            self.refusals.push(Error::new(
                Code::LibraryMissing,
                format!(
                    "{} needs {}, which is in no place where its loader looks",
                    by.display(),
                    linked.name
                ),
                "install it in the image, or name its directory: --env LD_LIBRARY_PATH=…",
            ));
        }
    }

    fn problems(&mut self, map: &LinkMap) {
        for problem in &map.problems {
            let (code, what, cure) = match problem {
                Problem::NoPreload { name } => {
                    self.remarks.push(format!(
                        "{name} cannot be preloaded, it is not inside: the loader passes over it"
                    ));
                    continue;
                }
                Problem::BadFile { path, why } => (
                    Code::LibraryDamaged,
                    format!("{} is no library: {why}", path.display()),
                    "the loader gives up there: install it again, or take it out of the loader's way",
                ),
                Problem::IsaLevel { path, needed, have } => (
                    Code::ProcessorTooOld,
                    format!("{} needs x86-64-v{needed}, this processor is x86-64-v{have}", path.display()),
                    "use an image built for this processor",
                ),
            };
            self.refusals.push(Error::new(code, what, cure));
        }
    }

    fn binding(&mut self, binding: &Binding) {
        let cure = "the file is of another release than the one that was linked against: install that one";
        let refuse = |what: String| Error::new(Code::SymbolMissing, what, cure);
        let mut reasons = Vec::new();
        for version in binding.versions.iter().filter(|v| !v.harmless) {
            let what = "does not define the version";
            reasons.push(format!(
                "{} {what} {}, which {} needs",
                version.file, version.version, version.needed_by
            ));
        }
        for abort in binding.aborts.iter().filter(|a| a.hard) {
            let what = "knows no versions, and the loader aborts when";
            reasons.push(format!("{} {what} {} looks for {} in it", abort.file, abort.object, abort.symbol));
        }
        for missing in binding.unresolved.iter().filter(|u| u.hard) {
            let version = missing.version.as_ref().map(|v| format!(", version {v}")).unwrap_or_default();
            reasons.push(format!(
                "{} needs the symbol {}{version}, which is nowhere",
                missing.object, missing.symbol
            ));
        }
        let more = reasons.len().saturating_sub(MAX_REASONS);
        reasons.truncate(MAX_REASONS);
        self.refusals.extend(reasons.into_iter().map(refuse));
        if more > 0 {
            self.remarks.push(format!("and {more} more symbols or versions that are missing"));
        }
        let latent: Vec<_> = binding.unresolved.iter().filter(|u| !u.hard).collect();
        if let Some(first) = latent.first() {
            self.remarks.push(format!(
                "{} symbols are nowhere and are looked for only when they are called, the first by {}: {}",
                latent.len(),
                first.object,
                first.symbol
            ));
        }
    }
}

//! Whose fabric libraries lie beneath the image's own MPI: the host's, which know its devices, where abi-probe
//! proves that they may, else the image's.

use std::collections::BTreeMap;

use abi_probe::elf::Arch;
use abi_probe::fabric::{self, Fabric, Used};
use abi_probe::inject::Injection;
use abi_probe::install::{self, Installation};
use abi_probe::ldso::Loader;
use abi_probe::linkmap::LinkMap;
use abi_probe::mpi::Mpi;
use abi_probe::obstacle::Obstacle;
use abi_probe::prober::Prober;

use crate::cli::FabricMode;
use crate::error::{Code, Error, Result};
use crate::host;
use crate::inject::{Case, refusal};
use crate::program::Looked;
use crate::verdict;

/// What was decided.
#[derive(Default)]
pub struct Beneath {
    /// The host's, proved, and the process that they are in.
    pub injection: Option<(Injection, LinkMap)>,
    /// What a person should know.
    pub remarks: Vec<String>,
}

/// Decides, for a program that keeps the image's MPI, or has none. The error holds every reason.
pub fn beneath(case: &Case, prober: &Prober, looked: &Looked, mpi: Option<&Mpi>) -> Result<Beneath> {
    let asked = &case.config.fabric;
    let is_idle = mpi.is_none() || case.around.fabric.is_empty();
    if matches!(asked.value, FabricMode::Image | FabricMode::None)
        || asked.value == FabricMode::Auto && is_idle
    {
        return Ok(Beneath::default());
    }
    let insists = asked.value == FabricMode::Host;
    let mut choice = Choice { case, prober, looked, insists, remarks: Vec::new() };
    let (injection, mut why_not) = match choice.choose(mpi)? {
        Ok(injection) => (injection, Vec::new()),
        Err(why_not) => (None, why_not),
    };
    let mut remarks = choice.remarks;
    if insists && injection.is_none() {
        if why_not.is_empty() {
            let whose = mpi.map_or_else(|| looked.map.program.display().to_string(), Mpi::describe);
            why_not.push(Error::new(
                Code::HostFabricMissing,
                format!("--fabric=host ({}): {whose} loads no library of a fabric (UCX, libfabric, PSM, verbs) that this host has", asked.origin),
                "leave --fabric=host out, or install the fabric's libraries on the host",
            ));
        }
        let mut first = why_not.remove(0);
        first.also = why_not;
        return Err(first);
    }
    remarks.extend(why_not.iter().map(|e| format!("the host's fabric libraries are not used: {}", e.what)));
    Ok(Beneath { injection, remarks })
}

/// A proof, or the reasons why there is none.
type Proof = std::result::Result<Option<(Injection, LinkMap)>, Vec<Error>>;

struct Choice<'a> {
    case: &'a Case<'a>,
    prober: &'a Prober<'a>,
    looked: &'a Looked,
    insists: bool,
    remarks: Vec<String>,
}

impl Choice<'_> {
    /// `None`: nothing of a fabric is loaded, or nothing that this host has.
    fn choose(&mut self, mpi: Option<&Mpi>) -> Result<Proof> {
        let failed = verdict::unreadable(&self.looked.map.program);
        let program = &self.looked.map.program;
        let Some(interp) = &self.looked.map.interp else {
            return Ok(Err(vec![refusal(&Obstacle::Static { program: program.clone() })]));
        };
        if Loader::of(&interp.display().to_string()) == Loader::Musl {
            return Ok(Err(vec![refusal(&Obstacle::Musl { interp: interp.clone() })]));
        }
        let library_path = self.case.started.environ.get("LD_LIBRARY_PATH");
        let own = match mpi.filter(|mpi| mpi.library != *program) {
            Some(mpi) => {
                install::look(self.prober, &mpi.library, library_path.as_deref()).map_err(&failed)?
            }
            None => None,
        };
        // What the image's MPI opens must bind to the host's as well as what the program opens itself.
        let mut opens = self.looked.opens.clone();
        opens.extend(
            own.iter().flat_map(Installation::own_plugins).map(|plugin| plugin.display().to_string()),
        );
        let whole = self.case.whole(&opens, |how| self.prober.program(&self.looked.entry, how));
        let whole = whole.map_err(&failed)?;
        let Ok(whole) = whole else { return Ok(Ok(None)) };
        let host = Prober::new(self.case.host);
        let (heads, fabrics) = match self.pair(&host, &fabric::of_program(&whole))? {
            Ok(paired) => paired,
            Err(why_not) => return Ok(Err(why_not)),
        };
        let host_path = self.case.outside.get("LD_LIBRARY_PATH");
        let name = fabrics.iter().map(|f| f.host.describe(&f.stack)).collect::<Vec<_>>().join(", ");
        let found = install::look_at_fabric(&host, &heads, name, host_path.as_deref()).map_err(&failed)?;
        let Some(installation) = found else { return Ok(Ok(None)) };
        let proof = self.case.lay_under(self.looked, &opens, &host, &installation)?;
        let Some(mut outcome) = proof else { return Ok(Ok(None)) };
        let is_forced = self.insists && outcome.obstacles.iter().all(Obstacle::is_latent);
        if !outcome.obstacles.is_empty() && !is_forced {
            let refused = outcome.obstacles.iter().map(|obstacle| {
                let mut e = refusal(obstacle);
                e.what = format!("with the host's {}: {}", installation.name, e.what);
                e.cure =
                    "use an image with fabric libraries like the host's, or keep its own: --fabric=image"
                        .to_owned();
                e
            });
            return Ok(Err(refused.collect()));
        }
        let overridden = outcome.obstacles.iter().map(|o| format!("--fabric=host overrides: {}", o.what()));
        self.remarks.extend(overridden);
        outcome.injection.fabrics = fabrics;
        Ok(Ok(Some((outcome.injection, outcome.map))))
    }

    /// The host's libraries for what is used, where they are of no older release.
    fn pair(&mut self, host: &Prober, used: &[Used]) -> Result<std::result::Result<Paired, Vec<Error>>> {
        let failed = verdict::unreadable(&self.looked.map.program);
        let library_path = self.case.outside.get("LD_LIBRARY_PATH");
        let (mut paired, mut why_not) = (Paired::default(), Vec::new());
        for used in used {
            let stack = used.stack;
            let Some(image) = fabric::copy(self.prober, stack, &used.heads).map_err(&failed)? else {
                continue;
            };
            let mut ours = BTreeMap::new();
            for name in used.heads.keys() {
                let path = host::fabric::library(host, library_path.as_deref(), name);
                if let Some(file) = path.and_then(|path| host.file(&path, Arch::NATIVE)) {
                    ours.insert(name.clone(), file);
                }
            }
            let missing = used.heads.keys().find(|name| !ours.contains_key(*name));
            if let Some(name) = missing {
                let whose = image.describe(stack.name);
                self.remarks.push(format!("the image's own {whose} stays: this host has no {name}"));
                continue;
            }
            let Some(host_copy) = fabric::copy(host, stack, &ours).map_err(&failed)? else { continue };
            let fabric = Fabric { stack: stack.name.to_owned(), host: host_copy, image };
            if stack.tells_release {
                why_not.extend(too_old(&fabric));
            }
            paired.0.extend(ours);
            paired.1.push(fabric);
        }
        Ok(if why_not.is_empty() { Ok(paired) } else { Err(why_not) })
    }
}

/// Libraries of the host by the names that are asked for, and what they replace.
type Paired = (BTreeMap<String, std::rc::Rc<abi_probe::prober::Probed>>, Vec<Fabric>);

/// A host's release that is older than the image's, or not told.
fn too_old(fabric: &Fabric) -> Option<Error> {
    let Fabric { stack, host, image } = fabric;
    if host.release.is_some() && host.release >= image.release {
        return None;
    }
    let is = if host.release.is_some() { "is older than" } else { "does not tell whether it is older than" };
    Some(Error::new(
        Code::FabricTooOld,
        format!(
            "the host's {} {is} the image's {}, which the image's MPI was built with",
            host.describe(stack),
            image.describe(stack)
        ),
        "use an image of a release as old as the host or older, or keep the image's own libraries: --fabric=image",
    ))
}

//! Devices as their drivers describe them for containers (CDI, the Container Device Interface): from names to what
//! the sandbox shows of the host, and what programs must be told.
//!
//! A sandbox has the host's /dev, network and processes already, so most of a description is there before it is
//! asked for; what is not is bound, as any other thing of the host. Nothing of a description is run.

mod compat;
mod fabric;
mod files;
pub mod generate;
mod hook;
pub mod nvidia;
pub mod registry;
pub mod spec;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use abi_probe::rootfs::View;
use serde::{Deserialize, Serialize};

use self::compat::Compat;
use self::files::Files;
pub use self::files::{not_permitted, other_version};
use self::hook::Known;
use self::registry::{Described, Registry, Source};
use self::spec::Edits;
use crate::config::{Config, Sourced};
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::host::gpu::{self, Driver};
use crate::plan::Change;
use crate::plan::sources::{Want, Weight};

/// Where the libraries of devices are found, inside, whatever the image's loader searches.
const LIBRARIES: &str = "/run/hpc-launch/devices";

/// What programs must be told; a note for ranks that join.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Variables with their values, and who says so.
    variables: Vec<(String, String, String)>,
    /// First in LD_LIBRARY_PATH, and why.
    first: Option<(PathBuf, String)>,
    /// Last in LD_LIBRARY_PATH.
    libraries: bool,
    /// Last in PATH.
    programs: bool,
}

/// The devices that were asked for.
#[derive(Debug, Default)]
pub struct Devices {
    /// What the sandbox must show.
    pub wants: Vec<Want>,
    told: Told,
    notes: Vec<String>,
    compat: Vec<Compat>,
}

/// Who asked for what, for messages.
#[derive(Clone, Copy)]
struct By<'a> {
    device: &'a str,
    origin: &'a str,
    source: &'a Source,
}

impl By<'_> {
    fn error(&self, code: Code, why: String, cure: &str) -> Error {
        let Self { device, origin, source } = self;
        Error::new(code, format!("device {device} ({origin}), by {}: {why}", source.path.display()), cure)
    }

    fn why(&self) -> String {
        format!("device {} ({}), by {}", self.device, self.origin, self.source.path.display())
    }
}

impl Devices {
    /// Looks up what was asked for; nothing where nothing was. To be called before a user namespace is entered, in
    /// which root's files would be nobody's.
    pub fn find(config: &Config, uid: u32) -> Result<Devices> {
        if config.devices.is_empty() {
            return Ok(Devices::default());
        }
        let directories = &config.cdi_directories.value;
        let registry = Registry::read(directories, uid);
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut described = Vec::new();
        for Sourced { value: name, origin } in &config.devices {
            let origin = origin.to_string();
            let found = registry.find(name, &origin, directories)?;
            if seen.insert(name) {
                described.push((name.clone(), origin, found.clone()));
            }
        }
        Devices::of(&described)
    }

    /// All GPUs of a driver that is loaded.
    pub fn of_driver(driver: &Driver, origin: &str) -> Result<Devices> {
        let spec = nvidia::describe(driver, Some(Path::new(LIBRARIES)));
        let source = Rc::new(Source { path: gpu::VERSION.into(), spec });
        let all = Described::in_source(&source, nvidia::ALL);
        let name = format!("{}={}", nvidia::KIND, nvidia::ALL);
        Devices::of(&all.map(|all| (name, origin.to_owned(), all)).into_iter().collect::<Vec<_>>())
    }

    /// What these devices need, each with its name and who asked for it.
    fn of(described: &[(String, String, Described)]) -> Result<Devices> {
        let mut devices = Devices::default();
        let mut common: Vec<Rc<Source>> = Vec::new();
        let mut files = Files::default();
        let mut hooks = Vec::new();
        for (name, origin, found) in described {
            let source = &found.source;
            let by = By { device: name, origin, source };
            let first = !common.iter().any(|known| Rc::ptr_eq(known, source));
            if first {
                common.push(Rc::clone(source));
                devices.edit(by, &source.spec.container_edits, &mut files, &mut hooks)?;
            }
            devices.edit(by, &found.device().container_edits, &mut files, &mut hooks)?;
        }
        // Links may lead to the names that libraries get.
        for (why, known) in &hooks {
            if let Known::Libraries(folders) = known {
                devices.told.libraries |= files.libraries(folders, Path::new(LIBRARIES), why);
            }
        }
        for (why, known) in hooks {
            match known {
                Known::Links(links) => files.link(&links, &why, &mut devices.notes),
                Known::CudaCompat { driver, cuda, directory } => {
                    devices.compat.push(Compat { driver, cuda, directory: directory.into() });
                }
                Known::Libraries(_) | Known::Nothing => {}
            }
        }
        devices.wants = files.wants;
        let programs = Path::new(LIBRARIES).join(nvidia::TOOLS);
        devices.told.programs = devices.wants.iter().any(|want| want.at.starts_with(&programs));
        Ok(devices)
    }

    fn edit(
        &mut self,
        by: By,
        edits: &Edits,
        files: &mut Files,
        hooks: &mut Vec<(String, Known)>,
    ) -> Result<()> {
        for pair in &edits.env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.told.variables.retain(|(known, ..)| known != name);
            self.told.variables.push((name.to_owned(), value.to_owned(), by.why()));
        }
        for node in &edits.device_nodes {
            files.node(by, node)?;
        }
        for mount in &edits.mounts {
            files.mount(by, mount)?;
        }
        for device in &edits.net_devices {
            let (outside, inside) = (&device.host_interface_name, &device.name);
            if outside != inside {
                return Err(by.error(
                    Code::DeviceUnsupported,
                    format!("the interface {outside} should be called {inside}; a sandbox has the host's network"),
                    "ask for a device that needs no interface of its own, or use a runtime with network namespaces",
                ));
            }
            if !Path::new("/sys/class/net").join(outside).exists() {
                return Err(by.error(
                    Code::DeviceMissing,
                    format!("this host has no interface {outside:?}"),
                    "let the driver's software write its file anew, on this node",
                ));
            }
        }
        for hook in &edits.hooks {
            match Known::of(hook) {
                Ok(known) => hooks.push((by.why(), known)),
                Err(what) => {
                    return Err(by.error(
                        Code::DeviceUnsupported,
                        format!("it wants the hook `{what}` to be run, which is not known"),
                        "hooks are never run, known ones are done natively (docs/DEVICES.md lists them): ask for a \
                         device without this hook, or bind what it needs with --bind",
                    ));
                }
            }
        }
        if edits.intel_rdt.is_some() {
            self.notes
                .push(format!("{}: intelRdt is the batch system's matter, it is passed over", by.why()));
        }
        let strangers = files::strange_groups(&edits.additional_gids);
        if !strangers.is_empty() {
            let list: Vec<String> = strangers.iter().map(u32::to_string).collect();
            self.notes.push(format!(
                "{}: groups cannot be added to a process without privileges: {}",
                by.why(),
                list.join(", ")
            ));
        }
        Ok(())
    }

    /// What programs must be told, and what a person should know, when the image has been asked for what the
    /// descriptions leave to it. `view`: as the program will see it.
    pub fn told(&self, view: &View) -> (Told, Vec<String>) {
        let (mut told, mut notes) = (self.told.clone(), self.notes.clone());
        for compat in &self.compat {
            match compat.judge(view) {
                Ok(Some(why)) => told.first = Some((compat.directory.clone(), why)),
                Ok(None) => {}
                Err(why) => notes.push(why),
            }
        }
        (told, notes)
    }
}

impl Told {
    /// This, and what others must be told.
    pub fn and(mut self, other: Told) -> Told {
        let is_other = |name: &String| other.variables.iter().any(|(known, ..)| known == name);
        self.variables.retain(|(name, ..)| !is_other(name));
        self.variables.extend(other.variables);
        Told {
            variables: self.variables,
            first: self.first.or(other.first),
            libraries: self.libraries || other.libraries,
            programs: self.programs || other.programs,
        }
    }

    /// Adds it to an environment. What the user sets comes after it.
    pub fn apply(&self, environ: &mut Environ) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, value, why) in &self.variables {
            // No device can change who the rank is.
            let is_the_launchers = pmi_shim::passthrough::treatment(name)
                .is_some_and(|row| row.treatment == pmi_shim::passthrough::Treatment::Keep);
            if is_the_launchers {
                continue;
            }
            environ.set(name, value);
            changes.push(Change { name: name.clone(), value: Some(value.clone()), why: why.clone() });
        }
        let programs = self.programs.then(|| format!("{LIBRARIES}/{}", nvidia::TOOLS));
        changes.extend(around(environ, "PATH", (None, programs), "programs of devices"));
        let first = self.first.as_ref().map(|(directory, _)| directory.display().to_string());
        let last = self.libraries.then(|| LIBRARIES.to_owned());
        let why = self.first.as_ref().map_or("libraries of devices", |(_, why)| why);
        changes.extend(around(environ, "LD_LIBRARY_PATH", (first, last), why));
        changes
    }
}

/// Puts directories before and behind those of a variable, if there are any to be put.
fn around(
    environ: &mut Environ,
    name: &str,
    (first, last): (Option<String>, Option<String>),
    why: &str,
) -> Option<Change> {
    if first.is_none() && last.is_none() {
        return None;
    }
    let known = environ.get(name).filter(|path| !path.is_empty());
    let list: Vec<String> = [first, known, last].into_iter().flatten().collect();
    let list = list.join(":");
    environ.set(name, &list);
    Some(Change { name: name.to_owned(), value: Some(list), why: why.to_owned() })
}

/// The weight of what a device needs.
fn weight(by: By) -> Weight {
    Weight::Asked(by.why())
}

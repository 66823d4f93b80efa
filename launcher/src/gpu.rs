//! Whether a program gets the host's GPUs, and which of them is each rank's.
//!
//! Their files are there in any case, as all of /dev is; what is shown is the driver's libraries. All of a node's GPUs
//! are visible to all of its ranks, or CUDA's IPC between them would not work; CUDA_VISIBLE_DEVICES says which is whose.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use abi_probe::linkmap::LinkMap;
use abi_probe::rootfs::View;
use pmi_shim::launcher::Rank;
use serde::{Deserialize, Serialize};

use crate::cdi::{Devices, not_permitted, nvidia};
use crate::config::{Config, Sourced};
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::host::gpu::{Driver, Gpu};
use crate::host::place::{Bind, Distances, Place, next_of, nodes};
use crate::image::environment::ImageEnvironment;
use crate::inject::WARNING;
use crate::plan::Change;

/// By which CUDA knows the GPUs that it may use.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// Variables of images that are made for CUDA; what they say if they are not, after all.
const OF_IMAGES: &[&str] = &["NVIDIA_VISIBLE_DEVICES", "NVIDIA_REQUIRE_CUDA", "CUDA_VERSION"];
const NOTHING: &[&str] = &["", "none", "void"];
/// Where images have CUDA.
const TREE: &str = "/usr/local/cuda";
/// Libraries that no program needs that does not use a GPU: how their names begin.
const LIBRARIES: &[&str] = &["libcuda.so.", "libcudart.so.", "libnvidia-ml.so."];

/// Files without which CUDA does not start.
const NEEDED: &[&str] = &["nvidiactl", "nvidia-uvm"];

/// So much of a text of the image's is printed.
const MAX_SHOWN: usize = 120;

/// Whether programs get GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Gpus {
    /// Where image or program is made for them, and there are some.
    Auto,
    /// Never.
    None,
    /// All, in any case.
    All,
    /// All files, and of the GPUs these are to be used: by number or UUID.
    These(Vec<String>),
}

impl From<Gpus> for String {
    fn from(gpus: Gpus) -> String {
        match gpus {
            Gpus::Auto => "auto".to_owned(),
            Gpus::None => "none".to_owned(),
            Gpus::All => "all".to_owned(),
            Gpus::These(list) => list.join(","),
        }
    }
}

impl TryFrom<String> for Gpus {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Gpus, String> {
        Gpus::parse(&text)
    }
}

impl Gpus {
    /// `auto`, `none`, `all`, or a list.
    pub fn parse(text: &str) -> std::result::Result<Gpus, String> {
        let is_gpu = |name: &&str| {
            let is_uuid = name.starts_with("GPU-") || name.starts_with("MIG-");
            is_uuid || !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
        };
        match text {
            "auto" => Ok(Gpus::Auto),
            "none" => Ok(Gpus::None),
            "all" => Ok(Gpus::All),
            list => match list.split(',').find(|name| !is_gpu(name)) {
                None => Ok(Gpus::These(list.split(',').map(String::from).collect())),
                Some(other) => {
                    Err(format!("{other:?} is neither auto, none, all, a GPU's number nor its UUID"))
                }
            },
        }
    }

    fn insists(&self) -> bool {
        matches!(self, Gpus::All | Gpus::These(_))
    }
}

/// The driver, and what showing it needs: found before a user namespace is entered, in which nobody could tell whose
/// files are.
pub struct Offered {
    driver: Driver,
    /// Those that may be opened: a batch system may have given the others to somebody else.
    gpus: Vec<Gpu>,
    /// Of each of the others, why not, and what to do.
    closed: Vec<(String, String)>,
    devices: Result<Devices>,
}

/// What can be said of the driver.
pub enum State {
    /// There is none.
    NotLoaded,
    /// Nobody is to get it, or only by name.
    NotWanted,
    /// It cannot be used.
    Broken {
        /// Why.
        error: Error,
    },
    /// It can be shown.
    Good {
        /// Its version.
        version: String,
        /// How many GPUs may be opened.
        gpus: usize,
        /// Of each of the others, why not, and what to do.
        closed: Vec<(String, String)>,
        /// How many libraries.
        libraries: usize,
    },
}

/// The driver's state, for people.
pub fn state(config: &Config) -> State {
    match offered(config) {
        None if crate::host::gpu::version().is_some() => State::NotWanted,
        None => State::NotLoaded,
        Some(Offered { devices: Err(error), .. }) => State::Broken { error },
        Some(Offered { driver, gpus, closed, devices: Ok(_) }) => State::Good {
            gpus: gpus.len(),
            closed,
            libraries: driver.libraries.len(),
            version: driver.version,
        },
    }
}

/// What this host has, if anybody may want it.
pub fn offered(config: &Config) -> Option<Offered> {
    if config.gpu.value == Gpus::None || are_named(config) {
        return None;
    }
    let driver = crate::host::gpu::nvidia()?;
    let (gpus, closed) = opened(&driver);
    let devices = usable(&driver, &gpus, &closed, &config.gpu);
    Some(Offered { driver, gpus, closed, devices })
}

/// GPUs that this user and job may open; of each of the others, why not, and what to do.
pub fn opened(driver: &Driver) -> (Vec<Gpu>, Vec<(String, String)>) {
    let (mut gpus, mut closed) = (Vec::new(), Vec::new());
    for gpu in &driver.gpus {
        match not_permitted(&gpu.node()) {
            None => gpus.push(gpu.clone()),
            Some(why) => closed.push(why),
        }
    }
    (gpus, closed)
}

/// Whoever asks for devices by name knows better.
fn are_named(config: &Config) -> bool {
    let kind = |name: &str| name.split_once('=').is_some_and(|(kind, _)| kind == nvidia::KIND);
    config.devices.iter().any(|device| kind(&device.value))
}

fn usable(
    driver: &Driver,
    gpus: &[Gpu],
    closed: &[(String, String)],
    asked: &Sourced<Gpus>,
) -> Result<Devices> {
    let origin = format!("--gpu={}, {}", String::from(asked.value.clone()), asked.origin);
    let version = &driver.version;
    if driver.libraries.is_empty() {
        let searched: Vec<String> = driver.searched.iter().map(|d| d.display().to_string()).collect();
        return Err(Error::new(
            Code::DeviceMissing,
            format!(
                "NVIDIA's driver {version} is loaded ({origin}), and libcuda.so.{version} is in none of {}",
                searched.join(", ")
            ),
            "install the driver's libraries of that very version; after an update of the driver, load it anew",
        ));
    }
    if driver.gpus.is_empty() {
        return Err(Error::new(
            Code::DeviceMissing,
            format!("NVIDIA's driver {version} is loaded ({origin}), and knows no GPU"),
            "see what the kernel's log says of NVRM",
        ));
    }
    for name in NEEDED {
        if !driver.nodes.iter().any(|node| node.ends_with(name)) {
            return Err(Error::new(
                Code::DeviceMissing,
                format!("NVIDIA's driver {version} is loaded ({origin}), and /dev/{name} does not exist"),
                "let the administrator load the module and make its file: nvidia-modprobe -u -c0",
            ));
        }
    }
    if let (true, Some((why, cure))) = (gpus.is_empty(), closed.first()) {
        return Err(Error::new(
            Code::DeviceDenied,
            format!("NVIDIA's driver {version} is loaded ({origin}), and no GPU may be used: {why}"),
            cure.clone(),
        ));
    }
    // Of files that not every program needs, those that this user may open.
    let is_needed =
        |node: &PathBuf| NEEDED.iter().any(|name| node.ends_with(name)) || not_permitted(node).is_none();
    let nodes = driver.nodes.iter().filter(|node| is_needed(node)).cloned().collect();
    let own = Driver { gpus: gpus.to_vec(), nodes, ..driver.clone() };
    Devices::of_driver(&own, &origin)
}

/// A library of the program's that uses a GPU.
pub fn needed_by_program(map: &LinkMap) -> Option<String> {
    let direct = map.main.iter().flat_map(|main| &main.object.needed);
    let all = map.objects.iter().map(|object| &object.name).chain(direct);
    let is_cuda = |name: &&String| LIBRARIES.iter().any(|prefix| name.starts_with(prefix));
    all.into_iter().find(is_cuda).cloned()
}

/// A text of the image's, as it may be printed: no terminal's commands, no page of it.
fn shown(text: &str) -> String {
    text.escape_debug().take(MAX_SHOWN).collect()
}

/// Why GPUs are wanted, if they are.
fn wanted(image: &ImageEnvironment, view: &View, needed: Option<&str>) -> Option<String> {
    if let Some(library) = needed {
        return Some(format!("the program needs {}", shown(library)));
    }
    let said = |name: &str| {
        let value = image.env.iter().rev().find(|(known, _)| known == name)?;
        (!NOTHING.contains(&value.1.as_str())).then(|| format!("the image has {name}={}", shown(&value.1)))
    };
    // Who says that nothing is wanted is believed.
    if image.env.iter().any(|(name, value)| name == OF_IMAGES[0] && NOTHING.contains(&value.as_str())) {
        return None;
    }
    OF_IMAGES.iter().find_map(|name| said(name)).or_else(|| {
        let has_tree = view.exists(Path::new(TREE)).unwrap_or(false);
        has_tree.then(|| format!("the image has {TREE}"))
    })
}

/// What was decided.
#[derive(Default)]
pub struct Given<'a> {
    /// What is shown, and told.
    pub devices: Option<&'a Devices>,
    /// Of which ranks get theirs.
    pub gpus: Vec<Gpu>,
    /// What a person should know.
    pub remarks: Vec<String>,
}

/// Decides for a program; `needed`: a library of it that uses a GPU.
pub fn give<'a>(
    offered: Option<&'a Offered>,
    config: &Config,
    image: &ImageEnvironment,
    view: &View,
    needed: Option<&str>,
) -> Result<Given<'a>> {
    let asked = &config.gpu;
    let mut given = Given::default();
    let insists = asked.value.insists();
    if asked.value == Gpus::None {
        return Ok(given);
    }
    let why = wanted(image, view, needed);
    let Some(offered) = offered else {
        match (insists, why) {
            _ if are_named(config) => {}
            (true, _) => {
                let which = String::from(asked.value.clone());
                return Err(Error::new(
                    Code::DeviceMissing,
                    format!("--gpu={which} ({}): no driver of NVIDIA's is loaded on this host", asked.origin),
                    "run on a node with GPUs, or load the driver; --gpu=auto runs without",
                ));
            }
            (false, Some(why)) => given.remarks.push(format!(
                "{WARNING}{why}, and no driver of NVIDIA's is loaded on this host: it will find no GPU"
            )),
            (false, None) => {}
        }
        return Ok(given);
    };
    if !insists && why.is_none() {
        return Ok(given);
    }
    match &offered.devices {
        Ok(devices) => given.devices = Some(devices),
        Err(e) if insists => return Err(e.clone()),
        Err(e) => {
            let why = why.unwrap_or_default();
            given.remarks.push(format!("{WARNING}{why}, and gets no GPU: {}; {}", e.what, e.cure));
            return Ok(given);
        }
    }
    given.gpus = match &asked.value {
        Gpus::These(list) => list.iter().map(|name| offered.one(name, asked)).collect::<Result<_>>()?,
        _ => offered.gpus.clone(),
    };
    Ok(given)
}

impl Offered {
    /// Whether a program gets them; `needed`: a library of it that uses a GPU.
    pub fn is_for(
        &self,
        config: &Config,
        image: &ImageEnvironment,
        view: &View,
        needed: Option<&str>,
    ) -> bool {
        self.devices.is_ok() && (config.gpu.value.insists() || wanted(image, view, needed).is_some())
    }

    /// What must be shown for a program of the driver's, as `nvidia-smi`; none: it is none of them.
    pub fn for_tool(&self, command: &OsStr) -> Option<Result<&Devices>> {
        let is_it = |tool: &PathBuf| tool.file_name() == Some(command);
        let is_any = self.driver.tools.iter().any(is_it);
        is_any.then(|| self.devices.as_ref().map_err(Clone::clone))
    }

    /// By its number or UUID; a part of one (MIG) is CUDA's to find.
    fn one(&self, name: &str, asked: &Sourced<Gpus>) -> Result<Gpu> {
        let all = &self.gpus;
        if name.starts_with("MIG-") {
            return Ok(Gpu {
                uuid: name.to_owned(),
                model: String::new(),
                bus: String::new(),
                minor: 0,
                place: Place::default(),
            });
        }
        let by_number = name.parse::<usize>().ok().and_then(|n| all.get(n));
        by_number.or_else(|| all.iter().find(|gpu| gpu.uuid == name)).cloned().ok_or_else(|| {
            if let Some(gpu) = self.driver.gpus.iter().find(|gpu| gpu.uuid == name)
                && let Some((why, cure)) = not_permitted(&gpu.node())
            {
                let what = format!("--gpu ({}): {why}", asked.origin);
                return Error::new(Code::DeviceDenied, what, cure);
            }
            let known: Vec<String> =
                all.iter().enumerate().map(|(n, gpu)| format!("{n} ({}, {})", gpu.uuid, gpu.model)).collect();
            Error::new(
                Code::DeviceUnknown,
                format!("--gpu ({}): this host has no GPU {name}", asked.origin),
                format!("there are: {}", known.join(", ")),
            )
        })
    }
}

/// Tells a program which GPUs are its rank's. What the batch system has set stays, unless somebody named GPUs.
pub fn select(
    gpus: &[Gpu],
    config: &Config,
    outside: &Environ,
    rank: Option<&Rank>,
    environ: &mut Environ,
) -> Option<Change> {
    if gpus.is_empty() || config.env.iter().any(|pair| pair.value.0 == VISIBLE) {
        return None;
    }
    let named = matches!(config.gpu.value, Gpus::These(_));
    if !named && outside.get_os(VISIBLE).is_some() {
        return None;
    }
    let bind = &config.gpu_bind;
    let local = rank.and_then(|rank| rank.local_rank);
    let one = match (bind.value, local) {
        (Bind::None, _) | (_, None) => None,
        (Bind::RoundRobin, Some(local)) => next_of(&gpus.iter().collect::<Vec<_>>(), local),
        (Bind::Closest, Some(local)) => {
            let from = Distances::from_here(&nodes(Path::new("/sys")));
            from.closest(gpus, |gpu| &gpu.place, local)
        }
    };
    let (value, why) = match one {
        Some(gpu) => {
            (gpu.uuid.clone(), format!("the GPU of local rank {} ({})", local.unwrap_or(0), bind.origin))
        }
        None if named => {
            let list: Vec<&str> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
            (list.join(","), format!("these GPUs were named ({})", config.gpu.origin))
        }
        None => return None,
    };
    environ.set(VISIBLE, &value);
    Some(Change { name: VISIBLE.to_owned(), value: Some(value), why })
}

/// The GPU that a program uses first, as far as its variables tell. Numbers count only among equals: CUDA gives the
/// fastest the first number.
pub fn first<'a>(gpus: &'a [Gpu], environ: &Environ) -> Option<&'a Gpu> {
    let visible = environ.get(VISIBLE)?;
    let name = visible.split(',').next()?.trim();
    let are_equal = gpus.iter().all(|gpu| gpu.model == gpus[0].model);
    let by_number = name.parse::<usize>().ok().filter(|_| are_equal).and_then(|n| gpus.get(n));
    by_number.or_else(|| gpus.iter().find(|gpu| gpu.uuid == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_asked_for() {
        assert_eq!(Gpus::parse("auto"), Ok(Gpus::Auto));
        assert_eq!(Gpus::parse("0,GPU-1"), Ok(Gpus::These(vec!["0".into(), "GPU-1".into()])));
        assert_eq!(String::from(Gpus::parse("MIG-a").unwrap()), "MIG-a");
        for no in ["", "0,", "fast", "0 1", "-1"] {
            assert!(Gpus::parse(no).unwrap_err().contains("is neither auto, none, all"), "{no:?}");
        }
    }

    #[test]
    fn images_that_want_gpus() {
        let dir = tempfile::tempdir().unwrap();
        let view = View::open(dir.path()).unwrap();
        let image = |pairs: &[(&str, &str)]| ImageEnvironment {
            env: pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            ..ImageEnvironment::default()
        };
        let why = |pairs: &[(&str, &str)]| wanted(&image(pairs), &view, None);
        assert_eq!(why(&[]), None);
        assert_eq!(
            why(&[("NVIDIA_VISIBLE_DEVICES", "all")]).unwrap(),
            "the image has NVIDIA_VISIBLE_DEVICES=all"
        );
        assert_eq!(why(&[("NVIDIA_VISIBLE_DEVICES", "void"), ("CUDA_VERSION", "12.4")]), None);
        assert_eq!(why(&[("CUDA_VERSION", "12.4")]).unwrap(), "the image has CUDA_VERSION=12.4");
        let hostile = why(&[("CUDA_VERSION", &format!("\x1b[2J\n{}", "9".repeat(100_000)))]).unwrap();
        assert!(
            hostile.starts_with("the image has CUDA_VERSION=\\u{1b}[2J\\n99") && hostile.len() < 200,
            "{hostile}"
        );
        assert_eq!(
            wanted(&image(&[]), &view, Some("libcuda.so.1")).unwrap(),
            "the program needs libcuda.so.1"
        );
        std::fs::create_dir_all(dir.path().join("usr/local/cuda")).unwrap();
        assert_eq!(why(&[]).unwrap(), "the image has /usr/local/cuda");
    }
}

//! Settings in layers, each value knowing where it comes from:
//! built-in < /etc/hpc-launch/config.toml < ~/.config/hpc-launch/config.toml < HPC_LAUNCH_* < flags.
//!
//! The site's file may lock keys: `locked = ["mpi"]`, and `require_signature = true` locks itself there. A lower
//! layer that sets a locked key to another value is refused. Lists (binds, env, unset_env) add up over the layers; the
//! rest is replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use image_store::registry::{Proxies, Settings};
use serde::{Deserialize, Serialize};

use crate::cdi;
use crate::cli::{CacheMode, FabricMode, MpiMode, Options, PmiWay};
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::gpu::Gpus;
use crate::host::mpi::Named;
use crate::host::place::Bind;

/// The site's file.
pub const SITE_FILE: &str = "/etc/hpc-launch/config.toml";

/// Variables by which UCX, libfabric and Open MPI keep away from adapters. (UCX 1.10 knows no `^ib`.)
const KEEP_AWAY: &[(&str, &str)] = &[
    ("UCX_TLS", "self,sm,tcp"),
    ("FI_PROVIDER", "^verbs,psm,psm2,psm3,opx,cxi,efa,usnic"),
    ("OMPI_MCA_btl", "^openib,usnic"),
    ("OMPI_MCA_mtl", "^psm,psm2"),
];

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Nobody said anything.
    BuiltIn,
    /// A configuration file.
    File(PathBuf),
    /// An HPC_LAUNCH_ variable.
    Variable(String),
    /// The command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::BuiltIn => f.write_str("built-in"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and its origin.
#[derive(Clone, Debug, Serialize)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

impl<T> Sourced<T> {
    fn built_in(value: T) -> Sourced<T> {
        Sourced { value, origin: Origin::BuiltIn }
    }
}

/// The settings in force.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// `SRC[:DST[:ro]]`, each with its origin.
    pub binds: Vec<Sourced<String>>,
    /// Devices that are described for containers, `vendor.com/class=name`.
    pub devices: Vec<Sourced<String>>,
    /// Where the descriptions are; later ones win.
    pub cdi_directories: Sourced<Vec<PathBuf>>,
    /// Variables to set.
    pub env: Vec<Sourced<(String, String)>>,
    /// Patterns of variables to remove.
    pub unset_env: Vec<Sourced<String>>,
    /// Let in only what the launcher needs.
    pub clean_env: Sourced<bool>,
    /// Show the home directory.
    pub home: Sourced<bool>,
    /// Root with writes that vanish.
    pub writable_tmpfs: Sourced<bool>,
    /// What is laid over the image, `[node:|rank:]PATH[:ro]`, each with its origin; the last is the topmost.
    pub overlays: Vec<Sourced<String>>,
    /// Which MPI.
    pub mpi: Sourced<MpiMode>,
    /// Whose fabric libraries beneath the image's own MPI.
    pub fabric: Sourced<FabricMode>,
    /// Whether programs get GPUs.
    pub gpu: Sourced<Gpus>,
    /// Which GPU each rank is told to use.
    pub gpu_bind: Sourced<Bind>,
    /// Which adapter each rank is told to use.
    pub nic_bind: Sourced<Bind>,
    /// By which way a bridged program finds its PMI server.
    pub pmi: Sourced<PmiWay>,
    /// Which of the host's MPIs: a name of `host_mpis`, or a path.
    pub host_mpi: Sourced<Option<String>>,
    /// The MPI library inside, for programs that do not link theirs.
    pub mpi_library: Sourced<Option<PathBuf>>,
    /// Where decisions are kept; `none`: nowhere.
    pub decisions: Sourced<Option<PathBuf>>,
    /// The host's MPIs by name.
    pub host_mpis: Vec<Sourced<Named>>,
    /// Where to start inside.
    pub workdir: Sourced<Option<PathBuf>>,
    /// The program that mounts SquashFS for users.
    pub squashfuse: Sourced<Option<PathBuf>>,
    /// The program that mounts ext2, ext3 and ext4 for users.
    pub fuse2fs: Sourced<Option<PathBuf>>,
    /// Stores of images: looked into in order, the last is written to.
    pub store: Vec<Sourced<PathBuf>>,
    /// Where images' files are read from.
    pub image_cache: Sourced<CacheMode>,
    /// Where copies of images are, on the node.
    pub node_cache: Sourced<Option<PathBuf>>,
    /// So many bytes may come out of an image.
    pub max_size: Sourced<u64>,
    /// How long one who makes the same image may stand still, in seconds.
    pub lock_timeout: Sourced<u64>,
    /// Of each registry, addresses that are tried before it.
    pub mirrors: Vec<Sourced<(String, Vec<String>)>>,
    /// Registries that are spoken to without TLS.
    pub plain_registries: Vec<Sourced<String>>,
    /// Images must be signed. Where the site's file wants it, that is locked.
    pub require_signature: Sourced<bool>,
    /// Key rings that signatures are verified with; none: Apptainer's and Singularity's.
    pub keyring: Vec<Sourced<PathBuf>>,
    /// Say what is done.
    pub verbose: Sourced<bool>,
    /// Keys that only the site's file may set, and that file.
    pub locked: Option<Sourced<Vec<String>>>,
}

/// A configuration file. Unknown keys are errors: a misspelt key must not be ignored.
#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default)]
struct FileLayer {
    binds: Option<Vec<String>>,
    devices: Option<Vec<String>>,
    cdi_directories: Option<Vec<PathBuf>>,
    env: Option<BTreeMap<String, String>>,
    unset_env: Option<Vec<String>>,
    clean_env: Option<bool>,
    home: Option<bool>,
    writable_tmpfs: Option<bool>,
    overlays: Option<Vec<String>>,
    mpi: Option<MpiMode>,
    fabric: Option<FabricMode>,
    gpu: Option<Gpus>,
    gpu_bind: Option<Bind>,
    nic_bind: Option<Bind>,
    pmi: Option<PmiWay>,
    host_mpi: Option<String>,
    mpi_library: Option<PathBuf>,
    host_mpis: Option<Vec<Named>>,
    decisions: Option<PathBuf>,
    workdir: Option<PathBuf>,
    squashfuse: Option<PathBuf>,
    fuse2fs: Option<PathBuf>,
    store: Option<Vec<PathBuf>>,
    image_cache: Option<CacheMode>,
    node_cache: Option<PathBuf>,
    max_size: Option<Size>,
    lock_timeout: Option<u64>,
    mirrors: Option<BTreeMap<String, Vec<String>>>,
    plain_registries: Option<Vec<String>>,
    require_signature: Option<bool>,
    keyring: Option<Vec<PathBuf>>,
    verbose: Option<bool>,
    locked: Option<Vec<String>>,
}

const KEYS: &[&str] = &[
    "binds",
    "devices",
    "cdi_directories",
    "env",
    "unset_env",
    "clean_env",
    "home",
    "writable_tmpfs",
    "overlays",
    "mpi",
    "fabric",
    "gpu",
    "gpu_bind",
    "nic_bind",
    "pmi",
    "host_mpi",
    "mpi_library",
    "host_mpis",
    "decisions",
    "workdir",
    "squashfuse",
    "fuse2fs",
    "store",
    "image_cache",
    "node_cache",
    "max_size",
    "lock_timeout",
    "mirrors",
    "plain_registries",
    "require_signature",
    "keyring",
    "verbose",
];

/// Bytes, as people write them: a number, or text with K, M, G or T behind it (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// Understands the text.
    pub fn parse(text: &str) -> std::result::Result<Size, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &text[digits.len()..] {
            "" | "B" => Some(0),
            "K" | "KiB" => Some(10),
            "M" | "MiB" => Some(20),
            "G" | "GiB" => Some(30),
            "T" | "TiB" => Some(40),
            _ => None,
        };
        let number = digits.parse::<u64>().ok().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift));
        number.map(Size).ok_or_else(|| format!("{text:?} is no size such as 500M or 200G"))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(from)? {
            Written::Number(bytes) => Ok(Size(bytes)),
            Written::Text(text) => Size::parse(&text).map_err(serde::de::Error::custom),
        }
    }
}

impl Config {
    /// The directory in which decisions are kept: on the node, for files are others on each.
    pub fn decisions_directory(&self, uid: u32) -> Option<PathBuf> {
        match &self.decisions.value {
            None => Some(PathBuf::from(format!("/var/tmp/hpc-launch-{uid}"))),
            Some(path) if path == Path::new("none") => None,
            Some(path) => Some(path.clone()),
        }
    }

    /// The directory in which copies of images are kept: on storage of the node, where batch systems point TMPDIR.
    pub fn node_cache_directory(&self, environ: &Environ, uid: u32) -> PathBuf {
        self.node_cache.value.clone().unwrap_or_else(|| {
            let scratch = environ.get_os("TMPDIR").map(PathBuf::from).filter(|p| p.is_absolute());
            scratch.unwrap_or_else(|| PathBuf::from("/var/tmp")).join(format!("hpc-launch-{uid}/images"))
        })
    }

    fn built_in() -> Config {
        Config {
            binds: Vec::new(),
            devices: Vec::new(),
            cdi_directories: Sourced::built_in(cdi::registry::DIRECTORIES.map(PathBuf::from).to_vec()),
            env: Vec::new(),
            unset_env: Vec::new(),
            clean_env: Sourced::built_in(false),
            home: Sourced::built_in(true),
            writable_tmpfs: Sourced::built_in(false),
            overlays: Vec::new(),
            mpi: Sourced::built_in(MpiMode::Auto),
            fabric: Sourced::built_in(FabricMode::Auto),
            gpu: Sourced::built_in(Gpus::Auto),
            gpu_bind: Sourced::built_in(Bind::None),
            nic_bind: Sourced::built_in(Bind::None),
            pmi: Sourced::built_in(PmiWay::Auto),
            host_mpi: Sourced::built_in(None),
            mpi_library: Sourced::built_in(None),
            decisions: Sourced::built_in(None),
            host_mpis: Vec::new(),
            workdir: Sourced::built_in(None),
            squashfuse: Sourced::built_in(None),
            fuse2fs: Sourced::built_in(None),
            store: Vec::new(),
            image_cache: Sourced::built_in(CacheMode::None),
            node_cache: Sourced::built_in(None),
            max_size: Sourced::built_in(image_store::import::MAX_SIZE),
            lock_timeout: Sourced::built_in(120),
            mirrors: Vec::new(),
            plain_registries: Vec::new(),
            require_signature: Sourced::built_in(false),
            keyring: Vec::new(),
            verbose: Sourced::built_in(false),
            locked: None,
        }
    }

    /// All layers: files, variables, and the flags as typed.
    pub fn load(environ: &Environ, options: Option<&Options>) -> Result<Config> {
        let mut config = Config::built_in();
        let site = PathBuf::from(SITE_FILE);
        if let Some(layer) = read_file(&site)? {
            config.apply(layer, &|_| Origin::File(site.clone()), true)?;
        }
        let user = environ
            .get_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
            .or_else(|| Some(PathBuf::from(environ.get_os("HOME")?).join(".config")));
        if let Some(user) = user.map(|u| u.join("hpc-launch/config.toml"))
            && let Some(layer) = read_file(&user)?
        {
            config.apply(layer, &|_| Origin::File(user.clone()), false)?;
        }
        config.apply(variables(environ)?, &|key| Origin::Variable(variable(key)), false)?;
        if let Some(options) = options {
            config.apply(flags(options)?, &|key| Origin::Flag(flag(key)), false)?;
        }
        if config.fabric.value == FabricMode::None {
            config.keep_away(environ);
        }
        config.own_store(environ, &site);
        Ok(config)
    }

    /// What is known of registries: where docker and podman keep credentials and certificates, and the usual proxies.
    pub fn registries(&self, environ: &Environ) -> Settings {
        let path = |name: &str| environ.get_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let home = path("HOME");
        let of_user = path("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
        let in_home = |file: &str| home.as_ref().map(|home| home.join(file));
        let credentials = match path("REGISTRY_AUTH_FILE") {
            Some(file) => vec![file],
            None => [
                path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
                of_user.as_ref().map(|dir| dir.join("containers/auth.json")),
                path("DOCKER_CONFIG")
                    .map(|dir| dir.join("config.json"))
                    .or_else(|| in_home(".docker/config.json")),
            ]
            .into_iter()
            .flatten()
            .collect(),
        };
        let of_user = of_user.map(|dir| dir.join("containers/certs.d"));
        let certificates = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        let either =
            |names: [&str; 2]| names.iter().find_map(|name| environ.get(name).filter(|v| !v.is_empty()));
        let none = either(["no_proxy", "NO_PROXY"]).unwrap_or_default();
        Settings {
            credentials,
            proxies: Proxies {
                http: either(["http_proxy", "HTTP_PROXY"]),
                https: either(["https_proxy", "HTTPS_PROXY"]),
                none: none.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect(),
            },
            mirrors: self.mirrors.iter().map(|m| m.value.clone()).collect(),
            plain: self.plain_registries.iter().map(|p| p.value.clone()).collect(),
            certificates: of_user.into_iter().chain(certificates).collect(),
            agent: format!("hpc-launch/{}", env!("CARGO_PKG_VERSION")),
        }
    }

    /// Who names no store of his own has one in his home.
    fn own_store(&mut self, environ: &Environ, site: &Path) {
        if self.store.iter().any(|store| store.origin != Origin::File(site.to_owned())) {
            return;
        }
        let data = environ.get_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || environ.get_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
        if let Some(data) = data.or_else(home) {
            self.store.push(Sourced::built_in(data.join("hpc-launch/images")));
        }
    }

    /// Tells MPIs to do without adapters. Who says otherwise by a variable is believed.
    fn keep_away(&mut self, environ: &Environ) {
        for (name, value) in KEEP_AWAY {
            let is_said = environ.get_os(name).is_some() || self.env.iter().any(|pair| pair.value.0 == *name);
            if !is_said {
                let value = ((*name).to_owned(), (*value).to_owned());
                self.env.push(Sourced { value, origin: self.fabric.origin.clone() });
            }
        }
    }

    fn apply(&mut self, layer: FileLayer, origin: &dyn Fn(&str) -> Origin, is_site: bool) -> Result<()> {
        if let Some(locked) = layer.locked {
            if !is_site {
                return Err(invalid(&origin("locked"), "locked: only the site's file may lock keys"));
            }
            if let Some(bad) = locked.iter().find(|k| !KEYS.contains(&k.as_str())) {
                return Err(invalid(&origin("locked"), &format!("locked: there is no key {bad:?}")));
            }
            self.locked = Some(Sourced { value: locked, origin: origin("locked") });
        }
        if is_site && layer.require_signature == Some(true) {
            let locked =
                self.locked.get_or_insert_with(|| Sourced { value: Vec::new(), origin: origin("locked") });
            locked.value.push("require_signature".to_owned());
        }
        for bind in layer.binds.unwrap_or_default() {
            self.check_lock("binds", false, &origin, is_site)?;
            self.binds.push(Sourced { value: bind, origin: origin("binds") });
        }
        for overlay in layer.overlays.unwrap_or_default() {
            self.check_lock("overlays", false, &origin, is_site)?;
            self.overlays.push(Sourced { value: overlay, origin: origin("overlays") });
        }
        for device in layer.devices.unwrap_or_default() {
            self.check_lock("devices", false, &origin, is_site)?;
            self.devices.push(Sourced { value: device, origin: origin("devices") });
        }
        if let Some(bad) = layer.cdi_directories.iter().flatten().find(|d| !d.is_absolute()) {
            let why = format!("cdi_directories: {} is no absolute path", bad.display());
            return Err(invalid(&origin("cdi_directories"), &why));
        }
        for pair in layer.env.unwrap_or_default() {
            self.check_lock("env", false, &origin, is_site)?;
            self.env.push(Sourced { value: pair, origin: origin("env") });
        }
        for pattern in layer.unset_env.unwrap_or_default() {
            self.check_lock("unset_env", false, &origin, is_site)?;
            self.unset_env.push(Sourced { value: pattern, origin: origin("unset_env") });
        }
        for store in layer.store.unwrap_or_default() {
            self.check_lock("store", false, &origin, is_site)?;
            if !store.is_absolute() {
                return Err(invalid(
                    &origin("store"),
                    &format!("store: {} is no absolute path", store.display()),
                ));
            }
            self.store.push(Sourced { value: store, origin: origin("store") });
        }
        for mirrors in layer.mirrors.unwrap_or_default() {
            self.check_lock("mirrors", false, &origin, is_site)?;
            self.mirrors.retain(|known| known.value.0 != mirrors.0);
            self.mirrors.push(Sourced { value: mirrors, origin: origin("mirrors") });
        }
        for host in layer.plain_registries.unwrap_or_default() {
            self.check_lock("plain_registries", false, &origin, is_site)?;
            self.plain_registries.push(Sourced { value: host, origin: origin("plain_registries") });
        }
        for ring in layer.keyring.unwrap_or_default() {
            self.check_lock("keyring", false, &origin, is_site)?;
            if !ring.is_absolute() {
                let why = format!("keyring: {} is no absolute path", ring.display());
                return Err(invalid(&origin("keyring"), &why));
            }
            self.keyring.push(Sourced { value: ring, origin: origin("keyring") });
        }
        for named in layer.host_mpis.unwrap_or_default() {
            self.check_lock("host_mpis", false, &origin, is_site)?;
            if !named.library.is_absolute() {
                let why = format!("host_mpis: the library of {:?} is no absolute path", named.name);
                return Err(invalid(&origin("host_mpis"), &why));
            }
            self.host_mpis.push(Sourced { value: named, origin: origin("host_mpis") });
        }
        macro_rules! replace {
            ($($key:ident $wrap:expr;)*) => { $(
                if let Some(value) = layer.$key.map($wrap) {
                    self.check_lock(stringify!($key), value == self.$key.value, &origin, is_site)?;
                    self.$key = Sourced { value, origin: origin(stringify!($key)) };
                }
            )* };
        }
        replace! {
            cdi_directories |v| v;
            clean_env |v| v;
            home |v| v;
            writable_tmpfs |v| v;
            mpi |v| v;
            fabric |v| v;
            gpu |v| v;
            gpu_bind |v| v;
            nic_bind |v| v;
            pmi |v| v;
            host_mpi Some;
            mpi_library Some;
            decisions Some;
            workdir Some;
            squashfuse Some;
            fuse2fs Some;
            image_cache |v| v;
            node_cache Some;
            max_size |v| v.0;
            lock_timeout |v| v;
            require_signature |v| v;
            verbose |v| v;
        }
        Ok(())
    }

    fn check_lock(
        &self,
        key: &str,
        same: bool,
        origin: &dyn Fn(&str) -> Origin,
        is_site: bool,
    ) -> Result<()> {
        match &self.locked {
            Some(locked) if !is_site && !same && locked.value.iter().any(|k| k == key) => Err(Error::new(
                Code::ConfigLocked,
                format!("{} sets {key}, which {} locks", origin(key), locked.origin),
                format!(
                    "leave {key} as the site sets it (`hpc-launch config` shows it), or ask its administrator"
                ),
            )),
            _ => Ok(()),
        }
    }
}

fn invalid(origin: &Origin, why: &str) -> Error {
    Error::new(
        Code::ConfigInvalid,
        format!("{origin}: {why}"),
        format!("keys are: {}, and locked (site's file only)", KEYS.join(", ")),
    )
}

fn read_file(path: &Path) -> Result<Option<FileLayer>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => {
            return Err(Error::new(
                Code::ConfigUnreadable,
                format!("cannot read {}: {e}", path.display()),
                "make the file readable, or remove it",
            ));
        }
    };
    let layer = toml::from_str(&text).map_err(|e| {
        let (line, column) = e.span().map_or((0, 0), |span| place(&text, span.start));
        invalid(
            &Origin::File(path.to_owned()),
            &format!("line {line}, column {column}: {}", e.message().trim_end()),
        )
    })?;
    Ok(Some(layer))
}

/// Line and column, from 1, of a byte offset.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    (line, column)
}

fn variable(key: &str) -> String {
    format!("HPC_LAUNCH_{}", key.to_ascii_uppercase())
}

fn flag(key: &str) -> &'static str {
    match key {
        "binds" => "--bind",
        "devices" => "--device",
        "env" => "--env",
        "unset_env" => "--unset-env",
        "clean_env" => "--clean-env",
        "home" => "--no-home",
        "writable_tmpfs" => "--writable-tmpfs",
        "overlays" => "--overlay",
        "mpi" => "--mpi",
        "fabric" => "--fabric",
        "gpu" => "--gpu",
        "gpu_bind" => "--gpu-bind",
        "nic_bind" => "--nic-bind",
        "pmi" => "--pmi",
        "host_mpi" => "--host-mpi",
        "mpi_library" => "--mpi-library",
        "workdir" => "--workdir",
        "store" => "--store",
        "image_cache" => "--cache",
        "max_size" => "--max-size",
        "require_signature" => "--require-signature",
        _ => "--verbose",
    }
}

/// HPC_LAUNCH_BINDS, _OVERLAYS, _DEVICES, _CDI_DIRECTORIES, _STORE, _PLAIN_REGISTRIES, _KEYRING and _UNSET_ENV are lists separated
/// by commas; there is no variable for `env`: a variable that should be set inside can be set outside.
fn variables(environ: &Environ) -> Result<FileLayer> {
    let list = |key| {
        environ
            .get(&variable(key))
            .map(|v| v.split(',').filter(|s| !s.is_empty()).map(String::from).collect::<Vec<String>>())
    };
    let boolean = |key: &str| match environ.get(&variable(key)).as_deref() {
        None | Some("") => Ok(None),
        Some("1" | "true" | "yes") => Ok(Some(true)),
        Some("0" | "false" | "no") => Ok(Some(false)),
        Some(other) => Err(invalid(
            &Origin::Variable(variable(key)),
            &format!("{other:?} is neither true (1) nor false (0)"),
        )),
    };
    let gpus = environ.get(&variable("gpu")).filter(|text| !text.is_empty());
    let gpus = gpus.map(|text| Gpus::parse(&text)).transpose();
    let gpus = gpus.map_err(|why| invalid(&Origin::Variable(variable("gpu")), &why))?;
    let path = |key| environ.get_os(&variable(key)).filter(|v| !v.is_empty()).map(PathBuf::from);
    let text = |key| environ.get(&variable(key)).filter(|v| !v.is_empty());
    let wrong = |key: &str, why: String| invalid(&Origin::Variable(variable(key)), &why);
    let sizes = text("max_size").map(|t| Size::parse(&t).map_err(|why| wrong("max_size", why)));
    let seconds = text("lock_timeout")
        .map(|t| t.parse().map_err(|_| wrong("lock_timeout", format!("{t:?} is no number of seconds"))));
    Ok(FileLayer {
        binds: list("binds"),
        overlays: list("overlays"),
        devices: list("devices"),
        cdi_directories: list("cdi_directories").map(|all| all.into_iter().map(PathBuf::from).collect()),
        unset_env: list("unset_env"),
        clean_env: boolean("clean_env")?,
        home: boolean("home")?,
        writable_tmpfs: boolean("writable_tmpfs")?,
        verbose: boolean("verbose")?,
        mpi: choice(environ, "mpi", false)?,
        fabric: choice(environ, "fabric", false)?,
        gpu: gpus,
        gpu_bind: choice(environ, "gpu_bind", false)?,
        nic_bind: choice(environ, "nic_bind", false)?,
        pmi: choice(environ, "pmi", true)?,
        host_mpi: environ.get(&variable("host_mpi")).filter(|v| !v.is_empty()),
        mpi_library: path("mpi_library"),
        decisions: path("decisions"),
        workdir: path("workdir"),
        squashfuse: path("squashfuse"),
        fuse2fs: path("fuse2fs"),
        store: list("store").map(|all| all.into_iter().map(PathBuf::from).collect()),
        plain_registries: list("plain_registries"),
        require_signature: boolean("require_signature")?,
        keyring: list("keyring").map(|all| all.into_iter().map(PathBuf::from).collect()),
        image_cache: choice(environ, "image_cache", false)?,
        node_cache: path("node_cache"),
        max_size: sizes.transpose()?,
        lock_timeout: seconds.transpose()?,
        ..FileLayer::default()
    })
}

/// One of the names that a flag of this key takes; `any_case`: capital letters too.
fn choice<T: ValueEnum>(environ: &Environ, key: &str, any_case: bool) -> Result<Option<T>> {
    let Some(text) = environ.get(&variable(key)).filter(|text| !text.is_empty()) else { return Ok(None) };
    T::from_str(&text, any_case).map(Some).map_err(|_| {
        let names =
            T::value_variants().iter().filter_map(|v| Some(v.to_possible_value()?.get_name().to_owned()));
        let names: Vec<String> = names.collect();
        let (last, others) = names.split_last().map_or(("", &[][..]), |(last, others)| (last, others));
        let known = format!("{} and {last}", others.join(", "));
        invalid(&Origin::Variable(variable(key)), &format!("{text:?} is none of {known}"))
    })
}

fn flags(options: &Options) -> Result<FileLayer> {
    let utf8 = |flag: &'static str, v: &std::ffi::OsString| {
        v.to_str()
            .map(String::from)
            .ok_or_else(|| invalid(&Origin::Flag(flag), &format!("{} is not UTF-8", v.display())))
    };
    let mut env = BTreeMap::new();
    for pair in &options.env {
        let pair = utf8("--env", pair)?;
        match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => env.insert(name.to_owned(), value.to_owned()),
            _ => {
                return Err(Error::new(
                    Code::Usage,
                    format!("--env {pair}: there is no NAME=VALUE in it"),
                    "write --env NAME=VALUE; to let a variable of the host in, nothing is needed without --clean-env",
                ));
            }
        };
    }
    Ok(FileLayer {
        binds: Some(options.bind.iter().map(|b| utf8("--bind", b)).collect::<Result<_>>()?),
        devices: Some(options.device.clone()),
        cdi_directories: None,
        env: Some(env),
        unset_env: Some(options.unset_env.clone()),
        clean_env: options.clean_env.then_some(true),
        home: options.no_home.then_some(false),
        writable_tmpfs: options.writable_tmpfs.then_some(true),
        overlays: Some(options.overlay.iter().map(|o| utf8("--overlay", o)).collect::<Result<_>>()?),
        mpi: options.mpi,
        fabric: options.fabric,
        gpu: options.gpu.clone(),
        gpu_bind: options.gpu_bind,
        nic_bind: options.nic_bind,
        pmi: options.pmi,
        host_mpi: options.host_mpi.clone(),
        mpi_library: options.mpi_library.clone(),
        host_mpis: None,
        decisions: None,
        workdir: options.workdir.clone(),
        squashfuse: None,
        fuse2fs: None,
        store: options.store.clone().map(|store| vec![store]),
        image_cache: options.cache,
        node_cache: None,
        max_size: options.max_size,
        lock_timeout: None,
        mirrors: None,
        plain_registries: None,
        require_signature: options.require_signature.then_some(true),
        keyring: None,
        verbose: options.verbose.then_some(true),
        locked: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(text: &str) -> FileLayer {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn later_layers_replace_values_and_add_to_lists() {
        let mut config = Config::built_in();
        let site = |_: &str| Origin::File("/site".into());
        config.apply(layer("binds = ['/scratch']\nhome = false\nmpi = 'image'"), &site, true).unwrap();
        let user = |_: &str| Origin::File("/user".into());
        config.apply(layer("binds = ['/data:/d:ro']\nhome = true"), &user, false).unwrap();
        assert_eq!(
            config.binds.iter().map(|b| b.value.as_str()).collect::<Vec<_>>(),
            ["/scratch", "/data:/d:ro"]
        );
        assert_eq!((config.home.value, config.home.origin.to_string()), (true, "/user".into()));
        assert_eq!((config.mpi.value, config.mpi.origin.to_string()), (MpiMode::Image, "/site".into()));
        assert_eq!(config.verbose.origin, Origin::BuiltIn);
    }

    #[test]
    fn a_locked_key_keeps_its_value_and_says_who_locked_it() {
        let mut config = Config::built_in();
        let site = |_: &str| Origin::File("/site".into());
        config.apply(layer("mpi = 'auto'\nlocked = ['mpi', 'binds']"), &site, true).unwrap();
        let flag = |_: &str| Origin::Flag("--mpi");
        config.apply(layer("mpi = 'auto'"), &flag, false).unwrap();
        let e = config.apply(layer("mpi = 'image'"), &flag, false).unwrap_err();
        assert_eq!(e.code, Code::ConfigLocked);
        assert_eq!(e.what, "--mpi sets mpi, which /site locks");
        assert!(config.apply(layer("binds = ['/x']"), &flag, false).is_err());
        assert!(config.apply(layer("locked = ['env']"), &flag, false).is_err());
    }

    #[test]
    fn what_the_site_wants_signed_nobody_runs_unsigned() {
        let layers = |texts: [&str; 3]| {
            let mut config = Config::built_in();
            for (text, place) in texts.iter().zip(["/site", "/user", "/flags"]) {
                let origin = |_: &str| Origin::File(place.into());
                config.apply(layer(text), &origin, place == "/site")?;
            }
            Ok((config.require_signature.value, config.require_signature.origin.to_string()))
        };
        let (yes, no) = ("require_signature = true", "require_signature = false");
        let found: Result<_> = layers([yes, "", yes]);
        assert_eq!(found.unwrap(), (true, "/flags".into()));
        assert_eq!(layers([no, yes, ""]).unwrap(), (true, "/user".into()));
        assert_eq!(layers(["", yes, no]).unwrap(), (false, "/flags".into()));
        for texts in [[yes, no, ""], [yes, "", no], [yes, yes, no]] {
            let e = layers(texts).unwrap_err();
            assert_eq!(e.code, Code::ConfigLocked);
            assert!(e.what.ends_with(" sets require_signature, which /site locks"), "{}", e.what);
        }
        assert!(layers(["locked = ['require_signature']", yes, ""]).is_err());
    }

    #[test]
    fn a_bad_file_is_named_with_line_and_column() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "home = true\nbinds = 7\n").unwrap();
        let e = read_file(&path).unwrap_err();
        assert!(e.what.contains("c.toml: line 2, column 9: "), "{}", e.what);
        std::fs::write(&path, "hom = true\n").unwrap();
        let e = read_file(&path).unwrap_err();
        assert!(e.what.contains("line 1, column 1") && e.what.contains("hom"), "{}", e.what);
    }

    #[test]
    fn variables_are_checked() {
        let environ = Environ::from_pairs(&[("HPC_LAUNCH_BINDS", "/a,/b:/c"), ("HPC_LAUNCH_HOME", "0")]);
        let layer = variables(&environ).unwrap();
        assert_eq!(layer.binds.unwrap(), ["/a", "/b:/c"]);
        assert_eq!(layer.home, Some(false));
        let e = variables(&Environ::from_pairs(&[("HPC_LAUNCH_HOME", "maybe")])).unwrap_err();
        assert!(e.what.starts_with("HPC_LAUNCH_HOME: \"maybe\""), "{}", e.what);
    }
}

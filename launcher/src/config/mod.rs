//! Settings in layers, each value knowing where it comes from:
//! built-in < /etc/hpc-launch/config.toml < ~/.config/hpc-launch/config.toml < HPC_LAUNCH_* < flags.
//!
//! The site's file may lock keys: `locked = ["mpi"]`, and `require_signature = true` locks itself there. A lower
//! layer that sets a locked key to another value is refused. Lists add up over the layers (but for cdi_directories);
//! the rest is replaced.

mod layer;
mod value;

use std::path::{Path, PathBuf};

use image_store::registry::{Proxies, Settings};
use serde::Serialize;

use self::layer::{FileLayer, KEYS, flag, flags, invalid, read_file, variable, variables};
pub use self::value::{Origin, Size, Sourced};
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

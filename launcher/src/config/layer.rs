//! One layer of settings: what a file, the variables, or the flags say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;

use super::value::{Origin, Size};
use crate::cli::{CacheMode, FabricMode, MpiMode, Options, PmiWay};
use crate::environ::Environ;
use crate::error::{Code, Error, Result};
use crate::gpu::Gpus;
use crate::host::mpi::Named;
use crate::host::place::Bind;

/// A configuration file. Unknown keys are errors: a misspelt key must not be ignored.
#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct FileLayer {
    pub(super) binds: Option<Vec<String>>,
    pub(super) devices: Option<Vec<String>>,
    pub(super) cdi_directories: Option<Vec<PathBuf>>,
    pub(super) env: Option<BTreeMap<String, String>>,
    pub(super) unset_env: Option<Vec<String>>,
    pub(super) clean_env: Option<bool>,
    pub(super) home: Option<bool>,
    pub(super) writable_tmpfs: Option<bool>,
    pub(super) overlays: Option<Vec<String>>,
    pub(super) mpi: Option<MpiMode>,
    pub(super) fabric: Option<FabricMode>,
    pub(super) gpu: Option<Gpus>,
    pub(super) gpu_bind: Option<Bind>,
    pub(super) nic_bind: Option<Bind>,
    pub(super) pmi: Option<PmiWay>,
    pub(super) host_mpi: Option<String>,
    pub(super) mpi_library: Option<PathBuf>,
    pub(super) host_mpis: Option<Vec<Named>>,
    pub(super) decisions: Option<PathBuf>,
    pub(super) workdir: Option<PathBuf>,
    pub(super) squashfuse: Option<PathBuf>,
    pub(super) fuse2fs: Option<PathBuf>,
    pub(super) store: Option<Vec<PathBuf>>,
    pub(super) image_cache: Option<CacheMode>,
    pub(super) node_cache: Option<PathBuf>,
    pub(super) max_size: Option<Size>,
    pub(super) lock_timeout: Option<u64>,
    pub(super) mirrors: Option<BTreeMap<String, Vec<String>>>,
    pub(super) plain_registries: Option<Vec<String>>,
    pub(super) require_signature: Option<bool>,
    pub(super) keyring: Option<Vec<PathBuf>>,
    pub(super) verbose: Option<bool>,
    pub(super) locked: Option<Vec<String>>,
}

/// All keys.
pub const KEYS: &[&str] = &[
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

/// The refusal of a value.
pub fn invalid(origin: &Origin, why: &str) -> Error {
    Error::new(
        Code::ConfigInvalid,
        format!("{origin}: {why}"),
        format!("keys are: {}, and locked (site's file only)", KEYS.join(", ")),
    )
}

/// A file's, if it is there.
pub fn read_file(path: &Path) -> Result<Option<FileLayer>> {
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

/// How the variables of all keys begin.
const PREFIX: &str = "HPC_LAUNCH_";

/// The variable of a key.
pub fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase())
}

/// The flag of a key.
pub fn flag(key: &str) -> &'static str {
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

/// HPC_LAUNCH_BINDS, _OVERLAYS, _DEVICES, _CDI_DIRECTORIES, _STORE, _PLAIN_REGISTRIES, _KEYRING and _UNSET_ENV are lists
/// separated by commas; there is no variable for `env`: a variable that should be set inside can be set outside.
pub fn variables(environ: &Environ) -> Result<FileLayer> {
    if !environ.has_any(PREFIX) {
        return Ok(FileLayer::default());
    }
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

/// What was typed.
pub fn flags(options: &Options) -> Result<FileLayer> {
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

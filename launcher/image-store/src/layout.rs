//! What an OCI image layout or an archive of `docker save` says: which image, for which machine, of which layers.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::blob::Blob;
use crate::error::{Error, Kind, Result};
use crate::layers::Layer;
use crate::members::Files;
use crate::name::Digest;

/// Registries refuse larger manifests (distribution specification, "Pushing manifests").
pub const MAX_MANIFEST: u64 = 4 << 20;
/// A configuration has its image's whole history.
const MAX_CONFIG: u64 = 8 << 20;
/// Indexes in indexes.
const MAX_NESTING: u32 = 4;
/// Docker allows 127.
const MAX_LAYERS: usize = 512;
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// What a descriptor is of.
const MANIFEST: &str = "manifest";
const INDEX: &str = "index";

/// A machine as images name it (GOOS and GOARCH).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// amd64, arm64, ppc64le, …
    pub architecture: String,
    /// linux
    pub os: String,
    /// v8
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

impl Platform {
    /// This machine.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            other => other,
        };
        Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }

    /// Whether an image for this runs on that machine.
    pub fn runs_on(&self, host: &Platform) -> bool {
        self.architecture == host.architecture && (self.os == host.os || self.os.is_empty())
    }

    /// `amd64`, `linux/amd64`, `linux/arm64/v8`.
    pub fn parse(text: &str) -> Platform {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture, variant, ..] => (os, architecture, Some(variant.to_owned())),
            [os, architecture] => (os, architecture, None),
            _ => ("linux", text, None),
        };
        Platform { architecture: architecture.to_owned(), os: os.to_owned(), variant }
    }
}

/// The refusal of an image for another machine.
pub fn wrong_architecture(what: &str, has: &[Platform], wanted: &Platform) -> Error {
    let list: Vec<String> = has.iter().map(Platform::to_string).collect();
    Error::new(
        Kind::Architecture,
        format!(
            "{what} is for {}, and {wanted} is wanted",
            if list.is_empty() { "no machine".to_owned() } else { list.join(", ") }
        ),
        "get or build it for this machine (`docker buildx build --platform`); --platform chooses another of those it has",
    )
}

/// What an image says of how its programs want to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// `NAME=VALUE`.
    #[serde(rename = "Env", deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// What is run, before `cmd` or the user's arguments.
    #[serde(rename = "Entrypoint", deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// What is run, or given to the entry point, if the user says nothing.
    #[serde(rename = "Cmd", deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(
        rename = "WorkingDir",
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub workdir: String,
    /// What its builder says of it.
    #[serde(rename = "Labels", deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Go writes `null` for what is empty.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// An image's configuration (config.md), as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// For which machine.
    #[serde(flatten)]
    pub platform: Platform,
    /// How programs want to run.
    #[serde(deserialize_with = "or_default")]
    pub config: Runtime,
    rootfs: RootFs,
    /// When it was made.
    #[serde(deserialize_with = "or_default")]
    pub created: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    #[serde(deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// One image of a layout.
#[derive(Debug)]
pub struct Found {
    /// Its configuration.
    pub config: Config,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// The digest by which registries know it.
    pub manifest: Option<Digest>,
    /// Its name in the layout.
    pub reference: Option<String>,
}

/// An unpacked layout.
pub struct Directory(pub PathBuf);

impl Files for Directory {
    fn open(&self, path: &str) -> Result<Option<Blob>> {
        let path = self.0.join(path);
        match File::open(&path) {
            Ok(file) => Ok(Some(Blob::whole(file, path)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::reading(&path, &e)),
        }
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

fn json<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::damaged(format!("{what} is not what it should be: {e}")))
}

/// A blob by its digest, which is checked.
fn by_digest(files: &dyn Files, descriptor: &Descriptor, most: u64, what: &str) -> Result<Vec<u8>> {
    let blob = blob(files, descriptor, what)?;
    let bytes = blob.read(most)?;
    let is = Digest::of_bytes(&Sha256::digest(&bytes));
    if is == descriptor.digest {
        return Ok(bytes);
    }
    Err(Error::new(
        Kind::Digest,
        format!("the {what} of {} is {is}, and must be {}", files.name(), descriptor.digest),
        "copy or pull the image again: this is not what was published",
    ))
}

fn blob(files: &dyn Files, descriptor: &Descriptor, what: &str) -> Result<Blob> {
    let path = format!("blobs/sha256/{}", descriptor.digest.hex());
    let found =
        if matches!(what, MANIFEST | INDEX) { files.manifest(&descriptor.digest) } else { files.open(&path) };
    let blob = found?.ok_or_else(|| Error::damaged(format!("{} has no {path}, its {what}", files.name())))?;
    if blob.length == descriptor.size {
        return Ok(blob);
    }
    Err(Error::damaged(format!(
        "{path} of {}, its {what}, has {} bytes and should have {}",
        files.name(),
        blob.length,
        descriptor.size
    )))
}

/// An OCI image layout (image-layout.md): the image of that name, or the only one, for that machine.
pub fn oci(files: &dyn Files, wanted: Option<&str>, platform: &Platform) -> Result<Found> {
    let index = files
        .open("index.json")?
        .ok_or_else(|| Error::damaged(format!("{} has no index.json", files.name())))?;
    let index: Index = json("index.json", &index.read(MAX_MANIFEST)?)?;
    let reference = |d: &Descriptor| d.annotations.get(REFERENCE).cloned();
    let chosen = match (wanted, &index.manifests[..]) {
        (_, []) => {
            return Err(Error::new(
                Kind::Missing,
                format!("{} holds no image", files.name()),
                "build or copy it again",
            ));
        }
        (Some(name), all) => all.iter().filter(|d| reference(d).as_deref() == Some(name)).collect(),
        (None, all) => all.iter().collect::<Vec<_>>(),
    };
    let names = || {
        let mut names: Vec<_> = index.manifests.iter().filter_map(reference).collect();
        names.dedup();
        if names.is_empty() { "none has a name".to_owned() } else { format!("it has {}", names.join(", ")) }
    };
    if chosen.is_empty() {
        let what = format!("{} has no image {:?}: {}", files.name(), wanted.unwrap_or_default(), names());
        return Err(Error::new(Kind::Missing, what, "name one of those behind the path: PATH:NAME"));
    }
    let several: std::collections::BTreeSet<_> = chosen.iter().map(|d| reference(d)).collect();
    if several.len() > 1 {
        let what = format!("{} holds several images: {}", files.name(), names());
        return Err(Error::new(Kind::Name, what, "say which, behind the path: PATH:NAME"));
    }
    let reference = reference(chosen[0]);
    let descriptors: Vec<Descriptor> = chosen.into_iter().cloned().collect();
    let descriptor = choose(files, descriptors, platform, 0)?;
    let bytes = by_digest(files, &descriptor, MAX_MANIFEST, MANIFEST)?;
    let manifest: Manifest = json("the manifest", &bytes)?;
    let config = by_digest(files, &manifest.config, MAX_CONFIG, "configuration")?;
    let config: Config = json("the configuration", &config)?;
    check(files, &config, platform)?;
    let layers = stack(files, &config, &manifest.layers)?;
    Ok(Found { config, layers, manifest: Some(descriptor.digest), reference })
}

/// The manifest for that machine, through indexes.
fn choose(files: &dyn Files, all: Vec<Descriptor>, platform: &Platform, depth: u32) -> Result<Descriptor> {
    if depth > MAX_NESTING {
        return Err(Error::hostile(format!("{}: indexes in more than {MAX_NESTING} indexes", files.name())));
    }
    let is_index =
        |d: &Descriptor| d.media_type.contains("image.index") || d.media_type.contains("manifest.list");
    // What buildkit adds to say how an image was made is for the platform "unknown".
    let real: Vec<&Descriptor> =
        all.iter().filter(|d| d.platform.as_ref().is_none_or(|p| p.architecture != "unknown")).collect();
    let fits = |d: &&&Descriptor| d.platform.as_ref().is_some_and(|p| p.runs_on(platform));
    let chosen = match real.iter().find(fits) {
        Some(chosen) => *chosen,
        // Without a platform in the index it stands in the configuration.
        None => match &real[..] {
            [only] if only.platform.is_none() => *only,
            _ => {
                let has: Vec<Platform> = real.iter().filter_map(|d| d.platform.clone()).collect();
                return Err(wrong_architecture(&files.name(), &has, platform));
            }
        },
    };
    if is_index(chosen) {
        let index: Index = json("an index", &by_digest(files, chosen, MAX_MANIFEST, INDEX)?)?;
        return choose(files, index.manifests, platform, depth + 1);
    }
    Ok(chosen.clone())
}

fn stack(files: &dyn Files, config: &Config, descriptors: &[Descriptor]) -> Result<Vec<Layer>> {
    let diff_ids = &config.rootfs.diff_ids;
    if descriptors.len() > MAX_LAYERS {
        return Err(Error::hostile(format!("{}: an image of {} layers", files.name(), descriptors.len())));
    }
    if diff_ids.len() != descriptors.len() {
        let (a, b) = (descriptors.len(), diff_ids.len());
        return Err(Error::damaged(format!(
            "{}: the manifest has {a} layers, the configuration {b}",
            files.name()
        )));
    }
    let announced: Vec<(Digest, u64)> = descriptors.iter().map(|d| (d.digest.clone(), d.size)).collect();
    files.announce(&announced)?;
    let layer = |(number, (descriptor, diff_id)): (usize, (&Descriptor, &Digest))| {
        if descriptor.media_type.ends_with("+encrypted") {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{}: its layers are encrypted", files.name()),
                "decrypt it with the tool that encrypted it",
            ));
        }
        Ok(Layer {
            blob: blob(files, descriptor, "layer")?,
            name: format!("layer {} of {}", number + 1, files.name()),
            digest: Some(descriptor.digest.clone()),
            diff_id: Some(diff_id.clone()),
        })
    };
    descriptors.iter().zip(diff_ids).enumerate().map(layer).collect()
}

fn check(files: &dyn Files, config: &Config, platform: &Platform) -> Result<()> {
    if config.platform.architecture.is_empty() || config.platform.runs_on(platform) {
        return Ok(());
    }
    Err(wrong_architecture(&files.name(), std::slice::from_ref(&config.platform), platform))
}

/// An archive of `docker save`: manifest.json.
pub fn docker(files: &dyn Files, wanted: Option<&str>, platform: &Platform) -> Result<Found> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        #[serde(default, deserialize_with = "or_default")]
        repo_tags: Vec<String>,
        layers: Vec<String>,
    }
    let manifest = files.open("manifest.json")?;
    let manifest =
        manifest.ok_or_else(|| Error::damaged(format!("{} has no manifest.json", files.name())))?;
    let all: Vec<Saved> = json("manifest.json", &manifest.read(MAX_MANIFEST)?)?;
    let names = || all.iter().flat_map(|s| s.repo_tags.clone()).collect::<Vec<_>>().join(", ");
    let saved = match (wanted, &all[..]) {
        (None, [only]) => only,
        (None, []) => {
            return Err(Error::new(
                Kind::Missing,
                format!("{} holds no image", files.name()),
                "save it again",
            ));
        }
        (None, _) => {
            let what = format!("{} holds several images: {}", files.name(), names());
            return Err(Error::new(Kind::Name, what, "say which, behind the path: PATH:NAME"));
        }
        (Some(name), all) => all.iter().find(|s| s.repo_tags.iter().any(|t| t == name)).ok_or_else(|| {
            let what = format!("{} has no image {name:?}: it has {}", files.name(), names());
            Error::new(Kind::Missing, what, "name one of those behind the path: PATH:NAME")
        })?,
    };
    let open = |path: &str, what: &str| {
        files.open(path)?.ok_or_else(|| Error::damaged(format!("{} has no {path}, its {what}", files.name())))
    };
    let config: Config = json("the configuration", &open(&saved.config, "configuration")?.read(MAX_CONFIG)?)?;
    if saved.layers.len() > MAX_LAYERS || saved.layers.len() != config.rootfs.diff_ids.len() {
        let (a, b) = (saved.layers.len(), config.rootfs.diff_ids.len());
        return Err(Error::damaged(format!(
            "{}: the archive has {a} layers, the configuration {b}",
            files.name()
        )));
    }
    let mut layers = Vec::new();
    for (number, (path, diff_id)) in saved.layers.iter().zip(&config.rootfs.diff_ids).enumerate() {
        layers.push(Layer {
            blob: open(path, "layer")?,
            name: format!("layer {} of {}", number + 1, files.name()),
            digest: None,
            diff_id: Some(diff_id.clone()),
        });
    }
    check(files, &config, platform)?;
    Ok(Found { config, layers, manifest: None, reference: saved.repo_tags.first().cloned() })
}

//! `hpc-launch image`: what users do with stores of images.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use image_store::import::{self, Imported, Progress};
use image_store::layout::Platform;
use image_store::registry::Reference;
use image_store::source::Source;
use image_store::squash::Compressor;
use image_store::store::{ImageRecord, Named, Origin, Store, Stored};
use image_store::{Digest, Name, error::size};
use serde::Serialize;

use super::{nearest, options, own_store, progress, signature, stores, tried};
use crate::cli::Options;
use crate::config::{Config, Size};
use crate::environ::Environ;
use crate::error::{Code, Error, Result};

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Action {
    /// Make an image of a directory, an archive or another image's file, and give it a name
    Import(Import),
    /// Fetch an image from a registry, and give it a name
    Pull(Pull),
    /// Print the images of all stores
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Which stores.
        #[command(flatten)]
        stores: Stores,
    },
    /// Print what an image is and where it came from, as JSON
    Inspect {
        /// Its name, or the digest of its record
        name: String,
        /// Which stores.
        #[command(flatten)]
        stores: Stores,
    },
    /// Read every image and compare it with its digest; exit status 1 if something is wrong
    Verify {
        /// Which stores.
        #[command(flatten)]
        stores: Stores,
    },
    /// Take a name away from an image; `gc` removes images that have none
    Rm {
        /// The names
        #[arg(required = true)]
        names: Vec<String>,
        /// Which stores.
        #[command(flatten)]
        stores: Stores,
    },
    /// Remove images without a name, and what writers that were killed have left
    Gc {
        /// Also images that were made of archives to run them, and those of the last hour
        #[arg(long)]
        all: bool,
        /// Which stores.
        #[command(flatten)]
        stores: Stores,
    },
}

/// Arguments of `import`.
#[derive(Args, Debug)]
pub struct Import {
    /// A directory, a SquashFS, EROFS or SIF file, an archive (tar, docker save, OCI layout); of several images: PATH:NAME
    pub source: PathBuf,
    /// What to call it: NAME or NAME:TAG
    pub name: String,
    /// How to make it.
    #[command(flatten)]
    pub how: How,
}

/// Arguments of `pull`.
#[derive(Args, Debug)]
pub struct Pull {
    /// docker://HOST/REPOSITORY:TAG, or …@sha256:DIGEST; also oci:PATH:NAME
    pub reference: String,
    /// What to call it [default: the repository and the tag]
    pub name: Option<String>,
    /// Speak to this registry without TLS
    #[arg(long)]
    pub plain_http: bool,
    /// How to make it.
    #[command(flatten)]
    pub how: How,
}

/// How to make an image.
#[derive(Args, Debug)]
pub struct How {
    /// How the image is compressed: zstd (small) or lz4 (read faster, larger)
    #[arg(long, value_enum, default_value = "zstd")]
    pub compression: Compression,
    /// For which machine, of those that it is for: amd64, linux/arm64/v8 [default: this one]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// What may come out of it: 500M, 200G [default: 64G]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub max_size: Option<Size>,
    /// Take only a SIF file that is signed with a key of a key ring, and remember whose it is
    #[arg(long)]
    pub require_signature: bool,
    /// Which stores.
    #[command(flatten)]
    pub stores: Stores,
}

impl How {
    fn config(&self, environ: &Environ) -> Result<Config> {
        let Stores { store } = self.stores.clone();
        let (max_size, require_signature) = (self.max_size, self.require_signature);
        Config::load(environ, Some(&Options { store, max_size, require_signature, ..Options::default() }))
    }

    fn options(&self, config: &Config) -> import::Options {
        let compressor = match self.compression {
            Compression::Zstd => Compressor::Zstd,
            Compression::Lz4 => Compressor::Lz4,
        };
        let mut options = options(config, compressor);
        if let Some(platform) = &self.platform {
            options.platform = Platform::parse(platform);
        }
        options
    }
}

/// How images are compressed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Compression {
    /// Zstandard
    Zstd,
    /// LZ4
    Lz4,
}

/// Which stores.
#[derive(Args, Debug, Clone)]
pub struct Stores {
    /// This store, beside the site's [default: ~/.local/share/hpc-launch/images]
    #[arg(long, value_name = "DIR", value_parser = crate::cli::absolute)]
    pub store: Option<PathBuf>,
}

impl Stores {
    fn config(&self, environ: &Environ) -> Result<Config> {
        let options = Options { store: self.store.clone(), ..Options::default() };
        Config::load(environ, Some(&options))
    }
}

/// Does it; answers the exit status.
pub fn run(action: &Action, environ: &Environ) -> Result<u8> {
    match action {
        Action::Import(args) => {
            import(&args.source, &args.name, &args.how, &args.how.config(environ)?, environ)
        }
        Action::Pull(args) => pull(args, &args.how.config(environ)?, environ),
        Action::List { json, stores } => list(&stores.config(environ)?, *json),
        Action::Inspect { name, stores } => inspect(name, &stores.config(environ)?),
        Action::Verify { stores } => verify(&stores.config(environ)?),
        Action::Rm { names, stores } => remove(names, &stores.config(environ)?),
        Action::Gc { all, stores } => collect(*all, &stores.config(environ)?),
    }
}

fn import(path: &Path, name: &str, how: &How, config: &Config, environ: &Environ) -> Result<u8> {
    let name: Name = name.parse()?;
    let source = Source::open(path)?;
    let verified = signature::of_source(&source, config, environ)?;
    let store = own_store(config)?;
    let what = format!("importing {}, {}", path.display(), source.form.name());
    let (progress, options) = (Progress::default(), how.options(config));
    let keep = |stored: &Stored| {
        verified.as_ref().map_or(Ok(()), |verified| store.vouch(stored, verified))?;
        store.name(&name, &stored.id)
    };
    let imported = progress::shown(
        &what,
        &progress,
        &|| (),
        |_| false,
        |waiting| import::import(&source, &store, &options, &progress, waiting, &keep),
    )?;
    named(&name, &imported, &store, config)
}

fn pull(args: &Pull, config: &Config, environ: &Environ) -> Result<u8> {
    if let Some(path) = args.reference.strip_prefix("oci:").or(args.reference.strip_prefix("oci-archive:")) {
        let name = args.name.as_deref().ok_or_else(|| {
            let what = format!("{} says no name for the image", args.reference);
            Error::new(Code::Usage, what, "hpc-launch image pull oci:PATH:NAME NAME[:TAG]")
        })?;
        return import(Path::new(path), name, &args.how, config, environ);
    }
    let reference: Reference = args.reference.parse()?;
    let name: Name = args.name.as_deref().map_or_else(|| Ok(reference.name()), str::parse)?;
    signature::refuse(Path::new(&args.reference), "an image of a registry", config)?;
    let mut registries = config.registries(environ);
    if args.plain_http {
        registries.plain.push(reference.host().to_owned());
    }
    let store = own_store(config)?;
    let what = format!("pulling {reference}");
    let (progress, options) = (Progress::default(), args.how.options(config));
    let keep = |stored: &Stored| store.name(&name, &stored.id);
    let pulled = progress::shown(
        &what,
        &progress,
        &|| (),
        |_| false,
        |waiting| import::pull(&reference, &registries, &store, &options, &progress, waiting, &keep),
    )?;
    named(&name, &pulled, &store, config)
}

/// Says what there is now.
fn named(name: &Name, imported: &Imported, store: &Store, config: &Config) -> Result<u8> {
    for note in &imported.notes {
        eprintln!("hpc-launch: {note}");
    }
    for other in stores(config)?.iter().take_while(|s| s.root != store.root) {
        if other.find(name)?.is_some() {
            eprintln!("hpc-launch: warning: {} has {name} too, and comes first", other.root.display());
        }
    }
    let there = if imported.was_there { ", which was there" } else { "" };
    let Stored { id, record, .. } = &imported.stored;
    crate::print(&format!(
        "{name}: {} ({}){there}, in {}\n",
        id.short(),
        size(record.size),
        store.root.display()
    ))?;
    Ok(0)
}

/// One line of a list.
#[derive(Serialize)]
struct Line {
    name: String,
    id: Digest,
    size: u64,
    platform: String,
    since: u64,
    store: PathBuf,
}

fn list(config: &Config, json: bool) -> Result<u8> {
    let mut lines = Vec::new();
    for store in stores(config)? {
        for (name, Named { image, since }) in store.names()? {
            let record = store.image(&image).map(|s| s.record);
            let (size, platform) = record.map_or((0, "missing".to_owned()), |r| {
                (
                    r.size,
                    if r.platform.architecture.is_empty() { "-".to_owned() } else { r.platform.to_string() },
                )
            });
            lines.push(Line {
                name: name.to_string(),
                id: image,
                size,
                platform,
                since,
                store: store.root.clone(),
            });
        }
    }
    if json {
        return crate::print(&crate::to_json(&lines)?).map(|()| 0);
    }
    let width = lines.iter().map(|l| l.name.len()).max().unwrap_or(0).max(4);
    let mut text = String::new();
    if !lines.is_empty() {
        text.push_str(&format!("{:width$}  {:12}  {:>9}  {:14}  STORE\n", "NAME", "ID", "SIZE", "PLATFORM"));
    }
    for line in &lines {
        let (id, bytes) = (line.id.short(), size(line.size));
        text.push_str(&format!(
            "{:width$}  {id:12}  {bytes:>9}  {:14}  {}\n",
            line.name,
            line.platform,
            line.store.display()
        ));
    }
    crate::print(&text).map(|()| 0)
}

/// The image of that name, or of that id.
fn find(text: &str, config: &Config) -> Result<(Store, Stored)> {
    let all = stores(config)?;
    if let Ok(id) = text.parse::<Digest>() {
        for store in &all {
            if let Ok(stored) = store.image(&id) {
                return Ok((store.clone(), stored));
            }
        }
    } else {
        let name: Name = text.parse()?;
        for store in &all {
            if let Some(stored) = store.find(&name)? {
                return Ok((store.clone(), stored));
            }
        }
        return Err(missing(&name, &all));
    }
    Err(Error::new(
        Code::ImageMissing,
        format!("no store has the image {text}"),
        "`hpc-launch image list` lists all",
    ))
}

fn missing(name: &Name, all: &[Store]) -> Error {
    let what = match &tried(all)[..] {
        "" => format!("there is no image {name}: there is no store yet"),
        tried => format!("there is no image {name} in {tried}"),
    };
    let cure = nearest(name, all).unwrap_or_else(|| {
        "`hpc-launch image list` lists all; `hpc-launch image import` makes one".to_owned()
    });
    Error::new(Code::ImageMissing, what, cure)
}

fn inspect(name: &str, config: &Config) -> Result<u8> {
    #[derive(Serialize)]
    struct Whole<'a> {
        id: &'a Digest,
        store: &'a Path,
        file: PathBuf,
        names: Vec<String>,
        #[serde(flatten)]
        record: &'a ImageRecord,
        origin: Option<Origin>,
    }
    let (store, stored) = find(name, config)?;
    let names = store.names()?.into_iter().filter(|(_, named)| named.image == stored.id);
    let whole = Whole {
        id: &stored.id,
        store: &store.root,
        file: stored.file(),
        names: names.map(|(name, _)| name.to_string()).collect(),
        record: &stored.record,
        origin: stored.origin(),
    };
    crate::print(&crate::to_json(&whole)?).map(|()| 0)
}

fn verify(config: &Config) -> Result<u8> {
    let mut wrong = 0;
    for store in stores(config)? {
        let mut images = 0;
        let findings = store.verify(|_| images += 1)?;
        for finding in &findings {
            eprintln!("hpc-launch: {} {}", finding.path.display(), finding.what);
        }
        wrong += findings.len();
        let left = store.leftovers()?.len();
        let left = if left == 0 {
            String::new()
        } else {
            format!("; {left} leftovers of writers that were killed (gc removes them)")
        };
        crate::print(&format!(
            "{}: {images} images, {} faults{left}\n",
            store.root.display(),
            findings.len()
        ))?;
    }
    if wrong > 0 {
        eprintln!(
            "hpc-launch: remove what is damaged (`hpc-launch image rm NAME`, `hpc-launch image gc --all`), then import or pull it again"
        );
    }
    Ok(u8::from(wrong > 0))
}

fn remove(names: &[String], config: &Config) -> Result<u8> {
    let store = own_store(config)?;
    for text in names {
        let name: Name = text.parse()?;
        if !store.unname(&name)? {
            return Err(missing(&name, std::slice::from_ref(&store)));
        }
        crate::print(&format!("{name} removed; `hpc-launch image gc` frees what nothing names\n"))?;
    }
    Ok(0)
}

fn collect(all: bool, config: &Config) -> Result<u8> {
    let store = own_store(config)?;
    let collected = store.collect(all)?;
    crate::print(&format!(
        "{} images removed ({}), and {} leftovers, from {}\n",
        collected.images.len(),
        size(collected.bytes),
        collected.leftovers,
        store.root.display()
    ))?;
    Ok(0)
}

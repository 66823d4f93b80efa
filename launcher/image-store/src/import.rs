//! From what users have to an image in a store.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::blob::Blob;
use crate::bytes::{copied, room};
use crate::codec::{self, Allowance, Compression, Limited};
use crate::error::{Error, Kind, Result, size};
use crate::layers::{self, Layer, LeftOut, Merge};
use crate::layout::{self, Found, Platform, Runtime};
use crate::members::Members;
use crate::name::Digest;
use crate::registry::{Reference, Remote, Settings};
use crate::sif::Sif;
use crate::source::{Form, Source};
use crate::squash::{self, Compressor, Data};
use crate::store::{ImageRecord, Origin, ROOT_FILE, Store, Stored, Turn, Work, digest_of};
use crate::tree::Tree;
use crate::{bundle, directory, erofs, store};

/// How to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the image is compressed.
    pub compressor: Compressor,
    /// So many bytes may come out of the source.
    pub max_size: u64,
    /// For which machine.
    pub platform: Platform,
    /// How long one who makes the same image may stand still.
    pub patience: Duration,
    /// Who imports: a program and its version.
    pub by: String,
}

/// What may come out of an image unless the user says otherwise.
pub const MAX_SIZE: u64 = 64 << 30;

/// How far an import is; shared with who shows it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes that have been read.
    pub read: Arc<AtomicU64>,
    /// Bytes that will be; 0: nobody knows.
    pub all: Arc<AtomicU64>,
}

impl Progress {
    /// For those who wait.
    fn words(&self) -> String {
        let (read, all) = (self.read.load(Ordering::Relaxed), self.all.load(Ordering::Relaxed));
        if all == 0 { size(read) } else { format!("{} of {}", size(read), size(all)) }
    }
}

/// An image, and whether it had to be made.
#[derive(Debug)]
pub struct Imported {
    /// The image.
    pub stored: Stored,
    /// It was there already.
    pub was_there: bool,
    /// What was left out.
    pub notes: Vec<String>,
}

/// What identifies a source: the same key, the same image.
fn key(source: &Source, options: &Options) -> String {
    let mut hash = Sha256::new();
    let path = fs::canonicalize(&source.path).unwrap_or_else(|_| source.path.clone());
    hash.update(format!(
        "{path:?} {:?} {:?} {:?} {:?}",
        source.reference, source.stamp, options.compressor, options.platform
    ));
    format!("file-{}", Digest::of_bytes(&hash.finalize()).hex())
}

/// What may stand in the way of making an image, for those who wait for it.
pub type Waiting<'a> = &'a mut dyn FnMut(&str);

/// Makes an image of a source, or finds the one that was made of it. `keep` says what to do with the image while nothing
/// collects it: give it a name, say.
pub fn import(
    source: &Source,
    store: &Store,
    options: &Options,
    progress: &Progress,
    waiting: Waiting<'_>,
    keep: &dyn Fn(&Stored) -> Result<()>,
) -> Result<Imported> {
    // A directory changes without its own stamp.
    let key = (source.form != Form::Directory).then(|| key(source, options));
    once(key, store, options, progress, waiting, keep, &|work| make(source, work, options, progress))
}

/// Makes an image of one in a registry, or finds the one that was made of the same manifest.
pub fn pull(
    reference: &Reference,
    settings: &Settings,
    store: &Store,
    options: &Options,
    progress: &Progress,
    waiting: Waiting<'_>,
    keep: &dyn Fn(&Stored) -> Result<()>,
) -> Result<Imported> {
    let remote = Remote::open(reference, settings, store, progress, options.max_size)?;
    let key =
        hashed("manifest", &format!("{} {:?} {:?}", remote.digest, options.compressor, options.platform));
    let last = last_of(reference, options);
    let keep = |stored: &Stored| {
        keep(stored)?;
        store.remember(&last, &stored.id)
    };
    once(Some(key), store, options, progress, waiting, &keep, &|work| {
        let found = layout::oci(&remote, None, &options.platform)?;
        let out = work.path(ROOT_FILE);
        let parts = stack(found, &out, options, progress)?;
        let origin = ("a registry", PathBuf::from(reference.to_string()), Some(reference.wanted()));
        let made = described(parts, origin, &out, options)?;
        remote.forget();
        Ok(made)
    })
}

/// What was last pulled by this reference, without asking its registry.
pub fn pulled(reference: &Reference, store: &Store, options: &Options) -> Option<Stored> {
    store.made_of(&last_of(reference, options))
}

fn last_of(reference: &Reference, options: &Options) -> String {
    hashed("reference", &format!("{reference} {:?}", options.platform))
}

fn hashed(kind: &str, text: &str) -> String {
    format!("{kind}-{}", Digest::of_bytes(&Sha256::digest(text)).hex())
}

/// Finds the image of a key, or makes it while others wait.
fn once(
    key: Option<String>,
    store: &Store,
    options: &Options,
    progress: &Progress,
    waiting: Waiting<'_>,
    keep: &dyn Fn(&Stored) -> Result<()>,
    make: &dyn Fn(&Work) -> Result<Made>,
) -> Result<Imported> {
    let there = || -> Result<Option<Imported>> {
        let _guard = store.publishing();
        let Some(stored) = key.as_deref().and_then(|key| store.made_of(key)) else { return Ok(None) };
        keep(&stored)?;
        Ok(Some(Imported { stored, was_there: true, notes: Vec::new() }))
    };
    if let Some(there) = there()? {
        return Ok(there);
    }
    let turn = key.as_deref().map(|key| store.turn(key, options.patience, waiting)).transpose()?;
    if let Some(there) = there()? {
        return Ok(there);
    }
    let work = store.work()?;
    let _teller = match turn {
        Some(Turn::Ours(held)) => Some(Teller::start(held, progress.clone())),
        _ => None,
    };
    let made = make(&work)?;
    let _guard = store.publishing();
    let stored = store.publish(&work, &made.record, &made.origin)?;
    keep(&stored)?;
    if let Some(key) = &key {
        store.remember(key, &stored.id)?;
    }
    Ok(Imported { stored, was_there: false, notes: made.origin.notes })
}

/// Tells those who wait how far it is, until it is dropped.
struct Teller {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Teller {
    fn start(mut held: store::Held, progress: Progress) -> Teller {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let tell = move || {
            while stopped.recv_timeout(Duration::from_millis(500))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                held.tell(&progress.words());
            }
        };
        Teller { stop: Some(stop), thread: std::thread::Builder::new().spawn(tell).ok() }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An image's file in a work directory, and what it is.
struct Made {
    record: ImageRecord,
    origin: Origin,
}

/// What was found in a source.
struct Parts {
    platform: Platform,
    config: Runtime,
    manifest: Option<Digest>,
    reference: Option<String>,
    created: String,
    notes: Vec<String>,
    unpacked: u64,
}

impl Parts {
    fn plain() -> Parts {
        Parts {
            platform: Platform::default(),
            config: Runtime::default(),
            manifest: None,
            reference: None,
            created: String::new(),
            notes: Vec::new(),
            unpacked: 0,
        }
    }
}

fn make(source: &Source, work: &Work, options: &Options, progress: &Progress) -> Result<Made> {
    let out = work.path(ROOT_FILE);
    let open = || File::open(&source.path).map_err(|e| Error::reading(&source.path, &e));
    let parts = match source.form {
        Form::Directory => {
            let run = |with: &mut Merge<'_>| directory::read(&source.path, with);
            let (unpacked, mut notes) = write(&out, options, progress, run)?;
            let root = fs::canonicalize(&source.path).unwrap_or_else(|_| source.path.clone());
            let config = bundle::beside(&root).unwrap_or_else(|note| {
                notes.push(note);
                None
            });
            Parts { unpacked, notes, config: config.unwrap_or_default(), ..Parts::plain() }
        }
        Form::Squashfs => {
            let blob = Blob::whole(open()?, source.path.clone())?;
            copy(&blob, &out, progress)?;
            Parts { unpacked: blob.length, ..Parts::plain() }
        }
        Form::Sif => {
            let file = open()?;
            let sif = Sif::read(&file, &source.path)?;
            if !sif.platform.runs_on(&options.platform) {
                let what = source.path.display().to_string();
                return Err(layout::wrong_architecture(&what, &[sif.platform], &options.platform));
            }
            let blob = Blob::whole(file, source.path.clone())?.part(sif.offset, sif.length);
            copy(&blob, &out, progress)?;
            let config = Runtime { labels: sif.labels, ..Runtime::default() };
            Parts { platform: sif.platform, config, unpacked: sif.length, ..Parts::plain() }
        }
        Form::Erofs => {
            let blob = Blob::whole(open()?, source.path.clone())?;
            progress.all.store(blob.length, Ordering::Relaxed);
            let (unpacked, notes) = write(&out, options, progress, |with| erofs::read(&blob, with))?;
            Parts { unpacked, notes, ..Parts::plain() }
        }
        Form::OciDirectory => {
            let files = layout::Directory(source.path.clone());
            let found = layout::oci(&files, source.reference.as_deref(), &options.platform)?;
            stack(found, &out, options, progress)?
        }
        Form::Tar => {
            let blob = Blob::whole(open()?, source.path.clone())?;
            archive(source, blob, work, &out, options, progress)?
        }
    };
    let from = fs::canonicalize(&source.path).unwrap_or_else(|_| source.path.clone());
    let reference = parts.reference.clone();
    described(parts, (source.form.name(), from, reference), &out, options)
}

/// What has been written, and where it came from: the kind of source, its place, its name there.
fn described(
    parts: Parts,
    (form, from, reference): (&str, PathBuf, Option<String>),
    out: &Path,
    options: &Options,
) -> Result<Made> {
    let length = fs::metadata(out).map_err(|e| Error::reading(out, &e))?.len();
    let record = ImageRecord {
        squashfs: digest_of(out)?,
        size: length,
        platform: parts.platform,
        config: parts.config,
    };
    let origin = Origin {
        form: form.to_owned(),
        from,
        reference,
        manifest: parts.manifest,
        created: parts.created,
        imported: std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
        by: options.by.clone(),
        unpacked: parts.unpacked,
        notes: parts.notes,
        signed_by: Vec::new(),
    };
    Ok(Made { record, origin })
}

/// A tar archive: of a root file system, or of an image's parts.
fn archive(
    source: &Source,
    blob: Blob,
    work: &Work,
    out: &Path,
    options: &Options,
    progress: &Progress,
) -> Result<Parts> {
    let of = |e: Error| e.of(source.path.display());
    let compression = layers::compression(&blob)?;
    let is_parts = compression == Compression::None || looks_like_parts(&blob).map_err(of)?;
    let (members, blob) = if is_parts {
        let blob =
            if compression == Compression::None { blob } else { unpacked(&blob, work, options, progress)? };
        (Members::of(&blob).map_err(of)?, blob)
    } else {
        (None, blob)
    };
    if let Some(members) = members {
        let (wanted, platform) = (source.reference.as_deref(), &options.platform);
        // `docker save` of today writes both; manifest.json has the names that users know.
        use crate::members::Files;
        let found = if members.open("manifest.json")?.is_some() {
            layout::docker(&members, wanted, platform)?
        } else {
            layout::oci(&members, wanted, platform)?
        };
        return stack(found, out, options, progress);
    }
    if let Some(name) = &source.reference {
        let what = format!(
            "{} is the archive of one root file system, and {name:?} was asked for",
            source.path.display()
        );
        return Err(Error::new(Kind::Missing, what, "leave the name away"));
    }
    progress.all.store(blob.length, Ordering::Relaxed);
    let layer = Layer { name: source.path.display().to_string(), blob, digest: None, diff_id: None };
    let run = |with: &mut Merge<'_>| {
        let (mut tree, left_out) = layers::merge(std::slice::from_ref(&layer), with)?;
        tree.strip();
        if tree.is_empty() {
            let what = format!("{} is an empty archive", source.path.display());
            return Err(Error::new(Kind::Unknown, what, crate::source::KNOWN));
        }
        Ok((tree, left_out))
    };
    let (unpacked, notes) = write(out, options, progress, run)?;
    Ok(Parts { unpacked, notes, ..Parts::plain() })
}

/// Whether a compressed archive begins as one of an image's parts does.
fn looks_like_parts(blob: &Blob) -> Result<bool> {
    let (_, decoder) = codec::decoder(blob.reader())?;
    let mut head = Vec::new();
    decoder.take(1 << 20).read_to_end(&mut head).map_err(codec::error)?;
    // Cut where it is cut: what can be read so far tells.
    let mut reader = crate::tar::Reader::new(&head[..]);
    let mut seen = false;
    while let Ok(Some(entry)) = reader.next_entry() {
        let path = crate::tree::parts(&entry.path)?.join(&b'/');
        if path.is_empty() {
            continue;
        }
        if !crate::members::belongs(&String::from_utf8_lossy(&path)) {
            return Ok(false);
        }
        seen = true;
    }
    Ok(seen)
}

/// What a compressed archive holds, as a file without a name.
fn unpacked(blob: &Blob, work: &Work, options: &Options, progress: &Progress) -> Result<Blob> {
    let path = work.path("archive.tar");
    let failed = |e: io::Error| Error::writing(&path, &e);
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    fs::remove_file(&path).map_err(failed)?;
    progress.all.store(blob.length, Ordering::Relaxed);
    let (_, decoder) = codec::decoder(blob.reader())?;
    let mut decoder = Limited::new(decoder, Allowance::new(options.max_size));
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = decoder.read(&mut buffer).map_err(codec::error)?;
        if n == 0 {
            return Blob::whole(file, blob.path.clone());
        }
        io::Write::write_all(&mut file, &buffer[..n]).map_err(failed)?;
    }
}

/// Layers and a configuration.
fn stack(found: Found, out: &Path, options: &Options, progress: &Progress) -> Result<Parts> {
    let all: u64 = found.layers.iter().map(|l| l.blob.length).sum();
    progress.read.store(0, Ordering::Relaxed);
    progress.all.store(all, Ordering::Relaxed);
    let (unpacked, notes) = write(out, options, progress, |with| layers::merge(&found.layers, with))?;
    Ok(Parts {
        platform: found.config.platform,
        config: found.config.config,
        manifest: found.manifest,
        reference: found.reference,
        created: found.config.created,
        notes,
        unpacked,
    })
}

/// Writes a SquashFS of what `run` yields. Answers how much came out of the source, and what was left out.
fn write(
    out: &Path,
    options: &Options,
    progress: &Progress,
    run: impl FnOnce(&mut Merge<'_>) -> Result<(Tree, LeftOut)>,
) -> Result<(u64, Vec<String>)> {
    // An image is about as long as its compressed layers; of an archive that is not compressed a third remains.
    room(out, progress.all.load(Ordering::Relaxed) / 3)?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(out)
        .map_err(|e| Error::writing(out, &e))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut data = Data::new(file, out, options.compressor, threads)?;
    let allowance = Allowance::new(options.max_size);
    let mut with = Merge { data: &mut data, allowance: allowance.clone(), read: Arc::clone(&progress.read) };
    let (tree, left_out) = run(&mut with)?;
    // The newest of its files: the same source makes the same bytes.
    let (file, _) = squash::finish(&tree, data, tree.newest())?;
    file.sync_all().map_err(|e| Error::writing(out, &e))?;
    Ok((allowance.taken(), left_out.notes()))
}

/// A SquashFS as it is.
fn copy(blob: &Blob, out: &Path, progress: &Progress) -> Result<()> {
    squash::check(blob)?;
    room(out, blob.length)?;
    let file = copied(blob, out, progress)?;
    file.sync_all().map_err(|e| Error::writing(out, &e))
}

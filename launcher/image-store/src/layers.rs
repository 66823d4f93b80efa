//! A stack of layers merged into one tree, by the rules of the OCI image specification (layer.md).
//!
//! Layers are read from the top down: what an upper one replaces is not even compressed. Their changes are applied from
//! the bottom up, as the specification has them. Whether a file is hidden is told by its path alone while reading; if
//! links make that wrong, the few files that are needed after all are read in a second pass.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use crate::blob::{Blob, BlobReader};
use crate::bytes::hash_rest;
use crate::changes::{Above, Change, Log};
use crate::codec::{self, Allowance, Compression, Limited};
use crate::error::{Error, Kind, Result};
use crate::name::Digest;
use crate::squash::Data;
use crate::tar::{Entry, Piece, Reader, What};
use crate::tree::{Id, Meta, Node, Tree, Xattrs, parts};

/// Entries of one image. Four times the largest that is known (a whole Spack tree).
pub(crate) const MAX_ENTRIES: u64 = 8_000_000;
/// What is read ahead of the archive's reader: so many pieces of 256 KiB.
const AHEAD: usize = 8;
const PIECE: usize = 256 << 10;
/// layer.md, "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// One layer, and what it must be.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its bytes, compressed or not.
    pub blob: Blob,
    /// What to call it.
    pub name: String,
    /// Of the blob.
    pub digest: Option<Digest>,
    /// Of what comes out of it.
    pub diff_id: Option<Digest>,
}

impl Layer {
    /// Why it cannot be read: if it is not what was published, that.
    fn reason(&self, e: Error) -> Error {
        let Some(must) = self.digest.as_ref().filter(|_| matches!(e.kind, Kind::Damaged | Kind::Hostile))
        else {
            return e;
        };
        let mut hash = Sha256::new();
        if hash_rest(&mut self.blob.reader(), &mut hash).is_err() {
            return e;
        }
        mismatch("the layer's digest", &Digest::of_bytes(&hash.finalize()), must).unwrap_or(e)
    }
}

/// The refusal, if a digest is not what it must be.
fn mismatch(what: &str, is: &Digest, must: &Digest) -> Option<Error> {
    let cure = "copy or pull the image again: this is not what was published";
    (is != must).then(|| Error::new(Kind::Digest, format!("{what} is {is}, and must be {must}"), cure))
}

/// What was left out of an image, and why it is no loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Device nodes: no sandbox could open them, and the host's /dev is there.
    pub devices: u64,
    /// Set-id bits: no sandbox honours them.
    pub set_ids: u64,
    /// Extended attributes that only a system's administrator may set.
    pub attributes: u64,
}

impl LeftOut {
    /// For people.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut say = |n: u64, what: &str| {
            if n > 0 {
                notes.push(format!("{n} {what}"));
            }
        };
        say(self.devices, "device nodes left out: programs see the host's /dev");
        say(self.set_ids, "set-uid or set-gid bits dropped: containers give no privileges");
        say(self.attributes, "privileged extended attributes left out");
        notes
    }

    /// What may be kept of an entry's mode.
    pub fn mode(&mut self, mode: u16, is_directory: bool) -> u16 {
        // A directory's set-gid bit gives no rights.
        let kept = if is_directory { 0o3777 } else { 0o1777 };
        if mode & 0o6000 & !kept != 0 {
            self.set_ids += 1;
        }
        mode & kept
    }

    /// What may be kept of its attributes. Those of overlay mounts would change what a sandbox shows.
    pub fn xattrs(&mut self, xattrs: Xattrs) -> Option<Box<Xattrs>> {
        let all = xattrs.len();
        let is_kept = |name: &[u8]| name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        let kept: BTreeMap<_, _> = xattrs.into_iter().filter(|(name, _)| is_kept(name)).collect();
        self.attributes += (all - kept.len()) as u64;
        (!kept.is_empty()).then(|| Box::new(kept.into_iter().collect()))
    }
}

/// What merging is done with.
pub struct Merge<'a> {
    /// Where data go.
    pub data: &'a mut Data,
    /// How much may come out of the layers.
    pub allowance: Allowance,
    /// Bytes of the blobs that have been read, for who shows it.
    pub read: Arc<AtomicU64>,
}

/// Merges layers, the lowest first.
pub fn merge(layers: &[Layer], with: &mut Merge<'_>) -> Result<(Tree, LeftOut)> {
    let mut left_out = LeftOut::default();
    let mut above = Above::default();
    let mut entries = MAX_ENTRIES;
    let mut logs = Vec::new();
    let mut applied = Applied::default();
    for (at, layer) in layers.iter().enumerate().rev() {
        let keep = |_: usize, path: &[u8]| !above.hides(path);
        let mut log = Log::default();
        // Below the lowest is nothing: it is applied as it is read.
        let mut take = |number: usize, change: Change<'_>| match at {
            0 => applied.entry(0, number, change),
            _ => log.push(&change),
        };
        read(layer, with, &mut left_out, &mut entries, &keep, &mut take, true)
            .map_err(|e| layer.reason(e).of(&layer.name))?;
        above.add(&log);
        logs.push(log);
    }
    drop(above);
    // The lowest's is empty.
    logs.pop();
    for (at, layer) in layers.iter().enumerate().skip(1) {
        let log = logs.pop().unwrap_or_default();
        applied.layer(at, &log).map_err(|e| e.of(&layer.name))?;
    }
    let Applied { mut tree, lacking } = applied;
    // Files that are there, and whose data are not.
    let names = tree.names();
    let mut wanted: BTreeMap<usize, BTreeMap<usize, Id>> = BTreeMap::new();
    for (id, layer, number) in lacking {
        if names[id as usize] > 0 {
            wanted.entry(layer).or_default().insert(number, id);
        }
    }
    drop(names);
    for (layer, wanted) in wanted {
        let layer = &layers[layer];
        let keep = |number: usize, _: &[u8]| wanted.contains_key(&number);
        let mut take = |number: usize, change: Change<'_>| {
            if let (Some(id), Change::Put(_, _, Node::File(data))) = (wanted.get(&number), change) {
                tree.set_file(*id, data);
            }
            Ok(())
        };
        // They were counted when they were first read.
        let mut entries = MAX_ENTRIES;
        read(layer, with, &mut LeftOut::default(), &mut entries, &keep, &mut take, false)
            .map_err(|e| e.of(&layer.name))?;
    }
    Ok((tree, left_out))
}

/// Layers applied so far.
#[derive(Default)]
struct Applied {
    tree: Tree,
    /// Files without data: which change of which layer each is.
    lacking: Vec<(Id, usize, usize)>,
}

impl Applied {
    fn layer(&mut self, layer: usize, log: &Log) -> Result<()> {
        // Whiteouts are for what lies below, wherever they stand in the archive.
        let mut changes = log.replay();
        while let Some(change) = changes.next_change() {
            match change {
                Change::Whiteout(path) => self.tree.remove(&parts(path)?)?,
                Change::Opaque(path) => self.tree.clear(&parts(path)?)?,
                Change::Put(..) | Change::Link(..) => {}
            }
        }
        let (mut changes, mut number) = (log.replay(), 0);
        while let Some(change) = changes.next_change() {
            self.entry(layer, number, change)?;
            number += 1;
        }
        Ok(())
    }

    fn entry(&mut self, layer: usize, number: usize, change: Change<'_>) -> Result<()> {
        match change {
            Change::Whiteout(_) | Change::Opaque(_) => {}
            Change::Put(path, meta, node) => {
                let lacks = node == Node::File(u32::MAX);
                let id = self.tree.put(&parts(path)?, meta, node)?;
                if lacks {
                    self.lacking.push((id, layer, number));
                }
            }
            Change::Link(path, target) => {
                self.tree.link(&parts(path)?, &parts(target)?)?;
            }
        }
        Ok(())
    }
}

/// Reads a layer to its end, and checks that it is what it must be. Files that are not kept are numbered MAX.
fn read(
    layer: &Layer,
    with: &mut Merge<'_>,
    left_out: &mut LeftOut,
    entries: &mut u64,
    keep: &dyn Fn(usize, &[u8]) -> bool,
    take: &mut dyn FnMut(usize, Change<'_>) -> Result<()>,
    count: bool,
) -> Result<()> {
    let (pieces, taken) = sync_channel::<io::Result<Vec<u8>>>(AHEAD);
    let raw = Raw {
        inner: layer.blob.reader(),
        hash: layer.digest.as_ref().map(|_| Sha256::new()),
        read: Arc::clone(&with.read),
    };
    thread::scope(|scope| {
        let decoding = thread::Builder::new().spawn_scoped(scope, move || decode(raw, &pieces));
        let decoding = decoding
            .map_err(|e| Error::new(Kind::Io, format!("cannot start a thread: {e}"), "see ulimit -u"))?;
        let hash = layer.diff_id.as_ref().map(|_| Sha256::new());
        let mut stream = Stream { taken, piece: Vec::new(), at: 0, hash };
        // A second look takes nothing more of the allowance.
        let allowance = if count { with.allowance.clone() } else { Allowance::new(u64::MAX) };
        let mut reader = Reader::new(Limited::new(&mut stream, allowance.clone()));
        let mut number = 0;
        while let Some(entry) = reader.next_entry()? {
            *entries = entries.checked_sub(1).ok_or_else(too_many)?;
            let is_kept = |path: &[u8]| keep(number, path);
            let mut take = |change: Change<'_>| take(number, change);
            let taken = change(entry, &mut reader, with.data, left_out, &allowance, &is_kept, &mut take)?;
            number += usize::from(taken);
        }
        let mut rest = reader.into_inner();
        io::copy(&mut rest, &mut io::sink()).map_err(codec::error)?;
        let hash = stream.hash.take();
        drop(stream);
        let ended =
            |_| Error::new(Kind::Io, "a thread that decompresses has ended", "look for a limit of memory");
        let blob_hash = decoding.join().map_err(ended)?.map_err(codec::error)?;
        let check = |what: &str, is: Option<Vec<u8>>, must: &Option<Digest>| match (is, must) {
            (Some(is), Some(must)) => mismatch(what, &Digest::of_bytes(&is), must).map_or(Ok(()), Err),
            _ => Ok(()),
        };
        check("the layer's digest", blob_hash, &layer.digest)?;
        check("the digest of the layer's archive", hash.map(|h| h.finalize().to_vec()), &layer.diff_id)?;
        Ok(())
    })
}

/// The refusal of more.
pub(crate) fn too_many() -> Error {
    Error::new(Kind::TooLarge, format!("the image has more than {MAX_ENTRIES} entries"), "split it")
}

/// Takes one entry in; whether it changes anything.
fn change<R: Read>(
    entry: Entry,
    reader: &mut Reader<R>,
    data: &mut Data,
    left_out: &mut LeftOut,
    allowance: &Allowance,
    keep: &dyn Fn(&[u8]) -> bool,
    take: &mut dyn FnMut(Change<'_>) -> Result<()>,
) -> Result<bool> {
    let parts = parts(&entry.path)?;
    let path = parts.join(&b'/');
    if let Some((name, above)) = parts.split_last()
        && name.starts_with(WHITEOUT)
    {
        let mut above = above.join(&b'/');
        if *name == OPAQUE {
            take(Change::Opaque(&above))?;
        } else if name.starts_with(b".wh..wh.") {
            return Ok(false);
        } else {
            let hidden = &name[WHITEOUT.len()..];
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(Error::hostile(format!(
                    "the whiteout {:?} of nothing",
                    String::from_utf8_lossy(&path)
                )));
            }
            if !above.is_empty() {
                above.push(b'/');
            }
            above.extend_from_slice(hidden);
            take(Change::Whiteout(&above))?;
        }
        return Ok(true);
    }
    let is_directory = entry.what == What::Directory;
    let node = match &entry.what {
        What::Directory => Node::Directory,
        What::Symlink(to) => Node::Symlink(to),
        What::Fifo => Node::Fifo,
        // Holes come from nowhere, and count as what they are.
        What::File if keep(&path) => Node::File(content(reader, data, allowance)?),
        What::File => Node::File(u32::MAX),
        What::Link(target) => {
            let target = crate::tree::parts(target)?.join(&b'/');
            return take(Change::Link(&path, &target)).map(|()| true);
        }
        What::Character(..) | What::Block(..) => {
            left_out.devices += 1;
            // What it replaces is gone.
            return take(Change::Whiteout(&path)).map(|()| true);
        }
    };
    let meta = Meta {
        mode: left_out.mode(entry.mode, is_directory),
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: left_out.xattrs(entry.xattrs),
    };
    take(Change::Put(&path, meta, node)).map(|()| true)
}

fn content<R: Read>(reader: &mut Reader<R>, data: &mut Data, allowance: &Allowance) -> Result<u32> {
    reader.content(|piece| match piece {
        Piece::Data(bytes) => data.write(bytes),
        Piece::Hole(zeros) => {
            allowance.take(zeros)?;
            data.hole(zeros)
        }
    })?;
    data.end()
}

/// Decompresses, in a thread of its own, to the blob's end. Answers the blob's hash, if it is wanted.
fn decode(mut raw: Raw, pieces: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<Option<Vec<u8>>> {
    if let Err(e) = decompress(&mut raw, pieces) {
        let _ = pieces.send(Err(e));
        return Ok(None);
    }
    // Decoders stop at their stream's end.
    io::copy(&mut raw, &mut io::sink())?;
    Ok(raw.hash.map(|h| h.finalize().to_vec()))
}

fn decompress(raw: &mut Raw, pieces: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<()> {
    let (_, mut decoder) = codec::decoder(raw).map_err(io::Error::other)?;
    loop {
        let mut piece = vec![0; PIECE];
        let mut have = 0;
        while have < PIECE {
            match decoder.read(&mut piece[have..]) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        piece.truncate(have);
        if have == 0 || pieces.send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}

/// A blob being read: hashed and counted.
struct Raw {
    inner: BlobReader,
    hash: Option<Sha256>,
    read: Arc<AtomicU64>,
}

impl Read for Raw {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&into[..n]);
        }
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// What the decompressing thread sends.
struct Stream {
    taken: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
    hash: Option<Sha256>,
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.taken.recv() {
                Err(_) => return Ok(0),
                Ok(Err(e)) => return Err(e),
                Ok(Ok(piece)) => {
                    self.piece = piece;
                    self.at = 0;
                    if let Some(hash) = &mut self.hash {
                        hash.update(&self.piece);
                    }
                }
            }
        }
        let n = into.len().min(self.piece.len() - self.at);
        into[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// How an archive of one layer is compressed.
pub fn compression(blob: &Blob) -> Result<Compression> {
    let mut head = [0u8; 6];
    let want = head.len().min(blob.length as usize);
    blob.file.read_exact_at(&mut head[..want], blob.offset).map_err(|e| Error::reading(&blob.path, &e))?;
    Ok(Compression::of(&head[..want]))
}

//! What files hold: cut into blocks, compressed by as many threads as there are processors, written in order.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::{BLOCK, Compressor, Packer, SUPERBLOCK};
use crate::error::{Error, Kind, Result};

/// More of them gain nothing: one thread reads.
const MAX_THREADS: usize = 16;
/// In a block's size: it is not compressed (SQUASHFS_COMPRESSED_BIT_BLOCK).
pub const STORED: u32 = 1 << 24;

/// Where a file's data are: in blocks of its own, or all of them in a fragment.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Its length.
    pub size: u64,
    /// The first of its blocks, or its fragment, by number.
    first: u32,
    /// Where in the fragment it is.
    offset: u32,
}

/// Not in a fragment.
const WHOLE: u32 = u32::MAX;

impl Held {
    /// Its blocks, by number.
    pub fn blocks(&self) -> Range<usize> {
        let first = self.first as usize;
        let count = if self.offset == WHOLE { self.size.div_ceil(BLOCK as u64) as usize } else { 0 };
        first..first + count
    }

    /// The fragment that holds all of it, by number, and where in that.
    pub fn fragment(&self) -> Option<(u32, u32)> {
        (self.offset != WHOLE).then_some((self.first, self.offset))
    }
}

/// The file that is being taken.
#[derive(Clone, Copy, Debug, Default)]
struct Current {
    size: u64,
    first: u32,
    blocks: u32,
    /// Bytes of its blocks that are not stored, being zero.
    sparse: u64,
}

/// A block on its way.
enum Job {
    Pack(u32, Vec<u8>),
    Zero(u32),
}

/// Blocks as they were written.
pub struct Written {
    /// The file, behind the last block.
    pub file: BufWriter<File>,
    /// Where the file is, for messages.
    pub path: PathBuf,
    /// Of each block: where it is, and its size as inodes have it.
    pub blocks: Vec<(u64, u32)>,
    /// The end of the last.
    pub end: u64,
}

/// Everything that was written: the blocks, and which of them are whose.
pub struct Finished {
    /// The blocks.
    pub written: Written,
    /// Files, by number.
    pub held: Vec<Held>,
    /// Bytes of a file's blocks that are not stored, being zero, by its number.
    pub sparse: HashMap<u32, u64>,
    /// Blocks that are fragments, by number.
    pub fragments: Vec<u32>,
    /// How it is compressed.
    pub compressor: Compressor,
}

/// Takes what files hold.
pub struct Data {
    compressor: Compressor,
    held: Vec<Held>,
    sparse: HashMap<u32, u64>,
    fragments: Vec<u32>,
    /// The fragment that is being filled.
    tail: Vec<u8>,
    /// The block that is being filled.
    block: Vec<u8>,
    current: Current,
    next: u32,
    jobs: Option<SyncSender<Job>>,
    workers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<Result<Written>>>,
}

/// A block that a worker has done.
type Done = io::Result<(u32, Vec<u8>, u32)>;

impl Data {
    /// Into an empty file.
    pub fn new(file: File, path: &Path, compressor: Compressor, threads: usize) -> Result<Data> {
        let threads = threads.clamp(1, MAX_THREADS);
        let (jobs, taken) = sync_channel::<Job>(threads);
        let taken = Arc::new(Mutex::new(taken));
        let (done, results) = sync_channel::<Done>(2 * threads);
        let failed =
            |e: io::Error| Error::new(Kind::Io, format!("cannot start a thread: {e}"), "see ulimit -u");
        let workers = (0..threads)
            .map(|_| {
                let (taken, done) = (Arc::clone(&taken), done.clone());
                thread::Builder::new().spawn(move || work(&taken, &done, compressor)).map_err(failed)
            })
            .collect::<Result<Vec<_>>>()?;
        drop(done);
        let path = path.to_owned();
        let writer =
            thread::Builder::new().spawn(move || write(file, path, &results, compressor)).map_err(failed)?;
        Ok(Data {
            compressor,
            held: Vec::new(),
            sparse: HashMap::new(),
            fragments: Vec::new(),
            tail: Vec::with_capacity(BLOCK),
            block: Vec::with_capacity(BLOCK),
            current: Current::default(),
            next: 0,
            jobs: Some(jobs),
            workers,
            writer: Some(writer),
        })
    }

    /// More of the present file.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.current.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let n = bytes.len().min(BLOCK - self.block.len());
            self.block.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.block.len() == BLOCK {
                self.cut()?;
            }
        }
        Ok(())
    }

    /// Zeros of the present file.
    pub fn hole(&mut self, mut zeros: u64) -> Result<()> {
        self.current.size += zeros;
        while zeros > 0 {
            let n = zeros.min((BLOCK - self.block.len()) as u64);
            if n == BLOCK as u64 {
                self.zero()?;
            } else {
                self.block.resize(self.block.len() + n as usize, 0);
                if self.block.len() == BLOCK {
                    self.cut()?;
                }
            }
            zeros -= n;
        }
        Ok(())
    }

    /// Ends the present file; its number.
    pub fn end(&mut self) -> Result<u32> {
        let mut held = Held { size: self.current.size, first: self.current.first, offset: WHOLE };
        if !self.block.is_empty() {
            if self.current.blocks > 0 {
                // As mksquashfs: only small files share blocks, so that reading a large one's end reads nothing else.
                self.cut()?;
            } else {
                if self.tail.len() + self.block.len() > BLOCK {
                    self.cut_tail()?;
                }
                held.first = u32::try_from(self.fragments.len()).map_err(|_| too_many())?;
                held.offset = self.tail.len() as u32;
                self.tail.append(&mut self.block);
            }
        }
        let number = u32::try_from(self.held.len()).map_err(|_| too_many())?;
        let current = std::mem::take(&mut self.current);
        if current.sparse > 0 {
            self.sparse.insert(number, current.sparse);
        }
        self.held.push(held);
        self.block.clear();
        Ok(number)
    }

    /// The present block goes to a worker.
    fn cut(&mut self) -> Result<()> {
        if self.block.len() == BLOCK && is_zero(&self.block) {
            self.block.clear();
            return self.zero();
        }
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let number = self.number()?;
        self.send(Job::Pack(number, block))?;
        self.count(number);
        Ok(())
    }

    fn zero(&mut self) -> Result<()> {
        let number = self.number()?;
        self.send(Job::Zero(number))?;
        self.count(number);
        self.current.sparse += BLOCK as u64;
        Ok(())
    }

    fn count(&mut self, number: u32) {
        if self.current.blocks == 0 {
            self.current.first = number;
        }
        self.current.blocks += 1;
    }

    fn cut_tail(&mut self) -> Result<()> {
        if self.tail.is_empty() {
            return Ok(());
        }
        let tail = std::mem::replace(&mut self.tail, Vec::with_capacity(BLOCK));
        let number = self.number()?;
        self.send(Job::Pack(number, tail))?;
        self.fragments.push(number);
        Ok(())
    }

    fn number(&mut self) -> Result<u32> {
        let number = self.next;
        self.next = number.checked_add(1).ok_or_else(too_many)?;
        Ok(number)
    }

    fn send(&mut self, job: Job) -> Result<()> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent {
            return Ok(());
        }
        // The others have ended: the writer knows why.
        Err(self.stop().err().unwrap_or_else(gone))
    }

    fn stop(&mut self) -> Result<Written> {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| gone())?;
        }
        self.writer.take().ok_or_else(gone)?.join().map_err(|_| gone())?
    }

    /// Waits for all blocks.
    pub fn finish(mut self) -> Result<Finished> {
        self.cut_tail()?;
        let written = self.stop()?;
        let (held, fragments) = (std::mem::take(&mut self.held), std::mem::take(&mut self.fragments));
        let sparse = std::mem::take(&mut self.sparse);
        Ok(Finished { written, held, sparse, fragments, compressor: self.compressor })
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if self.writer.is_some() {
            let _ = self.stop();
        }
    }
}

fn too_many() -> Error {
    Error::new(Kind::TooLarge, "the image has more than four thousand million blocks", "split it")
}

fn gone() -> Error {
    Error::new(Kind::Io, "a thread that compresses has ended", "look for a limit of memory")
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(16).all(|c| c.iter().fold(0, |a, b| a | b) == 0)
}

fn work(taken: &Mutex<Receiver<Job>>, done: &SyncSender<Done>, compressor: Compressor) {
    let mut packer = match Packer::new(compressor) {
        Ok(packer) => packer,
        Err(e) => {
            let _ = done.send(Err(e));
            return;
        }
    };
    loop {
        let job = match taken.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let result = match job {
            Err(_) => return,
            Ok(Job::Zero(number)) => Ok((number, Vec::new(), 0)),
            Ok(Job::Pack(number, block)) => packer.pack(&block).map(|packed| match packed {
                Some(packed) => {
                    let size = packed.len() as u32;
                    (number, packed, size)
                }
                None => {
                    let size = block.len() as u32 | STORED;
                    (number, block, size)
                }
            }),
        };
        if done.send(result).is_err() {
            return;
        }
    }
}

fn write(file: File, path: PathBuf, results: &Receiver<Done>, compressor: Compressor) -> Result<Written> {
    let failed = |e: io::Error| Error::writing(&path, &e);
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&[0; SUPERBLOCK]).map_err(failed)?;
    let mut end = SUPERBLOCK as u64;
    if compressor == Compressor::Lz4 {
        // The kernel wants its options: a metadata block with version 1 and no flags.
        let options = [8, 0x80, 1, 0, 0, 0, 0, 0, 0, 0];
        file.write_all(&options).map_err(failed)?;
        end += options.len() as u64;
    }
    let mut blocks = Vec::new();
    let mut waiting = BTreeMap::new();
    for result in results {
        let (number, bytes, size) = result.map_err(failed)?;
        waiting.insert(number, (bytes, size));
        while let Some((bytes, size)) = waiting.remove(&(blocks.len() as u32)) {
            file.write_all(&bytes).map_err(failed)?;
            blocks.push((end, size));
            end += bytes.len() as u64;
        }
    }
    Ok(Written { file, path, blocks, end })
}

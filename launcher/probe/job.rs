//! Ranks of one job: what those of a node share, and then MPI itself.
//!
//! `job KEY RANKS RANK ABI LIBRARY GPU REPORT PATIENCE`: KEY names a file of /dev/shm, RANKS is how many there are on this node,
//! RANK which of them this is, ABI and LIBRARY are the MPI's, GPU is which one it shares with the next, REPORT a file
//! that rank 0 is told, PATIENCE how many seconds ranks wait for each other. `-`: none.

use core::ffi::{CStr, c_int, c_void};
use core::fmt::Write;
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Arguments;
use crate::c::{self, IoVec};
use crate::cuda::{self, Handle};
use crate::mpi;
use crate::say::{Line, Record};

/// More than a node has ranks.
const MAX_RANKS: usize = 1024;
/// So much is read of another rank.
const BYTES: usize = 64 << 10;
/// What a node's ranks have to say of each other.
const MAX_RECORD: usize = 256 << 10;

/// A rank's part of the file.
#[repr(C)]
struct Part {
    /// 1: the next fields are set. 2: it has finished with its neighbour. 3: `handle` is set, or it has none.
    stage: AtomicU32,
    pid: AtomicU32,
    address: AtomicU64,
    /// Numbers of its namespaces.
    user: AtomicU64,
    pids: AtomicU64,
    /// How reading its neighbour went.
    errno: AtomicU32,
    is_equal: AtomicU32,
    cpus: core::cell::UnsafeCell<[u8; 96]>,
    /// The first of CUDA_VISIBLE_DEVICES.
    visible: core::cell::UnsafeCell<[u8; 64]>,
    has_handle: AtomicU32,
    handle: core::cell::UnsafeCell<Handle>,
}

/// Text, with a zero at its end.
struct Name([u8; 256], usize);

impl Name {
    fn of(arguments: core::fmt::Arguments<'_>) -> Name {
        let mut name = Name([0; 256], 0);
        let _ = name.write_fmt(arguments);
        name
    }

    fn as_c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

impl Write for Name {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes().take(255 - self.1.min(255)) {
            self.0[self.1] = byte;
            self.1 += 1;
        }
        Ok(())
    }
}

/// The number of a namespace of this process: `user:[4026531837]`.
fn namespace(name: &str) -> u64 {
    let path = Name::of(format_args!("/proc/self/ns/{name}"));
    let mut out = [0u8; 64];
    // SAFETY: a string, and a buffer with its length.
    unsafe { c::readlink(path.as_c().as_ptr(), out.as_mut_ptr().cast(), out.len()) };
    out.iter().filter(|byte| byte.is_ascii_digit()).fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))
}

/// The processors that this rank may use, as the kernel writes them.
fn processors(buffer: &mut [u8]) -> &[u8] {
    let status = c::read_file(c"/proc/self/status", buffer);
    let mut lines = status.split(|byte| *byte == b'\n');
    lines.find_map(|line| line.strip_prefix(b"Cpus_allowed_list:\t")).unwrap_or_default()
}

fn number(text: &CStr) -> usize {
    text.to_bytes().iter().fold(0, |sum, digit| sum * 10 + usize::from(digit.wrapping_sub(b'0')))
}

/// Waits until a rank is that far.
fn wait(part: &Part, stage: u32, patience: f64) -> bool {
    let began = c::now();
    while part.stage.load(Ordering::Acquire) < stage {
        if c::now() - began > patience {
            return false;
        }
        // SAFETY: it takes any number.
        unsafe { c::usleep(500) };
    }
    true
}

/// The node's file: every rank's part.
fn parts(key: &CStr, ranks: usize) -> Option<&'static [Part]> {
    let path = Name::of(format_args!("/dev/shm/hpc-launch-validate.{}", key.to_str().unwrap_or("")));
    let length = ranks * size_of::<Part>();
    // SAFETY: a string; the file is at least as long as the map once ftruncate succeeded.
    unsafe {
        let fd = c::open(path.as_c().as_ptr(), c::O_RDWR | c::O_CREAT | c::O_NOFOLLOW, 0o600);
        let at = if fd < 0 || c::ftruncate(fd, length as i64 as _) != 0 {
            -1isize as *mut c_void
        } else {
            c::mmap(ptr::null_mut(), length, c::PROT_READ_WRITE, c::MAP_SHARED, fd, 0)
        };
        if at as isize == -1 {
            Line::new("shared").field("errno", c::errno()).say();
            return None;
        }
        c::close(fd);
        Some(core::slice::from_raw_parts(at.cast(), ranks))
    }
}

pub fn probe(arguments: Arguments) {
    let key = arguments.get(0).unwrap_or_default();
    let given = |n| arguments.get(n).filter(|text| text.to_bytes() != b"-");
    // SAFETY: a string; nothing changes the environment.
    let told = || unsafe { c::getenv(c"HPC_LAUNCH_RANK".as_ptr()).as_ref().map(|text| CStr::from_ptr(text)) };
    let rank = given(2).or_else(told).map_or(0, number);
    let ranks = arguments.get(1).map_or(1, number).clamp(1, MAX_RANKS);
    let Some(room) = c::zeroed(MAX_RECORD) else { return };
    let mut record = Record::new(room);
    if rank < ranks {
        neighbours(key, (ranks, rank), given(5), given(7).map_or(0, number) as f64, &mut record);
    }
    if let (Some(abi), Some(library)) = (given(3), given(4)) {
        let gpu = given(5).map(|gpu| number(gpu) as i32);
        mpi::probe(abi.to_bytes(), library, gpu, (given(6), record.as_bytes()));
    }
}

fn neighbours(
    key: &CStr,
    (ranks, rank): (usize, usize),
    gpu: Option<&CStr>,
    patience: f64,
    record: &mut Record,
) {
    let Some(parts) = parts(key, ranks) else { return };
    let Some(memory) = c::zeroed(BYTES) else { return };
    memory.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n + rank * 31) as u8);
    let (mine, next) = (&parts[rank], (rank + 1) % ranks);
    // As MPIs do: with kernel.yama.ptrace_scope 1 nobody may read who has not said so (PR_SET_PTRACER_ANY).
    // SAFETY: it takes numbers.
    unsafe { c::prctl(0x5961_6d61, usize::MAX, 0, 0, 0) };
    // SAFETY: it takes nothing.
    mine.pid.store(unsafe { c::getpid() } as u32, Ordering::Relaxed);
    mine.address.store(memory.as_ptr() as u64, Ordering::Relaxed);
    mine.user.store(namespace("user"), Ordering::Relaxed);
    mine.pids.store(namespace("pid"), Ordering::Relaxed);
    let (mut buffer, mut cpus) = ([0; 4096], [0; 96]);
    let list = processors(&mut buffer);
    let length = list.len().min(cpus.len());
    cpus[..length].copy_from_slice(&list[..length]);
    let mut visible = [0; 64];
    // SAFETY: a string; nothing changes the environment.
    if let Some(value) = unsafe { c::getenv(c"CUDA_VISIBLE_DEVICES".as_ptr()).as_ref() } {
        // SAFETY: a string of the environment's.
        let value = unsafe { CStr::from_ptr(value) }.to_bytes();
        let first = value.split(|byte| *byte == b',').next().unwrap_or_default();
        let length = first.len().min(visible.len());
        visible[..length].copy_from_slice(&first[..length]);
    }
    // SAFETY: nobody reads them before the stage says so.
    unsafe {
        *mine.cpus.get() = cpus;
        *mine.visible.get() = visible;
    }
    mine.stage.store(1, Ordering::Release);
    let all_came = parts.iter().all(|part| wait(part, 1, patience));
    if rank == 0 {
        let path = Name::of(format_args!("/dev/shm/hpc-launch-validate.{}", key.to_str().unwrap_or("")));
        // SAFETY: a string. Everybody has it open, or never will.
        unsafe { c::unlink(path.as_c().as_ptr()) };
    }
    if !all_came {
        let missing = parts.iter().filter(|part| part.stage.load(Ordering::Acquire) == 0).count();
        let line = Line::new("alone").field("local", rank).field("missing", missing);
        record.add(line.as_bytes());
        line.say();
        return;
    }
    let Some(copy) = c::zeroed(BYTES) else { return };
    let local = IoVec { base: copy.as_mut_ptr().cast(), length: BYTES };
    let remote = IoVec { base: parts[next].address.load(Ordering::Relaxed) as *mut c_void, length: BYTES };
    let pid = parts[next].pid.load(Ordering::Relaxed) as c_int;
    // SAFETY: what is written to is our own; the kernel judges the other address.
    let count = unsafe { c::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    let errno = if count < 0 { c::errno() } else { 0 };
    let equal = copy.iter().enumerate().all(|(n, byte)| *byte == (n + next * 31) as u8);
    mine.errno.store(errno as u32, Ordering::Relaxed);
    mine.is_equal.store(u32::from(count == BYTES as isize && equal), Ordering::Relaxed);
    mine.stage.store(2, Ordering::Release);
    // Its memory must stay until the last has read it.
    let all_read = parts.iter().all(|part| wait(part, 2, patience));
    if rank == 0 && all_read {
        for (number, part) in parts.iter().enumerate() {
            // SAFETY: set before its stage was, and not since.
            let (cpus, visible) = unsafe { (&*part.cpus.get(), &*part.visible.get()) };
            let text = |bytes: &'static [u8]| bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            let line = Line::new("rank")
                .field("local", number)
                .field("user", part.user.load(Ordering::Relaxed))
                .field("pid", part.pids.load(Ordering::Relaxed))
                .field("of", (number + 1) % ranks)
                .field("errno", part.errno.load(Ordering::Relaxed))
                .field("equal", part.is_equal.load(Ordering::Relaxed))
                .bytes("cpus", text(cpus))
                .bytes("visible", text(visible));
            record.add(line.as_bytes());
            line.say();
        }
    }
    if let Some(gpu) = gpu {
        share_gpu(parts, (rank, next), gpu, patience);
    }
}

/// Opens the next rank's memory on the GPU.
fn share_gpu(parts: &[Part], (rank, next): (usize, usize), gpu: &CStr, patience: f64) {
    let device = number(gpu) as c_int;
    let mine = &parts[rank];
    let cuda = cuda::open().filter(|cuda| cuda.begin().is_some());
    let pattern = |of: usize| [(of * 3 + 1) as u8; 4096];
    let handle = cuda.as_ref().and_then(|cuda| {
        let address = cuda.memory(device, &pattern(rank))?;
        cuda.export(device, address)
    });
    if let Some(handle) = handle {
        // SAFETY: nobody reads it before the stage says so.
        unsafe { *mine.handle.get() = handle };
        mine.has_handle.store(1, Ordering::Relaxed);
    }
    mine.stage.store(3, Ordering::Release);
    if let Some(cuda) = cuda
        && wait(&parts[next], 3, patience)
        && parts[next].has_handle.load(Ordering::Relaxed) == 1
    {
        // SAFETY: set before its stage was.
        let handle = unsafe { *parts[next].handle.get() };
        let mut copy = [0; 4096];
        if let Some(address) = cuda.import(device, handle)
            && cuda.read(device, address, &mut copy)
        {
            let is_right = copy == pattern(next);
            Line::new("ipc").field("local", rank).field("of", next).field("equal", u8::from(is_right)).say();
        }
    }
    mine.stage.store(4, Ordering::Release);
    parts.iter().for_each(|part| {
        wait(part, 4, patience);
    });
}

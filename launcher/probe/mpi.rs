//! MPI without its headers: two ABIs, known by their handles. Rank 0 exchanges messages with every other rank in turn,
//! and each says by which way its bytes went, as the kernel counts them.
//!
//! Handles and constants: Open MPI 4 and 5 (mpi.h: addresses of `ompi_mpi_comm_world`, `ompi_mpi_byte`), and the MPICH
//! ABI (mpi.h: 0x44000000, 0x4c00010d; MPI_STATUS_IGNORE is 1).

use core::ffi::{CStr, c_char, c_int, c_void};

use crate::c;
use crate::cuda;
use crate::library::{Library, say_objects};
use crate::say::{self, Line};

/// One message, and how many of them each way.
const BYTES: usize = 1 << 20;
const ROUNDS: usize = 8;
/// How many partners rank 0 has at most.
const MAX_PARTNERS: c_int = 64;
const TAG: c_int = 7;
const SIGALRM: c_int = 14;
/// Seconds for MPI_Finalize.
const PATIENCE: core::ffi::c_uint = 10;
/// In larger jobs not everybody sends to everybody: connections cost memory.
const MAX_CONNECTED: c_int = 256;
const MAX_DESCRIPTORS: c_int = 4096;
/// What a node has to tell.
const MAX_REPORT: usize = 256 << 10;

type Handle = usize;
type Exchange = unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, c_int, Handle) -> c_int;

type SendReceive = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    Handle,
    c_int,
    c_int,
    *mut c_void,
    c_int,
    Handle,
    c_int,
    c_int,
    Handle,
    *mut c_void,
) -> c_int;

struct Mpi {
    world: Handle,
    byte: Handle,
    /// MPI_STATUS_IGNORE.
    ignore: *mut c_void,
    send: Exchange,
    receive: unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, c_int, Handle, *mut c_void) -> c_int,
    barrier: unsafe extern "C" fn(Handle) -> c_int,
    both: SendReceive,
}

extern "C" fn unfinalized(_: c_int) {
    Line::new("unfinalized").field("seconds", PATIENCE).say();
    // SAFETY: it takes any number.
    unsafe { c::_exit(0) }
}

/// Bytes that this process's TCP connections have carried, both ways: `tcpi_bytes_acked` and `tcpi_bytes_received`
/// (linux/tcp.h, since 4.1).
fn tcp_bytes() -> u64 {
    let mut sum = 0;
    for fd in 3..MAX_DESCRIPTORS {
        let mut information = [0u64; 32];
        let mut length = size_of_val(&information) as u32;
        // SAFETY: IPPROTO_TCP, TCP_INFO, into a buffer with its length.
        let status = unsafe { c::getsockopt(fd, 6, 11, information.as_mut_ptr().cast(), &mut length) };
        if status == 0 && length >= 136 {
            sum += information[15] + information[16];
        }
    }
    sum
}

/// `report`: a file whose contents rank 0 says for every rank, with this node's `record` behind it.
/// `gpu`: whose memory is sent too, if the MPI says that it can.
pub fn probe(abi: &[u8], name: &CStr, gpu: Option<i32>, (report, record): (Option<&CStr>, &[u8])) {
    let Some(library) = Library::open(name, c::RTLD_GLOBAL) else { return };
    let is_ompi = abi == b"ompi";
    // SAFETY: signatures and handles of this ABI's mpi.h.
    unsafe {
        let handle = |name: &CStr| library.find(name).map_or(0, |found| found as Handle);
        type ToInt = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
        type Init = unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char) -> c_int;
        type Nothing = unsafe extern "C" fn() -> c_int;
        let Some(mpi) = (|| {
            Some(Mpi {
                world: if is_ompi { handle(c"ompi_mpi_comm_world") } else { 0x4400_0000 },
                byte: if is_ompi { handle(c"ompi_mpi_byte") } else { 0x4c00_010d },
                ignore: if is_ompi { core::ptr::null_mut() } else { 1 as *mut c_void },
                send: library.function(c"MPI_Send")?,
                receive: library.function(c"MPI_Recv")?,
                barrier: library.function(c"MPI_Barrier")?,
                both: library.function(c"MPI_Sendrecv")?,
            })
        })() else {
            return;
        };
        let Some(init) = library.function::<Init>(c"MPI_Init") else { return };
        let Some(rank_of) = library.function::<ToInt>(c"MPI_Comm_rank") else { return };
        let Some(size_of) = library.function::<ToInt>(c"MPI_Comm_size") else { return };
        let Some(finalize) = library.function::<Nothing>(c"MPI_Finalize") else { return };
        Line::new("initialising").say();
        let status = init(core::ptr::null_mut(), core::ptr::null_mut());
        let (mut rank, mut size) = (-1, -1);
        rank_of(mpi.world, &mut rank);
        size_of(mpi.world, &mut size);
        Line::new("mpi").field("status", status).field("rank", rank).field("size", size).say();
        mpi.everybody(rank, size);
        mpi.exchange(rank, size);
        if let Some(gpu) = gpu {
            mpi.device_buffers(&library, gpu, rank, size);
        }
        if let Some(report) = report {
            mpi.reports(rank, size, report, record);
        }
        say_objects();
        // Known to hang: MPICH over UCX and TCP between nodes. What is to be said is said.
        c::signal(SIGALRM, unfinalized);
        c::alarm(PATIENCE);
        finalize();
        c::alarm(0);
        Line::new("finalized").field("rank", rank).say();
    }
}

/// A function's answer, from a process of its own: MPICH 3.4 ends where it is asked whether it knows GPUs
/// (src/mpi/misc/gpu.c: the assertion is the wrong way round).
fn elsewhere(ask: unsafe extern "C" fn() -> c_int) -> Option<c_int> {
    let mut status = 0;
    // SAFETY: the child calls one function that looks at a constant, and ends.
    unsafe {
        let child = c::fork();
        if child == 0 {
            let nowhere = c::open(c"/dev/null".as_ptr(), c::O_RDWR, 0);
            c::dup2(nowhere, 2);
            c::_exit(ask() & 0x7f);
        }
        let is_done = child > 0 && c::waitpid(child, &mut status, 0) == child;
        // As WIFEXITED and WEXITSTATUS have it.
        (is_done && status & 0x7f == 0).then_some(status >> 8 & 0xff)
    }
}

impl Mpi {
    /// Rank 0 with each of the others, one after the other.
    fn exchange(&self, rank: c_int, size: c_int) {
        let (Some(out), Some(back)) = (c::zeroed(BYTES), c::zeroed(BYTES)) else { return };
        // Of many some, from everywhere.
        let step = ((size - 1) / MAX_PARTNERS).max(1) as usize;
        for partner in (1..size).rev().step_by(step) {
            // SAFETY: buffers of that many bytes; handles of this MPI.
            unsafe { (self.barrier)(self.world) };
            if rank != 0 && rank != partner {
                continue;
            }
            let other = if rank == 0 { partner } else { 0 };
            out.fill(rank as u8 + 1);
            back.fill(0);
            // The first builds the connection.
            let mut is_right = self.round(rank, other, &mut out[..64], &mut back[..64]);
            let (tcp, began) = (tcp_bytes(), c::now());
            for _ in 0..ROUNDS {
                is_right &= self.round(rank, other, out, back);
            }
            let seconds = c::now() - began;
            Line::new("exchange")
                .field("rank", rank)
                .field("with", other)
                .field("bytes", 2 * ROUNDS * BYTES)
                .field("microseconds", (seconds * 1e6) as u64)
                .field("tcp", tcp_bytes() - tcp)
                .field("equal", u8::from(is_right))
                .say();
        }
        // SAFETY: a handle of this MPI.
        unsafe { (self.barrier)(self.world) };
    }

    /// Each to each: MPICH over UCX hangs in MPI_Finalize where some have never sent to some.
    fn everybody(&self, rank: c_int, size: c_int) {
        if size > MAX_CONNECTED {
            return;
        }
        let (mut out, mut back) = ([0u8; 8], [0u8; 8]);
        let (from, to) = (out.as_mut_ptr().cast(), back.as_mut_ptr().cast());
        for distance in 1..size {
            let (next, previous) = ((rank + distance) % size, (rank + size - distance) % size);
            // SAFETY: buffers of eight bytes; handles of this MPI.
            unsafe {
                (self.both)(
                    from,
                    8,
                    self.byte,
                    next,
                    TAG,
                    to,
                    8,
                    self.byte,
                    previous,
                    TAG,
                    self.world,
                    self.ignore,
                )
            };
        }
    }

    /// A GPU's memory, from rank 0 to rank 1.
    fn device_buffers(&self, library: &Library, gpu: c_int, rank: c_int, size: c_int) {
        if size < 2 || rank > 1 {
            return;
        }
        // SAFETY: mpi-ext.h of Open MPI and of MPICH.
        let ask = library.find(c"MPIX_Query_cuda_support").map(|found| unsafe {
            core::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(found)
        });
        let is_aware = ask.is_some_and(|ask| elsewhere(ask) == Some(1));
        if rank == 0 {
            Line::new("aware").field("cuda", u8::from(is_aware)).say();
        }
        if !is_aware {
            return;
        }
        let Some(cuda) = cuda::open().filter(|cuda| cuda.begin().is_some()) else { return };
        let (Some(bytes), Some(back)) = (c::zeroed(BYTES), c::zeroed(BYTES)) else { return };
        bytes.fill(if rank == 0 { 0x5a } else { 0 });
        let Some(memory) = cuda.memory(gpu, bytes) else { return };
        let at = memory as *mut c_void;
        // SAFETY: the GPU's memory is of that many bytes, and this MPI takes it as any other.
        unsafe {
            if rank == 0 {
                (self.send)(at, BYTES as c_int, self.byte, 1, TAG, self.world);
            } else {
                (self.receive)(at, BYTES as c_int, self.byte, 0, TAG, self.world, self.ignore);
                (self.send)(at, BYTES as c_int, self.byte, 0, TAG, self.world);
            }
            if rank == 0 {
                (self.receive)(at, BYTES as c_int, self.byte, 1, TAG, self.world, self.ignore);
                let is_right = cuda.read(gpu, memory, back) && back.iter().all(|byte| *byte == 0x5a);
                Line::new("device").field("bytes", BYTES).field("equal", u8::from(is_right)).say();
            }
        }
    }

    /// Everybody's report, by way of rank 0.
    fn reports(&self, rank: c_int, size: c_int, path: &CStr, record: &[u8]) {
        let Some(buffer) = c::zeroed(MAX_REPORT) else { return };
        let filled = c::read_file(path, buffer).len();
        // Who has no report does not speak for its node.
        let record = if filled == 0 { &[] } else { &record[..record.len().min(MAX_REPORT - filled)] };
        buffer[filled..filled + record.len()].copy_from_slice(record);
        let mut length = (filled + record.len()) as u64;
        let (number, bytes) = (&raw mut length, buffer.as_mut_ptr());
        let byte = self.byte;
        for other in 1..size {
            // SAFETY: buffers of that many bytes; handles of this MPI.
            unsafe {
                if rank == other {
                    (self.send)(number.cast(), 8, byte, 0, TAG, self.world);
                    if *number > 0 {
                        (self.send)(bytes.cast(), *number as c_int, byte, 0, TAG, self.world);
                    }
                } else if rank == 0 {
                    (self.receive)(number.cast(), 8, byte, other, TAG, self.world, self.ignore);
                    if (1..=MAX_REPORT as u64).contains(&*number) {
                        (self.receive)(
                            bytes.cast(),
                            *number as c_int,
                            byte,
                            other,
                            TAG,
                            self.world,
                            self.ignore,
                        );
                        say::report(other, &buffer[..*number as usize]);
                    }
                }
            }
        }
    }

    fn round(&self, rank: c_int, other: c_int, out: &mut [u8], back: &mut [u8]) -> bool {
        let (length, from) = (out.len() as c_int, out.as_mut_ptr().cast());
        let to = back.as_mut_ptr().cast();
        // SAFETY: buffers of that many bytes; handles of this MPI.
        unsafe {
            if rank == 0 {
                (self.send)(from, length, self.byte, other, TAG, self.world);
                (self.receive)(to, length, self.byte, other, TAG, self.world, self.ignore);
            } else {
                (self.receive)(to, length, self.byte, other, TAG, self.world, self.ignore);
                (self.send)(from, length, self.byte, other, TAG, self.world);
            }
        }
        back.iter().all(|byte| *byte == other as u8 + 1)
    }
}

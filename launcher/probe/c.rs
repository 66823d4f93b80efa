//! What of the C library is used. Signatures of the GNU and musl C libraries, which agree on all of these.

use core::ffi::{c_char, c_int, c_long, c_uint, c_void};

pub const RTLD_NOW: c_int = 2;
pub const RTLD_GLOBAL: c_int = 0x100;
pub const RTLD_DI_LINKMAP: c_int = 2;
pub const O_RDONLY: c_int = 0;
pub const O_RDWR: c_int = 2;
pub const O_CREAT: c_int = 0o100;
/// Not the same on every machine (asm/fcntl.h).
pub const O_NOFOLLOW: c_int = if cfg!(target_arch = "aarch64") { 0o100_000 } else { 0o400_000 };
pub const PROT_READ_WRITE: c_int = 3;
pub const MAP_SHARED: c_int = 1;

/// An element of the loader's list (link.h).
#[repr(C)]
pub struct LinkMap {
    pub address: usize,
    pub name: *const c_char,
    pub dynamic: *const c_void,
    pub next: *const LinkMap,
    pub previous: *const LinkMap,
}

#[repr(C)]
pub struct IoVec {
    pub base: *mut c_void,
    pub length: usize,
}

#[repr(C)]
pub struct TimeSpec {
    pub seconds: c_long,
    pub nanoseconds: c_long,
}

unsafe extern "C" {
    pub fn __libc_start_main(
        main: extern "C" fn(c_int, *const *const c_char, *const *const c_char) -> c_int,
        count: c_int,
        vector: *const *const c_char,
        init: *const c_void,
        fini: *const c_void,
        loader_fini: *const c_void,
        stack_end: *const c_void,
    ) -> c_int;
    pub fn _exit(status: c_int) -> !;
    pub fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    pub fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    pub fn dlerror() -> *const c_char;
    pub fn dlinfo(handle: *mut c_void, request: c_int, out: *mut c_void) -> c_int;
    pub fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize;
    pub fn read(fd: c_int, bytes: *mut c_void, count: usize) -> isize;
    pub fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    pub fn close(fd: c_int) -> c_int;
    pub fn ftruncate(fd: c_int, length: c_long) -> c_int;
    pub fn unlink(path: *const c_char) -> c_int;
    pub fn mmap(
        at: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: c_long,
    ) -> *mut c_void;
    pub fn alarm(seconds: c_uint) -> c_uint;
    pub fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    pub fn getpid() -> c_int;
    pub fn fork() -> c_int;
    pub fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    pub fn dup2(from: c_int, to: c_int) -> c_int;
    pub fn getenv(name: *const c_char) -> *const c_char;
    pub fn prctl(option: c_int, ...) -> c_int;
    pub fn usleep(microseconds: c_uint) -> c_int;
    pub fn clock_gettime(clock: c_int, out: *mut TimeSpec) -> c_int;
    pub fn readlink(path: *const c_char, out: *mut c_char, length: usize) -> isize;
    pub fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut c_uint)
    -> c_int;
    pub fn calloc(count: usize, size: usize) -> *mut c_void;
    pub fn process_vm_readv(
        pid: c_int,
        local: *const IoVec,
        locals: usize,
        remote: *const IoVec,
        remotes: usize,
        flags: usize,
    ) -> isize;
    pub fn __errno_location() -> *mut c_int;
}

/// The last call's error.
pub fn errno() -> c_int {
    // SAFETY: it answers a pointer to this thread's own.
    unsafe { *__errno_location() }
}

/// Seconds of a clock that only goes forward.
pub fn now() -> f64 {
    let mut time = TimeSpec { seconds: 0, nanoseconds: 0 };
    // SAFETY: CLOCK_MONOTONIC, into a timespec.
    unsafe { clock_gettime(1, &mut time) };
    time.seconds as f64 + time.nanoseconds as f64 * 1e-9
}

/// Bytes from the C library, all zero, never given back.
pub fn zeroed(length: usize) -> Option<&'static mut [u8]> {
    // SAFETY: calloc answers that many bytes, or none.
    unsafe {
        let bytes = calloc(length, 1).cast::<u8>();
        (!bytes.is_null()).then(|| core::slice::from_raw_parts_mut(bytes, length))
    }
}

/// The start of a file.
pub fn read_file<'a>(path: &core::ffi::CStr, buffer: &'a mut [u8]) -> &'a [u8] {
    let mut filled = 0;
    // SAFETY: a string, and a buffer with its length.
    unsafe {
        let fd = open(path.as_ptr(), O_RDONLY, 0);
        if fd >= 0 {
            while filled < buffer.len() {
                let count = read(fd, buffer[filled..].as_mut_ptr().cast(), buffer.len() - filled);
                if count <= 0 {
                    break;
                }
                filled += count as usize;
            }
            close(fd);
        }
    }
    &buffer[..filled]
}

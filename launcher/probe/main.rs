//! The program that `hpc-launch validate` runs inside: it opens libraries as a program of the image would, with the
//! image's own loader and C library, and says what happens, line by line. It judges nothing.
//!
//! It must start in every image that has a loader: so it asks for no version of any symbol (glibc 2.17 to date, and
//! musl), and for nothing but `libc.so.6` and `libdl.so.2`, which musl takes for itself (ldso/dynlink.c, `reserved`).
//!
//! Facts: a word, then fields `name=value`, between tabs. Bytes that could end one are `?`.
#![no_std]
#![no_main]

mod c;
mod cuda;
mod fabric;
mod job;
mod library;
mod mpi;
mod nvml;
mod say;
mod ucx;
mod verbs;

use core::ffi::{CStr, c_char, c_int};

use crate::say::Line;

/// Arguments after the program's name.
#[derive(Clone, Copy)]
pub struct Arguments {
    count: usize,
    first: *const *const c_char,
}

impl Arguments {
    /// The one of this number.
    fn get(&self, n: usize) -> Option<&'static CStr> {
        // SAFETY: the kernel's vector has `count` pointers to strings that live as long as the process.
        (n < self.count).then(|| unsafe { CStr::from_ptr(*self.first.add(n)) })
    }

    fn iter(&self) -> impl Iterator<Item = &'static CStr> + '_ {
        (0..self.count).filter_map(|n| self.get(n))
    }

    fn rest(&self) -> Arguments {
        let skipped = self.count.min(1);
        // SAFETY: within the vector, or one past its end.
        Arguments { count: self.count - skipped, first: unsafe { self.first.add(skipped) } }
    }
}

extern "C" fn begin(count: c_int, vector: *const *const c_char, _environ: *const *const c_char) -> c_int {
    let all = Arguments { count: usize::try_from(count).unwrap_or(0), first: vector };
    let words = all.rest();
    let what = words.get(0).map(CStr::to_bytes).unwrap_or_default();
    let arguments = words.rest();
    match what {
        b"load" => library::load(arguments),
        b"verbs" => verbs::probe(),
        b"ucx" => ucx::probe(),
        b"libfabric" => fabric::probe(),
        b"cuda" => cuda::probe(),
        b"nvml" => nvml::probe(),
        b"job" => job::probe(arguments),
        _ => Line::new("usage").say(),
    }
    Line::new("end").say();
    0
}

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl _start",
    "_start: xor %ebp, %ebp",
    "mov %rdx, %r9",
    "pop %rsi",
    "mov %rsp, %rdx",
    "and $-16, %rsp",
    "push %rax",
    "push %rsp",
    "xor %r8d, %r8d",
    "xor %ecx, %ecx",
    "lea {begin}(%rip), %rdi",
    "call *{start}@GOTPCREL(%rip)",
    "hlt",
    begin = sym begin,
    start = sym c::__libc_start_main,
    options(att_syntax)
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".globl _start",
    "_start: mov x29, #0",
    "mov x30, #0",
    "mov x5, x0",
    "ldr x1, [sp]",
    "add x2, sp, #8",
    "mov x6, sp",
    "mov x3, #0",
    "mov x4, #0",
    "adrp x0, {begin}",
    "add x0, x0, :lo12:{begin}",
    "bl {start}",
    "brk #1",
    begin = sym begin,
    start = sym c::__libc_start_main,
);

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo) -> ! {
    Line::new("panicked").say();
    // SAFETY: it takes any number.
    unsafe { c::_exit(101) }
}

/// Named by `core`, which is compiled to unwind on some targets; nothing here does.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

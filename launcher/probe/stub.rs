//! Stands for the C library when the probe is linked: the same names, and no versions.
#![no_std]
#![allow(missing_docs)]

macro_rules! names {
    ($($name:ident)*) => { $(
        // SAFETY: never called; the loader takes the C library's.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() {}
    )* };
}

names!(
    __errno_location __libc_start_main _exit alarm bcmp calloc clock_gettime close dlerror dlinfo dlopen dlsym dup2 fork
    ftruncate getenv getpid getsockopt memcmp memcpy memmove memset mmap open prctl process_vm_readv read readlink signal strlen unlink usleep waitpid
    write
);

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

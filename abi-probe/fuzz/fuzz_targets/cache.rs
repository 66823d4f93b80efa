//! Bytes as /etc/ld.so.cache, and as a loader.
#![no_main]

use abi_probe::elf::Arch;
use abi_probe::ldso::{Cache, Cpu, Loader, Traits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for arch in [Arch { machine: 62, is_64: true }, Arch { machine: 3, is_64: false }] {
        Traits::of(Loader::Glibc, bytes, arch);
        if let Some(cache) = Cache::parse(bytes) {
            for name in ["libc.so.6", "liba.so", ""] {
                cache.path(name, arch, Cpu { level: 4 }, || true);
                cache.path(name, arch, Cpu { level: 1 }, || false);
            }
        }
    }
});

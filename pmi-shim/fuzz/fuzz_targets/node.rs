//! A node: its ranks, its launcher, its owner.
#![no_main]

use libfuzzer_sys::fuzz_target;
use made::memory::modest_of;
use made::noded::{Kind, run};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, script)) = bytes.split_first() else { return };
    modest_of(bytes, || {
        run(
            match kind % 3 {
                0 => Kind::Alone,
                1 => Kind::Simple,
                _ => Kind::Pmix,
            },
            script,
        )
    });
});

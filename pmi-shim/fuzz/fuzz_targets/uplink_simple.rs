//! A hostile launcher that speaks PMI-1 or PMI-2.
#![no_main]

use libfuzzer_sys::fuzz_target;
use made::launched::{Launched, run};
use made::memory::modest_of;
use pmi_shim::uplink::Uplink;
use pmi_shim::uplink::simple::{Client, Version};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, script)) = bytes.split_first() else { return };
    modest_of(bytes, || {
        let version = if kind & 1 == 0 { Version::Any } else { Version::Two };
        let size = (kind & 2 == 0).then_some(3);
        let client = Client::new(size, version);
        run(Launched::new(Uplink::Simple(Box::new(client)), kind & 4 != 0), script)
    });
});

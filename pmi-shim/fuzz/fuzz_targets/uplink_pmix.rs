//! A hostile launcher that speaks PMIx.
#![no_main]

use libfuzzer_sys::fuzz_target;
use made::honest::NSPACE;
use made::launched::{Launched, run};
use made::memory::modest_of;
use pmi_shim::uplink::Uplink;
use pmi_shim::uplink::pmix::{Client, Identity};

fuzz_target!(|bytes: &[u8]| {
    modest_of(bytes, || {
        let (nspace, bfrops) = (NSPACE.to_owned(), "v3".to_owned());
        let client = Client::new(Identity { nspace, bfrops, uid: 1, gid: 1 });
        run(Launched::new(Uplink::Pmix(Box::new(client)), true), bytes)
    });
});

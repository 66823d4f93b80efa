//! Bytes as a mapping of ranks to nodes: what is read, when written, is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use made::memory::modest;
use pmi_shim::job::{dense, mapping, parse_mapping};

/// Ranks.
const MOST: u16 = 4096;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, text)) = bytes.split_first_chunk::<2>() else { return };
    let size = u32::from(u16::from_le_bytes(*size) % (MOST + 1));
    modest(bytes, || {
        let text = String::from_utf8_lossy(text);
        let Some(nodes) = parse_mapping(&text, size) else { return };
        assert_eq!(nodes.len(), size as usize);
        assert_eq!(dense(nodes.clone()), nodes);
        if size > 0 {
            assert_eq!(parse_mapping(&mapping(&nodes), size), Some(nodes));
        }
    });
});

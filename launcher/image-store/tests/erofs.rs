//! EROFS images with bytes changed anywhere: read, or refused; never anything else.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_store::blob::Blob;
use image_store::codec::Allowance;
use image_store::layers::Merge;
use image_store::squash::{self, Compressor, Data};
use image_store::{Result, erofs};

fn image(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.erofs.zst"));
    zstd::decode_all(File::open(path).unwrap()).unwrap()
}

/// How many nodes its tree has; it can be written then.
fn read(bytes: &[u8]) -> Result<usize> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let length = bytes.len() as u64;
    let blob = Blob { file: Arc::new(file), path: PathBuf::from("x.erofs"), offset: 0, length };
    let out = tempfile::tempfile().unwrap();
    let mut data = Data::new(out, Path::new("out"), Compressor::Lz4, 1).unwrap();
    let mut with = Merge { data: &mut data, allowance: Allowance::new(64 << 20), read: Arc::default() };
    let (tree, _) = erofs::read(&blob, &mut with)?;
    squash::finish(&tree, data, 0).unwrap();
    Ok(tree.len())
}

#[test]
fn a_changed_byte_does_no_harm() {
    // Knuth's generator: the same changes each time.
    let mut state = 20u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for name in ["zstd", "deflate", "lzma", "lzma-dedupe", "fragments", "all-fragments", "dedupe"] {
        let good = image(name);
        assert_eq!(read(&good).unwrap(), 44, "{name}");
        let mut refused = 0;
        for _ in 0..400 {
            let mut bytes = good.clone();
            for _ in 0..=random(3) {
                // Mostly where inodes and maps are: those files begin with them.
                let at = if random(4) > 0 { 1024 + random(7000) } else { random(bytes.len()) };
                let at = at.min(bytes.len() - 1);
                bytes[at] = if random(2) > 0 { 0xff } else { random(256) as u8 };
            }
            refused += usize::from(read(&bytes).is_err());
        }
        assert!((20..400).contains(&refused), "{name}: {refused} of 400 refused");
    }
}

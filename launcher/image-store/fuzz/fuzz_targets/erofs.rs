//! EROFS images of any bytes: read whole, or refused.
#![no_main]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_store::blob::Blob;
use image_store::codec::Allowance;
use image_store::erofs;
use image_store::layers::Merge;
use image_store::squash::{self, Compressor, Data};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(input).expect("written");
    let blob =
        Blob { file: Arc::new(file), path: PathBuf::from("x.erofs"), offset: 0, length: input.len() as u64 };
    let out = tempfile::tempfile().expect("a file");
    let mut data = Data::new(out, Path::new("out"), Compressor::Lz4, 1).expect("threads");
    let mut with = Merge { data: &mut data, allowance: Allowance::new(8 << 20), read: Arc::default() };
    if let Ok((tree, _)) = erofs::read(&blob, &mut with) {
        squash::finish(&tree, data, 0).expect("a tree that was accepted can be written");
    }
});

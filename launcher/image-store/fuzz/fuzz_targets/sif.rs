//! Any bytes as a SIF file: read or refused, and what is found lies inside of the file.
#![no_main]

use std::io::Write;
use std::path::Path;

use image_store::sif::Sif;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    if let Ok(sif) = Sif::read(&file, Path::new("x.sif")) {
        assert!(sif.offset.checked_add(sif.length).is_some_and(|end| end <= bytes.len() as u64));
    }
});

//! Any bytes as a SIF file: read or refused, and what is found lies inside of the file; what its signatures say, be they
//! taken as right, is compared or refused.
#![no_main]

use std::io::Write;
use std::path::Path;

use image_store::import::Progress;
use image_store::sif::Sif;
use image_store::sif::signature::{Approved, Signed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    if let Ok(sif) = Sif::read(&file, Path::new("x.sif")) {
        assert!(sif.offset.checked_add(sif.length).is_some_and(|end| end <= bytes.len() as u64));
    }
    let Ok(signed) = Signed::read(&file, Path::new("x.sif")) else { return };
    let approved: Vec<Approved<'_>> = signed
        .signatures
        .iter()
        .map(|signature| {
            // What gpgv would put out: what is between the headers and the signature.
            let text = String::from_utf8_lossy(&signature.text);
            let text = text.split("\n\n").nth(1).and_then(|body| body.split("\n-----BEGIN").next());
            let text = text.unwrap_or_default().as_bytes().to_vec();
            Approved { signature, fingerprint: "00".repeat(20), text }
        })
        .collect();
    if let Ok(verified) = signed.compare(&approved, &Progress::default()) {
        assert_eq!(verified.fingerprints.len(), 1);
    }
});

//! Any bytes as a tar stream: entries, or a refusal, and as many bytes of each file as it says.
#![no_main]

use image_store::tar::{Piece, Reader, What};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes);
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut length = 0u64;
        if entry.what == What::File {
            let whole = reader.content(|piece| {
                length += match piece {
                    Piece::Data(bytes) => bytes.len() as u64,
                    Piece::Hole(zeros) => zeros,
                };
                Ok(())
            });
            if whole.is_err() {
                return;
            }
            assert_eq!(length, entry.size);
        }
    }
});

//! Every object of the images, cut off at random places: read to an answer or an error, never to a panic.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use abi_probe::elf;
use abi_probe::symbols::Symbols;
use hpc_launch_tests::host::{self, full};
use hpc_launch_tests::image::directory;

const IMAGES: &[&str] = &[
    "bullseye-openmpi",
    "bullseye-mpich",
    "bookworm-openmpi",
    "bookworm-mpich",
    "trixie-openmpi",
    "trixie-mpich",
];
/// One object of so many when not all are taken.
const SAMPLE: usize = 101;
const CUTS: usize = 20;

/// Numbers that are the same in every run (xorshift64*).
fn random(state: &mut u64, limit: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
}

fn objects(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            objects(&path, found);
        } else if kind.is_file() {
            let mut magic = [0; 4];
            let read = File::open(&path).and_then(|mut f| f.read_exact(&mut magic));
            if read.is_ok() && &magic == b"\x7fELF" {
                found.insert(path);
            }
        }
    }
}

#[test]
fn every_object_cut_off() {
    let mut found = BTreeSet::new();
    for image in IMAGES {
        objects(&host::image(image).join("usr"), &mut found);
    }
    assert!(found.len() > 2000, "{} objects", found.len());
    let step = if full() { 1 } else { SAMPLE };
    let dir = directory("/var/tmp");
    let copy = dir.path().join("object");
    let (mut files, mut errors) = (0, 0);
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for path in found.iter().step_by(step) {
        fs::copy(path, &copy).expect("a copy");
        let file = File::options().read(true).write(true).open(&copy).expect("the copy");
        let size = file.metadata().expect("its size").len();
        let mut cuts: Vec<u64> = (0..CUTS).map(|_| random(&mut state, size)).collect();
        // Headers are where it hurts most.
        cuts.extend([random(&mut state, 64), random(&mut state, 4096)]);
        cuts.sort_unstable();
        for cut in cuts.into_iter().rev() {
            file.set_len(cut).expect("truncation");
            match elf::read(&file, path) {
                Ok(Some(object)) => match Symbols::read(&file, path, &object) {
                    Ok(symbols) => errors += usize::from(symbols.references(&file, path, &object).is_err()),
                    Err(_) => errors += 1,
                },
                Ok(None) => {}
                Err(e) => {
                    assert!(e.to_string().starts_with(path.to_str().expect("text")), "{e}");
                    errors += 1;
                }
            }
        }
        files += 1;
    }
    println!("{files} objects, each cut off at {} places: {errors} errors, no panic", CUTS + 2);
    assert!(errors > files, "cutting does hurt");
}

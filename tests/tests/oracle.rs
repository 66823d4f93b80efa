//! Every dynamic object of the images and of the host: what abi-probe says it links, against what the real
//! loader of that root says.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hpc_launch_tests::host::{self, full};
use hpc_launch_tests::loader::{How, abi_probe, difference, loader};

/// One of so many objects is looked at when not all are.
const SAMPLE: usize = 29;
/// How many are handed to one call.
const BATCH: usize = 200;

#[test]
fn bullseye_openmpi() {
    image("bullseye-openmpi");
}

#[test]
fn bullseye_mpich() {
    image("bullseye-mpich");
}

#[test]
fn bookworm_openmpi() {
    image("bookworm-openmpi");
}

#[test]
fn bookworm_mpich() {
    image("bookworm-mpich");
}

#[test]
fn trixie_openmpi() {
    image("trixie-openmpi");
}

#[test]
fn trixie_mpich() {
    image("trixie-mpich");
}

#[test]
fn this_host() {
    compare(
        "the host",
        Path::new("/"),
        &["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec", "/usr/local/bin"],
    );
}

fn image(name: &str) {
    compare(name, &host::image(name), &["/"]);
}

/// Compares all objects below `from`, or a sample of them.
fn compare(name: &str, root: &Path, from: &[&str]) {
    let mut objects = Vec::new();
    let mut seen = BTreeSet::new();
    for directory in from {
        find_objects(root, &root.join(directory.trim_start_matches('/')), &mut seen, &mut objects);
    }
    objects.sort();
    let step = if full() { 1 } else { SAMPLE };
    let objects: Vec<String> = objects.into_iter().step_by(step).collect();
    assert!(!objects.is_empty(), "{name} has no objects");

    let (mut compared, mut passed_over, mut missing) = (0, 0, 0);
    let mut differences = Vec::new();
    for batch in objects.chunks(BATCH) {
        let how = How::plain(root);
        let ours = abi_probe(&how, batch);
        let real = loader(&how, &ours);
        for (object, (_, ours)) in &ours {
            match real.get(object) {
                // The loader does not load itself, nor what has no loadable segment.
                None => passed_over += 1,
                Some(real) => {
                    compared += 1;
                    missing += real.missing.len();
                    if let Some(difference) = difference(ours, real) {
                        differences.push(format!("{object}\n{difference}"));
                    }
                }
            }
        }
    }
    println!(
        "{name}: {compared} objects compared, {} differences; {missing} symbols and versions missing on both sides, \
         {passed_over} objects that the loader does not load",
        differences.len()
    );
    let shown: Vec<&String> = differences.iter().take(20).collect();
    assert!(differences.is_empty(), "{name}: {} differences: {shown:#?}", differences.len());
    assert!(compared * 10 > objects.len() * 9, "{name}: {compared} of {} compared", objects.len());
}

/// Regular files that begin as ELF does, each once, by their paths in the root.
fn find_objects(root: &Path, directory: &Path, seen: &mut BTreeSet<(u64, u64)>, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let inside = Path::new("/").join(path.strip_prefix(root).expect("below the root"));
        if meta.is_dir() {
            // The host's and the kernel's, not the image's; crash dumps and detached symbols are no objects.
            let foreign = ["/proc", "/sys", "/dev", "/tmp", "/usr/lib/debug"];
            if !foreign.iter().any(|f| inside == Path::new(f)) {
                find_objects(root, &path, seen, found);
            }
        } else if meta.is_file() && meta.len() > 64 && seen.insert((meta.dev(), meta.ino())) {
            let mut magic = [0; 4];
            let is_elf =
                File::open(&path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && &magic == b"\x7fELF";
            if let Some(inside) = inside.to_str().filter(|_| is_elf) {
                found.push(inside.to_owned());
            }
        }
    }
}

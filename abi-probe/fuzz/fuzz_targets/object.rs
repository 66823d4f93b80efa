//! Bytes as an ELF object: headers, tables, references, look-ups, constants.
#![no_main]

use std::io::Write;
use std::path::Path;

use abi_probe::elf;
use abi_probe::symbols::Symbols;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile_in("/dev/shm").expect("a file");
    file.write_all(bytes).expect("written");
    let path = Path::new("/fuzzed");
    let _ = elf::section(&file, path, ".note.cuda.fwd_compatibility");
    let Ok(Some(object)) = elf::read(&file, path) else { return };
    object.find_text(&file, |text| (text == "never there").then_some(()));
    let Ok(symbols) = Symbols::read(&file, path, &object) else { return };
    for reference in symbols.references(&file, path, &object).unwrap_or_default() {
        symbols.defines(&reference.name);
        if let Some(address) = symbols.address(&reference.name) {
            object.text_at(&file, path, address);
        }
    }
    for need in symbols.needed_versions() {
        symbols.defines_version(&need.version);
    }
});

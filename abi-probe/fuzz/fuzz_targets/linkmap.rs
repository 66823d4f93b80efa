//! A root full of objects that need each other, and the walk through it.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use abi_probe::bind::bind_all;
use abi_probe::elf::Arch;
use abi_probe::ldso::Cpu;
use abi_probe::linkmap::{Circumstances, Scope};
use abi_probe::prober::Prober;
use abi_probe::rootfs::View;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use made::{Made, Text};

#[derive(Arbitrary, Debug)]
struct Root {
    program: Made,
    libraries: [Option<Made>; 4],
    others: [Option<Made>; 2],
    link: Option<Text>,
    library_path: Option<Text>,
    preload: Option<Text>,
    musl: bool,
    opens: [Option<Text>; 2],
    global: u8,
}

fuzz_target!(|root: Root| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let at = |path: &str| dir.path().join(path);
    for directory in ["lib", "a", "b"] {
        fs::create_dir(at(directory)).expect("made");
    }
    let interp = if root.musl { "/lib/ld-musl-x86_64.so.1" } else { "/lib/ld.so" };
    let names = ["lib/liba.so", "lib/libb.so", "a/libc.so", "b/libd.so"];
    let others = ["a/libb.so", &interp[1..]];
    let made = names.iter().zip(&root.libraries).chain(others.iter().zip(&root.others));
    for (name, object) in made {
        if let Some(object) = object {
            fs::write(at(name), object.bytes(interp)).expect("written");
        }
    }
    fs::write(at("program"), root.program.bytes(interp)).expect("written");
    if let Some(target) = &root.link {
        let _ = symlink(target.text(), at("b/liba.so"));
    }
    let view = View::open(dir.path()).expect("a view");
    let prober = Prober::new(&view);
    let (library_path, preload) = (root.library_path.map(|t| t.text()), root.preload.map(|t| t.text()));
    let opens: Vec<String> = root.opens.into_iter().flatten().map(|t| t.text()).collect();
    let how = Circumstances {
        library_path: library_path.as_deref(),
        preload: preload.as_deref(),
        directory: Path::new("/"),
        cpu: Some(Cpu { level: 4 }),
        scope: Scope::Whole,
        opens: &opens,
        global: usize::from(root.global),
    };
    let entry = view.find(Path::new("/program")).expect("found").expect("there");
    let map = match prober.program(&entry, &how) {
        Ok(Ok(map)) => map,
        _ => match prober.object(&entry, interp, &how) {
            Ok(Some(map)) => map,
            _ => return,
        },
    };
    // No file is mapped twice under one loader, but for what the kernel maps itself.
    let opened = map.opened.iter().flat_map(|o| o.objects.iter().filter(|o| o.is_new).map(|o| &o.linked));
    let mut files: Vec<_> =
        map.objects.iter().chain(opened).filter_map(|o| o.file.as_ref()).map(|f| f.path.clone()).collect();
    files.retain(|path| path != Path::new(interp) && path != Path::new("/program"));
    let all = files.len();
    files.sort();
    files.dedup();
    assert_eq!(files.len(), all, "{map:?}");
    assert!(map.objects.iter().all(|o| o.file.as_ref().is_none_or(|f| f.object.arch == Arch::NATIVE)));
    let _ = bind_all(&prober, &map);
});

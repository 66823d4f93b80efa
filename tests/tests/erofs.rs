//! EROFS images, in every layout that mkfs.erofs writes: read by us, and equal to what they were made of.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use hpc_launch_tests::host::{Who, everyone};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::layout::{self, listing, only_image, owned, text, tool, unsquash};
use hpc_launch_tests::run::{Outcome, Run};

/// Files of every length that matters, of what compresses and of what does not; links, modes, owners, attributes.
const MAKER: &str = r"
import os, random, sys
root = sys.argv[1]
random = random.Random(7)
def write(path, data):
    os.makedirs(os.path.dirname(f'{root}/{path}'), exist_ok=True)
    with open(f'{root}/{path}', 'wb') as f: f.write(data)
line = b'the quick brown fox jumps over the lazy dog %d\n'
for n in [0, 1, 100, 4095, 4096, 4097, 8192, 12289, 65536, 70001, 300000, 1048577]:
    write(f'text/{n}', b''.join(line % i for i in range(n // 40 + 2))[:n])
    write(f'noise/{n}', random.randbytes(n))
    write(f'mixed/{n}', b''.join(random.randbytes(5000) if i % 2 else line % i * 90 for i in range(n // 4000 + 2))[:n])
    write(f'zeros/{n}', bytes(n))
for i in range(700): write(f'many/{i % 7}/file_{i}', random.randbytes(i % 300) + b'x' * (i * 3))
os.symlink('text/100', root + '/link')
os.symlink('x' * 3000, root + '/long-link')
os.link(root + '/text/70001', root + '/hard')
os.mkfifo(root + '/fifo')
os.mkdir(root + '/empty'); os.chmod(root + '/empty', 0o1777)
with open(root + '/sparse', 'wb') as f: f.seek(5 << 20); f.write(b'end'); f.truncate(9 << 20)
for path in ('text/1', 'text/100'): os.setxattr(f'{root}/{path}', 'user.colour', b'blue')
os.setxattr(root + '/empty', 'user.long', b'z' * 500)
";

fn import(store: &Path, file: &Path) -> Outcome {
    Run::launch(Who::Root, ["image", "import", "--store", text(store), text(file), "x"]).run()
}

#[test]
fn whatever_mkfs_writes_is_read() {
    let dir = directory("/var/tmp");
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    layout::python(MAKER, &[text(&source)]);
    let wanted = listing(&source);
    for (number, options) in [
        &["-x2"][..],
        &["-zlz4"],
        &["-zlz4hc", "-C65536"],
        &["-zlz4hc", "-Eztailpacking"],
        &["-zlz4", "-C32768", "-Eztailpacking"],
        &["-zlz4hc", "--max-extent-bytes=16384", "-C16384"],
        &["-Enoinline_data,force-inode-extended"],
        &["--chunksize=4096"],
        &["--chunksize=65536", "-Eforce-chunk-indexes"],
    ]
    .iter()
    .enumerate()
    {
        let (file, store) = (dir.path().join("image.erofs"), dir.path().join(format!("store{number}")));
        tool("mkfs.erofs", &[&["--quiet"], *options, &[text(&file), text(&source)]].concat());
        import(&store, &file).good();
        let unpacked = dir.path().join(format!("unpacked{number}"));
        unsquash(&only_image(&store), &unpacked);
        assert_eq!(listing(&unpacked), wanted, "{options:?}");
    }
}

/// Debian 12's mkfs.erofs does not write these: images of erofs-utils 1.8.6 hold a file of each kind.
#[test]
fn what_newer_tools_write_is_read() {
    let dir = directory("/var/tmp");
    let line = |i: usize| format!("the quick brown fox jumps over the lazy dog {i}\n");
    let long: String = (0..4000).map(line).collect();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/image-store/tests/data");
    for name in ["zstd", "deflate", "lzma", "lzma-dedupe", "fragments", "all-fragments", "dedupe"] {
        let (file, store) = (dir.path().join(name), dir.path().join(format!("store-{name}")));
        let unpacked = dir.path().join(format!("unpacked-{name}"));
        tool("sh", &["-c", &format!("zstd -dqc {}/{name}.erofs.zst > {}", text(&data), text(&file))]);
        import(&store, &file).good();
        unsquash(&only_image(&store), &unpacked);
        let read = |path: &str| fs::read_to_string(unpacked.join(path)).unwrap();
        assert_eq!(read("long"), long, "{name}");
        assert_eq!(read("again"), format!("other begin\n{}", &long[9000..]), "{name}");
        for i in 0..40 {
            assert_eq!(read(&format!("small/{i}")), (0..i * 3).map(line).collect::<String>(), "{name}");
        }
    }
}

#[test]
fn what_is_refused_says_why() {
    let image = Throwaway::new();
    image.file("file", vec![7; 9000]);
    let dir = directory("/var/tmp");
    let file = dir.path().join("image.erofs");
    tool("mkfs.erofs", &["--quiet", "-zlz4", text(&file), text(&image.root())]);
    let good = fs::read(&file).unwrap();
    let changed = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let far = u32::MAX.to_le_bytes();
    let table: &[(Vec<u8>, &str, &str)] = &[
        (good[..good.len() - 4096].to_vec(), "image-damaged", "its superblock says"),
        (good[..1100].to_vec(), "image-damaged", "superblock, 128 bytes at 1024, lies behind"),
        (changed(1024 + 12, &[63]), "image-damaged", "its blocks have 2^63 bytes"),
        (changed(1024 + 81, &[1]), "image-unsupported", "features that are not known here (0x100)"),
        (changed(1024 + 86, &[2]), "image-unsupported", "its data in other files"),
        (changed(1024 + 80, &[0]), "image-unsupported", "-Elegacy-compress"),
        (changed(1024 + 40, &far), "image-damaged", "lies behind the file's end"),
        (changed(1024 + 14, &[0xff, 0xff]), "image-damaged", "lies behind the file's end"),
    ];
    for who in everyone() {
        let store = owned(dir.path(), &format!("store-{who:?}"), *who);
        for (bytes, code, why) in table {
            fs::write(&file, bytes).unwrap();
            layout::open(&file);
            let run = Run::launch(*who, ["--store", text(&store), text(&file), "true"]);
            let outcome = run.run();
            outcome.refused(code, &[text(&file), why]);
        }
    }
}

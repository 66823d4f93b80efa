//! Layers of any entries: merged into a tree, in which every file has its data, and written; or refused.
#![no_main]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arbitrary::Arbitrary;
use image_store::blob::Blob;
use image_store::codec::Allowance;
use image_store::layers::{Layer, Merge, merge};
use image_store::squash::{self, Compressor, Data};
use image_store::tree::{Node, Tree};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Kind {
    File(u8),
    Directory,
    Symlink(Vec<u8>),
    Link(Vec<u8>),
    Whiteout,
    Opaque,
    Fifo,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    path: Vec<u8>,
    kind: Kind,
}

/// A path of few names, so that entries meet: each byte is a part.
fn path(bytes: &[u8]) -> String {
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "..", ".", "usr", ""];
    bytes.iter().take(5).map(|b| NAMES[usize::from(b % 8)]).collect::<Vec<_>>().join("/")
}

fn block(name: &str, kind: u8, link: &str, content: &[u8], archive: &mut Vec<u8>) {
    let mut h = [0u8; 512];
    h[..name.len()].copy_from_slice(name.as_bytes());
    h[100..107].copy_from_slice(b"0000644");
    h[108..115].copy_from_slice(b"0000000");
    h[116..123].copy_from_slice(b"0000000");
    h[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    h[136..147].copy_from_slice(b"00000000000");
    h[156] = kind;
    h[157..157 + link.len()].copy_from_slice(link.as_bytes());
    h[257..263].copy_from_slice(b"ustar\0");
    h[148..156].fill(b' ');
    let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
    h[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    archive.extend_from_slice(&h);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries.iter().take(24) {
        let name = path(&entry.path);
        let beside = |what: &str| match name.rsplit_once('/') {
            Some((above, name)) => format!("{above}/{}", what.replace('*', name)),
            None => what.replace('*', &name),
        };
        match &entry.kind {
            Kind::File(content) => {
                block(&name, b'0', "", &vec![*content; usize::from(*content)], &mut archive)
            }
            Kind::Directory => block(&name, b'5', "", b"", &mut archive),
            Kind::Symlink(to) => block(&name, b'2', &path(to), b"", &mut archive),
            Kind::Link(to) => block(&name, b'1', &path(to), b"", &mut archive),
            Kind::Whiteout => block(&beside(".wh.*"), b'0', "", b"", &mut archive),
            Kind::Opaque => block(&beside(".wh..wh..opq"), b'0', "", b"", &mut archive),
            Kind::Fifo => block(&name, b'6', "", b"", &mut archive),
        }
    }
    archive
}

fn layer(bytes: &[u8]) -> Layer {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    let blob =
        Blob { file: Arc::new(file), path: PathBuf::from("layer"), offset: 0, length: bytes.len() as u64 };
    Layer { blob, name: "layer".to_owned(), digest: None, diff_id: None }
}

fn data(file: &File) -> Data {
    Data::new(file.try_clone().expect("a file"), Path::new("out"), Compressor::Lz4, 1).expect("threads")
}

/// Paths and what they are; files by the sizes and contents that they would have.
fn listed(tree: &Tree) -> BTreeMap<Vec<u8>, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![(tree.root(), Vec::new())];
    while let Some((id, path)) = todo.pop() {
        for (name, child) in tree.entries(id) {
            let path = [&path[..], b"/", name].concat();
            let what = match tree.node(child) {
                Node::Directory => {
                    todo.push((child, path.clone()));
                    "directory".to_owned()
                }
                Node::File(data) => {
                    assert_ne!(data, u32::MAX, "a file without data");
                    "file".to_owned()
                }
                Node::Symlink(to) => format!("link {to:?}"),
                Node::Fifo | Node::Socket => "special".to_owned(),
            };
            all.insert(path, what);
        }
    }
    all
}

fuzz_target!(|input: Vec<Vec<Entry>>| {
    let layers: Vec<Layer> = input.iter().take(4).map(|entries| layer(&archive(entries))).collect();
    let out = tempfile::tempfile().expect("a file");
    let mut held = data(&out);
    let mut with = Merge { data: &mut held, allowance: Allowance::new(8 << 20), read: Arc::default() };
    let Ok((tree, _)) = merge(&layers, &mut with) else { return };
    // Every file that is there has its data.
    listed(&tree);
    let (_, length) = squash::finish(&tree, held, 0).expect("a tree that was accepted can be written");
    let file = out.try_clone().expect("a file");
    squash::check(&Blob { file: Arc::new(file), path: PathBuf::from("out"), offset: 0, length })
        .expect("a SquashFS file");
});

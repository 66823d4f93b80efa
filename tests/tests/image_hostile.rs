//! Archives that nobody made in good faith: refused with the reason, and nothing outside of the store is touched.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use hpc_launch_tests::host::{everyone, is_root};
use hpc_launch_tests::image::directory;
use hpc_launch_tests::layout::{only_image, open, python, text, tool, unsquash};
use hpc_launch_tests::run::Run;

/// Writes one file (or directory) for each case.
const MAKER: &str = r#"
import sys, os, io, json, gzip, hashlib, tarfile, struct, zlib
out = sys.argv[1]
zstd = os.popen
def path(name): return os.path.join(out, name)
def header(name, kind=b'0', size=0, link=b'', mode=0o644, major=b'', minor=b'', gnu=True):
    name = name if isinstance(name, bytes) else name.encode()
    h = bytearray(512)
    h[0:len(name)] = name
    h[100:108] = b'%07o\0' % mode
    h[108:116] = b'0000000\0'
    h[116:124] = b'0000000\0'
    h[124:136] = b'%011o\0' % size if size < 8**11 else b'\x80' + size.to_bytes(11, 'big')
    h[136:148] = b'00000000000\0'
    h[156:157] = kind
    h[157:157+len(link)] = link
    h[257:265] = b'ustar  \0' if gnu else b'ustar\x0000'
    h[329:329+len(major)] = major
    h[337:337+len(minor)] = minor
    return h
def sum_(h):
    h[148:156] = b'        '
    h[148:156] = b'%06o\0 ' % sum(h)
    return bytes(h)
def entry(name, kind=b'0', data=b'', size=None, **more):
    h = sum_(header(name, kind, len(data) if size is None else size, **more))
    return h + data + b'\0' * (-len(data) % 512)
def pax(records):
    text = b''
    for k, v in records:
        k, v = k.encode(), v if isinstance(v, bytes) else v.encode()
        n = len(k) + len(v) + 3
        l = n + 1
        while len(str(l)) + n != l: l += 1
        text += b'%d %s=%s\n' % (l, k, v)
    return entry('pax', b'x', text)
END = b'\0' * 1024
first = entry('etc/', b'5', mode=0o755) + entry('etc/a', data=b'a')
def tar(name, *entries, end=END):
    open(path(name), 'wb').write(first + b''.join(entries) + end)

tar('climbs', entry('../evil', data=b'x'))
tar('climbs-inside', entry('etc/../../evil', data=b'x'))
tar('climbs-in-pax', pax([('path', '../../evil')]), entry('x', data=b'x'))
tar('climbs-in-gnu', entry('x', b'L', b'../../evil\0'), entry('x', data=b'x'))
tar('hard-link-climbs', entry('shadow', b'1', link=b'../../../etc/shadow'))
tar('hard-link-to-nothing', entry('shadow', b'1', link=b'/etc/shadow'))
tar('hard-link-to-directory', entry('d', b'1', link=b'etc'))
tar('link-loop', entry('l', b'2', link=b'm'), entry('m', b'2', link=b'l'), entry('l/x', data=b'x'))
tar('below-a-file', entry('etc/a/b', data=b'x'))
tar('root-is-a-link', entry('./', b'2', link=b'/'))
tar('long-name-of-a-tebibyte', entry('x', b'L', size=1 << 40))
tar('pax-of-a-gibibyte', entry('x', b'x', size=1 << 30))
tar('path-too-long', pax([('path', 'x/' * 3000)]), entry('x'))
tar('name-too-long', pax([('path', 'x' * 300)]), entry('x'))
tar('nul-in-path', pax([('path', b'a\0b')]), entry('x'))
tar('pax-lies', entry('pax', b'x', b'999 path=x\n'), entry('x'))
tar('pax-is-none', entry('pax', b'x', b'\xff' * 100), entry('x'))
tar('too-many-attributes', *[pax([('SCHILY.xattr.user.a', b'x' * 70000)]), entry('x')])
tar('sparse-overlaps', pax([('GNU.sparse.size', '10'), ('GNU.sparse.map', '0,2,1,1')]), entry('f', data=b'abc'))
tar('sparse-behind-the-end', pax([('GNU.sparse.size', '10'), ('GNU.sparse.map', '18446744073709551610,3')]), entry('f', data=b'abc'))
tar('sparse-of-a-billion', pax([('GNU.sparse.major', '1'), ('GNU.sparse.minor', '0'), ('GNU.sparse.realsize', '10')]), entry('f', data=b'1000000000\n'.ljust(512, b'\0')))
tar('sparse-of-exbibytes', pax([('GNU.sparse.size', str(1 << 62)), ('GNU.sparse.map', '0,3')]), entry('f', data=b'abc'))
g = header('f', b'S', 0); g[386:398] = b'\x80' + (1 << 62).to_bytes(11, 'big'); g[482] = 1; g[483:495] = b'zzzzzzzzzzzz'
tar('gnu-sparse-of-letters', sum_(g), b'\0' * 512)
bad = bytearray(entry('x', data=b'x')); bad[0] ^= 1
tar('wrong-checksum', bytes(bad))
tar('multi-volume', entry('x', b'M'))
tar('very-deep', pax([('path', '/'.join('d' * 1 for _ in range(700)))]), entry('x'))
tar('cut', entry('x', data=b'x' * 5000), end=b'')
data = open(path('cut'), 'rb').read(); open(path('cut'), 'wb').write(data[:-3000])
tar('whiteout-of-nothing', entry('etc/.wh.', data=b''))
tar('whiteout-of-the-parent', entry('etc/.wh...', data=b''))
whole = gzip.compress(first + entry('r', data=os.urandom(100000)) + END)
open(path('cut.gz'), 'wb').write(whole[:len(whole) // 2])
flipped = bytearray(whole); flipped[-6] ^= 1
open(path('wrong-crc.gz'), 'wb').write(bytes(flipped))
open(path('no-gzip.gz'), 'wb').write(b'\x1f\x8b\x08\0' + b'\xff' * 1000)
def bomb():
    yield first
    yield sum_(header('zeros', b'0', 3 << 30))
    block = b'\0' * (1 << 20)
    for _ in range(3 << 10): yield block
    yield END
with gzip.open(path('bomb.gz'), 'wb', 1) as f:
    for b in bomb(): f.write(b)
open(path('device'), 'wb').write(first + entry('dev/sda', b'4', major=b'0000010\0', minor=b'0000000\0') + entry('etc/tty', b'3', major=b'0000005\0', minor=b'0000000\0') + END)
open(path('absolute'), 'wb').write(first + entry('/etc/evil', data=b'x') + entry('out', b'2', link=b'/etc') + entry('out/through', data=b'x') + entry('up', b'2', link=b'../../../..') + entry('up/tmp/up', data=b'x') + END)

# OCI layouts.
arch = {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(os.uname().machine, os.uname().machine)
def layout(name, change=None, layer=None, config=None, index=None, arch=arch):
    d = path(name)
    blobs = os.path.join(d, 'blobs/sha256')
    os.makedirs(blobs)
    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        open(os.path.join(blobs, digest), 'wb').write(data)
        return {'digest': 'sha256:' + digest, 'size': len(data)}
    raw = first + END
    packed = layer or gzip.compress(raw, mtime=0)
    parts = {'config': {'architecture': arch, 'os': 'linux', 'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(raw).hexdigest()]}}}
    parts['layers'] = [dict(put(packed), mediaType='application/vnd.oci.image.layer.v1.tar+gzip')]
    if change: change(parts, blobs)
    config = put(config or json.dumps(parts['config']).encode())
    manifest = {'schemaVersion': 2, 'config': dict(config, mediaType='application/vnd.oci.image.config.v1+json'), 'layers': parts['layers']}
    m = parts.get('manifest') or json.dumps(manifest).encode()
    described = dict(put(m), mediaType='application/vnd.oci.image.manifest.v1+json')
    if 'after' in parts: parts['after'](described, blobs)
    index = index(put, described) if index else {'schemaVersion': 2, 'manifests': [described]}
    json.dump(index, open(os.path.join(d, 'index.json'), 'w'))
    json.dump({'imageLayoutVersion': '1.0.0'}, open(os.path.join(d, 'oci-layout'), 'w'))
def blob(parts, blobs): return os.path.join(blobs, parts['layers'][0]['digest'][7:])
def overwrite(parts, blobs):
    p = blob(parts, blobs); d = bytearray(open(p, 'rb').read()); d[20] ^= 1; open(p, 'wb').write(bytes(d))
def set_(key, value):
    def f(parts, blobs): parts['layers'][0][key] = value
    return f
layout('layer-changed', overwrite)
layout('layer-of-another-size', set_('size', 77))
layout('layer-missing', set_('digest', 'sha256:' + '0' * 64))
layout('digest-is-a-path', set_('digest', 'sha256:../../../../../../../../etc/passwd'))
layout('digest-of-another-kind', set_('digest', 'sha512:' + '0' * 128))
layout('layer-encrypted', set_('mediaType', 'application/vnd.oci.image.layer.v1.tar+gzip+encrypted'))
def other(parts, blobs): parts['config']['rootfs']['diff_ids'] = ['sha256:' + '1' * 64]
layout('archive-changed', other)
def more(parts, blobs): parts['config']['rootfs']['diff_ids'] *= 2
layout('layers-do-not-match', more)
def text(parts, blobs): parts['manifest'] = b'[1, 2'
layout('manifest-is-no-json', text)
def touched(parts, blobs):
    def after(described, blobs): open(os.path.join(blobs, described['digest'][7:]), 'r+b').write(b'{ ')
    parts['after'] = after
layout('manifest-changed', touched)
layout('configuration-of-16-mib', config=b' ' * (16 << 20))
def nested(put, described):
    for _ in range(10):
        described = dict(put(json.dumps({'schemaVersion': 2, 'manifests': [described]}).encode()), mediaType='application/vnd.oci.image.index.v1+json')
    return {'schemaVersion': 2, 'manifests': [described]}
layout('indexes-in-indexes', index=nested)
layout('many-layers', lambda parts, blobs: (parts.update(layers=parts['layers'] * 1000), parts['config']['rootfs'].update(diff_ids=parts['config']['rootfs']['diff_ids'] * 1000)))
def others(put, described):
    return {'schemaVersion': 2, 'manifests': [dict(described, platform={'architecture': a, 'os': 'linux'}) for a in ('s390x', 'riscv64')]}
layout('another-machine', index=others)
layout('another-machine-in-configuration', arch='s390x')
layout('no-image', index=lambda put, described: {'schemaVersion': 2, 'manifests': []})

# docker save.
def docker(name, manifest, *members):
    with tarfile.open(path(name), 'w') as t:
        def add(n, data):
            i = tarfile.TarInfo(n); i.size = len(data); t.addfile(i, io.BytesIO(data))
        c = json.dumps({'architecture': arch, 'os': 'linux', 'rootfs': {'diff_ids': ['sha256:' + hashlib.sha256(first + END).hexdigest()]}}).encode()
        add('0' * 64 + '.json', c)
        for m in members: t.addfile(m)
        add('manifest.json', json.dumps(manifest).encode())
saved = {'Config': '0' * 64 + '.json', 'RepoTags': ['x:1'], 'Layers': ['../../../../etc/passwd']}
docker('docker-climbs', [saved])
l = tarfile.TarInfo('1' * 64 + '/layer.tar'); l.type = tarfile.SYMTYPE; l.linkname = '../../../../../../etc/passwd'
docker('docker-link-climbs', [dict(saved, Layers=['1' * 64 + '/layer.tar'])], l)
docker('docker-of-two', [saved, dict(saved, RepoTags=['y:1'])])

# SIF.
def sif(name, objects, total=48, at=4096, version=b'01\0', size=65536):
    h = b'#!/usr/bin/env run-singularity\n'.ljust(32, b'\0') + b'SIF_MAGIC\0' + version + b'02\0' + b'\0' * 16
    h += struct.pack('<8q', 0, 0, 46, total, at, 48 * 585, 32768, 100)
    d = b''
    for kind, place, length, fs, part in objects:
        d += struct.pack('<i?III', kind, True, 1, 0xf0000001, 0) + struct.pack('<7q', place, length, length, 0, 0, 0, 0) + b'x'.ljust(128, b'\0')
        d += (struct.pack('<ii', fs, part) + b'02\0').ljust(384, b'\0')
    open(path(name), 'wb').write((h.ljust(4096, b'\0') + d).ljust(size, b'\0')[:size])
P = 0x4004
sif('sif-overlaps', [(P, 40960, 4096, 1, 2), (0x4003, 41000, 10, 0, 0)])
sif('sif-overflows', [(P, (1 << 63) - 10, 4096, 1, 2)])
sif('sif-behind-its-end', [(P, 40960, 1 << 40, 1, 2)])
sif('sif-negative', [(P, -1, 4096, 1, 2)])
sif('sif-over-its-header', [(P, 0, 65536, 1, 2)])
sif('sif-of-a-billion', [], total=1 << 40)
sif('sif-descriptors-outside', [], at=(1 << 62))
sif('sif-encrypted', [(P, 40960, 4096, 5, 2)])
sif('sif-no-squashfs', [(P, 40960, 4096, 1, 2)])
sif('sif-cut', [], size=100)
"#;

/// Name, code, words.
const CASES: &[(&str, &str, &[&str])] = &[
    ("climbs", "image-hostile", &["\"../evil\", which leads out of its directory"]),
    ("climbs-inside", "image-hostile", &["etc/../../evil"]),
    ("climbs-in-pax", "image-hostile", &["../../evil"]),
    ("climbs-in-gnu", "image-hostile", &["../../evil"]),
    ("hard-link-climbs", "image-hostile", &["../../../etc/shadow"]),
    (
        "hard-link-to-nothing",
        "image-damaged",
        &["/shadow is another name of /etc/shadow, which is not there"],
    ),
    ("hard-link-to-directory", "image-hostile", &["another name of the directory /etc"]),
    ("link-loop", "image-damaged", &["/l leads through more than 40 links"]),
    ("below-a-file", "image-damaged", &["/etc/a is no directory, and something lies below it"]),
    ("root-is-a-link", "image-hostile", &["a root that is no directory"]),
    ("long-name-of-a-tebibyte", "image-hostile", &["a header of 1.0 TiB"]),
    ("pax-of-a-gibibyte", "image-hostile", &["a header of 1.0 GiB"]),
    ("path-too-long", "image-hostile", &["a path of 6000 bytes"]),
    ("name-too-long", "image-hostile", &["a name of 300 bytes"]),
    ("nul-in-path", "image-hostile", &["a path with a NUL"]),
    ("pax-lies", "image-damaged", &["a pax header that is none"]),
    ("pax-is-none", "image-damaged", &["a pax header that is none"]),
    ("too-many-attributes", "image-hostile", &["bytes of extended attributes"]),
    ("sparse-overlaps", "image-damaged", &["f: pieces of a sparse file overlap"]),
    ("sparse-behind-the-end", "image-damaged", &["lie behind its end"]),
    ("sparse-of-a-billion", "image-hostile", &["a sparse file of 1000000000 pieces"]),
    ("sparse-of-exbibytes", "image-too-large", &["holds more than 1.0 GiB", "--max-size"]),
    ("gnu-sparse-of-letters", "image-damaged", &["sparse file's map is no numbers"]),
    ("wrong-checksum", "image-damaged", &["a header whose checksum is wrong"]),
    ("multi-volume", "image-unsupported", &["of the type 'M'"]),
    ("very-deep", "image-hostile", &["in more than 512 directories"]),
    ("cut", "image-damaged", &["the tar archive is cut short"]),
    ("whiteout-of-nothing", "image-hostile", &["\"etc/.wh.\" of nothing"]),
    ("whiteout-of-the-parent", "image-hostile", &["\"etc/.wh...\" of nothing"]),
    ("cut.gz", "image-damaged", &["cut short"]),
    ("wrong-crc.gz", "image-damaged", &["what is compressed in it is damaged"]),
    ("no-gzip.gz", "image-damaged", &["what is compressed in it is damaged"]),
    ("bomb.gz", "image-too-large", &["holds more than 1.0 GiB", "--max-size"]),
    ("layer-changed", "image-digest", &["layer 1 of", "the layer's digest is sha256:", "must be sha256:"]),
    ("layer-of-another-size", "image-damaged", &["its layer, has", "should have 77"]),
    ("layer-missing", "image-damaged", &["has no blobs/sha256/0000", "its layer"]),
    ("digest-is-a-path", "image-damaged", &["is no digest"]),
    ("digest-of-another-kind", "image-damaged", &["is no digest"]),
    ("layer-encrypted", "image-unsupported", &["its layers are encrypted"]),
    ("archive-changed", "image-digest", &["the digest of the layer's archive is", "must be sha256:1111"]),
    ("layers-do-not-match", "image-damaged", &["the manifest has 1 layers, the configuration 2"]),
    ("manifest-is-no-json", "image-damaged", &["the manifest is not what it should be"]),
    ("manifest-changed", "image-digest", &["the manifest of", "must be sha256:"]),
    ("configuration-of-16-mib", "image-hostile", &["16 MiB where at most 8.0 MiB make sense"]),
    ("indexes-in-indexes", "image-hostile", &["indexes in more than 4 indexes"]),
    ("many-layers", "image-hostile", &["an image of 1000 layers"]),
    (
        "another-machine",
        "image-architecture",
        &["is for linux/s390x, linux/riscv64, and linux/", "is wanted"],
    ),
    ("another-machine-in-configuration", "image-architecture", &["is for linux/s390x, and linux/"]),
    ("no-image", "image-missing", &["holds no image"]),
    ("docker-climbs", "image-damaged", &["has no ../../../../etc/passwd, its layer"]),
    ("docker-link-climbs", "image-damaged", &["/layer.tar, its layer"]),
    ("docker-of-two", "image-name", &["holds several images: x:1, y:1", "PATH:NAME"]),
    ("sif-overlaps", "image-damaged", &["objects at 40960 and 41000 overlap"]),
    ("sif-overflows", "image-damaged", &["lies behind its end at 65536"]),
    ("sif-behind-its-end", "image-damaged", &["lies behind its end at 65536"]),
    ("sif-negative", "image-damaged", &["object's place is -1"]),
    ("sif-over-its-header", "image-damaged", &["lies over the header"]),
    ("sif-of-a-billion", "image-damaged", &["it has 1099511627776 descriptors"]),
    ("sif-descriptors-outside", "image-damaged", &["lie behind its end"]),
    ("sif-encrypted", "image-unsupported", &["is encrypted", "--encrypt"]),
    ("sif-no-squashfs", "image-damaged", &["it does not begin as one"]),
    ("sif-cut", "image-damaged", &["it is cut short"]),
];

/// Every path below a directory, with its time of change.
fn everything(path: &Path) -> Vec<String> {
    let out = tool("find", &[text(path), "-printf", "%p %y %s %C@\n"]);
    let mut lines: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().map(String::from).collect();
    lines.sort();
    lines
}

#[test]
fn hostile_archives_are_refused_and_touch_nothing() {
    let dir = directory("/var/tmp");
    let made = dir.path().join("made");
    fs::create_dir(&made).unwrap();
    python(MAKER, &[text(&made)]);
    open(&made);
    for who in everyone() {
        let beside = dir.path().join(format!("{who:?}"));
        fs::create_dir(&beside).unwrap();
        if is_root() {
            let account = who.account();
            std::os::unix::fs::chown(&beside, Some(account.uid), Some(account.gid)).unwrap();
        }
        let store = beside.join("store");
        let before = (everything(&made), fs::metadata("/etc").unwrap().modified().unwrap());
        for (name, code, parts) in CASES {
            let file = made.join(name);
            let import = ["image", "import", "--max-size", "1G", "--store", text(&store), text(&file), "x"];
            let outcome = Run::launch(*who, import).run();
            outcome.refused(code, parts);
            // Run, it says the same.
            Run::launch(*who, ["--max-size", "1G", "--store", text(&store), text(&file), "true"])
                .run()
                .refused(code, parts);
            for directory in ["images", "names", "work", "sources"] {
                let there = fs::read_dir(store.join(directory)).map_or(0, Iterator::count);
                assert_eq!(there, 0, "{name}: something is left in {directory}");
            }
        }
        let beside_store: Vec<_> = fs::read_dir(&beside).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(beside_store, ["store"]);
        assert_eq!(before.0, everything(&made));
        assert_eq!(before.1, fs::metadata("/etc").unwrap().modified().unwrap());
        // A limit that the user raises is the user's.
        let bomb = made.join("bomb.gz");
        Run::launch(*who, ["image", "import", "--max-size", "4G", "--store", text(&store), text(&bomb), "x"])
            .run()
            .good();
        assert!(fs::metadata(only_image(&store)).unwrap().len() < 1 << 20, "zeros are not stored");
    }
    eprintln!("{} archives refused", CASES.len());
}

/// What is odd and no harm: kept inside, or left out and said.
#[test]
fn odd_archives_stay_inside() {
    let dir = directory("/var/tmp");
    let made = dir.path().join("made");
    fs::create_dir(&made).unwrap();
    python(MAKER, &[text(&made)]);
    let who = everyone()[0];
    let store = dir.path().join("store");
    let import = |name: &str| {
        let outcome =
            Run::launch(who, ["image", "import", "--store", text(&store), text(&made.join(name)), "x"]).run();
        outcome.good()
    };
    import("device").says(&["2 device nodes left out: programs see the host's /dev"]);
    let to = dir.path().join("device");
    unsquash(&only_image(&store), &to);
    assert!(!to.join("dev/sda").exists() && !to.join("etc/tty").exists() && to.join("etc/a").exists());
    fs::remove_dir_all(&store).unwrap();
    import("absolute");
    let to = dir.path().join("absolute");
    unsquash(&only_image(&store), &to);
    for inside in ["etc/evil", "etc/through", "tmp/up"] {
        assert_eq!(fs::read(to.join(inside)).unwrap(), b"x", "{inside}");
        assert!(!Path::new("/").join(inside).exists(), "/{inside} on the host");
    }
}

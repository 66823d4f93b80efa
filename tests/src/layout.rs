//! Images as others make them: archives of podman and skopeo, OCI layouts of layers made for a test, SIF files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::host::{self, Who};
use crate::run::Run;

/// Runs a tool, which must succeed.
pub fn tool(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}: `cargo xtask test` installs it"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
    output
}

/// A path of a test: they are all UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A directory beside others of a test, for a user to write to.
pub fn owned(beside: &Path, name: &str, who: Who) -> PathBuf {
    let path = beside.join(name);
    fs::create_dir_all(&path).expect("a directory");
    if host::is_root() {
        let account = who.account();
        std::os::unix::fs::chown(&path, Some(account.uid), Some(account.gid)).expect("given away");
    }
    path
}

/// An archive of what is in `root`, compressed as the ending says.
pub fn tar(root: &Path, file: &Path) {
    let how = match file.extension().and_then(|e| e.to_str()) {
        Some("gz") => "--gzip",
        Some("zst") => "--zstd",
        Some("xz") => "--use-compress-program=xz -0 -T2",
        _ => "--sparse",
    };
    tool("tar", &["-C", text(root), how, "--numeric-owner", "-cf", text(file), "."]);
    open(file);
}

/// Makes it readable by all.
pub fn open(path: &Path) {
    tool("chmod", &["-R", "a+rX", text(path)]);
}

/// Python, which makes what no tool would.
pub fn python(script: &str, arguments: &[&str]) {
    let mut child =
        Command::new("python3").arg("-").args(arguments).stdin(Stdio::piped()).spawn().expect("python3");
    child.stdin.take().expect("its input").write_all(script.as_bytes()).expect("written");
    assert!(child.wait().expect("its end").success(), "python3 failed at {arguments:?}");
}

/// A SIF file written by an independent program: it is not Apptainer's.
pub fn sif(squashfs: &Path, file: &Path) {
    const WRITER: &str = r#"
import struct, sys, json, uuid
squashfs, out = sys.argv[1:3]
data = open(squashfs, 'rb').read()
labels = json.dumps({'org.label-schema.name': 'made by hand'}).encode()
arch = b'02\0' if sys.argv[3] == 'x86_64' else b'04\0'
start, at = 32768, 4096
places = []
place = start
for blob in (labels, data):
    place = (place + 4095) // 4096 * 4096
    places.append(place)
    place += len(blob)
header = b'#!/usr/bin/env run-singularity\n'.ljust(32, b'\0') + b'SIF_MAGIC\0' + b'01\0' + arch + uuid.uuid4().bytes
header += struct.pack('<8q', 0, 0, 46, 48, at, 48 * 585, start, place - start)
def descriptor(kind, number, place, length, name, extra):
    d = struct.pack('<i?III', kind, True, number, 0xf0000001, 0)
    d += struct.pack('<7q', place, length, length, 0, 0, 0, 0)
    return d + name.ljust(128, b'\0') + extra.ljust(384, b'\0')
all = descriptor(0x4003, 1, places[0], len(labels), b'labels', b'')
all += descriptor(0x4004, 2, places[1], len(data), b'root', struct.pack('<ii', 1, 2) + arch)
with open(out, 'wb') as f:
    f.write(header)
    f.seek(at)
    f.write(all)
    for place, blob in zip(places, (labels, data)):
        f.seek(place)
        f.write(blob)
"#;
    python(WRITER, &[text(squashfs), text(file), std::env::consts::ARCH]);
    open(file);
}

/// A SIF file that Apptainer builds, run by us; `None` where there is no Apptainer.
pub fn sif_of_apptainer(root: &Path, file: &Path) -> Option<()> {
    let apptainer = host::image("libc").with_file_name("apptainer");
    if !apptainer.exists() || !host::is_root() {
        return None;
    }
    let beside = file.parent().expect("a directory");
    let bind = format!("{}:/source", fs::canonicalize(root).expect("it is there").display());
    let arguments = [
        "--bind",
        &bind,
        "--bind",
        text(beside),
        text(&apptainer),
        "apptainer",
        "build",
        text(file),
        "/source",
    ];
    Run::launch(Who::Root, arguments).run().good();
    open(file);
    Some(())
}

/// podman, with a store of its own below `beside`.
pub fn podman(beside: &Path, arguments: &[&str]) -> Output {
    let root = beside.join("podman");
    let run = beside.join("podman-run");
    let own = ["--root", text(&root), "--runroot", text(&run), "--storage-driver", "vfs"];
    let how = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"];
    tool("podman", &[&own[..], &how, arguments].concat())
}

/// An OCI layout of layers that a Python script describes: `layers` is a list of lists of entries, each a dictionary with
/// `name` and what differs from a file of mode 0644 (`type`, `linkname`, `mode`, `uid`, `gid`, `mtime`, `data`, `pax_headers`).
pub fn oci(layers: &str, directory: &Path) {
    const WRITER: &str = r#"
import sys, os, io, json, gzip, hashlib, tarfile
out = sys.argv[1]
blobs = os.path.join(out, 'blobs/sha256')
os.makedirs(blobs, exist_ok=True)
def put(data):
    digest = hashlib.sha256(data).hexdigest()
    open(os.path.join(blobs, digest), 'wb').write(data)
    return 'sha256:' + digest
TYPES = {'file': tarfile.REGTYPE, 'dir': tarfile.DIRTYPE, 'symlink': tarfile.SYMTYPE, 'link': tarfile.LNKTYPE,
         'fifo': tarfile.FIFOTYPE, 'char': tarfile.CHRTYPE, 'block': tarfile.BLKTYPE}
diffs, described = [], []
for layer in layers:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode='w', format=tarfile.PAX_FORMAT) as tar:
        for e in layer:
            info = tarfile.TarInfo(e['name'])
            info.type = TYPES[e.get('type', 'file')]
            info.mode = e.get('mode', 0o755 if info.type == tarfile.DIRTYPE else 0o644)
            info.linkname = e.get('linkname', '')
            info.uid, info.gid, info.mtime = e.get('uid', 0), e.get('gid', 0), e.get('mtime', 1000000000)
            info.pax_headers = e.get('pax_headers', {})
            info.devmajor, info.devminor = e.get('device', (0, 0))
            data = e.get('data', b'')
            data = data if isinstance(data, bytes) else data.encode()
            info.size = len(data) if info.type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    diffs.append('sha256:' + hashlib.sha256(raw.getvalue()).hexdigest())
    packed = gzip.compress(raw.getvalue(), 1, mtime=0)
    described.append({'mediaType': 'application/vnd.oci.image.layer.v1.tar+gzip', 'digest': put(packed), 'size': len(packed)})
arch = {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(os.uname().machine, os.uname().machine)
config = json.dumps({'architecture': arch, 'os': 'linux', 'config': CONFIG, 'rootfs': {'type': 'layers', 'diff_ids': diffs}}).encode()
manifest = json.dumps({'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json',
    'config': {'mediaType': 'application/vnd.oci.image.config.v1+json', 'digest': put(config), 'size': len(config)},
    'layers': described}).encode()
index = {'schemaVersion': 2, 'manifests': [{'mediaType': 'application/vnd.oci.image.manifest.v1+json', 'digest': put(manifest),
    'size': len(manifest), 'annotations': {'org.opencontainers.image.ref.name': 'test'}}]}
json.dump(index, open(os.path.join(out, 'index.json'), 'w'))
json.dump({'imageLayoutVersion': '1.0.0'}, open(os.path.join(out, 'oci-layout'), 'w'))
"#;
    fs::create_dir_all(directory).expect("a directory");
    let script = format!("CONFIG = {{}}\n{layers}\n{WRITER}");
    python(&script, &[text(directory)]);
    open(directory);
}

/// One line for each path below `root`, by which two trees are compared: type, mode, owner, time, links, contents.
/// Directories' times and root's own are left out: who unpacks changes them.
pub fn listing(root: &Path) -> Vec<String> {
    const LISTER: &str = r#"
import sys, os, stat, hashlib
root = sys.argv[1]
first = {}
lines = []
for here, dirs, files in os.walk(root):
    for name in sorted(dirs + files):
        path = os.path.join(here, name)
        s = os.lstat(path)
        short = os.path.relpath(path, root)
        kind = stat.S_IFMT(s.st_mode)
        line = '%s %o %d:%d' % (short, s.st_mode & ~0o6000 if kind != stat.S_IFDIR else s.st_mode & ~0o4000, s.st_uid, s.st_gid)
        if kind != stat.S_IFDIR:
            line += ' %d' % int(s.st_mtime)
            if s.st_nlink > 1:
                line += ' same as %s' % first.setdefault(s.st_ino, short)
        if kind == stat.S_IFLNK:
            line += ' -> ' + os.readlink(path)
        if kind == stat.S_IFREG:
            line += ' %d %s' % (s.st_size, hashlib.sha256(open(path, 'rb').read()).hexdigest())
        for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
            if attribute.startswith('user.'):
                line += ' %s=%r' % (attribute, os.getxattr(path, attribute, follow_symlinks=False))
        lines.append(line)
print('\n'.join(sorted(lines)))
"#;
    let output = Command::new("python3").args(["-c", LISTER, text(root)]).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(String::from).collect()
}

/// The only image file of a store.
pub fn only_image(store: &Path) -> PathBuf {
    let images = fs::read_dir(store.join("images")).expect("a store").flatten();
    let mut files = images.map(|e| e.path().join("image.sqfs"));
    let file = files.next().expect("an image");
    assert!(files.next().is_none(), "more than one image in {}", store.display());
    file
}

/// What an image's file holds, unpacked by the tool of those who made the format.
pub fn unsquash(file: &Path, to: &Path) {
    tool("unsquashfs", &["-quiet", "-no-progress", "-dest", text(to), text(file)]);
}

//! Signed SIF files: by Apptainer, and by an independent program with gpg; keys made for one test; what is changed later.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::host::{self, Who};
use crate::layout::{open, python, tool};
use crate::run::{Outcome, Run};

/// Keys of one test, in a home of their own. Its agent ends with it.
pub struct Keys {
    home: PathBuf,
}

impl Keys {
    /// None yet.
    pub fn new(beside: &Path) -> Keys {
        let home = beside.join("gnupg");
        fs::create_dir(&home).expect("a directory");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("chmod");
        Keys { home }
    }

    /// gpg, with these arguments and this input.
    fn gpg(&self, arguments: &[&str]) -> String {
        let home = self.home.to_str().expect("UTF-8");
        let own = [
            "--homedir",
            home,
            "--batch",
            "--quiet",
            "--no-tty",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ];
        let output = tool("gpg", &[&own, arguments].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A new key; answers its fingerprint. `more`: options of gpg's.
    pub fn make(&self, name: &str, more: &[&str]) -> String {
        let user = format!("{name} <{name}@example.org>");
        self.gpg(&[more, &["--quick-gen-key", &user, "ed25519", "sign", "1d"]].concat());
        let listed = self.gpg(&["--with-colons", "--list-keys", &format!("={user}")]);
        let line = listed.lines().find(|line| line.starts_with("fpr:")).expect("its fingerprint");
        line.split(':').nth(9).expect("its fingerprint").to_owned()
    }

    /// Its owner takes it back.
    pub fn revoke(&self, key: &str) {
        let file = self.home.join("openpgp-revocs.d").join(format!("{key}.rev"));
        let text = fs::read_to_string(&file)
            .expect("gpg makes one of each key")
            .replace(":-----BEGIN", "-----BEGIN");
        fs::write(&file, text).expect("written");
        self.gpg(&["--import", file.to_str().expect("UTF-8")]);
    }

    /// A directory as APPTAINER_KEYSDIR, with a key ring of these keys.
    pub fn ring(&self, directory: &Path, keys: &[&str]) -> PathBuf {
        fs::create_dir_all(directory).expect("a directory");
        let ring = directory.join("pgp-public");
        let _ = fs::remove_file(&ring);
        self.gpg(&[&["--output", ring.to_str().expect("UTF-8"), "--export"], keys].concat());
        open(directory);
        directory.to_owned()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let mut command = Command::new("gpgconf");
        command.arg("--homedir").arg(&self.home).args(["--kill", "all"]);
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// How a file is signed.
pub struct How<'a> {
    /// By whom.
    pub key: &'a str,
    /// Options of gpg's.
    pub gpg: &'a str,
    /// A Python expression of the text, from `all` (its digests), `sha` (SHA-256) and `data` (the objects' bytes).
    pub text: &'a str,
}

impl<'a> How<'a> {
    /// As Apptainer signs.
    pub fn usual(key: &'a str) -> How<'a> {
        How { key, gpg: "", text: "json.dumps(all)" }
    }
}

impl Keys {
    /// Signs group 1 of a SIF file: the format as its documentation has it, written apart from ours.
    pub fn sign(&self, file: &Path, how: &How<'_>) {
        const SIGNER: &str = r"
import sys, struct, hashlib, json, subprocess
file, home, key, options, text = sys.argv[1:6]
f = bytearray(open(file, 'rb').read())
total, at = struct.unpack_from('<2q', f, 88)
sha = lambda *parts: 'sha256:' + hashlib.sha256(b''.join(parts)).hexdigest()
slots = [at + i * 585 for i in range(total)]
used = [s for s in slots if f[s + 4]]
group = [s for s in used if struct.unpack_from('<I', f, s + 9)[0] == 0xf0000001]
number = lambda s: struct.unpack_from('<I', f, s + 5)[0]
first = min(map(number, group))
def bytes_of(s):
    place, length = struct.unpack_from('<2q', f, s + 17)
    return bytes(f[place:place + length])
def descriptor(s):
    kind, _, _, _, link, _, size, _, ctime, _, uid, gid = struct.unpack_from('<i?IIIqqqqqqq', f, s)
    fields = struct.pack('<i?IIqqqq', kind, True, number(s) - first, link, size, ctime, uid, gid)
    return sha(fields, bytes(f[s + 73:s + 585]))
all = {'version': 1, 'header': {'digest': sha(bytes(f[:45]), bytes(f[48:64]))}, 'objects': [
    {'relativeId': number(s) - first, 'descriptorDigest': descriptor(s), 'objectDigest': sha(bytes_of(s))} for s in group]}
data = b''.join(map(bytes_of, group))
text = eval(text)
if text.startswith('RAW:'):
    signature = text[4:].encode()
else:
    line = ['gpg', '--homedir', home, '--batch', '--quiet', '--no-tty', '--pinentry-mode', 'loopback', '--passphrase', '',
            '--local-user', key + '!'] + options.split() + ['--clearsign']
    signature = subprocess.run(line, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout
free = next(s for s in slots if not f[s + 4])
place = len(f)
f += signature
f[free:free + 585] = (struct.pack('<i?III', 0x4005, True, max(map(number, used)) + 1, 0xf0000000, 0xf0000001)
    + struct.pack('<7q', place, len(signature), len(signature), 0, 0, 0, 0) + b'part-signature'.ljust(128, b'\0')
    + (struct.pack('<i', 1) + bytes.fromhex(key)).ljust(384, b'\0'))
open(file, 'wb').write(f)
";
        let shown = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        python(SIGNER, &[&shown(file), &shown(&self.home), how.key, how.gpg, how.text]);
    }
}

/// Apptainer, with a key of its own in DIRECTORY/keys and nothing of anybody's home; `None` where there is none.
pub fn apptainer(directory: &Path, arguments: &[&str]) -> Option<Outcome> {
    let image = host::image("libc").with_file_name("apptainer");
    if !image.exists() || !host::is_root() {
        return None;
    }
    let directory = directory.to_str().expect("UTF-8");
    let keys = format!("APPTAINER_KEYSDIR={directory}/keys");
    let image = image.to_str().expect("UTF-8");
    let line = ["--no-home", "--bind", directory, "--env", &keys, image, "apptainer"];
    let run = Run::launch(Who::Root, [&line[..], arguments].concat());
    Some(run.limit(std::time::Duration::from_secs(180)).run().good())
}

/// A SIF file as bytes, to be changed.
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Reads one.
    pub fn of(file: &Path) -> Bytes {
        Bytes(fs::read(file).expect("a file"))
    }

    fn number(&self, at: usize) -> usize {
        usize::try_from(i64::from_le_bytes(self.0[at..at + 8].try_into().expect("8 bytes"))).expect("a place")
    }

    fn slots(&self) -> impl Iterator<Item = usize> {
        let (total, at) = (self.number(88), self.number(96));
        (0..total).map(move |i| at + i * 585)
    }

    /// The place of the last descriptor of that type.
    pub fn descriptor(&self, kind: u32) -> usize {
        let is_it = |at: &usize| self.0[*at..].starts_with(&kind.to_le_bytes()) && self.0[at + 4] != 0;
        self.slots().filter(is_it).last().expect("such an object")
    }

    /// The place of an object's bytes, by its descriptor's.
    pub fn data(&self, descriptor: usize) -> usize {
        self.number(descriptor + 17)
    }

    /// Another byte there.
    pub fn flip(&mut self, at: usize) -> &mut Bytes {
        self.0[at] ^= 1;
        self
    }

    /// Another object, of a few bytes, of that group.
    pub fn add(&mut self, group: u32) -> &mut Bytes {
        let at = self.slots().find(|at| self.0[at + 4] == 0).expect("room");
        let place = i64::try_from(self.0.len()).expect("a place");
        let mut descriptor = [&0x4007u32.to_le_bytes()[..], &[1]].concat();
        descriptor.extend([40, 0xf000_0000 | group, 0].iter().flat_map(|n: &u32| n.to_le_bytes()));
        let lengths = [place, 5, 5, 0, 0, 0, 0];
        descriptor.extend(lengths.iter().flat_map(|n: &i64| n.to_le_bytes()));
        descriptor.resize(585, 0);
        self.0[at..at + 585].copy_from_slice(&descriptor);
        self.0.extend_from_slice(b"added");
        self
    }

    /// Writes it for all to read.
    pub fn write(&self, file: &Path) {
        fs::write(file, &self.0).expect("written");
        open(file);
    }
}

//! What the signatures of a SIF file cover, and whether the file still is that. Whose signature it is, and whether it is
//! right, is told elsewhere, from [`Signature::text`].
//!
//! A signature is an object that is linked to a group of objects: a clear-signed OpenPGP message whose text is JSON with
//! digests of the header, of each object of the group, and of its descriptor (sylabs/sif and apptainer/sif, pkg/integrity).
//! As `apptainer verify` has it, every object must be in a group, every group must be signed, and a signature must name
//! exactly the objects of its group. Of the header it covers neither architecture nor times, of descriptors neither group,
//! place, padding nor the time of the last change (GetIntegrityReader in pkg/sif): nothing of these is believed, but the
//! place, where the object's own digest tells.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512, Sha512_224, Sha512_256};

use super::{Descriptor, SIGNATURE, Table, damaged, read};
use crate::error::{Error, Kind, Result};
use crate::import::Progress;
use crate::name::Digest;

/// Numbers of groups have these bits; a link with them leads to a group, else to an object.
const GROUP_MASK: u32 = 0xf000_0000;
/// A signature of a hundred objects is about 20 KiB.
const MAX_SIGNATURE: u64 = 1 << 20;
const MAX_SIGNATURES: usize = 64;
/// How digests are read.
const CHUNK: usize = 1 << 20;
const SIGN: &str = "sign it: `apptainer sign FILE` (or `singularity sign`)";
const DISTRUST: &str =
    "do not run it: somebody changed it, or it was damaged on its way; get it anew from who signed it";

/// A signature that may be right.
#[derive(Clone, Debug)]
pub struct Signature {
    /// The number of its object.
    pub object: u32,
    /// The group that it covers.
    pub group: u32,
    /// The clear-signed message.
    pub text: Vec<u8>,
    /// Whose it is, as its descriptor says.
    entity: Vec<u8>,
}

/// A signature that is right.
#[derive(Clone, Debug)]
pub struct Approved<'a> {
    /// It.
    pub signature: &'a Signature,
    /// Of the primary key that made it, in hexadecimal digits.
    pub fingerprint: String,
    /// What was signed.
    pub text: Vec<u8>,
}

/// A file whose signatures are right, and that is what was signed.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Of the primary keys, each once.
    pub fingerprints: Vec<String>,
    /// Of the root file system.
    pub root: Digest,
}

/// A SIF file of which every group has a signature.
pub struct Signed<'a> {
    file: &'a File,
    path: &'a Path,
    header: Vec<u8>,
    objects: Vec<Descriptor>,
    /// All that may be right, in the descriptors' order.
    pub signatures: Vec<Signature>,
}

/// What a signature says.
#[derive(Deserialize)]
struct Metadata {
    version: u32,
    header: OfHeader,
    objects: Vec<OfObject>,
}

#[derive(Deserialize)]
struct OfHeader {
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfObject {
    relative_id: u32,
    descriptor_digest: String,
    object_digest: String,
}

/// What a signature's object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    ClearSigned,
    /// Before Singularity 3.6: a digest of the objects' bytes alone.
    Legacy,
    /// An envelope, for keys of X.509.
    Dsse,
    Other,
}

impl Form {
    fn of(text: &[u8]) -> Form {
        const BEGIN: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
        const SIGNATURE: &[u8] = b"-----BEGIN PGP SIGNATURE-----";
        const END: &[u8] = b"-----END PGP SIGNATURE-----";
        if text.starts_with(b"{") {
            return Form::Dsse;
        }
        let end = text.iter().rposition(|b| !b.is_ascii_whitespace() && *b != 0).map_or(0, |at| at + 1);
        let lines = || text[..end].split(|b| *b == b'\n');
        let begins = |with: &[u8]| lines().filter(|line| line.starts_with(with)).count();
        // One message and nothing around it: what else a reader might take for the text was not signed.
        let is_one = text.starts_with(BEGIN) && begins(BEGIN) == 1 && begins(SIGNATURE) == 1;
        if !is_one || !text[..end].ends_with(END) {
            return Form::Other;
        }
        let mut body = lines().skip_while(|line| !line.trim_ascii().is_empty()).skip(1);
        if body.next().is_some_and(|line| line.starts_with(b"SIFHASH:")) {
            return Form::Legacy;
        }
        Form::ClearSigned
    }
}

macro_rules! hashers {
    ($($name:literal $hasher:ident;)*) => {
        enum Hasher { $($hasher($hasher)),* }

        impl Hasher {
            /// By the name that signatures use.
            fn of(name: &str) -> Option<Hasher> {
                match name { $($name => Some(Hasher::$hasher($hasher::new())),)* _ => None }
            }

            fn update(&mut self, bytes: &[u8]) {
                match self { $(Hasher::$hasher(hasher) => hasher.update(bytes)),* }
            }

            fn finish(self) -> Vec<u8> {
                match self { $(Hasher::$hasher(hasher) => hasher.finalize().to_vec()),* }
            }
        }
    };
}

hashers! {
    "sha224" Sha224;
    "sha256" Sha256;
    "sha384" Sha384;
    "sha512" Sha512;
    "sha512_224" Sha512_224;
    "sha512_256" Sha512_256;
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        })
        .collect()
}

/// `sha256:…`: which it is, and its value.
fn parts(digest: &str) -> Option<(&str, Vec<u8>)> {
    let (name, value) = digest.split_once(':')?;
    let (expected, value) = (Hasher::of(name)?.finish().len(), from_hex(value)?);
    (value.len() == expected).then_some((name, value))
}

impl Descriptor {
    fn group(&self) -> u32 {
        self.group & !GROUP_MASK
    }

    /// What signatures cover of it (GetIntegrityReader of Descriptor).
    fn covered(&self, first: u32) -> Vec<u8> {
        let mut bytes = self.raw[..4].to_vec();
        bytes.push(1);
        bytes.extend_from_slice(&(self.id - first).to_le_bytes());
        for range in [13..17, 25..33, 41..49, 57..73, 73..585] {
            bytes.extend_from_slice(&self.raw[range]);
        }
        bytes
    }

    fn name(&self) -> String {
        let is_root = if self.is_root() { " (the root file system)" } else { "" };
        format!("object {}{is_root}", self.id)
    }
}

impl<'a> Signed<'a> {
    /// Reads the signatures; refuses a file of which anything has none.
    pub fn read(file: &'a File, path: &'a Path) -> Result<Signed<'a>> {
        let Table { header, all } = Table::read(file, path)?;
        let mut ids = BTreeSet::new();
        if let Some(twice) = all.iter().find(|d| !ids.insert(d.id)) {
            return Err(damaged(path, format!("it has two objects {}", twice.id)));
        }
        let unsigned = |why: &str, cure: &str| {
            let shown = path.display();
            Err(Error::new(Kind::Unsigned, format!("{shown} is not signed{why}"), cure))
        };
        let (made, objects): (Vec<_>, Vec<_>) = all.into_iter().partition(|d| d.kind == SIGNATURE);
        if made.is_empty() {
            return unsigned("", SIGN);
        }
        if made.len() > MAX_SIGNATURES {
            return Err(damaged(path, format!("it has {} signatures", made.len())));
        }
        if let Some(alone) = objects.iter().find(|d| d.group() == 0) {
            let why =
                format!(" as a whole: {} belongs to no group, and no signature can cover it", alone.name());
            return unsigned(&why, "build it anew, with that object in a group, then sign it");
        }
        let mut signatures = Vec::new();
        let mut others = Vec::new();
        for d in made {
            if d.length > MAX_SIGNATURE {
                return Err(damaged(path, format!("its signature, object {}, has {} bytes", d.id, d.length)));
            }
            let text = read(file, path, d.offset, d.length as usize)?;
            let form = Form::of(&text);
            if form == Form::ClearSigned && d.link & GROUP_MASK == GROUP_MASK {
                let (group, entity) = (d.link & !GROUP_MASK, d.extra()[4..260].to_vec());
                signatures.push(Signature { object: d.id, group, text, entity });
            } else {
                others.push((d, form));
            }
        }
        let signed = Signed { file, path, header, objects, signatures };
        let Some((group, objects)) = signed
            .groups()
            .into_iter()
            .find(|(group, _)| signed.signatures.iter().all(|s| s.group != *group))
        else {
            return Ok(signed);
        };
        // Legacy signatures are linked to a group or to one of its objects.
        let is_of_group = |d: &Descriptor| match d.link & GROUP_MASK {
            GROUP_MASK => d.link & !GROUP_MASK == group,
            _ => objects.iter().any(|o| o.id == d.link),
        };
        match others.into_iter().find(|(d, _)| is_of_group(d)) {
            Some((d, Form::Legacy)) => unsigned(
                &format!(
                    ": object {} is a legacy signature, which covers neither header nor descriptors",
                    d.id
                ),
                "sign it anew: `apptainer sign FILE`",
            ),
            Some((d, Form::Dsse)) => unsigned(
                &format!(
                    " with an OpenPGP key: object {} is a signature in a DSSE envelope, made with a key of X.509, which is \
                     not verified",
                    d.id
                ),
                SIGN,
            ),
            Some((d, Form::ClearSigned)) => {
                let (object, link) = (d.id, d.link);
                unsigned(
                    &format!(" as a whole: object {object} is the signature of object {link} alone"),
                    SIGN,
                )
            }
            Some((d, Form::Other)) => {
                unsigned(&format!(": object {} is a signature of no known form", d.id), SIGN)
            }
            None => {
                let first = objects.first().map(|o| o.name()).unwrap_or_default();
                unsigned(&format!(" as a whole: no signature covers {first}"), SIGN)
            }
        }
    }

    /// Groups, and their objects.
    fn groups(&self) -> BTreeMap<u32, Vec<&Descriptor>> {
        let mut groups: BTreeMap<u32, Vec<&Descriptor>> = BTreeMap::new();
        for object in &self.objects {
            groups.entry(object.group()).or_default().push(object);
        }
        groups
    }

    /// Compares the file with what was signed. Every group must have a signature that is right.
    pub fn compare(&self, approved: &[Approved<'_>], progress: &Progress) -> Result<Verified> {
        let mut digests = Digests { signed: self, known: HashMap::new(), progress };
        progress.all.store(self.objects.iter().map(|d| d.length).sum(), Ordering::Relaxed);
        let mut fingerprints = Vec::new();
        for (group, objects) in self.groups() {
            let mut of_group = approved.iter().filter(|a| a.signature.group == group).peekable();
            if of_group.peek().is_none() {
                let what = format!(
                    "{} is not signed as a whole: no signature of its group {group} is right",
                    self.path.display()
                );
                return Err(Error::new(Kind::Unsigned, what, SIGN));
            }
            for approved in of_group {
                self.compare_one(approved, &objects, &mut digests)?;
                if !fingerprints.contains(&approved.fingerprint) {
                    fingerprints.push(approved.fingerprint.clone());
                }
            }
        }
        let root = self.objects.iter().find(|d| d.is_root());
        let root = root.ok_or_else(|| damaged(self.path, "it has no primary partition".to_owned()))?;
        let root = Digest::of_bytes(&digests.of(root, "sha256")?);
        Ok(Verified { fingerprints, root })
    }

    fn compare_one(
        &self,
        approved: &Approved<'_>,
        objects: &[&Descriptor],
        digests: &mut Digests<'_, '_>,
    ) -> Result<()> {
        let (shown, number) = (self.path.display(), approved.signature.object);
        let wrong = |why: String, cure: &str| {
            Error::new(
                Kind::Signature,
                format!("{shown} is not what was signed (object {number}): {why}"),
                cure,
            )
        };
        let remove = format!(
            "remove that signature (`apptainer siftool del {number} FILE`), then sign it anew: `apptainer sign FILE`"
        );
        let odd = |why: String| wrong(why, &remove);
        let changed = |what: &str| wrong(format!("{what} was changed"), DISTRUST);
        let named = from_hex(&approved.fingerprint).filter(|bytes| bytes.len() >= 20);
        if !named.is_some_and(|bytes| approved.signature.entity.starts_with(&bytes)) {
            return Err(odd(
                "the signature's descriptor names another key than the one that made it".to_owned()
            ));
        }
        let metadata: Metadata = serde_json::from_slice(&approved.text)
            .map_err(|e| odd(format!("what the signature says cannot be understood: {e}")))?;
        if metadata.version != 1 {
            return Err(odd(format!("the signature's version is {}", metadata.version)));
        }
        let no_digest = || odd("the signature holds a digest of no known kind".to_owned());
        let (name, value) = parts(&metadata.header.digest).ok_or_else(no_digest)?;
        // Launch script, magic number and version; the identifier (GetIntegrityReader of header).
        let covered = [&self.header[..45], &self.header[48..64]].concat();
        if hash(name, &covered) != Some(value) {
            return Err(changed("its header"));
        }
        let first = objects.iter().map(|o| o.id).min().unwrap_or_default();
        let mut said = BTreeMap::new();
        for object in &metadata.objects {
            let id = u64::from(first) + u64::from(object.relative_id);
            if said.insert(id, object).is_some() {
                return Err(odd(format!("the signature names object {id} twice")));
            }
        }
        if let Some(missing) = said.keys().find(|id| objects.iter().all(|o| u64::from(o.id) != **id)) {
            return Err(wrong(format!("object {missing} is missing"), DISTRUST));
        }
        for object in objects {
            let Some(said) = said.get(&u64::from(object.id)) else {
                let what = format!(
                    "{shown} is not signed as a whole: its signature (object {number}) does not cover {}",
                    object.name()
                );
                let cure = format!("if you did not add that object, do not run it; else {remove}");
                return Err(Error::new(Kind::Unsigned, what, cure));
            };
            let (name, value) = parts(&said.descriptor_digest).ok_or_else(no_digest)?;
            if hash(name, &object.covered(first)) != Some(value) {
                return Err(changed(&format!("the descriptor of {}", object.name())));
            }
            let (name, value) = parts(&said.object_digest).ok_or_else(no_digest)?;
            if digests.of(object, name)? != value {
                return Err(changed(&object.name()));
            }
        }
        Ok(())
    }
}

fn hash(name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut hasher = Hasher::of(name)?;
    hasher.update(bytes);
    Some(hasher.finish())
}

/// Digests of objects, each read once.
struct Digests<'a, 'b> {
    signed: &'a Signed<'b>,
    known: HashMap<(u32, String), Vec<u8>>,
    progress: &'a Progress,
}

impl Digests<'_, '_> {
    fn of(&mut self, object: &Descriptor, name: &str) -> Result<Vec<u8>> {
        let key = (object.id, name.to_owned());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let (file, path) = (self.signed.file, self.signed.path);
        let mut hasher = Hasher::of(name).ok_or_else(|| damaged(path, format!("a digest is {name}")))?;
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        while done < object.length {
            let n = usize::try_from(object.length - done).unwrap_or(CHUNK).min(CHUNK);
            file.read_exact_at(&mut buffer[..n], object.offset + done).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => damaged(path, "it became shorter".to_owned()),
                _ => Error::reading(path, &e),
            })?;
            hasher.update(&buffer[..n]);
            done += n as u64;
            self.progress.read.fetch_add(n as u64, Ordering::Relaxed);
        }
        let digest = hasher.finish();
        self.known.insert(key, digest.clone());
        Ok(digest)
    }
}

#[cfg(test)]
mod tests;

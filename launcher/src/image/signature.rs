//! Whether an image is signed, and by whom, where that is required: key rings, and what is refused.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_store::blob::Blob;
use image_store::import::Progress;
use image_store::sif::Sif;
use image_store::sif::signature::{Approved, Signed, Verified};
use image_store::source::{Form, Source, recognise};
use image_store::squash;
use image_store::store::Stored;

use super::gpgv::{self, Answer};
use super::{Image, Kind, cannot_open, identity, progress};
use crate::config::Config;
use crate::environ::Environ;
use crate::error::{Code, Error, Result};

/// A key ring that begins so is armored; gpgv reads only binary ones.
const ARMOR: &[u8] = b"-----BEGIN PGP";

/// Refuses what has no signatures, where one is required.
pub fn refuse(given: &Path, form: &str, config: &Config) -> Result<()> {
    if !config.require_signature.value {
        return Ok(());
    }
    Err(unsigned(
        config,
        format!("{} is not signed: it is {form}, and only SIF files have signatures", given.display()),
        "build a SIF file of it and sign it: `apptainer build FILE.sif SOURCE`, `apptainer sign FILE.sif`",
    ))
}

fn unsigned(config: &Config, what: String, cure: &str) -> Error {
    Error::new(Code::ImageUnsigned, format!("{what} ({} requires it)", config.require_signature.origin), cure)
}

/// Who signed what an image of a store was made of.
pub fn of_stored(given: &Path, stored: &Stored, config: &Config) -> Result<Vec<String>> {
    let signed_by = stored.origin().map(|origin| origin.signed_by).unwrap_or_default();
    if signed_by.is_empty() {
        return Err(unsigned(
            config,
            format!(
                "{} is not signed: it is an image of a store, and was not made of a SIF file whose signatures were verified",
                given.display()
            ),
            "import a signed SIF file: hpc-launch image import --require-signature FILE.sif NAME",
        ));
    }
    Ok(signed_by)
}

/// Who signed a source that is to be imported, where that is required.
pub fn of_source(source: &Source, config: &Config, environ: &Environ) -> Result<Option<Verified>> {
    if !config.require_signature.value {
        return Ok(None);
    }
    if source.form != Form::Sif {
        refuse(&source.path, source.form.name(), config)?;
    }
    let looked = |e: std::io::Error| cannot_open(&source.path, &e);
    let file = File::open(&source.path).map_err(looked)?;
    let before = identity(&file.metadata().map_err(looked)?);
    let verified = verify(&file, &source.path, config, environ, &|| ())?;
    if identity(&file.metadata().map_err(looked)?) != before {
        return Err(changed(&source.path));
    }
    Ok(Some(verified))
}

fn changed(shown: &Path) -> Error {
    Error::new(
        Code::SignatureInvalid,
        format!("{} was changed while its signatures were being verified", shown.display()),
        "run it again once nobody writes to it",
    )
}

impl Image {
    /// The same, with its signatures verified; it is held, so that no other file is mounted.
    pub fn verified(
        mut self,
        config: &Config,
        environ: &Environ,
        waited_for: &(dyn Fn() + Sync),
    ) -> Result<Image> {
        if self.kind == Kind::Directory {
            refuse(&self.given, Form::Directory.name(), config)?;
        }
        let file = File::open(&self.path).map_err(|e| cannot_open(&self.path, &e))?;
        let form = recognise(&file, &self.given)?;
        if form != Form::Sif {
            // By its path, anybody could have written what lies beside it.
            let is_of_store = if self.record.is_some() { " (of a store: say its name there)" } else { "" };
            refuse(&self.given, &format!("{}{is_of_store}", form.name()), config)?;
        }
        self.signed_by = verify(&file, &self.given, config, environ, waited_for)?.fingerprints;
        let file = Arc::new(file);
        self.held = Some(Arc::clone(&file));
        self.is_still_what_was_signed()?;
        // Of this very file: what was read before may have been another at the same path.
        let sif = Sif::read(&file, &self.given)?;
        let whole = Blob {
            length: file.metadata().map_or(0, |m| m.len()),
            file,
            path: self.given.clone(),
            offset: 0,
        };
        squash::check(&whole.part(sif.offset, sif.length))?;
        (self.offset, self.length) = (sif.offset, sif.length);
        self.is_still_what_was_signed()?;
        Ok(self)
    }

    /// Refuses a file that was changed after its signatures were verified.
    pub fn is_still_what_was_signed(&self) -> Result<()> {
        let Some(file) = &self.held else { return Ok(()) };
        let meta = file.metadata().map_err(|e| cannot_open(&self.path, &e))?;
        if identity(&meta) == self.id {
            return Ok(());
        }
        Err(changed(&self.given))
    }
}

/// Verifies a SIF file: first whose the signatures are, then whether it is what they say.
fn verify(
    file: &File,
    shown: &Path,
    config: &Config,
    environ: &Environ,
    waited_for: &(dyn Fn() + Sync),
) -> Result<Verified> {
    let signed = Signed::read(file, shown).map_err(|e| {
        let e = Error::from(e);
        if e.code == Code::ImageUnsigned { unsigned(config, e.what, &e.cure) } else { e }
    })?;
    let program = gpgv::find()?;
    let rings = rings(config, environ)?;
    let (mut approved, mut unknown, mut outdated) = (Vec::new(), Vec::new(), Vec::new());
    for signature in &signed.signatures {
        waited_for();
        let what = format!("the signature of {} (object {})", shown.display(), signature.object);
        match gpgv::verify(&program, &rings, &signature.text, &what)? {
            Answer::Right { fingerprint, text } => approved.push(Approved { signature, fingerprint, text }),
            Answer::UnknownKey(key) => unknown.push((signature.group, key)),
            Answer::Outdated { code, why, cure } => {
                outdated.push((signature.group, Error::new(code, why, cure)));
            }
        }
    }
    // Another's signature of the same group would do.
    let is_approved = |group: u32| approved.iter().any(|a| a.signature.group == group);
    if let Some((_, e)) = outdated.into_iter().find(|(group, _)| !is_approved(*group)) {
        return Err(e);
    }
    if let Some((_, key)) = unknown.iter().find(|(group, _)| !is_approved(*group)) {
        return Err(Error::new(
            Code::SignatureKey,
            format!(
                "{} is signed with the key {key}, which is in no key ring: {}",
                shown.display(),
                listed(&rings)
            ),
            format!(
                "if you trust it, fetch it (`apptainer key pull {key}`) or import it (`apptainer key import FILE`); for all \
                 users: /etc/apptainer/global-pgp-public, or keyring = [...] in the configuration"
            ),
        ));
    }
    let what = format!("verifying the signatures of {}", shown.display());
    let how_far = Progress::default();
    progress::shown(&what, &how_far, waited_for, |_| false, |_| signed.compare(&approved, &how_far))
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Key rings that there are: those that the configuration names, else Apptainer's and Singularity's.
fn rings(config: &Config, environ: &Environ) -> Result<Vec<PathBuf>> {
    if !config.keyring.is_empty() {
        for ring in &config.keyring {
            usable(&ring.value).map_err(|why| {
                Error::new(
                    Code::KeyRing,
                    format!("the key ring {} ({}) cannot be used: {why}", ring.value.display(), ring.origin),
                    "name a file with public keys: `gpg --export KEY > FILE` writes one",
                )
            })?;
        }
        return Ok(config.keyring.iter().map(|ring| ring.value.clone()).collect());
    }
    let (mut found, mut tried) = (Vec::new(), Vec::new());
    for path in places(environ) {
        match usable(&path) {
            Ok(()) => found.push(path),
            Err(why) => tried.push(format!("{} ({why})", path.display())),
        }
    }
    if found.is_empty() {
        return Err(Error::new(
            Code::KeyRing,
            format!("there is no key ring to verify signatures with; tried: {}", tried.join(", ")),
            "fetch the signer's key (`apptainer key pull FINGERPRINT`) or import it (`apptainer key import FILE`); or name \
             a file of public keys: keyring = [\"/path\"] in the configuration",
        ));
    }
    Ok(found)
}

/// Where keys are looked for, there or not: sandboxes are told apart by that.
pub fn asked(config: &Config, environ: &Environ) -> Option<Vec<PathBuf>> {
    let configured = || config.keyring.iter().map(|ring| ring.value.clone()).collect();
    let usual = config.keyring.is_empty();
    config.require_signature.value.then(|| if usual { places(environ) } else { configured() })
}

/// Where Apptainer (pkg/syfs, internal/pkg/sypgp) and Singularity keep public keys: the user's, then the site's.
fn places(environ: &Environ) -> Vec<PathBuf> {
    let path = |name: &str| environ.get_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = path("HOME");
    let in_home = |dir: &str| home.as_ref().map(|home| home.join(dir));
    let of_apptainer = path("APPTAINER_KEYSDIR")
        .or_else(|| Some(path("APPTAINER_CONFIGDIR").or_else(|| in_home(".apptainer"))?.join("keys")));
    let of_singularity = path("SINGULARITY_SYPGPDIR")
        .or_else(|| Some(path("SINGULARITY_CONFIGDIR").or_else(|| in_home(".singularity"))?.join("sypgp")));
    let of_user = [of_apptainer, of_singularity].into_iter().flatten().map(|dir| dir.join("pgp-public"));
    let of_site =
        ["/etc/apptainer", "/etc/singularity", "/usr/local/etc/apptainer", "/usr/local/etc/singularity"];
    of_user.chain(of_site.map(|dir| Path::new(dir).join("global-pgp-public"))).collect()
}

/// Says why gpgv could not read it. Apptainer makes empty ones.
fn usable(path: &Path) -> std::result::Result<(), String> {
    let words = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => "missing".to_owned(),
        _ => e.to_string(),
    };
    // A FIFO would not be opened at all.
    let meta = std::fs::metadata(path).map_err(words)?;
    if !meta.is_file() {
        return Err("no file".to_owned());
    }
    let mut head = [0; ARMOR.len()];
    let file = File::open(path).map_err(words)?;
    match std::os::unix::fs::FileExt::read_at(&file, &mut head, 0).map_err(words)? {
        0 => Err("empty".to_owned()),
        _ if head == *ARMOR => Err("armored: `gpg --dearmor FILE` makes a key ring of it".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_rings_are_where_apptainer_and_singularity_keep_them() {
        let environ = Environ::from_pairs(&[("HOME", "/h")]);
        let all = listed(&places(&environ));
        assert!(
            all.starts_with("/h/.apptainer/keys/pgp-public, /h/.singularity/sypgp/pgp-public, /etc/"),
            "{all}"
        );
        assert!(all.contains(", /etc/apptainer/global-pgp-public, "), "{all}");
        let environ = Environ::from_pairs(&[
            ("HOME", "/h"),
            ("APPTAINER_KEYSDIR", "/k"),
            ("SINGULARITY_SYPGPDIR", "relative"),
            ("SINGULARITY_CONFIGDIR", "/s"),
        ]);
        assert!(listed(&places(&environ)).starts_with("/k/pgp-public, /s/sypgp/pgp-public, /etc/"));
        assert!(listed(&places(&Environ::default())).starts_with("/etc/apptainer/"));
    }

    #[test]
    fn what_gpgv_could_not_read_is_no_key_ring() {
        let dir = tempfile::tempdir().unwrap();
        let file = |text: &str| {
            let path = dir.path().join("ring");
            std::fs::write(&path, text).unwrap();
            usable(&path)
        };
        assert_eq!(file("\u{99}keys"), Ok(()));
        assert_eq!(file(""), Err("empty".to_owned()));
        assert!(file("-----BEGIN PGP PUBLIC KEY BLOCK-----\n").unwrap_err().starts_with("armored"));
        assert_eq!(usable(&dir.path().join("none")), Err("missing".to_owned()));
        assert_eq!(usable(dir.path()), Err("no file".to_owned()));
        assert_eq!(usable(Path::new("/dev/null")), Err("no file".to_owned()));
    }
}

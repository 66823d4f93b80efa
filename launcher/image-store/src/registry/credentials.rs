//! Who we are at a registry: what `docker login` and `podman login` have left.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use docker_credential::{CredentialRetrievalError, DockerCredential};

use super::reference::Reference;
use crate::error::{Error, Kind, Result};

/// Whose name is used, and where that was found.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Its name.
    pub user: String,
    /// Its password, or token.
    pub secret: String,
    /// An identity token is exchanged, a password is sent.
    pub is_token: bool,
    /// The file.
    pub from: String,
}

/// Who we are there, by the files that `docker login` and `podman login` write; the most exact entry wins.
pub fn credential(
    reference: &Reference,
    host: &str,
    files: &[std::path::PathBuf],
) -> Result<Option<Credential>> {
    let mut keys = Vec::new();
    if host == reference.host() {
        let mut path = format!("{}/{}", reference.registry, reference.repository);
        while let Some((above, _)) = path.clone().rsplit_once('/') {
            keys.push(std::mem::replace(&mut path, above.to_owned()));
        }
        keys.push(reference.registry.clone());
        if reference.registry == "docker.io" {
            keys.push("https://index.docker.io/v1/".to_owned());
        }
    } else {
        keys.push(host.to_owned());
    }
    for file in files {
        for key in &keys {
            match in_file(file, key)? {
                Some(DockerCredential::UsernamePassword(user, secret)) => {
                    return Ok(Some(Credential {
                        user,
                        secret,
                        is_token: false,
                        from: file.display().to_string(),
                    }));
                }
                Some(DockerCredential::IdentityToken(secret)) => {
                    let user = "<token>".to_owned();
                    return Ok(Some(Credential {
                        user,
                        secret,
                        is_token: true,
                        from: file.display().to_string(),
                    }));
                }
                None => {}
            }
        }
    }
    Ok(None)
}

fn in_file(file: &Path, key: &str) -> Result<Option<DockerCredential>> {
    let open = match File::open(file) {
        Ok(open) => open,
        Err(e)
            if e.kind() == std::io::ErrorKind::NotFound || e.kind() == std::io::ErrorKind::NotADirectory =>
        {
            return Ok(None);
        }
        Err(e) => return Err(Error::reading(file, &e)),
    };
    match docker_credential::get_credential_from_reader(open.take(1 << 20), key) {
        Ok(found) => Ok(Some(found)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
            let what =
                format!("{} names the credential helper {helper}, which fails for {key}", file.display());
            Err(Error::new(Kind::Denied, what, "log in again, or repair the helper"))
        }
        Err(e) => {
            let what = format!("credentials in {} cannot be understood: {e}", file.display());
            Err(Error::new(
                Kind::Denied,
                what,
                "log in again (podman login, docker login), or remove the file",
            ))
        }
    }
}

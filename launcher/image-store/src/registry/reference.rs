//! `docker://HOST/REPOSITORY:TAG@DIGEST`, as docker, podman and skopeo write it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};
use crate::name::{Digest, LATEST, Name};

/// What an address of a registry begins with.
pub const SCHEME: &str = "docker://";
/// Where images without a host are.
const HUB: &str = "docker.io";
/// docker.io is a name; this machine answers.
const HUB_HOST: &str = "registry-1.docker.io";

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `docker.io`, `host:5000`
    pub registry: String,
    /// `library/debian`
    pub repository: String,
    /// `latest` where neither tag nor digest is given.
    pub tag: Option<String>,
    /// Exactly this manifest or index.
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(given: &str) -> Result<Reference> {
        let wrong = |why: &str| {
            let what = format!("{given:?} is no image of a registry: {why}");
            Error::new(
                Kind::Name,
                what,
                "write docker://HOST/REPOSITORY:TAG, or …@sha256:DIGEST; docker://debian:12 is one of docker.io",
            )
        };
        let text = given.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with docker://"))?;
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // Docker's rule: the first part is a host if it has a dot or a colon, or is localhost.
        let (registry, rest) = match text.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
            _ => (HUB, text),
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        if registry.is_empty() || !registry.chars().all(is_host) {
            return Err(wrong("the host has characters that no host has"));
        }
        let name: Name = rest.parse().map_err(|e: Error| wrong(&e.what))?;
        let has_tag = rest.contains(':');
        let repository = if registry == HUB && !name.name.contains('/') {
            format!("library/{}", name.name)
        } else {
            name.name
        };
        let tag = if has_tag || digest.is_none() { Some(name.tag) } else { None };
        Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl Reference {
    /// What it is asked for by: the digest if there is one.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => LATEST.to_owned(),
        }
    }

    /// The machine that answers for the registry.
    pub fn host(&self) -> &str {
        if self.registry == HUB { HUB_HOST } else { &self.registry }
    }

    /// What it is called in a store, if nobody says otherwise.
    pub fn name(&self) -> Name {
        let name = self.repository.strip_prefix("library/").unwrap_or(&self.repository).to_owned();
        let tag = match (&self.tag, &self.digest) {
            (Some(tag), _) => tag.clone(),
            (None, Some(digest)) => digest.short().to_owned(),
            (None, None) => LATEST.to_owned(),
        };
        Name { name, tag }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_docker_reads_them() {
        let hex = "0a".repeat(32);
        for (given, whole, host, name) in [
            (
                "docker://debian",
                "docker://docker.io/library/debian:latest",
                "registry-1.docker.io",
                "debian:latest",
            ),
            ("docker://a/b:1", "docker://docker.io/a/b:1", "registry-1.docker.io", "a/b:1"),
            ("docker://localhost/b:1", "docker://localhost/b:1", "localhost", "b:1"),
            (
                "docker://r.example.org:5000/g/s:X",
                "docker://r.example.org:5000/g/s:X",
                "r.example.org:5000",
                "g/s:X",
            ),
            ("docker://[::1]:5000/s", "docker://[::1]:5000/s:latest", "[::1]:5000", "s:latest"),
            (
                &format!("docker://r:1/s@sha256:{hex}"),
                &format!("docker://r:1/s@sha256:{hex}"),
                "r:1",
                &format!("s:{}", &hex[..12]),
            ),
            (
                &format!("docker://r:1/s:2@sha256:{hex}"),
                &format!("docker://r:1/s:2@sha256:{hex}"),
                "r:1",
                "s:2",
            ),
        ] {
            let reference: Reference = given.parse().unwrap();
            assert_eq!(reference.to_string(), whole);
            assert_eq!((reference.host(), reference.name().to_string().as_str()), (host, name));
        }
        for wrong in [
            "debian",
            "docker://",
            "docker:///x",
            "docker://r:1/",
            "docker://r:1/../x",
            "docker://a b/c",
            "docker://r.x/s@sha256:1",
            "docker://r.x/S",
        ] {
            assert!(wrong.parse::<Reference>().is_err(), "{wrong}");
        }
    }
}

//! Names of images in a store, and digests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// As registries have it (distribution specification: names of up to 255 characters).
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
/// What is meant where no tag is given.
pub const LATEST: &str = "latest";

/// `NAME[:TAG]`: lower-case letters, digits and separators, parts joined by slashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Before the colon.
    pub name: String,
    /// Behind it; `latest` where there is none.
    pub tag: String,
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Name> {
        let wrong = |why: &str| {
            Error::new(
                Kind::Name,
                format!("{text:?} is no name of an image: {why}"),
                "names are like solver, solver:1.2 or group/solver:1.2: lower-case letters, digits, and . _ - between them",
            )
        };
        let (name, tag) = text.split_once(':').unwrap_or((text, LATEST));
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(wrong("it must have 1 to 255 characters before the colon"));
        }
        let is_part = |part: &str| {
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            ends(part.chars().next())
                && ends(part.chars().next_back())
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        };
        if !name.split('/').all(is_part) {
            return Err(wrong("each part begins and ends with a lower-case letter or a digit"));
        }
        let is_tag = !tag.is_empty()
            && tag.len() <= MAX_TAG
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !is_tag {
            return Err(wrong("a tag has 1 to 128 letters, digits and . _ -"));
        }
        Ok(Name { name: name.to_owned(), tag: tag.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl Name {
    /// As the name of a file: slashes as `%`, which no name has.
    pub fn file_name(&self) -> String {
        self.to_string().replace('/', "%")
    }

    /// The reverse.
    pub fn of_file_name(text: &str) -> Option<Name> {
        text.contains(':').then(|| text.replace('%', "/").parse().ok()).flatten()
    }
}

/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Of 32 bytes.
    pub fn of_bytes(bytes: &[u8]) -> Digest {
        Digest(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// The digits.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// So much of it that people can tell it apart.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest> {
        let digits = text.strip_prefix("sha256:").unwrap_or("");
        if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Ok(Digest(digits.to_owned()));
        }
        Err(Error::new(
            Kind::Name,
            format!("{:?} is no digest", text.chars().take(80).collect::<String>()),
            "a digest is sha256: and 64 hexadecimal digits",
        ))
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Digest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_their_files() {
        for text in ["solver:latest", "group/solver:1.2", "a.b-c_d/e/f:X"] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert_eq!(Name::of_file_name(&name.file_name()), Some(name));
        }
        assert_eq!("solver".parse::<Name>().unwrap().tag, "latest");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(256);
        for text in
            ["", "../x", "a/../b", "/a", "a/", "A", "a:", "a:b:c", "a:../x", ".", "a b", "a%b", &long, "a:-x"]
        {
            let e = text.parse::<Name>().unwrap_err();
            assert_eq!(e.kind, Kind::Name, "{text}");
            assert!(e.what.contains("is no name of an image"), "{}", e.what);
        }
    }

    #[test]
    fn digests() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        for wrong in [
            "",
            "sha256:",
            "sha512:00",
            &text[7..],
            &text.to_uppercase(),
            &format!("{text}0"),
            "sha256:../../../../etc",
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }
}

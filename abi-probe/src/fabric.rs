//! Stacks of a fabric beneath an MPI: which of them a process uses, and of which release a library is.
//!
//! UCX has no symbol versions, and an MPI that was built with a newer release than it finds aborts although every
//! symbol binds (opal/mca/common/ucx asks for the release at run time); a libfabric that is asked for a newer API
//! than its own answers FI_ENOSYS (src/fabric.c, fi_getinfo). So releases decide there, and symbols everywhere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::linkmap::LinkMap;
use crate::parts;
use crate::prober::{Probed, Prober};

/// A stack, as others see it.
#[derive(Debug)]
pub struct Stack {
    /// Its name.
    pub name: &'static str,
    /// The libraries that others ask for, without version, the foremost first.
    heads: &'static [&'static str],
    /// The foremost, by the name by which programs ask for it.
    pub soname: &'static str,
    /// The foremost says of which release it is, and that decides beside the symbols.
    pub tells_release: bool,
}

/// All that are known.
pub const STACKS: &[Stack] = &[
    Stack { name: "UCX", heads: &["libucp", "libuct"], soname: "libucp.so.0", tells_release: true },
    Stack { name: "libfabric", heads: &["libfabric"], soname: "libfabric.so.1", tells_release: true },
    Stack {
        name: "PSM",
        heads: &["libpsm2", "libpsm_infinipath"],
        soname: "libpsm2.so.2",
        tells_release: false,
    },
    Stack {
        name: "verbs",
        heads: &["libibverbs", "librdmacm"],
        soname: "libibverbs.so.1",
        tells_release: false,
    },
];

/// A release: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Release([u32; 3]);

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl Release {
    /// `1.13.1`, and nothing else.
    fn parse(text: &[u8]) -> Option<Release> {
        let mut numbers = [0; 3];
        let mut parts = text.split(|b| *b == b'.');
        for number in &mut numbers {
            let part = parts.next().filter(|p| p.len() <= 4 && p.iter().all(u8::is_ascii_digit))?;
            *number = std::str::from_utf8(part).ok()?.parse().ok()?;
        }
        (parts.next().is_none() && (1..10).contains(&numbers[0])).then_some(Release(numbers))
    }
}

impl From<Release> for String {
    fn from(release: Release) -> String {
        release.to_string()
    }
}

impl TryFrom<String> for Release {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Release, String> {
        Release::parse(text.as_bytes()).ok_or_else(|| format!("{text:?} is no release"))
    }
}

/// One side's copy of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Its release, where the library tells.
    pub release: Option<Release>,
    /// The foremost of its libraries.
    pub library: PathBuf,
}

/// A stack of the host in the place of the image's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// Its name.
    pub stack: String,
    /// The host's.
    pub host: Copy,
    /// The image's.
    pub image: Copy,
}

impl Fabric {
    /// "UCX 1.13.1 (/usr/lib/…/libucp.so.0), in the place of the image's 1.10.0".
    pub fn describe(&self) -> String {
        let place = match self.image.release {
            Some(release) => release.to_string(),
            None => format!("({})", self.image.library.display()),
        };
        format!("{}, in the place of the image's {place}", self.host.describe(&self.stack))
    }
}

impl Copy {
    /// "UCX 1.13.1 (/usr/lib/…/libucp.so.0)".
    pub fn describe(&self, stack: &str) -> String {
        let release = self.release.map(|r| format!(" {r}")).unwrap_or_default();
        format!("{stack}{release} ({})", self.library.display())
    }
}

/// A stack that a process uses.
#[derive(Clone, Debug)]
pub struct Used {
    /// Which.
    pub stack: &'static Stack,
    /// The libraries that are asked for, by the names by which they are.
    pub heads: BTreeMap<String, Rc<Probed>>,
}

/// The stacks that a program uses, with all that it opens.
pub fn of_program(map: &LinkMap) -> Vec<Used> {
    let opened = map.opened.iter().flat_map(|o| o.objects.iter().map(|o| &o.linked));
    let libraries = map.objects.iter().chain(opened).filter_map(|o| Some((&o.name, o.file.as_ref()?)));
    let mut found: Vec<Used> = STACKS.iter().map(|stack| Used { stack, heads: BTreeMap::new() }).collect();
    for (name, file) in libraries {
        let name = parts::file_name(name);
        let stem = parts::stem(name).0;
        if let Some(used) = found.iter_mut().find(|used| used.stack.heads.contains(&stem)) {
            used.heads.insert(name.to_owned(), Rc::clone(file));
        }
    }
    found.retain(|used| !used.heads.is_empty());
    found
}

/// What a stack's libraries are; `None`: there are none.
pub fn copy(prober: &Prober, stack: &Stack, heads: &BTreeMap<String, Rc<Probed>>) -> Result<Option<Copy>> {
    let named = |stem: &&str| heads.iter().find(|(name, _)| parts::stem(name).0 == *stem);
    let Some((place, (_, file))) =
        stack.heads.iter().enumerate().find_map(|(n, stem)| Some((n, named(stem)?)))
    else {
        return Ok(None);
    };
    let release = if stack.tells_release && place == 0 { release(prober, file)? } else { None };
    Ok(Some(Copy { release, library: file.path.clone() }))
}

/// From a library's constants: UCX's PACKAGE_VERSION, libfabric's likewise.
fn release(prober: &Prober, file: &Probed) -> Result<Option<Release>> {
    let bytes = prober.open(file)?;
    Ok(file.object.find_constant(&bytes, |constant| {
        let is_of_text = |b: &u8| !b.is_ascii_digit() && *b != b'.';
        let start = constant.iter().rposition(is_of_text).map_or(0, |last| last + 1);
        let (before, text) = constant.split_at(start);
        // `GLIBC_2.2.5` is another text; a number that ends right before this one is none.
        (before.is_empty() || !before.is_ascii()).then(|| Release::parse(text)).flatten()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_three_numbers() {
        let parse = |text: &str| Release::parse(text.as_bytes()).map(|r| r.to_string());
        assert_eq!(parse("1.13.1").as_deref(), Some("1.13.1"));
        for no in ["", "1.13", "1.13.1.2", "0.1.2", "1..2", "1.a.2", "12.1.1", "1.12345.1"] {
            assert_eq!(parse(no), None, "{no}");
        }
        assert!(Release::parse(b"1.9.0") < Release::parse(b"1.13.0"));
    }

    #[test]
    fn every_head_is_of_its_stack() {
        for Stack { name, heads, soname, .. } in STACKS {
            for head in *heads {
                assert_eq!(parts::stack(head), Some(*name), "{head}");
            }
            assert_eq!(parts::stem(soname).0, heads[0]);
        }
    }
}

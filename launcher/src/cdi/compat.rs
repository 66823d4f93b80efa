//! CUDA's forward compatibility: an image may bring a newer user-mode driver than the host's, made for some older
//! kernel drivers, which it lists in a note. (docs.nvidia.com: CUDA Compatibility; the note's layout:
//! nvidia-container-toolkit, cuda-elf-header.go.)

use std::path::PathBuf;

use abi_probe::elf;
use abi_probe::rootfs::{Kind, View};
use serde::Deserialize;

/// The note's section.
const SECTION: &str = ".note.cuda.fwd_compatibility";
/// Whose note it is.
const OWNER: &[u8] = b"NVIDIA Corporation";
/// A directory has one such library, and links to it.
const MAX_ENTRIES: usize = 256;

/// A question to the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compat {
    /// The version of the host's driver.
    pub driver: Option<String>,
    /// Its CUDA version.
    pub cuda: Option<String>,
    /// Where the image's driver is.
    pub directory: PathBuf,
}

/// What stands in the note.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Note {
    #[serde(rename = "CUDA Version", default)]
    cuda: String,
    #[serde(rename = "Driver", default)]
    drivers: Vec<u64>,
}

impl Compat {
    /// Whether the image's driver is to be used, and why; the error says what is wrong with it.
    pub fn judge(&self, view: &View) -> Result<Option<String>, String> {
        let at = |what: &str| format!("{}: {what}; the host's CUDA driver is used", self.directory.display());
        let found = view.find(&self.directory).map_err(|e| at(&e.to_string()))?;
        let Some(directory) = found.filter(|entry| entry.kind == Kind::Directory) else { return Ok(None) };
        let (names, more) = directory.list(MAX_ENTRIES).map_err(|e| at(&e.to_string()))?;
        if more {
            return Err(at(&format!("more than {MAX_ENTRIES} files")));
        }
        let version = |name: &std::ffi::OsString| {
            let version = name.to_str()?.strip_prefix("libcuda.so.")?;
            version.contains('.').then(|| version.to_owned())
        };
        let versions: Vec<String> = names.iter().filter_map(version).collect();
        let [version] = versions.as_slice() else {
            return if versions.is_empty() { Ok(None) } else { Err(at("more than one libcuda.so")) };
        };
        let path = self.directory.join(format!("libcuda.so.{version}"));
        let entry = view.find(&path).ok().flatten().ok_or_else(|| at("its libcuda.so leads nowhere"))?;
        let file = view.open_file(&entry).map_err(|e| at(&e.to_string()))?;
        let note = elf::section(&file, &path, SECTION).map_err(|e| at(&e.to_string()))?;
        let note = note.as_deref().and_then(description).map(serde_json::from_slice::<Note>);
        let note = note.transpose().map_err(|e| at(&format!("its note cannot be read: {e}")))?;
        Ok(self.is_better(version, note.as_ref()).then(|| {
            let host = self.driver.as_ref().or(self.cuda.as_ref()).map_or("", String::as_str);
            format!("the image's CUDA driver {version} is made for the host's, {host}, and newer")
        }))
    }

    fn is_better(&self, version: &str, note: Option<&Note>) -> bool {
        let theirs = numbers(version);
        let host = self.driver.as_deref().and_then(numbers);
        match (note, host, theirs) {
            (Some(note), Some(host), Some(theirs)) => note.drivers.contains(&host[0]) && theirs > host,
            (Some(note), None, _) => {
                let cuda = self.cuda.as_deref().and_then(numbers);
                matches!((numbers(&note.cuda), cuda), (Some(theirs), Some(host)) if theirs > host)
            }
            (None, Some(host), Some(theirs)) if self.cuda.is_none() => theirs[0] > host[0],
            _ => false,
        }
    }
}

/// Of "550.54.14".
fn numbers(version: &str) -> Option<Vec<u64>> {
    version.split('.').map(|n| n.parse().ok()).collect()
}

/// The text of the first note, if it is NVIDIA's (elf(5): sizes of name and text, type; both padded to 4 bytes).
fn description(note: &[u8]) -> Option<&[u8]> {
    let size = |at: usize| {
        let bytes: [u8; 4] = note.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let (name, text) = (size(0)?, size(4)?);
    let owner = note.get(12..12usize.checked_add(name)?)?;
    let at = 12usize.checked_add(name.checked_next_multiple_of(4)?)?;
    let text = note.get(at..at.checked_add(text)?)?;
    let text = text.split(|b| *b == 0).next().unwrap_or_default();
    owner.starts_with(OWNER).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(owner: &[u8], text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for n in [owner.len(), text.len(), 1] {
            out.extend((n as u32).to_le_bytes());
        }
        out.extend(owner);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(text);
        out
    }

    #[test]
    fn notes_are_read_and_never_past_their_end() {
        let text = br#"{"Format":1,"CUDA Version":"12.9","Driver":[535,550],"Device":[1,2]}"#;
        let whole = note(b"NVIDIA Corporation\0", text);
        let found: Note = serde_json::from_slice(description(&whole).unwrap()).unwrap();
        assert_eq!(found, Note { cuda: "12.9".into(), drivers: vec![535, 550] });
        for end in 0..whole.len() {
            assert_eq!(description(&whole[..end]), None, "{end}");
        }
        assert_eq!(description(&note(b"GNU\0", text)), None);
        assert_eq!(description(&[0xff; 64]), None);
    }

    #[test]
    fn which_driver_is_better() {
        let note = Note { cuda: "12.9".into(), drivers: vec![535, 550, 575] };
        let text = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
        for (driver, cuda, compat, with, without) in [
            ("550.54.14", "", "575.57.08", true, true),
            ("575.57.08", "", "575.57.08", false, false),
            ("575.50", "", "575.57.08", true, false),
            ("560.1", "", "575.57.08", false, true),
            ("580.1", "", "575.57.08", false, false),
            ("", "12.8", "575.57.08", true, false),
            ("", "12.9", "575.57.08", false, false),
            ("", "", "575.57.08", false, false),
            ("x", "", "575.57.08", false, false),
        ] {
            let compat_of = Compat { driver: text(driver), cuda: text(cuda), directory: PathBuf::new() };
            assert_eq!(compat_of.is_better(compat, Some(&note)), with, "{driver} {cuda}");
            assert_eq!(compat_of.is_better(compat, None), without, "{driver} {cuda}, no note");
        }
    }
}

//! Which image it was, in a few characters.

use crate::document::Image;
use crate::error::Error;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Looks at a file's bytes; of a directory at the names, kinds, sizes and links in it, for its bytes would take
/// longer than the measurement.
pub fn image(path: &Path) -> Result<Image, Error> {
    let failed = |e: io::Error| {
        Error::new(format!("say which image {} is", path.display()), e, "give --image what you may read")
    };
    let meta = path.metadata().map_err(failed)?;
    let mut hash = Sha256::new();
    let (kind, name) = if meta.is_dir() {
        tree(path, &mut hash).map_err(failed)?;
        ("directory", "tree-sha256")
    } else {
        let mut file = File::open(path).map_err(failed)?;
        let mut block = vec![0; 1 << 20];
        let mut kind = None;
        loop {
            let n = file.read(&mut block).map_err(failed)?;
            if n == 0 {
                break;
            }
            kind.get_or_insert_with(|| kind_of(&block[..n]));
            hash.update(&block[..n]);
        }
        (kind.unwrap_or("empty file"), "sha256")
    };
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Image { path: path.display().to_string(), kind: kind.into(), digest: format!("{name}:{hex}") })
}

fn kind_of(start: &[u8]) -> &'static str {
    if start.starts_with(b"hsqs") {
        "SquashFS"
    } else if start.get(32..42) == Some(b"SIF_MAGIC\0") {
        "SIF"
    } else if start.get(1024..1028) == Some(&[0xe2, 0xe1, 0xf5, 0xe0]) {
        "EROFS"
    } else {
        "file"
    }
}

/// In the order of names, so that the same tree has the same digest everywhere. What may not be read is a part of it.
fn tree(dir: &Path, hash: &mut Sha256) -> io::Result<()> {
    let mut entries: Vec<_> = match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<Result<_, _>>()?,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            hash.update(b"closed\0");
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let meta = entry.metadata()?;
        hash.update(entry.file_name().as_bytes());
        hash.update(b"\0");
        if meta.is_dir() {
            hash.update(b"directory\0");
            tree(&entry.path(), hash)?;
            hash.update(b"end\0");
        } else if meta.is_symlink() {
            hash.update(b"link\0");
            hash.update(fs::read_link(entry.path())?.as_os_str().as_bytes());
            hash.update(b"\0");
        } else {
            hash.update(b"file\0");
            hash.update(meta.len().to_le_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_differs_when_anything_in_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let digest = || image(dir.path()).unwrap().digest;
        fs::create_dir(dir.path().join("a")).unwrap();
        let before = digest();
        assert!(before.starts_with("tree-sha256:"), "{before}");
        fs::write(dir.path().join("a/b"), "1").unwrap();
        let with_file = digest();
        fs::write(dir.path().join("a/b"), "12").unwrap();
        assert!(before != with_file && with_file != digest());
    }

    #[test]
    fn a_file_is_told_by_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "hsqs and so on").unwrap();
        let found = image(&path).unwrap();
        assert_eq!(found.kind, "SquashFS");
        assert!(found.digest.starts_with("sha256:") && found.digest.len() == 71, "{}", found.digest);
        fs::write(&path, "").unwrap();
        assert_eq!(image(&path).unwrap().kind, "empty file");
    }
}

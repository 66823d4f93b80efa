//! ext2, ext3 and ext4 in files, for overlays: mounted by the kernel when we may, else by fuse2fs, which is handed a
//! mount as squashfuse is.
//!
//! The superblock is looked at before (fs/ext4/ext4.h, struct ext4_super_block), for what neither says well: a file that
//! was cut, and a journal that was not written back. The kernel trusts the rest of it, as it does for every disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::loopdev;
use super::squashfs::{Server, Serving, start};
use crate::error::{Code, Error, Result};

/// The superblock, which begins at 1024, is within so many bytes.
pub const HEAD: usize = 2048;
const MAGIC: u64 = 0xef53;
/// s_feature_incompat: the journal must be replayed.
const RECOVER: u64 = 0x4;
/// s_state: it was unmounted (EXT4_VALID_FS).
const VALID: u64 = 0x1;
/// s_feature_incompat: s_blocks_count has a higher half.
const WIDE: u64 = 0x80;

/// What a file begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Checked {
    /// An ext file system that can be mounted.
    Good,
    /// Something else.
    Other,
    /// It cannot be, for this reason.
    Damaged(String),
    /// It is mounted, or was when its machine failed.
    Unclean,
}

/// Looks at the first [`HEAD`] bytes of a file that has so many.
pub fn check(head: &[u8], length: u64) -> Checked {
    let Some(block) = head.get(1024..) else { return Checked::Other };
    let number = |at: usize, size: usize| {
        let bytes = block.get(at..at + size).unwrap_or_default();
        bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    if number(0x38, 2) != MAGIC {
        return Checked::Other;
    }
    let (shift, incompatible) = (number(0x18, 4), number(0x60, 4));
    if shift > 6 || head.len() < HEAD {
        return Checked::Damaged("its superblock contradicts itself".to_owned());
    }
    let high = if incompatible & WIDE == 0 { 0 } else { number(0x150, 4) };
    let blocks = high << 32 | number(4, 4);
    let wanted = blocks.checked_mul(1024 << shift);
    match wanted {
        Some(wanted) if wanted <= length => {}
        _ => {
            let wanted = wanted.map_or_else(|| "too many".to_owned(), |n| n.to_string());
            return Checked::Damaged(format!("it says {wanted} bytes, the file has {length}"));
        }
    }
    // Without a journal it is the state that tells.
    let is_clean = number(0x3a, 2) & VALID != 0;
    if incompatible & RECOVER != 0 || !is_clean { Checked::Unclean } else { Checked::Good }
}

/// Looks at an open file once more, before it is written to.
pub fn still_good(file: &File, shown: &Path) -> Result<()> {
    let mut head = vec![0; HEAD];
    let looked = file.metadata().and_then(|meta| file.read_exact_at(&mut head, 0).map(|()| meta.len()));
    if looked.is_ok_and(|length| check(&head, length) == Checked::Good) {
        return Ok(());
    }
    Err(Error::new(
        Code::OverlayUnusable,
        format!("the ext file system in {} was changed, and not closed well, just now", shown.display()),
        "if nobody writes to it: e2fsck -p FILE",
    ))
}

/// Finds fuse2fs: the site's, or the one on PATH.
pub fn find_fuse2fs(configured: Option<&Path>) -> Result<PathBuf> {
    let missing = |what: String, cure: &str| Error::new(Code::Fuse2fsMissing, what, cure);
    if let Some(path) = configured {
        return match nix::unistd::access(path, nix::unistd::AccessFlags::X_OK) {
            Ok(()) => Ok(path.to_owned()),
            Err(e) => Err(missing(
                format!("fuse2fs = {}: {e}", path.display()),
                "correct the setting (`hpc-launch config` shows where it comes from)",
            )),
        };
    }
    // A site's default PATH may lack these for batch jobs.
    let usual =
        ["/usr/bin/fuse2fs", "/usr/sbin/fuse2fs", "/usr/libexec/apptainer/bin/fuse2fs"].map(PathBuf::from);
    which::which("fuse2fs").or_else(|e| usual.into_iter().find(|p| p.is_file()).ok_or(e)).map_err(|_| {
        missing(
            "only fuse2fs can mount ext2, ext3 and ext4 for an ordinary user, and it is not on PATH".to_owned(),
            "install it (package fuse2fs, built on libfuse 3), set fuse2fs = \"/path\" in the configuration, or unpack the \
             overlay into a directory: debugfs -R 'rdump / DIR' FILE",
        )
    })
}

/// Starts fuse2fs, waiting, as squashfuse is started.
pub fn start_server(file: &Path, program: PathBuf) -> Result<Server> {
    start(
        file,
        None,
        program,
        &["-o", "ro"],
        Serving {
            name: "fuse2fs",
            code: Code::ExtMount,
            cure: "fuse2fs must be built on libfuse 3 (e2fsprogs 1.47.1 and later can be): libfuse 2 cannot be handed a \
                   mount. If it is, the file may be damaged: e2fsck -fn FILE",
            unpack: "unpack it into a directory: debugfs -R 'rdump / DIR' FILE",
        },
    )
}

/// Mounts by the kernel, with a loop device of its own; read-only, unless `writable`.
pub fn mount_by_kernel(file: &File, shown: &Path, writable: bool, target: &Path) -> Result<()> {
    let failed = |what: String| {
        move |e: std::io::Error| {
            Error::new(
                Code::ExtMount,
                format!("{what}: {e}"),
                "look for damage: e2fsck -fn FILE; the kernel's log (dmesg) has its own words",
            )
        }
    };
    let attach = if writable { loopdev::attach_for_writing } else { loopdev::attach_whole };
    let (device, _open) =
        attach(file).map_err(failed(format!("attaching {} to a loop device", shown.display())))?;
    let read_only = if writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | read_only;
    mount(Some(&device), target, Some("ext4"), flags, None::<&Path>)
        .map_err(|e| failed(format!("mounting {} ({})", shown.display(), device.display()))(e.into()))
}

/// Whether the kernel has the driver, which reads ext2 and ext3 too.
pub fn kernel_can() -> bool {
    Path::new("/dev/loop-control").exists() && super::squashfs::has_driver("ext4")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(blocks: u32, incompatible: u32) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[1024 + 4..1024 + 8].copy_from_slice(&blocks.to_le_bytes());
        head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        head[1024 + 0x3a] = 1;
        head[1024 + 0x60..1024 + 0x64].copy_from_slice(&incompatible.to_le_bytes());
        head
    }

    #[test]
    fn superblocks_are_told_apart() {
        assert_eq!(check(&head(8, 0), 8192), Checked::Good);
        assert_eq!(check(&head(8, 4), 8192), Checked::Unclean);
        let mut mounted = head(8, 0);
        mounted[1024 + 0x3a] = 0;
        assert_eq!(check(&mounted, 8192), Checked::Unclean);
        assert_eq!(check(&[0; HEAD], 8192), Checked::Other);
        assert_eq!(check(b"short", 5), Checked::Other);
        let Checked::Damaged(why) = check(&head(9, 0), 8192) else { panic!() };
        assert_eq!(why, "it says 9216 bytes, the file has 8192");
        let mut hostile = head(u32::MAX, WIDE as u32);
        hostile[1024 + 0x150..1024 + 0x154].fill(0xff);
        assert!(matches!(check(&hostile, 8192), Checked::Damaged(_)));
        let mut hostile = head(8, 0);
        hostile[1024 + 0x18] = 200;
        assert!(matches!(check(&hostile, u64::MAX), Checked::Damaged(_)));
        assert!(matches!(check(&head(8, 0)[..1100], 1100), Checked::Damaged(_)));
    }
}

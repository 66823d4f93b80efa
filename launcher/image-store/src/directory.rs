//! A root file system that lies unpacked in a directory, as a tree and data.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::layers::{LeftOut, Merge};
use crate::tree::{Id, MAX_DEPTH, Meta, Node, Tree};

struct Walk<'a, 'b> {
    with: &'a mut Merge<'b>,
    tree: Tree,
    left_out: LeftOut,
    /// Files that have several names, by device and inode.
    known: HashMap<(u64, u64), Id>,
    device: u64,
    buffer: Vec<u8>,
}

/// Reads the directory. Other file systems that are mounted in it stay out, as empty directories.
pub fn read(root: &Path, with: &mut Merge<'_>) -> Result<(Tree, LeftOut)> {
    // It may be named by a link, to another file system.
    let meta = fs::metadata(root).map_err(|e| Error::reading(root, &e))?;
    let mut walk = Walk {
        with,
        tree: Tree::default(),
        left_out: LeftOut::default(),
        known: HashMap::new(),
        device: meta.dev(),
        buffer: vec![0; 256 << 10],
    };
    let kept = walk.meta(&meta);
    walk.tree.set_root(kept)?;
    walk.directory(root, walk.tree.root(), 0)?;
    Ok((walk.tree, walk.left_out))
}

impl Walk<'_, '_> {
    /// What a directory holds.
    fn directory(&mut self, path: &Path, id: Id, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::hostile(format!(
                "{}: directories in more than {MAX_DEPTH} directories",
                path.display()
            )));
        }
        let list = fs::read_dir(path)
            .and_then(|dir| dir.map(|e| e.map(|e| e.file_name())).collect::<std::io::Result<Vec<_>>>());
        let mut names = list.map_err(|e| Error::reading(path, &e))?;
        // The same directory makes the same image.
        names.sort();
        for name in names {
            self.entry(&path.join(&name), id, name.as_bytes(), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, parent: Id, name: &[u8], depth: usize) -> Result<()> {
        let meta = fs::symlink_metadata(path).map_err(|e| Error::reading(path, &e))?;
        let kind = meta.file_type();
        if kind.is_dir() {
            let kept = self.meta(&meta);
            let id = self.tree.add_to(parent, name, kept, Node::Directory)?;
            return if meta.dev() == self.device { self.directory(path, id, depth + 1) } else { Ok(()) };
        }
        if let Some(first) = self.known.get(&(meta.dev(), meta.ino())) {
            return self.tree.link_to(parent, name, *first);
        }
        let to;
        let node = if kind.is_symlink() {
            to = fs::read_link(path).map_err(|e| Error::reading(path, &e))?;
            Node::Symlink(to.as_os_str().as_bytes())
        } else if kind.is_file() {
            Node::File(self.content(path)?)
        } else if kind.is_fifo() {
            Node::Fifo
        } else if kind.is_socket() {
            Node::Socket
        } else {
            self.left_out.devices += 1;
            return Ok(());
        };
        let kept = self.meta(&meta);
        let id = self.tree.add_to(parent, name, kept, node)?;
        if meta.nlink() > 1 {
            self.known.insert((meta.dev(), meta.ino()), id);
        }
        Ok(())
    }

    fn meta(&mut self, meta: &fs::Metadata) -> Meta {
        Meta {
            mode: self.left_out.mode((meta.mode() & 0o7777) as u16, meta.is_dir()),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: u32::try_from(meta.mtime().max(0)).unwrap_or(u32::MAX),
            xattrs: None,
        }
    }

    fn content(&mut self, path: &Path) -> Result<u32> {
        let failed = |e: std::io::Error| Error::reading(path, &e);
        // Not through a link that has come since, and not waiting for a FIFO.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut file = File::options().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
        loop {
            let n = file.read(&mut self.buffer).map_err(failed)?;
            if n == 0 {
                return self.with.data.end();
            }
            self.with.allowance.take(n as u64)?;
            self.with.read.fetch_add(n as u64, Ordering::Relaxed);
            self.with.data.write(&self.buffer[..n])?;
        }
    }
}

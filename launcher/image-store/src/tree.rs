//! The root file system of an image, in memory: directories, names, and which file is whose data.
//!
//! Paths are resolved here as in a root: links are followed inside of it, and nothing leads out.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Deeper than any image is; what walks a tree recurses.
const MAX_DEPTH: usize = 512;
/// As the kernel (MAXSYMLINKS).
const MAX_LINKS: usize = 40;
/// NAME_MAX; SquashFS has 256.
const MAX_NAME: usize = 255;

/// A node's number.
pub type Id = u32;

/// The root's.
pub const ROOT: Id = 0;

/// Who owns it, who may do what, since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// Extended attributes, by name; hardly anything has some.
    pub xattrs: Option<Box<Xattrs>>,
}

/// Names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

impl Meta {
    /// Of a directory that no archive mentions.
    pub fn implied() -> Meta {
        Meta { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: None }
    }
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory(BTreeMap<Box<[u8]>, Id>),
    /// A file: which, of those whose data were written. `u32::MAX`: none yet.
    File(u32),
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// A tree.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<(Meta, Node)>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { nodes: vec![(Meta::implied(), Node::Directory(BTreeMap::new()))] }
    }
}

/// The parts of a path: without empty ones and dots. One that climbs is refused: no archive that is honest has it.
pub fn parts(path: &[u8]) -> Result<Vec<&[u8]>> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    for part in &parts {
        if *part == b".." {
            return Err(Error::hostile(format!("the path {:?}, which leads out of its directory", shown())));
        }
        if part.len() > MAX_NAME {
            return Err(Error::hostile(format!("a name of {} bytes (Linux takes {MAX_NAME})", part.len())));
        }
        if part.contains(&0) {
            return Err(Error::hostile("a name with a NUL"));
        }
    }
    Ok(parts)
}

/// A path that has been cleaned, for messages.
fn shown(parts: &[&[u8]]) -> String {
    parts.iter().map(|p| format!("/{}", String::from_utf8_lossy(p))).collect()
}

impl Tree {
    /// When the newest of its files was changed.
    pub fn newest(&self) -> u32 {
        self.nodes.iter().map(|(meta, _)| meta.mtime).max().unwrap_or(0)
    }

    /// A node and what belongs to it.
    pub fn get(&self, id: Id) -> (&Meta, &Node) {
        let (meta, node) = &self.nodes[id as usize];
        (meta, node)
    }

    /// A directory's entries; none if it is no directory.
    pub fn entries(&self, id: Id) -> impl Iterator<Item = (&[u8], Id)> {
        let entries = match &self.nodes[id as usize].1 {
            Node::Directory(entries) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten().map(|(name, id)| (&**name, *id))
    }

    /// The entry of that name.
    pub fn child(&self, id: Id, name: &[u8]) -> Option<Id> {
        match &self.nodes[id as usize].1 {
            Node::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, id: Id) -> bool {
        matches!(self.nodes[id as usize].1, Node::Directory(_))
    }

    fn add(&mut self, meta: Meta, node: Node) -> Id {
        self.nodes.push((meta, node));
        (self.nodes.len() - 1) as Id
    }

    fn set(&mut self, parent: Id, name: &[u8], id: Id) {
        if let Node::Directory(entries) = &mut self.nodes[parent as usize].1 {
            entries.insert(name.into(), id);
        }
    }

    /// The directory at `path`, through links, inside the root. With `make`, what is missing is made.
    fn walk(&mut self, path: &[&[u8]], make: bool) -> Result<Option<Id>> {
        let mut stack = vec![ROOT];
        let mut todo: Vec<Vec<u8>> = path.iter().rev().map(|p| p.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let here = *stack.last().unwrap_or(&ROOT);
            let next = match self.child(here, &part) {
                Some(next) => next,
                None if make => {
                    let id = self.add(Meta::implied(), Node::Directory(BTreeMap::new()));
                    self.set(here, &part, id);
                    id
                }
                None => return Ok(None),
            };
            match &self.nodes[next as usize].1 {
                Node::Directory(_) => stack.push(next),
                Node::Symlink(to) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::damaged(format!(
                            "{} leads through more than {MAX_LINKS} links",
                            shown(path)
                        )));
                    }
                    if to.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let more = to.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".");
                    todo.extend(more.rev().map(<[u8]>::to_vec));
                    if todo.len() > 8 * MAX_DEPTH {
                        return Err(Error::damaged(format!(
                            "{} leads through links without end",
                            shown(path)
                        )));
                    }
                }
                _ if make => {
                    let what = format!("{} is no directory, and something lies below it", shown(path));
                    return Err(Error::damaged(what));
                }
                _ => return Ok(None),
            }
            if stack.len() > MAX_DEPTH {
                return Err(Error::hostile(format!("directories in more than {MAX_DEPTH} directories")));
            }
        }
        Ok(stack.pop())
    }

    /// The node at `path`; links above it are followed, itself it is not.
    pub fn find(&mut self, path: &[&[u8]]) -> Result<Option<Id>> {
        let Some((name, above)) = path.split_last() else { return Ok(Some(ROOT)) };
        Ok(self.walk(above, false)?.and_then(|parent| self.child(parent, name)))
    }

    /// Puts a node at `path`, in the place of what is there. A directory on a directory keeps what that holds.
    pub fn put(&mut self, path: &[&[u8]], meta: Meta, node: Node) -> Result<Id> {
        let Some((name, above)) = path.split_last() else {
            if !matches!(node, Node::Directory(_)) {
                return Err(Error::hostile("a root that is no directory"));
            }
            self.nodes[ROOT as usize].0 = meta;
            return Ok(ROOT);
        };
        let parent = self.walk(above, true)?.unwrap_or(ROOT);
        if let (Node::Directory(_), Some(there)) = (&node, self.child(parent, name))
            && self.is_directory(there)
        {
            self.nodes[there as usize].0 = meta;
            return Ok(there);
        }
        let id = self.add(meta, node);
        self.set(parent, name, id);
        Ok(id)
    }

    /// Gives the file at `target` another name.
    pub fn link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<Id> {
        let Some(id) = self.find(target)? else {
            return Err(Error::damaged(format!(
                "{} is another name of {}, which is not there",
                shown(path),
                shown(target)
            )));
        };
        let Some((name, above)) = path.split_last() else {
            return Err(Error::hostile("a root that is no directory"));
        };
        if self.is_directory(id) {
            return Err(Error::hostile(format!(
                "{} is another name of the directory {}",
                shown(path),
                shown(target)
            )));
        }
        let parent = self.walk(above, true)?.unwrap_or(ROOT);
        self.set(parent, name, id);
        Ok(id)
    }

    /// Removes what is at `path`, and all below it.
    pub fn remove(&mut self, path: &[&[u8]]) -> Result<()> {
        let Some((name, above)) = path.split_last() else {
            return Err(Error::hostile("a whiteout of the root"));
        };
        if let Some(parent) = self.walk(above, false)?
            && let Node::Directory(entries) = &mut self.nodes[parent as usize].1
        {
            entries.remove(*name);
        }
        Ok(())
    }

    /// Removes what the directory at `path` holds.
    pub fn clear(&mut self, path: &[&[u8]]) -> Result<()> {
        if let Some(id) = self.walk(path, false)?
            && let Node::Directory(entries) = &mut self.nodes[id as usize].1
        {
            entries.clear();
        }
        Ok(())
    }

    /// Says whose data the file has.
    pub fn set_file(&mut self, id: Id, data: u32) {
        if let Node::File(of) = &mut self.nodes[id as usize].1 {
            *of = data;
        }
    }

    /// Makes the only directory that the root holds the root, if that one looks like a root: archives of a directory
    /// have its name before every path (ch-convert's do).
    pub fn strip(&mut self) -> bool {
        const ROOTS: [&[u8]; 4] = [b"bin", b"usr", b"lib", b"etc"];
        let mut entries = self.entries(ROOT);
        let (Some((name, only)), None) = (entries.next(), entries.next()) else { return false };
        if ROOTS.contains(&name) || !ROOTS.iter().any(|n| self.child(only, n).is_some()) {
            return false;
        }
        drop(entries);
        self.nodes.swap(ROOT as usize, only as usize);
        true
    }

    /// Every node that can be reached, once, with how many names it has.
    pub fn names(&self) -> Vec<u32> {
        let mut names = vec![0u32; self.nodes.len()];
        names[ROOT as usize] = 1;
        let mut todo = vec![ROOT];
        while let Some(id) = todo.pop() {
            for (_, child) in self.entries(id) {
                names[child as usize] += 1;
                // Directories have one name only.
                if self.is_directory(child) {
                    todo.push(child);
                }
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(tree: &mut Tree, path: &str, node: Node) -> Result<Id> {
        tree.put(&parts(path.as_bytes())?, Meta::implied(), node)
    }

    fn file(tree: &mut Tree, path: &str, data: u32) -> Id {
        put(tree, path, Node::File(data)).unwrap()
    }

    fn symlink(tree: &mut Tree, path: &str, to: &str) {
        put(tree, path, Node::Symlink(to.as_bytes().into())).unwrap();
    }

    fn list(tree: &Tree) -> Vec<String> {
        fn below(tree: &Tree, id: Id, path: &str, all: &mut Vec<String>) {
            for (name, child) in tree.entries(id) {
                let path = format!("{path}/{}", String::from_utf8_lossy(name));
                below(tree, child, &path, all);
                all.push(path);
            }
        }
        let mut all = Vec::new();
        below(tree, ROOT, "", &mut all);
        all.sort();
        all
    }

    #[test]
    fn links_are_followed_inside() {
        let mut tree = Tree::default();
        symlink(&mut tree, "lib", "usr/lib");
        file(&mut tree, "lib/a", 1);
        symlink(&mut tree, "usr/out", "../../../../etc");
        file(&mut tree, "usr/out/passwd", 2);
        symlink(&mut tree, "abs", "/usr/lib/../lib");
        file(&mut tree, "abs/b", 3);
        let want = [
            "/abs",
            "/etc",
            "/etc/passwd",
            "/lib",
            "/usr",
            "/usr/lib",
            "/usr/lib/a",
            "/usr/lib/b",
            "/usr/out",
        ];
        assert_eq!(list(&tree), want);
    }

    #[test]
    fn a_directory_keeps_what_it_holds_and_all_else_replaces() {
        let mut tree = Tree::default();
        file(&mut tree, "d/a", 1);
        put(&mut tree, "d", Node::Directory(BTreeMap::new())).unwrap();
        assert_eq!(list(&tree), ["/d", "/d/a"]);
        file(&mut tree, "d", 2);
        assert_eq!(list(&tree), ["/d"]);
        put(&mut tree, "d/", Node::Directory(BTreeMap::new())).unwrap();
        assert!(tree.find(&[b"d", b"a"]).unwrap().is_none());
    }

    #[test]
    fn names_of_one_file() {
        let mut tree = Tree::default();
        let id = file(&mut tree, "a", 1);
        tree.link(&[b"x", b"b"], &[b"a"]).unwrap();
        assert_eq!(tree.names()[id as usize], 2);
        tree.remove(&[b"a"]).unwrap();
        assert_eq!((tree.names()[id as usize], list(&tree)), (1, vec!["/x".to_owned(), "/x/b".to_owned()]));
        let e = tree.link(&[b"c"], &[b"a"]).unwrap_err();
        assert_eq!(e.what, "/c is another name of /a, which is not there");
        assert!(tree.link(&[b"c"], &[b"x"]).unwrap_err().what.contains("of the directory /x"));
    }

    #[test]
    fn what_leads_nowhere_or_out() {
        let mut tree = Tree::default();
        symlink(&mut tree, "a", "b");
        symlink(&mut tree, "b", "a");
        assert!(put(&mut tree, "a/x", Node::Fifo).unwrap_err().what.contains("more than 40 links"));
        for path in ["../x", "a/../../x", "/..", "x/.."] {
            assert!(
                parts(path.as_bytes()).unwrap_err().what.contains("leads out of its directory"),
                "{path}"
            );
        }
        assert!(parts(&[b'x'; 256]).is_err());
        file(&mut tree, "f", 1);
        assert!(
            put(&mut tree, "f/x", Node::Fifo)
                .unwrap_err()
                .what
                .contains("/f is no directory, and something lies below")
        );
        assert!(put(&mut tree, "/", Node::Fifo).unwrap_err().what.contains("root that is no directory"));
        let deep = "d/".repeat(600);
        assert!(put(&mut tree, &deep, Node::Fifo).unwrap_err().what.contains("in more than 512"));
    }

    #[test]
    fn the_only_directory_becomes_the_root() {
        let mut tree = Tree::default();
        file(&mut tree, "image/usr/bin/sh", 1);
        assert!(tree.strip());
        assert_eq!(list(&tree), ["/usr", "/usr/bin", "/usr/bin/sh"]);
        assert!(!tree.strip(), "usr is none");
        file(&mut tree, "etc/x", 1);
        assert!(!tree.strip());
    }
}

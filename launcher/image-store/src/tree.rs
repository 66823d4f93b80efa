//! The root file system of an image, in memory: directories, names, and which file is whose data.
//!
//! Paths are resolved here as in a root: links are followed inside of it, and nothing leads out. An image may have
//! millions of files, so a node takes 20 bytes, a name 16 and its letters, and nothing is allocated for each.

mod texts;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use self::texts::Texts;
use crate::error::{Error, Kind, Result, size};

/// Deeper than any image is; what walks a tree recurses.
pub const MAX_DEPTH: usize = 512;
/// As the kernel (MAXSYMLINKS).
const MAX_LINKS: usize = 40;
/// NAME_MAX; SquashFS has 256.
const MAX_NAME: usize = 255;
/// Different attributes of one image, in bytes.
const MAX_ATTRIBUTES: usize = 64 << 20;

/// A node's number.
pub type Id = u32;

/// No node, no entry, no data.
const NONE: u32 = u32::MAX;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node<'a> {
    /// A directory.
    Directory,
    /// A file: which, of those whose data were written. `u32::MAX`: none yet.
    File(u32),
    /// A symbolic link.
    Symlink(&'a [u8]),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// A node, as it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Permission bits.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// Extended attributes.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// What it is.
    pub node: Node<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
}

/// A node, as it is kept.
#[derive(Clone, Debug)]
struct Stored {
    mode: u16,
    kind: Type,
    /// Which of the owners.
    owner: u32,
    mtime: u32,
    /// Which of the sets of attributes, or none.
    attributes: u32,
    /// Of a directory: the newest of its entries; of a file: its data; of a link: where its target is.
    what: u32,
}

/// A name in a directory.
#[derive(Clone, Debug)]
struct Entry {
    parent: Id,
    name: u32,
    /// What has this name; nothing, if it has been removed.
    id: Id,
    /// The entry that came into the directory before it.
    next: u32,
}

/// A tree.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Id,
    nodes: Vec<Stored>,
    entries: Vec<Entry>,
    /// Entries by directory and name.
    index: HashTable<u32>,
    hasher: RandomState,
    texts: Texts,
    owners: Vec<(u32, u32)>,
    owner_numbers: HashMap<(u32, u32), u32>,
    attributes: Vec<Xattrs>,
    attribute_numbers: HashMap<Xattrs, u32>,
    attribute_bytes: usize,
}

impl Default for Tree {
    fn default() -> Tree {
        let root =
            Stored { mode: 0o755, kind: Type::Directory, owner: 0, mtime: 0, attributes: NONE, what: NONE };
        Tree {
            root: 0,
            nodes: vec![root],
            entries: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            texts: Texts::default(),
            owners: vec![(0, 0)],
            owner_numbers: HashMap::from([((0, 0), 0)]),
            attributes: Vec::new(),
            attribute_numbers: HashMap::new(),
            attribute_bytes: 0,
        }
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
    /// The root's number.
    pub fn root(&self) -> Id {
        self.root
    }

    /// How many nodes it has, those included that no name leads to any more.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.children(self.root).next().is_none()
    }

    /// When the newest of its files was changed.
    pub fn newest(&self) -> u32 {
        self.nodes.iter().map(|node| node.mtime).max().unwrap_or(0)
    }

    /// A node and what belongs to it.
    pub fn get(&self, id: Id) -> View<'_> {
        let node = &self.nodes[id as usize];
        let (uid, gid) = self.owners[node.owner as usize];
        let xattrs = self.attributes.get(node.attributes as usize).map_or(&[][..], |set| set);
        View { mode: node.mode, uid, gid, mtime: node.mtime, xattrs, node: self.node(id) }
    }

    /// What it is.
    pub fn node(&self, id: Id) -> Node<'_> {
        let node = &self.nodes[id as usize];
        match node.kind {
            Type::Directory => Node::Directory,
            Type::File => Node::File(node.what),
            Type::Symlink => Node::Symlink(self.texts.get(node.what)),
            Type::Fifo => Node::Fifo,
            Type::Socket => Node::Socket,
        }
    }

    /// A directory's entries, in the order in which they came, the newest first; none if it is no directory.
    fn children(&self, id: Id) -> impl Iterator<Item = &Entry> {
        let node = &self.nodes[id as usize];
        let mut at = if node.kind == Type::Directory { node.what } else { NONE };
        std::iter::from_fn(move || {
            let entry = self.entries.get(at as usize)?;
            at = entry.next;
            Some(entry)
        })
        .filter(|entry| entry.id != NONE)
    }

    /// A directory's entries, by name; none if it is no directory.
    pub fn entries(&self, id: Id) -> Vec<(&[u8], Id)> {
        let mut all: Vec<_> = self.children(id).map(|e| (self.texts.get(e.name), e.id)).collect();
        all.sort_unstable();
        all
    }

    fn hash(&self, parent: Id, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    fn entry_of(&self, parent: Id, name: &[u8]) -> Option<u32> {
        let is_it = |at: &u32| {
            let entry = &self.entries[*at as usize];
            entry.parent == parent && self.texts.get(entry.name) == name
        };
        self.index.find(self.hash(parent, name), is_it).copied()
    }

    /// The entry of that name.
    pub fn child(&self, id: Id, name: &[u8]) -> Option<Id> {
        self.entry_of(id, name).map(|at| self.entries[at as usize].id)
    }

    fn is_directory(&self, id: Id) -> bool {
        self.nodes[id as usize].kind == Type::Directory
    }

    fn number(all: usize) -> Result<u32> {
        u32::try_from(all).ok().filter(|n| *n != NONE).ok_or_else(|| {
            Error::new(Kind::TooLarge, "the image has more than four thousand million files", "split it")
        })
    }

    fn owner(&mut self, uid: u32, gid: u32) -> Result<u32> {
        if let Some(number) = self.owner_numbers.get(&(uid, gid)) {
            return Ok(*number);
        }
        let number = Tree::number(self.owners.len())?;
        self.owners.push((uid, gid));
        self.owner_numbers.insert((uid, gid), number);
        Ok(number)
    }

    fn attributes(&mut self, xattrs: Option<Box<Xattrs>>) -> Result<u32> {
        let Some(xattrs) = xattrs else { return Ok(NONE) };
        if let Some(number) = self.attribute_numbers.get(&*xattrs) {
            return Ok(*number);
        }
        self.attribute_bytes +=
            xattrs.iter().map(|(name, value)| name.len() + value.len() + 64).sum::<usize>();
        if self.attribute_bytes > MAX_ATTRIBUTES {
            let what =
                format!("the image has more than {} of extended attributes", size(MAX_ATTRIBUTES as u64));
            return Err(Error::new(Kind::TooLarge, what, "leave them away: tar --no-xattrs"));
        }
        let number = Tree::number(self.attributes.len())?;
        self.attribute_numbers.insert((*xattrs).clone(), number);
        self.attributes.push(*xattrs);
        Ok(number)
    }

    fn stored(&mut self, meta: Meta, node: Node<'_>) -> Result<Stored> {
        let (kind, what) = match node {
            Node::Directory => (Type::Directory, NONE),
            Node::File(data) => (Type::File, data),
            Node::Symlink(to) => (Type::Symlink, self.texts.push(to)?),
            Node::Fifo => (Type::Fifo, NONE),
            Node::Socket => (Type::Socket, NONE),
        };
        let owner = self.owner(meta.uid, meta.gid)?;
        let attributes = self.attributes(meta.xattrs)?;
        Ok(Stored { mode: meta.mode, kind, owner, mtime: meta.mtime, attributes, what })
    }

    fn add(&mut self, meta: Meta, node: Node<'_>) -> Result<Id> {
        let id = Tree::number(self.nodes.len())?;
        let node = self.stored(meta, node)?;
        self.nodes.push(node);
        Ok(id)
    }

    /// What belongs to a directory changes, and what it holds does not.
    fn set_meta(&mut self, id: Id, meta: Meta) -> Result<()> {
        let what = self.nodes[id as usize].what;
        self.nodes[id as usize] = Stored { what, ..self.stored(meta, Node::Directory)? };
        Ok(())
    }

    /// Gives a node a name in a directory, in the place of what has it.
    fn set(&mut self, parent: Id, name: &[u8], id: Id) -> Result<()> {
        if let Some(at) = self.entry_of(parent, name) {
            self.entries[at as usize].id = id;
            return Ok(());
        }
        let at = Tree::number(self.entries.len())?;
        let name_at = self.texts.push(name)?;
        let next = std::mem::replace(&mut self.nodes[parent as usize].what, at);
        self.entries.push(Entry { parent, name: name_at, id, next });
        let hash = self.hash(parent, name);
        let Tree { index, entries, texts, hasher, .. } = self;
        index.insert_unique(hash, at, |at| {
            let entry = &entries[*at as usize];
            hasher.hash_one((entry.parent, texts.get(entry.name)))
        });
        Ok(())
    }

    fn unset(&mut self, at: u32) {
        let entry = &self.entries[at as usize];
        let hash = self.hash(entry.parent, self.texts.get(entry.name));
        if let Ok(found) = self.index.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        self.entries[at as usize].id = NONE;
    }

    /// A new node in a directory of this tree, in the place of what has its name.
    pub fn add_to(&mut self, parent: Id, name: &[u8], meta: Meta, node: Node<'_>) -> Result<Id> {
        let id = self.add(meta, node)?;
        self.set(parent, name, id)?;
        Ok(id)
    }

    /// Another name of a node that is no directory.
    pub fn link_to(&mut self, parent: Id, name: &[u8], id: Id) -> Result<()> {
        self.set(parent, name, id)
    }

    /// The root's owner, mode and time.
    pub fn set_root(&mut self, meta: Meta) -> Result<()> {
        self.set_meta(self.root, meta)
    }

    /// The directory at `path`, through links, inside the root. With `make`, what is missing is made.
    fn walk(&mut self, path: &[&[u8]], make: bool) -> Result<Option<Id>> {
        let mut stack = vec![self.root];
        let mut todo: Vec<Vec<u8>> = Vec::new();
        let mut given = path.iter();
        let mut links = 0;
        loop {
            // What links have put before the rest of the path.
            let from_link = todo.pop();
            let Some(part) = from_link.as_deref().or_else(|| given.next().copied()) else { break };
            if part == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let here = *stack.last().unwrap_or(&self.root);
            let next = match self.child(here, part) {
                Some(next) => next,
                None if make => self.add_to(here, part, Meta::implied(), Node::Directory)?,
                None => return Ok(None),
            };
            match self.node(next) {
                Node::Directory => stack.push(next),
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
        let Some((name, above)) = path.split_last() else { return Ok(Some(self.root)) };
        Ok(self.walk(above, false)?.and_then(|parent| self.child(parent, name)))
    }

    /// Puts a node at `path`, in the place of what is there. A directory on a directory keeps what that holds.
    pub fn put(&mut self, path: &[&[u8]], meta: Meta, node: Node<'_>) -> Result<Id> {
        let Some((name, above)) = path.split_last() else {
            if node != Node::Directory {
                return Err(Error::hostile("a root that is no directory"));
            }
            self.set_root(meta)?;
            return Ok(self.root);
        };
        let parent = self.walk(above, true)?.unwrap_or(self.root);
        if node == Node::Directory
            && let Some(there) = self.child(parent, name)
            && self.is_directory(there)
        {
            self.set_meta(there, meta)?;
            return Ok(there);
        }
        self.add_to(parent, name, meta, node)
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
        let parent = self.walk(above, true)?.unwrap_or(self.root);
        self.set(parent, name, id)?;
        Ok(id)
    }

    /// Removes what is at `path`, and all below it.
    pub fn remove(&mut self, path: &[&[u8]]) -> Result<()> {
        let Some((name, above)) = path.split_last() else {
            return Err(Error::hostile("a whiteout of the root"));
        };
        if let Some(parent) = self.walk(above, false)?
            && let Some(at) = self.entry_of(parent, name)
        {
            self.unset(at);
        }
        Ok(())
    }

    /// Removes what the directory at `path` holds.
    pub fn clear(&mut self, path: &[&[u8]]) -> Result<()> {
        let Some(id) = self.walk(path, false)? else { return Ok(()) };
        let mut at = std::mem::replace(&mut self.nodes[id as usize].what, NONE);
        while let Some(Entry { id, next, .. }) = self.entries.get(at as usize) {
            let (is_there, next) = (*id != NONE, *next);
            if is_there {
                self.unset(at);
            }
            at = next;
        }
        Ok(())
    }

    /// Says whose data the file has.
    pub fn set_file(&mut self, id: Id, data: u32) {
        let node = &mut self.nodes[id as usize];
        if node.kind == Type::File {
            node.what = data;
        }
    }

    /// Makes the only directory that the root holds the root, if that one looks like a root: archives of a directory
    /// have its name before every path (ch-convert's do).
    pub fn strip(&mut self) -> bool {
        const ROOTS: [&[u8]; 4] = [b"bin", b"usr", b"lib", b"etc"];
        let mut entries = self.children(self.root);
        let (Some(only), None) = (entries.next(), entries.next()) else { return false };
        let looks_like_a_root = ROOTS.iter().any(|n| self.child(only.id, n).is_some());
        if ROOTS.contains(&self.texts.get(only.name)) || !looks_like_a_root {
            return false;
        }
        let only = only.id;
        drop(entries);
        self.root = only;
        true
    }

    /// Every node that can be reached, once, with how many names it has.
    pub fn names(&self) -> Vec<u32> {
        let mut names = vec![0u32; self.nodes.len()];
        names[self.root as usize] = 1;
        let mut todo = vec![self.root];
        while let Some(id) = todo.pop() {
            for entry in self.children(id) {
                names[entry.id as usize] += 1;
                // Directories have one name only.
                if self.is_directory(entry.id) {
                    todo.push(entry.id);
                }
            }
        }
        names
    }
}

#[cfg(test)]
mod tests;

//! Paths in a tree.

use super::*;

fn put(tree: &mut Tree, path: &str, node: Node<'_>) -> Result<Id> {
    tree.put(&parts(path.as_bytes())?, Meta::implied(), node)
}

fn file(tree: &mut Tree, path: &str, data: u32) -> Id {
    put(tree, path, Node::File(data)).unwrap()
}

fn symlink(tree: &mut Tree, path: &str, to: &str) {
    put(tree, path, Node::Symlink(to.as_bytes())).unwrap();
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
    below(tree, tree.root(), "", &mut all);
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
    let want =
        ["/abs", "/etc", "/etc/passwd", "/lib", "/usr", "/usr/lib", "/usr/lib/a", "/usr/lib/b", "/usr/out"];
    assert_eq!(list(&tree), want);
}

#[test]
fn a_directory_keeps_what_it_holds_and_all_else_replaces() {
    let mut tree = Tree::default();
    file(&mut tree, "d/a", 1);
    put(&mut tree, "d", Node::Directory).unwrap();
    assert_eq!(list(&tree), ["/d", "/d/a"]);
    file(&mut tree, "d", 2);
    assert_eq!(list(&tree), ["/d"]);
    put(&mut tree, "d/", Node::Directory).unwrap();
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
        assert!(parts(path.as_bytes()).unwrap_err().what.contains("leads out of its directory"), "{path}");
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

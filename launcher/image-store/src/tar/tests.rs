//! Archives as tar programs write them, and as nobody should.

use super::*;

fn header(kind: u8, path: &str, size: u64) -> ::tar::Header {
    let mut header = ::tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkflag = [kind];
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(size);
    header.set_cksum();
    header
}

fn put(archive: &mut Vec<u8>, header: &::tar::Header, content: &[u8]) {
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        text.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
    }
    text
}

fn whole(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(archive);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        if entry.what == What::File {
            reader.content(|piece| {
                match piece {
                    Piece::Data(bytes) => content.extend_from_slice(bytes),
                    Piece::Hole(n) => content.resize(content.len() + n as usize, 0),
                }
                Ok(())
            })?;
            assert_eq!(content.len() as u64, entry.size);
        }
        all.push((entry, content));
    }
    Ok(all)
}

fn refused(archive: &[u8]) -> String {
    whole(archive).unwrap_err().what
}

#[test]
fn files_links_and_long_names() {
    let long = "d/".repeat(100) + "name";
    let mut archive = Vec::new();
    put(&mut archive, &header(b'5', "d/", 0), b"");
    put(&mut archive, &header(b'0', "d/f", 3), b"abc");
    put(&mut archive, &header(b'L', "././@LongLink", long.len() as u64 + 1), format!("{long}\0").as_bytes());
    put(&mut archive, &header(b'0', "cut", 1), b"x");
    let text =
        pax(&[("path", "p\u{e4}x"), ("mtime", "12.5"), ("uid", "70000"), ("SCHILY.xattr.user.a", "1=2")]);
    put(&mut archive, &header(b'x', "pax", text.len() as u64), &text);
    put(&mut archive, &header(b'0', "short", 0), b"");
    archive.resize(archive.len() + 1024, 0);
    let all = whole(&archive).unwrap();
    let paths: Vec<_> = all.iter().map(|(e, _)| String::from_utf8_lossy(&e.path).into_owned()).collect();
    assert_eq!(paths, ["d/", "d/f", &long, "p\u{e4}x"]);
    assert_eq!(all[1].1, b"abc");
    let last = &all[3].0;
    assert_eq!((last.mtime, last.uid, last.gid), (12, 70000, 2));
    assert_eq!(last.xattrs, [(b"user.a".to_vec(), b"1=2".to_vec())]);
}

#[test]
fn sparse_files_of_four_dialects() {
    let map = [("GNU.sparse.size", "10"), ("GNU.sparse.numblocks", "2")];
    let zero = pax(&[
        &map[..],
        &[("GNU.sparse.offset", "2"), ("GNU.sparse.numbytes", "1")],
        &[("GNU.sparse.offset", "8"), ("GNU.sparse.numbytes", "1")],
    ]
    .concat());
    let one = pax(&[&map[..], &[("GNU.sparse.map", "2,1,8,1")]].concat());
    let ten = pax(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.realsize", "10"),
        ("GNU.sparse.name", "f"),
    ]);
    for (text, content) in [
        (zero, b"ab".to_vec()),
        (one, b"ab".to_vec()),
        (ten, {
            let mut content = b"2\n2\n1\n8\n1\n".to_vec();
            content.resize(512, 0);
            content.extend_from_slice(b"ab");
            content
        }),
    ] {
        let mut archive = Vec::new();
        put(&mut archive, &header(b'x', "pax", text.len() as u64), &text);
        put(&mut archive, &header(b'0', "f", content.len() as u64), &content);
        let all = whole(&archive).unwrap();
        assert_eq!(all[0].1, b"\0\0a\0\0\0\0\0b\0");
    }
    let mut gnu = header(b'S', "f", 2);
    let fields = gnu.as_gnu_mut().unwrap();
    fields.realsize[..11].copy_from_slice(b"00000000012");
    for (piece, offset) in fields.sparse.iter_mut().zip([b"00000000002", b"00000000010"]) {
        piece.offset[..11].copy_from_slice(offset);
        piece.numbytes[..11].copy_from_slice(b"00000000001");
    }
    gnu.set_cksum();
    let mut archive = Vec::new();
    put(&mut archive, &gnu, b"ab");
    assert_eq!(whole(&archive).unwrap()[0].1, b"\0\0a\0\0\0\0\0b\0");
}

#[test]
fn what_contradicts_itself() {
    let mut archive = Vec::new();
    put(&mut archive, &header(b'0', "f", 600), &[1; 600]);
    assert_eq!(whole(&archive[..512 + 600]).unwrap()[0].1, [1; 600], "the last padding may be missing");
    assert_eq!(refused(&archive[..900]), "the tar archive is cut short");
    assert_eq!(refused(&archive[..100]), "the tar archive is cut short");
    archive[0] ^= 1;
    assert!(refused(&archive).contains("checksum is wrong"));
    for (text, why) in [
        (&b"5 a=b\n"[..], "a pax header that is none"),
        (b"99 a=b\n", "a pax header that is none"),
        (b"0 a=b\n", "a pax header that is none"),
        (b"20 SCHILY.xattr.a", "a pax header that is none"),
        (&pax(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,1,0,1")]), "overlap"),
        (&pax(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "8,2")]), "behind its end"),
        (&pax(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "18446744073709551615,2")]), "behind its end"),
        (&pax(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,1")]), "have 1 bytes, 2 are stored"),
        (&pax(&[("GNU.sparse.map", "0,1")]), "without its size"),
        (&pax(&[("path", &"x".repeat(5000))]), "a path of 5000 bytes"),
        (&pax(&[("SCHILY.xattr.user.x", &"x".repeat(70000))]), "bytes of extended attributes"),
    ] {
        let mut archive = Vec::new();
        put(&mut archive, &header(b'x', "pax", text.len() as u64), text);
        put(&mut archive, &header(b'0', "f", 2), b"ab");
        let what = refused(&archive);
        assert!(what.contains(why), "{what} instead of {why}");
    }
    let mut archive = Vec::new();
    put(&mut archive, &header(b'L', "x", 1 << 40), b"");
    assert_eq!(refused(&archive), "a header of 1.0 TiB");
    let mut archive = Vec::new();
    put(&mut archive, &header(b'M', "x", 0), b"");
    assert!(refused(&archive).contains("of the type 'M'"));
}

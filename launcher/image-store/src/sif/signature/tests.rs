//! Files made here, signatures taken as right: what is compared with what.

use std::io::Write;

use super::*;
use crate::sif::tests::{ROOT, made};
use crate::sif::{LABELS, MAGIC};

const KEY: &str = "838F52EC616BE43B8A8632A676C4C49EF2339AA5";
const MESSAGE: &str = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{}\n-----BEGIN PGP SIGNATURE-----\n\nAA==\n-----END PGP SIGNATURE-----\n";
const FIRST: usize = 4096;
const SIZE: usize = crate::sif::DESCRIPTOR;

/// Labels (object 5), the root (object 6), and a signature (object 9) of both.
fn file() -> Vec<u8> {
    let length = i64::try_from(MESSAGE.len()).unwrap();
    let mut bytes = made(&[(LABELS, 35000, 20, 0, 0), ROOT, (SIGNATURE, 50000, length, 0, 0)]);
    bytes[50000..50000 + MESSAGE.len()].copy_from_slice(MESSAGE.as_bytes());
    for (number, (id, group, link)) in
        [(5u32, 1u32, 0u32), (6, 1, 0), (9, 0, GROUP_MASK | 1)].into_iter().enumerate()
    {
        let at = FIRST + number * SIZE;
        bytes[at + 5..at + 9].copy_from_slice(&id.to_le_bytes());
        bytes[at + 9..at + 13].copy_from_slice(&(group | GROUP_MASK).to_le_bytes());
        bytes[at + 13..at + 17].copy_from_slice(&link.to_le_bytes());
    }
    let at = FIRST + 2 * SIZE + 201;
    bytes[at..at + 4].copy_from_slice(&1u32.to_le_bytes());
    bytes[at + 4..at + 24].copy_from_slice(&from_hex(KEY).unwrap());
    bytes
}

/// What a signer says of it: written out by offsets, apart from the code above.
fn says(bytes: &[u8]) -> String {
    let sha = |parts: &[&[u8]]| {
        Digest::of_bytes(&parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize())
    };
    let descriptor = |number: usize, relative: u32| {
        let d = &bytes[FIRST + number * SIZE..][..SIZE];
        sha(&[&d[..5], &relative.to_le_bytes(), &d[13..17], &d[25..33], &d[41..49], &d[57..]])
    };
    format!(
        "{{\"version\":1,\"header\":{{\"digest\":\"{}\"}},\"objects\":[\
         {{\"relativeId\":0,\"descriptorDigest\":\"{}\",\"objectDigest\":\"{}\"}},\
         {{\"relativeId\":1,\"descriptorDigest\":\"{}\",\"objectDigest\":\"{}\"}}]}}\n",
        sha(&[&bytes[..45], &bytes[48..64]]),
        descriptor(0, 0),
        sha(&[&bytes[35000..35020]]),
        descriptor(1, 1),
        sha(&[&bytes[40960..45056]]),
    )
}

fn compare(bytes: &[u8], text: &str, key: &str) -> Result<Verified> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let signed = Signed::read(&file, Path::new("x.sif"))?;
    let text = text.as_bytes().to_vec();
    let approved: Vec<_> = signed
        .signatures
        .iter()
        .map(|signature| Approved { signature, fingerprint: key.to_owned(), text: text.clone() })
        .collect();
    signed.compare(&approved, &Progress::default())
}

#[test]
fn what_was_signed_is_recognised() {
    let bytes = file();
    let verified = compare(&bytes, &says(&bytes), KEY).unwrap();
    assert_eq!(verified.fingerprints, [KEY]);
    assert_eq!(verified.root, Digest::of_bytes(&Sha256::digest(&bytes[40960..45056])));
}

#[test]
fn every_byte_that_counts_is_compared() {
    let whole = file();
    let text = says(&whole);
    for (at, why) in [
        (3, "its header was changed"),
        (50, "its header was changed"),
        (35003, "object 5 was changed"),
        (45055, "object 6 (the root file system) was changed"),
        (FIRST + 57, "the descriptor of object 5 was changed"),
        (FIRST + SIZE + 41, "the descriptor of object 6 (the root file system) was changed"),
        (FIRST + SIZE + 80, "the descriptor of object 6"),
        (FIRST + SIZE + 400, "the descriptor of object 6"),
        (FIRST + 2 * SIZE + 210, "names another key"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let e = compare(&bytes, &text, KEY).unwrap_err();
        assert_eq!(e.kind, Kind::Signature, "{}", e.what);
        assert!(e.what.contains(why), "{} instead of {why}", e.what);
    }
    // Neither times nor architecture of the header, nor when an object was last changed.
    for at in [45, 64, FIRST + 33, FIRST + 49] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        compare(&bytes, &text, KEY).unwrap();
    }
}

#[test]
fn what_a_signature_leaves_out_is_not_signed() {
    let whole = file();
    let text = says(&whole);
    let put = |at: usize, value: u32| {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let unused = |number: usize| {
        let mut bytes = whole.clone();
        bytes[FIRST + number * SIZE + 4] = 0;
        bytes
    };
    let mut more = whole.clone();
    more.copy_within(FIRST..FIRST + SIZE, FIRST + 3 * SIZE);
    let at = FIRST + 3 * SIZE;
    more[at + 5..at + 9].copy_from_slice(&7u32.to_le_bytes());
    more[at + 17..at + 25].copy_from_slice(&36000u64.to_le_bytes());
    let mut other_group = more.clone();
    other_group[at + 9] = 2;
    let mut twice = more.clone();
    twice[at + 5] = 6;
    let of = |text: &str| {
        let mut bytes = whole.clone();
        let at = FIRST + 2 * SIZE + 25;
        bytes[at..at + 8].copy_from_slice(&(text.len() as u64).to_le_bytes());
        bytes[50000..50000 + text.len()].copy_from_slice(text.as_bytes());
        bytes
    };
    for (bytes, kind, why) in [
        (unused(2), Kind::Unsigned, "x.sif is not signed"),
        (more, Kind::Unsigned, "(object 9) does not cover object 7"),
        (other_group, Kind::Unsigned, "no signature covers object 7"),
        (twice, Kind::Damaged, "it has two objects 6"),
        (put(FIRST + 9, GROUP_MASK), Kind::Unsigned, "object 5 belongs to no group"),
        (put(FIRST + 2 * SIZE + 13, GROUP_MASK | 2), Kind::Unsigned, "no signature covers object 5"),
        (put(FIRST + 2 * SIZE + 13, 6), Kind::Unsigned, "is the signature of object 6 alone"),
        (
            of(&MESSAGE.replace("{}", "SIFHASH:\n00").replace("AA==", "")),
            Kind::Unsigned,
            "a legacy signature",
        ),
        (of("{\"payloadType\":\"x\"}"), Kind::Unsigned, "in a DSSE envelope"),
        (of("hello"), Kind::Unsigned, "of no known form"),
        (
            of(&MESSAGE.replace("Hash: SHA256\n", "").replace("=\n", "=\nx\n").replace("-----\n\n{}", "\n")),
            Kind::Unsigned,
            "of no known form",
        ),
        (unused(0), Kind::Signature, "object 7 is missing"),
    ] {
        let e = compare(&bytes, &text, KEY).unwrap_err();
        assert!(e.kind == kind && e.what.contains(why), "{:?} {} instead of {why}", e.kind, e.what);
    }
}

#[test]
fn what_a_signature_says_must_be_understood() {
    let bytes = file();
    let text = says(&bytes);
    for (text, key, why) in [
        ("", KEY, "cannot be understood"),
        ("SIFHASH:\n00", KEY, "cannot be understood"),
        (&text.replace("version\":1", "version\":2"), KEY, "version is 2"),
        (&text.replace("sha256:", "md5:"), KEY, "a digest of no known kind"),
        (&text.replace("sha256:", "sha512:"), KEY, "a digest of no known kind"),
        (&text.replace("Id\":1", "Id\":0"), KEY, "names object 5 twice"),
        (&text.replace("Id\":1", "Id\":4294967295"), KEY, "object 4294967300 is missing"),
        (&text, "00", "names another key"),
        (&text, "", "names another key"),
        (&text, &KEY.replace('8', "9"), "names another key"),
    ] {
        let e = compare(&bytes, text, key).unwrap_err();
        assert!(e.kind == Kind::Signature && e.what.contains(why), "{} instead of {why}", e.what);
    }
}

#[test]
fn every_kind_of_digest_is_known() {
    for (name, length) in [
        ("sha224", 28),
        ("sha256", 32),
        ("sha384", 48),
        ("sha512", 64),
        ("sha512_224", 28),
        ("sha512_256", 32),
    ] {
        assert_eq!(hash(name, MAGIC).unwrap().len(), length);
        assert!(parts(&format!("{name}:{}", "0".repeat(2 * length))).is_some());
        assert!(parts(&format!("{name}:{}", "0".repeat(2 * length - 1))).is_none());
    }
    assert!(parts("sha1:00").is_none() && parts("sha256").is_none() && parts("sha256:é").is_none());
}

#[test]
fn one_message_and_nothing_around_it() {
    assert_eq!(Form::of(MESSAGE.as_bytes()), Form::ClearSigned);
    for text in [
        format!("x{MESSAGE}"),
        format!("{MESSAGE}x"),
        format!("{MESSAGE}{MESSAGE}"),
        MESSAGE.replace("{}", "-----BEGIN PGP SIGNATURE-----"),
        String::new(),
    ] {
        assert_eq!(Form::of(text.as_bytes()), Form::Other, "{text}");
    }
}

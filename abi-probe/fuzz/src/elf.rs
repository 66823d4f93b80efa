//! Makes small ELF objects whose dynamic sections say what a fuzzer wants them to say.

use arbitrary::Arbitrary;

/// Words that names and search lists are made of.
const WORDS: &[&str] = &[
    "liba.so",
    "libb.so",
    "libc.so",
    "libd.so",
    "/",
    "/lib",
    "/a",
    "/b",
    "$ORIGIN",
    "${ORIGIN}",
    "$LIB",
    "$PLATFORM",
    ":",
    ";",
    "..",
    ".",
    "",
    "\u{fffd}",
    "/lib/liba.so",
    "/a/../b/libb.so",
];

/// A text: words one behind the other.
#[derive(Arbitrary, Debug)]
pub struct Text(Vec<u8>);

impl Text {
    /// At most eight words.
    pub fn text(&self) -> String {
        self.0.iter().take(8).map(|word| WORDS[usize::from(*word) % WORDS.len()]).collect()
    }
}

/// An object.
#[derive(Arbitrary, Debug)]
pub struct Made {
    interp: bool,
    soname: Option<Text>,
    needed: Vec<Text>,
    rpath: Option<Text>,
    runpath: Option<Text>,
    flags: u8,
    is_32: bool,
}

const BASE: u64 = 0;

impl Made {
    /// As a file.
    pub fn bytes(&self, interp: &str) -> Vec<u8> {
        let mut strings = vec![0];
        let mut put = |text: &str| {
            let at = strings.len() as u64;
            strings.extend(text.bytes().chain([0]));
            at
        };
        let mut dynamic: Vec<(u64, u64)> = Vec::new();
        for (tag, text) in [(14, &self.soname), (15, &self.rpath), (29, &self.runpath)] {
            if let Some(text) = text {
                dynamic.push((tag, put(&text.text())));
            }
        }
        dynamic.extend(self.needed.iter().take(16).map(|text| (1, put(&text.text()))));
        let interp_at = put(interp);
        let headers = 64 + 3 * 56;
        let strings_at = headers as u64;
        let dynamic_at = (strings_at + strings.len() as u64).next_multiple_of(8);
        dynamic.extend([(5, strings_at), (10, strings.len() as u64), (30, u64::from(self.flags))]);
        // DF_1_NODEFLIB and DF_1_NOW.
        dynamic.extend([(0x6fff_fffb, u64::from(self.flags) << 8 | 1), (0, 0)]);
        let end = dynamic_at + dynamic.len() as u64 * 16;

        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out[4] = if self.is_32 { 1 } else { 2 };
        out.resize(16, 0);
        out.extend([3, 0, 62, 0, 1, 0, 0, 0]);
        for n in [0u64, 64, 0] {
            out.extend(n.to_le_bytes());
        }
        out.extend([0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 64, 0, 0, 0, 0, 0]);
        let interp_kind = if self.interp { 3u32 } else { 0 };
        let segments = [
            (1u32, BASE, end),
            (2, dynamic_at, end - dynamic_at),
            (interp_kind, strings_at + interp_at, interp.len() as u64 + 1),
        ];
        for (kind, offset, size) in segments {
            out.extend(kind.to_le_bytes());
            out.extend(4u32.to_le_bytes());
            for n in [offset, offset, offset, size, size, 8] {
                out.extend(n.to_le_bytes());
            }
        }
        out.extend(&strings);
        out.resize(dynamic_at as usize, 0);
        for (tag, value) in dynamic {
            out.extend(tag.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        out
    }
}

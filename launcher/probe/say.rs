//! Facts, as lines of standard output.

use core::ffi::{CStr, c_char};
use core::fmt::{self, Write};

use crate::c;

/// A line fits into what a pipe takes at once.
const LONGEST: usize = 3072;

/// A line in the making.
pub struct Line {
    bytes: [u8; LONGEST],
    length: usize,
}

/// Text that a value may hold.
struct Value<'a>(&'a mut Line);

impl Line {
    pub fn new(kind: &str) -> Line {
        let mut line = Line { bytes: [0; LONGEST], length: 0 };
        line.push(kind.as_bytes());
        line
    }

    fn push(&mut self, bytes: &[u8]) {
        // The last place is the newline's.
        for byte in bytes.iter().take(LONGEST - 1 - self.length) {
            self.bytes[self.length] = *byte;
            self.length += 1;
        }
    }

    pub fn field(mut self, name: &str, value: impl fmt::Display) -> Line {
        self.push(b"\t");
        self.push(name.as_bytes());
        self.push(b"=");
        let _ = write!(Value(&mut self), "{value}");
        self
    }

    pub fn text(self, name: &str, value: *const c_char) -> Line {
        if value.is_null() {
            return self;
        }
        // SAFETY: libraries answer strings, or nothing.
        let bytes = unsafe { CStr::from_ptr(value) }.to_bytes();
        self.bytes(name, bytes)
    }

    pub fn bytes(mut self, name: &str, value: &[u8]) -> Line {
        self = self.field(name, "");
        let room = Value(&mut self);
        for byte in value.iter().take(1024) {
            let shown = if byte.is_ascii_graphic() || *byte == b' ' { *byte } else { b'?' };
            room.0.push(&[shown]);
        }
        self
    }

    /// Without the newline.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub fn say(mut self) {
        self.bytes[self.length] = b'\n';
        // SAFETY: a buffer with its length.
        unsafe { c::write(1, self.bytes.as_ptr().cast(), self.length + 1) };
    }
}

/// What a rank's node has to tell, which is one line already and may be long.
pub fn report(rank: i32, text: &[u8]) {
    let start = Line::new("report").field("rank", rank).field("text", "");
    // SAFETY: buffers with their lengths.
    let put = |bytes: &[u8]| unsafe { c::write(1, bytes.as_ptr().cast(), bytes.len()) };
    put(&start.bytes[..start.length]);
    let mut rest = text;
    while !rest.is_empty() {
        match usize::try_from(put(rest)) {
            Ok(count) if count > 0 => rest = &rest[count..],
            _ => break,
        }
    }
    put(b"\n");
}

/// Lines that are said later, by another rank: with other bytes for tab and newline, that they fit into a field.
pub struct Record {
    bytes: &'static mut [u8],
    length: usize,
}

impl Record {
    pub fn new(bytes: &'static mut [u8]) -> Record {
        Record { bytes, length: 0 }
    }

    pub fn add(&mut self, line: &[u8]) {
        for byte in core::iter::once(&b'\n').chain(line) {
            let byte = match byte {
                b'\t' => 0x1d,
                b'\n' => 0x1e,
                byte => *byte,
            };
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Value<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push(text.as_bytes());
        Ok(())
    }
}

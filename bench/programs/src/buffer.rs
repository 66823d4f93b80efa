//! Memory for messages: page-aligned and touched, as OSU's `posix_memalign` and `memset` give it.

use std::ops::{Deref, DerefMut};

/// OSU takes `sysconf(_SC_PAGESIZE)`; larger pages only align more.
const PAGE: usize = 65536;

/// Bytes that begin at a page's start.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// `length` bytes, all of them written once: no page is first touched within a measurement.
    pub fn new(length: usize) -> Self {
        let mut bytes = vec![0; length + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE).min(PAGE);
        // vec![0] may come from untouched zero pages.
        bytes.fill(1);
        Buffer { bytes, start, length }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page_and_has_its_length() {
        for length in [1, 4096, 100_001] {
            let mut buffer = Buffer::new(length);
            assert_eq!((buffer.as_ptr() as usize % PAGE, buffer.len()), (0, length));
            buffer[length - 1] = 7;
        }
    }
}

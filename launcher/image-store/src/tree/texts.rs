//! Names and targets of links, one behind the other.

use crate::error::{Error, Kind, Result, size};

/// Of one image.
const MAX: usize = 512 << 20;

/// Texts of up to 65535 bytes, by number.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// Each behind its length.
    bytes: Vec<u8>,
}

impl Texts {
    /// Keeps one; its number.
    pub fn push(&mut self, text: &[u8]) -> Result<u32> {
        let length = u16::try_from(text.len())
            .map_err(|_| Error::hostile(format!("a name or a link of {} bytes", text.len())))?;
        let at = self.bytes.len();
        if at + 2 + text.len() > MAX {
            let what = format!("the image's names and links have more than {}", size(MAX as u64));
            return Err(Error::new(Kind::TooLarge, what, "split it"));
        }
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(text);
        Ok(at as u32)
    }

    /// The one of that number.
    pub fn get(&self, number: u32) -> &[u8] {
        let at = number as usize + 2;
        let length = u16::from_le_bytes([self.bytes[at - 2], self.bytes[at - 1]]);
        &self.bytes[at..at + usize::from(length)]
    }
}

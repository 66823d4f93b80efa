//! The packing in which PRRTE 3's server passes on what ranks of other hosts have put: its own, whatever the client
//! has asked for (seen with prterun 3.0.14 over two hosts). Read only as far as our own values go.
//!
//! Lengths and counts are "flex128": seven bits to a byte, the low ones first, the high bit for more; signed ones
//! with the sign in the lowest bit (src/mca/bfrops/base/bfrop_base_squash.c, bfrop_base_encode_int).

use super::value::kind;
use crate::wire::Malformed;

/// Shorthand.
type Result<T> = std::result::Result<T, Malformed>;

struct Squashed<'a> {
    rest: &'a [u8],
}

impl<'a> Squashed<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(|| {
            Malformed(format!("PMIx: {n} squashed bytes are due, {} are left", self.rest.len()))
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn unsigned(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("PMIx: a squashed number without end".to_owned()))
    }

    /// A count or length: never negative here.
    fn length(&mut self) -> Result<usize> {
        let value = self.unsigned()?;
        match value & 1 {
            0 => Ok((value >> 1) as usize),
            _ => Err(Malformed("PMIx: a negative length".to_owned())),
        }
    }

    fn one(&mut self) -> Result<()> {
        match self.length()? {
            1 => Ok(()),
            n => Err(Malformed(format!("PMIx: {n} squashed things where one is due"))),
        }
    }

    fn string(&mut self) -> Result<String> {
        let length = self.length()?;
        let text = self.take(length)?;
        Ok(String::from_utf8_lossy(text.strip_suffix(b"\0").unwrap_or(text)).into_owned())
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.unsigned()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }
}

/// The bytes under a key: byte objects of a process and its KVALs, as in [`super::find`].
pub fn find(bytes: &[u8], key: &str) -> Result<Option<Vec<u8>>> {
    let mut all = Squashed { rest: bytes };
    while !all.rest.is_empty() {
        all.one()?;
        let mut blob = Squashed { rest: all.bytes()? };
        blob.one()?;
        blob.string()?;
        // The rank.
        blob.unsigned()?;
        while !blob.rest.is_empty() {
            blob.one()?;
            let name = blob.string()?;
            let of = blob.unsigned()?;
            if of != kind::BYTE_OBJECT.into() {
                return Err(Malformed(format!("PMIx: a squashed value of type {of}")));
            }
            let value = blob.bytes()?;
            if name == key {
                return Ok(Some(value.to_vec()));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_prrte_was_seen_to_send() {
        let mut blob = b"\x02\x24prterun-head-48@1\0\0".to_vec();
        blob.extend(b"\x02\x0ehpcl.1\0\x1b\x03abc");
        let mut reply = vec![2, blob.len() as u8];
        reply.extend(&blob);
        assert_eq!(find(&reply, "hpcl.1").unwrap().as_deref(), Some(&b"abc"[..]));
        assert_eq!(find(&reply, "hpcl.2").unwrap(), None);
        for end in 1..reply.len() {
            assert!(find(&reply[..end], "hpcl.1").is_err(), "{end}");
        }
        let mut long = Squashed { rest: &[0xdd, 0x01] };
        assert_eq!(long.unsigned().unwrap(), 0xdd);
        assert!(Squashed { rest: &[0xff; 20] }.unsigned().is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = find(&bytes, "k");
        }
    }
}

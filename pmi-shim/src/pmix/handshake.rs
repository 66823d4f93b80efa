//! The first messages of a PMIx connection, and the frames that follow (src/mca/ptl/base).

use super::status;
use crate::wire::{Malformed, shown};

/// Bytes before each message: index of the peer, tag, length, padding.
pub const HEADER: usize = 16;
/// A rank puts at most some KB; a host's job data has some 100 bytes for each rank.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Names and a credential of a few bytes (munge's has some hundreds).
pub const MAX_HELLO: usize = 16 << 10;
/// The name of the packing that we speak, and that of an older release which packs the same.
const BFROPS: [&str; 2] = ["v3", "v21"];
/// Buffers without type descriptions.
const NON_DESCRIBED: u8 = 1;
/// A rank, not a tool.
const SIMPLE_CLIENT: u8 = 0;

/// What stands before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The client's number on the server.
    pub index: i32,
    /// Pairs a reply with its request.
    pub tag: u32,
    /// Bytes that follow.
    pub length: usize,
}

impl Header {
    /// A message with its header.
    pub fn frame(index: i32, tag: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + body.len());
        out.extend_from_slice(&index.to_be_bytes());
        out.extend_from_slice(&tag.to_be_bytes());
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(body);
        out
    }
}

/// Cuts a stream of bytes into messages.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    start: usize,
}

impl Messages {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// The hello, whose header is in the machine's order.
    pub fn hello(&mut self) -> Result<Option<Hello>, Malformed> {
        let length = |b| u32::from_ne_bytes(b) as usize;
        let Some(body) = self.framed(length, MAX_HELLO)? else { return Ok(None) };
        Hello::parse(&body.1).map(Some)
    }

    /// The next message, if all of it is here.
    pub fn message(&mut self) -> Result<Option<(Header, Vec<u8>)>, Malformed> {
        self.framed(|b| u32::from_be_bytes(b) as usize, MAX_MESSAGE)
    }

    /// The server's answer to a hello: a status, and the client's number behind a good one.
    pub fn welcome(&mut self) -> Option<Result<i32, i32>> {
        let status = i32::from_be_bytes(self.word(0)?);
        if status != status::SUCCESS {
            return Some(Err(status));
        }
        let index = i32::from_be_bytes(self.word(4)?);
        self.start += 8;
        Some(Ok(index))
    }

    fn word(&self, at: usize) -> Option<[u8; 4]> {
        self.bytes.get(self.start + at..self.start + at + 4)?.try_into().ok()
    }

    fn framed(
        &mut self,
        length: impl Fn([u8; 4]) -> usize,
        most: usize,
    ) -> Result<Option<(Header, Vec<u8>)>, Malformed> {
        let (Some(index), Some(tag), Some(size)) = (self.word(0), self.word(4), self.word(8)) else {
            return Ok(None);
        };
        let length = length(size);
        if length > most {
            let seen = shown(&self.bytes[self.start..]);
            return Err(Malformed(format!("PMIx: a message of {length} bytes, more than {most}: {seen}")));
        }
        let start = self.start + HEADER;
        let Some(body) = self.bytes.get(start..start + length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.start = start + length;
        let header = Header { index: i32::from_be_bytes(index), tag: u32::from_be_bytes(tag), length };
        Ok(Some((header, body)))
    }
}

/// What a client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its security module: `native`, `munge`, `none`.
    pub security: String,
    /// What that module gave it.
    pub credential: Vec<u8>,
    /// Rank, or some kind of tool.
    pub flag: u8,
    /// Its namespace.
    pub nspace: String,
    /// Its rank.
    pub rank: u32,
    /// Its release of PMIx.
    pub version: String,
    /// The packing that it will use.
    pub bfrops: String,
    /// With type descriptions, or without.
    pub buffer: u8,
    /// Its store of data.
    pub store: String,
}

impl Hello {
    /// A rank's, in our dialect.
    pub fn of_rank(nspace: &str, rank: u32, bfrops: &str, uid: u32, gid: u32) -> Hello {
        // psec/native over TCP: both numbers in the machine's order.
        let credential = [uid.to_ne_bytes(), gid.to_ne_bytes()].concat();
        Hello {
            security: "native".to_owned(),
            credential,
            flag: SIMPLE_CLIENT,
            nspace: nspace.to_owned(),
            rank,
            // The oldest of the dialect: newer clients would be expected to send more.
            version: "3.2.5".to_owned(),
            bfrops: bfrops.to_owned(),
            buffer: NON_DESCRIBED,
            store: "hash".to_owned(),
        }
    }

    /// With its header, in the machine's order.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let string = |body: &mut Vec<u8>, text: &str| {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        };
        string(&mut body, &self.security);
        body.extend_from_slice(&(self.credential.len() as u32).to_be_bytes());
        body.extend_from_slice(&self.credential);
        body.push(self.flag);
        string(&mut body, &self.nspace);
        body.extend_from_slice(&self.rank.to_be_bytes());
        string(&mut body, &self.version);
        string(&mut body, &self.bfrops);
        body.push(self.buffer);
        string(&mut body, &self.store);
        let mut out = Vec::new();
        out.extend_from_slice(&(-1i32).to_ne_bytes());
        out.extend_from_slice(&u32::MAX.to_ne_bytes());
        out.extend_from_slice(&(body.len() as u32).to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&body);
        out
    }

    fn parse(body: &[u8]) -> Result<Hello, Malformed> {
        let mut rest = body;
        let bad = || Malformed(format!("PMIx: no hello: {}", shown(body)));
        let take = |rest: &mut &[u8], n: usize| -> Result<Vec<u8>, Malformed> {
            let (taken, after) = rest.split_at_checked(n).ok_or_else(bad)?;
            *rest = after;
            Ok(taken.to_vec())
        };
        let word = |rest: &mut &[u8]| -> Result<u32, Malformed> {
            let bytes: [u8; 4] = take(rest, 4)?.try_into().map_err(|_| bad())?;
            Ok(u32::from_be_bytes(bytes))
        };
        let string = |rest: &mut &[u8]| -> Result<String, Malformed> {
            let end = rest.iter().position(|b| *b == 0).ok_or_else(bad)?;
            let text = take(rest, end)?;
            take(rest, 1)?;
            String::from_utf8(text).map_err(|_| bad())
        };
        let security = string(&mut rest)?;
        let length = word(&mut rest)? as usize;
        let credential = take(&mut rest, length)?;
        let flag = take(&mut rest, 1)?[0];
        if flag != SIMPLE_CLIENT {
            // Tools say other things from here on.
            let empty = String::new;
            let (nspace, version, bfrops, store) = (empty(), empty(), empty(), empty());
            let (rank, buffer) = (0, 0);
            return Ok(Hello { security, credential, flag, nspace, rank, version, bfrops, buffer, store });
        }
        Ok(Hello {
            security,
            credential,
            flag,
            nspace: string(&mut rest)?,
            rank: word(&mut rest)?,
            version: string(&mut rest)?,
            bfrops: string(&mut rest)?,
            buffer: take(&mut rest, 1)?[0],
            store: string(&mut rest)?,
        })
    }

    /// Why we cannot talk to this client; the status is what it is told.
    pub fn judge(&self) -> Result<(), (i32, String)> {
        let of = format!("PMIx {} of rank {}", self.version, self.rank);
        let failed = |what: String| Err((status::HANDSHAKE_FAILED, what));
        if self.flag != SIMPLE_CLIENT {
            return failed(format!(
                "a PMIx tool (kind {}) asks to connect: only ranks are served",
                self.flag
            ));
        }
        if self.security != "native" {
            return failed(format!(
                "{of} offers credentials of kind {:?}; only \"native\" is spoken: unset PMIX_SECURITY_MODE and \
                 PMIX_MCA_psec inside",
                self.security
            ));
        }
        if !BFROPS.contains(&self.bfrops.as_str()) || self.buffer != NON_DESCRIBED {
            let kind = match self.buffer {
                NON_DESCRIBED => "without",
                2 => "with",
                _ => "of an unknown kind as to",
            };
            return failed(format!(
                "{of} asks for the packing {:?} {kind} type descriptions; spoken is {} without: unset \
                 PMIX_MCA_bfrops and PMIX_BFROP_BUFFER_TYPE inside, or use PMIx 3.2 or later",
                self.bfrops,
                BFROPS.join(" or "),
            ));
        }
        Ok(())
    }

    /// The user that the client says it is.
    pub fn uid(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.credential.get(..4)?.try_into().ok()?))
    }

    /// The answer to a client that is welcome.
    pub fn welcome(&self) -> Vec<u8> {
        [status::SUCCESS.to_be_bytes(), self.rank.to_be_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hello_is_read_as_it_was_written_and_judged() {
        let hello = Hello::of_rank("job", 3, "v3", 1000, 100);
        let mut messages = Messages::default();
        for byte in hello.encode() {
            assert_eq!(messages.hello().unwrap(), None);
            messages.push(&[byte]);
        }
        assert_eq!(messages.hello().unwrap().unwrap(), hello);
        assert_eq!((hello.judge(), hello.uid()), (Ok(()), Some(1000)));
        let munge = Hello { security: "munge".into(), ..hello.clone() };
        assert!(munge.judge().unwrap_err().1.contains("\"munge\"; only \"native\""));
        let described = Hello { buffer: 2, bfrops: "v41".into(), ..hello };
        let (status, why) = described.judge().unwrap_err();
        assert_eq!(status, status::HANDSHAKE_FAILED);
        assert!(why.contains("asks for the packing \"v41\" with type descriptions; spoken is v3"), "{why}");
    }

    #[test]
    fn welcome_and_refusal() {
        let mut messages = Messages::default();
        messages.push(&Hello::of_rank("job", 7, "v3", 0, 0).welcome()[..6]);
        assert_eq!(messages.welcome(), None);
        messages.push(&[0, 7]);
        assert_eq!(messages.welcome(), Some(Ok(7)));
        let mut messages = Messages::default();
        messages.push(&status::INVALID_CRED.to_be_bytes());
        assert_eq!(messages.welcome(), Some(Err(-12)));
    }

    proptest! {
        #[test]
        fn messages_however_they_are_split(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..6),
            cut in 1usize..40,
        ) {
            let stream: Vec<u8> =
                bodies.iter().zip(100..).flat_map(|(body, tag)| Header::frame(5, tag, body)).collect();
            let (mut messages, mut seen) = (Messages::default(), Vec::new());
            for part in stream.chunks(cut) {
                messages.push(part);
                while let Some((header, body)) = messages.message().unwrap() {
                    prop_assert_eq!((header.index, header.tag as usize), (5, 100 + seen.len()));
                    seen.push(body);
                }
            }
            prop_assert_eq!(seen, bodies);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut messages = Messages::default();
            messages.push(&bytes);
            let _ = messages.hello();
            while let Ok(Some(_)) = messages.message() {}
            let _ = Hello::parse(&bytes);
        }
    }
}

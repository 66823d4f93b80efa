//! Unpacking what a peer packed. Every length is checked against the bytes that are there.

use super::value::{Info, Proc, Value, kind};
use crate::wire::Malformed;

/// Arrays in arrays are followed so deep.
const MAX_DEPTH: u32 = 8;
/// More elements than a list has in any message: one may be a byte on the wire and is some 60 here.
const MAX_ELEMENTS: u64 = 1 << 18;

/// Shorthand.
type Result<T> = std::result::Result<T, Malformed>;

/// A buffer that is being read.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// At its beginning.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Whether all of it was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What was not read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// COMMAND.
    pub fn command(&mut self) -> Result<u8> {
        self.one("COMMAND")?;
        self.byte()
    }

    /// SCOPE.
    pub fn scope(&mut self) -> Result<u8> {
        self.one("SCOPE")?;
        self.byte()
    }

    /// STATUS.
    pub fn status(&mut self) -> Result<i32> {
        self.one("STATUS")?;
        Ok(self.u32()? as i32)
    }

    /// UINT32, or PROC_RANK.
    pub fn number(&mut self) -> Result<u32> {
        self.one("UINT32")?;
        self.u32()
    }

    /// STRING; without one: empty.
    pub fn string(&mut self) -> Result<String> {
        self.one("STRING")?;
        self.text()
    }

    /// SIZE.
    pub fn size(&mut self) -> Result<u64> {
        self.one("SIZE")?;
        self.size_value()
    }

    /// BYTE_OBJECT.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        self.one("BYTE_OBJECT")?;
        self.byte_object()
    }

    /// BUFFER.
    pub fn buffer(&mut self) -> Result<&'a [u8]> {
        self.one("BUFFER")?;
        // Its kind: that of the connection.
        self.byte()?;
        self.byte_object()
    }

    /// PROCs.
    pub fn procs(&mut self) -> Result<Vec<Proc>> {
        (0..self.length()?).map(|_| self.proc()).collect()
    }

    /// One KVAL.
    pub fn kval(&mut self) -> Result<Info> {
        self.one("KVAL")?;
        Ok(Info { key: self.text()?, value: self.typed(0)? })
    }

    /// How many INFOs, and these, as commands carry them.
    pub fn infos(&mut self) -> Result<Vec<Info>> {
        match self.size()? {
            0 => Ok(Vec::new()),
            _ => (0..self.length()?).map(|_| self.info(0)).collect(),
        }
    }

    /// PDATA.
    pub fn pdata(&mut self) -> Result<Vec<(Proc, Info)>> {
        let one = |r: &mut Self| Ok((r.proc()?, Info { key: r.text()?, value: r.typed(0)? }));
        (0..self.length()?).map(|_| one(self)).collect()
    }

    fn length(&mut self) -> Result<u64> {
        let length = self.u32()?;
        bounded(length.into())
    }

    fn one(&mut self, what: &str) -> Result<()> {
        match self.u32()? {
            1 => Ok(()),
            n => Err(Malformed(format!("PMIx: {n} of {what} where one is due"))),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(n) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(Malformed(format!("PMIx: {n} bytes are due, {} are left", self.rest.len()))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        let bytes = self.take(length)?;
        let text = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// The type that it was on the peer's machine comes first.
    fn size_value(&mut self) -> Result<u64> {
        match self.u16()? {
            kind::UINT64 | kind::INT64 => self.u64(),
            kind::UINT32 => self.u32().map(u64::from),
            kind::INT32 => self.u32().map(|n| i64::from(n as i32) as u64),
            kind::UINT16 | kind::INT16 => self.u16().map(u64::from),
            kind::UINT8 | kind::INT8 => self.byte().map(u64::from),
            other => Err(Malformed(format!("PMIx: a number of type {other}"))),
        }
    }

    fn byte_object(&mut self) -> Result<&'a [u8]> {
        let length = self.size_value()?;
        match usize::try_from(length) {
            Ok(length) => self.take(length),
            Err(_) => Err(Malformed(format!("PMIx: a byte object of {length} bytes"))),
        }
    }

    fn proc(&mut self) -> Result<Proc> {
        Ok(Proc { nspace: self.text()?, rank: self.u32()? })
    }

    fn info(&mut self, depth: u32) -> Result<Info> {
        let key = self.text()?;
        // INFO_DIRECTIVES.
        self.u32()?;
        Ok(Info { key, value: self.typed(depth)? })
    }

    fn typed(&mut self, depth: u32) -> Result<Value> {
        let kind = self.u16()?;
        self.value(kind, depth)
    }

    fn value(&mut self, kind: u16, depth: u32) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(Malformed("PMIx: arrays in arrays without end".to_owned()));
        }
        Ok(match kind {
            kind::BOOL => Value::Bool(self.byte()? != 0),
            kind::BYTE
            | kind::UINT8
            | kind::PERSIST
            | kind::SCOPE
            | kind::DATA_RANGE
            | kind::COMMAND
            | kind::PROC_STATE
            | kind::JOB_STATE
            | kind::LINK_STATE
            | kind::ALLOC_DIRECTIVE => Value::Byte(kind, self.byte()?),
            kind::STRING | kind::PROC_NSPACE => Value::String(self.text()?),
            kind::SIZE => Value::Size(self.size_value()?),
            kind::INT => Value::Signed(kind, i64::from(self.size_value()? as i32)),
            kind::PID | kind::UINT => Value::Unsigned(kind, self.size_value()?),
            kind::INT8 => Value::Signed(kind, i64::from(self.byte()? as i8)),
            kind::INT16 => Value::Signed(kind, i64::from(self.u16()? as i16)),
            kind::INT32 => Value::Signed(kind, i64::from(self.u32()? as i32)),
            kind::INT64 => Value::Signed(kind, self.u64()? as i64),
            kind::UINT16 | kind::IOF_CHANNEL | kind::DATA_TYPE => Value::Unsigned(kind, self.u16()?.into()),
            kind::UINT32 | kind::INFO_DIRECTIVES => Value::Unsigned(kind, self.u32()?.into()),
            kind::UINT64 | kind::TIME => Value::Unsigned(kind, self.u64()?),
            kind::FLOAT | kind::DOUBLE => Value::Decimal(kind, self.text()?),
            kind::TIMEVAL => Value::Time(self.u64()? as i64, self.u64()? as i64),
            kind::STATUS => Value::Status(self.u32()? as i32),
            kind::PROC => Value::Proc(self.proc()?),
            kind::PROC_RANK => Value::Rank(self.u32()?),
            kind::BYTE_OBJECT | kind::COMPRESSED_STRING | kind::COMPRESSED_BYTE_OBJECT => {
                Value::Bytes(kind, self.byte_object()?.to_vec())
            }
            kind::ENVAR => Value::Envar(self.text()?, self.text()?, self.byte()?),
            kind::INFO => Value::Info(Box::new(self.info(depth + 1)?)),
            kind::KVAL => Value::Kval(Box::new(Info { key: self.text()?, value: self.typed(depth + 1)? })),
            kind::VALUE => Value::Value(Box::new(self.typed(depth + 1)?)),
            kind::DATA_ARRAY => {
                let (kind, length) = (self.u16()?, bounded(self.size_value()?)?);
                let values = (0..length).map(|_| self.value(kind, depth + 1)).collect::<Result<_>>()?;
                Value::Array(kind, values)
            }
            other => return Err(Malformed(format!("PMIx: a value of type {other}"))),
        })
    }
}

fn bounded(length: u64) -> Result<u64> {
    match length {
        0..=MAX_ELEMENTS => Ok(length),
        _ => Err(Malformed(format!("PMIx: a list of {length} elements"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Writer;
    use super::*;
    use proptest::prelude::*;

    fn leaf() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<u8>().prop_map(|b| Value::Byte(kind::BYTE, b)),
            "[ -~]{0,30}".prop_map(Value::String),
            any::<u64>().prop_map(Value::Size),
            any::<i32>().prop_map(|n| Value::Signed(kind::INT, n.into())),
            any::<i8>().prop_map(|n| Value::Signed(kind::INT8, n.into())),
            any::<i64>().prop_map(|n| Value::Signed(kind::INT64, n)),
            any::<u16>().prop_map(Value::u16),
            any::<u32>().prop_map(Value::u32),
            any::<u32>().prop_map(|n| Value::Unsigned(kind::PID, n.into())),
            any::<u16>().prop_map(|n| Value::Unsigned(kind::DATA_TYPE, n.into())),
            any::<u32>().prop_map(|n| Value::Unsigned(kind::INFO_DIRECTIVES, n.into())),
            any::<i32>().prop_map(Value::Status),
            ("[a-z]{1,9}", any::<u32>()).prop_map(|(nspace, rank)| Value::Proc(Proc { nspace, rank })),
            any::<u32>().prop_map(Value::Rank),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::bytes),
            (any::<i64>(), any::<i64>()).prop_map(|(a, b)| Value::Time(a, b)),
        ]
    }

    fn value() -> impl Strategy<Value = Value> {
        leaf().prop_recursive(4, 24, 6, |inner| {
            let info =
                ("[a-z.]{1,12}", inner).prop_map(|(key, value)| Value::Info(Box::new(Info { key, value })));
            prop::collection::vec(info, 0..6).prop_map(|v| Value::Array(kind::INFO, v))
        })
    }

    proptest! {
        #[test]
        fn what_is_packed_is_what_is_unpacked(key in "[a-z.]{1,20}", value in value(), text in "[ -~]{0,40}") {
            let infos = [Info::new(&key, value.clone()), Info::new("x", Value::Bool(true))];
            let procs = [Proc { nspace: text.clone(), rank: 3 }];
            let bytes = Writer::new()
                .command(3).string(&text).size(7).procs(&procs).infos(&infos).kval(&key, &value)
                .buffer(text.as_bytes()).status(-46).into_bytes();
            let mut r = Reader::new(&bytes);
            prop_assert_eq!(r.command().unwrap(), 3);
            prop_assert_eq!(r.string().unwrap(), text.clone());
            prop_assert_eq!(r.size().unwrap(), 7);
            prop_assert_eq!(r.procs().unwrap(), procs);
            prop_assert_eq!(r.infos().unwrap(), infos);
            prop_assert_eq!(r.kval().unwrap(), Info { key, value });
            prop_assert_eq!(r.buffer().unwrap(), text.as_bytes());
            prop_assert_eq!(r.status().unwrap(), -46);
            prop_assert!(r.is_empty());
            // Cut anywhere, it is an error and nothing else.
            for end in 0..bytes.len() {
                let mut r = Reader::new(&bytes[..end]);
                let all = (|| -> Result<()> {
                    r.command()?; r.string()?; r.size()?; r.procs()?; r.infos()?; r.kval()?; r.buffer()?;
                    r.status().map(drop)
                })();
                prop_assert!(all.is_err());
            }
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Reader::new(&bytes).kval();
            let _ = Reader::new(&bytes).infos();
            let _ = Reader::new(&bytes).pdata();
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let mut deep = Writer::new().string("k").into_bytes();
        deep[..4].copy_from_slice(&1u32.to_be_bytes());
        for _ in 0..1000 {
            deep.extend(kind::DATA_ARRAY.to_be_bytes());
            deep.extend(kind::DATA_ARRAY.to_be_bytes());
            deep.extend(kind::UINT64.to_be_bytes());
            deep.extend(1u64.to_be_bytes());
        }
        assert!(Reader::new(&deep).kval().is_err());
        let mut long = vec![0, 0, 0, 1];
        long.extend(kind::UINT64.to_be_bytes());
        long.extend(u64::MAX.to_be_bytes());
        assert!(Reader::new(&long).bytes().unwrap_err().0.contains("bytes are due"));
    }
}

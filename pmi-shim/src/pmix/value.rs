//! PMIx's data types, as far as they cross the wire here.

/// Type numbers (include/pmix_common.h).
pub mod kind {
    #![allow(missing_docs)]
    pub const BOOL: u16 = 1;
    pub const BYTE: u16 = 2;
    pub const STRING: u16 = 3;
    pub const SIZE: u16 = 4;
    pub const PID: u16 = 5;
    pub const INT: u16 = 6;
    pub const INT8: u16 = 7;
    pub const INT16: u16 = 8;
    pub const INT32: u16 = 9;
    pub const INT64: u16 = 10;
    pub const UINT: u16 = 11;
    pub const UINT8: u16 = 12;
    pub const UINT16: u16 = 13;
    pub const UINT32: u16 = 14;
    pub const UINT64: u16 = 15;
    pub const FLOAT: u16 = 16;
    pub const DOUBLE: u16 = 17;
    pub const TIMEVAL: u16 = 18;
    pub const TIME: u16 = 19;
    pub const STATUS: u16 = 20;
    pub const VALUE: u16 = 21;
    pub const PROC: u16 = 22;
    pub const INFO: u16 = 24;
    pub const BUFFER: u16 = 26;
    pub const BYTE_OBJECT: u16 = 27;
    pub const KVAL: u16 = 28;
    pub const PERSIST: u16 = 30;
    pub const SCOPE: u16 = 32;
    pub const DATA_RANGE: u16 = 33;
    pub const COMMAND: u16 = 34;
    pub const INFO_DIRECTIVES: u16 = 35;
    pub const DATA_TYPE: u16 = 36;
    pub const PROC_STATE: u16 = 37;
    pub const DATA_ARRAY: u16 = 39;
    pub const PROC_RANK: u16 = 40;
    pub const COMPRESSED_STRING: u16 = 42;
    pub const ALLOC_DIRECTIVE: u16 = 43;
    pub const IOF_CHANNEL: u16 = 45;
    pub const ENVAR: u16 = 46;
    pub const JOB_STATE: u16 = 50;
    pub const LINK_STATE: u16 = 51;
    pub const COMPRESSED_BYTE_OBJECT: u16 = 59;
    pub const PROC_NSPACE: u16 = 60;
}

/// A process: namespace and rank.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proc {
    /// Its namespace.
    pub nspace: String,
    /// Its rank there.
    pub rank: u32,
}

/// A key with a value: an argument, or a directive.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Value,
}

impl Info {
    /// A key with a value.
    pub fn new(key: &str, value: Value) -> Info {
        Info { key: key.to_owned(), value }
    }
}

/// A value with its type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// BOOL.
    Bool(bool),
    /// Any type of one byte: its number and the byte.
    Byte(u16, u8),
    /// STRING, or a namespace.
    String(String),
    /// SIZE.
    Size(u64),
    /// INT, INT8, INT16, INT32, INT64, PID.
    Signed(u16, i64),
    /// UINT, UINT16, UINT32, UINT64, TIME, IOF_CHANNEL, DATA_TYPE, INFO_DIRECTIVES.
    Unsigned(u16, u64),
    /// FLOAT and DOUBLE, as the text that crosses the wire.
    Decimal(u16, String),
    /// TIMEVAL: seconds and microseconds.
    Time(i64, i64),
    /// STATUS.
    Status(i32),
    /// PROC.
    Proc(Proc),
    /// PROC_RANK.
    Rank(u32),
    /// BYTE_OBJECT, and the compressed types.
    Bytes(u16, Vec<u8>),
    /// ENVAR: name, value, separator.
    Envar(String, String, u8),
    /// INFO, as an element of an array.
    Info(Box<Info>),
    /// KVAL, as an element of an array.
    Kval(Box<Info>),
    /// VALUE, as an element of an array.
    Value(Box<Value>),
    /// DATA_ARRAY: the type of its elements, and these.
    Array(u16, Vec<Value>),
}

impl Value {
    /// UINT32.
    pub fn u32(value: u32) -> Value {
        Value::Unsigned(kind::UINT32, value.into())
    }

    /// UINT16.
    pub fn u16(value: u16) -> Value {
        Value::Unsigned(kind::UINT16, value.into())
    }

    /// STRING.
    pub fn string(value: impl Into<String>) -> Value {
        Value::String(value.into())
    }

    /// BYTE_OBJECT.
    pub fn bytes(value: Vec<u8>) -> Value {
        Value::Bytes(kind::BYTE_OBJECT, value)
    }

    /// Its type's number.
    pub fn kind(&self) -> u16 {
        match self {
            Value::Bool(_) => kind::BOOL,
            Value::String(_) => kind::STRING,
            Value::Size(_) => kind::SIZE,
            Value::Byte(kind, _)
            | Value::Signed(kind, _)
            | Value::Unsigned(kind, _)
            | Value::Decimal(kind, _)
            | Value::Bytes(kind, _) => *kind,
            Value::Time(..) => kind::TIMEVAL,
            Value::Status(_) => kind::STATUS,
            Value::Proc(_) => kind::PROC,
            Value::Rank(_) => kind::PROC_RANK,
            Value::Envar(..) => kind::ENVAR,
            Value::Info(_) => kind::INFO,
            Value::Kval(_) => kind::KVAL,
            Value::Value(_) => kind::VALUE,
            Value::Array(..) => kind::DATA_ARRAY,
        }
    }

    /// A number that is not negative, of whatever type.
    pub fn number(&self) -> Option<u64> {
        match self {
            Value::Size(n) | Value::Unsigned(_, n) => Some(*n),
            Value::Signed(_, n) => u64::try_from(*n).ok(),
            Value::Rank(n) => Some((*n).into()),
            Value::Byte(_, n) => Some((*n).into()),
            Value::Bool(b) => Some((*b).into()),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

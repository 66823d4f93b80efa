//! Packing: each call of `PMIx_Data_pack` writes a count and then its elements (bfrop_base_pack.c).

use super::value::{Info, Proc, Value, kind};

/// PMIX_INFO_QUALIFIER: what comes under a condition is found by who names the condition.
const QUALIFIER: u32 = 8;

/// A buffer that is being filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty one.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// What was packed.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// As it is: something that was packed before.
    pub fn raw(mut self, bytes: &[u8]) -> Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    /// COMMAND.
    pub fn command(self, command: u8) -> Writer {
        self.one().raw(&[command])
    }

    /// SCOPE.
    pub fn scope(self, scope: u8) -> Writer {
        self.one().raw(&[scope])
    }

    /// BOOL.
    pub fn bool(self, value: bool) -> Writer {
        self.one().raw(&[value.into()])
    }

    /// STATUS.
    pub fn status(self, status: i32) -> Writer {
        self.one().raw(&status.to_be_bytes())
    }

    /// UINT32.
    pub fn u32(self, value: u32) -> Writer {
        self.one().raw(&value.to_be_bytes())
    }

    /// PROC_RANK.
    pub fn rank(self, rank: u32) -> Writer {
        self.u32(rank)
    }

    /// STRING.
    pub fn string(mut self, text: &str) -> Writer {
        self = self.one();
        self.put_string(text);
        self
    }

    /// SIZE.
    pub fn size(mut self, size: usize) -> Writer {
        self = self.one();
        self.put_size(size as u64);
        self
    }

    /// BYTE_OBJECT.
    pub fn bytes(mut self, bytes: &[u8]) -> Writer {
        self = self.one();
        self.put_bytes(bytes);
        self
    }

    /// BUFFER, of the kind without descriptions.
    pub fn buffer(mut self, bytes: &[u8]) -> Writer {
        self = self.one();
        self.0.push(1);
        self.put_bytes(bytes);
        self
    }

    /// PROCs.
    pub fn procs(mut self, procs: &[Proc]) -> Writer {
        self.count(procs.len());
        procs.iter().for_each(|p| self.put_proc(p));
        self
    }

    /// One KVAL.
    pub fn kval(mut self, key: &str, value: &Value) -> Writer {
        self = self.one();
        self.put_string(key);
        self.put_typed(value);
        self
    }

    /// How many INFOs, and these, as commands carry them.
    pub fn infos(mut self, infos: &[Info]) -> Writer {
        self = self.size(infos.len());
        if !infos.is_empty() {
            self.count(infos.len());
            infos.iter().for_each(|i| self.put_info(i));
        }
        self
    }

    /// One KVAL that holds under a condition (PMIX_QUALIFIED_VALUE): an array of the value and its qualifier.
    pub fn qualified(mut self, value: &Info, qualifier: &Info) -> Writer {
        self = self.one();
        self.put_string("pmix.qual.val");
        self.put_kind(kind::DATA_ARRAY);
        self.put_kind(kind::INFO);
        self.put_size(2);
        self.put_info(value);
        self.put_directed(qualifier, QUALIFIER);
        self
    }

    /// PDATA: who published what.
    pub fn pdata(mut self, found: &[(Proc, Info)]) -> Writer {
        self.count(found.len());
        for (proc, info) in found {
            self.put_proc(proc);
            self.put_string(&info.key);
            self.put_typed(&info.value);
        }
        self
    }

    fn one(mut self) -> Writer {
        self.count(1);
        self
    }

    fn count(&mut self, n: usize) {
        self.0.extend_from_slice(&(n as u32).to_be_bytes());
    }

    fn put_string(&mut self, text: &str) {
        self.count(text.len() + 1);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    /// A type whose width depends on the machine says which it was.
    fn put_size(&mut self, size: u64) {
        self.put_kind(kind::UINT64);
        self.0.extend_from_slice(&size.to_be_bytes());
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_size(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn put_proc(&mut self, proc: &Proc) {
        self.put_string(&proc.nspace);
        self.0.extend_from_slice(&proc.rank.to_be_bytes());
    }

    fn put_info(&mut self, info: &Info) {
        self.put_directed(info, 0);
    }

    /// With INFO_DIRECTIVES.
    fn put_directed(&mut self, info: &Info, directives: u32) {
        self.put_string(&info.key);
        self.0.extend_from_slice(&directives.to_be_bytes());
        self.put_typed(&info.value);
    }

    fn put_kind(&mut self, kind: u16) {
        self.0.extend_from_slice(&kind.to_be_bytes());
    }

    fn put_typed(&mut self, value: &Value) {
        self.put_kind(value.kind());
        self.put_value(value);
    }

    fn put_value(&mut self, value: &Value) {
        match value {
            Value::Bool(b) => self.0.push((*b).into()),
            Value::Byte(_, b) => self.0.push(*b),
            Value::String(s) | Value::Decimal(_, s) => self.put_string(s),
            Value::Size(n) => self.put_size(*n),
            Value::Signed(kind, n) => self.put_number(*kind, *n as u64),
            Value::Unsigned(kind, n) => self.put_number(*kind, *n),
            Value::Time(seconds, micros) => {
                self.0.extend_from_slice(&seconds.to_be_bytes());
                self.0.extend_from_slice(&micros.to_be_bytes());
            }
            Value::Status(s) => self.0.extend_from_slice(&s.to_be_bytes()),
            Value::Proc(p) => self.put_proc(p),
            Value::Rank(r) => self.0.extend_from_slice(&r.to_be_bytes()),
            Value::Bytes(_, bytes) => self.put_bytes(bytes),
            Value::Envar(name, value, separator) => {
                self.put_string(name);
                self.put_string(value);
                self.0.push(*separator);
            }
            Value::Info(info) => self.put_info(info),
            Value::Kval(kval) => {
                self.put_string(&kval.key);
                self.put_typed(&kval.value);
            }
            Value::Value(value) => self.put_typed(value),
            Value::Array(kind, values) => {
                self.put_kind(*kind);
                self.put_size(values.len() as u64);
                values.iter().for_each(|v| self.put_value(v));
            }
        }
    }

    /// In network order, in as many bytes as the type has; INT, UINT and PID say that they have four.
    fn put_number(&mut self, kind: u16, n: u64) {
        match kind {
            kind::INT | kind::UINT | kind::PID => {
                self.put_kind(if kind == kind::INT { kind::INT32 } else { kind::UINT32 });
                self.0.extend_from_slice(&(n as u32).to_be_bytes());
            }
            kind::INT8 => self.0.push(n as u8),
            kind::INT16 | kind::UINT16 | kind::IOF_CHANNEL | kind::DATA_TYPE => {
                self.0.extend_from_slice(&(n as u16).to_be_bytes());
            }
            kind::INT32 | kind::UINT32 | kind::INFO_DIRECTIVES => {
                self.0.extend_from_slice(&(n as u32).to_be_bytes());
            }
            _ => self.0.extend_from_slice(&n.to_be_bytes()),
        }
    }
}

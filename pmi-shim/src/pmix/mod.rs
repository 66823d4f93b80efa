//! The PMIx wire protocol, both sides, in the one dialect that every release from 3.2 to 7.0 accepts:
//! bfrops v3 without type descriptions, job data in the `hash` store, `native` credentials, over TCP.
//!
//! Without I/O. Written from observation of Open MPI 4.1 – 6.0, PRRTE 3 and Slurm 22.05, and from OpenPMIx's
//! src/mca/bfrops (packing), src/mca/ptl/base (handshake), src/client and src/server (commands).

pub mod command;
pub mod handshake;
pub mod job;
pub mod pack;
mod squashed;
pub mod unpack;
pub mod value;

use crate::wire::Malformed;

pub use pack::Writer;
pub use unpack::Reader;
pub use value::{Info, Proc, Value};

/// Status codes (include/pmix_common.h).
pub mod status {
    /// All is well.
    pub const SUCCESS: i32 = 0;
    /// The dialect or credential is not one that we speak.
    pub const HANDSHAKE_FAILED: i32 = -13;
    /// The credential is not this user's.
    pub const INVALID_CRED: i32 = -12;
    /// Waited too long.
    pub const TIMEOUT: i32 = -24;
    /// A parameter makes no sense.
    pub const BAD_PARAM: i32 = -27;
    /// Such a key has been published already.
    pub const DUPLICATE_KEY: i32 = -53;
    /// No such key, name or process.
    pub const NOT_FOUND: i32 = -46;
    /// A command that this server does not have.
    pub const NOT_SUPPORTED: i32 = -47;
}

/// Stands for every rank of a namespace.
pub const RANK_WILDCARD: u32 = 0xffff_fffe;
/// Stands for whichever rank has it.
pub const RANK_UNDEF: u32 = 0xffff_ffff;

/// The bytes under a key in a reply to a get: byte objects of a process and its KVALs, in our packing or, from other
/// hosts, in the server's own.
pub fn find(r: &mut Reader, key: &str) -> Result<Option<Vec<u8>>, Malformed> {
    let rest = r.rest();
    match find_plain(r, key) {
        Err(e) => squashed::find(rest, key).map_err(|_| e),
        found => found,
    }
}

fn find_plain(r: &mut Reader, key: &str) -> Result<Option<Vec<u8>>, Malformed> {
    while !r.is_empty() {
        let mut blob = Reader::new(r.bytes()?);
        blob.procs()?;
        while !blob.is_empty() {
            let info = blob.kval()?;
            if let (true, Value::Bytes(_, bytes)) = (info.key == key, info.value) {
                return Ok(Some(bytes));
            }
        }
    }
    Ok(None)
}

//! PMI-1 and PMI-2 on the wire: bytes to messages and back, without I/O.
//!
//! A connection begins with PMI-1 lines (`cmd=init …`) and goes on in either protocol as its first two
//! messages agree. Both kinds of frame are told apart by their first bytes: `cmd=` or `mcmd=`, else PMI-2's
//! length of six digits. Sources: MPICH's src/pmi (pmi_wire.c, maint/pmi-*.txt), Slurm's
//! src/plugins/mpi/pmi2, and what hydra 3.4 – 5.0 was seen to send.

pub mod frames;
pub mod message;

pub use frames::{Frame, Frames};
pub use message::Message;

/// What a peer sent is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

/// Shows the beginning of what a peer sent.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(48)];
    let dots = if bytes.len() > start.len() { "…" } else { "" };
    format!("\"{}{dots}\"", start.escape_ascii())
}

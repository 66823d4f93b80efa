//! What the targets share.

pub mod honest;
pub mod launched;
pub mod memory;
pub mod noded;
pub mod request;
pub mod script;

use pmi_shim::job::Job;

/// Three ranks: two on this node, one on another.
pub fn job() -> Job {
    Job {
        id: "job".into(),
        node_of: vec![0, 0, 1],
        hosts: vec!["a".into(), "b".into()],
        node: 0,
        appnum: vec![0, 0, 1],
        universe: Some(4),
        oversubscribed: true,
    }
}

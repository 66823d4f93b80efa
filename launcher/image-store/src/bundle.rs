//! `config.json` beside a root file system: an OCI runtime bundle's, or an OCI image configuration.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::layout::Runtime;

/// No configuration is as large.
const MAX: u64 = 1 << 20;

#[derive(Deserialize)]
struct Bundle {
    process: Option<Process>,
    root: Option<Root>,
    config: Option<Runtime>,
}

#[derive(Deserialize)]
struct Process {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    cwd: Option<String>,
}

#[derive(Deserialize)]
struct Root {
    path: PathBuf,
}

/// What is said of the programs of the root file system `root`, which must be an absolute path without links; or that
/// there is something that cannot be understood.
pub fn beside(root: &Path) -> Result<Option<Runtime>, String> {
    let Some(parent) = root.parent() else { return Ok(None) };
    let path = parent.join("config.json");
    let Ok(meta) = fs::metadata(&path) else { return Ok(None) };
    if !meta.is_file() || meta.len() > MAX {
        return Ok(None);
    }
    let Ok(text) = fs::read(&path) else { return Ok(None) };
    let bundle: Bundle = serde_json::from_slice(&text)
        .map_err(|_| format!("{} is not OCI configuration and is ignored", path.display()))?;
    // A runtime bundle names its root: another root beside it is none of its business.
    let is_ours = bundle.root.is_none_or(|r| parent.join(r.path) == root);
    Ok(match (bundle.process, bundle.config) {
        (Some(process), _) => is_ours.then(|| Runtime {
            env: process.env,
            entrypoint: process.args,
            cmd: Vec::new(),
            workdir: process.cwd.unwrap_or_default(),
            labels: BTreeMap::new(),
        }),
        (None, config) => config,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundles_config_counts_for_its_own_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let put = |json: &str| fs::write(dir.path().join("config.json"), json).unwrap();
        put(r#"{"root":{"path":"rootfs"},"process":{"env":["A=1"],"args":["a"],"cwd":"/work"}}"#);
        let runtime = beside(&dir.path().join("rootfs")).unwrap().unwrap();
        assert_eq!(
            (&runtime.env[..], &runtime.entrypoint[..]),
            (&["A=1".to_owned()][..], &["a".to_owned()][..])
        );
        assert_eq!(runtime.workdir, "/work");
        assert_eq!(beside(&dir.path().join("other")), Ok(None));
        put(r#"{"config":{"Env":["B=2"]}}"#);
        assert_eq!(beside(&dir.path().join("other")).unwrap().unwrap().env, ["B=2"]);
        put("[]");
        assert!(beside(&dir.path().join("other")).unwrap_err().contains("is not OCI configuration"));
    }
}

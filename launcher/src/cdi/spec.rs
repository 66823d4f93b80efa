//! The files of the Container Device Interface: what may stand in one, and since which version of the format.
//!
//! Sources: SPEC.md and schema/ of the CDI project (1.1.0); `specs-go/version.go` for what needs which version.
//! Unknown fields are errors, as the specification wants it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Versions of the format, oldest first.
const VERSIONS: &[&str] = &["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
/// No driver's file has nearly as many entries of one kind.
const MAX_ENTRIES: usize = 16384;
/// When a hook may run (the OCI runtime specification's names).
const HOOK_NAMES: &[&str] =
    &["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// Of the format.
    pub cdi_version: String,
    /// `vendor.com/class`.
    pub kind: String,
    /// For whoever reads it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// At least one.
    pub devices: Vec<Device>,
    /// What any of the devices needs.
    #[serde(default, skip_serializing_if = "Edits::is_empty")]
    pub container_edits: Edits,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Device {
    /// Behind `vendor.com/class=`.
    pub name: String,
    /// For whoever reads it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What it needs.
    pub container_edits: Edits,
}

/// What is to be done to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Edits {
    /// `NAME=VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Files of devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    /// Interfaces that move into the container's network. Since 1.1.0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<NetDevice>,
    /// Programs to run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Files and directories of the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Cache and memory bandwidth. Since 0.7.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<IntelRdt>,
    /// Groups of the container's process. Since 0.7.0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// A device's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DeviceNode {
    /// Inside.
    pub path: String,
    /// On the host, where that is another. Since 0.5.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its number; 0 and none are the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Of `r`, `w` and `m`; `none` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// The file's owner inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The file's group inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetDevice {
    /// Outside.
    pub host_interface_name: String,
    /// Inside.
    pub name: String,
}

/// A program that a runtime would run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    /// When.
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// With its name first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// In seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// A file or directory of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Mount {
    /// On the host.
    pub host_path: String,
    /// Inside.
    pub container_path: String,
    /// As mount(8) calls them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Of the file system; none or `none` for a bind. Since 0.4.0.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// Intel's Resource Director.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct IntelRdt {
    /// The class of service.
    #[serde(rename = "closID")]
    pub clos_id: String,
    /// Of the cache.
    #[serde(rename = "l3CacheSchema")]
    pub l3_cache_schema: String,
    /// Of the memory's bandwidth.
    #[serde(rename = "memBwSchema")]
    pub mem_bw_schema: String,
    /// Both. Since 1.1.0.
    pub schemata: Option<Vec<String>>,
    /// Since 1.1.0.
    #[serde(rename = "enableMonitoring")]
    pub enable_monitoring: bool,
}

impl Edits {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Edits::default()
    }

    fn judge(&self) -> Result<(), String> {
        for (count, what) in [
            (self.env.len(), "env"),
            (self.device_nodes.len(), "deviceNodes"),
            (self.net_devices.len(), "netDevices"),
            (self.hooks.len(), "hooks"),
            (self.mounts.len(), "mounts"),
            (self.additional_gids.len(), "additionalGids"),
        ] {
            if count > MAX_ENTRIES {
                return Err(format!("{what} has {count} entries; at most {MAX_ENTRIES} are read"));
            }
        }
        self.env.iter().chain(self.hooks.iter().flat_map(|h| &h.env)).try_for_each(|pair| variable(pair))?;
        for node in &self.device_nodes {
            path("deviceNodes: path", &node.path)?;
            node.host_path.iter().try_for_each(|p| path("deviceNodes: hostPath", p))?;
            if let Some(kind) = &node.kind
                && !["", "b", "c", "u", "p"].contains(&kind.as_str())
            {
                return Err(format!("deviceNodes: {} is of the unknown type {kind:?}", node.path));
            }
            if let Some(permissions) = &node.permissions
                && permissions != "none"
                && permissions.chars().any(|c| !"rwm".contains(c))
            {
                return Err(format!("deviceNodes: {} has the permissions {permissions:?}", node.path));
            }
        }
        for mount in &self.mounts {
            path("mounts: containerPath", &mount.container_path)?;
            // A file system of another type has a name there.
            if mount.is_bind() {
                path("mounts: hostPath", &mount.host_path)?;
            }
        }
        for hook in &self.hooks {
            path("hooks: path", &hook.path)?;
            if !HOOK_NAMES.contains(&hook.hook_name.as_str()) {
                return Err(format!("hooks: {:?} is no name of a hook", hook.hook_name));
            }
        }
        Ok(())
    }
}

impl Mount {
    /// Whether it shows something of the host, by its type and options.
    pub fn is_bind(&self) -> bool {
        let kind = self.kind.as_deref().unwrap_or_default();
        ["", "none", "bind"].contains(&kind) || self.options.iter().any(|o| o == "bind" || o == "rbind")
    }
}

fn variable(pair: &str) -> Result<(), String> {
    match pair.split_once('=') {
        Some((name, _)) if !name.is_empty() && !pair.contains('\0') => Ok(()),
        _ => Err(format!("env: {pair:?} is no NAME=VALUE")),
    }
}

fn path(what: &str, text: &str) -> Result<(), String> {
    let why = if !text.starts_with('/') {
        "is no absolute path"
    } else if text.contains('\0') {
        "holds a byte 0"
    } else if text.split('/').any(|name| name == "..") {
        "holds `..`"
    } else if text.len() >= 4096 {
        "is too long"
    } else {
        return Ok(());
    };
    Err(format!("{what} {:?} {why}", text.chars().take(200).collect::<String>()))
}

impl Spec {
    /// `vendor.com` and `class`.
    pub fn vendor_and_class(&self) -> (&str, &str) {
        self.kind.split_once('/').unwrap_or(("", &self.kind))
    }

    /// Every set of edits.
    fn all_edits(&self) -> impl Iterator<Item = &Edits> {
        std::iter::once(&self.container_edits).chain(self.devices.iter().map(|d| &d.container_edits))
    }

    /// What is wrong with it, if something is.
    pub fn judge(&self) -> Result<(), String> {
        let named = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let Some(version) = VERSIONS.iter().position(|known| *known == named) else {
            let last = VERSIONS.last().copied().unwrap_or_default();
            return Err(format!(
                "cdiVersion {:?} is not known: versions from {} to {last} are read",
                self.cdi_version, VERSIONS[0]
            ));
        };
        let (least, since) = self.least_version();
        if version < least {
            return Err(format!("{since} needs cdiVersion {}, and {named} is named", VERSIONS[least]));
        }
        let (vendor, class) = self.vendor_and_class();
        for (part, what) in [(vendor, "vendor"), (class, "class")] {
            if !is_name(part, false) {
                return Err(format!(
                    "kind {:?} has no valid {what}; it should be as vendor.com/class",
                    self.kind
                ));
            }
        }
        if self.devices.is_empty() {
            return Err("it describes no device".to_owned());
        }
        if self.devices.len() > MAX_ENTRIES {
            return Err(format!(
                "it describes {} devices; at most {MAX_ENTRIES} are read",
                self.devices.len()
            ));
        }
        self.container_edits.judge()?;
        let mut names = BTreeSet::new();
        for device in &self.devices {
            if !is_name(&device.name, true) {
                return Err(format!("{:?} is no valid name of a device", device.name));
            }
            if !names.insert(&device.name) {
                return Err(format!("the device {:?} is described twice", device.name));
            }
            if device.container_edits.is_empty() {
                return Err(format!("the device {:?} has no containerEdits", device.name));
            }
            device.container_edits.judge().map_err(|why| format!("device {:?}: {why}", device.name))?;
        }
        Ok(())
    }

    /// The least version that has everything that is used, and what needs it.
    fn least_version(&self) -> (usize, &'static str) {
        let of = |name: &str| VERSIONS.iter().position(|known| *known == name).unwrap_or(0);
        let any = |test: &dyn Fn(&Edits) -> bool| self.all_edits().any(test);
        let rdt =
            |e: &Edits| e.intel_rdt.as_ref().is_some_and(|r| r.schemata.is_some() || r.enable_monitoring);
        let annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|d| !d.annotations.is_empty());
        let starts_with_digit = |d: &Device| d.name.starts_with(|c: char| c.is_ascii_digit());
        let uses = [
            (any(&|e| !e.net_devices.is_empty()), "1.1.0", "netDevices"),
            (any(&rdt), "1.1.0", "intelRdt's schemata or enableMonitoring"),
            (any(&|e| e.intel_rdt.is_some()), "0.7.0", "intelRdt"),
            (any(&|e| !e.additional_gids.is_empty()), "0.7.0", "additionalGids"),
            (annotated, "0.6.0", "annotations"),
            (self.vendor_and_class().1.contains('.'), "0.6.0", "a class with a dot"),
            (self.devices.iter().any(starts_with_digit), "0.5.0", "a device whose name begins with a digit"),
            (any(&|e| e.device_nodes.iter().any(|n| n.host_path.is_some())), "0.5.0", "hostPath of a device"),
            (any(&|e| e.mounts.iter().any(|m| m.kind.is_some())), "0.4.0", "type of a mount"),
        ];
        let used = uses.into_iter().find(|(is_used, ..)| *is_used);
        used.map_or((0, ""), |(_, version, what)| (of(version), what))
    }
}

/// Letters, digits, `_`, `-` and `.` between letters and digits; names of devices may begin with a digit and have
/// colons (pkg/parser/parser.go).
pub fn is_name(name: &str, of_a_device: bool) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || of_a_device && c.is_ascii_digit();
    let inner = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c) || of_a_device && c == ':';
    name.starts_with(first) && name.ends_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> Result<(), String> {
        let spec: Spec = serde_json::from_str(text).map_err(|e| e.to_string())?;
        spec.judge()
    }

    /// A file of version 1.1.0 with these edits of its one device.
    fn with(edits: &str) -> String {
        format!(
            r#"{{"cdiVersion":"1.1.0","kind":"vendor.com/device","devices":[{{"name":"a","containerEdits":{edits}}}]}}"#
        )
    }

    #[test]
    fn fields_need_their_version() {
        let old = |edits: &str, version: &str| with(edits).replace("1.1.0", version);
        for (edits, before, since, what) in [
            (r#"{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}"#, "1.0.0", "1.1.0", "netDevices"),
            (r#"{"intelRdt":{"schemata":["L3:0=f"]}}"#, "1.0.0", "1.1.0", "intelRdt's schemata"),
            (r#"{"intelRdt":{"closID":"a"}}"#, "0.6.0", "0.7.0", "intelRdt"),
            (r#"{"additionalGids":[44]}"#, "0.6.0", "0.7.0", "additionalGids"),
            (r#"{"deviceNodes":[{"path":"/dev/a","hostPath":"/dev/b"}]}"#, "0.4.0", "0.5.0", "hostPath"),
            (
                r#"{"mounts":[{"hostPath":"/a","containerPath":"/b","type":"none"}]}"#,
                "0.3.0",
                "0.4.0",
                "type of",
            ),
        ] {
            let why = judged(&old(edits, before)).unwrap_err();
            assert!(
                why.starts_with(what) && why.contains(&format!("needs cdiVersion {since}")),
                "{edits}: {why}"
            );
            assert_eq!(judged(&old(edits, since)), Ok(()), "{edits}");
            assert_eq!(judged(&old(edits, &format!("v{since}"))), Ok(()), "{edits}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let edits = |text: &str| with(text);
        for (text, why) in [
            (with("{}"), "the device \"a\" has no containerEdits"),
            (edits(r#"{"env":["A"]}"#), "device \"a\": env: \"A\" is no NAME=VALUE"),
            (edits(r#"{"env":["=A"]}"#), "is no NAME=VALUE"),
            (edits(r#"{"env":["A=\u0000"]}"#), "is no NAME=VALUE"),
            (edits(r#"{"nope":1}"#), "unknown field `nope`"),
            (edits(r#"{"deviceNodes":[{"path":"dev/a"}]}"#), "path \"dev/a\" is no absolute path"),
            (edits(r#"{"deviceNodes":[{"path":""}]}"#), "path \"\" is no absolute path"),
            (edits(r#"{"deviceNodes":[{"path":"/dev/a","type":"x"}]}"#), "of the unknown type \"x\""),
            (edits(r#"{"deviceNodes":[{"path":"/dev/a","permissions":"rx"}]}"#), "the permissions \"rx\""),
            (edits(r#"{"deviceNodes":[{"path":"/dev/a","major":"1"}]}"#), "invalid type: string \"1\""),
            (
                edits(r#"{"mounts":[{"hostPath":"/etc","containerPath":"/a/../../etc"}]}"#),
                "\"/a/../../etc\" holds `..`",
            ),
            (
                edits(r#"{"mounts":[{"hostPath":"etc","containerPath":"/a"}]}"#),
                "hostPath \"etc\" is no absolute",
            ),
            (edits(r#"{"hooks":[{"hookName":"later","path":"/a"}]}"#), "\"later\" is no name of a hook"),
            (edits(r#"{"hooks":[{"hookName":"prestart","path":"a"}]}"#), "path \"a\" is no absolute path"),
            (edits(r#"{"env":["A=1"]}"#).replace("1.1.0", "1.2.0"), "cdiVersion \"1.2.0\" is not known"),
            (edits(r#"{"env":["A=1"]}"#).replace("1.1.0", "0.2.0"), "cdiVersion \"0.2.0\" is not known"),
            (edits(r#"{"env":["A=1"]}"#).replace("vendor.com/", ""), "has no valid vendor"),
            (edits(r#"{"env":["A=1"]}"#).replace("device\"", "d/e\""), "has no valid class"),
            (edits(r#"{"env":["A=1"]}"#).replace("\"a\"", "\"a-\""), "\"a-\" is no valid name"),
            (r#"{"cdiVersion":"1.0.0","kind":"v.com/d","devices":[]}"#.to_owned(), "it describes no device"),
            (r#"{"kind":"v.com/d","devices":[]}"#.to_owned(), "missing field `cdiVersion`"),
        ] {
            let said = judged(&text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        let twice = with(r#"{"env":["A=1"]}"#);
        let device = &twice[twice.find(r#"{"name""#).unwrap()..twice.rfind("]}").unwrap()];
        let twice = twice.replace(device, &format!("{device},{device}"));
        assert!(judged(&twice).unwrap_err().contains("described twice"), "{twice}");
        let many = format!(r#"{{"env":[{}"A=1"]}}"#, r#""A=1","#.repeat(1_000_000));
        assert!(judged(&with(&many)).unwrap_err().contains("env has 1000001 entries; at most"));
    }

    #[test]
    fn names() {
        for (name, kind, device) in [
            ("a", true, true),
            ("nvidia.com", true, true),
            ("0", false, true),
            ("0:1", false, true),
            ("GPU-1f2e_3.4", true, true),
            ("", false, false),
            ("-a", false, false),
            ("a.", false, false),
            ("a b", false, false),
            ("a\u{e9}b", false, false),
        ] {
            assert_eq!((is_name(name, false), is_name(name, true)), (kind, device), "{name:?}");
        }
    }
}

//! What a loader says of an object: the real one, and abi-probe's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::host::{self, Who};
use crate::run::Run;

/// All of Debian's loaders on this machine's architecture.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// The circumstances in which objects are loaded.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// The root.
    pub root: &'a Path,
    /// LD_LIBRARY_PATH.
    pub library_path: Option<&'a str>,
    /// LD_PRELOAD.
    pub preload: Option<&'a str>,
    /// The working directory.
    pub directory: &'a str,
}

impl How<'_> {
    /// Nothing set.
    pub fn plain(root: &Path) -> How<'_> {
        How { root, library_path: None, preload: None, directory: "/" }
    }
}

/// What a loader says of an object.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Said {
    /// Name, path if found; in order.
    pub objects: Vec<(String, Option<String>)>,
    /// Symbols and versions that it misses: each kind in words of our own.
    pub missing: BTreeSet<String>,
    /// It gives up.
    pub fatal: bool,
}

impl Said {
    fn without_versions(&self) -> Said {
        let plain = |missing: &String| match missing.split_once(", version ") {
            Some((symbol, rest)) => symbol.to_owned() + rest.find(" for ").map_or("", |at| &rest[at..]),
            None => missing.clone(),
        };
        let missing = self.missing.iter().map(plain).collect();
        Said { objects: self.objects.clone(), missing, fatal: self.fatal }
    }
}

/// How the two differ; `None`: they do not.
pub fn difference(ours: &Said, real: &Said) -> Option<String> {
    // Of versions that a missing file should define, glibc forgets some, by their numbers (dl-version.c).
    let (ours, real) = match real.objects.iter().any(|(_, path)| path.is_none()) {
        true => (&ours.without_versions(), &real.without_versions()),
        false => (ours, real),
    };
    // What it would have said after giving up is not known.
    if real.fatal && ours.fatal || ours == real {
        return None;
    }
    let mut text = String::new();
    if ours.fatal != real.fatal {
        text += &format!("  gives up: ours {}, real {}\n", ours.fatal, real.fatal);
    }
    if ours.objects != real.objects {
        let at = ours.objects.iter().zip(&real.objects).take_while(|(a, b)| a == b).count();
        text += &format!("  object {at}: ours {:?}, real {:?}\n", ours.objects.get(at), real.objects.get(at));
    }
    for missing in ours.missing.difference(&real.missing) {
        text += &format!("  only ours: {missing}\n");
    }
    for missing in real.missing.difference(&ours.missing) {
        text += &format!("  only real: {missing}\n");
    }
    Some(text)
}

/// By object: who loads it, and what it links. Static ones and those for other machines are left out.
pub fn abi_probe(how: &How, objects: &[String]) -> BTreeMap<String, (String, Said)> {
    let mut command = Command::new(host::abi_probe());
    command.args(["links", "--json", "--symbols", "--directory", how.directory]);
    for (option, value) in [("--library-path", how.library_path), ("--preload", how.preload)] {
        if let Some(value) = value {
            command.args([option, value]);
        }
    }
    let output = command.arg(how.root).args(objects).output().expect("abi-probe runs");
    let mut said = BTreeMap::new();
    for line in output.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let value: Value = serde_json::from_slice(line).expect("JSON");
        let Some(by) = value["loaded_by"].as_str() else { continue };
        let text = |v: &Value| v.as_str().map(String::from);
        let list = |name: &str| value[name].as_array().cloned().unwrap_or_default();
        let word = |v: &Value| text(v).unwrap_or_default();
        let objects = list("objects").iter().map(|o| (word(&o["name"]), text(&o["path"]))).collect();
        let mut one = Said {
            objects,
            fatal: !list("problems").is_empty() || !list("aborts").is_empty(),
            ..Said::default()
        };
        for missing in list("unresolved") {
            let (symbol, object) = (word(&missing["symbol"]), word(&missing["object"]));
            let version = text(&missing["version"]).map(|v| format!(", version {v}")).unwrap_or_default();
            one.missing.insert(format!("symbol {symbol}{version} for {object}"));
        }
        for missing in list("versions") {
            let [file, version, by] = ["file", "version", "needed_by"].map(|f| word(&missing[f]));
            one.missing.insert(match missing["harmless"].as_bool() {
                Some(true) => format!("no versions in {file} for {by}"),
                _ => format!("version {version} in {file} for {by}"),
            });
        }
        said.insert(word(&value["program"]), (by.to_owned(), one));
    }
    said
}

/// The same from the real loader, run inside; those that it does not load are left out.
pub fn loader(how: &How, objects: &BTreeMap<String, (String, Said)>) -> BTreeMap<String, Said> {
    let list: String = objects.iter().map(|(path, (by, _))| format!("{by} {path}\n")).collect();
    let variable = |name: &str, value: Option<&str>| match value {
        Some(value) => format!("{name}='{value}'"),
        None => String::new(),
    };
    let set = [
        "LD_TRACE_LOADED_OBJECTS=1 LD_WARN=1 LD_BIND_NOW=1".to_owned(),
        variable("LD_LIBRARY_PATH", how.library_path),
        variable("LD_PRELOAD", how.preload),
    ]
    .join(" ");
    let script = format!(
        "unset LD_LIBRARY_PATH LD_PRELOAD
         while IFS= read -r line; do
             path=${{line#* }}
             echo \"== $path\"
             case $line in
             kernel*) {set} \"$path\" ;;
             *) {set} {LOADER} \"$path\" ;;
             esac < /dev/null 2>&1
             echo \"-- $?\"
         done"
    );
    let run = match how.root.to_str() {
        Some("/") | None => Run::command(Who::Root, ["/bin/sh", "-c", &script]),
        Some(root) => Run::launch(Who::Root, [root, "/bin/sh", "-c", &script]),
    };
    let outcome = run.stdin(list).cwd(how.directory).limit(Duration::from_secs(300)).run();
    let text = outcome.out();
    let mut said = BTreeMap::new();
    for block in format!("\n{text}").split("\n== ").skip(1) {
        let (path, rest) = block.split_once('\n').expect("a title");
        if let Some(one) = parse(path, rest) {
            said.insert(path.to_owned(), one);
        }
    }
    said
}

fn parse(path: &str, lines: &str) -> Option<Said> {
    let mut one = Said::default();
    for line in lines.lines() {
        if let Some(line) = line.strip_prefix('\t') {
            let line = line.split(" (0x").next().unwrap_or_default();
            let (name, found) = line.split_once(" => ").unwrap_or((line, line));
            match found {
                "statically linked" => {}
                _ if name.starts_with("linux-vdso.so") || name.starts_with("linux-gate.so") => {}
                "not found" => one.objects.push((name.to_owned(), None)),
                found => one.objects.push((name.to_owned(), Some(found.to_owned()))),
            }
        } else if let Some(rest) = line.strip_prefix("undefined symbol: ") {
            let (symbol, object) = rest.split_once('\t')?;
            one.missing.insert(format!("symbol {symbol} for {}", object.trim_matches(['(', ')'])));
        } else if let Some((before, by)) = line.split_once(" (required by ") {
            // P: F: version `V' not found, P: F: no version information available
            let by = by.trim_end_matches(')');
            let (file, what) = before.strip_prefix(path)?.strip_prefix(": ")?.split_once(": ")?;
            one.missing.insert(match what.split_once('`') {
                Some((_, version)) if !what.starts_with("weak") => {
                    format!("version {} in {file} for {by}", version.split('\'').next()?)
                }
                _ => format!("no versions in {file} for {by}"),
            });
        } else if line.contains("loader cannot load itself")
            || line.contains("object file has no dynamic section")
        {
            return None;
        } else if line.contains("error while loading shared libraries")
            || line.starts_with("Inconsistency detected by ld.so")
            || line.contains("cannot be preloaded")
        {
            one.fatal = true;
        } else if let Some(status) = line.strip_prefix("-- ") {
            // Signals and failed execs; 1 is a loader's own failure, which it has explained.
            if status.parse::<i32>().is_ok_and(|s| s > 1 && s != 127) {
                return None;
            }
        } else if line.ends_with("consider re-linking") || line.is_empty() {
        } else {
            panic!("{path}: the loader says {line:?}");
        }
    }
    Some(one)
}

//! Where CDI files lie, which of them are believed, and which device's description counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Serialize;

use super::spec::{Device, Spec, is_name};
use crate::error::{Code, Error, Result};

/// Later ones win (pkg/cdi/spec-dirs.go).
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// More than a machine with hundreds of GPUs in thousands of parts has.
const MAX_BYTES: u64 = 8 << 20;
/// Files of one directory.
const MAX_FILES: usize = 1024;
/// Nothing that a driver writes has anchors in it; what they may make of a file is bounded.
const MAX_ANCHORS: usize = 256;
const MAX_ALIASES: usize = 4096;
const MAX_NODES: usize = 1 << 19;
const MAX_DEPTH: usize = 32;

/// A file that was read.
#[derive(Debug)]
pub struct Source {
    /// Where it lies.
    pub path: PathBuf,
    /// What stands in it.
    pub spec: Spec,
}

/// A described device.
#[derive(Clone, Debug)]
pub struct Described {
    /// Its file.
    pub source: Rc<Source>,
    /// Its place in the file.
    index: usize,
    /// The directory's place among all.
    priority: usize,
}

impl Described {
    /// The device of this name in a description that is in no file.
    pub fn in_source(source: &Rc<Source>, name: &str) -> Option<Described> {
        let index = source.spec.devices.iter().position(|device| device.name == name)?;
        Some(Described { source: Rc::clone(source), index, priority: 0 })
    }

    /// It.
    pub fn device(&self) -> &Device {
        &self.source.spec.devices[self.index]
    }
}

/// A file that does not count, or a device that does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

/// Every device that is described, by its name.
#[derive(Debug, Default)]
pub struct Registry {
    /// `vendor.com/class=name`.
    pub devices: BTreeMap<String, Described>,
    /// What does not count.
    pub faults: Vec<Fault>,
}

impl Registry {
    /// Reads every file of these directories, the first of which counts least. Files are believed that only root or
    /// this user can have written.
    pub fn read(directories: &[PathBuf], uid: u32) -> Registry {
        let mut registry = Registry::default();
        let mut conflicts = BTreeMap::new();
        for (priority, directory) in directories.iter().enumerate() {
            for path in files(directory, &mut registry.faults) {
                match read(&path, uid) {
                    Ok(spec) => registry.add(Rc::new(Source { path, spec }), priority, &mut conflicts),
                    Err(why) => registry.faults.push(Fault { path, why }),
                }
            }
        }
        for (name, files) in conflicts {
            registry.devices.remove(&name);
            let files: Vec<String> = files.iter().map(|f: &PathBuf| f.display().to_string()).collect();
            let why =
                format!("{name} is described in {}, of equal rank: neither counts", files.join(" and "));
            registry.faults.push(Fault { path: PathBuf::from(&files[0]), why });
        }
        registry
    }

    fn add(
        &mut self,
        source: Rc<Source>,
        priority: usize,
        conflicts: &mut BTreeMap<String, BTreeSet<PathBuf>>,
    ) {
        for (index, device) in source.spec.devices.iter().enumerate() {
            let name = format!("{}={}", source.spec.kind, device.name);
            let new = Described { source: Rc::clone(&source), index, priority };
            match self.devices.get(&name) {
                Some(old) if old.priority == priority => {
                    let files = [old.source.path.clone(), source.path.clone()];
                    conflicts.entry(name).or_default().extend(files);
                }
                _ => {
                    // What was in conflict below is settled from above.
                    conflicts.remove(&name);
                    self.devices.insert(name, new);
                }
            }
        }
    }

    /// The device of this name; `origin`: who asked.
    pub fn find(&self, name: &str, origin: &str, directories: &[PathBuf]) -> Result<&Described> {
        let is_qualified = name.split_once('=').is_some_and(|(kind, device)| {
            let parts = kind.split_once('/');
            parts.is_some_and(|(v, c)| is_name(v, false) && is_name(c, false)) && is_name(device, true)
        });
        if !is_qualified {
            return Err(Error::new(
                Code::Usage,
                format!("--device {name:?} ({origin}) is no name of a device"),
                "write vendor.com/class=name; `hpc-launch cdi list` shows all",
            ));
        }
        if let Some(found) = self.devices.get(name) {
            return Ok(found);
        }
        let mut what =
            format!("the device {name} ({origin}) is described nowhere in {}", listed(directories));
        // One that is described in vain explains it best.
        let about = |fault: &&Fault| fault.why.contains(name);
        let fault = self.faults.iter().find(about).or(self.faults.first());
        if let Some(Fault { path, why }) = fault {
            what += &format!("; {} does not count: {why}", path.display());
        }
        let kind = name.split_once('=').map_or(name, |(kind, _)| kind);
        let same = |known: &&String| known.split_once('=').is_some_and(|(k, _)| k == kind);
        let known: Vec<&str> = self.devices.keys().filter(same).take(8).map(String::as_str).collect();
        let cure = match known.is_empty() {
            true => "the driver's software writes such files (nvidia-ctk cdi generate); `hpc-launch cdi list` shows \
                     what is there"
                .to_owned(),
            false => format!("of this kind there are: {}; `hpc-launch cdi list` shows all", known.join(", ")),
        };
        Err(Error::new(Code::DeviceUnknown, what, cure))
    }
}

/// A line of `cdi list --json`.
#[derive(Serialize)]
pub struct Listed<'a> {
    name: &'a str,
    file: &'a Path,
}

/// `cdi list --json`.
#[derive(Serialize)]
pub struct Listing<'a> {
    devices: Vec<Listed<'a>>,
    faults: &'a [Fault],
}

impl Registry {
    /// All of it, for programs.
    pub fn listing(&self) -> Listing<'_> {
        let devices = self.devices.iter().map(|(name, d)| Listed { name, file: &d.source.path });
        Listing { devices: devices.collect(), faults: &self.faults }
    }

    /// The devices, for people.
    pub fn text(&self) -> String {
        let width = self.devices.keys().map(String::len).max().unwrap_or(0);
        let line =
            |(name, d): (&String, &Described)| format!("{name:<width$}  {}\n", d.source.path.display());
        self.devices.iter().map(line).collect()
    }
}

/// For people.
pub fn listed(directories: &[PathBuf]) -> String {
    let texts: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
    texts.join(", ")
}

/// A directory's files, in order; one that is not there has none.
fn files(directory: &Path, faults: &mut Vec<Fault>) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            faults.push(Fault { path: directory.to_owned(), why: format!("it cannot be read: {e}") });
            return Vec::new();
        }
    };
    let is_spec = |path: &PathBuf| path.extension().is_some_and(|e| e == "json" || e == "yaml");
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(is_spec).take(MAX_FILES + 1).collect();
    if found.len() > MAX_FILES {
        let why = format!("it holds more than {MAX_FILES} files");
        faults.push(Fault { path: directory.to_owned(), why });
        return Vec::new();
    }
    found.sort_unstable();
    found
}

fn read(path: &Path, uid: u32) -> std::result::Result<Spec, String> {
    let unreadable = |e: std::io::Error| format!("it cannot be read: {e}");
    // A FIFO must not be waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let around = std::fs::metadata(directory).map_err(unreadable)?;
    for (what, meta) in [("it", &meta), ("its directory", &around)] {
        // Whoever writes here decides which libraries programs load.
        if meta.uid() != 0 && meta.uid() != uid {
            return Err(format!("{what} belongs to user {}, neither root nor you", meta.uid()));
        }
        let shared = meta.mode() & 0o022;
        if shared != 0 {
            return Err(format!("{what} can be written to by others (mode {:04o})", meta.mode() & 0o7777));
        }
    }
    if meta.len() > MAX_BYTES {
        return Err(format!("it has {} bytes; at most {MAX_BYTES} are read", meta.len()));
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    let spec = match path.extension().is_some_and(|e| e == "json") {
        true => serde_json::from_str(&text).map_err(|e| e.to_string()),
        false => of_yaml(&text),
    }?;
    Spec::judge(&spec).map(|()| spec)
}

fn of_yaml(text: &str) -> std::result::Result<Spec, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_anchors: MAX_ANCHORS,
            max_aliases: MAX_ALIASES,
            max_nodes: MAX_NODES,
            max_depth: MAX_DEPTH,
            max_documents: 1,
        },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| e.to_string().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Place {
            let place = Place(tempfile::tempdir().unwrap());
            for name in ["low", "high"] {
                std::fs::create_dir(place.0.path().join(name)).unwrap();
                place.mode(name, 0o755);
            }
            place
        }

        fn mode(&self, name: &str, mode: u32) {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(self.0.path().join(name), permissions).unwrap();
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
            self.mode(name, 0o644);
        }

        fn directories(&self) -> Vec<PathBuf> {
            ["low", "high", "none"].map(|name| self.0.path().join(name)).to_vec()
        }

        fn registry(&self) -> Registry {
            Registry::read(&self.directories(), nix::unistd::geteuid().as_raw())
        }
    }

    fn spec(devices: &[&str]) -> String {
        let device = |name: &&str| format!(r#"{{"name":"{name}","containerEdits":{{"env":["A=1"]}}}}"#);
        let devices: Vec<String> = devices.iter().map(device).collect();
        format!(r#"{{"cdiVersion":"1.0.0","kind":"vendor.com/dev","devices":[{}]}}"#, devices.join(","))
    }

    #[test]
    fn later_directories_win_and_equals_cancel_each_other() {
        let place = Place::new();
        place.write("low/a.json", &spec(&["one", "two", "three"]));
        place.write("high/b.json", &spec(&["two"]));
        place.write("low/c.json", &spec(&["three", "four"]));
        place.write("low/ignored.txt", "no spec");
        let registry = place.registry();
        let names: Vec<&String> = registry.devices.keys().collect();
        assert_eq!(names, ["vendor.com/dev=four", "vendor.com/dev=one", "vendor.com/dev=two"]);
        let two = registry.find("vendor.com/dev=two", "--device", &place.directories()).unwrap();
        assert!(two.source.path.ends_with("high/b.json"));
        let [fault] = &registry.faults[..] else { panic!("{:?}", registry.faults) };
        assert!(fault.why.contains("vendor.com/dev=three is described in"), "{}", fault.why);
        assert!(
            fault.why.contains("a.json and ") && fault.why.contains("c.json, of equal rank"),
            "{}",
            fault.why
        );
        let e = registry.find("vendor.com/dev=three", "--device", &place.directories()).unwrap_err();
        assert_eq!(e.code, Code::DeviceUnknown);
        assert!(e.what.contains("of equal rank: neither counts"), "{}", e.what);
        assert!(
            e.cure.contains("of this kind there are: vendor.com/dev=four, vendor.com/dev=one"),
            "{}",
            e.cure
        );
        // From above the conflict is settled.
        place.write("high/d.json", &spec(&["three"]));
        assert!(place.registry().devices.contains_key("vendor.com/dev=three"));
    }

    #[test]
    fn yaml_says_the_same_as_json() {
        let place = Place::new();
        place.write("low/a.json", &spec(&["one"]));
        let yaml = "---\ncdiVersion: 1.0.0\nkind: vendor.com/dev\ndevices:\n- name: one\n  containerEdits:\n    env:\n    - A=1\n";
        place.write("high/a.yaml", yaml);
        let registry = place.registry();
        assert!(registry.faults.is_empty(), "{:?}", registry.faults);
        let one = &registry.devices["vendor.com/dev=one"];
        assert!(one.source.path.ends_with("high/a.yaml"));
        assert_eq!(one.source.spec, serde_json::from_str(&spec(&["one"])).unwrap());
    }

    #[test]
    fn files_that_do_not_count_are_named_with_the_reason() {
        let place = Place::new();
        let bomb = (0..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
            let of = format!("*a{n}");
            format!("{text}a{}: &a{} [{}]\n", n + 1, n + 1, vec![of; 10].join(","))
        });
        let deep = format!("{}{}", "[".repeat(10000), "]".repeat(10000));
        let table: &[(&str, String, &str)] = &[
            ("empty.json", String::new(), "EOF while parsing"),
            ("empty.yaml", String::new(), ""),
            ("cut.json", spec(&["a"])[..60].to_owned(), "EOF while parsing"),
            ("deep.json", deep.clone(), "invalid type: sequence"),
            ("deep.yaml", deep, ""),
            ("bomb.yaml", bomb, ""),
            ("tabs.yaml", "a:\n\t- b\n".to_owned(), ""),
            ("binary.json", "\0\u{1}".to_owned(), "expected value"),
            ("twice.json", spec(&["a"]).replace("1.0.0", "9.9.9"), "cdiVersion \"9.9.9\" is not known"),
            ("large.json", " ".repeat((8 << 20) + 1), "at most 8388608 are read"),
        ];
        for (name, text, why) in table {
            let path = format!("low/{name}");
            place.write(&path, text);
            let registry = place.registry();
            let [fault] = &registry.faults[..] else { panic!("{name}: {:?}", registry.faults) };
            assert!(fault.path.ends_with(name) && !fault.why.is_empty(), "{fault:?}");
            assert!(fault.why.contains(why), "{name}: {}", fault.why);
            std::fs::remove_file(place.0.path().join(&path)).unwrap();
        }
        place.write("low/open.json", &spec(&["a"]));
        place.mode("low/open.json", 0o666);
        assert!(place.registry().faults[0].why.contains("can be written to by others (mode 0666)"));
        place.mode("low/open.json", 0o644);
        place.mode("low", 0o775);
        assert!(place.registry().faults[0].why.contains("its directory can be written to by others"));
        place.mode("low", 0o755);
        std::fs::remove_file(place.0.path().join("low/open.json")).unwrap();
        nix::unistd::mkfifo(&place.0.path().join("low/fifo.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place.0.path().join("low/zero.json")).unwrap();
        std::os::unix::fs::symlink("/nowhere", place.0.path().join("low/nowhere.json")).unwrap();
        let whys: Vec<String> = place.registry().faults.into_iter().map(|f| f.why).collect();
        assert_eq!(whys[0], "it is no regular file");
        assert!(whys[1].starts_with("it cannot be read: No such file"), "{whys:?}");
        assert_eq!(whys[2], "it is no regular file");
    }
}

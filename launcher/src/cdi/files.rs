//! Files of devices: whether the host has what a description names, whether this user may use it, and where it
//! goes.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use abi_probe::elf;
use nix::unistd::{AccessFlags, Gid, Group, Uid, User, access};

use super::spec::{DeviceNode, Mount};
use super::{By, weight};
use crate::error::{Code, Result};
use crate::host::gpu;
use crate::plan::sources::{Want, Weight};

/// Options of binds that change nothing here, or nothing that a program without privileges could tell.
const HARMLESS: &[&str] = &[
    "bind", "rbind", "rw", "ro", "nosuid", "nodev", "dev", "exec", "relatime", "noatime", "private",
    "rprivate", "slave", "rslave",
];
/// Of the kernel's memory devices (Documentation/admin-guide/devices.txt, major 1) those without memory in them:
/// null, zero, full, random, urandom.
const MEMORY_MAJOR: u64 = 1;
const HARMLESS_MINORS: [u64; 5] = [3, 5, 7, 8, 9];
/// What to do where a description and the host differ.
const ANEW: &str = "the description is not of this node as it is now: load the driver, or let its software write the \
                    file anew (hpc-launch cdi generate; for NVIDIA also nvidia-ctk cdi generate)";

/// What is shown, by its place inside.
#[derive(Default)]
pub struct Files {
    /// In order.
    pub wants: Vec<Want>,
    /// Where each lies on the host.
    shown: BTreeMap<PathBuf, PathBuf>,
}

impl Files {
    fn add(&mut self, source: PathBuf, at: PathBuf, read_only: bool, why: String, weight: Weight) {
        self.wants.retain(|want| want.at != at);
        self.shown.insert(at.clone(), source.clone());
        self.wants.push(Want { source, at, read_only, why, weight });
    }

    /// A device's file.
    pub fn node(&mut self, by: By, node: &DeviceNode) -> Result<()> {
        let source = PathBuf::from(node.host_path.as_ref().unwrap_or(&node.path));
        let meta = std::fs::metadata(&source).map_err(|e| {
            by.error(Code::DeviceMissing, format!("{} cannot be looked at: {e}", source.display()), ANEW)
        })?;
        let file_type = meta.file_type();
        let kind = match (file_type.is_char_device(), file_type.is_block_device(), file_type.is_fifo()) {
            (true, ..) => "c",
            (_, true, _) => "b",
            (.., true) => "p",
            _ => {
                let why = format!("{} is no device", source.display());
                return Err(by.error(Code::DeviceMissing, why, ANEW));
            }
        };
        let named = node.kind.as_deref().filter(|k| !k.is_empty()).map(|k| if k == "u" { "c" } else { k });
        let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
        let wanted = (node.major.unwrap_or(0), node.minor.unwrap_or(0));
        let is_other = wanted != (0, 0) && wanted != (major as i64, minor as i64);
        if is_other || named.is_some_and(|named| named != kind) {
            let named = named.unwrap_or(kind);
            let why = format!(
                "{} is the device {kind} {major}:{minor}, and {named} {}:{} is described",
                source.display(),
                wanted.0,
                wanted.1
            );
            return Err(by.error(Code::DeviceMissing, why, ANEW));
        }
        if kind != "p" && major == MEMORY_MAJOR && !HARMLESS_MINORS.contains(&minor) {
            return Err(by.error(
                Code::DeviceUnsupported,
                format!(
                    "{} ({kind} {major}:{minor}) is the host's memory, no device for programs",
                    source.display()
                ),
                "look who has written that file, and correct it",
            ));
        }
        let permissions = node.permissions.as_deref().filter(|p| !p.is_empty()).unwrap_or("rw");
        permitted(by, &source, &meta, permissions)?;
        self.add(source, PathBuf::from(&node.path), false, by.why(), weight(by));
        Ok(())
    }

    /// A file or directory.
    pub fn mount(&mut self, by: By, mount: &Mount) -> Result<()> {
        let unsupported = |why: String| {
            let cure = "ask for a device that is only bound, or bind what is needed with --bind";
            by.error(Code::DeviceUnsupported, why, cure)
        };
        if !mount.is_bind() {
            return Err(unsupported(format!(
                "it wants a file system of type {:?} at {}; a sandbox shows the host's files only",
                mount.kind.as_deref().unwrap_or_default(),
                mount.container_path
            )));
        }
        if let Some(option) = mount.options.iter().find(|o| !HARMLESS.contains(&o.as_str())) {
            return Err(unsupported(format!("it wants {} with the option {option:?}", mount.container_path)));
        }
        let source = PathBuf::from(&mount.host_path);
        if let Err(e) = std::fs::metadata(&source) {
            let mut why = format!("{} cannot be looked at: {e}", source.display());
            if let Some((described, loaded)) = other_version(&source) {
                why += &format!("; it is of the driver {described}, and {loaded} is loaded");
            }
            return Err(by.error(Code::DeviceMissing, why, ANEW));
        }
        let read_only = mount.options.iter().any(|o| o == "ro");
        self.add(source, PathBuf::from(&mount.container_path), read_only, by.why(), weight(by));
        Ok(())
    }

    /// Where something inside lies on the host, if it is shown.
    fn on_host(&self, at: &Path) -> Option<PathBuf> {
        let above = |path: &&Path| self.shown.contains_key(*path);
        let shown = at.ancestors().find(above)?;
        let source = &self.shown[shown];
        let rest = at.strip_prefix(shown).ok()?;
        let path = if rest.as_os_str().is_empty() { source.clone() } else { source.join(rest) };
        path.exists().then_some(path)
    }

    /// What a link leads to is bound where the link would stand: the same to every program, and the image need not
    /// be written to.
    pub fn link(&mut self, links: &[(String, String)], why: &str, notes: &mut Vec<String>) {
        for (target, link) in links {
            let link = clean(Path::new(link));
            let target = clean(&link.parent().unwrap_or(Path::new("/")).join(target));
            if self.shown.contains_key(&link) {
                continue;
            }
            match self.on_host(&target) {
                Some(source) => self.add(
                    source,
                    link,
                    true,
                    format!("{why}: a link to {}", target.display()),
                    Weight::IfPossible,
                ),
                None => notes.push(format!(
                    "{why}: the link {} to {} is left out, nothing is shown there",
                    link.display(),
                    target.display()
                )),
            }
        }
    }

    /// Libraries in these directories get the names by which programs ask for them, and are shown in a directory
    /// that is searched in any case. Answers whether there are any.
    pub fn libraries(&mut self, folders: &[String], at: &Path, why: &str) -> bool {
        let folders: Vec<PathBuf> = folders.iter().map(|f| clean(Path::new(f))).collect();
        let is_meant = |(path, _): &(&PathBuf, &PathBuf)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains(".so") && path.parent().is_some_and(|p| folders.iter().any(|f| f == p))
        };
        let found: Vec<(PathBuf, PathBuf)> =
            self.shown.iter().filter(is_meant).map(|(at, from)| (at.clone(), from.clone())).collect();
        for (path, source) in &found {
            let mut names: Vec<PathBuf> = path.file_name().map(PathBuf::from).into_iter().collect();
            if let Some(soname) = soname(source) {
                let beside = path.with_file_name(&soname);
                if !self.shown.contains_key(&beside) {
                    let why = format!("{why}: as programs ask for {}", path.display());
                    self.add(source.clone(), beside, true, why, Weight::IfPossible);
                }
                names.push(PathBuf::from(soname));
            }
            for name in names {
                if !self.shown.contains_key(&at.join(&name)) {
                    let why = format!("{why}: found whatever the image's loader searches");
                    self.add(source.clone(), at.join(name), true, why, Weight::IfPossible);
                }
            }
        }
        !found.is_empty()
    }
}

/// Without `.` and `..`, as links of drivers are meant.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// A plain DT_SONAME of a library.
fn soname(path: &Path) -> Option<String> {
    let file = File::open(path).ok().filter(|f| f.metadata().is_ok_and(|m| m.is_file()))?;
    let soname = elf::read(&file, path).ok()??.soname?;
    (!soname.contains('/') && !soname.is_empty() && soname != "." && soname != "..").then_some(soname)
}

/// For a library of NVIDIA's driver: its version, and that of the driver that is loaded, where they differ.
pub fn other_version(path: &Path) -> Option<(String, String)> {
    let loaded = gpu::version()?;
    let name = path.file_name()?.to_str()?;
    let version = name.split_once(".so.")?.1;
    (name.contains("nvidia") || name.contains("cuda"))
        .then(|| (version.to_owned(), loaded))
        .filter(|(described, loaded)| described.contains('.') && described != loaded)
}

fn permitted(by: By, path: &Path, meta: &Metadata, permissions: &str) -> Result<()> {
    let mut flags = AccessFlags::empty();
    flags.set(AccessFlags::R_OK, permissions.contains('r'));
    flags.set(AccessFlags::W_OK, permissions.contains('w'));
    match access(path, flags) {
        Ok(()) => Ok(()),
        Err(e) => {
            let (why, cure) = denied(path, meta, e);
            Err(by.error(Code::DeviceDenied, why, &cure))
        }
    }
}

/// Why this user may not open a device's file to read and write, and what to do. Without opening it: that would start
/// a GPU.
pub fn not_permitted(path: &Path) -> Option<(String, String)> {
    let e = access(path, AccessFlags::R_OK | AccessFlags::W_OK).err()?;
    match std::fs::metadata(path) {
        Ok(meta) => Some(denied(path, &meta, e)),
        Err(e) => Some((
            format!("{} cannot be looked at: {e}", path.display()),
            "let the administrator load the driver's module and make its files (for NVIDIA: nvidia-modprobe -u -c0)"
                .to_owned(),
        )),
    }
}

fn denied(path: &Path, meta: &Metadata, e: nix::Error) -> (String, String) {
    // The kernel asks the device cgroup too (fs/namei.c, inode_permission: devcgroup_inode_permission).
    if e == nix::Error::EPERM {
        let why = format!("{} is kept from this job by its device cgroup: {e}", path.display());
        return (why, "it is not this job's: ask the batch system for it (Slurm: --gpus)".to_owned());
    }
    let group = |gid: Gid| match Group::from_gid(gid) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    };
    let owner = match User::from_uid(Uid::from_raw(meta.uid())) {
        Ok(Some(user)) => user.name,
        _ => meta.uid().to_string(),
    };
    let mine: Vec<String> = own_groups().into_iter().map(group).collect();
    let of = group(Gid::from_raw(meta.gid()));
    let why = format!(
        "{} may not be used: {e}; it is {owner}:{of} with mode {:04o}, and your groups are {}",
        path.display(),
        meta.mode() & 0o7777,
        mine.join(", ")
    );
    (why, format!("ask the administrator to add you to the group {of}, or to open it"))
}

fn own_groups() -> Vec<Gid> {
    let mut all = vec![nix::unistd::getegid()];
    all.extend(nix::unistd::getgroups().unwrap_or_default());
    all.sort_unstable_by_key(|g| g.as_raw());
    all.dedup();
    all
}

/// Those of these groups in which this process is not. 0 stands for none.
pub fn strange_groups(groups: &[u32]) -> Vec<u32> {
    if groups.is_empty() {
        return Vec::new();
    }
    let own = own_groups();
    groups.iter().copied().filter(|g| *g != 0 && !own.iter().any(|o| o.as_raw() == *g)).collect()
}

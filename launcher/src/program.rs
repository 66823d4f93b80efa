//! Which program is meant: the command itself, what its `#!` line names, or what it will start; and what it
//! opens at run time that links no MPI itself, as Python does.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use abi_probe::linkmap::{Circumstances, LinkMap, Outcome, Unrunnable};
use abi_probe::mpi::{self, Detail, Mpi};
use abi_probe::prober::Prober;
use abi_probe::rootfs::{Entry, View};

use crate::environ::Environ;
use crate::verdict::find_program;

/// So many words of a command line, and of a script, are tried as names of programs.
const MAX_WORDS: usize = 64;
/// So much of a script is read.
const MAX_SCRIPT: u64 = 64 << 10;
/// More entries than any directory of mpi4py has.
const MAX_ENTRIES: usize = 1024;
/// mpi4py has an extension for each ABI; all of them are linked.
const MAX_EXTENSIONS: usize = 16;

/// Shells, interpreters, and programs that start the one that is named behind them.
const STARTERS: &[&str] = &[
    "ash",
    "bash",
    "busybox",
    "csh",
    "dash",
    "fish",
    "ksh",
    "mksh",
    "sh",
    "tcsh",
    "zsh",
    "R",
    "Rscript",
    "java",
    "julia",
    "lua",
    "node",
    "octave",
    "perl",
    "pypy",
    "python",
    "ruby",
    "tclsh",
    "chrt",
    "env",
    "gdb",
    "gdbserver",
    "ionice",
    "ltrace",
    "nice",
    "nohup",
    "numactl",
    "perf",
    "setarch",
    "setpriv",
    "setsid",
    "stdbuf",
    "strace",
    "taskset",
    "time",
    "timeout",
    "valgrind",
    "xargs",
];

/// A program that was looked at.
pub struct Looked {
    /// The file that was judged: the command, or the program that it starts.
    pub entry: Entry,
    /// What it links.
    pub map: LinkMap,
    /// Its MPI, if one is seen.
    pub mpi: Option<Mpi>,
    /// What it opens.
    pub opens: Vec<String>,
    /// The program is not the command: how it was found.
    pub remark: Option<String>,
}

/// Where and how a command is started.
pub struct Started<'a> {
    /// What it sees.
    pub view: &'a View,
    /// The path by which it is executed, links and all.
    pub command: &'a Path,
    /// In which directory.
    pub workdir: &'a Path,
    /// With these variables.
    pub environ: &'a Environ,
    /// Behind its name.
    pub arguments: &'a [std::ffi::OsString],
    /// The MPI library that was named by hand.
    pub mpi_library: Option<&'a Path>,
}

impl Started<'_> {
    /// Looks at the command; where it links no MPI, at what it will start.
    pub fn look(
        &self,
        prober: &Prober,
        command: Entry,
        how: &Circumstances,
        detail: Detail,
    ) -> abi_probe::Result<Result<Looked, Unrunnable>> {
        let named: Vec<String> = self.mpi_library.iter().map(|p| p.display().to_string()).collect();
        let id = command.id;
        let mut looked = match self.one(prober, self.command, command, how, (&named, detail))? {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        if let Some(name) = self.behind_env(&looked.map)
            && let Ok((path, entry)) = find_program(self.view, OsStr::new(&name), self.workdir, self.environ)
            && let Ok(found) = self.one(prober, &path, entry, how, (&named, detail))?
        {
            looked = found;
        }
        let is_known = looked.mpi.is_some() || self.mpi_library.is_some();
        if !is_known && mpi::wanted(prober, &looked.map)?.is_none() {
            self.look_further(prober, how, detail, id, &mut looked)?;
        }
        Ok(Ok(looked))
    }

    /// One program, with what it opens if it is Python.
    fn one(
        &self,
        prober: &Prober,
        path: &Path,
        entry: Entry,
        how: &Circumstances,
        (named, detail): (&[String], Detail),
    ) -> abi_probe::Result<Result<Looked, Unrunnable>> {
        let mut opens = named.to_vec();
        let mut map = match self.program(prober, &entry, how, &opens)? {
            Ok(map) => map,
            Err(why) => return Ok(Err(why)),
        };
        if is_python(&map) {
            opens.extend(self.mpi4py(&map, if map.scripts.is_empty() { path } else { &map.asked }));
            if let Ok(again) = self.program(prober, &entry, how, &opens)? {
                map = again;
            }
        }
        let mpi = mpi::in_map(prober, &map, detail)?;
        Ok(Ok(Looked { entry, map, mpi, opens, remark: None }))
    }

    fn program(
        &self,
        prober: &Prober,
        entry: &Entry,
        how: &Circumstances,
        opens: &[String],
    ) -> abi_probe::Result<Outcome> {
        prober.program(entry, &Circumstances { opens, ..*how })
    }

    /// `#!/usr/bin/env NAME`.
    fn behind_env(&self, map: &LinkMap) -> Option<String> {
        if map.scripts.is_empty() || map.asked.file_name()? != "env" {
            return None;
        }
        let argument = map.argument.as_deref()?;
        let words = argument.strip_prefix("-S").unwrap_or(argument);
        words.split_whitespace().find(|w| !w.contains('=')).map(String::from)
    }

    /// A shell, a wrapper or a script may start the program: whatever of its words is a program that links an
    /// MPI is taken for that.
    fn look_further(
        &self,
        prober: &Prober,
        how: &Circumstances,
        detail: Detail,
        command: (u64, u64),
        looked: &mut Looked,
    ) -> abi_probe::Result<()> {
        let mut words: Vec<String> = Vec::new();
        for argument in self.arguments.iter().filter_map(|a| a.to_str()) {
            words.extend(argument.split(is_break).map(String::from));
        }
        let script = looked.map.scripts.first().cloned().or_else(|| {
            let is_shell = looked.map.program.file_name()?.to_str()?.ends_with("sh");
            let first = self.arguments.first().filter(|_| is_shell)?;
            Some(self.workdir.join(first)).filter(|_| !first.as_bytes().starts_with(b"-"))
        });
        if let Some(script) = script {
            words.extend(self.words_of(&script));
        }
        words.retain(|w| !w.is_empty() && !w.starts_with('-'));
        let mut seen = std::collections::BTreeSet::new();
        for word in words.iter().filter(|w| seen.insert(w.as_str())).take(MAX_WORDS) {
            let Ok((path, entry)) = find_program(self.view, OsStr::new(word), self.workdir, self.environ)
            else {
                continue;
            };
            if entry.id == command {
                continue;
            }
            let Ok(mut found) = self.one(prober, &path, entry, how, (&[], detail))? else { continue };
            if found.mpi.is_some() || mpi::wanted(prober, &found.map)?.is_some() {
                found.remark = Some(format!(
                    "{} links no MPI; {word}, which it names, does, and is taken for the program",
                    looked.map.program.display()
                ));
                *looked = found;
                return Ok(());
            }
        }
        Ok(())
    }

    fn words_of(&self, script: &Path) -> Vec<String> {
        let Ok(Some(entry)) = self.view.find(script) else { return Vec::new() };
        let Ok(file) = self.view.open_file(&entry) else { return Vec::new() };
        let mut text = Vec::new();
        if file.take(MAX_SCRIPT).read_to_end(&mut text).is_err() || text.starts_with(b"\x7fELF") {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let code = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let words = code.flat_map(|line| line.split(is_break)).filter(|w| w.contains('/'));
        words.map(String::from).collect()
    }

    /// The extensions of mpi4py that this interpreter would import (site.py; PEP 405 for virtual environments).
    fn mpi4py(&self, map: &LinkMap, command: &Path) -> Vec<String> {
        let version = map.program.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
        let version =
            if version.contains('.') { version } else { self.python_version(map).unwrap_or(version) };
        let mut directories: Vec<PathBuf> = Vec::new();
        let list = self.environ.get("PYTHONPATH").unwrap_or_default();
        directories.extend(list.split(':').filter(|d| !d.is_empty()).map(PathBuf::from));
        let site =
            |prefix: &Path| ["lib", "lib64"].map(|lib| prefix.join(lib).join(&version).join("site-packages"));
        let mut asked = self.workdir.join(command);
        for _ in 0..8 {
            let Some(prefix) = asked.parent().and_then(Path::parent).map(Path::to_owned) else { break };
            if matches!(self.view.find(&prefix.join("pyvenv.cfg")), Ok(Some(_))) {
                directories.extend(site(&prefix));
            }
            match self.view.lookup_nofollow(&asked) {
                Ok(abi_probe::rootfs::Lookup::Exists(entry)) => match entry.link_target() {
                    Ok(target) => asked = asked.parent().unwrap_or(Path::new("/")).join(target),
                    Err(_) => break,
                },
                _ => break,
            }
        }
        if let Some(home) = self.environ.get("HOME") {
            directories.extend(site(&Path::new(&home).join(".local")));
        }
        for prefix in ["/usr/local", "/usr"] {
            directories.extend(site(Path::new(prefix)));
            directories.push(Path::new(prefix).join("lib").join(&version).join("dist-packages"));
        }
        directories.push(PathBuf::from("/usr/lib/python3/dist-packages"));
        if let Some(prefix) = map.program.parent().and_then(Path::parent) {
            directories.extend(site(prefix));
        }
        directories.iter().map(|d| d.join("mpi4py")).find_map(|d| self.extensions(&d)).unwrap_or_default()
    }

    fn python_version(&self, map: &LinkMap) -> Option<String> {
        // python3 may be the very file: its library's name has the version, as libpython3.11.so.1.0.
        map.objects.iter().find_map(|o| {
            let rest = o.name.strip_prefix("libpython")?;
            Some(format!("python{}", rest.split(".so").next()?))
        })
    }

    fn extensions(&self, directory: &Path) -> Option<Vec<String>> {
        let entry = self.view.find(directory).ok()??;
        let (names, _) = entry.list(MAX_ENTRIES).ok()?;
        let is_extension = |name: &&str| name.starts_with("MPI.") && name.ends_with(".so");
        let mut found: Vec<String> = names
            .iter()
            .filter_map(|n| n.to_str())
            .filter(is_extension)
            .map(|n| directory.join(n).display().to_string())
            .collect();
        found.sort();
        found.truncate(MAX_EXTENSIONS);
        Some(found).filter(|f| !f.is_empty())
    }
}

/// Whether what a command does is told by its arguments rather than by its name: a shell, an interpreter, or something
/// that starts another program. Two calls of one may need different libraries, and different servers.
pub fn starts_others(command: &OsStr) -> bool {
    let name = Path::new(command).file_name().unwrap_or_default().to_string_lossy();
    // python3.11, ruby2.7
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    STARTERS.contains(&stem)
}

fn is_break(c: char) -> bool {
    c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')' | '"' | '\'' | '`' | '<' | '>' | '=')
}

/// By its name or its library's.
fn is_python(map: &LinkMap) -> bool {
    let name = map.program.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.starts_with("python") || map.objects.iter().any(|o| o.name.starts_with("libpython3"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_starts_others_is_known_with_its_version_and_path() {
        for name in ["sh", "/bin/bash", "python3", "/usr/bin/python3.11", "env", "./numactl", "lua5.4"] {
            assert!(starts_others(OsStr::new(name)), "{name}");
        }
        for name in ["./solver", "shell", "pythonic", "/opt/env/run", ""] {
            assert!(!starts_others(OsStr::new(name)), "{name}");
        }
    }
}

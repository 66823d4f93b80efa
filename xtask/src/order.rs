//! `cargo xtask start-order`: the order in which ranks go through the launcher's functions, for its linker.
//!
//! Ranks are run step by step (ptrace(2), PTRACE_SINGLESTEP) from their start to their program: a first one, one that
//! joins it, and one whose program's MPI was decided on before. What they went through becomes `launcher/start.ld`.

use crate::layout::Layout;
use crate::recipe::DEMO;
use crate::user::{PlainUser, Stage};
use crate::{images, release, run};
use anyhow::{Context, Result, bail};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the file says of itself.
const HEAD: &str = "\
/* Functions that a rank goes through between its start and its program, in that order, so that they lie side by side:
   a page fault maps 64 KiB, and a first rank that finds them all over the program has 33 faults more, a tenth of its
   time. The linker adds this to its own script (INSERT); what is not named here, or has another name by now, lies
   where it lay before, and only the time is lost. Asterisks stand for hashes.

   Made by `cargo xtask start-order`: to be made anew when `hpc-bench start` says that it has become slower. */
";

/// Traces, and writes the file.
pub fn make(layout: &Layout) -> Result<()> {
    let launcher = release::build(layout)?;
    images::make(layout, &[DEMO.to_string()], false)?;
    let user = PlainUser::get()?;
    let stage = Stage::prepare(layout, &user, &launcher)?;
    let image = stage.image(&user, DEMO)?;
    let own = PathBuf::from(std::env::var_os("HOME").unwrap_or("/".into()));
    let home = match &user {
        PlainUser::Us => &own,
        PlainUser::Account { home } => home,
    };
    let rank = Ranks { user: user.account(), home, launcher: &stage.launcher, image: &image };
    let functions = functions(&launcher)?;
    let mut order = Vec::new();

    eprintln!("==> a first rank");
    order.extend(rank.traced("first", 0, "/bin/cat", &functions)?);
    eprintln!("==> a rank that joins it");
    let mut leader = rank.leader("joined")?;
    order.extend(rank.traced("joined", 1, "/bin/cat", &functions)?);
    drop(leader.stdin.take());
    leader.wait()?;
    eprintln!("==> a first rank of a program with an MPI");
    // The decision is kept by this one. (Its program finds no server, and fails.)
    rank.command("decides", 0, "/opt/examples/hello", &[]).stdin(Stdio::null()).output()?;
    order.extend(rank.traced("decided", 0, "/opt/examples/hello", &functions)?);

    let members = members(&launcher)?;
    let mut seen = HashSet::new();
    let lines = order.iter().map(|name| line(name, &members)).filter(|line| seen.insert(line.clone()));
    // The entry has no section of its own.
    let lines: String = std::iter::once("    *crt1.o(.text .text.*)\n".to_owned()).chain(lines).collect();
    let path = layout.root.join("launcher/start.ld");
    let text = format!("{HEAD}SECTIONS\n{{\n  .text.start :\n  {{\n{lines}  }}\n}}\nINSERT BEFORE .text;\n");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{} functions, in {}", seen.len(), path.display());
    Ok(())
}

/// Who runs what.
struct Ranks<'a> {
    user: Option<&'static str>,
    home: &'a Path,
    launcher: &'a Path,
    image: &'a Path,
}

impl Ranks<'_> {
    /// A command as a launcher would start it: of a step of this name, whose daemon is this process.
    fn command(&self, step: &str, rank: u32, program: &str, words: &[&str]) -> Command {
        let mut command = match self.user {
            Some(name) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", name, "--regid", name, "--init-groups"]).args(words);
                command
            }
            None => {
                let mut command = Command::new(words.first().map_or(self.launcher, |word| Path::new(*word)));
                command.args(words.iter().skip(1));
                command
            }
        };
        if self.user.is_some() || !words.is_empty() {
            command.arg(self.launcher);
        }
        command.arg(self.image).arg(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.home);
        command.current_dir(self.home);
        command.env("PMIX_NAMESPACE", format!("start-order-{}-{step}", std::process::id()));
        for name in ["PMIX", "OMPI_COMM_WORLD", "OMPI_COMM_WORLD_LOCAL", "OMPI_COMM_WORLD_NODE"] {
            command.env(format!("{name}_RANK"), rank.to_string());
        }
        for name in ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_UNIVERSE_SIZE"] {
            command.env(name, "2");
        }
        // What tells Open MPI's daemon from others; nothing listens there.
        command.env("OMPI_MCA_orte_local_daemon_uri", "1.0;tcp://127.0.0.1:9");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    /// A first rank that lives until its input ends.
    fn leader(&self, step: &str) -> Result<Child> {
        let mut leader = self.command(step, 0, "/bin/cat", &[]).spawn()?;
        leader.stdin.as_mut().context("no pipe")?.write_all(b"here\n")?;
        let mut answer = String::new();
        BufReader::new(leader.stdout.as_mut().context("no pipe")?).read_line(&mut answer)?;
        if answer != "here\n" {
            bail!("the first rank did not reach its program");
        }
        Ok(leader)
    }

    /// Names of the functions that a rank goes through, each where it first does.
    fn traced(&self, step: &str, rank: u32, program: &str, functions: &Functions) -> Result<Vec<String>> {
        // It waits for us before it becomes the launcher.
        let script = ["sh", "-c", "echo; read -r go; exec \"$@\"", "sh"];
        let mut child = self.command(step, rank, program, &script).spawn()?;
        let mut ready = String::new();
        BufReader::new(child.stdout.as_mut().context("no pipe")?).read_line(&mut ready)?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        ptrace::seize(pid, Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL)?;
        child.stdin.as_mut().context("no pipe")?.write_all(b"\n")?;
        let is_exec = |status| matches!(status, WaitStatus::PtraceEvent(_, Signal::SIGTRAP, _));
        if !is_exec(waitpid(pid, None)?) {
            bail!("{program}: the launcher did not start");
        }
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        loop {
            if let Some(start) = functions.at(counter(pid)?)
                && seen.insert(start)
            {
                order.extend(functions.0.get(&start).into_iter().flatten().cloned());
            }
            ptrace::step(pid, None)?;
            match waitpid(pid, None)? {
                status if is_exec(status) => break,
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
                other => bail!("{program}: the launcher ended before its program began: {other:?}"),
            }
        }
        child.kill()?;
        child.wait()?;
        Ok(order)
    }
}

#[cfg(target_arch = "x86_64")]
fn counter(pid: Pid) -> Result<u64> {
    Ok(ptrace::getregs(pid)?.rip)
}

#[cfg(target_arch = "aarch64")]
fn counter(pid: Pid) -> Result<u64> {
    Ok(ptrace::getregs(pid)?.pc)
}

/// A program's functions by their addresses.
struct Functions(BTreeMap<u64, Vec<String>>);

impl Functions {
    fn at(&self, address: u64) -> Option<u64> {
        self.0.range(..=address).next_back().map(|(start, _)| *start)
    }
}

fn functions(program: &Path) -> Result<Functions> {
    let text = run::output(Command::new("nm").arg("--defined-only").arg(program))?;
    let function = |line: &str| {
        let mut words = line.split(' ');
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        let address = u64::from_str_radix(address, 16).ok()?;
        matches!(kind, "t" | "T" | "w" | "W").then(|| (address, name.to_owned()))
    };
    let mut found: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for (address, name) in text.lines().filter_map(function) {
        // Functions of the same code are one, by all their names.
        found.entry(address).or_default().push(name);
    }
    Ok(Functions(found))
}

/// Functions of Rust's own C library, whose sections have no names of their own, and the member that each is in.
fn members(launcher: &Path) -> Result<BTreeMap<String, String>> {
    let target = launcher.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default();
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let directory =
        run::output(Command::new(rustc).args(["--print", "target-libdir", "--target"]).arg(target))?;
    let library = PathBuf::from(directory.trim_end()).join("self-contained/libc.a");
    if !library.exists() {
        return Ok(BTreeMap::new());
    }
    let text = run::output(Command::new("nm").args(["-A", "--defined-only"]).arg(library))?;
    let member = |line: &str| {
        let (place, rest) = line.split_once(' ')?;
        let (kind, name) = rest.split_once(' ')?;
        let is_function = matches!(kind, "t" | "T" | "w" | "W");
        let member = place.rsplit(':').nth(1)?;
        is_function.then(|| (name.to_owned(), member.to_owned()))
    };
    let mut found = BTreeMap::new();
    let mut several = HashSet::new();
    for (name, member) in text.lines().filter_map(member) {
        if found.insert(name.clone(), member).is_some() {
            several.insert(name);
        }
    }
    found.retain(|name, _| !several.contains(name));
    Ok(found)
}

/// A line of the linker's script.
fn line(name: &str, members: &BTreeMap<String, String>) -> String {
    match members.get(name) {
        Some(member) => format!("    *libc.a:{member}(.text .text.*)\n"),
        None => format!("    *(.text.{})\n", unhashed(name)),
    }
}

/// Without what changes with every build: the hash behind a name of the older kind (`17h…E`), and those of crates in
/// names of the newer (`Cs…_`, https://doc.rust-lang.org/rustc/symbol-mangling/v0.html).
fn unhashed(name: &str) -> String {
    if name.starts_with("_ZN") {
        return name.rsplit_once("17h").map_or(name.to_owned(), |(rest, _)| format!("{rest}17h*"));
    }
    if !name.starts_with("_R") {
        return name.to_owned();
    }
    // A copy of the optimiser's, numbered.
    if let Some((rest, number)) = name.rsplit_once('.')
        && number.bytes().all(|b| b.is_ascii_digit())
    {
        return unhashed(rest) + ".*";
    }
    let mut parts = name.split("Cs");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(0);
        match part.get(end..) {
            Some(rest) if end > 0 && rest.starts_with('_') => out.extend(["Cs*", rest]),
            _ => out.extend(["Cs", part]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_hashes() {
        for (name, wanted) in [
            ("main", "main"),
            ("_ZN10hpc_launch8dispatch17h0123456789abcdefE", "_ZN10hpc_launch8dispatch17h*"),
            ("_RNvNtCs4fqI2P2rA04_3std3env7vars_os", "_RNvNtCs*_3std3env7vars_os"),
            ("_RNvCsaB_5alloc9write_str.590", "_RNvCs*_5alloc9write_str.*"),
            ("_RNvCsaB_7___rustc14___rust_dealloc", "_RNvCs*_7___rustc14___rust_dealloc"),
        ] {
            assert_eq!(unhashed(name), wanted);
        }
    }
}

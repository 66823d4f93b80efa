//! Runs other programs: output to a log, one line of progress on a terminal, and a failure that says
//! which command it was and what it said last.

use anyhow::{Context, Result, bail};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// How many of a log's last lines a failure shows.
const TAIL: usize = 25;

/// A command as a user would type it.
pub fn display(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command with our own stdout and stderr.
pub fn shown(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!("{status}: {}", display(command));
    }
    Ok(())
}

/// Runs a command with our own stderr, and with a stdout that is both shown and returned.
pub fn watched(command: &mut Command) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().context("no pipe")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{status}: {}", display(command));
    }
    Ok(said)
}

/// Runs a command and returns its stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{}", output.status, display(command), said.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a command can be run and succeeds; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a command with its output appended to `log`. A terminal shows the latest line meanwhile; a
/// failure shows the last lines and names the file.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let open = || OpenOptions::new().create(true).append(true).open(log);
    let mut file: File = open().with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(file, "$ {}", display(command))?;

    // Close-on-exec: other threads start commands too, and those must not hold the pipe open.
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let reader = File::from(reader);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    // The command keeps its ends of the pipe, and we would never see the end of it.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let terminal = std::io::stderr().is_terminal();
    let mut last = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(file, "{line}")?;
        if terminal {
            let short: String = line.chars().filter(|c| !c.is_control()).take(78).collect();
            eprint!("\r\x1b[K{short}");
        }
        if last.len() == TAIL {
            last.remove(0);
        }
        last.push(line);
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{status}: {}\n{}\n(all of it: {})", display(command), last.join("\n"), log.display());
    }
    Ok(())
}

/// Announces a step on stderr, and its time when it is done.
pub fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {title}");
    let start = Instant::now();
    let result = work();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("    {} in {seconds:.1} s", if result.is_ok() { "done" } else { "FAILED" });
    result
}

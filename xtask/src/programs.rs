//! The programs that hpc-bench measures with, built for each MPI of this machine: `cargo xtask programs`.

use crate::layout::Layout;
use crate::run;
use crate::test::cargo;
use anyhow::{Context, Result, bail};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is built where nothing is named: Debian's two.
const DEBIAN: &[&str] = &["mpicc.openmpi", "mpicc.mpich"];
/// The program's name.
pub const NAME: &str = "hpc-bench-mpi";

/// The workspace that it is built in.
pub fn workspace(layout: &Layout) -> PathBuf {
    layout.root.join("bench/programs")
}

/// Where the programs lie: one directory for each MPI.
pub fn directory(layout: &Layout) -> PathBuf {
    layout.target.join("bench-programs")
}

/// Builds for each of `compilers`, or for those of Debian's that are installed, and tries each with one rank.
pub fn make(layout: &Layout, compilers: &[String]) -> Result<PathBuf> {
    let named = !compilers.is_empty();
    let compilers: Vec<&str> =
        if named { compilers.iter().map(String::as_str).collect() } else { DEBIAN.to_vec() };
    let mut built = 0;
    for compiler in compilers {
        // Tried by running it: a name in PATH may be a link that leads nowhere.
        if !named && !run::succeeds(Command::new(compiler).arg("-show")) {
            eprintln!("    {compiler} is not installed: no {NAME} for it");
            continue;
        }
        let program = build(layout, compiler).with_context(|| format!("{NAME} with {compiler}"))?;
        check(&program)?;
        println!("{}", program.display());
        built += 1;
    }
    if built == 0 {
        bail!("no MPI to build for: apt-get install libopenmpi-dev or libmpich-dev, or give --mpicc");
    }
    Ok(directory(layout))
}

/// `DIRECTORY/NAME/hpc-bench-mpi`, where NAME is what `mpicc.NAME` says, or made of a path.
fn build(layout: &Layout, compiler: &str) -> Result<PathBuf> {
    let place = directory(layout).join(name(compiler)?);
    let target = place.join("build");
    let stamp = place.join("mpi");
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    let fingerprint = fingerprint(compiler, &place.join("mpi.c"))?;
    // The build script of mpi-sys does not notice that MPICC or mpi.h has changed.
    if fs::read_to_string(&stamp).is_ok_and(|before| before != fingerprint) {
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    }
    fs::write(&stamp, &fingerprint).with_context(|| format!("cannot write {}", stamp.display()))?;

    let mut build = cargo(layout);
    build.args(["build", "--quiet", "--release", "--locked", "--target-dir"]).arg(&target);
    run::shown(build.env("MPICC", compiler).current_dir(workspace(layout)))?;
    let made = target.join(format!("{}-unknown-linux-gnu/release/{NAME}", std::env::consts::ARCH));
    // Renamed over the old one, which may be running.
    let (new, program) = (place.join(format!(".{NAME}")), place.join(NAME));
    fs::copy(&made, &new).with_context(|| format!("cannot copy {}", made.display()))?;
    fs::rename(&new, &program).with_context(|| format!("cannot write {}", program.display()))?;
    Ok(program)
}

/// Unit tests of the program, with one MPI: they are the same with all.
pub fn test(layout: &Layout) -> Result<()> {
    with_one_mpi(layout, &["test", "--quiet", "--release", "--locked"], &[])
}

/// Lints of the program: a build of its own, which `cargo xtask check` has time for.
pub fn lints(layout: &Layout) -> Result<()> {
    if !DEBIAN.iter().any(|name| run::succeeds(Command::new(*name).arg("-show"))) {
        eprintln!("    no MPI to build with: {NAME} is not looked at");
        return Ok(());
    }
    let words = ["clippy", "--quiet", "--release", "--all-targets", "--locked"];
    with_one_mpi(layout, &words, &["--", "-D", "warnings"])
}

fn with_one_mpi(layout: &Layout, words: &[&str], after: &[&str]) -> Result<()> {
    let installed = DEBIAN.iter().find(|name| run::succeeds(Command::new(**name).arg("-show")));
    let compiler = installed.context("no MPI to build with: apt-get install libopenmpi-dev")?;
    let target = directory(layout).join(name(compiler)?).join("build");
    let mut command = cargo(layout);
    command.args(words).arg("--target-dir").arg(&target).args(after);
    run::shown(command.env("MPICC", compiler).current_dir(workspace(layout)))
}

/// One rank must solve, and must not measure messages.
fn check(program: &Path) -> Result<()> {
    let solved = run::output(Command::new(program).args(["cg", "--local", "4x4x4", "--expect-ranks", "1"]))?;
    if !solved.starts_with("hpc-bench-mpi 1 cg ranks 1 ") || !solved.ends_with("END\n") {
        bail!("{} printed {solved}", program.display());
    }
    let alone = Command::new(program).arg("pt2pt").stdin(Stdio::null()).output()?;
    if alone.status.code() != Some(2) || !alone.stdout.is_empty() {
        bail!("{} measured messages of one rank: {}", program.display(), alone.status);
    }
    Ok(())
}

/// A directory's name for a compiler.
fn name(compiler: &str) -> Result<String> {
    let file = compiler.rsplit('/').next().unwrap_or(compiler);
    if let Some(("mpicc", name)) = file.split_once('.')
        && !compiler.contains('/')
    {
        return Ok(name.to_owned());
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let name: String = compiler.chars().map(plain).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() {
        bail!("{compiler:?} is no name of a compiler");
    }
    Ok(name.to_owned())
}

/// What the program is built from, of the MPI's: flags and declarations. `source` is written for it: Open MPI's
/// wrapper adds no flags where no file is named.
fn fingerprint(compiler: &str, source: &Path) -> Result<String> {
    fs::write(source, "#include <mpi.h>\n").with_context(|| format!("cannot write {}", source.display()))?;
    let show = run::output(Command::new(compiler).arg("-show"))?;
    let declared = run::output(Command::new(compiler).args(["-E", "-P"]).arg(source))?;
    let mut hasher = DefaultHasher::new();
    (&show, &declared).hash(&mut hasher);
    Ok(format!("{:016x}\n{show}", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_compiler_has_a_directory_of_its_own() {
        assert_eq!(name("mpicc.openmpi").unwrap(), "openmpi");
        assert_eq!(name("mpicc").unwrap(), "mpicc");
        assert_eq!(name("/opt/mpich-4.3/bin/mpicc").unwrap(), "opt-mpich-4.3-bin-mpicc");
        assert_eq!(name("/opt/a/mpicc.mpich").unwrap(), "opt-a-mpicc.mpich");
        assert!(name("..").is_err() && name("").is_err());
    }
}

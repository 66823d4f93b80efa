//! `hpc-launch bench`: hands over to `hpc-bench`, a program of its own, so that what starts ranks stays small.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Code, Error, Result};

const NAME: &str = "hpc-bench";

/// Becomes hpc-bench, the one beside this program or else the first on PATH.
pub fn run(arguments: &[OsString]) -> Result<std::convert::Infallible> {
    let own = std::env::current_exe().ok();
    let program = find(own.as_deref()).ok_or_else(|| {
        let beside = own.as_deref().and_then(Path::parent).unwrap_or(Path::new("/"));
        Error::new(
            Code::BenchMissing,
            format!("{NAME} is neither in {} nor on PATH", beside.display()),
            "install it beside hpc-launch: cargo install --path bench",
        )
    })?;
    let e = Command::new(&program).args(arguments).exec();
    Err(Error::new(
        Code::Exec,
        format!("starting {}: {e}", program.display()),
        "see execve(2) for what this error means",
    ))
}

fn find(own: Option<&Path>) -> Option<PathBuf> {
    let beside = own.map(|own| own.with_file_name(NAME)).and_then(|path| which::which(path).ok());
    beside.or_else(|| which::which(NAME).ok())
}

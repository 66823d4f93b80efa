//! The benchmark programs on MPI (bench/programs), and what they print.

use crate::alternate::Sample;
use crate::contender::find_program;
use crate::error::Error;
use crate::run::{Failure, Ran};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The program's name.
const NAME: &str = "hpc-bench-mpi";

/// One line of a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// "latency", "allreduce", …
    pub benchmark: String,
    /// Of the message, in bytes; 0 where there is none.
    pub size: u64,
    /// In `unit`.
    pub value: f64,
    /// "us", "MB/s", …
    pub unit: String,
}

/// All of one run, as far as it came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What it printed before it ended.
    pub values: Vec<Value>,
    /// Why there is no more.
    pub ended: Option<Failure>,
}

impl Sample for Results {
    fn cut_short_by(&self) -> Option<&Failure> {
        self.ended.as_ref()
    }
}

/// The program in a directory that every runtime shows at its own path: the same file runs everywhere.
#[derive(Debug)]
pub struct Program {
    _dir: TempDir,
    path: PathBuf,
}

impl Program {
    /// A copy of the program that was built for an MPI: the named one, or the one beside hpc-bench in
    /// `bench-programs/FAMILY`.
    pub fn stage(named: Option<&Path>, family: &str) -> Result<Self, Error> {
        let (source, cure) = match named {
            Some(path) => (path.to_owned(), "give --program a file that you may read"),
            None => (
                beside(family)?,
                "`cargo xtask programs` builds it for this host's MPIs; or give --program the path of one that is \
                 built for the MPI of --mpirun",
            ),
        };
        let failed = |e: std::io::Error| Error::new(format!("use the program {}", source.display()), e, cure);
        // /tmp, whatever TMPDIR says: it is what all runtimes show.
        let mut builder = tempfile::Builder::new();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let dir = builder.prefix("hpc-bench.").permissions(mode).tempdir_in("/tmp").map_err(failed)?;
        let path = dir.path().join(NAME);
        fs::copy(&source, &path).map_err(failed)?;
        Ok(Program { _dir: dir, path })
    }

    /// The command that runs it.
    pub fn words(&self, args: &[String]) -> Vec<String> {
        [&[self.path.display().to_string()], args].concat()
    }
}

/// Of the places where it may be the first that has it, or else the first.
fn beside(family: &str) -> Result<PathBuf, Error> {
    let own = std::env::current_exe()
        .map_err(|e| Error::new("find the benchmark programs", e, "give --program their path"))?;
    let family = if family == "openmpi" { "openmpi" } else { "mpich" };
    // Installed beside each other, or in target/TRIPLE/release of the sources.
    let places: Vec<PathBuf> = own
        .ancestors()
        .skip(1)
        .take(4)
        .map(|dir| dir.join("bench-programs").join(family).join(NAME))
        .collect();
    let found = places.iter().find(|path| find_program(&path.to_string_lossy(), "").is_ok());
    Ok(found.or(places.first()).cloned().unwrap_or_default())
}

/// What a run printed: `RESULT BENCHMARK SIZE VALUE UNIT`, one per line, and END after the last. Lines of others (a
/// launcher's warnings) are passed over. A run that hung or fell keeps what it had; one that printed nothing failed.
pub fn results(text: &str, ended: Result<Ran, Failure>) -> Result<Results, Failure> {
    let mut values = Vec::new();
    let mut is_whole = false;
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["RESULT", benchmark, size, value, unit] => {
                let (Ok(size), Ok(value)) = (size.parse(), value.parse::<f64>()) else {
                    return Err(Failure::new("a line that cannot be read", line));
                };
                if !value.is_finite() || value <= 0.0 {
                    return Err(Failure::new("a value that cannot be", line));
                }
                values.push(Value { benchmark: benchmark.into(), size, value, unit: unit.into() });
            }
            ["END"] => is_whole = true,
            _ => {}
        }
    }
    let ended = match ended {
        Err(failure) => Some(failure),
        // A launcher may lose a rank's status.
        Ok(_) if !is_whole => Some(Failure::new("exit 0, but its results do not end", text.trim())),
        Ok(_) => None,
    };
    match ended {
        Some(failure) if values.is_empty() => Err(failure),
        ended => Ok(Results { values, ended }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn well() -> Result<Ran, Failure> {
        Ok(Ran { took: Duration::from_secs(1), faults: 1 })
    }

    #[test]
    fn the_programs_lines_among_a_launchers_noise() {
        let text = "some warning\nRESULT latency 8 0.19 us\nRESULT bw 4194304 9295.9 MB/s\nEND\n";
        let results = results(text, well()).unwrap();
        let first = Value { benchmark: "latency".into(), size: 8, value: 0.19, unit: "us".into() };
        assert_eq!((results.values.len(), &results.values[0], results.ended), (2, &first, None));
    }

    #[test]
    fn a_run_that_hung_keeps_what_it_had() {
        let hung = Failure::timed_out(Duration::from_secs(9), "");
        let kept = results("RESULT bw 8 42 MB/s\n", Err(hung.clone())).unwrap();
        assert_eq!((kept.values.len(), kept.ended), (1, Some(hung.clone())));
        assert_eq!(results("warning\n", Err(hung.clone())), Err(hung));
    }

    #[test]
    fn results_without_an_end_or_sense_are_failures() {
        let cut = results("RESULT bw 8 42 MB/s\n", well()).unwrap();
        assert_eq!(cut.ended.unwrap().status, "exit 0, but its results do not end");
        let single = "one rank has nobody to play with";
        assert_eq!(
            results(single, well()).unwrap_err(),
            Failure::new("exit 0, but its results do not end", single)
        );
        assert_eq!(
            results("RESULT bw 8 fast MB/s", well()).unwrap_err().status,
            "a line that cannot be read"
        );
        assert_eq!(results("RESULT bw 8 -1 MB/s", well()).unwrap_err().status, "a value that cannot be");
        assert_eq!(results("RESULT bw 8 inf MB/s", well()).unwrap_err().status, "a value that cannot be");
    }
}

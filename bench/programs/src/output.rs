//! The output: lines for a program to read, each flushed at once, so that a run that hangs later keeps them.
//!
//! ```text
//! hpc-bench-mpi 1 PROGRAM ranks N counts COUNTS mpi LIBRARY
//! RESULT BENCHMARK SIZE VALUE UNIT
//! WRONG BENCHMARK SIZE WHAT
//! END
//! ```

use std::io::{Write, stdout};

/// Raised when a reader of older output would misunderstand it.
const FORMAT: u32 = 1;

/// Where results go. Only rank 0 has one that prints.
#[derive(Debug)]
pub struct Output {
    prints: bool,
}

impl Output {
    /// One that prints, or one that does not.
    pub fn new(prints: bool) -> Self {
        Output { prints }
    }

    /// The first line.
    pub fn begin(&mut self, program: &str, ranks: usize, library: &str, counts: &str) {
        self.line(&header(program, ranks, library, counts));
    }

    /// One number. `size` is in bytes; what has no size has 0.
    pub fn result(&mut self, benchmark: &str, size: usize, value: f64, unit: &str) {
        self.line(&format!("RESULT {benchmark} {size} {} {unit}", number(value)));
    }

    /// The last line: without it, something is missing.
    pub fn end(&mut self) {
        self.line("END");
    }

    fn line(&mut self, line: &str) {
        if !self.prints {
            return;
        }
        let mut out = stdout().lock();
        // Nobody reads any more: the exit status still tells how it went.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// The line for what was wrong: whichever rank finds it prints it.
pub fn wrong(benchmark: &str, size: usize, what: &str) {
    Output::new(true).line(&format!("WRONG {benchmark} {size} {what}"));
}

fn header(program: &str, ranks: usize, library: &str, counts: &str) -> String {
    // MPICH describes itself in many lines, with tabs; Open MPI counts the byte that ends a string in C.
    let library = library.lines().next().unwrap_or_default();
    let library: Vec<&str> = library
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    format!("hpc-bench-mpi {FORMAT} {program} ranks {ranks} counts {counts} mpi {}", library.join(" "))
}

/// Six digits that count, and no exponent where people read it.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e15).contains(&magnitude) {
        return format!("{value:.5e}");
    }
    let whole = if magnitude < 1.0 { 0 } else { magnitude.log10() as usize };
    format!("{value:.*}", 5usize.saturating_sub(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_whatever_the_library_says() {
        assert_eq!(
            header("pt2pt", 2, "MPICH Version:\t4.0.2\0\nMPICH Release date:\tThu\n", "osu"),
            "hpc-bench-mpi 1 pt2pt ranks 2 counts osu mpi MPICH Version: 4.0.2"
        );
    }

    #[test]
    fn numbers_keep_what_counts() {
        assert_eq!(
            [0.0, 0.25, 1.0, 43.2109, 9295.912, 123_456.7, 12_345_678.9, 3.2e-11].map(number),
            ["0.00000", "0.25000", "1.00000", "43.2109", "9295.91", "123457", "12345679", "3.20000e-11"]
        );
    }
}

//! The program of the simulated hosts, of which every bed gets a copy.

use std::process::ExitCode;

fn main() -> ExitCode {
    simulated_hosts::main(std::env::args_os().skip(1).collect())
}

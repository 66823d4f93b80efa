//! Compiles `probe/`, the program that `hpc-launch validate` runs inside images: a Rust program without a runtime, for
//! the C library that it will find there. Its stand-in is made here too, so that no version of any symbol is asked for.
//!
//! And has the functions that a rank goes through laid side by side, in `start.ld`'s order: scattered over the program
//! they cost a first rank three dozen page faults more.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The names that the probe needs, under which every C library has its functions.
const LIBRARIES: [&str; 2] = ["libdl.so.2", "libc.so.6"];
/// Where the path of the image's loader is written: as long as any such path.
const LOADER: &str =
    "/the/path/of/the/loader/of/the/image/is/written/here/before/it/is/started/inside/of/it/by/hpc-launch";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=probe");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in LIBRARIES {
        let soname = format!("-Wl,-soname,{name}");
        compile("stub.rs", &["--crate-type=cdylib"], &[&soname], &out.join(name));
    }
    let libraries = LIBRARIES.map(|name| out.join(name).display().to_string());
    let loader = format!("-Wl,--dynamic-linker={LOADER}");
    let linker = ["-pie", "-Wl,--no-as-needed", &libraries[0], &libraries[1], &loader];
    compile("main.rs", &["--crate-type=bin", "-Crelocation-model=pic"], &linker, &out.join("probe"));
    println!("cargo::rustc-env=HPC_LAUNCH_LOADER={LOADER}");

    println!("cargo::rerun-if-changed=start.ld");
    let order = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("start.ld");
    let order = format!("-Wl,-T,{}", order.display());
    // Linkers that know no scripts, as mold, make the same program, slower to start.
    let with_order = [&linker[..], &[&order]].concat();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let which = flags
        .split('\x1f')
        .filter_map(|flag| flag.strip_prefix("-C").unwrap_or(flag).trim().strip_prefix("link"));
    let which: Vec<String> = which.map(|rest| format!("-Clink{rest}")).collect();
    let mut options = vec!["--crate-type=bin", "-Crelocation-model=pic"];
    options.extend(which.iter().map(String::as_str));
    match try_compile("main.rs", &options, &with_order, &out.join("ordered")) {
        true => println!("cargo::rustc-link-arg-bins={order}"),
        false => println!("cargo::warning=the linker takes no script: each rank will start a little later"),
    }
}

/// `source` of the probe's directory, with nothing of the toolchain's own libraries but `core`.
fn compile(source: &str, options: &[&str], linker: &[&str], out: &Path) {
    assert!(try_compile(source, options, linker, out), "probe/{source} does not compile");
}

/// The same; answers whether it can be done.
fn try_compile(source: &str, options: &[&str], linker: &[&str], out: &Path) -> bool {
    let variable = |name: &str| env::var_os(name).unwrap_or_default();
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.arg("--target").arg(variable("TARGET")).args(["--edition=2024", "-Cpanic=abort", "-Copt-level=s"]);
    rustc.args(["-Cstrip=symbols", "-Dwarnings"]);
    if variable("CARGO_CFG_TARGET_ENV") == "musl" {
        // Which means static programs, and brings a C library for them.
        rustc.args(["-Ctarget-feature=-crt-static", "-Clink-self-contained=no"]);
    }
    let cc = match variable("RUSTC_LINKER") {
        none if none.is_empty() => "cc".into(),
        some => some,
    };
    let mut with = std::ffi::OsString::from("-Clinker=");
    with.push(cc);
    rustc.arg(with).args(["-Clink-arg=-nostdlib", "-Clink-arg=-nostartfiles"]).args(options);
    rustc.args(linker.iter().map(|argument| format!("-Clink-arg={argument}")));
    let status = rustc.arg(Path::new("probe").join(source)).arg("-o").arg(out).status();
    status.is_ok_and(|status| status.success())
}

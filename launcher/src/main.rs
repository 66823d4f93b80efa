//! `hpc-launch`: one containerised MPI rank per slot of the host's own launcher. See docs/ARCHITECTURE.md.
#![cfg_attr(not(test), no_main)]

mod benchmark;
mod bridge;
mod cache;
mod cdi;
mod check;
mod cli;
mod config;
mod detached;
mod environ;
mod error;
mod fabric;
mod gpu;
mod host;
mod image;
mod inject;
mod job;
mod lock;
mod nic;
mod overlay;
mod plan;
mod pmi;
mod program;
mod rank;
mod report;
mod sandbox;
mod standalone;
mod survey;
mod validate;
mod verdict;

use std::cell::OnceCell;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use clap::Parser;
use pmi_shim::launcher::{ASSUMED, VARIABLES};

use crate::cdi::registry::{self, Registry};
use crate::cli::{Cdi, CheckArgs, Cli, Command, Run};
use crate::config::Config;
use crate::environ::Environ;
use crate::error::{Code, EXIT_REFUSED, Error, Result, harmless};
use crate::job::{JobStep, once};
use crate::lock::Lock;
use crate::rank::Request;
use crate::survey::Survey;

/// musl's own asks the kernel for every few objects.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// The C library's entry. Rust's own would ignore SIGPIPE, which the program would then inherit through
/// exec, and would spend a tenth of a joining rank's time on a stack guard that nothing here needs.
///
/// # Safety
/// Called once, by the C library, with the program's arguments.
#[cfg(not(test))]
#[allow(unsafe_code)]
// SAFETY: no other symbol of that name is linked, and the signature is C's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: i32, argv: *const *const std::ffi::c_char) -> i32 {
    // Rust's own list is empty without Rust's entry, but for glibc, which hands it to initialisers.
    let arguments = (0..usize::try_from(argc).unwrap_or(0)).map(|i| {
        // SAFETY: C's main has `argc` pointers at `argv`, each to a string that lives as long as we do.
        let argument = unsafe { std::ffi::CStr::from_ptr(*argv.add(i)) };
        std::os::unix::ffi::OsStringExt::from_vec(argument.to_bytes().to_vec())
    });
    i32::from(start(arguments.collect()))
}

/// Never run: the test harness has an entry of its own. It tells the compiler what is in use.
#[cfg(test)]
fn main() -> std::process::ExitCode {
    start(std::env::args_os().collect()).into()
}

/// Everything; answers the exit status.
fn start(arguments: Vec<OsString>) -> u8 {
    let cli = match Cli::of_plain_call(arguments.iter().cloned())
        .map_or_else(|| Cli::try_parse_from(&arguments), Ok)
    {
        Ok(cli) => cli,
        Err(e) => {
            let asked = !e.use_stderr();
            let _ = e.print();
            return if asked { 0 } else { EXIT_REFUSED };
        }
    };
    let mut environ = Environ::of_process();
    let job = JobStep::of_process(&mut environ);
    match dispatch(cli, environ, job.clone()) {
        Ok(status) => status,
        Err(e) => {
            report_once(job.as_ref(), &e);
            e.code.exit()
        }
    }
}

/// Prints the error, unless another rank of this node says the same.
fn report_once(job: Option<&JobStep>, e: &Error) {
    let text = format!("hpc-launch: {e}\n");
    if let Some(speaker) = once::speak(job, &text) {
        let _ = std::io::stderr().write_all(text.as_bytes());
        speaker.linger();
    }
}

/// Answers the exit status.
fn dispatch(cli: Cli, environ: Environ, job: Option<JobStep>) -> Result<u8> {
    if cli.command.is_none() && cli.job.ranks.is_some() {
        return standalone::run(cli, environ, job.as_ref());
    }
    match (cli.command, cli.image) {
        (Some(Command::Config { json }), _) => show_config(&Config::load(&environ, None)?, json).map(|()| 0),
        (Some(Command::Cdi(Cdi::List { json })), _) => list_devices(&Config::load(&environ, None)?, json),
        (Some(Command::Cdi(Cdi::Generate { what, output })), _) => {
            cdi::generate::run(&what, output.as_deref()).map(|()| 0)
        }
        (Some(Command::Survey { json }), _) => {
            let daemon = job.as_ref().map(|job| job.daemon);
            let survey = Survey::of_host(&Config::load(&environ, None)?, &environ, daemon)?;
            print(&if json { to_json(&survey)? } else { survey.text() }).map(|()| 0)
        }
        (Some(Command::Bench { arguments }), _) => match benchmark::run(&arguments)? {},
        (Some(Command::Image(action)), _) => image::command::run(&action, &environ),
        (Some(Command::Validate(args)), _) => validate::run(args, environ, job),
        (Some(Command::Pmi(action)), _) => pmi::run(&action, &environ, job.as_ref()),
        (Some(Command::Check(mut args)), _) => {
            let json = args.json || wants_json(&mut args.run);
            show_check(args, environ, job, json)
        }
        (Some(Command::Plan(mut args)), _) => {
            let json = args.json || wants_json(&mut args.run);
            let request = request(args.run, environ, job)?;
            match (&args.lock, &args.diff) {
                (Some(file), _) => write_lock(&request, file).map(|()| 0),
                (_, Some(file)) => show_differences(&request, file),
                _ => show_plan(&request, json).map(|()| 0),
            }
        }
        (None, Some(image)) => {
            let run = Run { options: cli.options, image, command: cli.command_line };
            match request(run, environ, job)?.run()? {}
        }
        (None, None) => Err(Error::new(Code::Usage, "neither image nor subcommand", "see hpc-launch --help")),
    }
}

/// `plan IMAGE COMMAND --json`, as people type it; `--` keeps a --json of the command's.
fn wants_json(run: &mut Run) -> bool {
    run.command.len() > 1 && run.command.pop_if(|a| a == "--json").is_some()
}

/// The verdict, under the launcher that is assumed.
fn show_check(args: CheckArgs, environ: Environ, job: Option<JobStep>, json: bool) -> Result<u8> {
    let assumed = args.launcher.and_then(|name| ASSUMED.iter().find(|(known, _)| *known == name));
    let (environ, job) = match assumed {
        None => (environ, job),
        Some((_, variables)) => {
            let mut environ = environ.without(VARIABLES);
            for (name, value) in *variables {
                environ.set(name, value);
            }
            let job = JobStep::of_process(&mut environ);
            (environ, job)
        }
    };
    let verbose = args.run.options.verbose;
    let report = request(args.run, environ, job)?.check();
    print(&if json { to_json(&report)? } else { harmless(&report.text(verbose)).into_owned() })?;
    Ok(if report.would_run() { 0 } else { EXIT_REFUSED })
}

fn request(run: Run, environ: Environ, job: Option<JobStep>) -> Result<Request> {
    let config = Config::load(&environ, Some(&run.options))?;
    Ok(Request {
        image: run.image,
        command: run.command,
        config,
        environ,
        job,
        door: None,
        entry: OnceCell::new(),
    })
}

/// Plans in this very process: its namespaces end with it, and nothing else has changed.
fn show_plan(request: &Request, json: bool) -> Result<()> {
    let plan = request.plan()?;
    if json {
        return print(&to_json(&plan)?);
    }
    print(&report::text(&plan))
}

/// The file is opened first: in the plan's namespaces its path may be covered.
fn write_lock(request: &Request, path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| {
        let what = format!("cannot write {}: {e}", path.display());
        Error::new(Code::Usage, what, "name a file in a directory that can be written to")
    };
    let mut file = std::fs::File::create(path).map_err(failed)?;
    let lock = request.lock()?;
    file.write_all(to_json(&lock)?.as_bytes()).map_err(failed)?;
    print(&format!("{} files of the host, in {}\n", lock.len(), path.display()))
}

/// Answers the exit status: 1 if anything differs.
fn show_differences(request: &Request, path: &Path) -> Result<u8> {
    let there = Lock::read(path)?;
    let lines = request.lock()?.differences(&there);
    if lines.is_empty() {
        print("the same files as there\n")?;
        return Ok(0);
    }
    print(&(lines.join("\n") + "\n"))?;
    Ok(1)
}

/// Answers the exit status: 1 if a file does not count.
fn list_devices(config: &Config, json: bool) -> Result<u8> {
    let registry = Registry::read(&config.cdi_directories.value, nix::unistd::geteuid().as_raw());
    print(&if json { to_json(&registry.listing())? } else { registry.text() })?;
    for fault in &registry.faults {
        eprintln!("hpc-launch: {}: {}", fault.path.display(), fault.why);
    }
    Ok(u8::from(!registry.faults.is_empty()))
}

fn show_config(config: &Config, json: bool) -> Result<()> {
    if json {
        return print(&to_json(config)?);
    }
    let mut out = String::new();
    let mut line = |key: &str, value: String, origin: &config::Origin| {
        out.push_str(&format!("{key:<15} {value:<30} # {origin}\n"));
    };
    for bind in &config.binds {
        line("binds", bind.value.clone(), &bind.origin);
    }
    for overlay in &config.overlays {
        line("overlays", overlay.value.clone(), &overlay.origin);
    }
    for device in &config.devices {
        line("devices", device.value.clone(), &device.origin);
    }
    line("cdi_directories", registry::listed(&config.cdi_directories.value), &config.cdi_directories.origin);
    for pair in &config.env {
        line("env", format!("{}={}", pair.value.0, pair.value.1), &pair.origin);
    }
    for pattern in &config.unset_env {
        line("unset_env", pattern.value.clone(), &pattern.origin);
    }
    let path =
        |p: &Option<std::path::PathBuf>| p.as_ref().map_or("-".to_owned(), |p| p.display().to_string());
    line("clean_env", config.clean_env.value.to_string(), &config.clean_env.origin);
    line("home", config.home.value.to_string(), &config.home.origin);
    line("writable_tmpfs", config.writable_tmpfs.value.to_string(), &config.writable_tmpfs.origin);
    line("mpi", format!("{:?}", config.mpi.value).to_lowercase(), &config.mpi.origin);
    line("fabric", format!("{:?}", config.fabric.value).to_lowercase(), &config.fabric.origin);
    line("gpu", String::from(config.gpu.value.clone()), &config.gpu.origin);
    line("gpu_bind", named(&config.gpu_bind.value), &config.gpu_bind.origin);
    line("nic_bind", named(&config.nic_bind.value), &config.nic_bind.origin);
    line("pmi", format!("{:?}", config.pmi.value).to_lowercase(), &config.pmi.origin);
    line("host_mpi", config.host_mpi.value.clone().unwrap_or("-".to_owned()), &config.host_mpi.origin);
    line("mpi_library", path(&config.mpi_library.value), &config.mpi_library.origin);
    line("decisions", path(&config.decisions.value), &config.decisions.origin);
    for mpi in &config.host_mpis {
        line("host_mpis", format!("{} {}", mpi.value.name, mpi.value.library.display()), &mpi.origin);
    }
    line("workdir", path(&config.workdir.value), &config.workdir.origin);
    line("squashfuse", path(&config.squashfuse.value), &config.squashfuse.origin);
    line("fuse2fs", path(&config.fuse2fs.value), &config.fuse2fs.origin);
    for store in &config.store {
        line("store", store.value.display().to_string(), &store.origin);
    }
    line("image_cache", named(&config.image_cache.value), &config.image_cache.origin);
    line("node_cache", path(&config.node_cache.value), &config.node_cache.origin);
    for mirror in &config.mirrors {
        line("mirrors", format!("{} {}", mirror.value.0, mirror.value.1.join(", ")), &mirror.origin);
    }
    for host in &config.plain_registries {
        line("plain_registries", host.value.clone(), &host.origin);
    }
    line("max_size", config.max_size.value.to_string(), &config.max_size.origin);
    line("lock_timeout", config.lock_timeout.value.to_string(), &config.lock_timeout.origin);
    line("require_signature", config.require_signature.value.to_string(), &config.require_signature.origin);
    for ring in &config.keyring {
        line("keyring", ring.value.display().to_string(), &ring.origin);
    }
    line("verbose", config.verbose.value.to_string(), &config.verbose.origin);
    if let Some(locked) = &config.locked {
        line("locked", locked.value.join(", "), &locked.origin);
    }
    print(&out)
}

/// As it is written in files and on the command line.
fn named(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map(|t| t + "\n")
        .map_err(|e| Error::step("writing JSON", std::io::Error::other(e)))
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Error::step("writing to standard output", e))
}

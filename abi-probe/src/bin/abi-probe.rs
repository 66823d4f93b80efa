//! `abi-probe`: what a program inside a root would link, without running anything.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use abi_probe::bind::{self, Abort, Binding};
use abi_probe::elf::Arch;
use abi_probe::linkmap::{Circumstances, LinkMap, Problem, Unrunnable};
use abi_probe::mpi::{self, Detail, Mpi, Pmi, PmiFrom};
use abi_probe::prober::Prober;
use abi_probe::rootfs::{Entry, View};
use abi_probe::{Error, Result, install};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// What a program inside a root would link, decided from the files alone
#[derive(Parser, Debug)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Print the link map of programs and libraries, in ldd's layout
    Links(Links),
    /// Print which MPI libraries are, what they are compatible with and what they speak
    Mpi(MpiArgs),
    /// Print what an MPI of this host needs around it: libraries, plugins, directories
    Needs {
        /// The MPI library
        library: PathBuf,
    },
}

#[derive(clap::Args, Debug)]
struct MpiArgs {
    /// MPI libraries, or programs that link one
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The root that paths are taken in
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// As JSON, one object for each file
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct Links {
    /// The root that paths are taken in: / for the host's own
    root: PathBuf,
    /// Programs and libraries, by their paths inside
    #[arg(required = true)]
    programs: Vec<PathBuf>,
    /// As JSON, one object for each program
    #[arg(long)]
    json: bool,
    /// Bind every symbol, and print what does not
    #[arg(long)]
    symbols: bool,
    /// LD_LIBRARY_PATH
    #[arg(long, value_name = "LIST")]
    library_path: Option<String>,
    /// LD_PRELOAD
    #[arg(long, value_name = "LIST")]
    preload: Option<String>,
    /// Where relative paths begin
    #[arg(long, value_name = "DIR", default_value = "/")]
    directory: PathBuf,
    /// The loader to ask about objects that name none
    #[arg(long, value_name = "PATH")]
    loader: Option<String>,
}

/// Loaders of Alpine.
const MUSL_LOADERS: &[&str] = &["/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1"];

/// One program's answer.
#[derive(Serialize)]
struct Answer {
    program: PathBuf,
    /// Who loads it: the kernel, or a loader that is told to; nobody, when it is static.
    loaded_by: Option<&'static str>,
    interp: Option<PathBuf>,
    scripts: Vec<PathBuf>,
    objects: Vec<Object>,
    problems: Vec<String>,
    #[serde(flatten)]
    binding: Option<Binding>,
}

#[derive(Serialize)]
struct Object {
    name: String,
    path: Option<PathBuf>,
    file: Option<PathBuf>,
    needed_by: Option<String>,
}

fn main() -> ExitCode {
    let answered = match Cli::parse().command {
        Command::Links(args) => links(&args),
        Command::Mpi(args) => mpis(&args),
        Command::Needs { library } => needs(&library),
    };
    match answered {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("abi-probe: {e}");
            ExitCode::from(2)
        }
    }
}

/// Answers whether every file is an MPI, or links one.
fn mpis(args: &MpiArgs) -> Result<bool> {
    let view = View::open(&args.root)?;
    let prober = Prober::new(&view);
    let mut all = true;
    for path in &args.files {
        let found = match view.find(path)? {
            None => Err("there is no such file in the root".to_owned()),
            Some(entry) => {
                mpi_of(&prober, &entry)?.ok_or_else(|| "no MPI that we know, and it links none".to_owned())
            }
        };
        match found {
            Ok(mpi) if args.json => println!("{}", serde_json::to_string(&mpi).unwrap_or_default()),
            Ok(mpi) => println!("{}: {}", path.display(), tell(&mpi)),
            Err(why) => {
                all = false;
                eprintln!("abi-probe: {}: {why}", path.display());
            }
        }
    }
    Ok(all)
}

/// Answers whether it is an MPI.
fn needs(library: &Path) -> Result<bool> {
    let view = View::host()?;
    let prober = Prober::new(&view);
    let library_path = std::env::var("LD_LIBRARY_PATH").ok();
    let Some(found) = install::look(&prober, library, library_path.as_deref())? else {
        eprintln!("abi-probe: {}: no MPI that we know", library.display());
        return Ok(false);
    };
    println!("{}", found.mpi.as_ref().map_or_else(|| found.name.clone(), tell));
    if let Some(prefix) = &found.prefix {
        let moved = if found.relocated { ", not the one that it was configured for" } else { "" };
        println!("tree       {}{moved}", prefix.display());
    }
    for (name, part) in &found.parts {
        println!("part       {name} => {}", part.path.display());
    }
    for (name, library) in &found.libraries {
        println!("library    {name} => {} (for {})", library.file.path.display(), library.needed_by);
    }
    for directory in &found.directories {
        let plugins = directory.plugins.len();
        println!("directory  {} ({plugins} plugins, for {})", directory.at.display(), directory.of);
    }
    for plugin in &found.faults(&prober, library_path.as_deref())?.broken {
        println!("broken     {}: it cannot be loaded here", plugin.display());
    }
    Ok(true)
}

/// The library itself, or the one that a program links.
fn mpi_of(prober: &Prober, entry: &Entry) -> Result<Option<Mpi>> {
    if let Some(file) = prober.file(&entry.path, Arch::NATIVE)
        && let Some(mpi) = mpi::identify(prober, &file, Detail::Version)?
    {
        return Ok(Some(mpi));
    }
    match prober.program(entry, &Circumstances::default())? {
        Ok(map) => mpi::in_map(prober, &map, Detail::Version),
        Err(_) => Ok(None),
    }
}

fn tell(mpi: &Mpi) -> String {
    let speaks: Vec<&str> =
        mpi.pmi.iter().map(|p| if *p == Pmi::Pmix { "PMIx" } else { "PMI-1/2" }).collect();
    let from = match mpi.pmi_from {
        PmiFrom::BuiltIn => "built in",
        PmiFrom::Linked => "linked",
        PmiFrom::Plugin => "by a plugin",
    };
    format!("{}; ABI: {}; speaks {} ({from})", mpi.describe(), mpi.abi, speaks.join(" and "))
}

/// Answers whether every program could be looked at.
fn links(args: &Links) -> Result<bool> {
    let view = View::open(&args.root)?;
    let prober = Prober::new(&view);
    let how = Circumstances {
        library_path: args.library_path.as_deref(),
        preload: args.preload.as_deref(),
        directory: &args.directory,
        ..Circumstances::default()
    };
    let mut all = true;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for program in &args.programs {
        let text = match look(&view, &prober, program, args, &how) {
            Ok(answer) if args.json => {
                serde_json::to_string(&answer).map_or_else(|e| e.to_string(), |t| t + "\n")
            }
            Ok(answer) => {
                let title =
                    if args.programs.len() > 1 { format!("{}:\n", program.display()) } else { String::new() };
                title + &ldd(&answer)
            }
            Err(why) => {
                all = false;
                eprintln!("abi-probe: {}: {why}", program.display());
                continue;
            }
        };
        if out.write_all(text.as_bytes()).is_err() {
            // Whoever reads has gone.
            return Ok(all);
        }
    }
    let _ = out.flush();
    Ok(all)
}

fn look(
    view: &View,
    prober: &Prober,
    program: &Path,
    args: &Links,
    how: &Circumstances,
) -> std::result::Result<Answer, String> {
    let failed = |e: Error| e.to_string();
    let entry = view.find(program).map_err(failed)?.ok_or("there is no such file in the root")?;
    let loader = || {
        let named = args.loader.as_deref();
        let usual = || {
            install::LOADERS
                .iter()
                .chain(MUSL_LOADERS)
                .copied()
                .find(|path| view.exists(Path::new(path)).unwrap_or(false))
        };
        named.or_else(usual).ok_or("the root has no loader that we know: --loader names one")
    };
    let (map, loaded_by) = match prober.program(&entry, how).map_err(failed)? {
        // The kernel starts only what may be executed; ldd asks the loader too.
        Ok(map) if map.interp.is_some() && entry.is_executable() => (map, Some("kernel")),
        // A library, or a static program.
        Ok(map) => match prober.object(&entry, loader()?, how).map_err(failed)? {
            Some(map) => (map, Some("loader")),
            None => (map, None),
        },
        Err(why) => return Err(unrunnable(&why)),
    };
    let binding = if args.symbols { Some(bind::bind(prober, &map).map_err(failed)?) } else { None };
    Ok(answer(&map, loaded_by, binding))
}

fn unrunnable(why: &Unrunnable) -> String {
    match why {
        Unrunnable::InterpreterMissing { file, interpreter } => {
            format!("{} needs {}, which is not there", file.display(), interpreter.display())
        }
        Unrunnable::NoFormat { magic, .. } => format!("neither ELF nor a script: it begins with \"{magic}\""),
        Unrunnable::WrongArch { arch, .. } => format!("for {arch}, not for this machine"),
        Unrunnable::TooManyInterpreters { .. } => "its #! lines lead from script to script".to_owned(),
    }
}

fn answer(map: &LinkMap, loaded_by: Option<&'static str>, binding: Option<Binding>) -> Answer {
    let object = |linked: &abi_probe::linkmap::Linked| Object {
        name: linked.name.clone(),
        path: linked.path.clone(),
        file: linked.file.as_ref().map(|f| f.path.clone()),
        needed_by: linked.needed_by.map(|i| map.objects[i].name.clone()),
    };
    Answer {
        program: map.program.clone(),
        loaded_by,
        interp: map.interp.clone(),
        scripts: map.scripts.clone(),
        objects: map.objects.iter().map(object).collect(),
        problems: map.problems.iter().map(problem).collect(),
        binding,
    }
}

fn problem(problem: &Problem) -> String {
    match problem {
        Problem::BadFile { path, why } => format!("{}: {why}", path.display()),
        Problem::NoPreload { name } => format!("{name} cannot be preloaded: it is not there"),
        Problem::IsaLevel { path, needed, have } => {
            format!("{} needs x86-64-v{needed}, this processor is x86-64-v{have}", path.display())
        }
    }
}

/// As ldd prints it, without the addresses; what `ldd -r` says of symbols and versions behind it.
fn ldd(answer: &Answer) -> String {
    let mut out = String::new();
    if answer.loaded_by.is_none() {
        return "\tnot a dynamic executable\n".to_owned();
    }
    if answer.objects.is_empty() {
        out.push_str("\tstatically linked\n");
    }
    for object in &answer.objects {
        let _ = match &object.path {
            None => writeln!(out, "\t{} => not found", object.name),
            Some(path) if path == Path::new(&object.name) => writeln!(out, "\t{}", object.name),
            Some(path) => writeln!(out, "\t{} => {}", object.name, path.display()),
        };
    }
    for problem in &answer.problems {
        let _ = writeln!(out, "{problem}");
    }
    let Some(binding) = &answer.binding else { return out };
    for version in &binding.versions {
        let what = match version.harmless {
            false => format!("version `{}' not found", version.version),
            true => "no version information available".to_owned(),
        };
        let _ = writeln!(out, "{}: {what} (required by {})", version.file, version.needed_by);
    }
    for abort in &binding.aborts {
        let Abort { file, object, symbol, .. } = abort;
        let _ = writeln!(out, "{file}: has no versions, the loader aborts at {symbol}\t({object})");
    }
    for missing in &binding.unresolved {
        let version = missing.version.as_ref().map(|v| format!(", version {v}")).unwrap_or_default();
        let _ = writeln!(out, "undefined symbol: {}{version}\t({})", missing.symbol, missing.object);
    }
    out
}

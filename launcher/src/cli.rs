//! The command line as typed. An image whose name is a subcommand's is reached as `./plan`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use pmi_shim::downlink::Downlink;
use pmi_shim::launcher::ASSUMED;

use crate::cdi::generate::What;
use crate::config::Size;
use crate::gpu::Gpus;
use crate::host::place::Bind;
use crate::standalone::topology::BindTo;
use crate::validate::Area;

/// Run one containerised MPI rank: put it between the launcher and the program.
///
///   mpirun -n 64 hpc-launch IMAGE ./solver
#[derive(Parser, Debug)]
#[command(
    name = "hpc-launch",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    after_help = "Exit status: the program's own; 125 refused or failed before it ran, 126 not executable, 127 not found.\n\
                  An image whose name is that of a subcommand is reached as ./NAME."
)]
pub struct Cli {
    /// Without a subcommand: run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// A job without a launcher.
    #[command(flatten)]
    pub job: JobOptions,
    /// How to run.
    #[command(flatten)]
    pub options: Options,
    /// A directory with a root file system, a SquashFS, EROFS or SIF file, an archive (tar, docker save, OCI layout), or the name
    /// of an image in a store
    #[arg(required = true)]
    pub image: Option<PathBuf>,
    /// The program inside the container, and its arguments; without it, what the image says
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command_line: Vec<OsString>,
}

impl Cli {
    /// `hpc-launch IMAGE COMMAND…` without any option, as nearly every rank of every job is called: it
    /// needs no parser, which would cost a joining rank a tenth of its time.
    pub fn of_plain_call(mut arguments: impl Iterator<Item = OsString>) -> Option<Cli> {
        arguments.next()?;
        let image = arguments.next()?;
        let command_line: Vec<OsString> = arguments.collect();
        let is_plain = |a: &OsString| !a.is_empty() && !a.as_encoded_bytes().starts_with(b"-");
        // A name without a slash may be a subcommand's, or misspelt: that is the parser's business.
        if !image.as_encoded_bytes().contains(&b'/') || !is_plain(&image) || !is_plain(command_line.first()?)
        {
            return None;
        }
        let (job, options) = (JobOptions::default(), Options::default());
        Some(Cli { command: None, job, options, image: Some(image.into()), command_line })
    }
}

/// Subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print exactly what would be done, and do nothing
    Plan(PlanArgs),
    /// Say whether the program would run, and why not
    Check(CheckArgs),
    /// Speak the launcher's PMI without any MPI, to see what it offers and whether it works
    #[command(subcommand)]
    Pmi(crate::pmi::Action),
    /// Devices that their drivers describe for containers (CDI)
    #[command(subcommand)]
    Cdi(Cdi),
    /// Images: a store of them, and what is made from archives
    #[command(subcommand)]
    Image(crate::image::command::Action),
    /// Prove, step by step, that programs of an image reach this host's fabrics and GPUs, and each other; under a
    /// launcher on all nodes of its job. Exit status 1 if something failed
    Validate(ValidateArgs),
    /// Measure containers against bare metal: hpc-bench, with its own options
    #[command(disable_help_flag = true)]
    Bench {
        /// As `hpc-bench --help` has them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Print what this host has: MPIs, fabrics and their libraries, GPUs
    Survey {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration, and where each value comes from
    Config {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `validate`.
#[derive(Args, Debug)]
pub struct ValidateArgs {
    /// So many ranks on this node, where no launcher starts them
    #[arg(long = "np", short = 'n', value_name = "N", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks: u32,
    /// What must be there: skipped, it has failed
    #[arg(long, value_enum, value_name = "WHAT,…", value_delimiter = ',')]
    pub require: Vec<Area>,
    /// As JSON (docs/validate.schema.json)
    #[arg(long)]
    pub json: bool,
    /// How long each step may take
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
    /// How programs would be run.
    #[command(flatten)]
    pub options: Options,
    /// The image, as for a run; without it, only the host is looked at
    pub image: Option<PathBuf>,
}

/// What to do with descriptions of devices.
#[derive(Subcommand, Debug)]
pub enum Cdi {
    /// Print every device that --device knows, and the files that do not count; exit status 1 if there are such
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Describe what this host has (GPUs, adapters, GDRCopy, XPMEM) for this program and any other that reads such
    Generate {
        /// What; all that there is if nothing is named
        #[arg(value_enum, value_name = "WHAT")]
        what: Vec<What>,
        /// A file, or a directory that gets a file for each kind, as /etc/cdi; else standard output
        #[arg(long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
}

/// Arguments of `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// As JSON (docs/check.schema.json)
    #[arg(long)]
    pub json: bool,
    /// Which launcher to assume; else the one that started this process
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(ASSUMED.iter().map(|(name, _)| *name)))]
    pub launcher: Option<String>,
    /// What would be run.
    #[command(flatten)]
    pub run: Run,
}

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Write every file of the host that would be injected, with its SHA-256 and the reason, to FILE
    #[arg(long, value_name = "FILE", conflicts_with = "diff")]
    pub lock: Option<PathBuf>,
    /// Compare with what --lock wrote, here or at another site: exit status 1 if anything differs
    #[arg(long, value_name = "FILE")]
    pub diff: Option<PathBuf>,
    /// As JSON (also understood behind COMMAND)
    #[arg(long)]
    pub json: bool,
    /// What would be run.
    #[command(flatten)]
    pub run: Run,
}

/// An image, a command and how to run it.
#[derive(Args, Debug)]
pub struct Run {
    /// How.
    #[command(flatten)]
    pub options: Options,
    /// The image, as for a run
    pub image: PathBuf,
    /// The program inside the container, and its arguments; without it, what the image says
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Options of a job that hpc-launch starts itself.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Without a launcher")]
pub struct JobOptions {
    /// Start N ranks on this node, no launcher needed; other programs of the job follow behind `:`
    #[arg(long = "np", short = 'n', value_name = "N")]
    pub ranks: Option<u32>,
    /// Allow more ranks than cores
    #[arg(long, requires = "ranks")]
    pub oversubscribe: bool,
    /// Bind each rank [default: core]
    #[arg(long, value_enum, value_name = "WHAT", requires = "ranks")]
    pub bind_to: Option<BindTo>,
    /// Begin each line that a rank writes with its number: [1,RANK]<stdout>:
    #[arg(long, requires = "ranks", conflicts_with = "output_dir")]
    pub tag_output: bool,
    /// Write what ranks write into DIR/rank.N/stdout and stderr
    #[arg(long, value_name = "DIR", requires = "ranks")]
    pub output_dir: Option<PathBuf>,
    /// End the job after so many seconds, with status 124
    #[arg(long, value_name = "SECONDS", requires = "ranks")]
    pub timeout: Option<u64>,
}

impl JobOptions {
    /// Whether anything but the number of ranks is given.
    pub fn is_more_than_ranks(&self) -> bool {
        self.oversubscribe
            || self.bind_to.is_some()
            || self.tag_output
            || self.output_dir.is_some()
            || self.timeout.is_some()
    }
}

/// Which MPI to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MpiMode {
    /// The host's where that is proved to work, else the image's if it can talk to the launcher
    Auto,
    /// The host's, or nothing; also where a symbol is missing that may never be called
    Host,
    /// The image's, whatever the checks say
    Image,
    /// The image's, with a helper that translates between it and the launcher, also where none is needed
    Bridge,
}

/// Whose fabric libraries (UCX, libfabric, PSM, verbs) lie beneath the image's own MPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FabricMode {
    /// The host's where it has fabric devices and its libraries are proved to work, else the image's
    Auto,
    /// The host's, or nothing
    Host,
    /// The image's
    Image,
    /// The image's, and MPIs are told to keep away from adapters: for comparison
    None,
}

/// Where an image's file is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// From where it is
    None,
    /// From a copy on storage of the node
    Node,
}

/// How a bridged program finds its PMI server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PmiWay {
    /// As its MPI needs it
    Auto,
    /// PMI-1 or PMI-2 on an inherited descriptor
    Descriptor,
    /// PMI-1 or PMI-2 on a port, for programs behind something that closes descriptors
    Port,
    /// PMIx
    Pmix,
}

impl PmiWay {
    /// The way that is asked for.
    pub fn downlink(self) -> Option<Downlink> {
        match self {
            PmiWay::Auto => None,
            PmiWay::Descriptor => Some(Downlink::Descriptor),
            PmiWay::Port => Some(Downlink::Port),
            PmiWay::Pmix => Some(Downlink::Pmix),
        }
    }
}

/// Options of `run` and `plan`; `None` and empty mean: not given.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Show the host's SRC inside, at DST if given; may be repeated
    #[arg(long, short, value_name = "SRC[:DST[:ro]]")]
    pub bind: Vec<OsString>,
    /// Show a device as its driver describes it for containers (CDI): vendor.com/class=name; may be repeated
    #[arg(long, value_name = "NAME")]
    pub device: Vec<String>,
    /// Set a variable inside; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<OsString>,
    /// Remove variables that match; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub unset_env: Vec<String>,
    /// Let in only what the launcher and MPI need of the host's environment
    #[arg(long)]
    pub clean_env: bool,
    /// Start in this directory of the container
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Do not show the home directory
    #[arg(long)]
    pub no_home: bool,
    /// Let ranks write to the root; what they write vanishes with the node's last rank
    #[arg(long)]
    pub writable_tmpfs: bool,
    /// Lay a directory, or a SquashFS or ext2/3/4 file, over the image: read-only with :ro, else it keeps what is written,
    /// for the ranks of a node (node:DIR) or for each (rank:DIR); may be repeated, the last is the topmost
    #[arg(long, value_name = "[node:|rank:]PATH[:ro]")]
    pub overlay: Vec<OsString>,
    /// Which MPI to use
    #[arg(long, value_enum, value_name = "MODE")]
    pub mpi: Option<MpiMode>,
    /// Which of the host's MPIs: a name from the configuration, or the path of its library
    #[arg(long, value_name = "NAME")]
    pub host_mpi: Option<String>,
    /// The MPI library inside that the program will use, where it does not link one itself
    #[arg(long, value_name = "PATH")]
    pub mpi_library: Option<PathBuf>,
    /// Whose fabric libraries (UCX, libfabric, PSM, verbs) lie beneath the image's own MPI
    #[arg(long, value_enum, value_name = "MODE")]
    pub fabric: Option<FabricMode>,
    /// Whether programs get GPUs: auto (where the image or the program is made for them), none, all, or some by their
    /// numbers or UUIDs
    #[arg(long, value_name = "auto|none|all|GPU,…", value_parser = Gpus::parse)]
    pub gpu: Option<Gpus>,
    /// Which GPU each rank is told to use, unless the batch system has said so [default: none]
    #[arg(long, value_enum, value_name = "HOW")]
    pub gpu_bind: Option<Bind>,
    /// Which fabric adapter each rank is told to use, unless its variable is set (UCX_NET_DEVICES and the like)
    /// [default: none]
    #[arg(long, value_enum, value_name = "HOW")]
    pub nic_bind: Option<Bind>,
    /// By which way a bridged program finds its PMI server
    #[arg(long, value_enum, value_name = "WAY")]
    pub pmi: Option<PmiWay>,
    /// A store of images, looked into after the site's, and written to [default: ~/.local/share/hpc-launch/images]
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub store: Option<PathBuf>,
    /// Copy the image to storage of the node first, once for all ranks and jobs there [default: none]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub cache: Option<CacheMode>,
    /// What may come out of an archive of an image: 500M, 200G [default: 64G]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub max_size: Option<Size>,
    /// Run only what is signed with a key of a key ring: SIF files, and images of a store that were imported so
    #[arg(long)]
    pub require_signature: bool,
    /// Say what is done, and why
    #[arg(long, short)]
    pub verbose: bool,
}

/// A path from the root.
pub fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(arguments: &[&str]) -> Option<Cli> {
        Cli::of_plain_call(arguments.iter().map(OsString::from))
    }

    #[test]
    fn a_plain_call_is_what_the_parser_would_make_of_it() {
        let arguments = ["hpc-launch", "./img", "ls", "-l", "--", "--bind"];
        let (ours, theirs) = (plain(&arguments).unwrap(), Cli::try_parse_from(arguments).unwrap());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }

    #[test]
    fn all_else_is_the_parsers() {
        for arguments in [
            &["hpc-launch"][..],
            &["hpc-launch", "./img"],
            &["hpc-launch", "plan", "./img", "ls"],
            &["hpc-launch", "img", "ls"],
            &["hpc-launch", "--bind", "/x", "./img", "ls"],
            &["hpc-launch", "./img", "--", "ls"],
            &["hpc-launch", "-v", "./img", "ls"],
        ] {
            assert!(plain(arguments).is_none(), "{arguments:?}");
        }
    }
}

//! A plan: everything that will be done for a rank, as data. What is not in it does not happen.

pub mod environment;
pub mod make;
pub mod sources;
pub mod table;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use abi_probe::fabric::Fabric;
use abi_probe::inject::Link;
use abi_probe::mpi::Mpi;
use pmi_shim::downlink::{Downlink, Wiring};
use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::job::{JobStep, Mark};
use crate::overlay::{Layer, Upper};
use crate::sandbox::squashfs::How;

/// One verb of the sandbox. Paths named `at` are inside the container, without links.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// A user namespace, this user mapped to itself.
    UserNamespace {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// A mount namespace.
    MountNamespace,
    /// The image becomes the root, read-only.
    Root {
        /// The image.
        image: PathBuf,
        /// Where in that file it begins.
        #[serde(skip_serializing_if = "is_zero")]
        offset: u64,
        /// For SquashFS: how it is mounted.
        #[serde(skip_serializing_if = "Option::is_none")]
        squashfs: Option<How>,
        /// An overlay takes writes, in memory.
        writable: bool,
    },
    /// Directories and files lie over the image.
    Overlay {
        /// From the lowest to the topmost.
        layers: Vec<Layer>,
        /// What takes the writes, and keeps them.
        #[serde(skip_serializing_if = "Option::is_none")]
        upper: Option<Upper>,
    },
    /// A directory of the image is laid out anew, since mount points are missing in it.
    Relay {
        /// The directory.
        at: PathBuf,
        /// By what means.
        by: Relay,
        /// What is made in it, in order.
        make: Vec<Make>,
        /// What is in it already, for a relay that binds every entry.
        #[serde(skip)]
        entries: Vec<OsString>,
        /// The directory itself.
        #[serde(skip)]
        directory: Option<Rc<OwnedFd>>,
    },
    /// An empty directory in memory.
    Tmpfs {
        /// Where.
        at: PathBuf,
        /// Why.
        why: String,
        /// What is made in it, in order.
        make: Vec<Make>,
    },
    /// A file or directory of the host, with all that is mounted below it.
    Bind {
        /// On the host.
        source: PathBuf,
        /// Inside.
        at: PathBuf,
        /// May not be written to.
        read_only: bool,
        /// Why.
        why: String,
        /// Index of the source among [`sources::Sources`].
        #[serde(skip)]
        handle: usize,
        /// The mount point as it was judged, if nothing is laid anew above it.
        #[serde(skip)]
        point: Option<Rc<OwnedFd>>,
        /// Whether the mount point is a directory.
        #[serde(skip)]
        directory: bool,
        /// What is mounted below the source is not needed.
        #[serde(skip)]
        alone: bool,
    },
    /// Links in a directory of the sandbox's own, by which libraries of the host are found.
    Links {
        /// The directory.
        at: PathBuf,
        /// In it.
        links: Vec<Link>,
    },
    /// A process per node and job step, outside of the sandbox, that is the PMI server of the ranks.
    Helper {
        /// What the ranks speak to it.
        serves: Downlink,
        /// What it speaks to the launcher.
        launcher: &'static str,
        /// Where the ranks find it, inside.
        at: PathBuf,
    },
    /// The root becomes `/`, over the host's.
    Enter,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    NoNewPrivileges,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How a directory of the image gets more entries without being touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Relay {
    /// A tmpfs, into which every entry of the directory is bound.
    Tmpfs,
    /// An overlay of a tmpfs over the directory.
    Overlay,
    /// None needed: the root is writable, in memory.
    Writable,
    /// None needed: the root is writable, and these lie in memory beneath all of its layers.
    Beneath,
}

/// A mount point to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Make {
    /// Inside.
    pub at: PathBuf,
    /// A directory, else an empty file.
    pub directory: bool,
}

/// A change of the environment, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The variable.
    pub name: String,
    /// Its new value; none: removed.
    pub value: Option<String>,
    /// Why.
    pub why: String,
}

/// Whose MPI the program will use.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum MpiVerdict {
    /// The host's, in the place of the image's.
    Inject {
        /// The host's.
        mpi: Mpi,
        /// The image's; none: the program's MPI is missing there.
        replaces: Option<Mpi>,
        /// What was overridden.
        overridden: Vec<String>,
    },
    /// The image's own; it can talk to the launcher, or there is no launcher.
    Own {
        /// It.
        mpi: Mpi,
    },
    /// The image's own, with a helper of ours for its PMI server: the launcher speaks another PMI, or none.
    Bridge {
        /// It; none: the program links none that we can see.
        mpi: Option<Mpi>,
        /// Why.
        why: String,
    },
    /// The image's own, against our advice.
    Forced {
        /// It.
        mpi: Mpi,
        /// Why we advise against it.
        why: String,
    },
    /// The program links no MPI that we can see (it may start one that does).
    NoneSeen,
}

impl MpiVerdict {
    /// The image's MPI, where it is used.
    pub fn own(&self) -> Option<&Mpi> {
        match self {
            MpiVerdict::Own { mpi } | MpiVerdict::Forced { mpi, .. } => Some(mpi),
            MpiVerdict::Bridge { mpi, .. } => mpi.as_ref(),
            MpiVerdict::Inject { .. } | MpiVerdict::NoneSeen => None,
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Of this layout; a reader refuses what it does not know.
    pub version: u32,
    /// The image.
    pub image: Image,
    /// The rank's job step, if a launcher started it.
    pub job: Option<JobStep>,
    /// The sandbox's name among the job's.
    pub mark: Option<Mark>,
    /// In order.
    pub steps: Vec<Step>,
    /// The program's working directory.
    pub workdir: PathBuf,
    /// The environment, as it differs from the host's.
    pub environment: Vec<Change>,
    /// The program, by the path that is executed in the working directory.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Whose MPI.
    pub mpi: MpiVerdict,
    /// The host's fabrics beneath the image's own MPI.
    pub fabrics: Vec<Fabric>,
    /// How a helper of ours serves the program's MPI, where the launcher does not.
    pub wiring: Option<Wiring>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// The layout's version.
pub const VERSION: u32 = 1;

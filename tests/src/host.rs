//! What the tests are given: the launcher, the images, the plain user.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// As whom a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root.
    Root,
    /// The plain user: the test account when we are root, else ourselves.
    User,
}

/// Everyone whom the tests can be: root and the plain user, or only the user who runs them.
pub fn everyone() -> &'static [Who] {
    if is_root() { &[Who::Root, Who::User] } else { &[Who::User] }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A user of this machine.
#[derive(Clone, Debug)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The home directory.
    pub home: PathBuf,
}

impl Who {
    /// The account behind it.
    pub fn account(self) -> &'static Account {
        static ROOT: OnceLock<Account> = OnceLock::new();
        static USER: OnceLock<Account> = OnceLock::new();
        match self {
            Who::Root => ROOT.get_or_init(|| account("root")),
            Who::User if is_root() => USER.get_or_init(|| {
                account(&env::var("HPC_LAUNCH_TEST_USER").unwrap_or_else(|_| "hpcl".to_owned()))
            }),
            Who::User => USER.get_or_init(|| account(&nix::unistd::geteuid().to_string())),
        }
    }
}

/// A line of /etc/passwd; the tests' accounts are local ones.
fn account(name_or_uid: &str) -> Account {
    let table = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
    let found = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let &[name, _, uid, gid, _, home, _] = fields.as_slice() else { return None };
        let account = Account {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: PathBuf::from(home),
        };
        (name == name_or_uid || uid == name_or_uid).then_some(account)
    });
    found.unwrap_or_else(|| {
        panic!("there is no account {name_or_uid}: `cargo xtask test` makes the test user")
    })
}

/// The repository.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// The launcher under test: $HPC_LAUNCH_BIN, else the release build in the repository.
pub fn launcher() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let path = env::var_os("HPC_LAUNCH_BIN").map_or_else(
            || {
                let built =
                    |libc| format!("target/{}-unknown-linux-{libc}/release/hpc-launch", env::consts::ARCH);
                let [musl, gnu] = ["musl", "gnu"].map(|libc| repository().join(built(libc)));
                if musl.is_file() { musl } else { gnu }
            },
            PathBuf::from,
        );
        assert!(path.is_file(), "there is no {}: run `cargo xtask test`", path.display());
        path
    })
}

/// The program that looks at links, built beside the launcher.
pub fn abi_probe() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let path = env::var_os("HPC_LAUNCH_ABI_PROBE")
            .map_or_else(|| launcher().with_file_name("abi-probe"), PathBuf::from);
        assert!(path.is_file(), "there is no {}: run `cargo xtask test`", path.display());
        path
    })
}

/// The benchmarks: $HPC_LAUNCH_BENCH, else those built beside the launcher.
pub fn bench() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let path = env::var_os("HPC_LAUNCH_BENCH")
            .map_or_else(|| launcher().with_file_name("hpc-bench"), PathBuf::from);
        assert!(path.is_file(), "there is no {}: run `cargo xtask test`", path.display());
        path
    })
}

/// Where the images are: $HPC_LAUNCH_IMAGES, else target/images of the repository.
fn images() -> PathBuf {
    env::var_os("HPC_LAUNCH_IMAGES").map_or_else(|| repository().join("target/images"), PathBuf::from)
}

/// Where the trees of other MPIs are: $HPC_LAUNCH_HOSTS, else target/hosts of the repository.
fn trees() -> PathBuf {
    env::var_os("HPC_LAUNCH_HOSTS").map_or_else(|| repository().join("target/hosts"), PathBuf::from)
}

/// The directories of all that is tested.
pub fn tested() -> Vec<PathBuf> {
    let program = launcher().parent().map(Path::to_owned);
    program.into_iter().chain([repository().to_owned(), images(), trees()]).collect()
}

/// Every image with an MPI.
pub const MPI_IMAGES: [&str; 8] = [
    "bullseye-openmpi",
    "bookworm-openmpi",
    "trixie-openmpi",
    "bullseye-mpich",
    "bookworm-mpich",
    "trixie-mpich",
    "bookworm-mpich-wheel",
    "bookworm-intel",
];

/// A test image: $HPC_LAUNCH_IMAGES/NAME, else target/images/NAME of the repository.
pub fn image(name: &str) -> PathBuf {
    let path = images().join(name);
    assert!(path.exists(), "there is no {}: run `cargo xtask images {name}`", path.display());
    path
}

/// The tree of another MPI of this host: $HPC_LAUNCH_HOSTS/NAME, else target/hosts/NAME; without links.
pub fn tree(name: &str) -> PathBuf {
    let path = trees().join(name);
    std::fs::canonicalize(&path)
        .unwrap_or_else(|e| panic!("there is no {}: `cargo xtask test` makes it: {e}", path.display()))
}

/// Whether everything is to be run, not a sample of it.
pub fn full() -> bool {
    env::var("HPC_LAUNCH_FULL").is_ok_and(|v| v == "1")
}

//! Which names belong to which set: the libraries of an MPI, the C library's family, fabric stacks and
//! language runtimes. Tables.

/// What a library of an MPI is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// MPI itself, in C.
    Core,
    /// `mpif.h`, and what the Fortran modules call.
    Fortran,
    /// `use mpi`.
    FortranModule,
    /// `use mpi_f08`.
    Fortran08,
    /// The C++ bindings, which MPI 3 removed.
    Cxx,
    /// Java.
    Java,
    /// What only the other libraries of that MPI use.
    Internal,
}

impl Role {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Role::Core => "MPI library",
            Role::Fortran => "Fortran bindings (mpif.h)",
            Role::FortranModule => "Fortran bindings (use mpi)",
            Role::Fortran08 => "Fortran bindings (use mpi_f08)",
            Role::Cxx => "C++ bindings",
            Role::Java => "Java bindings",
            Role::Internal => "internal library",
        }
    }
}

/// Names that stand for the same library, without version: distributions and vendors name it differently.
/// Sources: the packages' file lists; mpich.org/abi; Open MPI's Makefile.am of each directory.
const PARTS: &[(Role, &[&str])] = &[
    (Role::Core, &["libmpi", "libmpich", "libmpi_abi", "libmpi_cray", "libmpi_gnu", "libmpi_intel"]),
    (Role::Fortran, &["libmpifort", "libmpichfort", "libfmpich"]),
    (Role::Fortran, &["libmpi_mpifh", "libmpi_mpifh-gfortran", "libmpi_f77"]),
    (
        Role::FortranModule,
        &["libmpi_usempi_ignore_tkr", "libmpi_usempi_ignore_tkr-gfortran", "libmpi_usempi"],
    ),
    (Role::FortranModule, &["libmpi_f90"]),
    (Role::Fortran08, &["libmpi_usempif08", "libmpi_usempif08-gfortran"]),
    (Role::Cxx, &["libmpi_cxx"]),
    (Role::Cxx, &["libmpicxx", "libmpichcxx", "libmpichf90"]),
    (Role::Java, &["libmpi_java"]),
    (Role::Java, &["libmpijava"]),
    (Role::Internal, &["libopen-pal"]),
    (Role::Internal, &["libopen-rte"]),
    (Role::Internal, &["libopen_mpi"]),
    (Role::Internal, &["liboshmem"]),
    (Role::Internal, &["libmpl"]),
    (Role::Internal, &["libopa"]),
    // Its plugins, and what they load, must be those that it was installed with.
    (Role::Internal, &["libpmix"]),
    (Role::Internal, &["libprrte"]),
];

/// What stands behind the last slash.
pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The name of a library without version, and the version: `libmpi_cxx`, `.so.40`.
pub(crate) fn stem(name: &str) -> (&str, &str) {
    let file = file_name(name);
    file.find(".so").map_or((file, ""), |at| file.split_at(at))
}

/// What a name is for, if it is one of an MPI's, and the names without version that stand for the same.
pub fn part(name: &str) -> Option<(Role, &'static [&'static str])> {
    let (stem, _) = stem(name);
    if stem.starts_with("libmca_common_") {
        return Some((Role::Internal, &[]));
    }
    PARTS.iter().find(|(_, names)| names.contains(&stem)).map(|(role, names)| (*role, *names))
}

/// Libraries of the GNU C library, which speak to each other and to their loader by GLIBC_PRIVATE: all of them
/// come from one build. (glibc's Makefiles, `extra-libs` of each directory.)
pub(crate) const LIBC: &[&str] = &[
    "libc.so.6",
    "libm.so.6",
    "libmvec.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
    "libresolv.so.2",
    "libanl.so.1",
    "libnsl.so.1",
    "libnss_compat.so.2",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libnss_hesiod.so.2",
    "libnss_db.so.2",
    "libthread_db.so.1",
    "libBrokenLocale.so.1",
    "libmemusage.so",
    "libpcprofile.so",
    "libc_malloc_debug.so.0",
];

/// Whether a name is one of the C library's family, or of the loader itself.
pub(crate) fn is_libc(name: &str) -> bool {
    LIBC.contains(&name) || name.starts_with("ld-linux") || name.starts_with("ld64.so") || name == "ld.so.1"
}

/// Stacks whose libraries and plugins are built together: one side's, whole.
const STACKS: &[(&str, &[&str])] = &[
    (
        "verbs",
        &[
            "libibverbs",
            "librdmacm",
            "libnl-3",
            "libnl-route-3",
            "libmlx4",
            "libmlx5",
            "libefa",
            "libmana",
            "libibumad",
            "libibmad",
        ],
    ),
    ("UCX", &["libucp", "libuct", "libucs", "libucm", "libucs_signal"]),
    ("libfabric", &["libfabric"]),
    ("PSM", &["libpsm2", "libpsm_infinipath", "libinfinipath"]),
];

/// The fabric stack to which a library belongs.
pub fn stack(name: &str) -> Option<&'static str> {
    let (stem, _) = stem(name);
    STACKS.iter().find(|(_, names)| names.contains(&stem)).map(|(stack, _)| *stack)
}

/// Where libraries that load plugins or read texts say where these are: the library, and how the names of such
/// directories begin. Sources: opal/mca/installdirs, pmix's installdirs, libibverbs' init.c and dynamic_driver.c,
/// libfabric's src/fabric.c (`PROVDLDIR`). UCX asks where it was loaded from first (ucs/sys/module.c).
pub(crate) const DIRECTORIES: &[(&str, &[&str])] = &[
    ("libopen-pal", &["openmpi"]),
    ("libopen_mpi", &["openmpi"]),
    ("libpmix", &["pmix"]),
    ("libprrte", &["prte"]),
    ("libfabric", &["libfabric"]),
    ("libibverbs", &["libibverbs"]),
    ("libucs", &["ucx"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_their_parts() {
        for (name, role) in [
            ("libmpich.so.12", Role::Core),
            ("/opt/lib/libmpi.so.40", Role::Core),
            ("libmpi_cxx.so.40", Role::Cxx),
            ("libmpichcxx.so.12", Role::Cxx),
            ("libmpi_mpifh-gfortran.so.40", Role::Fortran),
            ("libmca_common_ucx.so.40", Role::Internal),
        ] {
            assert_eq!(part(name).map(|(role, _)| role), Some(role), "{name}");
        }
        assert_eq!(part("libm.so.6"), None);
        assert_eq!(stem("libevent-2.1.so.7"), ("libevent-2.1", ".so.7"));
        assert!(part("libmpich.so.12").is_some_and(|(_, names)| names.contains(&"libmpi")));
    }

    #[test]
    fn no_name_is_in_two_parts() {
        let mut all: Vec<&str> = PARTS.iter().flat_map(|(_, names)| *names).copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn stacks_and_the_c_library() {
        assert_eq!(stack("libucs.so.0"), Some("UCX"));
        assert_eq!(stack("libz.so.1"), None);
        assert!(is_libc("libc.so.6") && is_libc("ld-linux-x86-64.so.2") && !is_libc("libcrypt.so.1"));
    }
}

//! Which MPI a library is, and what it speaks: from its symbols and constants, never from file names.
//!
//! `libmpi.so.12` is Open MPI 1.10 and every MPICH; `libmpi.so.40` is Open MPI 3, 4 and 5. The tables below
//! hold what tells them apart. Measured on: Open MPI 4.1.0 to 5.0.11 and MPICH 3.4.1 to 5.0.2 as Debian and
//! PyPI have them, Intel MPI 2021.19. From sources and manuals alone: Cray MPICH, MVAPICH, MPC.

use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::linkmap::{LinkMap, Linked};
use crate::prober::{Probed, Prober};
use crate::symbols::Symbols;

/// Whose MPI it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Open MPI and what is made of it.
    OpenMpi,
    /// MPICH itself.
    Mpich,
    /// Intel MPI.
    IntelMpi,
    /// Cray MPICH.
    CrayMpich,
    /// MVAPICH.
    Mvapich,
    /// MPC.
    Mpc,
}

impl Family {
    /// The name people use.
    pub fn name(self) -> &'static str {
        match self {
            Family::OpenMpi => "Open MPI",
            Family::Mpich => "MPICH",
            Family::IntelMpi => "Intel MPI",
            Family::CrayMpich => "Cray MPICH",
            Family::Mvapich => "MVAPICH",
            Family::Mpc => "MPC",
        }
    }
}

/// What a program must have been compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Abi {
    /// Open MPI's, of the generation that its soname ends with: 12 (1.10), 20 (2), 40 (3, 4 and 5).
    OpenMpi(Option<u32>),
    /// The one that MPICH, Intel MPI, MVAPICH and Cray MPICH agreed upon (mpich.org/abi).
    Mpich,
    /// The one of the MPI 5 standard: any family's `libmpi_abi.so.1`.
    Standard,
    /// Its own.
    Other,
}

impl std::fmt::Display for Abi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Abi::OpenMpi(Some(generation)) => write!(f, "Open MPI's, generation {generation}"),
            Abi::OpenMpi(None) => f.write_str("Open MPI's"),
            Abi::Mpich => f.write_str("MPICH's"),
            Abi::Standard => f.write_str("MPI 5's"),
            Abi::Other => f.write_str("its own"),
        }
    }
}

/// The wire protocols by which an MPI asks its launcher who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pmi {
    /// PMI-1 and PMI-2 over PMI_FD or PMI_PORT.
    Simple,
    /// PMIx.
    Pmix,
}

/// How an MPI comes by what it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PmiFrom {
    /// It is part of the library.
    BuiltIn,
    /// The library needs another one.
    Linked,
    /// A plugin that it loads.
    Plugin,
}

/// An MPI library.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mpi {
    /// Whose it is.
    pub family: Family,
    /// Its version, where the library tells and it was asked for.
    pub version: Option<String>,
    /// First number of the version, as far as symbols tell it.
    #[serde(skip)]
    pub generation: Option<u32>,
    /// What programs must have been compiled for.
    pub abi: Abi,
    /// What it speaks.
    pub pmi: Vec<Pmi>,
    /// How it comes by that.
    pub pmi_from: PmiFrom,
    /// Whether a program can ask it for CUDA awareness (`MPIX_Query_cuda_support`).
    pub tells_of_cuda: bool,
    /// DT_SONAME.
    pub soname: Option<String>,
    /// The library's path in the view.
    pub library: PathBuf,
}

impl Mpi {
    /// First number of the version.
    pub fn major(&self) -> Option<u32> {
        let told = self.version.as_ref().and_then(|v| v.split('.').next()?.parse().ok());
        told.or(self.generation)
    }

    /// "Open MPI 4.1.4 (/usr/lib/…/libmpi.so.40)".
    pub fn describe(&self) -> String {
        let version = match (&self.version, self.generation) {
            (Some(version), _) => version.clone(),
            (None, Some(generation)) => generation.to_string(),
            (None, None) => "of unknown version".to_owned(),
        };
        format!("{} {version} ({})", self.family.name(), self.library.display())
    }
}

/// How much is to be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What decides: a few symbols.
    Quick,
    /// The version too: some libraries must be searched for it.
    Version,
}

/// Could this soname be an MPI's core library? Only these are opened; the symbols decide.
fn is_candidate(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let stem = file.split(".so").next().unwrap_or(file);
    matches!(stem, "libmpi" | "libmpich" | "libmpi_abi" | "libmpi_intel" | "libmpc_framework" | "libmpcmpi")
        || ["libmpi_cray", "libmpi_gnu", "libmpi_amd", "libmpi_nvidia", "libmpi_intel", "libmpi_aocc"]
            .iter()
            .any(|prefix| stem.starts_with(prefix))
}

/// The MPI in a link map, if there is one.
pub fn in_map(prober: &Prober, map: &LinkMap, detail: Detail) -> Result<Option<Mpi>> {
    let opened = map.opened.iter().flat_map(|o| o.objects.iter().map(|o| &o.linked));
    for linked in map.objects.iter().chain(opened).filter(|o| is_candidate(&o.name)) {
        if let Some(file) = &linked.file
            && let Some(mpi) = identify(prober, file, detail)?
        {
            return Ok(Some(mpi));
        }
    }
    Ok(None)
}

/// The ABI of an MPI that a program needs and that is not there: from the library's name, and where that is
/// ambiguous from the variables that the program wants of it.
pub fn wanted(prober: &Prober, map: &LinkMap) -> Result<Option<(String, Abi)>> {
    let opened = map.opened.iter().flat_map(|o| o.objects.iter().map(|o| &o.linked));
    let missing = |o: &&Linked| o.file.is_none() && is_candidate(&o.name);
    let Some(linked) = map.objects.iter().chain(opened).find(missing) else { return Ok(None) };
    let generation = linked.name.rsplit('.').next().and_then(|n| n.parse().ok());
    if linked.name.starts_with("libmpi_abi.") {
        return Ok(Some((linked.name.clone(), Abi::Standard)));
    }
    let by = linked.needed_by.and_then(|i| map.objects.get(i)?.file.as_ref()).or(map.main.as_ref());
    let references = by.map(|file| prober.references(file)).transpose()?.unwrap_or_default();
    // Handles of Open MPI are addresses of its variables; MPICH's are numbers.
    let is_open_mpi = generation.is_some_and(|g: u32| g >= 20)
        || references.iter().any(|r| r.name.starts_with("ompi_mpi_"));
    let abi = if is_open_mpi { Abi::OpenMpi(generation) } else { Abi::Mpich };
    Ok(Some((linked.name.clone(), abi)))
}

/// No program with an MPI inside is smaller: MPI_Init alone pulls in megabytes.
const SMALLEST: u64 = 256 << 10;

/// The MPI that a program was linked with statically: from constants that no other program has.
pub fn inside(prober: &Prober, map: &LinkMap) -> Result<Option<Mpi>> {
    let Some(main) = map.main.as_ref().filter(|main| main.entry.size >= SMALLEST) else { return Ok(None) };
    let bytes = prober.open(main)?;
    let found = main.object.find_text(&bytes, |text| match text {
        // ompi/runtime/ompi_mpi_init.c, the name of a help text.
        "mpi_init:startup:internal-failure" => Some(Family::OpenMpi),
        // src/util/mpir_cvars.c: names of parameters.
        text if text.starts_with("MPIR_CVAR_") => Some(Family::Mpich),
        _ => None,
    });
    Ok(found.map(|family| Mpi {
        family,
        version: None,
        generation: None,
        abi: Abi::Other,
        pmi: vec![if family == Family::OpenMpi { Pmi::Pmix } else { Pmi::Simple }],
        pmi_from: PmiFrom::BuiltIn,
        tells_of_cuda: false,
        soname: None,
        library: main.path.clone(),
    }))
}

/// Symbols that only one family's core library defines, in the order in which they are asked for: the
/// derivatives of MPICH define MPICH's too.
const FINGERPRINTS: &[(Family, &[&str])] = &[
    // ompi/communicator/communicator.h: the object behind MPI_COMM_WORLD.
    (Family::OpenMpi, &["ompi_mpi_comm_world"]),
    (Family::IntelMpi, &["I_MPI_Check_image_status", "I_MPI_PW_Sched_yield", "impi_main"]),
    // MVAPICH2 src/mpi/init/initinfo.c; MVAPICH 3 and later.
    (Family::Mvapich, &["MPII_Version_MV2_string", "MVAPICH2_Version_string", "MVAPICH_Version_string"]),
    // Cray MPT: Craype's GTL hooks and its own device.
    (
        Family::CrayMpich,
        &["MPIDI_CRAY_init", "MPIDI_CRAY_get_version", "MPIR_CRAY_version", "_craympich_attach"],
    ),
    (Family::Mpc, &["mpc_user_main__", "mpc_mp_comm_rank"]),
    // src/mpi/init/initinfo.c, src/mpi/errhan: there in every release since 1.
    (Family::Mpich, &["MPIR_Err_create_code", "MPII_Version_string", "MPIR_Dup_fn", "MPIR_F08_MPI_IN_PLACE"]),
];

/// Which MPI a library is; `None`: none that we know.
pub fn identify(prober: &Prober, file: &Rc<Probed>, detail: Detail) -> Result<Option<Mpi>> {
    let symbols = prober.symbols(file)?;
    // Bindings for other languages define neither.
    if !symbols.defines("PMPI_Init") && !symbols.defines("MPI_Init") {
        return Ok(None);
    }
    let defines = |names: &&[&str]| names.iter().any(|name| symbols.defines(name));
    let Some((family, _)) = FINGERPRINTS.iter().find(|(_, names)| defines(names)) else { return Ok(None) };
    let needs = |prefix: &str| file.object.needed.iter().any(|name| name.starts_with(prefix));
    let generation = match family {
        // ompi/instance/instance.c: new in 5. ompi_mpi_cxx_bool is the C++ bindings', of 1.10 and 2 to 4.
        Family::OpenMpi if symbols.defines("ompi_mpi_instance_null") => Some(5),
        Family::OpenMpi => Some(4),
        _ => None,
    };
    let soname = file.object.soname.clone();
    let is_standard = symbols.defines("MPI_Abi_get_version") && !has_legacy_handles(&symbols, *family);
    let abi = match family {
        _ if is_standard && soname.as_deref().is_some_and(|name| name.starts_with("libmpi_abi.")) => {
            Abi::Standard
        }
        Family::OpenMpi => {
            Abi::OpenMpi(soname.as_deref().and_then(|name| name.rsplit('.').next()?.parse().ok()))
        }
        Family::Mpc => Abi::Other,
        _ => Abi::Mpich,
    };
    let (pmi, pmi_from) = match family {
        // Open MPI 4 and before reach PMIx by a plugin (opal/mca/pmix), 5 is linked with it.
        Family::OpenMpi if needs("libpmix.so") => (Pmi::Pmix, PmiFrom::Linked),
        Family::OpenMpi => (Pmi::Pmix, PmiFrom::Plugin),
        // An MPICH configured --with-pmix links libpmix and then speaks nothing else.
        _ if needs("libpmix.so") => (Pmi::Pmix, PmiFrom::Linked),
        _ if needs("libpmi.so") || needs("libpmi2.so") => (Pmi::Simple, PmiFrom::Linked),
        _ => (Pmi::Simple, PmiFrom::BuiltIn),
    };
    let mut mpi = Mpi {
        family: *family,
        version: None,
        generation,
        abi,
        pmi: vec![pmi],
        pmi_from,
        tells_of_cuda: symbols.defines("MPIX_Query_cuda_support"),
        soname,
        library: file.path.clone(),
    };
    if detail == Detail::Version {
        mpi.version = version(prober, file, &symbols, *family)?;
    }
    Ok(Some(mpi))
}

/// Open MPI's handles are addresses of objects of its own; the standard's are numbers.
fn has_legacy_handles(symbols: &Symbols, family: Family) -> bool {
    family == Family::OpenMpi && symbols.defines("ompi_mpi_int")
}

/// The version among a library's constants.
fn version(prober: &Prober, file: &Probed, symbols: &Symbols, family: Family) -> Result<Option<String>> {
    let bytes = prober.open(file)?;
    // src/mpi/init/initinfo.c, until 4.1. Intel's says which MPICH it was made of.
    if family != Family::IntelMpi
        && let Some(address) = symbols.address("MPII_Version_string")
        && let Some(text) = file.object.text_at(&bytes, &file.path, address).filter(|t| is_version(t))
    {
        return Ok(Some(text));
    }
    // Other libraries' versions are among the constants too.
    let majors = match family {
        Family::OpenMpi => 1..=9,
        Family::IntelMpi => 2017..=2099,
        _ => 3..=9,
    };
    let is_ours = |v: &&str| {
        let major = v.split('.').next().and_then(|m| m.parse().ok());
        is_version(v) && v.split('.').count() == 3 && major.is_some_and(|m: u32| majors.contains(&m))
    };
    Ok(file.object.find_text(&bytes, |text| match family {
        // OMPI_IDENT_STRING, "v4.1.4"; release candidates and git builds have more behind it.
        Family::OpenMpi => text.strip_prefix('v').filter(is_ours).map(String::from),
        _ => Some(text).filter(is_ours).map(String::from),
    }))
}

/// Two or three numbers, and what may follow the last one: `4.0`, `5.0.11rc1`.
fn is_version(text: &str) -> bool {
    let mut parts = text.split('.');
    let is_number =
        |part: &str| !part.is_empty() && part.len() <= 4 && part.bytes().all(|b| b.is_ascii_digit());
    let first = parts.next().is_some_and(is_number);
    let rest: Vec<&str> = parts.collect();
    let Some((last, middle)) = rest.split_last() else { return false };
    let suffix = last.trim_start_matches(|c: char| c.is_ascii_digit());
    first
        && rest.len() <= 2
        && middle.iter().all(|part| is_number(part))
        && last.starts_with(|c: char| c.is_ascii_digit())
        && suffix.len() <= 8
        && suffix.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_core_libraries_only() {
        for yes in ["libmpi.so.40", "libmpich.so.12", "libmpi.so.12.3.4", "libmpi_abi.so.1", "/o/libmpi.so"] {
            assert!(is_candidate(yes), "{yes}");
        }
        for no in
            ["libmpi_cxx.so.40", "libmpi_mpifh.so.40", "libmpichfort.so.12", "libmpifoo.so", "libm.so.6"]
        {
            assert!(!is_candidate(no), "{no}");
        }
    }

    #[test]
    fn versions() {
        for yes in ["4.1.4", "5.0.11rc1", "2021.19.0", "4.0", "3.4a2"] {
            assert!(is_version(yes), "{yes}");
        }
        for no in ["", "release", "%d.%d.%d", "4", "1.2.3.4", "4.1.", ".1.4", "4.1.4-and-more", "12345.1.1"] {
            assert!(!is_version(no), "{no}");
        }
    }
}

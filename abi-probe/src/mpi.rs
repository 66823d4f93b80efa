//! Which MPI a program links, and which PMI that MPI speaks: from symbols, never from file names.
//!
//! Sources of the fingerprints: the libraries of Open MPI 4.0 – 5.0, MPICH 3.3 – 5.0 and Intel MPI
//! 2021 as released; `opal_version_string` (opal/runtime/opal_info_support.c),
//! `MPII_Version_string` (src/mpi/init/initinfo.c), `ompi_mpi_instance_null` (ompi/instance, new in 5).

use std::path::PathBuf;

use serde::Serialize;

use crate::elf::Whole;
use crate::error::Result;
use crate::linkmap::LinkMap;
use crate::rootfs::View;

/// Whose MPI it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Open MPI and what is made of it.
    OpenMpi,
    /// MPICH, Intel MPI, MVAPICH, Cray MPICH: one ABI.
    Mpich,
}

impl Family {
    /// The name people use.
    pub fn name(self) -> &'static str {
        match self {
            Family::OpenMpi => "Open MPI",
            Family::Mpich => "MPICH",
        }
    }
}

/// The wire protocols by which an MPI asks its launcher who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pmi {
    /// PMI-1 and PMI-2 over PMI_FD or PMI_PORT.
    Simple,
    /// PMIx.
    Pmix,
}

/// An MPI library found in a program's link map.
#[derive(Clone, Debug, Serialize)]
pub struct Mpi {
    /// Whose it is.
    pub family: Family,
    /// Its version, where the library tells.
    pub version: Option<String>,
    /// What it speaks.
    pub pmi: Vec<Pmi>,
    /// The library's path in the view.
    pub library: PathBuf,
}

impl Mpi {
    /// First number of the version.
    pub fn major(&self) -> Option<u32> {
        self.version.as_ref()?.split('.').next()?.parse().ok()
    }

    /// "Open MPI 4.1.4 (/usr/lib/…/libmpi.so.40)".
    pub fn describe(&self) -> String {
        let version = self.version.as_deref().unwrap_or("of unknown version");
        format!("{} {version} ({})", self.family.name(), self.library.display())
    }
}

/// Could this soname be an MPI's core library? Only these are opened; the symbols decide.
fn is_candidate(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let stem = file.split(".so").next().unwrap_or(file);
    matches!(stem, "libmpi" | "libmpich" | "libmpi_abi" | "libmpi_cray" | "libmpi_gnu" | "libmpi_intel")
        || stem.starts_with("libmpi_cray")
        || stem.starts_with("libmpi_gnu")
}

/// The MPI in a link map, if there is one.
pub fn identify(view: &View, map: &LinkMap) -> Result<Option<Mpi>> {
    let links = |prefix: &str| map.objects.iter().any(|o| o.name.starts_with(prefix));
    for linked in map.objects.iter().filter(|o| is_candidate(&o.name)) {
        let Some(entry) = linked.path.as_ref().and_then(|p| view.find(p).transpose()).transpose()? else {
            continue;
        };
        let symbols = Whole::read(&view.open_file(&entry)?, &entry.path)?;
        let (family, version, pmi) = if symbols.defines("ompi_mpi_comm_world") {
            // Every Open MPI since 4 speaks PMIx alone, unless it was built with a site's own PMI-2.
            (Family::OpenMpi, open_mpi_version(view, map, &symbols)?, vec![Pmi::Pmix])
        } else if symbols.defines("MPIR_Err_create_code")
            || symbols.defines("MPII_Version_string")
            || symbols.defines("MPIR_Dup_fn")
            || symbols.defines("MPIR_F08_MPI_IN_PLACE")
        {
            // An MPICH configured --with-pmix links libpmix and then speaks nothing else.
            let pmi = if links("libpmix.so") { Pmi::Pmix } else { Pmi::Simple };
            (Family::Mpich, symbols.text("MPII_Version_string").filter(|v| is_version(v)), vec![pmi])
        } else {
            continue;
        };
        return Ok(Some(Mpi { family, version, pmi, library: entry.path }));
    }
    Ok(None)
}

fn is_version(text: &str) -> bool {
    text.len() < 32 && text.split('.').count() >= 2 && text.starts_with(|c: char| c.is_ascii_digit())
}

/// Open MPI keeps its version in libopen-pal, the core library as "v4.1.4" among its strings.
fn open_mpi_version(view: &View, map: &LinkMap, mpi: &Whole) -> Result<Option<String>> {
    let version = mpi.strings().find_map(|s| s.strip_prefix('v').filter(|v| is_plain_version(v)));
    if let Some(version) = version {
        return Ok(Some(version.to_owned()));
    }
    let pal = map.objects.iter().find(|o| o.name.starts_with("libopen-pal.so"));
    if let Some(path) = pal.and_then(|o| o.path.as_ref())
        && let Some(entry) = view.find(path)?
    {
        let text = Whole::read(&view.open_file(&entry)?, &entry.path)?.text("opal_version_string");
        if let Some(version) = text.filter(|v| is_version(v)) {
            return Ok(Some(version));
        }
    }
    // The generation is certain even where the number is not.
    Ok(Some(if mpi.defines("ompi_mpi_instance_null") { "5" } else { "4" }.to_owned()))
}

fn is_plain_version(text: &str) -> bool {
    text.len() < 24
        && text.split('.').count() == 3
        && text.split('.').take(2).all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
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
        assert!(is_plain_version("4.1.4") && is_plain_version("5.0.7") && !is_plain_version("%d.%d.%d"));
        assert!(is_version("4.0.2") && !is_version("") && !is_version("release"));
    }
}

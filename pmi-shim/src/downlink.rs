//! What a rank is told when we are its PMI server: which way, by which variables, and which of the
//! launcher's must not be seen any more.

use serde::{Deserialize, Serialize};

/// How a rank reaches its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Downlink {
    /// PMI-1 or PMI-2 over an inherited descriptor.
    Descriptor,
    /// PMI-1 or PMI-2 over TCP.
    Port,
    /// PMIx over TCP.
    Pmix,
}

impl Downlink {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Downlink::Descriptor => "PMI-1/PMI-2 on a descriptor",
            Downlink::Port => "PMI-1/PMI-2 on a port",
            Downlink::Pmix => "PMIx",
        }
    }
}

/// A way for each rank of a node, decided once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wiring {
    /// The way.
    pub downlink: Downlink,
    /// Open MPI 4 looks for PMIx under launchers that it knows, of which we pretend to be one.
    pub open_mpi_4: bool,
}

/// The launcher's variables, which speak of another server or would let an MPI find two. What tells programs of
/// their place (SLURM_*, OMPI_COMM_WORLD_*) stays.
pub const SCRUBBED: &[(&str, &str)] = &[
    ("PMI_*", "the launcher's own PMI"),
    ("PMI2_*", "the launcher's own PMI"),
    ("PMIX_*", "the launcher's own PMIx; MPICH 5 refuses to choose between two"),
    ("PRTE_*", "tells Open MPI 5 that PRRTE serves it"),
    ("OMPI_MCA_orte_*", "the address of another daemon"),
    ("OMPI_MCA_ess*", "how to find another daemon"),
    ("OMPI_MCA_pmix*", "which PMIx of another daemon to use"),
    ("OMPI_FILE_LOCATION", "another daemon's session directory"),
    ("OMPI_MCA_initial_wdir", "another daemon's"),
    ("HYDI_*", "hydra's control descriptor, which is not inherited"),
    ("HYDRA_*", "hydra's bootstrap"),
    ("I_MPI_HYDRA_*", "another hydra's"),
    ("I_MPI_PMI_LIBRARY", "the launcher's PMI library"),
    ("MPI_LOCAL*", "hydra's; set anew"),
    ("SLURM_STEP_NODELIST", "Open MPI 4 would take Slurm for its server"),
    ("SLURM_NODELIST", "Open MPI 4 would take Slurm for its server"),
    ("SLURM_PMI*", "Slurm's own PMI"),
    ("SLURM_MPI_TYPE", "Slurm's own PMI"),
    ("FLUX_PMI_LIBRARY_PATH", "Flux's own PMI"),
    ("JSM_*", "jsrun's; set anew where Open MPI 4 wants it"),
];

/// A rank's place, and where its server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// In the job.
    pub rank: u32,
    /// Ranks of the job.
    pub size: Option<u32>,
    /// On the node.
    pub local_rank: Option<u32>,
    /// Ranks of the node.
    pub local_size: Option<u32>,
    /// The descriptor, if that is the way.
    pub descriptor: Option<i32>,
    /// "127.0.0.1:port".
    pub address: &'a str,
    /// The PMIx namespace.
    pub nspace: &'a str,
    /// Where MPI may keep files.
    pub directory: &'a str,
    /// This host.
    pub host_name: &'a str,
    /// More ranks than processors.
    pub oversubscribed: bool,
}

/// The variables for one rank.
pub fn variables(wiring: &Wiring, place: &Place) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let rank = place.rank.to_string();
    let both = |a: Option<u32>, b: Option<u32>| Some((a?.to_string(), b?.to_string()));
    let local = both(place.local_rank, place.local_size);
    if let Some((local_rank, local_size)) = &local {
        out.extend([("MPI_LOCALRANKID", local_rank.clone()), ("MPI_LOCALNRANKS", local_size.clone())]);
    }
    match wiring.downlink {
        Downlink::Descriptor => {
            out.extend(place.descriptor.map(|fd| ("PMI_FD", fd.to_string())));
            out.push(("PMI_RANK", rank));
            out.extend(place.size.map(|size| ("PMI_SIZE", size.to_string())));
        }
        // The client learns rank and size from the server, and takes the former way if it sees them here.
        Downlink::Port => out.extend([("PMI_PORT", place.address.to_owned()), ("PMI_ID", rank)]),
        Downlink::Pmix => {
            let uri = format!("{}.server;tcp4://{}", place.nspace, place.address);
            out.extend([
                ("PMIX_NAMESPACE", place.nspace.to_owned()),
                ("PMIX_RANK", rank.clone()),
                // Clients look for the newest address that they know: with these two all find our dialect.
                ("PMIX_SERVER_URI3", uri.clone()),
                ("PMIX_SERVER_URI21", uri),
                ("PMIX_SECURITY_MODE", "native".to_owned()),
                ("PMIX_BFROP_BUFFER_TYPE", "PMIX_BFROP_BUFFER_NON_DESC".to_owned()),
                ("PMIX_GDS_MODULE", "hash".to_owned()),
                // PMIx 7 refuses servers before 3.2.
                ("PMIX_VERSION", "4.2.2".to_owned()),
                ("PMIX_SERVER_TMPDIR", place.directory.to_owned()),
                ("PMIX_SYSTEM_TMPDIR", place.directory.to_owned()),
                ("PMIX_HOSTNAME", place.host_name.to_owned()),
                ("OMPI_COMM_WORLD_RANK", rank),
            ]);
            out.extend(place.size.map(|size| ("OMPI_COMM_WORLD_SIZE", size.to_string())));
            if let Some((local_rank, local_size)) = local {
                out.extend([
                    ("OMPI_COMM_WORLD_LOCAL_RANK", local_rank.clone()),
                    ("OMPI_COMM_WORLD_NODE_RANK", local_rank),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", local_size),
                ]);
            }
            if wiring.open_mpi_4 {
                // It is a singleton unless it sees one of the launchers that it knows (orte/mca/schizo).
                out.push(("JSM_JSRUN_PORT", "1".to_owned()));
                if place.oversubscribed {
                    out.push(("OMPI_MCA_mpi_yield_when_idle", "1".to_owned()));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::glob::matches;

    #[test]
    fn no_variable_of_ours_is_one_that_two_mpis_could_read() {
        let place = Place {
            rank: 3,
            size: Some(4),
            local_rank: Some(1),
            local_size: Some(2),
            descriptor: Some(9),
            address: "127.0.0.1:5",
            nspace: "hpcl.j",
            directory: "/d",
            host_name: "h",
            oversubscribed: true,
        };
        let names = |downlink, open_mpi_4| {
            let of = variables(&Wiring { downlink, open_mpi_4 }, &place);
            of.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let has = |names: &[&str], pattern: &str| names.iter().any(|n| matches(pattern, n));
        let fd = names(Downlink::Descriptor, false);
        assert!(has(&fd, "PMI_FD") && has(&fd, "PMI_SIZE") && !has(&fd, "PMIX_*") && !has(&fd, "PMI_PORT"));
        let port = names(Downlink::Port, false);
        assert!(has(&port, "PMI_ID") && !has(&port, "PMI_FD") && !has(&port, "PMI_RANK"));
        let pmix = names(Downlink::Pmix, true);
        assert!(has(&pmix, "PMIX_RANK") && has(&pmix, "JSM_JSRUN_PORT") && !has(&pmix, "PMI_*"));
        assert!(!has(&names(Downlink::Pmix, false), "JSM_*"));
        for name in fd.iter().chain(&port).chain(&pmix).filter(|n| !n.starts_with("OMPI_")) {
            assert!(SCRUBBED.iter().any(|(p, _)| matches(p, name)), "{name} would survive from a launcher");
        }
    }
}

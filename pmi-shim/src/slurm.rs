//! Where slurmstepd keeps what the ranks of a PMIx step share: only Slurm's configuration says it.
//!
//! Open MPI makes its session directory there. The ranks learn the path over PMIx, too late to bind it.
//! Source: slurm's src/plugins/mpi/pmix/pmixp_info.c (cli_tmpdir), mpi.conf(5), slurm.conf(5).

/// Files beside each other, and the key in each; the first that is set counts.
pub const SETTINGS: &[(&str, &str)] = &[("mpi.conf", "PMIxCliTmpDirBase"), ("slurm.conf", "TmpFS")];

/// The directory that `key` names in the text of a file, for a node of this name on this host.
pub fn directory(text: &str, key: &str, node: &str, host: &str) -> Option<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut pairs = lines.flat_map(str::split_ascii_whitespace).filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.eq_ignore_ascii_case(key))?;
    let short = host.split('.').next().unwrap_or(host);
    Some(value.trim_matches('"').replace("%h", short).replace("%n", node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_any_case_several_in_a_line_and_the_nodes_names() {
        let text = "# TmpFS=/no\nClusterName=c tmpfs=/local/%n/%h # here\nTmpFS=/later\n";
        assert_eq!(directory(text, "TmpFS", "n1", "n1.site.org").as_deref(), Some("/local/n1/n1"));
        assert_eq!(directory("TmpFS=\"/a\"", "TmpFS", "", "").as_deref(), Some("/a"));
        assert_eq!(directory("XTmpFS=/a\n#TmpFS=/b", "TmpFS", "", ""), None);
        assert_eq!(directory("", "TmpFS", "", ""), None);
    }
}

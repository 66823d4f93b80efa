//! What every rank of a job is told: size, places, names.

use std::fmt::Write;

/// More ranks than any job has. What is told to us is believed only up to here: it costs memory for each.
pub const MAX_RANKS: u32 = 1 << 20;

/// A job as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name: unique on the node, the same on all nodes. Letters, digits, `.`, `-` and `_` only.
    pub id: String,
    /// For each rank the index of its node.
    pub node_of: Vec<u32>,
    /// For each node its host's name, as far as they are known.
    pub hosts: Vec<String>,
    /// This node's index.
    pub node: u32,
    /// For each rank the number of its application, as far as they are known: else 0.
    pub appnum: Vec<u32>,
    /// How many ranks there may be together with those that are started later, if the launcher says.
    pub universe: Option<u32>,
    /// More ranks than processors on a node.
    pub oversubscribed: bool,
}

impl Job {
    /// Ranks of the job.
    pub fn size(&self) -> u32 {
        self.node_of.len() as u32
    }

    /// Nodes of the job.
    pub fn nodes(&self) -> u32 {
        self.node_of.iter().max().map_or(0, |n| n + 1)
    }

    /// The ranks of a node, ascending.
    pub fn ranks_of(&self, node: u32) -> Vec<u32> {
        (0..self.size()).zip(&self.node_of).filter(|(_, n)| **n == node).map(|(rank, _)| rank).collect()
    }

    /// The ranks of this node, ascending.
    pub fn local(&self) -> Vec<u32> {
        self.ranks_of(self.node)
    }

    /// `PMI_process_mapping` of these places.
    pub fn mapping(&self) -> String {
        mapping(&self.node_of)
    }
}

/// A name in which every rank and shared-memory file may hold it.
pub fn safe_name(text: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '_' };
    text.chars().take(128).map(safe).collect()
}

/// `(vector,(first node, nodes, ranks on each),…)`, a block for each run of equal shares.
pub fn mapping(node_of: &[u32]) -> String {
    // Runs of ranks on one node, then runs of such runs on consecutive nodes.
    let mut blocks: Vec<(u32, u32, u32)> = Vec::new();
    let mut rest = node_of;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|n| *n == first).count() as u32;
        match blocks.last_mut() {
            Some((start, nodes, each)) if *each == run && *start + *nodes == *first => *nodes += 1,
            _ => blocks.push((*first, 1, run)),
        }
        rest = &rest[run as usize..];
    }
    let mut out = "(vector".to_owned();
    for (start, nodes, each) in blocks {
        let _ = write!(out, ",({start},{nodes},{each})");
    }
    out + ")"
}

/// The node of each of `size` ranks. The vector is repeated until all have one (hydra 4.0 says `(0,1,1)` for
/// any number of ranks on one node; src/util/mpir_pmi.c). `None`: no mapping.
pub fn parse_mapping(text: &str, size: u32) -> Option<Vec<u32>> {
    let inner = text.trim().strip_prefix("(vector")?.strip_suffix(')')?;
    let mut blocks = Vec::new();
    for block in inner.split('(').skip(1) {
        let numbers: Vec<u32> =
            block.split(')').next()?.split(',').map(|n| n.trim().parse().ok()).collect::<Option<_>>()?;
        let [start, nodes, each] = numbers[..] else { return None };
        // Without this, a block of many nodes and no ranks would be gone through for each rank.
        if nodes > 0 && each > 0 {
            blocks.push((start, nodes, each));
        }
    }
    if blocks.is_empty() || size > MAX_RANKS {
        return None;
    }
    let size = size as usize;
    let mut out = Vec::with_capacity(size);
    while out.len() < size {
        for (start, nodes, each) in &blocks {
            for node in 0..*nodes {
                for _ in 0..*each {
                    if out.len() == size {
                        return Some(dense(out));
                    }
                    out.push(start.checked_add(node)?);
                }
            }
        }
    }
    Some(dense(out))
}

/// Nodes numbered from 0 in the order of their first ranks.
pub fn dense(nodes: Vec<u32>) -> Vec<u32> {
    let mut seen: std::collections::HashMap<u32, u32> = std::collections::HashMap::new();
    nodes
        .into_iter()
        .map(|node| {
            let next = seen.len() as u32;
            *seen.entry(node).or_insert(next)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mappings_of_launchers() {
        assert_eq!(parse_mapping("(vector,(0,1,1))", 4), Some(vec![0; 4]), "hydra 4.0 on one node");
        assert_eq!(parse_mapping("(vector,(0,2,2))", 6), Some(vec![0, 0, 1, 1, 0, 0]));
        assert_eq!(parse_mapping("(vector,(0,1,3),(1,1,1))", 4), Some(vec![0, 0, 0, 1]));
        assert_eq!(parse_mapping("(vector,(3,2,1))", 2), Some(vec![0, 1]));
        for bad in ["", "(vector)", "(vector,(0,0,1))", "(vector,(0,1))", "(vector,(a,1,1))", "x"] {
            assert_eq!(parse_mapping(bad, 2), None, "{bad:?}");
        }
        assert_eq!(parse_mapping("(vector,(0,4294967295,0),(1,1,1))", 3), Some(vec![0; 3]), "at once");
        assert_eq!(parse_mapping("(vector,(0,1,1))", u32::MAX), None, "not by gigabytes");
        assert_eq!(mapping(&[0, 0, 1, 1, 2]), "(vector,(0,2,2),(2,1,1))");
        assert_eq!(mapping(&[0, 1, 0, 1]), "(vector,(0,2,1),(0,2,1))");
        assert_eq!(safe_name("a;b@1/c.d"), "a_b_1_c.d");
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(nodes in prop::collection::vec(0u32..5, 1..40)) {
            let nodes = dense(nodes);
            prop_assert_eq!(parse_mapping(&mapping(&nodes), nodes.len() as u32), Some(nodes));
        }

        #[test]
        fn nothing_makes_it_panic(text in "[(),0-9a-z ]{0,40}", prefix in any::<bool>()) {
            let text = if prefix { format!("(vector,{text}") } else { text };
            let _ = parse_mapping(&text, 16);
        }
    }
}

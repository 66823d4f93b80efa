//! Shell patterns on variable names: `*` and `?`, nothing else.

/// Whether `name` matches `pattern` as a whole.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (p, n) = (pattern.as_bytes(), name.as_bytes());
    // Greedy with one point of return: the last `*` and where it stood in the name.
    let (mut i, mut j, mut star) = (0, 0, None);
    while j < n.len() {
        if i < p.len() && p[i] == b'*' {
            star = Some((i, j));
            i += 1;
        } else if i < p.len() && (p[i] == b'?' || p[i] == n[j]) {
            (i, j) = (i + 1, j + 1);
        } else if let Some((at, from)) = star {
            (i, j) = (at + 1, from + 1);
            star = Some((at, j));
        } else {
            return false;
        }
    }
    p[i..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual() {
        assert!(matches("PMI_*", "PMI_RANK") && matches("*", "") && matches("A?C*E", "ABCDDE"));
        assert!(!matches("PMI_*", "PMIX_RANK") && !matches("A", "AB") && !matches("", "A"));
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_any_star_put_into_it(name in "[A-Z_]{0,12}", at in 0usize..13) {
            prop_assert!(matches(&name, &name));
            let at = at.min(name.len());
            let pattern = format!("{}*{}", &name[..at], &name[at..]);
            prop_assert!(matches(&pattern, &name));
        }
    }
}

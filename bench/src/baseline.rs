//! Which row the others of a group are held against.

use crate::contender::BARE;
use crate::document::Group;
use std::collections::BTreeMap;

/// Bare metal where it was measured; else the row that most others have a ratio to.
pub fn baseline(group: &Group) -> Option<&str> {
    if let Some(bare) = group.rows.iter().find(|row| row.name == BARE) {
        return Some(&bare.name);
    }
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    for name in group.rows.iter().flat_map(|row| row.ratios.keys()) {
        *uses.entry(name).or_default() += 1;
    }
    // Of two that are used alike, the one that stands first in the table.
    let place = |name: &str| group.rows.iter().position(|row| row.name == name);
    uses.into_iter().max_by_key(|(name, uses)| (*uses, std::cmp::Reverse(place(name)))).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn bare_else_the_one_that_most_are_compared_with() {
        let mut group = fixture::document().reports[0].groups[0].clone();
        assert_eq!(baseline(&group), Some(BARE));
        group.rows.retain(|row| row.name != BARE);
        for row in &mut group.rows {
            let ratio = row.ratios.remove(BARE);
            row.ratios.extend(ratio.map(|ratio| ("ch-run".to_owned(), ratio)));
        }
        assert_eq!(baseline(&group), Some("ch-run"));
        group.rows.iter_mut().for_each(|row| row.ratios.clear());
        assert_eq!(baseline(&group), None);
    }
}

//! What messages hold, so that a wrong one is seen: a pattern by sender, and its opposite before it comes.

/// The byte at `index` of what `seed` sends. It has no period that a page or a cache line could hide.
fn byte(index: usize, seed: usize) -> u8 {
    (index * 7 + (index >> 8) + seed * 31) as u8
}

/// Fills `buffer` with what `seed` sends.
pub fn fill(buffer: &mut [u8], seed: usize) {
    for (index, slot) in buffer.iter_mut().enumerate() {
        *slot = byte(index, seed);
    }
}

/// Fills `buffer` with what differs from it in every byte: a message that never came is then seen.
pub fn fill_opposite(buffer: &mut [u8], seed: usize) {
    for (index, slot) in buffer.iter_mut().enumerate() {
        *slot = !byte(index, seed);
    }
}

/// The first byte that is not what `seed` sends, in words.
pub fn check(buffer: &[u8], seed: usize) -> Result<(), String> {
    let wrong = buffer.iter().enumerate().find(|(index, value)| **value != byte(*index, seed));
    match wrong {
        None => Ok(()),
        Some((index, value)) => Err(format!("byte {index} is {value:#04x}, not {:#04x}", byte(index, seed))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_found_and_its_opposite_is_not() {
        let mut buffer = vec![0; 70_000];
        fill(&mut buffer, 3);
        assert_eq!(check(&buffer, 3), Ok(()));
        assert!(check(&buffer, 4).is_err(), "another sender's");
        buffer[69_999] ^= 1;
        assert_eq!(check(&buffer, 3).unwrap_err().split(' ').nth(1), Some("69999"));
        let mut opposite = vec![0; 70_000];
        fill_opposite(&mut opposite, 3);
        assert!(opposite.iter().enumerate().all(|(index, value)| *value != byte(index, 3)));
    }

    #[test]
    fn a_shifted_page_is_seen() {
        let mut buffer = vec![0; 8192];
        fill(&mut buffer, 0);
        buffer.rotate_left(4096);
        assert!(check(&buffer, 0).is_err());
    }
}

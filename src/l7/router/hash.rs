//! The hash of the router's tables.
//!
//! Unkeyed, which is sound here: the keys come from the configuration, peers only choose what is
//! looked up, and a look-up leaves nothing behind.

use std::hash::{BuildHasherDefault, Hasher};

pub(super) type BuildHash = BuildHasherDefault<Hash>;

/// Eight bytes a step, mixed by folding a 128-bit product.
#[derive(Debug, Default)]
pub(super) struct Hash {
    state: u64,
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

impl Hash {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.state ^ word ^ SEED) * u128::from(FACTOR);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the product")]
        let (low, high) = (product as u64, (product >> 64) as u64);
        self.state = low ^ high;
    }
}

impl Hasher for Hash {
    fn write(&mut self, bytes: &[u8]) {
        let (words, tail) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !tail.is_empty() {
            let mut word = [0; 8];
            word.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_usize(&mut self, length: usize) {
        self.mix(length as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn similar_keys_spread_over_both_ends_of_the_hash() {
        let build = BuildHash::default();
        let hashes: Vec<u64> =
            (0..4096).map(|n| build.hash_one(format!("/path/number/{n}").as_bytes())).collect();
        let low: HashSet<u64> = hashes.iter().map(|hash| hash & 0xfff).collect();
        let high: HashSet<u64> = hashes.iter().map(|hash| hash >> 52).collect();
        // 4096 random draws from 4096 values hit about 2589 of them.
        assert!((2400..2800).contains(&low.len()), "{}", low.len());
        assert!((2400..2800).contains(&high.len()), "{}", high.len());
    }

    #[test]
    fn length_and_padding_count() {
        let build = BuildHash::default();
        let keys: [&[u8]; 5] = [b"", b"\0", b"\0\0", b"abcdefgh", b"abcdefgh\0"];
        let hashes: HashSet<u64> = keys.iter().map(|key| build.hash_one(key)).collect();
        assert_eq!(hashes.len(), keys.len());
    }
}

//! Request identifiers.

/// Makes identifiers of 32 hexadecimal digits that do not repeat.
///
/// Seed and counter go through a permutation of 128 bits, so identifiers of one generator all
/// differ, and those of two differ wherever their seeds do. With random seeds that holds across
/// shards and restarts. They look random and do not show the load, but are no secrets: who wants to
/// can compute the next from one of them.
#[derive(Debug, Clone)]
pub struct Generator {
    seed: u64,
    count: u64,
}

impl Generator {
    /// A generator for one shard; `seed` must be fresh random bits for every shard and start.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, count: 0 }
    }

    /// The next identifier, in lower-case hexadecimal digits.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> [u8; 32] {
        let (high, low) = permute(self.seed, self.count);
        self.count = self.count.wrapping_add(1);
        let mut digits = [0; 32];
        let bytes = high.to_be_bytes().into_iter().chain(low.to_be_bytes());
        for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *pair = HEX[usize::from(byte)];
        }
        digits
    }
}

/// True when an identifier from outside may be passed on: 1 to 128 of `[A-Za-z0-9._~+/=:-]`.
#[must_use]
pub fn is_valid(incoming: &[u8]) -> bool {
    let is_valid_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"._~-+/=:".contains(byte);
    (1..=128).contains(&incoming.len()) && incoming.iter().all(is_valid_byte)
}

/// A Feistel network of four rounds: every pair goes to a pair of its own.
fn permute(mut left: u64, mut right: u64) -> (u64, u64) {
    for round in 0..4_u64 {
        let mixed = left ^ mix(right ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (left, right) = (right, mixed);
    }
    (left, right)
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014, Stafford's variant 13).
fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The two digits of each byte.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [DIGITS[byte >> 4], DIGITS[byte & 0xf]];
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mix_has_the_published_values() {
        // The first outputs of SplitMix64 seeded with 1234567.
        let gamma = 0x9e37_79b9_7f4a_7c15_u64;
        assert_eq!(mix(1_234_567), 6_457_827_717_110_365_317);
        assert_eq!(mix(1_234_567 + gamma), 3_203_168_211_198_807_973);
    }

    #[test]
    fn identifiers_differ_within_and_across_generators() {
        let mut seen = HashSet::new();
        for seed in [0, 1, 2, u64::MAX] {
            let mut generator = Generator::new(seed);
            for _ in 0..5000 {
                let id = generator.next();
                assert!(is_valid(&id) && seen.insert(id), "{}", String::from_utf8_lossy(&id));
                assert!(id.iter().all(|digit| b"0123456789abcdef".contains(digit)));
            }
        }
    }

    #[test]
    fn successive_identifiers_share_no_half() {
        let mut generator = Generator::new(42);
        let (first, second) = (generator.next(), generator.next());
        assert_ne!(first[..16], second[..16]);
        assert_ne!(first[16..], second[16..]);
    }

    #[test]
    fn the_counter_wraps() {
        let mut generator = Generator { seed: 7, count: u64::MAX };
        generator.next();
        assert_eq!(generator.next(), Generator::new(7).next());
    }

    #[test]
    fn validity_of_incoming_identifiers() {
        for (incoming, expected) in [
            (&b"0"[..], true),
            (b"AZaz09._~-+/=:", true),
            (&[b'a'; 128], true),
            (&[b'a'; 129], false),
            (b"", false),
            (b"a b", false),
            (b"a\tb", false),
            (b"a\"b", false),
            (b"a,b", false),
            (b"a\r\nb", false),
            (b"a\0", false),
            (b"\xc3\xa9", false),
        ] {
            assert_eq!(is_valid(incoming), expected, "{incoming:?}");
        }
    }

    proptest! {
        #[test]
        fn the_permutation_can_be_undone(seed: u64, count: u64) {
            let (mut left, mut right) = permute(seed, count);
            for round in (0..4_u64).rev() {
                let before = right ^ mix(left ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                (left, right) = (before, left);
            }
            prop_assert_eq!((left, right), (seed, count));
        }
    }
}

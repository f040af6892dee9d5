//! SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012; one round a word,
//! three at the end): a keyed hash, for choices that outsiders must not be able to aim.
//!
//! Additions, rotations and exclusive ors only, so that a BPF program can compute it too.

/// The key; the same on every machine that has to choose alike.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Key(pub u64, pub u64);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

struct State([u64; 4]);

impl State {
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.0 = [a, b, c, d];
    }

    fn word(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }
}

/// Hash of a message of `N` words of eight bytes, each read as little-endian.
#[must_use]
pub fn hash_words<const N: usize>(key: Key, words: [u64; N]) -> u64 {
    let mut state = State([
        key.0 ^ 0x736f_6d65_7073_6575,
        key.1 ^ 0x646f_7261_6e64_6f6d,
        key.0 ^ 0x6c79_6765_6e65_7261,
        key.1 ^ 0x7465_6462_7974_6573,
    ]);
    for word in words {
        state.word(word);
    }
    // The last block: no bytes left, the message's length in the highest byte.
    state.word((N as u64 * 8) << 56);
    state.0[2] ^= 0xff;
    (0..3).for_each(|_| state.round());
    state.0[0] ^ state.0[1] ^ state.0[2] ^ state.0[3]
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use super::*;

    /// The standard library's hasher is SipHash-1-3 with a key of zeros.
    #[test]
    fn agrees_with_the_standard_library() {
        let words = [0x0102_0304_0506_0708, u64::MAX, 0, 42, 7];
        let mut other = std::hash::DefaultHasher::new();
        words.iter().for_each(|word| other.write(&word.to_le_bytes()));
        assert_eq!(hash_words(Key(0, 0), words), other.finish());
        let mut other = std::hash::DefaultHasher::new();
        words[..2].iter().for_each(|word| other.write(&word.to_le_bytes()));
        assert_eq!(hash_words(Key(0, 0), [words[0], words[1]]), other.finish());
    }

    #[test]
    fn keys_matter() {
        let keys = [Key(0, 0), Key(1, 0), Key(0, 1)];
        let hashes = keys.map(|key| hash_words(key, [5, 6]));
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && hashes[0] != hashes[2]);
        assert_eq!(format!("{:?}", keys[1]), "Key(..)", "keys are not logged");
    }
}

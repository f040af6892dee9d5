//! Several bytes looked at together, in the registers of any CPU. A head is made of short stretches, where a search that has to be
//! called for each costs more than what it saves.

/// Bytes of the longest name that is looked at together.
pub(super) const NAME_LEN: usize = 16;
/// Bytes in a word.
const LEN: usize = 8;
/// One in each byte of a word.
const ONES: u64 = u64::MAX / 0xff;
/// The highest bit of each byte.
const HIGHS: u64 = ONES << 7;

/// Whether it is a control character (RFC 5234's CTL).
fn is_control(byte: u8) -> bool {
    byte < b' ' || byte == 0x7f
}

/// Marks each byte that is a control character, with its highest bit.
#[inline]
fn controls(word: u64) -> u64 {
    // Without the highest bits, so that no sum goes beyond its byte.
    let low = word & !HIGHS;
    (!at_least(low, b' ') | at_least(low, 0x7f)) & !word & HIGHS
}

/// Marks each byte that is a letter, a digit or a hyphen, of which nearly all field names are made.
#[inline]
fn of_name(word: u64) -> u64 {
    let low = word & !HIGHS;
    let letter = low | (ONES * 0x20);
    let letters = at_least(letter, b'a') & !at_least(letter, b'z' + 1);
    let digits = at_least(low, b'0') & !at_least(low, b'9' + 1);
    let hyphens = at_least(low, b'-') & !at_least(low, b'-' + 1);
    (letters | digits | hyphens) & !word & HIGHS
}

/// Sets the highest bit of each byte that is at least `bound`; bytes and bound are below 128.
#[inline]
fn at_least(bytes: u64, bound: u8) -> u64 {
    bytes + ONES * u64::from(128 - bound)
}

/// How many letters, digits and hyphens the block begins with.
#[inline]
pub(super) fn name_length(block: &[u8; NAME_LEN]) -> usize {
    let marked = |place: usize| {
        let word = block.as_chunks::<LEN>().0.get(place).copied().unwrap_or_default();
        (of_name(u64::from_le_bytes(word)) ^ HIGHS).trailing_zeros() as usize / 8
    };
    match marked(0) {
        LEN => LEN + marked(1),
        length => length,
    }
}

/// The places of control characters, in order.
#[derive(Debug)]
pub(super) struct Controls<'a> {
    bytes: &'a [u8],
    /// Where the word that is being looked at begins.
    start: usize,
    /// Those in it that are still to come.
    marks: u64,
}

impl<'a> Controls<'a> {
    #[inline]
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, start: 0, marks: marks_at(bytes, 0) }
    }
}

impl Iterator for Controls<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.marks == 0 {
            self.start += LEN;
            if self.start >= self.bytes.len() {
                return None;
            }
            self.marks = marks_at(self.bytes, self.start);
        }
        let place = self.start + self.marks.trailing_zeros() as usize / 8;
        self.marks &= self.marks - 1;
        Some(place)
    }
}

/// The controls among the eight bytes from `start` on, or as many as there are.
#[inline]
fn marks_at(bytes: &[u8], start: usize) -> u64 {
    let rest = bytes.get(start..).unwrap_or_default();
    match (rest.first_chunk(), bytes.last_chunk()) {
        (Some(word), _) => controls(u64::from_le_bytes(*word)),
        // The last eight, without those that were looked at before.
        (None, Some(word)) => {
            let seen = u32::try_from(8 * (LEN - rest.len())).unwrap_or(u64::BITS);
            controls(u64::from_le_bytes(*word)).unbounded_shr(seen)
        }
        (None, None) => {
            let marks = rest.iter().rev().map(|&byte| u64::from(is_control(byte)) << 7);
            marks.fold(0, |all, mark| (all << 8) | mark)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_of_name(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || byte == b'-'
    }

    fn check(block: &[u8; NAME_LEN]) {
        let places: Vec<_> = Controls::of(block).collect();
        let expected: Vec<_> = (0..NAME_LEN).filter(|&at| is_control(block[at])).collect();
        assert_eq!(places, expected, "{block:?}");
        let length = block.iter().position(|&byte| !is_of_name(byte)).unwrap_or(NAME_LEN);
        assert_eq!(name_length(block), length, "{block:?}");
    }

    #[test]
    fn every_byte_in_every_place() {
        for other in *b"xZ09-" {
            for byte in 0..=u8::MAX {
                for place in 0..NAME_LEN {
                    let mut block = [other; NAME_LEN];
                    block[place] = byte;
                    check(&block);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn together_is_as_one_by_one(block: [u8; NAME_LEN]) {
            check(&block);
        }

        #[test]
        fn controls_are_found_where_they_are(
            bytes in prop::collection::vec(prop_oneof![Just(b'x'), any::<u8>()], 0..70)
        ) {
            let places: Vec<_> = Controls::of(&bytes).collect();
            let expected: Vec<_> = (0..bytes.len()).filter(|&at| is_control(bytes[at])).collect();
            prop_assert_eq!(places, expected);
        }
    }
}

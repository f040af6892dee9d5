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

/// Marks each byte that is a control character (RFC 5234's CTL), with its highest bit.
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

/// Where the first control character is.
#[inline]
pub(super) fn find_control(bytes: &[u8]) -> Option<usize> {
    find(bytes, controls)
}

/// Where the first byte is that is no visible character of ASCII.
#[inline]
pub(super) fn find_invisible(bytes: &[u8]) -> Option<usize> {
    find(bytes, |word| {
        let low = word & !HIGHS;
        (!at_least(low, b'!') | at_least(low, 0x7f) | word) & HIGHS
    })
}

/// Where the first byte is that is marked.
#[inline]
fn find(bytes: &[u8], mark: impl Fn(u64) -> u64) -> Option<usize> {
    let mut tail = bytes;
    while let Some((word, rest)) = tail.split_first_chunk() {
        let marks = mark(u64::from_le_bytes(*word));
        if marks != 0 {
            return Some(bytes.len() - tail.len() + first(marks));
        }
        tail = rest;
    }
    let length = u32::try_from(8 * tail.len()).unwrap_or(u64::BITS);
    let word = match bytes.last_chunk() {
        Some(word) => u64::from_le_bytes(*word).unbounded_shr(u64::BITS - length),
        None => tail.iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte)),
    };
    let marks = mark(word) & !u64::MAX.unbounded_shl(length);
    (marks != 0).then(|| bytes.len() - tail.len() + first(marks))
}

/// Which byte of a word the first mark is in.
#[inline]
fn first(marks: u64) -> usize {
    marks.trailing_zeros() as usize / 8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_of_name(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || byte == b'-'
    }

    fn check_searches(bytes: &[u8]) {
        let control = bytes.iter().position(u8::is_ascii_control);
        assert_eq!(find_control(bytes), control, "{bytes:?}");
        let invisible = bytes.iter().position(|byte| !byte.is_ascii_graphic());
        assert_eq!(find_invisible(bytes), invisible, "{bytes:?}");
    }

    fn check(block: &[u8; NAME_LEN]) {
        check_searches(block);
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
        fn all_are_found_where_they_are(
            bytes in prop::collection::vec(prop_oneof![Just(b'x'), any::<u8>()], 0..70)
        ) {
            check_searches(&bytes);
        }
    }
}

//! Sixteen bytes looked at together, in the vector registers of any CPU. A head is made of short stretches, where a search that has
//! to be called for each costs more than what it saves.

use wide::u8x16;

/// Bytes that are looked at together.
pub(super) const LEN: usize = 16;

/// How many letters, digits and hyphens, of which nearly all field names are made, there are from `at` on.
#[inline]
pub(super) fn name_length(bytes: &[u8], at: usize) -> usize {
    let mut length = 0;
    loop {
        let others = !of_name(u8x16::from(load(bytes, at + length))).to_bitmask();
        // The bits beyond the block are set.
        let found = others.trailing_zeros() as usize;
        length += found;
        if found < LEN {
            return length;
        }
    }
}

/// Where the first control character (RFC 5234's CTL) at or behind `at` is.
#[inline]
pub(super) fn find_control(bytes: &[u8], at: usize) -> Option<usize> {
    find(bytes, at, |block| at_most(block, 0x1f) | block.simd_eq(u8x16::splat(0x7f)))
}

/// Where the first byte at or behind `at` is that is no visible character of ASCII.
#[inline]
pub(super) fn find_invisible(bytes: &[u8], at: usize) -> Option<usize> {
    find(bytes, at, |block| !within(block, b'!', b'~'))
}

/// Where the first byte at or behind `at` is that is marked; NUL has to be.
#[inline]
fn find(bytes: &[u8], mut at: usize, mark: impl Fn(u8x16) -> u8x16) -> Option<usize> {
    loop {
        let marks = mark(u8x16::from(load(bytes, at))).to_bitmask();
        if marks != 0 {
            let found = at + marks.trailing_zeros() as usize;
            return (found < bytes.len()).then_some(found);
        }
        at += LEN;
    }
}

/// The bytes from `at` on, with NUL for those beyond the end.
#[inline]
pub(super) fn load(bytes: &[u8], at: usize) -> [u8; LEN] {
    let rest = bytes.get(at..).unwrap_or_default();
    match rest.first_chunk() {
        Some(block) => *block,
        None => load_end(bytes, rest),
    }
}

/// The same where there are fewer, the `rest`.
#[inline(never)]
fn load_end(bytes: &[u8], rest: &[u8]) -> [u8; LEN] {
    let Some(end) = bytes.last_chunk() else {
        let mut block = [0; LEN];
        block.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        return block;
    };
    let missing = u32::try_from(8 * (LEN - rest.len())).unwrap_or(u128::BITS);
    u128::from_le_bytes(*end).unbounded_shr(missing).to_le_bytes()
}

/// Marks each byte that may be in a name.
#[inline]
fn of_name(block: u8x16) -> u8x16 {
    let letters = within(block | u8x16::splat(0x20), b'a', b'z');
    letters | within(block, b'0', b'9') | block.simd_eq(u8x16::splat(b'-'))
}

/// Marks each byte from `first` to `last`.
#[inline]
fn within(block: u8x16, first: u8, last: u8) -> u8x16 {
    at_most(block - u8x16::splat(first), last - first)
}

#[inline]
fn at_most(block: u8x16, bound: u8) -> u8x16 {
    block.min(u8x16::splat(bound)).simd_eq(block)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(bytes: &[u8]) {
        for at in 0..=bytes.len() + 1 {
            let rest = bytes.get(at..).unwrap_or_default();
            let position =
                |is: &dyn Fn(&u8) -> bool| rest.iter().position(is).map(|found| at + found);
            let control = position(&u8::is_ascii_control);
            assert_eq!(find_control(bytes, at), control, "{bytes:?} {at}");
            let invisible = position(&|byte| !byte.is_ascii_graphic());
            assert_eq!(find_invisible(bytes, at), invisible, "{bytes:?} {at}");
            let is_of_name = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'-';
            let length = rest.iter().take_while(is_of_name).count();
            assert_eq!(name_length(bytes, at), length, "{bytes:?} {at}");
        }
    }

    #[test]
    fn every_byte_in_every_place() {
        for other in *b"xZ09-" {
            for byte in 0..=u8::MAX {
                for place in 0..=LEN {
                    let mut bytes = [other; LEN + 1];
                    bytes[place] = byte;
                    check(&bytes);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn all_are_found_where_they_are(
            bytes in prop::collection::vec(prop_oneof![Just(b'x'), any::<u8>()], 0..70)
        ) {
            check(&bytes);
        }
    }
}

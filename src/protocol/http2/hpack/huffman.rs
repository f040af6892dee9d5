//! The Huffman code of RFC 7541 appendix B, and decoding it eight bits at a time.

/// Why a Huffman-coded string was refused (RFC 7541 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Invalid;

/// Code and its length in bits, by symbol.
#[rustfmt::skip]
const CODES: [(u32, u8); 256] = [
    (0x1ff8, 13), (0x7fffd8, 23), (0xfffffe2, 28), (0xfffffe3, 28), (0xfffffe4, 28), (0xfffffe5, 28), (0xfffffe6, 28), (0xfffffe7, 28),
    (0xfffffe8, 28), (0xffffea, 24), (0x3ffffffc, 30), (0xfffffe9, 28), (0xfffffea, 28), (0x3ffffffd, 30), (0xfffffeb, 28), (0xfffffec, 28),
    (0xfffffed, 28), (0xfffffee, 28), (0xfffffef, 28), (0xffffff0, 28), (0xffffff1, 28), (0xffffff2, 28), (0x3ffffffe, 30), (0xffffff3, 28),
    (0xffffff4, 28), (0xffffff5, 28), (0xffffff6, 28), (0xffffff7, 28), (0xffffff8, 28), (0xffffff9, 28), (0xffffffa, 28), (0xffffffb, 28),
    (0x14, 6), (0x3f8, 10), (0x3f9, 10), (0xffa, 12), (0x1ff9, 13), (0x15, 6), (0xf8, 8), (0x7fa, 11),
    (0x3fa, 10), (0x3fb, 10), (0xf9, 8), (0x7fb, 11), (0xfa, 8), (0x16, 6), (0x17, 6), (0x18, 6),
    (0x0, 5), (0x1, 5), (0x2, 5), (0x19, 6), (0x1a, 6), (0x1b, 6), (0x1c, 6), (0x1d, 6),
    (0x1e, 6), (0x1f, 6), (0x5c, 7), (0xfb, 8), (0x7ffc, 15), (0x20, 6), (0xffb, 12), (0x3fc, 10),
    (0x1ffa, 13), (0x21, 6), (0x5d, 7), (0x5e, 7), (0x5f, 7), (0x60, 7), (0x61, 7), (0x62, 7),
    (0x63, 7), (0x64, 7), (0x65, 7), (0x66, 7), (0x67, 7), (0x68, 7), (0x69, 7), (0x6a, 7),
    (0x6b, 7), (0x6c, 7), (0x6d, 7), (0x6e, 7), (0x6f, 7), (0x70, 7), (0x71, 7), (0x72, 7),
    (0xfc, 8), (0x73, 7), (0xfd, 8), (0x1ffb, 13), (0x7fff0, 19), (0x1ffc, 13), (0x3ffc, 14), (0x22, 6),
    (0x7ffd, 15), (0x3, 5), (0x23, 6), (0x4, 5), (0x24, 6), (0x5, 5), (0x25, 6), (0x26, 6),
    (0x27, 6), (0x6, 5), (0x74, 7), (0x75, 7), (0x28, 6), (0x29, 6), (0x2a, 6), (0x7, 5),
    (0x2b, 6), (0x76, 7), (0x2c, 6), (0x8, 5), (0x9, 5), (0x2d, 6), (0x77, 7), (0x78, 7),
    (0x79, 7), (0x7a, 7), (0x7b, 7), (0x7ffe, 15), (0x7fc, 11), (0x3ffd, 14), (0x1ffd, 13), (0xffffffc, 28),
    (0xfffe6, 20), (0x3fffd2, 22), (0xfffe7, 20), (0xfffe8, 20), (0x3fffd3, 22), (0x3fffd4, 22), (0x3fffd5, 22), (0x7fffd9, 23),
    (0x3fffd6, 22), (0x7fffda, 23), (0x7fffdb, 23), (0x7fffdc, 23), (0x7fffdd, 23), (0x7fffde, 23), (0xffffeb, 24), (0x7fffdf, 23),
    (0xffffec, 24), (0xffffed, 24), (0x3fffd7, 22), (0x7fffe0, 23), (0xffffee, 24), (0x7fffe1, 23), (0x7fffe2, 23), (0x7fffe3, 23),
    (0x7fffe4, 23), (0x1fffdc, 21), (0x3fffd8, 22), (0x7fffe5, 23), (0x3fffd9, 22), (0x7fffe6, 23), (0x7fffe7, 23), (0xffffef, 24),
    (0x3fffda, 22), (0x1fffdd, 21), (0xfffe9, 20), (0x3fffdb, 22), (0x3fffdc, 22), (0x7fffe8, 23), (0x7fffe9, 23), (0x1fffde, 21),
    (0x7fffea, 23), (0x3fffdd, 22), (0x3fffde, 22), (0xfffff0, 24), (0x1fffdf, 21), (0x3fffdf, 22), (0x7fffeb, 23), (0x7fffec, 23),
    (0x1fffe0, 21), (0x1fffe1, 21), (0x3fffe0, 22), (0x1fffe2, 21), (0x7fffed, 23), (0x3fffe1, 22), (0x7fffee, 23), (0x7fffef, 23),
    (0xfffea, 20), (0x3fffe2, 22), (0x3fffe3, 22), (0x3fffe4, 22), (0x7ffff0, 23), (0x3fffe5, 22), (0x3fffe6, 22), (0x7ffff1, 23),
    (0x3ffffe0, 26), (0x3ffffe1, 26), (0xfffeb, 20), (0x7fff1, 19), (0x3fffe7, 22), (0x7ffff2, 23), (0x3fffe8, 22), (0x1ffffec, 25),
    (0x3ffffe2, 26), (0x3ffffe3, 26), (0x3ffffe4, 26), (0x7ffffde, 27), (0x7ffffdf, 27), (0x3ffffe5, 26), (0xfffff1, 24), (0x1ffffed, 25),
    (0x7fff2, 19), (0x1fffe3, 21), (0x3ffffe6, 26), (0x7ffffe0, 27), (0x7ffffe1, 27), (0x3ffffe7, 26), (0x7ffffe2, 27), (0xfffff2, 24),
    (0x1fffe4, 21), (0x1fffe5, 21), (0x3ffffe8, 26), (0x3ffffe9, 26), (0xffffffd, 28), (0x7ffffe3, 27), (0x7ffffe4, 27), (0x7ffffe5, 27),
    (0xfffec, 20), (0xfffff3, 24), (0xfffed, 20), (0x1fffe6, 21), (0x3fffe9, 22), (0x1fffe7, 21), (0x1fffe8, 21), (0x7ffff3, 23),
    (0x3fffea, 22), (0x3fffeb, 22), (0x1ffffee, 25), (0x1ffffef, 25), (0xfffff4, 24), (0xfffff5, 24), (0x3ffffea, 26), (0x7ffff4, 23),
    (0x3ffffeb, 26), (0x7ffffe6, 27), (0x3ffffec, 26), (0x3ffffed, 26), (0x7ffffe7, 27), (0x7ffffe8, 27), (0x7ffffe9, 27), (0x7ffffea, 27),
    (0x7ffffeb, 27), (0xffffffe, 28), (0x7ffffec, 27), (0x7ffffed, 27), (0x7ffffee, 27), (0x7ffffef, 27), (0x7fffff0, 27), (0x3ffffee, 26),
];

/// The longest code; EOS, all ones, is the last of this length.
const LEN_MAX: usize = 30;

/// The code is canonical: codes of one length are consecutive numbers in the order of `symbols`, and
/// less than those of the next length. So a code's symbol follows from its distance to the first.
struct Canonical {
    /// By the next eight bits: symbol and length of a code that is no longer than that, or length 0.
    short: [(u8, u8); 256],
    /// By length: the end of its codes, aligned to the left of 32 bits.
    end: [u64; LEN_MAX + 1],
    /// By length: the first code.
    first: [u32; LEN_MAX + 1],
    /// By length: where its symbols begin.
    start: [u16; LEN_MAX + 1],
    /// Sorted by code.
    symbols: [u8; 256],
}

const CANONICAL: Canonical = canonical();

#[allow(clippy::cast_possible_truncation)] // symbols and lengths are below 256
const fn canonical() -> Canonical {
    let mut table = Canonical {
        short: [(0, 0); 256],
        end: [0; LEN_MAX + 1],
        first: [0; LEN_MAX + 1],
        start: [0; LEN_MAX + 1],
        symbols: [0; 256],
    };
    let (mut len, mut count, mut code) = (1, 0_usize, 0_u32);
    while len <= LEN_MAX {
        code <<= 1;
        table.first[len] = code;
        table.start[len] = count as u16;
        // The symbol whose code is next: the code is complete, so that each follows the one before.
        let mut symbol = 0;
        while symbol < 256 {
            if CODES[symbol].1 as usize == len && CODES[symbol].0 == code {
                table.symbols[count] = symbol as u8;
                if len <= 8 {
                    fill(&mut table.short, code, len, symbol as u8);
                }
                count += 1;
                code += 1;
                symbol = 0;
            } else {
                symbol += 1;
            }
        }
        table.end[len] = (code as u64) << (32 - len);
        len += 1;
    }
    table
}

const fn fill(short: &mut [(u8, u8); 256], code: u32, len: usize, symbol: u8) {
    let mut at = (code << (8 - len)) as usize;
    let end = ((code + 1) << (8 - len)) as usize;
    while at < end {
        #[allow(clippy::cast_possible_truncation)] // at most 8
        let len = len as u8;
        short[at] = (symbol, len);
        at += 1;
    }
}

/// Appends what `coded` stands for.
///
/// # Errors
/// EOS inside, padding of eight bits and more, or padding other than ones.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Invalid> {
    let (mut bits, mut count) = (0_u64, 0_u32);
    let mut rest = coded.iter();
    out.reserve(coded.len() * 8 / 5 + 1);
    loop {
        while count <= 56 {
            let Some(&byte) = rest.next() else { break };
            bits = bits << 8 | u64::from(byte);
            count += 8;
        }
        if count == 0 {
            return Ok(());
        }
        let window = window(bits, count);
        let (symbol, len) = match CANONICAL.short[(window >> 24) as usize] {
            (_, 0) => long(window).ok_or(()).unwrap_or((None, LEN_MAX_U32)),
            (symbol, len) => (Some(symbol), u32::from(len)),
        };
        match symbol {
            Some(symbol) if len <= count => out.push(symbol),
            // Not enough bits for a code: padding, which is less than a byte and all ones.
            _ if count < 8 && window == u32::MAX => return Ok(()),
            _ => return Err(Invalid),
        }
        count -= len;
        bits &= (1 << count) - 1;
    }
}

#[allow(clippy::cast_possible_truncation)] // 30
const LEN_MAX_U32: u32 = LEN_MAX as u32;

/// The next 32 bits, with ones behind the last.
#[allow(clippy::cast_possible_truncation)] // cut to 32 bits on purpose
fn window(bits: u64, count: u32) -> u32 {
    if count >= 32 {
        (bits >> (count - 32)) as u32
    } else {
        (bits << (32 - count)) as u32 | (u32::MAX >> count)
    }
}

/// A code of more than eight bits: its symbol, `None` for EOS, and its length.
fn long(window: u32) -> Option<(Option<u8>, u32)> {
    for len in 9..=LEN_MAX {
        if u64::from(window) < CANONICAL.end[len] {
            let code = window >> (32 - len);
            let distance = code.checked_sub(CANONICAL.first[len])?;
            let index = usize::from(CANONICAL.start[len]) + distance as usize;
            let symbol = CANONICAL.symbols.get(index).copied();
            return u32::try_from(len).ok().map(|len| (symbol, len));
        }
    }
    None
}

/// Length of `plain` when coded, in bytes.
pub(super) fn coded_len(plain: &[u8]) -> usize {
    let bits: usize = plain.iter().map(|&byte| usize::from(CODES[usize::from(byte)].1)).sum();
    bits.div_ceil(8)
}

/// Appends `plain` in code.
#[allow(clippy::cast_possible_truncation)] // bytes are cut out of the bits on purpose
pub(super) fn encode(plain: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut count) = (0_u64, 0_u32);
    for &byte in plain {
        let (code, len) = CODES[usize::from(byte)];
        bits = bits << len | u64::from(code);
        count += u32::from(len);
        while count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        out.push((bits << (8 - count)) as u8 | (0xff >> count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, Invalid> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    #[test]
    fn examples_of_the_rfc() {
        // RFC 7541 appendices C.4 and C.6.
        for (plain, coded) in [
            (&b"www.example.com"[..], &b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..]),
            (b"no-cache", b"\xa8\xeb\x10\x64\x9c\xbf"),
            (b"custom-value", b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf"),
            (b"302", b"\x64\x02"),
            (b"private", b"\xae\xc3\x77\x1a\x4b"),
        ] {
            let mut out = Vec::new();
            encode(plain, &mut out);
            assert_eq!(out, coded);
            assert_eq!(coded_len(plain), coded.len());
            assert_eq!(decoded(coded).unwrap(), plain);
        }
    }

    #[test]
    fn every_symbol_by_itself_and_with_every_neighbour() {
        for first in 0..=255_u8 {
            for second in [0, b'0', b'a', 1, 22, 249, 255, first] {
                let plain = [first, second, first];
                let mut coded = Vec::new();
                encode(&plain, &mut coded);
                assert_eq!(decoded(&coded).unwrap(), plain);
            }
        }
    }

    #[test]
    fn padding_and_eos() {
        assert_eq!(decoded(b""), Ok(vec![]));
        assert_eq!(decoded(b"\x1f"), Ok(b"a".to_vec()), "00011 and 111");
        assert_eq!(decoded(b"\x18"), Err(Invalid), "padding of zeros");
        assert_eq!(decoded(b"\x1f\xff"), Err(Invalid), "padding of eleven bits");
        assert_eq!(decoded(b"\xff"), Err(Invalid), "padding of eight bits");
        assert_eq!(decoded(b"\xff\xff\xff\xff"), Err(Invalid), "EOS");
        assert_eq!(decoded(b"\xff\xff\xff\xfc\x1f"), Err(Invalid), "EOS and more");
    }
}

//! The hash behind every keyed choice: the same on every run, machine and version of Ringgate, so
//! that a restart or a second box sends a client to the same server.
//!
//! Eight bytes a step are folded in by a 64 × 64 → 128 bit multiplication whose halves are xored
//! (the construction of wyhash and its family), then the result passes SplitMix64's finaliser. It
//! is not keyed: who knows it can aim at one server, as anybody can by trying keys. Do not use it
//! for tables that must withstand crafted collisions.

use std::net::IpAddr;

/// 2^64 divided by the golden ratio, odd: the increment of SplitMix64.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const START: u64 = 0x243f_6a88_85a3_08d3;
const FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

/// Hash of a byte string (a host name, a URI, a server's address as text).
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    let state = words.iter().fold(START, |state, word| fold(state ^ u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    // The length tells a padded tail from one that ends in zeros.
    let length = (bytes.len() as u64).wrapping_mul(GOLDEN);
    mix(fold(state ^ u64::from_le_bytes(last)) ^ length)
}

/// Hash of a client's whole address (nginx's `ip_hash` takes the first three bytes of IPv4 only,
/// which puts a whole /24 on one server). An IPv4 address and its mapped IPv6 form are the same
/// client.
#[must_use]
pub fn hash_ip(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(v4) => hash(&v4.octets()),
        IpAddr::V6(v6) => hash(&v6.octets()),
    }
}

/// Spreads a number over all 64 bits; a bijection (SplitMix64's finaliser).
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Maps a hash to `0..bound` without division (0 for a bound of 0); the high bits decide.
#[must_use]
pub fn below(hash: u64, bound: u64) -> u64 {
    hash.carrying_mul(bound, 0).1
}

fn fold(value: u64) -> u64 {
    let (low, high) = value.carrying_mul(FACTOR, 0);
    low ^ high
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// These values are part of the behaviour: a change moves every client to another server.
    #[test]
    fn stable() {
        // Computed by a separate implementation.
        let table: [(&[u8], u64); 4] = [
            (b"", 0x1262_5b66_0730_2978),
            (b"a", 0xc36d_f8bc_837f_ecf8),
            (b"10.0.0.1:80", 0x4d47_f549_d850_4f57),
            (&[0; 16], 0xb2fe_43f1_55b1_add4),
        ];
        for (bytes, expected) in table {
            assert_eq!(hash(bytes), expected, "{:#018x} for {bytes:?}", hash(bytes));
        }
    }

    #[test]
    fn mapped_addresses_are_the_same_client() {
        let v4: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(hash_ip(v4), hash_ip("::ffff:192.0.2.7".parse().unwrap()));
        assert_ne!(hash_ip(v4), hash_ip("192.0.2.8".parse().unwrap()));
    }

    #[test]
    fn short_strings_and_zeros_do_not_collide() {
        let mut seen = HashSet::new();
        for length in 0..100 {
            assert!(seen.insert(hash(&vec![0; length])), "zeros of length {length}");
        }
        for a in 0..=255_u8 {
            for b in 0..=255 {
                assert!(seen.insert(hash(&[a, b, 1])));
            }
        }
    }

    /// Each input bit flips each output bit about half of the time.
    #[test]
    fn avalanche() {
        let (inputs, length) = (2000_u32, 20);
        let mut flips = vec![[0_u32; 64]; length * 8];
        for seed in 0..u64::from(inputs) {
            let mut bytes: Vec<u8> =
                (0..length as u64).map(|at| mix(seed * 1000 + at).to_le_bytes()[0]).collect();
            let plain = hash(&bytes);
            for (bit, counts) in flips.iter_mut().enumerate() {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let changed = plain ^ hash(&bytes);
                bytes[bit / 8] ^= 1 << (bit % 8);
                counts
                    .iter_mut()
                    .enumerate()
                    .for_each(|(at, n)| *n += u32::from(changed >> at & 1 == 1));
            }
        }
        for counts in flips {
            for count in counts {
                let share = f64::from(count) / f64::from(inputs);
                assert!((0.42..0.58).contains(&share), "{share}");
            }
        }
    }

    #[test]
    fn neighbouring_addresses_spread_evenly() {
        let mut counts = [0_u32; 10];
        for host in 0..=u16::MAX {
            let [a, b] = host.to_be_bytes();
            counts[usize::try_from(below(hash_ip(IpAddr::from([10, 0, a, b])), 10)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|n| (6300..6810).contains(n)), "{counts:?}");
    }

    #[test]
    fn below_covers_the_range() {
        assert_eq!(below(u64::MAX, 0), 0);
        assert_eq!(below(u64::MAX, 7), 6);
        assert_eq!(below(0, 7), 0);
        assert_eq!(below(u64::MAX, u64::MAX), u64::MAX - 1);
    }
}

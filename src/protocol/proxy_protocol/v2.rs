//! Version 2, the binary header (section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Error, Header, Parsed, same_family, signature};

/// Longest v2 header accepted, in bytes. The format could declare 65551; addresses need 232, and
/// 4096 leaves ample room for TLVs such as a client certificate's subject.
pub const HEADER_MAX: usize = 4096;

pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length of what follows.
const FIXED: usize = 16;

const TLV_HEAD: usize = 3;
const TLV_CRC32C: u8 = 0x03;
const TLV_UNIQUE_ID: u8 = 0x05;
const UNIQUE_ID_MAX: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// The block is discarded whole, as section 2.2 demands of `LOCAL`.
    Local,
    Unspecified,
    Ipv4,
    Ipv6,
    Unix,
}

impl Family {
    fn address_bytes(self) -> usize {
        match self {
            Self::Local | Self::Unspecified => 0,
            Self::Ipv4 => 12,
            Self::Ipv6 => 36,
            Self::Unix => 216,
        }
    }
}

pub(super) fn parse(input: &[u8]) -> Result<Parsed, Error> {
    if !signature(input, SIGNATURE)? {
        return Ok(Parsed::Incomplete);
    }
    let Some(&command) = input.get(SIGNATURE.len()) else { return Ok(Parsed::Incomplete) };
    let local = is_local(command)?;
    let Some(&family) = input.get(SIGNATURE.len() + 1) else { return Ok(Parsed::Incomplete) };
    let family = if local { Family::Local } else { family_of(family)? };
    let Some(&length) = input.get(SIGNATURE.len() + 2..).and_then(|rest| rest.first_chunk()) else {
        return Ok(Parsed::Incomplete);
    };
    let total = FIXED + usize::from(u16::from_be_bytes(length));
    if total > HEADER_MAX {
        return Err(Error::TooLong);
    }
    if total < FIXED + family.address_bytes() {
        return Err(Error::TooShort);
    }
    let here = input.get(..total);
    let checksum_at = match family {
        Family::Local => None,
        _ => walk_tlvs(here.unwrap_or(input), FIXED + family.address_bytes(), total)?,
    };
    let Some(header) = here else { return Ok(Parsed::Incomplete) };
    if checksum_at.is_some_and(|at| !checksum_holds(header, at)) {
        return Err(Error::Checksum);
    }
    let block = header.get(FIXED..).unwrap_or_default();
    Ok(Parsed::Complete { header: Header { addresses: addresses(family, block) }, consumed: total })
}

fn is_local(byte: u8) -> Result<bool, Error> {
    match (byte >> 4, byte & 0x0f) {
        (2, 0) => Ok(true),
        (2, 1) => Ok(false),
        (2, _) => Err(Error::Command),
        _ => Err(Error::Version),
    }
}

/// Stream and datagram alike: the transport says how the client came, the addresses hold.
fn family_of(byte: u8) -> Result<Family, Error> {
    match byte {
        0x00 => Ok(Family::Unspecified),
        0x11 | 0x12 => Ok(Family::Ipv4),
        0x21 | 0x22 => Ok(Family::Ipv6),
        0x31 | 0x32 => Ok(Family::Unix),
        _ => Err(Error::Family),
    }
}

/// Checks the TLVs from `at` to `total` as far as they have arrived; returns where the value of
/// the checksum stands. Sub-TLVs of the TLS type are not entered: nothing here uses them.
fn walk_tlvs(here: &[u8], mut at: usize, total: usize) -> Result<Option<usize>, Error> {
    let mut checksum_at = None;
    while at < total {
        let room = (total - at).checked_sub(TLV_HEAD).ok_or(Error::Tlv)?;
        let head = here.get(at..).and_then(|rest| rest.first_chunk());
        let Some(&[kind, high, low]) = head else { break };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let value_at = at + TLV_HEAD;
        let fits = match kind {
            TLV_CRC32C => length == 4 && checksum_at.replace(value_at).is_none(),
            TLV_UNIQUE_ID => length <= UNIQUE_ID_MAX,
            _ => true,
        };
        if length > room || !fits {
            return Err(Error::Tlv);
        }
        at = value_at + length;
    }
    Ok(checksum_at)
}

/// The checksum is taken with its own four bytes zero.
fn checksum_holds(header: &[u8], at: usize) -> bool {
    let Some((before, rest)) = header.split_at_checked(at) else { return false };
    let Some((&value, after)) = rest.split_first_chunk() else { return false };
    let crc = [before, &[0; 4], after].into_iter().fold(!0, crc32c_update);
    !crc == u32::from_be_bytes(value)
}

/// CRC32c (RFC 3720 section 12.1 and appendix B.4), reflected polynomial.
const CRC32C_TABLE: [u32; 256] = {
    let mut table = [0_u32; 256];
    let mut index = 0;
    let mut byte = 0_u32;
    while index < table.len() {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
        byte += 1;
    }
    table
};

fn crc32c_update(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ CRC32C_TABLE[usize::from(low ^ byte)]
    })
}

fn addresses(family: Family, block: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    match family {
        Family::Ipv4 => pair::<4, Ipv4Addr>(block),
        Family::Ipv6 => pair::<16, Ipv6Addr>(block),
        Family::Local | Family::Unspecified | Family::Unix => None,
    }
}

/// Source address, destination address, source port, destination port.
fn pair<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(
    block: &[u8],
) -> Option<(SocketAddr, SocketAddr)> {
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (target, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk()?;
    let (target_port, _) = rest.split_first_chunk()?;
    let socket = |ip: &[u8; N], port: &[u8; 2]| {
        SocketAddr::new(A::from(*ip).into(), u16::from_be_bytes(*port))
    };
    Some((socket(source, source_port), socket(target, target_port)))
}

/// Appends a v2 header (`PROXY`, stream, no TLVs); addresses of different families are both
/// written as IPv6 (IPv4 mapped).
pub fn encode(out: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr) {
    let (s, d) = same_family(source.ip(), destination.ip());
    out.extend_from_slice(SIGNATURE);
    match (s, d) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&s.octets());
            out.extend_from_slice(&d.octets());
        }
        (s, d) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&v6_octets(s));
            out.extend_from_slice(&v6_octets(d));
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

fn v6_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::parse;
    use super::super::tests::{assert_torn, complete};
    use super::*;

    const V4_BLOCK: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 0, 80, 1, 187];

    fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, block].concat()
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind], &length[..], value].concat()
    }

    fn v4_with(tlvs: &[Vec<u8>]) -> Vec<u8> {
        header(0x21, 0x11, &[&V4_BLOCK[..], &tlvs.concat()].concat())
    }

    /// Computes the checksum bit by bit, apart from the table under test.
    fn set_checksum(header: &mut [u8], at: usize) {
        header[at..at + 4].fill(0);
        let mut crc = !0_u32;
        for byte in &*header {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            }
        }
        header[at..at + 4].copy_from_slice(&(!crc).to_be_bytes());
    }

    #[test]
    fn crc32c_vectors() {
        assert_eq!(!crc32c_update(!0, b"123456789"), 0xe306_9283);
        // RFC 3720 appendix B.4.
        assert_eq!(!crc32c_update(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c_update(!0, &[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn valid_headers() {
        let v4 = Some(("1.2.3.4:80".parse().unwrap(), "5.6.7.8:443".parse().unwrap()));
        let unix = [b'/'; 216];
        let mut v6_block = [0_u8; 36];
        v6_block[15] = 1;
        v6_block[31] = 2;
        v6_block[33] = 3;
        v6_block[35] = 4;
        let v6 = Some(("[::1]:3".parse().unwrap(), "[::2]:4".parse().unwrap()));
        let noop = tlv(0x04, &[0; 9]);
        let table = [
            (header(0x21, 0x11, &V4_BLOCK), v4),
            (header(0x21, 0x12, &V4_BLOCK), v4),
            (header(0x21, 0x21, &v6_block), v6),
            (header(0x21, 0x22, &v6_block), v6),
            (header(0x21, 0x31, &unix), None),
            (header(0x21, 0x32, &unix), None),
            (header(0x21, 0x00, &[]), None),
            (header(0x21, 0x00, &noop), None),
            // LOCAL: whatever the block is, it is skipped.
            (header(0x20, 0x00, &[]), None),
            (header(0x20, 0x11, &V4_BLOCK), None),
            (header(0x20, 0xff, &[1, 2]), None),
            (v4_with(std::slice::from_ref(&noop)), v4),
            (v4_with(&[tlv(0x04, &[]), tlv(0x01, b"h2"), tlv(0xee, &[7; 300])]), v4),
            (v4_with(&[tlv(TLV_UNIQUE_ID, &[1; 128])]), v4),
            (v4_with(&[tlv(0x04, &vec![0; HEADER_MAX - FIXED - 12 - 3])]), v4),
        ];
        for (bytes, addresses) in table {
            assert_torn(&bytes);
            assert_eq!(complete(&bytes).0, addresses, "{}", bytes.escape_ascii());
        }
    }

    /// Each header fails as soon as its first `at` bytes are there, and not before.
    #[test]
    fn invalid_headers_fail_early() {
        let checksum = tlv(TLV_CRC32C, &[0; 4]);
        let table = [
            (header(0x11, 0x11, &V4_BLOCK), 13, Error::Version),
            (header(0x31, 0x11, &V4_BLOCK), 13, Error::Version),
            (header(0x22, 0x11, &V4_BLOCK), 13, Error::Command),
            (header(0x21, 0x10, &V4_BLOCK), 14, Error::Family),
            (header(0x21, 0x13, &V4_BLOCK), 14, Error::Family),
            (header(0x21, 0x01, &[]), 14, Error::Family),
            (header(0x21, 0x41, &V4_BLOCK), 14, Error::Family),
            (header(0x21, 0x11, &V4_BLOCK[..11]), 16, Error::TooShort),
            (header(0x21, 0x21, &[0; 35]), 16, Error::TooShort),
            (header(0x21, 0x31, &[0; 215]), 16, Error::TooShort),
            (header(0x20, 0x00, &[0; HEADER_MAX - FIXED + 1]), 16, Error::TooLong),
            // One and two bytes left over, known from the length alone.
            (v4_with(&[vec![4]]), 16, Error::Tlv),
            (v4_with(&[vec![4, 0]]), 16, Error::Tlv),
            (v4_with(&[tlv(4, &[]), vec![4, 0]]), 31, Error::Tlv),
            (v4_with(&[vec![4, 0, 2, 0]]), 31, Error::Tlv),
            (v4_with(&[vec![4, 0xff, 0xff, 0]]), 31, Error::Tlv),
            (v4_with(&[tlv(TLV_CRC32C, &[0; 3])]), 31, Error::Tlv),
            (v4_with(&[tlv(TLV_CRC32C, &[0; 5])]), 31, Error::Tlv),
            (v4_with(&[checksum.clone(), checksum]), 38, Error::Tlv),
            (v4_with(&[tlv(TLV_UNIQUE_ID, &[1; 129])]), 31, Error::Tlv),
        ];
        for (bytes, at, error) in table {
            let shown = bytes.escape_ascii();
            assert_eq!(parse(&bytes[..at - 1]), Ok(Parsed::Incomplete), "{shown}");
            assert_eq!(parse(&bytes[..at]), Err(error), "{shown}");
            assert_eq!(parse(&bytes), Err(error), "{shown}");
        }
    }

    #[test]
    fn mixed_families_are_mapped() {
        let mut out = Vec::new();
        encode(&mut out, "[2001:db8::1]:6".parse().unwrap(), "1.2.3.4:5".parse().unwrap());
        let target = "[::ffff:1.2.3.4]:5".parse().unwrap();
        assert_eq!(complete(&out).0, Some(("[2001:db8::1]:6".parse().unwrap(), target)));
    }

    proptest! {
        /// A right checksum passes, and any single changed byte behind the fixed part fails.
        #[test]
        fn checksum_is_verified(
            before in prop::collection::vec(any::<u8>(), 0..40),
            after in prop::collection::vec(any::<u8>(), 0..40),
            flip in 1_u8..,
            at in any::<prop::sample::Index>(),
        ) {
            let value_at = FIXED + 12 + TLV_HEAD + before.len() + TLV_HEAD;
            let tlvs = [tlv(0xe0, &before), tlv(TLV_CRC32C, &[0; 4]), tlv(0xe1, &after)];
            let mut bytes = v4_with(&tlvs);
            set_checksum(&mut bytes, value_at);
            assert_torn(&bytes);
            // Addresses and the checksum itself: a change there cannot break the structure.
            let places: Vec<usize> = (FIXED..FIXED + 12).chain(value_at..value_at + 4).collect();
            bytes[places[at.index(places.len())]] ^= flip;
            prop_assert_eq!(parse(&bytes), Err(Error::Checksum));
            prop_assert_eq!(parse(&bytes[..bytes.len() - 1]), Ok(Parsed::Incomplete));
        }
    }
}

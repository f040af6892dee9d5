//! The PROXY protocol, versions 1 and 2, pure (HAProxy's `doc/proxy-protocol.txt`, sections 2.1
//! and 2.2).
//!
//! [`parse`] judges a prefix as early as its bytes allow, so that a peer which speaks something
//! else is refused on its first wrong byte and never waited for. Which peers may send a header at
//! all is the caller's decision, to be taken before.

mod v1;
mod v2;

use std::net::{IpAddr, SocketAddr};

pub use v1::{LINE_MAX, encode as encode_v1};
pub use v2::{HEADER_MAX, encode as encode_v2};

/// Outcome of [`parse`] on bytes that are no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The bytes so far begin a header; at most [`HEADER_MAX`] will be needed.
    Incomplete,
    /// A whole header.
    Complete {
        /// What it says.
        header: Header,
        /// Its length in bytes; the connection's own data follow.
        consumed: usize,
    },
}

/// What a header says about the connection it stands before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Source and destination, of the same family. `None` for v1 `UNKNOWN` and v2 `LOCAL`,
    /// `AF_UNSPEC` and `AF_UNIX`: the real addresses of the connection hold.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Why bytes are no header. None of these can be cured by more bytes: close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The peer does not speak the PROXY protocol.
    Signature,
    /// v2: the version is not 2.
    Version,
    /// v2: the command is neither `LOCAL` nor `PROXY`.
    Command,
    /// The family or transport is not one of those defined.
    Family,
    /// v1: an address is malformed or of the other family.
    Address,
    /// v1: a port is malformed, has a leading zero or exceeds 65535.
    Port,
    /// v1: the line does not end in CR LF where it has to.
    LineEnd,
    /// Longer than [`LINE_MAX`] (v1) or [`HEADER_MAX`] (v2).
    TooLong,
    /// v2: the declared length has no room for the family's addresses.
    TooShort,
    /// v2: a TLV exceeds the header, is cut short, or has a length its type forbids.
    Tlv,
    /// v2: the CRC32c in the header is not that of the header.
    Checksum,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Signature => "not a PROXY protocol header",
            Self::Version => "unknown PROXY protocol version",
            Self::Command => "unknown PROXY protocol command",
            Self::Family => "unknown PROXY protocol address family or transport",
            Self::Address => "malformed address in PROXY protocol header",
            Self::Port => "malformed port in PROXY protocol header",
            Self::LineEnd => "PROXY protocol line does not end in CR LF",
            Self::TooLong => "PROXY protocol header too long",
            Self::TooShort => "PROXY protocol header too short for its addresses",
            Self::Tlv => "malformed TLV in PROXY protocol header",
            Self::Checksum => "wrong checksum in PROXY protocol header",
        })
    }
}

impl std::error::Error for Error {}

/// Reads the header at the start of a connection, of either version.
///
/// [`Parsed::Incomplete`] is returned only while the bytes can still become a header: a v1 line is
/// judged byte by byte, the fields of v2 (and the head of each TLV) as soon as the whole field is
/// there. The checksum of v2 can only be judged at the end.
///
/// # Errors
///
/// See [`Error`]; all of them are final.
pub fn parse(input: &[u8]) -> Result<Parsed, Error> {
    match input.first() {
        None => Ok(Parsed::Incomplete),
        Some(b'P') => v1::parse(input),
        Some(b'\r') => v2::parse(input),
        Some(_) => Err(Error::Signature),
    }
}

/// Checks `input` against a fixed beginning: true when all of it is there.
fn signature(input: &[u8], expected: &[u8]) -> Result<bool, Error> {
    let have = input.len().min(expected.len());
    if input.iter().zip(expected).any(|(a, b)| a != b) {
        return Err(Error::Signature);
    }
    Ok(have == expected.len())
}

/// The two addresses in one family, IPv4 mapped into IPv6 (RFC 4291 section 2.5.5.2) if they
/// differ.
fn same_family(source: IpAddr, destination: IpAddr) -> (IpAddr, IpAddr) {
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V6(_)) => (s.to_ipv6_mapped().into(), destination),
        (IpAddr::V6(_), IpAddr::V4(d)) => (source, d.to_ipv6_mapped().into()),
        _ => (source, destination),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn complete(input: &[u8]) -> (Option<(SocketAddr, SocketAddr)>, usize) {
        match parse(input) {
            Ok(Parsed::Complete { header, consumed }) => (header.addresses, consumed),
            other => panic!("{other:?} for {:?}", input.escape_ascii().to_string()),
        }
    }

    /// Every proper prefix is incomplete, and what follows the header changes nothing.
    pub(super) fn assert_torn(header: &[u8]) {
        for cut in 0..header.len() {
            assert_eq!(parse(&header[..cut]), Ok(Parsed::Incomplete), "cut at {cut}");
        }
        let whole = complete(header);
        assert_eq!(whole.1, header.len());
        let mut longer = header.to_vec();
        longer.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(complete(&longer), whole);
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        // Sparse groups, so that every form of `::` and of mapped addresses turns up.
        let v6 = prop::array::uniform8(prop_oneof![Just(0_u16), Just(0xffff), any::<u16>()]);
        let ip = prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 4]>()
                .prop_map(|v4| std::net::Ipv4Addr::from(v4).to_ipv6_mapped())
                .prop_map(IpAddr::from),
            v6.prop_map(IpAddr::from),
        ];
        (ip, any::<u16>()).prop_map(SocketAddr::from)
    }

    fn expected(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
        let (s, d) = same_family(source.ip(), destination.ip());
        ((s, source.port()).into(), (d, destination.port()).into())
    }

    #[test]
    fn other_protocols_fail_on_their_first_wrong_byte() {
        let table: [(&[u8], usize); 6] = [
            (b"GET / HTTP/1.1\r\n", 1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 3),
            (b"POST / HTTP/1.1\r\n", 2),
            (b"\r\nGET / HTTP/1.1\r\n", 3),
            (b"\x16\x03\x01\x02\x00", 1),
            (b"PROXY\tTCP4", 6),
        ];
        for (input, wrong_at) in table {
            assert_eq!(parse(&input[..wrong_at - 1]), Ok(Parsed::Incomplete));
            assert_eq!(parse(&input[..wrong_at]), Err(Error::Signature));
            assert_eq!(parse(input), Err(Error::Signature));
        }
    }

    proptest! {
        #[test]
        fn round_trip_and_torn_v1(source in address(), destination in address()) {
            let mut out = Vec::new();
            encode_v1(&mut out, source, destination);
            prop_assert!(out.len() <= LINE_MAX);
            assert_torn(&out);
            prop_assert_eq!(complete(&out).0, Some(expected(source, destination)));
        }

        #[test]
        fn round_trip_and_torn_v2(source in address(), destination in address()) {
            let mut out = Vec::new();
            encode_v2(&mut out, source, destination);
            assert_torn(&out);
            prop_assert_eq!(complete(&out).0, Some(expected(source, destination)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            start in prop::sample::select(vec![
                &b""[..], b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN",
                v2::SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20",
            ]),
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let input = [start, &rest].concat();
            if let Ok(Parsed::Complete { consumed, .. }) = parse(&input) {
                prop_assert!(consumed <= input.len());
            }
        }

        /// More bytes never turn an error into anything else, nor a header into another.
        #[test]
        fn verdicts_are_final(
            source in address(), destination in address(), v2 in any::<bool>(),
            at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut out = Vec::new();
            if v2 {
                encode_v2(&mut out, source, destination);
            } else {
                encode_v1(&mut out, source, destination);
            }
            let at = at.index(out.len());
            out[at] = byte;
            let mut last = Ok(Parsed::Incomplete);
            for cut in 0..=out.len() {
                let now = parse(&out[..cut]);
                if last != Ok(Parsed::Incomplete) {
                    prop_assert_eq!(now, last);
                }
                last = now;
            }
        }
    }
}

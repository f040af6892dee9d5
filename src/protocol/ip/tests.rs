use proptest::prelude::*;

use super::*;

/// An IPv4 header with the given flags and fragment offset, then `payload`.
fn v4(flags: u16, options: usize, payload: &[u8]) -> Vec<u8> {
    let header = V4_HEADER + options;
    let mut bytes = vec![0; header];
    bytes[0] = 0x40 | u8::try_from(header / 4).unwrap();
    bytes[2..4].copy_from_slice(&u16::try_from(header + payload.len()).unwrap().to_be_bytes());
    bytes[4..6].copy_from_slice(&[0x12, 0x34]);
    bytes[6..8].copy_from_slice(&flags.to_be_bytes());
    bytes[9] = TCP;
    bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 192, 0, 2, 7]);
    bytes.extend_from_slice(payload);
    bytes
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; V6_HEADER];
    bytes[0] = 0x60;
    bytes[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes[6] = next;
    bytes[23] = 1;
    bytes[39] = 2;
    bytes.extend_from_slice(payload);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Packet, Error> {
    Packet::parse(bytes, bytes.len())
}

#[test]
fn v4_fields() {
    let bytes = v4(0x4000, 8, b"data");
    let packet = parse(&bytes).unwrap();
    assert_eq!(packet.source.to_string(), "10.0.0.1");
    assert_eq!(packet.destination.to_string(), "192.0.2.7");
    assert_eq!((packet.protocol, packet.payload, packet.length), (TCP, 28, 32));
    assert!(packet.dont_fragment && packet.fragment.is_none());
    // The frame's padding is not part of the packet.
    assert_eq!(Packet::parse(&bytes, 60).unwrap().length, 32);
}

#[test]
fn v4_fragments() {
    let fragment = |flags| parse(&v4(flags, 0, b"12345678")).unwrap().fragment;
    assert_eq!(fragment(0x2000), Some(Fragment { id: 0x1234, offset: 0, more: true }));
    assert_eq!(fragment(0x0001), Some(Fragment { id: 0x1234, offset: 8, more: false }));
    assert_eq!(fragment(0x3fff), Some(Fragment { id: 0x1234, offset: 65_528, more: true }));
    assert_eq!(fragment(0x0000), None);
}

#[test]
fn v4_refused() {
    let good = v4(0, 4, b"data");
    for cut in 0..24 {
        assert_eq!(Packet::parse(&good[..cut], good.len()), Err(Error::Truncated), "{cut}");
    }
    assert_eq!(Packet::parse(&good, good.len() - 1), Err(Error::Length));
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        parse(&bytes)
    };
    assert_eq!(with(0, 0x44), Err(Error::Header));
    assert_eq!(with(0, 0x55), Err(Error::Version));
    assert_eq!(with(3, 23), Err(Error::Length));
    assert_eq!(parse(&[]), Err(Error::Truncated));
}

#[test]
fn v6_extensions() {
    // Hop-by-hop of 16 bytes, destination options of 8, AH of 16 bytes, then UDP.
    let mut rest = vec![60, 1];
    rest.extend([0; 14]);
    rest.extend([51, 0, 0, 0, 0, 0, 0, 0]);
    rest.extend([UDP, 2]);
    rest.extend([0; 14]);
    rest.extend(*b"12345678");
    let packet = parse(&v6(0, &rest)).unwrap();
    assert_eq!((packet.protocol, packet.payload), (UDP, V6_HEADER + 40));
    assert_eq!(packet.length, V6_HEADER + rest.len());
    assert_eq!(packet.source.to_string(), "::1");
}

#[test]
fn v6_fragments() {
    let header = |field: u16| {
        let [a, b] = field.to_be_bytes();
        vec![UDP, 0, a, b, 0, 1, 2, 3, 9, 9, 9, 9, 9, 9, 9, 9]
    };
    let fragment = |field| parse(&v6(44, &header(field))).unwrap();
    let first = fragment(1);
    assert_eq!(first.fragment, Some(Fragment { id: 0x0001_0203, offset: 0, more: true }));
    assert_eq!((first.protocol, first.payload), (UDP, V6_HEADER + 8));
    assert_eq!(fragment(8).fragment, Some(Fragment { id: 0x0001_0203, offset: 8, more: false }));
    // RFC 6946: neither offset nor more: whole.
    assert_eq!(fragment(0).fragment, None);
    // A later fragment's data is not walked, even if it looks like a header.
    let mut later = header(8);
    later[0] = 60;
    let packet = parse(&v6(44, &later)).unwrap();
    assert_eq!((packet.protocol, packet.payload), (60, V6_HEADER + 8));
}

#[test]
fn v6_refused() {
    let options = |count: usize| {
        let mut rest = Vec::new();
        (0..count).for_each(|_| rest.extend([60, 0, 0, 0, 0, 0, 0, 0]));
        let end = rest.len() - 8;
        rest[end] = TCP;
        rest
    };
    assert!(parse(&v6(60, &options(8))).is_ok());
    assert_eq!(parse(&v6(60, &options(9))), Err(Error::Extensions));
    let good = v6(60, &options(2));
    for cut in 1..V6_HEADER + 16 {
        assert_eq!(Packet::parse(&good[..cut], good.len()), Err(Error::Truncated), "{cut}");
    }
    assert_eq!(Packet::parse(&good, good.len() - 1), Err(Error::Length));
    // The header runs past the packet's end into the frame's padding.
    let mut short = v6(60, &[TCP, 1, 0, 0, 0, 0, 0, 0]);
    short.extend([0; 32]);
    assert_eq!(parse(&short), Err(Error::Length));
}

proptest! {
    /// Whatever comes, the payload lies inside the packet and the packet inside the frame.
    #[test]
    fn bounds(mut bytes in prop::collection::vec(any::<u8>(), 0..200), version in 0_u8..3) {
        if let Some(first) = bytes.first_mut() && version > 0 {
            *first = if version == 1 { 0x40 | (*first & 0xf) } else { 0x60 };
        }
        if let Ok(packet) = parse(&bytes) {
            prop_assert!(packet.payload <= packet.length && packet.length <= bytes.len());
        }
        if let Ok(packet) = Packet::parse_quoted(&bytes) {
            prop_assert!(packet.payload <= bytes.len());
        }
    }
}

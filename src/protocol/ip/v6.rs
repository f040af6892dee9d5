//! IPv6 and its extension headers (RFC 8200 sections 3 and 4).

use std::net::Ipv6Addr;

use super::{Error, Fragment, Packet, V6_HEADER, word};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers that are walked; a packet with more is refused.
const EXTENSIONS_MAX: usize = 8;

pub(super) fn parse(bytes: &[u8], wire: usize) -> Result<Packet, Error> {
    let head: &[u8; V6_HEADER] = bytes.first_chunk().ok_or(Error::Truncated)?;
    let length = V6_HEADER + word(head, 4).map_or(0, usize::from);
    if length > wire {
        return Err(Error::Length);
    }
    let address = |at: usize| {
        let octets: [u8; 16] = head[at..].first_chunk().copied().unwrap_or_default();
        Ipv6Addr::from(octets)
    };
    let mut packet = Packet {
        source: address(8).into(),
        destination: address(24).into(),
        protocol: head[6],
        payload: V6_HEADER,
        length,
        fragment: None,
        dont_fragment: true,
    };
    for _ in 0..=EXTENSIONS_MAX {
        if !step(&mut packet, bytes)? {
            return if packet.payload > length { Err(Error::Length) } else { Ok(packet) };
        }
    }
    Err(Error::Extensions)
}

/// Goes over one extension header; false at the payload.
fn step(packet: &mut Packet, bytes: &[u8]) -> Result<bool, Error> {
    let units = match packet.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => {
            let head: &[u8; 8] = bytes
                .get(packet.payload..)
                .and_then(|rest| rest.first_chunk())
                .ok_or(Error::Truncated)?;
            let length = usize::from(head[1]);
            let size = match packet.protocol {
                // RFC 4302 section 2.2: in words of four bytes, less two.
                AUTHENTICATION => (length + 2) * 4,
                FRAGMENT => 8,
                _ => (length + 1) * 8,
            };
            if packet.protocol == FRAGMENT {
                packet.fragment = fragment(head);
            }
            packet.protocol = head[0];
            size
        }
        _ => return Ok(false),
    };
    packet.payload += units;
    if packet.payload > bytes.len() {
        return Err(Error::Truncated);
    }
    // Behind a later fragment's header comes data, whatever the next-header field says.
    Ok(packet.fragment.is_none_or(|fragment| fragment.offset == 0))
}

/// The fields of a fragment header; `None` for an atomic fragment, which is a whole datagram (RFC
/// 6946).
fn fragment(head: &[u8; 8]) -> Option<Fragment> {
    let field = word(head, 2)?;
    let (offset, more) = (field & !7, field & 1 == 1);
    let id = u32::from_be_bytes(*head.last_chunk()?);
    (offset != 0 || more).then_some(Fragment { id, offset, more })
}

//! Which director a frame belongs to, where there are several.
//!
//! Everything of one client and one virtual address goes to one director: then fragments meet
//! their flow, and ICMP errors the flow they are about. So the choice is made by the two addresses
//! alone, and for an ICMP error by those in the packet that it quotes.

use std::net::IpAddr;

use crate::balance::hash::mix;
use crate::protocol::ip::{self, Packet};
use crate::protocol::{ethernet, icmp};

/// A number that is the same for all frames of a client and a virtual address, whichever of them
/// is the sender; `None` for frames that are not IP.
#[must_use]
pub fn steer(frame: &[u8]) -> Option<u32> {
    let view = ethernet::View::parse(frame)?;
    let bytes = frame.get(view.payload..)?;
    let packet = Packet::parse(bytes, bytes.len().max(usize::from(u16::MAX) + 40)).ok()?;
    let about = match packet.protocol {
        ip::ICMP | ip::ICMPV6 if packet.fragment.is_none() => {
            icmp::quoted(packet.protocol, bytes.get(packet.payload..)?)
                .map_or(packet, |quoted| quoted.packet)
        }
        _ => packet,
    };
    Some(pair(about.source, about.destination))
}

/// Symmetric: the exclusive or of the addresses' words, mixed.
fn pair(a: IpAddr, b: IpAddr) -> u32 {
    let word = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.to_bits() ^ b.to_bits(),
        (a, b) => {
            let bits = |ip: IpAddr| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
                IpAddr::V6(v6) => v6.to_bits(),
            };
            let [a, b, c, d] = *(bits(a) ^ bits(b)).to_be_bytes().as_chunks::<4>().0 else {
                return 0;
            };
            [a, b, c, d].into_iter().fold(0, |sum, part| sum ^ u32::from_be_bytes(part))
        }
    };
    u32::try_from(mix(word.into()) >> 32).unwrap_or_default()
}

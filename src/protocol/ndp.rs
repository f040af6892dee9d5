//! Neighbour Discovery (RFC 4861): unsolicited Neighbour Advertisements, IPv6's gratuitous ARP.

use std::net::Ipv6Addr;

use super::checksum::Sum;
use super::ethernet::{self, Mac};

const IP_HEADER: usize = 40;
/// Neighbour Advertisement (24) and its Target Link-Layer Address option (8).
const MESSAGE: u16 = 32;
/// Length of the frames built here, Ethernet header included.
pub const FRAME: usize = ethernet::HEADER + IP_HEADER + MESSAGE as usize;

/// The next header value of ICMPv6.
pub(crate) const ICMPV6: u8 = 58;
/// Its type of a neighbour advertisement.
pub(crate) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const FLAG_ROUTER: u8 = 0x80;
const FLAG_OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// A frame to all nodes that says `target` is at `mac`: Override set, Solicited clear (RFC 4861
/// section 7.2.6), sent from `target` itself. `router` sets the Router flag, which hosts use to
/// keep `target` as a default router (RFC 9568 section 6.4.1 sets it always).
#[must_use]
pub fn unsolicited(mac: Mac, target: Ipv6Addr, router: bool) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let (header, packet) = frame.split_at_mut(ethernet::HEADER);
    if let Some(header) = header.first_chunk_mut() {
        ethernet::write_header(header, ALL_NODES_MAC, mac, ethernet::IPV6);
    }
    let (ip, message) = packet.split_at_mut(IP_HEADER);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&MESSAGE.to_be_bytes());
    ip[6] = ICMPV6;
    ip[7] = 255;
    ip[8..24].copy_from_slice(&target.octets());
    ip[24..].copy_from_slice(&ALL_NODES.octets());

    message[0] = NEIGHBOUR_ADVERTISEMENT;
    message[4] = FLAG_OVERRIDE | if router { FLAG_ROUTER } else { 0 };
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[2, 1]);
    message[26..].copy_from_slice(&mac.0);
    let sum = Sum::new().pseudo_v6(target, ALL_NODES, ICMPV6, MESSAGE).bytes(message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    frame
}

/// The address that a neighbour advertisement is about. `packet` is what follows the Ethernet header; `None` if it
/// is no advertisement, or was forwarded by a router (RFC 4861 section 7.1.2).
#[must_use]
pub fn advertised(packet: &[u8]) -> Option<Ipv6Addr> {
    let (ip, message) = packet.split_first_chunk::<IP_HEADER>()?;
    if ip[0] >> 4 != 6 || ip[6] != ICMPV6 || ip[7] != 255 {
        return None;
    }
    let ([NEIGHBOUR_ADVERTISEMENT, 0], rest) = message.split_first_chunk::<2>()? else {
        return None;
    };
    let target = rest.get(6..22)?.first_chunk::<16>()?;
    Some(Ipv6Addr::from(*target))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 7]);

    #[test]
    fn fields_stand_where_rfc_4861_puts_them() {
        let vip: Ipv6Addr = "2001:db8::100".parse().unwrap();
        let frame = unsolicited(MAC, vip, false);
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 7, 0x86, 0xdd]);
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[22..38], vip.octets());
        assert_eq!(frame[38..54], ALL_NODES.octets());
        assert_eq!(frame[54..56], [136, 0]);
        assert_eq!(frame[58..62], [0x20, 0, 0, 0]);
        assert_eq!(frame[62..78], vip.octets());
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 7]);
        let sum = Sum::new().pseudo_v6(vip, ALL_NODES, 58, 32).bytes(&frame[54..]);
        assert_eq!(sum.finish(), 0);
        assert_eq!(unsolicited(MAC, vip, true)[58], 0xa0);
    }

    #[test]
    fn only_advertisements_from_the_link_count() {
        let vip: Ipv6Addr = "2001:db8::100".parse().unwrap();
        let frame = unsolicited(MAC, vip, false);
        let packet = &frame[ethernet::HEADER..];
        assert_eq!(advertised(packet), Some(vip));
        for short in 0..62 {
            assert_eq!(advertised(&packet[..short]), None);
        }
        for (at, value) in [(0, 0x45), (6, 17), (7, 254), (40, 135), (41, 1)] {
            let mut other = packet.to_vec();
            other[at] = value;
            assert_eq!(advertised(&other), None, "{at}");
        }
    }
}

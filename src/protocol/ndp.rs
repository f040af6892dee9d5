//! Neighbour Discovery (RFC 4861): unsolicited Neighbour Advertisements, IPv6's gratuitous ARP.

use std::net::Ipv6Addr;

use super::checksum::Sum;
use super::ethernet::{self, Mac};

const IP_HEADER: usize = 40;
/// Neighbour Advertisement (24) and its Target Link-Layer Address option (8).
const MESSAGE: u16 = 32;
/// Length of the frames built here, Ethernet header included.
pub const FRAME: usize = ethernet::HEADER + IP_HEADER + MESSAGE as usize;

const NEIGHBOUR_SOLICITATION: u8 = 135;
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
    let flags = FLAG_OVERRIDE | if router { FLAG_ROUTER } else { 0 };
    build((ALL_NODES_MAC, ALL_NODES), (mac, target), NEIGHBOUR_ADVERTISEMENT, flags, target)
}

/// A frame that asks who has `target` (RFC 4861 section 4.3); the answer goes to `source` at `mac`. With
/// `to` only that host is asked.
#[must_use]
pub fn solicitation(mac: Mac, source: Ipv6Addr, target: Ipv6Addr, to: Option<Mac>) -> [u8; FRAME] {
    // The solicited-node multicast address (RFC 4291 section 2.7.1).
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000)
        | Ipv6Addr::from_bits(u32::from_be_bytes([0, a, b, c]).into());
    let to = to.map_or((Mac([0x33, 0x33, 0xff, a, b, c]), group), |mac| (mac, target));
    build(to, (mac, source), NEIGHBOUR_SOLICITATION, 0, target)
}

/// What a Neighbour Advertisement says: who is where. `packet` begins with its IPv6 header, without extensions;
/// `None` if it is something else, or came through a router (RFC 4861 section 7.1.2).
#[must_use]
pub fn claim(packet: &[u8]) -> Option<(Mac, Ipv6Addr)> {
    let (ip, message) = packet.split_at_checked(IP_HEADER)?;
    let [_, _, _, _, _, _, ICMPV6, 255, ..] = *ip else { return None };
    let (head, mut options) = message.split_first_chunk::<24>()?;
    if head[..2] != [NEIGHBOUR_ADVERTISEMENT, 0] {
        return None;
    }
    let target = Ipv6Addr::from(*head.last_chunk::<16>()?);
    while let [kind, eights, ..] = *options {
        let len = usize::from(eights) * 8;
        let option = options.get(..len).filter(|option| !option.is_empty())?;
        if kind == 2 {
            return Some((Mac(*option.get(2..)?.first_chunk()?), target));
        }
        options = options.get(len..)?;
    }
    None
}

fn build(
    to: (Mac, Ipv6Addr),
    from: (Mac, Ipv6Addr),
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let (header, packet) = frame.split_at_mut(ethernet::HEADER);
    if let Some(header) = header.first_chunk_mut() {
        ethernet::write_header(header, to.0, from.0, ethernet::IPV6);
    }
    let (ip, message) = packet.split_at_mut(IP_HEADER);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&MESSAGE.to_be_bytes());
    ip[6] = ICMPV6;
    ip[7] = 255;
    ip[8..24].copy_from_slice(&from.1.octets());
    ip[24..].copy_from_slice(&to.1.octets());

    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.octets());
    // Target or source link-layer address.
    message[24..26].copy_from_slice(&[if kind == NEIGHBOUR_ADVERTISEMENT { 2 } else { 1 }, 1]);
    message[26..].copy_from_slice(&from.0.0);
    let sum = Sum::new().pseudo_v6(from.1, to.1, ICMPV6, MESSAGE).bytes(message);
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
    fn questions_go_to_the_solicited_node_group_and_answers_are_read() {
        let own: Ipv6Addr = "fe80::1".parse().unwrap();
        let target: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();
        let frame = solicitation(MAC, own, target, None);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let group: Ipv6Addr = "ff02::1:ff12:3456".parse().unwrap();
        assert_eq!(frame[38..54], group.octets());
        assert_eq!(
            (frame[54], &frame[62..78], &frame[78..80]),
            (135, &target.octets()[..], &[1, 1][..])
        );
        let sum = Sum::new().pseudo_v6(own, group, 58, 32).bytes(&frame[54..]);
        assert_eq!(sum.finish(), 0);
        let direct = solicitation(MAC, own, target, Some(MAC));
        assert_eq!((&direct[..6], &direct[38..54]), (&MAC.0[..], &target.octets()[..]));
        assert_eq!(claim(&frame[14..]), None, "a question is no answer");

        let answer = unsolicited(MAC, target, false);
        assert_eq!(claim(&answer[14..]), Some((MAC, target)));
        for len in 0..answer.len() - 14 {
            assert_eq!(claim(&answer[14..14 + len]), None, "{len}");
        }
        let mut routed = answer;
        routed[21] = 254;
        assert_eq!(claim(&routed[14..]), None);
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

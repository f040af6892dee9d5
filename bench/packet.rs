//! Packets of IPv4 that are made up whole, so that a flow takes no socket: SYNs and UDP datagrams. Bytes only.

use std::net::{Ipv4Addr, SocketAddrV4};

use ringgate::protocol::checksum::Sum;

/// IPv4 header (RFC 791 section 3.1) without options.
const IP_LEN: usize = 20;
/// TCP header (RFC 9293 section 3.1) with one option, the maximum segment size.
const TCP_LEN: u16 = 24;
/// UDP header (RFC 768).
const UDP_LEN: u16 = 8;
/// Segment size that the option announces: that of Ethernet.
const MSS: u16 = 1460;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A packet that changes its source and a number that it carries.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    source: Ipv4Addr,
    target: SocketAddrV4,
    bytes: Vec<u8>,
}

impl Packet {
    /// A SYN; its number is the sequence number.
    pub(crate) fn syn(source: Ipv4Addr, target: SocketAddrV4) -> Self {
        let mut packet = Self::new(source, target, TCP, TCP_LEN);
        let tcp = &mut packet.bytes[IP_LEN..];
        tcp[12] = 6 << 4; // six words of header
        tcp[13] = 0x02; // SYN
        tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes()); // window
        tcp[20..22].copy_from_slice(&[2, 4]); // option: maximum segment size, four bytes
        tcp[22..24].copy_from_slice(&MSS.to_be_bytes());
        packet
    }

    /// A datagram with so many bytes of payload, eight at least: they begin with its number.
    pub(crate) fn datagram(source: Ipv4Addr, target: SocketAddrV4, payload: u16) -> Self {
        let length = UDP_LEN + payload;
        let mut packet = Self::new(source, target, UDP, length);
        packet.bytes[IP_LEN + 4..IP_LEN + 6].copy_from_slice(&length.to_be_bytes());
        packet
    }

    fn new(source: Ipv4Addr, target: SocketAddrV4, protocol: u8, length: u16) -> Self {
        let mut bytes = vec![0; IP_LEN + usize::from(length)];
        bytes[0] = 0x45; // version 4, five words of header
        bytes[8] = 64; // time to live
        bytes[9] = protocol;
        bytes[16..20].copy_from_slice(&target.ip().octets());
        bytes[IP_LEN + 2..IP_LEN + 4].copy_from_slice(&target.port().to_be_bytes());
        let mut packet = Self { source, target, bytes };
        packet.set_source(source);
        packet
    }

    /// Comes from this address from now on.
    pub(crate) fn set_source(&mut self, address: Ipv4Addr) {
        self.source = address;
        self.bytes[12..16].copy_from_slice(&address.octets());
    }

    /// Where it goes.
    pub(crate) fn target(&self) -> SocketAddrV4 {
        self.target
    }

    /// The packet from this port with this number. The kernel adds the checksum of the IP header and its length.
    pub(crate) fn bytes(&mut self, port: u16, number: u64) -> &[u8] {
        let protocol = self.bytes[9];
        let segment = &mut self.bytes[IP_LEN..];
        segment[0..2].copy_from_slice(&port.to_be_bytes());
        let checksum = if protocol == TCP {
            segment[4..8].copy_from_slice(&number.to_be_bytes()[4..]);
            16..18
        } else {
            segment[8..16].copy_from_slice(&number.to_be_bytes());
            6..8
        };
        segment[checksum.clone()].fill(0);
        let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
        let sum = Sum::new().pseudo_v4(self.source, *self.target.ip(), protocol, length);
        let sum = match sum.bytes(segment).finish() {
            // Of a datagram that would say that it has none; of a SYN both are the same number.
            0 => u16::MAX,
            sum => sum,
        };
        segment[checksum].copy_from_slice(&sum.to_be_bytes());
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn holds(packet: &[u8]) -> bool {
        let (ip, segment) = packet.split_at(IP_LEN);
        let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
        let pseudo = Sum::new().bytes(&ip[12..20]).bytes(&[0, ip[9]]).bytes(&length);
        pseudo.bytes(segment).finish() == 0
    }

    #[test]
    fn a_syn_has_its_checksum_and_its_fields_where_they_should_be() {
        let mut syn = Packet::syn(SOURCE, "198.51.100.7:443".parse().unwrap());
        for (port, sequence) in [(1024, 0), (65_535, u32::MAX), (40_000, 0x0102_0304)] {
            let packet = syn.bytes(port, u64::from(sequence) | 1 << 40);
            assert!(holds(packet));
            let tcp = &packet[IP_LEN..];
            assert_eq!(tcp[..4], [port.to_be_bytes(), 443_u16.to_be_bytes()].concat());
            assert_eq!(tcp[4..8], sequence.to_be_bytes());
            assert_eq!((tcp[12] >> 4, tcp[13]), (6, 2));
        }
        syn.set_source([192, 0, 2, 77].into());
        let packet = syn.bytes(1, 2);
        assert_eq!(packet[12..16], [192, 0, 2, 77]);
        assert!(holds(packet));
    }

    #[test]
    fn a_datagram_has_its_length_its_number_and_always_a_checksum() {
        for payload in [8, 18, 19, 1200] {
            let mut datagram =
                Packet::datagram(SOURCE, "198.51.100.7:53".parse().unwrap(), payload);
            // The sums of so many numbers are all that there are, the one that stands for none included.
            let numbers = if payload == 8 { 1 << 16 } else { 3 };
            for number in (0..numbers).chain([u64::MAX]) {
                let packet = datagram.bytes(4711, number);
                assert!(holds(packet), "{number} of {payload} bytes");
                let udp = &packet[IP_LEN..];
                assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
                assert_eq!(udp.len(), usize::from(payload) + 8);
                assert_eq!(udp[8..16], number.to_be_bytes());
                assert_ne!(udp[6..8], [0, 0]);
            }
        }
    }
}

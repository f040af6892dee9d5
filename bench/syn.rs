//! TCP SYN segments in IPv4 packets: bytes only.

use std::net::{Ipv4Addr, SocketAddrV4};

use ringgate::protocol::checksum::Sum;

/// IPv4 header (RFC 791 section 3.1) without options.
const IP_LEN: usize = 20;
/// TCP header (RFC 9293 section 3.1) with one option, the maximum segment size.
const TCP_LEN: u16 = 24;
const PACKET_LEN: usize = IP_LEN + TCP_LEN as usize;
const TCP: u8 = 6;
/// Segment size that the option announces: that of Ethernet.
const MSS: u16 = 1460;

/// A SYN that changes its source port and sequence number.
#[derive(Debug, Clone)]
pub(crate) struct Syn {
    source: SocketAddrV4,
    target: SocketAddrV4,
    packet: [u8; PACKET_LEN],
}

impl Syn {
    /// From the source's address to the target.
    pub(crate) fn new(source: SocketAddrV4, target: SocketAddrV4) -> Self {
        let mut packet = [0; PACKET_LEN];
        packet[0] = 0x45; // version 4, five words of header
        packet[8] = 64; // time to live
        packet[9] = TCP;
        packet[12..16].copy_from_slice(&source.ip().octets());
        packet[16..20].copy_from_slice(&target.ip().octets());
        let tcp = &mut packet[IP_LEN..];
        tcp[2..4].copy_from_slice(&target.port().to_be_bytes());
        tcp[12] = 6 << 4; // six words of header
        tcp[13] = 0x02; // SYN
        tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes()); // window
        tcp[20..22].copy_from_slice(&[2, 4]); // option: maximum segment size, four bytes
        tcp[22..24].copy_from_slice(&MSS.to_be_bytes());
        Self { source, target, packet }
    }

    /// Comes from this address from now on.
    pub(crate) fn set_source(&mut self, address: Ipv4Addr) {
        self.source.set_ip(address);
        self.packet[12..16].copy_from_slice(&address.octets());
    }

    /// Where it goes.
    pub(crate) fn target(&self) -> SocketAddrV4 {
        self.target
    }

    /// The packet with this source port and sequence number. The kernel adds the checksum of the IP
    /// header and its length.
    pub(crate) fn packet(&mut self, port: u16, sequence: u32) -> &[u8] {
        let tcp = &mut self.packet[IP_LEN..];
        tcp[0..2].copy_from_slice(&port.to_be_bytes());
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[16..18].copy_from_slice(&[0, 0]);
        let (source, target) = (*self.source.ip(), *self.target.ip());
        let sum = Sum::new().pseudo_v4(source, target, TCP, TCP_LEN).bytes(tcp).finish();
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        &self.packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_checksum_holds_and_its_fields_are_where_they_should_be() {
        let source = "192.0.2.1:0".parse().unwrap();
        let mut syn = Syn::new(source, "198.51.100.7:443".parse().unwrap());
        for (port, sequence) in [(1024, 0), (65_535, u32::MAX), (40_000, 0x0102_0304)] {
            let packet = syn.packet(port, sequence);
            let (ip, tcp) = packet.split_at(IP_LEN);
            let sum = Sum::new().bytes(&ip[12..20]).bytes(&[0, TCP, 0, 24]).bytes(tcp);
            assert_eq!(sum.finish(), 0);
            assert_eq!(tcp[..4], [port.to_be_bytes(), 443_u16.to_be_bytes()].concat());
            assert_eq!(tcp[4..8], sequence.to_be_bytes());
            assert_eq!((tcp[12] >> 4, tcp[13]), (6, 2));
        }
        syn.set_source([192, 0, 2, 77].into());
        let (ip, tcp) = syn.packet(1, 2).split_at(IP_LEN);
        assert_eq!(ip[12..16], [192, 0, 2, 77]);
        let sum = Sum::new().bytes(&ip[12..20]).bytes(&[0, TCP, 0, 24]).bytes(tcp);
        assert_eq!(sum.finish(), 0);
    }
}

//! ICMP errors (RFC 792, RFC 4443) as far as whoever forwards them has to understand: the packet
//! they quote.

use super::ip::{self, Packet};
use super::transport::Ports;

/// Length of the header in front of the quotation.
const HEADER: usize = 8;

/// The packet that an error is about, as quoted in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Its headers.
    pub packet: Packet,
    /// Its ports.
    pub ports: Ports,
}

/// Reads what an ICMP message quotes; `protocol` tells the family. `None`: it is no error, or what
/// it quotes has no ports (a later fragment, another protocol, cut off).
#[must_use]
pub fn quoted(protocol: u8, message: &[u8]) -> Option<Quoted> {
    let kind = *message.first()?;
    // Unreachable, source quench, time exceeded, parameter problem; in ICMPv6 all below 128.
    let version = match (protocol, kind) {
        (ip::ICMP, 3 | 4 | 11 | 12) => 4,
        (ip::ICMPV6, 1..=4) => 6,
        _ => return None,
    };
    let quotation = message.get(HEADER..)?;
    if quotation.first()? >> 4 != version {
        return None;
    }
    let packet = Packet::parse_quoted(quotation).ok()?;
    if packet.fragment.is_some_and(|fragment| fragment.offset != 0)
        || !matches!(packet.protocol, ip::TCP | ip::UDP | ip::SCTP)
    {
        return None;
    }
    let ports = Ports::parse(quotation.get(packet.payload..)?)?;
    Some(Quoted { packet, ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable_v4() -> Vec<u8> {
        let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0x78];
        message.extend([0x45, 0, 5, 220, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 10, 0, 0, 9]);
        message.extend([0, 80, 0x9c, 0x40, 0, 0, 0, 0]);
        message
    }

    #[test]
    fn tuple_of_a_full_quotation() {
        let quoted = quoted(ip::ICMP, &unreachable_v4()).unwrap();
        assert_eq!(quoted.packet.source.to_string(), "192.0.2.1");
        assert_eq!(quoted.ports, Ports { source: 80, destination: 40_000 });
    }

    #[test]
    fn not_an_error_or_not_whole() {
        let message = unreachable_v4();
        for cut in 0..message.len() - 4 {
            assert_eq!(quoted(ip::ICMP, &message[..cut]), None, "{cut}");
        }
        assert!(quoted(ip::ICMP, &message[..message.len() - 4]).is_some());
        let with = |at: usize, value: u8| {
            let mut message = message.clone();
            message[at] = value;
            quoted(ip::ICMP, &message)
        };
        assert_eq!(with(0, 8), None, "an echo request");
        assert_eq!(with(HEADER, 0x65), None, "IPv6 in ICMP");
        assert_eq!(with(HEADER + 7, 1), None, "a later fragment");
        assert_eq!(with(HEADER + 9, 47), None, "no ports");
        assert_eq!(quoted(ip::ICMPV6, &message), None);
        assert_eq!(quoted(ip::TCP, &message), None);
    }

    #[test]
    fn packet_too_big() {
        let mut message = vec![2, 0, 0, 0, 0, 0, 5, 0];
        let mut packet = [0_u8; 48];
        packet[0] = 0x60;
        packet[4] = 5;
        packet[6] = ip::UDP;
        packet[40..44].copy_from_slice(&[0, 53, 0x30, 0x39]);
        message.extend(packet);
        let quoted = quoted(ip::ICMPV6, &message).unwrap();
        assert_eq!(quoted.ports, Ports { source: 53, destination: 12_345 });
    }
}

//! Ethernet addresses and the header in front of frames built here.

/// Length of an Ethernet header without a VLAN tag.
pub const HEADER: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a provider's VLAN tag (802.1ad), outside the customer's.
pub const SERVICE_VLAN: u16 = 0x88a8;
/// VLAN tags inside a frame that are stepped over.
const TAGS_MAX: usize = 2;

/// A 48-bit MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// All zeros.
    pub const ZERO: Self = Self([0; 6]);
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What the header of a received frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// To.
    pub destination: Mac,
    /// From.
    pub source: Mac,
    /// What the payload is, behind any VLAN tags.
    pub ether_type: u16,
    /// Where the payload begins.
    pub payload: usize,
}

impl View {
    /// Reads the header of `frame` and up to two VLAN tags that stand in it; `None` if it is cut
    /// off.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let head: &[u8; HEADER] = frame.first_chunk()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *head;
        let mut view = Self {
            destination: Mac([a, b, c, d, e, f]),
            source: Mac([g, h, i, j, k, l]),
            ether_type: u16::from_be_bytes([head[12], head[13]]),
            payload: HEADER,
        };
        for _ in 0..TAGS_MAX {
            if !matches!(view.ether_type, VLAN | SERVICE_VLAN) {
                break;
            }
            let [_, _, high, low] = *frame.get(view.payload..)?.first_chunk()?;
            view.ether_type = u16::from_be_bytes([high, low]);
            view.payload += 4;
        }
        Some(view)
    }
}

/// Writes a header to the start of `frame`, which has to be at least [`HEADER`] long.
pub(crate) fn write_header(
    frame: &mut [u8; HEADER],
    destination: Mac,
    source: Mac,
    ether_type: u16,
) {
    frame[..6].copy_from_slice(&destination.0);
    frame[6..12].copy_from_slice(&source.0);
    frame[12..].copy_from_slice(&ether_type.to_be_bytes());
}

/// Who sent the frame that begins with this header.
#[must_use]
pub fn source(header: &[u8; HEADER]) -> Mac {
    let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *header;
    Mac([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_stepped_over() {
        let mut frame = [[1_u8; 6], [2; 6]].concat();
        frame.extend([0x08, 0x00, 9]);
        let plain = View::parse(&frame).unwrap();
        assert_eq!((plain.destination, plain.source), (Mac([1; 6]), Mac([2; 6])));
        assert_eq!((plain.ether_type, plain.payload), (IPV4, 14));
        frame.splice(12..12, [0x88, 0xa8, 0, 5, 0x81, 0x00, 0, 7]);
        let tagged = View::parse(&frame).unwrap();
        assert_eq!((tagged.ether_type, tagged.payload), (IPV4, 22));
        frame.splice(12..12, [0x81, 0x00, 0, 9]);
        assert_eq!(View::parse(&frame).unwrap().ether_type, VLAN, "a third is left alone");
        for cut in 0..18 {
            assert_eq!(View::parse(&frame[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn prints_as_ip_link_does() {
        assert_eq!(Mac([0, 0, 0x5e, 0, 1, 51]).to_string(), "00:00:5e:00:01:33");
    }
}

//! Ethernet addresses and the header in front of frames built here.

/// Length of an Ethernet header without a VLAN tag.
pub const HEADER: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

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
    fn prints_as_ip_link_does() {
        assert_eq!(Mac([0, 0, 0x5e, 0, 1, 51]).to_string(), "00:00:5e:00:01:33");
    }
}

//! The Internet checksum (RFC 1071) and the pseudo headers it covers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A running ones' complement sum of 16-bit words.
///
/// Every piece but the last has to be of even length, as the fields of all headers here are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds bytes; a last odd byte counts as the high half of a word.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let (words, odd) = bytes.as_chunks::<2>();
        for word in words {
            self.0 += u64::from(u16::from_be_bytes(*word));
        }
        if let [last] = odd {
            self.0 += u64::from(*last) << 8;
        }
        self
    }

    /// Adds the IPv4 pseudo header (RFC 9293 section 3.1) of a payload of `length` bytes.
    #[must_use]
    pub fn pseudo_v4(self, source: Ipv4Addr, destination: Ipv4Addr, next: u8, length: u16) -> Self {
        let sum = self.bytes(&source.octets()).bytes(&destination.octets());
        Self(sum.0 + u64::from(next) + u64::from(length))
    }

    /// Adds the IPv6 pseudo header (RFC 8200 section 8.1) of a payload of `length` bytes.
    #[must_use]
    pub fn pseudo_v6(self, source: Ipv6Addr, destination: Ipv6Addr, next: u8, length: u16) -> Self {
        let sum = self.bytes(&source.octets()).bytes(&destination.octets());
        Self(sum.0 + u64::from(next) + u64::from(length))
    }

    /// Adds the pseudo header of the addresses' family; nothing if their families differ.
    #[must_use]
    pub fn pseudo(self, source: IpAddr, destination: IpAddr, next: u8, length: u16) -> Self {
        match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => self.pseudo_v4(s, d, next, length),
            (IpAddr::V6(s), IpAddr::V6(d)) => self.pseudo_v6(s, d, next, length),
            _ => self,
        }
    }

    /// The folded ones' complement: what goes into a checksum field that was summed as zero. Over
    /// data that contain their own right checksum it is zero.
    #[must_use]
    pub fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // The loop leaves 16 bits.
        !u16::try_from(sum).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors() {
        // RFC 1071 section 3: the words sum to ddf2.
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::new().bytes(&data).finish(), !0xddf2);
        assert_eq!(Sum::new().finish(), 0xffff);
        assert_eq!(Sum::new().bytes(&[0xab]).finish(), !0xab00);
        // An IPv4 header as captured, its own checksum (b861) in place: zero.
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(Sum::new().bytes(&header).finish(), 0);
    }

    #[test]
    fn long_input_does_not_overflow() {
        let ones = vec![0xff_u8; 1 << 16];
        assert_eq!(Sum::new().bytes(&ones).finish(), 0);
    }
}

//! Views of IPv4 and IPv6 headers: bounds-checked, borrowed from nothing, for whoever forwards
//! packets without changing them.

mod v4;
mod v6;

use std::net::IpAddr;

/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// IPv4 in IP (RFC 2003).
pub const IPIP: u8 = 4;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// IPv6 in IP (RFC 4213).
pub const IPV6: u8 = 41;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

/// Length of an IPv4 header without options.
pub const V4_HEADER: usize = 20;
/// Length of the fixed IPv6 header.
pub const V6_HEADER: usize = 40;

/// Why bytes are not an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Error {
    /// Fewer bytes than the headers say.
    Truncated,
    /// The version is neither what the frame's type says nor 4 or 6.
    Version,
    /// A header length that cannot be.
    Header,
    /// The packet says to be longer than the frame, or shorter than its headers.
    Length,
    /// More IPv6 extension headers than anybody sends.
    Extensions,
}

/// A fragment's place in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The datagram's identification, 16 bits in IPv4.
    pub id: u32,
    /// First byte, counted from the end of the unfragmentable part.
    pub offset: u16,
    /// Another one follows.
    pub more: bool,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// What the payload is: the last next-header value.
    pub protocol: u8,
    /// Where the payload begins, counted from the first byte of the IP header.
    pub payload: usize,
    /// Length of the whole packet, headers included, padding of the frame not.
    pub length: usize,
    /// Set if the packet is a fragment.
    pub fragment: Option<Fragment>,
    /// Routers must not fragment it. Always true for IPv6.
    pub dont_fragment: bool,
}

impl Packet {
    /// Reads the headers in front of `bytes`, of which there may be fewer than were on the wire;
    /// `wire` is that length.
    ///
    /// # Errors
    /// As [`Error`] says; the packet should go no further.
    pub fn parse(bytes: &[u8], wire: usize) -> Result<Self, Error> {
        match bytes.first().ok_or(Error::Truncated)? >> 4 {
            4 => v4::parse(bytes, wire),
            6 => v6::parse(bytes, wire),
            _ => Err(Error::Version),
        }
    }

    /// Reads headers that an ICMP error quotes: the quotation may end anywhere after them, so the
    /// packet's length is not checked.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn parse_quoted(bytes: &[u8]) -> Result<Self, Error> {
        Self::parse(bytes, usize::MAX)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests;

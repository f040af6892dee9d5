//! The bytes of an advertisement: structure and checksum, nothing that depends on configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::auth::HMAC_TRAILER;
use super::{Error, Family, IP_PROTOCOL, Interval, Kind, MULTICAST_V4, Version};
use crate::protocol::checksum::Sum;

/// Fixed part of an advertisement.
const HEADER: usize = 8;
/// Authentication data of version 2, present whatever the type.
const AUTH_DATA: usize = 8;
/// Fragment offset and More Fragments in the IPv4 header.
const FRAGMENT: u16 = 0x3fff;

/// What a socket received, with what has to be known of the IP header.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit as received.
    pub hop_limit: u8,
    /// What follows the IP header.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// From an IPv4 packet with its header, as a raw socket (raw(7)) delivers it. Bytes beyond the
    /// header's total length are padding and left out.
    ///
    /// # Errors
    ///
    /// [`Error::IpHeader`].
    pub fn from_ipv4(packet: &'a [u8]) -> Result<Self, Error> {
        let header: &[u8; 20] = packet.first_chunk().ok_or(Error::IpHeader)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT;
        let right = header[0] >> 4 == 4
            && header_len >= header.len()
            && fragment == 0
            && header[9] == IP_PROTOCOL;
        if !right {
            return Err(Error::IpHeader);
        }
        let payload = packet.get(header_len..total_len).ok_or(Error::IpHeader)?;
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        Ok(Self {
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            hop_limit: header[8],
            payload,
        })
    }
}

/// What the checksum of an advertisement covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// The message only: version 2, and version 3 for IPv4 by RFC 9568 section 5.2.8.
    Message,
    /// A pseudo header too: version 3 for IPv6; for IPv4 as keepalived and older FRR send it.
    Pseudo,
    /// A pseudo header with 224.0.0.18 in place of the real destination: keepalived up to 1.3.6
    /// in unicast.
    PseudoMulticast,
}

/// The addresses of an advertisement, in the order sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses<'a> {
    family: Family,
    bytes: &'a [u8],
}

impl<'a> Addresses<'a> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.family.address_len()
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Each in turn.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<'a> {
        let family = self.family;
        self.bytes.chunks_exact(family.address_len()).filter_map(move |bytes| match family {
            Family::V4 => bytes.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()),
            Family::V6 => bytes.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()),
        })
    }

    /// The same addresses, in any order.
    #[must_use]
    pub fn same_as(&self, others: &[IpAddr]) -> bool {
        self.len() == others.len()
            && self.iter().all(|address| others.contains(&address))
            && others.iter().all(|other| self.iter().any(|address| address == *other))
    }
}

/// An advertisement or a message of ours whose structure holds; whom it is from and whether to believe it is not judged
/// yet ([`super::Receiver::judge`], [`super::Receiver::judge_signal`]).
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// An advertisement, or a message of ours.
    pub kind: Kind,
    /// Version.
    pub version: Version,
    /// Virtual router ID.
    pub vrid: u8,
    /// Priority, 0 for resigning.
    pub priority: u8,
    /// Interval between the sender's advertisements.
    pub interval: Interval,
    /// The addresses.
    pub addresses: Addresses<'a>,
    /// Version 2: authentication type and data.
    pub(super) auth: Option<(u8, &'a [u8; AUTH_DATA])>,
    /// The advertisement without a trailer.
    pub(super) pdu: &'a [u8],
    /// What follows it, of the length of an HMAC trailer.
    pub(super) trailer: Option<&'a [u8; HMAC_TRAILER]>,
}

/// An advertisement that a [`super::Receiver`] accepted.
#[derive(Debug, Clone, Copy)]
pub struct Advert<'a> {
    /// Who sent it.
    pub source: IpAddr,
    /// Priority, 0 for resigning.
    pub priority: u8,
    /// Interval between the sender's advertisements.
    pub interval: Interval,
    /// The addresses.
    pub addresses: Addresses<'a>,
    /// The form of its checksum.
    pub form: Form,
    /// Whether an HMAC vouches for it.
    pub authenticated: bool,
}

impl<'a> Packet<'a> {
    /// Reads the structure.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Version`], [`Error::Type`], [`Error::AddressList`],
    /// [`Error::Interval`].
    pub fn parse(datagram: &Datagram<'a>) -> Result<Self, Error> {
        let (head, _) = datagram.payload.split_first_chunk::<HEADER>().ok_or(Error::Length)?;
        let [kind, vrid, priority, count, a, b, ..] = *head;
        let family = Family::of(datagram.source);
        let version = match (kind >> 4, family) {
            (2, Family::V4) => Version::V2,
            (3, _) => Version::V3,
            _ => return Err(Error::Version),
        };
        let kind = Kind::from_wire(kind & 0x0f)?;
        let addresses_end = HEADER + usize::from(count) * family.address_len();
        let pdu_len = match version {
            Version::V2 => addresses_end + AUTH_DATA,
            Version::V3 => addresses_end,
        };
        let (pdu, rest) = datagram.payload.split_at_checked(pdu_len).ok_or(Error::Length)?;
        let trailer = match rest.len() {
            0 => None,
            HMAC_TRAILER if version == Version::V3 => rest.first_chunk(),
            _ => return Err(Error::Length),
        };
        let bytes = pdu.get(HEADER..addresses_end).ok_or(Error::Length)?;
        let addresses = Addresses { family, bytes };
        // That the first IPv6 address is link-local is a rule for senders (RFC 9568 section
        // 5.2.9); a receiver that insisted would split from a peer that does not keep it.
        if addresses.is_empty() {
            return Err(Error::AddressList);
        }
        let (interval, auth) = match version {
            Version::V2 => (Interval::from_seconds(b), pdu.last_chunk().map(|data| (a, data))),
            Version::V3 => (Interval::from_centiseconds(u16::from_be_bytes([a, b]) & 0x0fff), None),
        };
        let interval = interval.ok_or(Error::Interval)?;
        Ok(Self { kind, version, vrid, priority, interval, addresses, auth, pdu, trailer })
    }

    /// In which form the checksum is right, `None` in none. More than one form can be right at
    /// once (the pseudo header may sum to zero); the first of RFC 9568 wins.
    #[must_use]
    pub fn form(&self, datagram: &Datagram<'_>) -> Option<Form> {
        let forms: &[Form] = match (self.version, datagram.source) {
            (Version::V2, _) => &[Form::Message],
            (Version::V3, IpAddr::V4(_)) => &[Form::Message, Form::Pseudo, Form::PseudoMulticast],
            (Version::V3, IpAddr::V6(_)) => &[Form::Pseudo],
        };
        self.form_among(datagram, forms)
    }

    /// The first of `forms` in which the checksum is right.
    pub(super) fn form_among(&self, datagram: &Datagram<'_>, forms: &[Form]) -> Option<Form> {
        let covered = covered(datagram.source, self.pdu, datagram.payload);
        let right =
            |form: &&Form| checksum(**form, datagram.source, datagram.destination, covered) == 0;
        forms.iter().find(right).copied()
    }
}

/// The bytes under the checksum: the kernel computes IPv6's over everything, trailer included.
fn covered<'a>(source: IpAddr, pdu: &'a [u8], payload: &'a [u8]) -> &'a [u8] {
    match source {
        IpAddr::V4(_) => pdu,
        IpAddr::V6(_) => payload,
    }
}

/// The checksum of `covered`, zero if it contains its own and that is right.
pub(super) fn checksum(form: Form, source: IpAddr, destination: IpAddr, covered: &[u8]) -> u16 {
    let sum = Sum::new().bytes(covered);
    // No advertisement comes near 64 KiB: 255 addresses are 4,088 bytes.
    let length = u16::try_from(covered.len()).unwrap_or(u16::MAX);
    match form {
        Form::Message => sum,
        Form::Pseudo => sum.pseudo(source, destination, IP_PROTOCOL, length),
        Form::PseudoMulticast => sum.pseudo(source, MULTICAST_V4.into(), IP_PROTOCOL, length),
    }
    .finish()
}

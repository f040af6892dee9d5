//! Headers that carry a packet to a server in another subnet: IP in IP (RFC 2003, RFC 2473,
//! RFC 4213) and GUE (draft-ietf-intarea-gue-09 section 3, as Linux' `fou` takes it).

use std::net::IpAddr;

use super::reply::write_ip;
use crate::balance::hash::{below, hash};
use crate::l4::config::Forward;
use crate::l4::tables::Neighbour;
use crate::protocol::checksum::Sum;
use crate::protocol::ethernet::{self, HEADER, View};
use crate::protocol::ip::{self, Packet, V4_HEADER, V6_HEADER};
use crate::protocol::transport::UDP_HEADER;

/// GUE's header without options.
const GUE_HEADER: usize = 4;
/// Source ports that tell flows apart: 49152 and above (RFC 6335).
const PORTS: (u16, u16) = (49_152, 16_384);

/// The packet to be carried.
pub(super) struct Inner {
    pub(super) packet: Packet,
    /// Where it begins in the frame.
    pub(super) at: usize,
    /// Traffic class or type of service, which routers on the way should see too (RFC 6040).
    class: u8,
    /// What tells its flow from others: addresses and ports.
    entropy: u64,
}

impl Inner {
    /// Reads the frame; its packet has been looked at before, so there is one.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let at = View::parse(frame)?.payload;
        let bytes = frame.get(at..)?;
        let packet = Packet::parse_quoted(bytes).ok()?;
        let [first, second] = *bytes.first_chunk()?;
        let class = if first >> 4 == 4 { second } else { first << 4 | second >> 4 };
        let addresses = if first >> 4 == 4 { bytes.get(12..20)? } else { bytes.get(8..40)? };
        // A later fragment has no ports; without any, the first one goes the same way.
        let ports = match packet.fragment {
            None => bytes.get(packet.payload..).and_then(|rest| rest.get(..4)).unwrap_or_default(),
            Some(_) => &[],
        };
        let entropy = hash(addresses) ^ hash(ports).rotate_left(1);
        Some(Self { packet, at, class, entropy })
    }

    fn number(&self) -> u8 {
        if self.packet.source.is_ipv4() { ip::IPIP } else { ip::IPV6 }
    }
}

/// The way to a server.
pub(super) struct Tunnel {
    pub(super) forward: Forward,
    pub(super) to: Neighbour,
    /// This host's address.
    pub(super) source: IpAddr,
    /// The server's.
    pub(super) destination: IpAddr,
}

impl Tunnel {
    /// What it adds to a packet.
    pub(super) fn overhead(&self) -> usize {
        let outer = if self.destination.is_ipv4() { V4_HEADER } else { V6_HEADER };
        match self.forward {
            Forward::Gue { .. } => outer + UDP_HEADER + GUE_HEADER,
            Forward::Ipip | Forward::Dr => outer,
        }
    }

    /// Writes everything in front of the packet, from the Ethernet header on.
    pub(super) fn write(&self, inner: &Inner, out: &mut Vec<u8>) -> Option<()> {
        let kind = if self.destination.is_ipv4() { ethernet::IPV4 } else { ethernet::IPV6 };
        out.clear();
        out.extend_from_slice(&self.to.mac.0);
        out.extend_from_slice(&self.to.source.0);
        out.extend_from_slice(&kind.to_be_bytes());
        let ends = (self.source, self.destination);
        let length = inner.packet.length;
        match self.forward {
            Forward::Gue { port } => {
                let payload = length + UDP_HEADER + GUE_HEADER;
                write_ip(out, ends, ip::UDP, payload)?;
                set_class(out, inner.class)?;
                let spread = u16::try_from(below(inner.entropy, PORTS.1.into())).ok()?;
                out.extend_from_slice(&(PORTS.0 + spread).to_be_bytes());
                out.extend_from_slice(&port.to_be_bytes());
                out.extend_from_slice(&u16::try_from(payload).ok()?.to_be_bytes());
                // No checksum: the packet has its own, which a network card may yet have to
                // finish (RFC 6936 allows this for tunnels over IPv6).
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(&[0, inner.number(), 0, 0]);
            }
            Forward::Ipip | Forward::Dr => {
                write_ip(out, ends, inner.number(), length)?;
                set_class(out, inner.class)?;
            }
        }
        Some(())
    }
}

/// Writes the class into the IP header that stands behind the Ethernet header in `out`.
fn set_class(out: &mut [u8], class: u8) -> Option<()> {
    let header = out.get_mut(HEADER..)?;
    if header.first()? >> 4 == 6 {
        let [first, second, ..] = header else { return None };
        (*first, *second) = (0x60 | class >> 4, class << 4);
        return Some(());
    }
    let head: &mut [u8; V4_HEADER] = header.first_chunk_mut()?;
    head[1] = class;
    head[10..12].copy_from_slice(&[0, 0]);
    let sum = Sum::new().bytes(head).finish();
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

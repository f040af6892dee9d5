//! Frames that the director answers with itself.

use std::net::IpAddr;

use crate::protocol::checksum::Sum;
use crate::protocol::ethernet;
use crate::protocol::ip::{self, Packet};
use crate::protocol::transport::{TCP_HEADER, TcpFlags};

const TTL: u8 = 64;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Writes to `out` the Ethernet header, VLAN tags included, that leads back where `frame` came
/// from.
fn back(frame: &[u8], payload: usize, out: &mut Vec<u8>) -> Option<()> {
    let header = frame.get(..payload)?;
    out.clear();
    out.extend_from_slice(header.get(6..12)?);
    out.extend_from_slice(header.get(..6)?);
    out.extend_from_slice(header.get(12..)?);
    Some(())
}

/// An IP header from `source` to `destination`, its checksum included.
pub(super) fn write_ip(
    out: &mut Vec<u8>,
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    payload: usize,
) -> Option<()> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(ip::V4_HEADER + payload).ok()?;
            let mut head = [0; ip::V4_HEADER];
            head[0] = 0x45;
            head[2..4].copy_from_slice(&length.to_be_bytes());
            // Don't fragment, so that the identification may be zero (RFC 6864).
            head[6] = 0x40;
            (head[8], head[9]) = (TTL, protocol);
            head[12..16].copy_from_slice(&source.octets());
            head[16..].copy_from_slice(&destination.octets());
            let sum = Sum::new().bytes(&head).finish();
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            out.extend_from_slice(&head);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut head = [0; ip::V6_HEADER];
            head[0] = 0x60;
            head[4..6].copy_from_slice(&u16::try_from(payload).ok()?.to_be_bytes());
            (head[6], head[7]) = (protocol, TTL);
            head[8..24].copy_from_slice(&source.octets());
            head[24..].copy_from_slice(&destination.octets());
            out.extend_from_slice(&head);
        }
        _ => return None,
    }
    Some(())
}

/// The reset that answers a TCP segment (RFC 9293 section 3.10.7.1: as for a connection that does
/// not exist). `payload` is where the packet begins in `frame`.
pub(super) fn reset(
    frame: &[u8],
    payload: usize,
    packet: &Packet,
    out: &mut Vec<u8>,
) -> Option<()> {
    let segment = frame.get(payload + packet.payload..)?;
    let head: &[u8; TCP_HEADER] = segment.first_chunk()?;
    let flags = TcpFlags(head[13]);
    if flags.rst() {
        return None;
    }
    let number = |at: usize| head.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b));
    let (sequence, acknowledged) = (number(4)?, number(8)?);
    let data =
        packet.length.checked_sub(packet.payload)?.checked_sub(usize::from(head[12] >> 4) * 4)?;
    let taken = u32::try_from(data).ok()? + u32::from(flags.syn()) + u32::from(flags.fin());

    let mut tcp = [0; TCP_HEADER];
    tcp[..2].copy_from_slice(&head[2..4]);
    tcp[2..4].copy_from_slice(&head[..2]);
    tcp[12] = 5 << 4;
    if flags.ack() {
        tcp[4..8].copy_from_slice(&acknowledged.to_be_bytes());
        tcp[13] = RST;
    } else {
        tcp[8..12].copy_from_slice(&sequence.wrapping_add(taken).to_be_bytes());
        tcp[13] = RST | ACK;
    }
    let (source, destination) = (packet.destination, packet.source);
    let length = u16::try_from(TCP_HEADER).ok()?;
    let sum = Sum::new().pseudo(source, destination, ip::TCP, length).bytes(&tcp).finish();
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());

    back(frame, payload, out)?;
    debug_assert!(payload >= ethernet::HEADER);
    write_ip(out, (source, destination), ip::TCP, TCP_HEADER)?;
    out.extend_from_slice(&tcp);
    Some(())
}

/// What an ICMP error may be long at most, so that it gets through everywhere: RFC 1812 section
/// 4.3.2.3 and RFC 4443 section 2.4 (c).
const V4_ERROR_MAX: usize = 576;
const V6_ERROR_MAX: usize = 1280;

/// The ICMP error that tells the sender of a packet which length gets through (RFC 1191 section 4,
/// RFC 4443 section 3.2). It comes from the virtual address, so that no filter on the way back
/// minds.
pub(super) fn too_big(
    frame: &[u8],
    payload: usize,
    packet: &Packet,
    room: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    let (source, destination) = (packet.destination, packet.source);
    let v4 = source.is_ipv4();
    let (header, max) =
        if v4 { (ip::V4_HEADER, V4_ERROR_MAX) } else { (ip::V6_HEADER, V6_ERROR_MAX) };
    let offending = frame.get(payload..)?;
    let whole = offending.len().min(packet.length).min(max - header - 8);
    let room = u16::try_from(room).ok()?;
    let mut message = if v4 { vec![3, 4, 0, 0, 0, 0] } else { vec![2, 0, 0, 0, 0, 0] };
    message.extend_from_slice(&room.to_be_bytes());
    message.extend_from_slice(offending.get(..whole)?);
    let length = u16::try_from(message.len()).ok()?;
    let sum = match v4 {
        true => Sum::new(),
        false => Sum::new().pseudo(source, destination, ip::ICMPV6, length),
    };
    let sum = sum.bytes(&message).finish();
    message.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
    back(frame, payload, out)?;
    let protocol = if v4 { ip::ICMP } else { ip::ICMPV6 };
    write_ip(out, (source, destination), protocol, message.len())?;
    out.extend_from_slice(&message);
    Some(())
}

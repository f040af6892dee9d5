//! Several packets of one flow in one frame, as network cards and the kernel merge them (kernel
//! `networking/segmentation-offloads.rst`), cut into the packets they were.

use super::checksum::Sum;
use super::ethernet::View;
use super::ip::{self, Packet};
use super::transport::{TCP_HEADER, UDP_HEADER};

/// Packets that one frame is cut into at most.
pub const SEGMENTS_MAX: usize = 1024;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// What the parts of a frame have in common.
struct Whole<'a> {
    frame: &'a [u8],
    /// Where the IP header begins, the transport's, and the payload.
    at: [usize; 3],
    packet: Packet,
    payload: &'a [u8],
    tcp: bool,
}

/// Cuts a frame of TCP or UDP into packets with `size` bytes of payload each, the last one with what is left; checksums are
/// complete afterwards. `each` gets one after the other.
///
/// `None`, and `each` gets nothing: it is no such frame, or more than [`SEGMENTS_MAX`].
pub fn cut(frame: &[u8], size: usize, mut each: impl FnMut(&mut [u8])) -> Option<usize> {
    let whole = Whole::parse(frame)?;
    let count = whole.payload.len().div_ceil(size.max(1));
    if size == 0 || count == 0 || count > SEGMENTS_MAX {
        return None;
    }
    let mut segment = Vec::with_capacity(whole.at[2] + size);
    for (number, part) in whole.payload.chunks(size).enumerate() {
        segment.clear();
        segment.extend_from_slice(frame.get(..whole.at[2])?);
        segment.extend_from_slice(part);
        whole.finish(&mut segment, number, number * size, number + 1 == count)?;
        each(&mut segment);
    }
    Some(count)
}

impl<'a> Whole<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let network = View::parse(frame)?.payload;
        let bytes = frame.get(network..)?;
        let packet = Packet::parse(bytes, bytes.len()).ok()?;
        let transport = network + packet.payload;
        let header = match packet.protocol {
            ip::TCP => usize::from(frame.get(transport + 12)? >> 4) * 4,
            ip::UDP => UDP_HEADER,
            _ => return None,
        };
        let tcp = packet.protocol == ip::TCP;
        if packet.fragment.is_some() || (tcp && header < TCP_HEADER) {
            return None;
        }
        let payload = frame.get(transport + header..network + packet.length)?;
        let at = [network, transport, transport + header];
        // Lengths below are of 16 bits.
        (packet.length <= usize::from(u16::MAX)).then_some(Self { frame, at, packet, payload, tcp })
    }

    /// Makes the headers those of one packet, whose payload stood `offset` bytes behind the first one's.
    fn finish(&self, segment: &mut [u8], number: usize, offset: usize, last: bool) -> Option<()> {
        let [network, transport, _] = self.at;
        let length = u16::try_from(segment.len() - network).ok()?;
        let (head, body) = segment.split_at_mut_checked(transport)?;
        let inner = u16::try_from(body.len()).ok()?;
        if self.packet.source.is_ipv4() {
            let header = head.get_mut(network..)?;
            let id = u16::from_be_bytes([*header.get(4)?, *header.get(5)?]);
            let id = id.wrapping_add(u16::try_from(number).ok()?);
            header.get_mut(2..4)?.copy_from_slice(&length.to_be_bytes());
            header.get_mut(4..6)?.copy_from_slice(&id.to_be_bytes());
            header.get_mut(10..12)?.fill(0);
            let sum = Sum::new().bytes(header).finish();
            header.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
        } else {
            let behind = length.checked_sub(u16::try_from(ip::V6_HEADER).ok()?)?;
            head.get_mut(network + 4..network + 6)?.copy_from_slice(&behind.to_be_bytes());
        }
        let field = if self.tcp {
            self.finish_tcp(body, number, offset, last)?;
            16
        } else {
            body.get_mut(4..6)?.copy_from_slice(&inner.to_be_bytes());
            6
        };
        body.get_mut(field..field + 2)?.fill(0);
        let Packet { source, destination, protocol, .. } = self.packet;
        let sum = Sum::new().pseudo(source, destination, protocol, inner).bytes(body).finish();
        // Zero means "none" to UDP.
        let sum = if sum == 0 && !self.tcp { u16::MAX } else { sum };
        body.get_mut(field..field + 2)?.copy_from_slice(&sum.to_be_bytes());
        Some(())
    }

    /// Sequence number and flags (RFC 9293 section 3.1): FIN and PSH are the last one's, CWR the first one's.
    fn finish_tcp(&self, body: &mut [u8], number: usize, offset: usize, last: bool) -> Option<()> {
        let first: [u8; 4] = *self.frame.get(self.at[1] + 4..)?.first_chunk()?;
        let sequence = u32::from_be_bytes(first).wrapping_add(u32::try_from(offset).ok()?);
        body.get_mut(4..8)?.copy_from_slice(&sequence.to_be_bytes());
        let flags = body.get_mut(13)?;
        if !last {
            *flags &= !FIN_PSH;
        }
        if number > 0 {
            *flags &= !CWR;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAYLOAD: u16 = 2500;

    fn short(number: usize) -> u16 {
        u16::try_from(number).unwrap()
    }

    fn bytes() -> Vec<u8> {
        (0..PAYLOAD).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    fn frame(v4: bool, tcp: bool) -> Vec<u8> {
        let mut body = vec![0; if tcp { 32 } else { 8 }];
        body[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        if tcp {
            body[4..8].copy_from_slice(&0xffff_fc00_u32.to_be_bytes());
            (body[12], body[13]) = (0x80, CWR | 0x10 | FIN_PSH);
        } else {
            body[4..6].copy_from_slice(&(8 + PAYLOAD).to_be_bytes());
        }
        body.extend(bytes());
        let length = short(body.len());
        let protocol = if tcp { ip::TCP } else { ip::UDP };
        let mut all = vec![2; 12];
        if v4 {
            let [a, b] = (length + 20).to_be_bytes();
            all.extend([8, 0, 0x45, 0, a, b, 0xff, 0xff, 0x40, 0, 64, protocol, 0, 0]);
            all.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        } else {
            let [a, b] = length.to_be_bytes();
            all.extend([0x86, 0xdd, 0x60, 0, 0, 0, a, b, protocol, 64]);
            all.extend([[0x20; 16], [0x21; 16]].concat());
        }
        all.extend(body);
        all
    }

    #[test]
    fn parts_are_packets_that_together_are_the_whole() {
        for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let frame = frame(v4, tcp);
            let mut parts = Vec::new();
            assert_eq!(cut(&frame, 1000, |part| parts.push(part.to_vec())), Some(3));
            let mut payload: Vec<u8> = Vec::new();
            for (number, part) in parts.iter().enumerate() {
                let packet = Packet::parse(&part[14..], part.len() - 14).unwrap();
                assert_eq!(packet.length, part.len() - 14);
                let body = &part[14 + packet.payload..];
                let inner = short(body.len());
                let (source, destination) = (packet.source, packet.destination);
                let sum =
                    Sum::new().pseudo(source, destination, packet.protocol, inner).bytes(body);
                assert_eq!(sum.finish(), 0);
                if v4 {
                    assert_eq!(Sum::new().bytes(&part[14..34]).finish(), 0);
                    // The identification goes on, past its end.
                    assert_eq!(part[18..20], 0xffff_u16.wrapping_add(short(number)).to_be_bytes());
                }
                if tcp {
                    let at = 0xffff_fc00_u32.wrapping_add(1000 * u32::from(short(number)));
                    assert_eq!(body[4..8], at.to_be_bytes());
                    let flags = [CWR | 0x10, 0x10, 0x10 | FIN_PSH];
                    assert_eq!(body[13], flags[number]);
                } else {
                    assert_eq!(body[4..6], inner.to_be_bytes());
                }
                payload.extend(&body[if tcp { 32 } else { 8 }..]);
            }
            assert_eq!(payload, bytes());
        }
    }

    #[test]
    fn what_cannot_be_cut_is_left() {
        let good = frame(true, true);
        for (bytes, size) in [(&good[..], 0), (&good[..], 2), (&good[..40], 1000), (&good[..0], 9)]
        {
            assert_eq!(cut(bytes, size, |_| panic!("a part")), None);
        }
        let mut icmp = good.clone();
        icmp[23] = ip::ICMP;
        let mut fragment = good.clone();
        fragment[20] = 0x20;
        let mut short = good;
        short[46] = 0x10;
        for bytes in [icmp, fragment, short] {
            assert_eq!(cut(&bytes, 1000, |_| panic!("a part")), None);
        }
    }

    proptest! {
        #[test]
        fn anything_is_cut_or_left(
            at in proptest::collection::vec((0usize..100, any::<u8>()), 0..8), v4: bool, tcp: bool,
            size in 0usize..3000, length in 0usize..2600,
        ) {
            let mut frame = frame(v4, tcp);
            for (place, byte) in at {
                frame[place] = byte;
            }
            frame.truncate(length);
            let mut parts = 0;
            let told = cut(&frame, size, |part| { parts += 1; assert!(part.len() <= frame.len()); });
            prop_assert_eq!(told.unwrap_or(0), parts);
        }
    }
}

//! Random frames.

use super::{OURS, PEER};
use crate::balance::hash::mix;
use crate::protocol::ethernet::Mac;

/// Random numbers from a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(super) fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// Where frames go: IPv6 or IPv4, protocol and port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target(pub(super) bool, pub(super) u8, pub(super) u16);

/// A frame as a client might send it, to one of `targets` as a rule, then perhaps not quite.
pub(super) fn frame(random: &mut Random, targets: &[Target]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(200);
    let destination = if random.chance(50) { Mac([2, 0, 0, 0, 0, 2]) } else { OURS };
    let source = if random.chance(50) { PEER } else { Mac([2, 0, 0, 0, 9, 9]) };
    frame.extend([destination.0, source.0].concat());
    if random.chance(6) {
        frame.extend([0x81, 0, 0, random.pick(&[0, 5, 5, 5, 5, 6])]);
    }
    let Target(v6, mut protocol, mut port) = random.pick(targets);
    if random.chance(12) {
        (protocol, port) = (random.pick(&[1, 6, 6, 17, 132]), random.pick(&[80, 90, 99]));
    }
    // Few clients, so that flows get many frames.
    let (client, client_port) = (random.byte() & 1, 0x8000 | u16::from(random.byte() & 1));
    let mut payload = transport(random, protocol, client_port, port);
    if random.chance(30) {
        // What a router says of a server's answer.
        let answer = [&port.to_be_bytes()[..], &client_port.to_be_bytes(), &[0; 4]].concat();
        let quoted = packet(v6, protocol, client, true, &answer, &mut Random(1));
        let kind: &[u8] = if v6 { &[1, 0, 0, 0, 0, 0, 0, 0] } else { &[3, 1, 0, 0, 0, 0, 0, 0] };
        payload = [kind, &quoted[2..]].concat();
        protocol = if v6 { 58 } else { 1 };
    }
    frame.extend(packet(v6, protocol, client, false, &payload, random));
    if random.chance(4) {
        mutate(&mut frame, random);
    }
    frame
}

/// Header and data of TCP, UDP or SCTP.
fn transport(random: &mut Random, protocol: u8, from: u16, to: u16) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    match protocol {
        6 => {
            bytes.extend([0; 8]);
            bytes.extend([
                0x50,
                random.pick(&[2, 2, 2, 16, 16, 16, 24, 24, 24, 17, 4, 20, 18, 3, 0xc2, 0]),
            ]);
            bytes.extend([0; 6]);
        }
        17 => bytes.extend([0, 8, 0, 0]),
        _ => {
            bytes.extend([0; 8]);
            bytes.extend([random.pick(&[1, 1, 0, 0, 10, 3, 6, 7, 8, 14]), 0, 0, 4]);
        }
    }
    bytes.extend((0..random.below(40)).map(|_| 0x55));
    bytes
}

/// Type and IP packet of a client, or its answer; now and then with options or as a first fragment.
fn packet(
    v6: bool,
    protocol: u8,
    client: u8,
    answer: bool,
    payload: &[u8],
    random: &mut Random,
) -> Vec<u8> {
    let mut addresses = if v6 {
        let client = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, client];
        vec![client.to_vec(), vec![0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]
    } else {
        vec![vec![198, 51, 100, client], vec![192, 0, 2, if random.chance(30) { 2 } else { 1 }]]
    };
    if answer {
        addresses.reverse();
    }
    let extra = usize::from(!answer && random.chance(15));
    let more = if !answer && random.chance(20) { 0x20 } else { 0x40 };
    let (kind, id) = if v6 { ([0x86, 0xdd], 0) } else { ([8, 0], random.byte()) };
    let mut bytes = kind.to_vec();
    let length = |header: usize| u16::try_from(header + payload.len()).unwrap().to_be_bytes();
    if v6 {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(length(extra * 8));
        bytes.extend([if extra > 0 { 0 } else { protocol }, 64]);
        bytes.extend(addresses.concat());
        // Hop-by-hop options that pad.
        bytes.extend([protocol, 0, 1, 4, 0, 0, 0, 0].iter().take(extra * 8));
    } else {
        bytes.extend([0x45 + u8::try_from(extra).unwrap(), 0]);
        bytes.extend(length(20 + extra * 4));
        bytes.extend([0, id, more, 0, 64, protocol, 0, 0]);
        bytes.extend(addresses.concat());
        bytes.extend([1_u8; 4].iter().take(extra * 4));
    }
    bytes.extend(payload);
    bytes
}

fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = usize::try_from(random.below(frame.len() as u64)).unwrap();
        match random.below(5) {
            // The headers' own bytes are the interesting ones.
            0 | 1 => {
                let at = 12 + at % 48;
                if let Some(byte) = frame.get_mut(at) {
                    *byte = random.pick(&[0, 1, 5, 6, 16, 0x20, 0x45, 0x46, 0x80, 0xff]);
                }
            }
            2 => frame[at] ^= 1 << random.below(8),
            3 => frame.truncate(at.max(14)),
            _ => frame.extend((0..random.below(30)).map(|_| 0)),
        }
    }
}

/// A frame as the kernel gives it to a packet socket: without its outermost VLAN tag.
pub(super) fn untag(frame: &[u8]) -> (Vec<u8>, Option<u16>) {
    if frame.len() < 18 || frame[12..14] != [0x81, 0] {
        return (frame.to_vec(), None);
    }
    let tag = u16::from_be_bytes([frame[14], frame[15]]) & 0xfff;
    ([&frame[..12], &frame[16..]].concat(), Some(tag))
}

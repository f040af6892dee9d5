//! From a frame to its flow's key and what it means for the flow.

use super::{CLASS, EVENT, Event, KEY, LENGTH, VLAN, Writer};
use crate::packet::xdp::assembler::Condition::{AnyBit, Equal, Greater, Less, NotEqual};
use crate::packet::xdp::assembler::Operation::{Add, And, ShiftRight, Subtract};
use crate::packet::xdp::assembler::Register::{R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use crate::packet::xdp::assembler::Size::{Byte, Double, Half, Word};
use crate::packet::xdp::assembler::{Assembler, Label};
use crate::packet::xdp::layout::{Family, KIND_CLASS_SHIFT, KIND_LIVE, Reason, class};
use crate::protocol::ethernet::{self, Mac};

const ETHERNET: i16 = 14;

impl Writer<'_> {
    /// Is it for us, of a bearable size, and IP?
    pub(super) fn ethernet(&mut self, v4: Label, v6: Label) {
        let other_mac = self.up(Reason::OtherMac);
        let not_ip = self.up(Reason::NotIp);
        let a = &mut self.a;
        a.load(Word, R6, R1, 0);
        a.load(Word, R7, R1, 4);
        a.set(R2, R6);
        a.alu(Add, R2, 14 + 4 + 20);
        a.jump_if(Greater, R2, R7, not_ip);
        let ours = a.label();
        a.load(Word, R2, R6, 0);
        a.load(Half, R3, R6, 4);
        is_one_of(a, &self.setup.macs, ours);
        a.jump(other_mac);
        a.place(ours);
        if !self.setup.peers.is_empty() {
            let peer = self.up[Reason::Peer as usize];
            a.load(Word, R2, R6, 6);
            a.load(Half, R3, R6, 10);
            is_one_of(a, &self.setup.peers, peer);
        }
        a.set(R2, R7);
        a.alu(Subtract, R2, R6);
        let frame_max = i32::try_from(self.setup.frame_max).unwrap_or(i32::MAX);
        a.jump_if(Greater, R2, frame_max, self.up[Reason::Large as usize]);
        a.set(R9, 0);
        a.set(R8, R6);
        a.alu(Add, R8, i32::from(ETHERNET));
        a.load(Half, R3, R6, 12);
        let untagged = a.label();
        a.jump_if(NotEqual, R3, order(0x8100), untagged);
        a.load(Half, R9, R6, ETHERNET);
        a.to_network(R9, 16);
        a.alu(And, R9, 0xfff);
        // A tag with a priority and no VLAN.
        a.jump_if(Equal, R9, 0, not_ip);
        a.load(Half, R3, R6, ETHERNET + 2);
        a.alu(Add, R8, 4);
        a.place(untagged);
        a.store(Word, R10, VLAN, R9);
        a.jump_if(Equal, R3, order(ethernet::IPV4), v4);
        a.jump_if(Equal, R3, order(ethernet::IPV6), v6);
        a.jump(not_ip);
    }

    /// The IP header: the flow's key onto the stack, what it is about into `EVENT`.
    pub(super) fn network(&mut self, family: Family) {
        let header = family.header();
        let [malformed, options, fragment, protocol] =
            [Reason::Malformed, Reason::Options, Reason::Fragment, Reason::Protocol]
                .map(|reason| self.up(reason));
        let a = &mut self.a;
        // Together with the shortest transport header; R5 is what there is.
        need(a, header + 8, malformed);
        a.set(R5, R7);
        a.alu(Subtract, R5, R8);
        match family {
            Family::V4 => {
                a.load(Byte, R2, R8, 0);
                a.jump_if(NotEqual, R2, 0x45, options);
                a.load(Half, R2, R8, 6);
                a.jump_if(AnyBit, R2, order(0x3fff), fragment);
                a.load(Half, R4, R8, 2);
                a.to_network(R4, 16);
                a.load(Double, R2, R8, 12);
                a.store(Double, R10, KEY, R2);
                a.load(Byte, R3, R8, 9);
            }
            Family::V6 => {
                a.load(Byte, R2, R8, 0);
                a.alu(ShiftRight, R2, 4);
                a.jump_if(NotEqual, R2, 6, malformed);
                a.load(Half, R4, R8, 4);
                a.to_network(R4, 16);
                a.alu(Add, R4, 40);
                for word in 0..4 {
                    a.load(Double, R2, R8, 8 + 8 * word);
                    a.store(Double, R10, KEY + 8 * word, R2);
                }
                a.load(Byte, R3, R8, 6);
                for extension in [0, 43, 44, 51, 60] {
                    let why = if extension == 44 { fragment } else { options };
                    a.jump_if(Equal, R3, extension, why);
                }
            }
        }
        a.jump_if(Greater, R4, R5, malformed);
        a.store(Double, R10, LENGTH, R4);
        a.load(Word, R2, R8, header);
        a.store(Word, R10, family.key_ports(), R2);
        a.store(Word, R10, family.key_ports() + 4, R3);
        let (tcp, udp, sctp, done) = (a.label(), a.label(), a.label(), a.label());
        a.jump_if(Equal, R3, 6, tcp);
        a.jump_if(Equal, R3, 17, udp);
        a.jump_if(Equal, R3, 132, sctp);
        a.jump(protocol);
        a.place(udp);
        a.jump_if(Less, R4, i32::from(header + 8), malformed);
        a.store(Word, R10, EVENT, Event::Datagram as i32);
        live(a, 17);
        a.jump(done);
        a.place(tcp);
        need(a, header + 20, malformed);
        a.jump_if(Less, R4, i32::from(header + 20), malformed);
        tcp_event(a, header);
        live(a, 6);
        a.jump(done);
        a.place(sctp);
        need(a, header + 16, malformed);
        a.jump_if(Less, R4, i32::from(header + 16), malformed);
        sctp_event(a, header);
        live(a, 132);
        a.place(done);
    }
}

const fn order(value: u16) -> i32 {
    // The network's order as the CPU reads it.
    u16::from_ne_bytes(value.to_be_bytes()) as i32
}

/// Jumps if R2 and R3, an address's first four and last two bytes, are one of `macs`.
fn is_one_of(a: &mut Assembler, macs: &[Mac], then: Label) {
    for Mac([b0, b1, b2, b3, b4, b5]) in macs {
        let next = a.label();
        a.jump_if32(NotEqual, R2, i32::from_ne_bytes([*b0, *b1, *b2, *b3]), next);
        a.jump_if32(Equal, R3, i32::from(u16::from_ne_bytes([*b4, *b5])), then);
        a.place(next);
    }
}

/// Jumps unless there are `bytes` from the IP header on.
fn need(a: &mut Assembler, bytes: i16, otherwise: Label) {
    a.set(R2, R8);
    a.alu(Add, R2, i32::from(bytes));
    a.jump_if(Greater, R2, R7, otherwise);
}

/// What the mark of a flow of this protocol says besides its state, into `CLASS`.
fn live(a: &mut Assembler, protocol: u8) {
    let class = class(protocol).unwrap_or_default();
    a.store(Byte, R10, CLASS, i32::from(KIND_LIVE | class << KIND_CLASS_SHIFT));
}

/// What the flags say, into `EVENT`.
fn tcp_event(a: &mut Assembler, header: i16) {
    const FIN: i32 = 1;
    const SYN: i32 = 2;
    const RST: i32 = 4;
    const ACK: i32 = 16;
    a.load(Byte, R2, R8, header + 13);
    let (plain, done) = (a.label(), a.label());
    a.set(R1, Event::Open as i32);
    a.jump_if(AnyBit, R2, ACK | FIN | RST, plain);
    a.jump_if(AnyBit, R2, SYN, done);
    a.place(plain);
    a.set(R1, Event::End as i32);
    a.jump_if(AnyBit, R2, RST, done);
    a.set(R1, Event::Finish as i32);
    a.jump_if(AnyBit, R2, FIN, done);
    a.set(R1, Event::Data as i32);
    a.place(done);
    a.store(Word, R10, EVENT, R1);
}

/// What the first chunk says, into `EVENT`.
fn sctp_event(a: &mut Assembler, header: i16) {
    const INIT: i32 = 1;
    const ABORT: i32 = 6;
    const SHUTDOWN: i32 = 7;
    const SHUTDOWN_ACK: i32 = 8;
    const SHUTDOWN_COMPLETE: i32 = 14;
    a.load(Byte, R2, R8, header + 12);
    let done = a.label();
    let chunks = [
        (Event::Open, [INIT, INIT]),
        (Event::End, [ABORT, SHUTDOWN_COMPLETE]),
        (Event::Finish, [SHUTDOWN, SHUTDOWN_ACK]),
    ];
    for (event, types) in chunks {
        a.set(R1, event as i32);
        for chunk in types {
            a.jump_if(Equal, R2, chunk, done);
        }
    }
    a.set(R1, Event::Data as i32);
    a.place(done);
    a.store(Word, R10, EVENT, R1);
}

//! Flows that are known, and the sending of frames.

use super::{
    EVENT, Event, Family, INDEX, KEY, LENGTH, NEW, PLACE, REFRESH, SLOT, STALE, STAMP, TRANSMIT,
    VLAN, Writer,
};
use crate::packet::xdp::assembler::Condition::{Equal, Greater, GreaterOrEqual, Less, NotEqual};
use crate::packet::xdp::assembler::Operation::{
    Add, And, Move, Multiply, Or, ShiftLeft, ShiftRight, Subtract,
};
use crate::packet::xdp::assembler::Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use crate::packet::xdp::assembler::Size::{Double, Half, Word};
use crate::packet::xdp::assembler::{Assembler, Helper, Label};
use crate::packet::xdp::layout::{
    CLOCK_SHIFT, COUNTER_BYTES, COUNTER_FLOWS, COUNTER_PACKETS, DEVICES, FLOW_GENERATION,
    FLOW_SEEN, FLOW_SHOWN, FLOW_SLOT, FLOW_STATE, RECENT_BITS, RECENT_GENERATION, RECENT_SLOT,
    RECENT_STAMP, Reason, SERVER_DEVICE, SERVER_DOWN, SERVER_GENERATION, SERVER_INTERFACE,
    SERVER_MACS, SERVER_SHOWN, SERVER_TIMEOUTS, SERVER_VLAN, State,
};
use crate::sys::bpf::tick;

/// Bytes of a word of a key.
const KEY_WORD: i16 = 8;
/// 2^64 by the golden ratio: the upper bits of what it is multiplied by differ where any bits did.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Writer<'_> {
    /// A flow that is known goes to its server, another one is scheduled.
    pub(super) fn flow(&mut self, family: Family) {
        let (miss, known, ready) = (self.a.label(), self.a.label(), self.a.label());
        let a = &mut self.a;
        clock(a);
        self.recent(family, known);
        self.a.jump(ready);
        let a = &mut self.a;
        a.place(known);
        a.store(Word, R10, STALE, 0);
        a.map(R1, self.maps.flows[family as usize]);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(KEY));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, miss);
        a.set(R9, R0);
        a.load(Half, R2, R9, FLOW_SLOT);
        a.store(Word, R10, SLOT, R2);
        self.server(miss);
        self.known(family, miss);
        self.forward(Some(ready));
        self.a.place(miss);
        self.a.store(Word, R10, NEW, 0);
        self.service(family);
        self.admit(family);
        self.choose(family);
        self.remember(family);
        self.forward(None);
    }

    /// The server of a flow that had a frame in this tick into R7, its interface into R9. What is not among those
    /// goes on with `other`, as does what says more than that the flow goes on.
    fn recent(&mut self, family: Family, other: Label) {
        let value = KEY_WORD * family.key_words();
        let a = &mut self.a;
        a.store(Double, R10, PLACE, 0);
        a.load(Word, R1, R10, EVENT);
        a.jump_if(Less, R1, Event::Data as i32, other);
        // Read before the flow is: a change in between voids what is found.
        a.map_value(R1, self.maps.changes);
        a.load(Double, R9, R1, 0);
        a.alu(ShiftLeft, R9, 32);
        a.alu(Or, R9, R8);
        a.store(Double, R10, STAMP, R9);
        a.constant(R1, SPREAD);
        a.load(Double, R2, R10, KEY);
        for word in 1..family.key_words() {
            a.alu(Multiply, R2, R1);
            a.load(Double, R3, R10, KEY + KEY_WORD * word);
            a.alu(Add, R2, R3);
        }
        a.alu(Multiply, R2, R1);
        a.alu(ShiftRight, R2, 64 - RECENT_BITS);
        a.store(Word, R10, INDEX, R2);
        a.map(R1, self.maps.recent[family as usize]);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(INDEX));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, other);
        a.store(Double, R10, PLACE, R0);
        a.load(Double, R2, R0, value + RECENT_STAMP);
        a.jump_if(NotEqual, R2, R9, other);
        for word in 0..family.key_words() {
            a.load(Double, R2, R0, KEY_WORD * word);
            a.load(Double, R3, R10, KEY + KEY_WORD * word);
            a.jump_if(NotEqual, R2, R3, other);
        }
        a.load(Word, R2, R0, value + RECENT_SLOT);
        a.store(Word, R10, SLOT, R2);
        a.load(Word, R9, R0, value + RECENT_GENERATION);
        self.server(other);
        let a = &mut self.a;
        a.load(Word, R2, R7, SERVER_GENERATION);
        a.jump_if(NotEqual, R2, R9, other);
        a.load(Word, R9, R7, SERVER_INTERFACE);
        a.jump_if(Equal, R9, 0, other);
    }

    /// Puts a known flow among the recent ones of this CPU, if the frame says no more than that it goes on.
    fn note_recent(&mut self, family: Family, done: Label) {
        let value = KEY_WORD * family.key_words();
        let a = &mut self.a;
        a.load(Double, R1, R10, PLACE);
        a.jump_if(Equal, R1, 0, done);
        for word in 0..family.key_words() {
            a.load(Double, R2, R10, KEY + KEY_WORD * word);
            a.store(Double, R1, KEY_WORD * word, R2);
        }
        a.load(Double, R2, R10, STAMP);
        a.store(Double, R1, value + RECENT_STAMP, R2);
        a.load(Word, R2, R10, SLOT);
        a.store(Word, R1, value + RECENT_SLOT, R2);
        a.load(Word, R2, R7, SERVER_GENERATION);
        a.store(Word, R1, value + RECENT_GENERATION, R2);
    }

    /// Voids what all CPUs have among their recent flows.
    fn void_recent(&mut self) {
        let a = &mut self.a;
        a.map_value(R2, self.maps.changes);
        a.set(R3, 1);
        a.atomic_add(Double, R2, 0, R3);
    }

    /// The server of `SLOT` into R7.
    pub(super) fn server(&mut self, missing: Label) {
        let a = &mut self.a;
        a.map(R1, self.maps.servers);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(SLOT));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, missing);
        a.set(R7, R0);
    }

    /// What this frame does to a flow that is known; R9 is the flow, R7 its server.
    pub(super) fn known(&mut self, family: Family, miss: Label) {
        let (control, server) = (self.up(Reason::Control), self.up(Reason::Server));
        let refresh = self.up(Reason::Refresh);
        let a = &mut self.a;
        a.load(Half, R2, R9, FLOW_GENERATION);
        a.load(Word, R3, R7, SERVER_GENERATION);
        a.jump_if(NotEqual, R2, R3, miss);
        // How long it rested; less than nothing if another CPU has just touched it.
        let (alive, owned) = (a.label(), a.label());
        a.load(Word, R4, R9, FLOW_STATE);
        a.alu(And, R4, 3);
        a.load(Word, R2, R9, FLOW_SEEN);
        a.set(R3, R8);
        a.alu32(Subtract, R3, R2);
        a.jump_if(Greater, R3, i32::MAX, alive);
        a.set(R5, R4);
        a.alu(ShiftLeft, R5, 2);
        a.alu(Add, R5, R7);
        a.load(Word, R5, R5, SERVER_TIMEOUTS);
        a.jump_if(GreaterOrEqual, R3, R5, miss);
        a.place(alive);
        // A server that is down and does not keep its flows: the packet socket gives this one to another, and it
        // must not return when the server does. Of flows that are scheduled here it looks into the table.
        let kept = a.label();
        a.load(Word, R2, R7, SERVER_INTERFACE);
        a.jump_if(NotEqual, R2, 0, kept);
        a.load(Word, R2, R7, SERVER_DOWN);
        a.jump_if(Equal, R2, 0, server);
        a.load(Word, R2, R7, SERVER_SHOWN);
        a.jump_if(Equal, R2, 0, server);
        self.forget(family);
        let a = &mut self.a;
        a.jump(server);
        a.place(kept);
        a.load(Word, R1, R10, EVENT);
        a.load(Word, R2, R7, SERVER_SHOWN);
        a.jump_if(Equal, R2, 0, owned);
        // The packet socket keeps account of this flow.
        for event in [Event::Finish, Event::End] {
            a.jump_if(Equal, R1, event as i32, control);
        }
        // Another connection, perhaps with another server: what is known of the last one is void.
        let goes_on = a.label();
        a.jump_if(NotEqual, R1, Event::Open as i32, goes_on);
        self.forget(family);
        let a = &mut self.a;
        a.jump(control);
        a.place(goes_on);
        let rested = a.label();
        a.load(Word, R2, R9, FLOW_SHOWN);
        a.set(R3, R8);
        a.alu32(Subtract, R3, R2);
        a.jump_if(Less, R3, REFRESH, rested);
        a.store(Word, R9, FLOW_SHOWN, R8);
        a.jump(refresh);
        // It begins anew. What is known stays until there is something else, since the packet socket looks into it.
        let anew = a.label();
        a.place(anew);
        a.store(Word, R10, STALE, 1);
        a.jump(miss);
        a.place(owned);
        let stays = a.label();
        a.jump_if(NotEqual, R1, Event::Open as i32, stays);
        self.void_recent();
        let a = &mut self.a;
        a.load(Word, R2, R7, SERVER_DOWN);
        a.jump_if(NotEqual, R2, 0, anew);
        a.place(stays);
        next_state(a, anew);
        a.store(Word, R9, FLOW_STATE, R4);
        a.place(rested);
        // Written only when it changes: many CPUs may share the cache line.
        let (same, done) = (a.label(), a.label());
        a.load(Word, R2, R9, FLOW_SEEN);
        a.jump_if(Equal, R2, R8, same);
        a.store(Word, R9, FLOW_SEEN, R8);
        a.jump(done);
        // The second one in this tick: of a million flows each with its frame now and then none gets this far.
        a.place(same);
        self.note_recent(family, done);
        self.a.place(done);
    }

    /// Removes the flow.
    pub(super) fn forget(&mut self, family: Family) {
        let a = &mut self.a;
        a.map(R1, self.maps.flows[family as usize]);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(KEY));
        a.call(Helper::MapDelete);
        self.void_recent();
    }

    /// Writes the MAC addresses and sends; R7 is the server. A flow that is known may come in at `ready`, with the server's
    /// interface in R9; another one may be new, as `NEW` says.
    pub(super) fn forward(&mut self, ready: Option<Label>) {
        let server = self.up(Reason::Server);
        let a = &mut self.a;
        let (sendable, here) = (a.label(), a.label());
        a.load(Word, R9, R7, SERVER_INTERFACE);
        a.jump_if(Equal, R9, 0, server);
        if let Some(ready) = ready {
            a.place(ready);
        }
        let interface = self.setup.interface.cast_signed();
        a.jump_if32(Equal, R9, interface, sendable);
        a.load(Word, R2, R7, SERVER_DEVICE);
        a.jump_if(GreaterOrEqual, R2, DEVICES.cast_signed(), server);
        a.place(sendable);
        a.load(Word, R2, R10, VLAN);
        a.load(Word, R3, R7, SERVER_VLAN);
        let tagged = a.label();
        a.jump_if(Equal, R2, R3, tagged);
        // A server without a tag, on the interface that the frame came in by: the tag stays.
        a.jump_if(NotEqual, R3, 0, server);
        a.jump_if32(NotEqual, R9, interface, server);
        a.place(tagged);
        a.map(R1, self.maps.counters);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(SLOT));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, server);
        a.set(R1, 1);
        a.load(Double, R2, R10, LENGTH);
        let mut counted = vec![(COUNTER_PACKETS, R1), (COUNTER_BYTES, R2)];
        if ready.is_none() {
            a.load(Word, R3, R10, NEW);
            counted.push((COUNTER_FLOWS, R3));
        }
        for (at, amount) in counted {
            a.load(Double, R4, R0, at);
            a.alu(Add, R4, amount);
            a.store(Double, R0, at, R4);
        }
        a.load(Double, R2, R7, SERVER_MACS);
        a.store(Double, R6, 0, R2);
        a.load(Word, R2, R7, SERVER_MACS + 8);
        a.store(Word, R6, 8, R2);
        a.jump_if32(Equal, R9, interface, here);
        a.map(R1, self.maps.devices);
        a.load(Word, R2, R7, SERVER_DEVICE);
        a.set(R3, 0);
        a.call(Helper::RedirectMap);
        a.exit();
        a.place(here);
        a.set(R0, TRANSMIT.cast_signed());
        a.exit();
    }
}

/// The program's clock into R8.
pub(in crate::packet::xdp) fn clock(a: &mut Assembler) {
    a.call(Helper::Jiffies);
    a.alu(Multiply, R0, tick().cast_signed());
    a.alu(ShiftRight, R0, CLOCK_SHIFT);
    a.alu32(Move, R8, R0);
}

/// The flow's next state in R4, from that and the event in R1. What begins anew is no longer known.
fn next_state(a: &mut Assembler, miss: Label) {
    let (data, finish, end, done) = (a.label(), a.label(), a.label(), a.label());
    a.jump_if(Equal, R1, Event::Datagram as i32, done);
    a.jump_if(Equal, R1, Event::Data as i32, data);
    a.jump_if(Equal, R1, Event::Finish as i32, finish);
    a.jump_if(Equal, R1, Event::End as i32, end);
    a.jump_if(GreaterOrEqual, R4, State::Closing as i32, miss);
    a.jump(done);
    a.place(data);
    a.jump_if(NotEqual, R4, State::Opening as i32, done);
    a.set(R4, State::Established as i32);
    a.jump(done);
    a.place(finish);
    a.jump_if(GreaterOrEqual, R4, State::Closing as i32, done);
    a.set(R4, State::Closing as i32);
    a.jump(done);
    a.place(end);
    a.set(R4, State::Closed as i32);
    a.place(done);
}

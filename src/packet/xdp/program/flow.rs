//! Flows that are known, and the sending of frames.

use super::{EVENT, Event, LENGTH, MARK, NEW, REFRESH, SLOT, TRANSMIT, VLAN, Writer};
use crate::packet::xdp::assembler::Condition::{Equal, Greater, GreaterOrEqual, Less, NotEqual};
use crate::packet::xdp::assembler::Operation::{
    Add, And, Move, Multiply, Or, ShiftLeft, ShiftRight, Subtract,
};
use crate::packet::xdp::assembler::Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use crate::packet::xdp::assembler::Size::{Byte, Double, Half, Word};
use crate::packet::xdp::assembler::{Assembler, Helper, Label};
use crate::packet::xdp::layout::{
    CLOCK_SHIFT, COUNTER_BYTES, COUNTER_FLOWS, COUNTER_PACKETS, DEVICES, Family, KIND_STATE,
    MARK_GENERATION, MARK_KIND, MARK_SHOWN, Reason, SERVER_DEVICE, SERVER_DOWN, SERVER_GENERATION,
    SERVER_INTERFACE, SERVER_MACS, SERVER_SHOWN, SERVER_TIMEOUTS, SERVER_VLAN, SHOWN_SHIFT, State,
};
use crate::sys::bpf::tick;

impl Writer<'_> {
    /// A flow that is known goes to its server, another one is scheduled.
    pub(super) fn flow(&mut self, family: Family) {
        let (miss, goes_on) = (self.a.label(), self.a.label());
        clock(&mut self.a);
        self.find(family, miss);
        self.server(miss);
        self.known(family, miss, goes_on);
        self.forward(Some(goes_on));
        self.a.place(miss);
        self.a.store(Word, R10, NEW, 0);
        self.service(family);
        self.admit(family);
        self.choose(family);
        self.remember(family);
        self.forward(None);
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

    /// What this frame does to a flow that is known; R9 is its place, R7 its server. If it says no more than that the flow goes
    /// on, and another one has said so in this tick, `goes_on` follows, with the server's interface in R9.
    fn known(&mut self, family: Family, miss: Label, goes_on: Label) {
        let (control, server) = (self.up(Reason::Control), self.up(Reason::Server));
        let a = &mut self.a;
        a.load(Half, R2, R10, MARK + MARK_GENERATION);
        a.load(Word, R3, R7, SERVER_GENERATION);
        a.jump_if(NotEqual, R2, R3, miss);
        a.load(Byte, R4, R10, MARK + MARK_KIND);
        a.alu(And, R4, i32::from(KIND_STATE));
        a.load(Word, R2, R9, family.seen());
        let says_more = a.label();
        a.jump_if(NotEqual, R2, R8, says_more);
        a.jump_if(NotEqual, R4, State::Established as i32, says_more);
        a.load(Word, R1, R10, EVENT);
        a.jump_if(Less, R1, Event::Data as i32, says_more);
        a.load(Word, R1, R7, SERVER_INTERFACE);
        a.jump_if(Equal, R1, 0, says_more);
        a.set(R9, R1);
        a.jump(goes_on);
        a.place(says_more);
        // How long it rested; less than nothing if another CPU has just touched it.
        let (alive, owned) = (a.label(), a.label());
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
        let middle = a.label();
        a.jump_if(NotEqual, R1, Event::Open as i32, middle);
        self.forget(family);
        let a = &mut self.a;
        a.jump(control);
        a.place(middle);
        let same_state = a.label();
        self.show(family, same_state);
        let a = &mut self.a;
        a.place(owned);
        // It begins anew with a server that is down: with another one. What is known stays until there is something
        // else, since the packet socket looks into it.
        let stays = a.label();
        a.jump_if(NotEqual, R1, Event::Open as i32, stays);
        a.load(Word, R2, R7, SERVER_DOWN);
        a.jump_if(NotEqual, R2, 0, miss);
        a.place(stays);
        a.set(R3, R4);
        next_state(a, miss);
        a.jump_if(Equal, R3, R4, same_state);
        a.load(Byte, R2, R10, MARK + MARK_KIND);
        a.alu(And, R2, i32::from(!KIND_STATE));
        a.alu(Or, R2, R4);
        self.change(family, MARK_KIND, R2);
        let a = &mut self.a;
        a.place(same_state);
        // Written only when it changes: many CPUs may share the cache line.
        let done = a.label();
        a.load(Word, R2, R9, family.seen());
        a.jump_if(Equal, R2, R8, done);
        a.store(Word, R9, family.seen(), R8);
        a.place(done);
    }

    /// Passes a frame up if none of its flow went up for a while; else goes on with `shown`. R3 is how long it rested.
    fn show(&mut self, family: Family, shown: Label) {
        let refresh = self.up(Reason::Refresh);
        let a = &mut self.a;
        let due = a.label();
        // What is written of that counts modulo 256, some minutes.
        a.jump_if32(GreaterOrEqual, R3, REFRESH, due);
        a.set(R2, R8);
        a.alu(ShiftRight, R2, SHOWN_SHIFT);
        a.load(Byte, R3, R10, MARK + MARK_SHOWN);
        a.alu(Subtract, R2, R3);
        a.alu(And, R2, 0xff);
        a.jump_if(Less, R2, REFRESH >> SHOWN_SHIFT, shown);
        a.place(due);
        a.set(R2, R8);
        a.alu(ShiftRight, R2, SHOWN_SHIFT);
        self.change(family, MARK_SHOWN, R2);
        let a = &mut self.a;
        a.store(Word, R9, family.seen(), R8);
        a.jump(refresh);
    }

    /// Writes the MAC addresses and sends; R7 is the server. A flow that is known may come in at `goes_on`, with the server's
    /// interface in R9; another one may be new, as `NEW` says.
    fn forward(&mut self, goes_on: Option<Label>) {
        let server = self.up(Reason::Server);
        let a = &mut self.a;
        let (sendable, here) = (a.label(), a.label());
        a.load(Word, R9, R7, SERVER_INTERFACE);
        a.jump_if(Equal, R9, 0, server);
        if let Some(goes_on) = goes_on {
            a.place(goes_on);
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
        if goes_on.is_none() {
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

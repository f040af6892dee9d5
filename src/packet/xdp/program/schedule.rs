//! The choice of a server for a new flow, and the limits on new flows.

use super::{
    COUNT, CROWDED, EVENT, Event, FOUND, HASHED, KEY, Maps, NEW, REASON, SECOND, SERVICE_KEY, SLOT,
    SOURCE, Writer, count_reason,
};
use crate::packet::xdp::assembler::Condition::{Equal, Greater, Less, LessOrEqual, NotEqual};
use crate::packet::xdp::assembler::Operation::{
    Add, And, Multiply, ShiftLeft, ShiftRight, Subtract,
};
use crate::packet::xdp::assembler::Register::{R0, R1, R2, R3, R4, R5, R7, R8, R9, R10};
use crate::packet::xdp::assembler::Size::{Byte, Double, Half, Word};
use crate::packet::xdp::assembler::{Assembler, Helper, Label};
use crate::packet::xdp::layout::{
    Family, Reason, SERVER_INTERFACE, SERVICE_AT, SERVICE_BY_SOURCE, SERVICE_KEY_FAMILY,
    SERVICE_KEY_PORT, SERVICE_KEY_PROTOCOL, SERVICE_PLACES,
};
use crate::packet::xdp::siphash;

impl Writer<'_> {
    /// The service of a flow that is not known, into R9.
    pub(super) fn service(&mut self, family: Family) {
        let no_service = self.up(Reason::NoService);
        let a = &mut self.a;
        for word in 0..2 {
            match family {
                Family::V4 => a.store(Double, R10, SERVICE_KEY + 8 * word, 0),
                Family::V6 => {
                    a.load(Double, R2, R10, KEY + 16 + 8 * word);
                    a.store(Double, R10, SERVICE_KEY + 8 * word, R2);
                }
            }
        }
        if family == Family::V4 {
            a.load(Word, R2, R10, KEY + 4);
            a.store(Word, R10, SERVICE_KEY, R2);
        }
        a.load(Half, R2, R10, family.key_ports() + 2);
        a.store(Half, R10, SERVICE_KEY + SERVICE_KEY_PORT, R2);
        a.load(Byte, R2, R10, family.key_ports() + 4);
        a.store(Byte, R10, SERVICE_KEY + SERVICE_KEY_PROTOCOL, R2);
        let version = if family == Family::V4 { 4 } else { 6 };
        a.store(Byte, R10, SERVICE_KEY + SERVICE_KEY_FAMILY, version);
        let found = a.label();
        self.find_service();
        let a = &mut self.a;
        if self.setup.any_port {
            a.jump_if(NotEqual, R0, 0, found);
            a.store(Half, R10, SERVICE_KEY + SERVICE_KEY_PORT, 0);
            self.find_service();
        }
        let a = &mut self.a;
        a.jump_if(Equal, R0, 0, no_service);
        a.place(found);
        a.set(R9, R0);
    }

    pub(super) fn find_service(&mut self) {
        let a = &mut self.a;
        a.map(R1, self.maps.services);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(SERVICE_KEY));
        a.call(Helper::MapLookup);
    }

    /// Whether the flow is scheduled here; `CROWDED` says whether it is remembered.
    pub(super) fn admit(&mut self, family: Family) {
        let schedule = self.up(Reason::Schedule);
        let unknown = self.up(Reason::UnknownFlow);
        let a = &mut self.a;
        a.load(Word, R2, R9, SERVICE_PLACES);
        a.jump_if(Equal, R2, 0, schedule);
        a.store(Word, R10, CROWDED, 0);
        let (counted, admitted) = (a.label(), a.label());
        if self.setup.new_flows != 0 {
            a.store(Word, R10, SLOT, 0);
            a.map(R1, self.maps.rate);
            a.set(R2, R10);
            a.alu(Add, R2, i32::from(SLOT));
            a.call(Helper::MapLookup);
            a.jump_if(Equal, R0, 0, counted);
            a.set(R5, R0);
            count_second(a);
            let limit = i32::try_from(self.setup.new_flows).unwrap_or(i32::MAX);
            a.jump_if(LessOrEqual, R3, limit, counted);
            a.store(Word, R10, CROWDED, 1);
        }
        a.place(counted);
        a.load(Word, R1, R10, EVENT);
        a.jump_if(Equal, R1, Event::Datagram as i32, admitted);
        if self.setup.syn_limit == 0 {
            a.jump_if(Equal, R1, Event::Open as i32, admitted);
        } else {
            let other = a.label();
            a.jump_if(NotEqual, R1, Event::Open as i32, other);
            self.limit_source(family, admitted);
            self.a.place(other);
        }
        // In the middle of a connection: the packet socket may know it. A flood of those must not drown it.
        let a = &mut self.a;
        a.load(Word, R2, R10, CROWDED);
        a.jump_if(Equal, R2, 0, unknown);
        a.place(admitted);
    }

    /// Counts a SYN against its source; too many are dropped.
    fn limit_source(&mut self, family: Family, admitted: Label) {
        let (new, drop) = (self.a.label(), self.drop);
        let a = &mut self.a;
        let (first, second) = match family {
            Family::V4 => (None, None),
            Family::V6 => (Some(KEY), Some(KEY + 8)),
        };
        for (from, at) in [(first, SOURCE), (second, SOURCE + 8)] {
            match from {
                None => a.store(Double, R10, at, 0),
                Some(from) => {
                    a.load(Double, R2, R10, from);
                    a.store(Double, R10, at, R2);
                }
            }
        }
        if family == Family::V4 {
            a.load(Word, R2, R10, KEY);
            a.store(Word, R10, SOURCE, R2);
        }
        let source = |a: &mut Assembler, maps: &Maps| {
            a.map(R1, maps.sources);
            a.set(R2, R10);
            a.alu(Add, R2, i32::from(SOURCE));
        };
        source(a, self.maps);
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, new);
        a.set(R5, R0);
        count_second(a);
        let limit = i32::try_from(self.setup.syn_limit).unwrap_or(i32::MAX);
        a.jump_if(Greater, R3, limit, drop);
        a.jump(admitted);
        a.place(new);
        a.store(Word, R10, COUNT, R8);
        a.store(Word, R10, COUNT + 4, 1);
        source(a, self.maps);
        a.set(R3, R10);
        a.alu(Add, R3, i32::from(COUNT));
        a.set(R4, 0);
        a.call(Helper::MapUpdate);
        a.jump(admitted);
    }

    /// The place of the flow's hash, the slot in it into `SLOT`, its server into R7.
    pub(super) fn choose(&mut self, family: Family) {
        let server = self.up(Reason::Server);
        let a = &mut self.a;
        for word in 0..i16::try_from(family.key_words()).unwrap_or_default() {
            a.load(Double, R2, R10, KEY + 8 * word);
            a.store(Double, R10, HASHED + 8 * word, R2);
        }
        let all = a.label();
        a.load(Word, R2, R9, SERVICE_BY_SOURCE);
        a.jump_if(Equal, R2, 0, all);
        a.store(Half, R10, HASHED + family.key_ports() - KEY, 0);
        a.place(all);
        siphash::emit(a, self.setup.key, HASHED, family.key_words());
        // Its high half times the number of places, the high half of that.
        a.alu(ShiftRight, R0, 32);
        a.load(Word, R1, R9, SERVICE_PLACES);
        a.alu(Multiply, R0, R1);
        a.alu(ShiftRight, R0, 32);
        a.load(Word, R2, R9, SERVICE_AT);
        a.set(R9, R0);
        a.alu(ShiftRight, R0, 2);
        a.alu(Add, R2, R0);
        a.store(Word, R10, SLOT, R2);
        a.map(R1, self.maps.places);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(SLOT));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, server);
        a.alu(And, R9, 3);
        a.alu(ShiftLeft, R9, 1);
        a.alu(Add, R0, R9);
        a.load(Half, R2, R0, 0);
        a.store(Word, R10, SLOT, R2);
        self.server(server);
        let a = &mut self.a;
        a.load(Word, R2, R7, SERVER_INTERFACE);
        a.jump_if(Equal, R2, 0, server);
    }

    /// Puts the new flow into the table, unless there are too many or there is no room.
    pub(super) fn remember(&mut self, family: Family) {
        let (stateless, full) = (self.a.label(), self.a.label());
        let (count, done) = (self.a.label(), self.a.label());
        let a = &mut self.a;
        a.load(Word, R2, R10, CROWDED);
        a.jump_if(NotEqual, R2, 0, stateless);
        self.take(family, full);
        let a = &mut self.a;
        a.store(Word, R10, NEW, 1);
        a.jump(done);
        a.place(stateless);
        a.store(Word, R10, REASON, Reason::Stateless as i32);
        a.load(Double, R9, R10, FOUND);
        a.jump_if(Equal, R9, 0, count);
        self.forget(family);
        let a = &mut self.a;
        a.jump(count);
        a.place(full);
        a.store(Word, R10, REASON, Reason::Full as i32);
        a.place(count);
        count_reason(a, self.maps);
        a.place(done);
    }
}

/// One more in this second: R5 points to its beginning and the count, which R3 holds afterwards.
fn count_second(a: &mut Assembler) {
    let (same, set) = (a.label(), a.label());
    a.load(Word, R2, R5, 0);
    a.set(R3, R8);
    a.alu32(Subtract, R3, R2);
    a.jump_if(Less, R3, SECOND, same);
    a.store(Word, R5, 0, R8);
    a.set(R3, 0);
    a.jump(set);
    a.place(same);
    a.load(Word, R3, R5, 4);
    a.place(set);
    a.alu(Add, R3, 1);
    a.store(Word, R5, 4, R3);
}

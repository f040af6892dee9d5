//! The flows' table as the program uses it; [`super::super::flow_table`] is the other side.

use super::{
    BEST, CHANGED, CLASS, EVENT, Event, FIRST, FOUND, HASHED, INDEX, KEY, MARK, OTHER, SCRATCH,
    SLOT, Writer,
};
use crate::packet::xdp::assembler::Condition::{AnyBit, Equal, Greater, LessOrEqual, NotEqual};
use crate::packet::xdp::assembler::Operation::{
    Add, And, Move, Multiply, Or, ShiftLeft, ShiftRight, Subtract, Xor,
};
use crate::packet::xdp::assembler::Register::{R0, R1, R2, R3, R4, R5, R7, R8, R9, R10};
use crate::packet::xdp::assembler::Size::{Byte, Double, Half, Word};
use crate::packet::xdp::assembler::{Assembler, Helper, Label, Operand, Register};
use crate::packet::xdp::layout::{
    Family, HASH, KIND_BUSY, KIND_REST, KIND_STATE, MARK_GENERATION, MARK_KIND, MARK_SHOWN,
    MARK_SLOT, MARK_VERSION, OVER_BITS, REST_BIAS, REST_SHIFT, REST_WEIGHT, Reason,
    SERVER_GENERATION, SHOWN_SHIFT, STAYS, State,
};

/// Bytes of a word.
const WORD: i16 = 8;
/// Where in a mark, as a number, its kind is.
const KIND_SHIFT: i32 = if cfg!(target_endian = "little") { 48 } else { 8 };

impl Writer<'_> {
    /// The flow's place into R9 and `FOUND`, its mark into `MARK`, its server's slot into `SLOT`; goes on with `missing` when
    /// it has none, and `FOUND` is 0 then.
    pub(super) fn find(&mut self, family: Family, missing: Label) {
        let found = self.a.label();
        let a = &mut self.a;
        a.store(Double, R10, FOUND, 0);
        for (word, by) in HASH.into_iter().enumerate().take(family.key_words()) {
            let to = if word == 0 { R2 } else { R3 };
            a.load(Double, to, R10, KEY + WORD * offset(word));
            a.constant(R1, by);
            a.alu(Multiply, to, R1);
            if word > 0 {
                a.alu(Add, R2, R3);
            }
        }
        a.set(R3, R2);
        a.alu(ShiftRight, R3, 32);
        a.alu(Xor, R2, R3);
        a.constant(R1, HASH[0]);
        a.alu(Multiply, R2, R1);
        a.store(Double, R10, HASHED, R2);
        a.alu(ShiftRight, R2, 32);
        self.bucket(family, FIRST);
        self.places(family, found);
        self.a.load(Double, R2, R10, HASHED);
        self.a.alu32(Move, R2, R2);
        self.bucket(family, OTHER);
        self.places(family, found);
        let a = &mut self.a;
        a.jump(missing);
        a.place(found);
        self.at(family, R9, R0);
        let a = &mut self.a;
        a.store(Double, R10, FOUND, R9);
        a.store(Double, R10, MARK, R5);
        a.load(Half, R2, R10, MARK + MARK_SLOT);
        a.store(Word, R10, SLOT, R2);
    }

    /// The bucket of a hash of 32 bits in R2, into R9 and onto the stack.
    fn bucket(&mut self, family: Family, at: i16) {
        // There is always one.
        let none = self.up(Reason::UnknownFlow);
        let a = &mut self.a;
        a.alu(Multiply, R2, self.maps.buckets[family as usize].cast_signed());
        a.alu(ShiftRight, R2, 32);
        a.store(Word, R10, INDEX, R2);
        a.map(R1, self.maps.flows[family as usize]);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(INDEX));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, none);
        a.set(R9, R0);
        a.store(Double, R10, at, R9);
    }

    /// Looks for the flow in the bucket in R9; where in it the flow's place is comes into R0. The mark is read before and
    /// after the rest, so that all of it is of one flow.
    fn places(&mut self, family: Family, found: Label) {
        let a = &mut self.a;
        a.load(Word, R3, R10, family.key_ports());
        a.load(Double, R4, R10, KEY);
        for place in 0..family.places() {
            let next = a.label();
            let at = place_at(family, place);
            a.load(Double, R5, R9, at + family.mark());
            a.loads_in_order(R10, SCRATCH, R1);
            a.load(Word, R1, R9, at + family.ports());
            a.jump_if(NotEqual, R1, R3, next);
            for word in 0..family.address_words() {
                let word = WORD * offset(word);
                a.load(Double, R1, R9, at + word);
                if word == 0 {
                    a.jump_if(NotEqual, R1, R4, next);
                } else {
                    a.load(Double, R2, R10, KEY + word);
                    a.jump_if(NotEqual, R1, R2, next);
                }
            }
            a.set(R1, R5);
            a.alu(ShiftRight, R1, KIND_SHIFT);
            a.alu(And, R1, i32::from(!KIND_STATE));
            a.load(Byte, R2, R10, CLASS);
            a.jump_if(NotEqual, R1, R2, next);
            a.loads_in_order(R10, SCRATCH, R1);
            a.load(Double, R1, R9, at + family.mark());
            a.jump_if(NotEqual, R1, R5, next);
            one_of_many(a, family, R0, at);
            a.jump(found);
            a.place(next);
        }
    }

    /// A bucket's place, from its address and where in the bucket it is.
    fn at(&mut self, family: Family, bucket: Register, place: Register) {
        // There is always one; the verifier cannot know.
        let none = self.up(Reason::UnknownFlow);
        let a = &mut self.a;
        a.jump_if(Greater, place, i32::from(last_place(family)), none);
        a.alu(Add, bucket, place);
    }

    /// Takes a place for the new flow: the one it has, else one that is free or whose flow is missed least. R7 is its
    /// server. If there is none, or another CPU is quicker, goes on with `full`.
    pub(super) fn take(&mut self, family: Family, full: Label) {
        let (chosen, begins) = (self.a.label(), self.a.label());
        let a = &mut self.a;
        a.load(Double, R4, R10, FOUND);
        a.jump_if(NotEqual, R4, 0, chosen);
        self.room(family, full);
        let a = &mut self.a;
        a.place(chosen);
        a.load(Word, R1, R10, SLOT);
        a.store(Half, R10, CHANGED + MARK_SLOT, R1);
        a.load(Word, R1, R7, SERVER_GENERATION);
        a.store(Half, R10, CHANGED + MARK_GENERATION, R1);
        a.load(Half, R1, R10, MARK + MARK_VERSION);
        a.alu(Add, R1, 1);
        a.store(Half, R10, CHANGED + MARK_VERSION, R1);
        a.store(Byte, R10, CHANGED + MARK_KIND, i32::from(KIND_BUSY));
        a.set(R1, R8);
        a.alu(ShiftRight, R1, SHOWN_SHIFT);
        a.store(Byte, R10, CHANGED + MARK_SHOWN, R1);
        exchange_mark(a, R4, family);
        a.jump_if(NotEqual, R0, R5, full);
        for word in 0..family.address_words() {
            let word = WORD * offset(word);
            a.load(Double, R1, R10, KEY + word);
            a.store(Double, R4, word, R1);
        }
        a.load(Word, R1, R10, family.key_ports());
        a.store(Word, R4, family.ports(), R1);
        a.store(Word, R4, family.seen(), R8);
        a.load(Byte, R1, R10, CLASS);
        a.load(Word, R2, R10, EVENT);
        a.jump_if(Equal, R2, Event::Open as i32, begins);
        a.alu(Or, R1, State::Established as i32);
        a.place(begins);
        a.store(Byte, R10, CHANGED + MARK_KIND, R1);
        a.load(Double, R1, R10, CHANGED);
        a.exchange(R4, family.mark(), R1);
    }

    /// A place that may be taken into R4, its mark into `MARK`: the first that is free or whose flow is over, else that
    /// whose flow is missed least.
    fn room(&mut self, family: Family, full: Label) {
        let chosen = self.a.label();
        let a = &mut self.a;
        // Who has no more than that stays.
        a.set(R3, STAYS - 1);
        one_of_many(a, family, R4, 0);
        a.store(Double, R10, MARK, 0);
        a.load(Double, R9, R10, FIRST);
        a.store(Double, R10, BEST, R9);
        let mut loaded = None;
        for (bucket, place) in family.order() {
            if loaded.replace(bucket) != Some(bucket) {
                a.load(Double, R9, R10, if bucket == 0 { FIRST } else { OTHER });
            }
            let at = place_at(family, place);
            let (this, next) = (a.label(), a.label());
            a.load(Double, R1, R9, at + family.mark());
            a.store(Double, R10, CHANGED, R1);
            a.load(Byte, R2, R10, CHANGED + MARK_KIND);
            a.jump_if(Equal, R2, 0, this);
            a.jump_if(AnyBit, R2, i32::from(KIND_BUSY), next);
            a.load(Word, R5, R9, at + family.seen());
            a.set(R0, R8);
            a.alu32(Subtract, R0, R5);
            // Less than nothing: another CPU has just seen it.
            a.jump_if(Greater, R0, i32::MAX, next);
            a.alu(And, R2, i32::from(KIND_REST));
            a.alu(ShiftLeft, R2, REST_SHIFT);
            a.map_value(R5, self.maps.rests);
            a.alu(Add, R5, R2);
            a.load(Double, R2, R5, REST_WEIGHT);
            a.alu(Multiply, R0, R2);
            a.set(R2, R0);
            a.alu(ShiftRight, R2, OVER_BITS);
            a.jump_if(NotEqual, R2, 0, this);
            a.load(Double, R2, R5, REST_BIAS);
            a.alu(Add, R0, R2);
            a.jump_if(LessOrEqual, R0, R3, next);
            a.set(R3, R0);
            blur(a, R3);
            one_of_many(a, family, R4, at);
            a.store(Double, R10, BEST, R9);
            a.store(Double, R10, MARK, R1);
            a.jump(next);
            a.place(this);
            one_of_many(a, family, R4, at);
            a.store(Double, R10, BEST, R9);
            a.store(Double, R10, MARK, R1);
            a.jump(chosen);
            a.place(next);
        }
        a.jump_if(Equal, R3, STAYS - 1, full);
        a.place(chosen);
        a.load(Double, R9, R10, BEST);
        self.at(family, R9, R4);
        self.a.set(R4, R9);
    }

    /// Changes a byte of the mark of the place in R9, unless somebody else has changed it since it was found.
    pub(super) fn change(&mut self, family: Family, byte: i16, to: impl Into<Operand>) {
        let a = &mut self.a;
        a.load(Double, R1, R10, MARK);
        a.store(Double, R10, CHANGED, R1);
        a.store(Byte, R10, CHANGED + byte, to);
        exchange_mark(a, R9, family);
    }

    /// Frees the flow's place, which is in R9.
    pub(super) fn forget(&mut self, family: Family) {
        self.change(family, MARK_KIND, 0);
    }
}

/// Puts `CHANGED` in the place of `MARK`, if that is what it still is: R0 and R5 are equal then.
fn exchange_mark(a: &mut Assembler, place: Register, family: Family) {
    a.load(Double, R0, R10, MARK);
    a.set(R5, R0);
    a.load(Double, R1, R10, CHANGED);
    a.compare_exchange(place, family.mark(), R1);
}

/// Sets a register to a place's offset in such a way that the verifier knows no more than that it is one: else it would
/// follow all that comes after once for each place.
fn one_of_many(a: &mut Assembler, family: Family, to: Register, at: i16) {
    let bits = u16::BITS - last_place(family).leading_zeros();
    a.set(to, i32::from(at));
    blur(a, to);
    // As many bits as it can have, without those that it has not.
    a.alu(And, to, (1 << bits) - i32::from(WORD));
}

/// Leaves a register as it is, but the verifier without what it knew of it.
fn blur(a: &mut Assembler, register: Register) {
    a.alu(Add, register, R8);
    a.alu(Subtract, register, R8);
}

/// Where in its bucket the last place begins.
fn last_place(family: Family) -> i16 {
    place_at(family, family.places() - 1)
}

/// Where in its bucket a place begins.
fn place_at(family: Family, place: usize) -> i16 {
    WORD * offset(place * family.place_words())
}

/// The offset of a thing that is within reach of an instruction.
fn offset(number: usize) -> i16 {
    i16::try_from(number).unwrap_or_default()
}

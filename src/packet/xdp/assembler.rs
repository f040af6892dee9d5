//! An assembler for eBPF (RFC 9669): instructions by name, jumps to labels.
//!
//! It knows what this crate's programs use and checks what can be checked without the kernel: that each
//! label is placed once and in reach. Everything else is the verifier's business.

use std::fmt;

use crate::sys::bpf::Instruction;

/// A register. `R0` holds results, `R1` to `R5` arguments, which calls destroy; `R10` is the frame pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "they have numbers")]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// How much a memory access moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    /// 4 bytes.
    Word = 0x00,
    /// 2 bytes.
    Half = 0x08,
    /// 1 byte.
    Byte = 0x10,
    /// 8 bytes.
    Double = 0x18,
}

/// An arithmetic operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "they are what they say")]
pub enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    Multiply = 0x20,
    Divide = 0x30,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Remainder = 0x90,
    Xor = 0xa0,
    Move = 0xb0,
}

/// When a jump is taken; comparisons are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Condition {
    /// Both are equal.
    Equal = 0x10,
    /// The first is greater.
    Greater = 0x20,
    /// The first is greater or equal.
    GreaterOrEqual = 0x30,
    /// They have a bit in common.
    AnyBit = 0x40,
    /// They differ.
    NotEqual = 0x50,
    /// The first is less.
    Less = 0xa0,
    /// The first is less or equal.
    LessOrEqual = 0xb0,
}

/// The second operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Register(Register),
    /// A number, extended with its sign to 64 bits.
    Immediate(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Immediate(number)
    }
}

/// A place in a program, to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// Helper functions of the kernel (enum bpf_func_id); all of them in Linux 6.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Helper {
    /// A map's value for a key, or null.
    MapLookup = 1,
    /// Sets a map's value.
    MapUpdate = 2,
    /// Redirects the frame to an entry of a device map.
    RedirectMap = 51,
    /// The kernel's ticks so far: put in line, hence cheaper than any clock.
    Jiffies = 118,
}

/// Why a program could not be put together: an error of whoever wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssembleError {
    /// A jump to a label that was never placed.
    Unplaced(Label),
    /// A jump over more than 32,767 instructions.
    TooFar(Label),
}

impl fmt::Display for AssembleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplaced(Label(label)) => write!(f, "label {label} is jumped to and not placed"),
            Self::TooFar(Label(label)) => write!(f, "label {label} is too far from a jump to it"),
        }
    }
}

impl std::error::Error for AssembleError {}

// Instruction classes and modes.
const LOAD: u8 = 0x01;
const STORE_IMMEDIATE: u8 = 0x02;
const STORE: u8 = 0x03;
const ALU32: u8 = 0x04;
const JUMP: u8 = 0x05;
const JUMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
const MEMORY: u8 = 0x60;
const ATOMIC: u8 = 0xc0;
const FROM_REGISTER: u8 = 0x08;
const LOAD_64_IMMEDIATE: u8 = 0x18;
const TO_BIG_ENDIAN: u8 = 0xdc;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
// Atomic operations (BPF_XCHG, BPF_CMPXCHG).
const EXCHANGE: i32 = 0xe1;
const COMPARE_EXCHANGE: i32 = 0xf1;
/// BPF_PSEUDO_MAP_FD: the constant is a map's descriptor.
const MAP_DESCRIPTOR: u8 = 1;
/// BPF_PSEUDO_MAP_VALUE: it stands for the address of an array's only value.
const MAP_VALUE: u8 = 2;

/// A program in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    /// Jumps whose distance is still to be filled in.
    jumps: Vec<(usize, Label)>,
    places: Vec<Option<usize>>,
}

impl Assembler {
    /// A label to be placed later.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Places a label before the next instruction.
    ///
    /// # Panics
    /// When it was placed before.
    pub fn place(&mut self, label: Label) {
        let place = &mut self.places[label.0];
        assert!(place.is_none(), "label {} is placed twice", label.0);
        *place = Some(self.instructions.len());
    }

    /// Whether anything jumps to a label so far: the verifier refuses code that is never reached.
    #[must_use]
    pub fn is_used(&self, label: Label) -> bool {
        self.jumps.iter().any(|(_, to)| *to == label)
    }

    /// Instructions so far; a constant of 64 bits counts as two.
    #[must_use]
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }

    /// `to = *(size *)(base + offset)`, the rest of the register zero.
    pub fn load(&mut self, size: Size, to: Register, base: Register, offset: i16) {
        self.push(LOAD | MEMORY | size as u8, to, base, offset, 0);
    }

    /// `*(size *)(base + offset) = value`
    pub fn store(&mut self, size: Size, base: Register, offset: i16, value: impl Into<Operand>) {
        match value.into() {
            Operand::Register(from) => {
                self.push(STORE | MEMORY | size as u8, base, from, offset, 0);
            }
            Operand::Immediate(number) => {
                let code = STORE_IMMEDIATE | MEMORY | size as u8;
                self.push(code, base, Register::R0, offset, number);
            }
        }
    }

    /// Swaps `*(u64 *)(base + offset)` with `with`; a full barrier.
    pub fn exchange(&mut self, base: Register, offset: i16, with: Register) {
        self.push(STORE | ATOMIC | Size::Double as u8, base, with, offset, EXCHANGE);
    }

    /// Sets `*(u64 *)(base + offset)` to `to` if it is `R0`, and `R0` to what it was; a full barrier.
    pub fn compare_exchange(&mut self, base: Register, offset: i16, to: Register) {
        self.push(STORE | ATOMIC | Size::Double as u8, base, to, offset, COMPARE_EXCHANGE);
    }

    /// What is loaded from here on was loaded after what was loaded so far. `base + offset` is a word that nobody
    /// needs; `scratch` is overwritten. x86-64 keeps that order by itself.
    pub fn loads_in_order(&mut self, base: Register, offset: i16, scratch: Register) {
        if cfg!(not(target_arch = "x86_64")) {
            self.exchange(base, offset, scratch);
        }
    }

    /// `to = to OPERATION with`, on 64 bits.
    pub fn alu(&mut self, operation: Operation, to: Register, with: impl Into<Operand>) {
        self.arithmetic(ALU64, operation, to, with.into());
    }

    /// `to = to OPERATION with`, on the low 32 bits; the high ones become zero.
    pub fn alu32(&mut self, operation: Operation, to: Register, with: impl Into<Operand>) {
        self.arithmetic(ALU32, operation, to, with.into());
    }

    /// `to = from`
    pub fn set(&mut self, to: Register, from: impl Into<Operand>) {
        self.alu(Operation::Move, to, from);
    }

    /// Swaps the low `bits` (16, 32 or 64) between the CPU's order and the network's; the rest becomes zero.
    pub fn to_network(&mut self, register: Register, bits: i32) {
        self.push(TO_BIG_ENDIAN, register, Register::R0, 0, bits);
    }

    /// Loads a constant of 64 bits.
    pub fn constant(&mut self, to: Register, value: u64) {
        self.wide(to, Register::R0, value);
    }

    /// Loads a map's address, the map given by its descriptor.
    pub fn map(&mut self, to: Register, descriptor: i32) {
        self.descriptor(to, descriptor, MAP_DESCRIPTOR);
    }

    /// Loads the address of the value of an array with one entry.
    pub fn map_value(&mut self, to: Register, descriptor: i32) {
        self.descriptor(to, descriptor, MAP_VALUE);
    }

    fn descriptor(&mut self, to: Register, descriptor: i32, meaning: u8) {
        let [a, b, c, d] = descriptor.to_le_bytes();
        let value = u64::from_le_bytes([a, b, c, d, 0, 0, 0, 0]);
        let code = self.instructions.len();
        self.wide(to, Register::R0, value);
        if let Some(first) = self.instructions.get_mut(code) {
            first.registers |= meaning << 4;
        }
    }

    /// Jumps.
    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(JUMP, Register::R0, Register::R0, 0, 0);
    }

    /// Jumps if `first CONDITION second`, on 64 bits.
    pub fn jump_if(
        &mut self,
        condition: Condition,
        first: Register,
        second: impl Into<Operand>,
        to: Label,
    ) {
        self.conditional(JUMP, condition, first, second.into(), to);
    }

    /// Jumps if `first CONDITION second`, on the low 32 bits.
    pub fn jump_if32(
        &mut self,
        condition: Condition,
        first: Register,
        second: impl Into<Operand>,
        to: Label,
    ) {
        self.conditional(JUMP32, condition, first, second.into(), to);
    }

    /// Calls a helper of the kernel.
    pub fn call(&mut self, helper: Helper) {
        self.push(CALL, Register::R0, Register::R0, 0, i32::from(helper as u8));
    }

    /// Returns `R0`.
    pub fn exit(&mut self) {
        self.push(EXIT, Register::R0, Register::R0, 0, 0);
    }

    /// The program with its jumps filled in.
    ///
    /// # Errors
    /// When a label is missing or out of reach.
    pub fn finish(mut self) -> Result<Vec<Instruction>, AssembleError> {
        for (at, label) in self.jumps {
            let place = self.places.get(label.0).copied().flatten();
            let place = place.ok_or(AssembleError::Unplaced(label))?;
            let distance = place.cast_signed() - at.cast_signed() - 1;
            let distance = i16::try_from(distance).map_err(|_| AssembleError::TooFar(label))?;
            if let Some(jump) = self.instructions.get_mut(at) {
                jump.offset = distance;
            }
        }
        Ok(self.instructions)
    }

    fn arithmetic(&mut self, class: u8, operation: Operation, to: Register, with: Operand) {
        match with {
            Operand::Register(from) => {
                self.push(class | operation as u8 | FROM_REGISTER, to, from, 0, 0);
            }
            Operand::Immediate(number) => {
                self.push(class | operation as u8, to, Register::R0, 0, number);
            }
        }
    }

    fn conditional(
        &mut self,
        class: u8,
        condition: Condition,
        first: Register,
        second: Operand,
        to: Label,
    ) {
        self.jumps.push((self.instructions.len(), to));
        let code = class | condition as u8;
        match second {
            Operand::Register(other) => self.push(code | FROM_REGISTER, first, other, 0, 0),
            Operand::Immediate(number) => self.push(code, first, Register::R0, 0, number),
        }
    }

    fn wide(&mut self, to: Register, from: Register, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.push(LOAD_64_IMMEDIATE, to, from, 0, i32::from_le_bytes([a, b, c, d]));
        self.push(0, Register::R0, Register::R0, 0, i32::from_le_bytes([e, f, g, h]));
    }

    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) {
        let registers = (from as u8) << 4 | to as u8;
        self.instructions.push(Instruction { code, registers, offset, immediate });
    }
}

#[cfg(test)]
mod tests {
    use super::Register::{R0, R1, R2, R3, R4, R10};
    use super::*;
    use crate::sys::bpf::{Program, Trial};

    /// Against encodings taken from RFC 9669 by hand.
    #[test]
    fn instructions_are_encoded() {
        let mut a = Assembler::default();
        let end = a.label();
        a.load(Size::Half, R1, R2, 12);
        a.store(Size::Double, R10, -8, R3);
        a.store(Size::Word, R10, -16, 7);
        a.alu(Operation::Add, R1, 5);
        a.alu32(Operation::Xor, R1, R2);
        a.to_network(R4, 16);
        a.jump_if(Condition::Greater, R1, R2, end);
        a.jump_if32(Condition::NotEqual, R1, 9, end);
        a.call(Helper::RedirectMap);
        a.place(end);
        a.exit();
        let expected: [(u8, u8, i16, i32); 10] = [
            (0x69, 0x21, 12, 0),
            (0x7b, 0x3a, -8, 0),
            (0x62, 0x0a, -16, 7),
            (0x07, 0x01, 0, 5),
            (0xac, 0x21, 0, 0),
            (0xdc, 0x04, 0, 16),
            (0x2d, 0x21, 2, 0),
            (0x56, 0x01, 1, 9),
            (0x85, 0x00, 0, 51),
            (0x95, 0x00, 0, 0),
        ];
        let expected = expected.map(|(code, registers, offset, immediate)| Instruction {
            code,
            registers,
            offset,
            immediate,
        });
        assert_eq!(a.finish().expect("all labels are placed"), expected);
    }

    #[test]
    fn labels_are_checked() {
        let mut a = Assembler::default();
        let (here, there) = (a.label(), a.label());
        a.place(here);
        a.jump(there);
        assert_eq!(a.finish(), Err(AssembleError::Unplaced(there)));
        let mut a = Assembler::default();
        let far = a.label();
        a.jump(far);
        (0..40_000).for_each(|_| a.exit());
        a.place(far);
        assert_eq!(a.finish(), Err(AssembleError::TooFar(far)));
    }

    /// What the kernel computes with it: 5! by way of a 64-bit constant, a stack slot and jumps.
    #[test]
    fn the_kernel_runs_it() {
        let mut a = Assembler::default();
        let (wrong, right) = (a.label(), a.label());
        a.constant(R1, 0x1234_5678_9abc_def0);
        a.store(Size::Double, R10, -8, R1);
        a.load(Size::Byte, R2, R10, -1);
        a.set(R0, 1);
        a.jump_if(Condition::NotEqual, R2, 0x12, wrong);
        for factor in 2..=5 {
            a.alu(Operation::Multiply, R0, factor);
        }
        a.set(R3, 0x0102);
        a.to_network(R3, 16);
        a.jump_if(Condition::Equal, R3, 0x0201, right);
        a.place(wrong);
        a.set(R0, 0);
        a.place(right);
        a.exit();
        let program = match Program::load_xdp(&a.finish().expect("labels"), "factorial") {
            Err(error) if error.error.raw_os_error() == Some(libc::EPERM) => return,
            program => program.expect("a sound program"),
        };
        let run = program.run(&[0; 60], &mut [0; 60], Trial::default()).expect("a run");
        assert_eq!(run.result, 120);
    }
}

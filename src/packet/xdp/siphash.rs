//! [`crate::balance::siphash`] in eBPF.

use super::assembler::Operation::{Add, Or, ShiftLeft, ShiftRight, Xor};
use super::assembler::Register::{R0, R1, R2, R3, R4, R5, R10};
use super::assembler::Size::Double;
use super::assembler::{Assembler, Register};
use crate::balance::siphash::Key;

/// SipHash-1-3 of so many words on the stack, into R0; R1 to R5 are overwritten.
pub(super) fn emit(a: &mut Assembler, key: Key, at: i16, words: usize) {
    a.constant(R1, key.0 ^ 0x736f_6d65_7073_6575);
    a.constant(R2, key.1 ^ 0x646f_7261_6e64_6f6d);
    a.constant(R3, key.0 ^ 0x6c79_6765_6e65_7261);
    a.constant(R4, key.1 ^ 0x7465_6462_7974_6573);
    for word in (at..).step_by(8).take(words) {
        a.load(Double, R0, R10, word);
        a.alu(Xor, R4, R0);
        round(a);
        // The rounds need R0 for themselves.
        a.load(Double, R0, R10, word);
        a.alu(Xor, R1, R0);
    }
    let last = (words as u64 * 8) << 56;
    a.constant(R0, last);
    a.alu(Xor, R4, R0);
    round(a);
    a.constant(R0, last);
    a.alu(Xor, R1, R0);
    a.alu(Xor, R3, 0xff);
    (0..3).for_each(|_| round(a));
    a.set(R0, R1);
    [R2, R3, R4].into_iter().for_each(|part| a.alu(Xor, R0, part));
}

fn round(a: &mut Assembler) {
    a.alu(Add, R1, R2);
    rotate(a, R2, 13);
    a.alu(Xor, R2, R1);
    rotate(a, R1, 32);
    a.alu(Add, R3, R4);
    rotate(a, R4, 16);
    a.alu(Xor, R4, R3);
    a.alu(Add, R1, R4);
    rotate(a, R4, 21);
    a.alu(Xor, R4, R1);
    a.alu(Add, R3, R2);
    rotate(a, R2, 17);
    a.alu(Xor, R2, R3);
    rotate(a, R3, 32);
}

fn rotate(a: &mut Assembler, register: Register, bits: i32) {
    a.set(R5, register);
    a.alu(ShiftLeft, register, bits);
    a.alu(ShiftRight, R5, 64 - bits);
    a.alu(Or, register, R5);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::hash::mix;
    use crate::balance::siphash::hash_words;
    use crate::sys::bpf::{Program, Trial};

    /// A program that returns one half of the hash of constants.
    fn half(key: Key, words: &[u64], high: bool) -> Option<u32> {
        let mut a = Assembler::default();
        for (at, word) in (-40..).step_by(8).zip(words) {
            a.constant(R1, *word);
            a.store(Double, R10, at, R1);
        }
        emit(&mut a, key, -40, words.len());
        a.alu(ShiftRight, R0, if high { 32 } else { 0 });
        a.exit();
        match Program::load_xdp(&a.finish().expect("no labels"), "siphash") {
            Err(error) if error.error.raw_os_error() == Some(libc::EPERM) => None,
            program => {
                let program = program.expect("a sound program");
                let run = program.run(&[0; 60], &mut [0; 60], Trial::default());
                Some(run.expect("a run").result)
            }
        }
    }

    #[test]
    fn kernel_and_userland_hash_alike() {
        for seed in 0..50 {
            let word = |n: u64| mix(seed * 7 + n);
            let key = Key(word(5), word(6));
            let words: [u64; 5] = std::array::from_fn(|n| word(n as u64));
            for hash in [(2, hash_words(key, [words[0], words[1]])), (5, hash_words(key, words))] {
                let (count, expected) = hash;
                for high in [false, true] {
                    let Some(half) = half(key, &words[..count], high) else { return };
                    let wanted = (expected >> if high { 32 } else { 0 }) & u64::from(u32::MAX);
                    assert_eq!(u64::from(half), wanted, "seed {seed}, {count} words");
                }
            }
        }
    }
}

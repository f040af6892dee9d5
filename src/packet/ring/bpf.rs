//! Classic BPF (bpf(4), `Documentation/networking/filter.rst`): an assembler with labels, and attaching.

use std::io;
use std::os::fd::AsRawFd;

use crate::packet::options::set;

/// Steps that the kernel takes at most (`BPF_MAXINSNS`).
pub const STEPS_MAX: usize = 4096;
/// `SKF_AD_OFF + SKF_AD_PKTTYPE`: whom the frame is for (`PACKET_HOST` and so on).
pub(super) const PACKET_TYPE: u32 = 0xffff_f000 + 4;
/// `SKF_AD_OFF + SKF_AD_PROTOCOL`: the EtherType behind any VLAN tag.
pub(super) const PROTOCOL: u32 = 0xffff_f000;

/// A program.
#[derive(Debug, Clone, Default)]
pub struct Program {
    steps: Vec<libc::sock_filter>,
    /// Jumps (by step) whose label (by number) has no place yet.
    jumps: Vec<(usize, usize)>,
    labels: Vec<usize>,
}

/// A place in a program to jump to; only ahead, as the kernel demands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label(usize);

impl Program {
    /// How many steps it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// True before the first step.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn step(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        let code = u16::try_from(code).unwrap_or_default();
        self.steps.push(libc::sock_filter { code, jt, jf, k });
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels.push(usize::MAX);
        Label(self.labels.len() - 1)
    }

    pub(super) fn place(&mut self, label: Label) {
        let here = self.steps.len();
        if let Some(at) = self.labels.get_mut(label.0) {
            *at = here;
        }
    }

    pub(super) fn load_byte(&mut self, at: u32) {
        self.step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
    }

    pub(super) fn load_half(&mut self, at: u32) {
        self.step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, at);
    }

    pub(super) fn load_word(&mut self, at: u32) {
        self.step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    }

    /// X becomes the length of the IPv4 header at `at`.
    pub(super) fn header_length(&mut self, at: u32) {
        self.step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, at);
    }

    pub(super) fn load_byte_behind(&mut self, at: u32) {
        self.step(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0, at);
    }

    pub(super) fn load_half_behind(&mut self, at: u32) {
        self.step(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 0, 0, at);
    }

    pub(super) fn load_word_behind(&mut self, at: u32) {
        self.step(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, 0, 0, at);
    }

    pub(super) fn copy_to_x(&mut self) {
        self.step(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0);
    }

    pub(super) fn xor_x(&mut self) {
        self.step(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0, 0, 0);
    }

    pub(super) fn multiply(&mut self, by: u32) {
        self.step(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, 0, 0, by);
    }

    pub(super) fn shift_right(&mut self, by: u32) {
        self.step(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 0, 0, by);
    }

    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.steps.len(), to.0));
        self.step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 0);
    }

    pub(super) fn jump_if_equal(&mut self, value: u32, to: Label) {
        self.step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, value);
        self.jump(to);
    }

    pub(super) fn jump_unless_equal(&mut self, value: u32, to: Label) {
        self.step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, value);
        self.jump(to);
    }

    pub(super) fn jump_if_any(&mut self, bits: u32, to: Label) {
        self.step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, bits);
        self.jump(to);
    }

    pub(super) fn give(&mut self, value: u32) {
        self.step(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    }

    pub(super) fn give_a(&mut self) {
        // BPF_A of linux/filter.h, which libc does not have.
        self.step(libc::BPF_RET | 0x10, 0, 0, 0);
    }

    /// With every jump resolved.
    pub(super) fn finish(mut self) -> Self {
        for (at, label) in std::mem::take(&mut self.jumps) {
            let to = self.labels.get(label).copied().unwrap_or_default();
            let distance = u32::try_from(to.saturating_sub(at + 1)).unwrap_or(u32::MAX);
            if let Some(step) = self.steps.get_mut(at) {
                step.k = distance;
            }
        }
        self
    }

    /// Gives it to a socket, as the option `name` of `level`.
    pub(in crate::packet) fn attach(
        &self,
        fd: &impl AsRawFd,
        level: i32,
        name: i32,
    ) -> io::Result<()> {
        let mut steps = self.steps.clone();
        let len =
            u16::try_from(steps.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        // The kernel copies the steps, which live across the call.
        set(fd, level, name, libc::sock_fprog { len, filter: steps.as_mut_ptr() })
    }

    /// What it gives for a frame: an interpreter of what is used here.
    #[cfg(test)]
    pub(super) fn run(&self, frame: &[u8], packet_type: u32, protocol: u32) -> u32 {
        let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
        let load = |at: u32, size: u32| -> Option<u32> {
            match at {
                PACKET_TYPE => return Some(packet_type),
                PROTOCOL => return Some(protocol),
                _ => {}
            }
            let bytes = frame.get(at as usize..at as usize + size as usize)?;
            Some(bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
        };
        let size = |code: u32| match code & 0x18 {
            libc::BPF_B => 1,
            libc::BPF_H => 2,
            _ => 4,
        };
        loop {
            let step = self.steps[at];
            let code = u32::from(step.code);
            at += 1;
            match code & 7 {
                libc::BPF_LD => {
                    let from = if code & 0xe0 == libc::BPF_IND { x + step.k } else { step.k };
                    let Some(value) = load(from, size(code)) else { return 0 };
                    a = value;
                }
                libc::BPF_LDX => {
                    let Some(value) = load(step.k, 1) else { return 0 };
                    x = (value & 15) * 4;
                }
                libc::BPF_MISC => x = a,
                libc::BPF_ALU => {
                    a = match code & 0xf0 {
                        libc::BPF_XOR => a ^ x,
                        libc::BPF_MUL => a.wrapping_mul(step.k),
                        _ => a >> step.k,
                    };
                }
                libc::BPF_JMP => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JA => {
                            at += step.k as usize;
                            continue;
                        }
                        libc::BPF_JEQ => a == step.k,
                        _ => a & step.k != 0,
                    };
                    at += usize::from(if holds { step.jt } else { step.jf });
                }
                _ => return if code & 0x18 == 0x10 { a } else { step.k },
            }
        }
    }
}

//! Programs: loading with the verifier's log, and test runs.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::{PROG_LOAD, PROG_TEST_RUN, address, address_mut, call, name, open};

/// An instruction (struct bpf_insn): opcode, registers (destination in the low four bits), offset, immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    /// Destination register in the low half, source in the high one.
    pub registers: u8,
    /// A jump's distance or a memory access's offset.
    pub offset: i16,
    /// An immediate value.
    pub immediate: i32,
}

/// A loaded program.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// Why a program was not loaded.
#[derive(Debug)]
pub struct LoadError {
    /// What bpf(2) said: EACCES or EINVAL when the verifier refused it, EPERM without the right to load.
    pub error: io::Error,
    /// What the verifier said; empty when it was not reached.
    pub log: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bpf(BPF_PROG_LOAD): {}", self.error)?;
        let log = self.log.trim();
        if log.is_empty() { Ok(()) } else { write!(f, "; the verifier says:\n{log}") }
    }
}

impl std::error::Error for LoadError {}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

/// struct xdp_md
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress: u32,
    queue: u32,
    egress: u32,
}

/// What a test run is to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trial {
    /// How often the program runs on the frame; 0 and 1 are once.
    pub repeat: u32,
    /// The interface the frame comes from, 0 for the loopback of the caller's network namespace.
    pub interface: u32,
    /// Frames are really sent or passed on as the program says, 64 at a time (since Linux 5.18).
    pub live: bool,
}

/// What a test run gave.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// What the program returned; 0 for live runs.
    pub result: u32,
    /// Bytes of the frame afterwards, in the output buffer.
    pub length: usize,
    /// Mean duration of one run, in whole nanoseconds.
    pub duration: Duration,
}

/// BPF_PROG_TYPE_XDP
const XDP: u32 = 6;
/// BPF_XDP, the attach type.
pub(super) const ATTACH_XDP: u32 = 37;
/// BPF_F_TEST_XDP_LIVE_FRAMES
const LIVE_FRAMES: u32 = 2;
const LOG_SIZE: usize = 1 << 20;

impl Program {
    /// Loads an XDP program.
    ///
    /// # Errors
    /// With the verifier's log when it refuses the program.
    pub fn load_xdp(instructions: &[Instruction], called: &str) -> Result<Self, LoadError> {
        let first = match load(instructions, called, &mut []) {
            Ok(fd) => return Ok(Self(fd)),
            Err(error) => error,
        };
        if first.raw_os_error() == Some(libc::EPERM) {
            return Err(LoadError { error: first, log: String::new() });
        }
        // Again, with a log: keeping one always would make each load slower.
        let mut log = vec![0; LOG_SIZE];
        match load(instructions, called, &mut log) {
            Ok(fd) => Ok(Self(fd)),
            Err(error) => {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                log.truncate(end);
                Err(LoadError { error, log: String::from_utf8_lossy(&log).into_owned() })
            }
        }
    }

    /// Runs the program on a frame without any interface taking part, or live.
    ///
    /// # Errors
    /// EINVAL when the frame is shorter than an Ethernet header, ENOSPC when `out` is too small, EAGAIN or
    /// EINTR when a signal came.
    pub fn run(&self, frame: &[u8], out: &mut [u8], trial: Trial) -> io::Result<Run> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
        let context = [Context {
            data: 0,
            data_end: length(frame)?,
            data_meta: 0,
            ingress: trial.interface,
            queue: 0,
            egress: 0,
        }];
        let mut attributes = TestRun {
            program: self.0.as_raw_fd().cast_unsigned(),
            size_in: length(frame)?,
            data_in: address(frame),
            repeat: trial.repeat,
            flags: if trial.live { LIVE_FRAMES } else { 0 },
            ..TestRun::default()
        };
        if trial.interface != 0 {
            attributes.context_size_in = u32::try_from(size_of::<Context>()).unwrap_or_default();
            attributes.context_in = address(&context);
        }
        if !trial.live {
            (attributes.size_out, attributes.data_out) = (length(out)?, address_mut(out));
        }
        call(PROG_TEST_RUN, &mut attributes)?;
        Ok(Run {
            result: attributes.result,
            length: attributes.size_out as usize,
            duration: Duration::from_nanos(attributes.duration.into()),
        })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn load(instructions: &[Instruction], called: &str, log: &mut [u8]) -> io::Result<OwnedFd> {
    /// The verifier gives up with EAGAIN when a signal is pending.
    const TRIES: usize = 5;
    // The helpers used are free to all licences; the kernel wants to be told one.
    let license = b"Dual MIT/GPL\0";
    let length = |count: usize| u32::try_from(count).map_err(io::Error::other);
    let mut attributes = Load {
        kind: XDP,
        count: length(instructions.len())?,
        instructions: address(instructions),
        license: address(license),
        log_level: u32::from(!log.is_empty()),
        log_size: length(log.len())?,
        log: if log.is_empty() { 0 } else { address_mut(log) },
        kernel: 0,
        flags: 0,
        name: name(called),
        interface: 0,
        attach: ATTACH_XDP,
    };
    let mut result = open(PROG_LOAD, &mut attributes);
    for _ in 1..TRIES {
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                result = open(PROG_LOAD, &mut attributes);
            }
            _ => break,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn instruction(code: u8, registers: u8, immediate: i32) -> Instruction {
        Instruction { code, registers, offset: 0, immediate }
    }

    /// `return 2`, XDP_PASS
    const PASS: [Instruction; 2] = [instruction(0xb7, 0, 2), instruction(0x95, 0, 0)];

    #[test]
    fn a_program_runs_on_a_frame() {
        let program = match Program::load_xdp(&PASS, "test") {
            Err(error) if error.error.raw_os_error() == Some(libc::EPERM) => return,
            program => program.expect("two harmless instructions"),
        };
        let (frame, mut out) = ([7; 60], [0; 128]);
        let run = program.run(&frame, &mut out, Trial::default()).expect("a run");
        assert_eq!((run.result, run.length), (2, 60));
        assert_eq!(&out[..60], &frame);
        assert!(program.run(&frame[..10], &mut out, Trial::default()).is_err());
    }

    #[test]
    fn the_verifier_says_why() {
        // An exit without a result.
        let error = Program::load_xdp(&PASS[1..], "test").expect_err("refused");
        if error.error.raw_os_error() != Some(libc::EPERM) {
            assert!(error.log.contains("R0 !read_ok"), "{error}");
            assert!(error.to_string().contains("the verifier says"), "{error}");
        }
    }
}

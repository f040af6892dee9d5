//! Signals as file input (signalfd(2)), so that no code runs in a handler.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// A descriptor that yields the signals it was made for.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

/// Size of the record that one signal is read as (`struct signalfd_siginfo`).
pub const RECORD_LEN: usize = size_of::<libc::signalfd_siginfo>();

impl SignalFd {
    /// Blocks `signals` in the calling thread, and so in every thread it starts afterwards, and
    /// returns the descriptor that reports them instead.
    ///
    /// # Errors
    /// What pthread_sigmask(3) or signalfd(2) says.
    pub fn block(signals: &[libc::c_int]) -> io::Result<Self> {
        let set = set_of(signals);
        // SAFETY: `set` was initialised by sigemptyset; the old mask is not asked for.
        let errno =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: `set` is an initialised signal set that the call only reads.
        let fd = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) })?;
        // SAFETY: the call above returned this descriptor, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<SignalFd> for OwnedFd {
    fn from(signals: SignalFd) -> Self {
        signals.0
    }
}

/// The signal number in a record read from a [`SignalFd`]; `None` for a short read.
#[must_use]
pub fn number(record: &[u8]) -> Option<libc::c_int> {
    let bytes: [u8; 4] = record.get(..RECORD_LEN)?.get(..4)?.try_into().ok()?;
    libc::c_int::try_from(u32::from_ne_bytes(bytes)).ok()
}

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain integers; sigemptyset initialises it before any other use, and
    // sigaddset only fails for numbers that are no signal, which leaves the set as it was.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

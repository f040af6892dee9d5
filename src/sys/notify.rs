//! eventfd(2): one thread wakes another that sleeps in its ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// A counter that can be read through a ring and added to from any thread.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// # Errors
    /// What eventfd(2) says, EMFILE for one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
        // SAFETY: the call above returned this descriptor, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes back all notifications; for a thread that waits with ppoll(2), after which it does not block.
    pub fn clear(&self) {
        let mut count: u64 = 0;
        // SAFETY: the buffer is the 8 bytes of `count`, which lives across the call.
        unsafe {
            libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>());
        }
    }

    /// Wakes whoever reads. The counter cannot fill up and block: that takes 2^64 notifications
    /// without a read.
    pub fn notify(&self) {
        let one: u64 = 1;
        // SAFETY: the buffer is the 8 bytes of `one`, which lives across the call.
        unsafe {
            libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>());
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

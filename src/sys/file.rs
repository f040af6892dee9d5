//! File status flags (fcntl(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Takes `O_NONBLOCK` off: reads and writes wait.
///
/// # Errors
/// What fcntl(2) says.
pub fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) })?;
    Ok(())
}

//! Files in memory (memfd_create(2)) and file status flags (fcntl(2)).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// A file that exists in memory only, for as long as somebody has it open. Closes on exec.
///
/// # Errors
/// What memfd_create(2) says.
pub fn in_memory(name: &CStr) -> io::Result<File> {
    // SAFETY: the name is a string that ends with zero and lives across the call.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

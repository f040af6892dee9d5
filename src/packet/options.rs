//! Socket options and addresses that the packet sockets share.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A non-blocking socket (socket(2)).
pub(super) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(family, kind, protocol) })?;
    // SAFETY: the call above returned this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// setsockopt(2) with a value that the kernel copies.
pub(super) fn set<T: Copy>(fd: &impl AsRawFd, level: i32, name: i32, value: T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: the option value is the `len` bytes of `value`, which lives across the call; every caller
    // passes the type that the option is documented with.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len)
    })?;
    Ok(())
}

/// The receive buffer, above net.core.rmem_max where that is allowed.
pub(super) fn set_receive_buffer(fd: &impl AsRawFd, bytes: i32) {
    if set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
        // Smaller than wanted is still usable; what overflows it is sent again by the peer.
        let _ = set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
    }
}

/// Receives only from, and sends only to, this interface (`SO_BINDTODEVICE`, socket(7)).
pub(super) fn bind_to_device(fd: &impl AsRawFd, name: &str) -> io::Result<()> {
    let mut buffer = [0u8; libc::IFNAMSIZ];
    let bytes = name.as_bytes();
    let room = buffer
        .get_mut(..bytes.len())
        .filter(|room| room.len() < libc::IFNAMSIZ)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    room.copy_from_slice(bytes);
    set(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, buffer)
}

/// bind(2) to an address of a plain C type.
pub(super) fn bind<T: Copy>(fd: &impl AsRawFd, address: T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: the address is the `len` bytes of `address`, a sockaddr of the socket's family.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(())
}

/// A C structure of integers, all zero.
pub(super) fn zeroed<T: Copy>() -> T {
    // SAFETY: called only for C structures of integers and pointers, for which zeroes are valid.
    unsafe { mem::zeroed() }
}

/// Turns a C return value into a result that carries errno.
pub(super) fn check(value: i32) -> io::Result<i32> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Turns the length a C function returned into a result that carries errno.
pub(super) fn check_len(value: isize) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}

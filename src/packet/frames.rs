//! Frames of our own on an interface (packet(7)): gratuitous ARP and neighbour advertisements.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::options::{check_len, socket, zeroed};

/// Sends Ethernet frames on any interface; receives nothing.
#[derive(Debug)]
pub struct FrameSender(OwnedFd);

impl FrameSender {
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn new() -> io::Result<Self> {
        // Protocol 0 receives nothing.
        Ok(Self(socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?))
    }

    /// Sends `frame`, which begins with its Ethernet header, on the interface with this index.
    ///
    /// # Errors
    /// ENETDOWN when the interface is down, ENXIO when it has gone, ENOBUFS when its queue is full.
    pub fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        let mut to: libc::sockaddr_ll = zeroed();
        to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        to.sll_ifindex = i32::try_from(interface).unwrap_or_default();
        let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
        // SAFETY: the frame is `frame.len()` readable bytes and the address `len` bytes of `to`; both
        // outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_NOSIGNAL,
                (&raw const to).cast(),
                len,
            )
        };
        check_len(sent).map(drop)
    }
}

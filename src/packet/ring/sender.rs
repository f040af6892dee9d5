//! Frames out, many with one call (sendmmsg(2)), each behind its `virtio_net_hdr`.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::VNET;
use crate::packet::options::{set, socket, zeroed};

/// Frames in one call at most (UIO_MAXIOV is 1024).
const BATCH_MAX: usize = 256;

/// Why a frame was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The interface's queue was full (ENOBUFS, EAGAIN).
    Full,
    /// The interface is down or has gone (ENETDOWN, ENXIO, ENODEV).
    Down,
    /// Larger than the interface's MTU (EMSGSIZE).
    TooLarge,
    /// Something else.
    Other,
}

impl Refusal {
    /// All of them, in the order of [`Sent::refused`].
    pub const ALL: [Self; 4] = [Self::Full, Self::Down, Self::TooLarge, Self::Other];

    /// For metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "queue_full",
            Self::Down => "interface_down",
            Self::TooLarge => "too_large",
            Self::Other => "other",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOBUFS | libc::EAGAIN | libc::ENOMEM) => Self::Full,
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Self::Down,
            Some(libc::EMSGSIZE) => Self::TooLarge,
            _ => Self::Other,
        }
    }
}

/// What became of frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Given to an interface.
    pub frames: u32,
    /// Not sent, by [`Refusal::ALL`].
    pub refused: [u32; 4],
}

impl Sent {
    fn add(&mut self, other: Self) {
        self.frames += other.frames;
        for (sum, more) in self.refused.iter_mut().zip(other.refused) {
            *sum += more;
        }
    }
}

/// A queue of frames for one socket. The frames are pointed to, not copied.
struct Lane {
    fd: OwnedFd,
    pieces: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_ll>,
    messages: Vec<libc::mmsghdr>,
}

/// Sends frames on any interface.
pub struct Sender {
    /// Past the queueing discipline (PACKET_QDISC_BYPASS).
    direct: Lane,
    /// Through it: the direct way drops what the interface cannot segment itself.
    queued: Lane,
    sent: Sent,
}

// SAFETY: the pointers in the lanes are set up and used within `queue` and `flush`, between which the
// sender is borrowed by one `Ring::turn`; empty lanes hold none.
unsafe impl Send for Sender {}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

impl Sender {
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn new() -> io::Result<Self> {
        let (direct, queued) = (Lane::new()?, Lane::new()?);
        set(&direct.fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1i32)?;
        Ok(Self { direct, queued, sent: Sent::default() })
    }

    /// Notes a frame with its `virtio_net_hdr`, to be sent by the next [`Sender::flush`]. Only `Ring::turn`
    /// calls this: it keeps the bytes as they are until then.
    pub(super) fn queue(&mut self, frame: &mut [u8], interface: u32, merged: bool) {
        let lane = if merged { &mut self.queued } else { &mut self.direct };
        lane.push(frame, interface);
        if lane.pieces.len() == BATCH_MAX {
            let sent = lane.flush();
            self.sent.add(sent);
        }
    }

    /// Sends what was noted.
    pub(super) fn flush(&mut self) -> Sent {
        let mut sent = std::mem::take(&mut self.sent);
        for lane in [&mut self.direct, &mut self.queued] {
            if !lane.pieces.is_empty() {
                sent.add(lane.flush());
            }
        }
        sent
    }

    /// Sends a frame of our own, complete with checksums.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn send(&mut self, frame: &[u8], interface: u32) -> Result<(), Refusal> {
        let mut bytes = Vec::with_capacity(VNET + frame.len());
        bytes.resize(VNET, 0);
        bytes.extend_from_slice(frame);
        self.direct.push(&mut bytes, interface);
        let sent = self.direct.flush();
        let refused = Refusal::ALL.into_iter().zip(sent.refused).find(|(_, count)| *count > 0);
        refused.map_or(Ok(()), |(refusal, _)| Err(refusal))
    }
}

impl Lane {
    fn new() -> io::Result<Self> {
        // Protocol 0 receives nothing.
        let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1i32)?;
        Ok(Self { fd, pieces: Vec::new(), names: Vec::new(), messages: Vec::new() })
    }

    fn push(&mut self, frame: &mut [u8], interface: u32) {
        let mut name: libc::sockaddr_ll = zeroed();
        name.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        name.sll_ifindex = i32::try_from(interface).unwrap_or_default();
        self.names.push(name);
        self.pieces.push(libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() });
    }

    /// One frame that is refused does not keep those behind it back.
    fn flush(&mut self) -> Sent {
        self.messages.clear();
        let name_len =
            libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
        for (piece, name) in self.pieces.iter_mut().zip(&mut self.names) {
            let mut message: libc::mmsghdr = zeroed();
            message.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            message.msg_hdr.msg_namelen = name_len;
            message.msg_hdr.msg_iov = piece;
            message.msg_hdr.msg_iovlen = 1;
            self.messages.push(message);
        }
        let mut sent = Sent::default();
        let mut rest = &mut self.messages[..];
        while !rest.is_empty() {
            let count = libc::c_uint::try_from(rest.len()).unwrap_or_default();
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: `rest` is `count` messages, each of one name and one piece of memory that live in
            // `self` and, for the frames, in the ring or buffer that the caller keeps until this returns.
            let done = unsafe {
                libc::sendmmsg(self.fd.as_raw_fd(), rest.as_mut_ptr(), count, flags as _)
            };
            let done = match usize::try_from(done) {
                Ok(done) if done > 0 => {
                    sent.frames += u32::try_from(done).unwrap_or_default();
                    done
                }
                _ => {
                    let refusal = Refusal::of(&io::Error::last_os_error());
                    let place = Refusal::ALL.iter().position(|one| *one == refusal);
                    if let Some(count) = place.and_then(|place| sent.refused.get_mut(place)) {
                        *count += 1;
                    }
                    1
                }
            };
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        self.messages.clear();
        self.pieces.clear();
        self.names.clear();
        sent
    }
}

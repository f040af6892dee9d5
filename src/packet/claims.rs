//! Who else claims an address: ARP messages and neighbour advertisements that name it (packet(7)).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::options::{bind, check_len, set, socket, zeroed};
use crate::protocol::ethernet::{self, Mac};
use crate::protocol::{arp, ndp};

/// linux/if_packet.h: frames that this host sends are not handed over.
const PACKET_IGNORE_OUTGOING: i32 = 23;
/// Addresses a socket watches at most, so that its filter stays within what the kernel takes.
const ADDRESSES_MAX: usize = 1024;
/// Frames read in one go; what comes beyond waits, or is dropped by the kernel.
const FRAMES_MAX: usize = 64;
/// Enough of a frame for either kind of message.
const FRAME: usize = 128;

/// One family's claims on one interface.
#[derive(Debug)]
pub struct ClaimSocket {
    fd: OwnedFd,
    ether_type: u16,
}

impl ClaimSocket {
    /// Watches these addresses of one family on the interface with this index. The kernel filters: other hosts'
    /// messages about other addresses wake nobody.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV when the interface has gone.
    pub fn open(interface: u32, addresses: &[IpAddr]) -> io::Result<Self> {
        let ether_type =
            if addresses.iter().any(IpAddr::is_ipv6) { ethernet::IPV6 } else { ethernet::ARP };
        // Protocol 0 receives nothing until the filter stands.
        let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        // Linux 4.20; without it our own frames are read and seen to be ours.
        let _ = set(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1i32);
        let mut steps = filter(ether_type, addresses);
        let len =
            u16::try_from(steps.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
        // Copied by the kernel before this returns: `steps` lives until the end.
        set(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)?;
        let mut to: libc::sockaddr_ll = zeroed();
        to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        to.sll_protocol = ether_type.to_be();
        to.sll_ifindex = i32::try_from(interface).unwrap_or_default();
        bind(&fd, to)?;
        Ok(Self { fd, ether_type })
    }

    /// Hands over what was claimed since the last call: who, and which address. A bounded number; the rest waits.
    pub fn receive(&self, mut each: impl FnMut(Mac, IpAddr)) {
        let mut frame = [0u8; FRAME];
        for _ in 0..FRAMES_MAX {
            // SAFETY: the buffer is `FRAME` writable bytes that live across the call.
            let got = check_len(unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    FRAME,
                    libc::MSG_DONTWAIT,
                )
            });
            // An error is the interface's state, which netlink tells too.
            let Ok(len) = got else { return };
            let Some((header, message)) = frame
                .get(..len.min(FRAME))
                .and_then(<[u8]>::split_first_chunk::<{ ethernet::HEADER }>)
            else {
                continue;
            };
            if self.ether_type == ethernet::ARP {
                if let Some(claim) = arp::claim(message) {
                    each(claim.mac, claim.address.into());
                }
            } else if let Some(target) = ndp::advertised(message) {
                each(ethernet::source(header), target.into());
            }
        }
    }
}

impl AsRawFd for ClaimSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Classic BPF: whole frames of this kind that name one of the addresses (the last 32 bits of it, for IPv6; who
/// reads the frame compares it all).
fn filter(ether_type: u16, addresses: &[IpAddr]) -> Vec<libc::sock_filter> {
    const DROP: u32 = 0;
    const KEEP: u32 = u32::MAX;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let load = |width: u32, at| step(libc::BPF_LD | width | libc::BPF_ABS, 0, 0, at);
    let end = |verdict| step(libc::BPF_RET | libc::BPF_K, 0, 0, verdict);
    let unless =
        |value| [step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, value), end(DROP)];
    let mut steps = Vec::with_capacity(8 + 2 * addresses.len().min(ADDRESSES_MAX));
    if ether_type == ethernet::ARP {
        steps.push(load(libc::BPF_W, 28)); // the sender's address
    } else {
        steps.push(load(libc::BPF_B, 20)); // next header
        steps.extend(unless(u32::from(ndp::ICMPV6)));
        steps.push(load(libc::BPF_B, 54)); // ICMPv6 type
        steps.extend(unless(u32::from(ndp::NEIGHBOUR_ADVERTISEMENT)));
        steps.push(load(libc::BPF_W, 74)); // the end of the target
    }
    for address in addresses.iter().take(ADDRESSES_MAX) {
        let word = match address {
            IpAddr::V4(address) => u32::from(*address),
            IpAddr::V6(address) => (u128::from(*address) & 0xffff_ffff) as u32,
        };
        steps.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, word));
        steps.push(end(KEEP));
    }
    steps.push(end(DROP));
    steps
}

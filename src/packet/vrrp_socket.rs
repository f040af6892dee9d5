//! Raw IP sockets for VRRP (IP protocol 112, RFC 9568 section 5.1) on one interface: what comes in with
//! the time at which the kernel received it, and what goes out with TTL 255.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::options::{self, check, check_len, set, socket, zeroed};
use crate::protocol::vrrp::{Datagram, Error, Family, IP_PROTOCOL, MULTICAST_V4, MULTICAST_V6};

/// Packets read in one call.
pub const BATCH: usize = 32;
/// Longest packet taken: 255 IPv6 addresses are 4,088 bytes. A longer one is cut, and refused by its length.
const PACKET_MAX: usize = 4608;
/// Words of control data a packet: timestamp, hop limit and packet information need 96 bytes.
const CONTROL_WORDS: usize = 24;
/// Bytes that wait for us: garbage at speed must not crowd out advertisements while we are not looking.
const RECEIVE_BUFFER: i32 = 1 << 20;
/// Internetwork control (RFC 2474 class selector 6), as keepalived sends.
const TRAFFIC_CLASS: i32 = 0xC0;
/// `TC_PRIO_CONTROL` (linux/pkt_sched.h): before bulk traffic in our own queues.
const PRIORITY: i32 = 7;

/// A packet as received.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// Its contents, if its IP header is sound.
    pub datagram: Result<Datagram<'a>, Error>,
    /// Wall-clock time since 1970 at which the kernel received it.
    pub stamp: Option<Duration>,
}

/// The memory that packets are received into.
pub struct Buffers {
    data: Box<[[u8; PACKET_MAX]; BATCH]>,
    control: Box<[[u64; CONTROL_WORDS]; BATCH]>,
    names: Box<[libc::sockaddr_storage; BATCH]>,
}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffers").finish_non_exhaustive()
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            data: Box::new([[0; PACKET_MAX]; BATCH]),
            control: Box::new([[0; CONTROL_WORDS]; BATCH]),
            names: Box::new([zeroed(); BATCH]),
        }
    }
}

/// A raw socket of one family on one interface.
#[derive(Debug)]
pub struct VrrpSocket {
    fd: OwnedFd,
    interface: u32,
    family: Family,
}

impl AsRawFd for VrrpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl VrrpSocket {
    /// Opens one on the interface with this name and index and, with `multicast`, joins VRRP's group.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV when there is no such interface, EAFNOSUPPORT without IPv6.
    pub fn open(name: &str, interface: u32, family: Family, multicast: bool) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let fd = socket(domain, libc::SOCK_RAW, i32::from(IP_PROTOCOL))?;
        options::bind_to_device(&fd, name)?;
        options::set_receive_buffer(&fd, RECEIVE_BUFFER);
        set(&fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1i32)?;
        set(&fd, libc::SOL_SOCKET, libc::SO_PRIORITY, PRIORITY)?;
        match family {
            Family::V4 => prepare_v4(&fd, interface, multicast)?,
            Family::V6 => prepare_v6(&fd, interface, multicast)?,
        }
        Ok(Self { fd, interface, family })
    }

    /// Reads what waits, up to [`BATCH`] packets, and hands each to `each`; returns how many there were.
    ///
    /// # Errors
    /// ENETDOWN when the interface went down. Nothing waiting is no error.
    pub fn receive(
        &self,
        buffers: &mut Buffers,
        mut each: impl FnMut(Received<'_>),
    ) -> io::Result<usize> {
        let mut parts: [libc::iovec; BATCH] = zeroed();
        let mut heads: [libc::mmsghdr; BATCH] = zeroed();
        let rows = buffers.data.iter_mut().zip(buffers.control.iter_mut());
        let rows = rows.zip(buffers.names.iter_mut()).zip(parts.iter_mut().zip(&mut heads));
        for (((data, control), name), (part, head)) in rows {
            part.iov_base = data.as_mut_ptr().cast();
            part.iov_len = data.len();
            head.msg_hdr.msg_iov = part;
            head.msg_hdr.msg_iovlen = 1;
            head.msg_hdr.msg_control = control.as_mut_ptr().cast();
            head.msg_hdr.msg_controllen = size_of_val(control);
            head.msg_hdr.msg_name = (&raw mut *name).cast();
            head.msg_hdr.msg_namelen =
                libc::socklen_t::try_from(size_of_val(name)).unwrap_or_default();
        }
        #[allow(clippy::cast_possible_truncation)] // 32
        let count = BATCH as libc::c_uint;
        // SAFETY: each of the `count` headers points to a buffer, control area and name of the announced
        // sizes in `buffers`, which is borrowed mutably across the call; no timeout is passed.
        let received = check(unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                heads.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        });
        let received = match received {
            Ok(count) => usize::try_from(count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Err(error) => return Err(error),
        };
        let rows = heads.iter().zip(buffers.data.iter()).zip(buffers.names.iter());
        for ((head, data), name) in rows.take(received) {
            let bytes = data.get(..head.msg_len as usize).unwrap_or_default();
            let control = Control::of(&head.msg_hdr);
            let datagram = match self.family {
                Family::V4 => Datagram::from_ipv4(bytes),
                Family::V6 => Ok(datagram_v6(bytes, name, &control)),
            };
            each(Received { datagram, stamp: control.received });
        }
        Ok(received)
    }

    /// Sends `payload` from `source` (one of the interface's addresses, or one of any family's
    /// "unspecified" to let the kernel choose) to `destination` with TTL 255.
    ///
    /// # Errors
    /// ENETDOWN, EADDRNOTAVAIL or EINVAL when the source is not ours, ENOBUFS.
    pub fn send(&self, source: IpAddr, destination: IpAddr, payload: &[u8]) -> io::Result<()> {
        let mut part =
            libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        let mut control = [0u64; 8];
        let mut head: libc::msghdr = zeroed();
        head.msg_iov = &raw mut part;
        head.msg_iovlen = 1;
        head.msg_control = control.as_mut_ptr().cast();
        let name_v4;
        let name_v6;
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                name_v4 = sockaddr_v4(destination);
                head.msg_name = (&raw const name_v4).cast_mut().cast();
                head.msg_namelen = socklen::<libc::sockaddr_in>();
                let info = libc::in_pktinfo {
                    ipi_ifindex: self.index(),
                    ipi_spec_dst: in_addr(source),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                };
                head.msg_controllen =
                    put_control(&mut control, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                name_v6 = sockaddr_v6(destination, self.interface);
                head.msg_name = (&raw const name_v6).cast_mut().cast();
                head.msg_namelen = socklen::<libc::sockaddr_in6>();
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: self.interface,
                };
                head.msg_controllen =
                    put_control(&mut control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            _ => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
        // SAFETY: the header points to the payload, a name of the socket's family and one control message,
        // each of the announced length; all outlive the call, which only reads them.
        let sent =
            unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const head, libc::MSG_DONTWAIT) };
        check_len(sent).map(drop)
    }

    fn index(&self) -> i32 {
        i32::try_from(self.interface).unwrap_or_default()
    }
}

fn prepare_v4(fd: &OwnedFd, interface: u32, multicast: bool) -> io::Result<()> {
    let index = i32::try_from(interface).unwrap_or_default();
    set(fd, libc::IPPROTO_IP, libc::IP_TTL, 255i32)?;
    set(fd, libc::IPPROTO_IP, libc::IP_TOS, TRAFFIC_CLASS)?;
    set(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, 255i32)?;
    set(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 0i32)?;
    set(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0i32)?;
    let group = libc::ip_mreqn {
        imr_multiaddr: in_addr(MULTICAST_V4),
        imr_address: in_addr(Ipv4Addr::UNSPECIFIED),
        imr_ifindex: index,
    };
    set(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, group)?;
    if multicast {
        set(fd, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, group)?;
    }
    Ok(())
}

fn prepare_v6(fd: &OwnedFd, interface: u32, multicast: bool) -> io::Result<()> {
    let index = i32::try_from(interface).unwrap_or_default();
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 255i32)?;
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, TRAFFIC_CLASS)?;
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 255i32)?;
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 0i32)?;
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, index)?;
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1i32)?;
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1i32)?;
    if multicast {
        let group = libc::ipv6_mreq {
            ipv6mr_multiaddr: libc::in6_addr { s6_addr: MULTICAST_V6.octets() },
            ipv6mr_interface: interface,
        };
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, group)?;
    }
    Ok(())
}

/// What the kernel said beside a packet.
#[derive(Default)]
struct Control {
    received: Option<Duration>,
    hops: Option<u8>,
    destination: Option<Ipv6Addr>,
}

impl Control {
    fn of(head: &libc::msghdr) -> Self {
        let mut known = Self::default();
        // SAFETY: recvmmsg filled in `head`, whose control area is alive and of the length it says; the
        // CMSG functions stay within that length.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(head) };
        while !next.is_null() {
            // SAFETY: `next` is a complete, aligned header inside the control area.
            let message = unsafe { *next };
            // SAFETY: as above; the data follow the header inside the control area.
            let data = unsafe { libc::CMSG_DATA(next) };
            let len = message.cmsg_len.saturating_sub(data as usize - next as usize);
            // SAFETY: the message is `cmsg_len` bytes long, so its data are `len` bytes, all initialised
            // by the kernel; nothing writes to the area while the slice lives.
            let data = unsafe { std::slice::from_raw_parts(data, len) };
            known.note(message.cmsg_level, message.cmsg_type, data);
            // SAFETY: as for the first.
            next = unsafe { libc::CMSG_NXTHDR(head, next) };
        }
        known
    }

    fn note(&mut self, level: i32, kind: i32, data: &[u8]) {
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => self.received = timestamp(data),
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                let hops = data.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes));
                self.hops = hops.and_then(|hops| u8::try_from(hops).ok());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                self.destination = data.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes));
            }
            _ => {}
        }
    }
}

/// A `timespec` of two 64-bit numbers.
fn timestamp(data: &[u8]) -> Option<Duration> {
    let (seconds, rest) = data.split_first_chunk::<8>()?;
    let nanos = rest.first_chunk::<8>()?;
    let seconds = u64::try_from(i64::from_ne_bytes(*seconds)).ok()?;
    let nanos = u32::try_from(i64::from_ne_bytes(*nanos)).ok()?;
    Some(Duration::new(seconds, nanos.min(999_999_999)))
}

fn datagram_v6<'a>(
    bytes: &'a [u8],
    name: &libc::sockaddr_storage,
    control: &Control,
) -> Datagram<'a> {
    // SAFETY: the kernel wrote the sender's sockaddr_in6 into this storage, which is larger and aligned for
    // any sockaddr; for another family the integers would be other values, no less valid.
    let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
    Datagram {
        source: Ipv6Addr::from(name.sin6_addr.s6_addr).into(),
        destination: control.destination.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
        hop_limit: control.hops.unwrap_or(0),
        payload: bytes,
    }
}

/// Writes one control message; returns the length of the control area in use.
fn put_control<T: Copy>(control: &mut [u64; 8], level: i32, kind: i32, value: T) -> usize {
    let len = u32::try_from(size_of::<T>()).unwrap_or_default();
    let head = control.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: the area is 64 bytes and aligned for u64, as cmsghdr needs; header and value (20 bytes at
    // most, unaligned write) fit, and CMSG_LEN and CMSG_SPACE only compute.
    unsafe {
        (*head).cmsg_level = level;
        (*head).cmsg_type = kind;
        (*head).cmsg_len = libc::CMSG_LEN(len) as usize;
        libc::CMSG_DATA(head).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(len) as usize
    }
}

fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) }
}

fn sockaddr_v4(address: Ipv4Addr) -> libc::sockaddr_in {
    let mut name: libc::sockaddr_in = zeroed();
    name.sin_family = u16::try_from(libc::AF_INET).unwrap_or_default();
    name.sin_addr = in_addr(address);
    name
}

fn sockaddr_v6(address: Ipv6Addr, interface: u32) -> libc::sockaddr_in6 {
    let mut raw: libc::sockaddr_in6 = zeroed();
    raw.sin6_family = u16::try_from(libc::AF_INET6).unwrap_or_default();
    raw.sin6_addr = libc::in6_addr { s6_addr: address.octets() };
    raw.sin6_scope_id =
        if address.is_unicast_link_local() || address.is_multicast() { interface } else { 0 };
    raw
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_need_both_numbers() {
        let mut data = Vec::from(7i64.to_ne_bytes());
        assert_eq!(timestamp(&data), None);
        data.extend(5i64.to_ne_bytes());
        assert_eq!(timestamp(&data), Some(Duration::new(7, 5)));
    }
}

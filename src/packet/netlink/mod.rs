//! Routing netlink (rtnetlink(7)): addresses with a lifetime, links, and what happens to them.

pub mod address;
pub mod link;
pub mod message;
pub mod neighbour;
pub mod netdev;
pub mod nft;
pub mod route;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use self::message::{Message, Request, messages, u32_at};
use super::options::{self, check_len, set, socket, zeroed};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The kernel's answers fit: a dump comes in pieces of 32 KiB at most.
const DATAGRAM_MAX: usize = 64 << 10;
/// Datagrams read for one answer at most; a dump of 100,000 addresses is about 300.
const DATAGRAMS_MAX: usize = 4096;
/// How long the kernel may take to answer; it answers before sendto(2) returns.
const PATIENCE_S: i64 = 2;
/// Events that wait for us, in bytes; more are lost, and the kernel says so.
const EVENT_BUFFER: i32 = 1 << 20;

/// A socket for requests; each is answered before the next is sent.
#[derive(Debug)]
pub struct Requests {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// # Errors
    /// What socket(2) and bind(2) say.
    pub fn open() -> io::Result<Self> {
        Self::of(libc::NETLINK_ROUTE)
    }

    /// For generic netlink's families.
    ///
    /// # Errors
    /// What socket(2) and bind(2) say.
    pub fn generic() -> io::Result<Self> {
        Self::of(libc::NETLINK_GENERIC)
    }

    fn of(protocol: libc::c_int) -> io::Result<Self> {
        let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        options::bind(&fd, address_of_groups(0))?;
        let patience = libc::timeval { tv_sec: PATIENCE_S, tv_usec: 0 };
        set(&fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, patience)?;
        crate::sys::file::set_blocking(std::os::fd::AsFd::as_fd(&fd))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; DATAGRAM_MAX] })
    }

    /// Sends a request that changes something and waits for its verdict.
    ///
    /// # Errors
    /// What the kernel says to the request: EPERM without CAP_NET_ADMIN, EEXIST, EADDRNOTAVAIL and
    /// others.
    pub fn change(&mut self, request: Request) -> io::Result<()> {
        self.ask(request, |_| {})
    }

    /// Sends a dump request and hands each message of the answer to `each`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dump(&mut self, request: Request, each: impl FnMut(Message<'_>)) -> io::Result<()> {
        self.ask(request, each)
    }

    fn ask(&mut self, request: Request, mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let bytes = request.finish(self.sequence);
        send(&self.fd, &bytes)?;
        for _ in 0..DATAGRAMS_MAX {
            let len = receive(&self.fd, &mut self.buffer, 0)?;
            for message in messages(self.buffer.get(..len).unwrap_or_default()) {
                match message {
                    // Left over from a request that was given up.
                    message if message.sequence != self.sequence => {}
                    Message { kind: NLMSG_DONE, .. } => return Ok(()),
                    Message { kind: NLMSG_ERROR, body, .. } => return verdict(body),
                    message => each(message),
                }
            }
        }
        Err(io::Error::from_raw_os_error(libc::EMSGSIZE))
    }
}

/// An error message holds a negative errno, or zero for "done".
fn verdict(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.checked_neg().unwrap_or(libc::EIO))),
        None => Err(io::Error::from_raw_os_error(libc::EBADMSG)),
    }
}

/// What happened to links and addresses.
#[derive(Debug)]
pub struct Events {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new, or changed.
    Link(link::Link),
    /// A link, by index, has gone.
    LinkGone(u32),
    /// An address is new, or changed.
    Address(address::Assigned),
    /// An address has gone.
    AddressGone(address::Assigned),
    /// A neighbour has an address on the link, as far as the kernel knows.
    Neighbour(neighbour::Neighbour),
    /// Events were lost: everything has to be looked at anew.
    Lost,
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Events {
    /// Begins listening.
    ///
    /// # Errors
    /// What socket(2) and bind(2) say.
    pub fn open() -> io::Result<Self> {
        let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        Self::listen(fd, groups)
    }

    /// Begins listening, to news of neighbours too.
    ///
    /// # Errors
    /// What socket(2) and bind(2) say.
    pub fn with_neighbours() -> io::Result<Self> {
        let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        let addresses = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        Self::listen(fd, addresses | libc::RTMGRP_NEIGH)
    }

    fn listen(fd: OwnedFd, groups: i32) -> io::Result<Self> {
        options::set_receive_buffer(&fd, EVENT_BUFFER);
        options::bind(&fd, address_of_groups(u32::try_from(groups).unwrap_or_default()))?;
        Ok(Self { fd, buffer: vec![0; DATAGRAM_MAX] })
    }

    /// Reads one datagram of events, if one waits; false when none does.
    ///
    /// # Errors
    /// What recv(2) says; lost events are no error but [`Event::Lost`].
    pub fn read(&mut self, mut each: impl FnMut(Event)) -> io::Result<bool> {
        let len = match receive(&self.fd, &mut self.buffer, libc::MSG_DONTWAIT) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                each(Event::Lost);
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        for message in messages(self.buffer.get(..len).unwrap_or_default()) {
            let event = match message.kind {
                libc::RTM_NEWLINK => link::parse(message.body).map(Event::Link),
                libc::RTM_DELLINK => link::parse(message.body).map(|l| Event::LinkGone(l.index)),
                libc::RTM_NEWADDR => address::parse(message.body).map(Event::Address),
                libc::RTM_DELADDR => address::parse(message.body).map(Event::AddressGone),
                libc::RTM_NEWNEIGH => neighbour::parse(message.body).map(Event::Neighbour),
                _ => None,
            };
            event.into_iter().for_each(&mut each);
        }
        Ok(true)
    }
}

fn address_of_groups(groups: u32) -> libc::sockaddr_nl {
    let mut name: libc::sockaddr_nl = zeroed();
    name.nl_family = u16::try_from(libc::AF_NETLINK).unwrap_or_default();
    name.nl_groups = groups;
    name
}

fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the buffer is `bytes.len()` readable bytes that outlive the call. An unconnected netlink
    // socket sends to the kernel.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    check_len(sent).map(drop)
}

fn receive(fd: &OwnedFd, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
    // SAFETY: the buffer is `buffer.len()` writable bytes that nobody else uses during the call.
    let len =
        unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    check_len(len)
}

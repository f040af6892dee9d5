//! Questions and answers about hardware addresses (ARP and Neighbour Discovery) on all interfaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::frames::FrameSender;
use super::options::{bind, check_len, set_receive_buffer, socket, zeroed};
use super::ring::filter;
use crate::protocol::ethernet::{HEADER, Mac};
use crate::protocol::{arp, ndp};

/// Answers read in one go at most.
const ANSWERS_MAX: usize = 256;
const FRAME_MAX: usize = 512;

/// Who says to have an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Heard on this interface, by number.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Where it is.
    pub mac: Mac,
}

/// Asks and hears.
#[derive(Debug)]
pub struct NeighbourSocket {
    arp: OwnedFd,
    nd: OwnedFd,
    sender: FrameSender,
}

impl NeighbourSocket {
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let arp = hear(libc::ETH_P_ARP)?;
        let nd = hear(libc::ETH_P_IPV6)?;
        filter::neighbour_advertisements().attach(&nd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER)?;
        Ok(Self { arp, nd, sender: FrameSender::new()? })
    }

    /// What has input when an answer waits.
    #[must_use]
    pub fn fds(&self) -> [RawFd; 2] {
        [self.arp.as_raw_fd(), self.nd.as_raw_fd()]
    }

    /// Asks who has `target`, on an interface with hardware address `mac` where we are `source`; only the host `to` if
    /// there is one.
    ///
    /// # Errors
    /// As for [`FrameSender::send`]; EAFNOSUPPORT when the addresses' families differ.
    pub fn ask(
        &self,
        interface: u32,
        mac: Mac,
        source: Option<IpAddr>,
        target: IpAddr,
        to: Option<Mac>,
    ) -> io::Result<()> {
        match (source, target) {
            (Some(IpAddr::V4(source)), IpAddr::V4(target)) => {
                self.sender.send(interface, &arp::request(mac, source, target, to))
            }
            (None, IpAddr::V4(target)) => {
                let nobody = Ipv4Addr::UNSPECIFIED;
                self.sender.send(interface, &arp::request(mac, nobody, target, to))
            }
            (Some(IpAddr::V6(source)), IpAddr::V6(target)) => {
                self.sender.send(interface, &ndp::solicitation(mac, source, target, to))
            }
            _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
    }

    /// Hands over what was heard.
    pub fn read(&self, mut each: impl FnMut(Claim)) {
        let mut buffer = [0; FRAME_MAX];
        for _ in 0..ANSWERS_MAX {
            let Ok((interface, len)) = receive(&self.arp, &mut buffer) else { break };
            let claim = buffer.get(HEADER..len).and_then(arp::claim);
            if let Some(claim) = claim.filter(|claim| !claim.address.is_unspecified()) {
                each(Claim { interface, address: claim.address.into(), mac: claim.mac });
            }
        }
        for _ in 0..ANSWERS_MAX {
            let Ok((interface, len)) = receive(&self.nd, &mut buffer) else { break };
            if let Some((mac, address)) = buffer.get(HEADER..len).and_then(ndp::claim) {
                let address: Ipv6Addr = address;
                each(Claim { interface, address: address.into(), mac });
            }
        }
    }
}

fn hear(protocol: i32) -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    set_receive_buffer(&fd, 1 << 20);
    let mut name: libc::sockaddr_ll = zeroed();
    name.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    name.sll_protocol = u16::try_from(protocol).unwrap_or_default().to_be();
    bind(&fd, name)?;
    Ok(fd)
}

/// The interface it came in by, and its length in the buffer. What we send ourselves is not counted in.
fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<(u32, usize)> {
    let mut name: libc::sockaddr_ll = zeroed();
    let mut name_len = libc::socklen_t::try_from(size_of_val(&name)).unwrap_or_default();
    // SAFETY: the buffer is `buffer.len()` writable bytes and the name `name_len` of them; nobody else uses
    // either during the call.
    let len = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut name).cast(),
            &raw mut name_len,
        )
    };
    let len = check_len(len)?;
    Ok((u32::try_from(name.sll_ifindex).unwrap_or_default(), len))
}

//! The kernel's neighbour table: who has which hardware address (arp(7), rtnetlink(7)).

use std::io;
use std::net::IpAddr;

use super::Requests;
use super::link::flag_bits;
use super::message::{Request, attributes, ip, u16_at, u32_at};

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Bytes of `struct ndmsg`.
const BODY: usize = 12;

/// A neighbour whose hardware address the kernel trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface, by number.
    pub interface: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// It answered lately, or an operator said so; otherwise it once did.
    pub confirmed: bool,
}

/// Reads the body of `RTM_NEWNEIGH`; `None` where the kernel has no hardware address or none that is good.
#[must_use]
pub fn parse(body: &[u8]) -> Option<Neighbour> {
    let (interface, state) = (u32_at(body, 4)?, u16_at(body, 8)?);
    let known = libc::NUD_REACHABLE
        | libc::NUD_PERMANENT
        | libc::NUD_STALE
        | libc::NUD_DELAY
        | libc::NUD_PROBE;
    if state & known == 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for (kind, value) in attributes(body.get(BODY..)?) {
        match kind {
            NDA_DST => address = ip(value),
            NDA_LLADDR => mac = value.try_into().ok(),
            _ => {}
        }
    }
    let confirmed = state & (libc::NUD_REACHABLE | libc::NUD_PERMANENT) != 0;
    Some(Neighbour { interface, address: address?, mac: mac?, confirmed })
}

impl Requests {
    /// Every neighbour with a hardware address.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        let flags = flag_bits(libc::NLM_F_REQUEST | libc::NLM_F_DUMP);
        let mut all = Vec::new();
        let request = Request::new(libc::RTM_GETNEIGH, flags, &[0; BODY]);
        self.dump(request, |message| all.extend(parse(message.body)))?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_neighbours_with_an_address_count() {
        let mut request = Request::new(0, 0, &[2, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0]);
        request.attribute(NDA_DST, &[10, 0, 0, 1]);
        request.attribute(NDA_LLADDR, &[2, 0, 0, 0, 0, 1]);
        let bytes = request.finish(0);
        let expected = Neighbour {
            interface: 5,
            address: IpAddr::from([10, 0, 0, 1]),
            mac: [2, 0, 0, 0, 0, 1],
            confirmed: true,
        };
        assert_eq!(parse(&bytes[16..]), Some(expected));
        let mut failed = bytes[16..].to_vec();
        failed[8] = 0x20; // NUD_FAILED
        assert_eq!(parse(&failed), None);
        for len in 0..BODY {
            assert_eq!(parse(&bytes[16..16 + len]), None);
        }
    }
}

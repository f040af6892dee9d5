//! IPv4 (RFC 791 section 3.1).

use std::net::Ipv4Addr;

use super::{Error, Fragment, Packet, V4_HEADER, word};

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

pub(super) fn parse(bytes: &[u8], wire: usize) -> Result<Packet, Error> {
    let head: &[u8; V4_HEADER] = bytes.first_chunk().ok_or(Error::Truncated)?;
    let header = usize::from(head[0] & 0xf) * 4;
    if header < V4_HEADER {
        return Err(Error::Header);
    }
    if header > bytes.len() {
        return Err(Error::Truncated);
    }
    let length = word(head, 2).map_or(0, usize::from);
    if length < header || length > wire {
        return Err(Error::Length);
    }
    let flags = word(head, 6).unwrap_or_default();
    // Eight times thirteen bits fits sixteen.
    let offset = (flags & OFFSET) << 3;
    let more = flags & MORE_FRAGMENTS != 0;
    let id = word(head, 4).map_or(0, u32::from);
    let address = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
    Ok(Packet {
        source: address(12).into(),
        destination: address(16).into(),
        protocol: head[9],
        payload: header,
        length,
        fragment: (offset != 0 || more).then_some(Fragment { id, offset, more }),
        dont_fragment: flags & DONT_FRAGMENT != 0,
    })
}

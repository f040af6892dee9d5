//! Netlink messages (netlink(7), rtnetlink(7)): building requests and walking answers. Pure.

use std::net::IpAddr;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Messages and attributes begin at multiples of this.
const ALIGN: usize = 4;

/// A request under construction.
#[derive(Debug, Clone)]
pub struct Request(Vec<u8>);

impl Request {
    /// A message of this type and these flags; `body` is the family's fixed part, `ifaddrmsg` for one.
    #[must_use]
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        put(&mut bytes, 4, &kind.to_ne_bytes());
        put(&mut bytes, 6, &flags.to_ne_bytes());
        let mut request = Self(bytes);
        request.append(body);
        request
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.append(value);
    }

    /// Adds an attribute that holds those which `inner` adds.
    pub fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attribute(kind, &[]);
        inner(self);
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        put(&mut self.0, start, &len.to_ne_bytes());
    }

    /// The bytes to send, numbered `sequence`.
    #[must_use]
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        put(&mut self.0, 0, &len.to_ne_bytes());
        put(&mut self.0, 8, &sequence.to_ne_bytes());
        self.0
    }

    fn append(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(room) = bytes.get_mut(at..at + value.len()) {
        room.copy_from_slice(value);
    }
}

/// One message of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `RTM_NEWADDR`, `NLMSG_DONE` and so on.
    pub kind: u16,
    /// Of the request that this answers; 0 for an event.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The messages in one datagram; ends at the first that is torn.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(rest, 0)?).ok()?;
        let body = rest.get(HEADER..len)?;
        let message = Message { kind: u16_at(rest, 4)?, sequence: u32_at(rest, 8)?, body };
        rest = rest.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`; ends at the first that is torn.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
    const FLAGS: u16 = 0xC000;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & !FLAGS;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A 16-bit number in the machine's order.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

/// A 32-bit number in the machine's order.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// An IP address of 4 or 16 bytes.
#[must_use]
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().copied().map(IpAddr::from),
        16 => bytes.first_chunk::<16>().copied().map(IpAddr::from),
        _ => None,
    }
}

/// Text that ends in a zero byte.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let mut request = Request::new(20, 5, &[1, 2, 3, 4, 5, 6, 7, 8]);
        request.attribute(3, b"abcde");
        request.nested(18, |inner| inner.attribute(1, b"macvlan"));
        let bytes = request.finish(77);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].kind, all[0].sequence, all[0].body.len() % ALIGN), (20, 77, 0));
        let found: Vec<_> = attributes(&all[0].body[8..]).collect();
        assert_eq!(found[0], (3, &b"abcde"[..]));
        assert_eq!(found[1].0, 18);
        assert_eq!(attributes(found[1].1).collect::<Vec<_>>(), [(1, &b"macvlan"[..])]);
    }

    proptest! {
        #[test]
        fn torn_answers_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes).take(1000) {
                prop_assert!(attributes(message.body).take(1000).count() < 1000);
            }
        }
    }
}

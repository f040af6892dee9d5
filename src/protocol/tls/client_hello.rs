//! The name a client asks for (RFC 6066 section 3), read before the handshake begins: it decides
//! which client-certificate policy applies, and with it everything else.

/// What is known of a ClientHello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Incomplete,
    /// It is whole; the name in lower case, if it has one.
    Whole(Option<String>),
    /// It is no ClientHello; the handshake will say so.
    Other,
}

const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// Longest host name (RFC 1035 section 2.3.4).
const NAME_MAX: usize = 255;

/// Reads the name out of handshake bytes, that is, out of the content of records.
#[must_use]
pub fn server_name(handshake: &[u8]) -> Hello {
    let Some(&[kind, a, b, c]) = handshake.first_chunk() else { return Hello::Incomplete };
    if kind != CLIENT_HELLO {
        return Hello::Other;
    }
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    match handshake.get(4..4 + length) {
        Some(body) => Hello::Whole(name(body)),
        None => Hello::Incomplete,
    }
}

/// `None` also for what is malformed: the handshake refuses that.
fn name(body: &[u8]) -> Option<String> {
    let mut body = Reader(body);
    body.take(2 + 32)?; // version, random
    body.vector8()?; // session id
    body.vector16()?; // cipher suites
    body.vector8()?; // compression methods
    let mut extensions = Reader(body.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let content = extensions.vector16()?;
        if kind != SERVER_NAME {
            continue;
        }
        let mut list = Reader(Reader(content).vector16()?);
        let (kind, name) = (list.take(1)?, list.vector16()?);
        let valid = kind == [HOST_NAME] && (1..=NAME_MAX).contains(&name.len()) && name.is_ascii();
        let name = valid.then(|| std::str::from_utf8(name).ok()).flatten()?;
        return Some(name.trim_end_matches('.').to_ascii_lowercase());
    }
    None
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = *self.take(1)?.first()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ClientHello with these extensions.
    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([1; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1], &length[1..], &body].concat()
    }

    #[test]
    fn the_name_is_found_wherever_it_stands() {
        let sni = b"\x00\x00\x00\x0b\x00\x09\x00\x00\x06A.test";
        let other = b"\x00\x17\x00\x00";
        let name = Hello::Whole(Some("a.test".to_owned()));
        assert_eq!(server_name(&hello(sni)), name);
        assert_eq!(server_name(&hello(&[&other[..], sni].concat())), name);
        assert_eq!(server_name(&hello(other)), Hello::Whole(None));
        assert_eq!(server_name(&hello(b"\x00\x00\x00\x02\xff\xff")), Hello::Whole(None));
        let whole = hello(sni);
        for cut in 0..whole.len() {
            assert_eq!(server_name(&whole[..cut]), Hello::Incomplete, "{cut}");
        }
        assert_eq!(server_name(&[2, 0, 0, 0]), Hello::Other);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = server_name(&hello(&bytes));
            let _ = server_name(&bytes);
        }
    }
}

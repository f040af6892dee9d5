//! Version 1, the text line (section 2.1).

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Error, Header, Parsed, same_family, signature};

/// Longest v1 line in bytes, CR LF included.
pub const LINE_MAX: usize = 107;

const PREFIX: &[u8] = b"PROXY ";

/// Longest text of an address: eight groups of four digits. It keeps a `TCP6` line below
/// [`LINE_MAX`], so only `UNKNOWN` can be too long.
const ADDRESS_MAX: usize = 39;

#[derive(Clone, Copy)]
enum Family {
    Tcp4,
    Tcp6,
    Unknown,
}

/// What may follow `PROXY `, up to the byte that ends the word.
const FAMILIES: [(&[u8], Family); 4] = [
    (b"TCP4 ", Family::Tcp4),
    (b"TCP6 ", Family::Tcp6),
    (b"UNKNOWN ", Family::Unknown),
    (b"UNKNOWN\r", Family::Unknown),
];

pub(super) fn parse(input: &[u8]) -> Result<Parsed, Error> {
    if !signature(input, PREFIX)? {
        return Ok(Parsed::Incomplete);
    }
    let line = input.get(..LINE_MAX).unwrap_or(input);
    let rest = line.get(PREFIX.len()..).unwrap_or_default();
    let Some((word, family)) = FAMILIES.iter().find(|(word, _)| rest.starts_with(word)) else {
        let viable = FAMILIES.iter().any(|(word, _)| word.starts_with(rest));
        return if viable { Ok(Parsed::Incomplete) } else { Err(Error::Family) };
    };
    let fields = Fields { line, at: PREFIX.len() + word.len() };
    match family {
        Family::Tcp4 => fields.tcp(|text| text.parse::<Ipv4Addr>().ok(), &ENDINGS_V4),
        Family::Tcp6 => fields.tcp(|text| text.parse::<Ipv6Addr>().ok(), &ENDINGS_V6),
        Family::Unknown => unknown(line, fields.at - 1),
    }
}

/// Whatever stands between `UNKNOWN` and CR LF is ignored.
fn unknown(line: &[u8], start: usize) -> Result<Parsed, Error> {
    let rest = line.get(start..).unwrap_or_default();
    let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n')).map(|at| start + at);
    let Some(end) = end else {
        let room = line.len() + 2 <= LINE_MAX;
        return if room { Ok(Parsed::Incomplete) } else { Err(Error::TooLong) };
    };
    if end + 2 > LINE_MAX {
        return Err(Error::TooLong);
    }
    if line.get(end) == Some(&b'\n') {
        return Err(Error::LineEnd);
    }
    line_feed(line, end + 1, None)
}

/// The last byte of the line.
fn line_feed(
    line: &[u8],
    at: usize,
    addresses: Option<(SocketAddr, SocketAddr)>,
) -> Result<Parsed, Error> {
    match line.get(at) {
        None => Ok(Parsed::Incomplete),
        Some(b'\n') => Ok(Parsed::Complete { header: Header { addresses }, consumed: at + 1 }),
        Some(_) => Err(Error::LineEnd),
    }
}

/// Reads fields from left to right.
struct Fields<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// `source destination sport dport CR LF`
    fn tcp<A: Into<IpAddr>>(
        mut self,
        read: impl Fn(&str) -> Option<A>,
        endings: &[&str],
    ) -> Result<Parsed, Error> {
        let Some(source) = self.address(&read, endings)? else { return Ok(Parsed::Incomplete) };
        let Some(target) = self.address(&read, endings)? else { return Ok(Parsed::Incomplete) };
        let Some(source_port) = self.port(b' ')? else { return Ok(Parsed::Incomplete) };
        let Some(target_port) = self.port(b'\r')? else { return Ok(Parsed::Incomplete) };
        let pair = ((source.into(), source_port).into(), (target.into(), target_port).into());
        line_feed(self.line, self.at, Some(pair))
    }

    /// The text up to `end`, and whether `end` is there.
    fn next(&mut self, end: u8) -> (&'a [u8], bool) {
        let rest = self.line.get(self.at..).unwrap_or_default();
        match rest.iter().position(|b| *b == end) {
            Some(length) => {
                self.at += length + 1;
                (rest.get(..length).unwrap_or_default(), true)
            }
            None => (rest, false),
        }
    }

    fn address<A>(
        &mut self,
        read: impl Fn(&str) -> Option<A>,
        endings: &[&str],
    ) -> Result<Option<A>, Error> {
        let (text, whole) = self.next(b' ');
        let text = std::str::from_utf8(text).map_err(|_| Error::Address)?;
        if text.len() > ADDRESS_MAX {
            return Err(Error::Address);
        }
        if whole {
            return read(text).map(Some).ok_or(Error::Address);
        }
        let viable = endings.iter().any(|ending| reads_with(text, ending, &read));
        if viable { Ok(None) } else { Err(Error::Address) }
    }

    /// Decimal, 0 to 65535, without leading zeros.
    fn port(&mut self, end: u8) -> Result<Option<u16>, Error> {
        let (text, whole) = self.next(end);
        if text.is_empty() && !whole {
            return Ok(None);
        }
        let leading_zero = text.len() > 1 && text.first() == Some(&b'0');
        if text.is_empty() || text.len() > 5 || leading_zero {
            return Err(Error::Port);
        }
        let mut port = 0_u16;
        for byte in text {
            let digit = if byte.is_ascii_digit() { byte - b'0' } else { return Err(Error::Port) };
            port = port
                .checked_mul(10)
                .and_then(|p| p.checked_add(digit.into()))
                .ok_or(Error::Port)?;
        }
        Ok(whole.then_some(port))
    }
}

/// A beginning of an address is viable exactly when one of these makes it whole.
const ENDINGS_V4: [&str; 8] = ["", "0", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "0.0.0.0"];
/// The same for IPv6, whose last two groups may be written as IPv4.
const ENDINGS_V6: [&str; 10] =
    ["", ":", "::", "0", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "0.0.0.0"];

fn reads_with<A>(text: &str, ending: &str, read: impl Fn(&str) -> Option<A>) -> bool {
    let mut whole = [0_u8; ADDRESS_MAX];
    let length = text.len() + ending.len();
    let Some(buffer) = whole.get_mut(..length) else { return false };
    let (head, tail) = buffer.split_at_mut(text.len());
    head.copy_from_slice(text.as_bytes());
    tail.copy_from_slice(ending.as_bytes());
    std::str::from_utf8(buffer).is_ok_and(|text| read(text).is_some())
}

/// Appends a v1 line; addresses of different families are both written as IPv6 (IPv4 mapped).
pub fn encode(out: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr) {
    let (s, d) = same_family(source.ip(), destination.ip());
    let family = if s.is_ipv4() { "TCP4" } else { "TCP6" };
    let (s_port, d_port) = (source.port(), destination.port());
    // Writing into a vector cannot fail.
    let _ = write!(out, "PROXY {family} {s} {d} {s_port} {d_port}\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::super::tests::{assert_torn, complete};
    use super::*;

    const FULL: &str = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";

    #[test]
    fn valid_lines() {
        let longest = format!("PROXY TCP6 {FULL} {FULL} 65535 65535\r\n");
        let table = [
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1 65535\r\n", Some(("1.2.3.4:1", "5.6.7.8:65535"))),
            (
                "PROXY TCP4 0.0.0.0 255.255.255.255 0 0\r\n",
                Some(("0.0.0.0:0", "255.255.255.255:0")),
            ),
            ("PROXY TCP6 :: ::1 80 443\r\n", Some(("[::]:80", "[::1]:443"))),
            (
                "PROXY TCP6 1:2:3:4:5:6:7:: 2001:DB8::a 80 443\r\n",
                Some(("[1:2:3:4:5:6:7:0]:80", "[2001:db8::a]:443")),
            ),
            (
                "PROXY TCP6 ::ffff:1.2.3.4 1:2:3:4:5:6:7.8.9.10 80 443\r\n",
                Some(("[::ffff:1.2.3.4]:80", "[1:2:3:4:5:6:708:90a]:443")),
            ),
            (
                &longest,
                Some((
                    "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
                    "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
                )),
            ),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN \r\n", None),
            ("PROXY UNKNOWN what ever\r\n", None),
        ];
        for (line, addresses) in table {
            assert_torn(line.as_bytes());
            let expected = addresses.map(|(s, d)| (s.parse().unwrap(), d.parse().unwrap()));
            assert_eq!(complete(line.as_bytes()).0, expected, "{line}");
        }
    }

    /// Each line is cut right after its first wrong byte.
    #[test]
    fn invalid_lines_fail_on_the_byte() {
        let table = [
            ("PROXY T4", Error::Family),
            ("PROXY TCP5", Error::Family),
            ("PROXY UD", Error::Family),
            ("PROXY  ", Error::Family),
            ("PROXY UNKNOWNS", Error::Family),
            ("PROXY TCP4  ", Error::Address),
            ("PROXY TCP4 256", Error::Address),
            ("PROXY TCP4 01", Error::Address),
            ("PROXY TCP4 1..", Error::Address),
            ("PROXY TCP4 1.2.3.4.", Error::Address),
            ("PROXY TCP4 1.2.3 ", Error::Address),
            ("PROXY TCP4 1.2.3.4 :", Error::Address),
            ("PROXY TCP4 1.2.3.4\r", Error::Address),
            ("PROXY TCP4 \u{e9}", Error::Address),
            ("PROXY TCP6 1.", Error::Address),
            ("PROXY TCP6 g", Error::Address),
            ("PROXY TCP6 ::1::", Error::Address),
            ("PROXY TCP6 12345", Error::Address),
            ("PROXY TCP6 1:2:3:4:5:6:7:8:", Error::Address),
            ("PROXY TCP6 ::1%", Error::Address),
            ("PROXY TCP6 1:2:3:4:5:6:7 ", Error::Address),
            ("PROXY TCP4 1.2.3.4 5.6.7.8  ", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 00", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 08", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 65536", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 +", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1\r", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 ", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1 \r", Error::Port),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\rX", Error::LineEnd),
            ("PROXY UNKNOWN\n", Error::Family),
            ("PROXY UNKNOWN a\n", Error::LineEnd),
            ("PROXY UNKNOWN a\rb", Error::LineEnd),
            ("PROXY UNKNOWN\rb", Error::LineEnd),
        ];
        for (line, error) in table {
            assert_eq!(parse(line.as_bytes()), Err(error), "{line:?}");
            let last = line.chars().next_back().unwrap().len_utf8();
            let before = &line.as_bytes()[..line.len() - last];
            assert_eq!(parse(before), Ok(Parsed::Incomplete), "{line:?}");
        }
    }

    #[test]
    fn length_limit_of_unknown() {
        let line = |length: usize| {
            let mut line = b"PROXY UNKNOWN ".to_vec();
            line.resize(length - 2, b'x');
            line.extend_from_slice(b"\r\n");
            line
        };
        assert_torn(&line(LINE_MAX));
        let long = line(LINE_MAX + 1);
        assert_eq!(parse(&long), Err(Error::TooLong));
        assert_eq!(parse(&long[..LINE_MAX - 2]), Ok(Parsed::Incomplete));
        assert_eq!(parse(&long[..LINE_MAX - 1]), Err(Error::TooLong));
    }

    #[test]
    fn mixed_families_are_mapped() {
        let mut out = Vec::new();
        encode(&mut out, "1.2.3.4:5".parse().unwrap(), "[2001:db8::1]:6".parse().unwrap());
        assert_eq!(out, b"PROXY TCP6 ::ffff:1.2.3.4 2001:db8::1 5 6\r\n");
    }
}

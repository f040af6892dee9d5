//! `Host` and the authority of a target: `host [ ":" port ]` (RFC 9110 section 7.2, RFC 3986 section
//! 3.2), without the parts of that grammar that only serve to confuse.

use std::net::Ipv6Addr;

use memchr::memchr;

use super::error::plain_error;

/// A DNS name in text form has at most 253 characters, and one for a final dot.
const NAME_BYTES_MAX: usize = 254;

/// `[` 39 hexadecimal digits and colons, or 45 with an embedded IPv4 address, `]`
const ADDRESS_BYTES_MAX: usize = 45;

plain_error! {
    /// Why a host was refused.
    pub enum HostError {
        /// There is no host.
        Empty = (Malformed, 400, "empty host"),
        /// Something other than letters, digits, `-`, `_` and `.`: userinfo, a list, a path, an escape.
        Character = (Malformed, 400, "invalid character in the host"),
        /// Two dots in a row, or one in front.
        Label = (Malformed, 400, "empty label in the host"),
        /// The port is not a decimal number below 65536.
        Port = (Malformed, 400, "invalid port"),
        /// What stands in brackets is no IPv6 address.
        Address = (Malformed, 400, "invalid IPv6 address"),
        /// Longer than a DNS name can be.
        TooLong = (Limit, 400, "host too long"),
    }
}

/// Checks a host with its optional port; gives it without port and final dot.
///
/// # Errors
///
/// See [`HostError`].
pub fn validate_host(raw: &[u8]) -> Result<&[u8], HostError> {
    split(raw)
}

/// Writes the host into `out`, which it replaces: lower case, without port and final dot. IPv6
/// addresses keep their brackets and their spelling.
///
/// # Errors
///
/// See [`HostError`]; `out` is then empty.
pub fn normalise_host(raw: &[u8], out: &mut Vec<u8>) -> Result<(), HostError> {
    out.clear();
    let host = split(raw)?;
    out.extend_from_slice(host);
    out.make_ascii_lowercase();
    Ok(())
}

/// The port of a valid host, `None` if there is none, or it is empty.
pub(super) fn port(raw: &[u8]) -> Option<&[u8]> {
    let after_address = raw.iter().rposition(|&byte| byte == b']').unwrap_or(0);
    let tail = raw.get(after_address..)?;
    tail.get(memchr(b':', tail)? + 1..).filter(|port| !port.is_empty())
}

/// The host, checked, without port and final dot.
fn split(raw: &[u8]) -> Result<&[u8], HostError> {
    if raw.first() == Some(&b'[') {
        let end = memchr(b']', raw).ok_or(HostError::Address)? + 1;
        let (host, rest) = raw.split_at_checked(end).ok_or(HostError::Address)?;
        check_address(host)?;
        return match rest {
            [] => Ok(host),
            [b':', port @ ..] => check_port(port).map(|()| host),
            _ => Err(HostError::Character),
        };
    }
    let end = raw.iter().position(|&byte| !NAME_BYTE[usize::from(byte)]).unwrap_or(raw.len());
    let (name, rest) = raw.split_at_checked(end).ok_or(HostError::Character)?;
    match rest {
        [] => {}
        [b':', port @ ..] => check_port(port)?,
        _ => return Err(HostError::Character),
    }
    check_labels(name)?;
    Ok(name.strip_suffix(b".").unwrap_or(name))
}

fn check_labels(name: &[u8]) -> Result<(), HostError> {
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(HostError::TooLong);
    }
    if name.first() == Some(&b'.') || name.windows(2).any(|pair| pair == b"..") {
        return Err(HostError::Label);
    }
    Ok(())
}

/// Letters, digits, `-`, `_` and `.`.
const NAME_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation)] // below 256
        let letter = byte as u8;
        table[byte] = letter.is_ascii_alphanumeric() || matches!(letter, b'-' | b'_' | b'.');
        byte += 1;
    }
    table
};

fn check_address(bracketed: &[u8]) -> Result<(), HostError> {
    let inner = bracketed.get(1..bracketed.len() - 1).ok_or(HostError::Address)?;
    if inner.len() > ADDRESS_BYTES_MAX {
        return Err(HostError::Address);
    }
    let text = std::str::from_utf8(inner).map_err(|_| HostError::Address)?;
    text.parse::<Ipv6Addr>().map(|_| ()).map_err(|_| HostError::Address)
}

/// The grammar lets the port be empty.
fn check_port(port: &[u8]) -> Result<(), HostError> {
    if port.len() > 5 {
        return Err(HostError::Port);
    }
    let value = port.iter().try_fold(0_u32, |value, &byte| match byte {
        b'0'..=b'9' => Ok(value * 10 + u32::from(byte - b'0')),
        _ => Err(HostError::Port),
    })?;
    if value > u32::from(u16::MAX) { Err(HostError::Port) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts() {
        let long = "a".repeat(255);
        let table: &[(&str, Result<&str, HostError>)] = &[
            ("example.com", Ok("example.com")),
            ("EXAMPLE.Com:8080", Ok("example.com")),
            ("example.com.", Ok("example.com")),
            ("example.com.:443", Ok("example.com")),
            ("example.com:", Ok("example.com")),
            ("my_service-1", Ok("my_service-1")),
            ("192.0.2.1:80", Ok("192.0.2.1")),
            ("[::1]", Ok("[::1]")),
            ("[2001:DB8::1]:65535", Ok("[2001:db8::1]")),
            ("[::ffff:192.0.2.1]", Ok("[::ffff:192.0.2.1]")),
            ("", Err(HostError::Empty)),
            (":80", Err(HostError::Empty)),
            (".", Err(HostError::Label)),
            (".example", Err(HostError::Label)),
            ("a..b", Err(HostError::Label)),
            ("a..", Err(HostError::Label)),
            ("a:65536", Err(HostError::Port)),
            ("a:000080", Err(HostError::Port)),
            ("a:8o", Err(HostError::Port)),
            ("a:-1", Err(HostError::Port)),
            ("a:1:2", Err(HostError::Port)),
            ("::1", Err(HostError::Port)),
            ("user@example.com", Err(HostError::Character)),
            ("user:pw@example.com", Err(HostError::Port)),
            ("a b", Err(HostError::Character)),
            ("a,b", Err(HostError::Character)),
            ("a/b", Err(HostError::Character)),
            ("a\\b", Err(HostError::Character)),
            ("a#b", Err(HostError::Character)),
            ("a?b", Err(HostError::Character)),
            ("a%41", Err(HostError::Character)),
            ("m\u{fc}nchen", Err(HostError::Character)),
            ("[::1", Err(HostError::Address)),
            ("[]", Err(HostError::Address)),
            ("[", Err(HostError::Address)),
            ("[fe80::1%25eth0]", Err(HostError::Address)),
            ("[v1.x]", Err(HostError::Address)),
            ("[192.0.2.1]", Err(HostError::Address)),
            ("[::1]x", Err(HostError::Character)),
            ("[::1]:x", Err(HostError::Port)),
            (&long, Err(HostError::TooLong)),
        ];
        let mut out = b"before".to_vec();
        for (raw, expected) in table {
            let got = normalise_host(raw.as_bytes(), &mut out);
            let got = got.map(|()| std::str::from_utf8(&out).unwrap());
            assert_eq!(got, *expected, "{raw:?}");
        }
    }

    #[test]
    fn ports() {
        assert_eq!(port(b"a:80"), Some(&b"80"[..]));
        assert_eq!(port(b"[::1]:80"), Some(&b"80"[..]));
        assert_eq!(port(b"[::1]"), None);
        assert_eq!(port(b"a:"), None);
        assert_eq!(port(b"a"), None);
    }

    proptest! {
        #[test]
        fn normal_form_is_stable(raw in prop::collection::vec(any::<u8>(), 0..32)) {
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            if normalise_host(&raw, &mut once).is_ok() {
                normalise_host(&once, &mut twice).unwrap();
                prop_assert_eq!(once, twice);
            }
        }

        #[test]
        fn normal_form_of_names_is_stable(raw in "[a-cA-C.:0-9\\[\\]-]{0,12}") {
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            if normalise_host(raw.as_bytes(), &mut once).is_ok() {
                normalise_host(&once, &mut twice).unwrap();
                prop_assert_eq!(once, twice);
            }
        }
    }
}

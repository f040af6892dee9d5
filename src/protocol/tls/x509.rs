//! A few fields of a certificate (RFC 5280 section 4.1): until when it is valid, and its subject. What
//! is trusted is webpki's decision; this only reads.

use std::fmt::Write as _;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const BMP_STRING: u8 = 0x1e;
const VERSION: u8 = 0xa0;

/// Attribute types that have a short name (RFC 4514 section 3), and the e-mail address.
const NAMES: [(&[u8], &str); 10] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "emailAddress"),
];

/// What is read of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// Last second of its validity, since 1970.
    pub not_after: i64,
    /// The subject as RFC 4514 writes it, like nginx's `$ssl_client_s_dn`: `CN=name,O=firm`. Only
    /// visible ASCII: everything else is escaped.
    pub subject: String,
}

/// Reads a certificate in DER; `None` when it is none.
#[must_use]
pub fn fields(certificate: &[u8]) -> Option<Fields> {
    let mut outer = Der(Der(certificate).content(SEQUENCE)?);
    let mut body = Der(outer.content(SEQUENCE)?);
    if body.0.first() == Some(&VERSION) {
        body.next()?;
    }
    body.next()?; // serial number
    body.content(SEQUENCE)?; // signature algorithm
    body.content(SEQUENCE)?; // issuer
    let mut validity = Der(body.content(SEQUENCE)?);
    validity.next()?; // not before
    let (kind, text) = validity.next()?;
    let not_after = seconds(kind, text)?;
    Some(Fields { not_after, subject: name(body.content(SEQUENCE)?)? })
}

/// Whether this is an OCSP response with an answer in it (RFC 6960 section 4.2.1).
#[must_use]
pub fn is_ocsp_response(bytes: &[u8]) -> bool {
    const ENUMERATED: u8 = 0x0a;
    const RESPONSE_BYTES: u8 = 0xa0;
    const SUCCESSFUL: &[u8] = &[0];
    let mut outer = Der(bytes);
    let Some(content) = outer.content(SEQUENCE) else { return false };
    let mut response = Der(content);
    outer.0.is_empty()
        && response.content(ENUMERATED) == Some(SUCCESSFUL)
        && response.content(RESPONSE_BYTES).is_some()
}

/// A sequence of DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.is_empty() || digits.len() > 4 {
                return None;
            }
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next value if it has this tag.
    fn content(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

/// Seconds since 1970 of a UTCTime or GeneralizedTime.
fn seconds(kind: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    let pair = |at: usize| -> Option<i64> {
        let pair = digits.get(at..at + 2)?;
        pair.iter().try_fold(0, |sum, b| b.is_ascii_digit().then(|| sum * 10 + i64::from(b - b'0')))
    };
    let (year, at) = match (kind, digits.len()) {
        (UTC_TIME, 12) => (pair(0).map(|y| if y < 50 { 2000 + y } else { 1900 + y })?, 2),
        (GENERALIZED_TIME, 14) => (pair(0)? * 100 + pair(2)?, 4),
        _ => return None,
    };
    let (month, day) = (pair(at)?, pair(at + 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let time = pair(at + 4)? * 3600 + pair(at + 6)? * 60 + pair(at + 8)?;
    Some(days(year, month, day) * 86_400 + time)
}

/// Days since 1970 in the Gregorian calendar, with years that begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// A name as RFC 4514 writes it: the last attribute first.
fn name(rdns: &[u8]) -> Option<String> {
    let mut sequence = Der(rdns);
    let mut parts = Vec::new();
    while !sequence.0.is_empty() {
        let mut set = Der(sequence.content(SET)?);
        let mut text = String::new();
        while !set.0.is_empty() {
            if !text.is_empty() {
                text.push('+');
            }
            let mut attribute = Der(set.content(SEQUENCE)?);
            let kind = attribute.content(OBJECT_ID)?;
            let (tag, value) = attribute.next()?;
            push_attribute(&mut text, kind, tag, value);
        }
        parts.push(text);
    }
    parts.reverse();
    Some(parts.join(","))
}

fn push_attribute(out: &mut String, kind: &[u8], tag: u8, value: &[u8]) {
    match NAMES.iter().find(|(id, _)| *id == kind) {
        Some((_, name)) => out.push_str(name),
        None => push_object_id(out, kind),
    }
    out.push('=');
    if tag == BMP_STRING {
        let units = value.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let text: String = char::decode_utf16(units).map(|c| c.unwrap_or('\u{fffd}')).collect();
        push_escaped(out, text.as_bytes());
    } else {
        push_escaped(out, value);
    }
}

/// Dotted numbers (X.690 section 8.19).
fn push_object_id(out: &mut String, id: &[u8]) {
    let mut number: u64 = 0;
    let mut first = true;
    for byte in id {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            if std::mem::take(&mut first) {
                let top = (number / 40).min(2);
                let _ = write!(out, "{top}.{}", number - top * 40);
            } else {
                let _ = write!(out, ".{number}");
            }
            number = 0;
        }
    }
}

/// RFC 4514 section 2.4, and every byte that is not visible ASCII as `\XX`: the value stands in a
/// header field.
fn push_escaped(out: &mut String, value: &[u8]) {
    let last = value.len().wrapping_sub(1);
    for (at, &byte) in value.iter().enumerate() {
        let edge = (at == 0 && matches!(byte, b' ' | b'#')) || (at == last && byte == b' ');
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' | b'=' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' '..=b'~' if edge => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times() {
        for (kind, text, says) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(-631_152_000)),
            (GENERALIZED_TIME, "20240229120000Z", Some(1_709_208_000)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (GENERALIZED_TIME, "20240229120000", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "70x101000000Z", None),
        ] {
            assert_eq!(seconds(kind, text.as_bytes()), says, "{text}");
        }
    }

    #[test]
    fn names_are_reversed_and_escaped() {
        let attribute = |id: &[u8], tag: u8, value: &[u8]| {
            let len = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
            let id = [&[OBJECT_ID, len(id)], id].concat();
            let body = [&id[..], &[tag, len(value)], value].concat();
            let sequence = [&[SEQUENCE, len(&body)], &body[..]].concat();
            [&[SET, len(&sequence)], &sequence[..]].concat()
        };
        let names = [
            attribute(&[0x55, 4, 6], 0x13, b"SE"),
            attribute(&[0x55, 4, 10], 0x0c, b" a, \"b\"\r\n"),
            attribute(&[0x55, 4, 3], BMP_STRING, &[0, b'x', 0, 0xe5]),
            attribute(&[0x2a, 3, 0x81, 1], 0x0c, b"v"),
        ]
        .concat();
        let says = "1.2.3.129=v,CN=x\\C3\\A5,O=\\ a\\, \\\"b\\\"\\0D\\0A,C=SE";
        assert_eq!(name(&names).as_deref(), Some(says));
        assert_eq!(name(b""), Some(String::new()));
        assert_eq!(name(&names[..names.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(found) = fields(&bytes) {
                prop_assert!(found.subject.bytes().all(|b| (b' '..=b'~').contains(&b)));
            }
            let _ = name(&bytes);
        }

        #[test]
        fn days_go_on_one_by_one(year in 1900i64..2200, month in 1i64..13) {
            let next = if month == 12 { days(year + 1, 1, 1) } else { days(year, month + 1, 1) };
            prop_assert!((28..=31).contains(&(next - days(year, month, 1))));
        }
    }
}

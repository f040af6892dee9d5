//! How long a body is, from `Content-Length` and `Transfer-Encoding` (RFC 9112 section 6).

use super::{
    FieldId, Version,
    error::plain_error,
    fields::{is_token, list},
};

/// How a message's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Framing {
    /// There is no body.
    #[default]
    None,
    /// This many bytes.
    Length(u64),
    /// The chunked transfer coding.
    Chunked,
    /// Until the server closes; responses only.
    Close,
}

impl Framing {
    /// Whether no body byte follows the head.
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

plain_error! {
    /// Why the framing of a message was refused; RFC 9112 sections 6.1 to 6.3.
    pub enum FramingError {
        /// `Content-Length` is not a plain decimal number below 2^64.
        Length = (Malformed, 400, "malformed Content-Length"),
        /// More than one `Content-Length`, even if they agree.
        LengthRepeated = (Malformed, 400, "repeated Content-Length"),
        /// `Content-Length` beside `Transfer-Encoding`.
        LengthAndCoding = (Malformed, 400, "Content-Length beside Transfer-Encoding"),
        /// `Transfer-Encoding` in an HTTP/1.0 message.
        CodingInHttp10 = (Malformed, 400, "Transfer-Encoding in HTTP/1.0"),
        /// More than one `Transfer-Encoding` line.
        CodingRepeated = (Malformed, 400, "repeated Transfer-Encoding"),
        /// A list of codings that is malformed, or in which `chunked` is not exactly the last.
        Coding = (Malformed, 400, "malformed Transfer-Encoding"),
        /// A transfer coding other than `chunked`.
        CodingUnknown = (Unsupported, 501, "unknown transfer coding"),
        /// A body announced where there can be none.
        BodyForbidden = (Malformed, 400, "a body where there can be none"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Coding {
    #[default]
    Absent,
    Chunked,
    Unknown,
}

/// Gathers the two framing fields of a message.
#[derive(Debug, Default)]
pub(super) struct FramingFields {
    length: Option<u64>,
    coding: Coding,
}

impl FramingFields {
    /// Takes one field; those that frame nothing are ignored.
    pub(super) fn note(&mut self, id: FieldId, value: &[u8]) -> Result<(), FramingError> {
        match id {
            FieldId::ContentLength if self.length.is_some() => Err(FramingError::LengthRepeated),
            FieldId::ContentLength => {
                self.length = Some(parse_length(value)?);
                Ok(())
            }
            FieldId::TransferEncoding if self.coding != Coding::Absent => {
                Err(FramingError::CodingRepeated)
            }
            FieldId::TransferEncoding => {
                self.coding = parse_coding(value)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The verdict; `None` when neither field came.
    pub(super) fn framing(&self, version: Version) -> Result<Option<Framing>, FramingError> {
        if self.coding == Coding::Absent {
            return Ok(self.length.map(Framing::Length));
        }
        if self.length.is_some() {
            return Err(FramingError::LengthAndCoding);
        }
        if version == Version::Http10 {
            return Err(FramingError::CodingInHttp10);
        }
        if self.coding == Coding::Unknown {
            return Err(FramingError::CodingUnknown);
        }
        Ok(Some(Framing::Chunked))
    }
}

fn parse_length(value: &[u8]) -> Result<u64, FramingError> {
    if value.is_empty() {
        return Err(FramingError::Length);
    }
    value.iter().try_fold(0_u64, |length, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(FramingError::Length);
        }
        let length = length.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(digit)));
        length.ok_or(FramingError::Length)
    })
}

/// A list of tokens is understood just far enough to answer 501 for codings that could be legal and
/// 400 for what no client may send.
fn parse_coding(value: &[u8]) -> Result<Coding, FramingError> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(Coding::Chunked);
    }
    let mut after_chunked = false;
    for coding in list(value) {
        if after_chunked || !is_token(coding) {
            return Err(FramingError::Coding);
        }
        after_chunked = coding.eq_ignore_ascii_case(b"chunked");
    }
    Ok(Coding::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        let table: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("10", Some(10)),
            ("007", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999999", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1 ", None),
            ("1 1", None),
            ("1,1", None),
            ("0x1", None),
            ("1a", None),
            ("1.0", None),
            ("\u{661}", None),
        ];
        for (value, expected) in table {
            assert_eq!(parse_length(value.as_bytes()).ok(), *expected, "{value:?}");
        }
    }

    #[test]
    fn codings() {
        use FramingError::{Coding as Bad, CodingUnknown as Unknown};
        let table: &[(&str, Result<Option<Framing>, FramingError>)] = &[
            ("chunked", Ok(Some(Framing::Chunked))),
            ("Chunked", Ok(Some(Framing::Chunked))),
            ("gzip", Err(Unknown)),
            ("identity", Err(Unknown)),
            ("xchunked", Err(Unknown)),
            ("gzip, chunked", Err(Unknown)),
            ("chunked, chunked", Err(Bad)),
            ("chunked, gzip", Err(Bad)),
            ("chunked,", Err(Bad)),
            (",chunked", Err(Bad)),
            ("", Err(Bad)),
            ("chunked;a=b", Err(Bad)),
            ("\"chunked\"", Err(Bad)),
            ("chunked \u{a0}", Err(Bad)),
            ("chun ked", Err(Bad)),
        ];
        for (value, expected) in table {
            let mut fields = FramingFields::default();
            let noted = fields.note(FieldId::TransferEncoding, value.as_bytes());
            let framing = noted.and_then(|()| fields.framing(Version::Http11));
            assert_eq!(framing, *expected, "{value:?}");
        }
        assert_eq!((Unknown.status(), Bad.status()), (501, 400));
    }
}

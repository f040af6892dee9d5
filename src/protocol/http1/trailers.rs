//! The fields behind the last chunk (RFC 9112 section 7.1.2).

use super::{
    Field, FieldId, HeadScanner, Limits, Scan,
    fields::{check_extent, collect},
};

const TRAILERS_MAX: usize = 64;

const LIMITS: Limits = Limits { head_bytes: 8 * 1024, headers: TRAILERS_MAX };

/// Why trailers were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrailersError {
    Malformed,
    TooLarge,
}

impl From<super::HeadError> for TrailersError {
    fn from(error: super::HeadError) -> Self {
        match error.fault() {
            super::Fault::Limit => Self::TooLarge,
            _ => Self::Malformed,
        }
    }
}

/// Collects the section, then keeps the fields that may be passed on.
#[derive(Debug)]
pub(super) struct Trailers {
    scanner: HeadScanner,
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

impl Default for Trailers {
    fn default() -> Self {
        Self { scanner: HeadScanner::for_trailers(), bytes: Vec::new(), fields: Vec::new() }
    }
}

impl Trailers {
    /// Takes the next bytes; once the section is over, tells how many of them belong to it.
    pub(super) fn collect(&mut self, input: &[u8]) -> Result<Option<usize>, TrailersError> {
        let scan = self.scanner.scan(input, &LIMITS)?;
        let taken = match scan {
            Scan::Partial => input,
            Scan::Complete(end) => input.get(..end).unwrap_or(input),
        };
        self.bytes.extend_from_slice(taken);
        if scan == Scan::Partial {
            return Ok(None);
        }
        self.parse()?;
        Ok(Some(taken.len()))
    }

    /// Names and values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| (field.name.of(&self.bytes), field.value.of(&self.bytes)))
    }

    fn parse(&mut self) -> Result<(), TrailersError> {
        let mut slots = [httparse::EMPTY_HEADER; TRAILERS_MAX];
        let parsed = httparse::parse_headers(&self.bytes, &mut slots)
            .map_err(|error| TrailersError::from(super::HeadError::from(error)))?;
        let httparse::Status::Complete((end, headers)) = parsed else {
            return Err(TrailersError::Malformed);
        };
        check_extent(httparse::Status::Complete(end), &self.bytes)?;
        collect(&self.bytes, headers, &mut self.fields)?;
        let bytes = &self.bytes;
        self.fields
            .retain(|field| field.id == FieldId::Other && !is_forbidden(field.name.of(bytes)));
        Ok(())
    }
}

/// Whether a field of this name may be passed on from behind a body.
pub fn may_trail(name: &[u8]) -> bool {
    FieldId::of(name) == FieldId::Other && !is_forbidden(name)
}

/// Fields besides those with a [`FieldId`] that must not arrive behind the body (RFC 9110 section
/// 6.5.1): by then the message has been routed, authorised, and its content taken for what the head
/// said.
fn is_forbidden(name: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 3] = [b"content-", b"if-", b"x-forwarded-"];
    const NAMES: [&[u8]; 14] = [
        b"accept-ranges",
        b"age",
        b"authorization",
        b"cache-control",
        b"cookie",
        b"expires",
        b"location",
        b"max-forwards",
        b"pragma",
        b"range",
        b"retry-after",
        b"set-cookie",
        b"vary",
        b"www-authenticate",
    ];
    let starts_with = |prefix: &&[u8]| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    PREFIXES.iter().any(starts_with) || NAMES.iter().any(|other| name.eq_ignore_ascii_case(other))
}

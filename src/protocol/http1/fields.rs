//! Field lines: where they lie in the head and which field they are.

use super::{HeadError, block, encode::push_field};

/// The most field lines a head can have.
pub const FIELDS_MAX: usize = 256;

/// A stretch of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    start: u16,
    len: u16,
}

impl Span {
    /// The bytes of this stretch of `bytes`; empty if it does not lie within.
    pub fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = usize::from(self.start);
        bytes.get(start..start + usize::from(self.len)).unwrap_or_default()
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// From `start` up to `end`.
    pub(super) fn between(start: usize, end: usize) -> Option<Self> {
        let len = u16::try_from(end.checked_sub(start)?).ok()?;
        Some(Self { start: u16::try_from(start).ok()?, len })
    }

    /// The same within a head, where both are [`HEAD_BYTES_MAX`](super::HEAD_BYTES_MAX) at most and in order.
    #[expect(clippy::cast_possible_truncation, reason = "16 bits hold that")]
    pub(super) const fn within_head(start: usize, end: usize) -> Self {
        Self { start: start as u16, len: end.wrapping_sub(start) as u16 }
    }

    /// Where `part`, a slice of `bytes`, lies in it.
    pub(super) fn locate(bytes: &[u8], part: &[u8]) -> Option<Self> {
        let start = part.as_ptr().addr().checked_sub(bytes.as_ptr().addr())?;
        let end = start.checked_add(part.len())?;
        if end > bytes.len() { None } else { Self::between(start, end) }
    }

    pub(super) fn start(&self) -> usize {
        usize::from(self.start)
    }

    /// Behind its last byte.
    pub(super) fn end(&self) -> usize {
        self.start() + self.len()
    }
}

/// One field line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The name as it came.
    pub name: Span,
    /// The value without the whitespace around it.
    pub value: Span,
    /// Which field it is.
    pub id: FieldId,
    /// The line is to the byte what would be written anew. Most are, and copying one stretch takes a third of the time of
    /// copying four.
    pub(super) plain: bool,
    /// There is an underscore in the name.
    pub(super) underscore: bool,
}

/// Copies field lines of a head, those that lie behind each other in one go. [`Copied::finish`] writes the last ones.
#[derive(Debug)]
pub struct Copied<'a> {
    head: &'a [u8],
    /// Plain lines not copied yet.
    from: usize,
    to: usize,
}

impl<'a> Copied<'a> {
    /// None yet, of this head.
    pub fn new(head: &'a [u8]) -> Self {
        Self { head, from: 0, to: 0 }
    }

    /// Writes the line `name: value CRLF` of a field, at the latest with what is written by [`Copied::finish`].
    #[inline]
    pub fn push(&mut self, out: &mut Vec<u8>, field: &Field) {
        if !field.plain {
            return self.rewrite(out, field);
        }
        self.put_off(out, field.name.start(), field.value.end() + 2);
    }

    /// The same for a stretch that is copied as it is, a line or several.
    #[inline]
    pub fn push_stretch(&mut self, out: &mut Vec<u8>, stretch: Span) {
        self.put_off(out, stretch.start(), stretch.end());
    }

    #[inline]
    fn put_off(&mut self, out: &mut Vec<u8>, from: usize, to: usize) {
        if from != self.to {
            self.finish(out);
            self.from = from;
        }
        self.to = to;
    }

    #[cold]
    fn rewrite(&mut self, out: &mut Vec<u8>, field: &Field) {
        self.finish(out);
        push_field(out, field.name.of(self.head), field.value.of(self.head));
    }

    /// Writes what has been put off.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.get(self.from..self.to).unwrap_or_default());
        self.from = self.to;
    }
}

impl Field {
    /// The field with this name and this value, which are stretches of `head`.
    fn new(head: &[u8], name: Span, value: Span) -> Self {
        let bytes = name.of(head);
        let (id, underscore) = (FieldId::of(bytes), memchr::memchr(b'_', bytes).is_some());
        let colon = name.len();
        let line = head.get(name.start()..value.start() + value.len() + 2).unwrap_or_default();
        let plain = value.start() == name.start() + colon + 2
            && line.get(colon..colon + 2) == Some(b": ")
            && line.ends_with(b"\r\n");
        Self { name, value, id, plain, underscore }
    }

    /// Whether there is an underscore in the name, which some servers take for a hyphen.
    pub fn has_underscore(&self) -> bool {
        self.underscore
    }
}

/// The fields that a proxy treats in a way of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the field of that name")]
pub enum FieldId {
    Host,
    Connection,
    KeepAlive,
    ProxyConnection,
    TransferEncoding,
    ContentLength,
    Te,
    Trailer,
    Upgrade,
    Expect,
    Via,
    XForwardedFor,
    XForwardedProto,
    XForwardedHost,
    XRealIp,
    XRequestId,
    Forwarded,
    Date,
    Server,
    UserAgent,
    Referer,
    Http2Settings,
    ProxyAuthenticate,
    ProxyAuthenticationInfo,
    ProxyAuthorization,
    /// Any other field.
    Other,
}

impl FieldId {
    /// The field of this name, in any case.
    pub fn of(name: &[u8]) -> Self {
        let is_plain = block::name_length(name, 0) == name.len();
        if is_plain { Self::of_plain(name, 0, name.len()) } else { Self::Other }
    }

    /// The same for the name of this length at this place, all letters, digits and hyphens.
    #[inline(always)] // for each line
    pub(super) fn of_plain(head: &[u8], at: usize, length: usize) -> Self {
        if length > block::LEN {
            return Self::of_long(head.get(at..at + length).unwrap_or_default());
        }
        // Sets the bit of lower case, which digits and hyphens have anyway.
        const LOWER: u128 = u128::MAX / 0xff * 0x20;
        let unused = 8 * block::LEN.saturating_sub(length);
        let unused = u32::try_from(unused).unwrap_or(u128::BITS);
        let name = (u128::from_le_bytes(block::load(head, at)) | LOWER).unbounded_shl(unused);
        let is = |known: u128| name == known;
        match length {
            2 if is(key("te")) => Self::Te,
            3 if is(key("via")) => Self::Via,
            4 if is(key("host")) => Self::Host,
            4 if is(key("date")) => Self::Date,
            6 if is(key("expect")) => Self::Expect,
            6 if is(key("server")) => Self::Server,
            7 if is(key("upgrade")) => Self::Upgrade,
            7 if is(key("referer")) => Self::Referer,
            7 if is(key("trailer")) => Self::Trailer,
            9 if is(key("x-real-ip")) => Self::XRealIp,
            9 if is(key("forwarded")) => Self::Forwarded,
            10 if is(key("connection")) => Self::Connection,
            10 if is(key("user-agent")) => Self::UserAgent,
            10 if is(key("keep-alive")) => Self::KeepAlive,
            12 if is(key("x-request-id")) => Self::XRequestId,
            14 if is(key("content-length")) => Self::ContentLength,
            14 if is(key("http2-settings")) => Self::Http2Settings,
            15 if is(key("x-forwarded-for")) => Self::XForwardedFor,
            16 if is(key("x-forwarded-host")) => Self::XForwardedHost,
            16 if is(key("proxy-connection")) => Self::ProxyConnection,
            _ => Self::Other,
        }
    }

    fn of_long(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            17 if is("x-forwarded-proto") => Self::XForwardedProto,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            18 if is("proxy-authenticate") => Self::ProxyAuthenticate,
            19 if is("proxy-authorization") => Self::ProxyAuthorization,
            25 if is("proxy-authentication-info") => Self::ProxyAuthenticationInfo,
            _ => Self::Other,
        }
    }

    /// Whether the field concerns one connection only and is never passed on as it came (RFC 9110
    /// section 7.6.1). `Trailer` is not among them: trailers are passed on.
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::TransferEncoding
                | Self::Te
                | Self::Upgrade
                | Self::Http2Settings
                | Self::ProxyAuthenticate
                | Self::ProxyAuthenticationInfo
                | Self::ProxyAuthorization
        )
    }

    /// Whether a `Connection` option of this name is not heeded: it would strip what frames or
    /// routes the message, or what tells the server who asks.
    pub const fn is_protected(self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::ContentLength
                | Self::TransferEncoding
                | Self::Expect
                | Self::Via
                | Self::XForwardedFor
                | Self::XForwardedProto
                | Self::XForwardedHost
                | Self::XRealIp
                | Self::XRequestId
                | Self::Forwarded
                | Self::Date
        )
    }
}

/// A name in lower case as a number, the last byte highest.
const fn key(name: &str) -> u128 {
    let bytes = name.as_bytes();
    let (mut key, mut place) = (0, bytes.len());
    while place > 0 {
        place -= 1;
        key = (key << 8) | bytes[place] as u128;
    }
    key << (8 * (block::LEN - bytes.len()))
}

/// Puts httparse's fields, which are slices of `head`, into `fields`.
///
/// httparse takes a bare LF for a line end; here each line must start behind a CRLF.
pub(super) fn collect(
    head: &[u8],
    parsed: &[httparse::Header<'_>],
    fields: &mut Vec<Field>,
) -> Result<(), HeadError> {
    fields.clear();
    for header in parsed {
        let name = Span::locate(head, header.name.as_bytes()).ok_or(HeadError::Extent)?;
        let value = Span::locate(head, header.value).ok_or(HeadError::Extent)?;
        let before = head.get(..name.start()).unwrap_or_default();
        if !before.is_empty() && !before.ends_with(b"\r\n") {
            return Err(HeadError::BareLf);
        }
        fields.push(Field::new(head, name, value));
    }
    Ok(())
}

/// The length of the head that httparse found must be all of it, and end in an empty line.
pub(super) fn check_extent(parsed: httparse::Status<usize>, head: &[u8]) -> Result<(), HeadError> {
    if parsed != httparse::Status::Complete(head.len()) {
        return Err(HeadError::Extent);
    }
    if head.ends_with(b"\r\n\r\n") { Ok(()) } else { Err(HeadError::BareLf) }
}

/// The value of the first field of this name.
pub(super) fn find<'a>(fields: &[Field], head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let field = fields.iter().find(|field| {
        field.name.len() == name.len() && field.name.of(head).eq_ignore_ascii_case(name)
    })?;
    Some(field.value.of(head))
}

/// The elements of a comma-separated list without the whitespace around them; empty ones too.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim)
}

/// Strips SP and HTAB, and nothing else, from both ends.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether this is a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(value: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !value.is_empty() && value.iter().all(is_tchar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        use FieldId::*;
        let table = [
            ("Host", Host),
            ("CONNECTION", Connection),
            ("Keep-Alive", KeepAlive),
            ("proxy-connection", ProxyConnection),
            ("Transfer-Encoding", TransferEncoding),
            ("Content-Length", ContentLength),
            ("TE", Te),
            ("Trailer", Trailer),
            ("Upgrade", Upgrade),
            ("Expect", Expect),
            ("Via", Via),
            ("X-Forwarded-For", XForwardedFor),
            ("X-Forwarded-Proto", XForwardedProto),
            ("X-Forwarded-Host", XForwardedHost),
            ("X-Real-IP", XRealIp),
            ("X-Request-ID", XRequestId),
            ("Forwarded", Forwarded),
            ("Date", Date),
            ("Server", Server),
            ("User-Agent", UserAgent),
            ("Referer", Referer),
            ("HTTP2-Settings", Http2Settings),
            ("Proxy-Authenticate", ProxyAuthenticate),
            ("Proxy-Authentication-Info", ProxyAuthenticationInfo),
            ("Proxy-Authorization", ProxyAuthorization),
            ("Hose", Other),
            ("Content_Length", Other),
            ("", Other),
        ];
        for (name, id) in table {
            assert_eq!(FieldId::of(name.as_bytes()), id, "{name}");
        }
        assert!(Connection.is_hop_by_hop());
        assert!(!Host.is_hop_by_hop());
    }

    #[test]
    fn spans_stay_within() {
        let bytes = b"abcdef";
        let span = Span::locate(bytes, &bytes[2..4]).unwrap();
        assert_eq!(span.of(bytes), b"cd");
        assert_eq!(span.of(b"abc"), b"");
        assert_eq!(Span::locate(&bytes[..3], &bytes[2..4]), None);
        assert_eq!(Span::locate(&bytes[3..], &bytes[2..4]), None);
        assert_eq!(Span::between(0, 65_536), None);
        assert_eq!(Span::between(2, 1), None);
    }

    #[test]
    fn a_line_is_written_in_the_one_form_whatever_form_it_came_in() {
        for (head, expected) in [
            (&b"Via: a\r\n"[..], &b"Via: a\r\n"[..]),
            (b"Via:a\r\n", b"Via: a\r\n"),
            (b"Via:\ta\r\n", b"Via: a\r\n"),
            (b"Via: a \r\n", b"Via: a\r\n"),
            (b"Via:  a\r\n", b"Via: a\r\n"),
            (b"Via: a", b"Via: a\r\n"),
            (b"Via: a\n\n", b"Via: a\r\n"),
        ] {
            let start = head.iter().rposition(|&byte| byte == b'a').unwrap();
            let value = Span::between(start, start + 1).unwrap();
            let field = Field::new(head, Span::between(0, 3).unwrap(), value);
            let mut out = Vec::new();
            let mut lines = Copied::new(head);
            lines.push(&mut out, &field);
            lines.finish(&mut out);
            assert_eq!(out, expected, "{head:?}");
        }
    }

    #[test]
    fn lists() {
        let elements: Vec<_> = list(b" a ,\tb,, c d\t").collect();
        assert_eq!(elements, [&b"a"[..], b"b", b"", b"c d"]);
        assert_eq!(trim(b" \t "), b"");
        assert_eq!(trim(b"\x0ba"), b"\x0ba");
        assert!(is_token(b"a-b!") && !is_token(b"") && !is_token(b"a b") && !is_token(b"a\xe9"));
    }
}

//! Response heads.

use std::{error::Error, fmt, mem::MaybeUninit};

use memchr::memchr;

use super::{
    ConnectionOptions, FIELDS_MAX, Fault, Field, FieldId, Framing, FramingError, HeadError, Limits,
    Method, Span, Version,
    error::write_within,
    fields::{check_extent, collect, find},
    framing::FramingFields,
    lines::Lines,
};

/// Why a response was refused; the client gets 502.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseError {
    /// Its lines.
    Head(HeadError),
    /// The length of its body.
    Framing(FramingError),
    /// A status outside 100 to 599 (RFC 9110 section 15).
    Status,
}

impl ResponseError {
    /// Malformed, unsupported, or past a bound.
    pub const fn fault(self) -> Fault {
        match self {
            Self::Head(error) => error.fault(),
            Self::Framing(error) => error.fault(),
            Self::Status => Fault::Malformed,
        }
    }
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(error) => write_within(f, "response head", error),
            Self::Framing(error) => write_within(f, "response framing", error),
            Self::Status => f.write_str("response status is not within 100 to 599"),
        }
    }
}

impl Error for ResponseError {}

impl From<HeadError> for ResponseError {
    fn from(error: HeadError) -> Self {
        Self::Head(error)
    }
}

impl From<FramingError> for ResponseError {
    fn from(error: FramingError) -> Self {
        Self::Framing(error)
    }
}

/// A parsed response head; meant to be reused.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// The status, within 100 to 599.
    pub status: u16,
    /// The reason phrase; may be empty.
    pub reason: Span,
    /// The version.
    pub version: Version,
    /// The field lines in their order.
    pub fields: Vec<Field>,
    /// How the body is delimited. [`Framing::None`] whenever the request or the status rules a body
    /// out, whatever the fields say.
    pub framing: Framing,
    /// The connection may carry another request once this response is read.
    pub persistent: bool,
    /// 101: the connection speaks another protocol from here on. Whether the request asked for
    /// that is for the caller to check.
    pub upgrade: bool,
    /// What `Connection` says.
    pub connection: ConnectionOptions,
    /// The length of the head that [`ResponseHead::take`] has taken apart.
    taken: Option<usize>,
}

impl ResponseHead {
    /// An empty one, to parse into.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes apart the head that `bytes` begin with; see [`RequestHead::take`](super::RequestHead::take).
    pub fn take(&mut self, bytes: &[u8], limits: &Limits) -> Option<usize> {
        let window = bytes.get(..limits.bytes()).unwrap_or(bytes);
        self.taken = self.take_plain(window, limits);
        self.taken
    }

    /// Parses a whole head, as [`HeadScanner`](super::HeadScanner) delimits it, of the response to a
    /// request with this method. After an error the contents mean nothing.
    ///
    /// Framing fields that contradict each other are refused even where no body can follow. A 204
    /// that announces one all the same is taken, but not persistent, lest the body be read as the
    /// next response; a 1xx that does is refused, because its connection has to go on.
    ///
    /// # Errors
    ///
    /// See [`ResponseError`].
    pub fn parse(
        &mut self,
        head: &[u8],
        limits: &Limits,
        request_method: Method,
    ) -> Result<(), ResponseError> {
        if self.taken.take() != Some(head.len()) {
            self.tokenise(head, limits)?;
        }
        if !(100..=599).contains(&self.status) {
            return Err(ResponseError::Status);
        }
        let mut framing = FramingFields::default();
        self.connection = ConnectionOptions::default();
        for field in &self.fields {
            match field.id {
                FieldId::ContentLength | FieldId::TransferEncoding => {
                    framing.note(field.id, field.value.of(head))?;
                }
                FieldId::Connection => self.connection.note(field.id, field.value.of(head))?,
                _ => {}
            }
        }
        self.conclude(framing.framing(self.version)?, request_method)
    }

    /// The status line with its line end, if it is to the byte what would be written anew in HTTP/1.1.
    pub fn plain_line(&self, head: &[u8]) -> Option<Span> {
        const BEGIN: &[u8] = b"HTTP/1.1 ";
        const REASON: usize = b"HTTP/1.1 200 ".len();
        let begins = head.starts_with(BEGIN) && head.get(REASON - 1) == Some(&b' ');
        let end = self.reason.end() + 2;
        let ends = head.get(self.reason.end()..end) == Some(b"\r\n");
        (begins && ends && self.reason.start() == REASON).then(|| Span::between(0, end))?
    }

    /// The value of the first field of this name, in any case.
    pub fn header<'a>(&self, head: &'a [u8], name_lowercase: &str) -> Option<&'a [u8]> {
        find(&self.fields, head, name_lowercase.as_bytes())
    }

    /// Whether `Connection` nominates this field, so that it goes no further.
    pub fn connection_lists(&self, head: &[u8], name: &[u8]) -> bool {
        self.connection.list(&self.fields, head, name)
    }

    /// Whether this is a 1xx other than 101: another response to the same request follows.
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && !self.upgrade
    }

    fn tokenise(&mut self, head: &[u8], limits: &Limits) -> Result<(), HeadError> {
        if head.len() > limits.bytes() {
            return Err(HeadError::TooLarge);
        }
        if let Some(b'\r' | b'\n') = head.first() {
            return Err(HeadError::EmptyLines);
        }
        match self.take_plain(head, limits) {
            Some(length) if length == head.len() => Ok(()),
            _ => self.take_any(head, limits),
        }
    }

    /// Gives the length of the head.
    fn take_plain(&mut self, head: &[u8], limits: &Limits) -> Option<usize> {
        let mut lines = Lines::new(head, 0);
        (self.version, self.status, self.reason) = lines.status_line()?;
        lines.fields(limits.fields(), &mut self.fields)
    }

    #[cold]
    fn take_any(&mut self, head: &[u8], limits: &Limits) -> Result<(), HeadError> {
        let mut slots = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let slots = slots.get_mut(..limits.fields()).unwrap_or_default();
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            head,
            slots,
        )?;
        check_extent(parsed, head)?;
        self.status = response.code.ok_or(HeadError::StartLine)?;
        self.version = Version::from_minor(response.version).ok_or(HeadError::Version)?;
        self.reason = reason(head)?;
        collect(head, response.headers, &mut self.fields)
    }

    /// RFC 9112 section 6.3.
    fn conclude(
        &mut self,
        announced: Option<Framing>,
        request_method: Method,
    ) -> Result<(), ResponseError> {
        let announces_body = announced.is_some_and(|framing| !framing.is_empty());
        let is_informational = self.status < 200;
        if is_informational && announces_body {
            return Err(FramingError::BodyForbidden.into());
        }
        let is_tunnel = request_method == Method::Connect && (200..300).contains(&self.status);
        let is_bodiless = is_informational
            || matches!(self.status, 204 | 304)
            || request_method == Method::Head
            || is_tunnel;
        self.framing = match announced {
            _ if is_bodiless => Framing::None,
            Some(framing) => framing,
            None => Framing::Close,
        };
        self.upgrade = self.status == 101;
        self.persistent = self.connection.is_persistent(self.version)
            && self.framing != Framing::Close
            && !(self.status == 204 && announces_body)
            && !self.upgrade
            && !is_tunnel;
        Ok(())
    }
}

/// httparse blanks a reason phrase with bytes beyond ASCII, so it is found by its place: behind
/// `HTTP/1.1 200 `, which httparse has made sure of, or nowhere if the space is left out.
fn reason(head: &[u8]) -> Result<Span, HeadError> {
    const START: usize = 13;
    let line_end = memchr(b'\n', head).ok_or(HeadError::Extent)?;
    let end = line_end.checked_sub(1).ok_or(HeadError::Extent)?;
    if head.get(end) != Some(&b'\r') {
        return Err(HeadError::BareLf);
    }
    Span::between(START.min(end), end).ok_or(HeadError::Extent)
}

#[cfg(test)]
mod tests;

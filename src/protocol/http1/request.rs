//! Request heads.

use std::{error::Error, fmt, mem::MaybeUninit};

use memchr::memchr;

use super::{
    ConnectionOptions, FIELDS_MAX, Fault, Field, FieldId, Framing, FramingError, HeadError,
    HostError, Limits, Method, Span, Version,
    error::write_within,
    fields::{check_extent, collect, find},
    framing::FramingFields,
    host::validate_host,
    lines::Lines,
};

/// The longest registered method, `UPDATEREDIRECTREF`, has 17.
const METHOD_BYTES_MAX: usize = 32;

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestError {
    /// Its lines.
    Head(HeadError),
    /// The length of its body.
    Framing(FramingError),
    /// The value of its `Host`.
    Host(HostError),
    /// HTTP/1.1 without `Host` (RFC 9112 section 3.2).
    HostMissing,
    /// More than one `Host`.
    HostRepeated,
    /// An expectation other than one `100-continue` (RFC 9110 section 10.1.1).
    Expectation,
}

impl RequestError {
    /// The status it is answered with; the connection is closed after that.
    pub const fn status(self) -> u16 {
        match self {
            Self::Head(error) => error.status(),
            Self::Framing(error) => error.status(),
            Self::Host(error) => error.status(),
            Self::HostMissing | Self::HostRepeated => 400,
            Self::Expectation => 417,
        }
    }

    /// Malformed, unsupported, or past a bound.
    pub const fn fault(self) -> Fault {
        match self {
            Self::Head(error) => error.fault(),
            Self::Framing(error) => error.fault(),
            Self::Host(error) => error.fault(),
            Self::HostMissing | Self::HostRepeated => Fault::Malformed,
            Self::Expectation => Fault::Unsupported,
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(error) => write_within(f, "request head", error),
            Self::Framing(error) => write_within(f, "request framing", error),
            Self::Host(error) => write_within(f, "Host", error),
            Self::HostMissing => f.write_str("Host is missing"),
            Self::HostRepeated => f.write_str("repeated Host"),
            Self::Expectation => f.write_str("unknown expectation"),
        }
    }
}

impl Error for RequestError {}

impl From<HeadError> for RequestError {
    fn from(error: HeadError) -> Self {
        Self::Head(error)
    }
}

impl From<FramingError> for RequestError {
    fn from(error: FramingError) -> Self {
        Self::Framing(error)
    }
}

/// A parsed request head: where its parts lie in the bytes it was parsed from, and what they mean.
/// Meant to be reused, so that a request allocates nothing.
#[derive(Debug, Default)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The method as it came; what to forward.
    pub method_span: Span,
    /// The request target as it came; see [`Target`](super::Target).
    pub target: Span,
    /// The version.
    pub version: Version,
    /// The field lines in their order.
    pub fields: Vec<Field>,
    /// How the body is delimited; never [`Framing::Close`].
    pub framing: Framing,
    /// The value of `Host`, checked but not normalised. The authority of an absolute target overrides
    /// it.
    pub host: Option<Span>,
    /// The host in it, without port and final dot; empty if there is none.
    pub host_name: Span,
    /// The client wants the connection kept (RFC 9112 section 9.3).
    pub persistent: bool,
    /// The client waits for `100 Continue` before it sends the body. Never set without a body to
    /// come, nor in HTTP/1.0 (RFC 9110 section 10.1.1).
    pub expect_continue: bool,
    /// A WebSocket handshake (RFC 6455 section 4.1): GET in HTTP/1.1 without body, `Connection:
    /// upgrade` and exactly `Upgrade: websocket`.
    pub upgrade_websocket: bool,
    /// What `Connection` says.
    pub connection: ConnectionOptions,
    /// The length of the head that [`RequestHead::take`] has taken apart.
    taken: Option<usize>,
}

/// What is gathered over the fields.
#[derive(Default)]
struct Gathered {
    framing: FramingFields,
    connection: ConnectionOptions,
    host: Option<Span>,
    expects: bool,
    /// Whether all of `Upgrade` is one `websocket`.
    websocket: Option<bool>,
}

impl RequestHead {
    /// An empty one, to parse into.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was taken and the first line; the fields stay until the next are parsed.
    pub fn clear(&mut self) {
        (self.method, self.version, self.taken) = (Method::default(), Version::default(), None);
        (self.target, self.host, self.host_name) = (Span::default(), None, Span::default());
    }

    /// Takes apart the head that `bytes` begin with, in one look, if all of it is there and as plain as nearly all
    /// are; gives its length, which [`HeadScanner`](super::HeadScanner) would find, too. [`RequestHead::parse`] of it
    /// has to follow.
    pub fn take(&mut self, bytes: &[u8], limits: &Limits) -> Option<usize> {
        let window = bytes.get(..limits.bytes()).unwrap_or(bytes);
        self.taken = self.take_plain(window, 0, limits);
        self.taken
    }

    /// Parses a whole head, as [`HeadScanner`](super::HeadScanner) delimits it. After an error the
    /// contents mean nothing.
    ///
    /// # Errors
    ///
    /// See [`RequestError`].
    pub fn parse(&mut self, head: &[u8], limits: &Limits) -> Result<(), RequestError> {
        if self.taken.take() != Some(head.len()) {
            self.tokenise(head, limits)?;
        }
        if self.method_span.len() > METHOD_BYTES_MAX {
            return Err(HeadError::MethodTooLong.into());
        }
        self.method = Method::of(self.method_span.of(head));
        let mut gathered = Gathered::default();
        for field in &self.fields {
            gathered.note(field, head)?;
        }
        self.conclude(&gathered, head)
    }

    /// The request line with its line end, if it is to the byte what would be written anew in HTTP/1.1.
    pub fn plain_line(&self, head: &[u8]) -> Option<Span> {
        const END: &[u8; 11] = b" HTTP/1.1\r\n";
        let (method, target) = (&self.method_span, &self.target);
        let parted = head.get(method.end()..target.start()) == Some(b" ");
        let ends = head.get(target.end()..).and_then(<[u8]>::first_chunk) == Some(END);
        (parted && ends).then(|| Span::between(method.start(), target.end() + END.len()))?
    }

    /// The value of the first field of this name, in any case.
    pub fn header<'a>(&self, head: &'a [u8], name_lowercase: &str) -> Option<&'a [u8]> {
        find(&self.fields, head, name_lowercase.as_bytes())
    }

    /// Whether `Connection` nominates this field, so that it goes no further. Never true of fields
    /// that frame or route the message or tell where it came from.
    pub fn connection_lists(&self, head: &[u8], name: &[u8]) -> bool {
        self.connection.list(&self.fields, head, name)
    }

    fn tokenise(&mut self, head: &[u8], limits: &Limits) -> Result<(), HeadError> {
        if head.len() > limits.bytes() {
            return Err(HeadError::TooLarge);
        }
        let message = skip_empty_lines(head)?;
        match self.take_plain(head, head.len() - message.len(), limits) {
            Some(length) if length == head.len() => Ok(()),
            _ => self.take_any(head, message, limits),
        }
    }

    /// Gives the length of the head, which begins behind `start` bytes.
    fn take_plain(&mut self, head: &[u8], start: usize, limits: &Limits) -> Option<usize> {
        let mut lines = Lines::new(head, start);
        (self.method_span, self.target, self.version) = lines.request_line()?;
        lines.fields(limits.fields(), &mut self.fields)
    }

    #[cold]
    fn take_any(&mut self, head: &[u8], message: &[u8], limits: &Limits) -> Result<(), HeadError> {
        let mut slots = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let slots = slots.get_mut(..limits.fields()).unwrap_or_default();
        let mut request = httparse::Request::new(&mut []);
        let parsed = request
            .parse_with_uninit_headers(message, slots)
            .map_err(|error| head_error(error, message))?;
        check_extent(parsed, message)?;
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Err(HeadError::StartLine);
        };
        self.method_span = Span::locate(head, method.as_bytes()).ok_or(HeadError::Extent)?;
        self.target = Span::locate(head, target.as_bytes()).ok_or(HeadError::Extent)?;
        self.version = Version::from_minor(request.version).ok_or(HeadError::Version)?;
        collect(head, request.headers, &mut self.fields)
    }

    fn conclude(&mut self, gathered: &Gathered, head: &[u8]) -> Result<(), RequestError> {
        let is_http11 = self.version == Version::Http11;
        self.framing = gathered.framing.framing(self.version)?.unwrap_or_default();
        self.host = gathered.host;
        self.host_name = match self.host {
            Some(host) => {
                let name = validate_host(host.of(head)).map_err(RequestError::Host)?;
                Span::locate(head, name).ok_or(HeadError::Extent)?
            }
            None if is_http11 => return Err(RequestError::HostMissing),
            None => Span::default(),
        };
        self.connection = gathered.connection;
        self.persistent = self.connection.is_persistent(self.version);
        self.expect_continue = gathered.expects && is_http11 && !self.framing.is_empty();
        self.upgrade_websocket = is_http11
            && self.method == Method::Get
            && self.framing.is_empty()
            && self.connection.upgrade
            && gathered.websocket == Some(true);
        Ok(())
    }
}

impl Gathered {
    fn note(&mut self, field: &Field, head: &[u8]) -> Result<(), RequestError> {
        let value = field.value.of(head);
        match field.id {
            FieldId::ContentLength | FieldId::TransferEncoding => {
                self.framing.note(field.id, value)?;
            }
            FieldId::Connection => self.connection.note(field.id, value)?,
            FieldId::Host if self.host.is_some() => return Err(RequestError::HostRepeated),
            FieldId::Host => self.host = Some(field.value),
            FieldId::Expect => {
                if self.expects || !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(RequestError::Expectation);
                }
                self.expects = true;
            }
            FieldId::Upgrade => {
                let is_first = self.websocket.is_none();
                self.websocket = Some(is_first && value.eq_ignore_ascii_case(b"websocket"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// The head behind the empty lines that the scanner lets pass.
fn skip_empty_lines(head: &[u8]) -> Result<&[u8], HeadError> {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    match head.first() {
        Some(b'\r' | b'\n') => Err(HeadError::EmptyLines),
        _ => Ok(head),
    }
}

/// httparse refuses all versions but two alike. HTTP/1.2 and later minor versions could be read as
/// 1.1 (RFC 9110 section 2.5), but none exists, so whoever sends one is up to something.
fn head_error(error: httparse::Error, message: &[u8]) -> HeadError {
    if error != httparse::Error::Version {
        return error.into();
    }
    let line = message.get(..memchr(b'\r', message).unwrap_or(0)).unwrap_or_default();
    match line.splitn(3, |&byte| byte == b' ').nth(2) {
        Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']) => {
            HeadError::UnsupportedVersion
        }
        _ => HeadError::Version,
    }
}

#[cfg(test)]
mod tests;

//! Request targets (RFC 9112 section 3.2) in one normal form, which is both routed and forwarded.

use std::{error::Error, fmt};

use memchr::memchr2;

use super::{
    Fault, HEAD_BYTES_MAX, HostError, Method, Span,
    error::write_within,
    host::{port, validate_host},
};

/// Why a target was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetError {
    /// It has none of the forms its method allows, or a scheme other than http and https.
    Form,
    /// A control character, space, `#`, a byte beyond ASCII, or a backslash in the path.
    Character,
    /// `%` without two hexadecimal digits in the path.
    Escape,
    /// `%00`, `%2F` or `%5C` in the path: servers differ on whether it parts segments.
    EscapedSeparator,
    /// The path leads above its root.
    AboveRoot,
    /// A segment `..` with a parameter, which some servers take for `..`.
    DotParameter,
    /// The authority of an absolute target.
    Authority(HostError),
    /// A well-formed target of CONNECT, which a reverse proxy does not serve.
    Connect,
    /// Longer than a head can be.
    TooLong,
}

impl TargetError {
    /// The status the request is answered with.
    pub const fn status(self) -> u16 {
        match self {
            Self::Connect => 405,
            Self::TooLong => 414,
            _ => 400,
        }
    }

    /// Malformed, unsupported, or past a bound.
    pub const fn fault(self) -> Fault {
        match self {
            Self::Connect => Fault::Unsupported,
            Self::TooLong => Fault::Limit,
            Self::Authority(error) => error.fault(),
            _ => Fault::Malformed,
        }
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "request target of the wrong form",
            Self::Character => "invalid character in the request target",
            Self::Escape => "malformed escape in the path",
            Self::EscapedSeparator => "escaped slash, backslash or NUL in the path",
            Self::AboveRoot => "path leads above its root",
            Self::DotParameter => "path segment .. with a parameter",
            Self::Authority(error) => return write_within(f, "request target", error),
            Self::Connect => "CONNECT is not served",
            Self::TooLong => "request target too long",
        })
    }
}

impl Error for TargetError {}

/// A normalised target, beside the bytes it came as, which most already are in normal form; meant to be reused, so that
/// parsing allocates nothing. What reads it is given the bytes that were parsed.
///
/// In the path, escapes of unreserved characters are decoded and the hexadecimal digits of others
/// are upper case (RFC 3986 section 6.2.2), dot segments are resolved, and slashes in a row are one.
/// The query stays as it is.
#[derive(Debug, Default)]
pub struct Target {
    /// Where path and query lie in what came, if they are in normal form there.
    received: Span,
    /// Otherwise the path, then the query with its `?`.
    text: Vec<u8>,
    path_len: usize,
    /// Where the authority of an absolute target lies in what came.
    authority: Span,
}

impl Target {
    /// An empty one, to parse into.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses and normalises the target of a request with this method. After an error everything
    /// is empty.
    ///
    /// # Errors
    ///
    /// See [`TargetError`].
    pub fn parse(&mut self, method: Method, raw: &[u8]) -> Result<(), TargetError> {
        self.clear();
        self.parse_form(method, raw).inspect_err(|_| self.clear())
    }

    /// The normalised path; `*` for the asterisk form.
    pub fn path<'a>(&'a self, raw: &'a [u8]) -> &'a [u8] {
        self.path_and_query(raw).get(..self.path_len).unwrap_or_default()
    }

    /// The query without its `?`; empty and absent differ.
    pub fn query<'a>(&'a self, raw: &'a [u8]) -> Option<&'a [u8]> {
        self.path_and_query(raw).get(self.path_len + 1..)
    }

    /// What to forward, in origin form (or asterisk form).
    pub fn path_and_query<'a>(&'a self, raw: &'a [u8]) -> &'a [u8] {
        if self.text.is_empty() { self.received.of(raw) } else { &self.text }
    }

    /// The authority of an absolute target, checked but not normalised; it takes the place of `Host`
    /// (RFC 9112 section 3.2.2).
    pub fn authority<'a>(&self, raw: &'a [u8]) -> Option<&'a [u8]> {
        Some(self.authority.of(raw)).filter(|authority| !authority.is_empty())
    }

    /// `*`: the request is about the server as a whole.
    pub fn is_asterisk(&self, raw: &[u8]) -> bool {
        self.path_and_query(raw) == b"*"
    }

    /// Whether what came is what to forward, to the byte.
    pub fn is_as_received(&self, raw: &[u8]) -> bool {
        self.received.len() == raw.len()
    }

    fn clear(&mut self) {
        self.text.clear();
        (self.received, self.authority, self.path_len) = (Span::default(), Span::default(), 0);
    }

    fn parse_form(&mut self, method: Method, raw: &[u8]) -> Result<(), TargetError> {
        if raw.len() > HEAD_BYTES_MAX {
            return Err(TargetError::TooLong);
        }
        match raw {
            _ if method == Method::Connect => Err(connect_error(raw)),
            [b'/', ..] => self.take_origin(raw, raw),
            b"*" if method == Method::Options => {
                self.push_asterisk();
                Ok(())
            }
            _ => self.take_absolute(method, raw),
        }
    }

    fn push_asterisk(&mut self) {
        self.text.push(b'*');
        self.path_len = 1;
    }

    /// `scheme://authority` and an origin form, or less than one.
    fn take_absolute(&mut self, method: Method, raw: &[u8]) -> Result<(), TargetError> {
        let rest = strip_scheme(raw).ok_or(TargetError::Form)?;
        let end = memchr2(b'/', b'?', rest).unwrap_or(rest.len());
        let (authority, origin) = rest.split_at_checked(end).ok_or(TargetError::Form)?;
        validate_host(authority).map_err(TargetError::Authority)?;
        self.authority = Span::locate(raw, authority).ok_or(TargetError::TooLong)?;
        match origin {
            [b'/', ..] => self.take_origin(raw, origin),
            // RFC 9112 section 3.2.4
            [] if method == Method::Options => {
                self.push_asterisk();
                Ok(())
            }
            query => {
                check_query(query)?;
                self.text.push(b'/');
                self.text.extend_from_slice(query);
                self.path_len = 1;
                Ok(())
            }
        }
    }

    /// A path that starts with a slash, and perhaps a query, at the end of `raw`.
    fn take_origin(&mut self, raw: &[u8], origin: &[u8]) -> Result<(), TargetError> {
        let (len, is_normal) = survey(origin)?;
        let (path, query) = origin.split_at_checked(len).ok_or(TargetError::Form)?;
        check_query(query)?;
        if is_normal {
            self.received = Span::locate(raw, origin).ok_or(TargetError::TooLong)?;
            self.path_len = len;
        } else {
            push_normalised(&mut self.text, path)?;
            self.path_len = self.text.len();
            self.text.extend_from_slice(query);
        }
        Ok(())
    }
}

fn check_query(query: &[u8]) -> Result<(), TargetError> {
    let is_refused = |&byte: &u8| class(byte) == Class::Refused;
    if query.iter().any(is_refused) { Err(TargetError::Character) } else { Ok(()) }
}

/// CONNECT takes `host:port` (RFC 9112 section 3.2.3) and is refused either way.
fn connect_error(raw: &[u8]) -> TargetError {
    match validate_host(raw) {
        Ok(_) if port(raw).is_some() => TargetError::Connect,
        Ok(_) => TargetError::Form,
        Err(error) => TargetError::Authority(error),
    }
}

fn strip_scheme(raw: &[u8]) -> Option<&[u8]> {
    [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let (start, rest) = raw.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

/// What a byte means to the first look at a target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Plain,
    Slash,
    Dot,
    Percent,
    Backslash,
    Question,
    /// Allowed nowhere in a target.
    Refused,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Plain; 256];
    let mut byte = 0_u8;
    loop {
        classes[byte as usize] = match byte {
            b'/' => Class::Slash,
            b'.' => Class::Dot,
            b'%' => Class::Percent,
            b'\\' => Class::Backslash,
            b'?' => Class::Question,
            0..=b' ' | b'#' | 0x7f.. => Class::Refused,
            _ => Class::Plain,
        };
        if byte == u8::MAX {
            break classes;
        }
        byte += 1;
    }
};

fn class(byte: u8) -> Class {
    CLASSES[usize::from(byte)]
}

/// Where the path ends, and whether it surely is in normal form already.
fn survey(raw: &[u8]) -> Result<(usize, bool), TargetError> {
    let mut is_normal = true;
    // Behind the last slash.
    let mut segment = usize::MAX;
    let mut bytes = raw.iter().enumerate();
    while let Some((index, byte)) = bytes.find(|&(_, &byte)| class(byte) != Class::Plain) {
        match class(*byte) {
            Class::Plain => {}
            Class::Slash => {
                is_normal &= index != segment;
                segment = index + 1;
            }
            Class::Dot => is_normal &= index != segment,
            Class::Percent => is_normal = false,
            Class::Question => return Ok((index, is_normal)),
            Class::Backslash | Class::Refused => return Err(TargetError::Character),
        }
    }
    Ok((raw.len(), is_normal))
}

/// Writes the path segment by segment, each behind its slash. Decoding comes first, so that an
/// escaped dot segment is one; no escape decodes to a slash. A path whose last segment is dropped
/// names a directory and keeps a slash at its end.
fn push_normalised(out: &mut Vec<u8>, path: &[u8]) -> Result<(), TargetError> {
    let mut ends_in_slash = false;
    for raw in path.strip_prefix(b"/").unwrap_or(path).split(|&byte| byte == b'/') {
        let slash = out.len();
        out.push(b'/');
        push_decoded(out, raw)?;
        let segment = out.get(slash + 1..).unwrap_or_default();
        if segment.starts_with(b"..;") {
            return Err(TargetError::DotParameter);
        }
        let is_parent = segment == b"..";
        ends_in_slash = is_parent || segment.is_empty() || segment == b".";
        if ends_in_slash {
            out.truncate(slash);
        }
        if is_parent {
            let parent = out.iter().rposition(|&byte| byte == b'/');
            out.truncate(parent.ok_or(TargetError::AboveRoot)?);
        }
    }
    if ends_in_slash {
        out.push(b'/');
    }
    Ok(())
}

/// Decodes escapes of unreserved characters (RFC 3986 section 2.3) and writes others in upper case.
fn push_decoded(out: &mut Vec<u8>, segment: &[u8]) -> Result<(), TargetError> {
    let mut rest = segment;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let [high, low, tail @ ..] = tail else { return Err(TargetError::Escape) };
        rest = tail;
        let decoded = (hex_digit(*high)? << 4) | hex_digit(*low)?;
        match decoded {
            0 | b'/' | b'\\' => return Err(TargetError::EscapedSeparator),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(decoded)
            }
            _ => out.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
        }
    }
    Ok(())
}

fn hex_digit(byte: u8) -> Result<u8, TargetError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(TargetError::Escape),
    }
}

#[cfg(test)]
mod tests;

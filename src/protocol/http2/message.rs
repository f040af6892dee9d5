//! Field lists of HTTP/2 to heads of HTTP/1.1 and back.
//!
//! [`Assembler`] writes the head that HTTP/1.1 would have sent, so that the one strict parser judges
//! it. It refuses what that head could not carry unchanged or what RFC 9113 section 8.2 and 8.3 call
//! malformed. [`fields_of`] goes the other way over a head that this process wrote itself.

use crate::protocol::http1::encode;

/// What a field list stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A request.
    #[default]
    Request,
    /// A response, interim or final.
    Response,
    /// The fields behind a body.
    Trailers,
}

/// Why a field list is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It breaks a rule; the stream is reset with PROTOCOL_ERROR.
    Malformed,
    /// More fields or bytes than allowed; a request is answered with 431.
    TooLarge,
}

/// What a head says that matters to the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// `content-length`
    pub length: Option<u64>,
    /// The status of a response.
    pub status: u16,
    /// An extended CONNECT for a WebSocket (RFC 8441).
    pub websocket: bool,
    /// The request's method is HEAD.
    pub is_head: bool,
    /// `te: trailers` was there.
    pub takes_trailers: bool,
}

/// Bit in `seen` of each pseudo-field.
const METHOD: u8 = 1;
const SCHEME: u8 = 2;
const AUTHORITY: u8 = 4;
const PATH: u8 = 8;
const PROTOCOL: u8 = 16;
const STATUS: u8 = 32;

/// Builds one head; reused, so that no head allocates once the buffers are warm.
#[derive(Debug, Default)]
pub struct Assembler {
    kind: Kind,
    seen: u8,
    begun: bool,
    fault: Option<Fault>,
    fields: usize,
    bytes: usize,
    method: Vec<u8>,
    authority: Vec<u8>,
    path: Vec<u8>,
    protocol: Vec<u8>,
    host: Option<Vec<u8>>,
    cookies: Vec<u8>,
    summary: Summary,
    lines: Vec<u8>,
    /// The response is one to HEAD: it has no body, and no length unless it says so.
    pub to_head: bool,
}

impl Assembler {
    /// Begins a list.
    pub fn begin(&mut self, kind: Kind) {
        self.kind = kind;
        self.seen = 0;
        self.begun = false;
        self.to_head = false;
        self.fault = None;
        self.fields = 0;
        self.bytes = 0;
        self.host = None;
        self.summary = Summary::default();
        for buffer in [
            &mut self.method,
            &mut self.authority,
            &mut self.path,
            &mut self.protocol,
            &mut self.cookies,
            &mut self.lines,
        ] {
            buffer.clear();
        }
    }

    /// Takes the next field. After a fault the rest only passes by.
    pub fn field(&mut self, name: &[u8], value: &[u8], fields_max: usize, bytes_max: usize) {
        if self.fault.is_some() {
            return;
        }
        self.fields += 1;
        self.bytes += name.len() + value.len() + 4;
        if self.fields > fields_max || self.bytes > bytes_max {
            self.fault = Some(Fault::TooLarge);
            return;
        }
        let taken = match name.first() {
            Some(b':') => self.pseudo(name, value),
            _ => self.regular(name, value),
        };
        if taken.is_none() {
            self.fault = Some(Fault::Malformed);
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        let (bit, buffer) = match (name, self.kind) {
            (b":method", Kind::Request) => (METHOD, Some(&mut self.method)),
            (b":scheme", Kind::Request) => (SCHEME, None),
            (b":authority", Kind::Request) => (AUTHORITY, Some(&mut self.authority)),
            (b":path", Kind::Request) => (PATH, Some(&mut self.path)),
            (b":protocol", Kind::Request) => (PROTOCOL, Some(&mut self.protocol)),
            (b":status", Kind::Response) => (STATUS, None),
            _ => return None,
        };
        if self.begun || self.seen & bit != 0 {
            return None; // behind a regular field, or repeated
        }
        self.seen |= bit;
        match bit {
            METHOD if !is_token(value) => return None,
            SCHEME if value != b"http" && value != b"https" => return None,
            PATH if value.is_empty() || !value.iter().all(|byte| (0x21..0x7f).contains(byte)) => {
                return None;
            }
            AUTHORITY if value.is_empty() || !is_authority(value) => return None,
            STATUS => self.summary.status = status(value)?,
            _ => {}
        }
        if let Some(buffer) = buffer {
            buffer.extend_from_slice(value);
        }
        Some(())
    }

    fn regular(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        self.begun = true;
        if !is_name(name) || !is_value(value) {
            return None;
        }
        match name {
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding"
            | b"upgrade" => return None,
            b"te" if self.kind == Kind::Request => {
                if !value.eq_ignore_ascii_case(b"trailers") {
                    return None;
                }
                self.summary.takes_trailers = true;
            }
            b"host" if self.kind == Kind::Request => {
                if self.host.is_some() || !is_authority(value) {
                    return None;
                }
                self.host = Some(value.to_vec());
                return Some(());
            }
            b"cookie" if self.kind == Kind::Request => {
                if !self.cookies.is_empty() {
                    self.cookies.extend_from_slice(b"; ");
                }
                self.cookies.extend_from_slice(value);
                return Some(());
            }
            // HTTP/2 has no use for it, and we make one of our own (RFC 8441 section 5).
            b"sec-websocket-key" if self.seen & PROTOCOL != 0 => return Some(()),
            b"content-length" => {
                if self.kind == Kind::Trailers || self.summary.length.is_some() {
                    return None;
                }
                self.summary.length = Some(decimal(value)?);
                return Some(()); // written with the framing
            }
            _ => {}
        }
        encode::push_field(&mut self.lines, name, value);
        Some(())
    }

    /// Ends the list: writes the head, or only the field lines of trailers, into `out`, which it
    /// replaces. `end` tells that no body follows.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn finish(&mut self, end: bool, out: &mut Vec<u8>) -> Result<Summary, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        out.clear();
        let written = match self.kind {
            Kind::Request => self.write_request(end, out),
            Kind::Response => self.write_response(end, out),
            Kind::Trailers => {
                out.extend_from_slice(&self.lines);
                end.then_some(())
            }
        };
        written.ok_or(Fault::Malformed)?;
        Ok(self.summary)
    }

    fn write_request(&mut self, end: bool, out: &mut Vec<u8>) -> Option<()> {
        let wanted = METHOD | SCHEME | PATH;
        let is_connect = self.method == b"CONNECT";
        let extended = self.seen & PROTOCOL != 0;
        if is_connect && !extended {
            // Plain CONNECT has no scheme and path; HTTP/1.1's answer to it is the right one.
            if self.seen & (SCHEME | PATH) != 0 || self.seen & AUTHORITY == 0 {
                return None;
            }
            self.path.extend_from_slice(&self.authority);
        } else if self.seen & wanted != wanted || (extended && !is_connect) {
            return None;
        }
        let asterisk = self.path == b"*" && self.method == b"OPTIONS";
        if (!is_connect || extended) && !self.path.starts_with(b"/") && !asterisk {
            return None; // RFC 9113 section 8.3.1
        }
        self.summary.websocket = extended && self.protocol == b"websocket";
        self.summary.is_head = self.method == b"HEAD";
        if extended && (!self.summary.websocket || end || self.summary.length.is_some()) {
            return None;
        }
        if end && self.summary.length.is_some_and(|length| length > 0) {
            return None;
        }
        let authority = Some(&self.authority).filter(|authority| !authority.is_empty());
        let host = match (authority, &self.host) {
            (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => return None,
            (Some(authority), _) => authority,
            (None, Some(host)) => host,
            (None, None) => return None,
        };
        out.extend_from_slice(if extended { b"GET" } else { &self.method });
        out.push(b' ');
        out.extend_from_slice(&self.path);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        encode::push_field(out, b"host", host);
        out.extend_from_slice(&self.lines);
        if !self.cookies.is_empty() {
            encode::push_field(out, b"cookie", &self.cookies);
        }
        if self.summary.websocket {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
        } else {
            self.push_framing(end, out);
        }
        out.extend_from_slice(b"\r\n");
        Some(())
    }

    fn write_response(&mut self, end: bool, out: &mut Vec<u8>) -> Option<()> {
        let status = self.summary.status;
        // There is no switching of protocols within a stream (RFC 9113 section 8.6).
        if self.seen != STATUS || status == 101 || (status < 200 && end) {
            return None;
        }
        encode::push_status_line(out, status, encode::reason(status).as_bytes());
        out.extend_from_slice(&self.lines);
        if status < 200 {
            if self.summary.length.is_some() {
                return None;
            }
        } else if self.to_head && self.summary.length.is_none() {
            // What GET would be answered with is not known.
        } else if end && self.summary.length.is_none() && status != 204 && status != 304 {
            out.extend_from_slice(b"content-length: 0\r\n");
        } else {
            self.push_framing(end, out);
        }
        out.extend_from_slice(b"\r\n");
        Some(())
    }

    fn push_framing(&self, end: bool, out: &mut Vec<u8>) {
        match self.summary.length {
            Some(length) => {
                out.extend_from_slice(b"content-length: ");
                encode::push_decimal(out, length);
                out.extend_from_slice(b"\r\n");
            }
            None if !end => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            None => {}
        }
    }
}

/// The fields of a head that this process wrote: its start line, then name and value of each.
pub fn fields_of(head: &[u8]) -> (&[u8], impl Iterator<Item = (&[u8], &[u8])>) {
    let mut rest = head;
    let start = next_line(&mut rest).unwrap_or_default();
    (start, field_lines(rest))
}

/// Name and value of each of these field lines, up to an empty one.
pub fn field_lines(lines: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        let line = next_line(&mut rest).filter(|line| !line.is_empty())?;
        let colon = memchr::memchr(b':', line)?;
        let value = line.get(colon + 1..)?;
        Some((line.get(..colon)?, value.strip_prefix(b" ").unwrap_or(value)))
    })
}

fn next_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = memchr::memchr(b'\n', rest)?;
    let (line, behind) = rest.split_at_checked(end)?;
    *rest = behind.get(1..)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// Whether a field of HTTP/1.1 has no place in HTTP/2 (RFC 9113 section 8.2.2).
#[must_use]
pub fn is_of_connection(name_lowercase: &[u8]) -> bool {
    matches!(
        name_lowercase,
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade"
    )
}

const fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// What bytes may stand where.
const NAME_BYTE: u8 = 1;
const VALUE_BYTE: u8 = 2;

#[allow(clippy::cast_possible_truncation)] // below 256
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        if is_tchar(byte) && !byte.is_ascii_uppercase() {
            classes[at] |= NAME_BYTE;
        }
        if byte == b'\t' || (byte >= 0x20 && byte != 0x7f) {
            classes[at] |= VALUE_BYTE;
        }
        at += 1;
    }
    classes
};

fn is_token(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|&byte| is_tchar(byte))
}

/// A token without upper case (RFC 9113 section 8.2.1).
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| CLASSES[usize::from(byte)] & NAME_BYTE != 0)
}

/// No control characters, and no blanks at either end (RFC 9113 section 8.2.1).
fn is_value(value: &[u8]) -> bool {
    value.iter().all(|&byte| CLASSES[usize::from(byte)] & VALUE_BYTE != 0)
        && !matches!(value.first(), Some(b' ' | b'\t'))
        && !matches!(value.last(), Some(b' ' | b'\t'))
}

/// One host, without a list, user information or blanks; `http1::validate_host` looks closer.
fn is_authority(value: &[u8]) -> bool {
    value.iter().all(|&byte| (0x21..0x7f).contains(&byte) && byte != b',' && byte != b'@')
}

fn status(value: &[u8]) -> Option<u16> {
    match *value {
        [a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
        }
        _ => None,
    }
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests;

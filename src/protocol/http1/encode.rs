//! Writing messages, without allocation beyond what the output needs.

/// Ends a chunked body that has no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Writes `len` as a chunk's first line (RFC 9112 section 7.1). The data and a CRLF have to follow;
/// `len` must not be 0, which would end the body.
pub fn push_chunk_size(out: &mut Vec<u8>, len: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0_u8; 2 * size_of::<usize>()];
    let mut rest = len;
    let mut count = 0;
    for slot in digits.iter_mut().rev() {
        *slot = DIGITS[rest % 16];
        rest /= 16;
        count += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[digits.len() - count..]);
    out.extend_from_slice(b"\r\n");
}

/// Writes `value` in decimal digits.
pub fn push_decimal(out: &mut Vec<u8>, value: u64) {
    const DIGITS: &[u8; 10] = b"0123456789";
    let mut digits = [0_u8; 20];
    let mut rest = value;
    let mut count = 0;
    for slot in digits.iter_mut().rev() {
        *slot = DIGITS[(rest % 10) as usize];
        rest /= 10;
        count += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[digits.len() - count..]);
}

/// Writes one field line. Name and value must be valid: parsed from a message, or checked with the
/// configuration.
#[inline(always)] // names are nearly always constants, which are copied without a call then
pub fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes an HTTP/1.1 status line; `status` has three digits.
pub fn push_status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    let digit = |place: u16| b"0123456789"[usize::from(status / place % 10)];
    let [hundreds, tens, ones] = [digit(100), digit(10), digit(1)];
    out.extend_from_slice(&[
        b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', hundreds, tens, ones, b' ',
    ]);
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase registered for a status; empty for those that have none.
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines() {
        let mut out = Vec::new();
        push_status_line(&mut out, 502, reason(502).as_bytes());
        push_field(&mut out, b"Server", b"ringgate");
        assert_eq!(out, b"HTTP/1.1 502 Bad Gateway\r\nServer: ringgate\r\n");
        assert_eq!(reason(299), "");
    }

    #[test]
    fn extremes() {
        let mut out = Vec::new();
        push_decimal(&mut out, 0);
        push_decimal(&mut out, u64::MAX);
        assert_eq!(out, b"018446744073709551615");
        out.clear();
        push_chunk_size(&mut out, usize::MAX);
        assert_eq!(out, format!("{:x}\r\n", usize::MAX).into_bytes());
    }

    proptest! {
        #[test]
        fn numbers(value in any::<u64>(), len in any::<usize>(), shift in 0_u32..64) {
            let (value, len) = (value >> shift, len >> shift);
            let mut out = Vec::new();
            push_decimal(&mut out, value);
            prop_assert_eq!(&out, &value.to_string().into_bytes());
            out.clear();
            push_chunk_size(&mut out, len);
            prop_assert_eq!(out, format!("{len:x}\r\n").into_bytes());
        }
    }
}

//! One line of the access log.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::l7::config::AccessLogFormat;
use crate::l7::time::{common_log_date, rfc3339_ms};
use crate::protocol::trace_context::{SPAN_LEN, TRACE_LEN};

/// What is known of a request when its response has ended.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// When the response ended, in milliseconds since 1970 (as nginx's `$time_local`).
    pub unix_ms: u64,
    /// The client's address.
    pub client: IpAddr,
    /// The request line as it came; all three are empty when none was understood.
    pub method: &'a [u8],
    /// See [`Entry::method`].
    pub uri: &'a [u8],
    /// See [`Entry::method`]; e.g. `HTTP/1.1`.
    pub protocol: &'a [u8],
    /// `Host` as it came.
    pub host: Option<&'a [u8]>,
    /// Status sent to the client.
    pub status: u16,
    /// Bytes sent to the client, head and framing included.
    pub bytes_sent: u64,
    /// Bytes of body sent to the client.
    pub body_bytes_sent: u64,
    /// `Referer`, as it came.
    pub referer: Option<&'a [u8]>,
    /// `User-Agent`, as it came.
    pub user_agent: Option<&'a [u8]>,
    /// `$request_id`.
    pub request_id: &'a [u8],
    /// From the first byte of the request to the last of the response, in microseconds.
    pub request_time_us: u64,
    /// The server that was tried last.
    pub upstream: Option<SocketAddr>,
    /// Time spent with servers, in microseconds.
    pub upstream_time_us: Option<u64>,
    /// Status of the last server's response.
    pub upstream_status: Option<u16>,
    /// Attempts made on servers.
    pub tries: u32,
    /// What was agreed on in the TLS handshake; `None` in the clear.
    pub tls: Option<Tls<'a>>,
    /// The trace the request belongs to.
    pub trace: Option<[u8; TRACE_LEN]>,
    /// Our span in it.
    pub span: Option<[u8; SPAN_LEN]>,
    /// Name of the listener.
    pub listener: &'a str,
    /// Why the request failed, in a few words.
    pub error: Option<&'a str>,
}

/// TLS as the log shows it, in nginx's words.
#[derive(Debug, Clone, Copy)]
pub struct Tls<'a> {
    /// `$ssl_protocol`
    pub protocol: &'a str,
    /// `$ssl_cipher`
    pub cipher: &'a str,
    /// `$ssl_server_name`
    pub server_name: &'a str,
    /// `$ssl_session_reused`
    pub resumed: bool,
}

/// Appends the entry as a line, its end included.
pub fn append(out: &mut Vec<u8>, format: AccessLogFormat, entry: &Entry<'_>) {
    match format {
        AccessLogFormat::Combined => append_combined(out, entry),
        AccessLogFormat::Json => append_json(out, entry),
    }
}

/// nginx's `combined`; `$remote_user` is always `-`.
fn append_combined(out: &mut Vec<u8>, entry: &Entry<'_>) {
    append_display(out, entry.client);
    out.extend_from_slice(b" - - [");
    out.extend_from_slice(&common_log_date(entry.unix_ms));
    out.extend_from_slice(b"] \"");
    append_request_line(out, entry);
    out.extend_from_slice(b"\" ");
    append_number(out, u64::from(entry.status));
    out.push(b' ');
    append_number(out, entry.body_bytes_sent);
    for value in [entry.referer, entry.user_agent] {
        out.extend_from_slice(b" \"");
        append_log_escaped(out, value.unwrap_or(b"-"));
        out.push(b'"');
    }
    out.push(b'\n');
}

fn append_request_line(out: &mut Vec<u8>, entry: &Entry<'_>) {
    let words = [entry.method, entry.uri, entry.protocol];
    let mut given = words.into_iter().filter(|word| !word.is_empty());
    append_log_escaped(out, given.next().unwrap_or(b"-"));
    for word in given {
        out.push(b' ');
        append_log_escaped(out, word);
    }
}

/// nginx's default `escape`: what is not printable ASCII, `"` and `\` become `\xHH`.
fn append_log_escaped(out: &mut Vec<u8>, value: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let needs_escape = |byte: u8| !matches!(byte, b' '..=b'~') || byte == b'"' || byte == b'\\';
    append_escaping(out, value, needs_escape, |out, byte| {
        out.extend_from_slice(&[b'\\', b'x', nibble(DIGITS, byte >> 4), nibble(DIGITS, byte)]);
    });
}

/// One object; times are milliseconds with a fraction, and what is not known is null.
fn append_json(out: &mut Vec<u8>, entry: &Entry<'_>) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(&rfc3339_ms(entry.unix_ms));
    out.extend_from_slice(b"\",\"client\":\"");
    append_display(out, entry.client);
    out.push(b'"');
    json_text(out, "method", Some(entry.method));
    json_text(out, "host", entry.host);
    json_text(out, "uri", Some(entry.uri));
    json_text(out, "protocol", Some(entry.protocol));
    json_number(out, "status", Some(u64::from(entry.status)));
    json_number(out, "bytes_sent", Some(entry.bytes_sent));
    json_text(out, "referer", entry.referer);
    json_text(out, "user_agent", entry.user_agent);
    json_text(out, "request_id", Some(entry.request_id));
    json_milliseconds(out, "request_time_ms", Some(entry.request_time_us));
    json_key(out, "upstream");
    match entry.upstream {
        Some(address) => {
            out.push(b'"');
            append_display(out, address);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
    json_milliseconds(out, "upstream_time_ms", entry.upstream_time_us);
    json_number(out, "upstream_status", entry.upstream_status.map(u64::from));
    json_number(out, "tries", Some(u64::from(entry.tries)));
    let tls = entry.tls.as_ref();
    json_text(out, "ssl_protocol", tls.map(|tls| tls.protocol.as_bytes()));
    json_text(out, "ssl_cipher", tls.map(|tls| tls.cipher.as_bytes()));
    json_text(out, "ssl_server_name", tls.map(|tls| tls.server_name.as_bytes()));
    json_text(out, "ssl_session_reused", tls.map(|tls| if tls.resumed { &b"r"[..] } else { b"." }));
    json_text(out, "trace_id", entry.trace.as_ref().map(<[u8; TRACE_LEN]>::as_slice));
    json_text(out, "span_id", entry.span.as_ref().map(<[u8; SPAN_LEN]>::as_slice));
    json_text(out, "listener", Some(entry.listener.as_bytes()));
    json_text(out, "error", entry.error.map(str::as_bytes));
    out.extend_from_slice(b"}\n");
}

/// Keys are constants that need no escape.
fn json_key(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn json_text(out: &mut Vec<u8>, key: &str, value: Option<&[u8]>) {
    json_key(out, key);
    let Some(value) = value else { return out.extend_from_slice(b"null") };
    out.push(b'"');
    for chunk in value.utf8_chunks() {
        append_json_escaped(out, chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

/// Escapes what RFC 8259 section 7 demands, and DEL, which some terminals act on.
fn append_json_escaped(out: &mut Vec<u8>, value: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let needs_escape = |byte: u8| byte.is_ascii_control() || byte == b'"' || byte == b'\\';
    append_escaping(out, value, needs_escape, |out, byte| {
        if byte == b'"' || byte == b'\\' {
            out.extend_from_slice(&[b'\\', byte]);
        } else {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[nibble(DIGITS, byte >> 4), nibble(DIGITS, byte)]);
        }
    });
}

fn json_number(out: &mut Vec<u8>, key: &str, value: Option<u64>) {
    json_key(out, key);
    match value {
        Some(value) => append_number(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

fn json_milliseconds(out: &mut Vec<u8>, key: &str, microseconds: Option<u64>) {
    json_number(out, key, microseconds.map(|value| value / 1000));
    if let Some(fraction) = microseconds.map(|value| value % 1000) {
        out.push(b'.');
        for divisor in [100, 10, 1] {
            append_number(out, fraction / divisor % 10);
        }
    }
}

/// Copies `value` in runs, with `escape` for the bytes that need it.
fn append_escaping(
    out: &mut Vec<u8>,
    mut value: &[u8],
    needs_escape: impl Fn(u8) -> bool,
    escape: impl Fn(&mut Vec<u8>, u8),
) {
    while let Some(run) = value.iter().position(|byte| needs_escape(*byte)) {
        let (plain, rest) = value.split_at(run);
        out.extend_from_slice(plain);
        let Some((byte, behind)) = rest.split_first() else { return };
        escape(out, *byte);
        value = behind;
    }
    out.extend_from_slice(value);
}

fn append_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    for place in digits.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        start -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
}

fn append_display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // Writing into a vector cannot fail.
    let _ = write!(out, "{value}");
}

fn nibble(digits: &[u8; 16], byte: u8) -> u8 {
    digits.get(usize::from(byte & 0xf)).copied().unwrap_or(b'0')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            unix_ms: 784_111_777_042,
            client: "192.0.2.1".parse().unwrap(),
            method: b"GET",
            uri: b"/a?b=c",
            protocol: b"HTTP/1.1",
            host: Some(b"shop.example"),
            status: 200,
            bytes_sent: 1234,
            body_bytes_sent: 1000,
            referer: Some(b"http://a/"),
            user_agent: Some(b"curl/8.0"),
            request_id: b"0af",
            request_time_us: 12_034,
            upstream: Some("[fd00::1]:8080".parse().unwrap()),
            upstream_time_us: Some(999),
            upstream_status: Some(201),
            tries: 2,
            tls: Some(Tls {
                protocol: "TLSv1.3",
                cipher: "TLS_AES_128_GCM_SHA256",
                server_name: "shop.example",
                resumed: true,
            }),
            trace: Some(*b"4bf92f3577b34da6a3ce929d0e0e4736"),
            span: None,
            listener: "web",
            error: None,
        }
    }

    fn line(format: AccessLogFormat, entry: &Entry<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        append(&mut out, format, entry);
        out
    }

    fn combined(entry: &Entry<'_>) -> String {
        String::from_utf8(line(AccessLogFormat::Combined, entry)).unwrap()
    }

    fn json(entry: &Entry<'_>) -> Value {
        serde_json::from_slice(&line(AccessLogFormat::Json, entry)).unwrap()
    }

    #[test]
    fn combined_is_what_nginx_writes() {
        assert_eq!(
            combined(&entry()),
            "192.0.2.1 - - [06/Nov/1994:08:49:37 +0000] \"GET /a?b=c HTTP/1.1\" 200 1000 \
             \"http://a/\" \"curl/8.0\"\n"
        );
        let bare = Entry {
            client: "2001:db8::1".parse().unwrap(),
            method: b"",
            uri: b"",
            protocol: b"",
            status: 400,
            body_bytes_sent: 0,
            referer: None,
            user_agent: Some(b""),
            ..entry()
        };
        assert_eq!(
            combined(&bare),
            "2001:db8::1 - - [06/Nov/1994:08:49:37 +0000] \"-\" 400 0 \"-\" \"\"\n"
        );
    }

    #[test]
    fn combined_escapes_like_nginx() {
        for (value, expected) in [
            (&b"a\"b\\c"[..], r"a\x22b\x5Cc"),
            (b"\r\n\0\x1b[1m", r"\x0D\x0A\x00\x1B[1m"),
            (b"\x7f\x80\xff\xc3\xa9", r"\x7F\x80\xFF\xC3\xA9"),
            (b" ~!#", " ~!#"),
        ] {
            let text = combined(&Entry { user_agent: Some(value), ..entry() });
            assert!(text.ends_with(&format!(" \"{expected}\"\n")), "{text}");
            let text = combined(&Entry { method: b"", protocol: b"", uri: value, ..entry() });
            assert!(text.contains(&format!("] \"{expected}\" 200")), "{text}");
        }
    }

    #[test]
    fn json_has_every_field() {
        let expected = json!({
            "time": "1994-11-06T08:49:37.042Z", "client": "192.0.2.1", "method": "GET",
            "host": "shop.example", "uri": "/a?b=c", "protocol": "HTTP/1.1", "status": 200,
            "bytes_sent": 1234, "referer": "http://a/", "user_agent": "curl/8.0",
            "request_id": "0af", "request_time_ms": 12.034, "upstream": "[fd00::1]:8080",
            "upstream_time_ms": 0.999, "upstream_status": 201, "tries": 2,
            "ssl_protocol": "TLSv1.3", "ssl_cipher": "TLS_AES_128_GCM_SHA256",
            "ssl_server_name": "shop.example", "ssl_session_reused": "r",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": null, "listener": "web",
            "error": null,
        });
        assert_eq!(json(&entry()), expected);
    }

    #[test]
    fn json_has_null_for_the_unknown() {
        let bare = json(&Entry {
            host: None,
            referer: None,
            user_agent: None,
            upstream: None,
            upstream_time_us: None,
            upstream_status: None,
            error: Some("client closed"),
            ..entry()
        });
        for key in
            ["host", "referer", "user_agent", "upstream", "upstream_time_ms", "upstream_status"]
        {
            assert_eq!(bare.get(key), Some(&Value::Null), "{key}");
        }
        assert_eq!(bare["error"], "client closed");
    }

    #[test]
    fn json_escapes_and_replaces() {
        for (value, expected, written) in [
            (&b"a\"b\\c"[..], "a\"b\\c", r#""a\"b\\c""#),
            (b"\n\x1b\x7f", "\n\x1b\x7f", r#""\u000a\u001b\u007f""#),
            (b"\xc3\xa9/\xff\xfe!\xe2\x82", "é/\u{fffd}\u{fffd}!\u{fffd}", "\"é/"),
        ] {
            let entry = Entry { user_agent: Some(value), ..entry() };
            assert_eq!(json(&entry)["user_agent"], expected);
            let text = String::from_utf8(line(AccessLogFormat::Json, &entry)).unwrap();
            assert!(text.contains(written), "{text}");
        }
    }

    #[test]
    fn numbers_of_every_length() {
        for number in (0..20).map(|power| 10_u64.pow(power)).chain([0, 9, u64::MAX]) {
            let mut out = Vec::new();
            append_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    proptest! {
        #[test]
        fn whatever_a_peer_sends_stays_one_line(
            value in proptest::collection::vec(any::<u8>(), 0..40),
            times in any::<[u64; 3]>(),
        ) {
            let entry = Entry {
                method: &value, uri: &value, host: Some(&value), referer: Some(&value),
                user_agent: Some(&value), request_id: &value, unix_ms: times[0],
                request_time_us: times[1], bytes_sent: times[2], ..entry()
            };
            prop_assert_eq!(&json(&entry)["user_agent"], &*String::from_utf8_lossy(&value));
            let text = combined(&entry);
            prop_assert_eq!(text.matches('"').count(), 6);
            for format in [AccessLogFormat::Combined, AccessLogFormat::Json] {
                let line = line(format, &entry);
                prop_assert_eq!(line.iter().position(|byte| *byte < b' '), Some(line.len() - 1));
            }
        }
    }
}

//! Where requests go, and their bytes.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use bytes::Bytes;
use ringgate::protocol::http1::Method;
use serde::{Deserialize, Serialize};

use crate::args::BODY_MAX;

/// Bodies up to this size are sent in one piece with the head.
const JOINED_MAX: u64 = 16 * 1024;
/// Requests a mix may have.
const ENTRIES_MAX: usize = 10_000;
/// Fields that the generator sets itself.
const OWN_FIELDS: [&str; 3] = ["connection", "content-length", "transfer-encoding"];

/// One kind of request and how often it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) weight: u32,
    pub(crate) method: String,
    pub(crate) path: String,
    /// Bytes of body.
    pub(crate) body: u64,
}

/// A server, taken from a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Host and port, an IPv6 address in brackets: the `Host` field.
    pub(crate) authority: String,
    /// `https`
    pub(crate) tls: bool,
    pub(crate) host: String,
    port: u16,
    /// Path and query.
    pub(crate) path: String,
}

impl Target {
    /// Reads `http://host[:port][/path]` or the same with `https`.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{url}`: {why}, as in http://127.0.0.1:8080/path");
        let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(wrong("write a URL with http:// or https://")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let after_address = authority.rfind(']').map_or(0, |at| at + 1);
        let colon = authority[after_address..].rfind(':').map(|at| after_address + at);
        let (host, port) = match colon {
            Some(at) => (&authority[..at], authority[at + 1..].parse().ok()),
            None => (authority, Some(if tls { 443 } else { 80 })),
        };
        let port = port.filter(|&port| port > 0).ok_or_else(|| wrong("write a port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || authority.contains('@') || !is_visible(authority) {
            return Err(wrong("write a host"));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        check_path(&path)?;
        Ok(Self { authority: authority.to_owned(), tls, host, port, path })
    }

    /// The first address of the host.
    pub(crate) fn resolve(&self) -> Result<SocketAddr, String> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        found
            .map_err(|error| format!("cannot resolve {}: {error}", self.host))?
            .next()
            .ok_or_else(|| format!("{} has no address", self.host))
    }
}

/// Reads a mix: a line each `weight METHOD PATH [body bytes]`; empty lines and `#` comments are
/// skipped.
pub(crate) fn parse_mix(text: &str) -> Result<Vec<Entry>, String> {
    let mut mix = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let form = || "write `weight METHOD PATH [body bytes]`".to_owned();
        let entry = parse_entry(&words).ok_or_else(form);
        let checked = entry.and_then(|entry| entry.check().map(|()| entry));
        mix.push(checked.map_err(|why| format!("line {}: {why}", number + 1))?);
    }
    check_mix(&mix).map(|()| mix)
}

fn parse_entry(words: &[&str]) -> Option<Entry> {
    let (weight, method, path, body) = match *words {
        [weight, method, path] => (weight, method, path, "0"),
        [weight, method, path, body] => (weight, method, path, body),
        _ => return None,
    };
    Some(Entry {
        weight: weight.parse().ok()?,
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.parse().ok()?,
    })
}

/// What must hold of a mix wherever it comes from.
pub(crate) fn check_mix(mix: &[Entry]) -> Result<(), String> {
    if mix.is_empty() || mix.len() > ENTRIES_MAX {
        return Err(format!("a mix has 1 to {ENTRIES_MAX} requests"));
    }
    mix.iter().try_for_each(Entry::check)
}

impl Entry {
    fn check(&self) -> Result<(), String> {
        if self.weight == 0 {
            return Err("a weight is at least 1".to_owned());
        }
        if !is_token(&self.method) || self.method == "CONNECT" {
            return Err(format!("`{}` is no method to measure with", self.method));
        }
        if self.body > BODY_MAX {
            return Err(format!("a body has at most {BODY_MAX} bytes"));
        }
        check_path(&self.path)
    }
}

fn check_path(path: &str) -> Result<(), String> {
    if path.starts_with('/') && is_visible(path) && !path.contains('#') {
        return Ok(());
    }
    Err(format!("`{path}` is no path: write it percent-encoded, from its `/` on"))
}

/// What must hold of a field that the user adds.
pub(crate) fn check_header(name: &str, value: &str) -> Result<(), String> {
    if !is_token(name) || value.bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
        return Err(format!("`{name}: {value}` is no header field"));
    }
    if OWN_FIELDS.iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return Err(format!("`{name}` is set by the generator itself"));
    }
    Ok(())
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// A request ready to be sent.
#[derive(Debug)]
pub(crate) struct Wire {
    /// Its head, as HTTP/1.1 has it, with its body when that is small and not to be framed.
    pub(crate) head: Bytes,
    /// The rest of the body.
    pub(crate) body: Bytes,
    /// Which decides how its response is delimited.
    pub(crate) method: Method,
}

/// The bytes of each request of a mix. Large bodies share their memory.
pub(crate) fn wires(
    mix: &[Entry],
    authority: &str,
    headers: &[(String, String)],
    close: bool,
    http2: bool,
) -> Arc<[Wire]> {
    let joined_max = if http2 { 0 } else { JOINED_MAX };
    let longest = mix.iter().map(|entry| entry.body).filter(|&body| body > joined_max).max();
    let length = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let filler = Bytes::from(vec![b'x'; length(longest.unwrap_or(0))]);
    let has_host = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
    let wire = |entry: &Entry| {
        let mut head = format!("{} {} HTTP/1.1\r\n", entry.method, entry.path);
        if !has_host {
            head += &format!("Host: {authority}\r\n");
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if entry.body > 0 || matches!(entry.method.as_str(), "POST" | "PUT" | "PATCH") {
            head += &format!("Content-Length: {}\r\n", entry.body);
        }
        head += if close && !http2 { "Connection: close\r\n\r\n" } else { "\r\n" };
        let mut body = Bytes::new();
        if entry.body > joined_max {
            body = filler.slice(..length(entry.body));
        } else {
            head.extend(std::iter::repeat_n('x', length(entry.body)));
        }
        Wire { head: head.into(), body, method: Method::of(entry.method.as_bytes()) }
    };
    mix.iter().map(wire).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let table = [
            ("http://a", "a", 80, "/"),
            ("http://a:8080/x?y=1", "a", 8080, "/x?y=1"),
            ("http://[::1]:81/", "::1", 81, "/"),
            ("http://[::1]?q", "::1", 80, "/?q"),
            ("https://a", "a", 443, "/"),
            ("https://a:1/", "a", 1, "/"),
        ];
        for (url, host, port, path) in table {
            let target = Target::parse(url).unwrap();
            assert_eq!(
                (target.host.as_str(), target.port, target.path.as_str()),
                (host, port, path)
            );
        }
        assert!(Target::parse("https://a").unwrap().tls && !Target::parse("http://a").unwrap().tls);
        for url in [
            "a:80",
            "ftp://a/",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:99999",
            "http://u@a/",
            "http://a/ b",
            "http://a/#x",
            "http://a b/",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn mixes() {
        let mix = parse_mix("# comment\n\n 9 GET /\n1 POST /up?x 2048\n").unwrap();
        let entry = |weight, method: &str, path: &str, body| Entry {
            weight,
            method: method.into(),
            path: path.into(),
            body,
        };
        assert_eq!(mix, [entry(9, "GET", "/", 0), entry(1, "POST", "/up?x", 2048)]);
        for (text, says) in [
            ("", "1 to"),
            ("1 GET", "line 1: write"),
            ("1 GET / 2 3", "line 1: write"),
            ("1 GET /\nx GET /", "line 2: write"),
            ("0 GET /", "line 1: a weight"),
            ("1 G@T /", "line 1: `G@T`"),
            ("1 CONNECT /", "line 1: `CONNECT`"),
            ("1 GET x", "line 1: `x` is no path"),
            ("1 PUT / 999999999999", "line 1: a body"),
        ] {
            let error = parse_mix(text).unwrap_err();
            assert!(error.starts_with(says) || error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn requests_are_written_out() {
        let mix = parse_mix("1 GET /a\n1 POST /b 3\n1 PUT /c 20000\n1 POST /d").unwrap();
        let headers = [("X-Y".to_owned(), "z".to_owned())];
        let wires = wires(&mix, "h:1", &headers, false, false);
        assert_eq!(wires[0].head, "GET /a HTTP/1.1\r\nHost: h:1\r\nX-Y: z\r\n\r\n");
        assert!(wires[1].head.ends_with(b"Content-Length: 3\r\n\r\nxxx"));
        assert!(wires[2].head.ends_with(b"Content-Length: 20000\r\n\r\n"));
        assert_eq!(wires.iter().map(|wire| wire.body.len()).collect::<Vec<_>>(), [0, 0, 20_000, 0]);
        assert!(wires[3].head.ends_with(b"Content-Length: 0\r\n\r\n"));
        assert_eq!(wires[1].method, Method::Post);
        let host = [("host".to_owned(), "other".to_owned())];
        let closing = super::wires(&mix[..1], "h:1", &host, true, false);
        assert_eq!(closing[0].head, "GET /a HTTP/1.1\r\nhost: other\r\nConnection: close\r\n\r\n");
        let framed = super::wires(&mix, "h:1", &host, true, true);
        assert_eq!(framed[0].head, "GET /a HTTP/1.1\r\nhost: other\r\n\r\n");
        assert_eq!(framed[1].body, "xxx");
    }

    #[test]
    fn headers_that_would_break_the_request_are_refused() {
        assert!(check_header("X-A", "b c\t").is_ok());
        for (name, value) in [
            ("X A", "b"),
            ("", "b"),
            ("X", "a\r\nb"),
            ("content-Length", "3"),
            ("Connection", "close"),
        ] {
            assert!(check_header(name, value).is_err(), "{name}: {value}");
        }
    }
}

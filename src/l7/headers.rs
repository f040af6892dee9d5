//! Heads on their way out: what is forwarded, replaced and added.

use crate::l7::config::{HeaderEdits, Rewrite, Route};
use crate::l7::exchange::{Addresses, Answer, Context, Exchange};
use crate::l7::forwarded;
use crate::l7::output::Coding;
use crate::l7::template::Template;
use crate::protocol::http1::{Copied, Field, FieldId, Framing, ResponseHead, Version, encode};

/// Writes the request head that goes upstream.
pub fn write_request(
    out: &mut Vec<u8>,
    exchange: &Exchange,
    addresses: &Addresses,
    route: &Route,
    underscores: bool,
) {
    let context = Context { exchange, addresses };
    let edits = &route.request_headers;
    // Most of a head goes on as it is, in one piece.
    let mut copied = Copied::new(&exchange.head);
    match exchange.plain_line().filter(|_| route.rewrite.is_none()) {
        Some(line) => copied.push_stretch(out, line),
        None => push_request_line(out, exchange, route.rewrite.as_ref()),
    }
    let host_stays = exchange.has_own_host() && !replaces(edits, b"host");
    if !host_stays && !replaces(edits, b"host") {
        copied.finish(out);
        encode::push_field(out, b"Host", exchange.http_host());
    }
    let mut length_stays = false;
    for field in &exchange.request.fields {
        let stays = match field.id {
            FieldId::Host => host_stays,
            FieldId::ContentLength => {
                length_stays = is_length(exchange.request.framing, field.value.of(&exchange.head));
                length_stays
            }
            _ => is_forwarded(exchange, field, underscores, edits),
        };
        if stays {
            copied.push(out, field);
        }
    }
    copied.finish(out);
    push_identity(out, exchange, addresses, edits);
    push_edits(out, edits, &context);
    push_request_framing(out, exchange, length_stays);
    out.extend_from_slice(b"\r\n");
}

/// Whether the value of `Content-Length`, which has been parsed, is what would be written for this body.
fn is_length(framing: Framing, value: &[u8]) -> bool {
    matches!(framing, Framing::Length(_)) && (value.first() != Some(&b'0') || value.len() == 1)
}

fn push_request_line(out: &mut Vec<u8>, exchange: &Exchange, rewrite: Option<&Rewrite>) {
    out.extend_from_slice(exchange.request.method_span.of(&exchange.head));
    out.push(b' ');
    push_target(out, exchange, rewrite);
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

fn push_target(out: &mut Vec<u8>, exchange: &Exchange, rewrite: Option<&Rewrite>) {
    let Some(rewrite) = rewrite.filter(|_| !exchange.is_asterisk()) else {
        out.extend_from_slice(exchange.path_and_query());
        return;
    };
    let path = exchange.path();
    match rewrite {
        Rewrite::StripPrefix(prefix) => {
            let rest = path.strip_prefix(prefix.as_bytes()).unwrap_or(path);
            if rest.first() != Some(&b'/') {
                out.push(b'/');
            }
            out.extend_from_slice(rest);
        }
        Rewrite::Regex { regex, to } => {
            // A normalised path is ASCII.
            let path = std::str::from_utf8(path).unwrap_or("/");
            let mut groups = regex.create_captures();
            regex.captures(path, &mut groups);
            match groups.get_match() {
                Some(found) => {
                    let mut replaced = String::new();
                    groups.interpolate_string_into(path, to, &mut replaced);
                    out.extend_from_slice(&path.as_bytes()[..found.start()]);
                    out.extend_from_slice(replaced.as_bytes());
                    out.extend_from_slice(&path.as_bytes()[found.end()..]);
                }
                None => out.extend_from_slice(path.as_bytes()),
            }
        }
    }
    if let Some(query) = exchange.query() {
        out.push(b'?');
        out.extend_from_slice(query);
    }
}

const HSTS: &[u8] = b"Strict-Transport-Security";

/// The listener's policy on coming back in the clear, unless the route has its own.
fn push_hsts(out: &mut Vec<u8>, exchange: &Exchange, edits: &HeaderEdits) {
    if let Some(hsts) = &exchange.hsts
        && (edits.is_empty() || !(removes(edits, HSTS) || replaces(edits, HSTS)))
    {
        encode::push_field(out, HSTS, hsts.as_bytes());
    }
}

/// Whether a received field goes upstream as it is.
fn is_forwarded(
    exchange: &Exchange,
    field: &Field,
    underscores: bool,
    edits: &HeaderEdits,
) -> bool {
    let ours = matches!(
        field.id,
        FieldId::Expect
            | FieldId::XForwardedFor
            | FieldId::XForwardedProto
            | FieldId::XForwardedHost
            | FieldId::XRealIp
            | FieldId::XRequestId
    );
    if ours || field.id.is_hop_by_hop() {
        return false;
    }
    let name = field.name.of(&exchange.head);
    if !underscores && field.has_underscore() {
        return false;
    }
    if exchange.request.connection.others && exchange.request.connection_lists(&exchange.head, name)
    {
        return false;
    }
    // A forged `Forwarded` would contradict what we say in X-Forwarded-For.
    if field.id == FieldId::Forwarded && !exchange.identity().trusted_peer {
        return false;
    }
    if let Some(trace) = &exchange.trace
        && (name.eq_ignore_ascii_case(b"traceparent")
            || !trace.continued && name.eq_ignore_ascii_case(b"tracestate"))
    {
        return false;
    }
    edits.is_empty() || !(removes(edits, name) || replaces(edits, name))
}

/// Who the client is, in the fields nginx users set by hand.
fn push_identity(
    out: &mut Vec<u8>,
    exchange: &Exchange,
    addresses: &Addresses,
    edits: &HeaderEdits,
) {
    let identity = exchange.identity();
    let claims = exchange.claims();
    let wanted = |name: &[u8]| edits.is_empty() || !(removes(edits, name) || replaces(edits, name));
    if wanted(b"x-real-ip") {
        out.extend_from_slice(b"X-Real-IP: ");
        forwarded::write_ip(out, identity.client);
        out.extend_from_slice(b"\r\n");
    }
    if wanted(b"x-forwarded-for") {
        out.extend_from_slice(b"X-Forwarded-For: ");
        let lines = exchange.values(FieldId::XForwardedFor);
        forwarded::write_forwarded_for(out, &identity, addresses.peer.ip(), lines);
        out.extend_from_slice(b"\r\n");
    }
    if wanted(b"x-forwarded-proto") {
        encode::push_field(
            out,
            b"X-Forwarded-Proto",
            claims.proto.unwrap_or_else(|| exchange.scheme()),
        );
    }
    if wanted(b"x-forwarded-host") {
        encode::push_field(
            out,
            b"X-Forwarded-Host",
            claims.host.unwrap_or_else(|| exchange.http_host()),
        );
    }
    if wanted(b"x-request-id") {
        match claims.request_id {
            Some(id) => encode::push_field(out, b"X-Request-Id", id),
            None => encode::push_field(out, b"X-Request-Id", exchange.own_id()),
        }
    }
    if let Some(trace) = exchange.trace.as_ref().filter(|_| wanted(b"traceparent")) {
        encode::push_field(out, b"traceparent", &trace.own.value());
    }
}

fn push_request_framing(out: &mut Vec<u8>, exchange: &Exchange, length_stays: bool) {
    let request = &exchange.request;
    if request.upgrade_websocket {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    }
    match request.framing {
        Framing::Length(length) if !length_stays => push_length(out, length),
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::Length(_) | Framing::None | Framing::Close => {}
    }
    if request.expect_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
}

fn push_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    encode::push_decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

fn push_edits(out: &mut Vec<u8>, edits: &HeaderEdits, context: &Context<'_>) {
    for (name, value) in edits.set.iter().chain(&edits.add) {
        push_template(out, name, value, context);
    }
}

fn push_template(out: &mut Vec<u8>, name: &str, value: &Template, context: &Context<'_>) {
    let start = out.len();
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    let value_start = out.len();
    value.render(context, out);
    if out.len() == value_start {
        out.truncate(start); // as in nginx, an empty value means no field
        return;
    }
    out.extend_from_slice(b"\r\n");
}

fn removes(edits: &HeaderEdits, name: &[u8]) -> bool {
    edits.remove.iter().any(|removed| removed.as_bytes().eq_ignore_ascii_case(name))
}

fn replaces(edits: &HeaderEdits, name: &[u8]) -> bool {
    edits.set.iter().any(|(set, _)| set.as_bytes().eq_ignore_ascii_case(name))
}

/// How the response's body reaches the client.
#[must_use]
pub fn response_coding(framing: Framing, client: Version) -> Coding {
    match framing {
        Framing::Chunked | Framing::Close if client == Version::Http11 => Coding::Chunked,
        _ => Coding::Identity,
    }
}

/// Whether the client can tell the end of the body without the connection being closed.
#[must_use]
pub fn is_delimited(framing: Framing, client: Version) -> bool {
    client == Version::Http11 || !matches!(framing, Framing::Chunked | Framing::Close)
}

/// Writes the head of an upstream's response as it goes to the client.
pub fn write_response(
    out: &mut Vec<u8>,
    (exchange, Answer { head: response, bytes }): (&Exchange, &Answer),
    addresses: &Addresses,
    edits: &HeaderEdits,
    keep: bool,
    date: impl FnOnce() -> [u8; 29],
) {
    let context = Context { exchange, addresses };
    let mut copied = Copied::new(bytes);
    match response.plain_line(bytes) {
        Some(line) => copied.push_stretch(out, line),
        None => encode::push_status_line(out, response.status, response.reason.of(bytes)),
    }
    let mut dated = response.is_interim() || response.upgrade;
    // The trailers that `Trailer` announces end with the chunks (RFC 9110 section 6.6.2).
    let dechunked = response.framing == Framing::Chunked
        && response_coding(response.framing, exchange.request.version) != Coding::Chunked;
    // What nearly no response has to be looked through for.
    let picky =
        response.connection.others || exchange.hsts.is_some() || dechunked || !edits.is_empty();
    let mut length_stays = false;
    for field in &response.fields {
        let is_dropped = || {
            let name = field.name.of(bytes);
            response.connection_lists(bytes, name)
                || (exchange.hsts.is_some() && name.eq_ignore_ascii_case(HSTS))
                || (dechunked && field.id == FieldId::Trailer)
                || removes(edits, name)
                || replaces(edits, name)
        };
        let stays = if field.id == FieldId::ContentLength {
            length_stays = is_length(response.framing, field.value.of(bytes));
            length_stays
        } else {
            !(field.id.is_hop_by_hop() || (picky && is_dropped()))
        };
        dated |= field.id == FieldId::Date;
        if stays {
            copied.push(out, field);
        }
    }
    copied.finish(out);
    if !dated {
        encode::push_field(out, b"Date", &date());
    }
    push_hsts(out, exchange, edits);
    if !edits.is_empty() {
        push_edits(out, edits, &context);
    }
    if !length_stays {
        push_response_framing(out, response, bytes, exchange.request.version);
    }
    push_connection(out, response.upgrade, keep, exchange.request.version);
    out.extend_from_slice(b"\r\n");
}

fn push_response_framing(
    out: &mut Vec<u8>,
    response: &ResponseHead,
    bytes: &[u8],
    client: Version,
) {
    match response.framing {
        Framing::Length(length) => push_length(out, length),
        Framing::Chunked | Framing::Close if client == Version::Http11 => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        // An answer to HEAD, or a 304, tells the length of what is not sent.
        Framing::None if response.status >= 200 && response.status != 204 => {
            let length = response.fields.iter().find(|field| field.id == FieldId::ContentLength);
            if let Some(field) = length {
                encode::push_field(out, b"Content-Length", field.value.of(bytes));
            }
        }
        _ => {}
    }
}

/// Tells the client whether the connection goes on.
pub fn push_connection(out: &mut Vec<u8>, upgrade: bool, keep: bool, client: Version) {
    if upgrade {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    } else if !keep {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if client == Version::Http10 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
}

/// Writes a response made here, without the fields that the route's edits remove or replace.
pub fn write_own(
    out: &mut Vec<u8>,
    status: u16,
    fields: &[(&[u8], &[u8])],
    body_len: usize,
    edits: &HeaderEdits,
    date: &[u8; 29],
) {
    encode::push_status_line(out, status, encode::reason(status).as_bytes());
    let dated: (&[u8], &[u8]) = (b"Date", date);
    for (name, value) in std::iter::once(&dated).chain(fields) {
        if edits.is_empty() || !(removes(edits, name) || replaces(edits, name)) {
            encode::push_field(out, name, value);
        }
    }
    if status >= 200 && status != 204 && status != 304 {
        push_length(out, body_len as u64);
    }
}

/// Appends the edits a route makes on a response made here.
pub fn push_own_edits(
    out: &mut Vec<u8>,
    edits: &HeaderEdits,
    exchange: &Exchange,
    addresses: &Addresses,
) {
    push_hsts(out, exchange, edits);
    if !edits.is_empty() {
        push_edits(out, edits, &Context { exchange, addresses });
    }
}

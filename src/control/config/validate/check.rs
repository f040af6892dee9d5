//! `check = { … }`: active health checks, of upstreams and of virtual servers.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{headers, tls, vrrp};
use crate::control::config::checks::Checked;
use crate::control::config::error::quoted;
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Leaf, Node, Scalar};
use crate::health::check::{Check, Exec, ExecUser, Http, Kind, Pattern, Tls, Udp};
use crate::l7::tls::config;
use crate::sys::process;

const WRITE_KIND: &str = "write one of `tcp = true`, `http = \"/path\"`, `https = \"/path\"`, `tls = true`, \
                          `udp = \"payload\"`, `exec = [\"/path/to/program\"]`";
const WRITE_STATUS: &str = r#"write a list like [200, "300-399"]"#;
const WRITE_PATH: &str = r#"write a path like "/healthz""#;
/// The longest command line of a check, in words, and the longest payload, in bytes.
const PAYLOAD_MAX: usize = 1400;
const COUNT_MAX: u32 = 1000;
const MEGABYTE: u64 = 1 << 20;

/// Whose words and defaults hold where the file says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// `[upstream.NAME]`: every 2 s, down after 3 failures, up after 2 successes.
    Upstream,
    /// `[[virtual_server]]`: keepalived's.
    VirtualServer,
}

/// Reads the table; `upstream` has the TLS settings that hold unless the check has its own.
pub(super) fn check(
    place: &Place<'_>,
    raw: &raw::Check,
    style: Style,
    upstream: Option<&config::Upstream>,
) -> Result<Checked, Reported> {
    let secured = secured(place, raw, upstream);
    let kind = kind(place, raw, &secured);
    let (interval, timeout) = times(place, raw, style);
    let (rise, fall) = counts(place, raw, style);
    let virtual_server = style == Style::VirtualServer;
    let retry_default = match &kind {
        Ok(Kind::Http(_)) => Duration::from_secs(3),
        _ => Duration::from_secs(1),
    };
    let asked = raw.delay_before_retry.is_some() || virtual_server;
    let retry_interval =
        asked.then(|| place.duration("delay_before_retry", &raw.delay_before_retry, retry_default));
    let warm_up = if virtual_server { interval } else { Duration::ZERO };
    let check = Check {
        interval,
        retry_interval,
        jitter: place.integer("jitter", &raw.jitter, 0..=100, if virtual_server { 0 } else { 10 }),
        timeout,
        rise,
        fall,
        warm_up: place.duration_or_zero("warmup", &raw.warmup, warm_up),
        start_down: place.boolean("alpha", &raw.alpha, false),
        port: port(place, "port", &raw.port),
        address: address(place, "address", &raw.address),
        kind: kind?,
    };
    if check.timeout > check.interval {
        let key = if raw.connect_timeout.is_some() { "connect_timeout" } else { "timeout" };
        let place = place.child(key, place.span());
        place.warning("is longer than the interval: a probe that takes so long puts off the next");
    }
    let tls = check.kind.tls().is_some().then_some(secured);
    Ok(Checked { check, tls, client: None })
}

/// A port under `key`.
pub(super) fn port(place: &Place<'_>, key: &str, leaf: &Option<Leaf>) -> Option<u16> {
    let (key, scalar) = place.leaf(key, leaf)?;
    key.number(scalar, &(1..=u16::MAX)).ok()
}

/// An IP address under `key`.
pub(super) fn address(place: &Place<'_>, key: &str, leaf: &Option<Leaf>) -> Option<IpAddr> {
    let write = r#"write an IP address like "10.0.1.11""#;
    let (key, text) = place.text(key, leaf, write)?.ok()?;
    let address = text.parse().ok();
    if address.is_none() {
        key.wrong(&Scalar::Text(text.to_owned()), write);
    }
    address
}

/// Where the check of one server asks, by the server's own keys.
pub(super) struct Own<'a> {
    pub(super) place: Place<'a>,
    pub(super) port: &'a Option<Leaf>,
    pub(super) address: &'a Option<Leaf>,
}

impl Own<'_> {
    /// Refuses the server's keys: `whose` has no check.
    pub(super) fn refuse(&self, whose: &str) {
        for (key, leaf) in [("check_port", self.port), ("check_address", self.address)] {
            if let Some((key, _)) = self.place.leaf(key, leaf) {
                key.problem(format_args!(
                    "needs a `check` of the {whose}: write one, or remove the key"
                ));
            }
        }
    }

    /// `common` with what this server has of its own.
    pub(super) fn apply(&self, common: &Check) -> Arc<Check> {
        let mut check = common.clone();
        check.port = port(&self.place, "check_port", self.port).or(check.port);
        check.address = address(&self.place, "check_address", self.address).or(check.address);
        Arc::new(check)
    }
}

/// The value of the first of two names for the same thing.
fn either<'a>(
    place: &Place<'_>,
    one: (&'static str, &'a Option<Leaf>),
    other: (&'static str, &'a Option<Leaf>),
) -> (&'static str, &'a Option<Leaf>) {
    match (one.1, other.1) {
        (Some(_), Some(leaf)) => {
            let place = place.child(other.0, leaf.span());
            place.problem(format_args!("says the same as `{}`: remove one of them", one.0));
            one
        }
        (None, Some(_)) => other,
        _ => one,
    }
}

fn times(place: &Place<'_>, raw: &raw::Check, style: Style) -> (Duration, Duration) {
    let (key, leaf) = either(place, ("interval", &raw.interval), ("delay_loop", &raw.delay_loop));
    let default = if style == Style::Upstream { 2 } else { 60 };
    let interval = place.duration(key, leaf, Duration::from_secs(default));
    let (key, leaf) =
        either(place, ("timeout", &raw.timeout), ("connect_timeout", &raw.connect_timeout));
    let default = interval.min(Duration::from_secs(5));
    (interval, place.duration(key, leaf, default))
}

fn counts(place: &Place<'_>, raw: &raw::Check, style: Style) -> (u32, u32) {
    let (rise, fall) = if style == Style::Upstream { (2, 3) } else { (1, 2) };
    let rise = place.integer("rise", &raw.rise, 1..=COUNT_MAX, rise);
    if raw.retry.is_none() {
        return (rise, place.integer("fall", &raw.fall, 1..=COUNT_MAX, fall));
    }
    either(place, ("fall", &raw.fall), ("retry", &raw.retry));
    (rise, place.integer("retry", &raw.retry, 0..=COUNT_MAX, 1) + 1)
}

fn kind(place: &Place<'_>, raw: &raw::Check, secured: &config::Upstream) -> Result<Kind, Reported> {
    let chosen: [(&str, &Option<Leaf>); 7] = [
        ("tcp", &raw.tcp),
        ("http", &raw.http),
        ("https", &raw.https),
        ("tls", &raw.tls),
        ("udp", &raw.udp),
        ("udp_hex", &raw.udp_hex),
        ("exec", &raw.exec),
    ];
    let mut given = chosen.iter().filter(|(_, leaf)| leaf.is_some());
    let Some((key, leaf)) = given.next() else {
        return Err(place.problem(format_args!("says nothing of what to do: {WRITE_KIND}")));
    };
    if let Some((other, leaf)) = given.next() {
        let place = place.child(other, leaf.as_ref().map_or(0..0, toml::Spanned::span));
        return Err(place.problem(format_args!("is a check besides `{key}`: remove one of them")));
    }
    only_with(place, raw, key)?;
    let tls = || Tls { server_name: secured.server_name.clone(), material: material(secured) };
    match *key {
        "tcp" => yes(place, key, leaf).map(|()| Kind::Tcp),
        "tls" => yes(place, key, leaf).map(|()| Kind::Tls(tls())),
        "http" => http(place, raw, key, leaf, None).map(Kind::Http),
        "https" => http(place, raw, key, leaf, Some(tls())).map(Kind::Http),
        "exec" => exec(place, raw).map(Kind::Exec),
        _ => udp(place, raw).map(Kind::Udp),
    }
}

/// Refuses keys that mean nothing for this kind of check.
fn only_with(place: &Place<'_>, raw: &raw::Check, kind: &str) -> Result<(), Reported> {
    const HTTP: &[&str] = &["http", "https"];
    const TLS: &[&str] = &["https", "tls"];
    const UDP: &[&str] = &["udp", "udp_hex"];
    let leaf = |leaf: &Option<Leaf>| leaf.as_ref().map(toml::Spanned::span);
    let keys = [
        ("method", leaf(&raw.method), HTTP),
        ("host", leaf(&raw.host), HTTP),
        ("headers", raw.headers.as_ref().map(Node::span), HTTP),
        ("status", leaf(&raw.status), HTTP),
        ("body", leaf(&raw.body), HTTP),
        ("max_body", leaf(&raw.max_body), HTTP),
        ("server_name", leaf(&raw.server_name), TLS),
        ("verify", leaf(&raw.verify), TLS),
        ("ca", leaf(&raw.ca), TLS),
        ("require_reply", leaf(&raw.require_reply), UDP),
        ("reply", leaf(&raw.reply), UDP),
        ("user", leaf(&raw.user), &["exec"]),
    ];
    for (key, span, kinds) in keys {
        if let Some(span) = span.filter(|_| !kinds.contains(&kind)) {
            let kinds = kinds.join("` or `");
            let place = place.child(key, span);
            return Err(place.problem(format_args!("goes with `{kinds}` only: remove it")));
        }
    }
    Ok(())
}

fn yes(place: &Place<'_>, key: &str, leaf: &Option<Leaf>) -> Result<(), Reported> {
    match place.leaf(key, leaf) {
        Some((place, scalar)) if *scalar != Scalar::Boolean(true) => {
            Err(place.wrong(scalar, "write true"))
        }
        _ => Ok(()),
    }
}

fn http(
    place: &Place<'_>,
    raw: &raw::Check,
    key: &str,
    leaf: &Option<Leaf>,
    tls: Option<Tls>,
) -> Result<Http, Reported> {
    let (key, path) =
        place.text(key, leaf, WRITE_PATH).unwrap_or_else(|| Err(place.missing(key, WRITE_PATH)))?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    if !path.starts_with('/') || !plain(path) || path.contains('#') {
        return Err(key.wrong(&Scalar::Text(path.to_owned()), WRITE_PATH));
    }
    let method = match place.text("method", &raw.method, r#"write a method like "HEAD""#) {
        None => "GET",
        Some(read) => {
            let (key, method) = read?;
            if !headers::is_token(method) || method == "CONNECT" {
                return Err(key.problem(format_args!(
                    r#"is {}: write a method like "HEAD""#,
                    quoted(method)
                )));
            }
            method
        }
    };
    let host = match place.text("host", &raw.host, r#"write a host like "shop.example""#) {
        None => None,
        Some(read) => {
            let (key, host) = read?;
            if host.is_empty() || !plain(host) {
                return Err(key
                    .wrong(&Scalar::Text(host.to_owned()), r#"write a host like "shop.example""#));
            }
            Some(host.to_owned())
        }
    };
    let max_body = place.size("max_body", &raw.max_body, 1..=MEGABYTE, 64 << 10);
    Ok(Http {
        method: method.to_owned(),
        path: path.to_owned(),
        host,
        headers: fields(place, raw)?,
        status: statuses(place, raw)?,
        body: pattern(place, "body", &raw.body)?,
        max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
        tls,
    })
}

fn fields(place: &Place<'_>, raw: &raw::Check) -> Result<Vec<(String, String)>, Reported> {
    let write = r#"write a table like { X-Probe = "1" }"#;
    let Some(node) = &raw.headers else { return Ok(Vec::new()) };
    let (place, named) = place.wanted("headers", node, write)?;
    let mut fields = Vec::new();
    for (name, leaf) in named {
        headers::name(&place, name)?;
        let field = place.child(name.get_ref(), leaf.span());
        let Scalar::Text(value) = leaf.get_ref() else {
            return Err(field.wrong(leaf.get_ref(), "write text"));
        };
        headers::check_value(&field, value)?;
        let (name, value) = (name.get_ref().clone(), value.clone());
        if ["connection", "content-length", "transfer-encoding"]
            .contains(&name.to_ascii_lowercase().as_str())
        {
            return Err(field.problem("is set by the check itself: remove it"));
        }
        fields.push((name, value));
    }
    Ok(fields)
}

/// `status = [200, "300-399"]`, or one of its elements alone.
fn statuses(place: &Place<'_>, raw: &raw::Check) -> Result<Vec<RangeInclusive<u16>>, Reported> {
    let Some((key, scalar)) = place.leaf("status", &raw.status) else {
        return Ok(vec![200..=399]);
    };
    if !matches!(scalar, Scalar::List(_)) {
        return Ok(vec![status(&key, scalar)?]);
    }
    let list = place.list("status", &raw.status, WRITE_STATUS).unwrap_or_default();
    if list.is_empty() {
        return Err(key.problem(format_args!("is empty: {WRITE_STATUS}")));
    }
    list.iter().map(|(place, scalar)| status(place, scalar)).collect()
}

fn status(place: &Place<'_>, scalar: &Scalar) -> Result<RangeInclusive<u16>, Reported> {
    let range = match scalar {
        Scalar::Integer(status) => u16::try_from(*status).ok().map(|status| status..=status),
        Scalar::Text(text) => text.split_once('-').map_or_else(
            || text.parse().ok().map(|status| status..=status),
            |(low, high)| Some(low.trim().parse().ok()?..=high.trim().parse().ok()?),
        ),
        _ => None,
    };
    let good = |range: &RangeInclusive<u16>| {
        range.start() <= range.end() && *range.start() >= 200 && *range.end() <= 599
    };
    range
        .filter(good)
        .ok_or_else(|| place.wrong(scalar, format_args!("{WRITE_STATUS}, from 200 to 599")))
}

fn pattern(place: &Place<'_>, key: &str, leaf: &Option<Leaf>) -> Result<Option<Pattern>, Reported> {
    let Some(read) = place.text(key, leaf, "write a regular expression") else { return Ok(None) };
    let (key, text) = read?;
    Pattern::new(text).map(Some).map_err(|why| {
        let last = why.lines().last().unwrap_or_default();
        let last = last.strip_prefix("error: ").unwrap_or(last);
        key.problem(format_args!("is {}, not a regular expression: {last}", quoted(text)))
    })
}

fn udp(place: &Place<'_>, raw: &raw::Check) -> Result<Udp, Reported> {
    let write = "write what to send as text; `udp_hex` takes hexadecimal digits";
    let text = place.text("udp", &raw.udp, write).transpose()?;
    let hex = place.text("udp_hex", &raw.udp_hex, "write hexadecimal digits").transpose()?;
    let payload = match (text, hex) {
        (Some((_, text)), _) => text.as_bytes().to_vec(),
        (None, Some((key, digits))) => from_hex(digits).ok_or_else(|| {
            key.wrong(&Scalar::Text(digits.to_owned()), "write hexadecimal digits like \"00ff\"")
        })?,
        (None, None) => Vec::new(),
    };
    if payload.len() > PAYLOAD_MAX {
        return Err(place.problem(format_args!("sends more than {PAYLOAD_MAX} bytes")));
    }
    let reply = pattern(place, "reply", &raw.reply)?;
    let required = place.boolean("require_reply", &raw.require_reply, reply.is_some());
    Ok(Udp { payload, require_reply: required || reply.is_some(), reply })
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Vec<char> = digits.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let value = |c: char| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(value(*high)? << 4 | value(*low)?)).collect()
}

fn exec(place: &Place<'_>, raw: &raw::Check) -> Result<Exec, Reported> {
    let command = vrrp::command(place, "exec", &raw.exec)?;
    let user = match place.text("user", &raw.user, "write the name of a user") {
        None => None,
        Some(read) => {
            let (key, name) = read?;
            let user = process::user(name);
            let user = user.ok_or_else(|| {
                key.problem(format_args!("is {}: there is no such user", quoted(name)))
            })?;
            Some(ExecUser(user))
        }
    };
    Ok(Exec { command: command.unwrap_or_default(), user })
}

/// What the check's handshakes are made with: the upstream's settings, or the check's own.
fn secured(
    place: &Place<'_>,
    raw: &raw::Check,
    upstream: Option<&config::Upstream>,
) -> config::Upstream {
    let file = |key: &str| config::File {
        path: PathBuf::from("."),
        key: format!("{}{key}", place.path()),
        span: place.span(),
    };
    let mut settings = upstream.cloned().unwrap_or_else(|| config::Upstream {
        key: file(""),
        server_name: None,
        ca: None,
        certificate: None,
        verify: true,
        policy: config::Policy::Intermediate,
    });
    settings.verify = place.boolean("verify", &raw.verify, settings.verify);
    settings.ca = tls::path(place, "ca", &raw.ca).or(settings.ca);
    settings.server_name = tls::name(place, &raw.server_name).or(settings.server_name);
    settings
}

fn material(settings: &config::Upstream) -> String {
    let path = |file: &Option<config::File>| file.as_ref().map(|file| file.path.clone());
    let pair = settings.certificate.as_ref().map(|(cert, key)| (&cert.path, &key.path));
    format!("{:?} {:?} {pair:?} {:?}", settings.verify, path(&settings.ca), settings.policy)
}

#[cfg(test)]
mod tests;

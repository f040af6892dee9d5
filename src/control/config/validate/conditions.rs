//! When a route applies: hosts, path, methods, header fields.

use regex_automata::meta::Regex;

use toml::Spanned;

use super::routes::Names;
use super::{headers, host};
use crate::control::config::error::quoted;
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Content, Node, Scalar};
use crate::l7::config::{HeaderMatch, HostMatch, PathMatch, Route, ValueMatch};

const WRITE_HOST: &str =
    r#"write a host like "shop.example", or a list like ["shop.example", "*.shop.example"]"#;
const WRITE_PATH: &str =
    r#"write a prefix like "/api/", { exact = "/api" } or { regex = "^/v[0-9]+/" }"#;
const WRITE_METHODS: &str = r#"write a list like ["GET", "HEAD"]"#;
const WRITE_HEADER: &str = r#"write a value like "1", { present = true } or { regex = "json" }"#;

/// The route's hosts: one or a list; empty when the key is missing.
pub(super) fn hosts(place: &Place<'_>, raw: &raw::Route) -> Vec<HostMatch> {
    let items = match place.leaf("host", &raw.host) {
        Some((place, Scalar::Text(text))) => vec![(place, text.as_str())],
        _ => not_empty(place, "host", &raw.host, WRITE_HOST),
    };
    let mut hosts = Vec::new();
    for (place, text) in items {
        match host::condition(text) {
            Ok(host) if hosts.contains(&host) => {
                place.problem(format_args!("is {}, which the list has already", quoted(text)));
            }
            Ok(host) => hosts.push(host),
            Err(write) => {
                place.problem(format_args!("is {}: {write}", quoted(text)));
            }
        }
    }
    hosts
}

/// The texts under `key`; an empty list is a problem, because it could mean all or none.
pub(super) fn not_empty<'a, 'r>(
    place: &Place<'r>,
    key: &str,
    leaf: &'a Option<raw::Leaf>,
    write: &str,
) -> Vec<(Place<'r>, &'a str)> {
    if let Some((place, Scalar::List(list))) = place.leaf(key, leaf)
        && list.is_empty()
    {
        place.problem(format_args!("is an empty list: leave the key out for all, or {write}"));
    }
    place.texts(key, leaf, write)
}

/// The path condition; `/` as prefix when the key is missing.
pub(super) fn path(place: &Place<'_>, raw: &raw::Route) -> Result<PathMatch, Reported> {
    let Some(node) = &raw.path else { return Ok(PathMatch::Prefix("/".to_owned())) };
    let place = place.child("path", node.span());
    let table = match node.get_ref() {
        Content::Other(Scalar::Text(prefix)) => {
            return literal(&place, prefix).map(|()| PathMatch::Prefix(prefix.clone()));
        }
        Content::Other(other) => return Err(place.wrong(other, WRITE_PATH)),
        Content::Wanted(table) => table,
    };
    let exact = place.text("exact", &table.exact, WRITE_PATH).transpose()?;
    let regex = place.text("regex", &table.regex, WRITE_PATH).transpose()?;
    match (exact, regex) {
        (Some((place, path)), None) => {
            literal(&place, path).map(|()| PathMatch::Exact(path.to_owned()))
        }
        (None, Some((place, pattern))) => self::regex(&place, pattern).map(PathMatch::Regex),
        (Some(_), Some(_)) => {
            Err(place.problem("has both `exact` and `regex`: remove one of them"))
        }
        (None, None) => Err(place.problem(format_args!("is an empty table: {WRITE_PATH}"))),
    }
}

/// Checks a literal path: conditions see normalised paths, so others would never match.
pub(super) fn literal(place: &Place<'_>, path: &str) -> Result<(), Reported> {
    let wrong = |write: &str| Err(place.problem(format_args!("is {}: {write}", quoted(path))));
    if !path.starts_with('/') {
        return wrong("a path starts with `/`");
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return wrong("paths are matched after `.` and `..` are resolved: leave them out");
    }
    path_characters(place, path)
}

/// Checks that a path, or a part of one, is in the form in which requests have it.
pub(super) fn path_characters(place: &Place<'_>, path: &str) -> Result<(), Reported> {
    let wrong = |write: &str| Err(place.problem(format_args!("is {}: {write}", quoted(path))));
    if path.contains(['?', '#']) {
        return wrong("a path has no query: leave out `?`, `#` and what follows");
    }
    if !path.is_ascii() || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return wrong("write spaces, control and non-ASCII characters percent-encoded, like %20");
    }
    for (at, _) in path.match_indices('%') {
        let digits = path.get(at + 1..at + 3).unwrap_or_default();
        let byte = u8::from_str_radix(digits, 16).ok();
        match byte.filter(|_| digits.bytes().all(|b| b.is_ascii_hexdigit())) {
            None => return wrong("after `%` stand two hexadecimal digits; `%` itself is `%25`"),
            Some(b) if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => {
                let plain = char::from(b);
                return wrong(&format!("requests have `%{digits}` decoded: write `{plain}`"));
            }
            Some(_) if digits.bytes().any(|b| b.is_ascii_lowercase()) => {
                let upper = digits.to_ascii_uppercase();
                return wrong(&format!("requests have upper case there: write `%{upper}`"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Compiles a regular expression; its own message is put into one line.
pub(super) fn regex(place: &Place<'_>, pattern: &str) -> Result<Regex, Reported> {
    Regex::new(pattern).map_err(|error| {
        let reason = match error.syntax_error() {
            Some(syntax) => syntax.to_string(),
            None => error.to_string(),
        };
        // The crate shows the pattern over several lines and ends with "error: why".
        let last = reason.lines().last().unwrap_or_default();
        let last = last.strip_prefix("error: ").unwrap_or(last);
        place.problem(format_args!("is {}, not a regular expression: {last}", quoted(pattern)))
    })
}

/// The methods as written; empty when the key is missing.
pub(super) fn methods(place: &Place<'_>, raw: &raw::Route) -> Vec<String> {
    let mut methods: Vec<String> = Vec::new();
    for (place, text) in not_empty(place, "methods", &raw.methods, WRITE_METHODS) {
        if !headers::is_token(text) {
            place.problem(format_args!(
                r#"is {}: write a method like "GET", letters and digits only"#,
                quoted(text)
            ));
            continue;
        }
        if text.bytes().any(|b| b.is_ascii_lowercase()) {
            let upper = text.to_ascii_uppercase();
            place.warning(format_args!(
                "is \"{text}\", which does not match \"{upper}\": methods are case-sensitive"
            ));
        }
        if !methods.iter().any(|method| method == text) {
            methods.push(text.to_owned());
        }
    }
    methods
}

/// The header conditions, in name order.
pub(super) fn headers(place: &Place<'_>, raw: &raw::Route) -> Vec<HeaderMatch> {
    let write = r#"write a table like { "X-Beta" = "1" }"#;
    let Some((place, table)) = place.table("headers", raw.headers.as_ref(), write) else {
        return Vec::new();
    };
    let mut list: Vec<HeaderMatch> = Vec::new();
    for (name, node) in table {
        let Ok(lower) = headers::name(&place, name) else { continue };
        if list.iter().any(|header| header.name == lower) {
            place.child(name.get_ref(), name.span()).problem(
                "stands here twice: header names have no case, so write one condition a name",
            );
            continue;
        }
        let place = place.child(name.get_ref(), node.span());
        if let Ok(value) = header_value(&place, node.get_ref()) {
            list.push(HeaderMatch { name: lower, value });
        }
    }
    list
}

fn header_value(place: &Place<'_>, raw: &Content<raw::Header>) -> Result<ValueMatch, Reported> {
    let table = match raw {
        Content::Other(Scalar::Text(value)) => {
            headers::check_value(place, value)?;
            if value.trim_matches([' ', '\t']) != value {
                return Err(place.problem(
                    "starts or ends with a space, which field values never do: remove it",
                ));
            }
            return Ok(ValueMatch::Exact(value.clone()));
        }
        Content::Other(other) => return Err(place.wrong(other, WRITE_HEADER)),
        Content::Wanted(table) => table,
    };
    let pattern = place.text("regex", &table.regex, WRITE_HEADER).transpose()?;
    match (place.leaf("present", &table.present), pattern) {
        (Some((_, Scalar::Boolean(true))), None) => Ok(ValueMatch::Present),
        (Some((place, value)), None) => Err(place.wrong(value, "only `present = true` is known")),
        (None, Some((place, pattern))) => regex(&place, pattern).map(ValueMatch::Regex),
        (Some(_), Some(_)) => {
            Err(place.problem("has both `present` and `regex`: remove one of them"))
        }
        (None, None) => Err(place.problem(format_args!("is an empty table: {WRITE_HEADER}"))),
    }
}

/// The same text for routes with the same conditions, however they are spelled.
pub(super) fn identity(raw: &raw::Route, route: &Route, names: &Names<'_>) -> String {
    let listeners = match route.listeners.as_slice() {
        [] => (0..names.listeners.len()).collect(),
        some => some.to_vec(),
    };
    let mut hosts: Vec<String> = route.hosts.iter().map(|host| format!("{host:?}")).collect();
    hosts.sort();
    let mut methods = route.methods.clone();
    methods.sort();
    // Compiled expressions do not show their pattern, so values are taken as written.
    let text = |leaf: &Option<raw::Leaf>| leaf.as_ref().map(|leaf| format!("{:?}", leaf.get_ref()));
    let path = match raw.path.as_ref().map(Node::get_ref) {
        None => format!("{:?}", Scalar::Text("/".to_owned())),
        Some(Content::Other(prefix)) => format!("{prefix:?}"),
        Some(Content::Wanted(path)) => format!("{:?}", (text(&path.exact), text(&path.regex))),
    };
    let table = match raw.headers.as_ref().map(Node::get_ref) {
        Some(Content::Wanted(table)) => table.iter().collect(),
        _ => Vec::new(),
    };
    let header = |(name, node): (&Spanned<String>, &Node<raw::Header>)| {
        let value = match node.get_ref() {
            Content::Other(value) => format!("{value:?}"),
            Content::Wanted(header) => {
                format!("{:?}", (text(&header.present), text(&header.regex)))
            }
        };
        (name.get_ref().to_ascii_lowercase(), value)
    };
    let mut headers: Vec<(String, String)> = table.into_iter().map(header).collect();
    headers.sort();
    format!("{:?}", (listeners, hosts, path, methods, headers))
}

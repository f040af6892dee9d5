//! When a route applies: hosts, path, methods, header fields.

use toml::Spanned;

use super::routes::Names;
use super::{headers, host};
use crate::control::config::error::quoted;
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Content, Node, Scalar};
use crate::l7::config::{HeaderMatch, HostMatch, PathMatch, Pattern, Route, ValueMatch};

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
pub(super) fn regex(place: &Place<'_>, pattern: &str) -> Result<Pattern, Reported> {
    Pattern::new(pattern).map_err(|error| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::control::config::tests::{bad_routes, routes, with_route};

    const PROBLEMS: &[(&str, &str, &str)] = &[
        (
            "upstream = \"api\"\nhost = \"Shop.Example:80\"",
            "8:8",
            "`route[0].host` is \"Shop.Example:80\": hosts are matched without port: write \"Shop.Example\"",
        ),
        (
            "upstream = \"api\"\nhost = [\"a\", \"w*.b\"]",
            "8:14",
            "`route[0].host[1]` is \"w*.b\": `*` may only stand for the front",
        ),
        ("upstream = \"api\"\nhost = \"bücher.example\"", "8:8", "punycode"),
        (
            "upstream = \"api\"\nhost = [\"a\", \"A\"]",
            "8:14",
            "`route[0].host[1]` is \"A\", which the list has already",
        ),
        (
            "upstream = \"api\"\nhost = []",
            "8:8",
            "`route[0].host` is an empty list: leave the key out for all",
        ),
        ("upstream = \"api\"\nhost = 5", "8:8", "`route[0].host` is 5: write a host like"),
        ("upstream = \"api\"\nhost = [5]", "8:9", "`route[0].host[0]` is 5: write a host like"),
        (
            "upstream = \"api\"\npath = \"api/\"",
            "8:8",
            "`route[0].path` is \"api/\": a path starts with `/`",
        ),
        (
            "upstream = \"api\"\npath = { exact = \"x\" }",
            "8:18",
            "`route[0].path.exact` is \"x\": a path starts with `/`",
        ),
        ("upstream = \"api\"\npath = \"/a?b=1\"", "8:8", "a path has no query"),
        ("upstream = \"api\"\npath = \"/a b\"", "8:8", "percent-encoded"),
        ("upstream = \"api\"\npath = \"/ä\"", "8:8", "percent-encoded"),
        ("upstream = \"api\"\npath = \"/a/../b\"", "8:8", "after `.` and `..` are resolved"),
        ("upstream = \"api\"\npath = \"/%\"", "8:8", "two hexadecimal digits"),
        ("upstream = \"api\"\npath = \"/%+1\"", "8:8", "two hexadecimal digits"),
        ("upstream = \"api\"\npath = \"/%41\"", "8:8", "requests have `%41` decoded: write `A`"),
        ("upstream = \"api\"\npath = \"/%c3%A4\"", "8:8", "write `%C3`"),
        (
            "upstream = \"api\"\npath = { regex = \"^/(a\" }",
            "8:18",
            "`route[0].path.regex` is \"^/(a\", not a regular expression: unclosed group",
        ),
        (
            "upstream = \"api\"\npath = { regex = \"(a{1000}){1000}{1000}\" }",
            "8:18",
            "not a regular expression: ",
        ),
        (
            "upstream = \"api\"\npath = { regex = \"a\", exact = \"/\" }",
            "8:8",
            "`route[0].path` has both `exact` and `regex`: remove one",
        ),
        (
            "upstream = \"api\"\npath = {}",
            "8:8",
            "`route[0].path` is an empty table: write a prefix like",
        ),
        (
            "upstream = \"api\"\npath = [\"/\"]",
            "8:8",
            "`route[0].path` is a list: write a prefix like \"/api/\", { exact",
        ),
        (
            "upstream = \"api\"\nmethods = [\"GET POST\"]",
            "8:12",
            "`route[0].methods[0]` is \"GET POST\": write a method like \"GET\"",
        ),
        ("upstream = \"api\"\nmethods = [\"\"]", "8:12", "write a method like"),
        (
            "upstream = \"api\"\nmethods = \"GET\"",
            "8:11",
            "`route[0].methods` is \"GET\": write a list like [\"GET\", \"HEAD\"]",
        ),
        ("upstream = \"api\"\nmethods = []", "8:11", "is an empty list"),
        (
            "upstream = \"api\"\nheaders = { \"X Y\" = \"1\" }",
            "8:13",
            "`route[0].headers.X Y` names no header field",
        ),
        ("upstream = \"api\"\nheaders = { \"X:\" = \"1\" }", "8:13", "write \"X\", without colon"),
        ("upstream = \"api\"\nheaders = { X = \"1\", x = \"2\" }", "8:22", "stands here twice"),
        (
            "upstream = \"api\"\nheaders = { X = 1 }",
            "8:17",
            "`route[0].headers.X` is 1: write a value like \"1\", { present = true }",
        ),
        ("upstream = \"api\"\nheaders = { X = \" 1\" }", "8:17", "starts or ends with a space"),
        ("upstream = \"api\"\nheaders = { X = \"1\\n\" }", "8:17", "with a line break"),
        (
            "upstream = \"api\"\nheaders = { X = { present = false } }",
            "8:29",
            "`route[0].headers.X.present` is false: only `present = true` is known",
        ),
        (
            "upstream = \"api\"\nheaders = { X = { regex = \"[\" } }",
            "8:27",
            "`route[0].headers.X.regex` is \"[\", not a regular expression: unclosed character class",
        ),
        (
            "upstream = \"api\"\nheaders = { X = { regex = \"a\", present = true } }",
            "8:17",
            "has both `present` and `regex`",
        ),
        ("upstream = \"api\"\nheaders = { X = {} }", "8:17", "is an empty table: write a value"),
        (
            "upstream = \"api\"\nheaders = [\"X\"]",
            "8:11",
            "`route[0].headers` is a list: write a table like",
        ),
    ];

    #[test]
    fn problems() {
        bad_routes(PROBLEMS);
    }

    #[test]
    fn values() {
        let list = routes(
            "upstream = \"api\"\nhost = [\"A.example\", \"*.b\"]\npath = { regex = \"^/v[0-9]\" }\n\
             methods = [\"GET\", \"PURGE\", \"GET\"]\n\
             headers = { X-B = \"1\", X-A = { present = true }, X-C = { regex = \"j\" } }\n\
             [[route]]\nupstream = \"api\"\npath = { exact = \"/%C3%A4/\" }\n\
             [[route]]\nupstream = \"api\"\npath = \"/x\"\nhost = \"h\"\n[[route]]\nupstream = \"api\"",
        );
        let hosts = [HostMatch::Exact("a.example".into()), HostMatch::Suffix("b".into())];
        assert_eq!(list[0].hosts, hosts);
        assert!(matches!(&list[0].path, PathMatch::Regex(regex) if regex.is_match("/v1")));
        assert_eq!(list[0].methods, ["GET", "PURGE"]);
        let names: Vec<_> = list[0].headers.iter().map(|header| header.name.as_str()).collect();
        assert_eq!(names, ["x-a", "x-b", "x-c"]);
        assert!(matches!(&list[0].headers[0].value, ValueMatch::Present));
        assert!(matches!(&list[0].headers[1].value, ValueMatch::Exact(value) if value == "1"));
        assert!(
            matches!(&list[0].headers[2].value, ValueMatch::Regex(regex) if regex.is_match("j"))
        );
        assert!(matches!(&list[1].path, PathMatch::Exact(path) if path == "/%C3%A4/"));
        assert!(matches!(&list[2].path, PathMatch::Prefix(path) if path == "/x"));
        assert!(matches!(&list[3].path, PathMatch::Prefix(path) if path == "/"));
        assert!(list[3].hosts.is_empty() && list[3].methods.is_empty());
    }

    #[test]
    fn routes_that_can_never_match() {
        let first = "upstream = \"api\"\n";
        for (one, two) in [
            ("", ""),
            ("", "path = \"/\""),
            ("", "listeners = [\"web\"]"),
            ("host = [\"a\", \"b\"]", "host = [\"B\", \"a\"]"),
            ("path = { exact = \"/x\" }", "path = { exact = \"/x\" }"),
            ("path = { regex = \"x\" }", "path = { regex = \"x\" }"),
            ("methods = [\"GET\", \"PUT\"]", "methods = [\"PUT\", \"GET\"]"),
            ("headers = { A = \"1\" }", "headers = { a = \"1\" }"),
        ] {
            let keys = format!("{first}{one}\n[[route]]\n{first}{two}");
            bad_routes(&[(
                &keys,
                "9:1",
                "`route[1]` on line 9 can never match, because `route[0]` on line 6 has the same conditions",
            )]);
        }
        for (one, two) in [
            ("", "path = \"/a\""),
            ("host = \"a\"", ""),
            ("path = \"/a\"", "path = { exact = \"/a\" }"),
            ("path = { exact = \"/a\" }", "path = { regex = \"/a\" }"),
            ("methods = [\"GET\"]", ""),
            ("headers = { A = \"1\" }", "headers = { A = { regex = \"1\" } }"),
        ] {
            let keys = format!("{first}{one}\n[[route]]\n{first}{two}");
            assert_eq!(routes(&keys).len(), 2, "{keys}");
        }
    }

    #[test]
    fn methods_in_lower_case_are_warned_of() {
        let config = parse("t", &with_route("upstream = \"api\"\nmethods = [\"get\"]")).unwrap();
        let says =
            "t:8:12: warning: `route[0].methods[0]` is \"get\", which does not match \"GET\"";
        assert!(config.warnings[0].starts_with(says), "{:?}", config.warnings);
    }
}

//! `[[route]]`: which requests go where.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::conditions;
use super::headers::{self, Message};
use crate::control::config::error::{quoted, suggest};
use crate::control::config::place::{BYTES_MAX, Place, Reported};
use crate::control::config::raw::{self, Leaf, Node, Scalar};
use crate::l7::config::{Action, PathMatch, Redirect, Respond, Rewrite, Route};

const WRITE_UPSTREAM: &str = "write the name of an `[upstream.NAME]`";
const WRITE_LISTENERS: &str = r#"write a list of listener names like ["web"]"#;
const ACTIONS: &str = "`upstream`, `respond` or `redirect`";

/// Statuses whose responses have no body (RFC 9110 sections 15.3.5, 15.3.6, 15.4.5).
const BODILESS: [u16; 3] = [204, 205, 304];

/// What routes may refer to, in the order of their indices.
#[derive(Debug)]
pub(super) struct Names<'a> {
    pub(super) listeners: Vec<&'a str>,
    pub(super) upstreams: Vec<(&'a str, std::ops::Range<usize>)>,
}

/// Every route; upstreams that none of them uses are warned of.
pub(super) fn routes(
    root: &Place<'_>,
    file: &raw::File,
    names: &Names<'_>,
) -> Result<Vec<Route>, Reported> {
    let tables = root.good_tables("route", file.route.as_ref(), "write it as `[[route]]`");
    if file.route.is_none() && file.listener.is_some() {
        root.child("route", 0..0)
            .warning("is missing: without `[[route]]` every request is answered with 404");
    }
    let mut seen = HashMap::new();
    let routes: Vec<_> = tables
        .iter()
        .map(|(place, raw)| {
            let route = route(place, raw, names)?;
            reachable(place, conditions::identity(raw, &route, names), &mut seen)?;
            Ok(route)
        })
        .collect();
    unused(root, &tables, names);
    routes.into_iter().collect()
}

fn unused(root: &Place<'_>, tables: &[(Place<'_>, &raw::Route)], names: &Names<'_>) {
    let used = |name: &str| {
        tables.iter().any(|(_, raw)| {
            let upstream = raw.upstream.as_ref().map(Leaf::get_ref);
            matches!(upstream, Some(Scalar::Text(text)) if text == name)
        })
    };
    for (name, span) in names.upstreams.iter().filter(|(name, _)| !used(name)) {
        root.child("upstream", span.clone())
            .child(name, span.clone())
            .warning("is used by no route");
    }
}

fn route(place: &Place<'_>, raw: &raw::Route, names: &Names<'_>) -> Result<Route, Reported> {
    let path = conditions::path(place, raw);
    let listeners = listeners(place, raw, names);
    let hosts = conditions::hosts(place, raw);
    let methods = conditions::methods(place, raw);
    let headers = conditions::headers(place, raw);
    let action = action(place, raw, names);
    let rewrite = rewrite(place, raw, path.as_ref().ok());
    let only_proxied = only_proxied(place, raw);
    let request = raw.request_headers.as_ref();
    let response = raw.response_headers.as_ref();
    let request_headers = headers::edits(place, "request_headers", request, Message::Request);
    let response_headers = headers::edits(place, "response_headers", response, Message::Response);
    let body = &raw.client_max_body_size;
    let body_max = place.size("client_max_body_size", body, 0..=BYTES_MAX, 0);
    only_proxied?;
    Ok(Route {
        listeners,
        hosts,
        path: path?,
        methods,
        headers,
        action: action?,
        rewrite: rewrite?,
        request_headers,
        response_headers,
        client_max_body_size: body.as_ref().map(|_| body_max),
    })
}

fn listeners(place: &Place<'_>, raw: &raw::Route, names: &Names<'_>) -> Vec<usize> {
    let mut indices = BTreeSet::new();
    for (place, name) in conditions::not_empty(place, "listeners", &raw.listeners, WRITE_LISTENERS)
    {
        match names.listeners.iter().position(|known| *known == name) {
            Some(index) => {
                indices.insert(index);
            }
            None => {
                let known = names.listeners.iter().copied().filter(|name| !name.is_empty());
                unknown(&place, name, "no listener", known);
            }
        }
    }
    indices.into_iter().collect()
}

fn unknown<'k>(
    place: &Place<'_>,
    name: &str,
    what: &str,
    known: impl Iterator<Item = &'k str> + Clone,
) -> Reported {
    let write = suggest(name, known).replace('`', "\"");
    place.problem(format_args!("is {}, which is the name of {what}: {write}", quoted(name)))
}

fn action(place: &Place<'_>, raw: &raw::Route, names: &Names<'_>) -> Result<Action, Reported> {
    match (&raw.upstream, &raw.respond, &raw.redirect) {
        (Some(leaf), None, None) => proxy(place, leaf, names).map(Action::Proxy),
        (None, Some(node), None) => respond(place, node).map(Action::Respond),
        (None, None, Some(node)) => redirect(place, node).map(Action::Redirect),
        (None, None, None) => {
            Err(place.problem(format_args!("has nothing to do: write one of {ACTIONS}")))
        }
        _ => Err(place.problem(format_args!("has several of {ACTIONS}: keep one"))),
    }
}

fn proxy(place: &Place<'_>, leaf: &Leaf, names: &Names<'_>) -> Result<usize, Reported> {
    let place = place.child("upstream", leaf.span());
    let Scalar::Text(name) = leaf.get_ref() else {
        return Err(place.wrong(leaf.get_ref(), WRITE_UPSTREAM));
    };
    let index = names.upstreams.iter().position(|(known, _)| known == name);
    let known = names.upstreams.iter().map(|(name, _)| *name);
    index.ok_or_else(|| unknown(&place, name, "no upstream", known))
}

fn respond(place: &Place<'_>, node: &Node<raw::Respond>) -> Result<Respond, Reported> {
    let write = r#"write a table like { status = 200, body = "pong\n" }"#;
    let (place, raw) = place.wanted("respond", node, write)?;
    let status = place.integer("status", &raw.status, 200..=599, 200);
    let body = body(&place, raw, status);
    let content_type = content_type(&place, raw);
    Ok(Respond { status, body: body?, content_type: content_type? })
}

fn body(place: &Place<'_>, raw: &raw::Respond, status: u16) -> Result<Bytes, Reported> {
    let Some(read) = place.text("body", &raw.body, r#"write text like "pong\n""#) else {
        return Ok(Bytes::new());
    };
    let (place, body) = read?;
    if !body.is_empty() && BODILESS.contains(&status) {
        return Err(place.problem(format_args!(
            "is given, but a response with status {status} has none: leave it out"
        )));
    }
    Ok(Bytes::copy_from_slice(body.as_bytes()))
}

fn content_type(place: &Place<'_>, raw: &raw::Respond) -> Result<String, Reported> {
    let write = "write a media type like \"text/plain\"";
    let Some(read) = place.text("content_type", &raw.content_type, write) else {
        return Ok("text/plain".to_owned());
    };
    let (place, text) = read?;
    headers::check_value(&place, text)?;
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    match essence.split_once('/') {
        Some((kind, sub)) if headers::is_token(kind) && headers::is_token(sub) => {
            Ok(text.to_owned())
        }
        _ => Err(place.problem(format_args!("is {}: {write}", quoted(text)))),
    }
}

fn redirect(place: &Place<'_>, node: &Node<raw::Redirect>) -> Result<Redirect, Reported> {
    let write = r#"write a table like { status = 301, to = "https://shop.example$request_uri" }"#;
    let (place, raw) = place.wanted("redirect", node, write)?;
    let status = redirect_status(&place, raw);
    let write = r#"write where to, like "https://shop.example$request_uri""#;
    let to = match place.text("to", &raw.to, write) {
        None => Err(place.missing("to", write)),
        Some(Ok((place, ""))) => Err(place.problem(format_args!("is empty: {write}"))),
        Some(Ok((place, text))) => headers::template(&place, text),
        Some(Err(reported)) => Err(reported),
    };
    Ok(Redirect { status: status?, to: to? })
}

fn redirect_status(place: &Place<'_>, raw: &raw::Redirect) -> Result<u16, Reported> {
    let Some((place, scalar)) = place.leaf("status", &raw.status) else { return Ok(302) };
    match scalar {
        Scalar::Integer(301) => Ok(301),
        Scalar::Integer(302) => Ok(302),
        Scalar::Integer(303) => Ok(303),
        Scalar::Integer(307) => Ok(307),
        Scalar::Integer(308) => Ok(308),
        other => Err(place.wrong(other, "write one of 301, 302, 303, 307, 308")),
    }
}

/// Keys that change what goes upstream say nothing on a route that answers by itself.
fn only_proxied(place: &Place<'_>, raw: &raw::Route) -> Result<(), Reported> {
    let own = match (&raw.upstream, &raw.respond, &raw.redirect) {
        (None, Some(_), None) => "respond",
        (None, None, Some(_)) => "redirect",
        _ => return Ok(()),
    };
    let spans = [
        ("strip_prefix", raw.strip_prefix.as_ref().map(Leaf::span)),
        ("rewrite", raw.rewrite.as_ref().map(Node::span)),
        ("request_headers", raw.request_headers.as_ref().map(Node::span)),
    ];
    let mut result = Ok(());
    for (key, span) in spans {
        let Some(span) = span else { continue };
        result = Err(place.child(key, span).problem(format_args!(
            "changes what goes to an upstream, but the route has `{own}`: remove it"
        )));
    }
    result
}

fn rewrite(
    place: &Place<'_>,
    raw: &raw::Route,
    path: Option<&PathMatch>,
) -> Result<Option<Rewrite>, Reported> {
    if raw.strip_prefix.is_some() && raw.rewrite.is_some() {
        return Err(place.problem("has both `strip_prefix` and `rewrite`: keep one"));
    }
    if let Some(read) = place.text("strip_prefix", &raw.strip_prefix, "write a path like \"/api\"")
    {
        let (place, prefix) = read?;
        return strip_prefix(&place, prefix, path).map(Some);
    }
    let example = r#"write { regex = "^/old/(.*)", to = "/new/$1" }"#;
    let Some((place, raw)) = place.table("rewrite", raw.rewrite.as_ref(), example) else {
        return Ok(None);
    };
    let pattern = match place.text("regex", &raw.regex, example) {
        None => Err(place.missing("regex", example)),
        Some(read) => read,
    };
    let to = match place.text("to", &raw.to, example) {
        None => Err(place.missing("to", example)),
        Some(read) => read,
    };
    let regex = pattern.and_then(|(place, pattern)| conditions::regex(&place, pattern));
    let (place, to) = to?;
    let regex = regex?;
    replacement(&place, to, regex.captures_len().saturating_sub(1))?;
    Ok(Some(Rewrite::Regex { regex, to: to.to_owned() }))
}

fn strip_prefix(
    place: &Place<'_>,
    prefix: &str,
    path: Option<&PathMatch>,
) -> Result<Rewrite, Reported> {
    conditions::literal(place, prefix)?;
    match path {
        Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) if !path.starts_with(prefix) => {
            Err(place.problem(format_args!(
                "is {}, but the route's path {} does not start so: correct one of them",
                quoted(prefix),
                quoted(path)
            )))
        }
        _ => Ok(Rewrite::StripPrefix(prefix.to_owned())),
    }
}

/// Checks what a rewrite puts in place of its match: a part of a path, with `$1` … `$9`.
fn replacement(place: &Place<'_>, to: &str, groups: usize) -> Result<(), Reported> {
    let wrong = |write: &str| Err(place.problem(format_args!("is {}: {write}", quoted(to))));
    conditions::path_characters(place, to)?;
    for (at, _) in to.match_indices('$') {
        let digit = to.as_bytes().get(at + 1).filter(|b| (b'1'..=b'9').contains(b));
        let Some(digit) = digit else {
            return wrong("here only `$1` to `$9` are known; write `%24` for a dollar sign");
        };
        let group = usize::from(digit - b'0');
        if group > groups {
            return wrong(&format!(
                "the regex has no group ${group} (its groups: {groups}): correct one of them"
            ));
        }
    }
    Ok(())
}

/// Refuses a route whose conditions are those of an earlier one, which takes all its requests.
fn reachable<'r>(
    place: &Place<'r>,
    conditions: String,
    seen: &mut HashMap<String, Place<'r>>,
) -> Result<(), Reported> {
    let Some(first) = seen.get(&conditions) else {
        seen.insert(conditions, place.clone());
        return Ok(());
    };
    Err(place.problem(format_args!(
        "on line {} can never match, because `{}` on line {} has the same conditions: change \
         them or remove one of both",
        place.line(),
        first.path(),
        first.line(),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::control::config::tests::{bad_exactly, bad_routes, routes, with_route};

    const PROBLEMS: &[(&str, &str, &str)] = &[
        (
            "",
            "6:1",
            "`route[0]` has nothing to do: write one of `upstream`, `respond` or `redirect`",
        ),
        (
            "upstream = \"api\"\nrespond = {}",
            "6:1",
            "`route[0]` has several of `upstream`, `respond` or `redirect`: keep one",
        ),
        ("respond = {}\nredirect = { to = \"/\" }", "6:1", "has several of"),
        (
            "upstream = \"apo\"",
            "7:12",
            "`route[0].upstream` is \"apo\", which is the name of no upstream: did you mean \"api\"?",
        ),
        (
            "upstream = 1",
            "7:12",
            "`route[0].upstream` is 1: write the name of an `[upstream.NAME]`",
        ),
        (
            "upstream = \"api\"\nlisteners = [\"wbe\"]",
            "8:14",
            "`route[0].listeners[0]` is \"wbe\", which is the name of no listener: did you mean \"web\"?",
        ),
        ("upstream = \"api\"\nlisteners = []", "8:13", "`route[0].listeners` is an empty list"),
        (
            "upstream = \"api\"\nlisteners = \"web\"",
            "8:13",
            "`route[0].listeners` is \"web\": write a list of listener names",
        ),
        (
            "upstream = \"api\"\nstrip_prefix = \"/a\"\nrewrite = { regex = \"a\", to = \"b\" }",
            "6:1",
            "`route[0]` has both `strip_prefix` and `rewrite`: keep one",
        ),
        (
            "upstream = \"api\"\npath = \"/api/\"\nstrip_prefix = \"api\"",
            "9:16",
            "`route[0].strip_prefix` is \"api\": a path starts with `/`",
        ),
        (
            "upstream = \"api\"\npath = \"/api/\"\nstrip_prefix = \"/apo\"",
            "9:16",
            "but the route's path \"/api/\" does not start so",
        ),
        (
            "upstream = \"api\"\nstrip_prefix = 1",
            "8:16",
            "`route[0].strip_prefix` is 1: write a path like \"/api\"",
        ),
        (
            "upstream = \"api\"\nrewrite = { regex = \"a\" }",
            "8:11",
            "`route[0].rewrite.to` is missing",
        ),
        (
            "upstream = \"api\"\nrewrite = { to = \"a\" }",
            "8:11",
            "`route[0].rewrite.regex` is missing: write { regex = ",
        ),
        (
            "upstream = \"api\"\nrewrite = { regex = \"*\", to = \"a\" }",
            "8:21",
            "not a regular expression: repetition operator missing expression",
        ),
        (
            "upstream = \"api\"\nrewrite = { regex = \"(a)\", to = \"$1$2\" }",
            "8:33",
            "the regex has no group $2 (its groups: 1)",
        ),
        (
            "upstream = \"api\"\nrewrite = { regex = \"a\", to = \"$host\" }",
            "8:31",
            "only `$1` to `$9` are known",
        ),
        (
            "upstream = \"api\"\nrewrite = { regex = \"a\", to = \"/b?c\" }",
            "8:31",
            "a path has no query",
        ),
        (
            "upstream = \"api\"\nrewrite = \"a\"",
            "8:11",
            "`route[0].rewrite` is \"a\": write { regex = ",
        ),
        (
            "upstream = \"api\"\nclient_max_body_size = \"10mb\"",
            "8:24",
            "write bytes or a size like",
        ),
        (
            "respond = { status = 199 }",
            "7:22",
            "`route[0].respond.status` is 199: write a whole number from 200 to 599",
        ),
        ("respond = { status = 600 }", "7:22", "write a whole number from 200 to 599"),
        (
            "respond = { status = 204, body = \"x\" }",
            "7:34",
            "`route[0].respond.body` is given, but a response with status 204 has none",
        ),
        ("respond = { status = 304, body = \"x\" }", "7:34", "status 304 has none"),
        ("respond = { body = 5 }", "7:20", "`route[0].respond.body` is 5: write text like"),
        ("respond = { content_type = \"text\" }", "7:28", "write a media type like \"text/plain\""),
        ("respond = { content_type = \"text/plain\\n\" }", "7:28", "with a line break"),
        ("respond = 200", "7:11", "`route[0].respond` is 200: write a table like { status = 200, "),
        (
            "respond = {}\nstrip_prefix = \"/\"",
            "8:16",
            "`route[0].strip_prefix` changes what goes to an upstream, but the route has `respond`",
        ),
        (
            "redirect = { to = \"/\" }\n[route.request_headers]\nremove = [\"X\"]",
            "8:1",
            "`route[0].request_headers` changes what goes to an upstream, but the route has `redirect`",
        ),
        (
            "redirect = { status = 300, to = \"/\" }",
            "7:23",
            "`route[0].redirect.status` is 300: write one of 301, 302, 303, 307, 308",
        ),
        (
            "redirect = { status = 301 }",
            "7:12",
            "`route[0].redirect.to` is missing: write where to",
        ),
        ("redirect = { to = \"\" }", "7:19", "`route[0].redirect.to` is empty: write where to"),
        ("redirect = { to = \"/\\n\" }", "7:19", "with a line break"),
        ("redirect = { to = \"$nonsense\" }", "7:19", "`route[0].redirect.to` is \"$nonsense\": "),
        (
            "redirect = \"/x\"",
            "7:12",
            "`route[0].redirect` is \"/x\": write a table like { status = 301, ",
        ),
    ];

    #[test]
    fn problems() {
        bad_routes(PROBLEMS);
        bad_exactly(&[
            (
                "route = 1\n[[listener]]\nbind = \"0.0.0.0:80\"",
                "1:9",
                "`route` is 1: write it as `[[route]]`",
            ),
            (
                "[[listener]]\nbind = \"0.0.0.0:80\"\n[[route]]\nupstream = \"a\"",
                "4:12",
                "which is the name of no upstream: there is none",
            ),
        ]);
    }

    #[test]
    fn a_broken_listener_or_upstream_causes_no_second_error() {
        let route = "[[route]]\nlisteners = [\"web\"]\nupstream = \"api\"";
        let text = format!("[[listener]]\nname = \"web\"\nbind = 1\n[upstream.api]\n{route}");
        let errors = parse("t", &text).unwrap_err();
        assert_eq!(errors.errors().len(), 2, "{errors}");
    }

    #[test]
    fn values() {
        let list = routes(
            "upstream = \"api\"\nlisteners = [\"web\"]\npath = \"/api/\"\nstrip_prefix = \"/api\"\n\
             client_max_body_size = \"10m\"\n\
             [[route]]\nupstream = \"api\"\nrewrite = { regex = \"^/o/(.*)\", to = \"/n/$1\" }\n\
             [[route]]\npath = \"/r\"\nrespond = { status = 204 }\nclient_max_body_size = 0\n\
             [[route]]\npath = \"/s\"\nredirect = { to = \"/\" }",
        );
        assert_eq!(list[0].listeners, [0]);
        assert!(matches!(list[0].action, Action::Proxy(0)));
        assert!(matches!(&list[0].rewrite, Some(Rewrite::StripPrefix(prefix)) if prefix == "/api"));
        assert_eq!(list[0].client_max_body_size, Some(10 << 20));
        assert!(matches!(&list[1].rewrite, Some(Rewrite::Regex { to, .. }) if to == "/n/$1"));
        assert!(list[1].listeners.is_empty() && list[1].client_max_body_size.is_none());
        let Action::Respond(respond) = &list[2].action else { panic!("{:?}", list[2].action) };
        assert_eq!((respond.status, respond.content_type.as_str()), (204, "text/plain"));
        assert!(respond.body.is_empty() && list[2].client_max_body_size == Some(0));
        let Action::Redirect(redirect) = &list[3].action else { panic!("{:?}", list[3].action) };
        assert_eq!(redirect.status, 302);
    }

    #[test]
    fn warnings() {
        let listener = "[[listener]]\nbind = \"0.0.0.0:80\"\n";
        let config = parse("t", listener).unwrap();
        assert!(config.warnings[0].starts_with("t:1:1: warning: `route` is missing"));
        let text = with_route("respond = {}");
        let config = parse("t", &text).unwrap();
        assert_eq!(config.warnings, ["t:4:11: warning: `upstream.api` is used by no route"]);
        assert!(parse("t", &with_route("upstream = \"api\"")).unwrap().warnings.is_empty());
    }
}

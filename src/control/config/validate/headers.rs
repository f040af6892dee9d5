//! Header fields: names, values and edits.

use toml::Spanned;

use crate::control::config::error::quoted;
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Leaf, Named, Node, Scalar};
use crate::l7::config::HeaderEdits;
use crate::l7::template::Template;

const WRITE_NAMES: &str = r#"write a list of names like ["Server"]"#;
const WRITE_TABLE: &str = r#"write a table like { "X-Scheme" = "$scheme" }"#;
const WRITE_VALUE: &str = r#"write text, in which "$host" and the like stand for values"#;

/// Fields that say how messages and connections are framed; an edit could split or smuggle requests
/// (RFC 9110 section 7.6.1, RFC 9112 section 6).
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whose headers are edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    Request,
    Response,
}

/// True for a token (RFC 9110 section 5.6.2), which names and methods are.
pub(super) fn is_token(text: &str) -> bool {
    let tchar = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(tchar)
}

/// A field name in lower case.
pub(super) fn name(place: &Place<'_>, name: &Spanned<String>) -> Result<String, Reported> {
    checked_name(&place.child(name.get_ref(), name.span()), name.get_ref())
}

fn checked_name(place: &Place<'_>, name: &str) -> Result<String, Reported> {
    if is_token(name) {
        return Ok(name.to_ascii_lowercase());
    }
    let colon = name.strip_suffix(':').filter(|bare| is_token(bare));
    let write = match colon {
        Some(bare) => format!("write \"{bare}\", without colon"),
        None => "write a name of letters, digits and `-`, like \"X-Request-Id\"".to_owned(),
    };
    Err(place.problem(format_args!("names no header field: {write}")))
}

/// Field values bear no control character but the tab (RFC 9110 section 5.5).
pub(super) fn check_value(place: &Place<'_>, value: &str) -> Result<(), Reported> {
    let what = match value.chars().find(|c| c.is_ascii_control() && *c != '\t') {
        None => return Ok(()),
        Some('\r' | '\n') => "a line break, which would end the field",
        Some('\0') => "a NUL",
        Some(_) => "a control character",
    };
    Err(place.problem(format_args!("is {} with {what}: remove it", quoted(value))))
}

/// A value with variables.
pub(super) fn template(place: &Place<'_>, text: &str) -> Result<Template, Reported> {
    check_value(place, text)?;
    Template::parse(text)
        .map_err(|error| place.problem(format_args!("is {}: {error}", quoted(text))))
}

/// `[route.request_headers]` or `[route.response_headers]`.
pub(super) fn edits(
    place: &Place<'_>,
    key: &str,
    node: Option<&Node<raw::Edits>>,
    message: Message,
) -> HeaderEdits {
    let write = "write a table with `set`, `add` and `remove`";
    let Some((place, raw)) = place.table(key, node, write) else { return HeaderEdits::default() };
    let mut remove = Vec::new();
    for (place, text) in place.texts("remove", &raw.remove, WRITE_NAMES) {
        let place = Edit { place, message, change: Change::Remove };
        if let Ok(lower) = place.name(text) {
            remove.push(lower);
        }
    }
    HeaderEdits {
        remove,
        set: fields(&place, "set", raw.set.as_ref(), message, Change::Set),
        add: fields(&place, "add", raw.add.as_ref(), message, Change::Add),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Remove,
    Set,
    Add,
}

fn fields(
    place: &Place<'_>,
    key: &str,
    node: Option<&Node<Named<Leaf>>>,
    message: Message,
    change: Change,
) -> Vec<(String, Template)> {
    let Some((place, table)) = place.table(key, node, WRITE_TABLE) else { return Vec::new() };
    let mut seen: Vec<String> = Vec::new();
    let mut list = Vec::new();
    for (name, leaf) in table {
        let edit = Edit { place: place.child(name.get_ref(), name.span()), message, change };
        let Ok(lower) = edit.name(name.get_ref()) else { continue };
        if seen.contains(&lower) {
            edit.place.problem("stands here twice: header names have no case, so remove one");
            continue;
        }
        seen.push(lower);
        let place = place.child(name.get_ref(), leaf.span());
        let value = match leaf.get_ref() {
            Scalar::Text(text) => template(&place, text),
            other => Err(place.wrong(other, WRITE_VALUE)),
        };
        if let Ok(value) = value {
            list.push((name.get_ref().clone(), value));
        }
    }
    list
}

/// One edit of one field.
struct Edit<'r> {
    place: Place<'r>,
    message: Message,
    change: Change,
}

impl Edit<'_> {
    /// The field's name in lower case, if it may be edited so.
    fn name(&self, name: &str) -> Result<String, Reported> {
        let lower = checked_name(&self.place, name)?;
        if FRAMING.contains(&lower.as_str()) {
            return Err(self.place.problem(format_args!(
                "edits \"{name}\", which frames the message or manages the connection and is \
                 Ringgate's own: remove the edit"
            )));
        }
        if lower != "host" || self.message == Message::Response {
            return Ok(lower);
        }
        match self.change {
            Change::Set => Ok(lower),
            Change::Add => {
                Err(self.place.problem("adds a second \"Host\", which is invalid: use `set`"))
            }
            Change::Remove => Err(self
                .place
                .problem("removes \"Host\", which every request needs: use `set` to change it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::control::config::tests::{bad_routes, routes, with_route};

    const PROBLEMS: &[(&str, &str, &str)] = &[
        (
            "upstream = \"api\"\nrequest_headers = { set = { \"X Y\" = \"1\" } }",
            "8:29",
            "`route[0].request_headers.set.X Y` names no header field",
        ),
        (
            "upstream = \"api\"\nrequest_headers = { set = { \"\" = \"1\" } }",
            "8:29",
            "names no header field",
        ),
        (
            "upstream = \"api\"\nresponse_headers = { remove = [\"Größe\"] }",
            "8:32",
            "names no header field",
        ),
        (
            "upstream = \"api\"\nrequest_headers = { remove = \"X\" }",
            "8:30",
            "`route[0].request_headers.remove` is \"X\": write a list of names",
        ),
        (
            "upstream = \"api\"\nrequest_headers = { set = [\"X\"] }",
            "8:27",
            "write a table like { \"X-Scheme\" = \"$scheme\" }",
        ),
        (
            "upstream = \"api\"\nrequest_headers = { set = { X = 1 } }",
            "8:33",
            "`route[0].request_headers.set.X` is 1: write text",
        ),
        (
            "upstream = \"api\"\nrequest_headers = { add = { X = \"a\\r\\nB: c\" } }",
            "8:33",
            "is \"a\\r\\nB: c\" with a line break, which would end the field",
        ),
        (
            "upstream = \"api\"\nresponse_headers = { add = { X = \"\\u0000\" } }",
            "8:34",
            "with a NUL",
        ),
        (
            "upstream = \"api\"\nresponse_headers = { add = { X = \"\\u001b\" } }",
            "8:34",
            "with a control character",
        ),
        (
            "upstream = \"api\"\nresponse_headers = { set = { X = \"$nonsense\" } }",
            "8:34",
            "`route[0].response_headers.set.X` is \"$nonsense\": ",
        ),
        (
            "upstream = \"api\"\nresponse_headers = { set = { X = \"1\", x = \"1\" } }",
            "8:39",
            "stands here twice",
        ),
        (
            "upstream = \"api\"\nrequest_headers = { add = { Host = \"a\" } }",
            "8:29",
            "adds a second \"Host\"",
        ),
        (
            "upstream = \"api\"\nrequest_headers = { remove = [\"host\"] }",
            "8:31",
            "removes \"Host\"",
        ),
        (
            "upstream = \"api\"\nrequest_headers = 1",
            "8:19",
            "write a table with `set`, `add` and `remove`",
        ),
    ];

    #[test]
    fn problems() {
        bad_routes(PROBLEMS);
    }

    #[test]
    fn framing_fields_are_not_edited() {
        for name in [
            "Connection",
            "Transfer-Encoding",
            "Content-Length",
            "Upgrade",
            "Keep-Alive",
            "TE",
            "Trailer",
        ] {
            let says =
                format!("edits \"{name}\", which frames the message or manages the connection");
            for (edits, at) in [
                (format!("set = {{ {name} = \"1\" }}"), "9:9"),
                (format!("add = {{ {name} = \"1\" }}"), "9:9"),
                (format!("remove = [\"{name}\"]"), "9:11"),
            ] {
                for whose in ["request", "response"] {
                    let keys = format!("upstream = \"api\"\n[route.{whose}_headers]\n{edits}");
                    bad_routes(&[(&keys, at, &says)]);
                }
            }
        }
    }

    #[test]
    fn spelling_is_kept_where_it_is_sent() {
        let list = routes(
            "upstream = \"api\"\n[route.request_headers]\nset = { Host = \"$host\", X-ID = \"a\\tb\" }\n\
             add = { x-Y = \"é\" }\nremove = [\"X-Debug\"]\n[route.response_headers]\nremove = [\"Host\"]",
        );
        let edits = &list[0].request_headers;
        let names: Vec<_> = edits.set.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Host", "X-ID"]);
        assert_eq!(edits.set[0].1, Template::parse("$host").unwrap());
        assert_eq!(edits.add[0].0, "x-Y");
        assert_eq!(edits.remove, ["x-debug"]);
        assert_eq!(list[0].response_headers.remove, ["host"]);
        assert!(
            parse("t", &with_route("upstream = \"api\"")).unwrap().service.routes[0]
                .request_headers
                .is_empty()
        );
    }
}

//! Text into raw tables, with every unknown key reported instead of the first alone.
//!
//! serde stops at an unknown key. It is noted and mended in the tree, and the tree is read again.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{nearest, suggest};
use super::place::{Report, Reported};
use super::raw::{File, TABLES};

/// Unknown keys reported at most; each costs a pass over the file.
const UNKNOWN_MAX: usize = 20;

/// Parses the text; unknown keys are noted, then left out or taken as the nearest known one.
pub(super) fn read(report: &Report<'_>, text: &str) -> Result<File, Reported> {
    let (mut tree, errors) = DeTable::parse_recoverable(text);
    let mut failed = None;
    for error in first_of_each_line(text, &errors) {
        let span = error.span().unwrap_or_default();
        failed = Some(report.problem(span, format!("not TOML: {}", error.message())));
    }
    if let Some(reported) = failed {
        return Err(reported);
    }
    dates(report, tree.get_mut());
    for _ in 0..UNKNOWN_MAX {
        let error = match File::deserialize(toml::Deserializer::from(tree.clone())) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_default();
        let known = known(error.message());
        let Some(key) = mend(tree.get_mut(), &span, &known) else {
            return Err(report.problem(span, error.message().to_owned()));
        };
        failed = Some(report.problem(span, unknown(&key, &known)));
    }
    Err(failed.unwrap_or_else(|| report.problem(0..0, "too many unknown keys".to_owned())))
}

/// One fault often causes more on its line; the first is the one to mend.
fn first_of_each_line<'e>(
    text: &str,
    errors: &'e [toml::de::Error],
) -> impl Iterator<Item = &'e toml::de::Error> {
    let mut last = None;
    errors.iter().filter(move |error| {
        let start = text.floor_char_boundary(error.span().unwrap_or_default().start);
        let line = text.get(..start).unwrap_or_default().rfind('\n');
        last.replace(line) != Some(line)
    })
}

/// The known keys, with which serde's message ends.
fn known(message: &str) -> Vec<&str> {
    let list = message.rsplit_once("`, expected ").map_or("", |(_, list)| list);
    list.split('`').skip(1).step_by(2).collect()
}

/// The message for an unknown key.
fn unknown(key: &str, known: &[&str]) -> String {
    let mut write = suggest(key, known.iter().copied());
    // A key below `[route.request_headers]` belongs to that table, which is easily overlooked.
    let homes = TABLES.iter().filter(|(table, keys)| table.starts_with('[') && keys.contains(&key));
    let homes: Vec<String> = homes.map(|(table, _)| format!("`{table}`")).collect();
    if !homes.is_empty() && !write.starts_with("did you mean") {
        write = format!("it belongs in {}: move it there, or {write}", homes.join(" or "));
    }
    format!("unknown key `{}`: {write}", key.escape_debug())
}

/// Takes the key at `span` out of the tree, or renames it to what was probably meant, so that its
/// absence is no second problem.
fn mend(table: &mut DeTable<'_>, span: &Range<usize>, known: &[&str]) -> Option<String> {
    let found = table.keys().find(|key| key.span() == *span).cloned();
    let Some(key) = found else {
        return table.iter_mut().find_map(|(_, value)| mend_within(value, span, known));
    };
    let value = table.remove(&key)?;
    if let Some(meant) = nearest(key.get_ref(), known.iter().copied()) {
        let meant = Spanned::new(span.clone(), meant.to_owned().into());
        if !table.contains_key(&meant) {
            table.insert(meant, value);
        }
    }
    Some(key.into_inner().into_owned())
}

fn mend_within(
    value: &mut Spanned<DeValue<'_>>,
    span: &Range<usize>,
    known: &[&str],
) -> Option<String> {
    match value.get_mut() {
        DeValue::Table(table) => mend(table, span, known),
        DeValue::Array(list) => list.iter_mut().find_map(|item| mend_within(item, span, known)),
        _ => None,
    }
}

/// TOML has dates, which serde sees as tables of a private key; no key here takes one.
fn dates(report: &Report<'_>, table: &mut DeTable<'_>) {
    for (_, value) in table.iter_mut() {
        dates_within(report, value);
    }
}

fn dates_within(report: &Report<'_>, value: &mut Spanned<DeValue<'_>>) {
    let span = value.span();
    match value.get_mut() {
        DeValue::Table(table) => dates(report, table),
        DeValue::Array(list) => list.iter_mut().for_each(|item| dates_within(report, item)),
        DeValue::Datetime(date) => {
            let text = date.to_string();
            report.problem(span, format!("a date stands here: write \"{text}\" for text"));
            *value.get_mut() = DeValue::String(text.into());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use crate::control::config::parse;
    use crate::control::config::raw::TABLES;
    use crate::control::config::tests::{bad, bad_exactly};

    #[test]
    fn unknown_keys_at_every_level() {
        bad_exactly(&[
            (
                "lisener = 1\n[[listener]]\nbind = \"0.0.0.0:80\"",
                "1:1",
                "unknown key `lisener`: did you mean `listener`?",
            ),
            (
                "[[listener]]\nbind = \"0.0.0.0:80\"\n[upsteam.api]\nservers = [{ address = \"b:1\" }]",
                "3:2",
                "unknown key `upsteam`: did you mean `upstream`?",
            ),
            (
                "[[listener]]\nbnid = 1\nbind = \"0.0.0.0:80\"",
                "2:1",
                "unknown key `bnid`: did you mean `bind`?",
            ),
            (
                "bind = 1\n[[listener]]\nbind = \"0.0.0.0:80\"",
                "1:1",
                "unknown key `bind`: it belongs in `[admin]` or `[[listener]]`: move it there",
            ),
            (
                "[[listener]]\nbind = \"0.0.0.0:80\"\n\"a\\nb`, expected `c\" = 1",
                "3:1",
                "unknown key `a\\nb`, expected `c`: write one of `name`, `bind`",
            ),
        ]);
        bad(&[
            ("[node]\nshard = 1", "2:1", "did you mean `shards`?"),
            ("[log]\nacces = \"off\"", "2:1", "did you mean `access`?"),
            ("[admin]\nbinds = \"off\"", "2:1", "did you mean `bind`?"),
            (
                "[http]\nx = 1",
                "2:1",
                "unknown key `x`: write one of `client_header_timeout`, `client_body_timeout`",
            ),
            (
                "admin = { bind = \"off\", x = 1 }",
                "1:25",
                "unknown key `x`: write one of `bind`, `token_file`, `socket`",
            ),
            ("http.send_timout = \"1s\"", "1:6", "did you mean `send_timeout`?"),
        ]);
    }

    #[test]
    fn unknown_keys_of_routes_and_upstreams() {
        let route = "[[listener]]\nbind = \"0.0.0.0:80\"\n[upstream.a]\nservers = [{ address = \"b:1\" }]\n[[route]]";
        let route = |line: &str| format!("{route}\n{line}");
        bad_exactly(&[
            (route("upstraem = \"a\"\nupstream = \"a\""), "6:1", "did you mean `upstream`?"),
            (
                route("upstream = \"a\"\npath = { exakt = \"/\", exact = \"/\" }"),
                "7:10",
                "did you mean `exact`?",
            ),
            (
                route("upstream = \"a\"\nheaders = { X = { presnt = true, present = true } }"),
                "7:19",
                "did you mean `present`?",
            ),
            (route("respond = { stauts = 200 }"), "6:13", "did you mean `status`?"),
            (route("redirect = { too = \"/\", to = \"/\" }"), "6:14", "did you mean `to`?"),
            (
                route("upstream = \"a\"\nrewrite = { regexp = \"a\", regex = \"a\", to = \"b\" }"),
                "7:13",
                "did you mean `regex`?",
            ),
            (
                route("upstream = \"a\"\n[route.request_headers]\nsets = {}"),
                "8:1",
                "did you mean `set`?",
            ),
            (
                route("upstream = \"a\"\n[route.response_headers]\nmethods = {}"),
                "8:1",
                "unknown key `methods`: it belongs in `[[route]]`: move it there, or write one of `set`",
            ),
            (
                route(
                    "upstream = \"a\"\n[upstream.b]\nbalanse = \"ip_hash\"\nservers = [{ address = \"b:1\" }]",
                ),
                "8:1",
                "did you mean `balance`?",
            ),
            (
                route(
                    "upstream = \"a\"\n[upstream.b]\nretry = { trys = 1 }\nservers = [{ address = \"b:1\" }]",
                ),
                "8:11",
                "unknown key `trys`: did you mean `tries`?",
            ),
            (
                route(
                    "upstream = \"a\"\n[upstream.b]\nservers = [\n  { address = \"b:1\", wieght = 1 }]",
                ),
                "9:22",
                "unknown key `wieght`: did you mean `weight`?",
            ),
        ]);
    }

    #[test]
    fn every_unknown_key_and_every_wrong_value_is_reported_at_once() {
        let text =
            "[nodes]\n[[listener]]\nbinds = 1\nbacklog = 0\n[http]\nx = 1\ny = 2\nmax_headers = 0";
        let errors = parse("t", text).unwrap_err();
        let places: Vec<_> = errors.errors().iter().filter_map(|e| e.position).collect();
        let lines: Vec<_> = places.iter().map(|at| at.line).collect();
        // `binds` is taken as `bind`, so line 3 has its name and its value wrong.
        assert_eq!(lines, [1, 3, 3, 4, 6, 7, 8], "{errors}");
        let many: String = (0..100).map(|i| format!("k{i} = 1\n")).collect();
        assert_eq!(parse("t", &many).unwrap_err().errors().len(), super::UNKNOWN_MAX);
    }

    #[test]
    fn syntax_errors_and_dates() {
        bad_exactly(&[
            ("[node\n", "1:6", "not TOML: "),
            ("a = \n", "1:5", "not TOML: "),
            ("[node]\npin = true\npin = true", "3:1", "not TOML: duplicate key"),
            ("[node]\ndrain_timeout = 30s", "2:17", "not TOML: "),
        ]);
        bad(&[(
            "[log]\naccess_file = 2020-01-01",
            "2:15",
            "a date stands here: write \"2020-01-01\" for text",
        )]);
        let two = parse("t", "[log\nformat = \"\n[node]\npin = = 1").unwrap_err();
        let lines: Vec<_> =
            two.errors().iter().filter_map(|e| e.position).map(|at| at.line).collect();
        assert_eq!(lines, [1, 4], "{two}");
    }

    #[test]
    fn nesting_is_bounded() {
        for text in ["a.".repeat(50_000) + "a = 1", "a = ".to_owned() + &"[".repeat(50_000)] {
            assert!(parse("t", &text).is_err());
        }
    }

    #[test]
    fn the_reference_file_documents_every_key() {
        let text = include_str!("../../../deploy/ringgate.toml");
        for (table, keys) in TABLES {
            for key in *keys {
                let forms = [
                    format!("{key} = "),
                    format!("[{key}]"),
                    format!("[{key}."),
                    format!(".{key}]"),
                ];
                assert!(forms.iter().any(|form| text.contains(form)), "{table}: {key}");
            }
        }
    }
}

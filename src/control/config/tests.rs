//! Tests of the whole file, and what the tests of its parts share.

use proptest::prelude::*;

use super::*;

/// A route, so that `[[listener]]` can stand before it.
pub(super) const ROUTES: &str = "[[route]]\nrespond = {}";

/// The least that is valid.
const REST: &str = "[[listener]]\nbind = \"0.0.0.0:80\"\n[[route]]\nrespond = {}";

/// Parses `text` with a listener and a route behind it.
pub(super) fn good(text: &str) -> Config {
    match parse("t", &format!("{text}\n{REST}")) {
        Ok(config) => config,
        Err(errors) => panic!("{text}\n{errors}"),
    }
}

/// As [`bad_exactly`], with a listener and a route behind each text.
pub(super) fn bad<T: AsRef<str>>(cases: &[(T, &str, &str)]) {
    let full: Vec<_> = cases
        .iter()
        .map(|(text, at, says)| (format!("{}\n{REST}", text.as_ref()), *at, *says))
        .collect();
    bad_exactly(&full);
}

/// Each text has one problem: `line:column` and a part of its message.
pub(super) fn bad_exactly<T: AsRef<str>>(cases: &[(T, &str, &str)]) {
    for (text, at, says) in cases {
        let text = text.as_ref();
        let Err(errors) = parse("t", text) else { panic!("accepted:\n{text}") };
        let [error] = errors.errors() else { panic!("not one problem:\n{errors}\nin\n{text}") };
        let place = error.position.map(|place| format!("{}:{}", place.line, place.column));
        assert_eq!(place.as_deref(), Some(*at), "{text}\n{error}");
        assert!(error.message.contains(says), "{text}\n{error}\nwanted: {says}");
    }
}

/// A file whose line 7 starts a route's keys; listener `web` and upstream `api` stand before it.
pub(super) fn with_route(keys: &str) -> String {
    format!(
        "[[listener]]\nname = \"web\"\nbind = \"0.0.0.0:80\"\n\
         [upstream.api]\nservers = [{{ address = \"b:1\" }}]\n[[route]]\n{keys}"
    )
}

/// As [`bad_exactly`], for the keys of a route from line 7 on.
pub(super) fn bad_routes(cases: &[(&str, &str, &str)]) {
    let full: Vec<_> =
        cases.iter().map(|(keys, at, says)| (with_route(keys), *at, *says)).collect();
    bad_exactly(&full);
}

/// The routes of [`with_route`].
pub(super) fn routes(keys: &str) -> Vec<crate::l7::config::Route> {
    match parse("t", &with_route(keys)) {
        Ok(config) => config.service.routes,
        Err(errors) => panic!("{keys}\n{errors}"),
    }
}

const REFERENCE: &str = include_str!("../../../deploy/ringgate.toml");

/// Keys of the reference that are required or marked as examples; all others show their default.
const EXAMPLES: [&str; 28] = [
    "real_server.addresses",
    "virtual_server.address",
    "virtual_server.servers.address",
    "listener.name",
    "listener.bind",
    "route.host",
    "route.path",
    "route.upstream",
    "route.strip_prefix",
    "route.request_headers.set",
    "route.request_headers.remove",
    "route.response_headers.remove",
    "route.respond.body",
    "route.redirect.status",
    "route.redirect.to",
    "vrrp.VI_1.interface",
    "vrrp.VI_1.virtual_router_id",
    "vrrp.VI_1.addresses",
    "vrrp.VI_6.interface",
    "vrrp.VI_6.virtual_router_id",
    "vrrp.VI_6.addresses",
    "vrrp_script.backend.script",
    "vrrp_sync_group.VG_1.group",
    "tracing.endpoint",
    "upstream.api.check.http",
    "upstream.api.outlier.error_percent",
    "upstream.api.servers.address",
    // The second server's; the first one's is a default and stays too.
    "upstream.api.servers.backup",
];

fn strip_defaults(path: &str, table: &mut toml::Table) {
    table.retain(|key, value| {
        let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(table) => strip_defaults(&path, table),
            toml::Value::Array(list) => {
                let tables = list.iter_mut().filter_map(toml::Value::as_table_mut);
                tables.for_each(|table| strip_defaults(&path, table));
            }
            _ => {}
        }
        let within = |outer: &str, inner: &str| inner.starts_with(&format!("{outer}."));
        EXAMPLES.iter().any(|kept| *kept == path || within(&path, kept) || within(kept, &path))
    });
}

#[test]
fn documented_defaults_are_the_real_ones() {
    let full = parse("ringgate.toml", REFERENCE).unwrap_or_else(|errors| panic!("{errors}"));
    // A secret has no default that could be shown.
    let [seed] = &full.warnings[..] else { panic!("{:?}", full.warnings) };
    assert!(seed.contains("`director.seed` is not set"), "{seed}");
    let mut table: toml::Table = REFERENCE.parse().unwrap();
    strip_defaults("", &mut table);
    let text = table.to_string();
    for gone in ["[node]", "[log]", "[admin]", "[http]", "balance", "backlog", "weight", "tries"] {
        assert!(!text.contains(gone), "{gone} is left:\n{text}");
    }
    let stripped = parse("stripped", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let without_text =
        |config: Config| Config { text: String::new(), warnings: Vec::new(), ..config };
    let (stripped, full) = (without_text(stripped), without_text(full));
    assert_eq!(format!("{stripped:?}"), format!("{full:?}"));
}

#[test]
fn commented_keys_of_the_reference_are_valid() {
    let mut text = String::new();
    for line in REFERENCE.lines() {
        let key = line.strip_prefix("# ").filter(|rest| rest.contains(" = "));
        let replaced = line.starts_with("strip_prefix") || line.starts_with("balance");
        match key {
            Some(key) if key.starts_with("hash_key") => text += "balance = \"maglev\"\n",
            _ => {}
        }
        text += if replaced { "" } else { key.unwrap_or(line) };
        text.push('\n');
    }
    let config = parse("t", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let route = &config.service.routes[0];
    assert_eq!((route.listeners.len(), route.methods.len(), route.headers.len()), (1, 2, 3));
    assert!(route.rewrite.is_some() && route.client_max_body_size == Some(10 << 20));
    assert!(config.service.upstreams[0].proxy_protocol.is_some());
}

#[test]
fn files_that_cannot_be_read() {
    let directory = std::env::temp_dir().join(format!("ringgate-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, bytes).unwrap();
        load(&path).unwrap_err().to_string()
    };
    let binary = write("binary", b"[node]\n# \xff");
    let large = write("large", &vec![b'\n'; 5 << 20]);
    let missing = load(&directory.join("missing")).unwrap_err().to_string();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(binary.contains("binary:2:3: the file is not UTF-8 from here on"), "{binary}");
    assert!(large.contains("large: the file is larger than 4m"), "{large}");
    assert!(missing.contains("missing: cannot read: No such file"), "{missing}");
}

/// Either valid, or refused with problems that render.
fn judge(text: &str) {
    if let Err(errors) = parse("t", text) {
        assert!(!errors.errors().is_empty());
        assert!(errors.to_string().starts_with("t:"), "{errors}");
    }
}

proptest! {
    #[test]
    fn any_text_is_judged(text in "(.|\n){0,200}") {
        judge(&text);
    }

    /// Lines of the reference, shuffled and cut, are nearer to a configuration than noise is.
    #[test]
    fn any_mix_of_reference_lines_is_judged(
        picks in prop::collection::vec((0usize..200, 0usize..200), 0..40)
    ) {
        let lines: Vec<&str> = REFERENCE.lines().collect();
        let line = |(index, cut): &(usize, usize)| {
            let line = lines[index % lines.len()].trim_start_matches("# ");
            line[..line.floor_char_boundary(*cut)].to_owned()
        };
        judge(&picks.iter().map(line).collect::<Vec<_>>().join("\n"));
    }

    /// One value of the reference replaced by another.
    #[test]
    fn any_value_at_any_key_is_judged(
        line in 0usize..200,
        value in prop_oneof![
            Just("[]"), Just("{}"), Just("-1"), Just("1e400"), Just("\"\""), Just("true"),
            Just("[[1]]"), Just("{ a = { b = 1 } }"), Just("9223372036854775807"), Just("\"*\""),
            Just("99999999999999999999999999999999999999999999"), Just("1979-05-27T07:32:00Z"),
            Just("\"$\""), Just("\"\\u0000\""), Just("[{}]"), Just("nan"),
        ],
    ) {
        let lines: Vec<&str> = REFERENCE.lines().collect();
        let line = line % lines.len();
        let changed = |(index, text): (usize, &&str)| match text.split_once(" = ") {
            Some((key, _)) if index == line => {
                format!("{} = {value}", key.trim_start_matches("# "))
            }
            _ => (*text).to_owned(),
        };
        judge(&lines.iter().enumerate().map(changed).collect::<Vec<_>>().join("\n"));
    }
}

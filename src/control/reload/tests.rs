use super::diff::{Diff, Side, Verdict};
use super::{Outcome, describe};
use crate::control::config::{Config, parse};

const BASE: &str = r#"
[node]
shards = 2
[log]
level = "info"
[http]
keepalive_timeout = "60s"
[[listener]]
name = "web"
bind = "127.0.0.1:8001"
backlog = 511
[[listener]]
name = "more"
bind = "127.0.0.1:8002"
[[route]]
host = "a.example"
path = "/api/"
upstream = "one"
[[route]]
path = "/x"
respond = { status = 200, body = "x" }
[[route]]
upstream = "two"
[upstream.one]
balance = "least_conn"
retry = { tries = 2 }
servers = [{ address = "10.0.0.1:80" }, { address = "10.0.0.2:80", weight = 2 }]
[upstream.two]
servers = [{ address = "10.0.0.3:80" }]
[vrrp.VI_1]
interface = "eth0"
virtual_router_id = 51
priority = 100
addresses = ["10.0.0.100/24"]
"#;

fn config(text: &str) -> Config {
    parse("test", text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

fn diff(old: &str, new: &str) -> Diff {
    let (old_config, new_config) = (config(old), config(new));
    let (old, new) = (old.parse().unwrap(), new.parse().unwrap());
    Diff::new(&Side { file: &old, config: &old_config }, &Side { file: &new, config: &new_config })
}

fn lines(old: &str, new: &str) -> Vec<(String, Verdict)> {
    diff(old, new).lines.into_iter().map(|line| (line.text, line.verdict)).collect()
}

/// Each change alone: what it is called, and what becomes of it.
#[test]
fn changes_in_words() {
    use Verdict::{Applies, NextStart, Refused};
    let restart = "it needs a new process: restart, or `ringgate ctl upgrade`";
    for (from, to, text, verdict) in [
        (
            "backlog = 511",
            "backlog = 1024",
            "listener web: backlog changed from 511 to 1024",
            Applies,
        ),
        (
            "bind = \"127.0.0.1:8002\"",
            "bind = \"127.0.0.1:8003\"",
            "listener more: bind changed from \"127.0.0.1:8002\" to \"127.0.0.1:8003\"",
            Applies,
        ),
        (
            "[[listener]]\nname = \"more\"\nbind = \"127.0.0.1:8002\"\n",
            "",
            "listener more removed: what waits and what is under way is still served",
            Applies,
        ),
        (
            "[[route]]\nhost",
            "[[listener]]\nbind = \"127.0.0.1:9\"\n[[route]]\nhost",
            "listener 127.0.0.1:9 added (bind = \"127.0.0.1:9\")",
            Applies,
        ),
        (
            "upstream = \"one\"",
            "upstream = \"two\"",
            "route (host = \"a.example\", path = \"/api/\"): upstream changed from \"one\" to \"two\"",
            Applies,
        ),
        (
            "body = \"x\"",
            "body = \"y\"",
            "route (path = \"/x\"): respond.body changed from \"x\" to \"y\"",
            Applies,
        ),
        ("[[route]]\nupstream = \"two\"\n", "", "route (for everything) removed", Applies),
        (
            "[upstream.one]",
            "[[route]]\npath = \"/y\"\nupstream = \"two\"\n[upstream.one]",
            "route (path = \"/y\") added: upstream = \"two\"",
            Applies,
        ),
        (
            "\"least_conn\"",
            "\"round_robin\"",
            "upstream one: balance changed from \"least_conn\" to \"round_robin\"",
            Applies,
        ),
        ("tries = 2", "tries = 3", "upstream one: retry.tries changed from 2 to 3", Applies),
        (
            "servers = [{ address = \"10.0.0.3:80\" }]",
            "keepalive = 9\nservers = [{ address = \"10.0.0.3:80\" }]",
            "upstream two: keepalive changed from its default to 9",
            Applies,
        ),
        (
            "{ address = \"10.0.0.3:80\" }",
            "{ address = \"10.0.0.3:80\" }, { address = \"10.0.0.4:80\" }",
            "server 10.0.0.4:80 added to upstream two",
            Applies,
        ),
        (
            ", { address = \"10.0.0.2:80\", weight = 2 }",
            "",
            "server 10.0.0.2:80 removed from upstream one",
            Applies,
        ),
        (
            "weight = 2",
            "weight = 5",
            "upstream one: server 10.0.0.2:80: weight changed from 2 to 5",
            Applies,
        ),
        ("\"60s\"", "\"90s\"", "http.keepalive_timeout changed from \"60s\" to \"90s\"", Applies),
        ("\"info\"", "\"debug\"", "log.level changed from \"info\" to \"debug\"", Applies),
        (
            "shards = 2",
            "shards = 2\nmax_connections = 7",
            "node.max_connections changed from its default to 7",
            Applies,
        ),
        (
            "priority = 100",
            "priority = 150",
            "vrrp VI_1: priority changed from 100 to 150 (in place)",
            Applies,
        ),
        (
            "10.0.0.100/24",
            "10.0.0.101/24",
            "vrrp VI_1: addresses changed from [\"10.0.0.100/24\"] to [\"10.0.0.101/24\"] (this \
             instance resigns and begins anew)",
            Applies,
        ),
        (
            "[[route]]\nhost",
            "[tuning]\nprofile = \"edge\"\n[[route]]\nhost",
            "tuning.profile changed from its default to \"edge\": applies at the next start",
            NextStart,
        ),
        (
            "shards = 2",
            "shards = 3",
            &format!(
                "node.shards changed from 2 to 3: cannot be changed by reload: shards are threads \
                 with rings of their own; {restart}"
            ),
            Refused,
        ),
        (
            "[log]",
            "[admin]\nbind = \"127.0.0.1:9999\"\n[log]",
            &format!(
                "admin.bind changed from its default to \"127.0.0.1:9999\": cannot be changed by \
                 reload: the admin endpoint stays open; {restart}"
            ),
            Refused,
        ),
    ] {
        let new = BASE.replacen(from, to, 1);
        assert_ne!(new, BASE, "{from}");
        assert_eq!(lines(BASE, &new), [(text.to_owned(), verdict)], "{from} -> {to}");
    }
}

#[test]
fn what_means_the_same_is_no_change() {
    for (from, to) in [
        ("[node]", "# a comment\n\n[node]"),
        ("shards = 2\n", "shards = 0x2\n"),
        ("weight = 2 }", "weight = 2}"),
    ] {
        let new = BASE.replacen(from, to, 1);
        assert_ne!(new, BASE);
        assert!(diff(BASE, &new).is_empty(), "{from}: {:?}", lines(BASE, &new));
    }
}

#[test]
fn order_counts_where_it_decides() {
    let routes = BASE.replace("path = \"/x\"\n", "path = { regex = \"x\" }\n");
    let first = "[[route]]\npath = { regex = \"^/a\" }\nupstream = \"two\"\n";
    let (one, other) = (
        routes.replace("[[route]]\nhost", &format!("{first}[[route]]\nhost")),
        routes.replace("[upstream.one]", &format!("{first}[upstream.one]")),
    );
    assert_eq!(
        lines(&one, &other),
        [("routes stand in another order".to_owned(), Verdict::Applies)]
    );
}

#[test]
fn a_part_that_nobody_handles_is_refused() {
    let (old, mut new) = (config(BASE), BASE.to_owned());
    new.push_str("[future]\nkey = 1\n");
    let (file, new) = (BASE.parse().unwrap(), new.parse().unwrap());
    let diff = Diff::new(&Side { file: &file, config: &old }, &Side { file: &new, config: &old });
    assert!(diff.is_refused());
    let text = describe(&diff, Outcome::Refused, 1);
    assert!(text.starts_with("REFUSED: future changed"), "{text}");
    assert!(text.ends_with("nothing was changed"), "{text}");
}

#[test]
fn long_values_are_cut_at_a_character() {
    let new = BASE.replace("\"x\" }", &format!("\"{}\" }}", "ö".repeat(500)));
    let lines = lines(BASE, &new);
    assert!(lines[0].0.ends_with('…') && lines[0].0.chars().count() < 200, "{lines:?}");
}

//! `[upstream.NAME]`: groups of servers.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use super::check::Style;
use super::{address, check, headers, listeners, tls};
use crate::balance::{Policy, outlier};
use crate::control::config::checks::UpstreamCheck;
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Content, Node};
use crate::l7::config::{Breaker, ProxyVersion, Retry, Server, ServerAddress, Upstream};
use crate::l7::template::Template;

const WRITE_UPSTREAM: &str = "write it as `[upstream.NAME]`";
const WRITE_SERVERS: &str = r#"write a list like [{ address = "10.0.1.11:8080" }]"#;
const WRITE_ADDRESS: &str = r#"write one like "10.0.1.11:8080" or "app.internal:8080""#;

const POLICIES: [(&str, Policy); 5] = [
    ("round_robin", Policy::RoundRobin),
    ("least_conn", Policy::LeastConn),
    ("ip_hash", Policy::IpHash),
    ("maglev", Policy::Maglev),
    ("random_two", Policy::RandomTwo),
];

const KEEPALIVE_MAX: u32 = 1 << 20;
const TRIES_MAX: u32 = 100;
const BUDGET_PERCENT_MAX: u32 = 1000;
const WEIGHT_MAX: u32 = 65_535;

/// The names in the order of the indices, those of upstreams with problems included.
pub(super) fn names(file: &raw::File) -> Vec<(&str, Range<usize>)> {
    match file.upstream.as_ref().map(Node::get_ref) {
        Some(Content::Wanted(table)) => {
            table.keys().map(|name| (name.get_ref().as_str(), name.span())).collect()
        }
        _ => Vec::new(),
    }
}

pub(super) fn upstreams(root: &Place<'_>, file: &raw::File) -> Result<Vec<Upstream>, Reported> {
    let Some(node) = &file.upstream else { return Ok(Vec::new()) };
    let (place, table) = root.wanted("upstream", node, WRITE_UPSTREAM)?;
    let read = |(name, node): (&toml::Spanned<String>, _)| {
        let checked = listeners::check_name(name.get_ref()).map_err(|write| {
            let place = place.child(name.get_ref(), name.span());
            place.problem(format_args!("has a name that cannot stand unquoted: {write}"))
        });
        let (place, raw) = place.wanted(name.get_ref(), node, WRITE_UPSTREAM)?;
        let upstream = upstream(&place, name.get_ref(), raw);
        checked.and(upstream)
    };
    let upstreams: Vec<Result<Upstream, Reported>> = table.iter().map(read).collect();
    upstreams.into_iter().collect()
}

fn upstream(place: &Place<'_>, name: &str, raw: &raw::Upstream) -> Result<Upstream, Reported> {
    let balance = place.choice("balance", &raw.balance, &POLICIES, Policy::RoundRobin);
    let hash_key = hash_key(place, raw, balance);
    let versions = [("v1", Some(ProxyVersion::V1)), ("v2", Some(ProxyVersion::V2))];
    let servers = servers(place, raw);
    let seconds = |key, leaf, seconds| place.duration(key, leaf, Duration::from_secs(seconds));
    let requests = &raw.keepalive_requests;
    let http2 = place.boolean("http2", &raw.http2, false);
    if let Some((key, _)) = place.leaf("proxy_protocol", &raw.proxy_protocol).filter(|_| http2) {
        key.problem("tells of one client a connection, which `http2` shares: remove one of them");
    }
    Ok(Upstream {
        name: name.to_owned(),
        balance,
        keepalive: place.integer("keepalive", &raw.keepalive, 0..=KEEPALIVE_MAX, 1024),
        keepalive_timeout: seconds("keepalive_timeout", &raw.keepalive_timeout, 60),
        keepalive_requests: place.integer("keepalive_requests", requests, 1..=u32::MAX, 100_000),
        keepalive_time: seconds("keepalive_time", &raw.keepalive_time, 3600),
        connect_timeout: seconds("connect_timeout", &raw.connect_timeout, 5),
        send_timeout: seconds("send_timeout", &raw.send_timeout, 60),
        read_timeout: seconds("read_timeout", &raw.read_timeout, 60),
        retry: retry(place, raw),
        http2,
        proxy_protocol: place.choice("proxy_protocol", &raw.proxy_protocol, &versions, None),
        tls: tls::upstream(place, raw),
        slow_start: place.duration_or_zero("slow_start", &raw.slow_start, Duration::ZERO),
        panic_threshold: place.integer("panic_threshold", &raw.panic_threshold, 0..=100, 0),
        outlier: outlier(place, raw),
        breaker: breaker(place, raw),
        hash_key: hash_key?,
        servers: servers?,
    })
}

fn outlier(place: &Place<'_>, raw: &raw::Upstream) -> Option<outlier::Settings> {
    let write = "write a table like { error_percent = 50 }";
    let (place, raw) = place.table("outlier", raw.outlier.as_ref(), write)?;
    let seconds = |key, leaf, seconds| place.duration(key, leaf, Duration::from_secs(seconds));
    let settings = outlier::Settings {
        interval: seconds("interval", &raw.interval, 10),
        error_percent: place.integer("error_percent", &raw.error_percent, 0..=100, 0),
        latency_factor: place.integer("latency_factor", &raw.latency_factor, 0..=1000, 0),
        min_requests: place.integer("min_requests", &raw.min_requests, 1..=1_000_000, 20),
        ejection_time: seconds("ejection_time", &raw.ejection_time, 30),
        max_ejected: place.integer("max_ejected", &raw.max_ejected, 1..=100, 50),
    };
    if settings.latency_factor == 1 {
        let (key, scalar) = place.leaf("latency_factor", &raw.latency_factor)?;
        key.wrong(scalar, "write 2 or more, or 0: every second server is slower than the median");
    }
    if raw.error_percent.is_none() && raw.latency_factor.is_none() {
        place.problem("finds nothing: write `error_percent` or `latency_factor`, or remove it");
    }
    Some(settings)
}

fn breaker(place: &Place<'_>, raw: &raw::Upstream) -> Breaker {
    let write = "write a table like { max_pending = 100 }";
    let Some((place, raw)) = place.table("breaker", raw.breaker.as_ref(), write) else {
        return Breaker::default();
    };
    Breaker {
        max_in_flight: place.integer("max_in_flight", &raw.max_in_flight, 0..=u32::MAX, 0),
        max_pending: place.integer("max_pending", &raw.max_pending, 0..=u32::MAX, 0),
    }
}

/// The checks of `upstreams`, which were read from the same tables in the same order.
pub(super) fn checks(
    root: &Place<'_>,
    file: &raw::File,
    upstreams: &[Upstream],
) -> Vec<Option<UpstreamCheck>> {
    let Some(Content::Wanted(table)) = file.upstream.as_ref().map(Node::get_ref) else {
        return Vec::new();
    };
    let root = root.child("upstream", 0..0);
    let read = |((name, node), upstream): ((&toml::Spanned<String>, _), &Upstream)| {
        let (place, raw) = root.wanted(name.get_ref(), node, WRITE_UPSTREAM).ok()?;
        check(&place, raw, upstream)
    };
    table.iter().zip(upstreams).map(read).collect()
}

fn check(place: &Place<'_>, raw: &raw::Upstream, upstream: &Upstream) -> Option<UpstreamCheck> {
    let servers = place.good_tables("servers", raw.servers.as_ref(), WRITE_SERVERS).into_iter();
    let servers = servers.map(|(place, raw)| check::Own {
        place,
        port: &raw.check_port,
        address: &raw.check_address,
    });
    let Some(node) = &raw.check else {
        servers.for_each(|own| own.refuse("upstream"));
        return None;
    };
    let write = r#"write a table like { http = "/healthz" }"#;
    let (place, raw) = place.wanted("check", node, write).ok()?;
    let base = check::check(&place, raw, Style::Upstream, upstream.tls.as_ref()).ok()?;
    if upstream.tls.is_some() && raw.http.is_some() && raw.port.is_none() {
        let key = place.child("http", raw.http.as_ref().map_or(0..0, toml::Spanned::span));
        key.warning("asks in the clear where the servers speak TLS: write `https`, or a `port`");
    }
    let servers = servers.map(|own| own.apply(&base.check)).collect();
    Some(UpstreamCheck { base, servers })
}

fn hash_key(place: &Place<'_>, raw: &raw::Upstream, balance: Policy) -> Result<Template, Reported> {
    let write = r#"write what to hash, like "$request_uri""#;
    let Some(read) = place.text("hash_key", &raw.hash_key, write) else {
        return headers::template(place, "$remote_addr");
    };
    let (place, text) = read?;
    if balance != Policy::Maglev {
        return Err(
            place.problem("is used by `balance = \"maglev\"` only: write that, or remove the key")
        );
    }
    if text.is_empty() {
        return Err(place.problem(format_args!("is empty: {write}")));
    }
    headers::template(&place, text)
}

fn retry(place: &Place<'_>, raw: &raw::Upstream) -> Retry {
    let empty = raw::Retry::default();
    let table = place.table("retry", raw.retry.as_ref(), "write a table like { tries = 3 }");
    let (place, raw) = table.unwrap_or_else(|| (place.clone(), &empty));
    let budget = &raw.budget_percent;
    let statuses = place.list("on_status", &raw.on_status, "write a list like [502, 503]");
    let mut on_status: Vec<u16> = Vec::new();
    for (place, scalar) in statuses.unwrap_or_default() {
        match place.number(scalar, &(400..=599)) {
            Ok(status) if !on_status.contains(&status) => on_status.push(status),
            _ => {}
        }
    }
    Retry {
        tries: place.integer("tries", &raw.tries, 1..=TRIES_MAX, 3),
        timeout: place.duration_or_zero("timeout", &raw.timeout, Duration::ZERO),
        budget_percent: place.integer("budget_percent", budget, 0..=BUDGET_PERCENT_MAX, 20),
        on_timeout: place.boolean("on_timeout", &raw.on_timeout, false),
        on_status,
        non_idempotent: place.boolean("non_idempotent", &raw.non_idempotent, false),
    }
}

fn servers(place: &Place<'_>, raw: &raw::Upstream) -> Result<Vec<Server>, Reported> {
    let Some(node) = &raw.servers else {
        return Err(place.missing("servers", WRITE_SERVERS));
    };
    let list = place.child("servers", node.span());
    let read =
        |table: Result<(Place<'_>, _), _>| table.and_then(|(place, raw)| server(&place, raw));
    let tables = place.tables("servers", node, WRITE_SERVERS)?;
    let servers: Vec<_> = tables.into_iter().map(read).collect();
    let servers = servers.into_iter().collect::<Result<Vec<Server>, Reported>>()?;
    if servers.is_empty() {
        return Err(list.problem(format_args!("is empty: {WRITE_SERVERS}")));
    }
    if servers.iter().all(|server| server.backup) {
        return Err(
            list.problem("has backups only, which stand in for others: remove `backup` from one")
        );
    }
    if servers.iter().all(|server| server.down) {
        list.warning("are all `down`: every request is answered with 502");
    }
    twice(&list, &servers);
    Ok(servers)
}

fn twice(list: &Place<'_>, servers: &[Server]) {
    let mut seen = HashMap::new();
    for (index, server) in servers.iter().enumerate() {
        let address = match &server.address {
            ServerAddress::Socket(address) => address.to_string(),
            ServerAddress::Name(name, port) => format!("{name}:{port}"),
        };
        if let Some(first) = seen.get(&address) {
            list.warning(format_args!("has {address} twice, as [{first}] and [{index}]"));
        } else {
            seen.insert(address, index);
        }
    }
}

fn server(place: &Place<'_>, raw: &raw::Server) -> Result<Server, Reported> {
    let address = match place.text("address", &raw.address, WRITE_ADDRESS) {
        None => Err(place.missing("address", WRITE_ADDRESS)),
        Some(read) => read.and_then(|(place, text)| address::server(&place, text)),
    };
    let fail_timeout = Duration::from_secs(10);
    Ok(Server {
        weight: place.integer("weight", &raw.weight, 1..=WEIGHT_MAX, 1),
        max_fails: place.integer("max_fails", &raw.max_fails, 0..=u32::MAX, 1),
        fail_timeout: place.duration("fail_timeout", &raw.fail_timeout, fail_timeout),
        backup: place.boolean("backup", &raw.backup, false),
        max_conns: place.integer("max_conns", &raw.max_conns, 0..=u32::MAX, 0),
        down: place.boolean("down", &raw.down, false),
        address: address?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::tests::{bad, good};

    const UPSTREAM_PROBLEMS: [(&str, &str, &str); 24] = [
        (
            "balance = \"round-robin\"",
            "3:11",
            "`upstream.a.balance` is \"round-robin\": did you mean \"round_robin\"?",
        ),
        ("balance = \"sticky\"", "3:11", "write one of \"round_robin\", \"least_conn\""),
        ("balance = 1", "3:11", "`upstream.a.balance` is 1: write one of"),
        (
            "hash_key = \"$uri\"",
            "3:12",
            "`upstream.a.hash_key` is used by `balance = \"maglev\"` only",
        ),
        (
            "balance = \"maglev\"\nhash_key = \"\"",
            "4:12",
            "`upstream.a.hash_key` is empty: write what to hash",
        ),
        (
            "balance = \"maglev\"\nhash_key = \"$nonsense\"",
            "4:12",
            "`upstream.a.hash_key` is \"$nonsense\": ",
        ),
        (
            "balance = \"maglev\"\nhash_key = 1",
            "4:12",
            "`upstream.a.hash_key` is 1: write what to hash",
        ),
        (
            "keepalive = -1",
            "3:13",
            "`upstream.a.keepalive` is -1: write a whole number from 0 to 1048576",
        ),
        ("keepalive_timeout = \"0s\"", "3:21", "write a time above zero (the default is \"1m\")"),
        ("keepalive_requests = 0", "3:22", "write a whole number from 1 to"),
        ("keepalive_time = \"0s\"", "3:18", "write a time above zero (the default is \"1h\")"),
        ("connect_timeout = \"0s\"", "3:19", "write a time above zero"),
        ("send_timeout = \"0s\"", "3:16", "write a time above zero"),
        ("read_timeout = \"0s\"", "3:16", "write a time above zero"),
        (
            "proxy_protocol = \"v3\"",
            "3:18",
            "`upstream.a.proxy_protocol` is \"v3\": did you mean \"v1\"?",
        ),
        ("proxy_protocol = true", "3:18", "write one of \"v1\", \"v2\""),
        ("retry = 3", "3:9", "`upstream.a.retry` is 3: write a table like { tries = 3 }"),
        (
            "retry = { tries = 0 }",
            "3:19",
            "`upstream.a.retry.tries` is 0: write a whole number from 1 to 100",
        ),
        ("retry = { timeout = 5 }", "3:21", "write \"5s\" for seconds"),
        (
            "retry = { budget_percent = 1001 }",
            "3:28",
            "`upstream.a.retry.budget_percent` is 1001: write a whole number from 0 to 1000",
        ),
        ("retry = { on_timeout = 1 }", "3:24", "write true or false"),
        (
            "retry = { on_status = 502 }",
            "3:23",
            "`upstream.a.retry.on_status` is 502: write a list like [502, 503]",
        ),
        (
            "retry = { on_status = [502, 200] }",
            "3:29",
            "`upstream.a.retry.on_status[1]` is 200: write a whole number from 400 to 599",
        ),
        ("retry = { non_idempotent = \"no\" }", "3:28", "write true or false"),
    ];

    #[test]
    fn problems_of_upstreams() {
        let server = "servers = [{ address = \"b:1\" }]";
        bad(&UPSTREAM_PROBLEMS
            .map(|(keys, at, says)| (format!("[upstream.a]\n{server}\n{keys}"), at, says)));
        bad(&[
            ("upstream = 1", "1:12", "`upstream` is 1: write it as `[upstream.NAME]`"),
            ("upstream.a = 1", "1:14", "`upstream.a` is 1: write it as `[upstream.NAME]`"),
            ("[[upstream]]", "1:1", "`upstream` is a list: write it as `[upstream.NAME]`"),
            (
                "[upstream.\"a b\"]\nservers = [{ address = \"b:1\" }]",
                "1:11",
                "`upstream.a b` has a name that cannot stand unquoted: a name is letters",
            ),
        ]);
    }

    const SERVER_PROBLEMS: [(&str, &str, &str); 22] = [
        ("{}", "3:3", "`upstream.a.servers[1].address` is missing: write one like"),
        (
            "{ address = 1 }",
            "3:15",
            "`upstream.a.servers[1].address` is 1: write one like \"10.0.1.11:8080\"",
        ),
        (
            "{ address = \"10.0.0.1\" }",
            "3:15",
            "the port is missing: write for example \"10.0.0.1:8080\"",
        ),
        ("{ address = \"::1\" }", "3:15", "the port is missing: write for example \"[::1]:8080\""),
        (
            "{ address = \"App.internal\" }",
            "3:15",
            "the port is missing: write for example \"app.internal:8080\"",
        ),
        ("{ address = \"app:0\" }", "3:15", "write a port from 1 to 65535"),
        ("{ address = \"10.0.0.1:0\" }", "3:15", "no server listens on port 0"),
        ("{ address = \"app:+80\" }", "3:15", "write a port from 1 to 65535"),
        ("{ address = \"app:http\" }", "3:15", "write a port from 1 to 65535"),
        ("{ address = \"app:65536\" }", "3:15", "write a port from 1 to 65535"),
        (
            "{ address = \"http://app:80/x\" }",
            "3:15",
            "leave out \"http://\" and any path: write \"app:80\"",
        ),
        ("{ address = \"10.0.0.256:80\" }", "3:15", "neither an IPv4 address nor a host name"),
        ("{ address = \"a b:80\" }", "3:15", "a host name is letters"),
        (
            "{ address = \"/run/app.sock\" }",
            "3:15",
            "write an address and port like \"10.0.1.11:8080\"",
        ),
        ("{ address = \":80\" }", "3:15", "a host name is letters"),
        (
            "{ address = \"c:1\", weight = 0 }",
            "3:31",
            "`upstream.a.servers[1].weight` is 0: write a whole number from 1 to 65535",
        ),
        ("{ address = \"c:1\", weight = 65536 }", "3:31", "write a whole number from 1 to 65535"),
        ("{ address = \"c:1\", max_fails = -1 }", "3:34", "write a whole number from 0 to"),
        ("{ address = \"c:1\", fail_timeout = \"0s\" }", "3:37", "write a time above zero"),
        ("{ address = \"c:1\", backup = 1 }", "3:31", "write true or false"),
        (
            "{ address = \"c:1\", max_conns = \"5\" }",
            "3:34",
            "`upstream.a.servers[1].max_conns` is \"5\": write a whole number",
        ),
        ("{ address = \"c:1\", down = 0 }", "3:29", "write true or false"),
    ];

    #[test]
    fn problems_of_servers() {
        bad(&[
            (
                "[upstream.a]",
                "1:1",
                "`upstream.a.servers` is missing: write a list like [{ address = ",
            ),
            ("[upstream.a]\nservers = []", "2:11", "`upstream.a.servers` is empty: write a list"),
            (
                "[upstream.a]\nservers = \"b:1\"",
                "2:11",
                "`upstream.a.servers` is \"b:1\": write a list like",
            ),
            (
                "[upstream.a]\nservers = [\"b:1\"]",
                "2:12",
                "`upstream.a.servers[0]` is \"b:1\": write a list like [{ address",
            ),
            (
                "[upstream.a]\nservers = [{ address = \"b:1\", backup = true }]",
                "2:11",
                "`upstream.a.servers` has backups only",
            ),
        ]);
        let text =
            |server| format!("[upstream.a]\nservers = [{{ address = \"b:1\" }},\n  {server}]");
        bad(&SERVER_PROBLEMS.map(|(server, at, says)| (text(server), at, says)));
    }

    #[test]
    fn values() {
        let upstreams = good(
            "[upstream.b]\nbalance = \"maglev\"\nhash_key = \"$request_uri\"\nkeepalive = 0\n\
             proxy_protocol = \"v1\"\nretry = { tries = 1, on_status = [503, 502, 503] }\n\
             servers = [{ address = \"[::1]:80\", weight = 5, max_fails = 0, down = true },\n\
             { address = \"App.Internal:8080\" }]\n\
             [upstream.a]\nservers = [{ address = \"10.0.0.1:80\" }]",
        )
        .service
        .upstreams;
        assert_eq!((upstreams[0].name.as_str(), upstreams[1].name.as_str()), ("a", "b"));
        assert_eq!(upstreams[0].hash_key, Template::parse("$remote_addr").unwrap());
        let b = &upstreams[1];
        assert_eq!((b.balance, b.keepalive), (Policy::Maglev, 0));
        assert_eq!(b.hash_key, Template::parse("$request_uri").unwrap());
        assert_eq!(b.proxy_protocol, Some(ProxyVersion::V1));
        assert_eq!((b.retry.tries, b.retry.budget_percent), (1, 20));
        assert_eq!(b.retry.on_status, [503, 502]);
        assert_eq!(b.servers[0].address, ServerAddress::Socket("[::1]:80".parse().unwrap()));
        assert_eq!((b.servers[0].weight, b.servers[0].max_fails, b.servers[0].down), (5, 0, true));
        assert_eq!(b.servers[1].address, ServerAddress::Name("app.internal".into(), 8080));
    }

    #[test]
    fn warnings() {
        let config = good(
            "[upstream.a]\nservers = [{ address = \"b:1\", down = true }, { address = \"B:1\", down = true }]",
        );
        let says = ["t:1:11", "t:2:11", "t:2:11"];
        assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
        for (warning, at) in config.warnings.iter().zip(says) {
            assert!(warning.starts_with(at), "{warning}");
        }
    }
}

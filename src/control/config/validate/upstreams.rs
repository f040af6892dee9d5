//! `[upstream.NAME]`: groups of servers.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use super::{address, headers, listeners};
use crate::balance::Policy;
use crate::control::config::place::{Place, Reported};
use crate::control::config::raw::{self, Content, Node};
use crate::l7::config::{ProxyVersion, Retry, Server, ServerAddress, Upstream};
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

pub(super) fn upstreams(
    root: &Place<'_>,
    file: &raw::File,
) -> Result<Vec<Upstream>, Reported> {
    let Some(node) = &file.upstream else { return Ok(Vec::new()) };
    let (place, table) = root.wanted("upstream", node, WRITE_UPSTREAM)?;
    let read = |(name, node): (&toml::Spanned<String>, _)| {
        let checked = listeners::check_name(name.get_ref())
            .map_err(|write| place.child(name.get_ref(), name.span()).problem(write));
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
        proxy_protocol: place.choice("proxy_protocol", &raw.proxy_protocol, &versions, None),
        hash_key: hash_key?,
        servers: servers?,
    })
}

fn hash_key(
    place: &Place<'_>,
    raw: &raw::Upstream,
    balance: Policy,
) -> Result<Template, Reported> {
    let write = r#"write what to hash, like "$request_uri""#;
    let Some(read) = place.text("hash_key", &raw.hash_key, write) else {
        return headers::template(place, "$remote_addr");
    };
    let (place, text) = read?;
    if balance != Policy::Maglev {
        return Err(place.problem(
            "is used by `balance = \"maglev\"` only: write that, or remove the key",
        ));
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
    let (list, _) = place.wanted("servers", node, WRITE_SERVERS)?;
    let tables = place.tables("servers", Some(node), WRITE_SERVERS);
    let results: Vec<_> = tables.iter().map(|(place, raw)| server(place, raw)).collect();
    let servers = results.into_iter().collect::<Result<Vec<Server>, Reported>>()?;
    if servers.is_empty() {
        return Err(list.problem(format_args!("is empty: {WRITE_SERVERS}")));
    }
    if servers.iter().all(|server| server.backup) {
        return Err(list.problem(
            "has backups only, which stand in for others: remove `backup` from one",
        ));
    }
    if servers.iter().all(|server| server.down) {
        list.warning("are all `down`: every request is answered with 502");
    }
    twice(&tables, &servers);
    Ok(servers)
}

fn twice(tables: &[(Place<'_>, &raw::Server)], servers: &[Server]) {
    let mut seen: HashMap<String, &Place<'_>> = HashMap::new();
    for ((place, _), server) in tables.iter().zip(servers) {
        let address = match &server.address {
            ServerAddress::Socket(address) => address.to_string(),
            ServerAddress::Name(name, port) => format!("{name}:{port}"),
        };
        if let Some(first) = seen.insert(address, place) {
            place.warning(format_args!("has the address of `{}`", first.path()));
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

//! Servers of upstreams, changed at run time.

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use toml_edit::{DocumentMut, InlineTable};

use super::{Call, Reply};
use crate::control::servers::Change;
use crate::control::state::{State, UpstreamState};
use crate::control::{config, persist, status};
use crate::l7::config::Server;
use crate::l7::upstream::Standing;
use crate::ring::Timer;
use crate::shard::Message;

/// Servers in one order.
const SERVERS_MAX: usize = 256;
/// The weights there are.
const WEIGHT_MAX: u64 = 65_535;
/// A shard whose inbox is full is told again, this often and this many times.
const AGAIN_MS: u64 = 20;
const AGAIN_MAX: usize = 100;

pub(super) fn list(call: &Call) -> Reply {
    let wanted = call.query("upstream");
    let all = status::upstreams(&call.state);
    let found: Vec<Value> = all
        .into_iter()
        .filter(|upstream| wanted.is_none_or(|name| upstream["name"] == name))
        .collect();
    match wanted {
        Some(name) if found.is_empty() => unknown(&call.state, name),
        _ => Reply::json(&json!({ "upstreams": found })),
    }
}

pub(super) async fn add(call: Call) -> Reply {
    change(call, &|server| server_of(server).map(Change::Add)).await
}

pub(super) async fn remove(call: Call) -> Reply {
    change(call, &|_| Ok(Change::Remove)).await
}

pub(super) async fn drain(call: Call) -> Reply {
    change(call, &|_| Ok(Change::Drain)).await
}

pub(super) async fn undrain(call: Call) -> Reply {
    change(call, &|_| Ok(Change::Undrain)).await
}

pub(super) async fn weight(call: Call) -> Reply {
    change(call, &|server| match server.get("weight").and_then(Value::as_u64) {
        Some(weight @ 1..=WEIGHT_MAX) => {
            Ok(Change::Weight(u32::try_from(weight).unwrap_or(u32::MAX)))
        }
        _ => Err(format!("`weight` is no whole number from 1 to {WEIGHT_MAX}: use drain for 0")),
    })
    .await
}

type Order = Vec<(String, Change)>;
/// What an order does to a server with these keys.
type Make = dyn Fn(&Map<String, Value>) -> Result<Change, String>;

/// Carries out an order on the servers the body names, all or none of them.
async fn change(call: Call, make: &Make) -> Reply {
    let state = Rc::clone(&call.state);
    let Some(upstream) = named(&state, &call.argument) else {
        return unknown(&state, &call.argument);
    };
    let body = match call.json() {
        Ok(body) => body,
        Err(reply) => return reply,
    };
    let flag = |key: &str| body.get(key).and_then(Value::as_bool).unwrap_or_default();
    let order = match order(&body, make) {
        Ok(order) => order,
        Err(why) => return Reply::error(400, why),
    };
    if let Err(why) = after(&upstream, &order, flag("force")) {
        return Reply::error(409, why);
    }
    // A successor would not know of it.
    let _changing = match state.upgrade.change() {
        Ok(changing) => changing,
        Err(why) => return Reply::error(409, why),
    };
    if flag("persist") {
        let Some(file) = state.file.clone() else {
            return Reply::error(409, "the configuration is in no file that could be changed");
        };
        let (name, changes) = (call.argument.clone(), order.clone());
        match call.elsewhere(move || persist::write(&file, &name, &changes)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Reply::error(409, why),
            Err(busy) => return busy,
        }
        for (name, change) in &order {
            upstream.servers.borrow_mut().persisted(name, change);
        }
    }
    // Again: another order, or a reload, may have come between.
    let Some(upstream) = named(&state, &call.argument) else {
        return unknown(&state, &call.argument);
    };
    let now = match after(&upstream, &order, flag("force")) {
        Ok(now) => now,
        // `run --watch` has put the file in force by itself.
        Err(_) if flag("persist") => return Reply::done(told(&order, true)),
        Err(why) => return Reply::error(409, why),
    };
    upstream.servers.borrow_mut().set(now);
    forget_addresses(&upstream);
    upstream.rebuild();
    state.resolver.look_up(state.names());
    state.checks.refresh(&state.upstreams());
    tell(&state, &call.argument, &order);
    match publish(&call, &upstream).await {
        Ok(()) => Reply::json(&json!({
            "done": told(&order, flag("persist")),
            "upstream": status::upstream(&state, &upstream),
        })),
        Err(reply) => reply,
    }
}

/// What the body says: `{"servers": ["10.0.0.1:80", {"address": ..., ...}], "weight": ...}`. Keys beside
/// `servers` count for all of them.
fn order(body: &Map<String, Value>, make: &Make) -> Result<Order, String> {
    let servers = body.get("servers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if servers.is_empty() || servers.len() > SERVERS_MAX {
        return Err(format!("`servers` is no list of 1 to {SERVERS_MAX} servers"));
    }
    let mut order = Order::new();
    for server in servers {
        let mut keys = body.clone();
        keys.retain(|key, _| !matches!(key.as_str(), "servers" | "persist" | "force"));
        match server {
            Value::String(address) => {
                keys.insert("address".to_owned(), json!(address));
            }
            Value::Object(server) => keys.extend(server.clone()),
            _ => return Err("a server is neither an address nor an object".to_owned()),
        }
        let change = make(&keys)?;
        let name = match &change {
            Change::Add(server) => server.address.to_string(),
            _ => normal(keys.get("address").and_then(Value::as_str).unwrap_or_default()),
        };
        order.push((name, change));
    }
    Ok(order)
}

/// An address as it is shown.
fn normal(address: &str) -> String {
    address
        .parse::<std::net::SocketAddr>()
        .map_or_else(|_| address.to_ascii_lowercase(), |address| address.to_string())
}

/// A server of these keys, judged as in the configuration file.
fn server_of(keys: &Map<String, Value>) -> Result<Server, String> {
    let mut table = InlineTable::new();
    for (key, value) in keys {
        let value: toml_edit::Value = match value {
            Value::String(text) => text.as_str().into(),
            Value::Bool(flag) => (*flag).into(),
            Value::Number(number) if number.is_i64() => number.as_i64().unwrap_or_default().into(),
            _ => return Err(format!("`{key}` is no text, whole number, true or false")),
        };
        table.insert(key, value);
    }
    // A second one, since an upstream of backups only is refused.
    let mut other = InlineTable::new();
    other.insert("address", "other.invalid:1".into());
    let mut document = DocumentMut::new();
    document["upstream"]["new"]["servers"] =
        toml_edit::value([table, other].into_iter().collect::<toml_edit::Array>());
    // A file needs one.
    let text = format!("{document}\n[[listener]]\nbind = \"127.0.0.1:1\"\n");
    let parsed = config::parse("server", &text).map_err(|errors| {
        let text = errors.to_string();
        let line = text.lines().next().unwrap_or_default();
        line.splitn(4, ':')
            .last()
            .unwrap_or_default()
            .trim()
            .replace("upstream.new.servers[0].", "")
    })?;
    let first = parsed.service.upstreams.into_iter().next();
    first
        .and_then(|upstream| upstream.servers.into_iter().next())
        .ok_or_else(|| "there is no server in it".to_owned())
}

/// The servers after the whole order.
fn after(upstream: &UpstreamState, order: &Order, force: bool) -> Result<Vec<Standing>, String> {
    let mut servers = upstream.servers.borrow().preview();
    for (name, change) in order {
        let now = servers.after(name, change, force).map_err(|refused| refused.to_string())?;
        servers.set(now);
    }
    Ok(servers.now().to_vec())
}

/// Addresses belong to ids, and an id may come to be another server's.
fn forget_addresses(upstream: &UpstreamState) {
    let servers = upstream.servers.borrow();
    let mut resolved = upstream.resolved.borrow_mut();
    let most = servers.now().iter().map(|standing| standing.id + 1).max().unwrap_or_default();
    resolved.resize(most, Vec::new());
    for (id, addresses) in resolved.iter_mut().enumerate() {
        if servers.now().iter().all(|standing| standing.id != id) {
            addresses.clear();
        }
    }
}

fn tell(state: &State, upstream: &str, order: &Order) {
    for (server, change) in order {
        let weight;
        let what = match change {
            Change::Add(_) => "added",
            Change::Remove => "removed",
            Change::Drain => "drained",
            Change::Undrain => "undrained",
            Change::Weight(new) => {
                weight = format!("weight {new}");
                &weight
            }
        };
        let fields = [("upstream", upstream), ("server", server), ("change", what)];
        state.logger.info("server changed by the operator", &fields);
    }
}

fn told(order: &Order, persisted: bool) -> String {
    let what = match order.first() {
        Some((_, Change::Add(_))) => "added",
        Some((_, Change::Remove)) => "removed",
        Some((_, Change::Drain)) => "drained",
        Some((_, Change::Undrain)) => "takes requests",
        _ => "reweighted",
    };
    let names: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
    let where_ = if persisted { "and written into the file" } else { "until the next restart" };
    format!("{} {what}, {where_}", names.join(", "))
}

/// Gives every shard the members as they are now.
async fn publish(call: &Call, upstream: &UpstreamState) -> Result<(), Reply> {
    let timer = Timer::new(&call.ring);
    for (number, shard) in call.state.shards.iter().enumerate() {
        let mut tries = 0;
        loop {
            let (shared, set) = (Arc::clone(&upstream.shared), Arc::clone(&upstream.set.borrow()));
            if shard.send(Message::Members(shared, set)) {
                break;
            }
            tries += 1;
            if tries > AGAIN_MAX {
                let why = format!("shard {number} is too busy to be told: give the order again");
                return Err(Reply::error(503, why));
            }
            timer.set(AGAIN_MS);
            timer.fired().await;
        }
    }
    Ok(())
}

fn named(state: &State, name: &str) -> Option<Rc<UpstreamState>> {
    state.upstreams().iter().find(|upstream| upstream.shared.config.name == name).cloned()
}

fn unknown(state: &State, name: &str) -> Reply {
    let upstreams = state.upstreams();
    let known: Vec<&str> = upstreams.iter().map(|one| one.shared.config.name.as_str()).collect();
    Reply::error(404, format!("there is no upstream {name:?}; there are: {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            _ => panic!("no object"),
        }
    }

    #[test]
    fn servers_are_judged_as_in_the_file() {
        let server =
            server_of(&keys(json!({ "address": "[::1]:80", "weight": 3, "backup": true })))
                .unwrap();
        assert_eq!((server.address.to_string().as_str(), server.weight), ("[::1]:80", 3));
        assert!(server.backup);
        for (value, says) in [
            (json!({ "address": "10.0.0.1" }), "the port is missing"),
            (json!({}), "`address` is missing"),
            (
                json!({ "address": "a:1", "weight": 0 }),
                "`weight` is 0: write a whole number from 1",
            ),
            (json!({ "address": "a:1", "wieght": 1 }), "did you mean `weight`"),
            (json!({ "address": "a:1", "fail_timeout": 5 }), "a time needs a unit"),
            (json!({ "address": "a:1", "weight": [1] }), "`weight` is no text"),
            (
                json!({ "address": "a:1\" }]\n[admin]\nbind = \"off" }),
                "write a port from 1 to 65535",
            ),
        ] {
            let error = server_of(&keys(value)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn orders() {
        let body = keys(json!({
            "servers": ["10.0.0.1:80", { "address": "B:1", "weight": 4 }], "weight": 2, "persist": true,
        }));
        let weight = |server: &Map<String, Value>| {
            let weight = server["weight"].as_u64().unwrap_or_default();
            Ok(Change::Weight(u32::try_from(weight).unwrap()))
        };
        assert_eq!(
            order(&body, &weight).unwrap(),
            [("10.0.0.1:80".to_owned(), Change::Weight(2)), ("b:1".to_owned(), Change::Weight(4))]
        );
        for value in [json!({}), json!({ "servers": [] }), json!({ "servers": [1] })] {
            assert!(order(&keys(value), &weight).is_err());
        }
        let many = json!({ "servers": vec!["a:1"; SERVERS_MAX + 1] });
        assert!(order(&keys(many), &weight).is_err());
    }
}

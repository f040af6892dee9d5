//! The layer-4 director.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::{Call, Reply};
use crate::control::l4_checks::Checks;
use crate::control::virtual_servers;
use crate::l4::config::{Protocol, ServiceKey};
use crate::l4::engine::Fact;

/// As in the configuration.
const WEIGHT_MAX: u64 = 65_535;

/// `GET /l4`
pub(super) fn list(call: &Call) -> Reply {
    let Some(l4) = &call.state.l4 else {
        return Reply::error(404, "there is no [[virtual_server]] in the configuration");
    };
    let tables = l4.board.tables();
    Reply::json(&json!({
        "virtual_servers": virtual_servers::status(&tables),
        "directors": virtual_servers::directors(&tables),
        "checks": call.state.l4_checks.as_ref().map(Checks::status),
    }))
}

/// `POST /l4/weight`: `{"virtual_server": "192.168.1.100:80", "protocol": "tcp", "server": "192.168.1.10", "weight": 0}`;
/// without `weight` the configured one counts again.
pub(super) async fn weight(call: Call) -> Reply {
    let Some(l4) = &call.state.l4 else {
        return Reply::error(404, "there is no [[virtual_server]] in the configuration");
    };
    let body = match call.json() {
        Ok(body) => body,
        Err(reply) => return reply,
    };
    let (key, server, weight) = match order(&body) {
        Ok(order) => order,
        Err(why) => return Reply::error(400, why),
    };
    let tables = l4.board.tables();
    let slot = tables.index.get(&key);
    let service = slot.and_then(|slot| tables.services.get(usize::from(*slot))?.as_ref());
    let Some(service) = service else {
        return Reply::error(404, format!("there is no virtual server {key}"));
    };
    let mut servers = service.servers.iter().filter_map(|slot| tables.occupant(*slot));
    if !servers.any(|one| one.address == server) {
        return Reply::error(404, format!("{key} has no real server {server}"));
    }
    if !l4.tell(Fact::Weight(key, server, weight)) {
        return Reply::error(503, "the director is busy: try again");
    }
    Reply::done(match weight {
        Some(0) => format!("{server} gets no new flows of {key}; those it has stay"),
        Some(weight) => format!("{server} has weight {weight} for {key}, until the next restart"),
        None => format!("{server} has its configured weight for {key}"),
    })
}

fn order(body: &Map<String, Value>) -> Result<(ServiceKey, IpAddr, Option<u32>), String> {
    let text = |key: &str| {
        body.get(key).and_then(Value::as_str).ok_or_else(|| format!("`{key}` is missing"))
    };
    let virtual_server = text("virtual_server")?;
    let (address, port) = match virtual_server.parse::<SocketAddr>() {
        Ok(socket) => (socket.ip(), socket.port()),
        // All ports.
        Err(_) => match virtual_server.parse() {
            Ok(address) => (address, 0),
            Err(_) => return Err(format!("{virtual_server:?} is no address and port")),
        },
    };
    let protocol = match body.get("protocol").map(|value| value.as_str().unwrap_or_default()) {
        None | Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        Some("sctp") => Protocol::Sctp,
        Some(other) => return Err(format!("{other:?} is no protocol: tcp, udp or sctp")),
    };
    let server = text("server")?;
    let server = server.parse().map_err(|_| format!("{server:?} is no address"))?;
    let weight = match body.get("weight") {
        None | Some(Value::Null) => None,
        Some(weight) => match weight.as_u64() {
            Some(weight @ 0..=WEIGHT_MAX) => u32::try_from(weight).ok(),
            _ => return Err(format!("`weight` is no whole number from 0 to {WEIGHT_MAX}")),
        },
    };
    Ok((ServiceKey { protocol, address, port }, server, weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders() {
        let read = |value: Value| order(value.as_object().expect("an object"));
        let good =
            json!({ "virtual_server": "[2001:db8::1]:80", "server": "2001:db8::9", "weight": 0 });
        let (key, server, weight) = read(good).expect("an order");
        assert_eq!((key.to_string().as_str(), weight), ("TCP [2001:db8::1]:80", Some(0)));
        assert_eq!(server.to_string(), "2001:db8::9");
        let any = json!({ "virtual_server": "10.0.0.1", "protocol": "udp", "server": "10.0.0.2" });
        let (key, _, weight) = read(any).expect("an order");
        assert_eq!((key.protocol, key.port, weight), (Protocol::Udp, 0, None));
        for (bad, says) in [
            (json!({ "server": "10.0.0.2" }), "`virtual_server` is missing"),
            (json!({ "virtual_server": "x", "server": "10.0.0.2" }), "no address and port"),
            (json!({ "virtual_server": "10.0.0.1:80", "server": "x" }), "no address"),
            (
                json!({ "virtual_server": "10.0.0.1:80", "server": "10.0.0.2", "weight": 70000 }),
                "whole number",
            ),
            (
                json!({ "virtual_server": "10.0.0.1:80", "server": "10.0.0.2", "protocol": "icmp" }),
                "no protocol",
            ),
        ] {
            assert!(read(bad).expect_err(says).contains(says), "{says}");
        }
    }
}

//! `ringgate ctl l4`: virtual and real servers, in the words and order of `ipvsadm -L -n --stats`.

use std::fmt::Write as _;

use serde_json::Value;

use super::show::table;
use super::{list, word};

const HEADS: [&str; 9] = [
    "Prot LocalAddress:Port Scheduler",
    "Forward",
    "Weight",
    "State",
    "ActiveConn",
    "InActConn",
    "Conns",
    "InPkts",
    "InBytes",
];

/// The answer to `GET /l4` as a table.
pub(super) fn show(answer: &Value) -> String {
    let mut rows = Vec::new();
    let mut notes = String::new();
    for service in list(&answer["virtual_servers"]) {
        let name = format!("{} {}", word(&service["protocol"]), socket(service, &service["port"]));
        let (active, quorum) = (service["active"] == true, service["quorum"] == true);
        let standing = match (active, quorum) {
            (false, _) => "backup",
            (true, false) => "no quorum",
            (true, true) => "active",
        };
        let mut first = format!("{name} {}", word(&service["scheduler"]));
        if let Some(seconds) = service["persistence"]["timeout_seconds"].as_u64() {
            let _ = write!(first, " persistent {seconds}");
        }
        let mut row = vec![first, String::new(), String::new(), standing.to_owned()];
        row.extend([String::new(), String::new()]);
        row.extend(totals(service));
        rows.push(row);
        rows.extend(list(&service["servers"]).iter().map(|one| server(one, &service["port"])));
        for (reason, count) in service["dropped"].as_object().into_iter().flatten() {
            let _ =
                writeln!(notes, "{name}: {count} packets dropped: {}", reason.replace('_', " "));
        }
    }
    let mut text = table(&HEADS, &rows);
    text.push_str(&notes);
    for (index, one) in list(&answer["directors"]).iter().enumerate() {
        let of = |key: &str| one[key].as_u64().unwrap_or_default();
        let _ = writeln!(
            text,
            "director {index}: {} flows, {} expired, {} evicted, {} rescheduled, {} adopted, {} packets by hash",
            of("flows"),
            of("expired"),
            of("evicted"),
            of("rescheduled"),
            of("adopted"),
            of("stateless_packets"),
        );
    }
    text
}

fn server(one: &Value, port: &Value) -> Vec<String> {
    let mut row = vec![format!("  -> {}", socket(one, port))];
    row.push(word(&one["forward"]).to_owned());
    row.push(one["weight"].to_string());
    row.push(word(&one["state"]).replace('_', " "));
    row.extend([one["active_conns"].to_string(), one["inactive_conns"].to_string()]);
    row.extend(totals(one));
    row
}

fn totals(one: &Value) -> [String; 3] {
    [&one["conns"], &one["in_packets"], &one["in_bytes"]].map(ToString::to_string)
}

/// Address and port as `ipvsadm -n` writes them.
fn socket(one: &Value, port: &Value) -> String {
    let address = word(&one["address"]);
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn as_ipvsadm_shows_it() {
        let totals = |mut value: Value| {
            (value["conns"], value["in_packets"], value["in_bytes"]) =
                (json!(12), json!(340), json!(56_000));
            value
        };
        let server = totals(json!({
            "address": "192.168.1.10", "forward": "Route", "weight": 3, "state": "no_neighbour",
            "active_conns": 4, "inactive_conns": 5,
        }));
        let service = totals(json!({
            "protocol": "TCP", "address": "192.168.1.100", "port": 80, "scheduler": "wlc",
            "active": true, "quorum": true, "dropped": { "no_server": 7 }, "servers": [server],
            "persistence": { "timeout_seconds": 300 },
        }));
        let text = show(&json!({ "virtual_servers": [service], "directors": [{ "flows": 9 }] }));
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..3], ["Prot", "LocalAddress:Port", "Scheduler"]);
        let expected =
            ["TCP", "192.168.1.100:80", "wlc", "persistent", "300", "active", "12", "340", "56000"];
        assert_eq!(lines[1], expected);
        let expected = [
            "->",
            "192.168.1.10:80",
            "Route",
            "3",
            "no",
            "neighbour",
            "4",
            "5",
            "12",
            "340",
            "56000",
        ];
        assert_eq!(lines[2], expected);
        assert!(text.contains("TCP 192.168.1.100:80: 7 packets dropped: no server\n"), "{text}");
        assert!(text.contains("director 0: 9 flows,"), "{text}");
    }
}

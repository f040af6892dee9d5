//! Answers of the process as text for people.

use std::fmt::Write as _;

use serde_json::Value;

use super::{list, word};

/// A table: heads, then rows; columns as wide as they need be, numbers to the right.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heads.get(column).map(|head| head.chars().count())).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let number = cell.chars().all(|c| c.is_ascii_digit() || c == '.') && !cell.is_empty();
            let _ = if number {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// What of it can be told in a line each.
pub(super) fn status(status: &Value) -> String {
    let mut text = String::new();
    let clients: u64 = list(&status["shards"]).iter().map(|s| number(&s["connections"])).sum();
    let _ = writeln!(
        text,
        "ringgate {} process {}: {} for {} s, {} connections on {} shards",
        word(&status["version"]),
        status["pid"],
        word(&status["phase"]),
        status["uptime_seconds"],
        clients,
        list(&status["shards"]).len(),
    );
    for shard in list(&status["shards"]) {
        if let Some(since) = shard["stuck_seconds"].as_f64() {
            let _ = writeln!(text, "shard {} has not answered for {since:.1} s", shard["shard"]);
        }
    }
    let hardening = &status["hardening"];
    if !hardening["capabilities"].is_null() {
        let kept: Vec<_> = list(&hardening["capabilities"]).iter().map(word).collect();
        let _ = writeln!(
            text,
            "user {}, capabilities {}, landlock {}, seccomp {}",
            hardening["user"].as_str().unwrap_or("unchanged"),
            if kept.is_empty() { "none".to_owned() } else { kept.join(",") },
            word(&hardening["landlock"]),
            word(&hardening["seccomp"]),
        );
    }
    let upgrade = &status["upgrade"];
    if let Some(reason) = upgrade["last_failure"]["reason"].as_str() {
        let _ = writeln!(text, "the last upgrade failed: {reason}");
    }
    for old in list(&upgrade["draining_processes"]) {
        let (pid, seconds) = (&old["pid"], &old["draining_seconds"]);
        let _ = writeln!(text, "process {pid} drains since {seconds} s, after an upgrade");
    }
    let now = &status["rates"];
    if !now.is_null() {
        let _ = writeln!(
            text,
            "{:.0} requests/s, {:.1} % errors, latency p50 {} p99 {} (the last {} s)",
            now["requests_per_second"].as_f64().unwrap_or_default(),
            now["errors_percent"].as_f64().unwrap_or_default(),
            milliseconds(&now["p50_ms"]),
            milliseconds(&now["p99_ms"]),
            now["seconds"],
        );
    }
    for one in list(&status["listeners"]) {
        let (name, address) = (word(&one["name"]), word(&one["address"]));
        let _ = writeln!(text, "listener {name} on {address}: {} requests", one["requests"]);
    }
    text.push_str(&upstreams(&status["upstreams"]));
    if !status["vrrp"].is_null() {
        text.push_str(&vrrp(&status["vrrp"]));
    }
    if !status["tuning"].is_null() {
        text.push_str(&tuning(&status["tuning"]));
    }
    text
}

fn milliseconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"))
}

/// Upstreams, their servers, their drift.
pub(super) fn upstreams(upstreams: &Value) -> String {
    let mut text = String::new();
    for one in list(upstreams) {
        let _ = writeln!(text, "upstream {}", word(&one["name"]));
        let row = |server: &Value| {
            let mut name = word(&server["address"]).to_owned();
            if word(&server["server"]) != word(&server["address"]) {
                let _ = write!(name, " ({})", word(&server["server"]));
            }
            if server["backup"] == true {
                name.push_str(" backup");
            }
            let why = word(&server["why"]);
            vec![
                format!("  {name}"),
                word(&server["state"]).to_owned(),
                server["weight"].to_string(),
                server["in_flight"].to_string(),
                server["responses"].to_string(),
                if why == "-" { String::new() } else { why.to_owned() },
            ]
        };
        let rows: Vec<Vec<String>> = list(&one["servers"]).iter().map(row).collect();
        text.push_str(&table(
            &["  server", "state", "weight", "in flight", "responses", "why"],
            &rows,
        ));
        for drift in list(&one["drift"]) {
            let (server, what) = (word(&drift["server"]), word(&drift["what"]));
            let _ = writeln!(text, "  differs from the file: {server} {what}");
        }
    }
    text
}

/// Shards.
pub(super) fn shards(answer: &Value) -> String {
    let row = |shard: &Value| {
        let cpu = shard["cpu"].as_u64().map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
        let of = |key: &str| shard[key].to_string();
        vec![of("shard"), cpu, of("connections"), of("requests"), of("receive_buffers")]
    };
    let rows: Vec<Vec<String>> = list(&answer["shards"]).iter().map(row).collect();
    table(&["shard", "CPU", "connections", "requests", "buffers"], &rows)
}

/// Connections.
pub(super) fn connections(answer: &Value) -> String {
    let mut text = format!("{} client connections\n", answer["clients"]);
    for one in list(&answer["listeners"]) {
        let (name, address) = (word(&one["name"]), word(&one["address"]));
        let _ = writeln!(text, "  listener {name} on {address}: {}", one["open"]);
    }
    for one in list(&answer["upstreams"]) {
        let _ = writeln!(
            text,
            "upstream {}: {} requests in flight, {} idle connections",
            word(&one["name"]),
            one["in_flight"],
            one["idle_connections"],
        );
    }
    text
}

/// Events, the newest last, as they stand in the log.
pub(super) fn events(answer: &Value) -> String {
    let mut text = String::new();
    for one in list(&answer["events"]).iter().rev() {
        let _ = write!(
            text,
            "{} {:5} {}",
            word(&one["time"]),
            word(&one["level"]),
            one["message"].as_str().unwrap_or_default().escape_debug(),
        );
        for (key, value) in one["fields"].as_object().into_iter().flatten() {
            let _ = write!(text, " {key}={}", value.as_str().unwrap_or_default().escape_debug());
        }
        text.push('\n');
    }
    text
}

/// The machine's settings.
pub(super) fn tuning(tuning: &Value) -> String {
    let drift = list(&tuning["drift"]);
    let profiles: Vec<&str> = list(&tuning["profiles"]).iter().map(word).collect();
    let mut text = format!(
        "tuning {}: {}\n",
        profiles.join("+"),
        if drift.is_empty() {
            "all that applies is in force".to_owned()
        } else {
            format!("settings that are not as they should be: {}", drift.len())
        }
    );
    for one in drift {
        let _ = writeln!(
            text,
            "  {} is {}, wanted {} {}",
            word(&one["key"]),
            word(&one["now"]),
            word(&one["wanted"]),
            one["reason"].as_str().unwrap_or_default(),
        );
    }
    text
}

/// The verbs of the endpoint.
pub(super) fn api(answer: &Value) -> String {
    let row = |verb: &Value| {
        ["method", "path", "who", "what"].map(|key| word(&verb[key]).to_owned()).to_vec()
    };
    let rows: Vec<Vec<String>> = list(answer).iter().map(row).collect();
    table(&["method", "path", "who", "what"], &rows)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// The part of `/status` that is about VRRP.
pub(super) fn vrrp(vrrp: &Value) -> String {
    let mut text = String::new();
    for one in list(&vrrp["instances"]) {
        let _ = writeln!(
            text,
            "{}: {} priority {} (configured {}) on {} virtual_router_id {} version {}",
            word(&one["name"]),
            word(&one["role"]),
            one["priority"],
            one["configured_priority"],
            word(&one["interface"]),
            one["virtual_router_id"],
            one["version"],
        );
        for address in list(&one["addresses"]) {
            let held = if address["held"] == true { "held here" } else { "not here" };
            let _ = writeln!(text, "  address {} {held}", word(&address["address"]));
        }
        if !one["active"].is_null() {
            let (address, priority) = (word(&one["active"]["address"]), &one["active"]["priority"]);
            let _ = writeln!(text, "  active router {address} priority {priority}");
        }
        for peer in list(&one["peers"]) {
            let ago = peer["heard_seconds_ago"].as_f64().unwrap_or_default();
            let _ = writeln!(text, "  heard {} {ago:.1} s ago", word(&peer["address"]));
        }
        let last = &one["last_transition"];
        if !last.is_null() {
            let (to, at, reason) = (word(&last["to"]), word(&last["at"]), word(&last["reason"]));
            let _ = writeln!(text, "  {to} since {at}: {reason}");
        }
        for (label, key) in
            [("why", "why"), ("wrong", "misconfigurations"), ("trouble", "problems")]
        {
            for line in list(&one[key]) {
                let _ = writeln!(text, "  {label}: {}", word(line));
            }
        }
    }
    if text.is_empty() {
        text.push_str("there is no [vrrp.NAME] in the configuration\n");
    }
    text
}

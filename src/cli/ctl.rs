//! `ringgate ctl`: asks a running process through its unix socket.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::args::{About, Vrrp};
use super::{print, print_result};

/// A hand-over may take as long as a slow backup needs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer that is read.
const ANSWER_MAX: u64 = 16 << 20;
/// The order was refused, or nobody listens.
const EXIT_FAILED: u8 = 1;

/// Carries it out; the exit code.
pub fn run(socket: &Path, about: &About, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let what = match about {
        About::Vrrp { what } => what,
        About::Reload { dry_run } => return reload(socket, *dry_run, out, err),
    };
    let asked = match what {
        Vrrp::Status { .. } => ask(socket, "GET", "/status"),
        Vrrp::Release { instance } => order(socket, "release", instance.as_deref()),
        Vrrp::Prefer { instance } => order(socket, "prefer", instance.as_deref()),
        Vrrp::Resume { instance } => order(socket, "resume", instance.as_deref()),
    };
    let (status, body) = match asked {
        Ok(answer) => answer,
        Err(error) => {
            let hint =
                "is it running, with [vrrp.NAME] or admin.socket in its file, and may you use it?";
            print(err, &format!("ringgate: cannot reach {}: {error}: {hint}\n", socket.display()));
            return EXIT_FAILED;
        }
    };
    if status != 200 {
        print(err, &format!("ringgate: {}\n", body.trim_end()));
        return EXIT_FAILED;
    }
    let text = match what {
        Vrrp::Status { json } => show(&body, *json),
        _ => body,
    };
    print_result(out, &text)
}

/// The difference and what became of it go to `out`, a refusal to `err`.
fn reload(socket: &Path, dry_run: bool, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let target = if dry_run { "/reload?dry-run" } else { "/reload" };
    match ask(socket, "POST", target) {
        Ok((200, body)) => print_result(out, &body),
        Ok((_, body)) => {
            print(err, &format!("ringgate: reload refused\n{body}"));
            EXIT_FAILED
        }
        Err(error) => {
            let hint = "is it running, with admin.socket in its file, and may you use it?";
            print(err, &format!("ringgate: cannot reach {}: {error}: {hint}\n", socket.display()));
            EXIT_FAILED
        }
    }
}

fn order(socket: &Path, order: &str, instance: Option<&str>) -> io::Result<(u16, String)> {
    let query = instance.map_or_else(String::new, |name| format!("?instance={name}"));
    // Names of instances are plain; anything else could not be one and must not become a header.
    if query.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Ok((409, "there is no such instance".into()));
    }
    ask(socket, "POST", &format!("/vrrp/{order}{query}"))
}

/// Status and body of the answer.
fn ask(socket: &Path, method: &str, target: &str) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: ringgate\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?, body.to_owned()))
}

/// The part of `/status` that is about VRRP.
fn show(body: &str, json: bool) -> String {
    let Ok(status) = serde_json::from_str::<Value>(body) else { return body.to_owned() };
    let vrrp = &status["vrrp"];
    if json {
        return format!("{vrrp:#}\n");
    }
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

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

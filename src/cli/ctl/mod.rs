//! `ringgate ctl`: asks a running process through its unix socket.

mod l4;
mod show;

use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{About, L4, Log, RunningTune, UpstreamArgs, Vrrp};
use super::{print, print_result};
use crate::control::upgrade;

/// A hand-over may take as long as a slow backup needs.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest `node.upgrade_timeout` that makes sense.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(600);
/// Longest answer that is read.
const ANSWER_MAX: u64 = 16 << 20;
/// The order was refused, or nobody listens.
const EXIT_FAILED: u8 = 1;
/// Wrong usage.
const EXIT_USAGE: u8 = 2;

/// The way to the process.
#[derive(Debug, Clone, Copy)]
pub struct Socket<'a> {
    /// The socket.
    pub path: &'a Path,
    /// Print answers as they come.
    pub json: bool,
}

/// What to ask, and how to show the answer to people.
struct Question {
    method: &'static str,
    target: String,
    body: Option<Value>,
    show: fn(&Value) -> String,
}

impl Question {
    fn get(target: &str, show: fn(&Value) -> String) -> Self {
        Self { method: "GET", target: target.to_owned(), body: None, show }
    }

    fn post(target: impl Into<String>, body: Option<Value>) -> Self {
        let show = |answer: &Value| format!("{}\n", word(&answer["done"]));
        Self { method: "POST", target: target.into(), body, show }
    }
}

/// Carries it out; the exit code.
pub fn run(socket: &Socket<'_>, about: &About, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let question = match question(about) {
        Ok(question) => question,
        Err(why) => {
            print(err, &format!("ringgate: {why}\n"));
            return EXIT_USAGE;
        }
    };
    let Question { method, target, body, show } = question;
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let (status, answer) = match ask(socket.path, method, &target, &body) {
        Ok(answer) => answer,
        Err(error) => {
            let path = socket.path.display();
            let hint = "is it running, is this its admin.socket, and may you use it?";
            print(err, &format!("ringgate: cannot reach {path}: {error}: {hint}\n"));
            return EXIT_FAILED;
        }
    };
    let value: Value = serde_json::from_str(&answer).unwrap_or_default();
    if let Some(error) = value["error"].as_str() {
        if socket.json {
            print_result(out, &answer);
        } else {
            print(err, &format!("ringgate: {error}\n"));
        }
        return EXIT_FAILED;
    }
    let text = match about {
        // As before there was an endpoint of its own: this part of everything.
        About::Vrrp { what: Vrrp::Status } if socket.json => format!("{:#}\n", value["vrrp"]),
        _ if socket.json => answer,
        _ => show(&value),
    };
    let printed = print_result(out, &text);
    if status == 200 { printed } else { EXIT_FAILED }
}

fn question(about: &About) -> Result<Question, String> {
    Ok(match about {
        About::Reload { dry_run: true } => Question::post("/reload?dry-run", None),
        About::Reload { dry_run: false } => Question::post("/reload", None),
        About::Status => Question::get("/status", show::status),
        About::Upstream(args) => return upstream(args),
        About::L4 { what: None } => Question::get("/l4", l4::show),
        About::L4 { what: Some(L4::Weight { virtual_server, server, weight, protocol }) } => {
            let body = json!({
                "virtual_server": virtual_server, "server": server, "weight": weight, "protocol": protocol,
            });
            Question::post("/l4/weight", Some(body))
        }
        About::Shards => Question::get("/shards", show::shards),
        About::Connections => Question::get("/connections", show::connections),
        About::Events => Question::get("/events", show::events),
        About::Log { what: Log::Level { level: None } } => {
            Question::get("/log/level", |answer| format!("{}\n", word(&answer["level"])))
        }
        About::Log { what: Log::Level { level: Some(level) } } => {
            Question::post("/log/level", Some(json!({ "level": level })))
        }
        About::Tune { what: RunningTune::Verify } => {
            let show = |answer: &Value| show::tuning(&answer["tuning"]);
            Question { show, ..Question::post("/tune/verify", None) }
        }
        About::Upgrade { binary } => {
            let query = binary.as_deref().map(|path| {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                format!("?binary={}", upgrade::encoded(&path))
            });
            Question::post(format!("/upgrade{}", query.unwrap_or_default()), None)
        }
        About::Api => Question::get("/api", show::api),
        About::Vrrp { what } => match what {
            Vrrp::Status => Question::get("/status", |status| show::vrrp(&status["vrrp"])),
            Vrrp::Release { instance } => order("release", instance.as_deref())?,
            Vrrp::Prefer { instance } => order("prefer", instance.as_deref())?,
            Vrrp::Resume { instance } => order("resume", instance.as_deref())?,
        },
    })
}

fn order(order: &str, instance: Option<&str>) -> Result<Question, String> {
    let query = match instance {
        None => String::new(),
        Some(name) if is_plain(name) => format!("?instance={name}"),
        Some(name) => return Err(format!("{name:?} can be no instance")),
    };
    Ok(Question::post(format!("/vrrp/{order}{query}"), None))
}

/// Names of upstreams and instances are plain; anything else could be none and must not become a part
/// of a request.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b))
}

fn upstream(args: &UpstreamArgs) -> Result<Question, String> {
    let name = args.name.as_str();
    let plain = |name: &str| {
        if is_plain(name) { Ok(()) } else { Err(format!("{name:?} can be no upstream")) }
    };
    let Some(what) = args.what.as_deref() else {
        plain(name)?;
        let target = match name {
            "list" => "/upstreams".to_owned(),
            _ => format!("/upstreams?upstream={name}"),
        };
        return Ok(Question::get(&target, |answer| show::upstreams(&answer["upstreams"])));
    };
    plain(name)?;
    let mut servers = args.servers.as_slice();
    let mut body = json!({});
    let adding = what == "add";
    if !adding && (args.backup || args.max_conns.is_some() || args.weight.is_some()) {
        return Err("--weight, --backup and --max-conns are for `add`".to_owned());
    }
    if what == "weight" {
        let (first, rest) = servers.split_first().ok_or("which weight, and of which server?")?;
        let weight: u32 = first.parse().map_err(|_| format!("{first:?} is no weight"))?;
        (body["weight"], servers) = (json!(weight), rest);
    }
    if servers.is_empty() {
        return Err(format!("which server? `ringgate ctl upstream {name}` lists them"));
    }
    if let Some(weight) = args.weight {
        body["weight"] = json!(weight);
    }
    if let Some(most) = args.max_conns {
        body["max_conns"] = json!(most);
    }
    for (key, set) in [("backup", args.backup), ("persist", args.persist), ("force", args.force)] {
        if set {
            body[key] = json!(true);
        }
    }
    body["servers"] = json!(servers);
    Ok(Question::post(format!("/upstreams/{name}/{what}"), Some(body)))
}

/// Status and body of the answer.
pub(crate) fn ask(
    socket: &Path,
    method: &str,
    target: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    // How long an upgrade may take is in the process's configuration.
    let patience = if target.starts_with("/upgrade") { UPGRADE_PATIENCE } else { PATIENCE };
    stream.set_read_timeout(Some(patience))?;
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: ringgate\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?, body.to_owned()))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or("-")
}

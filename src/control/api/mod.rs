//! The verbs of the admin endpoint, in one table: method, path, who may, what answers.
//!
//! A verb is a row of [`VERBS`] and a function in the file of its subject. Answers are JSON unless
//! something else is customary; refusals are `{"error": "..."}`.

mod l4;
mod pages;
mod process;
mod tuning;
mod upgrade;
mod upstreams;
mod vrrp;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc::TryRecvError;

use serde_json::{Value, json};

use crate::control::state::State;
use crate::protocol::http1::{Method, encode};
use crate::ring::{Ring, Timer};

/// How often the outcome of work on another thread is looked for.
const LOOK_EVERY_MS: u64 = 5;

/// Who may use a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Everybody who reaches the endpoint.
    Anyone,
    /// Who comes through the unix socket, whose permissions say who may, or has the token.
    Operator,
}

/// What a client asks.
#[derive(Debug, Default)]
pub struct Request {
    /// The path, without query.
    pub path: String,
    /// The query as it came.
    pub query: String,
    /// `Accept` as it came.
    pub accept: String,
    /// The body.
    pub body: Vec<u8>,
}

/// A request on its way to a verb, with what the verb needs.
#[derive(Debug)]
pub struct Call {
    /// The control thread's ring.
    pub ring: Rc<Ring>,
    /// The process.
    pub state: Rc<State>,
    /// What was asked.
    pub request: Request,
    /// What stands for the path's `{}`.
    pub argument: String,
}

impl Call {
    /// The value of a key in the query; nothing is decoded.
    #[must_use]
    pub fn query(&self, key: &str) -> Option<&str> {
        self.request.query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    }

    /// The body as a JSON object; an empty body is an empty one.
    ///
    /// # Errors
    /// 400 with the reason.
    pub fn json(&self) -> Result<serde_json::Map<String, Value>, Reply> {
        if self.request.body.is_empty() {
            return Ok(serde_json::Map::new());
        }
        match serde_json::from_slice(&self.request.body) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(Reply::error(400, "the body is no JSON object")),
            Err(error) => Err(Reply::error(400, format!("the body is no JSON: {error}"))),
        }
    }

    /// Does `work` on a thread of its own, because it waits for disks.
    ///
    /// # Errors
    /// 503 when there can be no thread.
    pub async fn elsewhere<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Reply> {
        let busy = || Reply::error(503, "no thread could be started: try again");
        let (done, outcome) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            let _ = done.send(work());
        };
        std::thread::Builder::new().name("admin".into()).spawn(work).map_err(|_| busy())?;
        let timer = Timer::new(&self.ring);
        loop {
            match outcome.try_recv() {
                Ok(result) => return Ok(result),
                Err(TryRecvError::Disconnected) => return Err(busy()),
                Err(TryRecvError::Empty) => {
                    timer.set(LOOK_EVERY_MS);
                    timer.fired().await;
                }
            }
        }
    }
}

/// What a client is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Further fields.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// A page of this type.
    #[must_use]
    pub fn new(content_type: &'static str, body: String) -> Self {
        Self { status: 200, content_type, fields: Vec::new(), body }
    }

    /// Plain text.
    #[must_use]
    pub fn text(status: u16, text: &str) -> Self {
        Self { status, ..Self::new("text/plain; charset=utf-8", format!("{text}\n")) }
    }

    /// A JSON document.
    #[must_use]
    pub fn json(value: &Value) -> Self {
        Self::new("application/json", format!("{value:#}\n"))
    }

    /// `{"done": ...}`: what came of an order, for people.
    #[must_use]
    pub fn done(text: impl Into<String>) -> Self {
        Self::json(&json!({ "done": text.into() }))
    }

    /// A refusal.
    #[must_use]
    pub fn error(status: u16, why: impl Into<String>) -> Self {
        Self { status, ..Self::json(&json!({ "error": why.into() })) }
    }

    /// The same with a further field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Appends the message.
    pub fn write(&self, out: &mut Vec<u8>, head_only: bool) {
        encode::push_status_line(out, self.status, encode::reason(self.status).as_bytes());
        encode::push_field(out, b"Content-Type", self.content_type.as_bytes());
        encode::push_field(out, b"Content-Length", self.body.len().to_string().as_bytes());
        encode::push_field(out, b"Cache-Control", b"no-store");
        encode::push_field(out, b"X-Content-Type-Options", b"nosniff");
        for (name, value) in &self.fields {
            encode::push_field(out, name.as_bytes(), value.as_bytes());
        }
        encode::push_field(out, b"Connection", b"close");
        out.extend_from_slice(b"\r\n");
        if !head_only {
            out.extend_from_slice(self.body.as_bytes());
        }
    }
}

/// An answer to come.
pub type Later = Pin<Box<dyn Future<Output = Reply>>>;

/// What answers.
#[derive(Debug, Clone, Copy)]
pub enum Handler {
    /// At once.
    Now(fn(&Call) -> Reply),
    /// After work that waits.
    Later(fn(Call) -> Later),
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Verb {
    /// The method; GET stands for HEAD too.
    pub method: Method,
    /// The path; a `{}` stands for one segment.
    pub path: &'static str,
    /// Who may.
    pub who: Who,
    /// What it does, for people.
    pub what: &'static str,
    /// What answers.
    pub handler: Handler,
}

const fn read(path: &'static str, what: &'static str, handler: fn(&Call) -> Reply) -> Verb {
    Verb { method: Method::Get, path, who: Who::Anyone, what, handler: Handler::Now(handler) }
}

const fn order(path: &'static str, what: &'static str, handler: fn(Call) -> Later) -> Verb {
    let handler = Handler::Later(handler);
    Verb { method: Method::Post, path, who: Who::Operator, what, handler }
}

/// Every verb there is.
pub const VERBS: &[Verb] = &[
    read("/", "the status page", pages::page),
    read("/healthz", "200 as long as the process answers", pages::health),
    read(
        "/readyz",
        "200 while it accepts, 503 while it drains or a shard does not answer",
        pages::ready,
    ),
    read("/metrics", "figures for Prometheus", pages::metrics),
    read("/status", "everything", pages::status),
    read("/api", "this list", pages::verbs),
    read("/upstreams", "upstreams, their servers and their drift from the file", upstreams::list),
    order("/upstreams/{}/add", "add servers", |call| Box::pin(upstreams::add(call))),
    order("/upstreams/{}/remove", "take servers away", |call| Box::pin(upstreams::remove(call))),
    order("/upstreams/{}/drain", "no new requests", |call| Box::pin(upstreams::drain(call))),
    order("/upstreams/{}/undrain", "requests again", |call| Box::pin(upstreams::undrain(call))),
    order("/upstreams/{}/weight", "another weight", |call| Box::pin(upstreams::weight(call))),
    read("/l4", "virtual servers and their real servers", l4::list),
    order("/l4/weight", "another weight of a real server", |call| Box::pin(l4::weight(call))),
    read("/shards", "figures by shard", process::shards),
    read("/connections", "client and server connections", process::connections),
    read("/events", "recent events", process::events),
    read("/history", "rates of the last minutes, a point a second", process::history),
    read("/log/level", "the level of the log", process::log_level),
    order("/log/level", "set the level of the log", |call| Box::pin(process::set_log_level(call))),
    order("/reload", "put the changed file in force (?dry-run: only say what changes)", |call| {
        Box::pin(process::reload(call))
    }),
    order("/vrrp/release", "hand addresses over", |call| Box::pin(vrrp::order("release", call))),
    order("/vrrp/prefer", "take addresses over", |call| Box::pin(vrrp::order("prefer", call))),
    order("/vrrp/resume", "end release or prefer", |call| Box::pin(vrrp::order("resume", call))),
    order("/upgrade", "start the new binary and drain", |call| Box::pin(upgrade::upgrade(call))),
    order("/tune/verify", "look at the machine's settings now", |call| {
        Box::pin(tuning::verify(call))
    }),
];

/// What a request leads to.
#[derive(Debug)]
pub enum Route {
    /// This verb, with what stands for its `{}`.
    Verb(&'static Verb, String),
    /// An answer already.
    Refused(Reply),
}

/// Finds the verb.
#[must_use]
pub fn route(method: Method, path: &str) -> Route {
    let asked = if method == Method::Head { Method::Get } else { method };
    let here = || VERBS.iter().filter_map(|verb| Some((verb, argument(verb.path, path)?)));
    if let Some((verb, argument)) = here().find(|(verb, _)| verb.method == asked) {
        return Route::Verb(verb, argument.to_owned());
    }
    let mut allowed: Vec<&str> = Vec::new();
    for (verb, _) in here() {
        allowed.extend(if verb.method == Method::Get { &["GET", "HEAD"][..] } else { &["POST"] });
    }
    Route::Refused(if allowed.is_empty() {
        Reply::error(404, "there is no such path: GET /api lists those there are")
    } else {
        Reply::error(405, format!("only {}", allowed.join(", "))).with("Allow", allowed.join(", "))
    })
}

/// What stands for the `{}` in `pattern`, empty if it has none; `None` if the path is another.
fn argument<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let Some((before, behind)) = pattern.split_once("{}") else {
        return (pattern == path).then_some("");
    };
    let argument = path.strip_prefix(before)?.strip_suffix(behind)?;
    (!argument.is_empty() && !argument.contains('/')).then_some(argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(method: Method, path: &str) -> Result<(&'static str, String), u16> {
        match route(method, path) {
            Route::Verb(verb, argument) => Ok((verb.path, argument)),
            Route::Refused(reply) => Err(reply.status),
        }
    }

    #[test]
    fn paths_lead_to_verbs() {
        assert_eq!(led(Method::Get, "/status"), Ok(("/status", String::new())));
        assert_eq!(led(Method::Head, "/"), Ok(("/", String::new())));
        assert_eq!(
            led(Method::Post, "/upstreams/api/drain"),
            Ok(("/upstreams/{}/drain", "api".to_owned()))
        );
        for (method, path, status) in [
            (Method::Get, "/nothing", 404),
            (Method::Get, "/status/", 404),
            (Method::Post, "/status", 405),
            (Method::Delete, "/log/level", 405),
            (Method::Get, "/upstreams/api/drain", 405),
            (Method::Post, "/upstreams//drain", 404),
            (Method::Post, "/upstreams/a/b/drain", 404),
            (Method::Post, "/upstreams/drain", 404),
            (Method::Get, "", 404),
        ] {
            assert_eq!(led(method, path), Err(status), "{path}");
        }
    }

    #[test]
    fn the_methods_there_are_go_with_405() {
        let Route::Refused(reply) = route(Method::Put, "/log/level") else { panic!("found") };
        assert_eq!(reply.fields, [("Allow", "GET, HEAD, POST".to_owned())]);
    }

    #[test]
    fn whatever_changes_something_is_for_operators() {
        for verb in VERBS {
            assert_eq!(verb.who == Who::Operator, verb.method != Method::Get, "{}", verb.path);
            let twice = VERBS.iter().filter(|v| v.path == verb.path && v.method == verb.method);
            assert_eq!(twice.count(), 1, "{}", verb.path);
        }
    }
}

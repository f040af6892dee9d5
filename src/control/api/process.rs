//! The process itself: shards, connections, log.

use serde_json::{Value, json};

use super::{Call, Reply};
use crate::control::config::Level;
use crate::control::reload::{Cause, Outcome};
use crate::control::status;

/// What differs, in words, and what became of it.
pub(super) async fn reload(call: Call) -> Reply {
    let dry_run = call.request.query.split('&').any(|word| word == "dry-run");
    let answer = call.state.reload.ask(Cause::Order, dry_run).await;
    let generation = call.state.reload.generation.get();
    match answer.outcome {
        Outcome::Refused => Reply::error(409, answer.text),
        outcome => Reply::json(&json!({
            "outcome": outcome.name(),
            "generation": generation,
            "done": answer.text,
        })),
    }
}

pub(super) fn shards(call: &Call) -> Reply {
    Reply::json(&json!({ "shards": status::shards(&call.state) }))
}

pub(super) fn connections(call: &Call) -> Reply {
    Reply::json(&status::connections(&call.state))
}

pub(super) fn events(call: &Call) -> Reply {
    let events = call.state.logger.events().recent();
    let events: Vec<Value> = events.iter().map(crate::control::events::Event::json).collect();
    let transitions = call.state.logger.events().transitions();
    let transitions: Vec<Value> =
        transitions.iter().map(crate::control::events::Event::json).collect();
    Reply::json(&json!({ "events": events, "vrrp_transitions": transitions }))
}

pub(super) fn history(call: &Call) -> Reply {
    Reply::json(&call.state.history.borrow().json())
}

pub(super) fn log_level(call: &Call) -> Reply {
    Reply::json(&json!({ "level": call.state.logger.level().name() }))
}

pub(super) async fn set_log_level(call: Call) -> Reply {
    let body = match call.json() {
        Ok(body) => body,
        Err(reply) => return reply,
    };
    let wanted = body.get("level").and_then(Value::as_str).unwrap_or_default();
    let Some(level) = Level::ALL.into_iter().find(|level| level.name() == wanted) else {
        let names = Level::ALL.map(Level::name).join(", ");
        return Reply::error(400, format!("`level` is {wanted:?}: write one of {names}"));
    };
    let logger = call.state.logger;
    let before = logger.level();
    logger.set_level(level);
    logger.info("log level changed", &[("from", before.name()), ("to", level.name())]);
    Reply::done(format!("the log level is {} (it was {})", level.name(), before.name()))
}

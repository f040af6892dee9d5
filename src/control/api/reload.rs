//! The configuration file, put in force.

use super::{Call, Reply};
use crate::control::reload::{Cause, Outcome};

/// `POST /reload[?dry-run]`: the difference in words, and what became of it.
pub(super) async fn reload(call: Call) -> Reply {
    let dry_run = call.request.query == "dry-run";
    let answer = call.state.reload.ask(Cause::Order, dry_run).await;
    match answer.outcome {
        Outcome::Refused => Reply::error(409, format!("reload refused\n{}", answer.text)),
        _ => Reply::done(answer.text),
    }
}

//! What everybody may read: the page, the figures, health.

use serde_json::json;

use super::{Call, Reply, VERBS, Who};
use crate::control::state::Phase;
use crate::control::{metrics, page, status};
use crate::protocol::http1::Method;

pub(super) fn page(_: &Call) -> Reply {
    Reply::new("text/html; charset=utf-8", page::HTML.to_owned())
        .with("Content-Security-Policy", page::policy())
        .with("Referrer-Policy", "no-referrer")
}

pub(super) fn health(_: &Call) -> Reply {
    Reply::text(200, "ok")
}

pub(super) fn ready(call: &Call) -> Reply {
    let stuck = call.state.pulses.stuck();
    match (call.state.phase.get(), stuck.first()) {
        (Phase::Draining, _) => Reply::text(503, "draining"),
        (Phase::Serving, None) => Reply::text(200, "ready"),
        (Phase::Serving, Some((shard, since))) => {
            let text = format!("shard {shard} has not answered for {:.1} s", since.as_secs_f64());
            Reply::text(503, &text)
        }
    }
}

pub(super) fn metrics(call: &Call) -> Reply {
    let format = metrics::Format::accepted(&call.request.accept);
    Reply::new(format.content_type(), metrics::render(&call.state, format))
}

pub(super) fn status(call: &Call) -> Reply {
    Reply::json(&status::render(&call.state))
}

pub(super) fn verbs(_: &Call) -> Reply {
    let verb = |verb: &super::Verb| {
        json!({
            "method": if verb.method == Method::Get { "GET" } else { "POST" },
            "path": verb.path,
            "who": if verb.who == Who::Anyone { "anyone" } else { "operator" },
            "what": verb.what,
        })
    };
    Reply::json(&VERBS.iter().map(verb).collect())
}

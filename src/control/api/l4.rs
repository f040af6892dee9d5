//! The layer-4 director.

use serde_json::json;

use super::{Call, Reply};
use crate::control::l4_checks::Checks;
use crate::control::virtual_servers;

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

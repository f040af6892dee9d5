//! `POST /upgrade[?binary=PATH]`: another process in this one's place.

use super::{Call, Reply};
use crate::control::upgrade::{carry_out, decoded};

/// The path is percent-encoded; without it, the binary is the one the process was started by.
pub(super) async fn upgrade(call: Call) -> Reply {
    let binary = match call.query("binary").map(decoded) {
        Some(None) => return Reply::error(400, "`binary` is not percent-encoded"),
        Some(path) => path,
        None => None,
    };
    match carry_out(&call.ring, &call.state, binary).await {
        Ok(done) => Reply::done(done),
        Err(why) => Reply::error(409, why),
    }
}

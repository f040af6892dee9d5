//! Orders to VRRP.

use super::{Call, Reply};
use crate::control::vrrp;

/// `POST /vrrp/ORDER[?instance=NAME]`
pub(super) async fn order(name: &'static str, call: Call) -> Reply {
    let instance = call.query("instance").map(str::to_owned);
    let Some(order) = vrrp::order(name) else { return Reply::error(404, "there is no such order") };
    match vrrp::carry_out(&call.ring, &call.state, order, instance).await {
        Ok(done) => Reply::done(done),
        Err(why) => Reply::error(409, why),
    }
}

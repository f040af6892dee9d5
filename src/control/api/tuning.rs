//! The machine's settings.

use std::path::Path;

use serde_json::json;

use super::{Call, Reply};
use crate::control::status;
use crate::control::tuning::Standing;
use crate::tune::journal::Store;
use crate::tune::machine::Machine;
use crate::tune::plan::Process;
use crate::tune::step::look;

/// Reads the settings now; 409 when one is not as it should be.
pub(super) async fn verify(call: Call) -> Reply {
    let Some(tuning) = &call.state.tuning else {
        return Reply::error(409, "tuning is off: write tuning.profile");
    };
    let config = tuning.config.clone();
    let looked = call.elsewhere(move || {
        let machine = Machine::new(&config.root);
        let store = Store::new(&machine, Path::new(&config.state_dir));
        look(&config, &machine, Process::Serves, &store, true).map(|plan| Standing::of(&plan))
    });
    match looked.await {
        Err(busy) => busy,
        Ok(Err(why)) => Reply::error(500, why),
        Ok(Ok(standing)) => {
            let good = standing.drift.is_empty();
            tuning.standing.replace(standing);
            let status = if good { 200 } else { 409 };
            Reply { status, ..Reply::json(&json!({ "tuning": status::tuning(tuning) })) }
        }
    }
}

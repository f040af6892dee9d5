//! Figures of upgrades.

use super::Page;
use crate::control::state::State;

pub(super) fn write(page: &mut Page, state: &State) {
    page.single(
        "ringgate_upgrade_failures_total",
        "counter",
        "Upgrades that failed, so that this process serves on.",
        state.upgrade.failures(),
    );
    page.single(
        "ringgate_upgrade_draining_processes",
        "gauge",
        "Older processes whose connections run on after an upgrade.",
        state.upgrade.draining(),
    );
}

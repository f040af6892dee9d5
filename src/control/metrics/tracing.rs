//! Export of traces.

use std::sync::atomic::Ordering::Relaxed;

use super::Page;
use crate::control::state::State;

const SPANS: &str = "ringgate_trace_spans_total";

pub(super) fn write(page: &mut Page, state: &State) {
    let tracing = state.tracing.borrow();
    let Some(traces) = &*tracing else { return };
    page.family(
        SPANS,
        "counter",
        "Spans of sampled requests: exported; failed, not taken by the collector; dropped, no room in the queue.",
    );
    let figures = &traces.figures;
    for (outcome, count) in [
        ("exported", &figures.exported),
        ("failed", &figures.failed),
        ("dropped", &figures.dropped),
    ] {
        page.sample(SPANS, &[("outcome", outcome)], count.load(Relaxed));
    }
}

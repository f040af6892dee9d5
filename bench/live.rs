//! The line on standard error while a run goes on.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use crate::plan::Plan;
use crate::report::{latency, rate};
use crate::tally::Tally;

/// Says when measuring begins and ends.
pub(crate) struct Marks {
    /// What is left to be said, and when; the first is the next.
    left: Vec<(Duration, &'static str)>,
}

impl Marks {
    pub(crate) fn new(enabled: bool, plan: &Plan) -> Self {
        let begin = Duration::from_millis(plan.warmup_ms);
        let end = begin + Duration::from_millis(plan.duration_ms);
        let left = vec![(begin, "measuring"), (end, "measured")];
        Self { left: if enabled { left } else { Vec::new() } }
    }

    /// When to call [`Marks::say`] next.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.left.first().map(|&(at, _)| at)
    }

    /// Says what is due.
    pub(crate) fn say(&mut self, elapsed: Duration) {
        while self.next().is_some_and(|at| at <= elapsed) {
            let (_, word) = self.left.remove(0);
            let _ = writeln!(io::stderr(), "{word}");
        }
    }
}

/// Shows a second at a time: on a terminal in one line, elsewhere a line each.
pub(crate) struct Live {
    enabled: bool,
    terminal: bool,
    warmup: Duration,
    whole: Duration,
    /// Figures since the last line.
    recent: Tally,
    shown_at: Duration,
}

impl Live {
    pub(crate) fn new(enabled: bool, plan: &Plan) -> Self {
        Self {
            enabled,
            terminal: io::stderr().is_terminal(),
            warmup: Duration::from_millis(plan.warmup_ms),
            whole: Duration::from_millis(plan.warmup_ms + plan.duration_ms),
            recent: Tally::default(),
            shown_at: Duration::ZERO,
        }
    }

    pub(crate) fn note(&mut self, report: &Tally) {
        if self.enabled {
            self.recent.add(report);
        }
    }

    /// Shows the time since the last call.
    pub(crate) fn show(&mut self, elapsed: Duration) {
        if !self.enabled {
            return;
        }
        let recent = std::mem::take(&mut self.recent);
        let span = elapsed.saturating_sub(self.shown_at);
        self.shown_at = elapsed;
        let line = line(&recent, elapsed, span, self.warmup, self.whole);
        let mut to = io::stderr().lock();
        let _ = if self.terminal { write!(to, "\r\x1b[K{line}") } else { writeln!(to, "{line}") };
        let _ = to.flush();
    }

    /// Leaves the terminal's line for what comes next.
    pub(crate) fn end(&self) {
        if self.enabled && self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(
    recent: &Tally,
    elapsed: Duration,
    span: Duration,
    warmup: Duration,
    whole: Duration,
) -> String {
    let phase = match elapsed {
        early if early < warmup => " warm-up",
        late if late >= whole => " draining",
        _ => "",
    };
    let percent = (elapsed.as_secs_f64() / whole.as_secs_f64() * 100.0).min(100.0);
    let mut line = format!(
        "{:>3.0}% {:>4.0}s{phase}  {}/s",
        percent,
        elapsed.as_secs_f64(),
        rate(recent.counts.responses as f64 / span.as_secs_f64().max(0.001)),
    );
    if !recent.latency.is_empty() {
        let at = |quantile| latency(recent.latency.value_at_quantile(quantile));
        line += &format!("  p50 {}  p99 {}", at(0.5), at(0.99));
    }
    let errors = recent.counts.errors.sum();
    if errors > 0 {
        line += &format!("  errors {errors}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_where_the_run_is() {
        let seconds = Duration::from_secs;
        let mut recent = Tally::default();
        recent.counts.responses = 3000;
        let shown =
            |recent: &Tally, at| line(recent, seconds(at), seconds(2), seconds(2), seconds(12));
        assert_eq!(shown(&recent, 1), "  8%    1s warm-up  1500/s");
        (1..=100).for_each(|value| recent.latency.saturating_record(value * 10_000));
        recent.counts.errors.timeout = 2;
        assert_eq!(shown(&recent, 6), " 50%    6s  1500/s  p50 500 µs  p99 990 µs  errors 2");
        assert!(shown(&recent, 13).starts_with("100%   13s draining"));
    }
}

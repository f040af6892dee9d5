//! The result, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::plan::Plan;
use crate::tally::Tally;

/// The percentiles of the JSON form.
const PERCENTILES: [f64; 12] =
    [1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0];

/// A run that is over.
pub(crate) struct Outcome {
    pub(crate) plan: Plan,
    /// The hosts: this one, or each agent with its name.
    pub(crate) machines: Vec<(String, Machine)>,
    pub(crate) tally: Tally,
    /// Time that was measured: what the plan says, or less of an interrupted run.
    pub(crate) measured: Duration,
    /// A signal ended it early.
    pub(crate) interrupted: bool,
}

impl Outcome {
    fn seconds(&self) -> f64 {
        self.measured.as_secs_f64()
    }

    /// Of a thing counted in the measured time; 0 when there was none.
    fn per_second(&self, count: u64) -> f64 {
        if self.measured.is_zero() { 0.0 } else { count as f64 / self.seconds() }
    }

    /// The summary.
    pub(crate) fn text(&self) -> String {
        let (plan, counts) = (&self.plan, &self.tally.counts);
        let mut text = String::new();
        let loop_kind =
            plan.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("{rate} requests/s"));
        let threads: usize = self.machines.iter().map(|(_, machine)| machine.threads).sum();
        let _ = writeln!(
            text,
            "{}  {loop_kind}, {} connections, {threads} threads, {} s after {} s of warm-up{}",
            plan.url,
            plan.connections,
            (self.seconds() * 1e3).round() / 1e3,
            plan.warmup_ms as f64 / 1000.0,
            if self.interrupted { "  INTERRUPTED" } else { "" }
        );
        let per_second = self.per_second(counts.measured);
        let bytes = self.per_second(counts.bytes);
        let _ = writeln!(text, "  requests/s  {}", rate(per_second));
        let _ = writeln!(text, "  received    {} MB/s", rate(bytes / 1e6));
        let histogram = &self.tally.latency;
        let _ = write!(text, "  latency     ");
        for quantile in [50.0, 90.0, 99.0, 99.9] {
            let value = histogram.value_at_quantile(quantile / 100.0);
            let _ = write!(text, "p{quantile} {}  ", latency(value));
        }
        let mean = histogram.mean();
        let _ = writeln!(text, "max {}  mean {}", latency(histogram.max()), latency_of(mean));
        let _ = writeln!(
            text,
            "  requests    {} sent, {} answered ({} measured) on {} connections",
            counts.sent, counts.responses, counts.measured, counts.opened
        );
        if counts.handshakes > 0 {
            let full = counts.handshakes - counts.resumed;
            let _ = writeln!(text, "  handshakes  {full} full, {} by resumption", counts.resumed);
        }
        if plan.rate.is_some() {
            let mean = counts.behind_sum_ns.checked_div(counts.sent).unwrap_or(0);
            let _ = write!(
                text,
                "  pace        {} behind on average, {} at most",
                latency(mean),
                latency(counts.behind_max_ns)
            );
            let unsent = counts.unsent + counts.errors.overdue;
            let _ = match unsent {
                0 => writeln!(text),
                _ => writeln!(
                    text,
                    "\n  NOT SENT    {unsent} requests that were due: the rate was not kept, and the \
                     latencies leave them out"
                ),
            };
        }
        let errors = counts.errors.list();
        let seen = errors.iter().filter(|(_, count)| *count > 0);
        let seen: Vec<String> = seen.map(|(name, count)| format!("{name} {count}")).collect();
        let none = "none".to_owned();
        let seen = if seen.is_empty() { none } else { seen.join(", ") };
        let _ = writeln!(text, "  errors      {seen}");
        text
    }

    /// Everything.
    pub(crate) fn json(&self) -> Value {
        let (counts, histogram) = (&self.tally.counts, &self.tally.latency);
        let machines = self.machines.iter().map(|(host, machine)| {
            json!({ "host": host, "kernel": machine.kernel, "cpu": machine.cpu,
                    "cpus": machine.cpus, "threads": machine.threads })
        });
        let percentiles = PERCENTILES.iter().map(|&percentile| {
            json!([percentile, micros(histogram.value_at_quantile(percentile / 100.0))])
        });
        let at = |quantile| micros(histogram.value_at_quantile(quantile));
        json!({
            "tool": "ringgate-bench",
            "version": env!("CARGO_PKG_VERSION"),
            "options": without_authorities(&self.plan),
            "machines": machines.collect::<Vec<_>>(),
            "seconds": self.seconds(),
            "interrupted": self.interrupted,
            "requests_per_second": self.per_second(counts.measured),
            "bytes_per_second": self.per_second(counts.bytes),
            "requests": {
                "sent": counts.sent,
                "responses": counts.responses,
                "measured": counts.measured,
                "unsent": counts.unsent,
            },
            "bytes": counts.bytes,
            "connections_opened": counts.opened,
            "handshakes": { "full": counts.handshakes - counts.resumed, "resumed": counts.resumed },
            "per_second": self.tally.seconds,
            "latency_us": {
                "count": histogram.len(),
                "min": micros(histogram.min()),
                "mean": histogram.mean() / 1e3,
                "deviation": histogram.stdev() / 1e3,
                "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99_9": at(0.999),
                "max": micros(histogram.max()),
                "percentiles": percentiles.collect::<Vec<_>>(),
            },
            "behind_us": {
                "max": micros(counts.behind_max_ns),
                "mean": micros(counts.behind_sum_ns.checked_div(counts.sent).unwrap_or(0)),
            },
            "errors": counts.errors,
        })
    }
}

/// A bundle of authorities is longer than all the rest.
fn without_authorities(plan: &Plan) -> Value {
    let mut plan = json!(plan);
    if let Some(authorities) = plan.pointer_mut("/tls/authorities") {
        *authorities = json!(if authorities.is_null() { "not verified" } else { "verified" });
    }
    plan
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// Nanoseconds, in three digits and a unit.
pub(crate) fn latency(ns: u64) -> String {
    latency_of(ns as f64)
}

fn latency_of(ns: f64) -> String {
    match ns {
        short if short < 999_500.0 => format!("{} µs", digits(short / 1e3)),
        middle if middle < 999_500_000.0 => format!("{} ms", digits(middle / 1e6)),
        long => format!("{} s", digits(long / 1e9)),
    }
}

fn digits(value: f64) -> String {
    match value {
        small if small < 9.995 => format!("{small:.2}"),
        middle if middle < 99.95 => format!("{middle:.1}"),
        large => format!("{large:.0}"),
    }
}

/// A number of things a second.
pub(crate) fn rate(value: f64) -> String {
    if value < 100.0 { digits(value) } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        for (ns, text) in [
            (0, "0.00 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (123_456, "123 µs"),
            (999_600, "1.00 ms"),
            (99_960_000, "100 ms"),
            (2_500_000_000, "2.50 s"),
        ] {
            assert_eq!(latency(ns), text);
        }
        assert_eq!(
            (rate(1.5), rate(99.0), rate(123_456.7)),
            ("1.50".into(), "99.0".into(), "123457".into())
        );
    }

    fn outcome() -> Outcome {
        let mut tally = Tally::default();
        (1..=1000).for_each(|value| tally.latency.saturating_record(value * 1000));
        tally.counts.measured = 1000;
        tally.counts.sent = 1100;
        tally.counts.bytes = 5_000_000;
        tally.counts.errors.timeout = 3;
        tally.counts.unsent = 4;
        let plan = Plan { rate: Some(500), duration_ms: 2000, ..plan() };
        let machines = vec![("here".to_owned(), Machine::this(2))];
        Outcome { plan, machines, tally, measured: Duration::from_secs(2), interrupted: false }
    }

    #[test]
    fn a_run_cut_short_says_so_and_divides_by_what_was_measured() {
        let early = Outcome { measured: Duration::ZERO, interrupted: true, ..outcome() };
        assert!(early.text().contains("0 s after 0.1 s of warm-up  INTERRUPTED"));
        assert_eq!(early.json()["requests_per_second"], 0.0);
        let late = Outcome { measured: Duration::from_secs(1), interrupted: true, ..outcome() };
        assert_eq!(late.json()["requests_per_second"], 1000.0);
        assert_eq!(late.json()["interrupted"], true);
    }

    #[test]
    fn the_summary_tells_what_went_wrong() {
        let text = outcome().text();
        for part in [
            "requests/s  500",
            "2.50 MB/s",
            "p50 500 µs",
            "timeout 3",
            "NOT SENT    4",
            "2 threads",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let fine = Outcome { tally: Tally::default(), ..outcome() };
        assert!(fine.text().contains("errors      none") && !fine.text().contains("NOT SENT"));
    }

    #[test]
    fn the_json_has_everything() {
        let json = outcome().json();
        assert_eq!(json["requests_per_second"], 500.0);
        assert_eq!(json["options"]["connections"], 7);
        assert_eq!(json["errors"]["timeout"], 3);
        assert!((json["latency_us"]["p99"].as_f64().unwrap() - 990.0).abs() < 1.0);
        assert_eq!(json["latency_us"]["percentiles"].as_array().unwrap().len(), PERCENTILES.len());
        assert_eq!(json["machines"][0]["threads"], 2);
    }
}

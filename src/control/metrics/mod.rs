//! The figures in Prometheus' text format (version 0.0.4).

mod datapath;
mod director;
mod health;
mod tls;
mod tracing;
mod upgrade;
mod virtual_servers;
mod vrrp;

use std::fmt::Write as _;

use crate::control::reload::COUNTED;
use crate::control::state::{ListenerState, Phase, State};
use crate::counter::Counter;
use crate::l7::metrics::{
    ByShard, CLASSES, Histogram, LATENCY_BOUNDS_MS, ListenerMetrics, Metrics, ServerMetrics,
    UpstreamMetrics,
};
use crate::l7::upstream::SharedUpstream;
use crate::protocol::http2::Reason;
use crate::ring::Stats;

/// Writes one family at a time: its head, then its samples.
struct Page {
    text: String,
    format: Format,
}

/// How figures are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What a client that sends this `Accept` takes.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let open = accept.split(',').any(|one| {
            one.trim().to_ascii_lowercase().starts_with("application/openmetrics-text")
                && !one.replace(' ', "").contains(";q=0,")
        });
        if open { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // OpenMetrics calls a family of counters by what comes before `_total`.
        let name = match self.format {
            Format::OpenMetrics if kind == "counter" => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        };
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(name);
        for (i, (key, value)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{open}{key}=\"{value}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A family with one sample and no labels.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// Everything the process counts.
#[must_use]
pub fn render(state: &State, format: Format) -> String {
    let mut page = Page { text: String::with_capacity(16 * 1024), format };
    process(&mut page, state);
    configuration(&mut page, state);
    http2(&mut page, state);
    listeners(&mut page, state);
    shards(&mut page, state);
    upstreams(&mut page, state);
    servers(&mut page, state);
    health::write(&mut page, state);
    tracing::write(&mut page, state);
    tls::write(&mut page, state);
    if let Some(ha) = state.ha.get() {
        vrrp::write(&mut page, &ha.board.read());
    }
    if let Some(l4) = &state.l4 {
        director::write(&mut page, &l4.board);
        datapath::write(&mut page, &l4.board.network());
        virtual_servers::write(&mut page, &l4.board.tables());
    }
    tuning(&mut page, state);
    upgrade::write(&mut page, state);
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

fn process(page: &mut Page, state: &State) {
    page.family("ringgate_build_info", "gauge", "The version, as a label; always 1.");
    page.sample("ringgate_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let up = state.started.elapsed().as_secs_f64();
    page.single("ringgate_uptime_seconds", "gauge", "Time since the start.", up);
    let ready = u8::from(state.phase.get() == Phase::Serving);
    page.single("ringgate_ready", "gauge", "1 while accepting, 0 while draining.", ready);
    for (name, help, pick) in TOTALS {
        let value: u64 = state.shards.iter().map(|shard| pick(&shard.metrics).value()).sum();
        page.single(name, "counter", help, value);
    }
}

/// Names as Prometheus has them for itself.
#[allow(clippy::cast_precision_loss)] // milliseconds since 1970 are exact for long
fn configuration(page: &mut Page, state: &State) {
    let reload = &state.reload;
    let successful = u8::from(reload.refused.borrow().is_none());
    let help = "0 when the last reload was refused: what runs is not what the file says.";
    page.single("ringgate_config_last_reload_successful", "gauge", help, successful);
    let help = "When a file was last found good, since 1970.";
    let name = "ringgate_config_last_reload_success_timestamp_seconds";
    page.single(name, "gauge", help, reload.good_ms.get() as f64 / 1000.0);
    let help = "Counts the configurations put in force; 1 is the start.";
    page.single("ringgate_config_generation", "gauge", help, reload.generation.get());
    page.family("ringgate_config_info", "gauge", "SHA-256 of the file in force; always 1.");
    page.sample("ringgate_config_info", &[("sha256", &*reload.hash.borrow())], 1);
    page.family("ringgate_config_reloads_total", "counter", "Reloads, by what came of them.");
    for (outcome, count) in COUNTED.iter().zip(&reload.counts) {
        let labels = [("outcome", outcome.name())];
        page.sample("ringgate_config_reloads_total", &labels, count.get());
    }
}

fn tuning(page: &mut Page, state: &State) {
    let Some(tuning) = &state.tuning else { return };
    let standing = tuning.standing.borrow();
    page.family("ringgate_tuning_settings", "gauge", "Settings of the machine, by their standing.");
    for (status, count) in &standing.counts {
        page.sample("ringgate_tuning_settings", &[("status", status.name())], count);
    }
    let help = "1 for each setting that is not as it should be.";
    page.family("ringgate_tuning_drift", "gauge", help);
    for drift in &standing.drift {
        page.sample("ringgate_tuning_drift", &[("key", &drift.key)], 1);
    }
    let age = standing.checked.elapsed().as_secs_f64();
    let help = "Time since the settings were looked at.";
    page.single("ringgate_tuning_check_age_seconds", "gauge", help, age);
}

/// A family, its help, and which counter of a shard it adds up.
type Total = (&'static str, &'static str, fn(&Metrics) -> &Counter);

const TOTALS: [Total; 22] = [
    (
        "ringgate_client_connections_refused_total",
        "Connections refused because their client address had too many (limits.connections).",
        |m| &m.clients.connections_refused,
    ),
    (
        "ringgate_client_requests_refused_total",
        "Requests refused because their client address had sent too many (limits.request_rate).",
        |m| &m.clients.requests_refused,
    ),
    (
        "ringgate_client_slow_total",
        "Clients given up because they sent or took a body too slowly.",
        |m| &m.clients.slow,
    ),
    (
        "ringgate_client_untracked_total",
        "Connections and requests let through because limits.table_size had no room.",
        |m| &m.clients.untracked,
    ),
    (
        "ringgate_requests_refused_total",
        "Requests refused as malformed or over a limit before routing.",
        |m| &m.requests_refused,
    ),
    (
        "ringgate_accept_no_descriptors_total",
        "Times accepting rested because file descriptors ran out.",
        |m| &m.accept_no_descriptors,
    ),
    ("ringgate_accept_at_limit_total", "Times accepting rested at max_connections.", |m| {
        &m.accept_at_limit
    }),
    ("ringgate_accept_errors_total", "Other errors of accepting.", |m| &m.accept_errors),
    (
        "ringgate_access_log_dropped_total",
        "Access log lines dropped because the buffer was full or the file failed.",
        |m| &m.log_lines_dropped,
    ),
    (
        "ringgate_reports_dropped_total",
        "Log events dropped because the control thread's queue was full.",
        |m| &m.reports_dropped,
    ),
    ("ringgate_retries_over_budget_total", "Retries the retry budget refused.", |m| {
        &m.retries_over_budget
    }),
    (
        "ringgate_connects_exhausted_total",
        "Connections to servers not made for want of descriptors, ports or memory.",
        |m| &m.connects_exhausted,
    ),
    (
        "ringgate_proxy_header_errors_total",
        "Connections without the PROXY protocol header they owed, or with a bad one.",
        |m| &m.proxy_header_errors,
    ),
    (
        "ringgate_client_timeouts_total",
        "Clients too slow with a head or body, or in taking a response.",
        |m| &m.client_timeouts,
    ),
    (
        "ringgate_client_aborts_total",
        "Requests given up because the client reset the connection.",
        |m| &m.client_aborts,
    ),
    (
        "ringgate_responses_cut_total",
        "Responses cut short because the server failed inside the body.",
        |m| &m.responses_cut,
    ),
    ("ringgate_http2_connections_total", "Client connections that spoke HTTP/2.", |m| {
        &m.http2.connections
    }),
    ("ringgate_http2_streams_total", "Requests that came on HTTP/2 streams.", |m| &m.http2.streams),
    (
        "ringgate_http2_stream_errors_total",
        "HTTP/2 streams reset because of what the client sent on them.",
        |m| &m.http2.stream_errors,
    ),
    ("ringgate_http2_resets_received_total", "HTTP/2 streams that the client reset.", |m| {
        &m.http2.resets_received
    }),
    (
        "ringgate_http2_heads_too_large_total",
        "HTTP/2 requests with more or longer fields than allowed.",
        |m| &m.http2.heads_too_large,
    ),
    (
        "ringgate_http2_streams_refused_total",
        "HTTP/2 streams refused because as many were being served as may be.",
        |m| &m.http2.streams_refused,
    ),
];

fn http2(page: &mut Page, state: &State) {
    const NAME: &str = "ringgate_http2_connection_errors_total";
    page.family(NAME, "counter", "HTTP/2 client connections given up, by reason.");
    for (index, reason) in Reason::ALL.iter().enumerate() {
        let errors = state.shards.iter().map(|shard| &shard.metrics.http2.errors[index]);
        page.sample(NAME, &[("reason", reason.label())], errors.map(Counter::value).sum::<u64>());
    }
}

/// A counter family of listeners or upstreams, its help, and which counter of a shard it adds up.
type Added<T> = (&'static str, &'static str, fn(&T) -> &Counter);

/// A counter over all shards.
fn sum<T>(figures: &ByShard<T>, pick: impl Fn(&T) -> u64) -> u64 {
    figures.iter().map(|shard| pick(shard)).sum()
}

/// A family, its kind, its help, and which counter of a `T` it shows.
type Picked<T> = (&'static str, &'static str, &'static str, fn(&T) -> &Counter);

fn listeners(page: &mut Page, state: &State) {
    let listeners = state.listeners();
    page.family("ringgate_requests_total", "counter", "Requests answered, by status class.");
    for ListenerState { name, figures, .. } in &*listeners {
        let classes = sum_classes(figures.iter().map(|shard| shard.requests.values()));
        for (class, count) in CLASSES.iter().zip(classes) {
            page.sample("ringgate_requests_total", &[("listener", name), ("class", class)], count);
        }
    }
    let families: [Added<ListenerMetrics>; 3] = [
        ("ringgate_connections_accepted_total", "Client connections accepted.", |m| &m.accepted),
        ("ringgate_received_bytes_total", "Bytes of requests, heads and bodies.", |m| {
            &m.bytes_received
        }),
        ("ringgate_sent_bytes_total", "Bytes of responses handed to the kernel.", |m| {
            &m.bytes_sent
        }),
    ];
    for (family, help, pick) in families {
        page.family(family, "counter", help);
        for ListenerState { name, figures, .. } in &*listeners {
            let value = sum(figures, |shard| pick(shard).value());
            page.sample(family, &[("listener", name)], value);
        }
    }
}

fn shards(page: &mut Page, state: &State) {
    page.family("ringgate_connections", "gauge", "Open client connections, by shard.");
    for (index, shard) in state.shards.iter().enumerate() {
        let value = connections(&shard.metrics);
        page.sample("ringgate_connections", &[("shard", &index.to_string())], value);
    }
    page.family(
        "ringgate_shard_stuck",
        "gauge",
        "1 while a shard does not answer (3 s), by shard.",
    );
    for index in 0..state.shards.len() {
        let value = u8::from(state.pulses.stuck_for(index).is_some());
        page.sample("ringgate_shard_stuck", &[("shard", &index.to_string())], value);
    }
    page.family(
        "ringgate_shard_stalls_total",
        "counter",
        "Times a shard did not answer, by shard.",
    );
    for index in 0..state.shards.len() {
        let value = state.pulses.stalls(index);
        page.sample("ringgate_shard_stalls_total", &[("shard", &index.to_string())], value);
    }
    let families: [Picked<Stats>; 8] = [
        ("ringgate_ring_enters_total", "counter", "Calls of io_uring_enter(2).", |s| &s.enters),
        ("ringgate_ring_completions_total", "counter", "Completions handed out.", |s| {
            &s.completions
        }),
        (
            "ringgate_ring_buffers_exhausted_total",
            "counter",
            "Receives that found no buffer.",
            |s| &s.buffers_exhausted,
        ),
        ("ringgate_ring_cq_overflows_total", "counter", "Completion queue overflows.", |s| {
            &s.cq_overflows
        }),
        ("ringgate_ring_buffers", "gauge", "Receive buffers of 16 KiB allocated.", |s| {
            &s.buffers_allocated
        }),
        (
            "ringgate_ring_buffers_used",
            "gauge",
            "Receive buffers that hold data: beyond a quarter of the limit slow readers are given less of them, \
             beyond three quarters one each.",
            |s| &s.buffers_used,
        ),
        (
            "ringgate_ring_buffers_limit",
            "gauge",
            "Receive buffers there may be (node.buffer_memory).",
            |s| &s.buffers_limit,
        ),
        (
            "ringgate_ring_buffers_relieved_total",
            "counter",
            "Times the kernel was let take more for a slow reader, since receive buffers had run out.",
            |s| &s.relieved,
        ),
    ];
    for (family, kind, help, pick) in families {
        page.family(family, kind, help);
        for (index, shard) in state.shards.iter().enumerate() {
            page.sample(family, &[("shard", &index.to_string())], pick(&shard.ring).value());
        }
    }
}

/// Open connections of a shard.
#[must_use]
pub fn connections(metrics: &Metrics) -> u64 {
    metrics.opened.value().saturating_sub(metrics.closed.value())
}

fn upstreams(page: &mut Page, state: &State) {
    page.family(
        "ringgate_upstream_requests_total",
        "counter",
        "Requests proxied, by the status class the client got.",
    );
    let upstreams = state.upstreams();
    for upstream in &*upstreams {
        let SharedUpstream { config, metrics, .. } = &*upstream.shared;
        let classes = sum_classes(metrics.iter().map(|shard| shard.requests.values()));
        for (class, count) in CLASSES.iter().zip(classes) {
            let labels = [("upstream", config.name.as_str()), ("class", class)];
            page.sample("ringgate_upstream_requests_total", &labels, count);
        }
    }
    let families: [Added<UpstreamMetrics>; 3] = [
        ("ringgate_upstream_retries_total", "Attempts after the first.", |m| &m.retries),
        ("ringgate_upstream_unavailable_total", "Requests no server was available for.", |m| {
            &m.unavailable
        }),
        (
            "ringgate_upstream_stale_connections_total",
            "Idle connections found closed by the server.",
            |m| &m.stale,
        ),
    ];
    for (family, help, pick) in families {
        page.family(family, "counter", help);
        for upstream in &*upstreams {
            let SharedUpstream { config, metrics, .. } = &*upstream.shared;
            let value = sum(metrics, |shard| pick(shard).value());
            page.sample(family, &[("upstream", &config.name)], value);
        }
    }
    latency(page, state);
}

fn latency(page: &mut Page, state: &State) {
    let upstreams = state.upstreams();
    let name = "ringgate_upstream_request_duration_seconds";
    page.family(name, "histogram", "Time from a request's first byte to its response's end.");
    for upstream in &*upstreams {
        let SharedUpstream { config, metrics, .. } = &*upstream.shared;
        let shards = metrics.iter().map(|shard| &shard.latency);
        histogram(page, name, ("upstream", &config.name), shards);
    }
    let name = "ringgate_request_duration_seconds";
    let help = "Time from a request's first byte to its response's end, whoever answers.";
    page.family(name, "histogram", help);
    for ListenerState { name: listener, figures, .. } in &*state.listeners() {
        let shards = figures.iter().map(|shard| &shard.latency);
        histogram(page, name, ("listener", listener), shards);
    }
}

/// The samples of a histogram over all shards.
fn histogram<'a>(
    page: &mut Page,
    name: &str,
    label: (&str, &str),
    shards: impl Iterator<Item = &'a Histogram>,
) {
    let (mut buckets, mut sum_ms) = ([0; LATENCY_BOUNDS_MS.len() + 1], 0);
    for shard in shards {
        buckets.iter_mut().zip(shard.buckets()).for_each(|(sum, count)| *sum += count);
        sum_ms += shard.sum_ms();
    }
    let mut cumulated = 0;
    let bounds = LATENCY_BOUNDS_MS.iter().map(|ms| format!("{:?}", seconds(*ms)));
    for (count, bound) in buckets.into_iter().zip(bounds.chain(["+Inf".to_owned()])) {
        cumulated += count;
        page.sample(&format!("{name}_bucket"), &[label, ("le", &bound)], cumulated);
    }
    page.sample(&format!("{name}_sum"), &[label], seconds(sum_ms));
    page.sample(&format!("{name}_count"), &[label], cumulated);
}

#[allow(clippy::cast_precision_loss)] // a sum of milliseconds is exact up to 285,000 years
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn servers(page: &mut Page, state: &State) {
    page.family(
        "ringgate_server_responses_total",
        "counter",
        "Responses of a server, by status class.",
    );
    each_server(state, |upstream, server, member| {
        let mut classes = [0; 5];
        for shard in &member.metrics {
            for (sum, value) in classes.iter_mut().zip(shard.responses.values()) {
                *sum += value;
            }
        }
        for (class, count) in CLASSES.iter().zip(classes) {
            let labels = [("upstream", upstream), ("server", server), ("class", class)];
            page.sample("ringgate_server_responses_total", &labels, count);
        }
    });
    let families: [Picked<ServerMetrics>; 5] = [
        ("ringgate_server_connects_total", "counter", "Connections opened.", |s| &s.connects),
        ("ringgate_server_reuses_total", "counter", "Requests on a reused connection.", |s| {
            &s.reuses
        }),
        (
            "ringgate_server_connect_failures_total",
            "counter",
            "Connections that could not be opened.",
            |s| &s.connect_failures,
        ),
        (
            "ringgate_server_failures_total",
            "counter",
            "Attempts that failed after the connection was there.",
            |s| &s.failures,
        ),
        ("ringgate_server_idle_connections", "gauge", "Idle connections kept.", |s| &s.idle),
    ];
    for (family, kind, help, pick) in families {
        page.family(family, kind, help);
        each_server(state, |upstream, server, member| {
            let value: u64 = member.metrics.iter().map(|shard| pick(shard).value()).sum();
            page.sample(family, &[("upstream", upstream), ("server", server)], value);
        });
    }
    page.family("ringgate_server_in_flight", "gauge", "Requests being served.");
    each_server(state, |upstream, server, member| {
        let labels = [("upstream", upstream), ("server", server)];
        page.sample("ringgate_server_in_flight", &labels, member.in_flight.count());
    });
    page.family(
        "ringgate_server_up",
        "gauge",
        "0 while out: failures, health checks, ejection, or by hand.",
    );
    each_standing(state, |upstream, server, member, weight| {
        let up = u8::from(weight > 0 && member.is_usable());
        let labels = [("upstream", upstream), ("server", server)];
        page.sample("ringgate_server_up", &labels, up);
    });
    let help = "The weight in force; 0 for a server that was drained.";
    page.family("ringgate_server_weight", "gauge", help);
    each_standing(state, |upstream, server, _, weight| {
        let labels = [("upstream", upstream), ("server", server)];
        page.sample("ringgate_server_weight", &labels, weight);
    });
    let help = "Servers that differ from the configuration file since an operator changed them.";
    page.family("ringgate_upstream_drift", "gauge", help);
    for upstream in &*state.upstreams() {
        let labels = [("upstream", upstream.shared.config.name.as_str())];
        page.sample("ringgate_upstream_drift", &labels, upstream.servers.borrow().drift().len());
    }
}

/// Each server with its weight now.
fn each_standing(
    state: &State,
    mut each: impl FnMut(&str, &str, &crate::l7::upstream::Member, u32),
) {
    for upstream in &*state.upstreams() {
        let set = upstream.set.borrow();
        for (index, member) in set.members.iter().enumerate() {
            each(&upstream.shared.config.name, &member.label, member, set.weight(index));
        }
    }
}

fn each_server(state: &State, mut each: impl FnMut(&str, &str, &crate::l7::upstream::Member)) {
    for upstream in &*state.upstreams() {
        for member in &upstream.set.borrow().members {
            each(&upstream.shared.config.name, &member.label, member);
        }
    }
}

fn sum_classes(shards: impl Iterator<Item = [u64; 5]>) -> [u64; 5] {
    let mut sums = [0; 5];
    for shard in shards {
        for (sum, value) in sums.iter_mut().zip(shard) {
            *sum += value;
        }
    }
    sums
}

//! What the proxy counts. Each shard has its own; the admin endpoint adds them up.

use std::sync::Arc;

use crate::counter::{Counter, Padded};
use crate::l7::tls::metrics::TlsMetrics;
use crate::protocol::http2::Reason;

/// Upper bounds of the latency buckets in milliseconds; what is longer only counts in the total.
pub const LATENCY_BOUNDS_MS: [u64; 14] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000];

/// One shard's figures.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Client connections accepted, over all listeners there have been.
    pub opened: Counter,
    /// Client connections closed; the difference is what is open.
    pub closed: Counter,
    /// Times accepting stopped because descriptors ran out (EMFILE, ENFILE).
    pub accept_no_descriptors: Counter,
    /// Times accepting stopped at `max_connections`.
    pub accept_at_limit: Counter,
    /// Other errors of accepting.
    pub accept_errors: Counter,
    /// Access log lines dropped because the buffer was full or the file could not be written.
    pub log_lines_dropped: Counter,
    /// Attempts that failed because descriptors, ports or memory ran out here.
    pub connects_exhausted: Counter,
    /// Reports to the control thread dropped because its queue was full.
    pub reports_dropped: Counter,
    /// Retries the budget refused.
    pub retries_over_budget: Counter,
    /// Requests refused as malformed or over a limit, before routing.
    pub requests_refused: Counter,
    /// Client connections that ended inside a PROXY protocol header, or had a bad one.
    pub proxy_header_errors: Counter,
    /// Client connections that ended with a timeout inside a request or response.
    pub client_timeouts: Counter,
    /// Requests given up because the client reset the connection.
    pub client_aborts: Counter,
    /// Responses cut short because the upstream failed inside the body.
    pub responses_cut: Counter,
    /// HTTP/2 between clients and us.
    pub http2: Http2Metrics,
    /// Limits for each client address.
    pub clients: ClientMetrics,
}

/// What limits for each client address did.
#[derive(Debug, Default)]
pub struct ClientMetrics {
    /// Connections refused because their address had too many.
    pub connections_refused: Counter,
    /// Requests refused because their address had sent too many.
    pub requests_refused: Counter,
    /// Connections given up because the client sent or took a body too slowly.
    pub slow: Counter,
    /// Connections and requests let through because the table had no room for their address.
    pub untracked: Counter,
}

/// What is counted of HTTP/2 connections of clients.
#[derive(Debug, Default)]
pub struct Http2Metrics {
    /// Connections that began with the preface.
    pub connections: Counter,
    /// Streams that carried a request.
    pub streams: Counter,
    /// Streams reset because of what the client sent on them.
    pub stream_errors: Counter,
    /// Streams the client reset.
    pub resets_received: Counter,
    /// Requests with more or longer fields than allowed.
    pub heads_too_large: Counter,
    /// Streams refused because too many were being served.
    pub streams_refused: Counter,
    /// Connections given up, in the order of [`Reason::ALL`].
    pub errors: [Counter; Reason::ALL.len()],
}

impl Http2Metrics {
    /// Counts a connection given up.
    pub fn count_error(&self, reason: Reason) {
        self.errors[reason as usize].increment();
    }
}

/// Figures of one thing, by shard: each writes its own, and they outlive changes of the configuration.
pub type ByShard<T> = Arc<[Padded<T>]>;

/// All zero, for so many shards.
#[must_use]
pub fn by_shard<T: Default>(shards: usize) -> ByShard<T> {
    (0..shards).map(|_| Padded::default()).collect()
}

/// Figures of one listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed; the difference is what is open.
    pub closed: Counter,
    /// Requests answered.
    pub requests: ByClass,
    /// Time from the request's first byte to the last byte of the response being queued.
    pub latency: Histogram,
    /// Bytes of requests received, heads and bodies.
    pub bytes_received: Counter,
    /// Bytes of responses handed to the kernel, records of TLS included.
    pub bytes_sent: Counter,
    /// TLS handshakes.
    pub tls: TlsMetrics,
}

/// Figures of one upstream.
#[derive(Debug, Default)]
pub struct UpstreamMetrics {
    /// Requests proxied, by the status the client got.
    pub requests: ByClass,
    /// Time from the request's first byte to the last byte of the response being queued.
    pub latency: Histogram,
    /// Further attempts after the first.
    pub retries: Counter,
    /// Requests nobody was available for.
    pub unavailable: Counter,
    /// Idle connections that turned out to be closed by the server.
    pub stale: Counter,
    /// Requests refused at `breaker.max_in_flight`.
    pub refused_in_flight: Counter,
    /// Requests refused at `breaker.max_pending`.
    pub refused_pending: Counter,
    /// TLS handshakes.
    pub tls: TlsMetrics,
}

/// A shard's figures of one server.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// Responses by status class.
    pub responses: ByClass,
    /// Connections opened.
    pub connects: Counter,
    /// Connections that could not be opened.
    pub connect_failures: Counter,
    /// Requests sent on a connection that had served one before.
    pub reuses: Counter,
    /// Attempts that failed after the connection was there.
    pub failures: Counter,
    /// Idle connections in the pool.
    pub idle: Counter,
    /// Sum of the times from the start of an attempt to the response's head, in ms.
    pub response_ms: Counter,
}

/// Counters by status class.
#[derive(Debug, Default)]
pub struct ByClass([Counter; 5]);

/// Labels of [`ByClass::values`], in order.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl ByClass {
    /// Counts a status; what is outside 100 to 599 (499, a client that left, is inside) counts as 5xx.
    pub fn count(&self, status: u16) {
        let class = usize::from(status / 100).wrapping_sub(1).min(4);
        self.0[class].increment();
    }

    /// The counts of 1xx to 5xx.
    #[must_use]
    pub fn values(&self) -> [u64; 5] {
        std::array::from_fn(|class| self.0[class].value())
    }
}

/// A latency histogram with fixed bounds.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; LATENCY_BOUNDS_MS.len() + 1],
    sum_ms: Counter,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, ms: u64) {
        let bucket = LATENCY_BOUNDS_MS.partition_point(|&bound| bound < ms);
        self.buckets[bucket].increment();
        self.sum_ms.add(ms);
    }

    /// Counts per bucket, not cumulated; the last is what exceeds every bound.
    #[must_use]
    pub fn buckets(&self) -> [u64; LATENCY_BOUNDS_MS.len() + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].value())
    }

    /// Sum of all durations in milliseconds.
    #[must_use]
    pub fn sum_ms(&self) -> u64 {
        self.sum_ms.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_fall_into_their_class() {
        let by_class = ByClass::default();
        for status in [100, 200, 204, 301, 404, 499, 500, 599, 999, 0] {
            by_class.count(status);
        }
        assert_eq!(by_class.values(), [1, 2, 1, 2, 4]);
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::default();
        for ms in [0, 1, 2, 60_000, 60_001] {
            histogram.record(ms);
        }
        let buckets = histogram.buckets();
        assert_eq!((buckets[0], buckets[1], buckets[13], buckets[14]), (2, 1, 1, 1));
        assert_eq!(histogram.sum_ms(), 120_004);
    }
}

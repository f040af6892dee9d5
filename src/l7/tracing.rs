//! Spans of requests that are traced, on their way to whoever exports them: a bounded queue that shards never wait for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;

use crate::l7::tls::config::Upstream;
use crate::protocol::trace_context::{SPAN_LEN, TRACE_LEN};

/// Spans that may wait to be exported; a pointer each.
const QUEUE_MAX: usize = 4096;
/// Bytes that are kept of a text.
const TEXT_MAX: usize = 512;
/// The number that a ratio is compared with: 56 random bits (W3C Trace Context, Level 2, section 5).
const RANDOM_BITS: u32 = 56;

/// Which requests are traced, and where their spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `http://HOST:PORT/PATH` as host and port, for a lookup, and the path.
    pub authority: String,
    /// `https`: how the collector is verified, and by which name.
    pub tls: Option<Upstream>,
    /// See `authority`.
    pub path: String,
    /// Further fields of the export's requests, such as a collector's token.
    pub headers: Vec<(String, String)>,
    /// `service.name` of the resource.
    pub service_name: String,
    /// Traces begun here are sampled if their number is below this ([`threshold`]).
    pub threshold: u64,
}

/// Below which of 2^56 numbers a trace is sampled, for a share of all.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
pub fn threshold(ratio: f64) -> u64 {
    (ratio.clamp(0.0, 1.0) * (1_u64 << RANDOM_BITS) as f64) as u64
}

/// A request as its trace shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The trace, in hexadecimal digits.
    pub trace: [u8; TRACE_LEN],
    /// Ours in it.
    pub span: [u8; SPAN_LEN],
    /// The client's, if it has brought the trace.
    pub parent: Option<[u8; SPAN_LEN]>,
    /// When the response had ended, in milliseconds since 1970.
    pub end_unix_ms: u64,
    /// From the first byte of the request to the last of the response.
    pub duration_ms: u64,
    /// As it came.
    pub method: String,
    /// `https` or `http`.
    pub scheme: &'static str,
    /// Path and query, as they came.
    pub target: String,
    /// `1.0`, `1.1` or `2`.
    pub version: &'static str,
    /// `Host`, as it came.
    pub host: String,
    /// Empty: it has said nothing.
    pub user_agent: String,
    /// The client's address.
    pub client: IpAddr,
    /// Status sent to the client.
    pub status: u16,
    /// Name of the listener.
    pub listener: String,
    /// Name of the upstream, if it was proxied.
    pub upstream: Option<String>,
    /// The server that was tried last.
    pub server: Option<SocketAddr>,
    /// Time spent with servers.
    pub upstream_ms: Option<u64>,
    /// Attempts made on servers.
    pub tries: u32,
    /// Why it failed, in a few words.
    pub error: Option<&'static str>,
}

/// As much of a text as is kept.
#[must_use]
pub fn shortened(text: &[u8]) -> String {
    String::from_utf8_lossy(text.get(..TEXT_MAX).unwrap_or(text)).into_owned()
}

/// What comes out of the queue.
#[derive(Debug)]
pub enum Item {
    /// To be exported.
    Span(Box<Span>),
    /// Export what there is, and say so.
    Flush(SyncSender<()>),
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct Figures {
    /// The collector has them.
    pub exported: AtomicU64,
    /// There was no room in the queue.
    pub dropped: AtomicU64,
    /// The collector did not take them.
    pub failed: AtomicU64,
    /// Why it did not take the last ones; `None`: it did.
    pub problem: Mutex<Option<String>>,
}

/// What a collector is verified with, as read from files.
#[derive(Debug)]
pub struct Verified {
    /// For its connections.
    pub client: Arc<ClientConfig>,
    /// Digest of the file of authorities: another content is another collector to trust.
    pub authorities: [u8; 32],
}

/// Settings, and the way to the exporter.
pub struct Traces {
    /// What was configured.
    pub settings: Settings,
    /// Read once, after the configuration was found good; empty without TLS.
    pub verified: OnceLock<Verified>,
    /// They outlive reloads.
    pub figures: Arc<Figures>,
    queue: SyncSender<Item>,
    waiting: Mutex<Option<Receiver<Item>>>,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl PartialEq for Traces {
    fn eq(&self, other: &Self) -> bool {
        let authorities = |one: &Self| one.verified.get().map(|read| read.authorities);
        self.settings == other.settings && authorities(self) == authorities(other)
    }
}

impl Traces {
    /// With an empty queue.
    #[must_use]
    pub fn new(settings: Settings, figures: Arc<Figures>) -> Self {
        let (queue, waiting) = sync_channel(QUEUE_MAX);
        let waiting = Mutex::new(Some(waiting));
        Self { settings, verified: OnceLock::new(), figures, queue, waiting }
    }

    /// The other end of the queue, for the one who asks first.
    #[must_use]
    pub fn receiver(&self) -> Option<Receiver<Item>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a trace that begins here is sampled: all who see its identifier come to the same answer.
    #[must_use]
    pub fn samples(&self, trace: &[u8; TRACE_LEN]) -> bool {
        let digits = trace.iter().rev().take(RANDOM_BITS as usize / 4).rev();
        let number = digits.fold(0, |number: u64, digit| {
            number << 4 | u64::from(char::from(*digit).to_digit(16).unwrap_or(0))
        });
        number < self.settings.threshold
    }

    /// Hands a span over; drops and counts it when the queue is full.
    pub fn offer(&self, span: Span) {
        match self.queue.try_send(Item::Span(Box::new(span))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.figures.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    /// Has everything exported that was handed over before; false if that takes longer.
    #[must_use]
    pub fn flush(&self, patience: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        self.queue.try_send(Item::Flush(done)).is_ok() && wait.recv_timeout(patience).is_ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn settings() -> Settings {
        Settings {
            tls: None,
            authority: "127.0.0.1:4318".to_owned(),
            path: "/v1/traces".to_owned(),
            headers: Vec::new(),
            service_name: "edge".to_owned(),
            threshold: threshold(0.5),
        }
    }

    pub(crate) fn span() -> Span {
        Span {
            trace: *b"4bf92f3577b34da6a3ce929d0e0e4736",
            span: *b"00f067aa0ba902b7",
            parent: None,
            end_unix_ms: 1_700_000_000_250,
            duration_ms: 250,
            method: "GET".to_owned(),
            scheme: "https",
            target: "/a/b?c=d".to_owned(),
            version: "2",
            host: "shop.example:8443".to_owned(),
            user_agent: String::new(),
            client: IpAddr::from([192, 0, 2, 7]),
            status: 502,
            listener: "web".to_owned(),
            upstream: Some("api".to_owned()),
            server: Some(SocketAddr::from(([10, 0, 0, 1], 80))),
            upstream_ms: Some(240),
            tries: 2,
            error: Some("cannot connect to the server"),
        }
    }

    #[test]
    fn shares() {
        let traces = |ratio| {
            Traces::new(Settings { threshold: threshold(ratio), ..settings() }, Arc::default())
        };
        let low = *b"ffffffffffffffffff00000000000000";
        let half = *b"00000000000000000080000000000000";
        let high = *b"000000000000000000ffffffffffffff";
        for (ratio, expected) in [
            (0.0, [false, false, false]),
            (0.25, [true, false, false]),
            (0.5, [true, false, false]),
            (0.75, [true, true, false]),
            (1.0, [true, true, true]),
        ] {
            let traces = traces(ratio);
            assert_eq!([low, half, high].map(|trace| traces.samples(&trace)), expected, "{ratio}");
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let traces = Traces::new(settings(), Arc::default());
        for _ in 0..QUEUE_MAX + 3 {
            traces.offer(span());
        }
        assert_eq!(traces.figures.dropped.load(Relaxed), 3);
        assert!(!traces.flush(Duration::from_secs(1)), "there is no room to ask");
        let receiver = traces.receiver().expect("the first to ask");
        assert!(traces.receiver().is_none());
        assert_eq!(receiver.try_iter().count(), QUEUE_MAX);
        drop(receiver);
        traces.offer(span());
        assert_eq!(traces.figures.dropped.load(Relaxed), 4, "nobody exports");
    }

    #[test]
    fn texts_are_short_and_text() {
        assert_eq!(shortened(b"a\xff"), "a\u{fffd}");
        assert_eq!(shortened(&[b'x'; 2000]).len(), TEXT_MAX);
    }
}

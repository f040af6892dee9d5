//! Handshakes, counted.

use crate::counter::Counter;
use crate::protocol::tls::record::Version;

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It took too long.
    Timeout,
    /// The peer closed the connection.
    Closed,
    /// A request in the clear.
    PlainHttp,
    /// Something else that is not TLS.
    NotTls,
    /// No version, cipher suite, group or protocol in common.
    Incompatible,
    /// The peer's certificate is missing or not trusted.
    Certificate,
    /// The peer gave up with an alert: it does not trust ours, for instance.
    Alert,
    /// The peer broke the protocol.
    Malformed,
    /// Our own fault.
    Internal,
}

impl Reason {
    /// All of them, in the order of the figures.
    pub const ALL: [Self; 9] = [
        Self::Timeout,
        Self::Closed,
        Self::PlainHttp,
        Self::NotTls,
        Self::Incompatible,
        Self::Certificate,
        Self::Alert,
        Self::Malformed,
        Self::Internal,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::PlainHttp => "plain_http",
            Self::NotTls => "not_tls",
            Self::Incompatible => "incompatible",
            Self::Certificate => "certificate",
            Self::Alert => "alert",
            Self::Malformed => "malformed",
            Self::Internal => "internal",
        }
    }
}

/// Handshakes of a listener or upstream on one shard.
#[derive(Debug, Default)]
pub struct TlsMetrics {
    done: [[Counter; 2]; 2],
    failed: [Counter; Reason::ALL.len()],
    /// Connections ended by a bad record or a fatal alert, after the handshake.
    pub broken: Counter,
}

impl TlsMetrics {
    /// Counts a handshake that succeeded.
    pub fn done(&self, version: Version, resumed: bool) {
        self.done[usize::from(version == Version::Tls13)][usize::from(resumed)].increment();
    }

    /// Counts one that did not.
    pub fn failed(&self, reason: Reason) {
        self.failed[reason as usize].increment();
    }

    /// Successes by version and whether a session was resumed, as labels and value.
    pub fn successes(&self) -> impl Iterator<Item = ((&'static str, &'static str), u64)> {
        let versions = ["1.2", "1.3"].into_iter().zip(&self.done);
        versions.flat_map(|(version, counts)| {
            ["false", "true"]
                .into_iter()
                .zip(counts)
                .map(move |(resumed, n)| ((version, resumed), n.value()))
        })
    }

    /// Failures by reason.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reason::ALL.iter().zip(&self.failed).map(|(reason, n)| (reason.name(), n.value()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_place() {
        let metrics = TlsMetrics::default();
        for (n, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
            metrics.failed(reason);
        }
        assert!(metrics.failures().all(|(_, n)| n == 1));
        metrics.done(Version::Tls13, true);
        let done: Vec<_> = metrics.successes().filter(|(_, n)| *n > 0).collect();
        assert_eq!(done, [(("1.3", "true"), 1)]);
    }
}

//! What a run has counted; the figures of threads and of hosts add up.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};
use serde::{Deserialize, Serialize};

/// The longest latency that is told apart from longer ones: an hour.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// Decimal digits that the histogram keeps of a latency.
const DIGITS: u8 = 3;
/// Bytes of the largest serialized histogram that is read.
pub(crate) const HISTOGRAM_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Requests that failed, by kind, over the whole run with its warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Errors {
    /// Connections that could not be opened.
    pub(crate) connect: u64,
    /// TLS handshakes that failed, or ended without the protocol that was asked for.
    pub(crate) tls: u64,
    /// Sent, and the connection (or the stream) was reset or closed before the whole response.
    pub(crate) closed: u64,
    /// Sent, and no whole response in time.
    pub(crate) timeout: u64,
    /// Answered by what is no response to it.
    pub(crate) malformed: u64,
    /// Answered with a status of 400 to 499; these count as responses, too.
    pub(crate) status_4xx: u64,
    /// Answered with a status of 500 to 599; these count as responses, too.
    pub(crate) status_5xx: u64,
    /// Open loop: waited for a free connection for longer than the timeout, and were not sent.
    pub(crate) overdue: u64,
}

/// Sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Requests sent, over the whole run.
    pub(crate) sent: u64,
    /// Whole responses, over the whole run.
    pub(crate) responses: u64,
    /// Whole responses that ended within the measured time.
    pub(crate) measured: u64,
    /// Bytes received within the measured time, heads included.
    pub(crate) bytes: u64,
    /// Connections opened; with TLS, those that are ready for requests.
    pub(crate) opened: u64,
    /// TLS handshakes.
    pub(crate) handshakes: u64,
    /// Those among them that resumed a session.
    pub(crate) resumed: u64,
    /// Open loop: due within the run and not sent when it ended.
    pub(crate) unsent: u64,
    /// Open loop: the longest time from when a request was due until it was sent.
    pub(crate) behind_max_ns: u64,
    /// Open loop: the sum of these times.
    pub(crate) behind_sum_ns: u64,
    pub(crate) errors: Errors,
}

/// The figures of a thread, a host or a run, or of a part of its time.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) counts: Counts,
    /// Nanoseconds from when a request was (or was to be) sent to the end of its response.
    pub(crate) latency: Histogram<u64>,
    /// Responses by second of the measured time.
    pub(crate) seconds: Vec<u64>,
}

/// Why a request has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Closed,
    Timeout,
    Malformed,
}

impl Default for Tally {
    fn default() -> Self {
        Self { counts: Counts::default(), latency: histogram(), seconds: Vec::new() }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, DIGITS).expect("constants within its bounds")
}

impl Tally {
    /// Adds the figures of another thread, host or part.
    pub(crate) fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        // Both have the same bounds, so that every value fits.
        let _ = self.latency.add(&other.latency);
        if self.seconds.len() < other.seconds.len() {
            self.seconds.resize(other.seconds.len(), 0);
        }
        self.seconds.iter_mut().zip(&other.seconds).for_each(|(sum, more)| *sum += more);
    }

    /// One more response in this second of the measured time.
    pub(crate) fn note_second(&mut self, second: usize) {
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0);
        }
        if let Some(count) = self.seconds.get_mut(second) {
            *count += 1;
        }
    }

    pub(crate) fn note_status(&mut self, status: u16) {
        match status {
            400..500 => self.counts.errors.status_4xx += 1,
            500.. => self.counts.errors.status_5xx += 1,
            _ => {}
        }
    }

    pub(crate) fn note_failures(&mut self, kind: Failure, count: usize) {
        let errors = &mut self.counts.errors;
        let sum = match kind {
            Failure::Closed => &mut errors.closed,
            Failure::Timeout => &mut errors.timeout,
            Failure::Malformed => &mut errors.malformed,
        };
        *sum += count as u64;
    }

    /// The histogram as HdrHistogram's V2 format.
    pub(crate) fn histogram_bytes(&self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let written = V2Serializer::new().serialize(&self.latency, &mut bytes);
        written.map(|_| bytes).map_err(|error| format!("histogram: {error}"))
    }

    /// From what another host has sent.
    pub(crate) fn from_parts(
        counts: Counts,
        seconds: Vec<u64>,
        mut histogram: &[u8],
    ) -> Result<Self, String> {
        let read = Deserializer::new().deserialize(&mut histogram);
        let sent: Histogram<u64> = read.map_err(|error| format!("histogram: {error}"))?;
        // Into one of our bounds, whatever those of the sender are.
        let mut latency = self::histogram();
        latency.add(&sent).map_err(|error| format!("histogram: {error}"))?;
        Ok(Self { counts, latency, seconds })
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.responses += other.responses;
        self.measured += other.measured;
        self.bytes += other.bytes;
        self.opened += other.opened;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        self.unsent += other.unsent;
        self.behind_max_ns = self.behind_max_ns.max(other.behind_max_ns);
        self.behind_sum_ns += other.behind_sum_ns;
        self.errors.add(&other.errors);
    }
}

impl Errors {
    /// Names and counts, in the order they are shown in.
    pub(crate) fn list(&self) -> [(&'static str, u64); 8] {
        [
            ("connect", self.connect),
            ("tls", self.tls),
            ("closed", self.closed),
            ("timeout", self.timeout),
            ("malformed", self.malformed),
            ("4xx", self.status_4xx),
            ("5xx", self.status_5xx),
            ("overdue", self.overdue),
        ]
    }

    pub(crate) fn sum(&self) -> u64 {
        self.list().iter().map(|(_, count)| count).sum()
    }

    fn add(&mut self, other: &Self) {
        self.connect += other.connect;
        self.tls += other.tls;
        self.closed += other.closed;
        self.timeout += other.timeout;
        self.malformed += other.malformed;
        self.status_4xx += other.status_4xx;
        self.status_5xx += other.status_5xx;
        self.overdue += other.overdue;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(scale: u64) -> Tally {
        let mut tally = Tally::default();
        for value in 1..=1000 {
            tally.latency.saturating_record(value * scale);
        }
        let errors = Errors {
            connect: 1,
            tls: 8,
            closed: 2,
            timeout: 3,
            malformed: 4,
            status_4xx: 5,
            status_5xx: 6,
            overdue: 7,
        };
        tally.counts = Counts {
            sent: 10,
            responses: 20,
            measured: 30,
            bytes: 40,
            opened: 50,
            handshakes: 55,
            resumed: 45,
            unsent: 60,
            behind_max_ns: 70 * scale,
            behind_sum_ns: 80,
            errors,
        };
        tally.note_second(usize::try_from(scale).unwrap());
        tally
    }

    #[test]
    fn figures_add_up() {
        let (mut sum, more) = (sample(1), sample(3));
        sum.add(&more);
        let counts = serde_json::to_value(sum.counts).unwrap();
        for (name, value) in serde_json::to_value(sample(1).counts).unwrap().as_object().unwrap() {
            match name.as_str() {
                "errors" => {
                    for (kind, count) in value.as_object().unwrap() {
                        assert_eq!(counts["errors"][kind], count.as_u64().unwrap() * 2, "{kind}");
                    }
                }
                "behind_max_ns" => assert_eq!(counts[name], 210),
                _ => assert_eq!(counts[name], value.as_u64().unwrap() * 2, "{name}"),
            }
        }
        assert_eq!(sum.counts.errors.sum(), 72);
        assert_eq!(sum.seconds, [0, 1, 0, 1]);
        assert_eq!(sum.latency.len(), 2000);
        assert_eq!(sum.latency.value_at_quantile(1.0), sum.latency.highest_equivalent(3000));
    }

    #[test]
    fn a_histogram_survives_the_wire() {
        let tally = sample(1_000_000);
        let bytes = tally.histogram_bytes().unwrap();
        assert!(bytes.len() < HISTOGRAM_BYTES_MAX);
        let back = Tally::from_parts(tally.counts, tally.seconds.clone(), &bytes).unwrap();
        assert_eq!(back.latency, tally.latency);
        assert!(Tally::from_parts(tally.counts, vec![], &bytes[..20]).is_err());
        assert!(Tally::from_parts(tally.counts, vec![], b"nonsense").is_err());
    }
}

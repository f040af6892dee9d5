//! What a run does, checked; the form in which it is sent to agents.

use serde::{Deserialize, Serialize};

use crate::target::{self, Entry, Target};
use crate::tls::Tls;

/// Longest time of a run or a timeout: a day.
const TIME_MAX_MS: u64 = 86_400_000;
/// Connections of one host at most.
const CONNECTIONS_MAX: u32 = 1_000_000;
/// Requests on their way on one connection at most.
const PIPELINE_MAX: u16 = 1024;
/// Streams of one connection at most.
const STREAMS_MAX: u16 = 1000;
/// Bytes of authorities at most.
const AUTHORITIES_MAX: u64 = 1 << 20;
/// Requests a second of one run at most.
const RATE_MAX: u64 = 100_000_000;
/// Bytes a second of one connection at most.
const READ_RATE_MAX: u64 = 1 << 40;
/// Fields added at most.
const HEADERS_MAX: usize = 100;

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub(crate) url: String,
    pub(crate) connections: u32,
    /// Measured.
    pub(crate) duration_ms: u64,
    /// Before, not measured.
    pub(crate) warmup_ms: u64,
    /// Longest wait for a connection or a response.
    pub(crate) timeout_ms: u64,
    /// Requests on their way on one connection.
    pub(crate) pipeline: u16,
    /// HTTP/2: by ALPN with TLS, without it the server is taken to speak it.
    pub(crate) http2: bool,
    /// HTTP/2: requests on their way on one connection.
    pub(crate) streams: u16,
    /// Of an https URL.
    pub(crate) tls: Option<Tls>,
    /// A connection for each request.
    pub(crate) new_connections: bool,
    /// Between a response and the next request; closed loop.
    pub(crate) think_ms: u64,
    /// Bytes a second that a connection reads at most.
    pub(crate) read_rate: Option<u64>,
    /// Requests a second, all connections together; `None` is the closed loop.
    pub(crate) rate: Option<u64>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) requests: Vec<Entry>,
}

impl Plan {
    /// Finds what cannot be done; returns where requests go.
    pub(crate) fn check(&self) -> Result<Target, String> {
        let target = Target::parse(&self.url)?;
        target::check_mix(&self.requests)?;
        let within = |what: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(format!("{what} is {least} to {most}, not {value}"))
        };
        within("connections", self.connections.into(), 1, CONNECTIONS_MAX.into())?;
        within("the duration in milliseconds", self.duration_ms, 1, TIME_MAX_MS)?;
        within("the warm-up in milliseconds", self.warmup_ms, 0, TIME_MAX_MS)?;
        within("the timeout in milliseconds", self.timeout_ms, 1, TIME_MAX_MS)?;
        within("the think time in milliseconds", self.think_ms, 0, TIME_MAX_MS)?;
        within("pipeline", self.pipeline.into(), 1, PIPELINE_MAX.into())?;
        within("streams", self.streams.into(), 1, STREAMS_MAX.into())?;
        let authorities = self.tls.as_ref().and_then(|tls| tls.authorities.as_ref());
        let bytes = authorities.map_or(0, |text| text.len() as u64);
        within("the size of the authorities' file", bytes, 0, AUTHORITIES_MAX)?;
        within("the rate", self.rate.unwrap_or(1), 1, RATE_MAX)?;
        within("the read rate in bytes", self.read_rate.unwrap_or(1), 1, READ_RATE_MAX)?;
        within("the number of headers", self.headers.len() as u64, 0, HEADERS_MAX as u64)?;
        if self.new_connections && self.pipeline > 1 {
            return Err("a connection for each request leaves nothing to pipeline".to_owned());
        }
        self.check_protocol(&target)?;
        if self.rate.is_some() && self.think_ms > 0 {
            return Err("at a constant rate there is no think time".to_owned());
        }
        self.headers.iter().try_for_each(|(name, value)| target::check_header(name, value))?;
        Ok(target)
    }

    fn check_protocol(&self, target: &Target) -> Result<(), String> {
        let wrong = match self.http2 {
            _ if target.tls != self.tls.is_some() => "TLS is for https URLs",
            false if self.streams > 1 => "streams are of HTTP/2: add --http2",
            true if self.pipeline > 1 => "HTTP/2 has streams in place of a pipeline",
            true if self.new_connections && self.streams > 1 => {
                "a connection for each request has one stream"
            }
            _ => return Ok(()),
        };
        Err(wrong.to_owned())
    }

    /// Requests on their way on one connection.
    pub(crate) fn window(&self) -> usize {
        usize::from(if self.http2 { self.streams } else { self.pipeline })
    }

    /// The part of host `index` of `hosts`: connections and rate are divided.
    pub(crate) fn share(&self, index: u32, hosts: u32) -> Result<Self, String> {
        let extra = |rest: u64| u64::from(u64::from(index) < rest);
        let divide = |what: u64| what / u64::from(hosts) + extra(what % u64::from(hosts));
        let connections = u32::try_from(divide(self.connections.into())).unwrap_or(u32::MAX);
        let rate = self.rate.map(divide);
        if connections == 0 || rate == Some(0) {
            return Err(format!("{hosts} agents need as many connections and requests a second"));
        }
        Ok(Self { connections, rate, ..self.clone() })
    }

    /// Nanoseconds since the start at which measuring begins.
    pub(crate) fn measure_from_ns(&self) -> u64 {
        self.warmup_ms * 1_000_000
    }

    /// And ends.
    pub(crate) fn end_ns(&self) -> u64 {
        (self.warmup_ms + self.duration_ms) * 1_000_000
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plan() -> Plan {
        Plan {
            url: "http://127.0.0.1:1/".to_owned(),
            connections: 7,
            duration_ms: 1000,
            warmup_ms: 100,
            timeout_ms: 1000,
            pipeline: 1,
            http2: false,
            streams: 1,
            tls: None,
            new_connections: false,
            think_ms: 0,
            read_rate: None,
            rate: None,
            headers: vec![],
            requests: target::parse_mix("1 GET /").unwrap(),
        }
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert!(plan().check().is_ok());
        let changes: [fn(&mut Plan); 14] = [
            |plan| plan.url = "ftp://a".to_owned(),
            |plan| plan.connections = 0,
            |plan| plan.duration_ms = u64::MAX,
            |plan| plan.timeout_ms = 0,
            |plan| plan.requests.clear(),
            |plan| plan.rate = Some(0),
            |plan| plan.read_rate = Some(0),
            |plan| plan.headers.push(("a b".to_owned(), "c".to_owned())),
            |plan| (plan.new_connections, plan.pipeline) = (true, 2),
            |plan| plan.url = "https://127.0.0.1:1/".to_owned(),
            |plan| plan.streams = 2,
            |plan| (plan.http2, plan.pipeline) = (true, 2),
            |plan| (plan.http2, plan.new_connections, plan.streams) = (true, true, 2),
            |plan| (plan.rate, plan.think_ms) = (Some(1), 1),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut plan = plan();
            change(&mut plan);
            assert!(plan.check().is_err(), "change {number}");
        }
    }

    #[test]
    fn hosts_share_connections_and_rate() {
        let whole = Plan { rate: Some(1000), ..plan() };
        let parts: Vec<Plan> = (0..3).map(|index| whole.share(index, 3).unwrap()).collect();
        let connections: Vec<u32> = parts.iter().map(|part| part.connections).collect();
        assert_eq!(connections, [3, 2, 2]);
        assert_eq!(parts.iter().filter_map(|part| part.rate).sum::<u64>(), 1000);
        assert!(whole.share(0, 8).is_ok() && whole.share(7, 8).is_err());
    }
}

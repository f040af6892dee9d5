//! What a health check is: validated values, the same for all layers.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use crate::sys::process::User;

/// How and how often an endpoint is probed, and what follows from the results. Equal checks of one endpoint
/// are one probe, whoever asks for them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Check {
    /// What is done.
    pub kind: Kind,
    /// From start to start.
    pub interval: Duration,
    /// From start to start while a change of the verdict is pending (keepalived's `delay_before_retry`);
    /// `None`: the interval.
    pub retry_interval: Option<Duration>,
    /// Each interval is longer or shorter by up to this share, in percent.
    pub jitter: u32,
    /// Longest time of a probe, connecting included (keepalived's `connect_timeout`).
    pub timeout: Duration,
    /// Successes in a row that bring an endpoint back, at least 1.
    pub rise: u32,
    /// Failures in a row that take it out, at least 1 (keepalived's `retry` and one).
    pub fall: u32,
    /// The first probe comes after a random part of this time (keepalived's `warmup`).
    pub warm_up: Duration,
    /// Down until the first success (keepalived's `alpha`); else up until the first failure.
    pub start_down: bool,
    /// Another port than the endpoint's.
    pub port: Option<u16>,
    /// Another address than the endpoint's.
    pub address: Option<IpAddr>,
}

/// The kinds of checks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A TCP connection comes about (`TCP_CHECK`).
    Tcp,
    /// An HTTP request is answered as it should be (`HTTP_GET`, with TLS `SSL_GET`).
    Http(Http),
    /// A TLS handshake succeeds.
    Tls(Tls),
    /// A datagram is not refused, or is answered (`UDP_CHECK`).
    Udp(Udp),
    /// A command ends with 0 (`MISC_CHECK`).
    Exec(Exec),
}

impl Kind {
    /// Its name, as the configuration writes it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(Http { tls: None, .. }) => "http",
            Self::Http(_) => "https",
            Self::Tls(_) => "tls",
            Self::Udp(_) => "udp",
            Self::Exec(_) => "exec",
        }
    }

    /// The TLS part, if there is one.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Http(http) => http.tls.as_ref(),
            Self::Tls(tls) => Some(tls),
            _ => None,
        }
    }
}

/// A request, and the response it should get.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Http {
    /// Method.
    pub method: String,
    /// Path and query; starts with a slash.
    pub path: String,
    /// Value of `Host`; `None`: the endpoint's address.
    pub host: Option<String>,
    /// Further fields.
    pub headers: Vec<(String, String)>,
    /// Statuses that are good.
    pub status: Vec<RangeInclusive<u16>>,
    /// What the body must have.
    pub body: Option<Pattern>,
    /// Bytes of the body that are looked at.
    pub max_body: usize,
    /// Speak TLS.
    pub tls: Option<Tls>,
}

/// TLS of a check. What it trusts is in the client configuration that comes with the target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tls {
    /// The name asked for and verified; `None`: the endpoint's.
    pub server_name: Option<String>,
    /// What the client configuration was made from, to tell checks apart.
    pub material: String,
}

/// A datagram and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Udp {
    /// What is sent.
    pub payload: Vec<u8>,
    /// Silence is a failure; without it only a refusal (ICMP) is.
    pub require_reply: bool,
    /// What the reply must have.
    pub reply: Option<Pattern>,
}

/// A command. `$address` and `$port` in its arguments stand for the endpoint's, and it finds them in
/// `RINGGATE_ADDRESS` and `RINGGATE_PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Exec {
    /// Program and arguments; no shell unless it is the program.
    pub command: Vec<String>,
    /// Who runs it; `None`: the user that Ringgate runs as.
    pub user: Option<ExecUser>,
}

/// A [`User`] that can be compared and hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecUser(pub User);

impl Hash for ExecUser {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0.uid, self.0.gid).hash(state);
    }
}

/// A regular expression over bytes, found anywhere unless it is anchored; in linear time.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

/// Bytes a compiled pattern may take.
const PATTERN_SIZE_MAX: usize = 1 << 20;

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let config = Regex::config().nfa_size_limit(Some(PATTERN_SIZE_MAX)).utf8_empty(false);
        let regex = Regex::builder()
            .configure(config)
            .syntax(syntax::Config::new().utf8(false))
            .build(text)
            .map_err(|error| match error.syntax_error() {
                Some(syntax) => syntax.to_string(),
                None => error.to_string(),
            })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// As written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is found in `bytes`.
    #[must_use]
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.regex.is_match(bytes)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_bytes() {
        let pattern = Pattern::new("(?i)status: *ok").expect("a good pattern");
        assert!(pattern.is_in(b"\xff\x00STATUS:  ok\xfe") && !pattern.is_in(b"status: down"));
        assert!(Pattern::new(r"(?-u)\xff").expect("bytes").is_in(b"a\xffb"));
        assert!(Pattern::new("(").is_err());
        assert!(Pattern::new("(a{1000}){1000}").is_err(), "bounded");
        assert_eq!(Pattern::new("a").expect("good"), Pattern::new("a").expect("good"));
    }
}

//! What a handshake agreed on.

use std::sync::Arc;

use super::server::Endpoint;
use crate::protocol::tls::record::Version;

/// What a handshake agreed on.
#[derive(Debug)]
pub struct Info {
    /// The protocol version.
    pub version: Version,
    /// The cipher suite's registered name.
    pub cipher: &'static str,
    /// A session was resumed.
    pub resumed: bool,
    /// The name the client asked for, in lower case.
    pub server_name: Option<String>,
    /// What is spoken inside.
    pub application: Application,
    /// Subject of the client's certificate, which was verified; empty when there is none.
    pub client_subject: String,
    /// The listener's certificates at the time, and which of its policies applies.
    pub(super) endpoint: Option<(Arc<Endpoint>, usize)>,
}

impl Info {
    /// The version as nginx writes it.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        match self.version {
            Version::Tls12 => "TLSv1.2",
            Version::Tls13 => "TLSv1.3",
        }
    }

    /// Whether a request for this host may come on this connection: not when the host's policy on
    /// client certificates is another (RFC 9110 section 15.5.20).
    #[must_use]
    pub fn serves(&self, host: &[u8]) -> bool {
        self.endpoint.as_ref().is_none_or(|(endpoint, policy)| {
            endpoint.has_one_policy()
                || endpoint.policy_of(std::str::from_utf8(host).ok()) == *policy
        })
    }
}

/// A protocol inside TLS (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Application {
    /// `http/1.1`, or nothing agreed on.
    Http1,
    /// `h2`
    Http2,
}

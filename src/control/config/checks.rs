//! Active health checks as the configuration has them.

use std::sync::Arc;

use rustls::ClientConfig;

use crate::health::Check;
use crate::l7::tls::config;

/// A check, and what its TLS is made from.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The check.
    pub check: Check,
    /// Settings of its handshakes, for checks with TLS.
    pub tls: Option<config::Upstream>,
    /// Made from these once the files have been read.
    pub client: Option<Arc<ClientConfig>>,
}

/// The check of an upstream, and of each server of it.
#[derive(Debug, Clone)]
pub struct UpstreamCheck {
    /// As the upstream has it.
    pub base: Checked,
    /// With each server's own port or address; in the order of the servers.
    pub servers: Vec<Arc<Check>>,
}

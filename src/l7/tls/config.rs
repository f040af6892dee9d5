//! What the configuration file says about TLS; files are named here and read by `control`.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

/// `[tls]`: what all listeners share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A whole handshake must be done within this time of the connection.
    pub handshake_timeout: Duration,
    /// How long a session may be resumed; ticket keys change as often.
    pub session_lifetime: Duration,
    /// Secrets that ticket keys are made from, shared by the nodes of a pair; `None`: random ones.
    pub ticket_keys: Option<File>,
    /// How often files are looked at.
    pub reload_interval: Duration,
}

/// A file the configuration names.
#[derive(Debug, Clone, Eq)]
pub struct File {
    /// Its path; relative ones start at the configuration file.
    pub path: PathBuf,
    /// The key that names it, as messages show it.
    pub key: String,
    /// Where the path stands in the configuration file.
    pub span: Range<usize>,
}

/// The same file, wherever the configuration names it.
impl PartialEq for File {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

/// Versions and cipher suites by name, after Mozilla's recommendations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// TLS 1.2 and 1.3.
    Intermediate,
    /// TLS 1.3 only.
    Modern,
}

/// TLS of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// At least one; the first is used for names that no certificate has.
    pub certificates: Vec<Certificate>,
    /// Versions and cipher suites.
    pub policy: Policy,
    /// Offer HTTP/2 as well.
    pub http2: bool,
}

/// A certificate chain with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The chain in PEM, the server's own certificate first.
    pub cert: File,
    /// The private key in PEM.
    pub key: File,
    /// An OCSP response in DER to be stapled.
    pub ocsp: Option<File>,
    /// What is asked of clients that connect to a name of this certificate.
    pub client_auth: Option<ClientAuth>,
}

/// Client certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuth {
    /// Certificates of the authorities whose clients are let in, in PEM.
    pub ca: File,
    /// No handshake without a certificate.
    pub required: bool,
}

/// TLS to an upstream's servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The table itself.
    pub key: File,
    /// The name asked for and verified; `None`: the server's own.
    pub server_name: Option<String>,
    /// Certificates of the authorities to trust, in PEM; `None`: those of the system.
    pub ca: Option<File>,
    /// Chain and key to show the servers.
    pub certificate: Option<(File, File)>,
    /// Verify the servers' certificates.
    pub verify: bool,
    /// Versions and cipher suites.
    pub policy: Policy,
}

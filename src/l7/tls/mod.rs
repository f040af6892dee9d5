//! TLS on client and server connections.
//!
//! rustls makes the handshake ([`handshake`]); what comes after is sealed and opened here
//! ([`session`], `protocol::tls`), in the buffers the proxy uses anyway. What certificates and keys
//! are in force is an immutable [`Snapshot`] that the control thread replaces ([`Current`]).

pub mod client;
pub mod config;
mod current;
pub mod handshake;
mod info;
pub mod metrics;
mod names;
pub mod server;
pub mod session;
mod source;
pub mod tickets;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs as provider};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion, version};

pub use current::{Current, Shard, Snapshot};
pub use info::{Application, Info};
pub use session::Session;

use config::Policy;

/// Cipher suites in the order we prefer them: what both ends have hardware for first. Each has
/// forward secrecy and authenticated encryption.
const SUITES: [SupportedCipherSuite; 9] = [
    provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
    provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
    provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    provider::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    provider::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    provider::cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Key exchanges in the order we prefer them.
const GROUPS: [&dyn SupportedKxGroup; 4] = [
    provider::kx_group::X25519MLKEM768,
    provider::kx_group::X25519,
    provider::kx_group::SECP256R1,
    provider::kx_group::SECP384R1,
];

/// The algorithms, the same whatever the policy: a policy decides on versions.
fn algorithms() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: SUITES.to_vec(),
        kx_groups: GROUPS.to_vec(),
        ..provider::default_provider()
    })
}

/// The versions a policy allows.
fn versions(policy: Policy) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    match policy {
        Policy::Intermediate => &BOTH,
        Policy::Modern => &BOTH[..1],
    }
}

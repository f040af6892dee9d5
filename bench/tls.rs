//! TLS of the generator's connections: the product's handshake and records, with settings that keep
//! the generator's share of the work small and the same for every server.
//!
//! Key exchange is offered as X25519 first, without the post-quantum hybrid, and ciphers with
//! AES-128-GCM first: what every server in use agrees to, so that servers are compared by how they do
//! the same thing.

use std::sync::Arc;

use ringgate::l7::tls::{Application, Session, handshake};
use ringgate::ring::Stream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    SupportedProtocolVersion, version,
};
use serde::{Deserialize, Serialize};

/// Tickets that a connection keeps for the next one of its kind.
const TICKETS: usize = 8;

/// What a run to an https URL does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// Authorities in PEM; `None`: whatever certificate is shown is taken, and not verified.
    pub(crate) authorities: Option<String>,
    /// The name asked for and verified, if not the URL's host.
    pub(crate) server_name: Option<String>,
    /// Only this version.
    pub(crate) version: Option<Version>,
    /// Resume sessions where the server gave tickets.
    pub(crate) resume: bool,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Version {
    /// TLS 1.2
    #[serde(rename = "1.2")]
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3
    #[serde(rename = "1.3")]
    #[value(name = "1.3")]
    Tls13,
}

impl Version {
    fn offered(this: Option<Self>) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
        match this {
            None => &BOTH,
            Some(Self::Tls13) => &BOTH[..1],
            Some(Self::Tls12) => &BOTH[1..],
        }
    }
}

/// What handshakes are made with.
#[derive(Debug, Clone)]
pub(crate) struct Handshakes {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    resume: bool,
    http2: bool,
}

impl Handshakes {
    /// As the plan says; `host` is the URL's.
    pub(crate) fn new(tls: &Tls, host: &str, http2: bool) -> Result<Self, String> {
        let name = tls.server_name.as_deref().unwrap_or(host);
        let no_name = |_| format!("`{name}` is no name that a certificate could have");
        let server_name = ServerName::try_from(name.to_owned()).map_err(no_name)?;
        let provider = Arc::new(algorithms());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(Version::offered(tls.version))
            .map_err(|error| error.to_string())?;
        let mut config = match &tls.authorities {
            Some(pem) => builder.with_root_certificates(roots(pem)?),
            None => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
            }
        }
        .with_no_client_auth();
        config.enable_secret_extraction = true;
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Ok(Self { config: Arc::new(config), name: server_name, resume: tls.resume, http2 })
    }

    /// The same with tickets of its own: those of one connection serve the next in its place, as with
    /// clients that are many.
    pub(crate) fn of_a_connection(&self) -> Self {
        if !self.resume {
            return self.clone();
        }
        let mut config = (*self.config).clone();
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(TICKETS)));
        Self { config: Arc::new(config), ..self.clone() }
    }

    /// Makes one; `None` when it failed or the server does not speak what was asked for.
    pub(crate) async fn make(&self, stream: &Stream) -> Option<Session> {
        let made = handshake::connect(stream, Arc::clone(&self.config), self.name.clone()).await;
        let wanted = if self.http2 { Application::Http2 } else { Application::Http1 };
        made.ok().filter(|session| session.info().application == wanted)
    }
}

fn algorithms() -> CryptoProvider {
    let mut cipher_suites = provider::DEFAULT_CIPHER_SUITES.to_vec();
    let is_aes128 = |name: Option<&str>| name.is_some_and(|name| name.contains("AES_128_GCM"));
    cipher_suites.sort_by_key(|suite| !is_aes128(suite.suite().as_str())); // stable
    let kx_groups = vec![
        provider::kx_group::X25519,
        provider::kx_group::SECP256R1,
        provider::kx_group::SECP384R1,
    ];
    CryptoProvider { cipher_suites, kx_groups, ..provider::default_provider() }
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let mut store = RootCertStore::empty();
    let (good, _) = store.add_parsable_certificates(read.map_err(|error| error.to_string())?);
    if good == 0 { Err("no authority's certificate in PEM".to_owned()) } else { Ok(store) }
}

/// Takes any certificate and any signature: the time goes into load.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_explained() {
        let tls = Tls { authorities: None, server_name: None, version: None, resume: true };
        assert!(Handshakes::new(&tls, "127.0.0.1", true).is_ok());
        let named = Tls { server_name: Some("a b".to_owned()), ..tls.clone() };
        assert!(Handshakes::new(&named, "h", true).unwrap_err().contains("`a b`"));
        let empty = Tls { authorities: Some("nothing".to_owned()), ..tls };
        assert!(Handshakes::new(&empty, "h", true).unwrap_err().contains("PEM"));
    }

    #[test]
    fn what_all_servers_agree_to_comes_first() {
        let algorithms = algorithms();
        let first = algorithms.cipher_suites.first().and_then(|suite| suite.suite().as_str());
        assert!(first.is_some_and(|name| name.contains("AES_128_GCM")));
        let first = algorithms.kx_groups.first().map(|group| group.name());
        assert_eq!(first, Some(rustls::NamedGroup::X25519));
    }
}

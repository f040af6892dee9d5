//! The client's side: TLS to the servers of an upstream.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::config::Policy;
use super::server::roots;
use super::{algorithms, versions};
use crate::l7::config::ServerAddress;

/// What is loaded for an upstream.
#[derive(Debug)]
pub struct Material {
    /// Authorities; `None`: any certificate is taken.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// Chain and key to show.
    pub identity: Option<Arc<CertifiedKey>>,
    /// Versions and cipher suites.
    pub policy: Policy,
    /// Offer HTTP/2.
    pub http2: bool,
}

/// What handshakes with the servers are made with; shards add a session store each.
///
/// # Errors
/// What does not go together, in words for the operator.
pub fn config(material: Material) -> Result<Arc<ClientConfig>, String> {
    let provider = algorithms();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(material.policy))
        .map_err(|error| error.to_string())?;
    let builder = match material.roots {
        Some(certificates) => {
            let store = Arc::new(roots(&certificates)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(store, provider)
                .build()
                .map_err(|error| error.to_string())?;
            builder.with_webpki_verifier(verifier)
        }
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
    };
    let mut config = match material.identity {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.enable_secret_extraction = true;
    config.alpn_protocols = if material.http2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    Ok(Arc::new(config))
}

/// The name a server is asked for and verified by.
///
/// # Errors
/// When a configured name is none.
pub fn server_name(
    configured: Option<&str>,
    server: &ServerAddress,
) -> Result<ServerName<'static>, String> {
    let name = match (configured, server) {
        (Some(name), _) => name,
        (None, ServerAddress::Name(name, _)) => name,
        (None, ServerAddress::Socket(address)) => return Ok(IpAddr::into(address.ip())),
    };
    ServerName::try_from(name.to_owned())
        .map_err(|_| format!("\"{name}\" is no name that a certificate could have"))
}

/// Takes any certificate, for `verify = false`; the server still has to have its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
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
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

//! The server's side of a listener: which certificate, and what is asked of the client.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, RootCertStore, ServerConfig, SignatureAlgorithm};

use super::config::Policy;
use super::names::Names;
use super::tickets::{Secret, Tickets};
use super::{algorithms, versions};

/// A certificate with its key, as loaded.
#[derive(Clone)]
pub struct Identity {
    /// Chain, key and OCSP response.
    pub key: Arc<CertifiedKey>,
    /// The names it is for.
    pub names: Vec<String>,
    /// What is asked of clients that connect to them.
    pub client_auth: Option<ClientAuth>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Which client certificates are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuth {
    /// Authorities.
    pub roots: Vec<CertificateDer<'static>>,
    /// No handshake without one.
    pub required: bool,
}

/// A listener's certificates and policies, and the tickets it gives.
#[derive(Debug, Clone)]
pub struct Material {
    /// At least one; the first is used for unknown names.
    pub identities: Vec<Identity>,
    /// Versions and cipher suites.
    pub policy: Policy,
    /// Offer HTTP/2.
    pub http2: bool,
}

/// How tickets are made at a time.
#[derive(Debug, Clone)]
pub struct TicketPlan {
    /// What keys are derived from.
    pub secrets: Vec<Secret>,
    /// The period of time.
    pub period: u64,
    /// Its length in seconds.
    pub lifetime: u32,
}

/// What a listener's handshakes are made with.
#[derive(Debug)]
pub struct Endpoint {
    policies: Vec<Arc<ServerConfig>>,
    /// Index into `policies` by server name.
    names: Names<usize>,
    /// For unknown names.
    default: usize,
}

impl Endpoint {
    /// Puts it together.
    ///
    /// # Errors
    /// What does not go together, in words for the operator.
    pub fn new(material: &Material, tickets: &TicketPlan) -> Result<Self, String> {
        let mut asked: Vec<&Option<ClientAuth>> = Vec::new();
        let mut names = Names::<Option<usize>>::default();
        for identity in &material.identities {
            let known = asked.iter().position(|known| **known == identity.client_auth);
            let policy = known.unwrap_or_else(|| {
                asked.push(&identity.client_auth);
                asked.len() - 1
            });
            for name in &identity.names {
                let other = names.entry(name).replace(policy);
                if other.is_some_and(|other| other != policy) {
                    return Err(format!(
                        "two certificates for {name} differ in client_auth or client_ca: give \
                         both the same"
                    ));
                }
            }
        }
        let resolver = Arc::new(Resolver::new(&material.identities));
        let provider = algorithms();
        let policies = asked
            .iter()
            .map(|asked| server_config(&provider, material, asked.as_ref(), &resolver, tickets))
            .collect::<Result<_, String>>()?;
        Ok(Self { policies, names: names.map(|policy| policy.unwrap_or(0)), default: 0 })
    }

    /// The policy for a server name or host in lower case: also that of a wildcard more than one
    /// label above it, where no certificate fits but routes do.
    #[must_use]
    pub fn policy_of(&self, name: Option<&str>) -> usize {
        name.and_then(|name| self.names.inherit(name)).copied().unwrap_or(self.default)
    }

    /// Whether a certificate decides on the policy of this host (`*.name` for all below a name).
    #[must_use]
    pub fn decides_on(&self, host: &str) -> bool {
        self.names.inherit(host).is_some()
    }

    /// True when it does not depend on the name.
    #[must_use]
    pub fn has_one_policy(&self) -> bool {
        self.policies.len() == 1
    }

    pub(super) fn config(&self, policy: usize) -> Option<&Arc<ServerConfig>> {
        self.policies.get(policy)
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    material: &Material,
    asked: Option<&ClientAuth>,
    resolver: &Arc<Resolver>,
    plan: &TicketPlan,
) -> Result<Arc<ServerConfig>, String> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions(material.policy))
        .map_err(|error| error.to_string())?;
    let builder = match asked {
        None => builder.with_no_client_auth(),
        Some(asked) => {
            let roots = roots(&asked.roots)?;
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
            let verifier = if asked.required { verifier } else { verifier.allow_unauthenticated() };
            let verifier = verifier.build().map_err(|error| error.to_string())?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config =
        builder.with_cert_resolver(Arc::clone(resolver) as Arc<dyn ResolvesServerCert>);
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let scope = scope(material.policy, asked);
    config.ticketer = Arc::new(Tickets::new(&plan.secrets, &scope, plan.period, plan.lifetime));
    config.enable_secret_extraction = true;
    config.alpn_protocols = if material.http2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    Ok(Arc::new(config))
}

/// What tickets of one policy have in common and those of others have not.
fn scope(policy: Policy, asked: Option<&ClientAuth>) -> Vec<u8> {
    let mut scope = vec![match policy {
        Policy::Intermediate => 0,
        Policy::Modern => 1,
    }];
    match asked {
        None => scope.push(0),
        Some(asked) => {
            scope.push(if asked.required { 2 } else { 1 });
            let mut roots: Vec<&[u8]> = asked.roots.iter().map(AsRef::as_ref).collect();
            roots.sort_unstable();
            for root in roots {
                scope.extend_from_slice(digest(&SHA256, root).as_ref());
            }
        }
    }
    scope
}

/// A store of these authorities.
///
/// # Errors
/// When one of them is no certificate of an authority.
pub(super) fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

/// Chooses among the certificates for a name the one the client can use.
#[derive(Debug)]
struct Resolver {
    identities: Vec<Arc<CertifiedKey>>,
    names: Names<Vec<usize>>,
    default: Vec<usize>,
}

impl Resolver {
    fn new(identities: &[Identity]) -> Self {
        let mut names = Names::<Vec<usize>>::default();
        for (index, identity) in identities.iter().enumerate() {
            for name in &identity.names {
                names.entry(name).push(index);
            }
        }
        // ECDSA is cheaper for us, and whoever can do it is served with it.
        names.each(|indices| {
            indices.dedup();
            indices.sort_by_key(|&index| {
                identities[index].key.key.algorithm() == SignatureAlgorithm::RSA
            });
        });
        let first = identities.first().and_then(|first| first.names.first());
        let default = match first {
            Some(name) => names.entry(name).clone(),
            None => vec![0],
        };
        let identities = identities.iter().map(|identity| Arc::clone(&identity.key)).collect();
        Self { identities, names, default }
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let found = name.as_deref().and_then(|name| self.names.find(name));
        let candidates = found.unwrap_or(&self.default);
        let candidates = candidates.iter().filter_map(|&index| self.identities.get(index));
        let usable = candidates.clone().find(|key| is_usable(key, &hello));
        // Without one, the handshake fails for a reason that the client is told.
        usable.or_else(|| candidates.clone().next()).map(Arc::clone)
    }
}

/// Whether the client takes signatures of this kind of key, and has a cipher suite for it.
fn is_usable(key: &CertifiedKey, hello: &ClientHello<'_>) -> bool {
    let rsa = key.key.algorithm() == SignatureAlgorithm::RSA;
    let suits = |suite: &CipherSuite| match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => true,
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => rsa,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => !rsa,
        _ => false,
    };
    key.key.choose_scheme(hello.signature_schemes()).is_some()
        && hello.cipher_suites().iter().any(suits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_scoped_to_what_is_asked() {
        let asked = |required, root: &'static [u8]| ClientAuth {
            roots: vec![CertificateDer::from(root), CertificateDer::from(&b"x"[..])],
            required,
        };
        let scopes = [
            scope(Policy::Intermediate, None),
            scope(Policy::Modern, None),
            scope(Policy::Intermediate, Some(&asked(true, b"a"))),
            scope(Policy::Intermediate, Some(&asked(false, b"a"))),
            scope(Policy::Intermediate, Some(&asked(true, b"b"))),
        ];
        for (index, scope) in scopes.iter().enumerate() {
            assert!(!scopes[..index].contains(scope));
        }
        let mut reversed = asked(true, b"a");
        reversed.roots.reverse();
        assert_eq!(scope(Policy::Intermediate, Some(&reversed)), scopes[2]);
    }
}

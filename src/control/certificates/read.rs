//! Reading certificates, keys and secrets, and saying what is wrong with them.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::Stamps;
use crate::l7::config::Service;
use crate::l7::tls::client;
use crate::l7::tls::config::{self, Certificate};
use crate::l7::tls::server::{ClientAuth, Identity};
use crate::l7::tls::tickets::Secret;
use crate::protocol::tls::x509;

/// Largest file that is read, in bytes: a bundle of all public authorities has 200 KiB.
const FILE_MAX: u64 = 4 << 20;
/// Largest OCSP response (it has to fit into a handshake message).
const OCSP_MAX: usize = 60 * 1024;
/// Where systems keep the authorities they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Something that cannot be used: where the configuration names it, and why.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Place in the configuration file.
    pub span: Range<usize>,
    /// The key, the file and what is wrong with it.
    pub message: String,
    /// All files that are read for the same thing.
    pub(super) files: Vec<PathBuf>,
}

impl Problem {
    pub(super) fn new(span: Range<usize>, message: String) -> Self {
        Self { span, message, files: Vec::new() }
    }
}

/// One certificate entry.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) not_after: i64,
}

/// Everything that was read.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    pub(super) listeners: Vec<Vec<Entry>>,
    pub(super) upstreams: Vec<Option<Arc<ClientConfig>>>,
    /// Of the file; empty without one.
    pub(super) secrets: Vec<Secret>,
    /// Files as they were before they were read.
    pub(super) read: Stamps,
    /// How many entries were read anew.
    pub(super) fresh: usize,
    /// What stands but may not be meant.
    pub warnings: Vec<Problem>,
}

/// Reads files; with `changed`, only entries that name one of these.
pub(super) struct Reader<'a> {
    pub(super) service: &'a Service,
    pub(super) base: &'a Path,
    pub(super) changed: Option<&'a [PathBuf]>,
}

/// What one look at the files brings.
#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    /// How many entries were read anew.
    fresh: usize,
}

impl Reader<'_> {
    /// Everything there is: read anew, or what `before` has if it is unchanged or cannot be used.
    pub(super) fn read(&self, before: &Loaded) -> (Loaded, Vec<Problem>) {
        let mut found = Found::default();
        let mut loaded = Loaded::default();
        for (index, listener) in self.service.listeners.iter().enumerate() {
            let certificates = listener.tls.as_ref().map_or(&[][..], |tls| &tls.certificates);
            let known = before.listeners.get(index).map_or(&[][..], Vec::as_slice);
            let entry = |(index, certificate): (usize, &Certificate)| {
                let read = || self.entry(certificate, index == 0);
                self.fresh_or(files_of(certificate), known.get(index), read, &mut found)
            };
            loaded.listeners.push(certificates.iter().enumerate().filter_map(entry).collect());
        }
        for (index, upstream) in self.service.upstreams.iter().enumerate() {
            let known = before.upstreams.get(index).and_then(Option::as_ref);
            let config = upstream.tls.as_ref().and_then(|tls| {
                let read = || self.upstream(tls, upstream.http2);
                self.fresh_or(files_of_upstream(tls), known, read, &mut found)
            });
            loaded.upstreams.push(config);
        }
        if let Some(file) = &self.service.tls.ticket_keys {
            let known = Some(&before.secrets).filter(|secrets| !secrets.is_empty());
            let read = || {
                let bytes = self.bytes(file)?;
                Secret::from_file(&bytes).map_err(|what| self.problem(file, &what))
            };
            loaded.secrets = self.fresh_or(vec![file], known, read, &mut found).unwrap_or_default();
        }
        loaded.fresh = found.fresh;
        (loaded, found.problems)
    }

    fn fresh_or<T: Clone>(
        &self,
        files: Vec<&config::File>,
        known: Option<&T>,
        read: impl FnOnce() -> Result<T, Problem>,
        found: &mut Found,
    ) -> Option<T> {
        let concerned = self
            .changed
            .is_none_or(|changed| files.iter().any(|file| changed.contains(&self.path(file))));
        if !concerned {
            return known.cloned();
        }
        match read() {
            Ok(value) => {
                found.fresh += 1;
                Some(value)
            }
            Err(mut problem) => {
                problem.files = files.into_iter().map(|file| self.path(file)).collect();
                found.problems.push(problem);
                known.cloned()
            }
        }
    }

    fn path(&self, file: &config::File) -> PathBuf {
        self.base.join(&file.path)
    }

    fn problem(&self, file: &config::File, what: &str) -> Problem {
        let path = self.path(file);
        let message = format!("`{}`: {} {what}", file.key, path.display());
        Problem::new(file.span.clone(), message)
    }

    pub(super) fn bytes(&self, file: &config::File) -> Result<Vec<u8>, Problem> {
        let path = self.path(file);
        let read = || -> io::Result<Vec<u8>> {
            if !fs::metadata(&path)?.is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            let mut bytes = Vec::new();
            File::open(&path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > FILE_MAX {
                return Err(io::Error::other("larger than 4 MiB"));
            }
            Ok(bytes)
        };
        read().map_err(|error| self.problem(file, &format!("cannot be read: {error}")))
    }

    fn certificates(&self, file: &config::File) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let bytes = self.bytes(file)?;
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let certificates =
            read.map_err(|error| self.problem(file, &format!("is not PEM: {error}")))?;
        if certificates.is_empty() {
            let what = "has no `-----BEGIN CERTIFICATE-----`: write a file of certificates in PEM";
            return Err(self.problem(file, what));
        }
        Ok(certificates)
    }

    fn pair(&self, cert: &config::File, key: &config::File) -> Result<CertifiedKey, Problem> {
        let chain = self.certificates(cert)?;
        let bytes = self.bytes(key)?;
        let Ok(private) = PrivateKeyDer::from_pem_slice(&bytes) else {
            let encrypted = memchr::memmem::find(&bytes, b"ENCRYPTED").is_some();
            let what = if encrypted {
                "is encrypted, and nobody is there to type a password: decrypt it with `openssl pkey`"
            } else {
                "has no private key in PEM (PKCS#8, PKCS#1 or SEC1)"
            };
            return Err(self.problem(key, what));
        };
        CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider()).map_err(|error| {
            let what = match error {
                rustls::Error::InconsistentKeys(_) => {
                    let cert = self.path(cert);
                    format!("is not the key of {}: write those of one pair", cert.display())
                }
                rustls::Error::InvalidCertificate(_) => "belongs to a malformed certificate".into(),
                // Nothing of the key's content is in this.
                _ => "cannot be used: it must be RSA of 2048 bits or more, ECDSA with P-256, \
                      P-384 or P-521, or Ed25519"
                    .to_owned(),
            };
            self.problem(key, &what)
        })
    }

    fn entry(&self, certificate: &Certificate, first: bool) -> Result<Entry, Problem> {
        let mut key = self.pair(&certificate.cert, &certificate.key)?;
        if let Some(file) = &certificate.ocsp {
            let response = self.bytes(file)?;
            if !x509::is_ocsp_response(&response) || response.len() > OCSP_MAX {
                let what =
                    "is no successful OCSP response in DER: write one of `openssl ocsp -respout`";
                return Err(self.problem(file, what));
            }
            key.ocsp = Some(response);
        }
        let leaf = key.cert.first().map(AsRef::as_ref).unwrap_or_default();
        let fields = x509::fields(leaf);
        let not_after = fields.map(|fields| fields.not_after).unwrap_or_default();
        let der = CertificateDer::from(leaf);
        let names: Vec<String> = webpki::EndEntityCert::try_from(&der)
            .map(|parsed| parsed.valid_dns_names().map(str::to_owned).collect())
            .unwrap_or_default();
        if names.is_empty() && !first {
            let what = "has no DNS name (subjectAltName), so no client could ask for it: only the \
                        first certificate may be without";
            return Err(self.problem(&certificate.cert, what));
        }
        let client_auth = certificate.client_auth.as_ref().map(|asked| {
            let roots = self.authorities(&asked.ca)?;
            Ok(ClientAuth { roots, required: asked.required })
        });
        let identity =
            Identity { key: Arc::new(key), names, client_auth: client_auth.transpose()? };
        Ok(Entry { identity, not_after })
    }

    fn authorities(&self, file: &config::File) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let roots = self.certificates(file)?;
        let mut store = rustls::RootCertStore::empty();
        for root in &roots {
            let bad = |_| self.problem(file, "has a certificate that is malformed");
            store.add(root.clone()).map_err(bad)?;
        }
        Ok(roots)
    }

    pub(super) fn upstream(
        &self,
        tls: &config::Upstream,
        http2: bool,
    ) -> Result<Arc<ClientConfig>, Problem> {
        let key = &tls.key;
        let roots = match (&tls.ca, tls.verify) {
            (_, false) => None,
            (Some(file), true) => Some(self.authorities(file)?),
            (None, true) => Some(system_roots().ok_or_else(|| {
                let what = "finds no bundle of the system's authorities: install ca-certificates, \
                            or write `ca`";
                self.problem(key, what)
            })?),
        };
        let identity = match &tls.certificate {
            Some((cert, key)) => Some(Arc::new(self.pair(cert, key)?)),
            None => None,
        };
        client::config(client::Material { roots, identity, policy: tls.policy, http2 })
            .map_err(|what| self.problem(key, &what))
    }
}

fn system_roots() -> Option<Vec<CertificateDer<'static>>> {
    SYSTEM_ROOTS.iter().find_map(|path| {
        let read = CertificateDer::pem_file_iter(path).ok()?;
        let mut store = rustls::RootCertStore::empty();
        let good = read.filter_map(Result::ok).filter(|root| store.add(root.clone()).is_ok());
        Some(good.collect::<Vec<_>>()).filter(|roots| !roots.is_empty())
    })
}

pub(super) fn files_of(certificate: &Certificate) -> Vec<&config::File> {
    let Certificate { cert, key, ocsp, client_auth } = certificate;
    let ca = client_auth.as_ref().map(|asked| &asked.ca);
    [Some(cert), Some(key), ocsp.as_ref(), ca].into_iter().flatten().collect()
}

pub(super) fn files_of_upstream(tls: &config::Upstream) -> Vec<&config::File> {
    let pair = tls.certificate.as_ref();
    let files = [tls.ca.as_ref(), pair.map(|pair| &pair.0), pair.map(|pair| &pair.1)];
    files.into_iter().flatten().collect()
}

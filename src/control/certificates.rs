//! Certificates, keys and session ticket secrets: read at the start, and again when their files
//! change. A thread of its own does the latter, since disks block. What is in force is replaced
//! entry by entry: one that is bad is refused, and the old one stays.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{io, thread};

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::l7::config::Service;
use crate::l7::tls::config::{self, Certificate};
use crate::l7::tls::server::{ClientAuth, Endpoint, Identity, Material, TicketPlan};
use crate::l7::tls::tickets::Secret;
use crate::l7::tls::{Current, Snapshot, client};
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

/// A certificate in force, for metrics and status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// The listener's name.
    pub listener: String,
    /// The file, as the configuration names it.
    pub file: String,
    /// Its names, first to last.
    pub names: Vec<String>,
    /// Last second of its validity, since 1970.
    pub not_after: i64,
}

/// What the admin endpoint shows, shared with the thread that watches files.
#[derive(Debug, Default)]
pub struct Board {
    /// Certificates in force.
    pub certificates: Mutex<Vec<InForce>>,
    /// Files taken over after a change.
    pub replaced: AtomicU64,
    /// Changes refused.
    pub refused: AtomicU64,
}

impl Board {
    /// Certificates in force now.
    #[must_use]
    pub fn certificates(&self) -> Vec<InForce> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Something that cannot be used: where the configuration names it, and why.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Place in the configuration file.
    pub span: Range<usize>,
    /// The key, the file and what is wrong with it.
    pub message: String,
}

/// What changed, for the log.
#[derive(Debug)]
pub enum Change {
    /// These files are in force.
    Replaced(Vec<String>),
    /// This was refused; what was there before stays.
    Refused(String),
}

/// One certificate entry.
#[derive(Debug, Clone)]
struct Entry {
    identity: Identity,
    not_after: i64,
}

/// Everything that was read.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    listeners: Vec<Vec<Entry>>,
    upstreams: Vec<Option<Arc<ClientConfig>>>,
    /// Of the file; empty without one.
    secrets: Vec<Secret>,
}

/// Reads everything for the first time.
///
/// # Errors
/// Everything that cannot be used.
pub fn load(service: &Service, base: &Path) -> Result<Loaded, Vec<Problem>> {
    let (loaded, problems) = Reader { service, base, changed: None }.read(&Loaded::default());
    if !problems.is_empty() {
        return Err(problems);
    }
    let plan = TicketPlan { secrets: loaded.secrets.clone(), period: 0, lifetime: 1 };
    let endpoints = endpoints(service, &loaded, &plan);
    let problems: Vec<Problem> = endpoints
        .into_iter()
        .zip(&service.listeners)
        .filter_map(|(endpoint, listener)| {
            let first = listener.tls.as_ref()?.certificates.first()?;
            endpoint?.err().map(|message| Problem { span: first.cert.span.clone(), message })
        })
        .collect();
    if problems.is_empty() { Ok(loaded) } else { Err(problems) }
}

/// Reads files; with `changed`, only entries that name one of these.
struct Reader<'a> {
    service: &'a Service,
    base: &'a Path,
    changed: Option<&'a [PathBuf]>,
}

impl Reader<'_> {
    /// Everything there is: read anew, or what `before` has if it is unchanged or cannot be used.
    fn read(&self, before: &Loaded) -> (Loaded, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut loaded = Loaded::default();
        for (index, listener) in self.service.listeners.iter().enumerate() {
            let certificates = listener.tls.as_ref().map_or(&[][..], |tls| &tls.certificates);
            let known = before.listeners.get(index).map_or(&[][..], Vec::as_slice);
            let entry = |(index, certificate): (usize, &Certificate)| {
                let read = || self.entry(certificate, index == 0);
                self.fresh_or(files_of(certificate), known.get(index), read, &mut problems)
            };
            loaded.listeners.push(certificates.iter().enumerate().filter_map(entry).collect());
        }
        for (index, upstream) in self.service.upstreams.iter().enumerate() {
            let known = before.upstreams.get(index).and_then(Option::as_ref);
            let config = upstream.tls.as_ref().and_then(|tls| {
                let read = || self.upstream(tls, upstream.http2);
                self.fresh_or(files_of_upstream(tls), known, read, &mut problems)
            });
            loaded.upstreams.push(config);
        }
        if let Some(file) = &self.service.tls.ticket_keys {
            let known = Some(&before.secrets).filter(|secrets| !secrets.is_empty());
            let read = || {
                let bytes = self.bytes(file)?;
                Secret::from_file(&bytes).map_err(|what| self.problem(file, &what))
            };
            loaded.secrets =
                self.fresh_or(vec![file], known, read, &mut problems).unwrap_or_default();
        }
        (loaded, problems)
    }

    fn fresh_or<T: Clone>(
        &self,
        files: Vec<&config::File>,
        known: Option<&T>,
        read: impl FnOnce() -> Result<T, Problem>,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let concerned = self
            .changed
            .is_none_or(|changed| files.iter().any(|file| changed.contains(&self.path(file))));
        if !concerned {
            return known.cloned();
        }
        read().map_or_else(
            |problem| {
                problems.push(problem);
                known.cloned()
            },
            Some,
        )
    }

    fn path(&self, file: &config::File) -> PathBuf {
        self.base.join(&file.path)
    }

    fn problem(&self, file: &config::File, what: &str) -> Problem {
        let path = self.path(file);
        let message = format!("`{}`: {} {what}", file.key, path.display());
        Problem { span: file.span.clone(), message }
    }

    fn bytes(&self, file: &config::File) -> Result<Vec<u8>, Problem> {
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

    fn upstream(&self, tls: &config::Upstream, http2: bool) -> Result<Arc<ClientConfig>, Problem> {
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

fn files_of(certificate: &Certificate) -> Vec<&config::File> {
    let Certificate { cert, key, ocsp, client_auth } = certificate;
    let ca = client_auth.as_ref().map(|asked| &asked.ca);
    [Some(cert), Some(key), ocsp.as_ref(), ca].into_iter().flatten().collect()
}

fn files_of_upstream(tls: &config::Upstream) -> Vec<&config::File> {
    let pair = tls.certificate.as_ref();
    let files = [tls.ca.as_ref(), pair.map(|pair| &pair.0), pair.map(|pair| &pair.1)];
    files.into_iter().flatten().collect()
}

/// Each listener's endpoint, or what does not go together in it; `None` without TLS.
fn endpoints(
    service: &Service,
    loaded: &Loaded,
    plan: &TicketPlan,
) -> Vec<Option<Result<Arc<Endpoint>, String>>> {
    let endpoint = |(listener, entries): (&crate::l7::config::Listener, &Vec<Entry>)| {
        let tls = listener.tls.as_ref()?;
        let identities = entries.iter().map(|entry| entry.identity.clone()).collect();
        let material = Material { identities, policy: tls.policy, http2: tls.http2 };
        Some(Endpoint::new(&material, plan).map(Arc::new))
    };
    service.listeners.iter().zip(&loaded.listeners).map(endpoint).collect()
}

/// When and how a file was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

type Stamps = HashMap<PathBuf, Option<Stamp>>;

fn stamp(path: &Path) -> Option<Stamp> {
    let data = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: (data.dev(), data.ino()),
        size: data.size(),
        modified: (data.mtime(), data.mtime_nsec()),
        changed: (data.ctime(), data.ctime_nsec()),
    })
}

/// What keeps the certificates in force up to date.
#[derive(Debug)]
pub struct Keeper {
    service: Service,
    base: PathBuf,
    loaded: Loaded,
    /// Files as they were when last read.
    read: Stamps,
    /// Files as they were at the last look.
    seen: Stamps,
    /// Secrets made here, for want of a file.
    random: Vec<Secret>,
    period: u64,
    /// For the shards.
    pub current: Arc<Current>,
    /// For the admin endpoint.
    pub board: Arc<Board>,
}

impl Keeper {
    /// Puts what was loaded in force.
    ///
    /// # Errors
    /// When the system gives no random bytes, or what was loaded does not go together.
    pub fn new(service: Service, base: PathBuf, loaded: Loaded) -> Result<Self, String> {
        let mut keeper = Self {
            service,
            base,
            loaded,
            read: Stamps::new(),
            seen: Stamps::new(),
            random: Vec::new(),
            period: 0,
            current: Arc::default(),
            board: Arc::default(),
        };
        keeper.read = keeper.stamps();
        keeper.seen = keeper.read.clone();
        keeper.period = keeper.period_now();
        keeper.renew_secrets()?;
        let problems = keeper.put_in_force();
        match problems.first() {
            Some(problem) => Err(problem.clone()),
            None => Ok(keeper),
        }
    }

    /// True when there is nothing to keep.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.service.listeners.iter().any(|listener| listener.tls.is_some())
            && !self.service.upstreams.iter().any(|upstream| upstream.tls.is_some())
    }

    /// Looks at the files for as long as the process runs.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn watch(mut self, tell: impl Fn(Change) + Send + 'static) -> io::Result<()> {
        let interval = self.service.tls.reload_interval;
        thread::Builder::new().name("certificates".into()).spawn(move || {
            loop {
                thread::sleep(interval);
                self.look().into_iter().for_each(&tell);
            }
        })?;
        Ok(())
    }

    /// One look: takes over what has changed and then rested for one interval, since a pair is
    /// seldom written at once.
    fn look(&mut self) -> Vec<Change> {
        let now = self.stamps();
        let rested = now == self.seen;
        let changed: Vec<PathBuf> = now
            .iter()
            .filter(|(path, stamp)| self.read.get(*path) != Some(stamp))
            .map(|(path, _)| path.clone())
            .collect();
        self.seen = now;
        let period = self.period_now();
        if (changed.is_empty() || !rested) && period == self.period {
            return Vec::new();
        }
        let mut changes = Vec::new();
        if period != self.period {
            self.period = period;
            changes.extend(self.renew_secrets().err().map(Change::Refused));
        }
        if rested && !changed.is_empty() {
            self.read.clone_from(&self.seen);
            changes.extend(self.take_over(&changed));
        }
        changes.extend(self.put_in_force().into_iter().map(Change::Refused));
        let refused = changes.iter().filter(|change| matches!(change, Change::Refused(_))).count();
        self.board.refused.fetch_add(refused as u64, Ordering::Relaxed);
        changes
    }

    fn take_over(&mut self, changed: &[PathBuf]) -> Vec<Change> {
        let reader = Reader { service: &self.service, base: &self.base, changed: Some(changed) };
        let (loaded, problems) = reader.read(&self.loaded);
        // What does not go together is refused as a whole.
        let plan = self.plan();
        for endpoint in endpoints(&self.service, &loaded, &plan).into_iter().flatten() {
            if let Err(what) = endpoint {
                return vec![Change::Refused(what)];
            }
        }
        self.loaded = loaded;
        let mut changes: Vec<Change> =
            problems.into_iter().map(|problem| Change::Refused(problem.message)).collect();
        if changes.is_empty() {
            self.board.replaced.fetch_add(1, Ordering::Relaxed);
            let files = changed.iter().map(|path| path.display().to_string()).collect();
            changes.push(Change::Replaced(files));
        }
        changes
    }

    fn plan(&self) -> TicketPlan {
        let secrets =
            if self.loaded.secrets.is_empty() { &self.random } else { &self.loaded.secrets };
        let lifetime = self.service.tls.session_lifetime.as_secs().max(1);
        TicketPlan {
            secrets: secrets.clone(),
            period: self.period,
            lifetime: u32::try_from(lifetime).unwrap_or(u32::MAX),
        }
    }

    fn period_now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() / self.service.tls.session_lifetime.as_secs().max(1)
    }

    /// A fresh secret for this period; those of before the last are forgotten.
    fn renew_secrets(&mut self) -> Result<(), String> {
        if self.service.tls.ticket_keys.is_some() {
            return Ok(());
        }
        if self.random.len() > 1 {
            self.random.remove(0);
        }
        self.random.push(Secret::random(self.period)?);
        Ok(())
    }

    /// Makes a snapshot of what is loaded; returns what does not go together.
    fn put_in_force(&self) -> Vec<String> {
        let made = endpoints(&self.service, &self.loaded, &self.plan());
        let mut problems = Vec::new();
        let endpoints = made
            .into_iter()
            .map(|made| made.and_then(|made| made.map_err(|problem| problems.push(problem)).ok()));
        let endpoints: Vec<_> = endpoints.collect();
        if problems.is_empty() {
            let upstreams = self.loaded.upstreams.clone();
            self.current.replace(Snapshot { endpoints, upstreams });
            let certificates = self.in_force();
            *self.board.certificates.lock().unwrap_or_else(PoisonError::into_inner) = certificates;
        }
        problems
    }

    fn in_force(&self) -> Vec<InForce> {
        let of_listener = |(listener, entries): (&crate::l7::config::Listener, &Vec<Entry>)| {
            let certificates = listener.tls.as_ref().map_or(&[][..], |tls| &tls.certificates);
            let pairs = certificates.iter().zip(entries);
            pairs
                .map(|(certificate, entry)| InForce {
                    listener: listener.name.clone(),
                    file: certificate.cert.path.display().to_string(),
                    names: entry.identity.names.clone(),
                    not_after: entry.not_after,
                })
                .collect::<Vec<_>>()
        };
        self.service.listeners.iter().zip(&self.loaded.listeners).flat_map(of_listener).collect()
    }

    fn stamps(&self) -> Stamps {
        let listeners = self.service.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let certificates = listeners.flat_map(|tls| &tls.certificates).flat_map(files_of);
        let upstreams = self.service.upstreams.iter().filter_map(|upstream| upstream.tls.as_ref());
        let files = certificates.chain(upstreams.flat_map(files_of_upstream));
        let paths =
            files.chain(&self.service.tls.ticket_keys).map(|file| self.base.join(&file.path));
        paths.map(|path| (path.clone(), stamp(&path))).collect()
    }
}

//! Certificates, keys and session ticket secrets: read at the start, and again when their files
//! change. A thread of its own does the latter, since disks block. What is in force is replaced
//! entry by entry: one that is bad is refused, and the old one stays.

mod read;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{io, thread};

use rustls::ClientConfig;
use sha2::{Digest as _, Sha256};

use self::read::{Entry, Reader, files_of, files_of_upstream};
pub use self::read::{Loaded, Problem};
use crate::control::config::checks::UpstreamCheck;
use crate::ha::config::Instance;
use crate::l7::config::{HostMatch, Listener, Service};
use crate::l7::tls::config::{File, Policy, Upstream};
use crate::l7::tls::server::{Endpoint, Material, TicketPlan};
use crate::l7::tls::tickets::Secret;
use crate::l7::tls::{Current, Snapshot};
use crate::l7::tracing::Verified;

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
    /// Random secrets of session tickets, for this process's successor.
    tickets: Mutex<Vec<Secret>>,
}

impl Board {
    /// Random secrets of session tickets.
    pub fn ticket_secrets(&self) -> Vec<Secret> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Certificates in force now.
    #[must_use]
    pub fn certificates(&self) -> Vec<InForce> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What changed, for the log.
#[derive(Debug)]
pub enum Change {
    /// These files are in force.
    Replaced(Vec<String>),
    /// This was refused; what was there before stays.
    Refused(String),
}

/// Reads what the handshakes of health checks are made with.
///
/// # Errors
/// The first file that cannot be used.
pub fn load_checks(
    service: &Service,
    base: &Path,
    checks: &mut [Option<UpstreamCheck>],
) -> Result<(), Problem> {
    let reader = Reader { service, base, changed: None };
    for check in checks.iter_mut().flatten() {
        check.base.client = match &check.base.tls {
            Some(tls) => Some(reader.upstream(tls, false)?),
            None => None,
        };
    }
    Ok(())
}

/// Reads what webhooks of VRRP are verified with.
///
/// # Errors
/// The first file that cannot be used.
pub fn load_webhooks(
    service: &Service,
    base: &Path,
    instances: &mut [Instance],
) -> Result<(), Problem> {
    let reader = Reader { service, base, changed: None };
    for instance in instances {
        let place = format!("vrrp.{}", instance.name);
        let Some(trust) = instance.webhook.as_mut().and_then(|hook| hook.tls.as_mut()) else {
            continue;
        };
        let file = |path: PathBuf, key: &str| File {
            path,
            key: format!("{place}.{key}"),
            span: trust.span.clone(),
        };
        let tls = Upstream {
            key: file(".".into(), "notify_webhook"),
            server_name: None,
            ca: trust.ca.clone().map(|path| file(path, "notify_webhook_ca")),
            certificate: None,
            verify: true,
            policy: Policy::Intermediate,
        };
        let (client, authorities) = verified(&reader, &tls)?;
        (trust.client, trust.authorities) = (Some(client), authorities);
    }
    Ok(())
}

/// Reads what the collector of traces is verified with.
///
/// # Errors
/// The file that cannot be used.
pub fn load_collector(service: &Service, base: &Path) -> Result<(), Problem> {
    let Some(traces) = &service.tracing else { return Ok(()) };
    let Some(tls) = &traces.settings.tls else { return Ok(()) };
    let reader = Reader { service, base, changed: None };
    let (client, authorities) = verified(&reader, tls)?;
    // The configuration was just made: nobody has read for it before.
    let _ = traces.verified.set(Verified { client, authorities });
    Ok(())
}

/// What a server is verified with, and the digest of its file of authorities (of nothing: the system's).
fn verified(reader: &Reader<'_>, tls: &Upstream) -> Result<(Arc<ClientConfig>, [u8; 32]), Problem> {
    // First: a file that is written in between counts as changed at the next reload.
    let bytes = tls.ca.as_ref().map(|file| reader.bytes(file)).transpose()?;
    Ok((reader.upstream(tls, false)?, Sha256::digest(bytes.unwrap_or_default()).into()))
}

/// Reads everything for the first time.
///
/// # Errors
/// Everything that cannot be used.
pub fn load(service: &Service, base: &Path) -> Result<Loaded, Vec<Problem>> {
    // Before the files are read: one that is written meanwhile is read again.
    let read = stamps(service, base);
    let (mut loaded, problems) = Reader { service, base, changed: None }.read(&Loaded::default());
    if !problems.is_empty() {
        return Err(problems);
    }
    let plan = TicketPlan { secrets: loaded.secrets.clone(), period: 0, lifetime: 1 };
    let endpoints = endpoints(service, &loaded, &plan);
    loaded.read = read;
    loaded.warnings = undecided(service, &endpoints);
    let problems: Vec<Problem> = endpoints
        .into_iter()
        .zip(&service.listeners)
        .filter_map(|(endpoint, listener)| {
            let first = listener.tls.as_ref()?.certificates.first()?;
            endpoint?.err().map(|message| Problem::new(first.cert.span.clone(), message))
        })
        .collect();
    if problems.is_empty() { Ok(loaded) } else { Err(problems) }
}

/// Hosts of routes that no certificate of a listener covers, where it depends on the host what is
/// asked of clients: they get what is asked for the first certificate, which may be nothing.
fn undecided(service: &Service, endpoints: &[MadeEndpoint]) -> Vec<Problem> {
    let of_listener = |(index, endpoint): (usize, &MadeEndpoint)| {
        let endpoint = endpoint.as_ref()?.as_ref().ok()?;
        let first = service.listeners.get(index)?.tls.as_ref()?.certificates.first()?;
        if endpoint.has_one_policy() {
            return None;
        }
        let routes = service.routes.iter();
        let routes = routes.filter(|r| r.listeners.is_empty() || r.listeners.contains(&index));
        let mut hosts: Vec<String> = routes
            .flat_map(|route| &route.hosts)
            .map(|host| match host {
                HostMatch::Exact(name) => name.clone(),
                HostMatch::Suffix(name) => format!("*.{name}"),
            })
            .filter(|host| !endpoint.decides_on(host))
            .collect();
        hosts.sort_unstable();
        hosts.dedup();
        (!hosts.is_empty()).then(|| {
            let message = format!(
                "`{}`: no certificate of this listener is for {}, which routes serve: clients are \
                 asked there for what this first certificate's client_auth says; add a \
                 certificate with the client_auth that is meant, or name other listeners in \
                 the routes",
                first.cert.key,
                hosts.join(", ")
            );
            Problem::new(first.cert.span.clone(), message)
        })
    };
    endpoints.iter().enumerate().filter_map(of_listener).collect()
}

/// A listener's endpoint, or what does not go together in it; `None` without TLS.
type MadeEndpoint = Option<Result<Arc<Endpoint>, String>>;

/// Each listener's endpoint.
fn endpoints(service: &Service, loaded: &Loaded, plan: &TicketPlan) -> Vec<MadeEndpoint> {
    let endpoint = |(listener, entries): (&Listener, &Vec<Entry>)| {
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

/// The files of certificates, keys and secrets that the configuration names.
#[must_use]
pub fn files(service: &Service, base: &Path) -> Vec<PathBuf> {
    stamps(service, base).into_keys().collect()
}

/// The files the configuration names, as they are now.
fn stamps(service: &Service, base: &Path) -> Stamps {
    let listeners = service.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    let certificates = listeners.flat_map(|tls| &tls.certificates).flat_map(files_of);
    let upstreams = service.upstreams.iter().filter_map(|upstream| upstream.tls.as_ref());
    let files = certificates.chain(upstreams.flat_map(files_of_upstream));
    let paths = files.chain(&service.tls.ticket_keys).map(|file| base.join(&file.path));
    paths.map(|path| (path.clone(), stamp(&path))).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let data = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: (data.dev(), data.ino()),
        size: data.size(),
        modified: (data.mtime(), data.mtime_nsec()),
        changed: (data.ctime(), data.ctime_nsec()),
    })
}

/// Another configuration, with its files as read.
#[derive(Debug)]
pub struct Next {
    /// What names files.
    pub service: Service,
    /// Where relative paths start.
    pub base: PathBuf,
    /// What was read.
    pub loaded: Loaded,
}

/// The keeper at work.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<Keeper>>);

impl Shared {
    /// Puts another configuration in force; what shards are to use with it.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn renew(&self, next: Next) -> Result<Arc<Current>, String> {
        locked(&self.0).renew(next)
    }

    /// Files among those just read that have changed since they were put in force.
    #[must_use]
    pub fn changed_files(&self, loaded: &Loaded) -> Vec<PathBuf> {
        locked(&self.0).changed_files(&loaded.read)
    }
}

fn period_of(service: &Service) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs() / service.tls.session_lifetime.as_secs().max(1)
}

fn locked(keeper: &Mutex<Keeper>) -> MutexGuard<'_, Keeper> {
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Files of changes that were refused: they are tried again at every look.
    pending: HashSet<PathBuf>,
    /// Why, as it was told.
    told: Vec<String>,
    /// Secrets made here, for want of a file.
    random: Vec<Secret>,
    period: u64,
    /// For the shards.
    pub current: Arc<Current>,
    /// For the admin endpoint.
    pub board: Arc<Board>,
}

impl Keeper {
    /// Puts what was loaded in force. `inherited`: random secrets of the process that this one succeeds.
    ///
    /// # Errors
    /// When the system gives no random bytes, or what was loaded does not go together.
    pub fn new(
        service: Service,
        base: PathBuf,
        mut loaded: Loaded,
        inherited: Vec<Secret>,
    ) -> Result<Self, String> {
        let read = std::mem::take(&mut loaded.read);
        let mut keeper = Self {
            service,
            base,
            loaded,
            seen: read.clone(),
            read,
            pending: HashSet::new(),
            told: Vec::new(),
            random: inherited,
            period: 0,
            current: Arc::default(),
            board: Arc::default(),
        };
        keeper.period = keeper.period_now();
        let (period, before) = (keeper.period, keeper.period.saturating_sub(1));
        keeper.random.retain(|secret| secret.is_of(period) || secret.is_of(before));
        keeper.renew_secrets()?;
        let problems = keeper.put_in_force();
        match problems.first() {
            Some(problem) => Err(problem.clone()),
            None => Ok(keeper),
        }
    }

    /// Looks at the files for as long as the process runs. Others may have the keeper carry out a reload
    /// meanwhile.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn watch(self, tell: impl Fn(Change) + Send + 'static) -> io::Result<Shared> {
        let shared = Arc::new(Mutex::new(self));
        let keeper = Arc::clone(&shared);
        thread::Builder::new().name("certificates".into()).spawn(move || {
            loop {
                let interval = locked(&keeper).service.tls.reload_interval;
                thread::sleep(interval);
                let changes = locked(&keeper).look();
                changes.into_iter().for_each(&tell);
            }
        })?;
        Ok(Shared(shared))
    }

    /// One look: takes over what has changed and then rested for one interval, since a pair is
    /// seldom written at once.
    fn look(&mut self) -> Vec<Change> {
        let now = stamps(&self.service, &self.base);
        let rested = now == self.seen;
        let fresh =
            |(path, stamp): &(&PathBuf, &Option<Stamp>)| self.read.get(*path) != Some(stamp);
        let is_fresh = now.iter().any(|entry| fresh(&entry));
        let concerned = now.iter().filter(|e| fresh(e) || self.pending.contains(e.0));
        let changed: Vec<PathBuf> = concerned.map(|(path, _)| path.clone()).collect();
        self.seen = now;
        let period = self.period_now();
        if (changed.is_empty() || !rested) && period == self.period {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let mut renewed = false;
        if period != self.period {
            renewed = true;
            self.period = period;
            changes.extend(self.renew_secrets().err().map(Change::Refused));
        }
        if rested && !changed.is_empty() {
            self.read.clone_from(&self.seen);
            if is_fresh {
                self.told.clear();
            }
            let (taken, more) = self.take_over(&changed);
            renewed |= taken;
            changes.extend(more);
        }
        if renewed {
            changes.extend(self.put_in_force().into_iter().map(Change::Refused));
        }
        let refused = changes.iter().filter(|change| matches!(change, Change::Refused(_))).count();
        self.board.refused.fetch_add(refused as u64, Ordering::Relaxed);
        changes
    }

    /// Reads what names these files; true if there is something new. What is refused is read again
    /// at the next look: a file that could not be read may not change when it can, and one that
    /// does not go together with another is right once that one is.
    fn take_over(&mut self, changed: &[PathBuf]) -> (bool, Vec<Change>) {
        let reader = Reader { service: &self.service, base: &self.base, changed: Some(changed) };
        let (loaded, problems) = reader.read(&self.loaded);
        self.pending = changed.iter().cloned().collect();
        // What does not go together is refused as a whole.
        let plan = self.plan();
        for endpoint in endpoints(&self.service, &loaded, &plan).into_iter().flatten() {
            if let Err(what) = endpoint {
                return (false, self.refuse(vec![what]));
            }
        }
        self.pending = problems.iter().flat_map(|problem| &problem.files).cloned().collect();
        let taken = loaded.fresh > 0;
        self.loaded = loaded;
        let is_whole = problems.is_empty();
        let messages = problems.into_iter().map(|problem| problem.message).collect();
        let mut changes = self.refuse(messages);
        if is_whole {
            self.board.replaced.fetch_add(1, Ordering::Relaxed);
            let files = changed.iter().map(|path| path.display().to_string()).collect();
            changes.push(Change::Replaced(files));
        }
        (taken, changes)
    }

    /// What is said of a refusal: nothing that was said before.
    fn refuse(&mut self, messages: Vec<String>) -> Vec<Change> {
        let told = std::mem::replace(&mut self.told, messages);
        let new = self.told.iter().filter(|message| !told.contains(message));
        new.cloned().map(Change::Refused).collect()
    }

    /// What a configuration that was just read comes to, with everything of ours that is the same in it:
    /// what was made from it, such as sessions, stays good then.
    fn merge(&self, next: &mut Next) {
        let same_files = |files: &[&File], next: &Next| {
            next.base == self.base
                && files.iter().all(|file| {
                    let path = self.base.join(&file.path);
                    let stamp = next.loaded.read.get(&path);
                    stamp.is_some() && stamp == self.read.get(&path)
                })
        };
        for (index, upstream) in next.service.upstreams.iter().enumerate() {
            let known = self.service.upstreams.iter().position(|one| one.name == upstream.name);
            let Some(known) = known else { continue };
            let before = &self.service.upstreams[known];
            let Some(tls) = &upstream.tls else { continue };
            let is_same = before.tls == upstream.tls && before.http2 == upstream.http2;
            if is_same && same_files(&files_of_upstream(tls), next) {
                next.loaded.upstreams[index].clone_from(&self.loaded.upstreams[known]);
            }
        }
    }

    /// Puts another configuration in force: for handshakes of connections that it takes from now on. The
    /// secrets of tickets stay.
    fn renew(&mut self, mut next: Next) -> Result<Arc<Current>, String> {
        self.merge(&mut next);
        let period = period_of(&next.service);
        let wants_secret = next.service.tls.ticket_keys.is_none()
            && !self.random.iter().any(|secret| secret.is_of(period));
        let secret = if wants_secret { Some(Secret::random(period)?) } else { None };
        let read = std::mem::take(&mut next.loaded.read);
        (self.service, self.base, self.loaded) = (next.service, next.base, next.loaded);
        (self.seen, self.read) = (read.clone(), read);
        self.pending.clear();
        self.told.clear();
        self.period = period;
        if let Some(secret) = secret {
            self.keep_secret(secret);
        }
        self.show_secrets();
        // Generations under way keep what they have.
        self.current = Arc::default();
        match self.put_in_force().first() {
            Some(problem) => Err(problem.clone()),
            None => Ok(Arc::clone(&self.current)),
        }
    }

    /// Files that are not as they were when they were last read.
    fn changed_files(&self, read: &Stamps) -> Vec<PathBuf> {
        let changed = |(path, stamp): &(&PathBuf, &Option<Stamp>)| {
            self.read.get(*path).is_some_and(|known| known != *stamp)
        };
        let mut paths: Vec<PathBuf> =
            read.iter().filter(changed).map(|(path, _)| path.clone()).collect();
        paths.sort();
        paths
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
        period_of(&self.service)
    }

    /// A fresh secret for this period; those of before the last are forgotten.
    fn renew_secrets(&mut self) -> Result<(), String> {
        if self.service.tls.ticket_keys.is_some() {
            return Ok(());
        }
        if !self.random.iter().any(|secret| secret.is_of(self.period)) {
            let secret = Secret::random(self.period)?;
            self.keep_secret(secret);
        }
        self.show_secrets();
        Ok(())
    }

    fn keep_secret(&mut self, secret: Secret) {
        if self.random.len() > 1 {
            self.random.remove(0);
        }
        self.random.push(secret);
    }

    fn show_secrets(&self) {
        let tickets = &self.board.tickets;
        tickets.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.random);
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
        let of_listener = |(listener, entries): (&Listener, &Vec<Entry>)| {
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
}

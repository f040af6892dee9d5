//! Server names, looked up again and again on a thread of its own: getaddrinfo(3) blocks.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::balance::MAX_MEMBERS;
use crate::l7::config::{Server, ServerAddress, Upstream};
use crate::l7::upstream::Standing;

/// Most addresses of one name that become members.
const ADDRESSES_MAX: usize = 64;
/// Names looked up at the same time.
const THREADS_MAX: usize = 32;

/// One name to look up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// The name.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The names in these upstreams, each once.
#[must_use]
pub fn names(upstreams: &[Upstream]) -> Vec<Name> {
    names_of(upstreams.iter().flat_map(|upstream| &upstream.servers))
}

/// The names of these servers, each once.
#[must_use]
pub fn names_of<'a>(servers: impl IntoIterator<Item = &'a Server>) -> Vec<Name> {
    let mut seen = HashSet::new();
    let name = |server: &Server| match &server.address {
        ServerAddress::Name(host, port) => Some(Name { host: host.clone(), port: *port }),
        ServerAddress::Socket(_) => None,
    };
    servers.into_iter().filter_map(name).filter(|name| seen.insert(name.clone())).collect()
}

/// The addresses that were found for each server of an upstream.
#[must_use]
pub fn addresses(
    upstream: &Upstream,
    found: &HashMap<Name, Vec<SocketAddr>>,
) -> Vec<Vec<SocketAddr>> {
    let of = |server: &Server| match &server.address {
        ServerAddress::Name(host, port) => {
            found.get(&Name { host: host.clone(), port: *port }).cloned().unwrap_or_default()
        }
        ServerAddress::Socket(_) => Vec::new(),
    };
    upstream.servers.iter().map(of).collect()
}

/// The same for servers as they stand, by [`Standing::id`].
#[must_use]
pub fn addresses_of(
    servers: &[Standing],
    found: &HashMap<Name, Vec<SocketAddr>>,
) -> Vec<Vec<SocketAddr>> {
    let most = servers.iter().map(|standing| standing.id + 1).max().unwrap_or_default();
    let mut addresses = vec![Vec::new(); most.min(2 * MAX_MEMBERS)];
    for Standing { id, server, .. } in servers {
        if let ServerAddress::Name(host, port) = &server.address
            && let Some(place) = addresses.get_mut(*id)
        {
            let known = found.get(&Name { host: host.clone(), port: *port });
            *place = known.cloned().unwrap_or_default();
        }
    }
    addresses
}

/// What the resolver's thread works on.
#[derive(Debug, Default)]
struct Work {
    names: Vec<Name>,
    interval: Duration,
}

/// The resolver's thread; it is told what to look up.
#[derive(Debug, Clone)]
pub struct Resolver(Arc<(Mutex<Work>, Condvar)>);

impl Resolver {
    /// Looks names up every interval, at once first, and tells each result. A name that does not answer
    /// holds up the others only in its own round.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(
        tell: impl Fn(&Name, io::Result<Vec<SocketAddr>>) + Send + 'static,
    ) -> io::Result<Self> {
        let work = Arc::new((Mutex::new(Work::default()), Condvar::new()));
        let shared = Arc::clone(&work);
        thread::Builder::new().name("resolver".into()).spawn(move || {
            let (work, changed) = &*shared;
            loop {
                let (names, interval) = {
                    let work = lock(work);
                    (work.names.clone(), work.interval)
                };
                for name in &names {
                    tell(name, look_up(name));
                }
                let same = |now: &mut Work| now.names == names && now.interval == interval;
                let guard = lock(work);
                // Without names there is nothing to do until there are some.
                if names.is_empty() {
                    drop(changed.wait_while(guard, same));
                } else {
                    drop(changed.wait_timeout_while(guard, interval, same));
                }
            }
        })?;
        Ok(Self(work))
    }

    /// Looks these up from now on, as often as before.
    pub fn look_up(&self, names: Vec<Name>) {
        lock(&self.0.0).names = names;
        self.0.1.notify_one();
    }

    /// Looks these up from now on.
    pub fn set(&self, names: Vec<Name>, interval: Duration) {
        *lock(&self.0.0) = Work { names, interval };
        self.0.1.notify_one();
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks one name up every `interval`, at once first, on a thread of its own that ends when `tell` returns
/// false.
///
/// # Errors
/// When the thread cannot be made.
pub fn start(
    name: Name,
    interval: Duration,
    tell: impl Fn(&Name, io::Result<Vec<SocketAddr>>) -> bool + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new().name("resolver".into()).spawn(move || {
        while tell(&name, look_up(&name)) {
            thread::sleep(interval);
        }
    })?;
    Ok(())
}

/// Looks these up once, for `patience` at most; what has answered then.
#[must_use]
pub fn look_up_all(names: Vec<Name>, patience: Duration) -> Vec<(Name, Vec<SocketAddr>)> {
    let (tell, told) = mpsc::channel();
    let (wanted, names) = (names.len(), Arc::new(Mutex::new(names)));
    for _ in 0..wanted.min(THREADS_MAX) {
        let (tell, names) = (tell.clone(), Arc::clone(&names));
        let next = move || names.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let look = move || {
            while let Some(name) = next() {
                let addresses = look_up(&name).unwrap_or_default();
                if tell.send((name, addresses)).is_err() {
                    return; // too late
                }
            }
        };
        // Without threads nothing answers, which is no worse than a name server that does not.
        let _ = thread::Builder::new().name("resolve".into()).spawn(look);
    }
    drop(tell);
    let (deadline, mut found) = (Instant::now() + patience, Vec::new());
    while found.len() < wanted {
        let left = deadline.saturating_duration_since(Instant::now());
        match told.recv_timeout(left) {
            Ok(one) => found.push(one),
            Err(_) => break,
        }
    }
    found.retain(|(_, addresses)| !addresses.is_empty());
    found
}

/// Addresses in a fixed order, so that an unchanged answer is an equal one.
fn look_up(name: &Name) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> =
        (name.host.as_str(), name.port).to_socket_addrs()?.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_an_answer_and_one_without() {
        let name = |host: &str| Name { host: host.into(), port: 80 };
        let local = look_up(&name("localhost")).expect("in every hosts file");
        assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
        assert!(look_up(&name("no-such-name.invalid")).is_err());
    }
}

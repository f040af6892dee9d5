//! Server names, looked up again and again on a thread of its own: getaddrinfo(3) blocks.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use crate::l7::config::{ServerAddress, Upstream};

/// Most addresses of one name that become members.
const ADDRESSES_MAX: usize = 64;

/// One name to look up.
#[derive(Debug, Clone)]
pub struct Name {
    /// Index of the upstream.
    pub upstream: usize,
    /// Index of the server in it.
    pub server: usize,
    /// The name.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The names in these upstreams.
#[must_use]
pub fn names(upstreams: &[Upstream]) -> Vec<Name> {
    let mut names = Vec::new();
    for (upstream, config) in upstreams.iter().enumerate() {
        for (server, config) in config.servers.iter().enumerate() {
            if let ServerAddress::Name(host, port) = &config.address {
                names.push(Name { upstream, server, host: host.clone(), port: *port });
            }
        }
    }
    names
}

/// Looks the names up every `interval`, at once first, and tells each result; the thread ends when
/// `tell` returns false. A name that does not answer holds up the others only in its own round.
///
/// # Errors
/// When the thread cannot be made.
pub fn start(
    names: Vec<Name>,
    interval: Duration,
    tell: impl Fn(&Name, io::Result<Vec<SocketAddr>>) -> bool + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new().name("resolver".into()).spawn(move || {
        loop {
            for name in &names {
                if !tell(name, look_up(name)) {
                    return;
                }
            }
            thread::sleep(interval);
        }
    })?;
    Ok(())
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
        let name = |host: &str| Name { upstream: 0, server: 0, host: host.into(), port: 80 };
        let local = look_up(&name("localhost")).expect("in every hosts file");
        assert!(local.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
        assert!(look_up(&name("no-such-name.invalid")).is_err());
    }
}

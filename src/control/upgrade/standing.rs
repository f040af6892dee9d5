//! What a successor goes on with besides sockets: the health of servers, servers as the operator has them, and the
//! addresses of names. Times in it are on the clock that both processes share (`Hello::age_ms`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::message::Message;
use crate::balance::outlier::Reason;
use crate::control::l4_checks::Checks;
use crate::control::resolve::Name;
use crate::control::state::State;
use crate::l7::config::{Server, ServerAddress};
use crate::l7::pool::millis;
use crate::l7::upstream::Standing;
use crate::sys::passing::MESSAGE_MAX;

/// Room for what is around the entries of a message.
const FRAME_MAX: usize = 1024;

/// The health of one server's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHealth {
    /// Its upstream.
    pub upstream: String,
    /// Its address.
    pub server: SocketAddr,
    /// Health checks, ejection and slow start, as `balance::Gate` has them.
    pub gate: u64,
    /// Failures that requests saw, as `balance::Passive` has them.
    pub passive: u64,
    /// The check's verdict.
    #[serde(default)]
    pub check: Option<CheckHealth>,
    /// What is known of it as an outlier.
    #[serde(default)]
    pub outlier: Option<OutlierHealth>,
    /// Requests and retries that its upstream's retry budget goes by; with the first server of each.
    #[serde(default)]
    pub budget: Option<(u32, u32)>,
}

/// A health check's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckHealth {
    /// The kind of check; another one has no verdict yet.
    pub kind: String,
    /// Where probes went.
    pub probed: String,
    /// What it says.
    pub up: bool,
    /// Why.
    pub why: String,
    /// For how long.
    pub since_ms: u64,
    /// Results in a row that speak against it.
    pub row: u32,
}

/// A health check's verdict on a real server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServerHealth {
    /// Its virtual server.
    pub virtual_server: String,
    /// Its address.
    pub server: String,
    /// The verdict.
    pub check: CheckHealth,
}

/// An outlier's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutlierHealth {
    /// Out until then.
    pub until_ms: Option<u64>,
    /// Ejections, less one for each interval in good standing.
    pub times: u32,
    /// Why it is out.
    pub reason: Option<Reason>,
}

/// A server as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PassedServer {
    id: usize,
    address: String,
    weight: u32,
    max_fails: u32,
    fail_timeout_ms: u64,
    backup: bool,
    max_conns: u32,
    down: bool,
    drained: bool,
}

/// Addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PassedName {
    host: String,
    port: u16,
    addresses: Vec<SocketAddr>,
}

/// All of it, as the successor reads it.
#[derive(Debug, Default)]
pub struct Handed {
    /// By upstream and server.
    pub health: Vec<MemberHealth>,
    /// Of real servers.
    pub real_servers: Vec<RealServerHealth>,
    /// By upstream: what its file's list was, and the servers since.
    servers: HashMap<String, (String, Vec<PassedServer>)>,
    names: Vec<PassedName>,
}

/// What became of an upstream's changes at run time.
#[derive(Debug, PartialEq)]
pub enum Since {
    /// There were none.
    Nothing,
    /// They hold.
    Servers(Vec<Standing>),
    /// The file has other servers now: it counts.
    Void,
}

impl Handed {
    pub(super) fn take_in(&mut self, message: Message) -> Result<(), Message> {
        match message {
            Message::Health { members } => self.health.extend(members),
            Message::RealServers { servers } => self.real_servers.extend(servers),
            Message::Servers { upstream, file, servers } => {
                let known = self.servers.entry(upstream).or_insert_with(|| (file, Vec::new()));
                known.1.extend(servers);
            }
            Message::Names { names } => self.names.extend(names),
            other => return Err(other),
        }
        Ok(())
    }

    /// The servers of an upstream whose list in the file is this.
    #[must_use]
    pub fn since(&self, upstream: &str, file: &[Server]) -> Since {
        let Some((was, servers)) = self.servers.get(upstream) else { return Since::Nothing };
        let standing: Option<Vec<Standing>> = servers.iter().map(PassedServer::standing).collect();
        match standing {
            Some(standing) if *was == fingerprint(file) => Since::Servers(standing),
            _ => Since::Void,
        }
    }

    /// Addresses that the earlier process knew.
    #[must_use]
    pub fn addresses(&self) -> HashMap<Name, Vec<SocketAddr>> {
        let entry = |name: &PassedName| {
            (Name { host: name.host.clone(), port: name.port }, name.addresses.clone())
        };
        self.names.iter().map(entry).collect()
    }
}

impl PassedServer {
    fn of(standing: &Standing) -> Self {
        let server = &standing.server;
        Self {
            id: standing.id,
            address: server.address.to_string(),
            weight: server.weight,
            max_fails: server.max_fails,
            fail_timeout_ms: millis(server.fail_timeout),
            backup: server.backup,
            max_conns: server.max_conns,
            down: server.down,
            drained: standing.drained,
        }
    }

    fn standing(&self) -> Option<Standing> {
        let address = match self.address.parse() {
            Ok(literal) => ServerAddress::Socket(literal),
            Err(_) => {
                let (host, port) = self.address.rsplit_once(':')?;
                ServerAddress::Name(host.to_owned(), port.parse().ok()?)
            }
        };
        let server = Server {
            address,
            weight: self.weight,
            max_fails: self.max_fails,
            fail_timeout: Duration::from_millis(self.fail_timeout_ms),
            backup: self.backup,
            max_conns: self.max_conns,
            down: self.down,
        };
        Some(Standing { id: self.id, server, drained: self.drained })
    }
}

/// Tells lists of servers apart.
fn fingerprint(servers: &[Server]) -> String {
    let passed: Vec<_> = Standing::of(servers).iter().map(PassedServer::of).collect();
    let text = serde_json::to_vec(&passed).unwrap_or_default();
    digest(&SHA256, &text).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What this process says to its successor.
pub(super) fn messages(state: &State) -> Vec<Message> {
    let upstreams = state.upstreams();
    let mut messages =
        packed(state.checks.standing(&upstreams), |members| Message::Health { members });
    let real_servers = state.l4_checks.as_ref().map(Checks::standing).unwrap_or_default();
    messages.extend(packed(real_servers, |servers| Message::RealServers { servers }));
    let mut names = HashMap::new();
    for upstream in upstreams.iter() {
        let (servers, resolved) = (upstream.servers.borrow(), upstream.resolved.borrow());
        for standing in servers.now() {
            if let (ServerAddress::Name(host, port), Some(addresses)) =
                (&standing.server.address, resolved.get(standing.id))
            {
                names.insert((host.clone(), *port), addresses.clone());
            }
        }
        if servers.drift().is_empty() {
            continue;
        }
        let name = &upstream.shared.config.name;
        let file = fingerprint(servers.file());
        let now = servers.now().iter().map(PassedServer::of).collect();
        messages.extend(packed(now, |servers| {
            let (upstream, file) = (name.clone(), file.clone());
            Message::Servers { upstream, file, servers }
        }));
    }
    let names = names.into_iter().filter(|(_, addresses)| !addresses.is_empty());
    let names = names.map(|((host, port), addresses)| PassedName { host, port, addresses });
    messages.extend(packed(names.collect(), |names| Message::Names { names }));
    messages
}

/// As many entries a message as there is room for. One for which there is none is left out.
fn packed<T: Serialize>(entries: Vec<T>, message: impl Fn(Vec<T>) -> Message) -> Vec<Message> {
    let (mut messages, mut batch, mut size) = (Vec::new(), Vec::new(), 0);
    for entry in entries {
        let length = serde_json::to_vec(&entry).map_or(usize::MAX, |text| text.len() + 1);
        if length > MESSAGE_MAX - FRAME_MAX {
            continue;
        }
        if size + length > MESSAGE_MAX - FRAME_MAX {
            messages.push(message(std::mem::take(&mut batch)));
            size = 0;
        }
        batch.push(entry);
        size += length;
    }
    if !batch.is_empty() {
        messages.push(message(batch));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(address: &str) -> Server {
        let address = address
            .parse()
            .map_or_else(|_| ServerAddress::Name("a.example".into(), 80), ServerAddress::Socket);
        Server {
            address,
            weight: 3,
            max_fails: 2,
            fail_timeout: Duration::from_millis(1500),
            backup: true,
            max_conns: 9,
            down: true,
        }
    }

    #[test]
    fn servers_survive_the_way_unless_the_file_has_others() {
        let file = vec![server("10.0.0.1:80"), server("a.example:80")];
        let mut now = Standing::of(&file);
        now.remove(0);
        now.push(Standing { id: 2, server: server("[::1]:80"), drained: true });
        let servers: Vec<_> = now.iter().map(PassedServer::of).collect();
        let mut handed = Handed::default();
        for server in servers {
            let (upstream, file) = ("up".to_owned(), fingerprint(&file));
            let servers = vec![server];
            handed.take_in(Message::Servers { upstream, file, servers }).expect("taken in");
        }
        assert_eq!(handed.since("up", &file), Since::Servers(now));
        assert_eq!(handed.since("other", &file), Since::Nothing);
        assert_eq!(handed.since("up", &file[..1]), Since::Void);
        assert_eq!(handed.take_in(Message::Whole), Err(Message::Whole));
    }

    #[test]
    fn any_number_of_entries_fits() {
        let member = |port: u16| MemberHealth {
            upstream: "\u{1}".repeat(usize::from(port) % 700),
            server: SocketAddr::from(([10, 0, 0, 1], port)),
            gate: u64::MAX,
            passive: u64::MAX,
            check: Some(CheckHealth {
                kind: "https".into(),
                probed: "10.0.0.1:80".into(),
                up: false,
                why: "\u{fffd}".repeat(200),
                since_ms: u64::MAX,
                row: 7,
            }),
            outlier: None,
            budget: Some((7, 1)),
        };
        let all: Vec<_> = (0..3000).map(member).collect();
        let messages = packed(all.clone(), |members| Message::Health { members });
        assert!(messages.len() > 10);
        let mut handed = Handed::default();
        for message in messages {
            let text = serde_json::to_vec(&message).expect("JSON");
            assert!(text.len() <= MESSAGE_MAX, "{}", text.len());
            handed.take_in(serde_json::from_slice(&text).expect("JSON")).expect("taken in");
        }
        assert_eq!(handed.health, all);
        let huge = vec!["x".repeat(MESSAGE_MAX)];
        assert!(packed(huge, |_| Message::Whole).is_empty(), "what cannot be sent is left out");
    }
}

//! Frames, tables, and what directors make of them.

mod failover;
mod flows;
mod fragments;
mod places;
mod properties;
mod succession;
mod tunnels;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::balance::siphash::Key;
use crate::l4::config::{
    Forward, L4, OnServerDown, Persistence, RealServer, Scheduler, Settings, VirtualServer,
};
use crate::l4::registry::{Registry, ServerState};
use crate::l4::tables::Neighbour;
use crate::protocol::ethernet::Mac;
use crate::protocol::transport::{SCTP_HEADER, TCP_HEADER, UDP_HEADER};

pub(super) const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub(super) const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 99]);
pub(super) const PEER: Mac = Mac([2, 0, 0, 0, 0, 50]);
pub(super) const IN: u32 = 2;
pub(super) const OUT: u32 = 3;

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;
pub(super) const FIN: u8 = 1;
pub(super) const RST: u8 = 4;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn vip() -> IpAddr {
    ip("192.0.2.1")
}

/// The address and MAC of server `n`.
pub(super) fn server(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

pub(super) fn server_v6(n: u8) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 1, n.into()])
}

pub(super) fn server_mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, n])
}

pub(super) fn real(address: IpAddr, weight: u32) -> RealServer {
    RealServer::new(address, weight)
}

pub(super) fn service(protocol: Protocol, port: u16, scheduler: Scheduler) -> VirtualServer {
    let key = ServiceKey { protocol, address: vip(), port };
    VirtualServer::new(key, scheduler, (1..=3).map(|n| real(server(n), 1)).collect())
}

/// A registry that knows the way to all servers, for one director.
pub(super) fn registry(services: Vec<VirtualServer>) -> Registry {
    let director = Settings { seed: Key(1, 2), ..Settings::default() };
    let mut registry = Registry::new(L4 { director, services }, 1);
    registry.set_interfaces(HashMap::from([(IN, vec![OWN])]));
    registry.set_peers([PEER]);
    for n in 1..=20 {
        let neighbour = Neighbour { mac: server_mac(n), source: OWN, ifindex: OUT, vlan: None };
        registry.set_neighbour(server(n), Some(neighbour));
        registry.set_neighbour(server_v6(n), Some(neighbour));
    }
    registry
}

/// One director and what it is told.
pub(super) struct World {
    pub(super) registry: Registry,
    pub(super) director: Director,
    pub(super) now: u64,
}

impl World {
    pub(super) fn new(services: Vec<VirtualServer>) -> Self {
        Self::with_room(services, 1000)
    }

    pub(super) fn with_room(services: Vec<VirtualServer>, flows: u32) -> Self {
        let mut registry = registry(services);
        let director = Director::new(0, registry.tables(), flows);
        Self { registry, director, now: 1_000_000 }
    }

    pub(super) fn tcp(scheduler: Scheduler) -> Self {
        Self::new(vec![service(Protocol::Tcp, 80, scheduler)])
    }

    /// What was told takes effect.
    pub(super) fn swap(&mut self) {
        let tables = self.registry.tables();
        self.director.swap(tables);
    }

    pub(super) fn state(&mut self, n: u8, state: ServerState) {
        let key = self.registry.config().services[0].key;
        self.registry.set_state(key, server(n), state);
        self.swap();
    }

    pub(super) fn judge(&mut self, bytes: &mut [u8]) -> Verdict {
        let length = bytes.len();
        self.director.judge(self.now, &mut Frame { bytes, vlan: None, ifindex: IN, length })
    }

    /// Which server gets it, by the MAC address that is in the frame then.
    pub(super) fn goes_to(&mut self, frame: &[u8]) -> Option<u8> {
        let mut bytes = frame.to_vec();
        match self.judge(&mut bytes) {
            Verdict::Forward { ifindex, vlan, .. } => {
                assert_eq!((ifindex, vlan), (OUT, None));
                assert_eq!(&bytes[6..12], OWN.0);
                assert_eq!(&bytes[12..], &frame[12..], "only MAC addresses differ");
                assert_eq!(&bytes[..5], &server_mac(0).0[..5]);
                Some(bytes[5])
            }
            _ => None,
        }
    }

    pub(super) fn wait(&mut self, seconds: u64) {
        self.now += seconds * 1000;
    }

    /// Active and inactive flows of server `n`.
    pub(super) fn load(&mut self, n: u8) -> (u32, u32) {
        let tables = self.registry.tables();
        let mut servers = tables.servers.iter().flatten();
        let found = servers.find(|one| one.address == server(n)).unwrap();
        (found.figures.load.active(), found.figures.load.inactive())
    }
}

/// An Ethernet frame from the client to us.
pub(super) fn frame(ether_type: u16, packet: &[u8]) -> Vec<u8> {
    [&OWN.0[..], &CLIENT.0, &ether_type.to_be_bytes(), packet].concat()
}

pub(super) fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    reply::write_ip(&mut out, (source, destination), protocol, payload.len()).unwrap();
    out.extend_from_slice(payload);
    out
}

pub(super) fn ip_frame(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let kind = if source.is_ipv4() { ethernet::IPV4 } else { ethernet::IPV6 };
    frame(kind, &packet(source, destination, protocol, payload))
}

pub(super) fn ports(source: u16, destination: u16, length: usize) -> Vec<u8> {
    let mut head = vec![0; length];
    head[..2].copy_from_slice(&source.to_be_bytes());
    head[2..4].copy_from_slice(&destination.to_be_bytes());
    head
}

/// A segment from `client` to the virtual address' port 80.
pub(super) fn tcp(client: &str, flags: u8) -> Vec<u8> {
    tcp_to(client, 80, flags)
}

pub(super) fn tcp_to(client: &str, port: u16, flags: u8) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let mut head = ports(client.port(), port, TCP_HEADER);
    head[12] = 5 << 4;
    head[13] = flags;
    ip_frame(client.ip(), vip(), ip::TCP, &head)
}

pub(super) fn udp(client: &str, port: u16) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    ip_frame(client.ip(), vip(), ip::UDP, &ports(client.port(), port, UDP_HEADER + 4))
}

pub(super) fn sctp(client: &str, port: u16, chunk: u8) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let mut head = ports(client.port(), port, SCTP_HEADER + 4);
    head[SCTP_HEADER] = chunk;
    ip_frame(client.ip(), vip(), ip::SCTP, &head)
}

/// An IPv4 header becomes a fragment's: its offset in bytes, and whether more follow.
pub(super) fn as_fragment(frame: &mut [u8], id: u16, offset: u16, more: bool) {
    let field = (offset / 8) | if more { 0x2000 } else { 0 };
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    frame[20..22].copy_from_slice(&field.to_be_bytes());
}

pub(super) fn persistence(seconds: u64, prefix: u8) -> Option<Persistence> {
    Some(Persistence { timeout: Duration::from_secs(seconds), prefix })
}

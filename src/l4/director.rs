//! The verdict on one frame.

use std::collections::HashMap;
use std::sync::Arc;

use super::config::{Protocol, ServiceKey};
use super::hash::Tuple;
use super::schedule;
use super::tables::{Condition, Path, Server, ServerId, Service, Tables};
use crate::protocol::ethernet;
use crate::protocol::ip::Packet;
use crate::protocol::transport::{Ports, TcpFlags};

/// A received frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// From the Ethernet header on: the whole frame, or at least its headers.
    pub bytes: &'a mut [u8],
    /// The VLAN tag that the kernel took out of it.
    pub vlan: Option<u16>,
    /// The interface it came in through.
    pub ifindex: u32,
    /// Its length on the wire, as received: what is missing in `bytes` included.
    pub length: usize,
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the kernel takes care of it, as it does anyway.
    Pass,
    /// Deliver it to this host, past whatever silences the kernel.
    Local(ServerId),
    /// Send it: the MAC addresses in it have been replaced, nothing else.
    Forward {
        /// Through this interface.
        ifindex: u32,
        /// With this VLAN tag.
        vlan: Option<u16>,
        /// To this server.
        server: ServerId,
    },
    /// Send [`Director::head`] and behind it the frame's bytes from `skip` on.
    Encapsulate {
        /// Through this interface.
        ifindex: u32,
        /// With this VLAN tag.
        vlan: Option<u16>,
        /// To this server.
        server: ServerId,
        /// Bytes of the frame to leave out.
        skip: usize,
    },
    /// Do nothing with the frame, but send [`Director::reply`] back through this interface.
    Reply {
        /// Through this interface.
        ifindex: u32,
        /// With this VLAN tag.
        vlan: Option<u16>,
    },
    /// Nothing for now: a fragment whose first one has not come. The director has a copy; see
    /// [`Director::release`].
    Hold,
    /// Nothing.
    Drop(Reason),
}

/// Why a frame for a virtual server is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not a packet.
    Malformed,
    /// Another director is the active one for the address.
    Backup,
    /// It comes from another director, and this host is no real server.
    Loop,
    /// No server takes new flows.
    NoServer,
    /// The server's MAC address is not known.
    NoNeighbour,
}

/// Decides about the frames of one CPU.
#[derive(Debug)]
pub struct Director {
    index: usize,
    tables: Arc<Tables>,
    flows: HashMap<Tuple, ServerId>,
}

impl Director {
    /// The director with this index (from 0, below the number the registry was made with).
    #[must_use]
    pub fn new(index: usize, tables: Arc<Tables>, flows_max: u32) -> Self {
        let _ = flows_max;
        Self { index, tables, flows: HashMap::new() }
    }

    /// Decides by other tables from now on.
    pub fn swap(&mut self, tables: Arc<Tables>) {
        self.tables = tables;
    }

    /// What is to be done with a frame; `now` is any steady clock in milliseconds.
    pub fn judge(&mut self, now: u64, frame: &mut Frame<'_>) -> Verdict {
        let _ = now;
        let tables = Arc::clone(&self.tables);
        self.decide(&tables, frame)
    }

    /// A held fragment that may go now, with the verdict on it; call until `None` after each
    /// batch.
    pub fn release(&mut self, now: u64) -> Option<(Verdict, &mut [u8])> {
        let _ = now;
        None
    }

    /// The headers that [`Verdict::Encapsulate`] puts in front.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &[]
    }

    /// The frame that [`Verdict::Reply`] sends.
    #[must_use]
    pub fn reply(&self) -> &[u8] {
        &[]
    }

    /// Forgets flows that are over; a bounded piece of work, to be called now and then, also
    /// without traffic.
    pub fn expire(&mut self, now: u64) {
        let _ = now;
    }

    fn decide(&mut self, tables: &Tables, frame: &mut Frame<'_>) -> Verdict {
        let Some(view) = ethernet::View::parse(frame.bytes) else { return Verdict::Pass };
        let own = tables.interfaces.get(&frame.ifindex);
        if !own.is_some_and(|own| own.contains(&view.destination)) {
            return Verdict::Pass;
        }
        if !matches!(view.ether_type, ethernet::IPV4 | ethernet::IPV6) {
            return Verdict::Pass;
        }
        let bytes = frame.bytes.get(view.payload..).unwrap_or_default();
        let wire = frame.length.saturating_sub(view.payload);
        let Ok(packet) = Packet::parse(bytes, wire) else { return Verdict::Pass };
        if !tables.vips.contains(&packet.destination) {
            return Verdict::Pass;
        }
        let payload = bytes.get(packet.payload..).unwrap_or_default();
        let Some(protocol) = Protocol::from_number(packet.protocol) else { return Verdict::Pass };
        let Some(ports) = Ports::parse(payload) else { return Verdict::Drop(Reason::Malformed) };
        let key = ServiceKey { protocol, address: packet.destination, port: ports.destination };
        let Some((_, service)) = tables.service(key) else { return Verdict::Pass };
        let tuple = Tuple {
            client: packet.source,
            client_port: ports.source,
            address: packet.destination,
            port: ports.destination,
            protocol: packet.protocol,
        };
        if tables.peers.contains(&view.source) || !service.active {
            return match service.local.and_then(|slot| tables.occupant(slot)) {
                Some(server) => Verdict::Local(server.id),
                None if service.active => Verdict::Drop(Reason::Loop),
                None => Verdict::Drop(Reason::Backup),
            };
        }
        let opens = TcpFlags::parse(payload).is_some_and(TcpFlags::opens);
        let known = self.flows.get(&tuple).and_then(|id| tables.server(*id));
        let usable = |server: &&Server| server.condition != Condition::Down;
        let server = known.filter(usable).or_else(|| {
            if opens {
                schedule::pick(tables, service, &tuple)
            } else {
                service.stateless(tables.seed, &tuple).and_then(|slot| tables.occupant(slot))
            }
        });
        let Some(server) = server else { return Verdict::Drop(Reason::NoServer) };
        if self.flows.insert(tuple, server.id).is_none() {
            self.count_flow(service, server);
        }
        self.count_packet(service, server, packet.length);
        deliver(frame.bytes, server)
    }

    fn count_flow(&self, service: &Service, server: &Server) {
        for figures in [&service.figures, &server.figures] {
            if let Some(traffic) = figures.traffic(self.index) {
                traffic.flows.increment();
            }
        }
    }

    fn count_packet(&self, service: &Service, server: &Server, bytes: usize) {
        for figures in [&service.figures, &server.figures] {
            if let Some(traffic) = figures.traffic(self.index) {
                traffic.packets.increment();
                traffic.bytes.add(bytes as u64);
            }
        }
    }
}

/// Sends a frame on its way to a server.
fn deliver(bytes: &mut [u8], server: &Server) -> Verdict {
    match server.path {
        Path::Local => Verdict::Local(server.id),
        Path::Unknown => Verdict::Drop(Reason::NoNeighbour),
        Path::Via(to) => {
            let Some(addresses) = bytes.first_chunk_mut::<12>() else {
                return Verdict::Drop(Reason::Malformed);
            };
            addresses[..6].copy_from_slice(&to.mac.0);
            addresses[6..].copy_from_slice(&to.source.0);
            Verdict::Forward { ifindex: to.ifindex, vlan: to.vlan, server: server.id }
        }
    }
}

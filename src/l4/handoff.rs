//! From one process to its successor: what the engine is made of besides its configuration, as files and sockets.
//!
//! Flows and clients pass as records in files in memory. Each file begins with a mark that names its layout: a successor
//! that knows another one leaves the file alone, and finds servers by the hash, as a director does that never saw the
//! flows. Everything else is one `Standing`, as JSON.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::config::{Protocol, ServiceKey};
use super::flow::{Key, Passed, State};
use super::tables::ServerId;
use crate::packet::ring::Place;

/// The beginning of a file with flows; the last byte is the layout's number.
const FLOWS: [u8; 8] = *b"rgflows\x01";
/// The same with clients.
const CLIENTS: [u8; 8] = *b"rgclien\x01";
/// Bytes of a record.
pub(super) const RECORD: usize = 32;

/// What a passed descriptor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// How the engine stands: slots, weights, neighbours.
    Standing,
    /// Flows of the director with this index: all, or those that a packet was seen of since they were passed first.
    Flows {
        /// The index.
        director: usize,
    },
    /// Clients with persistence.
    Clients,
    /// A receive ring.
    Ring {
        /// Its interface, by number.
        interface: u32,
        /// The director that empties it.
        director: usize,
        /// How it stands.
        place: Place,
    },
    /// The XDP program's flows of a family.
    XdpFlows {
        /// IPv6.
        six: bool,
        /// The layout of keys and values.
        layout: u32,
    },
    /// The XDP program on an interface.
    XdpLink {
        /// Its number.
        interface: u32,
        /// In the driver.
        native: bool,
    },
}

/// Parts with their descriptors.
pub type Bundle = Vec<(Part, OwnedFd)>;

/// Who has which slot, and what is known of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    /// How many directors share the flows.
    pub(super) directors: usize,
    pub(super) places: Places,
    /// Virtual addresses that another director has.
    pub(super) inactive: Vec<IpAddr>,
    /// Hardware addresses by address and interface.
    pub(super) neighbours: Vec<(IpAddr, u32, [u8; 6])>,
}

/// Who has which slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Places {
    pub(super) services: Vec<ServicePlace>,
    pub(super) servers: Vec<ServerPlace>,
    /// Slots that no server has, each with the generation of the last who had it.
    pub(super) vacant: Vec<(u16, u16)>,
}

/// A virtual server in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServicePlace {
    pub(super) slot: u16,
    pub(super) protocol: u8,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) quorate: bool,
    /// How often a server has had its turn; older processes do not say.
    #[serde(default)]
    pub(super) turns: usize,
}

impl ServicePlace {
    /// `None` for a protocol that is not forwarded.
    pub(super) fn key(&self) -> Option<ServiceKey> {
        let protocol = Protocol::from_number(self.protocol)?;
        Some(ServiceKey { protocol, address: self.address, port: self.port })
    }
}

/// A real server in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServerPlace {
    pub(super) slot: u16,
    pub(super) generation: u16,
    /// Slot of its virtual server.
    pub(super) service: u16,
    pub(super) address: IpAddr,
    /// What checks say.
    pub(super) up: bool,
    /// The operator's weight.
    pub(super) weight: Option<u32>,
}

/// A client that comes back to its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    /// Slot of the virtual server.
    pub(super) service: u16,
    pub(super) server: ServerId,
    /// For so many milliseconds.
    pub(super) rest: u64,
}

/// What can be written to a file.
pub(super) trait Record: Sized {
    /// What the file begins with.
    const MARK: [u8; 8];
    fn encode(&self) -> [u8; RECORD];
    /// `None` for what no process of this layout writes.
    fn decode(bytes: &[u8; RECORD]) -> Option<Self>;
}

impl Record for Passed {
    const MARK: [u8; 8] = FLOWS;

    fn encode(&self) -> [u8; RECORD] {
        let [a, b] = self.key.port.to_le_bytes();
        let [c, d] = self.key.client_port.to_le_bytes();
        let [e, f] = self.key.service.to_le_bytes();
        let [g, h] = self.server.slot.to_le_bytes();
        let [i, j] = self.server.generation.to_le_bytes();
        let [k, l, m, n] = self.rested.to_le_bytes();
        let rest = [a, b, c, d, e, f, g, h, i, j, self.state as u8, 0, k, l, m, n];
        join(self.key.client, rest)
    }

    fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        let (client, rest) = parted(bytes);
        let [a, b, c, d, e, f, g, h, i, j, state, _, k, l, m, n] = rest;
        let word = |low: u8, high: u8| u16::from_le_bytes([low, high]);
        Some(Self {
            key: Key { client, port: word(a, b), client_port: word(c, d), service: word(e, f) },
            server: ServerId { slot: word(g, h), generation: word(i, j) },
            state: State::ALL.into_iter().find(|one| *one as u8 == state)?,
            rested: u32::from_le_bytes([k, l, m, n]),
        })
    }
}

impl Record for Client {
    const MARK: [u8; 8] = CLIENTS;

    fn encode(&self) -> [u8; RECORD] {
        let client = match self.address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let [a, b] = self.service.to_le_bytes();
        let [c, d] = self.server.slot.to_le_bytes();
        let [e, f] = self.server.generation.to_le_bytes();
        let [g, h, i, j, k, l, m, n] = self.rest.to_le_bytes();
        join(
            client,
            [a, b, c, d, e, f, u8::from(self.address.is_ipv6()), 0, g, h, i, j, k, l, m, n],
        )
    }

    fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        let (client, rest) = parted(bytes);
        let [a, b, c, d, e, f, six, _, g, h, i, j, k, l, m, n] = rest;
        let word = |low: u8, high: u8| u16::from_le_bytes([low, high]);
        let address = Ipv6Addr::from_bits(client);
        Some(Self {
            address: match six {
                0 => IpAddr::V4(address.to_ipv4_mapped()?),
                _ => IpAddr::V6(address),
            },
            service: word(a, b),
            server: ServerId { slot: word(c, d), generation: word(e, f) },
            rest: u64::from_le_bytes([g, h, i, j, k, l, m, n]),
        })
    }
}

fn join(client: u128, rest: [u8; 16]) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let (head, tail) = bytes.split_at_mut(16);
    head.copy_from_slice(&client.to_le_bytes());
    tail.copy_from_slice(&rest);
    bytes
}

fn parted(bytes: &[u8; RECORD]) -> (u128, [u8; 16]) {
    match bytes.as_chunks::<16>().0 {
        [client, rest] => (u128::from_le_bytes(*client), *rest),
        _ => (0, [0; 16]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn flows_survive_the_way(
            (client, service, port, client_port) in any::<(u128, u16, u16, u16)>(),
            (slot, generation, rested, state) in (any::<u16>(), any::<u16>(), any::<u32>(), 0..State::ALL.len()),
        ) {
            let key = Key { client, service, port, client_port };
            let server = ServerId { slot, generation };
            let flow = Passed { key, server, state: State::ALL[state], rested };
            prop_assert_eq!(Passed::decode(&flow.encode()), Some(flow));
        }

        #[test]
        fn clients_survive_the_way(
            address in any::<IpAddr>(),
            (service, slot, generation, rest) in any::<(u16, u16, u16, u64)>(),
        ) {
            let client = Client { address, service, server: ServerId { slot, generation }, rest };
            prop_assert_eq!(Client::decode(&client.encode()), Some(client));
        }

        #[test]
        fn anything_can_be_read(bytes in any::<[u8; RECORD]>()) {
            if let Some(flow) = Passed::decode(&bytes) {
                prop_assert_eq!(Passed::decode(&flow.encode()), Some(flow));
            }
            if let Some(client) = Client::decode(&bytes) {
                prop_assert_eq!(Client::decode(&client.encode()), Some(client));
            }
        }
    }

    #[test]
    fn a_state_that_is_none_is_left_out() {
        let mut bytes = [0; RECORD];
        assert!(Passed::decode(&bytes).is_some());
        bytes[26] = 7;
        assert_eq!(Passed::decode(&bytes), None);
    }

    #[test]
    fn parts_survive_the_way() {
        let place = Place { head: 1, slots: 2, slot: 3 };
        for part in [
            Part::Standing,
            Part::Flows { director: 4 },
            Part::Clients,
            Part::Ring { interface: 5, director: 6, place },
            Part::XdpFlows { six: true, layout: 7 },
            Part::XdpLink { interface: 8, native: true },
        ] {
            let text = serde_json::to_string(&part).expect("JSON");
            assert_eq!(serde_json::from_str::<Part>(&text).expect("JSON"), part);
        }
    }
}

//! The hash that places flows, in the flow table and in the Maglev tables: SipHash-1-3 with the
//! configured seed, over a message whose layout is fixed because an in-kernel program and the
//! other directors have to compute the same.

use std::net::IpAddr;

use crate::balance::siphash::{Key, hash_words};

/// A flow: client and virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The client.
    pub client: IpAddr,
    /// Its port.
    pub client_port: u16,
    /// The virtual address, of the same family.
    pub address: IpAddr,
    /// The port the client asked for.
    pub port: u16,
    /// Protocol number.
    pub protocol: u8,
}

impl Tuple {
    /// The hash of all of it.
    ///
    /// IPv4: 16 bytes: client 4, virtual address 4, client port 2, port 2, protocol 1, zeros 3.
    /// IPv6: 40 bytes: client 16, virtual address 16, then as above. Addresses and ports as on the
    /// wire; words are read as little-endian.
    #[must_use]
    pub fn hash(&self, key: Key) -> u64 {
        let mut tail = [0; 8];
        tail[..2].copy_from_slice(&self.client_port.to_be_bytes());
        tail[2..4].copy_from_slice(&self.port.to_be_bytes());
        tail[4] = self.protocol;
        let tail = u64::from_le_bytes(tail);
        match (self.client, self.address) {
            (IpAddr::V4(client), IpAddr::V4(address)) => {
                let client = u64::from(u32::from_le_bytes(client.octets()));
                let address = u64::from(u32::from_le_bytes(address.octets()));
                hash_words(key, [client | address << 32, tail])
            }
            (client, address) => {
                let [a, b] = halves(client);
                let [c, d] = halves(address);
                hash_words(key, [a, b, c, d, tail])
            }
        }
    }

    /// The same flow as far as `sh` and persistence see it: the client's network, no client port.
    #[must_use]
    pub fn of_client(&self, prefix: u8) -> Self {
        Self { client: network(self.client, prefix), client_port: 0, ..*self }
    }
}

/// `address` with all bits behind the first `prefix` cleared.
#[must_use]
pub fn network(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::from((v4.to_bits() & mask).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::from((v6.to_bits() & mask).to_be_bytes())
        }
    }
}

/// The place in a table of `size` (at most 2^32): the hash's high half times the size, shifted.
#[must_use]
pub fn place(hash: u64, size: usize) -> usize {
    // Below `size`, which is a usize.
    usize::try_from(((hash >> 32) * size as u64) >> 32).unwrap_or_default()
}

fn halves(address: IpAddr) -> [u64; 2] {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let [low, high] = *octets.as_chunks::<8>().0 else { return [0; 2] };
    [u64::from_le_bytes(low), u64::from_le_bytes(high)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple() -> Tuple {
        Tuple {
            client: [10, 0, 0, 1].into(),
            client_port: 40_000,
            address: [192, 0, 2, 1].into(),
            port: 80,
            protocol: 6,
        }
    }

    #[test]
    fn layout() {
        let key = Key(1, 2);
        let words = [
            u64::from_le_bytes([10, 0, 0, 1, 192, 0, 2, 1]),
            u64::from_le_bytes([0x9c, 0x40, 0, 80, 6, 0, 0, 0]),
        ];
        assert_eq!(tuple().hash(key), hash_words(key, words));
    }

    #[test]
    fn every_field_counts() {
        let key = Key(1, 2);
        let base = tuple();
        let others = [
            Tuple { client: [10, 0, 0, 2].into(), ..base },
            Tuple { client_port: 40_001, ..base },
            Tuple { address: [192, 0, 2, 2].into(), ..base },
            Tuple { port: 81, ..base },
            Tuple { protocol: 17, ..base },
            Tuple {
                client: "2001:db8::1".parse().unwrap(),
                address: "::1".parse().unwrap(),
                ..base
            },
        ];
        for other in others {
            assert_ne!(other.hash(key), base.hash(key), "{other:?}");
        }
    }

    #[test]
    fn networks() {
        let v4: IpAddr = "203.0.113.77".parse().unwrap();
        let v6: IpAddr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        assert_eq!(network(v4, 24).to_string(), "203.0.113.0");
        assert_eq!(network(v4, 32), v4);
        assert_eq!(network(v4, 0).to_string(), "0.0.0.0");
        assert_eq!(network(v6, 64).to_string(), "2001:db8:1:2::");
        assert_eq!((network(v6, 128), network(v6, 0).to_string()), (v6, "::".into()));
    }

    #[test]
    fn places() {
        assert_eq!(place(u64::MAX, 65_537), 65_536);
        assert_eq!(place(0, 65_537), 0);
        assert_eq!(place(u64::MAX, 0), 0);
    }
}

//! Fragments without ports: they go where the first one of their datagram went.
//!
//! One that comes before its first is held, bounded in number, bytes and time.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::Reason;
use crate::l4::tables::ServerId;
use crate::protocol::ip::Packet;

/// How long a datagram's fragments are waited for, in milliseconds.
const PATIENCE: u64 = 5000;
/// Datagrams that are remembered.
const DATAGRAMS_MAX: usize = 4096;
/// Fragments that are held, and their bytes.
const HELD_MAX: usize = 512;
const HELD_BYTES_MAX: usize = 1 << 20;

/// Which datagram a fragment belongs to (RFC 791, RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    protocol: u8,
}

impl Datagram {
    /// `None` for a whole packet.
    pub(super) fn of(packet: &Packet) -> Option<Self> {
        let id = packet.fragment?.id;
        let (source, destination) = (packet.source, packet.destination);
        // Later fragments of IPv6 name the header after theirs, which may differ from the first's.
        let protocol = if destination.is_ipv4() { packet.protocol } else { 0 };
        Some(Self { source, destination, id, protocol })
    }
}

/// What became of the first fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Pass,
    To(ServerId),
    Drop(Reason),
}

/// A fragment that came too early.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    /// Of the IP packet.
    pub(super) length: usize,
}

#[derive(Debug)]
struct Waiting {
    datagram: Datagram,
    until: u64,
    held: Held,
}

#[derive(Debug, Default)]
pub(super) struct Fragments {
    fates: HashMap<Datagram, (Fate, u64)>,
    /// In the order in which they were learned.
    order: VecDeque<(Datagram, u64)>,
    waiting: VecDeque<Waiting>,
    bytes: usize,
    ready: VecDeque<(Fate, Held)>,
}

impl Fragments {
    /// What to do with a later fragment; `None`: its first has not come.
    pub(super) fn fate(&self, datagram: &Datagram, now: u64) -> Option<Fate> {
        let (fate, until) = self.fates.get(datagram)?;
        (*until > now).then_some(*fate)
    }

    /// The first fragment has come.
    pub(super) fn learn(&mut self, datagram: Datagram, fate: Fate, now: u64) {
        let until = now + PATIENCE;
        while self.order.len() >= DATAGRAMS_MAX {
            self.forget_oldest();
        }
        self.fates.insert(datagram, (fate, until));
        self.order.push_back((datagram, until));
        let mut rest = VecDeque::new();
        for one in self.waiting.drain(..) {
            if one.datagram == datagram {
                self.ready.push_back((fate, one.held));
            } else {
                rest.push_back(one);
            }
        }
        self.waiting = rest;
    }

    /// Keeps a later fragment until its first comes; false if there is no room.
    pub(super) fn hold(&mut self, datagram: Datagram, held: Held, now: u64) -> bool {
        let bytes = self.bytes + held.bytes.len();
        let count = self.waiting.len() + self.ready.len();
        if count >= HELD_MAX || bytes > HELD_BYTES_MAX {
            return false;
        }
        self.bytes = bytes;
        self.waiting.push_back(Waiting { datagram, until: now + PATIENCE, held });
        true
    }

    /// One that need not wait any longer: its first has come, or never will.
    pub(super) fn release(&mut self, now: u64) -> Option<(Fate, Held)> {
        let one = self.ready.pop_front().or_else(|| {
            let over = self.waiting.front().is_some_and(|one| one.until <= now);
            let one = over.then(|| self.waiting.pop_front()).flatten()?;
            Some((Fate::Drop(Reason::Fragment), one.held))
        })?;
        self.bytes = self.bytes.saturating_sub(one.1.bytes.len());
        Some(one)
    }

    /// Forgets up to `budget` datagrams whose time is over.
    pub(super) fn expire(&mut self, now: u64, budget: usize) {
        for _ in 0..budget {
            if self.order.front().is_none_or(|(_, until)| *until > now) {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((datagram, until)) = self.order.pop_front() else { return };
        // It may have been learned anew since, with a later entry in the order.
        if self.fates.get(&datagram).is_some_and(|(_, learned)| *learned == until) {
            self.fates.remove(&datagram);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: ServerId = ServerId { slot: 1, generation: 0 };

    fn datagram(id: u32) -> Datagram {
        Datagram { source: [1, 2, 3, 4].into(), destination: [5, 6, 7, 8].into(), id, protocol: 17 }
    }

    fn held(byte: u8, length: usize) -> Held {
        Held { bytes: vec![byte; length], length }
    }

    #[test]
    fn first_then_later() {
        let mut fragments = Fragments::default();
        assert_eq!(fragments.fate(&datagram(1), 0), None);
        fragments.learn(datagram(1), Fate::To(SERVER), 0);
        assert_eq!(fragments.fate(&datagram(1), PATIENCE - 1), Some(Fate::To(SERVER)));
        assert_eq!(fragments.fate(&datagram(1), PATIENCE), None);
        assert_eq!(fragments.fate(&datagram(2), 0), None);
        // An identification that comes round again is another datagram.
        fragments.learn(datagram(1), Fate::Pass, 100);
        fragments.expire(PATIENCE, 10);
        assert_eq!(fragments.fate(&datagram(1), PATIENCE), Some(Fate::Pass));
        fragments.expire(PATIENCE + 100, 10);
        assert!(fragments.fates.is_empty() && fragments.order.is_empty());
    }

    #[test]
    fn later_then_first() {
        let mut fragments = Fragments::default();
        assert!(fragments.hold(datagram(1), held(1, 9), 0));
        assert!(fragments.hold(datagram(2), held(2, 9), 0));
        assert!(fragments.hold(datagram(1), held(3, 9), 0));
        assert!(fragments.release(1).is_none());
        fragments.learn(datagram(1), Fate::To(SERVER), 1);
        for byte in [1, 3] {
            let (fate, held) = fragments.release(1).unwrap();
            assert_eq!((fate, held.bytes[0]), (Fate::To(SERVER), byte));
        }
        assert!(fragments.release(PATIENCE - 1).is_none());
        let (fate, held) = fragments.release(PATIENCE).unwrap();
        assert_eq!((fate, held.bytes[0]), (Fate::Drop(Reason::Fragment), 2));
        assert_eq!(fragments.bytes, 0);
    }

    #[test]
    fn bounds() {
        let mut fragments = Fragments::default();
        let taken = (0..10_000).filter(|n| fragments.hold(datagram(*n), held(0, 8), 0)).count();
        assert_eq!(taken, HELD_MAX);
        let mut fragments = Fragments::default();
        let taken = (0..64).filter(|n| fragments.hold(datagram(*n), held(0, 60_000), 0)).count();
        assert_eq!(taken, HELD_BYTES_MAX / 60_000);
        (0..10_000).for_each(|n| fragments.learn(datagram(n), Fate::Pass, 0));
        assert_eq!((fragments.fates.len(), fragments.order.len()), (DATAGRAMS_MAX, DATAGRAMS_MAX));
        assert_eq!(fragments.fate(&datagram(9999), 0), Some(Fate::Pass));
        assert_eq!(fragments.fate(&datagram(0), 0), None);
    }
}

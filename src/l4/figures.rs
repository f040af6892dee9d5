//! What is counted: figures that directors write and views read.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

use crate::counter::{Counter, Padded};

/// What one director counts of a virtual or a real server.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Flows begun (`Conns`).
    pub flows: Counter,
    /// Packets in (`InPkts`).
    pub packets: Counter,
    /// Bytes in, from the IP header on (`InBytes`).
    pub bytes: Counter,
    /// Packets dropped, by [`Reason::index`](super::Reason::index); of virtual servers only.
    pub dropped: [Counter; REASONS],
}

/// What one director counts of everything: each frame is in one of the first six figures or in
/// `dropped`, a held one again when it is released.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Overall {
    /// Left to the kernel.
    pub passed: Counter,
    /// Delivered to this host.
    pub local: Counter,
    /// Sent to a server by its MAC address.
    pub forwarded: Counter,
    /// Sent to a server in a tunnel.
    pub encapsulated: Counter,
    /// Answered.
    pub replied: Counter,
    /// Fragments held until their first comes.
    pub held: Counter,
    /// Dropped, by [`Reason::index`](super::Reason::index).
    pub dropped: [Counter; REASONS],
    /// Flows in the table now.
    pub flows: Counter,
    /// Flows that left it after their timeout.
    pub expired: Counter,
    /// Flows that left it for others.
    pub evicted: Counter,
    /// Flows that went to another server because theirs was gone.
    pub rescheduled: Counter,
    /// Flows that began elsewhere and were found by hash.
    pub adopted: Counter,
    /// Packets of flows that were not taken in: too many new ones, or no room.
    pub stateless: Counter,
    /// New flows whose client could not be remembered for persistence.
    pub unremembered_clients: Counter,
}

/// Reasons for which a frame is dropped.
pub const REASONS: usize = 8;

/// The sum over directors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Flows begun.
    pub flows: u64,
    /// Packets in.
    pub packets: u64,
    /// Bytes in.
    pub bytes: u64,
    /// Packets dropped, by [`Reason::index`](super::Reason::index).
    pub dropped: [u64; REASONS],
}

/// Flows that a real server has, over all directors; on a cache line of its own.
#[derive(Debug, Default)]
pub struct Load {
    /// Established (`ActiveConn`).
    active: AtomicU32,
    /// Others that are remembered (`InActConn`).
    inactive: AtomicU32,
    /// Flows that only the XDP program knows: established, and others.
    offloaded: [AtomicU32; 2],
    /// Above its upper threshold and not yet below the lower one.
    full: AtomicBool,
}

impl Load {
    /// Established flows.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed).saturating_add(self.offloaded[0].load(Relaxed))
    }

    /// Flows remembered that are not established.
    #[must_use]
    pub fn inactive(&self) -> u32 {
        self.inactive.load(Relaxed).saturating_add(self.offloaded[1].load(Relaxed))
    }

    /// Flows that the XDP program knows, as it was last asked; those of directors may be among them.
    pub(super) fn set_offloaded(&self, established: u32, others: u32) {
        let own = [&self.active, &self.inactive].map(|side| side.load(Relaxed));
        self.offloaded[0].store(established.saturating_sub(own[0]), Relaxed);
        self.offloaded[1].store(others.saturating_sub(own[1]), Relaxed);
    }

    /// Takes a flow in.
    pub(super) fn enter(&self, established: bool) {
        self.side(established).fetch_add(1, Relaxed);
    }

    /// Lets a flow go that was taken in with the same `established`.
    pub(super) fn leave(&self, established: bool) {
        let held = self.side(established).fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        debug_assert!(held.is_ok(), "more flows left than entered");
    }

    /// True while it takes no new flows: from `upper` flows on (0: never) until there are fewer
    /// than `lower`.
    pub(super) fn is_full(&self, upper: u32, lower: u32) -> bool {
        if upper == 0 {
            return false;
        }
        let flows = self.active().saturating_add(self.inactive());
        let full = flows >= upper || (self.full.load(Relaxed) && flows >= lower);
        // A plain store where nothing changes would take the line from the other CPUs.
        if self.full.load(Relaxed) != full {
            self.full.store(full, Relaxed);
        }
        full
    }

    fn side(&self, established: bool) -> &AtomicU32 {
        if established { &self.active } else { &self.inactive }
    }
}

/// A virtual or real server's figures: shared by all tables it is in.
#[derive(Debug)]
pub struct Figures {
    /// Flows now; of real servers only.
    pub load: Padded<Load>,
    /// Whose turn it is; of virtual servers only.
    pub(super) cursor: Padded<AtomicUsize>,
    directors: Box<[Padded<Traffic>]>,
}

impl Figures {
    pub(super) fn new(directors: usize) -> Self {
        Self {
            load: Padded::default(),
            cursor: Padded::default(),
            directors: (0..directors).map(|_| Padded::default()).collect(),
        }
    }

    /// What the director with this index counts.
    pub(super) fn traffic(&self, director: usize) -> Option<&Traffic> {
        self.directors.get(director).map(|padded| &padded.0)
    }

    /// Over all directors.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.directors.iter().fold(Totals::default(), |sum, one| Totals {
            flows: sum.flows.wrapping_add(one.flows.value()),
            packets: sum.packets.wrapping_add(one.packets.value()),
            bytes: sum.bytes.wrapping_add(one.bytes.value()),
            dropped: std::array::from_fn(|at| {
                sum.dropped[at].wrapping_add(one.dropped[at].value())
            }),
        })
    }
}

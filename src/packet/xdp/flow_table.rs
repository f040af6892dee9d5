//! The flows that the program knows, in memory that it shares with us.
//!
//! The program looks flows up and takes places for them by itself ([`super::program`]); what is here does the same from
//! the other side, by the same rules. Nobody waits for anybody: a place is taken by exchanging its mark,
//! and whoever loses goes without.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::fence;

use super::fast_path::{Error, Limits};
use super::layout::{
    Family, Flow, FlowKey, HASH, KIND_BUSY, KIND_CLASS_SHIFT, KIND_LIVE, KIND_REST, KIND_STATE,
    Mark, OVER_BITS, RESTS_VALUE, SHOWN_SHIFT, STAYS, State, class, protocol, rest,
};
use crate::sys::bpf::{Kind, Map, Mapping, Spec};

/// How often a place is tried for again when somebody else was quicker.
const TRIES: usize = 4;

/// How long flows may rest, by class (TCP, UDP, SCTP) and state, in units of the program's clock.
pub type Timeouts = [[u32; 4]; 3];

/// The flows of IPv4 and of IPv6.
#[derive(Debug)]
pub struct FlowTable {
    tables: [Table; 2],
    rests: Table,
}

/// An array with its values mapped.
#[derive(Debug)]
struct Table {
    map: Map,
    words: Mapping,
}

impl Table {
    fn new(spec: &Spec) -> Result<Self, Error> {
        let map = Map::create(spec);
        map.and_then(Self::of).map_err(|error| Error::Map(spec.name, error))
    }

    fn of(map: Map) -> io::Result<Self> {
        let words = Mapping::new(&map)?;
        Ok(Self { map, words })
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.words.get(at)
    }

    fn load(&self, at: usize) -> u64 {
        self.word(at).map_or(0, |word| word.load(Relaxed))
    }

    fn store(&self, at: usize, value: u64) {
        if let Some(word) = self.word(at) {
            word.store(value, Relaxed);
        }
    }
}

/// A place of a flow's, by its first word, and the mark that it had.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: usize,
    mark: Mark,
}

impl Place {
    /// The flow in a place, and when it was seen.
    fn read(table: &Table, family: Family, at: usize) -> Option<(FlowKey, Self, u32)> {
        let ports = at + family.address_words();
        let word = table.word(ports + 1)?;
        let mark = Mark::decode(word.load(Acquire));
        if mark.kind & KIND_LIVE == 0 {
            return None;
        }
        let mut addresses = [0; 4];
        let addresses = addresses.get_mut(..family.address_words())?;
        (at..).zip(addresses.iter_mut()).for_each(|(at, word)| *word = table.load(at));
        let (ports, seen) = ports_and_seen(table.load(ports));
        fence(Acquire);
        // State and time may have changed; whose it is must not.
        if Mark::decode(word.load(Relaxed)).version != mark.version {
            return None;
        }
        let protocol = protocol((mark.kind & KIND_REST) >> KIND_CLASS_SHIFT)?;
        let key = FlowKey::of_place(addresses, ports, protocol)?;
        Some((key, Self { at, mark }, seen))
    }

    fn flow(self, seen: u32) -> Flow {
        let Mark { slot, generation, .. } = self.mark;
        Flow { slot, generation, state: self.mark.state(), seen }
    }

    /// Frees it, unless somebody has changed it meanwhile.
    fn free(self, table: &Table, family: Family) {
        if let Some(word) = table.word(self.at + family.address_words() + 1) {
            let to = Mark { kind: 0, ..self.mark };
            let _ = word.compare_exchange(self.mark.encode(), to.encode(), AcqRel, Relaxed);
        }
    }
}

fn specs(limits: Limits) -> [Spec; 2] {
    let of = |family: Family, flows: u32, name| Spec {
        kind: Kind::MappedArray,
        key_size: 4,
        value_size: u32::try_from(8 * family.bucket_words()).unwrap_or(u32::MAX),
        entries: flows.div_ceil(family.share()).max(1),
        name,
    };
    [of(Family::V4, limits.flows_v4, "flows_v4"), of(Family::V6, limits.flows_v6, "flows_v6")]
}

impl FlowTable {
    pub(super) fn new(limits: Limits) -> Result<Self, Error> {
        let [four, six] = specs(limits).map(|spec| Table::new(&spec));
        Self::with([four?, six?])
    }

    fn with(tables: [Table; 2]) -> Result<Self, Error> {
        let rests = Spec {
            kind: Kind::MappedArray,
            key_size: 4,
            value_size: u32::try_from(RESTS_VALUE).unwrap_or(u32::MAX),
            entries: 1,
            name: "rests",
        };
        Ok(Self { tables, rests: Table::new(&rests)? })
    }

    /// Takes over another process's flows, of IPv4 and of IPv6.
    ///
    /// # Errors
    /// When they are not flows' tables, or cannot be mapped.
    pub fn adopt(descriptors: [OwnedFd; 2]) -> Result<Self, Error> {
        let [four, six] = specs(Limits::default()).map(|spec| Spec { entries: 0, ..spec });
        let [fd_four, fd_six] = descriptors;
        let adopt = |fd, spec: Spec| {
            let map = Map::adopt(fd, &spec);
            map.and_then(Table::of).map_err(|error| Error::Map(spec.name, error))
        };
        Self::with([adopt(fd_four, four)?, adopt(fd_six, six)?])
    }

    /// Whether they are of this size.
    #[must_use]
    pub fn fits(&self, limits: Limits) -> bool {
        let fits = |(table, spec): (&Table, Spec)| table.map.entries() == spec.entries as usize;
        self.tables.iter().zip(specs(limits)).all(fits)
    }

    /// Descriptors for another process, of IPv4 and of IPv6.
    ///
    /// # Errors
    /// EMFILE.
    pub fn share(&self) -> io::Result<[OwnedFd; 2]> {
        let [four, six] = &self.tables;
        Ok([four.map.share()?, six.map.share()?])
    }

    /// Descriptors for the program: of both tables, and of what says who makes room.
    pub(super) fn descriptors(&self) -> ([RawFd; 2], RawFd) {
        let raw = |table: &Table| table.map.as_fd().as_raw_fd();
        (self.tables.each_ref().map(raw), raw(&self.rests))
    }

    /// Buckets of each table.
    pub(super) fn buckets(&self) -> [u32; 2] {
        let count = |table: &Table| u32::try_from(table.map.entries()).unwrap_or(u32::MAX);
        self.tables.each_ref().map(count)
    }

    /// Says how long flows may rest, by which the choice goes who makes room.
    pub fn set_timeouts(&self, timeouts: &Timeouts) {
        for (class, timeouts) in timeouts.iter().enumerate() {
            for (state, timeout) in State::ALL.into_iter().zip(timeouts) {
                let at = 2 * (class << KIND_CLASS_SHIFT | state as usize);
                let [weight, bias] = rest(state, *timeout);
                self.rests.store(at, weight);
                self.rests.store(at + 1, bias);
            }
        }
    }

    /// Tells of a flow that the packet socket has scheduled; false when there is no room for it. `now` is the program's
    /// clock.
    pub fn remember(&self, key: &FlowKey, flow: Flow, now: u32) -> bool {
        let Some(search) = self.search(key) else { return false };
        (0..TRIES).any(|_| {
            let place = search.find().or_else(|| search.room(&self.rests, now));
            place.is_some_and(|place| search.take(place, flow))
        })
    }

    /// Forgets a flow.
    pub fn forget(&self, key: &FlowKey) {
        let Some(search) = self.search(key) else { return };
        // Two CPUs may have remembered it at the same moment, each in a place of its own.
        for _ in 0..TRIES {
            let Some(place) = search.find() else { return };
            place.free(search.table, search.family);
        }
    }

    /// What is remembered of a flow.
    #[must_use]
    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        let search = self.search(key)?;
        search.find().map(|place| search.flow(place))
    }

    /// Hands every flow to `each`. Those that come and go meanwhile may be missed.
    pub fn for_each_flow(&self, mut each: impl FnMut(FlowKey, Flow)) {
        self.retain(|key, flow| {
            each(key, flow);
            true
        });
    }

    /// Forgets the flows of which `keep` says no.
    pub fn retain(&self, mut keep: impl FnMut(FlowKey, Flow) -> bool) {
        for (table, family) in self.tables.iter().zip(Family::ALL) {
            for bucket in 0..table.map.entries() {
                for place in 0..family.places() {
                    let at = bucket * family.bucket_words() + place * family.place_words();
                    let place = Place::read(table, family, at);
                    if let Some((key, place, seen)) = place
                        && !keep(key, place.flow(seen))
                    {
                        place.free(table, family);
                    }
                }
            }
        }
    }

    fn search(&self, key: &FlowKey) -> Option<Search<'_>> {
        let (family, words) = (key.family(), key.words());
        let table = &self.tables[family as usize];
        let buckets = buckets(family, &words, table.map.entries());
        let kind = KIND_LIVE | class(key.protocol)? << KIND_CLASS_SHIFT;
        Some(Search { table, family, words, kind, buckets })
    }

    /// Writes when a flow was seen, and nothing else.
    #[cfg(test)]
    pub(super) fn set_seen(&self, key: &FlowKey, seen: u32) {
        let search = self.search(key).expect("a protocol with flows");
        let at = search.find().expect("remembered").at + search.family.address_words();
        let ports = search.words[search.family.address_words()];
        search.table.store(at, with_seen(ports, seen));
    }
}

/// The buckets of a flow.
fn buckets(family: Family, words: &[u64; 5], count: usize) -> [usize; 2] {
    let each = words.iter().zip(HASH).take(family.key_words());
    let sum = each.fold(0_u64, |sum, (word, by)| sum.wrapping_add(word.wrapping_mul(by)));
    let hash = (sum ^ sum >> 32).wrapping_mul(HASH[0]);
    let place = |half: u64| {
        let place = ((half & u64::from(u32::MAX)) * count as u64) >> 32;
        usize::try_from(place).unwrap_or_default()
    };
    [place(hash >> 32), place(hash)]
}

/// A word with a place's ports, which are those of the key's word, and time.
fn with_seen(ports: u64, seen: u32) -> u64 {
    let [a, b, c, d, ..] = ports.to_ne_bytes();
    let [e, f, g, h] = seen.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Ports and time of such a word.
fn ports_and_seen(word: u64) -> ([u8; 4], u32) {
    let [a, b, c, d, seen @ ..] = word.to_ne_bytes();
    ([a, b, c, d], u32::from_ne_bytes(seen))
}

/// A flow's key where it would be.
struct Search<'a> {
    table: &'a Table,
    family: Family,
    words: [u64; 5],
    /// What its mark says besides the state.
    kind: u8,
    buckets: [usize; 2],
}

impl Search<'_> {
    fn at(&self, bucket: usize, place: usize) -> usize {
        let bucket = self.buckets.get(bucket).copied().unwrap_or_default();
        bucket * self.family.bucket_words() + place * self.family.place_words()
    }

    /// The word with ports and time; the mark follows.
    fn ports(&self, at: usize) -> usize {
        at + self.family.address_words()
    }

    fn mark(&self, at: usize) -> Option<&AtomicU64> {
        self.table.word(self.ports(at) + 1)
    }

    /// Where the flow is.
    fn find(&self) -> Option<Place> {
        let places = |bucket| (0..self.family.places()).map(move |place| self.at(bucket, place));
        [0, 1].into_iter().flat_map(places).find_map(|at| self.here(at))
    }

    fn here(&self, at: usize) -> Option<Place> {
        let word = self.mark(at)?;
        let before = word.load(Acquire);
        let mark = Mark::decode(before);
        let (addresses, rest) = self.words.split_at_checked(self.family.address_words())?;
        let (ports, _) = ports_and_seen(self.table.load(self.ports(at)));
        let is = mark.kind & !KIND_STATE == self.kind
            && ports == ports_and_seen(*rest.first()?).0
            && (at..).zip(addresses).all(|(at, word)| self.table.load(at) == *word);
        fence(Acquire);
        (is && word.load(Relaxed) == before).then_some(Place { at, mark })
    }

    fn flow(&self, place: Place) -> Flow {
        place.flow(ports_and_seen(self.table.load(self.ports(place.at))).1)
    }

    /// A place for it: the first that is free or whose flow is over, else that whose flow is missed least, if any may go.
    fn room(&self, rests: &Table, now: u32) -> Option<Place> {
        let mut best = None;
        let mut most = u64::from(STAYS.cast_unsigned());
        for (bucket, place) in self.family.order() {
            let at = self.at(bucket, place);
            let mark = Mark::decode(self.mark(at)?.load(Acquire));
            if mark.kind == 0 {
                return Some(Place { at, mark });
            }
            if mark.kind & KIND_BUSY != 0 {
                continue;
            }
            let (_, seen) = ports_and_seen(self.table.load(self.ports(at)));
            let rested = now.wrapping_sub(seen);
            // Less than nothing: another CPU has just seen it.
            if rested >= 1 << 31 {
                continue;
            }
            let rest = 2 * usize::from(mark.kind & KIND_REST);
            let score = u64::from(rested).saturating_mul(rests.load(rest));
            if score >> OVER_BITS != 0 {
                return Some(Place { at, mark });
            }
            let score = score + rests.load(rest + 1);
            if score >= most {
                (best, most) = (Some(Place { at, mark }), score + 1);
            }
        }
        best
    }

    /// Takes a place for the flow; false when somebody else was quicker.
    fn take(&self, place: Place, flow: Flow) -> bool {
        let Some(word) = self.mark(place.at) else { return false };
        let busy = Mark {
            slot: flow.slot,
            generation: flow.generation,
            version: place.mark.version.wrapping_add(1),
            kind: KIND_BUSY,
            shown: u8::try_from(flow.seen >> SHOWN_SHIFT & 0xff).unwrap_or_default(),
        };
        let (from, to) = (place.mark.encode(), busy.encode());
        if word.compare_exchange(from, to, AcqRel, Relaxed).is_err() {
            return false;
        }
        let (addresses, rest) = self.words.split_at(self.family.address_words());
        (place.at..).zip(addresses).for_each(|(at, word)| self.table.store(at, *word));
        let ports = rest.first().copied().unwrap_or_default();
        self.table.store(self.ports(place.at), with_seen(ports, flow.seen));
        let kind = self.kind | u8::try_from(flow.state as u32).unwrap_or_default();
        word.store(Mark { kind, ..busy }.encode(), Release);
        true
    }
}

#[cfg(test)]
mod tests;

//! The indexing tables (RFC 7541 section 2.3), the dynamic one within its size.

use std::collections::VecDeque;

use super::fixed::ENTRIES;

/// What an entry costs beyond its bytes (RFC 7541 section 4.1).
pub(super) const OVERHEAD: usize = 32;

/// Where a field lies in the bytes: they are appended at the end and moved to the front at times.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: usize,
    name_len: usize,
    value_len: usize,
}

impl Entry {
    fn size(self) -> usize {
        self.name_len + self.value_len + OVERHEAD
    }
}

/// A dynamic table. Memory: about twice its maximum size, whatever is done with it.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    size: usize,
    max: usize,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: Vec::new(), size: 0, max }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Changes the maximum, dropping what no longer fits; how many entries that were.
    pub(super) fn set_max(&mut self, max: usize) -> usize {
        self.max = max;
        self.make_room(0)
    }

    /// The field of this index, static entries first; `None` beyond the table.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let index = index.checked_sub(1)?;
        if let Some(&field) = ENTRIES.get(index) {
            return Some(field);
        }
        self.dynamic(index - ENTRIES.len())
    }

    /// The dynamic entry of this number, 0 being the newest.
    pub(super) fn dynamic(&self, number: usize) -> Option<(&[u8], &[u8])> {
        let entry = self.entries.get(number)?;
        let bytes = self.bytes.get(entry.start..entry.start + entry.name_len + entry.value_len)?;
        bytes.split_at_checked(entry.name_len)
    }

    /// Adds a field and drops the oldest ones; one that is larger than the table empties it. Returns
    /// how many were dropped, and whether it was added.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) -> (usize, bool) {
        let size = name.len() + value.len() + OVERHEAD;
        let dropped = self.make_room(size);
        if size > self.max {
            return (dropped, false);
        }
        self.compact();
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        let entry = Entry { start, name_len: name.len(), value_len: value.len() };
        self.entries.push_front(entry);
        self.size += size;
        (dropped, true)
    }

    fn make_room(&mut self, size: usize) -> usize {
        let mut dropped = 0;
        while self.size + size > self.max {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size();
            dropped += 1;
        }
        dropped
    }

    /// Moves the bytes to the front once as many are dead as may be alive.
    fn compact(&mut self) {
        let alive = self.entries.back().map_or(self.bytes.len(), |entry| entry.start);
        if alive > self.max.max(256) {
            self.bytes.drain(..alive);
            self.entries.iter_mut().for_each(|entry| entry.start -= alive);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let mut table = Table::new(100);
        assert_eq!(table.insert(b"a", b"1"), (0, true));
        assert_eq!(table.insert(b"b", b"2"), (0, true));
        assert_eq!(table.insert(b"c", b"3"), (1, true));
        assert_eq!(table.get(62), Some((&b"c"[..], &b"3"[..])));
        assert_eq!(table.get(63), Some((&b"b"[..], &b"2"[..])));
        assert_eq!((table.get(64), table.get(0)), (None, None));
        assert_eq!(table.insert(&[b'x'; 70], b""), (2, false), "too large: emptied");
        assert_eq!((table.entries.len(), table.size), (0, 0));
    }

    #[test]
    fn memory_stays_bounded() {
        let mut table = Table::new(4096);
        for round in 0..100_000_u32 {
            let value = vec![b'v'; (round % 500) as usize];
            table.insert(&round.to_be_bytes(), &value);
            assert_eq!(table.get(62), Some((&round.to_be_bytes()[..], &value[..])));
        }
        assert!(table.bytes.capacity() < 4 * 4096, "{}", table.bytes.capacity());
    }
}

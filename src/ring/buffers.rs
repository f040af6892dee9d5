//! Receive buffers the kernel picks from (a provided buffer ring), and a free list of write buffers.
//!
//! The kernel takes a buffer only at the moment data arrives, so an idle connection holds none. The
//! pool starts with one segment and grows a segment at a time when it runs low, up to its bound; at
//! the bound, receives end with ENOBUFS and wait until buffers come back (see `ring::Ring`).
//!
//! Invariants:
//! - a buffer id is in exactly one place: on the ring (the kernel may write to it) or behind
//!   [`RecvBuf`]s, counted in `references` (the kernel may not);
//! - segments are freed only with the pool, and every [`RecvBuf`] keeps the pool alive.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::share::Pressure;

/// Bytes in a receive buffer. Smaller ones cost throughput on large bodies (4 KiB: 20 %).
pub const BUFFER_LEN: usize = 16 * 1024;

/// Buffers added at a time: 2 MiB, one huge page.
const SEGMENT_BUFFERS: u16 = 128;

/// The one buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// The most buffers a ring can be given (the kernel's limit on ring entries).
pub const BUFFERS_MAX: u16 = 32 * 1024;

/// The pool behind one ring's receives.
pub(super) struct BufferPool {
    /// The ring of entries shared with the kernel.
    entries: NonNull<BufRingEntry>,
    entries_layout: Layout,
    mask: u16,
    /// Our copy of the tail, which only we move.
    tail: Cell<u16>,
    /// Start of each segment; buffer `id` is in segment `id / SEGMENT_BUFFERS`.
    segments: RefCell<Vec<NonNull<u8>>>,
    /// For each buffer, how many `RecvBuf`s share it; 0 while it is on the ring.
    references: RefCell<Vec<u16>>,
    /// Buffers on the ring, as far as the completions seen so far tell.
    available: Cell<u16>,
    /// Most buffers the pool may have.
    limit: u16,
}

impl BufferPool {
    /// A pool of `initial` buffers that may grow to `limit`.
    pub(super) fn new(initial: u16, limit: u16) -> Rc<Self> {
        let limit = limit.clamp(16, BUFFERS_MAX);
        let entries = limit.next_power_of_two();
        let layout = entries_layout(entries);
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        let pool = Self {
            entries: memory.cast(),
            entries_layout: layout,
            mask: entries - 1,
            tail: Cell::new(0),
            segments: RefCell::new(Vec::new()),
            references: RefCell::new(Vec::new()),
            available: Cell::new(0),
            limit,
        };
        while pool.len() < initial.min(limit) && pool.grow(true) {}
        Rc::new(pool)
    }

    /// Tells the kernel about the ring of buffers.
    pub(super) fn register(&self, ring: &IoUring) -> io::Result<()> {
        let address = self.entries.as_ptr() as u64;
        // SAFETY: `entries` is page-aligned memory for `mask + 1` entries; the pool frees it only
        // after the ring is closed (`ring::Ring` drops its ring first), and nothing but
        // `publish` writes to it.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, self.mask + 1, GROUP, 0) }
    }

    fn len(&self) -> u16 {
        u16::try_from(self.references.borrow().len()).unwrap_or(u16::MAX)
    }

    /// Buffers that the kernel can still take.
    pub(super) fn available(&self) -> u16 {
        self.available.get()
    }

    /// Buffers in all.
    pub(super) fn capacity(&self) -> u16 {
        self.len()
    }

    /// Buffers that hold something.
    pub(super) fn used(&self) -> u16 {
        self.len().saturating_sub(self.available.get())
    }

    /// Buffers there may be.
    pub(super) fn limit(&self) -> u16 {
        self.limit
    }

    /// How scarce they are.
    pub(super) fn pressure(&self) -> Pressure {
        Pressure::of(self.used(), self.limit)
    }

    /// Adds a segment when little is left, and as many as make `short` buffers more; none beyond the bound.
    pub(super) fn top_up(&self, short: usize) {
        let enough = usize::from(self.len()) + short;
        let is_low = || self.available.get() < SEGMENT_BUFFERS / 4;
        // A huge page would be zeroed at its first use, all 2 MiB at once: milliseconds in a guest whose host has to find
        // the memory, and everybody waits.
        while (usize::from(self.len()) < enough || is_low()) && self.grow(false) {}
    }

    fn grow(&self, huge: bool) -> bool {
        let first = self.len();
        if first >= self.limit {
            return false;
        }
        let layout = segment_layout();
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { alloc(layout) };
        let Some(memory) = NonNull::new(memory) else { return false };
        // A huge page saves TLB misses when the kernel walks through the buffers. It is only advice.
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the range is the allocation just made; the advice does not change its contents.
        unsafe {
            libc::madvise(memory.as_ptr().cast(), layout.size(), advice);
        }
        self.segments.borrow_mut().push(memory);
        for id in first..(first + SEGMENT_BUFFERS).min(self.limit) {
            self.references.borrow_mut().push(0);
            self.publish(id);
        }
        true
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        let segment = self.segments.borrow()[usize::from(id / SEGMENT_BUFFERS)];
        let offset = usize::from(id % SEGMENT_BUFFERS) * BUFFER_LEN;
        // SAFETY: a segment holds SEGMENT_BUFFERS buffers of BUFFER_LEN bytes, so the offset stays
        // inside the allocation.
        unsafe { segment.add(offset) }
    }

    /// Gives a buffer to the kernel.
    fn publish(&self, id: u16) {
        let tail = self.tail.get();
        let buffer = self.buffer(id);
        // SAFETY: the masked index is inside the ring of `mask + 1` entries. Entries at and after
        // the tail belong to us until the store below hands them over; since a ring has at least
        // as many entries as there are buffers, it never overtakes the kernel's head.
        let entry = unsafe { &mut *self.entries.as_ptr().add(usize::from(tail & self.mask)) };
        entry.set_addr(buffer.as_ptr() as u64);
        #[allow(clippy::cast_possible_truncation)] // 16 KiB
        entry.set_len(BUFFER_LEN as u32);
        entry.set_bid(id);
        let tail = tail.wrapping_add(1);
        self.tail.set(tail);
        // SAFETY: the tail is a u16 inside the first entry's reserved field (io_uring_buf_ring), so
        // it is valid and aligned; the kernel only reads it. Release orders the entry before it.
        let shared =
            unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        shared.store(tail, Ordering::Release);
        self.available.set(self.available.get() + 1);
    }

    /// Takes over a buffer that a completion says the kernel has filled with `len` bytes.
    pub(super) fn take(self: &Rc<Self>, id: u16, len: u32) -> Option<RecvBuf> {
        let mut references = self.references.borrow_mut();
        let count = references.get_mut(usize::from(id))?;
        debug_assert_eq!(*count, 0, "the kernel owned the buffer");
        *count = 1;
        self.available.set(self.available.get().saturating_sub(1));
        let len = len.min(u32::try_from(BUFFER_LEN).unwrap_or(u32::MAX));
        Some(RecvBuf { pool: Rc::clone(self), id, start: 0, len })
    }

    fn release(&self, id: u16) {
        let mut references = self.references.borrow_mut();
        let count = &mut references[usize::from(id)];
        *count -= 1;
        if *count == 0 {
            drop(references);
            self.publish(id);
        }
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        for segment in self.segments.get_mut().drain(..) {
            // SAFETY: allocated in `grow` with this layout; no `RecvBuf` is left (each holds the
            // pool), and the ring whose kernel side wrote here was closed before (see `register`).
            unsafe { dealloc(segment.as_ptr(), segment_layout()) };
        }
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.entries_layout) };
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("capacity", &self.len())
            .field("available", &self.available.get())
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

fn entries_layout(entries: u16) -> Layout {
    let size = usize::from(entries) * size_of::<BufRingEntry>();
    Layout::from_size_align(size, 4096).expect("at most 32,768 entries of 16 bytes, page-aligned")
}

fn segment_layout() -> Layout {
    let size = usize::from(SEGMENT_BUFFERS) * BUFFER_LEN;
    Layout::from_size_align(size, size).expect("2 MiB, aligned to itself")
}

/// Received bytes, in the buffer the kernel put them into; the buffer goes back when the last part
/// of it is dropped.
pub struct RecvBuf {
    pool: Rc<BufferPool>,
    id: u16,
    start: u32,
    len: u32,
}

impl RecvBuf {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        let start = self.pool.buffer(self.id);
        // SAFETY: the kernel wrote the first `start + len` bytes of this buffer (`take` caps them
        // at its size, the other methods only narrow the range) and does not own it while we hold
        // a reference; nothing else writes to it.
        unsafe {
            std::slice::from_raw_parts(start.as_ptr().add(self.start as usize), self.len as usize)
        }
    }

    /// Drops the first `n` bytes (all of them when there are fewer).
    pub fn advance(&mut self, n: usize) {
        let n = u32::try_from(n).unwrap_or(u32::MAX).min(self.len);
        self.start += n;
        self.len -= n;
    }

    /// Takes off the first `n` bytes (all of them when there are fewer) without copying.
    #[must_use]
    pub fn split_to(&mut self, n: usize) -> Self {
        let n = u32::try_from(n).unwrap_or(u32::MAX).min(self.len);
        self.pool.references.borrow_mut()[usize::from(self.id)] += 1;
        let front = Self { pool: Rc::clone(&self.pool), id: self.id, start: self.start, len: n };
        self.advance(n as usize);
        front
    }
}

impl Drop for RecvBuf {
    fn drop(&mut self) {
        self.pool.release(self.id);
    }
}

impl fmt::Debug for RecvBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBuf").field("id", &self.id).field("len", &self.len).finish()
    }
}

/// Write buffers kept for reuse; larger ones are freed rather than kept.
const WRITE_BUFFER_CAPACITY: usize = 4096;
const WRITE_BUFFER_CAPACITY_MAX: usize = 64 * 1024;
const WRITE_BUFFERS_KEPT: usize = 1024;

/// A free list of byte vectors for heads and other small output.
#[derive(Debug, Default)]
pub(super) struct WriteBuffers(RefCell<Vec<Vec<u8>>>);

impl WriteBuffers {
    pub(super) fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(WRITE_BUFFER_CAPACITY))
    }

    pub(super) fn put(&self, mut buffer: Vec<u8>) {
        let mut kept = self.0.borrow_mut();
        let capacity = buffer.capacity();
        let reusable = (WRITE_BUFFER_CAPACITY..=WRITE_BUFFER_CAPACITY_MAX).contains(&capacity);
        if reusable && kept.len() < WRITE_BUFFERS_KEPT {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_buffer_goes_back_once_both_parts_are_gone() {
        let pool = BufferPool::new(16, 16);
        assert_eq!(pool.available(), 16);
        let mut whole = pool.take(3, 10).expect("a buffer of the pool");
        assert_eq!(pool.available(), 15);
        let front = whole.split_to(4);
        assert_eq!((front.as_slice().len(), whole.as_slice().len()), (4, 6));
        drop(front);
        assert_eq!(pool.available(), 15);
        drop(whole);
        assert_eq!(pool.available(), 16);
    }

    #[test]
    fn splitting_past_the_end_takes_what_is_there() {
        let pool = BufferPool::new(16, 16);
        let mut whole = pool.take(0, 10).expect("a buffer of the pool");
        let front = whole.split_to(99);
        assert_eq!((front.as_slice().len(), whole.as_slice().len()), (10, 0));
        whole.advance(5);
        assert!(whole.as_slice().is_empty());
    }

    #[test]
    fn the_pool_grows_to_its_bound_and_no_further() {
        let pool = BufferPool::new(16, 200);
        let mut held = Vec::new();
        for _ in 0..200 {
            pool.top_up(0);
            let id = u16::try_from(held.len()).expect("200 at most");
            held.push(pool.take(id, 1).expect("a buffer of the pool"));
        }
        assert_eq!((pool.capacity(), pool.available()), (200, 0));
        pool.top_up(5);
        assert_eq!((pool.used(), pool.pressure()), (200, Pressure::Scarce));
        held.clear();
        assert_eq!(pool.available(), 200);
        assert_eq!((pool.used(), pool.pressure()), (0, Pressure::Low));
    }

    #[test]
    fn it_grows_by_what_was_short() {
        let pool = BufferPool::new(16, 4096);
        for (short, segments) in [(0, 1), (1, 2), (128, 3), (1000, 11), (0, 11), (9999, 32)] {
            pool.top_up(short);
            assert_eq!(pool.capacity(), segments * SEGMENT_BUFFERS, "short of {short}");
        }
    }

    #[test]
    fn a_buffer_id_the_pool_never_gave_out_is_no_buffer() {
        let pool = BufferPool::new(16, 16);
        assert!(pool.take(99, 1).is_none());
    }
}

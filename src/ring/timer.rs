//! Timers of one ring: a hashed wheel with lazy re-insertion.
//!
//! A connection moves its deadline several times a request and almost never lets it pass, so moving
//! a deadline *later* only stores a number; the entry is put into its right place when the old one
//! comes up. Only a deadline that moves *earlier* than the entry's place is re-linked.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::Ring;

/// Milliseconds per slot: how late a timer may fire, on top of scheduling.
const SLOT_MS: u64 = 4;
/// Slots in the wheel (a multiple of 64); later deadlines wait in the last slot and are looked at again.
const SLOTS: usize = 4096;
const SLOTS_U64: u64 = SLOTS as u64;
const NONE: u32 = u32::MAX;

/// Milliseconds on the ring's clock (`CLOCK_MONOTONIC` since the ring's epoch).
pub type Millis = u64;

#[derive(Debug)]
struct Entry {
    /// When to fire; `Millis::MAX` for a timer that is not set.
    deadline: Millis,
    /// The tick whose slot the entry is linked into; `u64::MAX` when it is not linked.
    tick: u64,
    previous: u32,
    next: u32,
    fired: bool,
    waker: Option<Waker>,
}

/// The wheel; pure but for the wakers it calls.
#[derive(Debug)]
pub(super) struct Wheel {
    entries: Slab<Entry>,
    heads: Box<[u32]>,
    /// One bit a slot that is not empty.
    occupied: Box<[u64]>,
    /// The next tick to be looked at.
    current: u64,
}

impl Wheel {
    pub(super) fn new(now: Millis) -> Self {
        Self {
            entries: Slab::new(),
            heads: vec![NONE; SLOTS].into(),
            occupied: vec![0; SLOTS / 64].into(),
            current: now / SLOT_MS,
        }
    }

    fn insert(&mut self) -> usize {
        self.entries.insert(Entry {
            deadline: Millis::MAX,
            tick: u64::MAX,
            previous: NONE,
            next: NONE,
            fired: false,
            waker: None,
        })
    }

    fn remove(&mut self, key: usize) {
        self.unlink(key);
        self.entries.remove(key);
    }

    fn set(&mut self, key: usize, deadline: Millis) {
        let entry = &mut self.entries[key];
        entry.deadline = deadline;
        entry.fired = false;
        if deadline == Millis::MAX {
            return; // unlinked when its old place comes up
        }
        let tick = deadline.div_ceil(SLOT_MS);
        if entry.tick == u64::MAX || tick < entry.tick {
            self.unlink(key);
            self.link(key, tick);
        }
    }

    fn link(&mut self, key: usize, tick: u64) {
        let tick = tick.clamp(self.current, self.current + SLOTS_U64 - 1);
        let slot = slot_of(tick);
        let head = self.heads[slot];
        let key_u32 = u32::try_from(key).unwrap_or(NONE);
        let entry = &mut self.entries[key];
        entry.tick = tick;
        entry.previous = NONE;
        entry.next = head;
        if let Some(next) = self.entries.get_mut(head as usize) {
            next.previous = key_u32;
        }
        self.heads[slot] = key_u32;
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    fn unlink(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if entry.tick == u64::MAX {
            return;
        }
        let (slot, previous, next) = (slot_of(entry.tick), entry.previous, entry.next);
        entry.tick = u64::MAX;
        if let Some(next) = self.entries.get_mut(next as usize) {
            next.previous = previous;
        }
        match self.entries.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.heads[slot] = next,
        }
        if self.heads[slot] == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
    }

    /// Fires what is due at `now` and puts what was moved into its new place.
    pub(super) fn advance(&mut self, now: Millis) {
        let end = now / SLOT_MS;
        // After a long sleep every slot is looked at once, not every tick.
        let last = end.min(self.current + SLOTS_U64 - 1);
        for tick in self.current..=last {
            self.current = tick;
            if self.occupied[slot_of(tick) / 64] >> (slot_of(tick) % 64) & 1 == 1 {
                self.expire_slot(slot_of(tick), now, end);
            }
        }
        self.current = self.current.max(end + 1);
    }

    fn expire_slot(&mut self, slot: usize, now: Millis, end: u64) {
        let mut key = std::mem::replace(&mut self.heads[slot], NONE);
        self.occupied[slot / 64] &= !(1 << (slot % 64));
        // `link` must not put an entry back behind us.
        let resume = std::mem::replace(&mut self.current, end + 1);
        while key != NONE {
            let index = key as usize;
            let entry = &mut self.entries[index];
            key = entry.next;
            entry.tick = u64::MAX;
            if entry.deadline <= now {
                entry.deadline = Millis::MAX;
                entry.fired = true;
                if let Some(waker) = entry.waker.take() {
                    waker.wake();
                }
            } else if entry.deadline != Millis::MAX {
                let tick = entry.deadline.div_ceil(SLOT_MS);
                self.link(index, tick);
            }
        }
        self.current = resume;
    }

    /// When [`Wheel::advance`] has something to do next; `None`: never.
    pub(super) fn next_wake(&self) -> Option<Millis> {
        let start = slot_of(self.current);
        let words = self.occupied.len();
        for step in 0..=words {
            let word = (start / 64 + step) % words;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            } else if step == words {
                bits &= !(u64::MAX << (start % 64));
            }
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - start) % SLOTS;
                return Some((self.current + ahead as u64) * SLOT_MS);
            }
        }
        None
    }
}

#[allow(clippy::cast_possible_truncation)] // below SLOTS
fn slot_of(tick: u64) -> usize {
    (tick % SLOTS_U64) as usize
}

/// A deadline that a task sets, moves and clears; nothing happens but that the task is woken.
#[derive(Debug)]
pub struct Timer {
    ring: Rc<Ring>,
    key: usize,
}

impl Timer {
    /// A timer that is not set.
    #[must_use]
    pub fn new(ring: &Rc<Ring>) -> Self {
        let key = wheel(ring).borrow_mut().insert();
        Self { ring: Rc::clone(ring), key }
    }

    /// Fires `after_ms` from now; forgets an earlier firing.
    pub fn set(&self, after_ms: u64) {
        let deadline = self.ring.now().saturating_add(after_ms).min(Millis::MAX - 1);
        wheel(&self.ring).borrow_mut().set(self.key, deadline);
    }

    /// Will not fire.
    pub fn clear(&self) {
        wheel(&self.ring).borrow_mut().set(self.key, Millis::MAX);
    }

    /// True once the deadline has passed, until the timer is set or cleared.
    #[must_use]
    pub fn has_fired(&self) -> bool {
        wheel(&self.ring).borrow().entries[self.key].fired
    }

    /// Ready once the deadline has passed.
    pub fn poll_fired(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut wheel = wheel(&self.ring).borrow_mut();
        let entry = &mut wheel.entries[self.key];
        if entry.fired {
            return Poll::Ready(());
        }
        keep_waker(&mut entry.waker, cx);
        Poll::Pending
    }

    /// Waits for the deadline.
    pub async fn fired(&self) {
        std::future::poll_fn(|cx| self.poll_fired(cx)).await;
    }

    /// Runs `future` until it is done or the deadline passes; the future is polled first, so that
    /// what has arrived in time is never lost to a late wake-up.
    pub fn guard<F: Future + Unpin>(&self, future: F) -> Guard<'_, F> {
        Guard { timer: self, future }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        wheel(&self.ring).borrow_mut().remove(self.key);
    }
}

fn wheel(ring: &Ring) -> &RefCell<Wheel> {
    &ring.wheel
}

/// Stores the task's waker unless the one stored already wakes it.
pub fn keep_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}

/// The deadline passed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

/// See [`Timer::guard`].
#[derive(Debug)]
pub struct Guard<'a, F> {
    timer: &'a Timer,
    future: F,
}

impl<F: Future + Unpin> Future for Guard<'_, F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = Pin::new(&mut self.future).poll(cx) {
            return Poll::Ready(Ok(output));
        }
        self.timer.poll_fired(cx).map(|()| Err(Elapsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(wheel: &Wheel, key: usize) -> bool {
        wheel.entries[key].fired
    }

    #[test]
    fn a_timer_fires_at_its_deadline_and_not_before() {
        let mut wheel = Wheel::new(0);
        let key = wheel.insert();
        wheel.set(key, 1001);
        wheel.advance(1000);
        assert!(!fired(&wheel, key));
        wheel.advance(1001 + SLOT_MS);
        assert!(fired(&wheel, key));
        assert_eq!(wheel.next_wake(), None);
    }

    #[test]
    fn moving_later_is_lazy_and_moving_earlier_is_not() {
        let mut wheel = Wheel::new(0);
        let key = wheel.insert();
        wheel.set(key, 100);
        wheel.set(key, 5000);
        wheel.advance(200);
        assert!(!fired(&wheel, key));
        wheel.set(key, 300);
        wheel.advance(304);
        assert!(fired(&wheel, key));
    }

    #[test]
    fn a_cleared_timer_does_not_fire_and_stops_waking_the_ring() {
        let mut wheel = Wheel::new(0);
        let key = wheel.insert();
        wheel.set(key, 100);
        wheel.set(key, Millis::MAX);
        wheel.advance(1000);
        assert!(!fired(&wheel, key));
        assert_eq!(wheel.next_wake(), None);
    }

    #[test]
    fn deadlines_beyond_the_wheel_fire_on_time() {
        let mut wheel = Wheel::new(0);
        let key = wheel.insert();
        wheel.set(key, 3_600_000);
        let mut now = 0;
        while let Some(wake) = wheel.next_wake() {
            assert!(wake >= now && wake <= 3_600_000 + SLOT_MS, "wakes at {wake}");
            now = wake.max(now + 1);
            wheel.advance(now);
        }
        assert!(fired(&wheel, key) && now >= 3_600_000);
    }

    #[test]
    fn a_long_sleep_fires_everything_that_was_due() {
        let mut wheel = Wheel::new(0);
        let keys: Vec<usize> = (0..100).map(|_| wheel.insert()).collect();
        for (i, &key) in keys.iter().enumerate() {
            wheel.set(key, 500 * i as u64);
        }
        wheel.advance(1_000_000);
        assert!(keys.iter().all(|&key| fired(&wheel, key)));
    }

    #[test]
    fn removing_the_middle_of_a_slot_keeps_the_others() {
        let mut wheel = Wheel::new(0);
        let keys = [wheel.insert(), wheel.insert(), wheel.insert()];
        for key in keys {
            wheel.set(key, 100);
        }
        wheel.remove(keys[1]);
        wheel.advance(104);
        assert!(fired(&wheel, keys[0]) && fired(&wheel, keys[2]));
    }

    proptest::proptest! {
        #[test]
        fn it_agrees_with_a_list(ops in proptest::collection::vec((0usize..8, 0u64..40_000, 0u64..3_000), 1..200)) {
            let mut wheel = Wheel::new(0);
            let keys: Vec<usize> = (0..8).map(|_| wheel.insert()).collect();
            let mut deadlines = [None; 8];
            let mut now = 0;
            for (timer, after, step) in ops {
                wheel.set(keys[timer], now + after);
                deadlines[timer] = Some(now + after);
                now += step;
                wheel.advance(now);
                for (i, deadline) in deadlines.iter_mut().enumerate() {
                    let has_fired = fired(&wheel, keys[i]);
                    if let Some(due) = *deadline {
                        proptest::prop_assert!(!has_fired || due <= now, "early");
                        proptest::prop_assert!(has_fired || due + SLOT_MS > now, "late: {} at {}", due, now);
                    }
                    if has_fired {
                        *deadline = None;
                    }
                }
            }
        }
    }
}

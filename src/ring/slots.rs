//! Memory for futures that are large, soon over and all of one kind, kept for the next ones.
//!
//! What a task awaits is part of the task, for as long as the task lives. A connection is idle for most of
//! its life, so its requests are served in memory that it only has meanwhile.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

use crate::sys::memory::prefetch_all;

/// Places for futures of one layout; those of another have memory of their own.
///
/// Invariant: what is in `free` was allocated with `layout` and nothing points to it any more.
pub struct Slots {
    layout: Cell<Layout>,
    free: RefCell<Vec<NonNull<u8>>>,
    /// Free places kept.
    max: usize,
}

impl Slots {
    /// No places yet; at most `max` free ones are kept.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { layout: Cell::new(Layout::new::<()>()), free: RefCell::default(), max }
    }

    /// Puts a future into a place, which is given back when what is returned is dropped.
    #[inline]
    pub fn hold<F: Future>(&self, future: F) -> Held<'_, F> {
        self.hold_beside(std::ptr::null::<()>(), future)
    }

    /// The same for a future that works on this value: each poll asks the cache for both. The value is not read.
    #[inline]
    pub fn hold_beside<F: Future, B>(&self, value: *const B, future: F) -> Held<'_, F, B> {
        let place = self.take(layout_of::<F>()).cast::<F>();
        // SAFETY: the place has the size and alignment of an `F` and nothing else points to it.
        unsafe { place.write(future) };
        Held { slots: self, place, beside: value }
    }

    fn take(&self, layout: Layout) -> NonNull<u8> {
        let mut free = self.free.borrow_mut();
        if self.layout.get() == layout {
            if let Some(place) = free.pop() {
                return place;
            }
        } else if free.is_empty() {
            self.layout.set(layout);
        }
        // SAFETY: the layout's size is not zero (`layout_of`).
        let place = unsafe { alloc(layout) };
        NonNull::new(place).unwrap_or_else(|| handle_alloc_error(layout))
    }

    fn put(&self, place: NonNull<u8>, layout: Layout) {
        let mut free = self.free.borrow_mut();
        if self.layout.get() == layout && free.len() < self.max {
            free.push(place);
        } else {
            // SAFETY: `take` allocated the place with this layout, its owner is gone and it is not in `free`.
            unsafe { dealloc(place.as_ptr(), layout) };
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for place in self.free.take() {
            // SAFETY: what is in `free` was allocated with `layout` and nothing points to it.
            unsafe { dealloc(place.as_ptr(), self.layout.get()) };
        }
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("free", &self.free.borrow().len()).finish_non_exhaustive()
    }
}

/// The layout of an `F`, of one byte at least.
fn layout_of<F>() -> Layout {
    let layout = Layout::new::<F>();
    if layout.size() > 0 { layout } else { Layout::new::<u8>() }
}

/// A future in a place.
///
/// Invariant: `place` holds an `F` that does not move until it is dropped with this.
pub struct Held<'a, F, B = ()> {
    slots: &'a Slots,
    place: NonNull<F>,
    /// What the future works on.
    beside: *const B,
}

impl<F: Future, B> Future for Held<'_, F, B> {
    type Output = F::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // With hundreds of connections this memory has left the cache since the last poll.
        prefetch_all(self.place.as_ptr().cast(), size_of::<F>());
        prefetch_all(self.beside.cast(), size_of::<B>());
        // SAFETY: the place holds an `F`, which only this owns and borrows here.
        let future = unsafe { self.place.as_mut() };
        // SAFETY: it stays in its place until it is dropped there.
        unsafe { Pin::new_unchecked(future) }.poll(cx)
    }
}

impl<F, B> Drop for Held<'_, F, B> {
    fn drop(&mut self) {
        // SAFETY: the place holds an `F`, which nobody uses any more.
        unsafe { self.place.drop_in_place() };
        self.slots.put(self.place.cast(), layout_of::<F>());
    }
}

impl<F, B> fmt::Debug for Held<'_, F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;

    async fn give_back(large: [u64; 40], count: Rc<()>, wait: bool) -> (u64, usize) {
        let first = &large[0];
        if wait {
            pending::<()>().await;
        }
        (*first + large[39], Rc::strong_count(&count))
    }

    fn poll<F: Future, B>(held: &mut Held<'_, F, B>) -> Poll<F::Output> {
        Pin::new(held).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn places_are_used_again_and_futures_dropped_once() {
        let (slots, count) = (Slots::new(2), Rc::new(()));
        let places: Vec<_> = (0..3)
            .map(|n| {
                let mut held = slots.hold(give_back([n; 40], Rc::clone(&count), false));
                assert_eq!(poll(&mut held), Poll::Ready((2 * n, 2)));
                held.place
            })
            .collect();
        assert_eq!(places[0], places[2]);
        let waiting: Vec<_> = (0..4)
            .map(|n| {
                let mut held = slots.hold(give_back([n; 40], Rc::clone(&count), true));
                assert!(poll(&mut held).is_pending());
                held
            })
            .collect();
        assert_eq!(Rc::strong_count(&count), 5);
        drop(waiting);
        assert_eq!((Rc::strong_count(&count), slots.free.borrow().len()), (1, 2));
    }

    #[test]
    fn what_a_future_works_on_stays_its_own() {
        let (slots, mut value) = (Slots::new(2), [1_u64; 100]);
        let address = &raw const value;
        let mut held = slots.hold_beside(address, async {
            value[99] = 2;
            value.iter().sum::<u64>()
        });
        assert_eq!(poll(&mut held), Poll::Ready(101));
        drop(held);
        assert_eq!((value[99], slots.free.borrow().len()), (2, 1));
    }

    #[test]
    fn other_layouts_and_empty_futures_have_their_own_memory() {
        let slots = Slots::new(8);
        drop(slots.hold(give_back([1; 40], Rc::new(()), false)));
        let mut small = slots.hold(ready(7_u8));
        let mut empty = slots.hold(async {});
        assert_eq!((poll(&mut small), poll(&mut empty)), (Poll::Ready(7), Poll::Ready(())));
        drop((small, empty));
        assert_eq!(slots.free.borrow().len(), 1, "the large one's");
    }
}

//! A wake-up between tasks of one thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use super::timer::keep_waker;

/// Set by one task, waited for and taken by another. Several sets before it is taken count once.
#[derive(Debug, Default)]
pub struct Event {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Event {
    /// Sets it and wakes who waits.
    pub fn set(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ready, and no longer set, once it has been set.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.set.take() {
            return Poll::Ready(());
        }
        keep_waker(&mut self.waker.borrow_mut(), cx);
        Poll::Pending
    }

    /// Waits until it is set, and takes it.
    pub async fn take(&self) {
        poll_fn(|cx| self.poll_take(cx)).await;
    }
}

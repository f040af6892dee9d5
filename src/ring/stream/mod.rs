//! A connected TCP socket on the ring.
//!
//! Receiving is one multishot operation that stays armed while the connection is idle. A stream
//! whose reader falls behind is paused after `RECV_QUEUE_MAX` chunks and from then on receives a
//! buffer at a time, so that a slow reader holds little of the shared pool.
//!
//! Sending is a queue: [`Stream::write`] appends, the ring turns everything queued in a round into
//! one operation, and its completion starts the next. A task waits only when it wants the queue to
//! be short ([`Stream::poll_flushed`]).

mod connect;
mod queue;
mod receive;
mod send;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use io_uring::squeue;
use io_uring::types::Fd;

use super::{Ring, Tag, user_data};
use crate::sys::socket;
use connect::Connect;
use receive::Receive;
use send::Send;

/// The table entry of a stream: what the kernel may touch, and what the owner waits for.
pub(super) struct Inner {
    fd: Option<OwnedFd>,
    key: Cell<u32>,
    ring: Rc<Ring>,
    /// Operations of this stream that the kernel has not finished.
    in_flight: Cell<u8>,
    /// The handle is gone; the entry waits for its last completion.
    closed: Cell<bool>,
    recv: RefCell<Receive>,
    send: RefCell<Send>,
    /// While it is being connected.
    connect: RefCell<Option<Box<Connect>>>,
}

impl Inner {
    fn raw(&self) -> Fd {
        Fd(self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }

    /// Queues an operation of this stream. What it points to belongs to `self`, which the ring's
    /// table keeps until `in_flight` is back at zero.
    fn submit(&self, ring: &Ring, tag: Tag, entry: squeue::Entry) {
        self.in_flight.set(self.in_flight.get() + 1);
        ring.push(&entry.user_data(user_data(tag, self.key.get())));
    }

    /// One operation has had its last completion.
    fn finished(&self, ring: &Ring) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.remove_if_over(ring);
    }

    fn remove_if_over(&self, ring: &Ring) {
        if self.closed.get() && self.in_flight.get() == 0 {
            let entry = ring.streams.borrow_mut().try_remove(self.key.get() as usize);
            drop(entry); // outside the borrow: dropping it closes the descriptor through the ring
        }
    }

    /// Lets go of wakers, which are tied to the executor that is about to end.
    pub(super) fn abandon(&self) {
        self.recv.borrow_mut().waker = None;
        self.send.borrow_mut().waker = None;
        if let Some(connect) = self.connect.borrow_mut().as_mut() {
            connect.waker = None;
        }
    }

    fn close(&self) {
        self.closed.set(true);
        self.abandon();
        self.stop_receiving();
        self.stop_sending();
        self.stop_connecting();
        self.remove_if_over(&self.ring);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.ring.close(fd);
        }
    }
}

/// A connected TCP socket; dropping it cancels what is in flight and closes.
pub struct Stream(Rc<Inner>);

impl Stream {
    /// Takes over a connected socket.
    #[must_use]
    pub fn new(ring: &Rc<Ring>, fd: OwnedFd) -> Self {
        let inner = Rc::new(Inner {
            fd: Some(fd),
            key: Cell::new(0),
            ring: Rc::clone(ring),
            in_flight: Cell::new(0),
            closed: Cell::new(false),
            recv: RefCell::default(),
            send: RefCell::default(),
            connect: RefCell::default(),
        });
        let key = ring.streams.borrow_mut().insert(Rc::clone(&inner));
        inner.key.set(u32::try_from(key).unwrap_or(u32::MAX));
        Self(inner)
    }

    /// Makes the close send a reset: the peer must not take what it got for complete.
    pub fn reset_on_close(&self) {
        if let Some(fd) = &self.0.fd {
            let _ = socket::reset_on_close(fd.as_fd());
        }
    }

    /// The ring it lives on.
    #[must_use]
    pub fn ring(&self) -> &Rc<Ring> {
        &self.0.ring
    }
}

#[cfg(test)]
impl Stream {
    /// Whether the receive waits for a buffer; chunks received and not taken; chunks not sent yet.
    pub(super) fn state(&self) -> (bool, usize, usize) {
        let recv = self.0.recv.borrow();
        (recv.starved, recv.queue.len(), self.0.send.borrow().queue.len())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_ref().map(AsFd::as_fd).expect("the descriptor is taken only by drop")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("fd", &self.0.raw().0).finish_non_exhaustive()
    }
}

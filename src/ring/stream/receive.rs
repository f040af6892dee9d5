//! The receiving side: chunks as they come, no more than the reader keeps up with.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, Waker};

use io_uring::{cqueue, opcode, squeue};

use super::queue::Queue;
use super::{Inner, Stream};
use crate::ring::buffers::GROUP;
use crate::ring::share::Pressure;
use crate::ring::timer::keep_waker;
use crate::ring::{Chunk, Ring, Tag, user_data};
use crate::sys::memory::prefetch_all;
use crate::sys::socket;

/// Received chunks a stream may hold before it is paused.
const RECV_QUEUE_MAX: usize = 8;

/// Bytes that come one after the other, with nothing sent between, from which on they are one long message. More than two
/// buffers, so that small messages ask for nothing.
const ONE_WAY: u32 = 40 * 1024;

/// Bytes of a task that a wake-up asks the cache for: those of a connection's task, header included.
const TASK_LEN: usize = 600;

#[derive(Default)]
pub(super) struct Receive {
    pub(super) queue: Queue,
    armed: bool,
    /// The operation that is armed brings one buffer.
    is_one: bool,
    pausing: bool,
    pub(super) starved: bool,
    /// Receive a buffer at a time instead of multishot.
    single: bool,
    eof: bool,
    /// Bytes received since something was sent, no more than [`ONE_WAY`].
    one_way: u32,
    /// Receiving was shut down: the operation that is armed ends by itself.
    pub(super) ending: bool,
    error: Option<i32>,
    pub(super) waker: Option<Waker>,
}

impl Inner {
    fn arm_recv(&self, ring: &Ring, recv: &mut Receive) {
        if recv.armed || recv.starved || recv.eof || recv.error.is_some() || self.closed.get() {
            return;
        }
        recv.armed = true;
        recv.is_one = recv.takes_one(ring);
        let entry = if recv.is_one {
            opcode::Recv::new(self.raw(), std::ptr::null_mut(), 0)
                .buf_group(GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        } else {
            opcode::RecvMulti::new(self.raw(), GROUP).build()
        };
        self.submit(ring, Tag::Recv, entry);
    }

    pub(in crate::ring) fn on_recv(&self, ring: &Ring, result: i32, flags: u32) {
        let (more, len) = (cqueue::more(flags), u32::try_from(result).unwrap_or(0));
        let mut recv = self.recv.borrow_mut();
        self.note_one_way(&mut recv, len);
        if let Some(id) = cqueue::buffer_select(flags) {
            // Taken even when the result says that there is nothing in it, so that it goes back.
            let chunk = ring.pool.take(id, len);
            if let Some(chunk) = chunk.filter(|_| len > 0 && !self.closed.get()) {
                recv.queue.push_back(Chunk::Received(chunk));
            }
        }
        match -result {
            0 => recv.eof = true,
            libc::ENOBUFS if self.closed.get() => {}
            libc::ENOBUFS => {
                ring.stats.buffers_exhausted.increment();
                recv.starved = true;
                ring.starved.borrow_mut().push_back(self.key.get());
            }
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
            errno if errno > 0 => recv.error = Some(errno),
            _ => {}
        }
        if more {
            self.pause_if_full(ring, &mut recv);
        } else {
            recv.armed = false;
            recv.pausing = false;
            // An idle connection is to notice its end although nobody is receiving.
            if recv.queue.is_empty()
                || (!recv.takes_one(ring) && recv.queue.len() < RECV_QUEUE_MAX / 2)
            {
                self.arm_recv(ring, &mut recv);
            }
        }
        let waker = recv.waker.take();
        drop(recv);
        if let Some(waker) = waker {
            // What glommio's wakers point to is the task. It runs when the round's other completions have been handed out.
            prefetch_all(waker.data().cast(), TASK_LEN);
            waker.wake();
        }
        if !more {
            self.finished(ring);
        }
    }

    /// The kernel takes a connection on which something was sent for a conversation, and delays acknowledgements by 40 ms
    /// in case there is something to send with them. A sender that has filled the window would wait for that in the
    /// middle of a long message.
    fn note_one_way(&self, recv: &mut Receive, received: u32) {
        if recv.one_way == ONE_WAY {
            return;
        }
        recv.one_way = ONE_WAY.min(recv.one_way.saturating_add(received));
        if let Some(fd) = self.fd.as_ref().filter(|_| recv.one_way == ONE_WAY) {
            // Fails only for a connection that is gone, of which the receive tells.
            let _ = socket::acknowledge_at_once(fd.as_fd());
        }
    }

    fn pause_if_full(&self, ring: &Ring, recv: &mut Receive) {
        if recv.queue.len() >= RECV_QUEUE_MAX {
            self.take_one_at_a_time(ring, recv);
        }
    }

    fn take_one_at_a_time(&self, ring: &Ring, recv: &mut Receive) {
        recv.single = true;
        if recv.armed && !recv.is_one && !recv.pausing && !recv.ending {
            recv.pausing = true;
            ring.cancel(user_data(Tag::Recv, self.key.get()));
        }
    }

    /// There are receive buffers again.
    pub(in crate::ring) fn on_fed(&self, ring: &Ring) {
        let mut recv = self.recv.borrow_mut();
        recv.starved = false;
        if recv.queue.is_empty() {
            self.arm_recv(ring, &mut recv);
        }
    }

    /// The handle is gone.
    pub(super) fn stop_receiving(&self) {
        let mut recv = self.recv.borrow_mut();
        recv.queue.clear();
        if recv.starved {
            // While no buffer comes back nobody else takes it off the list.
            self.ring.starved.borrow_mut().retain(|&key| key != self.key.get());
        }
        if recv.armed && !recv.pausing && !recv.ending {
            self.ring.cancel(user_data(Tag::Recv, self.key.get()));
        }
    }
}

impl Receive {
    /// Something is being sent: what comes from now on may be the answer to it.
    pub(super) fn note_sent(&mut self) {
        self.one_way = 0;
    }

    /// Whether the next operation is to bring one buffer only: multishot takes 32 before anybody can say stop.
    fn takes_one(&self, ring: &Ring) -> bool {
        self.single || ring.pressure() > Pressure::Low
    }
}

impl Stream {
    /// The next received chunk; `None` at the end of the stream.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        let mut recv = self.0.recv.borrow_mut();
        if let Some(chunk) = recv.queue.pop_front() {
            return Poll::Ready(Ok(Some(chunk)));
        }
        let send_error = self.0.send.borrow().error;
        // The kernel tells of a reset once. When it told the send, the receive seems to have ended
        // in order, and what was received would pass for complete.
        if recv.eof && send_error != Some(libc::ECONNRESET) {
            return Poll::Ready(Ok(None));
        }
        if let Some(errno) = recv.error.or(send_error) {
            return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
        }
        self.0.arm_recv(&self.0.ring, &mut recv);
        keep_waker(&mut recv.waker, cx);
        Poll::Pending
    }

    /// See [`Stream::poll_recv`].
    ///
    /// # Errors
    /// What recv(2) said, or send(2) when sending failed first.
    pub async fn recv(&self) -> io::Result<Option<Chunk>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Arms the receive before anybody waits, so that data and the peer's end are noticed.
    pub fn watch(&self) {
        self.0.arm_recv(&self.0.ring, &mut self.0.recv.borrow_mut());
    }

    /// From now on a buffer at a time, and only when it is asked for: who takes the data does not keep up.
    pub fn receive_singly(&self) {
        self.0.take_one_at_a_time(&self.0.ring, &mut self.0.recv.borrow_mut());
    }

    /// Back to multishot receiving: after a long body, or because its reader has caught up.
    pub fn end_bulk(&self) {
        self.0.recv.borrow_mut().single = false;
    }

    /// True while nothing has been received that nobody took: no data, no end, no error.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let recv = self.0.recv.borrow();
        recv.queue.is_empty()
            && !recv.eof
            && recv.error.is_none()
            && self.0.send.borrow().error.is_none()
    }

    /// Ready once the peer has reset the connection; data and an orderly end are left alone.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut recv = self.0.recv.borrow_mut();
        if let Some(errno) = recv.error.or_else(|| self.0.send.borrow().error) {
            return Poll::Ready(io::Error::from_raw_os_error(errno));
        }
        if recv.queue.len() < RECV_QUEUE_MAX / 2 {
            self.0.arm_recv(&self.0.ring, &mut recv);
        }
        keep_waker(&mut recv.waker, cx);
        Poll::Pending
    }
}
